//! What the worker counts, and what it reads from the database when it is asked.
//!
//! What cannot be read is not shown: an old number would look like a good one, and a missing one can be alerted on.

use std::time::{Duration, Instant};

use oarlock_outbox::gauges::{self, Gauges};
use oarlock_outbox::record::{Finished, Verdict};
use oarlock_outbox::{Destination, Kind, PgPool, cause};
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Counts are read again when they are older than this: several may scrape.
const FRESH: Duration = Duration::from_secs(1);
/// A scrape does not wait longer for the database.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of an action's run.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Done,
    Retry,
    HandedBack,
    Dead,
    /// Another worker has the action.
    Lost,
}

impl Ended {
    const ALL: [Self; 5] = [Self::Done, Self::Retry, Self::HandedBack, Self::Dead, Self::Lost];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry => "retry",
            Self::HandedBack => "handed_back",
            Self::Dead => "dead",
            Self::Lost => "lost",
        }
    }
}

impl From<&Verdict> for Ended {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Done(_) => Self::Done,
            Verdict::Retry { .. } | Verdict::Postponed { .. } => Self::Retry,
            Verdict::HandedBack { .. } | Verdict::StoodBack { .. } => Self::HandedBack,
            Verdict::Dead(_) | Verdict::UsedUp(_) => Self::Dead,
        }
    }
}

#[derive(Debug)]
pub struct Metrics {
    actions_total: IntCounterVec,
    call_seconds: HistogramVec,
    outbox_alerts: IntGaugeVec,
    actions: IntGaugeVec,
    oldest_due: GaugeVec,
    paused: IntGaugeVec,
    // Without labels; vectors because only those can be emptied.
    oldest_unplanned: GaugeVec,
    drift: IntGaugeVec,
    drift_oldest: GaugeVec,
    read_at: Mutex<Option<Instant>>,
    /// When the drift may be read again.
    drift_due: Mutex<Option<Instant>>,
}

impl Metrics {
    /// # Panics
    /// If registered twice.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            actions_total: IntCounterVec::new(
                Opts::new("oarlock_actions_total", "Ends of an action's run by what became of it."),
                &["kind", "result"],
            )
            .expect("valid names"),
            call_seconds: HistogramVec::new(
                HistogramOpts::new("oarlock_call_seconds", "Time one run of an action spent with its destination.")
                    .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0]),
                &["destination"],
            )
            .expect("valid names"),
            outbox_alerts: IntGaugeVec::new(
                Opts::new("oarlock_outbox_alerts", "Alerts in the outbox by status."),
                &["status"],
            )
            .expect("valid names"),
            actions: IntGaugeVec::new(
                Opts::new("oarlock_actions", "Actions that are not finished, or dead, by destination and status."),
                &["destination", "status"],
            )
            .expect("valid names"),
            oldest_due: GaugeVec::new(
                Opts::new("oarlock_oldest_due_seconds", "How long the oldest unfinished action has been due."),
                &["destination"],
            )
            .expect("valid names"),
            paused: IntGaugeVec::new(
                Opts::new("oarlock_destination_paused", "1 while nobody calls the destination."),
                &["destination"],
            )
            .expect("valid names"),
            oldest_unplanned: GaugeVec::new(
                Opts::new(
                    "oarlock_oldest_unplanned_seconds",
                    "How long the oldest alert has been stored and not planned.",
                ),
                &[],
            )
            .expect("a valid name"),
            drift: IntGaugeVec::new(
                Opts::new("oarlock_access_drift", "Customers whose access differs from what they pay for."),
                &[],
            )
            .expect("a valid name"),
            drift_oldest: GaugeVec::new(
                Opts::new("oarlock_access_drift_oldest_seconds", "How long the oldest such difference has lasted."),
                &[],
            )
            .expect("a valid name"),
            read_at: Mutex::new(None),
            drift_due: Mutex::new(None),
        };
        let all: [Box<dyn prometheus::core::Collector>; 9] = [
            Box::new(metrics.actions_total.clone()),
            Box::new(metrics.call_seconds.clone()),
            Box::new(metrics.outbox_alerts.clone()),
            Box::new(metrics.actions.clone()),
            Box::new(metrics.oldest_due.clone()),
            Box::new(metrics.paused.clone()),
            Box::new(metrics.oldest_unplanned.clone()),
            Box::new(metrics.drift.clone()),
            Box::new(metrics.drift_oldest.clone()),
        ];
        for collector in all {
            registry.register(collector).expect("registered once");
        }
        // A rate over a counter that appears with its first event misses that event: let them all be there.
        for kind in Kind::ALL {
            for ended in Ended::ALL {
                metrics.actions_total.with_label_values(&[kind.as_str(), ended.as_str()]);
            }
        }
        for destination in Destination::ALL {
            metrics.call_seconds.with_label_values(&[destination.as_str()]);
        }
        metrics
    }

    pub fn recorded(&self, result: &Finished) {
        self.ended(result.kind(), result.verdict().into());
    }

    pub fn lost(&self, kind: Kind) {
        self.ended(kind, Ended::Lost);
    }

    /// Actions that died at claim time.
    pub fn buried(&self, kinds: &[Kind]) {
        for kind in kinds {
            self.ended(*kind, Ended::Dead);
        }
    }

    fn ended(&self, kind: Kind, ended: Ended) {
        self.actions_total.with_label_values(&[kind.as_str(), ended.as_str()]).inc();
    }

    pub fn called(&self, destination: Destination, took: Duration) {
        self.call_seconds.with_label_values(&[destination.as_str()]).observe(took.as_secs_f64());
    }

    /// Reads the counts, unless that was done just now.
    pub async fn refresh(&self, pool: &PgPool) {
        let mut read_at = self.read_at.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        if let Some(gauges) = in_time("the counts", gauges::read(pool)).await {
            self.set(&gauges);
            *read_at = Some(Instant::now());
        } else {
            self.outbox_alerts.reset();
            self.actions.reset();
            self.oldest_due.reset();
            self.paused.reset();
            self.oldest_unplanned.reset();
        }
    }

    /// Reads the drift. That looks at every customer, so it is done the less often the longer it takes.
    pub async fn refresh_drift(&self, pool: &PgPool) {
        let mut due = self.drift_due.lock().await;
        let started = Instant::now();
        if due.is_some_and(|due| started < due) {
            return;
        }
        if let Some(drift) = in_time("who differs from what they pay for", gauges::read_drift(pool)).await {
            self.drift.with_label_values::<&str>(&[]).set(drift.customers);
            self.drift_oldest.with_label_values::<&str>(&[]).set(drift.oldest_seconds);
        } else {
            self.drift.reset();
            self.drift_oldest.reset();
        }
        *due = Some(Instant::now() + FRESH.max(started.elapsed() * 20));
    }

    fn set(&self, gauges: &Gauges) {
        for status in ["pending", "done", "ignored", "dead"] {
            let count = gauges.alerts.iter().find(|row| row.status == status).map_or(0, |row| row.count);
            self.outbox_alerts.with_label_values(&[status]).set(count);
        }
        for destination in Destination::ALL {
            for status in ["pending", "running", "dead"] {
                let row =
                    gauges.actions.iter().find(|row| row.destination == destination.as_str() && row.status == status);
                self.actions.with_label_values(&[destination.as_str(), status]).set(row.map_or(0, |row| row.count));
            }
        }
        for state in &gauges.destinations {
            self.oldest_due.with_label_values(&[&state.name]).set(state.oldest_due_seconds);
            self.paused.with_label_values(&[&state.name]).set(i64::from(state.paused));
        }
        self.oldest_unplanned.with_label_values::<&str>(&[]).set(gauges.oldest_unplanned_seconds);
    }
}

/// What the database says; nothing, and a line in the log, if it fails or takes too long.
async fn in_time<T>(what: &str, read: impl Future<Output = Result<T, sqlx::Error>>) -> Option<T> {
    match timeout(READ_TIMEOUT, read).await {
        Ok(Ok(read)) => return Some(read),
        Ok(Err(error)) => tracing::warn!(error = %cause(&error), "failed to read {what}"),
        Err(_) => tracing::warn!("the database is too slow to read {what}"),
    }
    None
}
