//! One action: whom to call, and with what.
//!
//! Outside any transaction, and with a deadline before the lease ends: what runs longer has lost its claim and must not go
//! on calling. An action that is dropped in the middle, by a stop or a crash, can be run again from the start.

use std::time::{Duration, Instant};

use oarlock_outbox::access::Address;
use oarlock_outbox::claim::Claim;
use oarlock_outbox::ledger::{self, FencedWriteError};
use oarlock_outbox::record::{self, Attempt};
use oarlock_outbox::{Kind, PgPool, destination};
use oarlock_service::config::{self, WorkerConfig};

use crate::failure::{Failure, Meaning};
use crate::http;
use crate::jira::{AccountId, Jira};
use crate::memberships::{self, Made};
use crate::outcome::InviteOutcome;
use crate::paddle::Paddle;
use crate::slack::Slack;

/// Whoever can be called.
#[derive(Debug)]
pub struct Vendors {
    jira: Option<(Jira, Vec<config::JiraAccess>)>,
    slack: Option<Slack>,
    paddle: Paddle,
}

/// Why an action did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the claim was lost")]
    ClaimLost,
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl From<FencedWriteError> for Stop {
    fn from(error: FencedWriteError) -> Self {
        match error {
            FencedWriteError::ClaimLost => Self::ClaimLost,
            FencedWriteError::Database(error) => Self::Database(error),
        }
    }
}

/// How an action's run ended.
#[derive(Debug)]
pub struct Ended {
    pub result: Result<&'static str, Stop>,
    /// None when it ended without a call to anybody: there was nothing to call for, or it was not its turn.
    pub attempt: Option<Attempt>,
}

impl Vendors {
    /// # Errors
    /// When a token or a URL cannot be used; each names its setting.
    pub fn new(config: &WorkerConfig) -> Result<Self, Vec<String>> {
        let timeout = config.worker.request_timeout;
        let mut problems = Vec::new();
        let mut keep = |error: anyhow::Error| problems.push(format!("{error:#}"));
        let jira = config.jira.as_ref().and_then(|jira| {
            Jira::new(jira, timeout).map_err(&mut keep).ok().map(|client| (client, jira.access.clone()))
        });
        let slack = config.slack.as_ref().and_then(|slack| Slack::new(slack, timeout).map_err(&mut keep).ok());
        match Paddle::new(&config.paddle, timeout).map_err(&mut keep) {
            Ok(paddle) if problems.is_empty() => Ok(Self { jira, slack, paddle }),
            _ => Err(problems),
        }
    }

    pub fn jira(&self) -> Option<&Jira> {
        self.jira.as_ref().map(|(jira, _)| jira)
    }

    pub fn slack(&self) -> Option<&Slack> {
        self.slack.as_ref()
    }

    pub fn paddle(&self) -> &Paddle {
        &self.paddle
    }
}

/// Runs a claimed action until it ends or `deadline` has come.
pub async fn act(pool: &PgPool, vendors: &Vendors, claim: &Claim, deadline: Instant) -> Ended {
    if claim.paced {
        match destination::take_turn(pool, claim.kind.destination()).await {
            Ok(true) => {}
            Ok(false) => return Ended { result: Err(not_our_turn().into()), attempt: None },
            Err(error) => return Ended { result: Err(error.into()), attempt: None },
        }
    }
    let started = Instant::now();
    let run = http::with_last_status(run(pool, vendors, claim));
    let (result, http_status) = match tokio::time::timeout_at(deadline.into(), run).await {
        Ok(ended) => ended,
        Err(_) => {
            let failure = "not finished before its lease ended: raise worker.lease or lower worker.request_timeout";
            (Err(Failure::new(Meaning::Transient { retry_after: None }, None, failure).into()), None)
        }
    };
    let (error, http_status) = match &result {
        // There was nothing to call anybody for.
        Ok(_) if http_status.is_none() => return Ended { result, attempt: None },
        Ok(_) => (None, http_status),
        Err(Stop::Failed(failure)) => (Some(failure.detail().to_owned()), failure.http_status),
        Err(stop @ (Stop::ClaimLost | Stop::Database(_))) => (Some(stop.to_string()), http_status),
    };
    let attempt = Some(Attempt { started, ended: Instant::now(), http_status, error });
    Ended { result, attempt }
}

/// The schema goes by this word as well: an invitation that ends so is made once something is paid for (`invite_the_owed`).
const UNCHANGED: &str = "unchanged";

async fn run(pool: &PgPool, vendors: &Vendors, claim: &Claim) -> Result<&'static str, Stop> {
    let subject = claim.subject.as_str();
    // Run or replayed late, for somebody who has left: not invited back.
    if claim.while_paid && ledger::has_left(pool, subject).await? {
        return Ok(UNCHANGED);
    }
    match claim.kind {
        Kind::JiraInvite => {
            let (jira, _) = vendors.jira.as_ref().ok_or_else(|| not_configured("jira"))?;
            // Boxed, like the others: a task has room for the largest of them, and is moved with it.
            Box::pin(jira_invite(pool, jira, claim)).await.map(invited)
        }
        Kind::JiraAccess => {
            let (jira, rules) = vendors.jira.as_ref().ok_or_else(|| not_configured("jira"))?;
            Ok(match Box::pin(memberships::make(pool, jira, rules, claim)).await? {
                Made::Granted => "granted",
                Made::Revoked => "revoked",
                Made::Unchanged => UNCHANGED,
            })
        }
        Kind::SlackInvite => {
            let slack = vendors.slack.as_ref().ok_or_else(|| not_configured("slack"))?;
            Box::pin(slack_invite(pool, slack, claim)).await.map(invited)
        }
        Kind::PaddleCustomer => {
            // Billing tells a change in two alerts at once: the second look-up finds the first one's answer.
            if ledger::is_looked_up(pool, claim).await? {
                return Ok(UNCHANGED);
            }
            let customer = Box::pin(vendors.paddle.customer(subject)).await?;
            let Some(address) = Address::looked_up(&customer.email, customer.updated_at) else {
                return Err(
                    Failure::new(Meaning::Permanent, Some(200), "the customer has no usable e-mail address").into()
                );
            };
            ledger::keep_address(pool, subject, &address).await?;
            // Nothing is changed over there.
            Ok(UNCHANGED)
        }
    }
}

/// Attempts until an account that Jira does not show is one that hides, and not one that is new to its search.
const ATTEMPTS_AT_A_LATE_SEARCH: u32 = 3;

async fn jira_invite(pool: &PgPool, jira: &Jira, claim: &Claim) -> Result<InviteOutcome, Stop> {
    let email = claim.subject.as_str();
    let known = ledger::jira_account(pool, email).await?.map(AccountId::new);
    let invited = match (jira.invite(email, known.as_ref()).await, &known) {
        (Err(Failure { meaning: Meaning::AccountGone, .. }), Some(_)) => jira.invite(email, None).await,
        (invited, _) => invited,
    };
    let invited = match invited {
        // Who it is matters for access alone.
        Err(failure) if failure.meaning == Meaning::NotShown => {
            let before = ATTEMPTS_AT_A_LATE_SEARCH - 1;
            if record::failed_alike(pool, claim, failure.detail(), before).await? < before {
                return Err(failure.into());
            }
            return Ok(InviteOutcome::AlreadyInvited);
        }
        invited => invited?,
    };
    if known.as_ref() != Some(&invited.account) {
        ledger::keep_jira_account(pool, claim, email, invited.account.as_str()).await?;
    }
    Ok(invited.outcome)
}

async fn slack_invite(pool: &PgPool, slack: &Slack, claim: &Claim) -> Result<InviteOutcome, Stop> {
    let email = claim.subject.as_str();
    match slack.invite(email).await {
        Ok(InviteOutcome::Invited) if slack.waits_for_acceptance() => {
            ledger::keep_slack_invitation(pool, claim, email).await?;
            Ok(InviteOutcome::Invited)
        }
        Err(Failure { meaning: Meaning::InvitationPending, .. })
            if ledger::has_slack_invitation(pool, email).await? =>
        {
            Ok(InviteOutcome::AlreadyInvited)
        }
        ended => Ok(ended?),
    }
}

fn invited(outcome: InviteOutcome) -> &'static str {
    match outcome {
        InviteOutcome::Invited => "invited",
        InviteOutcome::AlreadyInvited => "already invited",
    }
}

/// The pause lasts until some turns have gathered, so that not each of them costs one.
fn not_our_turn() -> Failure {
    let meaning = Meaning::RateLimited { retry_after: Duration::from_secs(6) };
    Failure::new(meaning, None, "as many actions as destination.actions_per_minute allows were run")
}

/// Nobody claims for a section that is missing; if it came to that, the action would wait for the configuration.
fn not_configured(section: &str) -> Stop {
    Failure::new(Meaning::Configuration, None, format!("this worker has no section [{section}] in its configuration"))
        .into()
}
