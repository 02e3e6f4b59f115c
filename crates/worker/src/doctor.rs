//! `oarlock-worker doctor`: what is wrong, and what to do about it.
//!
//! Reads only, prints no secret, and takes less than fifteen seconds whoever hangs: what does not answer in its time is a
//! finding too. Checks that would only repeat what is wrong already are left out.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use oarlock_outbox::rights::{self, Rights};
use oarlock_outbox::{cause, schema};
use oarlock_service::config::{Database, Problems, WorkerConfig};
use oarlock_service::database;
use serde::Serialize;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::act::Vendors;
use crate::finding::{Finding, Trouble};

/// Longer than this nobody wants to wait for a connection to the database …
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// … and for what it says then.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);

/// A tenth of what the receiver bears in a signature of Billing's by default (`paddle.billing.tolerance`), and far more than
/// two machines whose clocks are kept.
const LARGEST_SKEW: TimeDelta = TimeDelta::seconds(30);

/// What is right and what is wrong, in the order in which to mend it.
#[derive(Debug, Serialize)]
pub struct Report {
    ok: bool,
    version: &'static str,
    findings: Vec<Finding>,
}

impl Report {
    fn new(findings: Vec<Finding>) -> Self {
        let ok = findings.iter().all(|finding| finding.result.is_ok());
        Self { ok, version: env!("CARGO_PKG_VERSION"), findings }
    }

    /// Of a configuration that cannot be used: nothing else is looked at.
    pub fn of_problems(problems: &Problems) -> Self {
        let remedy = "correct the key, in the file or in its variable: docs/configuration.md has them all";
        let finding = |problem: &String| Finding::new("configuration", Err(Trouble::new(problem, remedy)));
        Self::new(problems.0.iter().map(finding).collect())
    }

    /// Whether all is well.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// One document.
    ///
    /// # Panics
    /// Never: it is made of texts.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts can be JSON")
    }
}

impl fmt::Display for Report {
    /// A line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            match &finding.result {
                Ok(found) => writeln!(f, "ok    {}: {found}", finding.name())?,
                Err(Trouble { problem, remedy }) => {
                    writeln!(f, "FAIL  {}: {problem}. To do: {remedy}", finding.name())?;
                }
            }
        }
        Ok(())
    }
}

/// Checks everything.
pub async fn run(config: &WorkerConfig, vendors: &Vendors) -> Report {
    let (database, jira, slack, paddle) = tokio::join!(
        check_database(&config.database),
        async {
            match vendors.jira() {
                Some(jira) => jira.check().await,
                None => vec![Finding::new("jira", Ok(left_out("jira")))],
            }
        },
        async {
            match vendors.slack() {
                Some(slack) => slack.check().await,
                None => vec![Finding::new("slack", Ok(left_out("slack")))],
            }
        },
        vendors.paddle().check(),
    );
    let configuration = Finding::new(
        "configuration",
        Ok("no problem found; the receiver says itself what is wrong with its keys and secrets".to_owned()),
    );
    Report::new([vec![configuration], database, jira, slack, paddle].concat())
}

fn left_out(section: &str) -> String {
    format!("no section [{section}]: its actions are not planned, and those that were wait")
}

async fn check_database(settings: &Database) -> Vec<Finding> {
    let options = database::options(settings, "oarlock-worker doctor");
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
    let unreachable = |problem: String| {
        let remedy = "see that database.url is right, that Postgres runs and that this machine reaches it";
        vec![Finding::new("database.connection", Err(Trouble::new(problem, remedy)))]
    };
    let mut connection = match connecting {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return unreachable(cause(&error)),
        Err(_) => return unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
    };
    match tokio::time::timeout(DATABASE_TIMEOUT, ask_database(&mut connection)).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => unreachable(cause(&error)),
        Err(_) => unreachable(format!("connected, but no answer within {} s", DATABASE_TIMEOUT.as_secs())),
    }
}

async fn ask_database(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    // A pooler in transaction mode gives each transaction another server, with the statements of whoever had it before.
    connection.execute("begin; deallocate all").await?;
    let session = rights::session(connection).await?;
    let role = &session.role;
    let mut findings = vec![Finding::new(
        "database.connection",
        if session.read_only {
            let remedy = "let database.url lead to the primary, or take default_transaction_read_only away";
            Err(Trouble::new("nothing can be written there: a standby, or a read-only role or database", remedy))
        } else {
            Ok(format!("Postgres {}, as {role}", session.version))
        },
    )];
    findings.push(Finding::new("database.clock", clock(connection).await?));
    // Tables that the role cannot see would look like tables that are not there.
    if let Some(schema) = &session.unseen_schema {
        let problem = format!("Oarlock's tables are in the schema {schema}, which {role} does not see");
        let remedy = format!(
            "grant usage on it (as the owner: select {schema}.grant_to_roles()), and have it in the search_path"
        );
        findings.push(Finding::new("database.rights", Err(Trouble::new(problem, remedy))));
        return Ok(findings);
    }
    let Rights { missing, owner } = rights::of_worker(connection).await?;
    let may_look = session.may_read_migrations;
    let migrated = if may_look { Some(schema::state(connection).await?) } else { None };
    findings.extend(migrated.map(|state| Finding::new("database.migrations", migrations(state))));
    // Of tables that are not there nobody has a right.
    if !matches!(migrated, Some(schema::State::Behind(_))) {
        findings.push(Finding::new("database.rights", rights(role, &missing, owner)));
    }
    Ok(findings)
}

fn migrations(state: schema::State) -> Result<String, Trouble> {
    match state {
        schema::State::Ready | schema::State::ReadOnly => Ok("all applied".to_owned()),
        schema::State::Behind(count) => Err(Trouble::new(
            format!("{count} still to be applied"),
            "run oarlock-worker migrate, as the owner of the schema",
        )),
    }
}

fn rights(role: &str, missing: &[String], owner: bool) -> Result<String, Trouble> {
    match (missing, owner) {
        ([], true) => Ok(format!("{role} owns the tables: it may do all that the worker needs, and more")),
        ([], false) => Ok(format!("{role} may do all that the worker needs")),
        _ => {
            let remedy = "let database.url name oarlock_worker, and as the owner: select grant_to_roles()";
            Err(Trouble::new(format!("{role} may not: {}", missing.join("; ")), remedy))
        }
    }
}

/// Compares the two clocks around a round trip, by the quickest of some.
async fn clock(connection: &mut PgConnection) -> Result<Result<String, Trouble>, sqlx::Error> {
    let mut best: Option<(TimeDelta, TimeDelta)> = None;
    for _ in 0..5 {
        let asked = Utc::now();
        let theirs = rights::clock(connection).await?;
        let (trip, ahead) = compare(asked, theirs, Utc::now());
        if best.is_none_or(|(quickest, _)| trip < quickest) {
            best = Some((trip, ahead));
        }
    }
    let (trip, ahead) = best.unwrap_or_default();
    Ok(skew(ahead, trip / 2))
}

/// How long the round trip took, and how far the other clock is ahead of the middle of it.
fn compare(asked: DateTime<Utc>, theirs: DateTime<Utc>, answered: DateTime<Utc>) -> (TimeDelta, TimeDelta) {
    let trip = answered - asked;
    (trip, theirs - (asked + trip / 2))
}

fn skew(ahead: TimeDelta, uncertain: TimeDelta) -> Result<String, Trouble> {
    let side = if ahead < TimeDelta::zero() { "behind" } else { "ahead of" };
    let figure = format!(
        "Postgres's clock is {} ms {side} this machine's, give or take {} ms",
        ahead.num_milliseconds().abs(),
        uncertain.num_milliseconds() + 1
    );
    if ahead.abs() <= LARGEST_SKEW {
        return Ok(figure);
    }
    let remedy = "have both clocks kept by NTP (timedatectl, chronyc tracking). Postgres's decides when actions are due, each \
                  receiver's whether a signature of Paddle Billing lies within paddle.billing.tolerance: look at theirs too";
    Err(Trouble::new(figure, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_is_told_with_its_figure() {
        let at = |milliseconds| DateTime::from_timestamp_millis(milliseconds).unwrap();
        let check = |asked, theirs, answered, expected: Result<&str, &str>| {
            let (trip, ahead) = compare(at(asked), at(theirs), at(answered));
            let found = skew(ahead, trip / 2).map_err(|trouble| trouble.problem);
            assert_eq!(found.as_deref().map_err(String::as_str), expected);
        };
        check(1000, 1010, 1020, Ok("Postgres's clock is 0 ms ahead of this machine's, give or take 11 ms"));
        check(1000, 0, 1000, Ok("Postgres's clock is 1000 ms behind this machine's, give or take 1 ms"));
        check(0, 30_000, 0, Ok("Postgres's clock is 30000 ms ahead of this machine's, give or take 1 ms"));
        check(0, 30_001, 0, Err("Postgres's clock is 30001 ms ahead of this machine's, give or take 1 ms"));
        check(30_001, 0, 30_001, Err("Postgres's clock is 30001 ms behind this machine's, give or take 1 ms"));
    }
}
