//! Postgres as it is found: behind a pooler.

use std::collections::BTreeSet;
use std::time::Duration;

use oarlock_sandbox::Fault;
use oarlock_sandbox::paddle::Classic;
use oarlock_tests::{Database, Load, Oarlock, Pooler, Settings, Told};

const ANN: &str = "ann@example.com";

/// Alerts in, actions done, a worker killed, a dead letter replayed: through a pooler that gives each transaction another server.
#[tokio::test]
async fn through_pgbouncer_in_transaction_mode() {
    let database = Database::create().await;
    let pooler = Pooler::start(&database, 4).await;
    let mut oarlock = Settings::default()
        .database_url(pooler.url())
        .workers(2)
        .set("OARLOCK_WORKER__POLL_INTERVAL", "100ms")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "1s")
        .set("OARLOCK_WORKER__LEASE", "2s")
        .start_on(database)
        .await;
    let load = Load::start(&oarlock, 8, Duration::from_millis(20));
    load.goes_on(100).await;
    oarlock.workers.remove(0).dies().await;
    load.goes_on(100).await;
    oarlock.start_worker().await;
    load.goes_on(50).await;
    let told = load.stops().await;
    assert!(told.refused.is_empty() && told.broken.is_empty(), "{}", told.summary());
    oarlock.settles().await;
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

/// Whoever was answered 200 is stored once, and has what they paid for; nobody was invited twice.
async fn all_done_once(oarlock: &Oarlock, told: &Told) {
    assert_eq!(told.without_retry_after, 0, "{}", told.summary());
    let rows: Vec<String> = sqlx::query_scalar("select email from outbox where status = 'done'")
        .fetch_all(oarlock.pool())
        .await
        .expect("the query is right");
    let stored: BTreeSet<&String> = rows.iter().collect();
    assert_eq!(stored.len(), rows.len(), "an alert is stored twice");
    assert_eq!(stored, told.accepted.iter().collect::<BTreeSet<_>>(), "{}\n{}", oarlock.outbox().await, oarlock.logs());
    for email in &told.accepted {
        assert_eq!((oarlock.slack().invitation_count(email), oarlock.jira().invited(email)), (1, 1), "{email}");
    }
}
