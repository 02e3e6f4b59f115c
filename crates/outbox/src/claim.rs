//! Due actions are leased to a worker, fenced by a token.
//!
//! One statement takes what is due: pending actions, and running ones whose lease has expired because their worker vanished
//! (there is no separate rescuer to get wrong). It counts the attempt. Beside it only [`crate::planning`] makes a [`Claim`], of an
//! action that is written as claimed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::names::from_schema;
use crate::planning::NewAction;
use crate::{Destination, Kind, PgPool, Source, TraceParent, interval};

/// The right to run an action, until its lease ends.
#[derive(Debug)]
pub struct Claim {
    id: Uuid,
    token: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    pub kind: Kind,
    pub alert: AlertRef,
    /// The customer's address, or Billing's customer id for a look-up of it.
    pub subject: String,
    /// Run it only while a subscription pays.
    pub while_paid: bool,
    /// The destination had a configuration failure, and this is the one action that tries it again.
    pub probing: bool,
    /// The destination runs only so many actions a minute: each takes its turn first (see [`crate::destination::take_turn`]).
    pub paced: bool,
}

/// Which alert an action belongs to: ids for people who read logs and traces.
#[derive(Debug, Clone)]
pub struct AlertRef {
    pub id: Uuid,
    pub source: Source,
    pub alert_id: String,
    pub trace_parent: Option<TraceParent>,
}

impl Claim {
    /// Of an action that was claimed as it was written.
    pub(crate) fn of_new(id: Uuid, token: Uuid, action: &NewAction, alert: AlertRef) -> Self {
        let NewAction { kind, subject, while_paid, .. } = action;
        let (subject, while_paid) = (subject.clone(), *while_paid);
        Self { id, token, attempt: 1, kind: *kind, alert, subject, while_paid, probing: false, paced: false }
    }

    pub fn id(&self) -> Uuid {
        self.id
    }

    pub(crate) fn token(&self) -> Uuid {
        self.token
    }
}

/// How a worker claims.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Whose claims these are: for people.
    pub worker: String,
    pub lease: Duration,
    pub max_attempts: u32,
}

/// What a round of claiming brought.
#[derive(Debug, Default)]
pub struct Claimed {
    pub claims: Vec<Claim>,
    /// Actions found with all attempts used up by workers that vanished: now dead.
    pub buried: Vec<Kind>,
    /// All first attempts that were due before this time are claimed: the next search may begin here. None if nothing new is known
    /// about that.
    pub cleared: Option<DateTime<Utc>>,
    /// Not all that is due was looked at, however few were claimed: many may be for one customer.
    pub has_more: bool,
}

/// Claims up to `limit` due actions of a destination, at most one of each customer; none while it is paused.
///
/// First attempts and retries are taken in turn, each the longest due first. What the same call does for the same customer
/// is tied to the action that makes it (`leader_id`) and shares its end: retries waiting for their time as well, but not
/// what is meant for later. Seeing a follower here means its alert's ledger entry is committed, so the call sees it too.
///
/// It is on disk before anybody is called: a claim that Postgres forgot would let another worker call for the same customer
/// meanwhile.
///
/// First attempts are looked for among what is due since `from` or later, if that is given.
///
/// # Errors
/// When the database is away, or another worker claimed for the same customer in this instant (see [`crate::is_conflict`]).
pub async fn claim(
    pool: &PgPool,
    destination: Destination,
    limit: u32,
    from: Option<DateTime<Utc>>,
    terms: &Terms,
) -> Result<Claimed, sqlx::Error> {
    let token = Uuid::new_v4();
    let lease = interval(terms.lease);
    let rows = sqlx::query!(
        r#"
        with gate as materialized (
          select probing, actions_per_minute is not null as paced from destination
          where name = $1 and (paused_until is null or paused_until <= now()) and (not probing or probe_until is null or probe_until <= now())
        ), first_attempt as materialized (
          select a.id, a.subject, a.status, a.attempts, a.run_at from outbox_action a
          where a.destination = $1 and a.status in ('pending', 'running') and not a.retry and a.run_at <= now() and a.run_at >= coalesce($7, '-infinity'::timestamptz)
            and exists (select from gate)
            -- By the subject, row by row: a plan that was made while the table was small must not go by the destination, and so
            -- through everything that waits for it.
            and not exists (select from outbox_action r where r.destination || '' = $1 and r.subject = a.subject and r.status = 'running' and r.id <> a.id offset 0)
          order by a.run_at limit $2 for update skip locked
        ), retry as materialized (
          select a.id, a.subject, a.status, a.attempts, a.run_at from outbox_action a
          where a.destination = $1 and a.status in ('pending', 'running') and a.retry and a.run_at <= now() and exists (select from gate)
            and not exists (select from outbox_action r where r.destination || '' = $1 and r.subject = a.subject and r.status = 'running' and r.id <> a.id offset 0)
          order by a.run_at limit $2 for update skip locked
        ), due as (
          select *, row_number() over (order by run_at, id) as place from first_attempt
          union all
          select *, row_number() over (order by run_at, id) as place from retry
        ), of_each_customer as (
          -- The one that was tried most often leads: its series of attempts goes on, and the others do not begin theirs.
          select distinct on (subject) * from due order by subject, (status = 'running') desc, attempts desc, place, id
        ), chosen as (
          select * from of_each_customer order by place, id
          limit case when (select probing from gate) then 1 else $2 end
        ), left_behind as (
          select a.run_at from outbox_action a
          where a.destination = $1 and a.status in ('pending', 'running') and not a.retry and a.run_at <= now() and a.run_at >= coalesce($7, '-infinity'::timestamptz)
            and a.id <> all (array(select id from chosen))
          order by a.run_at limit 1
        ), probe as (
          -- Another worker that is about to probe as well waits for this row, and then finds it taken. What is buried tries nothing.
          update destination set probe_until = now() + $3
          where name = $1 and probing and (probe_until is null or probe_until <= now())
            and exists (select from chosen c where not (c.status = 'running' and c.attempts >= $5))
          returning name
        ), buried as (
          update outbox_action a
          set status = 'dead', finished_at = clock_timestamp(), claim_token = null, claimed_by = null,
              last_error = 'its worker vanished amid the last of ' || a.attempts || ' attempts'
          from chosen c where a.id = any (array[c.id]) and c.status = 'running' and c.attempts >= $5
          returning a.id, a.kind
        ), claimed as (
          update outbox_action a
          set status = 'running', attempts = a.attempts + 1, run_at = now() + $3, claim_token = $4, claimed_by = $6, leader_id = null
          from chosen c
          where a.id = any (array[c.id]) and not (c.status = 'running' and c.attempts >= $5)
            and (exists (select from probe) or not (select probing from gate))
          returning a.id, a.outbox_id, a.kind, a.subject, a.attempts, a.while_paid
        ), vanished as (
          -- Nobody will record these attempts any more, nor knows whether a call was made in them.
          insert into outbox_attempt (action_id, attempt, started_at, duration_ms, error)
          select c.id, c.attempts, c.run_at - $3, least(extract(epoch from $3::interval) * 1000, 2147483647)::int, 'its worker vanished'
          from chosen c
          where c.status = 'running' and (c.id in (select id from claimed) or c.id in (select id from buried))
        ), follower as (
          -- Row by row, whatever the planner believes of a table that has just filled up.
          select f.id, l.id as leader_id from claimed l cross join lateral (
            select f.id from outbox_action f
            where f.subject = l.subject and f.kind = l.kind and (f.while_paid or not l.while_paid)
              and f.status = 'pending' and (f.due_at <= now() or f.retry) and f.id <> l.id
            for update skip locked) f
        ), tied as (
          update outbox_action a set leader_id = f.leader_id from follower f where a.id = any (array[f.id])
        )
        select c.id as "id!", c.kind as "kind!", c.subject as "subject!", c.attempts as "attempts!", c.while_paid as "while_paid!",
               o.id as "outbox_id!", o.source as "source!", o.alert_id as "alert_id!", o.trace_parent,
               (select probing from gate) as "probing!", (select paced from gate) as "paced!",
               coalesce((select run_at from left_behind), (select max(run_at) from first_attempt)) as cleared, false as "buried!",
               (select count(*) from first_attempt) = $2 or (select count(*) from retry) = $2 as "has_more!"
        -- Row by row again: planned while there is no alert yet, a join reads them all for each claim once there are.
        from claimed c cross join lateral (select o.id, o.source, o.alert_id, o.trace_parent from outbox o where o.id = c.outbox_id offset 0) o
        union all
        select b.id, b.kind, '', 0, false, b.id, '', '', null, false, false, null, true, true from buried b
        "#,
        destination.as_str(),
        i64::from(limit),
        lease,
        token,
        i32::try_from(terms.max_attempts).unwrap_or(i32::MAX),
        terms.worker,
        from
    )
    .fetch_all(pool)
    .await?;
    let mut claimed = Claimed::default();
    for row in rows {
        claimed.has_more |= row.has_more;
        let kind = from_schema(&row.kind);
        if row.buried {
            claimed.buried.push(kind);
            continue;
        }
        claimed.cleared = row.cleared;
        claimed.claims.push(Claim {
            id: row.id,
            token,
            attempt: row.attempts.unsigned_abs(),
            kind,
            alert: AlertRef {
                id: row.outbox_id,
                source: from_schema(&row.source),
                alert_id: row.alert_id,
                trace_parent: row.trace_parent.and_then(|place| place.parse().ok()),
            },
            subject: row.subject,
            while_paid: row.while_paid,
            probing: row.probing,
            paced: row.paced,
        });
    }
    Ok(claimed)
}
