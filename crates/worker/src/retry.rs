//! When a failed action is tried again.
//!
//! A pure function of the attempt and of a random number: exponential with full jitter
//! (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). Before attempt `n + 1` the wait is at most
//! `base × 2^(n-1)`, and at most the cap:
//!
//! | after attempt | 1 | 2 | 3 | 4 | 8 | 12 | 13 and later |
//! |---|---|---|---|---|---|---|---|
//! | at most, with 5 s and 6 h | 5 s | 10 s | 20 s | 40 s | 10 m 40 s | 2 h 50 m 40 s | 5 h 41 m 20 s, then 6 h |
//!
//! The `backoff` crate, which makes the steps, is unmaintained; it is used in this module alone.

use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;

/// The schedule of an action's retries.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub base: Duration,
    pub cap: Duration,
}

impl Schedule {
    /// How long to wait after attempt number `attempt` (from 1) failed. `jitter` lies in 0..1. `Retry-After` only ever
    /// delays: it cannot make a retry come sooner.
    pub fn delay(&self, attempt: u32, jitter: f64, retry_after: Option<Duration>) -> Duration {
        let delay = self.longest(attempt).mul_f64(jitter.clamp(0.0, 1.0));
        delay.max(retry_after.unwrap_or_default())
    }

    fn longest(&self, attempt: u32) -> Duration {
        let mut steps = ExponentialBackoffBuilder::new()
            .with_initial_interval(self.base)
            .with_max_interval(self.cap)
            .with_multiplier(2.0)
            // The crate's own jitter spreads around the step; full jitter spreads below it.
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        let mut longest = self.base;
        for _ in 0..attempt.clamp(1, 64) {
            longest = steps.next_backoff().unwrap_or(self.cap);
        }
        longest.min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Schedule = Schedule { base: Duration::from_secs(5), cap: Duration::from_secs(6 * 3600) };

    #[test]
    fn doubles_up_to_the_cap() {
        let check = |attempt, expected| {
            assert_eq!(DEFAULT.delay(attempt, 1.0, None), Duration::from_secs(expected), "{attempt}")
        };
        check(1, 5);
        check(2, 10);
        check(3, 20);
        check(4, 40);
        check(8, 640);
        check(12, 10_240);
        check(13, 20_480);
        check(14, 21_600);
        check(1_000, 21_600);
    }

    #[test]
    fn jitter_only_shortens_and_retry_after_only_delays() {
        let seconds = Duration::from_secs;
        assert_eq!(DEFAULT.delay(2, 0.0, None), seconds(0));
        assert_eq!(DEFAULT.delay(2, 0.5, None), seconds(5));
        assert_eq!(DEFAULT.delay(2, 0.5, Some(seconds(3))), seconds(5));
        assert_eq!(DEFAULT.delay(2, 0.5, Some(seconds(30))), seconds(30));
    }

    #[test]
    fn any_base_and_cap() {
        let flat = Schedule { base: Duration::from_millis(250), cap: Duration::from_millis(250) };
        assert_eq!(flat.delay(20, 1.0, None), Duration::from_millis(250));
    }
}
