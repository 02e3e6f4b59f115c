//! What follows from a failed call, for the action and for its destination. Pure.
//!
//! | the failure is | the action | the destination |
//! |---|---|---|
//! | transient | tried again, until its attempts are used up | |
//! | an account that Jira does not show | the same | |
//! | an invitation that waits for somebody | due and tried again every six hours, until its attempts are used up | |
//! | asking to slow down | handed back, no attempt used | paused that long |
//! | of the configuration | stands back behind the others, no attempt used | paused until it is mended, then probed |
//! | permanent | dead | |
//! | unknown | tried a few times, then dead: it has to be met that often, whatever else there was before | |

use std::time::Duration;

use oarlock_outbox::record::Verdict;

use crate::failure::{Failure, Meaning};
use crate::retry::Schedule;

/// Attempts spent on a code that nobody has met.
pub const ATTEMPTS_AT_THE_UNKNOWN: u32 = 5;

/// There is no hurry: a person has to act first.
const WAIT_FOR_ACCEPTANCE: Duration = Duration::from_secs(6 * 60 * 60);

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub told: Told,
}

/// What the failure says of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// The vendor looked at the request itself, so the credentials are right: a probe has succeeded.
    Reached,
    /// Nobody is to call it.
    Pause(Pause),
}

/// How the destination pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    For(Duration),
    UntilMended,
}

/// Judges the failure of attempt number `attempt` of `max_attempts`, before which there were `alike` with the same failure, one
/// after the other; `jitter` lies in 0..1.
pub fn judge(
    failure: &Failure,
    attempt: u32,
    alike: u32,
    max_attempts: u32,
    schedule: &Schedule,
    jitter: f64,
) -> Judgement {
    let error = failure.detail().to_owned();
    let tried_until = |is_last: bool, retry_after| {
        if is_last {
            Verdict::UsedUp(error.clone())
        } else {
            Verdict::Retry { after: schedule.delay(attempt, jitter, retry_after), error: error.clone() }
        }
    };
    let is_last = attempt >= max_attempts;
    let handed_back = || Verdict::HandedBack { after: Duration::ZERO, error: Some(error.clone()) };
    let (verdict, told) = match failure.meaning {
        Meaning::Transient { retry_after } => (tried_until(is_last, retry_after), Told::Nothing),
        Meaning::NotShown => (tried_until(is_last, None), Told::Reached),
        Meaning::InvitationPending if is_last => (Verdict::UsedUp(error), Told::Reached),
        Meaning::InvitationPending => (Verdict::Postponed { after: WAIT_FOR_ACCEPTANCE, error }, Told::Reached),
        Meaning::RateLimited { retry_after } => (handed_back(), Told::Pause(Pause::For(retry_after))),
        Meaning::Configuration | Meaning::TargetGone => (Verdict::StoodBack { error }, Told::Pause(Pause::UntilMended)),
        Meaning::Permanent | Meaning::AccountGone => (Verdict::Dead(error), Told::Reached),
        Meaning::Unknown => (tried_until(is_last || alike + 1 >= ATTEMPTS_AT_THE_UNKNOWN, None), Told::Nothing),
    };
    Judgement { verdict, told }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule { base: Duration::from_secs(5), cap: Duration::from_secs(6 * 3600) };

    #[track_caller]
    fn check(meaning: Meaning, attempt: u32, verdict: Verdict, told: Told) {
        let judgement = judge(&Failure::new(meaning, Some(500), "why"), attempt, attempt - 1, 20, &SCHEDULE, 1.0);
        assert_eq!(judgement, Judgement { verdict, told }, "{meaning:?}");
    }

    #[test]
    fn each_class_has_its_consequence() {
        let seconds = Duration::from_secs;
        let retry = |after| Verdict::Retry { after: seconds(after), error: "why".into() };
        let back = || Verdict::HandedBack { after: Duration::ZERO, error: Some("why".into()) };
        let dead = || Verdict::Dead("why".into());
        check(Meaning::Transient { retry_after: None }, 1, retry(5), Told::Nothing);
        check(Meaning::Transient { retry_after: Some(seconds(60)) }, 1, retry(60), Told::Nothing);
        check(Meaning::Transient { retry_after: None }, 19, retry(21_600), Told::Nothing);
        let used_up = || Verdict::UsedUp("why".into());
        check(Meaning::Transient { retry_after: None }, 20, used_up(), Told::Nothing);
        check(Meaning::NotShown, 1, retry(5), Told::Reached);
        let postponed = Verdict::Postponed { after: seconds(21_600), error: "why".into() };
        check(Meaning::InvitationPending, 1, postponed, Told::Reached);
        check(Meaning::InvitationPending, 20, used_up(), Told::Reached);
        check(Meaning::RateLimited { retry_after: seconds(7) }, 20, back(), Told::Pause(Pause::For(seconds(7))));
        check(Meaning::Configuration, 20, Verdict::StoodBack { error: "why".into() }, Told::Pause(Pause::UntilMended));
        check(Meaning::TargetGone, 20, Verdict::StoodBack { error: "why".into() }, Told::Pause(Pause::UntilMended));
        check(Meaning::Permanent, 1, dead(), Told::Reached);
        check(Meaning::AccountGone, 1, dead(), Told::Reached);
        check(Meaning::Unknown, 4, retry(40), Told::Nothing);
        check(Meaning::Unknown, 5, used_up(), Told::Nothing);
        let unknown = Failure::new(Meaning::Unknown, Some(500), "why");
        assert_eq!(judge(&unknown, 19, 3, 20, &SCHEDULE, 1.0).verdict, retry(21_600));
        assert_eq!(judge(&unknown, 20, 0, 20, &SCHEDULE, 1.0).verdict, used_up());
    }
}
