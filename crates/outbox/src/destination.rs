//! The pauses and the pace that every worker obeys.

use std::time::Duration;

use crate::{Destination, PgPool, interval};

/// The destination asked to slow down: nobody calls it for that long. A longer pause that is under way stays.
///
/// # Errors
/// When the database is away.
pub async fn pause_for(
    pool: &PgPool,
    destination: Destination,
    length: Duration,
    reason: &str,
) -> Result<(), sqlx::Error> {
    let length = interval(length);
    sqlx::query!(
        "update destination set paused_until = clock_timestamp() + $2::interval, paused_reason = $3
         where name = $1 and (paused_until is null or paused_until < clock_timestamp() + $2::interval)",
        destination.as_str(),
        length,
        reason
    )
    .execute(pool)
    .await
    .map(drop)
}

/// The destination cannot work as configured: nobody calls it for five minutes, doubling to an hour with each failure in a
/// row; then one action at a time tries it. Failures that come in while it is paused for one already are the same failure.
///
/// # Errors
/// When the database is away.
pub async fn pause_until_mended(pool: &PgPool, destination: Destination, reason: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update destination
         set paused_until = greatest(paused_until, clock_timestamp() + least(interval '5 min' * power(2, least(failures, 10)), interval '1 hour')),
             paused_reason = $2, failures = failures + 1, probing = true, probe_until = null
         where name = $1 and (not probing or paused_until is null or paused_until <= clock_timestamp())
           and paused_until is distinct from 'infinity'",
        destination.as_str(),
        reason
    )
    .execute(pool)
    .await
    .map(drop)
}

/// The probe went through: everybody may call again.
///
/// # Errors
/// When the database is away.
pub async fn probe_succeeded(pool: &PgPool, destination: Destination) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update destination set paused_until = null, paused_reason = null, failures = 0, probing = false, probe_until = null
         where name = $1 and probing and (paused_until is null or paused_until <= clock_timestamp())",
        destination.as_str()
    )
    .execute(pool)
    .await
    .map(drop)
}

/// The probe told nothing: another one may try.
///
/// # Errors
/// When the database is away.
pub async fn probe_told_nothing(pool: &PgPool, destination: Destination) -> Result<(), sqlx::Error> {
    sqlx::query!("update destination set probe_until = null where name = $1", destination.as_str())
        .execute(pool)
        .await
        .map(drop)
}

/// Takes a turn at a destination that runs only so many actions a minute; false if none is free yet.
///
/// Turns come at an even pace, and up to 12 s of them may have gathered. At six fifths of a minute for as many turns as a
/// minute may have, what has gathered and what comes in any minute are together no more than that.
///
/// # Errors
/// When the database is away.
pub async fn take_turn(pool: &PgPool, destination: Destination) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query!(
        "update destination
         set turns_taken_until = greatest(turns_taken_until, clock_timestamp() - interval '12 s')
                                 + coalesce(interval '72 s' / actions_per_minute, interval '0')
         where name = $1 and turns_taken_until <= clock_timestamp()",
        destination.as_str()
    )
    .execute(pool)
    .await?;
    Ok(taken.rows_affected() > 0)
}
