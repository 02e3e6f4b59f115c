//! The cluster, and databases in it that are migrated and empty.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool};
use tokio::time::sleep;
use url::Url;

use super::rig::{PATIENCE, Rig};
use super::{baseline, post};

/// What the databases of the measures are copies of.
const TEMPLATE: &str = "bench_template";

/// How many alerts are kept as samples, for rows that are made in SQL.
pub(super) const SAMPLES: usize = 1000;

#[derive(Debug)]
pub(super) struct Cluster {
    url: Url,
    pool: PgPool,
    pub(super) about: About,
}

/// What was measured on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct About {
    version: String,
    settings: Vec<(String, String)>,
}

/// A database that is gone when the cluster is, or made anew. Clones are the same database.
#[derive(Debug, Clone)]
pub(super) struct Database {
    url: String,
    pool: PgPool,
}

impl Cluster {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let url: Url = url.parse().context("DATABASE_URL is not a URL")?;
        let pool = pool(&url)?;
        // So that no checkpoint falls into one measure and not into the other: they come before each, by hand.
        for setting in ["max_wal_size = '16GB'", "checkpoint_timeout = '1h'"] {
            execute(&pool, &format!("alter system set {setting}")).await.context("failed to set up the cluster")?;
        }
        execute(&pool, "select pg_reload_conf()").await?;
        let version = sqlx::query_scalar("show server_version").fetch_one(&pool).await?;
        let settings: Vec<(String, String)> = sqlx::query_as(
            "select name, setting || coalesce(' × ' || unit, '') from pg_settings
             where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_sync_method', 'shared_buffers') order by name",
        )
        .fetch_all(&pool)
        .await?;
        let is_on = |wanted: &str| settings.iter().any(|(name, value)| name == wanted && value == "on");
        if !is_on("fsync") || !is_on("synchronous_commit") {
            bail!("this Postgres may lose what it has committed, which makes the figures worthless: run `make bench`");
        }
        Ok(Self { url, pool, about: About { version, settings } })
    }

    /// Makes the template: migrated by the receiver itself, with samples of what it stores, and the baselines' table.
    pub(super) async fn prepare(&self, rig: &Rig) -> anyhow::Result<()> {
        execute(&self.pool, &format!("create database {TEMPLATE}")).await?;
        let template = self.open(TEMPLATE)?;
        let receiver = rig.receiver(&template).await?;
        let samples = SAMPLES.min(rig.corpus.classic.len());
        tokio::task::block_in_place(|| post::closed_loop(receiver.address, &rig.corpus.classic[..samples]))?;
        receiver.stop().await?;
        template
            .execute(
                "create table sample as
                 select row_number() over (order by id) - 1 as n, alert_name, payload, body, signature from outbox join outbox_evidence on outbox_id = id;
                 alter table sample add primary key (n);
                 truncate outbox cascade;",
            )
            .await?;
        template.execute(baseline::TABLE).await?;
        template.execute("vacuum analyze").await?;
        template.pool.close().await;
        Ok(())
    }

    /// A new copy of the template, in place of the last one of that name: so each round begins with the statistics of tables
    /// that were always empty, which is the worst an outage can meet.
    ///
    /// A checkpoint comes last: what is left to write, and full pages, are not the next measure's.
    pub(super) async fn database(&self, name: &str) -> anyhow::Result<Database> {
        execute(&self.pool, &format!("drop database if exists bench_{name} with (force)")).await?;
        execute(&self.pool, &format!("create database bench_{name} template {TEMPLATE}")).await?;
        execute(&self.pool, "checkpoint").await?;
        self.open(&format!("bench_{name}"))
    }

    fn open(&self, name: &str) -> anyhow::Result<Database> {
        let mut url = self.url.clone();
        url.set_path(name);
        Ok(Database { pool: pool(&url)?, url: url.into() })
    }
}

impl Database {
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Runs statements of this program.
    pub(super) async fn execute(&self, statements: &str) -> anyhow::Result<()> {
        execute(&self.pool, statements).await
    }

    pub(super) async fn count(&self, query: &'static str) -> anyhow::Result<usize> {
        let count: i64 =
            sqlx::query_scalar(query).fetch_one(&self.pool).await.with_context(|| format!("failed to run {query}"))?;
        Ok(usize::try_from(count)?)
    }

    pub(super) async fn checkpoint(&self) -> anyhow::Result<()> {
        self.execute("checkpoint").await
    }

    /// Waits until a query says true.
    pub(super) async fn until(&self, query: &'static str) -> anyhow::Result<()> {
        let started = Instant::now();
        while !sqlx::query_scalar::<_, bool>(query).fetch_one(&self.pool).await? {
            if started.elapsed() > PATIENCE {
                bail!("not so after {PATIENCE:?}: {query}");
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

fn pool(url: &Url) -> anyhow::Result<PgPool> {
    let options: PgConnectOptions = url.as_str().parse().context("DATABASE_URL is not a URL of a Postgres")?;
    // Without a notice of all that goes with a truncated table, or of statements that are slow as they must be.
    let options = options.application_name("bench").options([("client_min_messages", "warning")]);
    let options = options.disable_statement_logging();
    Ok(PgPoolOptions::new().max_connections(4).connect_lazy_with(options))
}

async fn execute(pool: &PgPool, statements: &str) -> anyhow::Result<()> {
    let done = sqlx::raw_sql(AssertSqlSafe(statements)).execute(pool).await;
    done.map(drop).with_context(|| format!("failed to run {statements}"))
}
