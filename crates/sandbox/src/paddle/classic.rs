//! Alerts of Paddle Classic, with all the fields Paddle documents for each, filled in plausibly.
//!
//! Values follow Paddle's reference: everything is text, times are UTC without a zone, a checkout or user is a number.
//! An alert is numbered when it is made: of two, the later one has the greater `alert_id`.

use std::collections::BTreeMap;

use chrono::{DateTime, Days, Months, Utc};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{ClassicSigner, Signed, next_number};

/// Makes alerts: `Classic::subscription_created("ann@example.com")`.
#[derive(Debug, Clone, Copy)]
pub struct Classic;

/// An alert that is not signed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicAlert {
    fields: BTreeMap<String, String>,
}

const CHECKOUT: &str = "https://checkout.paddle.com/subscription";
const BALANCE: &[(&str, &str)] = &[
    ("balance_currency", "EUR"),
    ("balance_earnings", "27.10"),
    ("balance_fee", "1.95"),
    ("balance_gross", "29.05"),
    ("balance_tax", "0.00"),
];
const SALE: &[(&str, &str)] = &[
    ("country", "DE"),
    ("coupon", ""),
    ("customer_name", "Zoë Müller"),
    ("earnings", "29.33"),
    ("fee", "2.17"),
    ("payment_method", "card"),
    ("payment_tax", "0.00"),
    ("receipt_url", "https://my.paddle.com/receipt/4521-887/9-sandbox"),
    ("sale_gross", "31.50"),
];
const REFUND: &[(&str, &str)] = &[
    ("amount", "31.50"),
    ("balance_currency", "EUR"),
    ("balance_earnings_decrease", "27.10"),
    ("balance_fee_refund", "1.95"),
    ("balance_gross_refund", "29.05"),
    ("balance_tax_refund", "0.00"),
    ("earnings_decrease", "29.33"),
    ("fee_refund", "2.17"),
    ("gross_refund", "31.50"),
    ("order_id", "4521-887"),
    ("refund_reason", "Asked for by the customer"),
    ("refund_type", "full"),
    ("tax_refund", "0.00"),
];

impl Classic {
    #[must_use]
    pub fn subscription_created(email: &str) -> ClassicAlert {
        ClassicAlert::about_subscription("subscription_created", email)
            .with_links()
            .fields(&[("source", "https://shop.acme.example/pricing?plan=pro")])
            .date("next_bill_date", Months::new(1))
    }

    #[must_use]
    pub fn subscription_updated(email: &str) -> ClassicAlert {
        let mut alert = ClassicAlert::about_subscription("subscription_updated", email)
            .with_links()
            .fields(&[
                ("new_price", "31.50"),
                ("new_quantity", "1"),
                ("new_unit_price", "31.50"),
                ("old_price", "31.50"),
                ("old_quantity", "1"),
                ("old_status", "active"),
                ("old_subscription_plan_id", "7"),
                ("old_unit_price", "31.50"),
            ])
            .date("next_bill_date", Months::new(1))
            .date("old_next_bill_date", Months::new(1));
        // This one alert says `new_quantity` and `new_unit_price` instead.
        alert.fields.retain(|name, _| name != "quantity" && name != "unit_price");
        alert
    }

    /// Access lasts until [`ClassicAlert::ends`], which is a month from now unless said otherwise.
    #[must_use]
    pub fn subscription_cancelled(email: &str) -> ClassicAlert {
        ClassicAlert::about_subscription("subscription_cancelled", email)
            .status("deleted")
            .date("cancellation_effective_date", Months::new(1))
    }

    #[must_use]
    pub fn subscription_payment_succeeded(email: &str) -> ClassicAlert {
        ClassicAlert::about_subscription("subscription_payment_succeeded", email)
            .without("linked_subscriptions")
            .fields(BALANCE)
            .fields(SALE)
            .fields(&[
                ("initial_payment", "1"),
                ("instalments", "1"),
                ("next_payment_amount", "31.50"),
                ("order_id", "4521-887"),
                ("plan_name", "Pro"),
                ("subscription_payment_id", "90210"),
            ])
            .date("next_bill_date", Months::new(1))
    }

    #[must_use]
    pub fn subscription_payment_failed(email: &str) -> ClassicAlert {
        ClassicAlert::about_subscription("subscription_payment_failed", email)
            .without("linked_subscriptions")
            .with_links()
            .status("past_due")
            .fields(&[
                ("amount", "31.50"),
                ("attempt_number", "1"),
                ("instalments", "2"),
                ("order_id", "4521-888"),
                ("subscription_payment_id", "90211"),
            ])
            .date("next_retry_date", Months::new(1))
    }

    /// In full unless the field `refund_type` says otherwise.
    #[must_use]
    pub fn subscription_payment_refunded(email: &str) -> ClassicAlert {
        ClassicAlert::about_subscription("subscription_payment_refunded", email)
            .without("linked_subscriptions")
            .fields(REFUND)
            .fields(&[("initial_payment", "0"), ("instalments", "2"), ("subscription_payment_id", "90210")])
    }

    /// A sale without a subscription.
    #[must_use]
    pub fn payment_succeeded(email: &str) -> ClassicAlert {
        ClassicAlert::new("payment_succeeded").to(email).fields(BALANCE).fields(SALE).fields(&[
            ("checkout_id", "33186112-chre4d2f6b0c5a1-9e7d8c6b5a"),
            ("currency", "USD"),
            ("ip", "192.0.2.44"),
            ("marketing_consent", "0"),
            ("order_id", "4522-101"),
            ("passthrough", ""),
            ("product_id", "4711"),
            ("product_name", "Oar"),
            ("quantity", "1"),
            ("used_price_override", "0"),
        ])
    }

    #[must_use]
    pub fn payment_refunded(email: &str) -> ClassicAlert {
        ClassicAlert::new("payment_refunded").to(email).fields(REFUND).fields(&[
            ("checkout_id", "33186112-chre4d2f6b0c5a1-9e7d8c6b5a"),
            ("currency", "USD"),
            ("marketing_consent", "0"),
            ("passthrough", ""),
            ("quantity", "1"),
        ])
    }

    /// The one alert that tells of a new e-mail address.
    #[must_use]
    pub fn update_audience_member(old_email: &str, new_email: &str) -> ClassicAlert {
        let alert = ClassicAlert::new("update_audience_member").fields(&[
            ("new_customer_email", new_email),
            ("new_marketing_consent", "0"),
            ("old_customer_email", old_email),
            ("old_marketing_consent", "0"),
            ("products", "4711"),
            ("source", "Checkout"),
            ("user_id", "600123"),
        ]);
        let time = alert.fields["event_time"].clone();
        alert.field("updated_at", &time)
    }

    #[must_use]
    pub fn new_audience_member(email: &str) -> ClassicAlert {
        let alert = ClassicAlert::new("new_audience_member").to(email).fields(&[
            ("marketing_consent", "0"),
            ("products", "4711"),
            ("source", "Checkout"),
            ("subscribed", "0"),
            ("user_id", "600123"),
        ]);
        let time = alert.fields["event_time"].clone();
        alert.field("created_at", &time)
    }

    /// An alert of any name with the fields every alert has; for those above, with all their fields.
    #[must_use]
    pub fn named(name: &str, email: &str) -> ClassicAlert {
        match name {
            "subscription_created" => Self::subscription_created(email),
            "subscription_updated" => Self::subscription_updated(email),
            "subscription_cancelled" => Self::subscription_cancelled(email),
            "subscription_payment_succeeded" => Self::subscription_payment_succeeded(email),
            "subscription_payment_failed" => Self::subscription_payment_failed(email),
            "subscription_payment_refunded" => Self::subscription_payment_refunded(email),
            "payment_succeeded" => Self::payment_succeeded(email),
            "payment_refunded" => Self::payment_refunded(email),
            "new_audience_member" => Self::new_audience_member(email),
            "update_audience_member" => Self::update_audience_member(email, email),
            other => ClassicAlert::new(other).to(email),
        }
    }
}

impl ClassicAlert {
    fn new(name: &str) -> Self {
        let alert = Self { fields: BTreeMap::new() };
        alert.field("alert_name", name).alert_id(next_number()).at(Utc::now())
    }

    fn about_subscription(name: &str, email: &str) -> Self {
        Self::new(name).to(email).fields(&[
            ("checkout_id", "33186112-chre4d2f6b0c5a1-9e7d8c6b5a"),
            ("currency", "USD"),
            ("linked_subscriptions", ""),
            ("marketing_consent", "0"),
            ("passthrough", r#"{"team": "Förde Rowing Club"}"#),
            ("quantity", "1"),
            ("status", "active"),
            ("subscription_id", "55"),
            ("subscription_plan_id", "7"),
            ("unit_price", "31.50"),
            ("user_id", "600123"),
        ])
    }

    fn to(self, email: &str) -> Self {
        self.field("email", email)
    }

    fn with_links(self) -> Self {
        let query = "user=600123&subscription=55&hash=5f1d7a0c3b9e";
        self.field("cancel_url", &format!("{CHECKOUT}/cancel?{query}"))
            .field("update_url", &format!("{CHECKOUT}/update?{query}"))
    }

    fn fields(mut self, fields: &[(&str, &str)]) -> Self {
        self.fields.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    fn date(self, name: &str, ahead: Months) -> Self {
        let date = Utc::now().checked_add_months(ahead).unwrap_or_default();
        self.field(name, &date.format("%Y-%m-%d").to_string())
    }

    /// Sets any field, also one Paddle has not heard of.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.insert(name.to_owned(), value.to_owned());
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.fields.remove(name);
        self
    }

    #[must_use]
    pub fn subscription(self, id: &str) -> Self {
        self.field("subscription_id", id)
    }

    /// The `subscription_plan_id`.
    #[must_use]
    pub fn plan(self, id: &str) -> Self {
        self.field("subscription_plan_id", id)
    }

    #[must_use]
    pub fn old_plan(self, id: &str) -> Self {
        self.field("old_subscription_plan_id", id)
    }

    #[must_use]
    pub fn status(self, status: &str) -> Self {
        self.field("status", status)
    }

    #[must_use]
    pub fn old_status(self, status: &str) -> Self {
        self.field("old_status", status)
    }

    /// The `event_time`, of which Paddle tells whole seconds.
    #[must_use]
    pub fn at(self, time: DateTime<Utc>) -> Self {
        self.field("event_time", &time.format("%Y-%m-%d %H:%M:%S").to_string())
    }

    /// The `cancellation_effective_date`: access lasts to the end of that day.
    #[must_use]
    pub fn ends(self, day: DateTime<Utc>) -> Self {
        self.field("cancellation_effective_date", &day.format("%Y-%m-%d").to_string())
    }

    /// The `cancellation_effective_date` as a point in time, which Paddle sends as well.
    #[must_use]
    pub fn ends_at(self, time: DateTime<Utc>) -> Self {
        self.field("cancellation_effective_date", &time.format("%Y-%m-%d %H:%M:%S").to_string())
    }

    /// Access is over already: the `cancellation_effective_date` was yesterday.
    #[must_use]
    pub fn ended(self) -> Self {
        self.ends(Utc::now().checked_sub_days(Days::new(1)).unwrap_or_default())
    }

    #[must_use]
    pub fn alert_id(self, id: i64) -> Self {
        self.field("alert_id", &id.to_string())
    }

    /// The `alert_id`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.fields.get("alert_id").map(String::as_str).unwrap_or_default()
    }

    /// All fields, as JSON.
    #[must_use]
    pub fn payload(&self) -> Value {
        json!(self.fields)
    }

    /// A field as it would be sent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    #[must_use]
    pub fn signed_by(&self, signer: &ClassicSigner) -> Signed {
        self.with_signature(&signer.sign(&self.fields))
    }

    /// With this text for a signature, right or wrong.
    #[must_use]
    pub fn with_signature(&self, signature: &str) -> Signed {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(&self.fields).append_pair("p_signature", signature);
        Signed { body: form.finish().into_bytes(), content_type: "application/x-www-form-urlencoded", header: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_alerts_have_greater_numbers() {
        let number = || Classic::payment_succeeded("ann@example.com").id().parse::<i64>().unwrap();
        assert!(number() < number());
    }

    #[test]
    fn the_body_is_the_signed_fields() {
        let alert = Classic::subscription_created("ann+x@example.com").field("passthrough", "a & b = ü");
        let signed = alert.with_signature("c2ln+/==");
        let mut sent: BTreeMap<String, String> = form_urlencoded::parse(&signed.body).into_owned().collect();
        assert_eq!(sent.remove("p_signature").as_deref(), Some("c2ln+/=="));
        assert_eq!(sent, alert.fields);
        assert_eq!(sent["email"], "ann+x@example.com");
    }

    /// The names in Paddle's reference, apart from those that are on every alert.
    #[test]
    fn every_documented_field_is_there() {
        let check = |alert: ClassicAlert, documented: &str| {
            let always = ["alert_id", "alert_name", "event_time"];
            let mut expected: Vec<_> = documented.split_whitespace().chain(always).collect();
            expected.sort_unstable();
            assert_eq!(alert.fields.keys().collect::<Vec<_>>(), expected, "{}", alert.fields["alert_name"]);
        };
        let email = "ann@example.com";
        check(
            Classic::subscription_created(email),
            "cancel_url checkout_id currency email linked_subscriptions marketing_consent next_bill_date passthrough \
             quantity source status subscription_id subscription_plan_id unit_price update_url user_id",
        );
        check(
            Classic::subscription_updated(email),
            "cancel_url checkout_id currency email linked_subscriptions marketing_consent new_price new_quantity \
             new_unit_price next_bill_date old_next_bill_date old_price old_quantity old_status \
             old_subscription_plan_id old_unit_price passthrough status subscription_id subscription_plan_id update_url \
             user_id",
        );
        check(
            Classic::subscription_cancelled(email),
            "cancellation_effective_date checkout_id currency email linked_subscriptions marketing_consent passthrough \
             quantity status subscription_id subscription_plan_id unit_price user_id",
        );
        check(
            Classic::subscription_payment_succeeded(email),
            "balance_currency balance_earnings balance_fee balance_gross balance_tax checkout_id country coupon currency \
             customer_name earnings email fee initial_payment instalments marketing_consent next_bill_date \
             next_payment_amount order_id passthrough payment_method payment_tax plan_name quantity receipt_url \
             sale_gross status subscription_id subscription_payment_id subscription_plan_id unit_price user_id",
        );
        check(
            Classic::subscription_payment_failed(email),
            "amount attempt_number cancel_url checkout_id currency email instalments marketing_consent next_retry_date \
             order_id passthrough quantity status subscription_id subscription_payment_id subscription_plan_id unit_price \
             update_url user_id",
        );
        check(
            Classic::subscription_payment_refunded(email),
            "amount balance_currency balance_earnings_decrease balance_fee_refund balance_gross_refund \
             balance_tax_refund checkout_id currency earnings_decrease email fee_refund gross_refund initial_payment \
             instalments marketing_consent order_id passthrough quantity refund_reason refund_type status \
             subscription_id subscription_payment_id subscription_plan_id tax_refund unit_price user_id",
        );
        check(
            Classic::payment_succeeded(email),
            "balance_currency balance_earnings balance_fee balance_gross balance_tax checkout_id country coupon currency \
             customer_name earnings email fee ip marketing_consent order_id passthrough payment_method payment_tax \
             product_id product_name quantity receipt_url sale_gross used_price_override",
        );
        check(
            Classic::update_audience_member("old@example.com", email),
            "new_customer_email new_marketing_consent old_customer_email old_marketing_consent products source \
             updated_at user_id",
        );
    }
}
