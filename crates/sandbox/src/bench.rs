//! The bench: what the receiver and the worker achieve, beside what the same machine's Postgres does at best.
//!
//! In: a Postgres of its own (`make bench` makes it, durable), the two programs as they are deployed, stand-ins that answer
//! at once. Out: a table and a JSON file. Every figure is measured several times, in turn with its baseline, and what counts
//! is the median of their ratios: whatever else the machine is doing slows both.
//!
//! Nothing here is a test: a ratio that misses its goal is told, not failed for. What does fail is wrong work: an answer other
//! than 200, an action whose outcome or attempt is not recorded.
//!
//! The loader, the stand-ins, Postgres and the programs share the machine; the bench's own share is in the report.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use oarlock_sandbox::paddle::ClassicSigner;

use self::corpus::Corpus;
use self::database::Cluster;
use self::report::Report;
use self::rig::{Rig, Sizes};
use self::vendors::Vendors;
use crate::service::Folder;
use crate::voice::{Voice, readable};

// What every measure stands on.
mod baseline;
mod corpus;
mod database;
mod post;
mod rig;
mod stored;
mod usage;
mod vendors;

// The measures, in the order in which they run.
mod ack;
mod apart;
mod crash;
mod drain;
mod history;
mod ingest;
mod snapshot;
mod through;
mod wake;

mod report;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Only these, such as: ingest,drain
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
    /// Small sizes, to see that it works: the figures mean little, and the report says so.
    #[arg(long)]
    quick: bool,
    /// How often each figure is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the report goes as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// A Postgres that nobody else uses, with fsync on, as a superuser.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Measure {
    /// Alerts answered 200 per second, Classic and Billing.
    Ingest,
    /// How long an alert waits for its 200: at a steady rate, and by itself.
    Ack,
    /// A backlog of alerts with one call each.
    Drain,
    /// Calls repeated after a kill -9 amid the drain.
    Crash,
    /// Alerts in and done per second while both programs run.
    Through,
    /// From an alert's commit to the start of its call, in an idle system.
    Wake,
    /// The drain while another session holds a snapshot open.
    Snapshot,
    /// Jira's throughput while every Slack call hangs.
    Apart,
    /// Ingest and drain with a large table behind them.
    History,
}

pub(crate) async fn run(bench: Bench) -> anyhow::Result<()> {
    let (started, voice) = (Instant::now(), Voice::new());
    if cfg!(debug_assertions) {
        bail!("a debug build says nothing about speed: run `make bench`");
    }
    if bench.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    let url = bench.database_url.as_deref().filter(|url| !url.is_empty());
    let url = url.context("DATABASE_URL is not set: run `make bench`, which makes a Postgres for it")?;
    let sizes = if bench.quick { Sizes::QUICK } else { Sizes::FULL };
    let signer = ClassicSigner::cached().context("failed to make the key for Classic alerts")?;
    let for_corpus = signer.clone();
    let corpus = tokio::task::spawn_blocking(move || Corpus::load(&for_corpus, sizes.alerts)).await??;
    let folder = Folder::make("bench")?;
    let cluster = Cluster::connect(url).await?;
    let vendors = Vendors::start().await?;
    let mut rig = Rig { cluster, corpus, vendors, signer, sizes, rounds: bench.rounds, folder };
    let measured = measure_all(&bench, &rig, &voice, started).await;
    if measured.is_err() {
        rig.folder.keep();
        voice.text(&format!("The programs' logs stay in {}", rig.folder.path().display()));
    }
    measured
}

async fn measure_all(bench: &Bench, rig: &Rig, voice: &Voice, started: Instant) -> anyhow::Result<()> {
    rig.cluster.prepare(rig).await.context("failed to prepare the databases")?;
    let (mut report, mut failed) = (Report::new(bench.quick, rig), Vec::new());
    for measure in Measure::value_variants() {
        if !bench.only.is_empty() && !bench.only.contains(measure) {
            continue;
        }
        let began = Instant::now();
        let name = measure.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let measured = match measure {
            Measure::Ingest => ingest::measure(rig).await,
            Measure::Ack => ack::measure(rig).await,
            Measure::Drain => drain::measure(rig).await,
            Measure::Crash => crash::measure(rig).await,
            Measure::Through => through::measure(rig).await,
            Measure::Wake => wake::measure(rig).await,
            Measure::Snapshot => snapshot::measure(rig).await,
            Measure::Apart => apart::measure(rig).await,
            Measure::History => history::measure(rig).await,
        };
        match measured {
            Ok(measured) => {
                report.add(measured);
                voice.line(&name, &format!("measured in {}", readable(began.elapsed())));
            }
            // The others are worth having.
            Err(error) => {
                voice.bad(&name, &format!("{error:#}"));
                failed.push(name);
            }
        }
    }
    report.show(voice, started.elapsed());
    report.write(&bench.json)?;
    voice.text(&format!("\nThe same as JSON, with every round: {}", bench.json.display()));
    ensure!(failed.is_empty(), "failed to measure {}", failed.join(", "));
    Ok(())
}
