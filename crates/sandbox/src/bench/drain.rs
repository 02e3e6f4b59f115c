//! A backlog, as an outage leaves it, is planned, called for and recorded: one call to Slack for each alert.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::time::timeout;

use super::database::Database;
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::{Calls, PATIENCE, Rig};
use super::usage::{Cost, Meter};
use super::{baseline, stored};

/// A drain that takes longer is broken off, and what it did until then is its rate.
const LONGEST: Duration = Duration::from_secs(60);

/// No alert has anything left to do. Cheap: the alerts that have are few when it is asked.
pub(super) const SETTLED: &str = "select not exists (select from outbox where status = 'pending')";

/// Calls in flight for a vendor that answers at once, beside the default, which is for one that takes its time.
const MANY: &[(&str, &str)] = &[("OARLOCK_WORKER__CONCURRENCY", "128")];

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let [mut single, mut hundreds, mut drained, mut drained_by_many] = [vec![], vec![], vec![], vec![]];
    let mut costs = vec![];
    for _ in 0..rig.rounds {
        single.push(baseline::single_rows(rig).await?);
        costs.clear();
        let kinds =
            [(&[][..], "drained, one call each", &mut drained), (MANY, "drained, 128 in flight", &mut drained_by_many)];
        for (settings, what, rates) in kinds {
            let database = rig.cluster.database("drain").await?;
            stored::backlog(&database, rig.sizes.alerts).await?;
            let round_drained = drain(settings, rig, &database, rig.sizes.alerts, SETTLED, what).await?;
            rates.push(round_drained.per_second());
            costs.push(round_drained.cost);
        }
        hundreds.push(baseline::hundreds(rig).await?);
    }
    let figures = vec![
        Figure::new("drain, one Slack call each", Unit::PerSecond, drained.clone())
            .beside(baseline::SINGLE, &single)
            .goal(Goal::RatioAtLeast(1.2)),
        Figure::new("drain, one Slack call each", Unit::PerSecond, drained).beside(baseline::HUNDREDS, &hundreds),
        Figure::new("drain, 128 calls in flight", Unit::PerSecond, drained_by_many).beside(baseline::SINGLE, &single),
    ];
    Ok(Measured { figures, costs })
}

/// What was worked off of a backlog.
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

/// Starts a worker with these settings and waits until all is done and recorded, or for a minute. The start counts, the stop does
/// not.
pub(super) async fn drain(
    settings: &[(&'static str, &str)],
    rig: &Rig,
    database: &Database,
    alerts: usize,
    settled: &'static str,
    what: &'static str,
) -> anyhow::Result<Drained> {
    let before = recorded(database).await?;
    rig.vendors.forget();
    let meter = Meter::start(database).await?;
    let started = Instant::now();
    let worker = rig.worker(database, Calls::Slack, settings)?;
    let all_done = async {
        rig.vendors.slack().reach(alerts, PATIENCE).await?;
        database.until(settled).await
    };
    if let Ok(all_done) = timeout(LONGEST, all_done).await {
        all_done?;
    }
    let took = started.elapsed();
    let used = worker.stop().await?;
    let (calls, repeated) = (rig.vendors.slack().count(), rig.vendors.slack().repeated());
    ensure!(calls > 0 && repeated == 0, "{repeated} of {calls} calls were repeated without a reason");
    let cost = meter.stop(what, calls, took, vec![used]).await?;
    let after = recorded(database).await?;
    let recorded = (after.0 - before.0, after.1 - before.1);
    ensure!(recorded == (calls, calls), "{recorded:?} outcomes and attempts were recorded of {calls} calls");
    Ok(Drained { alerts: calls, took, cost })
}

/// Outcomes and attempts.
async fn recorded(database: &Database) -> anyhow::Result<(usize, usize)> {
    let outcomes = "select count(*) from outbox_action where status = 'done' and outcome = 'invited'";
    let attempts = "select count(*) from outbox_attempt where http_status = 200 and error is null";
    Ok((database.count(outcomes).await?, database.count(attempts).await?))
}
