//! A request becomes an answer.
//!
//! Paddle takes 200 alone for delivered and sends anything else again, so 200 is said only after the commit. An answer's
//! body says nothing about what is inside: for some kinds of webhook Paddle mails it to the buyer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::http::{StatusCode, header};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, HttpResponseBuilder, web};
use oarlock_outbox::store::Stored;
use oarlock_outbox::{Source, TraceParent};
use oarlock_service::trace;
use tokio::time::{Instant, timeout_at};
use tracing::Span;
use uuid::Uuid;

use crate::body::{Body, Room, Unread};
use crate::intake::{Intake, Unavailable};
use crate::metrics::{Metrics, Outcome};
use crate::signature::{Refusal, Verifier};

/// What the requests of a thread need.
#[derive(Debug)]
pub struct Webhook {
    pub verifier: Arc<Verifier>,
    pub intake: Intake,
    pub metrics: Metrics,
    pub room: Room,
    pub ack_timeout: Duration,
}

/// What of `ack_timeout` is left for the answer, at most: it is to have arrived by then.
const FOR_THE_ANSWER: Duration = Duration::from_millis(50);

/// Seconds after which an alert that could not be stored may be sent again.
const RETRY_AFTER: &str = "30";

/// The header by which the two generations are told apart.
const BILLING_SIGNATURE: &str = "Paddle-Signature";

/// POST of an alert.
pub async fn receive(request: HttpRequest, payload: web::Payload, webhook: web::Data<Webhook>) -> HttpResponse {
    let started = Instant::now();
    let deadline = started + webhook.ack_timeout - FOR_THE_ANSWER.min(webhook.ack_timeout / 10);
    let mut signatures = request.headers().get_all(BILLING_SIGNATURE).map(header::HeaderValue::as_bytes);
    let signature = (signatures.next(), signatures.next());
    let source = if signature.0.is_some() { Source::Billing } else { Source::Classic };

    let Body { bytes: body, room: _room } = match read(&webhook, &request, payload, source, deadline).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let verified = match signature {
        (Some(_), Some(_)) => Err(Refusal::SeveralSignatures),
        (Some(header), None) => webhook.verifier.verify_billing(header, body.clone(), SystemTime::now()),
        (None, _) => webhook.verifier.verify_classic(body.clone(), says_json(&request, &body)),
    };
    let verified = match verified {
        Ok(verified) => verified,
        Err(refusal) => return refuse(&webhook, source, &refusal, body.len()),
    };

    let name = verified.alert().alert_name.parse().ok();
    let (id, alert_id) = (verified.alert().id, verified.alert().alert_id.clone());
    let span = Span::current();
    trace::note(&span, "alert.id", alert_id.as_str());
    trace::note(&span, "alert.source", source.as_str());
    trace::note(&span, "outbox_id", tracing::field::display(id));
    let place = request.extensions().get::<TraceParent>().copied();
    let storing = webhook.intake.store(verified, place);
    match timeout_at(deadline, storing).await.unwrap_or(Err(Unavailable::TooSlow)) {
        Ok(stored) => {
            webhook.metrics.count(source, name, outcome(stored, source, &alert_id, id));
            webhook.metrics.acknowledged(started.elapsed());
            HttpResponse::Ok().content_type(TEXT).body("Ok\n")
        }
        Err(reason) => {
            tracing::warn!(source = source.as_str(), alert_id, %reason, "an alert could not be stored; Paddle will send it again");
            webhook.metrics.count(source, name, Outcome::Unavailable);
            unavailable()
        }
    }
}

/// The body, or the answer to a request that has none to be had.
async fn read(
    webhook: &Webhook,
    request: &HttpRequest,
    payload: web::Payload,
    source: Source,
    deadline: Instant,
) -> Result<Body, HttpResponse> {
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    match timeout_at(deadline, webhook.room.read(payload, announced)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(Unread::TooLarge)) => Err(too_large(webhook, source)),
        Ok(Err(reason @ Unread::NoRoom)) => {
            tracing::warn!(source = source.as_str(), %reason, "a body could not be read; Paddle will send it again");
            webhook.metrics.count(source, None, Outcome::Unavailable);
            Err(unavailable())
        }
        Ok(Err(Unread::BrokeOff(error))) => {
            tracing::info!(source = source.as_str(), %error, "a body broke off");
            webhook.metrics.count(source, None, Outcome::Malformed);
            Err(answer(StatusCode::BAD_REQUEST))
        }
        Err(_) => {
            tracing::info!(source = source.as_str(), "a body did not arrive in time");
            webhook.metrics.count(source, None, Outcome::Malformed);
            Err(answer(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

/// Says in the log what became of an alert that is there now.
fn outcome(stored: Stored, source: Source, alert_id: &str, id: Uuid) -> Outcome {
    let source = source.as_str();
    match stored {
        Stored::New => {
            tracing::info!(source, alert_id, outbox_id = %id, "stored");
            Outcome::Stored
        }
        Stored::Repeated => {
            tracing::info!(source, alert_id, "stored before");
            Outcome::Repeated
        }
        Stored::NotCompared => {
            tracing::warn!(source, alert_id, "stored before; Postgres could not tell whether it says the same");
            Outcome::Repeated
        }
        Stored::Mismatch => {
            tracing::warn!(source, alert_id, "another alert of this number is stored already; this one is not kept");
            Outcome::Mismatch
        }
    }
}

/// Any other method on the webhook's path.
pub async fn wrong_method() -> HttpResponse {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
    response
}

/// Any other path.
pub async fn wrong_path() -> HttpResponse {
    answer(StatusCode::NOT_FOUND)
}

const TEXT: &str = "text/plain; charset=utf-8";

fn answer(status: StatusCode) -> HttpResponse {
    HttpResponseBuilder::new(status)
        .content_type(TEXT)
        .body(format!("{}\n", status.canonical_reason().unwrap_or("Error")))
}

fn unavailable() -> HttpResponse {
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
    response
}

fn refuse(webhook: &Webhook, source: Source, refusal: &Refusal, body_bytes: usize) -> HttpResponse {
    let (status, outcome, is_ours_to_mend) = match refusal {
        Refusal::NotConfigured | Refusal::OutsideTolerance { .. } => (StatusCode::FORBIDDEN, Outcome::Refused, true),
        Refusal::NoSignature => (StatusCode::FORBIDDEN, Outcome::Unsigned, false),
        Refusal::SeveralSignatures | Refusal::WrongSignature | Refusal::NotASignature => {
            (StatusCode::FORBIDDEN, Outcome::Refused, false)
        }
        Refusal::NotAForm | Refusal::AmbiguousName | Refusal::Malformed(_) => {
            (StatusCode::BAD_REQUEST, Outcome::Malformed, false)
        }
    };
    // Anybody can post here.
    if is_ours_to_mend {
        tracing::warn!(source = source.as_str(), reason = %refusal, body_bytes, "an alert was not accepted");
    } else {
        tracing::info!(source = source.as_str(), reason = %refusal, body_bytes, "an alert was not accepted");
    }
    webhook.metrics.count(source, None, outcome);
    answer(status)
}

fn too_large(webhook: &Webhook, source: Source) -> HttpResponse {
    tracing::warn!(
        source = source.as_str(),
        limit_bytes = webhook.room.most(),
        "a body is over receiver.max_body_bytes"
    );
    webhook.metrics.count(source, None, Outcome::TooLarge);
    answer(StatusCode::PAYLOAD_TOO_LARGE)
}

/// A JSON body without a signature header is an unsigned Billing notification rather than a broken form. (But what has a form's
/// signature is a form, whatever it is called.)
fn says_json(request: &HttpRequest, body: &[u8]) -> bool {
    const SIGNATURE: &[u8] = b"p_signature=";
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()).as_deref() {
        Some("application/json") => !body.windows(SIGNATURE.len()).any(|part| part == SIGNATURE),
        Some("application/x-www-form-urlencoded") => false,
        _ => body.trim_ascii_start().starts_with(b"{"),
    }
}
