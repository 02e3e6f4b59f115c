//! Results are written, many at a time, whatever the database is doing meanwhile.

use std::sync::Arc;
use std::time::Duration;

use oarlock_outbox::record::{self, Finished, Verdict};
use oarlock_outbox::{AFTER_A_CONFLICT, Kind, PgPool, is_about_the_data, is_conflict};
use oarlock_service::database::Patience;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::claim_loop::Recordable;
use crate::metrics::Metrics;
use crate::wake::Bells;

/// Results written in one transaction.
const BATCH: usize = 256;

/// How long a stopping worker goes on trying to write its last results; their leases end by themselves.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// Writes results until all loops have ended and everything is written.
pub async fn run(
    pool: PgPool,
    mut results: mpsc::Receiver<Recordable>,
    bells: Arc<Bells>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while results.recv_many(&mut batch, BATCH).await > 0 {
        let (batch, slots): (Vec<Finished>, Vec<_>) = batch.drain(..).unzip();
        let kinds: Vec<Kind> = batch.iter().map(Finished::kind).collect();
        for results in write(&pool, batch, &shutdown).await {
            for result in &results.written {
                if results.lost.contains(&result.action_id()) {
                    tracing::warn!(action_id = %result.action_id(), "the claim was lost to another worker; the result is dropped");
                    metrics.lost(result.kind());
                } else {
                    metrics.recorded(result);
                }
            }
        }
        drop(slots);
        // What waited for the same customer may be claimed now; what a look-up was for may be planned.
        if kinds.contains(&Kind::PaddleCustomer) {
            bells.planner.notify_one();
        }
        for kind in kinds {
            bells.of(kind.destination()).notify_one();
        }
    }
}

/// Results that were written, and whose claims were lost.
struct Written {
    written: Vec<Finished>,
    lost: Vec<Uuid>,
}

/// Writes all at once, or, if Postgres does not take one of them, each for itself: one must not hold up the others.
async fn write(pool: &PgPool, batch: Vec<Finished>, shutdown: &CancellationToken) -> Vec<Written> {
    let batch = match write_together(pool, &batch, shutdown).await {
        Ok(lost) => return vec![Written { written: batch, lost }],
        Err(GivenUp::Shutdown) => return Vec::new(),
        Err(GivenUp::Data) => batch,
    };
    let mut all = Vec::new();
    for result in batch {
        let mut one = vec![result];
        let mut outcome = write_together(pool, &one, shutdown).await;
        if matches!(outcome, Err(GivenUp::Data)) {
            tracing::error!(action_id = %one[0].action_id(), "the result of an action cannot be stored");
            let dead = Verdict::Dead("its result cannot be stored: see the worker's log".to_owned());
            one = one.into_iter().map(|result| result.instead(dead.clone())).collect();
            outcome = write_together(pool, &one, shutdown).await;
        }
        if let Ok(lost) = outcome {
            all.push(Written { written: one, lost });
        }
    }
    all
}

/// Why results were not written.
enum GivenUp {
    /// Postgres does not take one of them.
    Data,
    /// The worker is stopping and the database is away.
    Shutdown,
}

/// Returns whose claims were lost.
async fn write_together(pool: &PgPool, batch: &[Finished], shutdown: &CancellationToken) -> Result<Vec<Uuid>, GivenUp> {
    let mut patience = Patience::default();
    let mut give_up = None;
    loop {
        match record::record(pool, batch).await {
            Ok(lost) => return Ok(lost),
            Err(error) if is_conflict(&error) => tokio::time::sleep(AFTER_A_CONFLICT).await,
            Err(error) if is_about_the_data(&error) => return Err(GivenUp::Data),
            Err(error) => {
                if patience.is_fresh() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, results = batch.len(), "results wait for the database");
                }
                let until = *give_up.get_or_insert_with(|| Instant::now() + LAST_TRIES);
                if !shutdown.is_cancelled() {
                    give_up = None;
                } else if until <= Instant::now() {
                    tracing::error!(
                        results = batch.len(),
                        "results could not be written: their actions will be run again"
                    );
                    return Err(GivenUp::Shutdown);
                }
                tokio::time::sleep(patience.delay()).await;
            }
        }
    }
}
