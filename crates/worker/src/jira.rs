//! Jira Service Management: who is a customer, and what they are a member of.
//!
//! In: an e-mail address, or the account found behind it before, and a [`Membership`]. Out: what was done, or a
//! [`Failure`] that says what to do. Every call looks first or is harmless to repeat, so a call whose answer got lost is
//! simply made again.
//!
//! The two editions are one product with two APIs: `cloud` knows people by account id, `data_center` by user name.
//! This file holds what they share: the dispatch and what an answer means in both (developer.atlassian.com/cloud/jira,
//! developer.atlassian.com/server/jira).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use oarlock_service::config::{self, JiraEdition, Membership};
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Meaning, without_addresses};
use crate::finding::{Finding, Vendor};
use crate::http::{self, Answer};
use crate::outcome::{Added, InviteOutcome, Removed};

mod cloud;
mod data_center;

#[derive(Debug)]
pub struct Jira {
    edition: Edition,
    /// Every group and organization that the configuration names.
    access: BTreeSet<Membership>,
}

#[derive(Debug)]
enum Edition {
    Cloud(cloud::Client),
    DataCenter(data_center::Client),
}

/// Who somebody is to Jira. Cloud: `accountId`; Data Center: user name.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountId(String);

impl AccountId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccountId {
    /// Without the id: a user name of Data Center is an e-mail address more often than not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountId").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invited {
    pub account: AccountId,
    pub outcome: InviteOutcome,
}

impl Jira {
    /// # Errors
    /// A token or user that cannot be sent, no TLS.
    pub fn new(settings: &config::Jira, request_timeout: Duration) -> anyhow::Result<Self> {
        let edition = match settings.edition {
            JiraEdition::Cloud => Edition::Cloud(cloud::Client::new(settings, request_timeout)?),
            JiraEdition::DataCenter => Edition::DataCenter(data_center::Client::new(settings, request_timeout)?),
        };
        Ok(Self { edition, access: settings.access.iter().map(|row| row.grants.clone()).collect() })
    }

    /// Makes the person behind `email` a customer of the service desk. `known` is the account found behind it before.
    ///
    /// # Errors
    /// What Jira refused; [`Meaning::AccountGone`] if `known` is no longer there; [`Meaning::NotShown`] if somebody is a customer by
    /// this address, and Jira does not show who.
    pub async fn invite(&self, email: &str, known: Option<&AccountId>) -> Result<Invited, Failure> {
        match &self.edition {
            Edition::Cloud(client) => client.invite(email, known).await,
            Edition::DataCenter(client) => client.invite(email, known).await,
        }
    }

    /// The account behind `email`, if exactly one provably is. Never the first of several.
    ///
    /// # Errors
    /// What Jira refused; [`Meaning::Permanent`] if several accounts have this address.
    pub async fn find(&self, email: &str) -> Result<Option<AccountId>, Failure> {
        let found = self.look_for(email).await?;
        match found {
            Found::One(account) => Ok(Some(account)),
            Found::Nobody | Found::Hidden => Ok(None),
            Found::Several => Err(unproved(&found, "searching the account")),
        }
    }

    /// The account behind `email`, now that the one we knew is gone; none if nobody can be it.
    ///
    /// # Errors
    /// What Jira refused; [`Meaning::Permanent`] if somebody may be it, and nothing proves that.
    pub async fn find_successor(&self, email: &str) -> Result<Option<AccountId>, Failure> {
        let found = self.look_for(email).await?;
        match found {
            Found::One(account) => Ok(Some(account)),
            Found::Nobody => Ok(None),
            Found::Several => Err(unproved(&found, "searching the account")),
            Found::Hidden => {
                let detail = "the account is gone, and one that does not show its address may have come in its place: see the runbook";
                Err(Failure::new(Meaning::Permanent, None, detail))
            }
        }
    }

    async fn look_for(&self, email: &str) -> Result<Found, Failure> {
        match &self.edition {
            Edition::Cloud(client) => client.find(email).await,
            Edition::DataCenter(client) => client.find(email).await,
        }
    }

    /// # Errors
    /// What Jira refused; [`Meaning::AccountGone`] if there is no such account.
    pub async fn is_member(&self, of: &Membership, account: &AccountId) -> Result<bool, Failure> {
        match &self.edition {
            Edition::Cloud(client) => client.is_member(of, account).await,
            Edition::DataCenter(client) => client.is_member(of, account).await,
        }
    }

    /// # Errors
    /// What Jira refused; [`Meaning::AccountGone`] if there is no such account.
    pub async fn add(&self, to: &Membership, account: &AccountId) -> Result<Added, Failure> {
        let what = format!("adding to {}", name(to));
        match self.change(Change::Add, to, account, &what).await? {
            Said::Done => Ok(Added::Now),
            // A conflict (409) is documented for neither edition, and may be one of two changes at once.
            Said::Already(failure) if failure.http_status != Some(409) => Ok(Added::Already),
            // Texts are translated and not documented: a refusal because of a membership may look like any other.
            Said::Already(failure) | Said::Refused(failure) | Said::NotMember(failure) => {
                if self.is_member(to, account).await? { Ok(Added::Already) } else { Err(failure) }
            }
            Said::NotFound(failure) => Err(self.why_not_found(to, account, failure, &what).await?),
        }
    }

    /// # Errors
    /// What Jira refused; [`Meaning::AccountGone`] if there is no such account. It is then not settled that nobody is to
    /// be removed: a portal-only account that became an Atlassian account, or a renamed user, goes on under a new id.
    pub async fn remove(&self, from: &Membership, account: &AccountId) -> Result<Removed, Failure> {
        let what = format!("removing from {}", name(from));
        let said = self.change(Change::Remove, from, account, &what).await?;
        match said {
            Said::Done => Ok(Removed::Now),
            Said::NotMember(_) => Ok(Removed::NotThere),
            Said::Refused(_) | Said::Already(_) | Said::NotFound(_) if !self.is_member(from, account).await? => {
                Ok(Removed::NotThere)
            }
            Said::Refused(failure) | Said::Already(failure) => Err(failure),
            Said::NotFound(failure) => Err(self.why_not_found(from, account, failure, &what).await?),
        }
    }

    async fn change(&self, change: Change, of: &Membership, account: &AccountId, what: &str) -> Result<Said, Failure> {
        match &self.edition {
            Edition::Cloud(client) => client.change(change, of, account, what).await,
            Edition::DataCenter(client) => client.change(change, of, account, what).await,
        }
    }

    /// Jira says 404 alike when the group or organization is missing, when the account is, and when it will not tell.
    async fn why_not_found(
        &self,
        of: &Membership,
        account: &AccountId,
        failure: Failure,
        what: &str,
    ) -> Result<Failure, Failure> {
        match &self.edition {
            Edition::Cloud(client) => client.why_not_found(of, account, failure, what).await,
            Edition::DataCenter(client) => client.why_not_found(of, account, failure, what).await,
        }
    }

    /// What is wrong with the address, the credentials, and everything the configuration names. Reads only.
    pub async fn check(&self) -> Vec<Finding> {
        match &self.edition {
            Edition::Cloud(client) => client.check(&self.access).await,
            Edition::DataCenter(client) => client.check(&self.access).await,
        }
    }
}

#[derive(Clone, Copy)]
enum Change {
    Add,
    Remove,
}

/// What a look-up by e-mail address came to.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nobody,
    /// Somebody who does not show an address, and may be whom we look for.
    Hidden,
    One(AccountId),
    /// Several accounts have this very address: whichever we took could be somebody else's.
    Several,
}

impl Found {
    /// Those of `hits` whose address is `email`. Searches match prefixes, names and hidden addresses too, and a hit that
    /// does not show its address proves nothing.
    fn among<'a>(hits: impl Iterator<Item = (Option<&'a str>, &'a str)>, email: &str) -> Self {
        let email = email.to_lowercase();
        let (mut proved, mut is_hidden) = (Vec::new(), false);
        for (address, id) in hits {
            match address.filter(|address| address.contains('@')) {
                Some(address) if address.to_lowercase() == email => proved.push(id),
                Some(_) => {}
                // Also where an address is masked, `ann at example dot com`.
                None => is_hidden = true,
            }
        }
        proved.sort_unstable();
        proved.dedup();
        match proved[..] {
            [] if is_hidden => Self::Hidden,
            [] => Self::Nobody,
            [one] => Self::One(AccountId::new(one)),
            _ => Self::Several,
        }
    }
}

/// The account exists, yet no look-up proves which one it is.
fn unproved(found: &Found, what: &str) -> Failure {
    match found {
        Found::Several => Failure::new(
            Meaning::Permanent,
            None,
            format!("{what}: several accounts have this address; merge or rename them"),
        ),
        Found::Nobody | Found::Hidden | Found::One(_) => {
            let detail = format!(
                "{what}: Jira has an account with this address but does not show it: hidden, or not yet indexed"
            );
            Failure::new(Meaning::NotShown, None, detail)
        }
    }
}

/// An account that went away is a finding about our own copy of its id.
fn account_gone(failure: &Failure, what: &str) -> Failure {
    Failure::new(Meaning::AccountGone, failure.http_status, format!("{what}: the account is no longer there"))
}

/// How a membership is called in messages.
fn name(membership: &Membership) -> String {
    match membership {
        Membership::Group(name) => format!("group {name:?}"),
        Membership::Organization(id) => format!("organization {id}"),
    }
}

/// What Jira said to a call. What a refusal or a missing thing means is the call's to find out; each comes with the
/// failure it is if nothing better is found.
enum Said {
    Done,
    /// The account exists, or is a member already.
    Already(Failure),
    NotMember(Failure),
    Refused(Failure),
    /// One of the things the path, query or body names; or a lack of permission that Jira would not admit.
    NotFound(Failure),
}

impl Said {
    /// For calls where anything but a success is a failure.
    fn done(self) -> Result<(), Failure> {
        match self {
            Self::Done => Ok(()),
            Self::Already(failure) | Self::NotMember(failure) | Self::Refused(failure) | Self::NotFound(failure) => {
                Err(failure)
            }
        }
    }
}

/// The people of an organization, to whom some are to be added, or of whom some are to be removed.
fn organization_users(http: &http::Client, change: Change, id: &str) -> RequestBuilder {
    let path = format!("rest/servicedeskapi/organization/{id}/user");
    match change {
        Change::Add => http.post(&path),
        Change::Remove => http.delete(&path),
    }
}

fn no_service_desk(id: &str, http_status: Option<u16>, what: &str) -> Failure {
    let detail =
        format!("{what}: no service desk {id} that the token's account can see; is jira.service_desk_id right?");
    Failure::new(Meaning::Configuration, http_status, detail)
}

const ADDRESS: &str = "jira.base_url";

/// What the first two questions came to: who answers at the address, and whom it takes us for. What is wrong is told once.
fn entrance(vendor: &Vendor, edition: Result<String, Failure>, myself: Result<String, Failure>) -> Vec<Finding> {
    let address = |result| {
        vendor.finding("jira.address", None, result, "set jira.base_url and jira.edition as docs/setup.md says")
    };
    let credentials = |result| {
        let remedy = "let the account of the token log in to Jira once, and see that it is not blocked";
        vendor.finding("jira.credentials", None, result, remedy)
    };
    match (&edition, &myself) {
        (Err(Failure { http_status: Some(401 | 403), .. }), Err(_)) => vec![credentials(myself)],
        (Err(_), Err(_)) => vec![address(edition)],
        _ => vec![address(edition), credentials(myself)],
    }
}

/// What an answer means in both editions and both of their APIs.
///
/// Status first, then text: texts may be translated to the language of the calling account.
fn said(answer: &Answer, what: &str) -> Result<Said, Failure> {
    let message = message(answer);
    // A customer's address is quoted, and so is the name of a group: neither must decide.
    let quoted = what.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map_or("", |(name, _)| name);
    let lower = without_addresses(&message).to_lowercase().replace(&format!("'{}'", quoted.to_lowercase()), "''");
    let is = |meaning| answer.meaning(meaning, what, &message);
    let configuration = |advice: &str| {
        let colon = if message.is_empty() { "" } else { ": " };
        answer.meaning(Meaning::Configuration, what, &format!("{advice}{colon}{message}"))
    };
    match answer.status {
        // A proxy or a login page that says 200 to everything would otherwise pass for success.
        200..=299 if !answer.is_page() => Ok(Said::Done),
        // Both a change that Jira has nothing to say of and a login that failed have been seen to look like this.
        200..=299 if answer.body.is_empty() => Ok(Said::Refused(answer.failure(what, "an empty page", ADDRESS))),
        400 | 404 if answer.is_page() => Err(match answer.status {
            404 => configuration(
                "nothing of Jira's at this address; is jira.base_url right, and Jira Service Management there?",
            ),
            _ => is(Meaning::Unknown),
        }),
        400 if lower.contains("already a member of") => Ok(Said::Already(is(Meaning::Unknown))),
        400 if lower.contains("not a member of") => Ok(Said::NotMember(is(Meaning::Unknown))),
        400 if lower.contains("already exist") => Ok(Said::Already(is(Meaning::Unknown))),
        // A group that an identity provider or a directory owns.
        400 if ["read-only", "read only", "externally", "synced", "synchronized", "identity provider"]
            .iter()
            .any(|word| lower.contains(word)) =>
        {
            Err(configuration("managed elsewhere"))
        }
        400 => Ok(Said::Refused(is(Meaning::Permanent))),
        401 if lower.contains("scope") => Err(configuration(
            "the token has scopes; set jira.base_url to https://api.atlassian.com/ex/jira/CLOUD_ID (GET SITE/_edge/tenant_info \
             shows the id) and give the token the scopes it lacks",
        )),
        401 => Err(configuration("token wrong or expired (Cloud API tokens last a year)")),
        // Data Center's answer to a password that was wrong a few times: right ones are refused too.
        403 if answer.header("x-authentication-denied-reason").is_some_and(|reason| reason.contains("CAPTCHA"))
            || answer.header("x-seraph-loginreason").is_some_and(|reason| reason.contains("AUTHENTICATION_DENIED")) =>
        {
            Err(configuration(
                "Jira wants a CAPTCHA solved: log in once as jira.user in a browser, or use a personal access token",
            ))
        }
        403 => Err(configuration("the token's account lacks a permission")),
        404 => Ok(Said::NotFound(is(Meaning::Configuration))),
        409 => Ok(Said::Already(is(Meaning::Unknown))),
        _ => Err(answer.failure(what, &message, ADDRESS)),
    }
}

/// Reads what a call is made for.
fn read<T: DeserializeOwned>(answer: &Answer, what: &str) -> Result<T, Failure> {
    said(answer, what)?.done()?;
    answer.json(what)
}

/// Whether an answer to `GET serverInfo` is one of the edition we speak to.
fn edition(answer: &Answer, deployment_type: &str, setting: &str) -> Result<String, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ServerInfo {
        deployment_type: Option<String>,
        version: Option<String>,
    }

    let what = "asking for the edition";
    if let Said::NotFound(_) = said(answer, what)? {
        let said = "no Jira of this edition at this address; are jira.base_url and jira.edition right?";
        return Err(answer.meaning(Meaning::Configuration, what, said));
    }
    let info: ServerInfo = read(answer, what)?;
    match info.deployment_type {
        Some(found) if found != deployment_type => {
            let said = format!("this Jira calls itself {found:?}, which jira.edition = {setting:?} is not for");
            Err(answer.meaning(Meaning::Configuration, what, &said))
        }
        // Old versions of Data Center do not say.
        _ => Ok(format!("{setting}, version {}", info.version.as_deref().unwrap_or("unknown"))),
    }
}

/// A page of a list. The platform says `isLast`, the service desk `isLastPage`.
#[derive(Deserialize)]
struct Page<T> {
    #[serde(alias = "isLast", rename = "isLastPage")]
    is_last: Option<bool>,
    values: Vec<T>,
}

impl<T> Page<T> {
    const SIZE: usize = 50;

    /// Where the next page starts, if there is one. An empty page ends the list whatever it says, so that no loop does not.
    fn next(&self, start: usize) -> Option<usize> {
        let last = self.is_last.unwrap_or(self.values.len() < Self::SIZE);
        (!last && !self.values.is_empty()).then_some(start + self.values.len())
    }
}

/// The texts of the three shapes of error that Jira has, in one line, or a plain one.
fn message(answer: &Answer) -> String {
    /// The platform.
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase")]
    struct Platform {
        #[serde(default)]
        error_messages: Vec<String>,
        #[serde(default)]
        errors: BTreeMap<String, String>,
    }
    /// The service desk. The key is the same in every language.
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase")]
    struct ServiceDesk {
        error_message: Option<String>,
        i18n_error_message: Option<I18n>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct I18n {
        i18n_key: Option<String>,
    }
    /// Atlassian's gateway.
    #[derive(Deserialize, Default)]
    struct Gateway {
        message: Option<String>,
    }

    let platform: Platform = serde_json::from_slice(&answer.body).unwrap_or_default();
    let service_desk: ServiceDesk = serde_json::from_slice(&answer.body).unwrap_or_default();
    let gateway: Gateway = serde_json::from_slice(&answer.body).unwrap_or_default();
    let key = service_desk.i18n_error_message.and_then(|i18n| i18n.i18n_key).map(|key| format!("[{key}]"));
    let texts = platform.error_messages.into_iter().chain(platform.errors.into_values());
    let texts = texts.chain(service_desk.error_message).chain(gateway.message).chain(key);
    let said = texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    let is_text = answer.header("content-type").is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/plain"));
    // A filter before the API, such as the one against forged requests, says it in a word or two.
    if said.is_empty() && is_text { String::from_utf8_lossy(&answer.body).into_owned() } else { said }
}

#[cfg(test)]
mod tests;
