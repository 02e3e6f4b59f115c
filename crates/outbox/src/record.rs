//! Results are written, guarded by the token.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::claim::Claim;
use crate::pool::{PgPool, Transaction};
use crate::{Kind, ledger};

/// An action's run, over.
#[derive(Debug)]
pub struct Finished {
    claim: Claim,
    verdict: Verdict,
    attempt: Option<Attempt>,
}

/// What becomes of the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done, and what was done.
    Done(String),
    /// To be tried again after that time.
    Retry { after: Duration, error: String },
    /// Handed back after that time as if it had not been claimed: a pause or a stop uses no attempt.
    HandedBack { after: Duration, error: Option<String> },
    /// Handed back because the configuration is wrong, which uses no attempt: not before the destination's pause is over,
    /// and later with each time, so that one action that is wrong by itself does not keep all others from being tried.
    StoodBack { error: String },
    /// Dead, and why.
    Dead(String),
    /// Dead, since all attempts are used up, and what the last one said. What followed this one but came late is not.
    UsedUp(String),
}

/// What was tried, for the history.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub started: Instant,
    pub ended: Instant,
    pub http_status: Option<u16>,
    /// None when it succeeded.
    pub error: Option<String>,
}

impl Finished {
    /// Ends a claim; without an attempt if nobody was called.
    pub fn new(claim: Claim, verdict: Verdict, attempt: Option<Attempt>) -> Self {
        Self { claim, verdict, attempt }
    }

    pub fn kind(&self) -> Kind {
        self.claim.kind
    }

    /// The same end of the same claim, with another verdict: for one that Postgres does not take.
    #[must_use]
    pub fn instead(self, verdict: Verdict) -> Self {
        Self { verdict, attempt: None, ..self }
    }

    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    pub fn action_id(&self) -> Uuid {
        self.claim.id()
    }
}

/// Writes results in one transaction; returns the actions whose claim was lost, for which nothing was written.
///
/// What was tied to an action at its claim shares its end. The alerts are locked first and in order, so that two workers
/// that finish an alert's last two actions at once do not each leave the alert to the other.
///
/// # Errors
/// When nothing was written. Giving the same results again is right.
pub async fn record(pool: &PgPool, results: &[Finished]) -> Result<Vec<Uuid>, sqlx::Error> {
    let ids: Vec<Uuid> = results.iter().map(|result| result.claim.id()).collect();
    // Whoever replays by SQL locks in an order of their own. If the two wait for each other it is we who give way, and long
    // before Postgres looks for deadlocks and lets the operator's statement fail. And whoever falls silent in the middle must
    // not keep the others from recording.
    let mut transaction = pool
        .begin_with("begin; set local lock_timeout = '300ms'; set local idle_in_transaction_session_timeout = '5s'")
        .await?;
    sqlx::query!(
        r#"
        select id from outbox
        where id in (
          select a.outbox_id from outbox_action a where a.id = any($1)
          union
          select f.outbox_id from outbox_action l cross join lateral (
            select f.outbox_id from outbox_action f
            where f.leader_id = l.id and f.status = 'pending'
            offset 0) f
          where l.id = any($1))
        order by id for update
        "#,
        &ids
    )
    .fetch_all(&mut *transaction)
    .await?;
    if results.iter().any(|result| matches!(result.verdict, Verdict::StoodBack { .. })) {
        // A pause that somebody ends in this moment is over for what is written here as well.
        sqlx::query!("select name from destination order by name for share").fetch_all(&mut *transaction).await?;
    }
    let answered = answered_meanwhile(&mut transaction, results).await?;
    let unchanged = Verdict::Done("unchanged".to_owned());
    let verdicts: Vec<&Verdict> = results
        .iter()
        .map(|result| if answered.contains(&result.action_id()) { &unchanged } else { &result.verdict })
        .collect();
    let now = Instant::now();
    let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let recorded = sqlx::query!(
        r#"
        with result as materialized (
          select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bool[],
                               $8::bigint[], $9::bigint[], $10::int[], $11::text[], $12::bool[], $13::bool[])
            as r (id, token, status, outcome, error, delay_ms, counted, started_ms_ago, duration_ms, http_status, attempt_error, stood_back, used_up)
        ), recorded as (
          update outbox_action a
          set status = r.status, outcome = r.outcome,
              last_error = case when r.status = 'done' then null else coalesce(r.error, a.last_error) end,
              attempts = greatest(a.attempts - case when r.counted then 0 else 1 end, 0),
              setbacks = case when r.stood_back then a.setbacks + 1 when r.counted then 0 else a.setbacks end,
              run_at = case when r.stood_back
                            then greatest(clock_timestamp(), case when isfinite(d.paused_until) then d.paused_until end)
                                 + least(interval '5 min' * (power(2, least(a.setbacks, 10)) - 1), interval '1 hour')
                            when r.status = 'pending' then clock_timestamp() + r.delay_ms * interval '1 ms'
                            else a.run_at end,
              finished_at = case when r.status <> 'pending' then clock_timestamp() end,
              claim_token = null, claimed_by = null
          from result r, destination d
          where a.id = r.id and a.id = any($1) and a.claim_token = r.token and d.name = a.destination
          returning a.id, a.outbox_id, a.destination, a.subject, a.kind, a.status, a.last_error, a.run_at, a.attempts,
                    r.counted, r.used_up, r.started_ms_ago, r.duration_ms, r.http_status, r.attempt_error
        ), follower as (
          -- Row by row, whatever the planner believes of a table that has just filled up. Who came late to a series of attempts
          -- does not die with its last one.
          select f.id, l.id as leader_id, case when l.used_up and f.attempts + 1 < l.attempts then 'pending' else l.status end as status
          from recorded l cross join lateral (
            select f.id, f.attempts from outbox_action f
            where f.leader_id = l.id and f.status = 'pending'
            offset 0) f
        ), followed as (
          update outbox_action f
          set status = w.status,
              -- The call was made for it as well. (But a new alert's first attempts do not use up those of an old one.)
              attempts = f.attempts + case when l.counted and l.status <> 'done' and l.attempts > f.attempts then 1 else 0 end,
              outcome = case when l.status = 'done' then 'covered by ' || l.id end,
              last_error = case when l.status = 'done' then null else coalesce(l.last_error, f.last_error) end,
              run_at = case when l.status = 'pending' then greatest(l.run_at, f.run_at) when w.status = 'pending' then clock_timestamp() else f.run_at end,
              finished_at = case when w.status <> 'pending' then clock_timestamp() end,
              leader_id = case when l.status = 'done' then f.leader_id end
          from follower w join recorded l on l.id = w.leader_id
          where f.id = w.id and f.id = any(array(select id from follower)) and f.leader_id = l.id and f.status = 'pending'
          returning f.outbox_id, f.kind, f.status
        ), history as (
          insert into outbox_attempt (action_id, attempt, started_at, duration_ms, http_status, error)
          select l.id, l.attempts + case when l.counted then 0 else 1 end, clock_timestamp() - l.started_ms_ago * interval '1 ms',
                 least(l.duration_ms, 2147483647)::int, l.http_status, l.attempt_error
          from recorded l where l.started_ms_ago is not null
        )
        select id, outbox_id, kind, status from recorded
        union all
        select null, outbox_id, kind, status from followed
        "#,
        &ids,
        &results.iter().map(|result| result.claim.token()).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| verdict.status()).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| verdict.outcome()).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| verdict.error()).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| milliseconds(verdict.delay())).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| !matches!(verdict, Verdict::HandedBack { .. } | Verdict::StoodBack { .. })).collect::<Vec<_>>(),
        &results.iter().map(|result| result.attempt.as_ref().map(|tried| milliseconds(now.duration_since(tried.started)))).collect::<Vec<_>>() as _,
        &results.iter().map(|result| result.attempt.as_ref().map(|tried| milliseconds(tried.ended.duration_since(tried.started)))).collect::<Vec<_>>() as _,
        &results.iter().map(|result| result.attempt.as_ref().and_then(|tried| tried.http_status.map(i32::from))).collect::<Vec<_>>() as _,
        &results.iter().map(|result| result.attempt.as_ref().and_then(|tried| tried.error.as_deref())).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| matches!(verdict, Verdict::StoodBack { .. })).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| matches!(verdict, Verdict::UsedUp(_))).collect::<Vec<_>>(),
    )
    .fetch_all(&mut *transaction)
    .await?;

    // The address is known now: the alerts that waited for it can be planned, also those whose own look-up failed.
    let looked_up: Vec<_> = recorded
        .iter()
        .filter(|row| {
            row.kind.as_deref() == Some(Kind::PaddleCustomer.as_str()) && row.status.as_deref() == Some("done")
        })
        .collect();
    if !looked_up.is_empty() {
        let waited: Vec<Uuid> = looked_up.iter().filter_map(|row| row.outbox_id).collect();
        sqlx::query!("update outbox set to_plan = true where id = any($1) and status = 'pending'", &waited)
            .execute(&mut *transaction)
            .await?;
        let is_done = |result: &&Finished| looked_up.iter().any(|row| row.id == Some(result.action_id()));
        let customers: Vec<&str> = results.iter().filter(is_done).map(|result| result.claim.subject.as_str()).collect();
        ledger::answer_look_ups(&mut transaction, &customers).await?;
    }
    // Of the recorded alone: a worker that lost its claim has nothing to say about an alert either.
    let alerts: Vec<Uuid> = recorded.iter().filter_map(|row| row.outbox_id).collect();
    sqlx::query!("select outbox_settle($1)", &alerts).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;

    Ok(ids.into_iter().filter(|id| !recorded.iter().any(|row| row.id == Some(*id))).collect())
}

/// Of the look-ups that brought nothing, those whose address an alert has told meanwhile: the first alerts of a new customer
/// come in any order, and may be quicker than Paddle's API.
async fn answered_meanwhile(transaction: &mut Transaction, results: &[Finished]) -> Result<Vec<Uuid>, sqlx::Error> {
    let brought_nothing: Vec<Uuid> = results
        .iter()
        .filter(|result| result.kind() == Kind::PaddleCustomer && !matches!(result.verdict, Verdict::Done(_)))
        .map(Finished::action_id)
        .collect();
    if brought_nothing.is_empty() {
        return Ok(Vec::new());
    }
    // Under lock first, and then with a fresh look: the planner touches the row of whom it learns an address for.
    sqlx::query!("select id from outbox_action where id = any($1) order by id for update", &brought_nothing)
        .fetch_all(&mut **transaction)
        .await?;
    sqlx::query_scalar!(
        "select a.id from outbox_action a join billing_customer c on c.customer_id = a.customer_id
         where a.id = any($1) and c.learnt_at >= a.due_at",
        &brought_nothing
    )
    .fetch_all(&mut **transaction)
    .await
}

impl Verdict {
    fn status(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Retry { .. } | Self::HandedBack { .. } | Self::StoodBack { .. } => "pending",
            Self::Dead(_) | Self::UsedUp(_) => "dead",
        }
    }

    fn outcome(&self) -> Option<&str> {
        match self {
            Self::Done(outcome) => Some(outcome),
            Self::Retry { .. } | Self::HandedBack { .. } | Self::StoodBack { .. } | Self::Dead(_) | Self::UsedUp(_) => {
                None
            }
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::Done(_) => None,
            Self::Retry { error, .. } | Self::StoodBack { error } | Self::Dead(error) | Self::UsedUp(error) => {
                Some(error)
            }
            Self::HandedBack { error, .. } => error.as_deref(),
        }
    }

    fn delay(&self) -> Duration {
        match self {
            Self::Retry { after, .. } | Self::HandedBack { after, .. } => *after,
            Self::Done(_) | Self::StoodBack { .. } | Self::Dead(_) | Self::UsedUp(_) => Duration::ZERO,
        }
    }
}
