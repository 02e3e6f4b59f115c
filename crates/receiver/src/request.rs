//! Each request has an id, a place in a trace, and a span that its log lines are in.
//!
//! Whoever stands before us may have given it an id (`X-Request-Id`) and a trace (`traceparent`): then these are taken, if
//! they are what they should be. The answer says the id.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, web};
use oarlock_outbox::TraceParent;
use oarlock_service::trace::{self, Opening, Role};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing::field::Empty;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// Cancelled when the receiver is to end.
#[derive(Debug)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// Runs a request within its span. What it serves finds its [`TraceParent`] among the request's extensions.
pub(crate) async fn in_its_span(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id = request_id(request.headers());
    let opening = Opening::after(trace_parent(request.headers()));
    // There whatever level is asked for: it says which request a warning is about.
    let span = tracing::error_span!(
        "request",
        request_id = id,
        trace_id = opening.trace_id(),
        otel.kind = Empty,
        http.response.status_code = Empty,
        alert.id = Empty,
        alert.source = Empty,
        outbox_id = Empty,
    );
    request.extensions_mut().insert(opening.open(&span, Role::Server));
    let mut response = next.call(request).instrument(span.clone()).await?;
    trace::note(&span, "http.response.status_code", response.status().as_u16());
    if response.request().app_data::<web::Data<Stopping>>().is_some_and(|stopping| stopping.0.is_cancelled()) {
        // The next one is for another receiver.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let id = HeaderValue::try_from(id).expect("made of what a header can carry");
    response.headers_mut().insert(REQUEST_ID, id);
    Ok(response)
}

/// The one it came with, or a new one. Of what was sent no more is taken than an id needs: it goes into the log.
fn request_id(headers: &HeaderMap) -> String {
    let is_sane = |id: &&str| {
        (1..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
    };
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_sane);
    sent.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// Several are none (Trace Context, 3.2).
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut sent = headers.get_all(TRACE_PARENT);
    let parsed = sent.next()?.to_str().ok()?.trim().parse().ok();
    if sent.next().is_some() { None } else { parsed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_sane_id_is_kept() {
        for good in ["1", "0af7651916cd43dd8448eb211c80319c", "Root=1-67891233-abcdef", &"x".repeat(128)] {
            assert_eq!(request_id(&headers(&[(REQUEST_ID, good)])), good);
        }
        for bad in ["", "ann@example.com", "a b", "{\"a\":1}", &"x".repeat(129)] {
            assert_ne!(request_id(&headers(&[(REQUEST_ID, bad)])), bad);
        }
        assert_ne!(request_id(&headers(&[])), request_id(&headers(&[])));
    }

    #[test]
    fn one_traceparent_is_taken() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let taken = |pairs: &[_]| trace_parent(&headers(pairs)).map(|parent| parent.to_string());
        assert_eq!(taken(&[(TRACE_PARENT, good)]).as_deref(), Some(good));
        assert_eq!(taken(&[(TRACE_PARENT, good), (TRACE_PARENT, good)]), None);
        assert_eq!(taken(&[(TRACE_PARENT, "nonsense")]), None);
        assert_eq!(taken(&[]), None);
    }
}
