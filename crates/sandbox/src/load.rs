//! Load: many distinct signed alerts against a receiver, and how long it took to answer each.
//!
//! With `--connections` as many requests are always under way, and the receiver sets the pace. With `--rate` they start on a
//! schedule that a slow receiver does not slow down: an answer is timed from the moment its request was due, so that a
//! stall shows in the percentiles in its full length.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic, ClassicSigner, Sender, Signed};
use tokio::task::JoinSet;

use crate::{KeyFile, Source, send};

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The receiver's address.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/paddle")]
    to: String,
    /// How many alerts.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// How many a second, whether or not the receiver keeps up.
    #[arg(long, conflicts_with = "connections")]
    rate: Option<u32>,
    /// How many at the same time.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long, value_enum, default_value = "classic")]
    source: Source,
    #[command(flatten)]
    key: KeyFile,
    #[arg(long, default_value = send::WEBHOOK_SECRET)]
    webhook_secret: String,
}

/// What became of one alert: its status, or what went wrong instead.
type Outcome = (Result<u16, String>, Duration);

pub(crate) async fn run(load: Load) -> anyhow::Result<()> {
    if load.count == 0 || load.connections == 0 || load.rate == Some(0) {
        bail!("nothing to do: --count, --connections and --rate must be at least 1");
    }
    eprintln!("signing {} alerts …", load.count);
    // Before the clock starts: an RSA signature costs this program more than the receiver's whole work.
    let alerts = match load.source {
        Source::Classic => {
            let signer = load.key.signer()?;
            let count = load.count;
            tokio::task::spawn_blocking(move || sign_classic(&signer, count)).await?
        }
        Source::Billing => sign_billing(&BillingSigner::new(&load.webhook_secret), load.count),
    };
    let sender = Sender::new();
    let started = Instant::now();
    let outcomes = match load.rate {
        Some(rate) => on_schedule(&sender, &load.to, alerts, rate).await?,
        None => in_flight(&sender, &load.to, alerts, load.connections).await?,
    };
    print_table(outcomes, started.elapsed());
    Ok(())
}

fn sign_classic(signer: &ClassicSigner, count: usize) -> Vec<Signed> {
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let numbers: Vec<usize> = (0..count).collect();
    let sign = |number: &usize| {
        let alert = Classic::subscription_created(&format!("load-{number}@example.com"));
        alert.subscription(&format!("{}", 1_000_000 + number)).signed_by(signer)
    };
    thread::scope(|scope| {
        let parts: Vec<_> = numbers
            .chunks(count.div_ceil(threads))
            .map(|part| scope.spawn(move || part.iter().map(sign).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("signing does not panic")).collect()
    })
}

/// Signed at once and sent within the receiver's tolerance, as long as the load takes minutes and not hours.
fn sign_billing(signer: &BillingSigner, count: usize) -> Vec<Signed> {
    let alert = |number| {
        Billing::subscription_created(&format!("ctm_load_{number}")).subscription(&format!("sub_load_{number}"))
    };
    (0..count).map(|number| alert(number).signed_by(signer)).collect()
}

async fn in_flight(sender: &Sender, to: &str, alerts: Vec<Signed>, connections: usize) -> anyhow::Result<Vec<Outcome>> {
    let (alerts, next, to) = (Arc::new(alerts), Arc::new(AtomicUsize::new(0)), Arc::<str>::from(to));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (sender, alerts, next, to) = (sender.clone(), Arc::clone(&alerts), Arc::clone(&next), Arc::clone(&to));
        workers.spawn(async move {
            let mut outcomes = Vec::new();
            while let Some(alert) = alerts.get(next.fetch_add(1, Ordering::Relaxed)) {
                outcomes.push(post(&sender, &to, alert, Instant::now()).await);
            }
            outcomes
        });
    }
    let mut outcomes = Vec::new();
    while let Some(done) = workers.join_next().await {
        outcomes.extend(done.context("a sender failed")?);
    }
    Ok(outcomes)
}

async fn on_schedule(sender: &Sender, to: &str, alerts: Vec<Signed>, rate: u32) -> anyhow::Result<Vec<Outcome>> {
    let to = Arc::<str>::from(to);
    let started = Instant::now();
    let mut requests = JoinSet::new();
    for (number, alert) in alerts.into_iter().enumerate() {
        let number = u32::try_from(number).map_err(|_| anyhow!("too many alerts for a schedule"))?;
        let due = started + Duration::from_secs(1).mul_f64(f64::from(number) / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        let (sender, to) = (sender.clone(), Arc::clone(&to));
        requests.spawn(async move { post(&sender, &to, &alert, due).await });
    }
    let mut outcomes = Vec::new();
    while let Some(done) = requests.join_next().await {
        outcomes.push(done.context("a request failed")?);
    }
    Ok(outcomes)
}

async fn post(sender: &Sender, to: &str, alert: &Signed, due: Instant) -> Outcome {
    let reply = sender.post(to, alert).await;
    (reply.map(|reply| reply.status).map_err(|error| format!("{:#}", error.root_cause())), due.elapsed())
}

fn print_table(outcomes: Vec<Outcome>, took: Duration) {
    let total = outcomes.len();
    let mut by_answer = BTreeMap::<String, Vec<Duration>>::new();
    for (answer, latency) in outcomes {
        by_answer.entry(answer.map_or_else(|error| error, |status| status.to_string())).or_default().push(latency);
    }
    let width = by_answer.keys().map(|answer| answer.chars().count()).max().unwrap_or(0).max("answer".len());
    println!("{:<width$} {:>8} {:>10} {:>10} {:>10}", "answer", "count", "p50", "p99", "max");
    for (answer, mut latencies) in by_answer {
        latencies.sort_unstable();
        let [p50, p99, max] = [50, 99, 100].map(|percent| milliseconds(percentile(&latencies, percent)));
        println!("{answer:<width$} {:>8} {p50:>10} {p99:>10} {max:>10}", latencies.len());
    }
    let seconds = took.as_secs_f64();
    let count = u32::try_from(total).map_or(f64::MAX, f64::from);
    println!("{total} alerts in {seconds:.2} s: {:.0} a second", count / seconds.max(f64::EPSILON));
}

/// The smallest latency that `percent` of all do not exceed.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        let check = |percent, expected| assert_eq!(percentile(&sorted, percent), Duration::from_millis(expected));
        check(50, 100);
        check(99, 198);
        check(100, 200);
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
