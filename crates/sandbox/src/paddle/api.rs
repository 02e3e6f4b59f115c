//! Paddle Billing's API, as far as a customer's e-mail is concerned: `GET /customers/{id}`.
//!
//! At first there is no customer, and the API key is `pdl_sdbx_apikey_sandbox`. A missing, wrong or unpermitted key is
//! answered 403, not 401, as Paddle does it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::calls::{Changes, lock};
use crate::exchange::{Answer, Request};
use crate::faults::{Fault, Faults};

#[derive(Debug)]
pub struct PaddleApi {
    state: Mutex<State>,
    faults: Faults,
    changes: Changes,
}

#[derive(Debug)]
struct State {
    key: String,
    customers: BTreeMap<String, Customer>,
}

#[derive(Debug)]
struct Customer {
    email: String,
    name: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl PaddleApi {
    pub(crate) fn new(changes: Changes) -> Self {
        let state = State { key: crate::PADDLE_API_KEY.to_owned(), customers: BTreeMap::new() };
        Self { state: Mutex::new(state), faults: Faults::new(), changes }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changes.note();
        result
    }

    /// A customer with this id, or a new address for the one there is.
    pub fn set_customer(&self, id: &str, email: &str) {
        self.set_named_customer(id, email, None);
    }

    pub fn set_named_customer(&self, id: &str, email: &str, name: Option<&str>) {
        let now = Utc::now();
        self.change(|state| {
            let customer = state.customers.entry(id.to_owned()).or_insert_with(|| Customer {
                email: String::new(),
                name: None,
                created_at: now,
                updated_at: now,
            });
            email.clone_into(&mut customer.email);
            customer.name = name.map(str::to_owned);
            customer.updated_at = now;
        });
    }

    pub fn remove_customer(&self, id: &str) {
        self.change(|state| state.customers.remove(id));
    }

    /// From now on only this key is accepted.
    pub fn set_api_key(&self, key: &str) {
        self.change(|state| key.clone_into(&mut state.key));
    }

    /// Goes wrong from now on.
    pub fn fail(&self, fault: Fault) {
        self.faults.arm(fault);
    }

    /// Nothing goes wrong any more, and what hangs goes on.
    pub fn clear_faults(&self) {
        self.faults.clear();
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn state(&self) -> Value {
        let state = lock(&self.state);
        let customers: Map<_, _> = state.customers.iter().map(|(id, one)| (id.clone(), json!(one.email))).collect();
        json!({ "customers": customers, "faults": self.faults.len() })
    }
}

pub(crate) fn answer(paddle: &PaddleApi, request: &Request) -> Answer {
    paddle.change(|state| {
        match request.authorization() {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") && key == state.key => {}
            Some(_) => return refusal(403, "forbidden", "You aren't permitted to perform this request."),
            None => return refusal(403, "authentication_missing", "Authentication header not included in request."),
        }
        match (request.method.as_str(), request.segments().as_slice()) {
            ("GET", ["customers", id]) => match state.customers.get(*id) {
                Some(customer) => Answer::json(200, json!({ "data": entity(id, customer), "meta": meta() })),
                None => refusal(404, "not_found", &format!("Entity {id} not found.")),
            },
            _ => refusal(404, "invalid_url", "Paddle couldn't process this request: no such path."),
        }
    })
}

fn entity(id: &str, customer: &Customer) -> Value {
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
    json!({
        "id": id, "status": "active", "custom_data": null, "name": customer.name, "email": customer.email,
        "marketing_consent": false, "locale": "en", "created_at": time(customer.created_at),
        "updated_at": time(customer.updated_at), "import_meta": null,
    })
}

fn refusal(status: u16, code: &str, detail: &str) -> Answer {
    Answer::json(status, error_body(status, code, detail))
}

/// The body of an error that came from nowhere in particular.
pub(crate) fn error(status: u16, detail: &str) -> Value {
    let code = match status {
        403 => "forbidden",
        404 => "not_found",
        429 => "too_many_requests",
        503 => "service_unavailable",
        _ => "internal_error",
    };
    error_body(status, code, detail)
}

fn error_body(status: u16, code: &str, detail: &str) -> Value {
    json!({
        "error": {
            "type": if status >= 500 { "api_error" } else { "request_error" },
            "code": code,
            "detail": detail,
            "documentation_url": format!("https://developer.paddle.com/v1/errors/shared/{code}"),
        },
        "meta": meta(),
    })
}

fn meta() -> Value {
    json!({ "request_id": Uuid::now_v7() })
}
