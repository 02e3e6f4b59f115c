//! A destination's due actions are claimed and run, so many at a time.
//!
//! Each destination has a loop of its own: one that hangs delays no other. While nothing else is due, what is planned is claimed
//! as it is written, and comes from the planner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use oarlock_outbox::claim::{self, Claim, Claimed, Terms};
use oarlock_outbox::record::{self, Attempt, Finished, Verdict};
use oarlock_outbox::{AFTER_A_CONFLICT, Destination, Kind, PgPool, cause, destination, is_about_the_data, is_conflict};
use oarlock_service::database::Patience;
use oarlock_service::trace::{Opening, Role};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use tracing::field::Empty;

use crate::act::{self, Ended, Stop, Vendors};
use crate::bookmark::Bookmark;
use crate::failure::{Failure, Meaning};
use crate::http;
use crate::judge::{self, ATTEMPTS_AT_THE_UNKNOWN, Pause, Told};
use crate::metrics::Metrics;
use crate::retry::Schedule;
use crate::slots::{Place, Slot, Slots};
use crate::wake::Bells;

/// What a loop needs.
#[derive(Debug)]
pub struct Loop {
    pub destination: Destination,
    pub pool: PgPool,
    pub vendors: Arc<Vendors>,
    pub bells: Arc<Bells>,
    pub metrics: Arc<Metrics>,
    pub results: mpsc::Sender<Recordable>,
    pub terms: Terms,
    /// How long an action may run from its claim on: shorter than the lease.
    pub run_time: Duration,
    pub schedule: Schedule,
    pub slots: Slots,
    pub poll_interval: Duration,
    pub shutdown_grace: Duration,
    pub shutdown: CancellationToken,
    pub state: State,
}

/// How far a loop is.
#[derive(Debug, Default)]
pub struct State {
    running: TaskTracker,
    /// Cancelled when what still runs is to be handed back.
    hand_back: CancellationToken,
    /// Nothing that is due was left when it was looked for last.
    caught_up: AtomicBool,
}

/// A result on its way to the recorder, with the slot of its call if there was one: it keeps that until it is written.
pub type Recordable = (Finished, Option<Slot>);

impl Loop {
    /// So many conflicts in a row are none of workers with each other.
    const TRIES: u32 = 5;

    /// Claims and runs until it is told to stop; then lets what runs finish, and hands back what does not in time.
    pub async fn run(self: Arc<Self>) {
        let mut patience = Patience::default();
        let mut bookmark = Bookmark::new(self.poll_interval);
        while !self.shutdown.is_cancelled() {
            let places = self.slots.places();
            let room = places.len();
            let mut wait = self.poll_interval;
            if room > 0 {
                let from = bookmark.open();
                match self.claim(room, from).await {
                    Ok((when, Claimed { claims, buried, cleared, has_more })) => {
                        patience.reset();
                        bookmark.put(cleared);
                        self.note_buried(&buried);
                        // There may be more, or some that lie before what there is no more of.
                        let more = has_more || claims.len() == room || claims.is_empty() && from.is_some();
                        self.state.caught_up.store(!more, Ordering::Relaxed);
                        self.start(when, claims, places);
                        if more && self.slots.room() > 0 {
                            continue;
                        }
                    }
                    Err(error) => {
                        drop(places);
                        if patience.is_fresh() {
                            tracing::warn!(
                                destination = self.destination.as_str(),
                                error = %cause(&error),
                                "claims wait for the database"
                            );
                        }
                        wait = patience.delay();
                    }
                }
            }
            let is_full = self.slots.room() == 0;
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = self.slots.have_room(), if is_full => {}
                () = self.bells.of(self.destination).notified(), if !is_full => {}
                () = tokio::time::sleep(wait), if !is_full => {}
            }
        }
        self.state.running.close();
        if tokio::time::timeout(self.shutdown_grace, self.state.running.wait()).await.is_err() {
            tracing::warn!(
                destination = self.destination.as_str(),
                "shutdown_grace is over: handing back what still runs"
            );
            self.state.hand_back.cancel();
            self.state.running.wait().await;
        }
    }

    /// Places for what is planned in this moment; none if something older is due, or may be.
    pub fn places_for_new(&self) -> Vec<Place> {
        let is_idle = self.state.caught_up.load(Ordering::Relaxed) && !self.shutdown.is_cancelled();
        if is_idle { self.slots.places() } else { Vec::new() }
    }

    /// There is more to do than was taken.
    pub fn wake(&self) {
        self.state.caught_up.store(false, Ordering::Relaxed);
        self.bells.of(self.destination).notify_one();
    }

    /// Runs what was claimed; the leases count from `when` at the latest, and there are as many places at least.
    pub fn start(self: &Arc<Self>, when: Instant, claims: Vec<Claim>, places: Vec<Place>) {
        for (claim, place) in claims.into_iter().zip(places) {
            self.state.running.spawn(Arc::clone(self).run_one(claim, when, place));
        }
    }

    /// Claims what is due; the time is the one from which the leases count at the latest.
    async fn claim(&self, room: usize, from: Option<DateTime<Utc>>) -> Result<(Instant, Claimed), sqlx::Error> {
        let mut tries = 0..Self::TRIES;
        loop {
            // The lease counts from within the statement: a little later than now, so this errs on the safe side.
            let now = Instant::now();
            match claim::claim(&self.pool, self.destination, limit(room), from, &self.terms).await {
                Ok(claimed) => return Ok((now, claimed)),
                // Another worker claimed for the same customer in this instant: look again, it is visible now. Unless somebody
                // holds the alert of an action that is to be buried, which takes a while.
                Err(error) if is_conflict(&error) && tries.next().is_some() => {
                    tokio::time::sleep(AFTER_A_CONFLICT).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn note_buried(&self, buried: &[Kind]) {
        if !buried.is_empty() {
            tracing::error!(
                destination = self.destination.as_str(),
                actions = buried.len(),
                "buried actions whose workers vanished in every attempt"
            );
            self.metrics.buried(buried);
        }
    }

    async fn run_one(self: Arc<Self>, claim: Claim, claimed: Instant, place: Place) {
        let slot = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            slot = self.slots.slot(place, claimed) => slot,
        };
        let Some(slot) = slot else { return self.hand_back(claim, None, None).await };
        let opening = Opening::after(claim.alert.trace_parent);
        // There whatever level is asked for: it says which action a warning is about.
        let span = tracing::error_span!(
            "action",
            alert.id = claim.alert.alert_id,
            alert.source = claim.alert.source.as_str(),
            outbox_id = %claim.alert.id,
            action_id = %claim.id(),
            kind = claim.kind.as_str(),
            attempt = claim.attempt,
            trace_id = opening.trace_id(),
            otel.kind = Empty,
        );
        let parent = opening.open(&span, Role::Consumer);
        async {
            let started = Instant::now();
            let ended = tokio::select! {
                ended = http::traced(parent, act::act(&self.pool, &self.vendors, &claim, claimed + self.run_time)) => ended,
                () = self.state.hand_back.cancelled() => {
                    // A call may have been made, and may have done its work.
                    let error = Some("cut off when the worker stopped".to_owned());
                    let attempt = Attempt { started, ended: Instant::now(), http_status: None, error };
                    return self.hand_back(claim, Some(attempt), Some(slot)).await;
                }
            };
            if let Some(finished) = self.finish(claim, ended).await {
                self.record(finished, Some(slot)).await;
            }
        }
        .instrument(span)
        .await;
    }

    /// As if it had not been claimed.
    async fn hand_back(&self, claim: Claim, attempt: Option<Attempt>, slot: Option<Slot>) {
        self.note_probe(&claim, false).await;
        let error = attempt.as_ref().and_then(|attempt| attempt.error.clone());
        let verdict = Verdict::HandedBack { after: Duration::ZERO, error };
        self.record(Finished::new(claim, verdict, attempt), slot).await;
    }

    async fn record(&self, finished: Finished, slot: Option<Slot>) {
        self.results.send((finished, slot)).await.expect("the recorder outlives the loops");
    }

    /// Says what the end of a run means, pauses the destination if it means that, and logs it.
    async fn finish(&self, claim: Claim, Ended { result, attempt }: Ended) -> Option<Finished> {
        if let Some(attempt) = &attempt {
            self.metrics.called(self.destination, attempt.ended - attempt.started);
        }
        let stop = match result {
            Ok(outcome) => {
                tracing::info!(outcome, "done");
                self.note_probe(&claim, attempt.is_some()).await;
                return Some(Finished::new(claim, Verdict::Done(outcome), attempt));
            }
            Err(stop) => stop,
        };
        let failure = match stop {
            Stop::Failed(failure) => failure,
            Stop::ClaimLost => {
                tracing::warn!("the claim was lost to another worker; nothing more is done here");
                self.metrics.lost(claim.kind);
                return None;
            }
            // Not that it is away, but that it does not take what a vendor said: as good as an unknown answer.
            Stop::Database(error) if is_about_the_data(&error) => {
                Failure::new(Meaning::Unknown, None, "the vendor's answer cannot be stored")
            }
            Stop::Database(error) => {
                tracing::warn!(error = %cause(&error), "the database failed amid an action: handed back");
                let error = Some("the database failed".to_owned());
                let verdict = Verdict::HandedBack { after: Duration::from_secs(1), error };
                self.note_probe(&claim, false).await;
                return Some(Finished::new(claim, verdict, attempt));
            }
        };
        let alike = match failure.meaning {
            // If that cannot be told it is tried again.
            Meaning::Unknown => record::failed_alike(&self.pool, &claim, failure.detail(), ATTEMPTS_AT_THE_UNKNOWN - 1)
                .await
                .unwrap_or_default(),
            _ => 0,
        };
        let max_attempts = self.terms.max_attempts;
        let judgement = judge::judge(&failure, claim.attempt, alike, max_attempts, &self.schedule, rand::random());
        log(&judgement.verdict, failure.http_status);
        if let Told::Pause(pause) = judgement.told {
            self.pause(pause, &failure.to_string()).await;
        }
        self.note_probe(&claim, judgement.told == Told::Reached).await;
        Some(Finished::new(claim, judgement.verdict, attempt))
    }

    /// Before the action is handed back: or it would be claimed again at once.
    async fn pause(&self, pause: Pause, reason: &str) {
        let destination = self.destination;
        // Now, and once more for what is claimed until Postgres knows.
        self.slots.turn_back();
        let paused = match pause {
            Pause::For(length) => destination::pause_for(&self.pool, destination, length, reason).await,
            Pause::UntilMended => {
                tracing::error!(
                    destination = destination.as_str(),
                    reason,
                    "the destination is paused: mend the configuration, then: update destination set paused_until = null where name = '{destination}'"
                );
                destination::pause_until_mended(&self.pool, destination, reason).await
            }
        };
        match paused {
            Ok(()) => self.slots.turn_back(),
            Err(error) => {
                tracing::warn!(error = %cause(&error), "failed to pause the destination");
            }
        }
    }

    /// Notes what the claim has told, if it was the one that tries whether the destination is mended.
    async fn note_probe(&self, claim: &Claim, went_through: bool) {
        if !claim.probing {
            return;
        }
        let noted = if went_through {
            destination::probe_succeeded(&self.pool, self.destination).await
        } else {
            destination::probe_told_nothing(&self.pool, self.destination).await
        };
        match noted {
            Ok(()) if went_through => {
                tracing::info!(destination = self.destination.as_str(), "the destination works again")
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(error = %cause(&error), "failed to note what the probe told")
            }
        }
    }
}

/// Says what becomes of an action that failed.
fn log(verdict: &Verdict, http_status: Option<u16>) {
    match verdict {
        Verdict::Retry { after, error } | Verdict::Postponed { after, error } => {
            let retry_in_ms = after.as_millis();
            tracing::warn!(error, http_status, retry_in_ms, "failed, will be tried again");
        }
        Verdict::HandedBack { error, .. } => tracing::warn!(error, http_status, "handed back, no attempt used"),
        Verdict::StoodBack { error } => tracing::warn!(error, http_status, "stands back, no attempt used"),
        Verdict::Dead(error) | Verdict::UsedUp(error) => tracing::error!(error, http_status, "dead"),
        Verdict::Done(_) => {}
    }
}

fn limit(claims: usize) -> u32 {
    u32::try_from(claims).unwrap_or(u32::MAX)
}
