//! How long an alert waits for its 200.

use std::time::{Duration, Instant};

use super::baseline::{self, LoneCommits};
use super::post::{self, Connection};
use super::report::{Figure, Goal, Measured, Unit, median};
use super::rig::{Calls, PATIENCE, Rig};
use crate::load::percentile;

const PER_SECOND: u32 = 500;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let [mut alone, mut busy, mut commits] = [Percentiles::default(), Percentiles::default(), Percentiles::default()];
    let (mut lone, mut commit) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        commits.add(baseline::at_rate(rig, PER_SECOND).await?);
        alone.add(at_rate(rig, false).await?);
        busy.add(at_rate(rig, true).await?);
        let (request, base) = lone_requests(rig).await?;
        lone.push(request);
        commit.push(base);
    }
    const AT_RATE: &str = "pgbench at the same rate";
    let figures = vec![
        Figure::new("ack at 500/s from when it was due, p50", Unit::Milliseconds, alone.p50)
            .beside(AT_RATE, &commits.p50),
        Figure::new("ack at 500/s from when it was due, p99", Unit::Milliseconds, alone.p99)
            .beside(AT_RATE, &commits.p99)
            .goal(Goal::AtMost(10.0)),
        Figure::new("the same while the worker works, p50", Unit::Milliseconds, busy.p50).beside(AT_RATE, &commits.p50),
        Figure::new("the same while the worker works, p99", Unit::Milliseconds, busy.p99).beside(AT_RATE, &commits.p99),
        Figure::new("ack of a lone request, p50", Unit::Milliseconds, lone)
            .beside("a lone commit of one row", &commit)
            .goal(Goal::RatioAtMost(2.0)),
    ];
    Ok(Measured { figures, costs: Vec::new() })
}

/// How long after it was due each alert was answered, with or without a worker that acts on them meanwhile.
async fn at_rate(rig: &Rig, with_worker: bool) -> anyhow::Result<Vec<Duration>> {
    let alerts = &rig.corpus.classic[..rig.sizes.at_rate.min(rig.corpus.classic.len())];
    let database = rig.cluster.database("ack").await?;
    let receiver = rig.receiver(&database).await?;
    rig.vendors.forget();
    let worker = if with_worker { Some(rig.worker(&database, Calls::Slack, &[])?) } else { None };
    if let Some(worker) = &worker {
        worker.is_ready().await?;
    }
    let latencies = tokio::task::block_in_place(|| post::open_loop(receiver.address, alerts, PER_SECOND))?;
    if let Some(worker) = worker {
        rig.vendors.slack().reach(alerts.len(), PATIENCE).await?;
        worker.stop().await?;
    }
    receiver.stop().await?;
    Ok(latencies)
}

/// The middle of requests one by one, and of commits in turn with them, in milliseconds.
async fn lone_requests(rig: &Rig) -> anyhow::Result<(f64, f64)> {
    let database = rig.cluster.database("ack").await?;
    let receiver = rig.receiver(&database).await?;
    let mut lone_commits = LoneCommits::open(&database).await?;
    let mut connection = Connection::open(receiver.address)?;
    let (mut requests, mut commits) = (Vec::new(), Vec::new());
    for alert in rig.corpus.classic.iter().take(rig.sizes.lone) {
        let started = Instant::now();
        tokio::task::block_in_place(|| connection.post(alert))?;
        requests.push(milliseconds(started.elapsed()));
        commits.push(milliseconds(lone_commits.commit().await?));
    }
    receiver.stop().await?;
    Ok((median(requests.into_iter()), median(commits.into_iter())))
}

/// Of each round, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Percentiles {
    pub(super) p50: Vec<f64>,
    pub(super) p99: Vec<f64>,
}

impl Percentiles {
    pub(super) fn add(&mut self, mut latencies: Vec<Duration>) {
        latencies.sort_unstable();
        self.p50.push(milliseconds(percentile(&latencies, 50)));
        self.p99.push(milliseconds(percentile(&latencies, 99)));
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
