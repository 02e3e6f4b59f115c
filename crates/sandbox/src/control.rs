//! The sandbox by hand: what a test does in Rust, as JSON over HTTP.
//!
//! `SERVICE` is `jira-cloud`, `jira-dc`, `slack` or `paddle`; `JIRA` is one of the first two.
//!
//! | request | does |
//! |---|---|
//! | `GET /control/state` | who is member of what, who was invited, how many faults wait |
//! | `GET /control/calls?since=N&service=SERVICE` | what was asked, from sequence number N on |
//! | `POST /control/SERVICE/faults` | arms a fault (below) |
//! | `DELETE /control/SERVICE/faults` | clears them; what hangs goes on |
//! | `PUT /control/SERVICE/token` `{"token": …}` | the only token accepted from now on; Jira also `"user"`, `"password"` |
//! | `PUT /control/JIRA/settings` | any of `lacks_permission`, `restricted_portal_access` (booleans), `index_lag`, `absent_member_status` (numbers) |
//! | `PUT`, `DELETE /control/JIRA/groups/NAME` | makes or deletes a group |
//! | `POST`, `DELETE /control/JIRA/groups/NAME/members` `{"email": …}` | puts somebody there, or takes them out, by hand |
//! | `POST`, `DELETE /control/JIRA/organizations/ID/members` `{"email": …}` | likewise |
//! | `POST`, `DELETE /control/JIRA/service-desks/ID/members` `{"email": …}` | likewise |
//! | `PUT /control/JIRA/service-desks/ID/open-access` `{"open": true}` | lets everybody in, and nobody out |
//! | `POST`, `DELETE /control/JIRA/hidden-emails` `{"email": …}` | the person hides the address, or shows it again |
//! | `POST /control/slack/members` `{"email": …}` | the person joins the workspace |
//! | `PUT`, `DELETE /control/slack/channels/ID` | makes or deletes a channel |
//! | `POST /control/paddle/customers` `{"id": …, "email": …, "name": …}` | a customer Billing's API knows |
//!
//! A fault has exactly one of `status` (a number), `error` (Slack's code), `kind` (`delay`, `hang`, `reset`,
//! `effect_then_hang`, `effect_then_reset`, `html`, `malformed`) and `mix` (faults with a `probability` each); and any of
//! `times`, `method`, `path`, `delay_ms`, `retry_after` (seconds), `body`, `after_effect`, `probability`, `seed`:
//!
//! ```text
//! curl -X POST localhost:9000/control/slack/faults -H 'content-type: application/json' -d '{"status": 503, "times": 3}'
//! ```

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::calls::{Call, Service};
use crate::faults::FaultRequest;
use crate::jira::{Jira, Members};
use crate::{Fault, Shared};

type App = State<Arc<Shared>>;
type Answer = Result<StatusCode, Refused>;

const DONE: Answer = Ok(StatusCode::NO_CONTENT);

/// Why a request to `/control` is not done.
#[derive(Debug)]
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let members = || post(add_member).delete(remove_member);
    Router::new()
        .route("/control/state", get(state))
        .route("/control/calls", get(calls))
        .route("/control/{service}/faults", post(arm).delete(clear))
        .route("/control/{service}/token", put(token))
        .route("/control/{service}/settings", put(settings))
        .route("/control/{service}/groups/{id}", put(create_group).delete(delete_group))
        .route("/control/{service}/{place}/{id}/members", members())
        .route("/control/{service}/service-desks/{id}/open-access", put(open_access))
        .route("/control/{service}/hidden-emails", post(hide_email).delete(show_email))
        .route("/control/slack/members", post(join_slack))
        .route("/control/slack/channels/{id}", put(create_channel).delete(delete_channel))
        .route("/control/paddle/customers", post(customer))
        .fallback(|| async { Refused(StatusCode::NOT_FOUND, "no such path".to_owned()) })
        .with_state(shared)
}

async fn state(State(shared): App) -> Json<Value> {
    Json(shared.state())
}

#[derive(Debug, Deserialize)]
struct Since {
    since: Option<usize>,
    service: Option<String>,
}

async fn calls(State(shared): App, Query(wanted): Query<Since>) -> Json<Vec<Value>> {
    let list = shared.calls.list();
    let wanted = list
        .iter()
        .skip(wanted.since.unwrap_or(0))
        .filter(|call| wanted.service.as_ref().is_none_or(|service| service == call.service.name()));
    Json(wanted.map(call).collect())
}

fn call(call: &Call) -> Value {
    json!({
        "sequence": call.sequence, "service": call.service, "method": call.method, "path": call.path,
        "query": call.query, "request": call.request, "status": call.status, "worked": call.worked,
        "took_ms": call.finished.map(|finished| finished.duration_since(call.started).as_secs_f64() * 1000.0),
    })
}

async fn arm(State(shared): App, Path(service): Path<String>, Json(fault): Json<FaultRequest>) -> Answer {
    let service = named(&service)?;
    let fault: Fault = fault.build().map_err(|why| Refused(StatusCode::UNPROCESSABLE_ENTITY, why.to_owned()))?;
    shared.faults(service).arm(fault);
    DONE
}

async fn clear(State(shared): App, Path(service): Path<String>) -> Answer {
    shared.faults(named(&service)?).clear();
    DONE
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    token: Option<String>,
    user: Option<String>,
    password: Option<String>,
}

async fn token(State(shared): App, Path(service): Path<String>, Json(new): Json<Credentials>) -> Answer {
    let token = new.token.as_deref();
    match named(&service)? {
        Service::Slack => token.into_iter().for_each(|token| shared.slack.set_token(token)),
        Service::Paddle => token.into_iter().for_each(|token| shared.paddle.set_api_key(token)),
        Service::JiraCloud | Service::JiraDataCenter => {
            let jira = jira(&shared, &service)?;
            token.into_iter().for_each(|token| jira.set_token(token));
            new.user.iter().for_each(|user| jira.set_user(user));
            new.password.iter().for_each(|password| jira.set_password(password));
        }
    }
    DONE
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    lacks_permission: Option<bool>,
    restricted_portal_access: Option<bool>,
    index_lag: Option<u32>,
    absent_member_status: Option<u16>,
}

async fn settings(State(shared): App, Path(service): Path<String>, Json(new): Json<Settings>) -> Answer {
    let jira = jira(&shared, &service)?;
    new.lacks_permission.into_iter().for_each(|lacks| jira.lack_permission(lacks));
    new.restricted_portal_access.into_iter().for_each(|restricted| jira.restrict_portal_access(restricted));
    new.index_lag.into_iter().for_each(|searches| jira.set_index_lag(searches));
    new.absent_member_status.into_iter().for_each(|status| jira.set_absent_member_status(status));
    DONE
}

async fn create_group(State(shared): App, Path((service, name)): Path<(String, String)>) -> Answer {
    jira(&shared, &service)?.create_group(&name);
    DONE
}

async fn delete_group(State(shared): App, Path((service, name)): Path<(String, String)>) -> Answer {
    jira(&shared, &service)?.delete_group(&name);
    DONE
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    email: String,
}

type MemberPath = Path<(String, String, String)>;

async fn add_member(State(shared): App, Path(path): MemberPath, Json(person): Json<Person>) -> Answer {
    place(&shared, &path)?.add_member(&person.email);
    DONE
}

async fn remove_member(State(shared): App, Path(path): MemberPath, Json(person): Json<Person>) -> Answer {
    place(&shared, &path)?.remove_member(&person.email);
    DONE
}

fn place<'a>(shared: &'a Shared, (service, kind, id): &(String, String, String)) -> Result<Members<'a>, Refused> {
    let jira = jira(shared, service)?;
    let members = match kind.as_str() {
        "groups" => jira.group(id),
        "service-desks" => jira.service_desk(id),
        "organizations" => jira.organization(id),
        other => return Err(Refused(StatusCode::NOT_FOUND, format!("there are no {other}"))),
    };
    if members.exists() { Ok(members) } else { Err(Refused(StatusCode::NOT_FOUND, format!("{id} is not in {kind}"))) }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenAccess {
    open: bool,
}

async fn open_access(
    State(shared): App,
    Path((service, id)): Path<(String, String)>,
    Json(access): Json<OpenAccess>,
) -> Answer {
    jira(&shared, &service)?.set_open_access(&id, access.open);
    DONE
}

async fn hide_email(State(shared): App, Path(service): Path<String>, Json(person): Json<Person>) -> Answer {
    jira(&shared, &service)?.hide_email(&person.email);
    DONE
}

async fn show_email(State(shared): App, Path(service): Path<String>, Json(person): Json<Person>) -> Answer {
    jira(&shared, &service)?.show_email(&person.email);
    DONE
}

async fn join_slack(State(shared): App, Json(person): Json<Person>) -> Answer {
    shared.slack.join(&person.email);
    DONE
}

async fn create_channel(State(shared): App, Path(id): Path<String>) -> Answer {
    shared.slack.create_channel(&id, &id);
    DONE
}

async fn delete_channel(State(shared): App, Path(id): Path<String>) -> Answer {
    shared.slack.delete_channel(&id);
    DONE
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Customer {
    id: String,
    email: String,
    name: Option<String>,
}

async fn customer(State(shared): App, Json(customer): Json<Customer>) -> Answer {
    shared.paddle.set_named_customer(&customer.id, &customer.email, customer.name.as_deref());
    DONE
}

fn named(service: &str) -> Result<Service, Refused> {
    let found = Service::ALL.into_iter().find(|known| known.name() == service);
    found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("there is no stand-in {service}")))
}

fn jira<'a>(shared: &'a Shared, service: &str) -> Result<&'a Jira, Refused> {
    match named(service)? {
        Service::JiraCloud => Ok(&shared.jira_cloud),
        Service::JiraDataCenter => Ok(&shared.jira_data_center),
        Service::Slack | Service::Paddle => Err(Refused(StatusCode::NOT_FOUND, format!("{service} is no Jira"))),
    }
}
