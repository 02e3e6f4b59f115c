//! What both editions' answers look like: errors, pages, and what is wrong with a request body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::Jira;
use super::site::{Organization, Site};
use crate::exchange::{Answer, Content, Request};

/// `user:secret` of a Basic header.
pub(super) fn basic(credentials: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    decoded.split_once(':').map(|(user, secret)| (user.to_owned(), secret.to_owned()))
}

/// How Jira's own API reports an error.
pub(super) fn platform_error(status: u16, message: &str) -> Answer {
    Answer::json(status, json!({ "errorMessages": [message], "errors": {} }))
}

/// How Service Management's API reports an error.
pub(super) fn desk_error(status: u16, key: &str, message: &str) -> Answer {
    let i18n = json!({ "i18nKey": key, "parameters": [] });
    Answer::json(status, json!({ "errorMessage": message, "i18nErrorMessage": i18n }))
}

/// The error of whichever API `path` belongs to.
pub(super) fn error_for(path: &str, status: u16, key: &str, message: &str) -> Answer {
    if path.starts_with("/rest/servicedeskapi") {
        desk_error(status, key, message)
    } else {
        platform_error(status, message)
    }
}

/// A JSON object with no other fields than `known`.
pub(super) fn object<'a>(request: &'a Request, known: &[&str]) -> Result<&'a Map<String, Value>, Answer> {
    let refuse = |status, message: &str| Err(error_for(&request.path, status, "sd.error.request.invalid", message));
    let object = match &request.content {
        Content::Json(Value::Object(object)) => object,
        Content::Json(_) | Content::Malformed => {
            return refuse(400, "Invalid request payload. Refer to the REST API documentation and try again.");
        }
        Content::None => return refuse(400, "No content to map to Object due to end of input"),
        Content::Form(_) | Content::Other => return refuse(415, "Unsupported Media Type"),
    };
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => refuse(400, &format!("Unrecognized field \"{unknown}\"")),
        None => Ok(object),
    }
}

/// A list of strings in the body, which must be there.
pub(super) fn names(request: &Request, field: &'static str) -> Result<Vec<String>, Answer> {
    let values = object(request, &[field])?.get(field).and_then(Value::as_array);
    let names: Option<Vec<String>> =
        values.and_then(|values| values.iter().map(|value| value.as_str().map(str::to_owned)).collect());
    match names {
        Some(names) if !names.is_empty() => Ok(names),
        _ => Err(error_for(&request.path, 400, "sd.error.request.invalid", &format!("{field} must name somebody"))),
    }
}

/// A page of Service Management's API.
pub(super) fn desk_page(jira: &Jira, request: &Request, values: Vec<Value>) -> Result<Answer, Answer> {
    let bad = |name| error_for(&request.path, 400, "sd.error.request.invalid", &format!("{name} is not a number"));
    let start = request.query_number("start", 0).map_err(bad)?;
    let limit = request.query_number("limit", 50).map_err(bad)?.clamp(1, 100);
    let total = values.len();
    let values: Vec<Value> = values.into_iter().skip(start).take(limit).collect();
    let is_last = start + values.len() >= total;
    let here = format!("{}{}", jira.base_url, request.path);
    let mut links = json!({
        "self": format!("{here}?start={start}&limit={limit}"),
        "base": jira.base_url,
        "context": "",
    });
    if !is_last {
        links["next"] = json!(format!("{here}?start={}&limit={limit}", start + limit));
    }
    if start > 0 {
        links["prev"] = json!(format!("{here}?start={}&limit={limit}", start.saturating_sub(limit)));
    }
    Ok(Answer::json(
        200,
        json!({
            "_expands": [], "size": values.len(), "start": start, "limit": limit, "isLastPage": is_last,
            "_links": links, "values": values,
        }),
    ))
}

/// A page of Jira's own API.
pub(super) fn platform_page(jira: &Jira, request: &Request, values: Vec<Value>) -> Result<Answer, Answer> {
    let bad = |name| platform_error(400, &format!("{name} is not a number"));
    let start = request.query_number("startAt", 0).map_err(bad)?;
    let limit = request.query_number("maxResults", 50).map_err(bad)?.clamp(1, 50);
    let total = values.len();
    let values: Vec<Value> = values.into_iter().skip(start).take(limit).collect();
    let is_last = start + values.len() >= total;
    let page = json!({
        "self": format!("{}{}?startAt={start}&maxResults={limit}", jira.base_url, request.path),
        "maxResults": limit, "startAt": start, "total": total, "isLast": is_last, "values": values,
    });
    Ok(Answer::json(200, page))
}

impl Site {
    pub(super) fn organization(&self, id: &str) -> Result<&Organization, Answer> {
        self.organizations.get(id).ok_or_else(no_such_organization)
    }

    pub(super) fn organization_mut(&mut self, id: &str) -> Result<&mut Organization, Answer> {
        self.organizations.get_mut(id).ok_or_else(no_such_organization)
    }
}

fn no_such_organization() -> Answer {
    desk_error(404, "sd.error.organization.missing", "The organization does not exist.")
}
