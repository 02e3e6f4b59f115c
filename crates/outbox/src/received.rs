//! A verified body becomes the row that is stored.
//!
//! Only what is needed to recognise a repeat, and to fill the columns people look at, is read here. A field that is new,
//! odd or unreadable leaves its column empty and never refuses an alert: Paddle's simulator sends `email=email`.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::{Source, TraceParent};

pub mod form;
mod notification;

use form::Field;
use notification::Notification;

/// An alert as it will be stored.
#[derive(Debug)]
pub struct NewAlert {
    pub id: Uuid,
    pub source: Source,
    pub alert_id: String,
    pub alert_name: String,
    pub occurred_at: Option<DateTime<Utc>>,
    pub email: Option<String>,
    pub subscription_id: Option<String>,
    pub body: Bytes,
    pub signature: String,
    /// What the body says, as JSON text that Postgres accepts as jsonb; none where Postgres can read that of the body.
    pub mended_payload: Option<String>,
    /// Where its trace goes on.
    pub trace_parent: Option<TraceParent>,
}

/// Why a body is not an alert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the body is not JSON")]
    NotJson,
    #[error("a field name appears twice")]
    DuplicateName,
    #[error("no {0}, by which a repeat would be recognised")]
    NoId(&'static str),
}

impl NewAlert {
    /// A Classic alert from its decoded fields, sorted by name, `p_signature` apart.
    ///
    /// # Errors
    /// When there is no usable `alert_id`.
    pub fn classic(fields: &[Field<'_>], signature: String, body: Bytes) -> Result<Self, Malformed> {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (storable(name), storable(value))).collect();
        let get = |name: &str| fields.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_ref());
        // All of it as it came, in characters that every database knows.
        let is_borrowed = |text: &Cow<'_, str>| matches!(text, Cow::Borrowed(_));
        let is_plain = body.is_ascii() && fields.iter().all(|(name, value)| is_borrowed(name) && is_borrowed(value));
        Ok(Self {
            id: Uuid::now_v7(),
            source: Source::Classic,
            alert_id: get("alert_id").and_then(identifier).ok_or(Malformed::NoId("alert_id"))?,
            alert_name: get("alert_name").map_or_else(|| "unknown".to_owned(), |name| cut(name, 100)),
            occurred_at: get("event_time").and_then(time),
            email: classic_email(get),
            subscription_id: get("subscription_id").and_then(identifier),
            mended_payload: (!is_plain).then(|| object_of(&fields).to_string()),
            body,
            signature,
            trace_parent: None,
        })
    }

    /// A Billing notification from its body.
    ///
    /// # Errors
    /// When the body is not a JSON object, names a member twice, or has no usable `event_id`.
    pub fn billing(body: Bytes, signature: String) -> Result<Self, Malformed> {
        let text = notification::storable(&body);
        let Notification { event_id, event_type, occurred_at, data, is_plain } = notification::read(&text)?;
        let alert_name = event_type.map_or_else(|| "unknown".to_owned(), |name| cut(&name, 100));
        let subscription_id = if alert_name.starts_with("subscription.") { data.id } else { data.subscription_id };
        let mended_payload = match &text {
            Cow::Borrowed(_) if is_plain => None,
            // Its numbers as floating point and its characters as they are, which every database takes.
            text => Some(serde_json::from_slice::<Value>(text).map_err(|_| Malformed::NotJson)?.to_string()),
        };
        Ok(Self {
            id: Uuid::now_v7(),
            source: Source::Billing,
            alert_id: event_id.as_deref().and_then(identifier).ok_or(Malformed::NoId("event_id"))?,
            occurred_at: occurred_at.as_deref().and_then(time),
            email: data.email.filter(|_| alert_name.starts_with("customer.")).as_deref().and_then(email),
            subscription_id: subscription_id.as_deref().and_then(identifier),
            alert_name,
            body,
            signature,
            mended_payload,
            trace_parent: None,
        })
    }
}

/// What a stored alert says, as `payload_of` of the schema tells it to people; nothing of a body that is none.
pub(crate) fn payload_of(source: Source, body: &[u8], mended: Option<Value>) -> Value {
    mended.unwrap_or_else(|| match source {
        Source::Classic => {
            let mut fields = form::decode(body);
            fields.retain(|(name, _)| name.as_ref() != form::SIGNATURE);
            object_of(&fields.iter().map(|(name, value)| (storable(name), storable(value))).collect::<Vec<_>>())
        }
        Source::Billing => serde_json::from_slice(body).unwrap_or_default(),
    })
}

/// An id we can index: not empty, not longer than any that Paddle makes by far.
pub(crate) fn identifier(text: &str) -> Option<String> {
    (!text.is_empty() && text.chars().count() <= 255).then(|| text.to_owned())
}

/// An address we can act for, lower-cased; none for placeholders and nonsense.
pub(crate) fn email(text: &str) -> Option<String> {
    let text = text.trim();
    let (local, domain) = text.rsplit_once('@')?;
    // 254 octets is the longest address that can be mailed to (RFC 5321, 4.5.3.1.3).
    let sane = !local.is_empty()
        && !domain.is_empty()
        && text.len() <= 254
        && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    sane.then(|| text.to_lowercase())
}

/// Whom a Classic alert is about, of its fields: each kind of alert has another one.
pub(crate) fn classic_email<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let names = ["email", "customer_email_address", "new_customer_email", "customer_email"];
    names.into_iter().find_map(|name| get(name).and_then(email))
}

/// `2020-08-12 02:13:06` (Classic: UTC, whole seconds) or RFC 3339 (Billing: with up to nanoseconds). Anything between the two is
/// read as well: an end that cannot be read is as good as none.
pub(crate) fn time(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    let without_zone = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|time| time.and_utc());
    let classic = || without_zone("%Y-%m-%d %H:%M:%S%.f").or_else(|| without_zone("%Y-%m-%dT%H:%M:%S%.f"));
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()).or_else(classic).filter(storable_time)
}

/// A day or a time; a day means its end, since what is paid for lasts through it.
pub(crate) fn end_of(text: &str) -> Option<DateTime<Utc>> {
    let end_of_day = || {
        let day = NaiveDate::parse_from_str(text.trim(), "%Y-%m-%d").ok()?;
        // What is meant as never is the last day there is, whose end is none.
        let end = day.succ_opt()?.and_time(NaiveTime::MIN).and_utc();
        Some(if storable_time(&end) { end } else { day.and_time(NaiveTime::MIN).and_utc() })
    };
    time(text).or_else(end_of_day).filter(storable_time)
}

/// Postgres and chrono agree about these years; what lies outside is nonsense anyway.
fn storable_time(time: &DateTime<Utc>) -> bool {
    use chrono::Datelike;
    (1..=9999).contains(&time.year())
}

/// Text that Postgres can hold: no NUL, and nothing that is not UTF-8.
fn storable(bytes: &[u8]) -> Cow<'_, str> {
    match String::from_utf8_lossy(bytes) {
        text if text.contains('\0') => text.replace('\0', "\u{fffd}").into(),
        text => text,
    }
}

fn object_of(fields: &[(Cow<'_, str>, Cow<'_, str>)]) -> Value {
    fields.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect()
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn classic(fields: &[(&str, &str)]) -> Result<NewAlert, Malformed> {
        let fields: Vec<_> = fields.iter().map(|(k, v)| (k.as_bytes().into(), v.as_bytes().into())).collect();
        NewAlert::classic(&fields, "sig".into(), "body".into())
    }

    #[test]
    fn classic_columns() {
        let alert = classic(&[
            ("alert_id", "7"),
            ("alert_name", "subscription_created"),
            ("email", " Ann@Example.com"),
            ("event_time", "2020-08-12 02:13:06"),
            ("subscription_id", "8"),
        ])
        .unwrap();
        assert_eq!(alert.email.as_deref(), Some("ann@example.com"));
        assert_eq!(alert.occurred_at.unwrap().to_rfc3339(), "2020-08-12T02:13:06+00:00");
        assert_eq!(alert.subscription_id.as_deref(), Some("8"));
        // Each kind of alert has the address in another field.
        for (name, field) in [
            ("high_risk_transaction_created", "customer_email_address"),
            ("update_audience_member", "new_customer_email"),
            ("invoice_paid", "customer_email"),
        ] {
            let alert = classic(&[("alert_id", "7"), ("alert_name", name), (field, "Ann@Example.com")]).unwrap();
            assert_eq!(alert.email.as_deref(), Some("ann@example.com"), "{name}");
        }
    }

    #[test]
    fn placeholders_leave_a_column_empty_and_refuse_nothing() {
        let alert =
            classic(&[("alert_id", "7"), ("email", "email"), ("event_time", "event_time"), ("subscription_id", "")])
                .unwrap();
        assert_eq!((alert.email, alert.occurred_at, alert.subscription_id), (None, None, None));
        assert_eq!(alert.alert_name, "unknown");
    }

    #[test]
    fn what_postgres_cannot_hold_is_replaced_in_the_payload_alone() {
        let fields = [(b"alert_id".into(), b"1".into()), (b"name".into(), b"a\0b\xff".into())];
        let alert = NewAlert::classic(&fields, "sig".into(), "raw\0".into()).unwrap();
        assert_eq!(alert.mended_payload.unwrap(), "{\"alert_id\":\"1\",\"name\":\"a\u{fffd}b\u{fffd}\"}");
        assert_eq!(alert.body, "raw\0");
    }

    #[test]
    fn what_a_stored_body_says() {
        let check = |source, body: &str, mended, expected| {
            assert_eq!(payload_of(source, body.as_bytes(), mended), expected, "{body}");
        };
        let form = "p_signature=c2ln&b=x+%C3%A9%26&a=&flag&c=%ZZ";
        check(Source::Classic, form, None, json!({"a": "", "b": "x é&", "c": "%ZZ", "flag": ""}));
        check(Source::Classic, form, Some(json!({"a": "b"})), json!({"a": "b"}));
        check(Source::Billing, r#"{"data": {"id": "sub_1", "n": 1}}"#, None, json!({"data": {"id": "sub_1", "n": 1}}));
        check(Source::Classic, "", None, json!({}));
        check(Source::Billing, "", None, Value::Null);
    }

    #[test]
    fn no_id_is_no_alert() {
        assert_eq!(classic(&[("alert_name", "x")]).unwrap_err(), Malformed::NoId("alert_id"));
        assert_eq!(classic(&[("alert_id", "")]).unwrap_err(), Malformed::NoId("alert_id"));
        assert_eq!(classic(&[("alert_id", &"9".repeat(256))]).unwrap_err(), Malformed::NoId("alert_id"));
    }

    #[test]
    fn billing_bodies() {
        let check = |body: &'static str| NewAlert::billing(body.into(), "sig".into()).map(|alert| alert.alert_id);
        assert_eq!(check(r#"{"event_id":"evt_1","event_type":"x","data":{}}"#).unwrap(), "evt_1");
        assert_eq!(check(r#"{"event_id":"evt_1","data":{"id":1,"id":2}}"#).unwrap_err(), Malformed::DuplicateName);
        assert_eq!(check(r#"{"event_id":"evt_1","event_id":"evt_2"}"#).unwrap_err(), Malformed::DuplicateName);
        assert_eq!(check(r#"{"event_id":"evt_1"} x"#).unwrap_err(), Malformed::NotJson);
        assert_eq!(check(r#"["event_id"]"#).unwrap_err(), Malformed::NotJson);
        assert_eq!(check("alert_id=1").unwrap_err(), Malformed::NotJson);
        assert_eq!(check(r#"{"event_id":5}"#).unwrap_err(), Malformed::NoId("event_id"));
        assert_eq!(check(r#"{"event_id":"e","x":"a\u0000b"}"#).unwrap(), "e");
        assert_eq!(check(r#"{"event_id":"e","x":"\ud83d \ude00\ud83d\ude00 \\ud83d"}"#).unwrap(), "e");
    }

    #[test]
    fn a_body_is_its_own_payload_unless_postgres_cannot_read_it() {
        let check = |member: &str| {
            let body = format!(r#"{{"event_id":"e",{member}}}"#);
            let alert = NewAlert::billing(body.clone().into(), "sig".into()).unwrap();
            assert_eq!(alert.body, body);
            alert.mended_payload
        };
        assert_eq!(check(r#""a":"\"\u002f\" \\u0000","é":["é",-1,18446744073709551615,{"c":null}]"#), None);
        let payload = |member: &str| Some(format!(r#"{{{member},"event_id":"e"}}"#));
        assert_eq!(check(r#""a":"x\u0000y""#), payload("\"a\":\"x\u{fffd}y\""));
        assert_eq!(check(r#""a":"\udef6\ud83d""#), payload("\"a\":\"\u{fffd}\u{fffd}\""));
        assert_eq!(check(r#""a":"\u00e9 \ud83d\udef6""#), payload(r#""a":"é 🛶""#));
        assert_eq!(check(r#""\u00e9":1"#), Some(r#"{"event_id":"e","é":1}"#.into()));
        assert_eq!(check(r#""a":1e-20000,"b":1E+2"#), payload(r#""a":0.0,"b":100.0"#));
        let written_twice = NewAlert::billing(r#"{"event_id":"e","\u0000":1,"\ufffd":2}"#.into(), "sig".into());
        assert_eq!(written_twice.unwrap_err(), Malformed::DuplicateName);
    }

    #[test]
    fn what_is_no_escape_is_not_mended() {
        for broken in [r#""\u+000""#, r#""\u00""#, r#""\u000g""#, r#""\"#] {
            let body = format!(r#"{{"event_id":"e","a":{broken}}}"#);
            assert_eq!(NewAlert::billing(body.into(), "sig".into()).unwrap_err(), Malformed::NotJson, "{broken}");
        }
    }

    #[test]
    fn a_day_means_its_end() {
        let check = |text: &str| end_of(text).map(|time| time.to_rfc3339());
        assert_eq!(check("2020-09-03").as_deref(), Some("2020-09-04T00:00:00+00:00"));
        assert_eq!(check("2020-08-12 19:51:38").as_deref(), Some("2020-08-12T19:51:38+00:00"));
        assert_eq!(check("2023-08-22T18:55:19.445267Z").as_deref(), Some("2023-08-22T18:55:19.445267+00:00"));
        for text in
            [" 2020-08-12 19:51:38 ", "2020-08-12T19:51:38", "2020-08-12 19:51:38.000", "2020-08-12 19:51:38+00:00"]
        {
            assert_eq!(check(text).as_deref(), Some("2020-08-12T19:51:38+00:00"), "{text}");
        }
        assert_eq!(check("2020-09-03 ").as_deref(), Some("2020-09-04T00:00:00+00:00"));
        assert_eq!(check("9999-12-30").as_deref(), Some("9999-12-31T00:00:00+00:00"));
        assert_eq!(check("9999-12-31").as_deref(), Some("9999-12-31T00:00:00+00:00"));
        assert_eq!(check("cancellation_effective_date"), None);
    }
}
