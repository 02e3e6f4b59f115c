//! A body is proved to be Paddle's.
//!
//! In: the raw bytes as they came, and for Billing the header. Out: a [`Verified`] alert, which nothing else can make and
//! which alone the intake accepts; or a [`Refusal`]. Which generation: by the header, since a Classic account receives
//! header-signed JSON as well (its newer invoicing).

use std::time::SystemTime;

use bytes::Bytes;
use oarlock_outbox::received::{Malformed, NewAlert};
use oarlock_service::config::ReceiverConfig;

mod billing;
mod classic;

/// An alert that Paddle signed.
#[derive(Debug)]
pub struct Verified(NewAlert);

impl Verified {
    pub fn alert(&self) -> &NewAlert {
        &self.0
    }

    pub(crate) fn into_alert(self) -> NewAlert {
        self.0
    }
}

/// Why a body is not accepted. The text is for the log; it quotes nothing of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no key or secret is configured for this generation of Paddle")]
    NotConfigured,
    #[error("there is no signature")]
    NoSignature,
    #[error("there are several Paddle-Signature headers")]
    SeveralSignatures,
    #[error("the signature is not of the form Paddle writes")]
    NotASignature,
    #[error(
        "the signature is not by any of the configured keys: a wrong key, another environment's, or a body changed on the way"
    )]
    WrongSignature,
    #[error(
        "the signature is {seconds_off} s off our clock, more than paddle.billing.tolerance: check this machine's time"
    )]
    OutsideTolerance { seconds_off: u64 },
    #[error("the body is not a form")]
    NotAForm,
    /// PHP, which Paddle signs with, reads such names in ways that depend on its version; no documented field has one.
    #[error("a field has a name that PHP would rewrite")]
    AmbiguousName,
    #[error("the alert is malformed: {0}")]
    Malformed(#[from] Malformed),
}

/// All configured keys and secrets.
#[derive(Debug)]
pub struct Verifier {
    classic: classic::PublicKeys,
    billing: billing::Secrets,
}

impl Verifier {
    /// # Errors
    /// Every configured key that is none.
    pub fn new(config: &ReceiverConfig) -> Result<Self, Vec<String>> {
        let classic = classic::PublicKeys::new(&config.classic_public_keys)?;
        let billing = billing::Secrets::new(&config.billing_webhook_secrets, config.billing_tolerance);
        Ok(Self { classic, billing })
    }

    pub fn can_verify_anything(&self) -> bool {
        !self.classic.is_empty() || !self.billing.is_empty()
    }

    /// Verifies a Classic alert; `says_json` tells an unsigned Billing notification from a broken form.
    ///
    /// # Errors
    /// When it is not proved to be Paddle's, or is no alert.
    pub fn verify_classic(&self, body: Bytes, says_json: bool) -> Result<Verified, Refusal> {
        self.classic.verify(body, says_json).map(Verified)
    }

    /// Verifies a Billing notification, by the clock given.
    ///
    /// # Errors
    /// When it is not proved to be Paddle's, or is no alert.
    pub fn verify_billing(&self, header: &[u8], body: Bytes, now: SystemTime) -> Result<Verified, Refusal> {
        self.billing.verify(header, body, now).map(Verified)
    }
}
