//! Results are written, many at a time, whatever the database is doing meanwhile.

use std::sync::Arc;
use std::time::Duration;

use oarlock_outbox::record::{self, Finished};
use oarlock_outbox::{Kind, is_conflict};
use oarlock_service::database::Patience;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::wake::Bells;

/// Results written in one transaction.
const BATCH: usize = 256;

/// How long a stopping worker goes on trying to write its last results; their leases end by themselves.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// Writes results until all loops have ended and everything is written.
pub async fn run(
    pool: PgPool,
    mut results: mpsc::Receiver<Finished>,
    bells: Arc<Bells>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while results.recv_many(&mut batch, BATCH).await > 0 {
        if let Some(lost) = write(&pool, &batch, &shutdown).await {
            for result in &batch {
                if lost.contains(&result.action_id()) {
                    tracing::warn!(action_id = %result.action_id(), "the claim was lost to another worker; the result is dropped");
                    metrics.lost(result.kind());
                } else {
                    metrics.recorded(result);
                }
            }
        }
        // What waited for the same customer may be claimed now; what a look-up was for may be planned.
        if batch.iter().any(|result| result.kind() == Kind::PaddleCustomer) {
            bells.planner.notify_one();
        }
        for result in &batch {
            bells.of(result.kind().destination()).notify_one();
        }
        batch.clear();
    }
}

/// Returns what was lost; none if a stopping worker had to give up.
async fn write(pool: &PgPool, batch: &[Finished], shutdown: &CancellationToken) -> Option<Vec<uuid::Uuid>> {
    let mut patience = Patience::default();
    let mut give_up = None;
    loop {
        match record::record(pool, batch).await {
            Ok(lost) => return Some(lost),
            Err(error) if is_conflict(&error) => {}
            Err(error) => {
                if patience.is_fresh() {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        results = batch.len(),
                        "results wait for the database"
                    );
                }
                if shutdown.is_cancelled()
                    && *give_up.get_or_insert_with(|| Instant::now() + LAST_TRIES) <= Instant::now()
                {
                    tracing::error!(
                        results = batch.len(),
                        "results could not be written: their actions will be run again"
                    );
                    return None;
                }
                tokio::time::sleep(patience.delay()).await;
            }
        }
    }
}
