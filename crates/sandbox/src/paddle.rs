//! Paddle, both ways: the sender of signed alerts, and the API where a customer's e-mail is looked up.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use oarlock_sandbox::paddle::{BillingSigner, Billing, Classic, ClassicSigner, Sender};
//!
//! let sender = Sender::new();
//! let signer = ClassicSigner::cached()?;
//! let alert = Classic::subscription_created("ann@example.com").subscription("55").plan("7").status("active");
//! let reply = sender.post("http://127.0.0.1:8080/paddle", &alert.signed_by(&signer)).await?;
//! assert_eq!(reply.status, 200);
//!
//! let signer = BillingSigner::new("pdl_ntfset_sandbox");
//! let alert = Billing::subscription_canceled("ctm_1").subscription("sub_55");
//! sender.post("http://127.0.0.1:8080/paddle", &alert.signed_by(&signer)).await?;
//! # Ok(())
//! # }
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;

pub mod api;
pub mod billing;
pub mod classic;
pub mod history;
mod signer;

pub use self::billing::{Billing, BillingAlert};
pub use self::classic::{Classic, ClassicAlert};
pub use self::signer::{BillingSigner, ClassicSigner, cache_directory};

/// An alert as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub body: Vec<u8>,
    pub content_type: &'static str,
    /// `Paddle-Signature`, for Billing; Classic signs in a field of the body.
    pub header: Option<(&'static str, String)>,
}

/// What an alert was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    pub took: Duration,
}

/// Posts alerts, once each: Paddle's retries are up to the caller.
#[derive(Debug, Clone)]
pub struct Sender {
    client: reqwest::Client,
}

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    /// It posts straight to the address given: a proxy of the environment has no business between the two.
    #[must_use]
    pub fn new() -> Self {
        let builder = || reqwest::Client::builder().no_proxy();
        // A machine without certificates can still post to plain HTTP.
        let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
        Self { client: client.expect("nothing is left that could fail") }
    }

    /// # Errors
    /// When no answer came: refused, reset, or not within 60 s.
    pub async fn post(&self, url: &str, signed: &Signed) -> anyhow::Result<Reply> {
        let mut request = self.client.post(url).timeout(Duration::from_secs(60)).header("User-Agent", "Paddle");
        request = request.header("Content-Type", signed.content_type).body(signed.body.clone());
        if let Some((name, value)) = &signed.header {
            request = request.header(*name, value);
        }
        let started = Instant::now();
        let response = request.send().await.context("failed to post the alert")?;
        let status = response.status().as_u16();
        let body = response.text().await.context("failed to read the answer")?;
        Ok(Reply { status, body, took: started.elapsed() })
    }
}

/// Numbers that grow from alert to alert, also from one process to the next: they start at the microsecond it is.
fn next_number() -> i64 {
    static NEXT: OnceLock<AtomicI64> = OnceLock::new();
    NEXT.get_or_init(|| AtomicI64::new(Utc::now().timestamp_micros())).fetch_add(1, Ordering::Relaxed)
}
