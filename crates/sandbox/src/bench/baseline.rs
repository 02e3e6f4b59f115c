//! What the same Postgres does at best with the same rows: pgbench, and a lone commit.
//!
//! The table is what any outbox would be, whatever the product's own layout is by now, so that figures of different
//! versions compare: what was received in one row, the key that tells a repeat, and the indexes a queue needs.
//!
//! pgbench sends every value with every row, as a receiver does; the alert is one of the corpus, the same for all.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sqlx::{Connection as _, PgConnection};
use tokio::process::Command;

use super::database::Database;
use super::rig::{CONNECTIONS, Rig};

pub(super) const TABLE: &str = "
create table baseline (
  id uuid primary key, source text not null, alert_id text not null, alert_name text not null, occurred_at timestamptz,
  received_at timestamptz not null default clock_timestamp(), email text, subscription_id text,
  status text not null default 'pending', to_plan boolean not null default true, last_error text, finished_at timestamptz,
  payload jsonb not null, body bytea not null, signature text not null,
  unique (source, alert_id)
);
create index on baseline (id) where to_plan;
create index on baseline (status, received_at) where status in ('pending', 'dead');
create index on baseline (finished_at) include (status) where status in ('done', 'ignored');
create sequence baseline_number cache 100;
-- The alert that is inserted: one of middling length.
create table baseline_alert as select payload::text, '\\x' || encode(body, 'hex') as body, signature from sample order by n limit 1;
";

/// Rows in one statement of the second baseline.
const MANY: u32 = 100;

pub(super) const SINGLE: &str = "pgbench, one row a commit";
pub(super) const HUNDREDS: &str = "pgbench, 100 rows a commit";

/// Commits of one row each per second.
pub(super) async fn single_rows(rig: &Rig) -> anyhow::Result<f64> {
    pgbench(rig, 1, &[]).await
}

/// Rows per second in statements of a hundred.
pub(super) async fn hundreds(rig: &Rig) -> anyhow::Result<f64> {
    Ok(pgbench(rig, MANY, &[]).await? * f64::from(MANY))
}

/// How long after it was due each commit of one row was done, at a steady rate.
pub(super) async fn at_rate(rig: &Rig, per_second: u32) -> anyhow::Result<Vec<Duration>> {
    let prefix = rig.folder.path().join("pgbench");
    let (rate, prefix) = (format!("--rate={per_second}"), format!("--log-prefix={}", prefix.display()));
    pgbench(rig, 1, &[&rate, "--log", &prefix]).await?;
    let mut latencies = Vec::new();
    // A file for each job: client, transaction, microseconds, …
    for entry in fs::read_dir(rig.folder.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pgbench.") && entry.path() != script(rig) {
            let log = fs::read_to_string(entry.path())?;
            latencies
                .extend(log.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok().map(Duration::from_micros)));
            fs::remove_file(entry.path())?;
        }
    }
    ensure!(!latencies.is_empty(), "pgbench has logged nothing");
    Ok(latencies)
}

fn script(rig: &Rig) -> PathBuf {
    rig.folder.path().join("pgbench.sql")
}

/// Transactions per second, each with so many rows, in a new database.
async fn pgbench(rig: &Rig, rows: u32, more: &[&str]) -> anyhow::Result<f64> {
    let database = rig.cluster.database("baseline").await?;
    let alert: (String, String, String) = sqlx::query_as("select payload, body, signature from baseline_alert")
        .fetch_one(database.pool())
        .await
        .context("failed to read the alert of the baselines")?;
    let from = if rows == 1 { String::new() } else { format!(" from generate_series(1, {rows})") };
    // The id sorts by arrival, as the product's does.
    let statement = format!(
        "insert into baseline (id, source, alert_id, alert_name, occurred_at, email, payload, body, signature) \
         select lpad(to_hex(nextval('baseline_number')), 32, '0')::uuid, 'classic', nextval('baseline_number')::text, \
                'payment_succeeded', now(), 'bench@example.com', :payload::jsonb, :body::bytea, :signature{from};"
    );
    fs::write(script(rig), statement)?;
    let mut pgbench = Command::new("pgbench");
    pgbench.args(["--no-vacuum", "--protocol=prepared", "--jobs=2"]).args(more);
    pgbench.arg(format!("--client={CONNECTIONS}")).arg(format!("--time={}", rig.sizes.baseline_seconds));
    pgbench.arg("--file").arg(script(rig));
    for (name, value) in [("payload", alert.0), ("body", alert.1), ("signature", alert.2)] {
        pgbench.arg("--define").arg(format!("{name}={value}"));
    }
    let output = pgbench.arg(database.url()).output().await.context("failed to run pgbench: it comes with Postgres")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    match tps {
        Some(tps) if output.status.success() => Ok(tps),
        _ => bail!("pgbench failed: {said}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Single-row commits, one by one, over a connection that is open.
#[derive(Debug)]
pub(super) struct LoneCommits {
    connection: PgConnection,
    alert: (String, String, String),
}

impl LoneCommits {
    pub(super) async fn open(database: &Database) -> anyhow::Result<Self> {
        let mut connection = PgConnection::connect(database.url()).await?;
        let alert = sqlx::query_as("select payload, body, signature from baseline_alert").fetch_one(&mut connection);
        let alert = alert.await?;
        Ok(Self { connection, alert })
    }

    /// How long one took.
    pub(super) async fn commit(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        sqlx::query(
            "insert into baseline (id, source, alert_id, alert_name, occurred_at, email, payload, body, signature)
             values (lpad(to_hex(nextval('baseline_number')), 32, '0')::uuid, 'classic', nextval('baseline_number')::text,
                     'payment_succeeded', now(), 'bench@example.com', $1::text::jsonb, $2::text::bytea, $3)",
        )
        .bind(&self.alert.0)
        .bind(&self.alert.1)
        .bind(&self.alert.2)
        .execute(&mut self.connection)
        .await?;
        Ok(started.elapsed())
    }
}
