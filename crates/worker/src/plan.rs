//! Alerts become ledger entries and actions: the decision. Pure.
//!
//! In: alerts in the order they arrived, what the ledger knows, the policy, the time. Out: everything that is to be written.
//!
//! An alert that carries a subscription's state feeds the ledger whatever the routes say; if that changes what a customer is
//! entitled to, `jira_access` is planned for them whatever the routes say. An end that lies ahead is planned as well, as an
//! action that waits in the outbox, where it can be seen.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use oarlock_outbox::access::{self, Address, AddressChange, Told};
use oarlock_outbox::alert::{Alert, NewAddress};
use oarlock_outbox::planning::{Decision, Key, Known, NewAction, Plan, PlannedAlert, Subscription};
use oarlock_outbox::{AlertName, Destination, Kind, Source};

/// What is configured.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What differs from the default routes.
    pub routes: BTreeMap<AlertName, Vec<Kind>>,
    /// Actions of a destination that is not configured are not planned.
    pub jira: bool,
    pub slack: bool,
    pub revoke_on_full_refund: bool,
}

impl Policy {
    fn route(&self, name: Option<AlertName>) -> &[Kind] {
        let Some(name) = name else { return &[] };
        self.routes.get(&name).map_or_else(|| default_route(name), Vec::as_slice)
    }

    /// Whether there is anybody to run actions of this destination.
    pub fn serves(&self, destination: Destination) -> bool {
        match destination {
            Destination::Jira => self.jira,
            Destination::Slack => self.slack,
            Destination::Paddle => true,
        }
    }
}

/// What is done for an alert unless the configuration says otherwise.
pub fn default_route(name: AlertName) -> &'static [Kind] {
    use AlertName::*;
    match name {
        SubscriptionCreated
        | BillingSubscriptionCreated
        | BillingSubscriptionActivated
        | BillingSubscriptionTrialing => &[Kind::JiraInvite, Kind::JiraAccess, Kind::SlackInvite],
        PaymentSucceeded | BillingTransactionCompleted => &[Kind::JiraInvite, Kind::SlackInvite],
        SubscriptionCancelled
        | SubscriptionUpdated
        | BillingSubscriptionCanceled
        | BillingSubscriptionUpdated
        | BillingSubscriptionPaused
        | BillingSubscriptionResumed
        | BillingSubscriptionPastDue
        | UpdateAudienceMember
        | BillingCustomerUpdated => &[Kind::JiraAccess],
        SubscriptionPaymentSucceeded
        | SubscriptionPaymentFailed
        | SubscriptionPaymentRefunded
        | PaymentRefunded
        | LockerProcessed
        | PaymentDisputeCreated
        | PaymentDisputeClosed
        | HighRiskTransactionCreated
        | HighRiskTransactionUpdated
        | TransferCreated
        | TransferPaid
        | NewAudienceMember
        | InvoicePaid
        | InvoiceSent
        | InvoiceOverdue
        | BillingSubscriptionImported
        | BillingCustomerCreated
        | BillingCustomerImported
        | BillingAddressCreated
        | BillingAddressImported
        | BillingAddressUpdated
        | BillingAdjustmentCreated
        | BillingAdjustmentUpdated
        | BillingBusinessCreated
        | BillingBusinessImported
        | BillingBusinessUpdated
        | BillingPaymentMethodDeleted
        | BillingPaymentMethodSaved
        | BillingTransactionBilled
        | BillingTransactionCanceled
        | BillingTransactionCreated
        | BillingTransactionPaid
        | BillingTransactionPastDue
        | BillingTransactionPaymentFailed
        | BillingTransactionReady
        | BillingTransactionRevised
        | BillingTransactionUpdated => &[],
    }
}

/// Plans a batch of alerts.
pub fn plan(alerts: &[Alert], known: Known, policy: &Policy, now: DateTime<Utc>) -> Plan {
    let mut planning = Planning { known, plan: Plan::default(), policy, now };
    for alert in alerts {
        let (email, decision) = planning.alert(alert);
        planning.plan.alerts.push(PlannedAlert { id: alert.id, email, decision });
    }
    planning.plan
}

struct Planning<'p> {
    /// The ledger as it will be after the alerts planned so far.
    known: Known,
    plan: Plan,
    policy: &'p Policy,
    now: DateTime<Utc>,
}

impl Planning<'_> {
    fn alert(&mut self, alert: &Alert) -> (Option<String>, Decision) {
        let says = &alert.says;
        let mut changed = self.learn_address(alert);
        let said = says.email.clone().or_else(|| {
            says.customer_id.as_ref().and_then(|id| self.known.addresses.get(id)).map(|address| address.email.clone())
        });
        let route: Vec<Kind> = self
            .policy
            .route(alert.name)
            .iter()
            .copied()
            .filter(|kind| self.policy.serves(kind.destination()))
            .collect();

        let concerns_somebody = !route.is_empty() || says.subscription.is_some();
        if let (None, Some(customer_id), true) = (&said, &says.customer_id, concerns_somebody) {
            // Nothing is applied before the address is known: the alert comes here again once it is.
            let kind = Kind::PaddleCustomer;
            let look_up =
                NewAction { kind, subject: customer_id.clone(), due_at: None, while_paid: false, begins: false };
            return (None, Decision::Actions(vec![look_up]));
        }

        let mut actions = Actions::default();
        changed.extend(self.learn_state(alert));
        // What concerns a subscription is done for whom it belongs to now: the alert may name an address that was given up
        // since, or none.
        let owner = says
            .subscription
            .as_ref()
            .and_then(|state| self.known.subscriptions.get(&(alert.source, state.id.clone()))?.email.clone());
        match owner.as_ref().or(said.as_ref()) {
            Some(email) => {
                for kind in route {
                    // An invitation for a subscription is worth as much as the subscription is when it is sent; access
                    // is always evaluated when it runs.
                    let while_paid = says.about_subscription && kind != Kind::JiraAccess;
                    actions.add(kind, email, None, while_paid);
                }
            }
            None if !route.is_empty() && changed.is_empty() => {
                return (None, Decision::Dead("the alert names no e-mail address to act for".to_owned()));
            }
            None => {}
        }
        if self.policy.jira {
            for Change { email, ends } in changed {
                actions.add(Kind::JiraAccess, &email, None, false);
                if let Some(end) = ends.filter(|end| *end > self.now) {
                    actions.add(Kind::JiraAccess, &email, Some(end), false);
                }
            }
        }
        let decision = if actions.0.is_empty() { Decision::Ignored } else { Decision::Actions(actions.0) };
        (said.or(owner), decision)
    }

    /// Notes a new address; returns the customers who have to be evaluated: whoever had the old one, and has the new one.
    fn learn_address(&mut self, alert: &Alert) -> Vec<Change> {
        let mut changes = Vec::new();
        match &alert.says.new_address {
            None => {}
            Some(NewAddress::Classic { old, new }) => {
                let change = AddressChange {
                    alert_id: alert.alert_id.clone(),
                    happened_at: alert.happened_at,
                    old: old.clone(),
                    new: new.clone(),
                };
                if !self.known.address_changes.contains(&change) {
                    self.known.address_changes.push(change.clone());
                    self.plan.address_changes.push(change);
                }
                changes.extend(self.evaluate(Source::Classic));
                changes.extend([new, old].map(|email| Change { email: email.clone(), ends: None }));
            }
            Some(NewAddress::Billing { customer_id, email, as_of }) => {
                let told = Address {
                    email: email.clone(),
                    as_of: as_of.unwrap_or(alert.happened_at),
                    told_by: Some(alert.alert_id.clone()),
                };
                let held = self.known.addresses.get(customer_id);
                if held.is_none_or(|held| told.is_as_new_as(held)) {
                    let old = held.map(|held| held.email.clone()).filter(|old| old != email);
                    self.known.addresses.insert(customer_id.clone(), told.clone());
                    self.plan.addresses.insert(customer_id.clone(), told);
                    if let Some(old) = old {
                        changes.extend([email.clone(), old].map(|email| Change { email, ends: None }));
                    }
                }
                // Also if the change is old news: a look-up may have told it first, and concerned one subscription alone.
                changes.extend(self.evaluate(Source::Billing));
            }
        }
        changes
    }

    /// Notes what the alert says of its subscription; returns the customers for whom that changes anything.
    fn learn_state(&mut self, alert: &Alert) -> Vec<Change> {
        let says = &alert.says;
        let Some(state) = &says.subscription else { return Vec::new() };
        let key = (alert.source, state.id.clone());
        let told = self.known.told.entry(key.clone()).or_default();
        if !told.iter().any(|told| told.alert_id == alert.alert_id) {
            let new = Told {
                alert_id: alert.alert_id.clone(),
                happened_at: alert.happened_at,
                status: state.status,
                old_status: state.old_status,
                plans: state.plans.clone(),
                ends: state.ends,
                full_refund: says.full_refund,
                email: says.email.clone(),
                customer_id: says.customer_id.clone(),
            };
            told.push(new.clone());
            self.plan.told.push((key.clone(), new));
        }
        match alert.source {
            Source::Classic => self.evaluate_one(&key),
            // A look-up may have brought a newer address, which is the customer's other subscriptions' as well.
            Source::Billing => self.evaluate(Source::Billing),
        }
    }

    fn evaluate(&mut self, source: Source) -> Vec<Change> {
        let keys: Vec<Key> = self.known.told.keys().filter(|(of, _)| *of == source).cloned().collect();
        keys.iter().flat_map(|key| self.evaluate_one(key)).collect()
    }

    /// Brings a subscription's entry in line with what is known of it; returns the customers for whom that changes anything.
    fn evaluate_one(&mut self, key: &Key) -> Vec<Change> {
        let told = self.known.told.get(key).map_or(&[][..], Vec::as_slice);
        let Some(standing) = access::standing(told, self.policy.revoke_on_full_refund) else { return Vec::new() };
        let (email, told_email) = match key.0 {
            Source::Billing => {
                let address = standing.customer_id.as_ref().and_then(|id| self.known.addresses.get(id));
                let held = || self.known.subscriptions.get(key)?.email.clone();
                (address.map(|address| address.email.clone()).or_else(held), None)
            }
            Source::Classic => standing.email.as_ref().map_or((None, None), |(told, since)| {
                (Some(access::address_now(told, *since, &self.known.address_changes)), Some(told.clone()))
            }),
        };
        let entry = Subscription {
            email,
            told_email,
            customer_id: standing.customer_id,
            plans: standing.plans,
            status: standing.status,
            entitled_until: standing.entitled_until,
            as_of: standing.as_of,
        };
        let held = self.known.subscriptions.insert(key.clone(), entry.clone());
        if held.as_ref() == Some(&entry) {
            return Vec::new();
        }
        self.plan.subscriptions.insert(key.clone(), entry.clone());
        let what_counts = |entry: &Subscription| (entry.email.clone(), entry.plans.clone(), entry.entitled_until);
        if held.as_ref().map(what_counts) == Some(what_counts(&entry)) {
            return Vec::new();
        }
        // A subscription that moved to another address is lost to the old one.
        let before = held.and_then(|held| held.email).filter(|before| Some(before) != entry.email.as_ref());
        self.plan.former_owners.extend(before.clone());
        let mut changes: Vec<Change> = before.map(|email| Change { email, ends: None }).into_iter().collect();
        changes.extend(entry.email.map(|email| Change { email, ends: entry.entitled_until }));
        self.plan.paid_changed.extend(changes.iter().map(|change| change.email.clone()));
        changes
    }
}

/// What a customer is entitled to changed, and ends then.
struct Change {
    email: String,
    ends: Option<DateTime<Utc>>,
}

/// An alert's actions, each once.
#[derive(Default)]
struct Actions(Vec<NewAction>);

impl Actions {
    fn add(&mut self, kind: Kind, subject: &str, due_at: Option<DateTime<Utc>>, while_paid: bool) {
        let action = NewAction { kind, subject: subject.to_owned(), due_at, while_paid, begins: false };
        if !self.0.contains(&action) {
            self.0.push(action);
        }
    }
}

#[cfg(test)]
mod tests;
