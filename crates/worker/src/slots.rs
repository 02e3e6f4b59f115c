//! Calls in flight, and the few claims that wait for one of them to end.
//!
//! A call keeps its slot until its result is written: so a worker that is killed leaves no more calls to be repeated than it
//! may have in flight. While slots change hands quickly the next claims are made ahead, or each slot would be idle while
//! Postgres is asked what to do next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Slots that are held for less are worth claiming ahead for.
const QUICK: Duration = Duration::from_millis(100);

/// Claims that may wait, for each slot: a claim that is one of many costs Postgres half of what one of a few does.
const AHEAD: usize = 4;

/// The slots of one destination.
#[derive(Debug)]
pub struct Slots {
    slots: Arc<Semaphore>,
    /// Where claims wait.
    places: Arc<Semaphore>,
    number_of_places: usize,
    are_quick: Arc<AtomicBool>,
    /// Held while places are taken.
    counting: Mutex<()>,
    patience: Duration,
    turned_back: Mutex<Option<Instant>>,
}

/// A claim's place in the queue for a slot.
#[derive(Debug)]
pub struct Place {
    _place: OwnedSemaphorePermit,
}

/// The right to have a call in flight, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    since: Instant,
    are_quick: Arc<AtomicBool>,
    _slot: OwnedSemaphorePermit,
}

impl Slots {
    /// `number` slots; a claim waits for one for `patience` at most.
    pub fn new(number: usize, patience: Duration) -> Self {
        let number_of_places = AHEAD * number;
        Self {
            slots: Arc::new(Semaphore::new(number)),
            places: Arc::new(Semaphore::new(number_of_places)),
            number_of_places,
            are_quick: Arc::default(),
            counting: Mutex::default(),
            patience,
            turned_back: Mutex::default(),
        }
    }

    /// How many actions to claim now; none before it is worth a statement.
    pub fn room(&self) -> usize {
        let places = self.places.available_permits();
        if !self.are_quick() {
            let waiting = self.number_of_places - places;
            return self.slots.available_permits().saturating_sub(waiting);
        }
        if places < self.worthwhile() { 0 } else { places }
    }

    /// Waits until there may be room.
    pub async fn have_room(&self) {
        let places = if self.are_quick() {
            self.worthwhile()
        } else {
            self.slots.acquire().await.map(drop).expect("nobody closes it");
            // One more than are left when claims wait for all free slots: as long as somebody has taken places and not claimed yet,
            // free slots are spoken for.
            (self.number_of_places + 1 - self.slots.available_permits()).min(self.number_of_places)
        };
        let freed = self.places.acquire_many(u32::try_from(places).unwrap_or(u32::MAX)).await;
        freed.map(drop).expect("nobody closes it");
    }

    /// Places for as many claims as there is room for.
    pub fn places(&self) -> Vec<Place> {
        let _one_at_a_time = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |_| Arc::clone(&self.places).try_acquire_owned().map(|_place| Place { _place }).ok();
        (0..self.room()).map_while(place).collect()
    }

    /// A slot, in turn. None if that takes too long, or all were turned back since it was claimed: then the claim is to be handed
    /// back.
    pub async fn slot(&self, place: Place, claimed: Instant) -> Option<Slot> {
        let Ok(permit) = timeout(self.patience, Arc::clone(&self.slots).acquire_owned()).await else {
            self.are_quick.store(false, Ordering::Relaxed);
            return None;
        };
        drop(place);
        let turned_back = *self.turned_back.lock().unwrap_or_else(PoisonError::into_inner);
        if turned_back.is_some_and(|when| when >= claimed) {
            return None;
        }
        let permit = permit.expect("nobody closes it");
        Some(Slot { since: Instant::now(), are_quick: Arc::clone(&self.are_quick), _slot: permit })
    }

    /// Whatever was claimed until now and has no slot yet gets none any more: it was claimed before a pause.
    pub fn turn_back(&self) {
        *self.turned_back.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn are_quick(&self) -> bool {
        self.are_quick.load(Ordering::Relaxed)
    }

    /// Many at a time cost Postgres less.
    fn worthwhile(&self) -> usize {
        self.number_of_places.div_ceil(2)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.are_quick.store(self.since.elapsed() < QUICK, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Slots {
        fn place(&self) -> Place {
            Place { _place: Arc::clone(&self.places).try_acquire_owned().unwrap() }
        }
    }

    /// All slots are taken, by calls that were quick so far.
    async fn busy() -> (Slots, Vec<Slot>) {
        let slots = Slots::new(4, Duration::from_millis(50));
        drop(slots.slot(slots.place(), Instant::now()).await);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(slots.slot(slots.place(), Instant::now()).await.unwrap());
        }
        (slots, held)
    }

    #[tokio::test]
    async fn while_calls_are_quick_four_are_claimed_ahead_for_each_slot_and_half_of_them_at_least() {
        let (slots, mut held) = busy().await;
        let mut places = slots.places();
        assert_eq!(places.len(), 16);
        places.truncate(9);
        assert_eq!(slots.room(), 0);
        held.pop();
        assert!(slots.slot(places.remove(0), Instant::now()).await.is_some());
        slots.have_room().await;
        assert_eq!(slots.places().len(), 8);
    }

    #[tokio::test]
    async fn nothing_is_claimed_ahead_of_calls_that_are_slow() {
        let (slots, mut held) = busy().await;
        let place = slots.place();
        assert!(slots.slot(place, Instant::now()).await.is_none(), "it waits for longer than it may");
        assert_eq!(slots.room(), 0);
        held[0].since = Instant::now() - QUICK;
        held.remove(0);
        slots.have_room().await;
        let places = slots.places();
        assert_eq!(places.len(), 1, "as many as are free, and none ahead");
        assert_eq!(slots.places().len(), 0, "that one is for whoever has its place");
    }

    #[tokio::test]
    async fn while_places_for_all_free_slots_are_taken_there_is_no_room_to_wait_for() {
        let slots = Slots::new(4, Duration::from_millis(50));
        let places = slots.places();
        assert_eq!((places.len(), slots.room()), (4, 0));
        let mut have_room = std::pin::pin!(slots.have_room());
        assert!(timeout(Duration::from_millis(20), &mut have_room).await.is_err());
        drop(places);
        have_room.await;
        assert_eq!(slots.room(), 4);
    }

    #[tokio::test]
    async fn what_was_claimed_before_a_pause_is_turned_back() {
        let (slots, mut held) = busy().await;
        let claimed = Instant::now();
        slots.turn_back();
        held.pop();
        assert!(slots.slot(slots.place(), claimed).await.is_none());
        assert!(slots.slot(slots.place(), Instant::now()).await.is_some());
    }
}
