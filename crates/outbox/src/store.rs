//! Alerts are inserted, once each.

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::pool::Connection;
use crate::received::NewAlert;
use crate::{CHANNEL, is_connection_lost};

/// What became of an alert that was to be stored. All of these are committed and may be answered 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    New,
    /// It is there already.
    Repeated,
    /// One of its number is there already; whether that says the same could not be told.
    NotCompared,
    /// Another alert of the same number is there already, and stays; this one is not stored.
    Mismatch,
}

/// Whether the workers are woken by the commit itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// They hear of it at once. Commits that tell wait for each other, in the whole cluster.
    Now,
    /// Somebody calls [`notify`] later.
    Later,
}

/// Inserts a batch in one statement, which is its own transaction; the answers come in the order of the alerts.
///
/// Rows go in sorted by key, so that two batches that share alerts wait for each other instead of deadlocking.
///
/// # Errors
/// When it is not known what became of all of them: some may be stored. Giving the same alerts again is right.
pub async fn insert(connection: &mut Connection, alerts: &[NewAlert], tell: Tell) -> Result<Vec<Stored>, sqlx::Error> {
    let mut rows: Vec<&NewAlert> = alerts.iter().collect();
    rows.sort_by(|a, b| (a.source, &a.alert_id).cmp(&(b.source, &b.alert_id)));
    let inserted = sqlx::query!(
        r#"
        with inserted as (
          insert into outbox (id, source, alert_id, alert_name, occurred_at, email, subscription_id, raw_body, raw_signature, mended_payload, trace_parent)
          select id, source, alert_id, alert_name, occurred_at, email, subscription_id, body, signature, mended::jsonb, trace_parent
          from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::bytea[], $9::text[], $10::text[], $11::text[])
            as new (id, source, alert_id, alert_name, occurred_at, email, subscription_id, body, signature, mended, trace_parent)
          on conflict (source, alert_id) do nothing
          returning id
        )
        select array_agg(id) as ids, case when $12::text is not null and count(*) > 0 then pg_notify($12, 'outbox') end as told
        from inserted
        "#,
        &rows.iter().map(|row| row.id).collect::<Vec<_>>(),
        &rows.iter().map(|row| row.source.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.alert_id.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.alert_name.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.occurred_at).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.email.as_deref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.subscription_id.as_deref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.body.as_ref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.signature.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.mended_payload.as_deref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| row.trace_parent.map(|place| place.to_string())).collect::<Vec<_>>() as _,
        (tell == Tell::Now).then_some(CHANNEL),
    )
    .fetch_one(&mut *connection)
    .await?
    .ids
    .unwrap_or_default();

    let repeated: Vec<&NewAlert> = rows.into_iter().filter(|row| !inserted.contains(&row.id)).collect();
    let other = if repeated.is_empty() { Ok(Vec::new()) } else { with_other_content(connection, &repeated).await };
    // What is stored is stored, whatever Postgres makes of the comparison.
    let other = match other {
        Err(error) if error.as_database_error().is_some() && !is_connection_lost(&error) => None,
        other => Some(other?),
    };
    Ok(alerts
        .iter()
        .map(|alert| match alert.id {
            id if inserted.contains(&id) => Stored::New,
            id => match &other {
                None => Stored::NotCompared,
                Some(other) if other.contains(&id) => Stored::Mismatch,
                Some(_) => Stored::Repeated,
            },
        })
        .collect())
}

/// Those whose number is taken by an alert that says something else.
async fn with_other_content(connection: &mut Connection, alerts: &[&NewAlert]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select alerts_with_other_content($1, $2, $3, $4, $5) as "id!""#,
        &alerts.iter().map(|row| row.id).collect::<Vec<_>>(),
        &alerts.iter().map(|row| row.source.as_str()).collect::<Vec<_>>() as _,
        &alerts.iter().map(|row| row.alert_id.as_str()).collect::<Vec<_>>() as _,
        &alerts.iter().map(|row| row.body.as_ref()).collect::<Vec<_>>() as _,
        &alerts.iter().map(|row| row.mended_payload.as_deref()).collect::<Vec<_>>() as _,
    )
    .fetch_all(connection)
    .await
}

/// Wakes the workers. Losing this only costs time, since they look by themselves as well: so it waits for no disk.
///
/// # Errors
/// When the database is away.
pub async fn notify(executor: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!("select set_config('synchronous_commit', 'off', true), pg_notify($1, 'outbox')", CHANNEL)
        .fetch_one(executor)
        .await
        .map(drop)
}
