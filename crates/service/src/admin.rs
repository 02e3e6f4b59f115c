//! The admin listener: `/healthz` (the process is alive), `/readyz` (it can do its work), `/metrics` (Prometheus text).
//!
//! For operators and probes, on an address of its own; it never sees an alert.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use oarlock_outbox::{PgPool, cause, is_connection_lost, schema};
use prometheus::{Encoder, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A probe must not wait longer than the one who asks.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// A registry that says which version runs.
///
/// # Panics
/// Never: the names are constants.
pub fn registry(version: &str) -> Registry {
    let registry = Registry::new();
    let info = IntGaugeVec::new(Opts::new("oarlock_build_info", "Which version runs; always 1."), &["version"])
        .expect("a valid name");
    info.with_label_values(&[version]).set(1);
    registry.register(Box::new(info)).expect("registered once");
    registry
}

/// Asks the program that runs on this machine and listens on `admin_listen` whether it can do its work: for health checks in
/// containers, which hold nothing to ask with but the program itself.
///
/// # Errors
/// When it cannot, with the reason, or when nobody answers.
pub async fn ask(admin_listen: &str) -> io::Result<()> {
    let asking = async {
        // Listening on 0.0.0.0 is listening on everything; connecting to it is connecting to this machine.
        let nobody_answers =
            |error| io::Error::other(format!("nobody answers on {admin_listen} (admin_listen): {error}"));
        let mut stream = TcpStream::connect(admin_listen).await.map_err(nobody_answers)?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        match answer.split_once("\r\n\r\n") {
            Some((head, _)) if head.starts_with("HTTP/1.1 200 ") => Ok(()),
            Some((_, why)) => Err(io::Error::other(why.trim())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    tokio::time::timeout(READY_TIMEOUT * 2, asking).await.map_err(io::Error::from)?
}

/// Serves until the token is cancelled. `refresh` runs before each answer of `/metrics`, for gauges that are read
/// from the database; those it cannot read stay as they are.
pub async fn serve<R, F>(
    listener: TcpListener,
    pool: PgPool,
    registry: Registry,
    refresh: R,
    shutdown: CancellationToken,
) where
    R: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    let state = Arc::new((pool, registry, refresh, Readiness::default()));
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: others need them more.
                    tracing::warn!(%error, "the admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let state = Arc::clone(&state);
                async move {
                    let (pool, registry, refresh, readiness) = &*state;
                    Ok::<_, Infallible>(answer(&request, pool, registry, refresh, readiness).await)
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a connection to the admin listener ended badly");
            }
        });
    }
}

async fn answer<R, F>(
    request: &Request<Incoming>,
    pool: &PgPool,
    registry: &Registry,
    refresh: &R,
    readiness: &Readiness,
) -> Response<Full<Bytes>>
where
    R: Fn() -> F,
    F: Future<Output = ()>,
{
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        response.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("a valid header"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let asked = tokio::time::timeout(READY_TIMEOUT, ready(pool)).await;
            let ready = asked.unwrap_or(Err(NotReady { why: "the database does not answer\n", cause: None }));
            readiness.tell(&ready);
            match ready {
                Ok(()) => text(StatusCode::OK, "ok\n"),
                Err(NotReady { why, .. }) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            }
        }
        "/metrics" => {
            refresh().await;
            let mut body = Vec::new();
            let encoder = TextEncoder::new();
            match encoder.encode(&registry.gather(), &mut body) {
                Ok(()) => {
                    let mut response = Response::new(Full::new(body.into()));
                    response.headers_mut().insert(CONTENT_TYPE, encoder.format_type().parse().expect("a valid header"));
                    response
                }
                Err(error) => {
                    tracing::error!(%error, "failed to encode the metrics");
                    text(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the metrics\n")
                }
            }
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Why a program cannot do its work: for whoever asks, and in Postgres's words for the log.
struct NotReady {
    why: &'static str,
    cause: Option<String>,
}

/// What was missing last, so that a change is told once and not with each probe.
#[derive(Default)]
struct Readiness(Mutex<Option<&'static str>>);

impl Readiness {
    fn tell(&self, ready: &Result<(), NotReady>) {
        let missing = ready.as_ref().err().map(|not_ready| not_ready.why);
        let was_missing = mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), missing);
        match ready {
            _ if was_missing == missing => {}
            Ok(()) => tracing::info!("ready"),
            Err(NotReady { why, cause }) => tracing::warn!(error = cause, "not ready: {}", why.trim_end()),
        }
    }
}

async fn ready(pool: &PgPool) -> Result<(), NotReady> {
    let ask = async || schema::state(&mut pool.acquire().await?).await;
    let mut state = ask().await;
    // Of a connection that was cut a moment ago, nothing tells but this. The next one is new.
    if state.as_ref().is_err_and(is_connection_lost) {
        state = ask().await;
    }
    let (why, cause) = match state {
        Ok(schema::State::Ready) => return Ok(()),
        Ok(schema::State::Behind(_)) => ("the database is not migrated\n", None),
        Ok(schema::State::ReadOnly) => ("the database takes no writes\n", None),
        Err(error) => ("the database cannot be reached\n", Some(cause(&error))),
    };
    Err(NotReady { why, cause })
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, "text/plain; charset=utf-8".parse().expect("a valid header"));
    response
}
