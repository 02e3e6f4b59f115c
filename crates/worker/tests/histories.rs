//! Access follows payment, whatever the order: random histories against an oracle.
//!
//! A history is what really happened to a few customers and their subscriptions, second by second. The oracle lives through it as it
//! happened and knows nothing of alerts. The planner sees only the alerts: shuffled, repeated, cut into batches. Both must
//! come to the same end.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use oarlock_outbox::access::Address;
use oarlock_outbox::alert::{self, Alert};
use oarlock_outbox::planning::{Decision, Known, Plan};
use oarlock_outbox::{Kind, Source};
use oarlock_sandbox::paddle::history::{self, Generation, Happens, History, Household, Step};
use oarlock_worker::plan::{Policy, plan};
use proptest::prelude::*;
use uuid::Uuid;

/// When everybody looks: after all that happened, and before some of the ends ahead.
const NOW: i64 = 10_000;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time")
}

fn household(customers: Vec<Generation>, refund_ends_access: bool) -> Household {
    Household { customers, number: 1, begins: at(0), today: at(NOW), refund_ends_access }
}

fn customers() -> impl Strategy<Value = Vec<Generation>> {
    prop::collection::vec(prop::sample::select(vec![Generation::Classic, Generation::Billing]), 1..=3)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<[u16; 5]>().prop_map(Step::drawn), 1..16)
}

/// The alerts as the planner takes them up.
fn alerts(history: &History) -> Vec<Alert> {
    let stored = |told: &history::Told| {
        let (name, payload) = (told.alert.name(), told.alert.payload());
        let source = if payload.get("event_id").is_some() { Source::Billing } else { Source::Classic };
        Alert {
            id: Uuid::now_v7(),
            source,
            alert_id: told.alert.id().to_owned(),
            name: name.parse().ok(),
            happened_at: told.at,
            trace_parent: None,
            says: alert::read(source, name, &payload),
        }
    };
    history.alerts.iter().map(stored).collect()
}

/// The ledger as Postgres would hold it.
#[derive(Default)]
struct Ledger(Known);

impl Ledger {
    fn write(&mut self, plan: Plan) {
        self.0.subscriptions.extend(plan.subscriptions);
        for (key, told) in plan.told {
            self.0.told.entry(key).or_default().push(told);
        }
        self.0.address_changes.extend(plan.address_changes);
        self.0.addresses.extend(plan.addresses);
    }

    fn entitled(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut entitled: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for held in self.0.subscriptions.values().filter(|held| held.entitled_until.is_none_or(|end| end > at(NOW))) {
            entitled.entry(held.email.clone().expect("known")).or_default().extend(held.plans.iter().cloned());
        }
        entitled
    }
}

/// What is to be done for whom, and when if not at once.
type Planned = (Kind, String, Option<DateTime<Utc>>);

/// Delivers alerts in this order, so many at a time. Paddle is asked for an address when the planner wants it, and answers
/// with the one of now.
fn deliver(order: &[&Alert], batch: usize, history: &History, policy: &Policy) -> (Ledger, Vec<Planned>) {
    let mut ledger = Ledger::default();
    let mut actions = Vec::new();
    for alerts in order.chunks(batch) {
        let mut alerts: Vec<Alert> = alerts.iter().map(|alert| (*alert).clone()).collect();
        while !alerts.is_empty() {
            let planned = plan(&alerts, ledger.0.clone(), policy, at(NOW));
            let (mut again, mut looked_up) = (Vec::new(), BTreeSet::new());
            for (alert, planned) in alerts.iter().zip(&planned.alerts) {
                let Decision::Actions(of_it) = &planned.decision else { continue };
                if let Some(action) = of_it.iter().find(|action| action.kind == Kind::PaddleCustomer) {
                    looked_up.insert(action.subject.clone());
                    again.push(alert.clone());
                }
                actions.extend(of_it.iter().map(|action| (action.kind, action.subject.clone(), action.due_at)));
            }
            ledger.write(planned);
            for id in looked_up {
                let found = address_now(history, &id);
                let held = ledger.0.addresses.entry(id).or_insert(found.clone());
                if found.is_as_new_as(held) {
                    *held = found;
                }
            }
            alerts = again;
        }
    }
    (ledger, actions)
}

/// What a look-up finds when all is over.
fn address_now(history: &History, id: &str) -> Address {
    let customer = history.customers.iter().find(|customer| customer.id == id).expect("somebody of the history");
    Address { email: customer.address.clone(), as_of: customer.address_since, told_by: None }
}

fn policy(revoke_on_full_refund: bool) -> Policy {
    Policy { jira: true, slack: true, revoke_on_full_refund, ..Policy::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_the_end_is_the_oracles(
        customers in customers(),
        steps in steps(),
        revoke: bool,
        batch in 1..6usize,
        shuffle in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let history = household(customers, revoke).lives(&steps);
        let alerts = alerts(&history);
        // Each at least once, some again, in any order.
        let mut order: Vec<&Alert> = alerts.iter().collect();
        order.extend(shuffle.iter().take(8).map(|index| &alerts[index.index(alerts.len())]));
        for (at, index) in shuffle.iter().enumerate() {
            let (a, b) = (at % order.len(), index.index(order.len()));
            order.swap(a, b);
        }
        let (ledger, actions) = deliver(&order, batch, &history, &policy(revoke));
        prop_assert_eq!(&ledger.entitled(), &history.paid_at(at(NOW)));

        // Whoever was ever entitled by what was known so far is evaluated again when that changes: at the end everybody
        // whose entitlement is not nothing has an evaluation, and every end ahead has one at its time.
        for email in history.paid_at(at(NOW)).keys() {
            prop_assert!(actions.iter().any(|(kind, who, _)| *kind == Kind::JiraAccess && who == email), "{email} is never evaluated");
        }
        for held in ledger.0.subscriptions.values() {
            if let (Some(end), Some(email)) = (held.entitled_until.filter(|end| *end > at(NOW)), &held.email) {
                let waits = |(kind, who, due): &Planned| {
                    *kind == Kind::JiraAccess && who == email && *due == Some(end)
                };
                prop_assert!(actions.iter().any(waits), "nobody takes {email} out at {end}");
            }
        }
    }
}

/// Two changes within a second whose numbers lie: the chain of statuses tells.
#[test]
fn the_chain_decides_within_a_second() {
    let steps: Vec<Step> = [
        (0, Happens::Paid),
        (5, Happens::Status("paused")),
        (5, Happens::Status("past_due")),
        (0, Happens::Status("active")),
    ]
    .map(|(after, happens)| Step { after, customer: 0, subscription: 0, happens })
    .into();
    let history = household(vec![Generation::Classic], false).lives(&steps);
    let mut alerts = alerts(&history);
    (alerts[2].alert_id, alerts[3].alert_id) = ("9".to_owned(), "8".to_owned());
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let order: Vec<&Alert> = order.iter().map(|at| &alerts[*at]).collect();
        let (ledger, _) = deliver(&order, 1, &history, &policy(false));
        assert_eq!(ledger.entitled(), history.paid_at(at(NOW)));
    }
    assert!(!history.paid_at(at(NOW)).is_empty());
}
