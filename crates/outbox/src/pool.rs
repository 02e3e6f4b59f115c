//! The way to Postgres: sqlx's connections, with five promises more.
//!
//! - A connection goes from one use to the next without a question in between, unless it was idle. (sqlx's own pool asks each one
//!   that comes back whether it is alive: a round trip for each statement that is by itself.)
//! - Nobody waits for an answer without an end: a way that falls silent is left, and what was connected over it is not used again.
//! - A standby is not used: it may know less than what was committed, and takes no writes.
//! - A connection that leads to what takes no writes any more is not kept, though it goes on answering.
//! - With `statement-cache-capacity=0` in the URL it may lead through a pooler in transaction mode (PgBouncer), which gives each
//!   transaction another server. sqlx prepares a statement in one round trip and runs it in the next, so there each
//!   statement has a transaction of its own and no name, and nobody listens for notifications.

use std::fmt::{self, Debug};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, BoxStream, Stream};
use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::postgres::{
    PgConnectOptions, PgDatabaseError, PgPoolOptions, PgQueryResult, PgRow, PgSeverity, PgStatement, PgTypeInfo,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Either, Error, Execute, Executor, PgConnection, Postgres,
    SqlSafeStr, SqlStr,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
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

/// How long one that was idle, or left amid a statement, has to show that it can be used.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How old a connection may be when it is used again, and how long it may have been idle: as in sqlx's pool.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
const LONGEST_IDLE: Duration = Duration::from_secs(10 * 60);

/// Connections, made when they are needed: a database that is away fails statements, not the start.
#[derive(Debug, Clone)]
pub struct PgPool {
    /// Makes them.
    maker: sqlx::PgPool,
    shelf: Arc<Shelf>,
    way: Arc<Way>,
}

/// Where connections are between two uses.
#[derive(Debug)]
struct Shelf {
    /// As many as there may be connections.
    turns: Arc<Semaphore>,
    /// The one that was used last is at the end.
    idle: Mutex<Vec<Link>>,
}

/// A connection, as sqlx knows it.
#[derive(Debug)]
struct Link {
    connection: PgConnection,
    made: Instant,
    /// Until then, if nobody uses it.
    used: Instant,
}

/// Where connections lead: common to a pool and all that were made apart from it.
#[derive(Debug)]
struct Way {
    through_pooler: bool,
    first: Option<&'static str>,
    /// A statement failed then because of where its connection leads: what was connected before is not to be used again.
    given_up: watch::Sender<Option<Instant>>,
}

/// A connection of the pool's, which it goes back to when it is dropped.
pub struct Connection {
    /// None once it is dropped.
    lent: Option<(Link, Place)>,
    /// Begun, and not committed.
    in_transaction: bool,
    state: State,
    way: Arc<Way>,
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All that was asked is answered.
    Ready,
    /// Something was asked, and nobody has seen the end of the answer.
    Asked,
    /// Nobody knows what is left to read, or nobody is there.
    Lost,
}

/// Where a connection goes, and the right to use one until then.
#[derive(Debug)]
struct Place {
    shelf: Arc<Shelf>,
    _turn: OwnedSemaphorePermit,
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
        way.pool(max_connections, options)
    }

    /// Connections of the same kind, in a pool of their own: for a thread, since a connection belongs to the one it was made in and
    /// to wait for it in another costs a wake-up; or for one purpose. Where they lead is learnt by all of them together.
    #[must_use]
    pub fn apart(&self, max_connections: u32) -> Self {
        Arc::clone(&self.way).pool(max_connections, PgConnectOptions::clone(&self.maker.connect_options()))
    }

    /// For what outlasts a statement, such as LISTEN, beside the connections of this pool; none through a pooler.
    pub fn straight(&self) -> Option<&sqlx::PgPool> {
        (!self.way.through_pooler).then_some(&self.maker)
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
        let in_time = timeout(ACQUIRE_TIMEOUT, self.acquire_in_turn()).await;
        in_time.unwrap_or(Err(Error::PoolTimedOut)).map_err(in_plain_words)
    }

    async fn acquire_in_turn(&self) -> Result<Connection, Error> {
        let _turn = Arc::clone(&self.shelf.turns).acquire_owned().await.expect("nobody closes it");
        let link = match self.shelf.take(&self.way).await {
            Some(link) => link,
            None => Link::new(self.maker.acquire().await?.detach()),
        };
        let lent = Some((link, Place { shelf: Arc::clone(&self.shelf), _turn }));
        Ok(Connection { lent, in_transaction: false, state: State::Ready, way: Arc::clone(&self.way) })
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
    pub(crate) fn begin_unlimited(&self) -> &'static str {
        if self.way.through_pooler {
            "begin; deallocate all"
        } else {
            "begin; set local lock_timeout = 0; set local statement_timeout = 0"
        }
    }
}

impl Way {
    fn pool(self: Arc<Self>, max_connections: u32, options: PgConnectOptions) -> PgPool {
        let (first, through_pooler) = (self.first, self.through_pooler);
        let maker = PgPoolOptions::new()
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
            .connect_lazy_with(options);
        let turns = usize::try_from(max_connections).expect("a number of connections");
        let shelf = Shelf { turns: Arc::new(Semaphore::new(turns)), idle: Mutex::default() };
        PgPool { maker, shelf: Arc::new(shelf), way: self }
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

/// Whether Postgres has refused a statement and is there for the next one. After anything else an answer may be unread, or nobody
/// be there any more; and where a table has changed under a statement that was prepared, it would be refused each time.
fn is_refusal(error: &Error) -> bool {
    /// `feature_not_supported`: "cached plan must not change result type".
    const PREPARED_BEFORE: &str = "0A000";
    let told = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    told.is_some_and(|told| matches!(told.severity(), PgSeverity::Error) && told.code() != PREPARED_BEFORE)
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
    /// As sqlx knows it, for what cannot go another way.
    pub(crate) fn raw(&mut self) -> &mut PgConnection {
        self.state = State::Asked;
        let (link, _) = self.lent.as_mut().expect("it is taken when it is dropped");
        &mut link.connection
    }

    /// Executes what needs no preparation.
    async fn say(&mut self, statements: impl SqlSafeStr + Send) -> Result<(), Error> {
        self.answered(async |connection| connection.raw().execute(statements).await.map(drop)).await
    }

    /// What Postgres says, if it says it in time.
    async fn answered<T>(&mut self, ask: impl AsyncFnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let way = Arc::clone(&self.way);
        let answer = way.answer(ask(self)).await;
        self.state = match &answer {
            Err(error) if !is_refusal(error) => State::Lost,
            _ => State::Ready,
        };
        answer
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
            // Also by a commit that is refused.
            self.in_transaction = ended.as_ref().is_err_and(|error| !is_refusal(error));
            ended?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some((mut link, place)) = self.lent.take() else { return };
        link.used = Instant::now();
        match self.state {
            State::Lost => {}
            State::Ready if !self.in_transaction => place.shelf.put(link),
            State::Ready | State::Asked => {
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(settle(link, self.in_transaction, place));
                }
            }
        }
    }
}

/// Puts a connection away once nothing runs on it any more, or closes it. Until then it counts as one that is used.
async fn settle(mut link: Link, in_transaction: bool, place: Place) {
    let is_settled = if in_transaction {
        is_answered(link.connection.execute("rollback")).await
    } else {
        is_answered(link.connection.ping()).await
    };
    if is_settled {
        place.shelf.put(link);
    }
}

async fn is_answered<T>(asked: impl Future<Output = Result<T, Error>>) -> bool {
    timeout(SIGN_OF_LIFE, asked).await.is_ok_and(|answer| answer.is_ok())
}

impl Shelf {
    /// The one that was used last. If it died while it was idle, that is found before a statement is lost on it; one that was in use
    /// a moment ago is not asked, since that would double the round trips of a busy program.
    async fn take(&self, way: &Way) -> Option<Link> {
        let mut last = self.take_unasked(way)?;
        if last.used.elapsed() <= UNASKED || is_answered(last.connection.ping()).await {
            return Some(last);
        }
        // Those that were used before it are no better.
        self.idle().clear();
        None
    }

    fn take_unasked(&self, way: &Way) -> Option<Link> {
        let mut all = self.idle();
        for old in all.extract_if(.., |link| !link.may_be_used(way)) {
            tokio::spawn(timeout(SIGN_OF_LIFE, old.connection.close()));
        }
        all.pop()
    }

    fn put(&self, link: Link) {
        self.idle().push(link);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn new(connection: PgConnection) -> Self {
        let now = Instant::now();
        Self { connection, made: now, used: now }
    }

    fn may_be_used(&self, way: &Way) -> bool {
        let age = self.made.elapsed();
        age < LIFETIME && self.used.elapsed() < LONGEST_IDLE && way.is_good(age)
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
        let ask = async |connection: &mut Connection| {
            if !connection.way.through_pooler {
                return connection.raw().fetch_many(query).try_collect().await;
            }
            let alone = connection.begin_alone().await?;
            let answer = connection.raw().fetch_many(Unnamed(query)).try_collect().await;
            let ended = connection.end_alone(alone, answer.is_ok()).await;
            answer.and_then(|answer| ended.map(|()| answer))
        };
        streamed(self.answered(ask)).boxed()
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
        async move { self.acquire().await?.raw().prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        async move { self.acquire().await?.raw().describe(sql).await }.boxed()
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
