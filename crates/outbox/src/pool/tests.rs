use super::*;

const PATIENCE: Duration = Duration::from_millis(100);

/// One connection, to the Postgres of all tests.
fn one() -> PgPool {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL names a Postgres: run `make test`");
    PgPool::connect_lazy(1, url.parse().unwrap(), None)
}

/// Which process of Postgres is at the other end.
async fn server(connection: &mut Connection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn a_pool_of_one_is_for_one_at_a_time_who_all_have_the_same_connection() {
    let pool = one();
    let mut first = pool.acquire().await.unwrap();
    let it = server(&mut first).await;
    let mut second = std::pin::pin!(pool.acquire());
    assert!(timeout(PATIENCE, &mut second).await.is_err(), "there is no other");
    drop(first);
    assert_eq!(server(&mut second.await.unwrap()).await, it);
}

#[tokio::test]
async fn what_postgres_refused_costs_no_connection() {
    let pool = one();
    let it = server(&mut pool.acquire().await.unwrap()).await;
    let refused = sqlx::query("select 1 / 0").execute(&pool).await.unwrap_err();
    assert!(refused.as_database_error().is_some(), "{refused}");
    assert_eq!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_over_before_the_connection_is_used_again() {
    let pool = one();
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
    let pool = one();
    let mut left = pool.acquire().await.unwrap();
    let it = server(&mut left).await;
    let asked = sqlx::query("select pg_sleep(60)").execute(&mut left);
    assert!(timeout(PATIENCE, asked).await.is_err(), "it sleeps");
    drop(left);
    let next = timeout(Duration::from_secs(4), pool.acquire()).await.expect("nobody waits for it").unwrap();
    assert_ne!(server(&mut { next }).await, it);
}

#[tokio::test]
async fn a_connection_that_was_cut_is_followed_by_another() {
    let (pool, other) = (one(), one());
    let it = server(&mut pool.acquire().await.unwrap()).await;
    let ended: bool =
        sqlx::query_scalar("select pg_terminate_backend($1, 5000)").bind(it).fetch_one(&other).await.unwrap();
    assert!(ended);
    sqlx::query("select 1").execute(&pool).await.unwrap_err();
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_connection_that_was_cut_while_it_was_idle_is_not_used() {
    let (pool, other) = (one(), one());
    let it = server(&mut pool.acquire().await.unwrap()).await;
    tokio::time::sleep(UNASKED).await;
    sqlx::query("select pg_terminate_backend($1, 5000)").bind(it).execute(&other).await.unwrap();
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}
