//! A stored payload is read for what it says: about whom, which subscription, which state.
//!
//! Total: whatever a payload looks like, it says something or nothing, and never fails. Fields and their forms are those of
//! Paddle's reference (Classic alerts; Billing notifications).

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::received::{classic_email, email, end_of, identifier, time};
use crate::{AlertName, Source, TraceParent};

/// An alert taken up for planning.
#[derive(Debug, Clone)]
pub struct Alert {
    pub id: Uuid,
    pub source: Source,
    pub alert_id: String,
    /// None for a name that Paddle does not document.
    pub name: Option<AlertName>,
    /// When it happened: as it says itself, else when it arrived.
    pub happened_at: DateTime<Utc>,
    /// Where its trace goes on.
    pub trace_parent: Option<TraceParent>,
    pub says: Says,
}

/// What an alert says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Says {
    /// The customer's address; a Billing alert names only their id.
    pub email: Option<String>,
    pub customer_id: Option<String>,
    /// Whether it is about a subscription at all, with or without its state.
    pub about_subscription: bool,
    pub subscription: Option<SubscriptionState>,
    pub new_address: Option<NewAddress>,
    /// All that was paid last is paid back.
    pub full_refund: bool,
}

/// A subscription's state at the time of the alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionState {
    pub id: String,
    pub status: Status,
    /// The state it came from, where the alert says so.
    pub old_status: Option<Status>,
    pub plans: Vec<String>,
    /// When a cancellation takes effect.
    pub ends: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Active,
    Trialing,
    /// A payment failed and Paddle is still trying.
    PastDue,
    Paused,
    /// Classic says `deleted`, Billing `canceled`.
    Cancelled,
}

/// A customer's address changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewAddress {
    /// Classic `update_audience_member`: the only signal of it there.
    Classic { old: String, new: String },
    /// Billing `customer.created` and `customer.updated`: the address as of the customer's last change, if it says when.
    Billing { customer_id: String, email: String, as_of: Option<DateTime<Utc>> },
}

impl Status {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Trialing => "trialing",
            Self::PastDue => "past_due",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
        }
    }

    /// None for a word that is no status, such as the placeholder `old_status` of Paddle's simulator.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "active" => Some(Self::Active),
            "trialing" => Some(Self::Trialing),
            "past_due" => Some(Self::PastDue),
            "paused" => Some(Self::Paused),
            "deleted" | "canceled" | "cancelled" => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// Reads what a payload says.
pub fn read(source: Source, alert_name: &str, payload: &Value) -> Says {
    match source {
        Source::Classic => classic(alert_name, payload),
        Source::Billing => billing(alert_name, payload),
    }
}

fn classic(alert_name: &str, payload: &Value) -> Says {
    let get = |name: &str| payload.get(name).and_then(Value::as_str);
    let subscription_id = get("subscription_id").and_then(identifier);
    let is_subscription = alert_name.starts_with("subscription_");
    let state = || {
        Some(SubscriptionState {
            id: subscription_id.clone()?,
            status: match (alert_name, get("status").and_then(Status::parse)) {
                // A cancellation is one, and a start or a payment means access, whatever their status field holds.
                ("subscription_cancelled", _) => Status::Cancelled,
                ("subscription_created" | "subscription_payment_succeeded", None) => Status::Active,
                (_, status) => status?,
            },
            old_status: get("old_status").and_then(Status::parse),
            plans: get("subscription_plan_id").and_then(identifier).into_iter().collect(),
            ends: get("cancellation_effective_date").and_then(end_of),
        })
    };
    let new_address = || {
        let (old, new) = (get("old_customer_email").and_then(email)?, get("new_customer_email").and_then(email)?);
        (old != new).then_some(NewAddress::Classic { old, new })
    };
    Says {
        email: classic_email(get),
        customer_id: None,
        about_subscription: is_subscription,
        subscription: is_subscription.then(state).flatten(),
        new_address: (alert_name == "update_audience_member").then(new_address).flatten(),
        full_refund: alert_name == "subscription_payment_refunded" && get("refund_type") == Some("full"),
    }
}

fn billing(alert_name: &str, payload: &Value) -> Says {
    let get = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str);
    if alert_name.starts_with("customer.") {
        let (customer_id, address) = (get("/data/id").and_then(identifier), get("/data/email").and_then(email));
        let as_of = get("/data/updated_at").and_then(time);
        return Says {
            email: address.clone(),
            new_address: customer_id.clone().zip(address).map(|(customer_id, email)| NewAddress::Billing {
                customer_id,
                email,
                as_of,
            }),
            customer_id,
            ..Says::default()
        };
    }
    let is_subscription = alert_name.starts_with("subscription.");
    let state = || {
        let mut plans: Vec<String> = Vec::new();
        for item in payload.pointer("/data/items").and_then(Value::as_array).into_iter().flatten() {
            for pointer in ["/price/id", "/price/product_id"] {
                if let Some(plan) = item.pointer(pointer).and_then(Value::as_str).and_then(identifier)
                    && !plans.contains(&plan)
                {
                    plans.push(plan);
                }
            }
        }
        Some(SubscriptionState {
            id: get("/data/id").and_then(identifier)?,
            status: Status::parse(get("/data/status")?)?,
            old_status: None,
            plans,
            // `scheduled_change` is only announced and may be revoked: `subscription.canceled` ends access, at once.
            ends: None,
        })
    };
    Says {
        email: None,
        customer_id: get("/data/customer_id").and_then(identifier),
        about_subscription: is_subscription || get("/data/subscription_id").is_some(),
        subscription: is_subscription.then(state).flatten(),
        new_address: None,
        full_refund: false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classic_cancellation() {
        let payload = json!({"email": "Ann@example.com", "subscription_id": "8", "subscription_plan_id": "5", "status": "deleted",
                             "cancellation_effective_date": "2020-08-12"});
        let says = read(Source::Classic, "subscription_cancelled", &payload);
        let state = says.subscription.unwrap();
        assert_eq!(
            (says.email.as_deref(), state.status, state.plans),
            (Some("ann@example.com"), Status::Cancelled, vec!["5".to_owned()])
        );
        assert_eq!(state.ends.unwrap().to_rfc3339(), "2020-08-13T00:00:00+00:00");
    }

    #[test]
    fn a_pause_that_is_announced_is_none_yet() {
        let payload = json!({"email": "ann@example.com", "subscription_id": "8", "status": "active", "old_status": "active",
                             "paused_at": "2020-08-12 10:00:00", "paused_from": "2020-09-01", "paused_reason": "voluntary"});
        let state = read(Source::Classic, "subscription_updated", &payload).subscription.unwrap();
        assert_eq!((state.status, state.ends), (Status::Active, None));
    }

    #[test]
    fn simulator_placeholders_say_nothing() {
        let payload = json!({"email": "email", "subscription_id": "8", "status": "status", "old_status": "old_status"});
        let says = read(Source::Classic, "subscription_updated", &payload);
        assert_eq!((says.email, says.subscription, says.about_subscription), (None, None, true));
    }

    #[test]
    fn billing_names_the_customer_and_both_kinds_of_plan() {
        let payload = json!({"data": {"id": "sub_1", "status": "active", "customer_id": "ctm_1", "scheduled_change": {"action": "cancel", "effective_at": "2030-01-01T00:00:00Z"},
                             "items": [{"price": {"id": "pri_1", "product_id": "pro_1"}}, {"price": {"id": "pri_2", "product_id": "pro_1"}}]}});
        let says = read(Source::Billing, "subscription.updated", &payload);
        assert_eq!(says.customer_id.as_deref(), Some("ctm_1"));
        let state = says.subscription.unwrap();
        assert_eq!(state.plans, ["pri_1", "pro_1", "pri_2"]);
        assert_eq!((state.status, state.ends), (Status::Active, None));
    }

    #[test]
    fn an_address_changes() {
        let says = read(
            Source::Classic,
            "update_audience_member",
            &json!({"old_customer_email": "A@x.org", "new_customer_email": "b@x.org"}),
        );
        assert_eq!(says.new_address, Some(NewAddress::Classic { old: "a@x.org".into(), new: "b@x.org".into() }));
        let says = read(Source::Billing, "customer.updated", &json!({"data": {"id": "ctm_1", "email": "B@x.org"}}));
        let (customer_id, email) = ("ctm_1".to_owned(), "b@x.org".to_owned());
        assert_eq!(says.new_address, Some(NewAddress::Billing { customer_id, email, as_of: None }));
    }
}
