//! What the worker's role must be allowed to do, and whether it is: for `oarlock-worker doctor`.
//!
//! The same as what `grant_to_roles()` gives to `oarlock_worker` (migrations/0002_roles.sql); tests/doctor.rs holds the two
//! against each other. A role of another name that may do all of it, such as one that owns everything, will do as well.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// Table or view, right, and the columns if it is not for all of them.
const NEEDED: &[(&str, &str, &[&str])] = &[
    ("_sqlx_migrations", "select", &[]),
    (
        "outbox",
        "select",
        &[
            "id",
            "source",
            "alert_id",
            "alert_name",
            "occurred_at",
            "received_at",
            "email",
            "subscription_id",
            "status",
            "to_plan",
            "last_error",
            "finished_at",
            "trace_parent",
            "raw_body",
            "mended_payload",
        ],
    ),
    ("outbox", "update", &["email", "status", "to_plan", "last_error", "finished_at"]),
    ("outbox", "delete", &[]),
    ("outbox_action", "select", &[]),
    ("outbox_action", "insert", &[]),
    ("outbox_action", "update", &[]),
    ("outbox_attempt", "select", &[]),
    ("outbox_attempt", "insert", &[]),
    ("subscription", "select", &[]),
    ("subscription", "insert", &[]),
    ("subscription", "update", &[]),
    ("subscription_alert", "select", &[]),
    ("subscription_alert", "insert", &[]),
    ("classic_address_change", "select", &[]),
    ("classic_address_change", "insert", &[]),
    ("billing_customer", "select", &[]),
    ("billing_customer", "insert", &[]),
    ("billing_customer", "update", &[]),
    ("customer", "select", &[]),
    ("customer", "insert", &[]),
    ("customer", "update", &[]),
    ("membership", "select", &[]),
    ("membership", "insert", &[]),
    ("membership", "update", &[]),
    ("membership", "delete", &[]),
    ("access_rule", "select", &[]),
    ("access_rule", "insert", &[]),
    ("access_rule", "delete", &[]),
    ("destination", "select", &[]),
    ("destination", "update", &[]),
    ("access", "select", &[]),
];

/// Who is connected, to what.
#[derive(Debug)]
pub struct Session {
    pub role: String,
    pub version: String,
    /// A standby, or made so.
    pub read_only: bool,
    /// Where our tables are, if that is a schema this session finds nothing in: without the right to use it, or not in its
    /// `search_path`.
    pub unseen_schema: Option<String>,
    /// Whether the migrations that were applied can be read, or are nowhere.
    pub may_read_migrations: bool,
}

/// Looks who is connected, to what.
///
/// # Errors
/// When the database cannot be asked.
pub async fn session(connection: &mut PgConnection) -> Result<Session, sqlx::Error> {
    sqlx::query_as!(
        Session,
        r#"
        select current_user::text as "role!", current_setting('server_version') as "version!",
               current_setting('transaction_read_only')::boolean as "read_only!",
               (select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                where c.relname = '_sqlx_migrations' and to_regclass('_sqlx_migrations') is null limit 1) as unseen_schema,
               coalesce(has_table_privilege(to_regclass('_sqlx_migrations'), 'select'), true) as "may_read_migrations!"
        "#
    )
    .fetch_one(connection)
    .await
}

/// What the connected role may do of what the worker needs.
#[derive(Debug)]
pub struct Rights {
    /// Such as `update (email, status) on outbox`.
    pub missing: Vec<String>,
    /// Whether it owns the tables, and so may do more than it needs.
    pub owner: bool,
}

/// Looks what the connected role may do of what the worker needs. A table that is not there counts as missing.
///
/// # Errors
/// When the database cannot be asked.
pub async fn of_worker(connection: &mut PgConnection) -> Result<Rights, sqlx::Error> {
    let (mut relations, mut rights, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for (relation, right, of) in NEEDED {
        for column in if of.is_empty() { &[""] } else { *of } {
            relations.push((*relation).to_owned());
            rights.push((*right).to_owned());
            columns.push((*column).to_owned());
        }
    }
    let missing = sqlx::query_scalar!(
        r#"
        select needed.privilege || coalesce(' (' || string_agg(nullif(needed.col, ''), ', ' order by needed.n) || ')', '') || ' on ' || needed.relation as "missing!"
        from unnest($1::text[], $2::text[], $3::text[]) with ordinality as needed (relation, privilege, col, n)
        left join pg_attribute a on a.attrelid = to_regclass(needed.relation) and a.attname = needed.col and a.attnum > 0
        where not coalesce(
          case needed.col when '' then has_table_privilege(to_regclass(needed.relation), needed.privilege)
                          else has_column_privilege(to_regclass(needed.relation), a.attnum, needed.privilege) end, false)
        group by needed.relation, needed.privilege
        order by min(needed.n)
        "#,
        &relations,
        &rights,
        &columns,
    )
    .fetch_all(&mut *connection)
    .await?;
    let owner = sqlx::query_scalar!(
        r#"select coalesce((select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = to_regclass('outbox')), false) as "owner!""#
    )
    .fetch_one(connection)
    .await?;
    Ok(Rights { missing, owner })
}

/// Postgres's clock, now.
///
/// # Errors
/// When the database cannot be asked.
pub async fn clock(connection: &mut PgConnection) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(connection).await
}
