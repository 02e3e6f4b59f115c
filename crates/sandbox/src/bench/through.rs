//! Both programs at once: alerts come in as fast as they are taken, and are done as fast as they can be.

use std::time::Instant;

use super::baseline;
use super::drain::SETTLED;
use super::post;
use super::report::{Figure, Measured, Unit};
use super::rig::{Calls, PATIENCE, Rig};
use super::usage::Meter;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let alerts = &rig.corpus.classic;
    let (mut single, mut taken, mut done, mut costs) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rig.rounds {
        single.push(baseline::single_rows(rig).await?);
        let database = rig.cluster.database("through").await?;
        rig.vendors.forget();
        let receiver = rig.receiver(&database).await?;
        let worker = rig.worker(&database, Calls::Slack, &[])?;
        worker.is_ready().await?;
        let meter = Meter::start(&database).await?;
        let started = Instant::now();
        let posted = tokio::task::block_in_place(|| post::closed_loop(receiver.address, alerts))?;
        rig.vendors.slack().reach(alerts.len(), PATIENCE).await?;
        database.until(SETTLED).await?;
        let took = started.elapsed();
        let used = vec![receiver.stop().await?, worker.stop().await?];
        let cost = meter.stop("in and done, both programs at once", alerts.len(), took, used).await?;
        taken.push(alerts.len() as f64 / posted.as_secs_f64());
        done.push(alerts.len() as f64 / took.as_secs_f64());
        costs = vec![cost];
    }
    let figures = vec![
        Figure::new("both at once: alerts in", Unit::PerSecond, taken).beside(baseline::SINGLE, &single),
        Figure::new("both at once: alerts in and done", Unit::PerSecond, done).beside(baseline::SINGLE, &single),
    ];
    Ok(Measured { figures, costs })
}
