//! A place of its own in a Postgres that others may be using: a fresh database, or else a fresh schema.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio::time::timeout;
use url::Url;

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Database {
    kind: Kind,
    name: String,
    /// Where it was made, and will be dropped.
    given: String,
    url: Url,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Database,
    Schema,
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Database => "database",
            Kind::Schema => "schema",
        };
        // Neither user nor password.
        let host = self.url.host_str().unwrap_or("this machine");
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "new {kind} {} on {host}{port}, dropped at the end", self.name)
    }
}

impl Database {
    /// Makes a database; where the role may not, or a new one cannot be reached (a pooler), a schema.
    pub(super) async fn make(given: &str) -> anyhow::Result<Self> {
        let Ok(url) = Url::parse(given) else {
            bail!("DATABASE_URL must be a URL such as postgres://user@host:5432/database");
        };
        let name = format!("oarlock_demo_{:08x}", rand::random::<u32>());
        let database = Self { kind: Kind::Database, url: with_database(&url, &name), given: given.to_owned(), name };
        let mut connection = database.connect(given).await.context("failed to connect to DATABASE_URL")?;
        // Not template1: somebody may be connected to it, which forbids to copy it.
        let create = format!("create database {} template template0", database.name);
        if database.execute(&mut connection, &create).await.is_ok() {
            if database.connect(database.url.as_str()).await.is_ok() {
                return Ok(database);
            }
            database.execute(&mut connection, &format!("drop database {}", database.name)).await?;
        }
        let schema = Self { kind: Kind::Schema, url: with_schema(&url, &database.name), ..database };
        schema
            .execute(&mut connection, &format!("create schema {}", schema.name))
            .await
            .context("failed to make a database or a schema for the demo")?;
        Ok(schema)
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }

    pub(super) async fn pool(&self) -> anyhow::Result<PgPool> {
        let options = PgPoolOptions::new().max_connections(2).acquire_timeout(PATIENCE);
        options.connect(self.url()).await.context("failed to connect to the demo's database")
    }

    /// The command that looks into it; psql asks for a password that is not for the screen.
    pub(super) fn psql(&self) -> String {
        let mut url = self.url.clone();
        // Refused for a URL that cannot have a password, which then has none.
        let _ = url.set_password(None);
        format!("psql '{url}'")
    }

    pub(super) async fn drop_it(self) -> anyhow::Result<()> {
        let statement = match self.kind {
            Kind::Database => format!("drop database {} with (force)", self.name),
            // Without a notice of all that goes with it.
            Kind::Schema => format!("set client_min_messages = warning; drop schema {} cascade", self.name),
        };
        let dropped = async {
            let mut connection = self.connect(&self.given).await?;
            self.execute(&mut connection, &statement).await
        };
        dropped.await.with_context(|| format!("failed to tidy up; please {statement}"))
    }

    async fn connect(&self, url: &str) -> anyhow::Result<PgConnection> {
        timeout(PATIENCE, PgConnection::connect(url)).await.context("no answer in time")?.map_err(said)
    }

    /// Statements of this file: the name in them is made of digits and letters here.
    async fn execute(&self, connection: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
        let running = sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection);
        timeout(PATIENCE, running).await.context("no answer in time")?.map(drop).map_err(said)
    }
}

/// The error as one message: its text says the cause already, which the chain would repeat.
fn said(error: sqlx::Error) -> anyhow::Error {
    match error.as_database_error() {
        Some(refused) => anyhow!("{}", refused.message()),
        None => anyhow!("{error}"),
    }
}

fn with_database(url: &Url, name: &str) -> Url {
    let mut url = without(url, "dbname");
    url.set_path(name);
    url
}

fn with_schema(url: &Url, name: &str) -> Url {
    let mut url = without(url, "options");
    url.query_pairs_mut().append_pair("options", &format!("-csearch_path={name}"));
    url
}

fn without(url: &Url, parameter: &str) -> Url {
    let kept: Vec<_> = url.query_pairs().filter(|(name, _)| name != parameter).collect();
    let mut without = url.clone();
    without.set_query(None);
    if !kept.is_empty() {
        without.query_pairs_mut().extend_pairs(kept);
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_its_own_place() {
        let check = |given: &str, database: &str, schema: &str| {
            let url = Url::parse(given).unwrap();
            assert_eq!(with_database(&url, "x").as_str(), database);
            assert_eq!(with_schema(&url, "x").as_str(), schema);
        };
        check(
            "postgres://ann:pw@db:5433/app?sslmode=require",
            "postgres://ann:pw@db:5433/x?sslmode=require",
            "postgres://ann:pw@db:5433/app?sslmode=require&options=-csearch_path%3Dx",
        );
        check("postgres://db", "postgres://db/x", "postgres://db?options=-csearch_path%3Dx");
        check(
            "postgres://db?dbname=app&options=-csearch_path%3Dapp",
            "postgres://db/x?options=-csearch_path%3Dapp",
            "postgres://db?dbname=app&options=-csearch_path%3Dx",
        );
    }
}
