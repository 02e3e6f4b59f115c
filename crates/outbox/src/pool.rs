//! The way to Postgres: sqlx's pool, with four promises more.
//!
//! - Nobody waits for an answer without an end: a way that falls silent is left, and what was connected over it is not used again.
//! - A standby is not used: it may know less than what was committed, and takes no writes.
//! - A connection that leads to what takes no writes any more is not kept, though it goes on answering.
//! - With `statement-cache-capacity=0` in the URL it may lead through a pooler in transaction mode (PgBouncer), which gives each
//!   transaction another server. sqlx prepares a statement in one round trip and runs it in the next, so there each
//!   statement has a transaction of its own and no name, and nobody listens for notifications.

use std::fmt::{self, Debug};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, BoxStream, Stream};
use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Either, Error, Execute, Executor, PgConnection, Postgres,
    SqlSafeStr, SqlStr,
};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::is_connection_lost;

/// How long a statement waits for a free connection, or for a new one, before it fails for now.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a statement may take and may wait for a lock, migrations apart. It is Postgres that ends it: who is left in the middle
/// goes on waiting there, and does what it was asked to when nobody wants it any more.
const LIMITS: &str =
    "set lock_timeout = '10s'; set statement_timeout = '25s'; set default_transaction_isolation = 'read committed'";

/// The same for a transaction, where the session may be another's in the next moment.
const BEGIN_WITH_LIMITS: &str =
    "begin isolation level read committed; set local lock_timeout = '10s'; set local statement_timeout = '25s'";

/// Whoever has no answer by then gets none any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may have been idle and still be used unasked.
const UNASKED: Duration = Duration::from_secs(1);

/// How long a connection is used, as sqlx's pool has it as well.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Connections, made when they are needed: a database that is away fails statements, not the start.
#[derive(Debug, Clone)]
pub struct PgPool {
    pool: sqlx::PgPool,
    way: Arc<Way>,
}

/// What all connections of a pool have in common.
#[derive(Debug)]
struct Way {
    through_pooler: bool,
    first: Option<&'static str>,
    /// A statement failed then because of where its connection leads: what was connected before is not to be used again.
    given_up: watch::Sender<Option<Instant>>,
}

/// A connection of the pool's, which it goes back to when it is dropped.
pub struct Connection {
    /// None once it is given up.
    inner: Option<PoolConnection<Postgres>>,
    /// Begun, and not committed.
    in_transaction: bool,
    way: Arc<Way>,
}

/// A connection that is kept from one use to the next, as long as it is good.
///
/// Given back it would be asked each time whether it is alive: a round trip before the next use, and some seconds without any if the
/// way there falls silent meanwhile.
#[derive(Debug)]
pub struct Kept {
    pool: PgPool,
    connection: Option<Connection>,
    since: Instant,
    used: Instant,
}

/// A transaction, which is rolled back when it is dropped.
#[derive(Debug)]
pub struct Transaction(Connection);

impl PgPool {
    /// `first` is executed once on each connection, unless others get to use it after us.
    pub fn connect_lazy(max_connections: u32, options: PgConnectOptions, first: Option<&'static str>) -> Self {
        let url = options.to_url_lossy();
        let through_pooler = url.query_pairs().any(|(key, value)| key == "statement-cache-capacity" && value == "0");
        let first = first.filter(|_| !through_pooler);
        let way = Arc::new(Way { through_pooler, first, given_up: watch::Sender::default() });
        Self { pool: way.connect_lazy(max_connections, options), way }
    }

    /// Connections of the same kind, in a pool of their own: for a thread, since a connection belongs to the one it was made in and
    /// to wait for it in another costs a wake-up; or for one purpose. Where they lead is learnt by all of them together.
    #[must_use]
    pub fn apart(&self, max_connections: u32) -> Self {
        let options = PgConnectOptions::clone(&self.pool.connect_options());
        Self { pool: self.way.connect_lazy(max_connections, options), way: Arc::clone(&self.way) }
    }

    /// One of its connections, made when it is first used.
    pub fn keep(self) -> Kept {
        let now = Instant::now();
        Kept { pool: self, connection: None, since: now, used: now }
    }

    /// For what outlasts a statement, such as LISTEN; none through a pooler.
    pub fn straight(&self) -> Option<&sqlx::PgPool> {
        (!self.way.through_pooler).then_some(&self.pool)
    }

    /// Waits until a statement fails because of where its connection leads: others are no better.
    pub fn until_given_up(&self) -> impl Future<Output = ()> + use<> {
        let mut given_up = self.way.given_up.subscribe();
        async move {
            // The sender lives as long as there is a pool.
            let _ = given_up.changed().await;
        }
    }

    /// # Errors
    /// When there is none in time.
    pub async fn acquire(&self) -> Result<Connection, Error> {
        let inner = Some(self.pool.acquire().await.map_err(in_plain_words)?);
        Ok(Connection { inner, in_transaction: false, way: Arc::clone(&self.way) })
    }

    /// # Errors
    /// When the database is away.
    pub async fn begin(&self) -> Result<Transaction, Error> {
        self.begin_with("").await
    }

    /// Begins with statements of the caller's, which may overrule the limits.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn begin_with(&self, first: &'static str) -> Result<Transaction, Error> {
        let begin = if self.way.through_pooler { BEGIN_WITH_LIMITS } else { "begin" };
        let mut connection = self.acquire().await?;
        connection.in_transaction = true;
        connection.say(AssertSqlSafe(format!("{begin}; {first}"))).await?;
        Ok(Transaction(connection))
    }

    /// What a transaction that sqlx itself runs begins with: no limits of time, and no statement names of whoever had this server
    /// before.
    pub(crate) fn begin_with_names(&self) -> &'static str {
        if self.way.through_pooler {
            "begin; deallocate all"
        } else {
            "begin; set local lock_timeout = 0; set local statement_timeout = 0"
        }
    }
}

impl Way {
    fn connect_lazy(self: &Arc<Self>, max_connections: u32, options: PgConnectOptions) -> sqlx::PgPool {
        let (first, through_pooler) = (self.first, self.through_pooler);
        let (acquiring, releasing) = (Arc::clone(self), Arc::clone(self));
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    refuse_standby(connection).await?;
                    if !through_pooler {
                        connection.execute(LIMITS).await?;
                    }
                    match first {
                        Some(first) => connection.execute(first).await.map(drop),
                        None => Ok(()),
                    }
                })
            })
            // A connection that died while idle is found before a statement is lost on it. One that was in use a moment ago is
            // not asked: that would double the round trips of a busy program.
            .test_before_acquire(false)
            .before_acquire(move |connection, state| {
                let is_good = acquiring.is_good(state.age);
                Box::pin(async move {
                    if is_good && state.idle_for > UNASKED {
                        connection.ping().await?;
                    }
                    Ok(is_good)
                })
            })
            .after_release(move |_, state| {
                let is_good = releasing.is_good(state.age);
                Box::pin(async move { Ok(is_good) })
            })
            .idle_timeout(Duration::from_secs(600))
            .connect_lazy_with(options)
    }

    /// What Postgres says, if it says it in time.
    async fn answer<T>(&self, answering: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let silence = || Error::Io(io::Error::new(io::ErrorKind::TimedOut, "Postgres does not answer"));
        let answer = timeout(ANSWER_TIMEOUT, answering).await.unwrap_or_else(|_| Err(silence()));
        if answer.as_ref().is_err_and(is_connection_lost) {
            self.given_up.send_replace(Some(Instant::now()));
        }
        answer
    }

    fn is_good(&self, age: Duration) -> bool {
        self.given_up.borrow().is_none_or(|then| then.elapsed() > age)
    }
}

fn in_plain_words(error: Error) -> Error {
    match error {
        // The kind that shows its text alone, and is no connection that was lost.
        Error::PoolTimedOut => Error::InvalidArgument(
            "no connection in time: Postgres is away or refuses, or all of database.max_connections are in use"
                .to_owned(),
        ),
        error => error,
    }
}

async fn refuse_standby(connection: &mut PgConnection) -> Result<(), Error> {
    // As text, since what was not prepared comes as text.
    let row = sqlx::raw_sql("select pg_is_in_recovery()::text as answer").fetch_one(connection).await?;
    match sqlx::Row::try_get::<String, _>(&row, "answer")?.as_str() {
        "false" => Ok(()),
        _ => Err(Error::Protocol("it is a standby".to_owned())),
    }
}

impl Connection {
    /// Closes it now: a statement may still be running on it, and nothing more can be asked.
    pub fn give_up(mut self) {
        if let Some(connection) = self.inner.take() {
            drop(connection.detach());
        }
    }

    /// As sqlx knows it, for what cannot go another way.
    pub(crate) fn raw(&mut self) -> &mut PgConnection {
        self.inner.as_mut().expect("it is given up by value")
    }

    /// Executes what needs no preparation.
    async fn say(&mut self, statements: impl SqlSafeStr + Send) -> Result<(), Error> {
        let way = Arc::clone(&self.way);
        way.answer(self.raw().execute(statements)).await.map(drop)
    }

    /// Through a pooler, begins a transaction for a statement by itself, if there is none; returns whether it did.
    async fn begin_alone(&mut self) -> Result<bool, Error> {
        if self.in_transaction {
            return Ok(false);
        }
        self.in_transaction = true;
        self.raw().execute(BEGIN_WITH_LIMITS).await?;
        Ok(true)
    }

    /// Ends it, if it was begun.
    async fn end_alone(&mut self, was_begun: bool, went_well: bool) -> Result<(), Error> {
        if was_begun {
            let ended = self.raw().execute(if went_well { "commit" } else { "rollback" }).await;
            // Also by a commit that fails.
            self.in_transaction = false;
            ended?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(connection) = self.inner.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(give_back(connection, self.in_transaction))),
            Err(_) => drop(connection.detach()),
        }
    }
}

/// The pool asks whether a connection is alive before it takes it back, and would wait for the answer without an end.
async fn give_back(mut connection: PoolConnection<Postgres>, in_transaction: bool) {
    if in_transaction {
        let ended = timeout(ACQUIRE_TIMEOUT, connection.execute("rollback")).await;
        if !ended.is_ok_and(|ended| ended.is_ok()) {
            return drop(connection.detach());
        }
    }
    // One that does not answer is closed as this is given up.
    let _ = timeout(ACQUIRE_TIMEOUT, connection.return_to_pool()).await;
}

impl Kept {
    /// The connection, or another one if it is good no more.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn get(&mut self) -> Result<&mut Connection, Error> {
        if !self.is_alive().await {
            self.give_up();
        }
        self.used = Instant::now();
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => {
                self.since = self.used;
                Ok(none.insert(self.pool.acquire().await?))
            }
        }
    }

    async fn is_alive(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let age = self.since.elapsed();
        age < LIFETIME
            && self.pool.way.is_good(age)
            && (self.used.elapsed() <= UNASKED
                || timeout(ACQUIRE_TIMEOUT, connection.raw().ping()).await.is_ok_and(|answer| answer.is_ok()))
    }

    /// Closes it now: a statement may still be running on it, and nothing more can be asked.
    pub fn give_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.give_up();
        }
    }
}

impl Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Transaction {
    /// # Errors
    /// When it is unknown whether it was committed.
    pub async fn commit(self) -> Result<(), Error> {
        let Self(mut connection) = self;
        connection.say("commit").await?;
        connection.in_transaction = false;
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

type Answer = Result<Either<PgQueryResult, PgRow>, Error>;

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Answer>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let way = Arc::clone(&self.way);
        let answering = async move {
            if !self.way.through_pooler {
                return self.raw().fetch_many(query).try_collect().await;
            }
            let alone = self.begin_alone().await?;
            let answer = self.raw().fetch_many(Unnamed(query)).try_collect().await;
            let ended = self.end_alone(alone, answer.is_ok()).await;
            answer.and_then(|answer| ended.map(|()| answer))
        };
        streamed(async move { way.answer(answering).await }).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut rows = self.fetch_many(query).try_filter_map(|answer| future::ready(Ok(answer.right())));
        async move { rows.try_next().await }.boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.raw().prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.raw().describe(sql)
    }
}

impl<'p> Executor<'p> for &'p PgPool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Answer>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let answering = async move {
            let mut connection = self.acquire().await?;
            connection.fetch_many(query).try_collect().await
        };
        streamed(answering).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        async move { self.acquire().await?.fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        self.pool.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        self.pool.describe(sql)
    }
}

/// Answers that come all together, the connection being free again.
fn streamed(
    answering: impl Future<Output = Result<Vec<Either<PgQueryResult, PgRow>>, Error>>,
) -> impl Stream<Item = Answer> {
    stream::once(answering.map_ok(|answers| stream::iter(answers.into_iter().map(Ok)))).try_flatten()
}

/// A query whose prepared statement has no name: the next one takes its place.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<sqlx::postgres::PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}
