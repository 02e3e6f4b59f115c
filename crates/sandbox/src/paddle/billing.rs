//! Events of Paddle Billing: the envelope, and in it the subscription, transaction or customer as it is at that moment.
//!
//! Subscriptions and transactions name their customer by id, never by e-mail: that is what the API is asked for.

use chrono::{DateTime, Months, SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{BillingSigner, Signed};

/// Makes events: `Billing::subscription_created("ctm_1")`.
#[derive(Debug, Clone, Copy)]
pub struct Billing;

/// An event that is not signed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct BillingAlert {
    envelope: Value,
}

impl Billing {
    /// The only event of a subscription that names the transaction it came from.
    #[must_use]
    pub fn subscription_created(customer: &str) -> BillingAlert {
        BillingAlert::about_subscription("subscription.created", customer).set("/data/transaction_id", json!(id("txn")))
    }

    #[must_use]
    pub fn subscription_activated(customer: &str) -> BillingAlert {
        BillingAlert::about_subscription("subscription.activated", customer)
    }

    #[must_use]
    pub fn subscription_trialing(customer: &str) -> BillingAlert {
        BillingAlert::about_subscription("subscription.trialing", customer)
            .status("trialing")
            .set("/data/first_billed_at", Value::Null)
    }

    #[must_use]
    pub fn subscription_updated(customer: &str) -> BillingAlert {
        BillingAlert::about_subscription("subscription.updated", customer)
    }

    /// Over now. What is only announced is an update with a [scheduled change](BillingAlert::scheduled_change).
    #[must_use]
    pub fn subscription_canceled(customer: &str) -> BillingAlert {
        let alert = BillingAlert::about_subscription("subscription.canceled", customer).status("canceled").ended();
        let at = alert.envelope["occurred_at"].clone();
        alert.set("/data/canceled_at", at)
    }

    #[must_use]
    pub fn subscription_paused(customer: &str) -> BillingAlert {
        let alert = BillingAlert::about_subscription("subscription.paused", customer).status("paused").ended();
        let at = alert.envelope["occurred_at"].clone();
        alert.set("/data/paused_at", at)
    }

    #[must_use]
    pub fn subscription_resumed(customer: &str) -> BillingAlert {
        BillingAlert::about_subscription("subscription.resumed", customer)
    }

    #[must_use]
    pub fn subscription_past_due(customer: &str) -> BillingAlert {
        BillingAlert::about_subscription("subscription.past_due", customer).status("past_due")
    }

    #[must_use]
    pub fn transaction_completed(customer: &str) -> BillingAlert {
        BillingAlert::new("transaction.completed", transaction(customer))
    }

    #[must_use]
    pub fn customer_created(customer: &str, email: &str) -> BillingAlert {
        BillingAlert::new("customer.created", customer_entity(customer, email))
    }

    #[must_use]
    pub fn customer_updated(customer: &str, email: &str) -> BillingAlert {
        BillingAlert::new("customer.updated", customer_entity(customer, email))
    }

    /// An event of any name: for those above as they are, for others about a customer, a transaction or a subscription by
    /// the beginning of the name.
    #[must_use]
    pub fn named(name: &str, customer: &str, email: &str) -> BillingAlert {
        match name {
            "subscription.created" => Self::subscription_created(customer),
            "subscription.trialing" => Self::subscription_trialing(customer),
            "subscription.canceled" => Self::subscription_canceled(customer),
            "subscription.paused" => Self::subscription_paused(customer),
            "subscription.past_due" => Self::subscription_past_due(customer),
            other if other.starts_with("customer.") => BillingAlert::new(other, customer_entity(customer, email)),
            other if other.starts_with("transaction.") => BillingAlert::new(other, transaction(customer)),
            other => BillingAlert::about_subscription(other, customer),
        }
    }
}

impl BillingAlert {
    fn new(name: &str, data: Value) -> Self {
        Self {
            envelope: json!({
                "event_id": id("evt"),
                "event_type": name,
                "occurred_at": rfc3339(Utc::now()),
                "notification_id": id("ntf"),
                "data": data,
            }),
        }
    }

    fn about_subscription(name: &str, customer: &str) -> Self {
        let (now, next) = (rfc3339(Utc::now()), rfc3339(next_month()));
        let data = json!({
            "id": "sub_55",
            "items": [{
                "price": {
                    "id": "pri_7", "tax_mode": "account_setting", "product_id": "pro_7",
                    "unit_price": { "amount": "3150", "currency_code": "USD" }, "description": "Pro, monthly",
                    "trial_period": null, "billing_cycle": { "interval": "month", "frequency": 1 },
                },
                "product": {
                    "id": "pro_7", "name": "Pro", "status": "active", "image_url": null,
                    "description": "All oars", "tax_category": "standard", "type": "standard", "custom_data": null,
                    "created_at": now,
                },
                "status": "active", "quantity": 1, "recurring": true, "created_at": now, "updated_at": now,
                "trial_dates": null, "next_billed_at": next, "previously_billed_at": now,
            }],
            "status": "active",
            "paused_at": null,
            "address_id": id("add"),
            "created_at": now,
            "started_at": now,
            "updated_at": now,
            "business_id": null,
            "canceled_at": null,
            "discount": null,
            "custom_data": null,
            "customer_id": customer,
            "billing_cycle": { "interval": "month", "frequency": 1 },
            "currency_code": "USD",
            "next_billed_at": next,
            "billing_details": null,
            "collection_mode": "automatic",
            "first_billed_at": now,
            "scheduled_change": null,
            "current_billing_period": { "starts_at": now, "ends_at": next },
        });
        Self::new(name, data)
    }

    /// Nothing is billed any more.
    fn ended(self) -> Self {
        self.set("/data/next_billed_at", Value::Null)
            .set("/data/current_billing_period", Value::Null)
            .set("/data/items/0/next_billed_at", Value::Null)
    }

    /// Sets what a JSON pointer points to: `set("/data/custom_data", json!({"team": 7}))`. The last step may be new.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, last) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        match self.envelope.pointer_mut(parent) {
            Some(Value::Object(object)) => {
                object.insert(last.to_owned(), value);
            }
            Some(Value::Array(array)) => {
                if let Some(place) = last.parse::<usize>().ok().and_then(|index| array.get_mut(index)) {
                    *place = value;
                }
            }
            Some(_) | None => {}
        }
        self
    }

    /// The subscription: of a subscription event the one it is about, of a transaction the one it pays for.
    #[must_use]
    pub fn subscription(self, id: &str) -> Self {
        let field = if self.name().starts_with("transaction.") { "/data/subscription_id" } else { "/data/id" };
        self.set(field, json!(id))
    }

    /// The price of the first item.
    #[must_use]
    pub fn price(self, id: &str) -> Self {
        self.set("/data/items/0/price/id", json!(id))
    }

    /// The product of the first item.
    #[must_use]
    pub fn product(self, id: &str) -> Self {
        self.set("/data/items/0/price/product_id", json!(id)).set("/data/items/0/product/id", json!(id))
    }

    /// Of the subscription and of what is in it.
    #[must_use]
    pub fn status(self, status: &str) -> Self {
        // An item is active, inactive or trialing: Paddle has no other words for it.
        let item = match status {
            "trialing" => "trialing",
            "paused" => "inactive",
            _ => "active",
        };
        let alert = self.set("/data/status", json!(status));
        if alert.name().starts_with("subscription.") { alert.set("/data/items/0/status", json!(item)) } else { alert }
    }

    #[must_use]
    pub fn at(self, time: DateTime<Utc>) -> Self {
        let time = json!(rfc3339(time));
        self.set("/occurred_at", time.clone()).set("/data/updated_at", time)
    }

    /// What will happen at the end of the period: `cancel`, `pause` or `resume`.
    #[must_use]
    pub fn scheduled_change(self, action: &str, effective_at: DateTime<Utc>) -> Self {
        let change = json!({ "action": action, "effective_at": rfc3339(effective_at), "resume_at": null });
        self.set("/data/scheduled_change", change)
    }

    #[must_use]
    pub fn event_id(self, id: &str) -> Self {
        self.set("/event_id", json!(id))
    }

    /// As a replay or another destination sends it: the same event under a new notification.
    #[must_use]
    pub fn notified_again(self) -> Self {
        self.set("/notification_id", json!(id("ntf")))
    }

    /// The `event_id`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.envelope["event_id"].as_str().unwrap_or_default()
    }

    /// The `event_type`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.envelope["event_type"].as_str().unwrap_or_default()
    }

    /// The envelope.
    #[must_use]
    pub fn payload(&self) -> Value {
        self.envelope.clone()
    }

    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        self.envelope.to_string().into_bytes()
    }

    #[must_use]
    pub fn signed_by(&self, signer: &BillingSigner) -> Signed {
        let signature = signer.sign(&self.body());
        self.with_signature(&signature)
    }

    /// With this text for a signature, right or wrong.
    #[must_use]
    pub fn with_signature(&self, signature: &str) -> Signed {
        let header = Some(("Paddle-Signature", signature.to_owned()));
        Signed { body: self.body(), content_type: "application/json", header }
    }
}

fn customer_entity(id: &str, email: &str) -> Value {
    let now = rfc3339(Utc::now());
    json!({
        "id": id, "name": "Zoë Müller", "email": email, "locale": "de", "status": "active", "custom_data": null,
        "created_at": now, "updated_at": now, "marketing_consent": false, "import_meta": null,
    })
}

fn transaction(customer: &str) -> Value {
    let now = rfc3339(Utc::now());
    let totals = json!({
        "fee": "208", "tax": "0", "total": "3150", "credit": "0", "credit_to_balance": "0", "balance": "0",
        "discount": "0", "earnings": "2942", "subtotal": "3150", "grand_total": "3150", "grand_total_tax": "0",
        "currency_code": "USD",
    });
    let line = json!({ "tax": "0", "total": "3150", "discount": "0", "subtotal": "3150" });
    json!({
        "id": id("txn"),
        "items": [{
            "price": {
                "id": "pri_7", "status": "active", "quantity": { "minimum": 1, "maximum": 100 },
                "tax_mode": "account_setting", "product_id": "pro_7",
                "unit_price": { "amount": "3150", "currency_code": "USD" }, "description": "Pro, monthly", "name": "Pro",
                "trial_period": null, "billing_cycle": { "interval": "month", "frequency": 1 },
                "unit_price_overrides": [], "custom_data": null,
            },
            "quantity": 1,
        }],
        "origin": "web",
        "status": "completed",
        "details": {
            "totals": totals,
            "line_items": [{
                "id": id("txnitm"), "totals": line, "price_id": "pri_7", "quantity": 1, "tax_rate": "0",
                "unit_totals": line,
            }],
            "tax_rates_used": [{ "tax_rate": "0", "totals": line }],
            "payout_totals": null,
        },
        "checkout": { "url": "https://shop.acme.example/pay" },
        "payments": [{
            "amount": "3150", "status": "captured", "created_at": now, "captured_at": now, "error_code": null,
            "method_details": {
                "type": "card",
                "card": {
                    "type": "visa", "last4": "1111", "expiry_year": 2030, "expiry_month": 1,
                    "cardholder_name": "Zoë Müller",
                },
            },
            "payment_attempt_id": Uuid::now_v7(), "stored_payment_method_id": Uuid::now_v7(),
        }],
        "billed_at": now, "address_id": id("add"), "created_at": now, "invoice_id": null, "updated_at": now,
        "business_id": null, "custom_data": null, "customer_id": customer, "discount_id": null, "currency_code": "USD",
        "billing_period": null, "invoice_number": null, "billing_details": null, "collection_mode": "automatic",
        "subscription_id": "sub_55",
    })
}

/// Paddle writes microseconds.
fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn next_month() -> DateTime<Utc> {
    Utc::now().checked_add_months(Months::new(1)).unwrap_or_default()
}

/// `evt_01h8e1jxjnw9ra6zarhnz1a7y1`: a number that grows with time, in Crockford's alphabet.
fn id(prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut number = Uuid::now_v7().as_u128();
    let mut digits = [b'0'; 26];
    for digit in digits.iter_mut().rev() {
        let low = usize::try_from(number % 32).unwrap_or_default();
        *digit = ALPHABET[low];
        number /= 32;
    }
    format!("{prefix}_{}", String::from_utf8_lossy(&digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_look_like_paddles_and_grow() {
        let (one, two) = (id("evt"), id("evt"));
        assert!(one < two, "{one} {two}");
        let digits = one.strip_prefix("evt_").unwrap();
        assert_eq!(digits.len(), 26);
        assert!(digits.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
    }

    #[test]
    fn an_event_says_what_it_was_told() {
        let alert = Billing::subscription_created("ctm_1").subscription("sub_9").price("pri_9").product("pro_9");
        let sent: Value = serde_json::from_slice(&alert.body()).unwrap();
        assert_eq!(sent["event_type"], "subscription.created");
        assert_eq!(sent["data"]["id"], "sub_9");
        assert_eq!(sent["data"]["items"][0]["price"]["id"], "pri_9");
        assert_eq!(sent["data"]["items"][0]["price"]["product_id"], "pro_9");
        assert!(sent["data"]["transaction_id"].is_string());

        let ended = Billing::subscription_canceled("ctm_1");
        assert_eq!(ended.envelope["data"]["status"], "canceled");
        assert_eq!(ended.envelope["data"]["current_billing_period"], Value::Null);

        let paid = Billing::transaction_completed("ctm_1").subscription("sub_9");
        assert_eq!(paid.envelope["data"]["subscription_id"], "sub_9");
    }
}
