//! A NOTIFY wakes whoever has work; the poll is the truth.
//!
//! Without notifications (a pooler in transaction mode has none for us) everything still happens, a poll later.

use std::pin::pin;
use std::time::Duration;

use oarlock_outbox::{CHANNEL, Destination, PgPool, cause};
use oarlock_service::database::Patience;
use sqlx::postgres::PgListener;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long nothing is heard before it is asked whether anybody is there: a way on which nothing goes may be forgotten by what
/// lies on it, without a word to either end.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// One bell for each loop. A bell that is rung while its loop is busy is heard when the loop listens again.
#[derive(Debug, Default)]
pub struct Bells {
    pub planner: Notify,
    jira: Notify,
    slack: Notify,
    paddle: Notify,
}

impl Bells {
    pub fn of(&self, destination: Destination) -> &Notify {
        match destination {
            Destination::Jira => &self.jira,
            Destination::Slack => &self.slack,
            Destination::Paddle => &self.paddle,
        }
    }

    pub fn ring_all_destinations(&self) {
        for destination in Destination::ALL {
            self.of(*destination).notify_one();
        }
    }
}

/// Listens until the token is cancelled, through any absence of the database.
pub async fn listen(pool: PgPool, bells: &Bells, shutdown: CancellationToken) {
    if pool.straight().is_none() {
        // The server that heard LISTEN would be another client's in the next moment.
        return tracing::info!("through a pooler: no notifications, the poll alone");
    }
    let mut patience = Patience::default();
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return,
            result = listen_once(&pool, bells, &mut patience) => result,
        };
        if let Err(error) = &result
            && patience.is_fresh()
        {
            tracing::warn!(error = %cause(error), "not listening for notifications; the poll goes on");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(patience.delay()) => {}
        }
        // It did listen: if it cannot any more, that is news.
        if result.is_ok() {
            patience.reset();
        }
    }
}

/// Listens until the connection is lost, or others learn that it leads to where nobody notifies any more: after a failover the old
/// primary may go on answering.
async fn listen_once(pool: &PgPool, bells: &Bells, patience: &mut Patience) -> Result<(), sqlx::Error> {
    // A connection for this alone: what has fallen silent is waited for as it is let go of.
    let own = pool.apart(1);
    let Some(straight) = own.straight() else { return Ok(()) };
    let mut given_up = pin!(pool.until_given_up());
    let mut listener = in_time(async {
        let mut listener = PgListener::connect_with(straight).await?;
        listener.listen(CHANNEL).await?;
        // Where nobody writes nobody notifies.
        let read_only = sqlx::query_scalar("select current_setting('transaction_read_only')::bool");
        if read_only.fetch_one(&mut listener).await? {
            return Err(sqlx::Error::Protocol("the database takes no writes".to_owned()));
        }
        Ok(listener)
    })
    .await?;
    patience.reset();
    // What was notified while nobody listened is not told again.
    bells.planner.notify_one();
    bells.ring_all_destinations();
    loop {
        let notification = tokio::select! {
            notification = listener.try_recv() => notification?,
            () = &mut given_up => None,
            () = sleep(SILENCE) => {
                in_time(sqlx::query("select 1").execute(&mut listener)).await?;
                continue;
            }
        };
        let Some(notification) = notification else { return Ok(()) };
        match notification.payload().parse() {
            Ok(destination) => bells.of(destination).notify_one(),
            Err(_) => bells.planner.notify_one(),
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(sqlx::Error::Protocol("no answer".to_owned())))
}
