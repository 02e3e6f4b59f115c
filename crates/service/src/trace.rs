//! Traces: one from Paddle's request to the last call it leads to, in both programs, by W3C Trace Context.
//!
//! Every alert has its place in a trace, whether or not anybody records it. Spans are exported by OTLP over HTTP if
//! `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) is set, and by the other standard variables; else nothing of it is
//! started. What is exported is what the logs may hold: ids and outcomes, never an address, a token or a body.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use oarlock_outbox::TraceParent;
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::config::Problems;

static EXPORTING: AtomicBool = AtomicBool::new(false);

/// Sends what is still to be exported when the program ends.
#[derive(Debug)]
pub struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    /// How long the last spans may take.
    const LAST_WORD: Duration = Duration::from_secs(3);

    /// Exports what is left. A collector that is away costs spans and nothing else.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        // It waits for a thread of its own, which in turn waits for this runtime.
        let stopping = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(Self::LAST_WORD));
        if !matches!(stopping.await, Ok(Ok(()))) {
            tracing::debug!("the last spans were not exported");
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// A variable of the exporter's, for traces or for all signals, with its name.
fn either(end: &str) -> Option<(String, String)> {
    let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{end}"), format!("OTEL_EXPORTER_OTLP_{end}")];
    names.into_iter().find_map(|name| variable(&name).map(|value| (name, value)))
}

/// Where spans are to be exported to, with the variable that says so.
fn endpoint() -> Option<(String, String)> {
    let is = |name: &str, value: &str| variable(name).is_some_and(|is| is.eq_ignore_ascii_case(value));
    either("ENDPOINT").filter(|_| !is("OTEL_SDK_DISABLED", "true") && !is("OTEL_TRACES_EXPORTER", "none"))
}

/// What is wrong with the environment's words about traces.
pub(crate) fn problems() -> Vec<String> {
    let Some((name, endpoint)) = endpoint() else { return Vec::new() };
    let mut problems = Vec::new();
    if !endpoint.starts_with("http://") {
        problems.push(format!(
            "{name} must start with http://: a collector on this machine or beside it speaks TLS to others"
        ));
    }
    if let Some((name, protocol)) = either("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf") {
        problems.push(format!("{name} must be \"http/protobuf\", not {protocol:?}"));
    }
    problems
}

/// Whether spans are to be exported, by the environment, which has no [`problems`]; starts what exports them.
pub(crate) fn start(program: &'static str) -> Result<(Exporter, Option<Tracer>), Problems> {
    let Some((name, _)) = endpoint() else { return Ok((Exporter(None), None)) };
    let timeout = either("TIMEOUT").and_then(|(_, milliseconds)| milliseconds.parse().ok()).unwrap_or(10_000);
    let client = Client { runtime: Handle::current(), timeout: Duration::from_millis(timeout) };
    let exporter =
        SpanExporter::builder().with_http().with_http_client(client).with_protocol(Protocol::HttpBinary).build();
    let exporter = exporter.map_err(|error| Problems(vec![format!("{name}: {error}")]))?;
    let mut resource = Resource::builder();
    let names_itself =
        variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|attributes| attributes.contains("service.name="));
    if variable("OTEL_SERVICE_NAME").is_none() && !names_itself {
        resource = resource.with_service_name(program);
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let tracer = provider.tracer("oarlock");
    EXPORTING.store(true, Ordering::Relaxed);
    Ok((Exporter(Some(provider)), Some(tracer)))
}

/// What a span does, in the words of OpenTelemetry.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// Answers a request.
    Server,
    /// Does later what was asked for.
    Consumer,
}

/// A span that is about to be opened, in the trace that `from` tells of or as the beginning of one.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    from: Option<TraceParent>,
    /// Unless spans are exported: then OpenTelemetry numbers them.
    own: Option<TraceParent>,
}

impl Opening {
    pub fn after(from: Option<TraceParent>) -> Self {
        let own = || from.map_or_else(TraceParent::begin, TraceParent::child);
        Self { from, own: (!EXPORTING.load(Ordering::Relaxed)).then(own) }
    }

    /// What the span's field `trace_id` is to be opened with: one that is recorded later costs the log more.
    pub fn trace_id(&self) -> Option<String> {
        self.own.map(|own| own.trace_id())
    }

    /// Puts the span in its place; returns that as whoever comes next is told of it. The span has the fields `trace_id` and
    /// `otel.kind`.
    pub fn open(self, span: &Span, role: Role) -> TraceParent {
        if let Some(own) = self.own {
            return own;
        }
        span.record(
            "otel.kind",
            match role {
                Role::Server => "server",
                Role::Consumer => "consumer",
            },
        );
        if let Some(from) = self.from {
            // It fails of a span that was filtered out, which then is in no trace.
            let _ = span.set_parent(Context::new().with_remote_span_context(context(from)));
        }
        let told = told_by(span).unwrap_or_else(|| self.from.map_or_else(TraceParent::begin, TraceParent::child));
        span.record("trace_id", told.trace_id());
        told
    }
}

/// `span`, which is one within `of`, as whoever is called is told of it.
pub fn within(span: &Span, of: TraceParent) -> TraceParent {
    let told = if EXPORTING.load(Ordering::Relaxed) { told_by(span) } else { None };
    told.unwrap_or_else(|| of.child())
}

/// Notes on a span what only traces need: in the logs its events say so.
pub fn note(span: &Span, field: &str, value: impl tracing::Value) {
    if EXPORTING.load(Ordering::Relaxed) {
        span.record(field, value);
    }
}

fn told_by(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let span = context.span();
    let this = span.span_context();
    this.is_valid().then(|| {
        TraceParent::new(this.trace_id().to_bytes(), this.span_id().to_bytes(), this.trace_flags().to_u8() & 1)
    })
}

fn context(of: TraceParent) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(of.trace()), SpanId::from_bytes(of.span()));
    SpanContext::new(trace, span, TraceFlags::new(of.flags()), true, TraceState::NONE)
}

/// A connection for each batch: there is one in five seconds.
#[derive(Debug)]
struct Client {
    runtime: Handle,
    timeout: Duration,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let timeout = self.timeout;
        // The exporter's thread has no runtime.
        let sending = self.runtime.spawn(async move { tokio::time::timeout(timeout, send(request)).await });
        sending.await??
    }
}

/// The most that is read of an answer.
const LARGEST_ANSWER: usize = 64 * 1024;

async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("the collector's address has no host")?.clone();
    let stream =
        TcpStream::connect((authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    parts.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let (parts, body) = sender.send_request(Request::from_parts(parts, Full::new(body))).await?.into_parts();
    let body = Limited::new(body, LARGEST_ANSWER).collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(parts, body))
}
