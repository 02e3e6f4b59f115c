//! What is old goes: finished alerts past their retention, in small batches, never dead ones.

use std::time::Duration;

use oarlock_outbox::PgPool;
use oarlock_outbox::retention;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(600);
const BATCH: i64 = 500;

/// Looks every ten minutes, until the token is cancelled.
pub async fn run(pool: PgPool, retention: Duration, shutdown: CancellationToken) {
    loop {
        match delete_all(&pool, retention, &shutdown).await {
            Ok(0) => {}
            Ok(alerts) => tracing::info!(alerts, "deleted finished alerts past their retention"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "failed to delete finished alerts"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn delete_all(pool: &PgPool, older_than: Duration, shutdown: &CancellationToken) -> Result<u64, sqlx::Error> {
    let mut deleted = 0;
    while !shutdown.is_cancelled() {
        let batch = retention::delete_finished(pool, older_than, BATCH).await?;
        deleted += batch;
        if batch < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(deleted)
}
