//! What the receiver counts.

use std::time::Duration;

use oarlock_outbox::{AlertName, Source};
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// What became of a request to the webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    Repeated,
    /// The number of a stored alert with other content.
    Mismatch,
    /// Signed, and not proved to be Paddle's.
    Refused,
    /// Without a signature, as anybody posts.
    Unsigned,
    Malformed,
    TooLarge,
    /// Not stored for now: the database was away or slow, or there was no room.
    Unavailable,
}

impl Outcome {
    const ALL: [Self; 8] = [
        Self::Stored,
        Self::Repeated,
        Self::Mismatch,
        Self::Refused,
        Self::Unsigned,
        Self::Malformed,
        Self::TooLarge,
        Self::Unavailable,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Repeated => "repeated",
            Self::Mismatch => "mismatch",
            Self::Refused => "refused",
            Self::Unsigned => "unsigned",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    alerts: IntCounterVec,
    ack: Histogram,
}

impl Metrics {
    /// # Panics
    /// If registered twice.
    pub fn new(registry: &Registry) -> Self {
        let alerts = IntCounterVec::new(
            Opts::new("oarlock_alerts_total", "Requests to the webhook by what became of them."),
            &["source", "alert_name", "result"],
        )
        .expect("valid names");
        // A rate over a counter that appears with its first event misses that event: let them all be there. What is not
        // verified has no name, and the names of Billing are those with a dot.
        for source in Source::ALL {
            for outcome in Outcome::ALL {
                alerts.with_label_values(&[source.as_str(), "other", outcome.as_str()]);
            }
        }
        for name in AlertName::ALL.iter().map(|name| name.as_str()) {
            let source = if name.contains('.') { Source::Billing } else { Source::Classic };
            for outcome in [Outcome::Stored, Outcome::Repeated, Outcome::Mismatch, Outcome::Unavailable] {
                alerts.with_label_values(&[source.as_str(), name, outcome.as_str()]);
            }
        }
        let buckets = vec![0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
        let ack = Histogram::with_opts(
            HistogramOpts::new("oarlock_ack_seconds", "Time from an alert's request to its 200, the commit included.")
                .buckets(buckets),
        )
        .expect("valid names");
        registry.register(Box::new(alerts.clone())).expect("registered once");
        registry.register(Box::new(ack.clone())).expect("registered once");
        Self { alerts, ack }
    }

    /// Counts a request. The name is of the closed list, or `other`: what is not verified could say anything.
    pub fn count(&self, source: Source, name: Option<AlertName>, outcome: Outcome) {
        self.alerts
            .with_label_values(&[source.as_str(), name.map_or("other", AlertName::as_str), outcome.as_str()])
            .inc();
    }

    pub fn acknowledged(&self, after: Duration) {
        self.ack.observe(after.as_secs_f64());
    }
}
