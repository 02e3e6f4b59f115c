//! The rules: what a subscription's alerts pay for. Pure, and a function of the *set* of alerts.
//!
//! Everything that alerts have said about a subscription is kept; what is paid for is computed from all of it, anew with each
//! alert. So the order of arrival, repetitions and delays cannot matter: they are not in the input.
//!
//! # In which order things happened
//!
//! | alerts are in the order of | |
//! |---|---|
//! | their time | Classic tells whole seconds, Billing microseconds |
//! | at the same time: the chain | the order in which most alerts come from the status (`old_status`) that the one before left |
//! | else: their number | Classic ids are numbers, Billing ids sort by time |
//!
//! # What is paid for after each
//!
//! | the alert says | access lasts |
//! |---|---|
//! | active, trialing, past due (Paddle is still trying) | with no end |
//! | paused | until the pause, or an end before it |
//! | cancelled, with a date | until that date, or an end that was known before: no cancellation moves an end later |
//! | cancelled, without | until the end that was known before, else until the cancellation, or a date that another one names later |
//! | and the last payment is refunded in full, where that is configured to end access | until the refund, or an end before it |
//!
//! Plans are those of the newest alert that names any.
//!
//! # Whose it is
//!
//! A Billing subscription belongs to the newest address of its customer id ([`Address`]). A Classic one belongs to the address in the newest alert
//! that names one, and from there to wherever the customer's address has changed since.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};

use crate::alert::Status;
use crate::received;

/// What one alert says about one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub alert_id: String,
    pub happened_at: DateTime<Utc>,
    pub status: Status,
    /// The status it came from, where the alert says so.
    pub old_status: Option<Status>,
    pub plans: Vec<String>,
    /// When a cancellation takes effect.
    pub ends: Option<DateTime<Utc>>,
    /// All that was paid last is paid back.
    pub full_refund: bool,
    /// The customer's address, in Classic.
    pub email: Option<String>,
    /// The customer's id, in Billing.
    pub customer_id: Option<String>,
}

/// A Classic customer's address changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressChange {
    pub alert_id: String,
    pub happened_at: DateTime<Utc>,
    pub old: String,
    pub new: String,
}

/// The address of a Billing customer, and how it is known.
///
/// Of two, the one as of later is right; Paddle's clock tells both. Of two as of the same moment it is the one whose alert has
/// the greater number, and any alert before a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub email: String,
    /// When Paddle last changed the customer, as Paddle says.
    pub as_of: DateTime<Utc>,
    /// The alert that told it; none for a look-up.
    pub told_by: Option<String>,
}

impl Address {
    /// What a look-up found; none if it is no address that can be acted for.
    pub fn looked_up(email: &str, as_of: DateTime<Utc>) -> Option<Self> {
        Some(Self { email: received::email(email)?, as_of, told_by: None })
    }

    /// Whether this one is right, given another that is known.
    pub fn is_as_new_as(&self, known: &Self) -> bool {
        (self.as_of, &self.told_by) >= (known.as_of, &known.told_by)
    }
}

/// Where a subscription stands, all its alerts considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub status: Status,
    /// Access lasts until then; none is open-ended.
    pub entitled_until: Option<DateTime<Utc>>,
    pub plans: Vec<String>,
    pub customer_id: Option<String>,
    /// The newest address that an alert names, and when.
    pub email: Option<(String, DateTime<Utc>)>,
    /// The time of the newest alert.
    pub as_of: DateTime<Utc>,
}

/// Where a subscription stands; none if nothing was told of it. The alerts may come in any order, and more than once.
pub fn standing(told: &[Told], refund_ends_access: bool) -> Option<Standing> {
    let mut standing: Option<Standing> = None;
    let mut end = End::Open;
    for told in in_order(told) {
        end = end.after(told, refund_ends_access);
        let mut next = Standing {
            status: told.status,
            entitled_until: end.time(),
            plans: told.plans.clone(),
            customer_id: told.customer_id.clone(),
            email: told.email.clone().map(|email| (email, told.happened_at)),
            as_of: told.happened_at,
        };
        // What an alert leaves out it does not take away.
        if let Some(held) = standing {
            if next.plans.is_empty() {
                next.plans = held.plans;
            }
            next.customer_id = next.customer_id.or(held.customer_id);
            next.email = next.email.or(held.email);
        }
        standing = Some(next);
    }
    standing
}

/// When access ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Open,
    Known(DateTime<Utc>),
    /// By a cancellation that named no date: when it was told.
    Guessed(DateTime<Utc>),
}

impl End {
    fn time(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Open => None,
            Self::Known(time) | Self::Guessed(time) => Some(time),
        }
    }

    fn after(self, told: &Told, refund_ends_access: bool) -> Self {
        let no_later_than = |end: DateTime<Utc>| Self::Known(self.time().map_or(end, |held| held.min(end)));
        if told.full_refund && refund_ends_access {
            return no_later_than(told.happened_at);
        }
        match (told.status, told.ends, self) {
            (Status::Active | Status::Trialing | Status::PastDue, ..) => Self::Open,
            (Status::Paused, ..) => no_later_than(told.happened_at),
            (Status::Cancelled, Some(end), Self::Guessed(_)) => Self::Known(end),
            (Status::Cancelled, Some(end), _) => no_later_than(end),
            (Status::Cancelled, None, Self::Open) => Self::Guessed(told.happened_at),
            (Status::Cancelled, None, held) => held,
        }
    }
}

/// The address a Classic subscription belongs to: from the one its alerts name on through the changes since. They must be
/// all changes that lead on from it, in any order.
pub fn address_now(email: &str, since: DateTime<Utc>, changes: &[AddressChange]) -> String {
    let mut changes: Vec<&AddressChange> = changes.iter().filter(|change| change.happened_at >= since).collect();
    changes.sort_by(|a, b| a.happened_at.cmp(&b.happened_at).then_with(|| by_number(&a.alert_id, &b.alert_id)));
    let mut email = email;
    for change in changes {
        if change.old == email {
            email = &change.new;
        }
    }
    email.to_owned()
}

/// Each alert once, in the order in which things happened.
fn in_order(told: &[Told]) -> Vec<&Told> {
    let mut order: Vec<&Told> = told.iter().collect();
    order.sort_by(|a, b| a.happened_at.cmp(&b.happened_at).then_with(|| by_number(&a.alert_id, &b.alert_id)));
    order.dedup_by(|a, b| a.alert_id == b.alert_id);
    let mut before = None;
    for moment in order.chunk_by_mut(|a, b| a.happened_at == b.happened_at) {
        by_chain(before, moment);
        before = moment.last().map(|told| told.status);
    }
    order
}

/// Brings alerts of the same moment into the order with the most links: alerts that come from the status that the one before
/// left. Of several such orders it is the one nearest to that of the numbers, in which they come here.
fn by_chain(before: Option<Status>, moment: &mut [&Told]) {
    /// More alerts of one subscription within a second than any chain of changes explains: their numbers decide.
    const MOST: usize = 6;
    if !(2..=MOST).contains(&moment.len()) {
        return;
    }
    let mut best: Option<(usize, Vec<&Told>)> = None;
    permutations(moment.to_vec(), &mut |order| {
        let mut at = before;
        let mut links = 0;
        for told in order {
            links +=
                usize::from(told.old_status.is_some() && told.old_status == at && told.old_status != Some(told.status));
            at = Some(told.status);
        }
        if best.as_ref().is_none_or(|(most, _)| links > *most) {
            best = Some((links, order.to_vec()));
        }
    });
    if let Some((_, order)) = best {
        moment.copy_from_slice(&order);
    }
}

/// All orders, beginning with the one given and in its lexicographic order.
fn permutations<'t>(left: Vec<&'t Told>, visit: &mut impl FnMut(&[&'t Told])) {
    fn go<'t>(taken: &mut Vec<&'t Told>, left: &[&'t Told], visit: &mut dyn FnMut(&[&'t Told])) {
        if left.is_empty() {
            return visit(taken);
        }
        for at in 0..left.len() {
            let mut rest = left.to_vec();
            taken.push(rest.remove(at));
            go(taken, &rest, visit);
            taken.pop();
        }
    }
    go(&mut Vec::new(), &left, visit);
}

/// Numbers by value, however many digits; after them anything else, as text.
fn by_number(a: &str, b: &str) -> Ordering {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match (digits(a), digits(b)) {
        (true, true) => {
            let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        }
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests;
