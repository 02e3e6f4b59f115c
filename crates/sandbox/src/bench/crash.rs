//! Calls that are repeated because a worker was killed between a call and its record.

use anyhow::ensure;

use super::drain::SETTLED;
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::{Calls, PATIENCE, Rig};
use super::stored;

/// Calls in flight: the worker's default.
const CONCURRENCY: f64 = 32.0;

/// What the dead worker had claimed is free again so much later, instead of a minute.
const SHORT_LEASE: &[(&str, &str)] = &[("OARLOCK_WORKER__LEASE", "3s"), ("OARLOCK_WORKER__REQUEST_TIMEOUT", "1s")];

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let alerts = rig.sizes.alerts;
    let (mut repeated, mut claimed) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        let database = rig.cluster.database("crash").await?;
        stored::backlog(&database, alerts).await?;
        rig.vendors.forget();
        let worker = rig.worker(&database, Calls::Slack, SHORT_LEASE)?;
        rig.vendors.slack().reach(alerts / 2, PATIENCE).await?;
        worker.kill().await?;
        let held = database.count("select count(*) from outbox_action where status = 'running'").await?;
        claimed.push(held as f64);

        let worker = rig.worker(&database, Calls::Slack, SHORT_LEASE)?;
        rig.vendors.slack().reach(alerts, PATIENCE).await?;
        database.until(SETTLED).await?;
        worker.stop().await?;
        let done = database.count("select count(*) from outbox where status = 'done'").await?;
        ensure!(done == alerts, "{done} of {alerts} alerts are done");
        repeated.push(rig.vendors.slack().repeated() as f64);
    }
    let figures = vec![
        Figure::new("calls repeated after kill -9 amid the drain", Unit::Calls, repeated)
            .goal(Goal::AtMost(CONCURRENCY)),
        Figure::new("calls claimed and not recorded when it was killed", Unit::Calls, claimed),
    ];
    Ok(Measured { figures, costs: Vec::new() })
}
