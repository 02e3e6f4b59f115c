//! `oarlock-worker doctor`: what is wrong, and what to do about it. Read-only.

use std::time::Duration;

use oarlock_outbox::PgPool;
use oarlock_outbox::schema;
use oarlock_service::config::WorkerConfig;
use oarlock_service::database;

use crate::act::Vendors;
use crate::outcome::Finding;

/// Longer than this nobody wants to wait for an answer about the database.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(6);

/// Checks everything, prints a line each; returns whether all is well.
pub async fn run(config: &WorkerConfig, vendors: &Vendors) -> bool {
    let mut findings =
        vec![Finding { what: "configuration".to_owned(), result: Ok("read, no problem found".to_owned()) }];
    let pool = database::pool(&config.database, "oarlock-worker doctor");
    findings.push(Finding { what: "database".to_owned(), result: check_database(&pool).await });
    let (jira, slack, paddle) = tokio::join!(
        async {
            match vendors.jira() {
                Some(jira) => jira.check().await,
                None => vec![left_out("jira")],
            }
        },
        async {
            match vendors.slack() {
                Some(slack) => slack.check().await,
                None => vec![left_out("slack")],
            }
        },
        vendors.paddle().check(),
    );
    findings.extend(jira);
    findings.extend(slack);
    findings.extend(paddle);
    for Finding { what, result } in &findings {
        match result {
            Ok(found) => println!("ok    {what}: {found}"),
            Err(problem) => println!("FAIL  {what}: {problem}"),
        }
    }
    findings.iter().all(|finding| finding.result.is_ok())
}

async fn check_database(pool: &PgPool) -> Result<String, String> {
    let look = async {
        let mut connection = pool.acquire().await?;
        schema::state(&mut connection).await
    };
    match tokio::time::timeout(DATABASE_TIMEOUT, look).await {
        Ok(Ok(schema::State::Ready)) => Ok("reachable and migrated".to_owned()),
        Ok(Ok(schema::State::Behind(count))) => {
            Err(format!("reachable, but {count} migration(s) are to be applied: run oarlock-worker migrate"))
        }
        Ok(Err(error)) => Err(format!("cannot be used ({error}): check database.url, and that Postgres is running")),
        Err(_) => Err("does not answer: check database.url, and that Postgres is running".to_owned()),
    }
}

fn left_out(section: &str) -> Finding {
    Finding { what: section.to_owned(), result: Ok(format!("no section [{section}]: its actions are not planned")) }
}
