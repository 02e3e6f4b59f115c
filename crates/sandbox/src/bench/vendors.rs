//! Jira and Slack, answering at once: the sandbox's own stand-ins keep state and check what they are asked, which would be
//! what is measured.
//!
//! One address is both: Slack's method is told by its path. Each call is counted for its customer, so that calls that were
//! repeated are known. Slack can be made to hang.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::time::sleep;
use url::form_urlencoded;

#[derive(Debug)]
pub(super) struct Vendors {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    slack: Calls,
    jira: Calls,
    slack_hangs: AtomicBool,
}

/// The calls to one vendor since they were last forgotten.
#[derive(Debug, Default)]
pub(super) struct Calls {
    all: AtomicUsize,
    by_customer: Mutex<HashMap<String, Called>>,
}

/// Calls for one customer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Called {
    pub(super) times: usize,
    pub(super) first: Instant,
}

impl Vendors {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("failed to listen for the stand-ins")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared })
    }

    /// The base URL of both.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn slack(&self) -> &Calls {
        &self.shared.slack
    }

    pub(super) fn jira(&self) -> &Calls {
        &self.shared.jira
    }

    /// Whether Slack leaves its callers waiting from now on.
    pub(super) fn slack_hangs(&self, hangs: bool) {
        self.shared.slack_hangs.store(hangs, Ordering::Relaxed);
    }

    pub(super) fn forget(&self) {
        self.slack_hangs(false);
        for calls in [self.slack(), self.jira()] {
            calls.all.store(0, Ordering::Relaxed);
            calls.customers().clear();
        }
    }
}

impl Calls {
    fn customers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Called>> {
        self.by_customer.lock().expect("no call panics")
    }

    fn came(&self, customer: String) {
        let now = Instant::now();
        self.customers().entry(customer).or_insert(Called { times: 0, first: now }).times += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    pub(super) fn of(&self, customer: &str) -> Option<Called> {
        self.customers().get(customer).copied()
    }

    /// Calls beyond the first of each customer.
    pub(super) fn repeated(&self) -> usize {
        self.customers().values().map(|called| called.times - 1).sum()
    }

    /// Waits until there were as many.
    pub(super) async fn reach(&self, count: usize, patience: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.count() < count {
            if started.elapsed() > patience {
                bail!("{} of {count} calls came within {patience:?}", self.count());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Never an error but when file descriptors run out, which then shows as calls that do not come.
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(Arc::clone(&shared), request));
            // A worker that is killed breaks off its connections.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else { return Ok(said(400, "{}")) };
    if parts.uri.path() == "/admin.users.invite" {
        let email = form_urlencoded::parse(&body).find(|(name, _)| name == "email");
        shared.slack.came(email.map(|(_, email)| email.into_owned()).unwrap_or_default());
        if shared.slack_hangs.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        return Ok(said(200, r#"{"ok":true}"#));
    }
    match serde_json::from_slice::<NewCustomer>(&body) {
        Ok(customer) => {
            let account = format!(r#"{{"accountId":"bench:{}","active":true}}"#, customer.email);
            shared.jira.came(customer.email);
            Ok(said(201, &account))
        }
        Err(_) => Ok(said(404, "{}")),
    }
}

/// What Jira is asked to invite.
#[derive(Debug, Deserialize)]
struct NewCustomer {
    email: String,
}

fn said(status: u16, json: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(json.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header"));
    response
}
