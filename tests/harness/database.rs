//! A database of its own for each test, in the cluster that `DATABASE_URL` names.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use uuid::Uuid;

/// A database that is gone when the test is over.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: String,
    cluster: String,
    pool: PgPool,
    operator: PgPool,
}

/// Any number: who makes the cluster's roles holds the lock of this number.
const ROLES_LOCK: &str = "7021";

impl Database {
    /// Creates an empty one, which belongs to `oarlock_owner`.
    pub async fn create() -> Self {
        let cluster = std::env::var("DATABASE_URL")
            .expect("DATABASE_URL names a Postgres in which databases may be made: run `make test`, or tests/with-postgres COMMAND");
        Self::create_in(cluster).await
    }

    /// Creates one in another cluster than everybody's.
    pub async fn create_in(cluster: String) -> Self {
        let name = format!("oarlock_test_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(&cluster).await.expect("the cluster can be reached");
        // Roles are the cluster's, and many tests start at once.
        execute(&mut connection, format!("select pg_advisory_lock({ROLES_LOCK})")).await;
        execute(&mut connection, include_str!("../../migrations/roles.sql").to_owned()).await;
        execute(&mut connection, format!("select pg_advisory_unlock({ROLES_LOCK})")).await;
        execute(&mut connection, format!("create database {name} owner oarlock_owner")).await;
        let options: PgConnectOptions = cluster.parse().expect("connected with it above");
        let options = options.database(&name);
        let url = options.to_url_lossy().to_string();
        let operator = options.clone().options([("role", "oarlock_operator")]);
        let pool = |options| PgPoolOptions::new().max_connections(5).connect_lazy_with(options);
        Self { name, url, cluster, pool: pool(options), operator: pool(operator) }
    }

    /// As the cluster's own role, which may do everything.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As one of the four roles: with its rights from the first statement on, and on any cluster, whoever may log in there.
    pub fn url_as(&self, role: &str) -> String {
        format!("{}&options[role]={role}", self.url)
    }

    /// As the cluster's own role: for a test to set the scene, and to look behind it.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// As `oarlock_operator`.
    pub fn operator(&self) -> &PgPool {
        &self.operator
    }

    /// Runs a statement in the cluster's own database: `{}` is this one's name.
    pub async fn administer(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.cluster).await.expect("the cluster can be reached");
        execute(&mut connection, statement.replace("{}", &self.name)).await;
    }

    /// Moves every time in it back, at a moment when no action is running: while a call is under way, hours do not pass.
    pub async fn moves_back(&self, time: chrono::Duration) {
        let mut connection = self.pool.acquire().await.expect("the database is there");
        // No trigger has anything to do with it.
        execute(&mut connection, "set session_replication_role = replica".to_owned()).await;
        execute(
            &mut connection,
            "create temp table paused as select name, paused_until, paused_reason from destination;
             update destination set paused_until = 'infinity', paused_reason = 'time passes'"
                .to_owned(),
        )
        .await;
        let running = "select exists (select from outbox_action where status = 'running')";
        while sqlx::query_scalar(running).fetch_one(&mut *connection).await.expect("the query is right") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let statement = format!(
            "do $$ declare t record; begin
               update destination d set paused_until = p.paused_until, paused_reason = p.paused_reason from paused p where p.name = d.name;
               for t in
                 select table_name, string_agg(format('%1$I = %1$I - interval ''{} s''', column_name), ', ') as sets
                 from information_schema.columns join information_schema.tables using (table_schema, table_name)
                 where table_schema = 'public' and table_type = 'BASE TABLE' and table_name <> '_sqlx_migrations'
                   and data_type = 'timestamp with time zone'
                 group by table_name
               loop
                 execute format('update %I set %s', t.table_name, t.sets);
               end loop;
             end $$",
            time.num_seconds()
        );
        execute(&mut connection, statement).await;
        execute(&mut connection, "drop table paused; reset session_replication_role".to_owned()).await;
    }

    /// Takes the database away: nobody can connect, and who is connected is cut off.
    pub async fn goes_away(&self) {
        self.administer("alter database {} allow_connections false").await;
        self.cuts_connections().await;
    }

    /// Cuts off who is connected.
    pub async fn cuts_connections(&self) {
        self.administer("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'").await;
    }

    pub async fn comes_back(&self) {
        self.administer("alter database {} allow_connections true").await;
    }
}

async fn execute(connection: &mut PgConnection, statement: String) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(connection).await.expect("the statement is right");
}

impl Drop for Database {
    fn drop(&mut self) {
        // Not on the test's runtime, which may be ending.
        let (cluster, name) = (self.cluster.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            runtime.block_on(async {
                if let Ok(mut connection) = PgConnection::connect(&cluster).await {
                    let statement = format!("drop database if exists {name} with (force)");
                    let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await;
                }
            });
        });
        let _ = dropping.join();
    }
}
