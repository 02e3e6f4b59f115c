//! A customer's memberships are made what is paid for at this moment.
//!
//! | the ledger says | the membership is | what is done |
//! |---|---|---|
//! | paid for | given by us | added again if somebody removed it |
//! | paid for | there, and not by us | left alone, now and later: it is found |
//! | paid for | not there | the intention is written down, it is added, and is given |
//! | not paid for | given by us | taken away |
//! | not paid for | not by us | left alone: a colleague, or a gift |
//!
//! The intention comes before the call: a worker that dies between the call and its record leaves a membership that is
//! known to be ours. Adding comes before taking away: who moves between plans is never without.

use oarlock_outbox::claim::Claim;
use oarlock_outbox::ledger::{self, Member};
use oarlock_outbox::{MemberState, PgPool};
use oarlock_service::config::{JiraAccess, Membership};

use crate::act::Stop;
use crate::failure::{Failure, Meaning};
use crate::jira::{AccountId, Jira};
use crate::outcome::{Added, Removed};

/// What the evaluation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Granted,
    Revoked,
    Unchanged,
}

/// Evaluates a customer's access and acts on it.
///
/// # Errors
/// When a call fails, the claim is lost or the database is away. Whatever was done until then is noted, and a repetition
/// goes on from there.
pub async fn make(pool: &PgPool, jira: &Jira, rules: &[JiraAccess], claim: &Claim) -> Result<Made, Stop> {
    let email = claim.subject.as_str();
    let wanted = ledger::paid(pool, email).await?.map_or_else(Vec::new, |plans| wanted(rules, &plans));
    let held = ledger::memberships(pool, email).await?;
    let (mut granted, mut revoked, mut first_failure) = (false, false, None);

    for membership in &wanted {
        let target = target(membership);
        let known = held.iter().find(|member| member.target == target);
        match give(pool, jira, claim, membership, known).await {
            Ok(Ok(is_new)) => granted |= is_new,
            Ok(Err(failure)) => first_failure = first_failure.or(Some(failure)),
            // Nobody can tell whom to give anything. What is to be taken away was given to an account that is known.
            Err(Stop::Failed(failure)) if failure.meaning == Meaning::Permanent => {
                first_failure = first_failure.or(Some(failure));
                break;
            }
            Err(stop) => return Err(stop),
        }
    }
    for member in held.iter().filter(|member| !wanted.iter().any(|membership| target(membership) == member.target)) {
        match member.state {
            MemberState::Given | MemberState::Intended | MemberState::Leaving => {
                let ended = take_away(pool, jira, claim, member).await;
                match of_it_alone(ended.map_err(|stop| of_the_customer(stop, rules, member)))? {
                    Ok(was_there) => revoked |= was_there,
                    Err(failure) => first_failure = first_failure.or(Some(failure)),
                }
            }
            MemberState::Found => ledger::forget_membership(pool, claim, email, &member.target).await?,
        }
    }
    if let Some(failure) = first_failure {
        return Err(failure.into());
    }
    ledger::access_made(pool, claim, email).await?;
    Ok(match (granted, revoked) {
        (true, _) => Made::Granted,
        (false, true) => Made::Revoked,
        (false, false) => Made::Unchanged,
    })
}

/// What will never work for one membership, which says nothing of the others; all else stops the whole.
fn of_it_alone<T>(ended: Result<T, Stop>) -> Result<Result<T, Failure>, Stop> {
    match ended {
        Ok(done) => Ok(Ok(done)),
        Err(Stop::Failed(failure)) if failure.meaning == Meaning::Permanent => Ok(Err(failure)),
        Err(stop) => Err(stop),
    }
}

/// A group or organization that is gone, and that the configuration names no more, is to be mended for those who were in it, and
/// holds up nobody else.
fn of_the_customer(stop: Stop, rules: &[JiraAccess], member: &Member) -> Stop {
    let is_configured = rules.iter().any(|rule| target(&rule.grants) == member.target);
    match stop {
        Stop::Failed(failure) if failure.meaning == Meaning::TargetGone && !is_configured => {
            let detail = format!("{}, and jira.access does not name it any more: see the runbook", failure.detail());
            Failure::new(Meaning::Permanent, failure.http_status, detail).into()
        }
        stop => stop,
    }
}

/// All memberships that one of the plans gives, each once.
pub fn wanted(rules: &[JiraAccess], plans: &[String]) -> Vec<Membership> {
    let mut wanted: Vec<Membership> = rules
        .iter()
        .filter(|rule| rule.plans.iter().any(|plan| plan == "*" || plans.contains(plan)))
        .map(|rule| rule.grants.clone())
        .collect();
    wanted.sort();
    wanted.dedup();
    wanted
}

/// Gives a membership to the customer's Jira account: the one kept, else found, else invited. One that turns out to be gone is
/// kept until another is found: a Jira that is off the air for a moment says of everybody that they are gone. Returns whether the
/// customer was not a member before.
async fn give(
    pool: &PgPool,
    jira: &Jira,
    claim: &Claim,
    membership: &Membership,
    known: Option<&Member>,
) -> Result<Result<bool, Failure>, Stop> {
    let email = claim.subject.as_str();
    if let Some(kept) = ledger::jira_account(pool, email).await?.map(AccountId::new) {
        match give_to(pool, jira, claim, membership, known, &kept).await {
            Err(Stop::Failed(Failure { meaning: Meaning::AccountGone, .. })) => {}
            ended => return of_it_alone(ended),
        }
    }
    let account = match jira.find(email).await? {
        Some(account) => account,
        None => jira.invite(email, None).await?.account,
    };
    ledger::keep_jira_account(pool, claim, email, account.as_str()).await?;
    match give_to(pool, jira, claim, membership, known, &account).await {
        Err(Stop::Failed(Failure { meaning: Meaning::AccountGone, .. })) => Err(found_and_gone().into()),
        ended => of_it_alone(ended),
    }
}

/// Jira says of somebody whom it finds, or has just made, that they are not there: its parts do not all know yet.
fn found_and_gone() -> Failure {
    let meaning = Meaning::Transient { retry_after: None };
    Failure::new(meaning, None, "Jira finds the account and says that it is not there")
}

async fn give_to(
    pool: &PgPool,
    jira: &Jira,
    claim: &Claim,
    membership: &Membership,
    known: Option<&Member>,
    account: &AccountId,
) -> Result<bool, Stop> {
    let mut member = Member {
        target: target(membership),
        account: account.as_str().to_owned(),
        state: known.map_or(MemberState::Found, |known| known.state),
    };
    // Only what was never ours can be somebody else's; and what we gave this account under another address is ours, also if
    // it is on its way from there to here just now. So this is asked again after Jira has answered: what it saw may have been
    // given in between.
    let elsewhere = async || {
        let states = ledger::same_account(pool, &claim.subject, &member).await?;
        Ok::<_, Stop>(states.iter().any(|state| *state != MemberState::Found))
    };
    if member.state == MemberState::Found
        && !elsewhere().await?
        && jira.is_member(membership, account).await?
        && !elsewhere().await?
    {
        if known != Some(&member) {
            ledger::keep_membership(pool, claim, &claim.subject, &member).await?;
        }
        return Ok(false);
    }
    let is_given = member.state == MemberState::Given && known == Some(&member);
    if !is_given {
        member.state = MemberState::Intended;
        ledger::keep_membership(pool, claim, &claim.subject, &member).await?;
        // Each side writes its intention down before it looks for the other's: at least one of two sees the other. Who takes
        // away and sees this leaves the membership; who is past that is waited for.
        if ledger::is_leaving_elsewhere(pool, &claim.subject, &member).await? {
            let meaning = Meaning::Transient { retry_after: None };
            return Err(Failure::new(meaning, None, "the same account is being changed under another address").into());
        }
    }
    let added = jira.add(membership, account).await?;
    if !is_given {
        member.state = MemberState::Given;
        ledger::keep_membership(pool, claim, &claim.subject, &member).await?;
    }
    // An organization answers alike whether or not the member is new: then what we had noted decides.
    Ok(!is_given || (added == Added::Now && matches!(membership, Membership::Group(_))))
}

/// Returns whether the customer was a member until now.
async fn take_away(pool: &PgPool, jira: &Jira, claim: &Claim, given: &Member) -> Result<bool, Stop> {
    let email = claim.subject.as_str();
    let membership = from_target(&given.target);
    let leaving = Member { state: MemberState::Leaving, ..given.clone() };
    ledger::keep_membership(pool, claim, email, &leaving).await?;
    let elsewhere = ledger::same_account(pool, email, &leaving).await?;
    if elsewhere.iter().any(|state| *state != MemberState::Leaving) {
        // The customer's address changed: the account keeps the membership under the other one, which answers for it now.
        ledger::forget_membership(pool, claim, email, &given.target).await?;
        return Ok(false);
    }
    let removed = match jira.remove(&membership, &AccountId::new(&given.account)).await {
        // The account goes on under another id, or not at all; then there is nothing to take away.
        Err(Failure { meaning: Meaning::AccountGone, .. }) => match jira.find_successor(email).await? {
            Some(account) if account.as_str() == given.account => return Err(found_and_gone().into()),
            Some(account) => {
                ledger::keep_jira_account(pool, claim, email, account.as_str()).await?;
                jira.remove(&membership, &account).await?
            }
            None => Removed::NotThere,
        },
        removed => removed?,
    };
    ledger::forget_membership(pool, claim, email, &given.target).await?;
    // What was begun before may have been done then.
    Ok(removed == Removed::Now || given.state == MemberState::Leaving)
}

/// The word for a membership in the ledger.
pub fn target(membership: &Membership) -> String {
    match membership {
        Membership::Group(name) => format!("group:{name}"),
        Membership::Organization(id) => format!("organization:{id}"),
    }
}

fn from_target(target: &str) -> Membership {
    match target.split_once(':') {
        Some(("organization", id)) => Membership::Organization(id.to_owned()),
        Some((_, name)) => Membership::Group(name.to_owned()),
        None => unreachable!("the schema allows group: and organization: alone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_matching_rules_apply() {
        let rule = |plans: &[&str], group: &str| JiraAccess {
            plans: plans.iter().map(|plan| (*plan).to_owned()).collect(),
            grants: Membership::Group(group.to_owned()),
        };
        let rules = [rule(&["*"], "all"), rule(&["1", "2"], "some"), rule(&["3"], "other"), rule(&["2"], "all")];
        let check = |plans: &[&str], expected: &[&str]| {
            let plans: Vec<_> = plans.iter().map(|plan| (*plan).to_owned()).collect();
            let groups: Vec<_> = wanted(&rules, &plans).iter().map(target).collect();
            assert_eq!(groups, expected);
        };
        check(&["2"], &["group:all", "group:some"]);
        check(&["1", "3"], &["group:all", "group:other", "group:some"]);
        check(&["9"], &["group:all"]);
        check(&[], &["group:all"]);
    }

    #[test]
    fn a_target_reads_back() {
        for membership in [Membership::Group("a:b c".into()), Membership::Organization("17".into())] {
            assert_eq!(from_target(&target(&membership)), membership);
        }
    }
}
