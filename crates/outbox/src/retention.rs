//! Deleting what is old.

use std::time::Duration;

use crate::{PgPool, interval};

/// Deletes up to `limit` alerts that were finished longer ago than that, with their actions and attempts; never dead ones.
/// Returns how many.
///
/// # Errors
/// When the database is away.
pub async fn delete_finished(pool: &PgPool, older_than: Duration, limit: i64) -> Result<u64, sqlx::Error> {
    let older_than = interval(older_than);
    let deleted = sqlx::query!(
        "delete from outbox where id in (
           select id from outbox where status in ('done', 'ignored') and finished_at < now() - $1::interval
           limit $2 for update skip locked)",
        older_than,
        limit
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
