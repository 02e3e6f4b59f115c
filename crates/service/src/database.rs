//! Postgres as it is configured, and patience with it.

use std::str::FromStr;
use std::time::Duration;

use oarlock_outbox::{PgPool, schema};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::subscriber::NoSubscriber;
use url::Url;

use crate::config::Database;

/// Checks a connection URL; the error says what is wrong and never quotes the URL, which may hold a password.
pub(crate) fn parse_url(url: &SecretString) -> Result<PgConnectOptions, String> {
    let url = url.expose_secret();
    let wrong = "must be a URL such as \"postgres://user@host:5432/database\": one host, the characters / # ? @ % of a password as \
                 %2F %23 %3F %40 %25, and options with values that libpq knows";
    let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let has_one_host = Url::parse(url).is_ok_and(|url| !url.host_str().unwrap_or_default().contains(','));
    if !(is_postgres && has_one_host) {
        return Err(wrong.to_owned());
    }
    // It says of an option that it does not know what it was set to, which may be a password.
    let quietly = || PgConnectOptions::from_str(url);
    tracing::subscriber::with_default(NoSubscriber::new(), quietly).map_err(|_| wrong.to_owned())
}

/// The options of a connection URL that are not heeded, such as libpq's `target_session_attrs`.
fn unheeded(url: &SecretString) -> Vec<String> {
    /// What sqlx knows, in both spellings where it has two.
    const HEEDED: [&str; 18] = [
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    let url = Url::parse(url.expose_secret());
    let names = url.iter().flat_map(Url::query_pairs).map(|(name, _)| name.into_owned());
    names.filter(|name| !HEEDED.contains(&name.as_str()) && !name.starts_with("options[")).collect()
}

/// How to connect.
///
/// # Panics
/// If the URL was not checked by the configuration.
pub fn options(database: &Database, program: &str) -> PgConnectOptions {
    for option in unheeded(&database.url) {
        tracing::warn!(option, "an option of database.url is not heeded");
    }
    // A number read back as text is exact without it, and poolers refuse what they do not know.
    let options = parse_url(&database.url).expect("the configuration checks the URL").extra_float_digits(None);
    match options.get_application_name() {
        Some(_) => options,
        None => options.application_name(program),
    }
}

/// A pool that connects when it is first used: a database that is away fails statements, not the start.
///
/// # Panics
/// If the URL was not checked by the configuration.
pub fn pool(database: &Database, program: &str) -> PgPool {
    pool_with(database, program, None)
}

/// The same, with statements that are executed first on each connection, unless a pooler shares it with others.
///
/// # Panics
/// If the URL was not checked by the configuration.
pub fn pool_with(database: &Database, program: &str, first: Option<&'static str>) -> PgPool {
    PgPool::connect_lazy(database.max_connections, options(database, program), first)
}

/// Applies pending migrations as soon as the database is there, however long that takes, in a task of its own. What is returned
/// says when that was tried for the first time.
pub fn migrate(pool: PgPool, shutdown: CancellationToken) -> oneshot::Receiver<()> {
    let (tried, first_try) = oneshot::channel();
    tokio::spawn(async move {
        let (mut patience, mut tried) = (Patience::default(), Some(tried));
        loop {
            let migrated = schema::migrate(&pool).await;
            match &migrated {
                Ok(()) => tracing::info!("the database is migrated"),
                Err(error) => tracing::warn!(error = schema::cause(error), "the database cannot be migrated yet"),
            }
            // Not everybody waits for it.
            let _ = tried.take().map(|tried| tried.send(()));
            if migrated.is_ok() {
                return;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(patience.delay()) => {}
            }
        }
    });
    first_try
}

/// Delays between tries of something that must succeed in the end: from a tenth of a second, doubling to five seconds.
#[derive(Debug)]
pub struct Patience {
    next: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(Self::LONGEST);
        delay
    }

    /// It went well: start over.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing has failed since the last success.
    pub fn is_fresh(&self) -> bool {
        self.next == Self::FIRST
    }
}
