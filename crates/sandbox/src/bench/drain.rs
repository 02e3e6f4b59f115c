//! A backlog, as an outage leaves it, is planned, called for and recorded: one call to Slack for each alert.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::database::Database;
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::{Calls, PATIENCE, Rig};
use super::usage::{Cost, Meter};
use super::{baseline, stored};

/// No alert has anything left to do. Cheap: the alerts that have are few when it is asked.
pub(super) const SETTLED: &str = "select not exists (select from outbox where status = 'pending')";

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let database = rig.cluster.database("drain").await?;
    let (mut single, mut hundreds, mut drained, mut costs) = (vec![], vec![], vec![], vec![]);
    for round in 0..rig.rounds {
        single.push(baseline::single_rows(rig, &database).await?);
        database.clear().await?;
        stored::backlog(&database, rig.sizes.alerts).await?;
        let round_drained = drain(rig, &database, rig.sizes.alerts, SETTLED, "drained, one call each").await?;
        drained.push(round_drained.per_second());
        hundreds.push(baseline::hundreds(rig, &database).await?);
        if round == 0 {
            costs.push(round_drained.cost);
        }
    }
    let figures = vec![
        Figure::new("drain, one Slack call each", Unit::PerSecond, drained.clone())
            .beside(baseline::SINGLE, &single)
            .goal(Goal::RatioAtLeast(1.2)),
        Figure::new("drain, one Slack call each", Unit::PerSecond, drained).beside(baseline::HUNDREDS, &hundreds),
    ];
    Ok(Measured { figures, costs })
}

/// A backlog that was worked off.
pub(super) struct Drained {
    alerts: usize,
    took: Duration,
    pub(super) cost: Cost,
}

impl Drained {
    pub(super) fn per_second(&self) -> f64 {
        self.alerts as f64 / self.took.as_secs_f64()
    }
}

/// Starts a worker and waits until all is done and recorded. The start counts, the stop does not.
pub(super) async fn drain(
    rig: &Rig,
    database: &Database,
    alerts: usize,
    settled: &'static str,
    what: &'static str,
) -> anyhow::Result<Drained> {
    let done = "select count(*) from outbox_action where status = 'done' and outcome = 'invited'";
    let attempts = "select count(*) from outbox_attempt where http_status = 200 and error is null";
    let before = (database.count(done).await?, database.count(attempts).await?);
    rig.vendors.forget();
    let meter = Meter::start(database).await?;
    let started = Instant::now();
    let worker = rig.worker(database, Calls::Slack, &[])?;
    rig.vendors.slack().reach(alerts, PATIENCE).await?;
    database.until(settled).await?;
    let took = started.elapsed();
    let used = worker.stop().await?;
    let cost = meter.stop(what, alerts, took, vec![used]).await?;
    let after = (database.count(done).await?, database.count(attempts).await?);
    let recorded = (after.0 - before.0, after.1 - before.1);
    ensure!(recorded == (alerts, alerts), "{recorded:?} outcomes and attempts were recorded of {alerts} calls");
    ensure!(rig.vendors.slack().repeated() == 0, "calls were repeated without a reason");
    Ok(Drained { alerts, took, cost })
}
