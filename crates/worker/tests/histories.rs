//! Access follows payment, whatever the order: random histories against an oracle.
//!
//! A history is what really happened to a customer's subscriptions, second by second. The oracle lives through it as it
//! happened and knows nothing of alerts. The planner sees only the alerts: shuffled, repeated, cut into batches. Both must
//! come to the same end.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use oarlock_outbox::alert::{self, Alert};
use oarlock_outbox::planning::{Decision, Known, Plan};
use oarlock_outbox::{Kind, Source};
use oarlock_worker::plan::{Policy, plan};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

/// When everybody looks: after all that happened, and before some of the ends ahead.
const NOW: i64 = 10_000;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time")
}

/// One thing that happens, to one of the subscriptions or to the customer.
#[derive(Debug, Clone)]
struct Step {
    /// Seconds since the step before; 0 is the same second.
    after: i64,
    subscription: usize,
    happens: Happens,
}

#[derive(Debug, Clone)]
enum Happens {
    Status(&'static str),
    Plan(u8),
    Paid,
    PaymentFailed,
    /// Takes effect that many seconds after now (which may be before).
    Cancelled(i64),
    RefundedInFull,
    NewAddress,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let happens = prop_oneof![
        3 => prop::sample::select(vec!["active", "trialing", "past_due", "paused"]).prop_map(Happens::Status),
        2 => (0..3u8).prop_map(Happens::Plan),
        2 => Just(Happens::Paid),
        1 => Just(Happens::PaymentFailed),
        2 => (-200..200i64).prop_map(Happens::Cancelled),
        1 => Just(Happens::RefundedInFull),
        1 => Just(Happens::NewAddress),
    ];
    let step = (prop_oneof![Just(0i64), 1..20i64], 0..3usize, happens);
    prop::collection::vec(step.prop_map(|(after, subscription, happens)| Step { after, subscription, happens }), 1..12)
}

/// What the oracle knows of a subscription: what really is.
#[derive(Debug, Clone)]
struct Real {
    status: &'static str,
    plan: u8,
    end: Option<i64>,
}

/// Lives through a history; returns the alerts it causes, in the order of their numbers, and who is entitled to what in
/// the end: each address with its plans.
fn live(steps: &[Step], source: Source, refund_ends_access: bool) -> (Vec<Alert>, BTreeMap<String, BTreeSet<String>>) {
    let mut alerts = Vec::new();
    let mut real: BTreeMap<usize, Real> = BTreeMap::new();
    let (mut second, mut address) = (0, 0);
    let email = |address: usize| format!("ann{address}@example.com");
    for step in steps {
        second += step.after;
        if source == Source::Billing && matches!(step.happens, Happens::NewAddress) {
            // Billing tells microseconds: a customer does not change their address twice in one.
            second += 1;
        }
        let mut tell = |name: &str, payload: Value| {
            let number = alerts.len() + 1;
            let id = match source {
                Source::Classic => number.to_string(),
                Source::Billing => format!("evt_{number:05}"),
            };
            alerts.push(Alert {
                id: Uuid::now_v7(),
                source,
                alert_id: id,
                name: name.parse().ok(),
                happened_at: at(second),
                says: alert::read(source, name, &payload),
            });
        };
        if matches!(step.happens, Happens::NewAddress) {
            let (old, new) = (email(address), email(address + 1));
            address += 1;
            match source {
                Source::Classic => {
                    tell("update_audience_member", json!({"old_customer_email": old, "new_customer_email": new}))
                }
                Source::Billing => tell("customer.updated", json!({"data": {"id": "ctm_1", "email": new}})),
            }
            continue;
        }
        let is_new = !real.contains_key(&step.subscription);
        let it = real.entry(step.subscription).or_insert(Real { status: "active", plan: 0, end: None });
        let old_status = it.status;
        let mut cancellation = None;
        let mut refund = false;
        match step.happens {
            // A subscription begins with its creation, whatever was to happen to it.
            _ if is_new => {}
            Happens::Status(status) => it.status = status,
            Happens::Plan(plan) => it.plan = plan,
            Happens::Paid => it.status = "active",
            Happens::PaymentFailed => it.status = "past_due",
            Happens::Cancelled(until) => {
                it.status = "deleted";
                cancellation = Some(NOW + until);
            }
            Happens::RefundedInFull => refund = source == Source::Classic,
            Happens::NewAddress => unreachable!("handled above"),
        }
        // What is paid for, by the rules as they are written down for people.
        let ends_now = |end: Option<i64>| Some(end.map_or(second, |end| end.min(second)));
        it.end = match it.status {
            "active" | "trialing" | "past_due" => None,
            "paused" => ends_now(it.end),
            _ => match (cancellation, source) {
                (Some(until), Source::Classic) => Some(it.end.map_or(until, |end| end.min(until))),
                // Billing says so when it has come to pass.
                (_, Source::Billing) => Some(it.end.unwrap_or(second)),
                (None, Source::Classic) => Some(it.end.unwrap_or(second)),
            },
        };
        if refund && refund_ends_access {
            it.end = ends_now(it.end);
        }
        let id = format!("{}", step.subscription);
        match source {
            Source::Classic => {
                let mut payload = json!({"email": email(address), "subscription_id": id, "subscription_plan_id": it.plan.to_string(), "status": it.status});
                let name = match step.happens {
                    _ if is_new => "subscription_created",
                    Happens::Status(_) | Happens::Plan(_) => {
                        payload["old_status"] = old_status.into();
                        "subscription_updated"
                    }
                    Happens::Paid => "subscription_payment_succeeded",
                    Happens::PaymentFailed => "subscription_payment_failed",
                    Happens::Cancelled(_) => {
                        let until = at(cancellation.expect("set above")).format("%Y-%m-%d %H:%M:%S").to_string();
                        payload["cancellation_effective_date"] = until.into();
                        "subscription_cancelled"
                    }
                    Happens::RefundedInFull => {
                        payload["refund_type"] = "full".into();
                        "subscription_payment_refunded"
                    }
                    Happens::NewAddress => unreachable!("handled above"),
                };
                tell(name, payload);
            }
            Source::Billing => {
                let status = if it.status == "deleted" { "canceled" } else { it.status };
                let name = match status {
                    _ if is_new => "subscription.created",
                    "canceled" => "subscription.canceled",
                    "paused" => "subscription.paused",
                    "past_due" => "subscription.past_due",
                    _ => "subscription.updated",
                };
                let items = json!([{"price": {"id": it.plan.to_string(), "product_id": null}}]);
                tell(name, json!({"data": {"id": id, "status": status, "customer_id": "ctm_1", "items": items}}));
            }
        }
    }
    let mut entitled: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for it in real.values().filter(|it| it.end.is_none_or(|end| end > NOW)) {
        entitled.entry(email(address)).or_default().insert(it.plan.to_string());
    }
    (alerts, entitled)
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
fn deliver(order: &[&Alert], batch: usize, address_now: &str, policy: &Policy) -> (Ledger, Vec<Planned>) {
    let mut ledger = Ledger::default();
    let mut actions = Vec::new();
    for alerts in order.chunks(batch) {
        let mut alerts: Vec<Alert> = alerts.iter().map(|alert| (*alert).clone()).collect();
        while !alerts.is_empty() {
            let planned = plan(&alerts, &ledger.0, policy, at(NOW));
            let mut again = Vec::new();
            for (alert, planned) in alerts.iter().zip(&planned.alerts) {
                if let Decision::Actions(of_it) = &planned.decision {
                    if of_it.iter().any(|action| action.kind == Kind::PaddleCustomer) {
                        again.push(alert.clone());
                    }
                    actions.extend(of_it.iter().map(|action| (action.kind, action.subject.clone(), action.due_at)));
                }
            }
            ledger.write(planned);
            if !again.is_empty() {
                ledger.0.addresses.insert("ctm_1".to_owned(), (address_now.to_owned(), at(NOW)));
            }
            alerts = again;
        }
    }
    (ledger, actions)
}

fn policy(revoke_on_full_refund: bool) -> Policy {
    Policy { jira: true, slack: true, revoke_on_full_refund, ..Policy::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_the_end_is_the_oracles(
        steps in steps(),
        billing: bool,
        revoke: bool,
        batch in 1..6usize,
        shuffle in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let source = if billing { Source::Billing } else { Source::Classic };
        let (alerts, expected) = live(&steps, source, revoke);
        // Each at least once, some again, in any order.
        let mut order: Vec<&Alert> = alerts.iter().collect();
        order.extend(shuffle.iter().take(8).map(|index| &alerts[index.index(alerts.len())]));
        for (at, index) in shuffle.iter().enumerate() {
            let (a, b) = (at % order.len(), index.index(order.len()));
            order.swap(a, b);
        }
        let moves = steps.iter().filter(|step| matches!(step.happens, Happens::NewAddress)).count();
        let address_now = format!("ann{moves}@example.com");
        let (ledger, actions) = deliver(&order, batch, &address_now, &policy(revoke));
        prop_assert_eq!(&ledger.entitled(), &expected);

        // Whoever was ever entitled by what was known so far is evaluated again when that changes: at the end everybody
        // whose entitlement is not nothing has an evaluation, and every end ahead has one at its time.
        for email in expected.keys() {
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
    .map(|(after, happens)| Step { after, subscription: 0, happens })
    .into();
    let (mut alerts, expected) = live(&steps, Source::Classic, false);
    (alerts[2].alert_id, alerts[3].alert_id) = ("9".to_owned(), "8".to_owned());
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let order: Vec<&Alert> = order.iter().map(|at| &alerts[*at]).collect();
        let (ledger, _) = deliver(&order, 1, "", &policy(false));
        assert_eq!(ledger.entitled(), expected);
    }
    assert!(!expected.is_empty() && at(NOW) > at(0) + Duration::seconds(15));
}
