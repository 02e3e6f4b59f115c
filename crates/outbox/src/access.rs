//! The rules: what a subscription's alerts pay for.
//!
//! Pure. The newest alert about a subscription wins, whatever the order of arrival:
//!
//! | one of two alerts is the newer if | |
//! |---|---|
//! | it happened later | Classic tells whole seconds, Billing microseconds |
//! | at the same time: its `old_status` is the other's status | two changes within a second, in whichever order they come |
//! | else: its number is the higher | Classic ids are numbers, Billing ids sort by time |
//!
//! | the newest alert says | the customer is entitled |
//! |---|---|
//! | active, trialing, past due (Paddle is still trying) | with no end |
//! | paused | until it was paused |
//! | cancelled, with a date | until that date; a second cancellation never moves the end later |
//! | cancelled, without | until the end known before, else until it was cancelled |
//! | a full refund, where configured to end access | until it was refunded |

use std::cmp::Ordering;

use chrono::{DateTime, Utc};

use crate::alert::{Status, SubscriptionState};

/// A subscription as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub email: Option<String>,
    pub customer_id: Option<String>,
    pub plans: Vec<String>,
    pub status: Status,
    /// None is open-ended.
    pub entitled_until: Option<DateTime<Utc>>,
    pub as_of: DateTime<Utc>,
    pub as_of_alert: String,
    pub old_status: Option<Status>,
    /// When the address was last learnt.
    pub email_as_of: DateTime<Utc>,
}

/// What one alert says about one subscription.
#[derive(Debug, Clone)]
pub struct News<'a> {
    pub state: &'a SubscriptionState,
    pub email: Option<&'a str>,
    pub customer_id: Option<&'a str>,
    pub happened_at: DateTime<Utc>,
    pub alert_id: &'a str,
    /// A full refund that ends access.
    pub ends_now: bool,
}

/// The entry after this alert; none if the alert is not news.
pub fn apply(held: Option<&Subscription>, news: &News<'_>) -> Option<Subscription> {
    if held.is_some_and(|held| !is_newer(news, held)) {
        return None;
    }
    let keep_address = held.filter(|held| held.email_as_of > news.happened_at || news.email.is_none());
    Some(Subscription {
        email: keep_address.map_or_else(|| news.email.map(str::to_owned), |held| held.email.clone()),
        customer_id: news.customer_id.map(str::to_owned).or_else(|| held?.customer_id.clone()),
        // An alert that names no plan does not take the known one away.
        plans: if news.state.plans.is_empty() {
            held.map(|held| held.plans.clone()).unwrap_or_default()
        } else {
            news.state.plans.clone()
        },
        status: news.state.status,
        entitled_until: entitled_until(held, news),
        as_of: news.happened_at,
        as_of_alert: news.alert_id.to_owned(),
        old_status: news.state.old_status,
        email_as_of: keep_address.map_or(news.happened_at, |held| held.email_as_of),
    })
}

fn entitled_until(held: Option<&Subscription>, news: &News<'_>) -> Option<DateTime<Utc>> {
    let held_end = held.and_then(|held| held.entitled_until);
    let earlier = |end: DateTime<Utc>| Some(held_end.map_or(end, |held| held.min(end)));
    match news.state.status {
        _ if news.ends_now => earlier(news.happened_at),
        Status::Active | Status::Trialing | Status::PastDue => None,
        Status::Paused => earlier(news.happened_at),
        Status::Cancelled => match (news.state.ends, held_end) {
            (Some(end), _) => earlier(end),
            (None, Some(held)) => Some(held),
            (None, None) => Some(news.happened_at),
        },
    }
}

fn is_newer(news: &News<'_>, held: &Subscription) -> bool {
    let by_chain = || {
        let changed = news.state.status != held.status;
        if changed && news.state.old_status == Some(held.status) {
            Ordering::Greater
        } else if changed && held.old_status == Some(news.state.status) {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    };
    news.happened_at.cmp(&held.as_of).then_with(by_chain).then_with(|| by_number(news.alert_id, &held.as_of_alert))
        == Ordering::Greater
}

/// Numbers by value, however many digits; anything else as text.
fn by_number(a: &str, b: &str) -> Ordering {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(a) && digits(b) {
        let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    } else {
        a.cmp(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_600_000_000 + second, 0).unwrap()
    }

    struct Told {
        second: i64,
        number: &'static str,
        status: Status,
        old: Option<Status>,
        ends: Option<i64>,
    }

    fn told(second: i64, number: &'static str, status: Status) -> Told {
        Told { second, number, status, old: None, ends: None }
    }

    fn after(alerts: &[Told]) -> Subscription {
        let mut held = None;
        for alert in alerts {
            let state = SubscriptionState {
                id: "1".into(),
                status: alert.status,
                old_status: alert.old,
                plans: vec!["7".into()],
                ends: alert.ends.map(at),
            };
            let news = News {
                state: &state,
                email: Some("ann@example.com"),
                customer_id: None,
                happened_at: at(alert.second),
                alert_id: alert.number,
                ends_now: false,
            };
            held = apply(held.as_ref(), &news).or(held);
        }
        held.unwrap()
    }

    #[test]
    fn the_newest_wins_whatever_the_order() {
        let end = |alerts: &[Told]| after(alerts).entitled_until;
        assert_eq!(end(&[told(1, "1", Status::Active), told(2, "2", Status::Paused)]), Some(at(2)));
        assert_eq!(end(&[told(2, "2", Status::Paused), told(1, "1", Status::Active)]), Some(at(2)));
        assert_eq!(end(&[told(2, "2", Status::Paused), told(3, "3", Status::Active)]), None);
    }

    #[test]
    fn within_a_second_the_chain_decides_before_the_number() {
        let to_past_due = || Told { old: Some(Status::Paused), ..told(5, "20", Status::PastDue) };
        let to_active = || Told { old: Some(Status::PastDue), ..told(5, "10", Status::Active) };
        assert_eq!(after(&[to_past_due(), to_active()]).status, Status::Active);
        assert_eq!(after(&[to_active(), to_past_due()]).status, Status::Active);
        assert_eq!(after(&[told(5, "9", Status::Paused), told(5, "10", Status::Active)]).status, Status::Active);
        assert_eq!(after(&[told(5, "10", Status::Active), told(5, "9", Status::Paused)]).status, Status::Active);
    }

    #[test]
    fn an_end_is_never_moved_later_by_another_cancellation() {
        let cancelled = |second, number, ends| Told { ends: Some(ends), ..told(second, number, Status::Cancelled) };
        assert_eq!(
            after(&[told(1, "1", Status::Active), cancelled(2, "2", 100), cancelled(3, "3", 200)]).entitled_until,
            Some(at(100))
        );
        assert_eq!(
            after(&[told(1, "1", Status::Active), cancelled(2, "2", 100), told(3, "3", Status::Cancelled)])
                .entitled_until,
            Some(at(100))
        );
        assert_eq!(
            after(&[cancelled(2, "2", 100), told(3, "3", Status::Active), cancelled(4, "4", 200)]).entitled_until,
            Some(at(200))
        );
        assert_eq!(after(&[told(2, "2", Status::Cancelled)]).entitled_until, Some(at(2)));
    }
}
