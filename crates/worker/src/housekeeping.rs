//! What is old goes: finished alerts past their retention, never dead ones.
//!
//! Off-peak, whenever that is: in small batches, each at a moment when nothing waits for a worker. A system that is never
//! quiet is cleaned up after a while all the same, slowly.

use std::time::{Duration, Instant};

use oarlock_outbox::{PgPool, cause, retention};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(600);
const BATCH: i64 = 500;

/// How long to leave the others alone before looking again whether it is quiet, or after a batch when it never is.
const STAND_BACK: Duration = Duration::from_secs(5);

/// How long to wait for a quiet moment.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Looks every ten minutes, until the token is cancelled.
pub async fn run(pool: PgPool, retention: Duration, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = delete_all(&pool, retention) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn delete_all(pool: &PgPool, older_than: Duration) {
    let mut deleted = 0;
    let ended = delete_batches(pool, older_than, &mut deleted).await;
    if deleted > 0 {
        tracing::info!(alerts = deleted, "deleted finished alerts past their retention");
    }
    if let Err(error) = ended {
        tracing::warn!(error = %cause(&error), "failed to delete finished alerts");
    }
}

async fn delete_batches(pool: &PgPool, older_than: Duration, deleted: &mut u64) -> Result<(), sqlx::Error> {
    let mut busy_since = None;
    while retention::is_any_due(pool, older_than).await? {
        let is_quiet = retention::is_quiet(pool).await?;
        if is_quiet {
            busy_since = None;
        } else {
            if busy_since.is_none() {
                tracing::info!("alerts past their retention stay until nothing waits for a worker");
            }
            tokio::time::sleep(STAND_BACK).await;
            if busy_since.get_or_insert_with(Instant::now).elapsed() < LONGEST_WAIT {
                continue;
            }
        }
        match retention::delete_finished(pool, older_than, BATCH).await? {
            // Somebody holds all that is left: the next time will do.
            0 => break,
            batch => *deleted += batch,
        }
    }
    Ok(())
}
