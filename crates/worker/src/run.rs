//! Everything is started, and stopped in the order in which it depends on each other.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use oarlock_outbox::claim::Terms;
use oarlock_outbox::{Destination, PgPool, cause, ledger};
use oarlock_service::config::{Database, Worker, WorkerConfig};
use oarlock_service::database::Patience;
use oarlock_service::{admin, database};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::act::Vendors;
use crate::claim_loop::{Loop, State};
use crate::metrics::Metrics;
use crate::plan::Policy;
use crate::planner::Planner;
use crate::recorder::Recorder;
use crate::retry::Schedule;
use crate::slots::Slots;
use crate::wake::{self, Bells};
use crate::{housekeeping, memberships};

/// Results that may wait to be written; beyond it the loops wait with them.
const RESULTS: usize = 1024;

/// Connections with one purpose each: planning, and recording; and one that listens in any case.
const OWN_CONNECTIONS: u32 = 2;
const LISTENING: u32 = 1;

/// How many there should be for everything else; with fewer all share all.
const SHARED_CONNECTIONS: u32 = 2;

/// How long a claim may wait for its slot.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long a start waits for migrations.
const FIRST_MIGRATION: Duration = Duration::from_secs(10);

/// How long after `shutdown_grace` the database may take for what is left to write.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Plans and runs actions until the token is cancelled.
///
/// # Errors
/// When the admin address cannot be listened on, or a part of it has failed.
pub async fn run(config: WorkerConfig, vendors: Vendors, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = &config.worker;
    let listener = TcpListener::bind(&settings.admin_listen)
        .await
        .with_context(|| format!("failed to listen on {} (worker.admin_listen)", settings.admin_listen))?;
    let admin_address = listener.local_addr()?;
    if config.jira.is_none() && config.slack.is_none() {
        tracing::warn!("neither [jira] nor [slack] is configured: no action will be planned");
    }

    let Pools { shared: pool, planning, recording } = pools(&config.database);
    let registry = admin::registry(env!("CARGO_PKG_VERSION"));
    let metrics = Arc::new(Metrics::new(&registry));
    // Health and metrics can be seen from the beginning to the end.
    let stopped = CancellationToken::new();
    let refresh = {
        let (pool, metrics) = (pool.clone(), Arc::clone(&metrics));
        move || {
            let (pool, metrics) = (pool.clone(), Arc::clone(&metrics));
            async move {
                // Together: a scrape waits ten seconds, and a database that is away takes five of each.
                tokio::join!(metrics.refresh(&pool), metrics.refresh_drift(&pool));
            }
        }
    };
    let admin = tokio::spawn(admin::serve(listener, pool.clone(), registry, refresh, stopped.clone()));
    if config.database.migrate {
        let tried = database::migrate(pool.clone(), shutdown.clone());
        // What begins before that would only say that there are no tables.
        tokio::select! {
            _ = timeout(FIRST_MIGRATION, tried) => {}
            () = shutdown.cancelled() => {}
        }
    }
    tokio::spawn(keep_rules(pool.clone(), rules(&config), shutdown.clone()));
    let (vendors, bells) = (Arc::new(vendors), Arc::new(Bells::default()));
    let (results, finished) = mpsc::channel(RESULTS);

    let mut loops = JoinSet::new();
    let policy = Policy {
        routes: config.routes.clone(),
        jira: config.jira.is_some(),
        slack: config.slack.is_some(),
        revoke_on_full_refund: config.jira.as_ref().is_some_and(|jira| jira.revoke_on_full_refund),
    };
    let run_time = run_time(settings);
    let patience = (run_time - settings.request_timeout).min(LONGEST_WAIT);
    let terms = Terms { worker: name(), lease: settings.lease, max_attempts: settings.max_attempts };
    let mut claim_loops = Vec::new();
    // Actions of a destination that is not configured here wait, in sight, for a worker that has it.
    for destination in Destination::ALL.iter().copied().filter(|destination| policy.serves(*destination)) {
        let claim_loop = Arc::new(Loop {
            destination,
            pool: pool.clone(),
            vendors: Arc::clone(&vendors),
            bells: Arc::clone(&bells),
            metrics: Arc::clone(&metrics),
            results: results.clone(),
            terms: terms.clone(),
            run_time,
            schedule: Schedule { base: settings.retry_base, cap: settings.retry_cap },
            slots: Slots::new(settings.concurrency, patience),
            poll_interval: settings.poll_interval,
            shutdown_grace: settings.shutdown_grace,
            shutdown: shutdown.clone(),
            state: State::default(),
        });
        loops.spawn(Arc::clone(&claim_loop).run());
        claim_loops.push(claim_loop);
    }
    let planner = Planner {
        pool: planning,
        policy,
        bells: Arc::clone(&bells),
        loops: claim_loops,
        terms,
        poll_interval: settings.poll_interval,
    };
    loops.spawn(planner.run(shutdown.clone()));
    // The recorder ends when the last loop has let go of its sender.
    drop(results);
    let recorder = Recorder {
        pool: recording,
        shared: pool.clone(),
        bells: Arc::clone(&bells),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    };
    let recorder = recorder.start(finished).context("failed to start the recorder")?;
    let listening = {
        let (pool, bells, shutdown) = (pool.clone(), Arc::clone(&bells), shutdown.clone());
        tokio::spawn(async move { wake::listen(pool, &bells, shutdown).await })
    };
    let cleaning = tokio::spawn(housekeeping::run(pool.clone(), settings.retention, shutdown.clone()));
    if !shutdown.is_cancelled() {
        tracing::info!(%admin_address, "the worker runs");
    }

    let looping = async {
        while let Some(ended) = loops.join_next().await {
            ended.context("a loop of the worker failed")?;
        }
        Ok(())
    };
    // Without it what is called would never be recorded.
    let recording = async { recorder.await.context("the recorder failed") };
    let ending = async {
        tokio::try_join!(looping, recording)?;
        listening.await.context("the listener failed")?;
        cleaning.await.context("the housekeeping failed")
    };
    let last_moment = async {
        shutdown.cancelled().await;
        tokio::time::sleep(settings.shutdown_grace + STOP_TIMEOUT).await;
    };
    tokio::select! {
        ended = ending => ended?,
        // A database that neither answers nor fails: leases end by themselves.
        () = last_moment => tracing::error!("the database does not answer: stopping without its last word"),
    }
    stopped.cancel();
    admin.await.context("the admin listener failed")?;
    tracing::info!("the worker has stopped");
    Ok(())
}

struct Pools {
    shared: PgPool,
    planning: PgPool,
    recording: PgPool,
}

/// One pool for all, and one connection each for planning and for recording if there are enough: a statement is slow the first
/// time on each connection, and what has one of its own is slow once.
fn pools(settings: &Database) -> Pools {
    let max_connections = settings.max_connections - LISTENING;
    let is_roomy = max_connections >= OWN_CONNECTIONS + SHARED_CONNECTIONS;
    let max_connections = max_connections - if is_roomy { OWN_CONNECTIONS } else { 0 };
    let shared = Database { max_connections, ..settings.clone() };
    let shared = database::pool_with(&shared, "oarlock-worker", Some(oarlock_outbox::BY_INDEX));
    let own = || if is_roomy { shared.apart(1) } else { shared.clone() };
    Pools { planning: own(), recording: own(), shared }
}

/// How long an action may run from its claim on: until shortly before its lease ends, and always for longer than a single request
/// may take.
fn run_time(settings: &Worker) -> Duration {
    settings.lease - (settings.lease / 10).min((settings.lease - settings.request_timeout) / 2)
}

/// Whose claims these are, for people who look at the table.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}

fn rules(config: &WorkerConfig) -> Vec<(String, String)> {
    let access = config.jira.iter().flat_map(|jira| &jira.access);
    access.flat_map(|rule| rule.plans.iter().map(|plan| (plan.clone(), memberships::target(&rule.grants)))).collect()
}

/// Writes down what plans give, once the database is there and migrated.
async fn keep_rules(pool: PgPool, rules: Vec<(String, String)>, shutdown: CancellationToken) {
    let mut patience = Patience::default();
    while let Err(error) = ledger::keep_rules(&pool, &rules).await {
        tracing::debug!(error = %cause(&error), "the access rules are not written down yet");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(patience.delay()) => {}
        }
    }
}
