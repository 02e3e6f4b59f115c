//! What was measured, as a table for people and as JSON.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::database::About;
use super::rig::Rig;
use super::usage::Cost;
use crate::voice::{Voice, readable};

/// One thing that was measured, several times.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    name: &'static str,
    unit: Unit,
    rounds: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<Goal>,
}

/// The same machine at something comparable: in each round right before or after.
#[derive(Debug, Clone, Serialize)]
struct Baseline {
    name: &'static str,
    rounds: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    #[serde(rename = "1/s")]
    PerSecond,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "calls")]
    Calls,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtMost(f64),
}

/// What a measure brings.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) figures: Vec<Figure>,
    pub(super) costs: Vec<Cost>,
}

impl Figure {
    pub(super) fn new(name: &'static str, unit: Unit, rounds: Vec<f64>) -> Self {
        Self { name, unit, rounds, baseline: None, goal: None }
    }

    #[must_use]
    pub(super) fn beside(self, name: &'static str, rounds: &[f64]) -> Self {
        Self { baseline: Some(Baseline { name, rounds: rounds.to_vec() }), ..self }
    }

    #[must_use]
    pub(super) fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// The median of the rounds' ratios: what slows the machine for a while slows both.
    fn ratio(&self) -> Option<f64> {
        let baseline = self.baseline.as_ref()?;
        Some(median(self.rounds.iter().zip(&baseline.rounds).map(|(measured, base)| measured / base)))
    }

    fn is_reached(&self) -> Option<bool> {
        let value = median(self.rounds.iter().copied());
        match self.goal? {
            Goal::RatioAtLeast(least) => Some(self.ratio()? >= least),
            Goal::RatioAtMost(most) => Some(self.ratio()? <= most),
            Goal::AtMost(most) => Some(value <= most),
        }
    }

    fn cells(&self) -> Vec<String> {
        let baseline = self.baseline.as_ref();
        vec![
            self.name.to_owned(),
            self.unit.tell(median(self.rounds.iter().copied())),
            baseline.map(|base| self.unit.tell(median(base.rounds.iter().copied()))).unwrap_or_default(),
            self.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.goal.map(|goal| goal.tell(self.unit)).unwrap_or_default(),
            self.is_reached().map_or("", |is| if is { "reached" } else { "MISSED" }).to_owned(),
            baseline.map(|base| base.name.to_owned()).unwrap_or_default(),
        ]
    }
}

impl Unit {
    fn tell(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Calls => format!("{value:.0} calls"),
        }
    }
}

impl Goal {
    fn tell(self, unit: Unit) -> String {
        match self {
            Self::RatioAtLeast(least) => format!("≥ {least:.2} ×"),
            Self::RatioAtMost(most) => format!("≤ {most:.2} ×"),
            Self::AtMost(most) => format!("≤ {}", unit.tell(most)),
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Small sizes: of little meaning.
    quick: bool,
    version: &'static str,
    cores: usize,
    postgres: About,
    /// Of a request with its head, on average.
    bytes_per_alert: usize,
    figures: Vec<Figure>,
    costs: Vec<Cost>,
}

impl Report {
    pub(super) fn new(quick: bool, rig: &Rig) -> Self {
        let corpus = &rig.corpus.classic;
        Self {
            quick,
            version: env!("CARGO_PKG_VERSION"),
            cores: thread::available_parallelism().map_or(1, std::num::NonZero::get),
            postgres: rig.cluster.about.clone(),
            bytes_per_alert: corpus.iter().map(super::post::Request::len).sum::<usize>() / corpus.len().max(1),
            figures: Vec::new(),
            costs: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, measured: Measured) {
        self.figures.extend(measured.figures);
        self.costs.extend(measured.costs);
    }

    pub(super) fn show(&self, voice: &Voice, took: Duration) {
        let quick = if self.quick { " QUICK sizes: these figures mean little." } else { "" };
        voice.title(&format!(
            "Measured on {} cores in {}; alerts of {} bytes.{quick}",
            self.cores,
            readable(took),
            self.bytes_per_alert
        ));
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let figures: Vec<_> = self.figures.iter().chain(&self.memory()).map(Figure::cells).collect();
        voice.table(&texts(&["figure", "median", "baseline", "ratio", "goal", "", "which baseline"]), &figures);
        voice.title("What it cost, per alert");
        let costs: Vec<_> = self.costs.iter().map(cells).collect();
        voice.table(&texts(&["of what", "alerts", "WAL", "commits", "CPU time"]), &costs);
    }

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))
    }

    /// The highest that each program came to in any measure.
    fn memory(&self) -> Vec<Figure> {
        let used = || self.costs.iter().flat_map(|cost| &cost.used);
        [("receiver", "receiver: resident memory, peak"), ("worker", "worker: resident memory, peak")]
            .into_iter()
            .filter_map(|(program, name)| {
                let peaks = used().filter(|used| used.program == program).filter_map(|used| used.peak_mib);
                let peak = peaks.reduce(f64::max)?;
                Some(Figure::new(name, Unit::Mebibytes, vec![peak]).goal(Goal::AtMost(40.0)))
            })
            .collect()
    }
}

fn cells(cost: &Cost) -> Vec<String> {
    let each = |seconds: f64| seconds * 1e6 / cost.alerts as f64;
    let used: Vec<_> =
        cost.used.iter().map(|used| format!("{} {:.0} µs", used.program, each(used.cpu_seconds))).collect();
    vec![
        cost.what.to_owned(),
        cost.alerts.to_string(),
        format!("{:.0} bytes", cost.wal_bytes_per_alert),
        format!("{:.4}", cost.commits_per_alert),
        used.join(", "),
    ]
}

/// The middle one; of an even number the mean of the two in the middle.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let check = |values: &[f64], expected| assert_eq!(median(values.iter().copied()), expected);
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0], 2.5);
    }

    #[test]
    fn the_ratio_is_of_what_was_measured_together() {
        // A machine that is half as fast in the second round.
        let figure = Figure::new("", Unit::PerSecond, vec![200.0, 100.0, 230.0]).beside("", &[100.0, 50.0, 100.0]);
        assert_eq!(figure.ratio(), Some(2.0));
        assert_eq!(figure.clone().goal(Goal::RatioAtLeast(1.9)).is_reached(), Some(true));
        assert_eq!(figure.goal(Goal::RatioAtMost(1.9)).is_reached(), Some(false));
    }
}
