//! What really happens to a customer's subscriptions, what Paddle says of it, and what is paid for in the end.
//!
//! In: steps, each so many seconds after the one before. Out: the alerts, numbered in the order of what happened, for a test
//! to shuffle, repeat and hold back; and the truth, to compare with. The truth is lived through as it happened, by the rules
//! as they are written down for people. It knows nothing of alerts.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use serde_json::Value;

use super::{Billing, BillingAlert, BillingSigner, Classic, ClassicAlert, ClassicSigner, Signed};

/// Which generation of Paddle the customer buys through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    Classic,
    Billing,
}

/// One thing that happens, to one of the subscriptions or to the customer.
#[derive(Debug, Clone)]
pub struct Step {
    /// Seconds since the step before; 0 is the same second.
    pub after: u32,
    pub subscription: usize,
    pub happens: Happens,
}

#[derive(Debug, Clone)]
pub enum Happens {
    /// `active`, `trialing`, `past_due` or `paused`, as Classic and Billing both call it.
    Status(&'static str),
    Plan(u16),
    Paid,
    PaymentFailed,
    /// Takes effect that many hours from today; a negative number is before.
    Cancelled(i64),
    RefundedInFull,
    NewAddress,
}

impl Step {
    /// The step that four dice show. Zeros are the simplest step, so that a property test which shrinks the dice shrinks the
    /// history.
    #[must_use]
    pub fn drawn(dice: [u16; 4]) -> Self {
        let [after, subscription, what, how] = dice;
        let happens = match what % 12 {
            0..3 => Happens::Status(["active", "trialing", "past_due", "paused"][usize::from(how % 4)]),
            3 | 4 => Happens::Plan(how % 3),
            5 | 6 => Happens::Paid,
            7 => Happens::PaymentFailed,
            8 | 9 => Happens::Cancelled(i64::from(how % 400) - 200),
            10 => Happens::RefundedInFull,
            _ => Happens::NewAddress,
        };
        // Every other step within the second of the one before.
        let after = if after % 2 == 0 { 0 } else { u32::from(after / 2 % 20) };
        Self { after, subscription: usize::from(subscription % 3), happens }
    }
}

/// Whose history it is, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct Customer {
    pub generation: Generation,
    /// Tells customers apart: it is in the addresses and in all ids.
    pub number: u32,
    pub begins: DateTime<Utc>,
    /// After all that happened; cancellations count from it.
    pub today: DateTime<Utc>,
    /// Whether a payment that is paid back in full ends access.
    pub refund_ends_access: bool,
}

/// What a history comes to.
#[derive(Debug, Clone)]
pub struct History {
    /// In the order of their numbers.
    pub alerts: Vec<Told>,
    subscriptions: Vec<Real>,
    /// Every address the customer ever had; the last is the one of now.
    pub addresses: Vec<String>,
    /// Since when the customer has the last.
    pub address_since: DateTime<Utc>,
}

impl History {
    /// The address of now.
    #[must_use]
    pub fn address(&self) -> &str {
        self.addresses.last().map_or("", String::as_str)
    }

    /// Who has access at a time, once all has happened: an address, with the plans.
    #[must_use]
    pub fn paid_at(&self, time: DateTime<Utc>) -> BTreeMap<String, BTreeSet<String>> {
        let mut paid: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for it in self.subscriptions.iter().filter(|it| it.end.is_none_or(|end| end > time)) {
            paid.entry(self.address().to_owned()).or_default().insert(it.plan.to_string());
        }
        paid
    }
}

/// An alert, and when what it tells happened.
#[derive(Debug, Clone)]
pub struct Told {
    pub at: DateTime<Utc>,
    pub alert: Alert,
}

#[derive(Debug, Clone)]
pub enum Alert {
    Classic(ClassicAlert),
    Billing(BillingAlert),
}

impl Alert {
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Classic(alert) => alert.id(),
            Self::Billing(alert) => alert.id(),
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Classic(alert) => alert.get("alert_name").unwrap_or_default(),
            Self::Billing(alert) => alert.name(),
        }
    }

    /// What it says, as JSON: a form's fields, or the envelope.
    #[must_use]
    pub fn payload(&self) -> Value {
        match self {
            Self::Classic(alert) => alert.payload(),
            Self::Billing(alert) => alert.payload(),
        }
    }

    #[must_use]
    pub fn signed_by(&self, classic: &ClassicSigner, billing: &BillingSigner) -> Signed {
        match self {
            Self::Classic(alert) => alert.signed_by(classic),
            Self::Billing(alert) => alert.signed_by(billing),
        }
    }
}

/// What a subscription really is.
#[derive(Debug, Clone)]
struct Real {
    status: &'static str,
    plan: u16,
    end: Option<DateTime<Utc>>,
}

impl Customer {
    /// The address that the customer has after so many changes of it.
    #[must_use]
    pub fn address(&self, changes: usize) -> String {
        format!("c{}-{changes}@example.com", self.number)
    }

    /// Billing's id of the customer.
    #[must_use]
    pub fn id(&self) -> String {
        format!("ctm_{:05}", self.number)
    }

    /// Lives through these steps.
    #[must_use]
    pub fn lives(&self, steps: &[Step]) -> History {
        let mut life = Life {
            customer: *self,
            now: self.begins,
            alerts: Vec::new(),
            real: BTreeMap::new(),
            addresses: vec![self.address(0)],
            address_since: self.begins,
        };
        if self.generation == Generation::Billing {
            life.billing(Billing::customer_created(&self.id(), &self.address(0)));
        }
        for step in steps {
            life.now += Duration::seconds(i64::from(step.after));
            life.step(step);
        }
        History {
            alerts: life.alerts,
            subscriptions: life.real.into_values().collect(),
            addresses: life.addresses,
            address_since: life.address_since,
        }
    }
}

struct Life {
    customer: Customer,
    now: DateTime<Utc>,
    alerts: Vec<Told>,
    real: BTreeMap<usize, Real>,
    addresses: Vec<String>,
    address_since: DateTime<Utc>,
}

impl Life {
    fn email(&self) -> String {
        self.addresses.last().cloned().unwrap_or_default()
    }

    fn step(&mut self, step: &Step) {
        if matches!(step.happens, Happens::NewAddress) {
            let (old, new) = (self.email(), self.customer.address(self.addresses.len()));
            self.addresses.push(new.clone());
            self.address_since = self.now;
            match self.customer.generation {
                Generation::Classic => self.classic(Classic::update_audience_member(&old, &new)),
                Generation::Billing => self.billing(Billing::customer_updated(&self.customer.id(), &new)),
            }
            return;
        }
        let is_new = !self.real.contains_key(&step.subscription);
        let it = self.real.entry(step.subscription).or_insert(Real { status: "active", plan: 0, end: None });
        let old_status = it.status;
        let mut cancelled_until = None;
        let mut refunded = false;
        match step.happens {
            // A subscription begins with its creation, whatever was to happen to it.
            _ if is_new => {}
            Happens::Status(status) => it.status = status,
            Happens::Plan(plan) => it.plan = plan,
            Happens::Paid => it.status = "active",
            Happens::PaymentFailed => it.status = "past_due",
            Happens::Cancelled(until) => {
                it.status = "deleted";
                // Billing tells of it when it has come to pass.
                if self.customer.generation == Generation::Classic {
                    cancelled_until = Some(self.customer.today + Duration::hours(until));
                }
            }
            // Billing's refunds concern no subscription.
            Happens::RefundedInFull => refunded = self.customer.generation == Generation::Classic,
            Happens::NewAddress => unreachable!("handled above"),
        }
        // What is paid for, by the rules as they are written down for people.
        let earlier = |a: Option<DateTime<Utc>>, b: DateTime<Utc>| Some(a.map_or(b, |a| a.min(b)));
        it.end = match (it.status, cancelled_until) {
            ("active" | "trialing" | "past_due", _) => None,
            ("paused", _) => earlier(it.end, self.now),
            (_, Some(until)) => earlier(it.end, until),
            (_, None) => Some(it.end.unwrap_or(self.now)),
        };
        if refunded && self.customer.refund_ends_access {
            it.end = earlier(it.end, self.now);
        }
        let (status, plan) = (it.status, it.plan.to_string());
        let happens = if is_new { None } else { Some(&step.happens) };
        match self.customer.generation {
            Generation::Classic => {
                let email = self.email();
                let alert = match happens {
                    None => Classic::subscription_created(&email),
                    Some(Happens::Paid) => Classic::subscription_payment_succeeded(&email),
                    Some(Happens::PaymentFailed) => Classic::subscription_payment_failed(&email),
                    Some(Happens::RefundedInFull) => Classic::subscription_payment_refunded(&email),
                    Some(Happens::Cancelled(_)) => Classic::subscription_cancelled(&email),
                    Some(_) => Classic::subscription_updated(&email).old_status(old_status),
                };
                let alert = cancelled_until.into_iter().fold(alert, ClassicAlert::ends_at);
                let id = format!("{}{}", self.customer.number, step.subscription);
                self.classic(alert.subscription(&id).plan(&plan).status(status));
            }
            Generation::Billing => {
                let customer = self.customer.id();
                let status = if status == "deleted" { "canceled" } else { status };
                let by_its_name = match (happens, status) {
                    (None, _) => Some(Billing::subscription_created(&customer)),
                    (_, "canceled") => Some(Billing::subscription_canceled(&customer)),
                    (_, "paused") => Some(Billing::subscription_paused(&customer)),
                    (_, "past_due") => Some(Billing::subscription_past_due(&customer)),
                    (_, _) => None,
                };
                // A change is told in general and, most of them, by its name as well.
                let in_general = happens.map(|_| Billing::subscription_updated(&customer).status(status));
                let id = format!("sub_{:05}_{}", self.customer.number, step.subscription);
                for alert in in_general.into_iter().chain(by_its_name) {
                    let alert = alert.subscription(&id).price(&plan);
                    self.billing(alert.set("/data/items/0/price/product_id", Value::Null));
                }
            }
        }
    }

    fn classic(&mut self, alert: ClassicAlert) {
        let number = i64::from(self.customer.number) * 1_000 + self.next_number();
        self.told(Alert::Classic(alert.alert_id(number).at(self.now)));
    }

    fn billing(&mut self, alert: BillingAlert) {
        let id = format!("evt_{:05}_{:05}", self.customer.number, self.next_number());
        self.told(Alert::Billing(alert.event_id(&id).at(self.now)));
    }

    fn told(&mut self, alert: Alert) {
        self.alerts.push(Told { at: self.now, alert });
    }

    fn next_number(&self) -> i64 {
        i64::try_from(self.alerts.len()).unwrap_or(i64::MAX) + 1
    }
}
