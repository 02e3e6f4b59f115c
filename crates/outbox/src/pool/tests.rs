use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::*;

const PATIENCE: Duration = Duration::from_millis(100);

/// The Postgres of all tests.
fn postgres() -> PgConnectOptions {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL names a Postgres: run `make test`");
    url.parse().expect("DATABASE_URL is the URL of a Postgres")
}

fn one() -> PgPool {
    PgPool::connect_lazy(1, postgres(), None)
}

/// Which process of Postgres is at the other end.
async fn server(connection: &mut Connection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// Ends a process of Postgres.
async fn cut(server: i32) {
    let cut = sqlx::query_scalar("select pg_terminate_backend($1, 5000)").bind(server);
    let ended: bool = cut.fetch_one(&one()).await.unwrap();
    assert!(ended);
}

/// A way to Postgres on which whatever is connected falls silent when it is told to; what comes later gets through.
async fn way_that_falls_silent() -> (PgConnectOptions, watch::Sender<()>) {
    let to = postgres();
    let target = (to.get_host().to_owned(), to.get_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silence = watch::Sender::new(());
    let silenced = silence.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, mut silenced) = (target.clone(), silenced.subscribe());
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = silenced.changed() => future::pending().await,
                }
            });
        }
    });
    (to.host("127.0.0.1").port(port), silence)
}

#[tokio::test]
async fn idle_connections_whose_way_fell_silent_are_left_together_and_in_time() {
    let (way, silence) = way_that_falls_silent().await;
    let pool = PgPool::connect_lazy(3, way, None);
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    drop(held);
    tokio::time::sleep(UNASKED).await;
    silence.send_replace(());
    let started = Instant::now();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let took = started.elapsed();
    assert!(took < 5 * SIGN_OF_LIFE / 2, "each was waited for: {took:?}");
    drop(held);
    sqlx::query("select 1").execute(&pool).await.unwrap();
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
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_connection_that_was_cut_is_followed_by_another() {
    let pool = one();
    let mut held = pool.acquire().await.unwrap();
    let it = server(&mut held).await;
    cut(it).await;
    sqlx::query("select 1").execute(&mut held).await.unwrap_err();
    drop(held);
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}

#[tokio::test]
async fn a_connection_that_was_cut_while_it_was_idle_is_not_used() {
    let pool = one();
    let it = server(&mut pool.acquire().await.unwrap()).await;
    tokio::time::sleep(UNASKED).await;
    cut(it).await;
    assert_ne!(server(&mut pool.acquire().await.unwrap()).await, it);
}
