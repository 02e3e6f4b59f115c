//! One HTTP exchange: a request comes off the socket, is recorded, meets the fault that waits for it, is answered by its
//! stand-in, is written to the transcript, and goes back.
//!
//! The server is built on hyper's connection and not on `axum::serve`, because a stand-in must be able to do its work and
//! then drop the connection without a word, which an infallible service cannot.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::calls::Service;
use crate::faults::Ending;

/// What a stand-in gets to see.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Below the base URL of the stand-in.
    pub(crate) path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    pub(crate) content: Content,
}

/// A request body, by what its `Content-Type` says it is.
#[derive(Debug)]
pub(crate) enum Content {
    None,
    Json(Value),
    Form(Vec<(String, String)>),
    /// Said to be JSON, and is not.
    Malformed,
    /// A body of a type that none of the vendors reads, or of none.
    Other,
}

/// What a stand-in says.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: AnswerBody,
}

#[derive(Debug, Clone)]
pub(crate) enum AnswerBody {
    Empty,
    Json(Value),
    Text { content_type: &'static str, text: String },
}

/// The connection is dropped without an answer.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// Accepts connections until `stop`.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let control = TowerToHyperService::new(crate::control::router(Arc::clone(&shared)));
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: they come back, a loop at full speed would not help.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        tokio::spawn(connection(Arc::clone(&shared), control.clone(), stream, stop.clone()));
    }
}

type Control = TowerToHyperService<axum::Router>;

async fn connection(shared: Arc<Shared>, control: Control, stream: TcpStream, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let (shared, control) = (Arc::clone(&shared), control.clone());
        async move { exchange(&shared, &control, request).await }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        () = stop.cancelled() => return,
        ended = &mut connection => ended,
    };
    if ended.is_err() {
        // A reset and not an orderly end, which is what a crashed proxy leaves its client with.
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}

async fn exchange(
    shared: &Arc<Shared>,
    control: &Control,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let Some((service, path)) = Service::below(request.uri().path()) else {
        return control.call(request).await.map_err(|never| match never {});
    };
    let request = Request::read(path.to_owned(), request).await?;
    let arguments = match service {
        Service::Slack => crate::slack::arguments(&request),
        Service::JiraCloud | Service::JiraDataCenter | Service::Paddle => request.json().cloned(),
    };
    let call = shared.calls.begin(service, &request, arguments.clone());
    let work = || {
        call.worked();
        shared.answer(service, &request, arguments.as_ref())
    };

    // An answer that no vendor documents: any server may give the statuses excepted here.
    let mut made_up = false;
    let answer = match shared.faults(service).take(&request.method, &request.path) {
        None => work(),
        Some(mut strike) => {
            tokio::time::sleep(strike.delay).await;
            let worked = strike.effect_first.then(work);
            match strike.ending {
                Ending::Normal => worked.unwrap_or_else(work),
                Ending::Answer(fault) => {
                    let answer = fault.answer(service, &request.path);
                    made_up = !matches!(answer.status, 429 | 500 | 502 | 503 | 504);
                    answer
                }
                Ending::Reset => return Err(Cut),
                Ending::Hang => {
                    strike.cleared.wait().await;
                    worked.unwrap_or_else(work)
                }
            }
        }
    };
    call.answered(answer.status);
    if let Some(transcript) = shared.transcript.as_ref().filter(|_| !made_up) {
        transcript.append(service, &request, arguments.as_ref(), &answer);
    }
    Ok(answer.into_response())
}

impl Request {
    async fn read(path: String, request: hyper::Request<Incoming>) -> Result<Self, Cut> {
        let (parts, body) = request.into_parts();
        // A client that goes away in the middle of its body has asked for nothing yet.
        let bytes = body.collect().await.map_err(|_| Cut)?.to_bytes();
        let media = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let content = match media.as_str() {
            _ if bytes.is_empty() => Content::None,
            "application/json" => serde_json::from_slice(&bytes).map_or(Content::Malformed, Content::Json),
            "application/x-www-form-urlencoded" => Content::Form(pairs(&bytes)),
            _ => Content::Other,
        };
        let query = pairs(parts.uri.query().unwrap_or_default().as_bytes());
        Ok(Self { method: parts.method.to_string(), path, query, headers: parts.headers, content })
    }

    pub(crate) fn segments(&self) -> Vec<&str> {
        self.path.split('/').skip(1).collect()
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn query_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A number in the query, or `default` where there is none; `Err` names the parameter that is no number.
    pub(crate) fn query_number(&self, name: &'static str, default: usize) -> Result<usize, &'static str> {
        self.query(name).map_or(Ok(default), |text| text.parse().map_err(|_| name))
    }

    /// The query as it is recorded: a repeated name keeps all its values.
    pub(crate) fn recorded_query(&self) -> BTreeMap<String, String> {
        let mut recorded = BTreeMap::<String, String>::new();
        for (name, value) in &self.query {
            recorded
                .entry(name.clone())
                .and_modify(|known| {
                    known.push(',');
                    known.push_str(value);
                })
                .or_insert_with(|| value.clone());
        }
        recorded
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The scheme and the credentials of the `Authorization` header.
    pub(crate) fn authorization(&self) -> Option<(&str, &str)> {
        self.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.split_once(' '))
    }

    pub(crate) fn json(&self) -> Option<&Value> {
        match &self.content {
            Content::Json(value) => Some(value),
            Content::None | Content::Form(_) | Content::Malformed | Content::Other => None,
        }
    }
}

fn pairs(bytes: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(bytes).into_owned().collect()
}

impl Answer {
    pub(crate) fn json(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body: AnswerBody::Json(body) }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: AnswerBody::Empty }
    }

    fn into_response(self) -> Response<Body> {
        let (content_type, body) = match self.body {
            AnswerBody::Empty => (None, Body::empty()),
            AnswerBody::Json(value) => (Some("application/json;charset=UTF-8"), Body::from(value.to_string())),
            AnswerBody::Text { content_type, text } => (Some(content_type), Body::from(text)),
        };
        let mut response = Response::builder().status(self.status);
        if let Some(content_type) = content_type {
            response = response.header(CONTENT_TYPE, content_type);
        }
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(body).unwrap_or_else(|error| {
            // Only a fault that was asked for can hold a status or a header that HTTP does not have.
            tracing::error!(%error, "the answer asked for is not HTTP");
            let mut response = Response::new(Body::from(error.to_string()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }
}
