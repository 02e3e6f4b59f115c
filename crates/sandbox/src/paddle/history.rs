//! What really happens to customers and their subscriptions, what Paddle says of it, and what is paid for in the end.
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
    /// To which customer of the household, counted round and round.
    pub customer: usize,
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
    /// One of those that are free, counted round and round.
    NewAddress(usize),
}

impl Step {
    /// The step that five dice show. Zeros are the simplest step, so that a property test which shrinks the dice shrinks the
    /// history.
    #[must_use]
    pub fn drawn(dice: [u16; 5]) -> Self {
        let [after, customer, subscription, what, how] = dice;
        let happens = match what % 14 {
            0..3 => Happens::Status(["active", "trialing", "past_due", "paused"][usize::from(how % 4)]),
            3 | 4 => Happens::Plan(how % 3),
            5 | 6 => Happens::Paid,
            7 => Happens::PaymentFailed,
            8 | 9 => Happens::Cancelled(i64::from(how % 400) - 200),
            10 => Happens::RefundedInFull,
            _ => Happens::NewAddress(usize::from(how)),
        };
        // Every other step within the second of the one before.
        let after = if after % 2 == 0 { 0 } else { u32::from(after / 2 % 20) };
        Self { after, customer: usize::from(customer), subscription: usize::from(subscription % 3), happens }
    }
}

/// Customers who share a few addresses: who bought through Classic and now through Billing pays in two places under one address,
/// and what one gives up another may take.
///
/// Two of the same generation never have the same address at once, by which Classic tells them apart, and of which Billing takes
/// each once.
#[derive(Debug, Clone)]
pub struct Household {
    /// Which generation of Paddle each of them buys through.
    pub customers: Vec<Generation>,
    /// Tells households apart: it is in the addresses and in all ids.
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
    pub customers: Vec<Customer>,
}

/// A customer, when all has happened.
#[derive(Debug, Clone)]
pub struct Customer {
    pub generation: Generation,
    /// Billing's id of the customer.
    pub id: String,
    /// The address of now.
    pub address: String,
    /// Since when it is theirs.
    pub address_since: DateTime<Utc>,
    /// It is not the first one, or was not always.
    pub has_moved: bool,
    /// By their numbers.
    subscriptions: BTreeMap<usize, Real>,
}

impl History {
    /// Who has access at a time, once all has happened: an address, with the plans.
    #[must_use]
    pub fn paid_at(&self, time: DateTime<Utc>) -> BTreeMap<String, BTreeSet<String>> {
        let mut paid: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for customer in &self.customers {
            for plan in customer.plans_at(time) {
                paid.entry(customer.address.clone()).or_default().insert(plan);
            }
        }
        paid
    }
}

impl Customer {
    /// The plans that this customer pays for at a time, once all has happened.
    pub fn plans_at(&self, time: DateTime<Utc>) -> impl Iterator<Item = String> {
        let pays = move |it: &&Real| it.end.is_none_or(|end| end > time);
        self.subscriptions.values().filter(pays).map(|it| it.plan.to_string())
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

/// The addresses of a household.
const ADDRESSES: usize = 4;

impl Household {
    /// All addresses that its customers may have.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        (0..ADDRESSES).map(|at| format!("c{}-{at}@example.com", self.number)).collect()
    }

    /// Lives through these steps.
    ///
    /// # Panics
    /// When there are more customers of a generation than leave an address free.
    #[must_use]
    pub fn lives(&self, steps: &[Step]) -> History {
        let addresses = self.addresses();
        let mut customers: Vec<Customer> = Vec::new();
        for (at, generation) in self.customers.iter().enumerate() {
            let before = customers.iter().filter(|other| other.generation == *generation).count();
            assert!(before + 1 < ADDRESSES, "one address at least is free");
            customers.push(Customer {
                generation: *generation,
                id: format!("ctm_{:05}_{at}", self.number),
                address: addresses[before].clone(),
                address_since: self.begins,
                has_moved: false,
                subscriptions: BTreeMap::new(),
            });
        }
        let left = BTreeMap::new();
        let mut life = Life { household: self, now: self.begins, alerts: Vec::new(), customers, addresses, left };
        for at in 0..self.customers.len() {
            let Customer { generation, id, address, .. } = &life.customers[at];
            if *generation == Generation::Billing {
                life.billing(Billing::customer_created(id, address));
            }
        }
        for step in steps {
            life.now += Duration::seconds(i64::from(step.after));
            life.step(step);
        }
        History { alerts: life.alerts, customers: life.customers }
    }
}

struct Life<'h> {
    household: &'h Household,
    now: DateTime<Utc>,
    alerts: Vec<Told>,
    customers: Vec<Customer>,
    addresses: Vec<String>,
    /// When an address was last given up in Classic.
    left: BTreeMap<String, DateTime<Utc>>,
}

impl Life<'_> {
    fn moves(&mut self, at: usize, choice: usize) {
        let Customer { generation, id, address: old, .. } = self.customers[at].clone();
        let is_free = |address: &&String| {
            !self.customers.iter().any(|other| other.generation == generation && other.address == **address)
        };
        let free: Vec<&String> = self.addresses.iter().filter(is_free).collect();
        let new = free[choice % free.len()].clone();
        // Classic tells whole seconds: whose an address is that two have in the same one, nobody could know.
        if generation == Generation::Classic && self.left.get(&new) == Some(&self.now) {
            self.now += Duration::seconds(1);
        }
        let customer = &mut self.customers[at];
        (customer.address, customer.address_since, customer.has_moved) = (new.clone(), self.now, true);
        match generation {
            Generation::Classic => {
                self.left.insert(old.clone(), self.now);
                self.classic(Classic::update_audience_member(&old, &new));
            }
            Generation::Billing => self.billing(Billing::customer_updated(&id, &new)),
        }
    }

    fn step(&mut self, step: &Step) {
        let at = step.customer % self.customers.len();
        if let Happens::NewAddress(choice) = step.happens {
            return self.moves(at, choice);
        }
        let &Household { number, today, refund_ends_access, .. } = self.household;
        let customer = &mut self.customers[at];
        let (generation, id, address) = (customer.generation, customer.id.clone(), customer.address.clone());
        let is_new = !customer.subscriptions.contains_key(&step.subscription);
        // Of a plan of its own at first, so that each is paid for often.
        let plan = u16::try_from(step.subscription).expect("a few");
        let begun = Real { status: "active", plan, end: None };
        let it = customer.subscriptions.entry(step.subscription).or_insert(begun);
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
                if generation == Generation::Classic {
                    cancelled_until = Some(today + Duration::hours(until));
                }
            }
            // Billing's refunds concern no subscription.
            Happens::RefundedInFull => refunded = generation == Generation::Classic,
            Happens::NewAddress(_) => unreachable!("handled above"),
        }
        // What is paid for, by the rules as they are written down for people.
        let earlier = |a: Option<DateTime<Utc>>, b: DateTime<Utc>| Some(a.map_or(b, |a| a.min(b)));
        it.end = match (it.status, cancelled_until) {
            ("active" | "trialing" | "past_due", _) => None,
            ("paused", _) => earlier(it.end, self.now),
            (_, Some(until)) => earlier(it.end, until),
            (_, None) => Some(it.end.unwrap_or(self.now)),
        };
        if refunded && refund_ends_access {
            it.end = earlier(it.end, self.now);
        }
        let (status, plan) = (it.status, it.plan.to_string());
        let happens = if is_new { None } else { Some(&step.happens) };
        match generation {
            Generation::Classic => {
                let alert = match happens {
                    None => Classic::subscription_created(&address),
                    Some(Happens::Paid) => Classic::subscription_payment_succeeded(&address),
                    Some(Happens::PaymentFailed) => Classic::subscription_payment_failed(&address),
                    Some(Happens::RefundedInFull) => Classic::subscription_payment_refunded(&address),
                    Some(Happens::Cancelled(_)) => Classic::subscription_cancelled(&address),
                    Some(_) => Classic::subscription_updated(&address).old_status(old_status),
                };
                let alert = cancelled_until.into_iter().fold(alert, ClassicAlert::ends_at);
                let id = format!("{number}{at}{}", step.subscription);
                self.classic(alert.subscription(&id).plan(&plan).status(status));
            }
            Generation::Billing => {
                let status = if status == "deleted" { "canceled" } else { status };
                let by_its_name = match (happens, status) {
                    (None, _) => Some(Billing::subscription_created(&id)),
                    (_, "canceled") => Some(Billing::subscription_canceled(&id)),
                    (_, "paused") => Some(Billing::subscription_paused(&id)),
                    (_, "past_due") => Some(Billing::subscription_past_due(&id)),
                    (_, _) => None,
                };
                // A change is told in general and, most of them, by its name as well.
                let in_general = happens.map(|_| Billing::subscription_updated(&id).status(status));
                let subscription = format!("sub_{number:05}_{at}_{}", step.subscription);
                for alert in in_general.into_iter().chain(by_its_name) {
                    let alert = alert.subscription(&subscription).price(&plan);
                    self.billing(alert.set("/data/items/0/price/product_id", Value::Null));
                }
            }
        }
    }

    fn classic(&mut self, alert: ClassicAlert) {
        let number = i64::from(self.household.number) * 1_000 + self.next_number();
        self.told(Alert::Classic(alert.alert_id(number).at(self.now)));
    }

    fn billing(&mut self, alert: BillingAlert) {
        let id = format!("evt_{:05}_{:05}", self.household.number, self.next_number());
        self.told(Alert::Billing(alert.event_id(&id).at(self.now)));
    }

    fn told(&mut self, alert: Alert) {
        self.alerts.push(Told { at: self.now, alert });
    }

    fn next_number(&self) -> i64 {
        i64::try_from(self.alerts.len()).unwrap_or(i64::MAX) + 1
    }
}
