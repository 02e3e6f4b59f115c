//! Results are written, many at a time, whatever the database is doing meanwhile.

use std::sync::Arc;
use std::time::Duration;
use std::{future, io, thread};

use oarlock_outbox::record::{self, Finished, Verdict};
use oarlock_outbox::{AFTER_A_CONFLICT, Kind, PgPool, cause, is_about_the_data, is_conflict};
use oarlock_service::database::Patience;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::claim_loop::Recordable;
use crate::metrics::Metrics;
use crate::slots::Slot;
use crate::wake::Bells;

/// Results written in one transaction.
const BATCH: usize = 256;

/// How often results are written together in vain, since somebody holds a row of one, before each is left to itself.
const CONFLICTS: u32 = 3;

/// How many of those are tried at once: whoever waits for a row has a connection meanwhile.
const APART: usize = 2;

/// How long a stopping worker goes on trying to write its last results; their leases end by themselves.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// What the recorder needs.
#[derive(Debug, Clone)]
pub struct Recorder {
    /// For results that are written together.
    pub pool: PgPool,
    /// For those that are written apart.
    pub shared: PgPool,
    pub bells: Arc<Bells>,
    pub metrics: Arc<Metrics>,
    pub shutdown: CancellationToken,
}

/// Why results were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    /// Postgres does not take one of them.
    Data,
    /// Somebody holds a row of one of them: another worker for a moment, or an operator whose transaction is open.
    Held,
    /// The worker is stopping and the database is away.
    Stopping,
}

impl Recorder {
    /// Writes results until all loops have ended and everything is written, which is then told.
    ///
    /// In a thread of its own: among the calls it would wait for their turns whenever Postgres answers, and their slots for it.
    ///
    /// # Errors
    /// When the machine gives no thread.
    pub fn start(self, results: mpsc::Receiver<Recordable>) -> io::Result<oneshot::Receiver<()>> {
        let (ended, end) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let record = move || {
            runtime.block_on(async {
                self.run(results).await;
                // Who does not wait for it is stopping in a hurry.
                let _ = ended.send(());
                // Connections that were made here may be in the hands of others.
                future::pending::<()>().await;
            })
        };
        thread::Builder::new().name("recorder".to_owned()).spawn(record)?;
        Ok(end)
    }

    async fn run(self, mut results: mpsc::Receiver<Recordable>) {
        let mut batch = Vec::with_capacity(BATCH);
        let (apart, turns) = (TaskTracker::new(), Arc::new(Semaphore::new(APART)));
        while results.recv_many(&mut batch, BATCH).await > 0 {
            let (results, slots): (Vec<Finished>, Vec<Option<Slot>>) = batch.drain(..).unzip();
            match self.write_together(&results).await {
                Ok(()) => {
                    drop(slots);
                    self.ring(&results);
                }
                // One must not hold up the others.
                Err(GivenUp::Data | GivenUp::Held) => {
                    for (result, slot) in results.into_iter().zip(slots) {
                        apart.spawn(self.clone().write_apart(result, slot, Arc::clone(&turns)));
                    }
                }
                Err(GivenUp::Stopping) => {}
            }
        }
        apart.close();
        apart.wait().await;
    }

    async fn write_together(&self, results: &[Finished]) -> Result<(), GivenUp> {
        for _ in 1..CONFLICTS {
            match self.write(&self.pool, results).await {
                Err(GivenUp::Held) => sleep(AFTER_A_CONFLICT).await,
                written => return written,
            }
        }
        self.write(&self.pool, results).await
    }

    /// Writes a result however long its row is held, unless its claim is lost meanwhile. If Postgres does not take it, writes that it
    /// cannot be stored.
    async fn write_apart(self, mut result: Finished, slot: Option<Slot>, turns: Arc<Semaphore>) {
        let (mut patience, mut tries) = (Patience::default(), LastTries::default());
        let mut is_said = false;
        loop {
            let turn = turns.acquire().await.expect("nobody closes it");
            let written = match record::is_still_claimed(&self.shared, &result).await {
                Ok(false) => {
                    self.count(std::slice::from_ref(&result), &[result.action_id()]);
                    return;
                }
                // Who cannot be asked will be told all the same.
                Ok(true) | Err(_) => self.write(&self.shared, std::slice::from_ref(&result)).await,
            };
            drop(turn);
            match written {
                Ok(()) => break,
                Err(GivenUp::Held) => {
                    if tries.are_over(&self.shutdown) {
                        return give_up(1);
                    }
                    if patience.is_fresh() {
                        tracing::warn!(action_id = %result.action_id(), "somebody holds the row of an action that has ended: its result waits");
                    }
                    sleep(patience.delay()).await;
                }
                Err(GivenUp::Data) if !is_said => {
                    tracing::error!(action_id = %result.action_id(), "the result of an action cannot be stored");
                    let dead = Verdict::Dead("its result cannot be stored: see the worker's log".to_owned());
                    result = result.instead(dead);
                    is_said = true;
                }
                Err(GivenUp::Data | GivenUp::Stopping) => return,
            }
        }
        drop(slot);
        self.ring(&[result]);
    }

    /// Writes results, all or none, however long the database is away.
    async fn write(&self, pool: &PgPool, results: &[Finished]) -> Result<(), GivenUp> {
        let (mut patience, mut tries) = (Patience::default(), LastTries::default());
        loop {
            match record::record(pool, results).await {
                Ok(lost) => {
                    self.count(results, &lost);
                    return Ok(());
                }
                Err(error) if is_conflict(&error) => return Err(GivenUp::Held),
                Err(error) if is_about_the_data(&error) => return Err(GivenUp::Data),
                Err(error) => {
                    if patience.is_fresh() {
                        tracing::warn!(error = %cause(&error), results = results.len(), "results wait for the database");
                    }
                    if tries.are_over(&self.shutdown) {
                        give_up(results.len());
                        return Err(GivenUp::Stopping);
                    }
                    sleep(patience.delay()).await;
                }
            }
        }
    }

    fn count(&self, results: &[Finished], lost: &[Uuid]) {
        for result in results {
            if lost.contains(&result.action_id()) {
                tracing::warn!(action_id = %result.action_id(), "the claim was lost to another worker; the result is dropped");
                self.metrics.lost(result.kind());
            } else {
                self.metrics.recorded(result);
            }
        }
    }

    /// What waited for the same customer may be claimed now; what a look-up was for may be planned.
    fn ring(&self, results: &[Finished]) {
        for kind in results.iter().map(Finished::kind) {
            if kind == Kind::PaddleCustomer {
                self.bells.planner.notify_one();
            }
            self.bells.of(kind.destination()).notify_one();
        }
    }
}

/// The time that is left once the worker is told to stop.
#[derive(Debug, Default)]
struct LastTries(Option<Instant>);

impl LastTries {
    fn are_over(&mut self, shutdown: &CancellationToken) -> bool {
        shutdown.is_cancelled() && *self.0.get_or_insert_with(|| Instant::now() + LAST_TRIES) <= Instant::now()
    }
}

fn give_up(results: usize) {
    tracing::error!(results, "results could not be written: their actions will be run again");
}
