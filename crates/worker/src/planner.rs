//! Alerts become ledger entries and actions: the loop.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oarlock_outbox::alert::Alert;
use oarlock_outbox::claim::{Claim, Terms};
use oarlock_outbox::planning::Batch;
use oarlock_outbox::{AFTER_A_CONFLICT, PgPool, cause, is_about_the_data, is_conflict, planning};
use oarlock_service::database::Patience;
use oarlock_service::trace::{Opening, Role};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Level, Span};
use uuid::Uuid;

use crate::bookmark::Bookmark;
use crate::claim_loop::Loop;
use crate::plan::{self, Policy};
use crate::wake::Bells;

/// Alerts planned in one transaction.
const BATCH: usize = 100;

/// What the planner needs.
#[derive(Debug)]
pub struct Planner {
    pub pool: PgPool,
    pub policy: Policy,
    pub bells: Arc<Bells>,
    /// Who runs what is planned.
    pub loops: Vec<Arc<Loop>>,
    /// How it is claimed.
    pub terms: Terms,
    pub poll_interval: Duration,
}

impl Planner {
    /// Plans until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut patience = Patience::default();
        let mut bookmark = Bookmark::new(self.poll_interval);
        while !shutdown.is_cancelled() {
            let after = bookmark.open();
            let wait = match self.plan_batch(after, &shutdown).await {
                Ok(last) => {
                    patience.reset();
                    bookmark.put(last);
                    // There may be more, or some that were committed later than ones that came after them. (What came meanwhile has rung.)
                    if last.is_some() || after.is_some() {
                        continue;
                    }
                    self.poll_interval
                }
                Err(error) if is_conflict(&error) => {
                    tracing::warn!(error = %cause(&error), "somebody holds what the planner needs");
                    AFTER_A_CONFLICT
                }
                Err(error) => {
                    if patience.is_fresh() {
                        tracing::warn!(error = %cause(&error), "the planner waits for the database");
                    }
                    patience.delay()
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.bells.planner.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Plans the oldest alerts after one of them; returns the last one of a full batch, after which there may be more.
    async fn plan_batch(&self, after: Option<Uuid>, shutdown: &CancellationToken) -> Result<Option<Uuid>, sqlx::Error> {
        let Some(batch) = planning::take(&self.pool, BATCH, after).await? else { return Ok(None) };
        let (alerts, last) = (batch.alerts.len(), batch.alerts.last().map(|alert| alert.id));
        match self.commit(batch).await {
            Ok(()) => tracing::debug!(alerts, "planned"),
            Err(error) if is_conflict(&error) || is_about_the_data(&error) => {
                tracing::warn!(error = %cause(&error), "a batch of alerts cannot be planned: one by one");
                self.plan_apart(after, shutdown).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(last.filter(|_| alerts == BATCH))
    }

    /// Plans as many alerts one by one: passes over those for which somebody holds a row, until the next time, and buries what
    /// Postgres does not take.
    async fn plan_apart(&self, mut after: Option<Uuid>, shutdown: &CancellationToken) -> Result<(), sqlx::Error> {
        for _ in 0..BATCH {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let Some(batch) = planning::take(&self.pool, 1, after).await? else { return Ok(()) };
            let alert = batch.alerts[0].clone();
            after = Some(alert.id);
            match self.commit(batch).await {
                Ok(()) => {}
                Err(error) if is_conflict(&error) => {}
                Err(error) if is_about_the_data(&error) => {
                    tracing::error!(
                        alert_id = alert.alert_id,
                        source = alert.source.as_str(),
                        "an alert cannot be planned"
                    );
                    planning::bury(&self.pool, alert.id, &format!("failed to plan it: {error}")).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Plans the alerts, begins what can be begun of that at once, and wakes whoever has more to do about them.
    async fn commit(&self, mut batch: Batch) -> Result<(), sqlx::Error> {
        // If anybody will see them: traces are exported, or debug is asked for.
        let spans: Vec<Span> =
            if tracing::enabled!(Level::DEBUG) { batch.alerts.iter().map(span).collect() } else { Vec::new() };
        let mut plan = plan::plan(&batch.alerts, mem::take(&mut batch.known), &self.policy, batch.now);
        let (planned, mut offered) = (plan.destinations(), Vec::new());
        for claim_loop in &self.loops {
            if let Some(actions) = planned.get(&claim_loop.destination) {
                offered.push((claim_loop, *actions, claim_loop.places_for_new()));
            }
        }
        plan.begin(offered.iter().map(|(claim_loop, _, places)| (claim_loop.destination, places.len())).collect());
        let when = Instant::now();
        let mut claims = batch.commit(&plan, &self.terms).await?;
        for span in &spans {
            tracing::debug!(parent: span, "planned");
        }
        for (claim_loop, actions, places) in offered {
            let is_its = |claim: &mut Claim| claim.kind.destination() == claim_loop.destination;
            let begun: Vec<Claim> = claims.extract_if(.., is_its).collect();
            if begun.len() < actions {
                claim_loop.wake();
            }
            claim_loop.start(when, begun, places);
        }
        Ok(())
    }
}

fn span(alert: &Alert) -> Span {
    let opening = Opening::after(alert.trace_parent);
    let span = tracing::debug_span!(
        "plan",
        alert.id = alert.alert_id,
        alert.source = alert.source.as_str(),
        outbox_id = %alert.id,
        trace_id = opening.trace_id(),
        otel.kind = Empty,
    );
    opening.open(&span, Role::Consumer);
    span
}
