//! Counts for metrics, each from an index of its own.

use crate::{OVERVIEW, PgPool};

/// How many alerts there are of a status.
#[derive(Debug)]
pub struct AlertCount {
    pub status: String,
    pub count: i64,
}

/// How many unfinished or dead actions there are of a destination and status.
#[derive(Debug)]
pub struct ActionCount {
    pub destination: String,
    pub status: String,
    pub count: i64,
}

/// How a destination is doing.
#[derive(Debug)]
pub struct DestinationState {
    pub name: String,
    pub paused: bool,
    /// How long the oldest action that was meant to be done by now has been waiting.
    pub oldest_due_seconds: f64,
}

/// Customers whose access differs from what they pay for.
#[derive(Debug)]
pub struct Drift {
    pub customers: i64,
    pub oldest_seconds: f64,
}

/// All counts at a moment, but for the drift.
#[derive(Debug)]
pub struct Gauges {
    pub alerts: Vec<AlertCount>,
    pub actions: Vec<ActionCount>,
    pub destinations: Vec<DestinationState>,
    /// How long the oldest alert that is not planned has been there.
    pub oldest_unplanned_seconds: f64,
}

/// Reads these counts.
///
/// # Errors
/// When the database is away.
pub async fn read(pool: &PgPool) -> Result<Gauges, sqlx::Error> {
    let mut transaction = pool.begin_with(OVERVIEW).await?;
    let alerts = sqlx::query_as!(
        AlertCount,
        r#"select status as "status!", count(*) as "count!" from outbox where status in ('pending', 'dead') group by status
           union all
           select status, count(*) from outbox where status in ('done', 'ignored') group by status"#
    )
    .fetch_all(&mut *transaction)
    .await?;
    let actions = sqlx::query_as!(
        ActionCount,
        r#"select destination as "destination!", status as "status!", count(*) as "count!" from outbox_action where status in ('pending', 'running') group by destination, status
           union all
           select destination, status, count(*) from outbox_action where status = 'dead' group by destination, status"#
    )
    .fetch_all(&mut *transaction)
    .await?;
    let destinations = sqlx::query_as!(
        DestinationState,
        r#"select name, coalesce(paused_until > now(), false) as "paused!",
                  coalesce(extract(epoch from now() - (
                    select min(due_at) from outbox_action where destination = name and status in ('pending', 'running') and due_at <= now()
                  )), 0)::float8 as "oldest_due_seconds!"
           from destination order by name"#
    )
    .fetch_all(&mut *transaction)
    .await?;
    let oldest_unplanned_seconds = sqlx::query_scalar!(
        r#"select coalesce(extract(epoch from now() - (select received_at from outbox where to_plan order by id limit 1)), 0)::float8 as "seconds!""#
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Gauges { alerts, actions, destinations, oldest_unplanned_seconds })
}

/// Compares what everybody pays for with what they have: over all customers, so not as quick as the counts.
///
/// # Errors
/// When the database is away.
pub async fn read_drift(pool: &PgPool) -> Result<Drift, sqlx::Error> {
    sqlx::query_as!(
        Drift,
        r#"select count(*) as "customers!", coalesce(extract(epoch from now() - min(differs_since)), 0)::float8 as "oldest_seconds!"
           from access where differs_since is not null"#
    )
    .fetch_one(&mut *pool.begin_with(OVERVIEW).await?)
    .await
}
