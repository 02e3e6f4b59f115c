//! Verified alerts are committed, many at a time.
//!
//! Group commit: while a commit is under way the next batch gathers, so a lone alert waits for nothing and a burst shares the
//! cost of reaching the disk. Each thread of the webhook has a queue, a committer and a connection of its own: no alert waits
//! for another thread to wake up, and while one thread's commit waits for the disk the others go on. Queues are bounded, in
//! alerts and all together in bytes; what does not fit is refused at once.

use std::iter;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::rt;
use oarlock_outbox::pool::Connection;
use oarlock_outbox::received::NewAlert;
use oarlock_outbox::store::{self, Stored, Tell};
use oarlock_outbox::{PgPool, TraceParent, cause, is_about_the_data, is_conflict, is_connection_lost};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{sleep, timeout};

use crate::signature::Verified;

/// Alerts that may wait in a thread. At 1,000 commits a second of 256 alerts each this is a few milliseconds' worth.
const QUEUE: usize = 1024;
/// Kilobytes that may wait or be under way, in all threads together.
const ROOM_KB: usize = 16 * 1024;
/// Alerts in one statement.
const BATCH: usize = 256;
/// Between two notifications of the workers; whose alert is committed by itself is told of in that commit.
const BETWEEN_NOTIFICATIONS: Duration = Duration::from_millis(2);
/// After this the workers are left to look by themselves: a receiver that stops waits for no more.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// A thread's way into the outbox.
#[derive(Debug)]
pub struct Intake {
    queue: mpsc::Sender<Waiting>,
    common: Common,
}

/// What the intakes of all threads have in common.
#[derive(Debug, Clone)]
pub struct Common {
    room: Arc<Semaphore>,
    commits_under_way: Arc<AtomicUsize>,
    news: watch::Sender<()>,
}

impl Common {
    /// The task wakes the workers, and ends when nothing has this in common any more.
    pub fn new(pool: PgPool) -> (Self, JoinHandle<()>) {
        let (news, told) = watch::channel(());
        let waking = tokio::spawn(wake_workers(pool, told));
        (Self { room: Arc::new(Semaphore::new(ROOM_KB)), commits_under_way: Arc::default(), news }, waking)
    }
}

/// Why an alert was not stored; Paddle may send it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("too many alerts are waiting to be committed")]
    Full,
    #[error("the database did not take it")]
    Database,
    #[error("it was not committed in time")]
    TooSlow,
}

#[derive(Debug)]
struct Waiting {
    alert: NewAlert,
    answer: oneshot::Sender<Result<Stored, Unavailable>>,
    _room: OwnedSemaphorePermit,
}

impl Intake {
    /// Starts the committer of the thread that this is called in. It uses one connection of the pool at a time, and ends with the
    /// intake or with the thread.
    pub fn start(pool: PgPool, common: Common) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        rt::spawn(commit_batches(pool, waiting, common.clone()));
        Self { queue, common }
    }

    /// Stores an alert with its place in a trace; the answer comes after the commit.
    ///
    /// # Errors
    /// When the queue is full, or the database did not take it.
    pub async fn store(&self, verified: Verified, trace: Option<TraceParent>) -> Result<Stored, Unavailable> {
        let alert = NewAlert { trace_parent: trace, ..verified.into_alert() };
        // The body, and what Postgres is sent of it: about three times the body.
        // One that is larger than all the room there is may have it to itself.
        let kilobytes = (alert.body.len() * 3 / 1024 + 1).min(ROOM_KB);
        let kilobytes = u32::try_from(kilobytes).expect("at most the room");
        let room = Arc::clone(&self.common.room).try_acquire_many_owned(kilobytes).map_err(|_| Unavailable::Full)?;
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { alert, answer, _room: room }).map_err(|_| Unavailable::Full)?;
        answered.await.unwrap_or(Err(Unavailable::Database))
    }
}

async fn commit_batches(pool: PgPool, mut waiting: mpsc::Receiver<Waiting>, common: Common) {
    let Common { commits_under_way, news, .. } = common;
    let mut batch = Vec::with_capacity(BATCH);
    while gather(&mut waiting, &mut batch).await {
        // Whose time is up has been answered 503 and will be sent again: in a jam, make way for those still waiting.
        batch.retain(|waiting| !waiting.answer.is_closed());
        if !batch.is_empty() {
            // A commit by itself wakes the workers itself, which is quickest. One of many leaves that to whoever tells once for
            // all of them, or each would wait for the one before it to be on disk.
            let tell = if commits_under_way.fetch_add(1, Ordering::Relaxed) == 0 { Tell::Now } else { Tell::Later };
            let is_news = commit(&pool, mem::replace(&mut batch, Vec::with_capacity(BATCH)), tell).await;
            commits_under_way.fetch_sub(1, Ordering::Relaxed);
            if is_news {
                news.send_replace(());
            }
        }
    }
}

/// Waits for an alert, and then for those of all requests that have come to this thread by now; returns whether there are any.
///
/// While there is something to verify nobody waits for the disk in vain, and what a commit costs is shared by more alerts.
async fn gather(waiting: &mut mpsc::Receiver<Waiting>, batch: &mut Vec<Waiting>) -> bool {
    let mut come = waiting.recv_many(batch, BATCH).await;
    while come > 0 {
        yield_now().await;
        let before = batch.len();
        batch.extend(iter::from_fn(|| waiting.try_recv().ok()).take(BATCH - before));
        come = batch.len() - before;
    }
    !batch.is_empty()
}

/// Tells the workers that there is news, beside the commits: once for however many there were meanwhile. In a burst there always
/// are some, and a notification is a transaction like theirs: so it waits for a few more of them.
async fn wake_workers(pool: PgPool, mut news: watch::Receiver<()>) {
    while news.changed().await.is_ok() {
        let notified = timeout(NOTIFY_TIMEOUT, store::notify(&pool)).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if let Err(error) = notified {
            tracing::debug!(error = %cause(&error), "failed to wake the workers; they look by themselves");
        }
        sleep(BETWEEN_NOTIFICATIONS).await;
    }
}

/// Commits a batch and answers; returns whether there was anything new that no worker has been told of.
async fn commit(pool: &PgPool, batch: Vec<Waiting>, mut tell: Tell) -> bool {
    let mut alerts = Vec::with_capacity(batch.len());
    let mut callers = Vec::with_capacity(batch.len());
    for Waiting { alert, answer, _room } in batch {
        alerts.push(alert);
        callers.push((answer, _room));
    }
    let mut stored = store_all(pool, &alerts, &mut tell).await;
    // After that the pool uses no connection of before, and a new one may do. It is safe also if the first try was committed:
    // what is inserted again is then found stored.
    let again = stored.as_ref().is_err_and(is_connection_lost);
    if again {
        stored = store_all(pool, &alerts, &mut tell).await;
    }
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            fail(callers.into_iter().map(|(answer, _)| answer), &error);
            return false;
        }
    };
    // After a second try the news may be what the first one has stored.
    let mut any_new = again;
    for ((answer, _), stored) in callers.into_iter().zip(stored) {
        any_new |= stored == Ok(Stored::New);
        // Who has given up meanwhile has had a 503; Paddle's repeat will be found stored.
        let _ = answer.send(stored);
    }
    any_new && tell == Tell::Later
}

async fn store_all(
    pool: &PgPool,
    alerts: &[NewAlert],
    tell: &mut Tell,
) -> Result<Vec<Result<Stored, Unavailable>>, sqlx::Error> {
    insert(&mut pool.acquire().await?, alerts, tell).await
}

/// Inserts all, or, if something about the alerts themselves is refused, each for itself: one must not sink the others. What
/// cannot tell the workers is left to be told later.
async fn insert(
    connection: &mut Connection,
    alerts: &[NewAlert],
    tell: &mut Tell,
) -> Result<Vec<Result<Stored, Unavailable>>, sqlx::Error> {
    let mut result = store::insert(connection, alerts, *tell).await;
    if result.as_ref().is_err_and(is_conflict) {
        result = store::insert(connection, alerts, *tell).await;
    }
    // Somebody listens and never reads, and there is no room for one more notification: that is nothing to an alert.
    if *tell == Tell::Now && result.as_ref().is_err_and(is_about_the_data) {
        *tell = Tell::Later;
        result = store::insert(connection, alerts, *tell).await;
    }
    match result {
        Err(error) if is_about_the_data(&error) && alerts.len() > 1 => {
            let mut each = Vec::with_capacity(alerts.len());
            for alert in alerts {
                each.push(match store::insert(connection, std::slice::from_ref(alert), *tell).await {
                    Ok(stored) => Ok(stored[0]),
                    Err(error) if is_connection_lost(&error) => return Err(error),
                    Err(error) => {
                        tracing::error!(alert_id = alert.alert_id, error = %cause(&error), "the database refuses this alert");
                        Err(Unavailable::Database)
                    }
                });
            }
            Ok(each)
        }
        stored => Ok(stored?.into_iter().map(Ok).collect()),
    }
}

fn fail(callers: impl Iterator<Item = oneshot::Sender<Result<Stored, Unavailable>>>, error: &sqlx::Error) {
    let mut alerts = 0;
    for answer in callers {
        alerts += 1;
        let _ = answer.send(Err(Unavailable::Database));
    }
    tracing::error!(alerts, error = %cause(error), "failed to store alerts");
}
