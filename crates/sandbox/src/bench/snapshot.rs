//! The drain while another session holds a snapshot open, as a long report or a dump does: until it ends Postgres must keep
//! every version of every row, and indexes lead to them all.

use sqlx::{Postgres, Transaction};

use super::database::Database;
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
            let snapshot = if is_held { Some(hold_snapshot(&database).await?) } else { None };
            let drained = drain(&[], rig, &database, alerts, SETTLED, "drained").await?;
            if let Some(snapshot) = snapshot {
                snapshot.rollback().await?;
            }
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

/// Held until it is rolled back.
async fn hold_snapshot(database: &Database) -> anyhow::Result<Transaction<'static, Postgres>> {
    let mut transaction = database.pool().begin().await?;
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *transaction).await?;
    sqlx::query("select count(*) from destination").execute(&mut *transaction).await?;
    Ok(transaction)
}
