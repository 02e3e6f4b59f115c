//! Jira's throughput while every call to Slack hangs until its timeout.
//!
//! Each alert asks for one call to each. The baseline is the same with Slack paused by an operator: the same alerts are
//! planned for both, and nobody calls Slack. With a Slack that answers, Jira would have half the machine, and look apart
//! from a Slack that hangs whatever that did to it.

use std::time::Instant;

use super::report::{Figure, Goal, Measured, Unit};
use super::rig::{Calls, PATIENCE, Rig};
use super::stored;

const SHORT_TIMEOUT: &[(&str, &str)] =
    &[("OARLOCK_WORKER__REQUEST_TIMEOUT", "1s"), ("OARLOCK_WORKER__SHUTDOWN_GRACE", "2s")];

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let alerts = rig.sizes.apart;
    let (mut paused, mut hanging) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        for hangs in [false, true] {
            let database = rig.cluster.database("apart").await?;
            stored::backlog(&database, alerts).await?;
            rig.vendors.forget();
            rig.vendors.slack_hangs(hangs);
            if !hangs {
                database
                    .execute("update destination set paused_until = 'infinity', paused_reason = 'bench' where name = 'slack'")
                    .await?;
            }
            let started = Instant::now();
            let worker = rig.worker(&database, Calls::JiraAndSlack, SHORT_TIMEOUT)?;
            rig.vendors.jira().reach(alerts, PATIENCE).await?;
            database
                .until("select not exists (select from outbox_action where destination = 'jira' and status in ('pending', 'running'))")
                .await?;
            let rate = alerts as f64 / started.elapsed().as_secs_f64();
            worker.stop().await?;
            if hangs { &mut hanging } else { &mut paused }.push(rate);
        }
    }
    let figures = vec![
        Figure::new("Jira while every Slack call hangs", Unit::PerSecond, hanging)
            .beside("the same with Slack paused", &paused)
            .goal(Goal::RatioAtLeast(0.95)),
    ];
    Ok(Measured { figures, costs: Vec::new() })
}
