//! A verified body becomes the row that is stored.
//!
//! Only what is needed to recognise a repeat, and to fill the columns people look at, is read here. A field that is new,
//! odd or unreadable leaves its column empty and never refuses an alert: Paddle's simulator sends `email=email`.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{Source, TraceParent};

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
    /// JSON text that Postgres accepts as jsonb.
    pub payload: String,
    pub body: Vec<u8>,
    pub signature: String,
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
    /// A Classic alert from its decoded fields, `p_signature` apart.
    ///
    /// # Errors
    /// When there is no usable `alert_id`.
    pub fn classic(fields: &[(Vec<u8>, Vec<u8>)], signature: String, body: Vec<u8>) -> Result<Self, Malformed> {
        let mut payload = Map::new();
        for (name, value) in fields {
            payload.insert(
                storable(&String::from_utf8_lossy(name)),
                Value::String(storable(&String::from_utf8_lossy(value))),
            );
        }
        let get = |name: &str| payload.get(name).and_then(Value::as_str);
        Ok(Self {
            id: Uuid::now_v7(),
            source: Source::Classic,
            alert_id: get("alert_id").and_then(identifier).ok_or(Malformed::NoId("alert_id"))?,
            alert_name: get("alert_name").map_or_else(|| "unknown".to_owned(), |name| cut(name, 100)),
            occurred_at: get("event_time").and_then(time),
            email: ["email", "customer_email_address", "new_customer_email", "customer_email"]
                .into_iter()
                .find_map(|name| get(name).and_then(email)),
            subscription_id: get("subscription_id").and_then(identifier),
            payload: Value::Object(payload).to_string(),
            body,
            signature,
            trace_parent: None,
        })
    }

    /// A Billing notification from its body.
    ///
    /// # Errors
    /// When the body is not a JSON object, names a member twice, or has no usable `event_id`.
    pub fn billing(body: Vec<u8>, signature: String) -> Result<Self, Malformed> {
        let payload = strict_json::parse(&body)?;
        let get = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str);
        let alert_name = get("/event_type").map_or_else(|| "unknown".to_owned(), |name| cut(name, 100));
        let subscription_id =
            if alert_name.starts_with("subscription.") { get("/data/id") } else { get("/data/subscription_id") };
        Ok(Self {
            id: Uuid::now_v7(),
            source: Source::Billing,
            alert_id: get("/event_id").and_then(identifier).ok_or(Malformed::NoId("event_id"))?,
            occurred_at: get("/occurred_at").and_then(time),
            email: if alert_name.starts_with("customer.") { get("/data/email").and_then(email) } else { None },
            subscription_id: subscription_id.and_then(identifier),
            alert_name,
            payload: payload.to_string(),
            body,
            signature,
            trace_parent: None,
        })
    }
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

/// `2020-08-12 02:13:06` (Classic: UTC, whole seconds) or RFC 3339 (Billing: with up to nanoseconds).
pub(crate) fn time(text: &str) -> Option<DateTime<Utc>> {
    let classic = || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").ok().map(|time| time.and_utc());
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()).or_else(classic).filter(storable_time)
}

/// A day or a time; a day means its end, since what is paid for lasts through it.
pub(crate) fn end_of(text: &str) -> Option<DateTime<Utc>> {
    let end_of_day = || {
        let next = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.succ_opt()?;
        Some(next.and_time(NaiveTime::MIN).and_utc())
    };
    time(text).or_else(end_of_day).filter(storable_time)
}

/// Postgres and chrono agree about these years; what lies outside is nonsense anyway.
fn storable_time(time: &DateTime<Utc>) -> bool {
    use chrono::Datelike;
    (1..=9999).contains(&time.year())
}

/// Postgres holds no NUL in text or jsonb.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// JSON as RFC 8259 hopes for: an object, no name twice. Which of two values was meant cannot be known, and two readers of
/// the same signed body must not come to two results.
mod strict_json {
    use std::fmt;

    use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
    use serde_json::{Map, Number, Value};

    use super::{Malformed, storable};

    const DUPLICATE: &str = "duplicate name";

    pub(super) fn parse(body: &[u8]) -> Result<Value, Malformed> {
        let mut value = parse_once(body);
        if value.is_err() {
            // A surrogate without its other half is text to Paddle, where somebody cut a string, and to no parser here.
            value = parse_once(&with_whole_surrogates(body));
        }
        match value {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(Malformed::NotJson),
            Err(error) if error.is_data() && error.to_string().starts_with(DUPLICATE) => Err(Malformed::DuplicateName),
            Err(_) => Err(Malformed::NotJson),
        }
    }

    fn parse_once(body: &[u8]) -> serde_json::Result<Value> {
        let mut json = serde_json::Deserializer::from_slice(body);
        Strict.deserialize(&mut json).and_then(|value| json.end().map(|()| value))
    }

    /// Puts U+FFFD in place of each `\\uD800` to `\\uDFFF` that is no half of a pair.
    fn with_whole_surrogates(body: &[u8]) -> Vec<u8> {
        let unit = |at: usize| {
            let digits = body.get(at..at + 6)?.strip_prefix(b"\\u")?;
            u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (mut whole, mut at) = (body.to_vec(), 0);
        while at < body.len() {
            at += match (body[at], unit(at)) {
                (b'\\', Some(0xd800..=0xdbff)) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
                (b'\\', Some(0xd800..=0xdfff)) => {
                    whole[at..at + 6].copy_from_slice(b"\\ufffd");
                    6
                }
                // Two bytes at once: an escaped backslash begins no escape.
                (b'\\', _) => 2,
                _ => 1,
            };
        }
        whole
    }

    struct Strict;

    impl<'de> DeserializeSeed<'de> for Strict {
        type Value = Value;
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    impl<'de> Visitor<'de> for Strict {
        type Value = Value;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }
        fn visit_unit<E: Error>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
        fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
            Ok(Value::Bool(value))
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
            Ok(value.into())
        }
        fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
            Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
        }
        fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
            Ok(Value::String(storable(value)))
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
            let mut array = Vec::new();
            while let Some(item) = items.next_element_seed(Strict)? {
                array.push(item);
            }
            Ok(Value::Array(array))
        }
        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
            let mut object = Map::new();
            while let Some(name) = members.next_key::<String>()? {
                let value = members.next_value_seed(Strict)?;
                if object.insert(storable(&name), value).is_some() {
                    return Err(A::Error::custom(DUPLICATE));
                }
            }
            Ok(Value::Object(object))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classic(fields: &[(&str, &str)]) -> Result<NewAlert, Malformed> {
        let fields: Vec<_> = fields.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        NewAlert::classic(&fields, "sig".into(), b"body".to_vec())
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
        let fields = [(b"alert_id".to_vec(), b"1".to_vec()), (b"name".to_vec(), b"a\0b\xff".to_vec())];
        let alert = NewAlert::classic(&fields, "sig".into(), b"raw\0".to_vec()).unwrap();
        assert_eq!(alert.payload, "{\"alert_id\":\"1\",\"name\":\"a\u{fffd}b\u{fffd}\"}");
        assert_eq!(alert.body, b"raw\0");
    }

    #[test]
    fn no_id_is_no_alert() {
        assert_eq!(classic(&[("alert_name", "x")]).unwrap_err(), Malformed::NoId("alert_id"));
        assert_eq!(classic(&[("alert_id", "")]).unwrap_err(), Malformed::NoId("alert_id"));
        assert_eq!(classic(&[("alert_id", &"9".repeat(256))]).unwrap_err(), Malformed::NoId("alert_id"));
    }

    #[test]
    fn billing_bodies() {
        let check = |body: &str| NewAlert::billing(body.as_bytes().to_vec(), "sig".into()).map(|alert| alert.alert_id);
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
    fn a_day_means_its_end() {
        let check = |text: &str| end_of(text).map(|time| time.to_rfc3339());
        assert_eq!(check("2020-09-03").as_deref(), Some("2020-09-04T00:00:00+00:00"));
        assert_eq!(check("2020-08-12 19:51:38").as_deref(), Some("2020-08-12T19:51:38+00:00"));
        assert_eq!(check("2023-08-22T18:55:19.445267Z").as_deref(), Some("2023-08-22T18:55:19.445267+00:00"));
        assert_eq!(check("cancellation_effective_date"), None);
    }
}
