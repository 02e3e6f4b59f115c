//! Ingest and drain with a large table behind them, beside the same with an empty one.

use super::drain::{SETTLED, drain};
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::Rig;
use super::{ingest, stored};

/// None of the alerts of this round has anything left to do; those that wait for their time have.
const ROUND_SETTLED: &str =
    "select not exists (select from outbox where status = 'pending' and received_at > now() - interval '30 minutes')";

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let full = rig.cluster.database("full").await?;
    stored::history(&full, rig.sizes.history).await?;
    let alerts = &rig.corpus.classic;
    let [mut ingested_empty, mut drained_empty, mut ingested_full, mut drained_full] = [vec![], vec![], vec![], vec![]];
    let mut costs = Vec::new();
    for _ in 0..rig.rounds {
        let empty = rig.cluster.database("empty").await?;
        ingested_empty.push(ingest::into(rig, &empty, alerts, "in").await?.per_second());
        empty.checkpoint().await?;
        drained_empty.push(drain(&[], rig, &empty, alerts.len(), SETTLED, "drained").await?.per_second());

        full.checkpoint().await?;
        let ingested = ingest::into(rig, &full, alerts, "Classic alerts in, large table").await?;
        ingested_full.push(ingested.per_second());
        full.checkpoint().await?;
        let drained = drain(&[], rig, &full, alerts.len(), ROUND_SETTLED, "drained, large table").await?;
        drained_full.push(drained.per_second());
        full.execute("delete from outbox where alert_id not like 'history-%'").await?;
        full.execute("vacuum (analyze) outbox, outbox_action, outbox_attempt").await?;
        costs = vec![ingested.cost, drained.cost];
    }
    let figures = vec![
        Figure::new("Classic in, large table", Unit::PerSecond, ingested_full)
            .beside("the same, empty table", &ingested_empty)
            .goal(Goal::RatioAtLeast(0.9)),
        Figure::new("drain, large table", Unit::PerSecond, drained_full)
            .beside("the same, empty table", &drained_empty)
            .goal(Goal::RatioAtLeast(0.9)),
    ];
    Ok(Measured { figures, costs })
}
