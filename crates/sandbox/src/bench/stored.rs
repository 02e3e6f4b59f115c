//! Rows as the receiver and the worker leave them, made in SQL: posting and working off as many would take hours.

use anyhow::Context;
use tokio::task::JoinSet;

use super::database::{Database, SAMPLES};

/// A version 7 UUID of a time and a number.
const ID: &str = "
create or replace function bench_id(at timestamptz, n bigint) returns uuid immutable language sql as $$
  select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid
$$;";

// What was received is taken from the sample as a new value, so that Postgres packs it as it does what the receiver stores.

/// Alerts that were stored and not looked at yet, each asking for one call for a customer of its own.
pub(super) async fn backlog(database: &Database, alerts: usize) -> anyhow::Result<()> {
    database.execute(ID).await?;
    database
        .execute(&format!(
            "insert into outbox (id, source, alert_id, alert_name, occurred_at, received_at, email, raw_body, raw_signature)
             select bench_id(now(), a.n), 'classic', 'backlog-' || a.n, s.alert_name, now(), now(), a.email,
                    convert_to(regexp_replace(convert_from(s.body, 'UTF8'), '(?<=^|&)email=[^&]*', 'email=' || replace(a.email, '@', '%40')), 'UTF8'),
                    s.signature || ''
             from (select n, 'backlog-' || n || '@example.com' as email from generate_series(1, {alerts}) n) a
             cross join lateral (select * from sample where sample.n = a.n % {SAMPLES} offset 0) s;
             analyze outbox;"
        ))
        .await
        .context("failed to fill the outbox")?;
    database.checkpoint().await
}

/// What a busy season leaves, up to an hour ago and young enough to be kept: of sixteen alerts ten are finished, five wait for their time, one is dead.
///
/// Of those that wait every other one is an end of access in some weeks, in Jira's queue, and the others are retries in
/// some hours, in Slack's.
pub(super) async fn history(database: &Database, alerts: usize) -> anyhow::Result<()> {
    const PARTS: usize = 2;
    database.execute(ID).await?;
    let mut parts = JoinSet::new();
    for part in 0..PARTS {
        let (from, to) = (alerts * part / PARTS + 1, alerts * (part + 1) / PARTS);
        // Foreign keys need no proof here, nor does a lost second.
        let statements = format!(
            "set session_replication_role = replica;
             set synchronous_commit = off;
             create temporary table alert as
             select n, at, bench_id(at, n) as id, bench_id(at, {alerts} + n) as action_id, 'history-' || n || '@example.com' as email,
                    case when n % 16 < 10 then 'done' when n % 16 < 15 then 'pending' else 'dead' end as status,
                    n % 16 between 10 and 14 and n % 2 = 0 as is_end_of_access
             from (select n, now() - interval '80 days' * (1 - n / {alerts}.0) - interval '1 hour' as at from generate_series({from}, {to}) n) n;
             insert into outbox (id, source, alert_id, alert_name, occurred_at, received_at, email, status, to_plan, finished_at, raw_body, raw_signature)
             select a.id, 'classic', 'history-' || a.n, s.alert_name, a.at, a.at, a.email, a.status, false,
                    case when a.status <> 'pending' then a.at + interval '1 second' end, substring(s.body from 1), s.signature || ''
             from alert a cross join lateral (select * from sample where sample.n = a.n % {SAMPLES} offset 0) s;
             insert into outbox_action (id, outbox_id, kind, email, status, outcome, attempts, due_at, run_at, last_error, created_at, finished_at)
             select action_id, id, case when is_end_of_access then 'jira_access' else 'slack_invite' end, email, status,
                    case when status = 'done' then 'invited' end,
                    case status when 'done' then 1 when 'dead' then 5 else case when is_end_of_access then 0 else 3 end end,
                    case when is_end_of_access then now() + interval '30 days' * (n / {alerts}.0) + interval '1 day' else at end,
                    case when is_end_of_access then now() + interval '30 days' * (n / {alerts}.0) + interval '1 day'
                         when status = 'pending' then now() + interval '5 hours' * (n / {alerts}.0) + interval '1 hour' else at end,
                    case when status <> 'done' and not is_end_of_access then 'admin.users.invite: internal_error' end,
                    at, case when status <> 'pending' then at + interval '1 second' end
             from alert;
             insert into outbox_attempt (action_id, attempt, started_at, duration_ms, http_status, error)
             select action_id, attempt, at + attempt * interval '1 minute', 120, 200, case when status <> 'done' then 'admin.users.invite: internal_error' end
             from alert cross join lateral generate_series(1, case status when 'done' then 1 when 'dead' then 5 else case when is_end_of_access then 0 else 3 end end) attempt;
             drop table alert;
             reset session_replication_role; reset synchronous_commit;"
        );
        let database = database.clone();
        parts.spawn(async move { database.execute(&statements).await });
    }
    while let Some(part) = parts.join_next().await {
        part?.context("failed to fill the tables")?;
    }
    database.execute("vacuum analyze").await?;
    database.checkpoint().await
}
