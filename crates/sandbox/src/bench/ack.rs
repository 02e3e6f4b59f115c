//! How long an alert waits for its 200.

use std::time::{Duration, Instant};

use super::baseline::LoneCommits;
use super::post::{self, Connection};
use super::report::{Figure, Goal, Measured, Unit, median};
use super::rig::{Calls, PATIENCE, Rig};
use crate::load::percentile;

const PER_SECOND: u32 = 500;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let database = rig.cluster.database("ack").await?;
    let alerts = &rig.corpus.classic[..rig.sizes.at_rate.min(rig.corpus.classic.len())];
    let (mut p50, mut p99, mut busy_p50, mut busy_p99) = (vec![], vec![], vec![], vec![]);
    let (mut lone, mut commit) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        database.clear().await?;
        let receiver = rig.receiver(&database).await?;
        let latencies = tokio::task::block_in_place(|| post::open_loop(receiver.address, alerts, PER_SECOND))?;
        let [half, most] = percentiles(latencies);
        p50.push(half);
        p99.push(most);

        database.clear().await?;
        rig.vendors.forget();
        let worker = rig.worker(&database, Calls::Slack, &[])?;
        worker.is_ready().await?;
        let latencies = tokio::task::block_in_place(|| post::open_loop(receiver.address, alerts, PER_SECOND))?;
        rig.vendors.slack().reach(alerts.len(), PATIENCE).await?;
        worker.stop().await?;
        let [half, most] = percentiles(latencies);
        busy_p50.push(half);
        busy_p99.push(most);

        database.clear().await?;
        let (mut requests, mut commits) = (Vec::new(), Vec::new());
        let mut lone_commits = LoneCommits::open(&database).await?;
        let mut connection = Connection::open(receiver.address)?;
        for alert in rig.corpus.classic.iter().take(rig.sizes.lone) {
            let started = Instant::now();
            tokio::task::block_in_place(|| connection.post(alert))?;
            requests.push(milliseconds(started.elapsed()));
            commits.push(milliseconds(lone_commits.commit().await?));
        }
        lone.push(median(requests.into_iter()));
        commit.push(median(commits.into_iter()));
        receiver.stop().await?;
    }
    let figures = vec![
        Figure::new("ack at 500/s from when it was due, p50", Unit::Milliseconds, p50),
        Figure::new("ack at 500/s from when it was due, p99", Unit::Milliseconds, p99).goal(Goal::AtMost(10.0)),
        Figure::new("the same while the worker works, p50", Unit::Milliseconds, busy_p50),
        Figure::new("the same while the worker works, p99", Unit::Milliseconds, busy_p99),
        Figure::new("ack of a lone request, p50", Unit::Milliseconds, lone)
            .beside("a lone commit of one row, p50", &commit)
            .goal(Goal::RatioAtMost(2.0)),
    ];
    Ok(Measured { figures, costs: Vec::new() })
}

/// p50 and p99, in milliseconds.
pub(super) fn percentiles(mut latencies: Vec<Duration>) -> [f64; 2] {
    latencies.sort_unstable();
    [50, 99].map(|percent| milliseconds(percentile(&latencies, percent)))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
