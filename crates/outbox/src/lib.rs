//! The contract between receiver and worker: what an alert is, what it pays for, and every SQL statement.
//!
//! In the order the data flows:
//!
//! | module | what happens there |
//! |---|---|
//! | [`received`] | a verified body becomes the row that is stored |
//! | [`store`] | alerts are inserted, once each |
//! | [`alert`] | a stored payload is read for what it says |
//! | [`access`] | the rules: what a subscription's alerts pay for (pure) |
//! | [`planning`] | alerts become ledger entries and actions, in one transaction |
//! | [`claim`] | due actions are leased to a worker, fenced by a token |
//! | [`ledger`] | what is paid for now, which memberships we gave |
//! | [`record`] | results are written, guarded by the token |
//! | [`destination`] | the pauses and the pace that every worker obeys |
//! | [`pool`] | the way to Postgres, straight or through a pooler |
//! | [`schema`], [`rights`] | migrations; what the worker's role must be allowed to do |
//! | [`gauges`], [`retention`] | counts for metrics; deleting what is old |
//!
//! It knows no HTTP, and its only tasks settle connections that were left, or close them.

use std::time::Duration;

use sqlx::postgres::types::PgInterval;

mod names;
mod trace;

pub mod access;
pub mod alert;
pub mod claim;
pub mod destination;
pub mod gauges;
pub mod ledger;
pub mod planning;
pub mod pool;
pub mod received;
pub mod record;
pub mod retention;
pub mod rights;
pub mod schema;
pub mod store;

pub use names::{AlertName, Destination, Kind, MemberState, Source, Unknown};
pub use pool::PgPool;
pub use trace::{NotATraceParent, TraceParent};

/// The channel that wakes workers; the payload is `outbox` (alerts to plan) or a destination's name (actions to claim).
/// The schema's triggers use it too.
pub const CHANNEL: &str = "oarlock";

/// How the worker's statements are to be planned, said once on each connection: row by row, through the index that was made
/// for it, with one plan for all values. What Postgres believes of a queue's tables is always of another hour: a plan made
/// while they were empty must be right when they hold millions, and then planning each statement anew is for nothing.
///
/// What a statement changes it finds by `id = any (array[list.id])`: an equality of two columns might be turned round, and lead
/// through the whole table, or each row might be compared with the whole list. This can only be looked up, row by row.
pub const BY_INDEX: &str =
    "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_bitmapscan = off;
    set enable_hashjoin = off; set enable_mergejoin = off; set jit = off";

/// Takes [`BY_INDEX`] back for a transaction that looks at many rows: Postgres is to plan that as it sees fit, and to leave off when
/// nobody waits for it any more.
pub(crate) const OVERVIEW: &str =
    "set transaction read only; set local statement_timeout = '5s'; set local plan_cache_mode to default; set local enable_seqscan to default; set local enable_bitmapscan to default;
    set local enable_hashjoin to default; set local enable_mergejoin to default; set local jit to default";

/// Whether a statement lost against another one and may be tried again in a moment: serialization failure, deadlock, a lock
/// that was not to be had in time, or two workers claiming for the same customer in the same instant.
pub fn is_conflict(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        matches!(error.code().as_deref(), Some("40001" | "40P01" | "55P03"))
            || error.constraint() == Some("outbox_action_one_running")
    })
}

/// Whether it is the connection that failed, and the statement may find another one that works: it was cut, Postgres is
/// restarting, or what it leads to has become a standby.
pub fn is_connection_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("08") || matches!(&*code, "57P01" | "57P02" | "57P03" | "25006")),
        _ => false,
    }
}

/// What went wrong, in Postgres's own words; without them where they may quote a value.
pub fn cause(error: &sqlx::Error) -> String {
    /// Connections, transactions, passwords, databases, rights, resources, locks, the administrator, the system, our own functions.
    const QUOTE_NOTHING: [&str; 11] = ["08", "25", "28", "3D", "40", "42", "53", "55", "57", "58", "P0"];
    let may_quote = |code: &str| !QUOTE_NOTHING.iter().any(|class| code.starts_with(class));
    match error.as_database_error() {
        Some(said) if said.code().is_none_or(|code| may_quote(&code)) => {
            let constraint = said.constraint().map(|name| format!(", {name}")).unwrap_or_default();
            format!("SQLSTATE {}{constraint}", said.code().unwrap_or_default())
        }
        _ => in_its_words(error),
    }
}

/// (As the driver writes it, there is a line of Postgres's source as well, which reads like one of a file of ours.)
fn in_its_words(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(said) => format!("{} (SQLSTATE {})", said.message(), said.code().unwrap_or_default()),
        None => error.to_string(),
    }
}

/// How long to wait after a conflict before trying again.
pub const AFTER_A_CONFLICT: Duration = Duration::from_millis(5);

/// A length of time as Postgres takes it; what is too long for it is as long as can be.
fn interval(length: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(length.as_micros()).unwrap_or(i64::MAX) }
}

/// Whether a statement failed because of the values it was given, so that giving them again is no use.
pub fn is_about_the_data(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class))) && !is_conflict(error)
}
