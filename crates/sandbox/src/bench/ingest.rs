//! Alerts answered 200 per second: verified and committed, over connections that always have one under way.

use std::time::Duration;

use super::baseline;
use super::corpus::Corpus;
use super::database::Database;
use super::post::{self, Request};
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::Rig;
use super::usage::{Cost, Meter};

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let (mut single, mut hundreds, mut classic, mut billing, mut costs) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..rig.rounds {
        single.push(baseline::single_rows(rig).await?);
        let ingested = ingest(rig, &rig.corpus.classic, "Classic alerts in").await?;
        classic.push(ingested.per_second());
        hundreds.push(baseline::hundreds(rig).await?);
        let alerts = Corpus::billing(rig.sizes.alerts);
        let ingested_billing = ingest(rig, &alerts, "Billing alerts in").await?;
        billing.push(ingested_billing.per_second());
        costs = vec![ingested.cost, ingested_billing.cost];
    }
    let figures = vec![
        Figure::new("Classic (RSA-4096) in, 64 connections", Unit::PerSecond, classic.clone())
            .beside(baseline::SINGLE, &single)
            .goal(Goal::RatioAtLeast(1.2)),
        Figure::new("Classic (RSA-4096) in, 64 connections", Unit::PerSecond, classic)
            .beside(baseline::HUNDREDS, &hundreds),
        Figure::new("Billing (HMAC) in, 64 connections", Unit::PerSecond, billing.clone())
            .beside(baseline::SINGLE, &single)
            .goal(Goal::RatioAtLeast(1.8)),
        Figure::new("Billing (HMAC) in, 64 connections", Unit::PerSecond, billing)
            .beside(baseline::HUNDREDS, &hundreds),
    ];
    Ok(Measured { figures, costs })
}

/// A round of posting.
pub(super) struct Ingested {
    pub(super) alerts: usize,
    pub(super) took: Duration,
    pub(super) cost: Cost,
}

impl Ingested {
    pub(super) fn per_second(&self) -> f64 {
        self.alerts as f64 / self.took.as_secs_f64()
    }
}

/// Posts all alerts, into a new database.
async fn ingest(rig: &Rig, alerts: &[Request], what: &'static str) -> anyhow::Result<Ingested> {
    let database = rig.cluster.database("ingest").await?;
    into(rig, &database, alerts, what).await
}

/// Posts all alerts to a receiver of its own; they are new to the database.
pub(super) async fn into(
    rig: &Rig,
    database: &Database,
    alerts: &[Request],
    what: &'static str,
) -> anyhow::Result<Ingested> {
    let receiver = rig.receiver(database).await?;
    let meter = Meter::start(database).await?;
    let took = tokio::task::block_in_place(|| post::closed_loop(receiver.address, alerts))?;
    let used = receiver.stop().await?;
    let cost = meter.stop(what, alerts.len(), took, vec![used]).await?;
    Ok(Ingested { alerts: alerts.len(), took, cost })
}
