//! Paddle Billing's API: whose e-mail address a customer id stands for.
//!
//! In: a customer id (`ctm_…`), since alerts of Billing carry no address. Out: the customer. One call,
//! `GET /customers/{id}`, permission `customer.read` (developer.paddle.com/api-reference/customers/get-customer). A wrong
//! or missing key answers 403 and not 401; a customer of the other environment answers 404 like one that never was.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use oarlock_service::config;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use crate::failure::{Failure, Meaning};
use crate::finding::{Finding, Trouble, Vendor, round, until};
use crate::http::{self, Answer};

/// A customer that cannot be: asking for it tells whether the key is good, and reads nothing about anybody.
const NOBODY: &str = "ctm_00000000000000000000000000";

const VENDOR: Vendor = Vendor {
    name: "Paddle",
    address: "paddle.billing.api_url",
    status: "https://paddlestatus.com",
    token: NEW_KEY,
    scopes: NEW_KEY,
};

const NEW_KEY: &str = "make a key with the permission customer.read (Developer tools, Authentication), put it where \
                       paddle.billing.api_key or paddle.billing.api_key_file has it, and restart the workers";

#[derive(Debug)]
pub struct Paddle {
    /// None without a key: only installations that sell through Billing need one.
    http: Option<http::Client>,
    /// What is wrong if the key and the address are of different environments, and what to do.
    mismatch: Option<(&'static str, &'static str)>,
}

/// A customer of Paddle Billing.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Customer {
    pub id: String,
    pub email: String,
    /// When anything about the customer last changed, by Paddle's clock: how this address compares with one that an alert told.
    pub updated_at: DateTime<Utc>,
}

impl fmt::Debug for Customer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Customer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Paddle {
    /// # Errors
    /// A key that cannot be sent, no TLS.
    pub fn new(settings: &config::PaddleApi, request_timeout: Duration) -> anyhow::Result<Self> {
        let Some(key) = &settings.api_key else { return Ok(Self { http: None, mismatch: None }) };
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, http::bearer(key, "paddle.billing.api_key")?),
            (HeaderName::from_static("paddle-version"), HeaderValue::from_static("1")),
        ]);
        let mismatch = mismatch(key.expose_secret(), settings.api_url.host_str().unwrap_or_default());
        Ok(Self { http: Some(http::Client::new(&settings.api_url, headers, request_timeout)?), mismatch })
    }

    /// The customer with this id.
    ///
    /// # Errors
    /// What Paddle refused, by what to do about it; no key is a matter of configuration.
    pub async fn customer(&self, id: &str) -> Result<Customer, Failure> {
        // It becomes part of a path.
        if !id.starts_with("ctm_") || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(Failure::new(Meaning::Permanent, None, "reading the customer: the id is not one of Paddle's"));
        }
        let Some(http) = &self.http else {
            let detail = "reading the customer: set paddle.billing.api_key, the key that customers are looked up with";
            return Err(Failure::new(Meaning::Configuration, None, detail));
        };
        customer(&http::send(http.get(&format!("customers/{id}"))).await?)
    }

    /// Whether the key is good, if there is one. Reads only.
    pub async fn check(&self) -> Vec<Finding> {
        if self.http.is_none() {
            let left_out =
                "no paddle.billing.api_key: right without Paddle Billing, for which nothing is done without it";
            return vec![Finding::new("paddle", Ok(left_out.to_owned()))];
        }
        let check = |result| vec![Finding::new("paddle.credentials", result)];
        if let Some((mismatch, remedy)) = self.mismatch {
            return check(Err(Trouble::new(mismatch, remedy)));
        }
        match until(round(), self.customer(NOBODY)).await {
            // Paddle looks at the key and its permissions first.
            Ok(_) | Err(Failure { http_status: Some(404), meaning: Meaning::Permanent, .. }) => {
                check(Ok("accepted, may read customers".to_owned()))
            }
            Err(failure) if failure.http_status.is_none() => {
                vec![VENDOR.finding("paddle.address", None, Err(failure), "")]
            }
            Err(failure) => {
                let remedy =
                    if failure.http_status == Some(404) { "set paddle.billing.api_url right" } else { NEW_KEY };
                vec![VENDOR.finding("paddle.credentials", None, Err(failure), remedy)]
            }
        }
    }
}

/// Keys say which environment they are for: `pdl_live_apikey_…`, `pdl_sdbx_apikey_…`.
fn mismatch(key: &str, host: &str) -> Option<(&'static str, &'static str)> {
    let (live, sandbox) = ("api.paddle.com", "sandbox-api.paddle.com");
    if key.starts_with("pdl_sdbx_") && host == live {
        let remedy = "set paddle.billing.api_url to https://sandbox-api.paddle.com, or the key to a live one";
        Some(("paddle.billing.api_key is a key of the sandbox, paddle.billing.api_url is the live one's", remedy))
    } else if key.starts_with("pdl_live_") && host == sandbox {
        let remedy = "set paddle.billing.api_url to https://api.paddle.com, or the key to one of the sandbox";
        Some(("paddle.billing.api_key is a live key, paddle.billing.api_url is the sandbox's", remedy))
    } else {
        None
    }
}

#[derive(Deserialize)]
struct Found {
    data: Customer,
}

#[derive(Deserialize)]
struct Refused {
    error: Refusal,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    #[serde(default)]
    detail: String,
}

/// What an answer to `GET /customers/{id}` means.
fn customer(answer: &Answer) -> Result<Customer, Failure> {
    let what = "reading the customer";
    if answer.is_success() {
        return answer.json::<Found>(what).map(|found| found.data);
    }
    let refused = serde_json::from_slice::<Refused>(&answer.body).ok().map(|body| body.error);
    let said = refused.as_ref().map(|error| format!("{}: {}", error.code, error.detail)).unwrap_or_default();
    Err(match (answer.status, &refused) {
        (404, Some(_)) => {
            let said = "not found: also the answer to a key of the other environment";
            answer.meaning(Meaning::Permanent, what, said)
        }
        (404, None) => {
            answer.meaning(Meaning::Configuration, what, "no answer of Paddle's API; is paddle.billing.api_url right?")
        }
        (400, Some(_)) => answer.meaning(Meaning::Permanent, what, &said),
        (401 | 403, Some(_)) => {
            let said = format!(
                "{said}; paddle.billing.api_key must be a valid key of the environment of paddle.billing.api_url, with the permission customer.read"
            );
            answer.meaning(Meaning::Configuration, what, &said)
        }
        _ => answer.failure(what, &said, "paddle.billing.api_url"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: Result<&str, Meaning>) {
        let found = customer(&Answer::of(status, headers, body));
        let found = found.map(|customer| customer.email).map_err(|failure| failure.meaning);
        assert_eq!(found, expected.map(str::to_owned), "{status} {body}");
    }

    fn error(code: &str) -> String {
        format!(r#"{{"error":{{"type":"request_error","code":"{code}","detail":"No."}},"meta":{{"request_id":"r"}}}}"#)
    }

    #[test]
    fn what_an_answer_means() {
        let found = r#"{"data":{"id":"ctm_1","status":"active","custom_data":{},"name":null,"email":"ann@example.com","updated_at":"2026-11-24T10:00:00.123Z"},"meta":{}}"#;
        let transient = Err(Meaning::Transient { retry_after: None });
        check(200, &[], found, Ok("ann@example.com"));
        check(200, &[], r#"{"data":{"id":"ctm_1"}}"#, transient);
        check(200, &[], "<html>", transient);
        check(400, &[], &error("bad_request"), Err(Meaning::Permanent));
        check(401, &[], &error("authentication_malformed"), Err(Meaning::Configuration));
        check(403, &[], &error("authentication_missing"), Err(Meaning::Configuration));
        check(403, &[], &error("forbidden"), Err(Meaning::Configuration));
        check(403, &[], "<html>", Err(Meaning::Configuration));
        check(404, &[], &error("not_found"), Err(Meaning::Permanent));
        check(404, &[], "<html>", Err(Meaning::Configuration));
        check(302, &[], "", Err(Meaning::Configuration));
        let limited = |seconds| Err(Meaning::RateLimited { retry_after: Duration::from_secs(seconds) });
        check(429, &[("retry-after", "12")], &error("too_many_requests"), limited(12));
        check(429, &[], &error("too_many_requests"), limited(30));
        check(500, &[], &error("internal_error"), transient);
        check(503, &[("retry-after", "2")], "", Err(Meaning::Transient { retry_after: Some(Duration::from_secs(2)) }));
        check(418, &[], "", Err(Meaning::Unknown));
    }

    #[test]
    fn a_key_of_the_other_environment_is_seen() {
        assert!(mismatch("pdl_sdbx_apikey_1", "api.paddle.com").is_some());
        assert!(mismatch("pdl_live_apikey_1", "sandbox-api.paddle.com").is_some());
        assert!(mismatch("pdl_live_apikey_1", "api.paddle.com").is_none());
        assert!(mismatch("anything", "127.0.0.1").is_none());
    }

    #[tokio::test]
    async fn nothing_is_asked_without_a_key_or_an_id() {
        let settings = config::PaddleApi { api_url: "http://127.0.0.1:1".parse().unwrap(), api_key: None };
        let paddle = Paddle::new(&settings, Duration::from_secs(1)).unwrap();
        let meaning = async |id: &str| paddle.customer(id).await.unwrap_err().meaning;
        assert_eq!(meaning("ctm_1").await, Meaning::Configuration);
        assert_eq!(meaning("ctm_1/../../events").await, Meaning::Permanent);
        assert_eq!(meaning("").await, Meaning::Permanent);
        let checked = paddle.check().await;
        assert!(matches!(&checked[..], [one] if one.result.is_ok()), "{checked:?}");
        let shown =
            format!("{:?}", Customer { id: "ctm_1".into(), email: "ann@example.com".into(), updated_at: Utc::now() });
        assert!(!shown.contains("ann"), "{shown}");
    }
}
