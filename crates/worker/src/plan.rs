//! Alerts become ledger entries and actions: the decision. Pure.
//!
//! In: alerts in the order they arrived, what the ledger knows, the policy, the time. Out: everything that is to be written.
//!
//! An alert that carries a subscription's state feeds the ledger whatever the routes say; if that changes what a customer is
//! entitled to, `jira_access` is planned for them whatever the routes say. An end that lies ahead is planned as well, as an
//! action that waits in the outbox, where it can be seen.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use oarlock_outbox::access::{self, News};
use oarlock_outbox::alert::{Alert, NewAddress};
use oarlock_outbox::planning::{Decision, Known, NewAction, Plan, PlannedAlert};
use oarlock_outbox::{AlertName, Destination, Kind};

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

    fn serves(&self, kind: Kind) -> bool {
        match kind.destination() {
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
        | BillingCustomerImported => &[],
    }
}

/// Plans a batch of alerts.
pub fn plan(alerts: &[Alert], known: &Known, policy: &Policy, now: DateTime<Utc>) -> Plan {
    let mut planning = Planning { subscriptions: known.clone(), plan: Plan::default(), policy, now };
    for alert in alerts {
        let (email, decision) = planning.alert(alert);
        planning.plan.alerts.push(PlannedAlert { id: alert.id, email, decision });
    }
    planning.plan
}

struct Planning<'p> {
    /// The ledger as it will be after the alerts planned so far.
    subscriptions: Known,
    plan: Plan,
    policy: &'p Policy,
    now: DateTime<Utc>,
}

impl Planning<'_> {
    fn alert(&mut self, alert: &Alert) -> (Option<String>, Decision) {
        let says = &alert.says;
        let old_address = self.learn_address(alert);
        let email = says
            .email
            .clone()
            .or_else(|| says.customer_id.as_ref().and_then(|id| self.subscriptions.addresses.get(id).cloned()));
        let route: Vec<Kind> =
            self.policy.route(alert.name).iter().copied().filter(|kind| self.policy.serves(*kind)).collect();

        let concerns_somebody = !route.is_empty() || says.subscription.is_some();
        if let (None, Some(customer_id), true) = (&email, &says.customer_id, concerns_somebody) {
            // Nothing is applied before the address is known: the alert comes here again once it is.
            let look_up =
                NewAction { kind: Kind::PaddleCustomer, subject: customer_id.clone(), due_at: None, while_paid: false };
            return (None, Decision::Actions(vec![look_up]));
        }

        let mut actions = Actions::default();
        let changed = self.apply(alert, email.as_deref());
        match &email {
            Some(email) => {
                for kind in route {
                    // An invitation for a subscription is worth as much as the subscription is when it is sent; access
                    // is always evaluated when it runs.
                    let while_paid = says.about_subscription && kind != Kind::JiraAccess;
                    actions.add(kind, email, None, while_paid);
                }
            }
            None if !route.is_empty() => {
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
            if let Some((old, new)) = old_address {
                actions.add(Kind::JiraAccess, &old, None, false);
                actions.add(Kind::JiraAccess, &new, None, false);
            }
        }
        let decision = if actions.0.is_empty() { Decision::Ignored } else { Decision::Actions(actions.0) };
        (email, decision)
    }

    /// Notes a new address; returns the old and the new one if they differ.
    fn learn_address(&mut self, alert: &Alert) -> Option<(String, String)> {
        let address = alert.says.new_address.clone()?;
        self.plan.new_addresses.push((address.clone(), alert.happened_at));
        let (old, new) = match address {
            NewAddress::Classic { old, new } => (Some(old), new),
            NewAddress::Billing { customer_id, email } => {
                (self.subscriptions.addresses.insert(customer_id, email.clone()), email)
            }
        };
        let old = old.filter(|old| *old != new)?;
        self.plan.paid_changed.extend([old.clone(), new.clone()]);
        Some((old, new))
    }

    /// Applies the alert to the ledger; returns whose entitlement that changes.
    fn apply(&mut self, alert: &Alert, email: Option<&str>) -> Vec<Change> {
        let Some(state) = &alert.says.subscription else { return Vec::new() };
        let news = News {
            state,
            email,
            customer_id: alert.says.customer_id.as_deref(),
            happened_at: alert.happened_at,
            alert_id: &alert.alert_id,
            ends_now: alert.says.full_refund && self.policy.revoke_on_full_refund,
        };
        let key = (alert.source, state.id.clone());
        let held = self.subscriptions.subscriptions.get(&key);
        let Some(entry) = access::apply(held, &news) else { return Vec::new() };
        let same = held.is_some_and(|held| {
            (&held.email, &held.plans, held.entitled_until) == (&entry.email, &entry.plans, entry.entitled_until)
        });
        let mut changes = Vec::new();
        if !same {
            // A subscription that moved to another address is lost to the old one.
            let before = held.and_then(|held| held.email.clone()).filter(|before| Some(before) != entry.email.as_ref());
            changes.extend(before.map(|email| Change { email, ends: None }));
            changes.extend(entry.email.clone().map(|email| Change { email, ends: entry.entitled_until }));
            self.plan.paid_changed.extend(changes.iter().map(|change| change.email.clone()));
        }
        self.plan.subscriptions.insert(key.clone(), entry.clone());
        self.subscriptions.subscriptions.insert(key, entry);
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
        let action = NewAction { kind, subject: subject.to_owned(), due_at, while_paid };
        if !self.0.contains(&action) {
            self.0.push(action);
        }
    }
}

#[cfg(test)]
mod tests;
