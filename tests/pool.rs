//! Connections to Postgres by themselves: from one use to the next, and no further.

use std::time::{Duration, Instant};

use oarlock_outbox::PgPool;
use oarlock_outbox::pool::Connection;
use oarlock_tests::{Cluster, Database, Switch};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_millis(100);

/// Longer than a connection is used unasked.
const IDLE: Duration = Duration::from_millis(1100);

/// `number` connections at most.
fn pool_of(number: u32, url: &str) -> PgPool {
    PgPool::connect_lazy(number, url.parse().expect("the URL of a Postgres"), None)
}

/// One connection, to a database that is gone when it is dropped.
async fn pool_of_one() -> (Database, PgPool) {
    let database = Database::create().await;
    let pool = pool_of(1, database.url());
    (database, pool)
}

/// Which process of Postgres is at the other end.
async fn server(connection: &mut Connection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.expect("the query is right")
}

/// Ends a process of Postgres.
async fn cut(database: &Database, server: i32) {
    let cut = sqlx::query_scalar("select pg_terminate_backend($1, 5000)").bind(server);
    let ended: bool = cut.fetch_one(database.pool()).await.expect("the query is right");
    assert!(ended);
}

#[tokio::test]
async fn idle_connections_whose_way_fell_silent_are_left_together_and_in_time() {
    let cluster = Cluster::start(&[]).await;
    let switch = Switch::to(cluster.address()).await;
    let pool = pool_of(3, &format!("postgres://oarlock@{}/postgres", switch.address()));
    let take_all =
        async || [pool.acquire().await.unwrap(), pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    drop(take_all().await);
    sleep(IDLE).await;
    switch.forgets();
    let started = Instant::now();
    let taken = take_all().await;
    let took = started.elapsed();
    assert!(took < Duration::from_millis(2500), "each was waited for: {took:?}");
    drop(taken);
    sqlx::query("select 1").execute(&pool).await.unwrap();
}

#[tokio::test]
async fn a_pool_of_one_is_for_one_at_a_time_who_all_have_the_same_connection() {
    let (_database, pool) = pool_of_one().await;
    let mut first = pool.acquire().await.unwrap();
    let it = server(&mut first).await;
    let mut second = std::pin::pin!(pool.acquire());
    assert!(timeout(PATIENCE, &mut second).await.is_err(), "there is no other");
    drop(first);
    assert_eq!(server(&mut second.await.unwrap()).await, it);
}

#[tokio::test]
async fn what_postgres_refused_costs_no_connection() {
    let (_database, pool) = pool_of_one().await;
    let it = server(&mut pool.acquire().await.unwrap()).await;
    let refused = sqlx::query("select 1 / 0").execute(&pool).await.unwrap_err();
    assert!(refused.as_database_error().is_some(), "{refused}");
    assert_eq!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_over_before_the_connection_is_used_again() {
    let (_database, pool) = pool_of_one().await;
    let mut dropped = pool.begin().await.unwrap();
    let it = server(&mut dropped).await;
    sqlx::query("create temporary table never (id int)").execute(&mut *dropped).await.unwrap();
    drop(dropped);
    let mut next = pool.acquire().await.unwrap();
    assert_eq!(server(&mut next).await, it);
    let never: Option<String> =
        sqlx::query_scalar("select to_regclass('never')::text").fetch_one(&mut next).await.unwrap();
    assert_eq!(never, None);
}

#[tokio::test]
async fn a_connection_that_was_left_amid_a_statement_is_not_used_again() {
    let (_database, pool) = pool_of_one().await;
    let mut left = pool.acquire().await.unwrap();
    let it = server(&mut left).await;
    let asked = sqlx::query("select pg_sleep(60)").execute(&mut left);
    assert!(timeout(PATIENCE, asked).await.is_err(), "it sleeps");
    drop(left);
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_connection_that_was_cut_is_followed_by_another() {
    let (database, pool) = pool_of_one().await;
    let mut held = pool.acquire().await.unwrap();
    let it = server(&mut held).await;
    cut(&database, it).await;
    sqlx::query("select 1").execute(&mut held).await.unwrap_err();
    drop(held);
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_connection_that_was_cut_while_it_was_idle_is_not_used() {
    let (database, pool) = pool_of_one().await;
    let it = server(&mut pool.acquire().await.unwrap()).await;
    sleep(IDLE).await;
    cut(&database, it).await;
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}
