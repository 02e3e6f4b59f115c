//! What a check of `oarlock-worker doctor` found, and what to do about it.

use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use tokio::time::Instant;

use crate::failure::{Failure, Meaning};

/// What one read-only check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A name that stays, such as `jira.group`.
    pub check: &'static str,
    /// Which of several things of that kind, such as the name of the group.
    pub subject: Option<String>,
    pub result: Result<String, Trouble>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub problem: String,
    pub remedy: String,
}

impl Finding {
    pub fn new(check: &'static str, result: Result<String, Trouble>) -> Self {
        Self { check, subject: None, result }
    }

    pub(crate) fn about(check: &'static str, subject: &str, result: Result<String, Trouble>) -> Self {
        Self { check, subject: Some(subject.to_owned()), result }
    }

    /// The check with its subject, as people read it.
    pub fn name(&self) -> String {
        match &self.subject {
            Some(subject) => format!("{} {subject}", self.check),
            None => self.check.to_owned(),
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("check", self.check)?;
        if let Some(subject) = &self.subject {
            map.serialize_entry("subject", subject)?;
        }
        map.serialize_entry("ok", &self.result.is_ok())?;
        match &self.result {
            Ok(found) => map.serialize_entry("found", found)?,
            Err(Trouble { problem, remedy }) => {
                map.serialize_entry("problem", problem)?;
                map.serialize_entry("remedy", remedy)?;
            }
        }
        map.end()
    }
}

/// What is said of a body that nobody can read.
pub(crate) const NOT_THE_API: &str = "a body that is not what the API documents";

impl Trouble {
    pub fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}

/// How a vendor is called, and what to do about the failures that any of its calls can have.
#[derive(Debug)]
pub(crate) struct Vendor {
    pub(crate) name: &'static str,
    /// The setting that holds its address.
    pub(crate) address: &'static str,
    /// Where one sees whether it has a bad day.
    pub(crate) status: &'static str,
    /// What to do about a token that is refused.
    pub(crate) token: &'static str,
    /// What to do about a token that lacks a scope.
    pub(crate) scopes: &'static str,
}

impl Vendor {
    /// `remedy` is what to do if the failure is none that any call can have.
    pub(crate) fn trouble(&self, failure: &Failure, remedy: &str) -> Trouble {
        let Self { name, address, .. } = self;
        let remedy = match (failure.meaning, failure.http_status) {
            (Meaning::Transient { .. }, None) => format!(
                "see that {address} is right and that this machine reaches it: name resolution, firewall, proxy, certificates"
            ),
            // Not a code that says of the vendor that it fails.
            (Meaning::Transient { .. }, Some(200..=299))
                if failure.detail().contains(address) || failure.detail().contains(NOT_THE_API) =>
            {
                format!("see that {address} is right: something else than {name}'s API answers there")
            }
            (Meaning::Transient { .. }, Some(_)) => {
                format!("{name} fails by itself: see {}, and run this again later", self.status)
            }
            (Meaning::RateLimited { .. }, _) => format!("{name} wants fewer calls: run this again in a few minutes"),
            (Meaning::Configuration, Some(300..=399)) => format!("set {address} to the address it leads to"),
            (Meaning::Configuration, Some(401)) if failure.detail().contains("scope") => self.scopes.to_owned(),
            (Meaning::Configuration, Some(401)) => self.token.to_owned(),
            (
                Meaning::Configuration
                | Meaning::TargetGone
                | Meaning::NotShown
                | Meaning::InvitationPending
                | Meaning::Permanent
                | Meaning::AccountGone
                | Meaning::Unknown,
                _,
            ) => remedy.to_owned(),
        };
        Trouble::new(failure.detail(), remedy)
    }

    /// What came of asking it.
    pub(crate) fn finding(
        &self,
        check: &'static str,
        subject: Option<&str>,
        result: Result<String, Failure>,
        remedy: &str,
    ) -> Finding {
        let result = result.map_err(|failure| self.trouble(&failure, remedy));
        Finding { check, subject: subject.map(str::to_owned), result }
    }
}

/// How long the checks of a vendor that are made side by side may take, all of them together. There are two rounds at most.
const ROUND: Duration = Duration::from_secs(5);

/// When a round that begins now must be over.
pub(crate) fn round() -> Instant {
    Instant::now() + ROUND
}

/// A host that hangs must not hold up what is to be said about the others.
pub(crate) async fn until<T>(deadline: Instant, check: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout_at(deadline, check).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", ROUND.as_secs());
        Err(Failure::new(Meaning::Transient { retry_after: None }, None, detail))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_follows_from_the_failure() {
        let vendor =
            Vendor { name: "Jira", address: "jira.base_url", status: "its page", token: "renew", scopes: "add scopes" };
        let check = |meaning, status, detail: &str, expected: &str| {
            let trouble = vendor.trouble(&Failure::new(meaning, status, detail), "make the group");
            assert_eq!(trouble.problem, detail);
            assert!(trouble.remedy.contains(expected), "{detail}: {}", trouble.remedy);
        };
        let transient = Meaning::Transient { retry_after: None };
        check(transient, None, "failed to connect", "this machine reaches it");
        check(transient, Some(200), "a page; is jira.base_url right?", "something else than Jira's API");
        check(transient, Some(200), &format!("HTTP 200 with {NOT_THE_API}"), "something else than Jira's API");
        check(transient, Some(200), "internal_error", "see its page");
        check(transient, Some(503), "HTTP 503", "see its page");
        check(Meaning::RateLimited { retry_after: ROUND }, Some(429), "HTTP 429", "fewer calls");
        check(Meaning::Configuration, Some(401), "HTTP 401", "renew");
        check(Meaning::Configuration, Some(401), "scope does not match", "add scopes");
        check(Meaning::Configuration, Some(302), "a redirect", "set jira.base_url");
        check(Meaning::Configuration, Some(404), "no such group", "make the group");
        check(Meaning::Configuration, None, "no such group", "make the group");
    }

    #[test]
    fn a_finding_is_one_object() {
        let well = Finding::about("jira.group", "support", Ok("there".to_owned()));
        let ill = Finding::new("slack.token", Err(Trouble::new("refused", "renew it")));
        assert_eq!(
            serde_json::to_string(&[well, ill]).unwrap(),
            r#"[{"check":"jira.group","subject":"support","ok":true,"found":"there"},{"check":"slack.token","ok":false,"problem":"refused","remedy":"renew it"}]"#
        );
    }
}
