//! Billing: HMAC-SHA-256 over the time and the body.
//!
//! `Paddle-Signature: ts=<unix seconds>;h1=<64 hex digits>`; the message is `ts`, a colon and the raw body; the key is the
//! whole secret as it is shown (<https://developer.paddle.com/webhooks/signature-verification>). While a secret is rotated
//! there are several `h1`, and several secrets here: any pair that fits will do. Unknown keys are for later versions.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use bytes::Bytes;
use oarlock_outbox::received::NewAlert;
use secrecy::{ExposeSecret, SecretString};

use super::Refusal;

/// More signatures than any rotation makes: what comes after is not looked at.
const MOST_SIGNATURES: usize = 8;

pub(super) struct Secrets {
    keys: Vec<hmac::Key>,
    tolerance: Duration,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.keys.len())
    }
}

impl Secrets {
    pub(super) fn new(secrets: &[SecretString], tolerance: Duration) -> Self {
        let keys =
            secrets.iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes())).collect();
        Self { keys, tolerance }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn verify(&self, header: &[u8], body: Bytes, now: SystemTime) -> Result<NewAlert, Refusal> {
        if self.is_empty() {
            return Err(Refusal::NotConfigured);
        }
        let text = std::str::from_utf8(header).map_err(|_| Refusal::NotASignature)?;
        let Header { time, seconds, signatures } = Header::parse(text).ok_or(Refusal::NotASignature)?;
        let fits = self.keys.iter().any(|key| {
            let mut mac = hmac::Context::with_key(key);
            mac.update(time.as_bytes());
            mac.update(b":");
            mac.update(&body);
            let tag = mac.sign();
            signatures.iter().any(|signature| verify_slices_are_equal(tag.as_ref(), signature).is_ok())
        });
        if !fits {
            return Err(Refusal::WrongSignature);
        }
        // Only now: of a time that is not signed nothing can be said.
        let ours = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let seconds_off = ours.abs_diff(seconds);
        if seconds_off > self.tolerance.as_secs() {
            return Err(Refusal::OutsideTolerance { seconds_off });
        }
        Ok(NewAlert::billing(body, text.to_owned())?)
    }
}

struct Header<'h> {
    /// As received: this text is what was signed.
    time: &'h str,
    seconds: u64,
    signatures: Vec<[u8; 32]>,
}

impl<'h> Header<'h> {
    fn parse(header: &'h str) -> Option<Self> {
        let (mut time, mut signatures) = (None, Vec::new());
        for part in header.split(';') {
            match part.trim().split_once('=') {
                Some(("ts", value)) if time.is_none() => time = Some(value),
                Some(("ts", _)) => return None,
                Some(("h1", value)) if signatures.len() < MOST_SIGNATURES => signatures.extend(from_hex(value)),
                _ => {}
            }
        }
        let time = time.filter(|time| !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit()))?;
        (!signatures.is_empty()).then_some(())?;
        Some(Self { time, seconds: time.parse().ok()?, signatures })
    }
}

/// 64 lower-case digits, as Paddle writes them: of two ways to write a signature only one is right.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    let mut bytes = [0; 32];
    (text.len() == 64).then_some(())?;
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
