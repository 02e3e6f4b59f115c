//! A collector of traces: OTLP over HTTP on a socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::PATIENCE;

/// What has been exported so far.
#[derive(Debug)]
pub struct Collector {
    url: String,
    received: Arc<Mutex<Received>>,
    changed: watch::Receiver<()>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    /// As it came: what must not be in it is looked for in all of it.
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub service: String,
    pub name: String,
    /// In hexadecimal digits, as in a `traceparent`.
    pub trace: String,
    pub id: String,
    /// Empty at the root of a trace.
    pub parent: String,
    pub attributes: BTreeMap<String, String>,
    /// The messages logged within it.
    pub events: Vec<String>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let received = Arc::new(Mutex::new(Received::default()));
        let (changing, changed) = watch::channel(());
        let taking = Arc::clone(&received);
        let take = async move |body: Bytes| {
            let mut received = taking.lock().expect("nobody panics holding it");
            received.bytes.extend_from_slice(&body);
            received.spans.extend(spans(ExportTraceServiceRequest::decode(body).expect("OTLP in protobuf")));
            changing.send_replace(());
        };
        let router = Router::new().route("/v1/traces", post(async move |body: Bytes| take(body).await));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, received, changed, serving }
    }

    /// The `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().expect("nobody panics holding it").spans.clone()
    }

    /// Waits until the spans are as described.
    pub async fn sees(&self, what: &str, condition: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut changed = self.changed.clone();
        let waiting = async {
            while !condition(&self.spans()) {
                changed.changed().await.expect("it serves");
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("in vain waited for {what}: {:#?}", self.spans());
        }
        self.spans()
    }

    pub fn holds(&self, text: &str) -> bool {
        let received = self.received.lock().expect("nobody panics holding it");
        received.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in request.resource_spans {
        let resource = attributes(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let service = resource.get("service.name").cloned().unwrap_or_default();
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                service: service.clone(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: attributes(span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
            });
        }
    }
    spans
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
