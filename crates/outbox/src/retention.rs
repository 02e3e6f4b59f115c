//! Deleting what is old.

use std::time::Duration;

use crate::{PgPool, interval};

/// Whether any alert was finished longer ago than that, but for dead ones.
///
/// # Errors
/// When the database is away.
pub async fn is_any_due(pool: &PgPool, older_than: Duration) -> Result<bool, sqlx::Error> {
    let older_than = interval(older_than);
    sqlx::query_scalar!(
        r#"select exists (
             select from outbox where status in ('done', 'ignored') and finished_at < now() - $1::interval) as "is_any_due!""#,
        older_than
    )
    .fetch_one(pool)
    .await
}

/// Whether nothing waits for a worker at this moment. What waits for a pause to end does not.
///
/// # Errors
/// When the database is away.
pub async fn is_quiet(pool: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select not exists (select from outbox where to_plan) and not exists (
             select from destination d
             where (d.paused_until is null or d.paused_until <= now()) and exists (
               select from outbox_action a
               -- Both halves of the index, so that what is meant for later is not read.
               where a.destination = d.name and a.retry in (false, true) and a.status in ('pending', 'running') and a.run_at <= now())
           ) as "is_quiet!""#
    )
    .fetch_one(pool)
    .await
}

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
