//! The drain while another session holds a snapshot open, as a long report or a dump does: until it ends Postgres must keep
//! every version of every row, and indexes lead to them all.

use super::drain::{SETTLED, drain};
use super::report::{Figure, Goal, Measured, Unit};
use super::rig::Rig;
use super::stored;

pub(super) async fn measure(rig: &Rig) -> anyhow::Result<Measured> {
    let alerts = rig.sizes.under_snapshot;
    let (mut without, mut with) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        for is_held in [false, true] {
            let database = rig.cluster.database("snapshot").await?;
            stored::backlog(&database, alerts).await?;
            let mut other = database.pool().begin().await?;
            if is_held {
                sqlx::query("set transaction isolation level repeatable read").execute(&mut *other).await?;
                sqlx::query("select count(*) from destination").execute(&mut *other).await?;
            }
            let drained = drain(rig, &database, alerts, SETTLED, "drained").await?;
            other.rollback().await?;
            if is_held { &mut with } else { &mut without }.push(drained.per_second());
        }
    }
    let figures = vec![
        Figure::new("drain while a snapshot is held open", Unit::PerSecond, with)
            .beside("the same without", &without)
            .goal(Goal::RatioAtLeast(0.8)),
    ];
    Ok(Measured { figures, costs: Vec::new() })
}
