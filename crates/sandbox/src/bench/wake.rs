//! From an alert's commit to the start of its call, while nothing else happens.
//!
//! Measured from when the 200 is here, which is a moment after the commit, to when the call is at the stand-in, which is a
//! moment after its start.

use std::time::Duration;

use anyhow::Context;

use super::ack::Percentiles;
use super::post::Connection;
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::{Calls, PATIENCE, Rig};

const APART: Duration = Duration::from_millis(50);

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let mut latencies = Percentiles::default();
    for _ in 0..rig.rounds {
        let database = rig.cluster.database("wake").await?;
        rig.vendors.forget();
        let receiver = rig.receiver(&database).await?;
        let worker = rig.worker(&database, Calls::Slack, &[])?;
        worker.is_ready().await?;
        let mut connection = Connection::open(receiver.address)?;
        let mut answered = Vec::new();
        for alert in rig.corpus.classic.iter().take(rig.sizes.wakes) {
            tokio::time::sleep(APART).await;
            tokio::task::block_in_place(|| connection.post(alert))?;
            answered.push(std::time::Instant::now());
        }
        rig.vendors.slack().reach(answered.len(), PATIENCE).await?;
        let round: Result<Vec<Duration>, _> = answered
            .iter()
            .enumerate()
            .map(|(number, answered)| {
                let called = rig.vendors.slack().of(&format!("bench-{number}@example.com"));
                called.map(|called| called.first.saturating_duration_since(*answered)).context("a call is missing")
            })
            .collect();
        latencies.add(round?);
        worker.stop().await?;
        receiver.stop().await?;
    }
    let figures = vec![
        Figure::new("alert committed to call started, idle, p50", Unit::Milliseconds, latencies.p50)
            .goal(Goal::AtMost(2.0)),
        Figure::new("alert committed to call started, idle, p99", Unit::Milliseconds, latencies.p99)
            .goal(Goal::AtMost(6.0)),
    ];
    Ok(Measured { figures, costs: Vec::new() })
}
