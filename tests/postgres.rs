//! Postgres around us: poolers, restarts, failover, times without writes, a full house, TLS and what else a URL may say.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use oarlock_sandbox::Fault;
use oarlock_sandbox::paddle::Classic;
use oarlock_tests::{Cluster, Database, Load, Oarlock, Pooler, Settings, Switch, Told};
use sqlx::{Connection as _, PgConnection};

const ANN: &str = "ann@example.com";

/// Alerts in, actions done, a worker killed, a dead letter replayed: through a pooler that gives each transaction another server.
#[tokio::test]
async fn through_pgbouncer_in_transaction_mode() {
    let database = Database::create().await;
    let pooler = Pooler::start(&database, 4).await;
    let settings = settings().database_url(pooler.url()).set("OARLOCK_WORKER__POLL_INTERVAL", "100ms");
    let mut oarlock = settings.start_on(database).await;
    let load = Load::start(&oarlock, 8, Duration::from_millis(20));
    load.goes_on(100).await;
    oarlock.workers.remove(0).dies().await;
    load.goes_on(100).await;
    oarlock.start_worker().await;
    load.goes_on(50).await;
    let told = load.stops().await;
    assert!(told.refused.is_empty() && told.broken.is_empty(), "{}", told.summary());
    all_done_once(&oarlock, &told).await;

    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN));
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.until("it is dead", "select count(*) = 1 from dead_letter").await;
    oarlock.slack().clear_faults();
    // By an operator who comes through the pooler as well.
    let operator = sqlx::PgPool::connect_with(pooler.way()).await.unwrap();
    sqlx::raw_sql("select replay_dead_letters()").execute(&operator).await.unwrap();
    oarlock.settles().await;
    assert!(oarlock.slack().invited("bob@example.com"));

    let migrated = oarlock.spawn("oarlock-worker", &["migrate"]).ends().await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.output);
    let doctor = oarlock.spawn("oarlock-worker", &["doctor"]).ends().await;
    assert_eq!(doctor.code, Some(0), "{}", doctor.output);
    assert!(oarlock.worker().metric("oarlock_access_drift").await.is_some());
    let logs = oarlock.logs();
    assert!(!logs.contains("prepared statement"), "{logs}");
    assert!(!pooler.logs().contains("unsupported startup parameter"), "{}", pooler.logs());
}

/// Two workers whose leases are short, so that a claim whose answer was lost is soon taken again.
fn settings() -> Settings {
    Settings::default()
        .workers(2)
        .set("OARLOCK_RECEIVER__ACK_TIMEOUT", "1s")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "2s")
        .set("OARLOCK_WORKER__LEASE", "10s")
}

fn load(oarlock: &Oarlock) -> Load {
    Load::start(oarlock, 6, Duration::from_millis(20))
}

async fn answers_503(load: &Load) {
    let before = load.told().refused.get(&503).copied().unwrap_or_default();
    load.until("alerts are answered 503", |told| told.refused.get(&503).is_some_and(|count| *count >= before + 5))
        .await;
}

#[tokio::test]
async fn connections_are_cut_and_postgres_restarts_and_crashes() {
    let mut cluster = Cluster::start(&[]).await;
    let oarlock = settings().start_on(Database::create_in(cluster.url()).await).await;
    let load = load(&oarlock);
    for _ in 0..3 {
        load.goes_on(30).await;
        oarlock.database.cuts_connections().await;
    }
    load.goes_on(30).await;
    // Nothing is refused for a connection that is cut while others can be had.
    assert_eq!(load.told().refused.len(), 0, "{}", load.told().summary());
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        cluster.stops(signal).await;
        answers_503(&load).await;
        cluster.starts().await;
        load.goes_on(50).await;
    }
    all_done_once(&oarlock, &load.stops().await).await;
}

/// What somebody is called for stays claimed: else another worker would call for the same customer at the same time.
#[tokio::test]
async fn a_claim_outlives_a_crash_of_postgres() {
    // What was not flushed for somebody who waits for it is lost.
    let mut cluster = Cluster::start(&["wal_writer_delay=10s"]).await;
    let oarlock = settings().without("JIRA").start_on(Database::create_in(cluster.url()).await).await;
    oarlock.slack().fail(Fault::hang().times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.sees("Slack is called", |sandbox| !sandbox.calls().is_empty()).await;
    cluster.stops(Signal::SIGQUIT).await;
    cluster.starts().await;
    oarlock.settles().await;
    let attempts: i64 = oarlock.value("select sum(attempts) from outbox_action").await;
    assert_eq!((oarlock.calls_to_slack()[ANN], attempts), (2, 2));
}

/// The primary crashes; its standby is connected to before it is promoted, and used only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_takes_over_from_a_primary_that_crashed() {
    let mut primary = Cluster::start(&[]).await;
    let switch = Switch::to(primary.address()).await;
    let oarlock = settings().start_on(database_behind(&switch).await).await;
    let standby = synchronous_standby_of(&primary).await;
    let load = load(&oarlock);
    load.goes_on(100).await;
    primary.stops(Signal::SIGQUIT).await;
    switch.leads_to(standby.address());
    answers_503(&load).await;
    standby.sql(&["select pg_promote()"]).await;
    load.goes_on(100).await;
    all_done_once(&oarlock, &load.stops().await).await;
}

/// The primary steps down and goes on answering: who is connected must not stay for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_takes_no_writes_any_more_is_left() {
    let primary = Cluster::start(&[]).await;
    let switch = Switch::to(primary.address()).await;
    let oarlock = settings().start_on(database_behind(&switch).await).await;
    let standby = synchronous_standby_of(&primary).await;
    let load = load(&oarlock);
    load.goes_on(100).await;
    primary.sql(&READ_ONLY).await;
    answers_503(&load).await;
    standby.sql(&["select pg_promote()"]).await;
    switch.leads_to(standby.address());
    load.goes_on(100).await;
    // The one that listens as well.
    let left = "select not exists (select from pg_stat_activity where application_name like 'oarlock-%' and datname <> 'postgres')";
    primary.until("nobody is connected to the old primary", left).await;
    let told = load.stops().await;
    // This test's own way to the database is behind the switch too, and has not noticed.
    switch.cuts();
    all_done_once(&oarlock, &told).await;
}

#[tokio::test]
async fn times_without_writes_are_waited_for() {
    let cluster = Cluster::start(&[]).await;
    let oarlock = settings().start_on(Database::create_in(cluster.url()).await).await;
    let load = load(&oarlock);
    for _ in 0..2 {
        load.goes_on(50).await;
        cluster.sql(&READ_ONLY).await;
        answers_503(&load).await;
        for process in oarlock.receivers.iter().chain(&oarlock.workers) {
            assert_eq!(process.admin("/readyz").await, (503, "the database takes no writes\n".to_owned()));
        }
        cluster.sql(&READ_WRITE).await;
    }
    load.goes_on(50).await;
    all_done_once(&oarlock, &load.stops().await).await;
}

/// The way to Postgres falls silent while nothing is asked: there is no error, and no end to wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_falls_silent_behind_an_answer_is_left() {
    let cluster = Cluster::start(&[]).await;
    let switch = Switch::to(cluster.address()).await;
    // With two connections one thread has all the alerts.
    let settings = settings().set("OARLOCK_DATABASE__MAX_CONNECTIONS", "2");
    let oarlock = settings.start_on(database_behind(&switch).await).await;
    switch.falls_silent_after("the last word");
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN).field("passthrough", "the last word")).await;
    // Longer than a connection is used unasked.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let load = load(&oarlock);
    load.goes_on(50).await;
    assert!(load.stops().await.broken.is_empty());
}

/// The same for a worker, in what it says to plan, and to record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_leaves_a_way_that_falls_silent() {
    let cluster = Cluster::start(&[]).await;
    let switch = Switch::to(cluster.address()).await;
    let oarlock = settings().workers(1).start_on(database_behind(&switch).await).await;
    let (planned, recorded) = ("slack_invite", "invited");
    let mut customers = (0..).map(|number| format!("c{number}@example.com"));
    let mut goes_on = async || {
        let email = customers.next().unwrap();
        oarlock.paddle_sends(&Classic::payment_succeeded(&email)).await;
        oarlock.settles_within(Duration::from_secs(60)).await;
        assert_eq!(oarlock.slack().invitation_count(&email), 1);
    };
    for word in [planned, recorded] {
        switch.falls_silent_after(word);
        goes_on().await;
        goes_on().await;
        switch.falls_silent_at(word);
        goes_on().await;
        goes_on().await;
    }
}

/// What lies on the way forgets all connections. For an hour nothing but a notification would wake the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_is_forgotten_is_found_anew() {
    let cluster = Cluster::start(&[]).await;
    let switch = Switch::to(cluster.address()).await;
    let settings =
        settings().workers(1).set("OARLOCK_DATABASE__MAX_CONNECTIONS", "2").set("OARLOCK_WORKER__POLL_INTERVAL", "1h");
    // The worker's listener begins with a silence as well.
    switch.falls_silent_after("transaction_read_only");
    let oarlock = settings.start_on(database_behind(&switch).await).await;
    // The test's own way to the database is forgotten as well: it looks at Slack alone.
    let invited = async |email: &str, seconds| {
        let invited =
            oarlock.sandbox.wait_until(|sandbox| sandbox.slack().invited(email), Duration::from_secs(seconds));
        assert!(invited.await.is_ok(), "{email} is not invited within {seconds} s: {}", oarlock.logs());
    };
    oarlock.paddle_sends(&Classic::payment_succeeded("before@example.com")).await;
    invited("before@example.com", 30).await;
    switch.forgets();
    let (sender, alert) = (oarlock.sender(), Classic::payment_succeeded("amid@example.com").signed_by(&oarlock.signer));
    let taken = async { while sender.post(&oarlock.webhook(), &alert).await.expect("it answers").status != 200 {} };
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("the receiver finds another way");
    invited("amid@example.com", 90).await;
    oarlock.paddle_sends(&Classic::payment_succeeded("after@example.com")).await;
    invited("after@example.com", 20).await;
}

/// With two as well as with enough for what likes a connection of its own.
#[tokio::test]
async fn no_program_uses_more_connections_than_it_may() {
    for may in [2, 5] {
        let settings = Settings::default().set("OARLOCK_DATABASE__MAX_CONNECTIONS", may.to_string());
        let oarlock = settings.start().await;
        let load = load(&oarlock);
        for _ in 0..10 {
            load.goes_on(20).await;
            let most: i64 = sqlx::query_scalar(
                "select coalesce(max(used), 0)
                 from (select count(*) as used from pg_stat_activity
                       where datname = current_database() and application_name like 'oarlock-%' group by application_name) program",
            )
            .fetch_one(oarlock.pool())
            .await
            .expect("the query is right");
            assert!((2..=may).contains(&most), "{most} connections, and {may} are allowed");
        }
        let told = load.stops().await;
        assert!(told.refused.is_empty(), "{}", told.summary());
        all_done_once(&oarlock, &told).await;
    }
}

#[tokio::test]
async fn a_full_connection_table_is_waited_for() {
    let cluster = Cluster::start(&["max_connections=30"]).await;
    let database = Database::create_in(cluster.url()).await;
    // Limits do not hold for a superuser, which the harness is.
    cluster.sql(&["create role app login in role oarlock_owner", "create role crowd login"]).await;
    let way = database.url().replace("//oarlock@", "//app@") + "&options[role]=oarlock_owner";
    let oarlock = settings().database_url(way).start_on(database).await;
    let load = load(&oarlock);
    load.goes_on(50).await;

    cluster.sql(&["alter role app connection limit 0"]).await;
    oarlock.database.administer(CUT_APP).await;
    answers_503(&load).await;
    cluster.sql(&["alter role app connection limit -1"]).await;
    load.goes_on(50).await;

    // The places are taken while the programs may not come in, and then nobody keeps them out but the crowd.
    cluster.sql(&["alter role app connection limit 0"]).await;
    oarlock.database.administer(CUT_APP).await;
    let gone = "select not exists (select from pg_stat_activity where usename = 'app')";
    oarlock.until("the programs are out", gone).await;
    let crowded = cluster.url().replace("//oarlock@", "//crowd@");
    let mut crowd = Vec::new();
    while let Ok(connection) = PgConnection::connect(&crowded).await {
        crowd.push(connection);
    }
    cluster.sql(&["alter role app connection limit -1"]).await;
    answers_503(&load).await;
    drop(crowd);
    load.goes_on(50).await;
    all_done_once(&oarlock, &load.stops().await).await;
}

/// The way to Postgres as the URL says it: encrypted to whom the certificate names, under a name, in a schema of its own.
#[tokio::test]
async fn what_the_url_says_is_done() {
    let cluster = Cluster::start(&[]).await;
    let [ours, other] = [Authority::new(), Authority::new()];
    let (certificate, key) = ours.certifies("IP:127.0.0.1");
    let certificate = cluster.keeps("server.pem", &certificate);
    let key = cluster.keeps("server.key", &key);
    cluster
        .sql(&[
            &format!("alter system set ssl_cert_file = '{}'", certificate.display()),
            &format!("alter system set ssl_key_file = '{}'", key.display()),
            "alter system set ssl = on",
            "select pg_reload_conf()",
        ])
        .await;
    cluster.until("it is reloaded", "select current_setting('ssl')::bool").await;
    let database = Database::create_in(cluster.url()).await;
    sqlx::raw_sql("create schema ledger").execute(database.pool()).await.unwrap();
    let plain = database.url().split('?').next().unwrap().to_owned();
    let verified = |authority: &Authority| {
        format!("{plain}?sslmode=verify-full&sslrootcert={}", authority.certificate().display())
    };
    let way = verified(&ours) + "&application_name=oarlock%20of%20acme&options=-csearch_path=ledger";
    let oarlock = Settings::default().database_url(way).start_on(database).await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("it is done, in that schema", "select status = 'done' from ledger.outbox").await;
    assert!(oarlock.slack().invited(ANN));
    assert_eq!(oarlock.value::<Option<String>>("select to_regclass('public.outbox')::text").await, None);
    let connected = "select string_agg(distinct concat_ws(' ', application_name, ssl), ', ')
                     from pg_stat_activity join pg_stat_ssl using (pid) where application_name like '%oarlock%'";
    let connected: String = sqlx::query_scalar(connected).fetch_one(oarlock.pool()).await.unwrap();
    assert_eq!(connected, "oarlock of acme t");

    let says = async |way: String, why: &str| {
        let oarlock = Settings::default().database_url(way).prepare(Database::create().await).await;
        let doctor = oarlock.spawn("oarlock-worker", &["doctor"]).ends().await;
        let line = doctor.output.lines().find(|line| line.contains("database.connection: ")).unwrap_or_default();
        assert!(doctor.code == Some(1) && line.starts_with("FAIL") && line.contains(why), "{why}: {}", doctor.output);
    };
    says(verified(&other), "UnknownIssuer").await;
    let elsewhere = verified(&ours).replace("127.0.0.1", "localhost");
    says(elsewhere, "not valid for name").await;
    cluster.sql(&["alter system set ssl = off", "select pg_reload_conf()"]).await;
    cluster.until("it is reloaded", "select not current_setting('ssl')::bool").await;
    says(verified(&ours), "server does not support TLS").await;
}

/// Whoever certifies servers, in a directory that is gone when the test is over.
struct Authority(PathBuf);

impl Authority {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("oarlock-authority-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&directory).expect("a directory can be made");
        let this = Self(directory);
        this.openssl(&format!(
            "req -x509 {NEW_KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN={}",
            uuid::Uuid::new_v4()
        ));
        this
    }

    fn certificate(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// A server's certificate and its key.
    fn certifies(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        std::fs::write(self.0.join("names"), format!("subjectAltName={name}")).expect("it is ours");
        self.openssl(&format!("req {NEW_KEY} -keyout server.key -out server.csr -subj /CN=server"));
        self.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
        );
        let read = |name| std::fs::read(self.0.join(name)).expect("openssl has written it");
        (read("server.pem"), read("server.key"))
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(&self.0).output().expect("openssl is on the PATH");
        assert!(output.status.success(), "openssl {arguments}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Dead rows are taken away long before they are a fifth of a table, which is what Postgres waits for by itself.
#[tokio::test]
async fn hot_tables_are_vacuumed_early() {
    let cluster = Cluster::start(&["autovacuum_naptime=1s"]).await;
    cluster.sql(&["alter system set autovacuum = off", "select pg_reload_conf()"]).await;
    let oarlock = Settings::default().one_role().start_on(Database::create_in(cluster.url()).await).await;
    sqlx::raw_sql(
        "insert into outbox (id, source, alert_id, alert_name, status, to_plan, finished_at, mended_payload, raw_body, raw_signature)
         select gen_random_uuid(), 'classic', n, 'transfer_paid', 'ignored', false, now(), '{}', '', '' from generate_series(1, 20000) n;
         insert into outbox_action (id, outbox_id, kind, email, status, outcome, finished_at)
         select gen_random_uuid(), id, 'slack_invite', 'a@example.com', 'done', 'invited', now() from outbox;
         insert into outbox_attempt (action_id, attempt, started_at, duration_ms) select id, 1, now(), 1 from outbox_action",
    )
    .execute(oarlock.pool())
    .await
    .unwrap();
    sqlx::raw_sql("vacuum (analyze)").execute(oarlock.pool()).await.unwrap();
    for touch in [
        "update outbox set received_at = now() where alert_id::int % 10 = 0",
        "update outbox_action set created_at = now() where outbox_id in (select id from outbox where alert_id::int % 10 = 0)",
        "update outbox_attempt set duration_ms = 2 where id % 10 = 0",
    ] {
        sqlx::raw_sql(touch).execute(oarlock.pool()).await.unwrap();
    }
    cluster.sql(&["alter system set autovacuum = on", "select pg_reload_conf()"]).await;
    let vacuumed = "select count(*) = 3 from pg_stat_user_tables
                    where relname in ('outbox', 'outbox_action', 'outbox_attempt') and autovacuum_count > 0";
    oarlock.until("all three are vacuumed", vacuumed).await;
}

const CUT_APP: &str = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'";

const READ_ONLY: [&str; 2] = ["alter system set default_transaction_read_only = on", "select pg_reload_conf()"];
const READ_WRITE: [&str; 3] = [
    "set default_transaction_read_only = off",
    "alter system reset default_transaction_read_only",
    "select pg_reload_conf()",
];

async fn database_behind(switch: &Switch) -> Database {
    Database::create_in(format!("postgres://oarlock@{}/postgres", switch.address())).await
}

/// A standby without which the primary commits nothing.
async fn synchronous_standby_of(primary: &Cluster) -> Cluster {
    let standby = Cluster::follow(primary, &[]).await;
    primary.sql(&["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"]).await;
    let synchronous = "select exists (select from pg_stat_replication where sync_state = 'sync')";
    primary.until("the standby is synchronous", synchronous).await;
    standby
}

/// Whoever was answered 200 is stored once and has what they paid for; nothing went out more often than it was claimed, and
/// the programs that were started are those that run.
async fn all_done_once(oarlock: &Oarlock, told: &Told) {
    println!("{}", told.summary());
    assert!(told.without_retry_after == 0 && told.broken.is_empty(), "{}", told.summary());
    assert!(told.refused.keys().all(|status| *status == 503), "{}", told.summary());
    oarlock.settles().await;
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select o.email, sum(a.attempts) filter (where kind = 'slack_invite')
         from outbox o join outbox_action a on a.outbox_id = o.id where o.status = 'done' group by o.id",
    )
    .fetch_all(oarlock.pool())
    .await
    .expect("the query is right");
    let stored: BTreeSet<&String> = rows.iter().map(|(email, _)| email).collect();
    assert_eq!(stored.len(), rows.len(), "an alert is stored twice");
    let accepted: BTreeSet<_> = told.accepted.iter().collect();
    assert_eq!(stored, accepted, "{}\n{}", oarlock.outbox().await, oarlock.logs());
    let calls = oarlock.calls_to_slack();
    let repeated = calls.values().filter(|count| **count > 1).count();
    println!("{} customers, {repeated} of them asked for twice", rows.len());
    for (email, claims) in &rows {
        assert!(calls[email] <= *claims, "{email}: {} calls, {claims} claims", calls[email]);
        assert_eq!((oarlock.slack().invitation_count(email), oarlock.jira().invited(email)), (1, 1), "{email}");
    }
    oarlock.is_ready().await;
}
