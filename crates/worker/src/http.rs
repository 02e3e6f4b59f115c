//! The one place where the worker speaks HTTP.
//!
//! In: a base URL (with or without a path), the headers that every request to a vendor carries, and the requests. Out: an
//! [`Answer`], whatever its status, or a [`Failure`] when there was none. What a status means to everybody alike is said
//! by [`Answer::failure`]; the vendors' own rules are in their own modules.
//!
//! Nothing here names a URL in a message: they carry e-mail addresses. Redirects are not followed: one would hand the
//! token to another address, and means that the base URL is not the right one. Nothing is retried: the action's row is.

use std::cell::Cell;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, NaiveDateTime, Utc};
use oarlock_outbox::TraceParent;
use oarlock_service::trace;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::failure::{Failure, Meaning};
use crate::finding::NOT_THE_API;

/// How much of an answer is read. The largest we ask for is a page of fifty people.
const LARGEST_ANSWER: usize = 1 << 20;

/// The pause after a 429 that does not say how long.
const PAUSE: Duration = Duration::from_secs(30);

/// The longest a vendor can make us wait: beyond it a number is a mistake.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Client {
    client: reqwest::Client,
    base: Url,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// `headers` go with every request; `timeout` bounds each request from connecting to the last byte of the answer.
    pub(crate) fn new(base: &Url, headers: HeaderMap, timeout: Duration) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("oarlock/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout)
            .build()
            .context("failed to set up TLS")?;
        Ok(Self { client, base: base.clone() })
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.request(Method::GET, self.url(path))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.request(Method::POST, self.url(path))
    }

    pub(crate) fn delete(&self, path: &str) -> RequestBuilder {
        self.client.request(Method::DELETE, self.url(path))
    }

    /// `path` below the base URL, which may have a path of its own: `Url::join` would replace it.
    fn url(&self, path: &str) -> Url {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{}", self.base.path().trim_end_matches('/'), path.trim_start_matches('/')));
        url.set_query(query);
        url
    }
}

/// `Authorization: Bearer …`. `key` is the setting to name if the token cannot be a header.
pub(crate) fn bearer(token: &SecretString, key: &'static str) -> anyhow::Result<HeaderValue> {
    secret(&format!("Bearer {}", token.expose_secret()), key)
}

/// `Authorization: Basic …`.
pub(crate) fn basic(user: &str, token: &SecretString, key: &'static str) -> anyhow::Result<HeaderValue> {
    secret(&format!("Basic {}", BASE64.encode(format!("{user}:{}", token.expose_secret()))), key)
}

fn secret(value: &str, key: &'static str) -> anyhow::Result<HeaderValue> {
    // The error would not show the value, but says nothing either.
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| anyhow::anyhow!("{key} holds a character that no HTTP header can carry, such as a line break"))?;
    value.set_sensitive(true);
    Ok(value)
}

tokio::task_local! {
    /// The status of the last answer to a request of this task.
    static LAST_STATUS: Cell<Option<u16>>;
    /// What this task's requests belong to.
    static TRACE: TraceParent;
}

/// Runs what makes requests that belong to a trace: each tells the vendor of it.
pub(crate) async fn traced<F: Future>(place: TraceParent, calls: F) -> F::Output {
    TRACE.scope(place, calls).await
}

/// Runs a vendor's method and tells the status of the last answer it got: a success does not carry it.
pub(crate) async fn with_last_status<F: Future>(calls: F) -> (F::Output, Option<u16>) {
    let observed = async {
        let output = calls.await;
        (output, LAST_STATUS.with(Cell::get))
    };
    LAST_STATUS.scope(Cell::new(None), observed).await
}

/// Sends a request and reads the answer, up to [`LARGEST_ANSWER`]: the rest is dropped, and then does not parse.
pub(crate) async fn send(request: RequestBuilder) -> Result<Answer, Failure> {
    let _ = LAST_STATUS.try_with(|last| last.set(None));
    let (client, request) = request.build_split();
    let mut request = request.map_err(|error| no_answer(&error))?;
    // Not the path and the query: they name people.
    let span = tracing::debug_span!(
        "call",
        otel.kind = "client",
        http.request.method = request.method().as_str(),
        server.address = request.url().host_str(),
        http.response.status_code = Empty,
    );
    if let Ok(place) = TRACE.try_with(|place| trace::within(&span, *place)) {
        let value = HeaderValue::try_from(place.to_string()).expect("made of what a header can carry");
        request.headers_mut().insert("traceparent", value);
    }
    receive(client.execute(request), &span).instrument(span.clone()).await
}

async fn receive(
    answering: impl Future<Output = Result<reqwest::Response, reqwest::Error>>,
    span: &Span,
) -> Result<Answer, Failure> {
    let mut response = answering.await.map_err(|error| no_answer(&error))?;
    span.record("http.response.status_code", response.status().as_u16());
    let _ = LAST_STATUS.try_with(|last| last.set(Some(response.status().as_u16())));
    let mut body = Vec::new();
    while body.len() < LARGEST_ANSWER {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = LARGEST_ANSWER - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            Ok(None) => break,
            // The status of an error says enough by itself.
            Err(_) if !response.status().is_success() => break,
            Err(error) => return Err(no_answer(&error)),
        }
    }
    Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body, received: Utc::now() })
}

fn no_answer(error: &reqwest::Error) -> Failure {
    let kind = match error {
        _ if error.is_timeout() => "timed out",
        _ if error.is_connect() => "failed to connect",
        _ if error.is_builder() => "failed to build the request",
        _ if error.is_body() || error.is_decode() => "the answer broke off",
        _ => "failed to get an answer",
    };
    // Only reqwest's own text holds the URL; the innermost cause says what happened ("connection refused", "failed to
    // lookup address information", "invalid peer certificate").
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(|cause| cause.source()) {
        cause = Some(deeper);
    }
    let detail = match cause {
        Some(cause) if !error.is_timeout() => format!("{kind}: {cause}"),
        _ => kind.to_owned(),
    };
    Failure::new(Meaning::Transient { retry_after: None }, None, detail)
}

/// What a vendor answered. It has no `Debug`: bodies never reach a log.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    received: DateTime<Utc>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether a page for people came, so that not the API answered but something before it: a proxy, a login, a notice.
    pub(crate) fn is_page(&self) -> bool {
        // Nothing comes with these two, whatever the header says of it.
        if matches!(self.status, 204 | 205) {
            return false;
        }
        let html = self.header("content-type").is_some_and(|kind| kind.to_ascii_lowercase().contains("html"));
        html || self.body.trim_ascii_start().starts_with(b"<")
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, what: &str) -> Result<T, Failure> {
        // The parser's message may quote the body.
        serde_json::from_slice(&self.body).map_err(|_| {
            let detail = format!("{what}: HTTP {} with {NOT_THE_API}", self.status);
            Failure::new(Meaning::Transient { retry_after: None }, Some(self.status), detail)
        })
    }

    /// What an unwelcome status means wherever no rule of the vendor says otherwise. `said` is the vendor's message or our
    /// advice, `address` the setting that holds the base URL.
    pub(crate) fn failure(&self, what: &str, said: &str, address: &str) -> Failure {
        let page = format!("a page instead of the API's answer; is {address} right?");
        let said = if said.is_empty() && self.is_page() { page.as_str() } else { said };
        match self.status {
            300..=399 => {
                let said = format!("a redirect, which is not followed; set {address} to the address it leads to");
                self.meaning(Meaning::Configuration, what, &said)
            }
            401 | 403 | 405 | 406 | 407 | 410 | 415 => self.meaning(Meaning::Configuration, what, said),
            408 | 425 | 500..=599 => self.meaning(Meaning::Transient { retry_after: self.retry_after() }, what, said),
            429 => self.meaning(Meaning::RateLimited { retry_after: self.pause() }, what, said),
            // A success that is a page: something before the API is in the way, most often for a short time.
            200..=299 => self.meaning(Meaning::Transient { retry_after: None }, what, said),
            _ => self.meaning(Meaning::Unknown, what, said),
        }
    }

    pub(crate) fn meaning(&self, meaning: Meaning, what: &str, said: &str) -> Failure {
        let colon = if said.is_empty() { "" } else { ": " };
        Failure::new(meaning, Some(self.status), format!("{what}: HTTP {}{colon}{said}", self.status))
    }

    /// `Retry-After`, in seconds or as a date: servers send either (RFC 9110, 10.2.3).
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.header(RETRY_AFTER.as_str())?.trim();
        let seconds = || value.parse().ok().map(Duration::from_secs);
        let date = || DateTime::parse_from_rfc2822(value).ok().map(|at| self.until(at.to_utc()));
        seconds().or_else(date).map(|wait| wait.min(LONGEST_PAUSE))
    }

    /// How long a vendor that said 429 wants to be left alone. Atlassian's gateway has been seen to leave `Retry-After` out;
    /// `X-RateLimit-Reset` is then the time at which there is room again (ISO 8601, or seconds since 1970 elsewhere).
    pub(crate) fn pause(&self) -> Duration {
        let reset = || {
            let value = self.header("x-ratelimit-reset")?.trim();
            let full = || DateTime::parse_from_rfc3339(value).ok().map(|at| at.to_utc());
            let minutes = || NaiveDateTime::parse_from_str(value, "%Y-%m-%dT%H:%MZ").ok().map(|at| at.and_utc());
            let epoch = || value.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
            full().or_else(minutes).or_else(epoch).map(|at| self.until(at))
        };
        self.retry_after().or_else(reset).unwrap_or(PAUSE).clamp(Duration::from_secs(1), LONGEST_PAUSE)
    }

    fn until(&self, at: DateTime<Utc>) -> Duration {
        (at - self.received).to_std().unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn of(status: u16, headers: &[(&'static str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| {
            (reqwest::header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        });
        let received = DateTime::parse_from_rfc3339("2026-11-24T12:00:00Z").unwrap().to_utc();
        Self { status, headers: headers.collect(), body: body.as_bytes().to_vec(), received }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_path_goes_below_the_base() {
        let check = |base: &str, path: &str, expected: &str| {
            let client = Client::new(&base.parse().unwrap(), HeaderMap::new(), PAUSE).unwrap();
            assert_eq!(client.url(path).as_str(), expected);
        };
        check("https://acme.example", "/rest/api/2/user", "https://acme.example/rest/api/2/user");
        check("https://acme.example/jira", "/rest/api/2/user", "https://acme.example/jira/rest/api/2/user");
        check(
            "https://api.atlassian.com/ex/jira/ID/",
            "/rest/api/3/user",
            "https://api.atlassian.com/ex/jira/ID/rest/api/3/user",
        );
        check(
            "https://acme.example/jira",
            "/rest/invite/organisation?name=a b",
            "https://acme.example/jira/rest/invite/organisation?name=a%20b",
        );
    }

    #[test]
    fn how_long_to_wait() {
        let seconds = Duration::from_secs;
        let check = |headers: &[(&'static str, &str)], retry_after: Option<u64>, pause: u64| {
            let answer = Answer::of(429, headers, "");
            assert_eq!(answer.retry_after(), retry_after.map(seconds), "{headers:?}");
            assert_eq!(answer.pause(), seconds(pause), "{headers:?}");
        };
        check(&[], None, 30);
        check(&[("retry-after", "7")], Some(7), 7);
        check(&[("retry-after", "0")], Some(0), 1);
        check(&[("retry-after", "99999999")], Some(86400), 86400);
        check(&[("retry-after", "18446744073709551615")], Some(86400), 86400);
        check(&[("retry-after", "soon")], None, 30);
        check(&[("retry-after", "Tue, 24 Nov 2026 12:01:00 GMT")], Some(60), 60);
        check(&[("retry-after", "Tue, 24 Nov 2026 11:00:00 GMT")], Some(0), 1);
        check(&[("x-ratelimit-reset", "2026-11-24T12:00:45Z")], None, 45);
        check(&[("x-ratelimit-reset", "2026-11-24T12:02Z")], None, 120);
        check(&[("x-ratelimit-reset", "1795521610")], None, 10);
        check(&[("x-ratelimit-reset", "2026-11-24T12:00:45Z"), ("retry-after", "5")], Some(5), 5);
    }

    #[test]
    fn what_a_status_means_everywhere() {
        let check = |status, expected| {
            let failure = Answer::of(status, &[("retry-after", "9")], "").failure("asking", "no", "x.base_url");
            assert_eq!((failure.meaning, failure.http_status), (expected, Some(status)), "{status}");
        };
        let wait = Duration::from_secs(9);
        for status in [301, 302, 304, 307, 308, 401, 403, 405, 407, 410, 415] {
            check(status, Meaning::Configuration);
        }
        for status in [408, 425, 500, 502, 503, 504, 522, 599] {
            check(status, Meaning::Transient { retry_after: Some(wait) });
        }
        check(429, Meaning::RateLimited { retry_after: wait });
        for status in [400, 404, 409, 418, 999] {
            check(status, Meaning::Unknown);
        }
        let page = Answer::of(403, &[], "<!doctype html>ann@example.com").failure("asking", "", "x.base_url");
        assert_eq!(page.detail(), "asking: HTTP 403: a page instead of the API's answer; is x.base_url right?");
        let redirect = Answer::of(302, &[], "").failure("asking", "", "x.base_url");
        assert!(redirect.detail().contains("set x.base_url"), "{redirect}");
    }

    #[test]
    fn a_token_is_in_no_message() {
        let debug = format!("{:?}", bearer(&"geheim".into(), "x.token").unwrap());
        assert!(!debug.contains("geheim"), "{debug}");
        let error = basic("bot", &"ge\nheim".into(), "x.token").map(drop);
        assert!(error.is_ok(), "base64 carries anything");
        let error = bearer(&"ge\nheim".into(), "x.token").unwrap_err().to_string();
        assert!(error.contains("x.token") && !error.contains("heim"), "{error}");
    }

    #[tokio::test]
    async fn an_error_that_breaks_off_is_the_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = Client::new(&base, HeaderMap::new(), PAUSE).unwrap();
        for (status, expected) in [(200, None), (401, Some(401)), (429, Some(429)), (503, Some(503))] {
            let answering = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let head = format!("HTTP/1.1 {status} X\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\n{{\"ok\":");
                stream.read_buf(&mut Vec::new()).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
            };
            let (answer, ()) = tokio::join!(send(client.get("/user")), answering);
            assert_eq!(answer.as_ref().ok().map(|answer| answer.status), expected);
            assert_eq!(answer.ok().and_then(|answer| answer.retry_after()), expected.map(|_| Duration::from_secs(7)));
        }
    }

    #[tokio::test]
    async fn no_answer_is_transient_and_names_no_url() {
        // Port 1 is refused on any machine that runs tests.
        let client = Client::new(&"http://127.0.0.1:1/base".parse().unwrap(), HeaderMap::new(), PAUSE).unwrap();
        let failure = send(client.get("/user?query=ann%40example.com")).await.err().unwrap();
        assert_eq!((failure.meaning, failure.http_status), (Meaning::Transient { retry_after: None }, None));
        let detail = failure.detail().to_lowercase();
        assert!(detail.contains("refused") && !detail.contains("ann") && !detail.contains("127.0.0.1"), "{detail}");
    }
}
