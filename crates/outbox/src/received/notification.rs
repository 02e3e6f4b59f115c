//! What is read of a Billing notification, in one walk that copies nothing.
//!
//! JSON as RFC 8259 hopes for: an object, no name twice. Which of two values was meant cannot be known, and two readers of the
//! same signed body must not come to two results.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::Malformed;

const DUPLICATE: &str = "duplicate name";

/// The members that are read, those that are text.
#[derive(Debug, Default)]
pub(super) struct Notification<'b> {
    pub(super) event_id: Option<Cow<'b, str>>,
    pub(super) event_type: Option<Cow<'b, str>>,
    pub(super) occurred_at: Option<Cow<'b, str>>,
    pub(super) data: Data<'b>,
    /// Whether any Postgres reads the text just so: all numbers are integers of 64 bits, and no character that a database of
    /// another encoding than UTF-8 may know nothing of is written as an escape.
    pub(super) is_plain: bool,
}

#[derive(Debug, Default)]
pub(super) struct Data<'b> {
    pub(super) id: Option<Cow<'b, str>>,
    pub(super) subscription_id: Option<Cow<'b, str>>,
    pub(super) email: Option<Cow<'b, str>>,
}

/// Reads JSON that Postgres can store.
///
/// # Errors
/// When it is not an object, or a name in it appears twice.
pub(super) fn read(text: &[u8]) -> Result<Notification<'_>, Malformed> {
    let mut walk = Walk { found: Notification { is_plain: true, ..Notification::default() }, names: Vec::new() };
    let mut json = serde_json::Deserializer::from_slice(text);
    let walked = Value { walk: &mut walk, place: Place::Whole }.deserialize(&mut json).and_then(|()| json.end());
    match walked {
        Ok(()) if text.trim_ascii_start().starts_with(b"{") => Ok(walk.found),
        Err(error) if error.is_data() && error.to_string().starts_with(DUPLICATE) => Err(Malformed::DuplicateName),
        _ => Err(Malformed::NotJson),
    }
}

/// Puts U+FFFD in place of what no text in Postgres holds: NUL, and a surrogate without its other half, which is text to
/// Paddle, where somebody cut a string, and to no parser here. In JSON both can be written as an escape only.
pub(super) fn storable(body: &[u8]) -> Cow<'_, [u8]> {
    let unit = |at: usize| {
        let digits = body.get(at..at + 6)?.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))
    };
    let (mut text, mut at) = (Cow::Borrowed(body), 0);
    while let Some(next) = body[at..].iter().position(|byte| *byte == b'\\') {
        at += next;
        at += match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0 | 0xd800..=0xdfff) => {
                text.to_mut()[at..at + 6].copy_from_slice(b"\\ufffd");
                6
            }
            // Two bytes at once: an escaped backslash begins no escape.
            _ => 2,
        };
        at = at.min(body.len());
    }
    text
}

struct Walk<'b> {
    found: Notification<'b>,
    /// Of the objects that the walk is in, outermost first.
    names: Vec<Cow<'b, str>>,
}

/// Where in the notification a value is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Whole,
    EventId,
    EventType,
    OccurredAt,
    Data,
    DataId,
    DataSubscriptionId,
    DataEmail,
    Elsewhere,
}

impl Place {
    fn member(self, name: &str) -> Self {
        match (self, name) {
            (Self::Whole, "event_id") => Self::EventId,
            (Self::Whole, "event_type") => Self::EventType,
            (Self::Whole, "occurred_at") => Self::OccurredAt,
            (Self::Whole, "data") => Self::Data,
            (Self::Data, "id") => Self::DataId,
            (Self::Data, "subscription_id") => Self::DataSubscriptionId,
            (Self::Data, "email") => Self::DataEmail,
            _ => Self::Elsewhere,
        }
    }
}

#[derive(Deserialize)]
struct Name<'b>(#[serde(borrow)] Cow<'b, str>);

struct Value<'w, 'b> {
    walk: &'w mut Walk<'b>,
    place: Place,
}

impl<'b> Value<'_, 'b> {
    fn found(self, text: impl Into<Cow<'b, str>>) {
        let Notification { event_id, event_type, occurred_at, data, .. } = &mut self.walk.found;
        let member = match self.place {
            Place::EventId => event_id,
            Place::EventType => event_type,
            Place::OccurredAt => occurred_at,
            Place::DataId => &mut data.id,
            Place::DataSubscriptionId => &mut data.subscription_id,
            Place::DataEmail => &mut data.email,
            Place::Whole | Place::Data | Place::Elsewhere => return,
        };
        *member = Some(text.into());
    }
}

impl<'b> DeserializeSeed<'b> for Value<'_, 'b> {
    type Value = ();
    fn deserialize<D: Deserializer<'b>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'b> Visitor<'b> for Value<'_, 'b> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.walk.found.is_plain = false;
        Ok(())
    }
    fn visit_borrowed_str<E: Error>(self, text: &'b str) -> Result<(), E> {
        self.found(text);
        Ok(())
    }
    /// Text with escapes: the other kind is borrowed.
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.walk.found.is_plain &= text.is_ascii();
        self.found(text.to_owned());
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'b>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Value { walk: &mut *self.walk, place: Place::Elsewhere })?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'b>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { walk, place } = self;
        let first = walk.names.len();
        while let Some(Name(name)) = members.next_key()? {
            let place = place.member(&name);
            walk.found.is_plain &= matches!(name, Cow::Borrowed(_)) || name.is_ascii();
            walk.names.push(name);
            members.next_value_seed(Value { walk: &mut *walk, place })?;
        }
        walk.names[first..].sort_unstable();
        if walk.names[first..].windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(A::Error::custom(DUPLICATE));
        }
        walk.names.truncate(first);
        Ok(())
    }
}
