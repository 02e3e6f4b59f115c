//! The schema: applying migrations, and telling whether they are applied.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, PgExecutor};

use crate::in_its_words;
use crate::pool::PgPool;

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// Any number: who applies migrations holds the lock of this number.
const LOCK: i64 = 0x6f61_726c_6f63_6b00;

/// Whether the database is as this program needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    /// It is, but nothing can be written there now: its server, the role or the database is read-only.
    ReadOnly,
    /// That many migrations are still to be applied.
    Behind(usize),
}

/// Applies what is pending. Several programs may do so at once: one does the work, the others wait for it.
///
/// All in one transaction, with a lock that lives as long as it does and not as long as a session: so this works through
/// a pooler in transaction mode, and a failure leaves everything as it was. Migrations that are applied already and unknown
/// to this program are newer than it: an old program may still start while a new one is rolled out.
///
/// # Errors
/// When the database is away or refuses, or a migration was changed after it had been applied.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.set_locking(false).set_ignore_missing(true);
    // A transaction as sqlx knows it, within which a migration's own is a savepoint; and without a limit of time.
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.raw().begin_with(pool.begin_unlimited()).await?;
    sqlx::query!("select pg_advisory_xact_lock($1)", LOCK).fetch_one(&mut *transaction).await?;
    // What `run` does with a connection of its own; `run` asks for bounds that no spawned task can meet.
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(())
}

/// Why the database cannot be migrated.
pub fn cause(error: &MigrateError) -> String {
    match error {
        MigrateError::Execute(error) => in_its_words(error),
        MigrateError::ExecuteMigration(error, version) => format!("migration {version}: {}", in_its_words(error)),
        other => other.to_string(),
    }
}

/// Looks whether all migrations are applied.
///
/// # Errors
/// When the database cannot be asked.
pub async fn state<C>(connection: &mut C) -> Result<State, sqlx::Error>
where
    for<'c> &'c mut C: PgExecutor<'c>,
{
    let found = sqlx::query!(
        r#"select to_regclass('_sqlx_migrations') is not null as "exists!", current_setting('transaction_read_only')::boolean as "read_only!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let known = MIGRATIONS.iter().filter(|migration| !migration.migration_type.is_down_migration());
    if !found.exists {
        return Ok(State::Behind(known.count()));
    }
    let applied: Vec<i64> =
        sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(connection).await?;
    let missing = known.filter(|migration| !applied.contains(&migration.version)).count();
    Ok(match missing {
        0 if found.read_only => State::ReadOnly,
        0 => State::Ready,
        missing => State::Behind(missing),
    })
}
