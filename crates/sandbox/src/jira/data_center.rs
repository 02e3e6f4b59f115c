//! Jira Data Center over HTTP: `/rest/api/2`, `/rest/servicedeskapi` and the page that mails invitations.
//!
//! Follows Atlassian's document for Jira 10.3 and the Service Management reference; people are named by user name. Adding a
//! customer sends no mail. The only thing that does is the page behind the "Add customers" dialogue
//! (`/rest/servicedesk/1/pages/people/customers/pagination/{KEY}/invite`), which no document describes.

use serde_json::{Map, Value, json};

use super::site::{Account, AccountKind, Group, Organization, Site, is_email};
use super::wire::{basic, desk_error, desk_page, error_for, names, object, platform_error, platform_page};
use super::{Edition, Invitation, Jira};
use crate::exchange::{Answer, Request};

pub(crate) fn answer(jira: &Jira, request: &Request) -> Answer {
    jira.change(|site| {
        // Which version it is, it tells everybody.
        let public = request.method == "GET" && request.path == "/rest/api/2/serverInfo";
        if !public && !authenticated(site, request) {
            let message = "You are not authenticated. Authentication required to perform this operation.";
            return error_for(&request.path, 401, "sd.error.unauthenticated", message);
        }
        route(jira, site, request).unwrap_or_else(|refused| refused)
    })
}

/// A personal access token is a bearer token; in place of a password it is worth nothing.
fn authenticated(site: &Site, request: &Request) -> bool {
    match request.authorization() {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token == site.token,
        Some((scheme, credentials)) if scheme.eq_ignore_ascii_case("basic") => {
            basic(credentials).is_some_and(|(user, password)| user == site.user && password == site.password)
        }
        Some(_) | None => false,
    }
}

fn route(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let lacks_permission = site.behaviour.lacks_permission;
    let refusal = || error_for(&request.path, 403, "sd.error.permission", "You do not have the permission to do this.");
    let permitted = || if lacks_permission { Err(refusal()) } else { Ok(()) };
    // Groups, and making customers, are for Jira's administrators.
    let administrator = site.is_administrator("admin");
    let administers = || if lacks_permission || !administrator { Err(refusal()) } else { Ok(()) };
    let segments = request.segments();
    let path = segments.strip_prefix(&["rest"]).unwrap_or_default();
    match (request.method.as_str(), path) {
        ("GET", ["api", "2", "myself"]) => Ok(Answer::json(200, user(jira, site.named(&site.user)?))),
        ("GET", ["api", "2", "serverInfo"]) => Ok(Answer::json(200, server_info(jira))),
        ("GET", ["api", "2", "user"]) => {
            permitted()?;
            match (request.query("username"), request.query("key")) {
                (Some(name), None) => Ok(Answer::json(200, user(jira, site.named(name)?))),
                (None, Some(key)) => {
                    let found = site.accounts.values().find(|account| account.key == key);
                    Ok(Answer::json(200, user(jira, found.ok_or_else(|| no_such_user(key))?)))
                }
                _ => Err(platform_error(400, "Either the username or the key query parameters need to be provided")),
            }
        }
        ("POST", ["api", "2", "user"]) => {
            administers()?;
            create_user(jira, site, request)
        }
        ("GET", ["api", "2", "user", "search"]) => search(jira, site, request),
        ("POST", ["api", "2", "group", "user"]) => {
            administers()?;
            add_to_group(jira, site, request)
        }
        ("DELETE", ["api", "2", "group", "user"]) => {
            administers()?;
            remove_from_group(site, request)
        }
        ("GET", ["api", "2", "group", "member"]) => {
            administers()?;
            let inactive_too = request.query("includeInactiveUsers") == Some("true");
            let group = site.groups.get(required(request, "groupname")?).ok_or_else(no_such_group)?;
            let members = site.accounts_in(&group.members).filter(|account| account.active || inactive_too);
            platform_page(jira, request, members.map(|account| user(jira, account)).collect())
        }
        ("GET", ["servicedeskapi", "info"]) => {
            let info = json!({ "version": "10.3.0", "platformVersion": "10.3.0", "isLicensedForUse": true });
            Ok(Answer::json(200, info))
        }
        ("POST", ["servicedeskapi", "customer"]) => {
            administers()?;
            let body = object(request, &["email", "fullName"])?;
            let (email, name) = (text(body, "email"), text(body, "fullName"));
            if name.is_empty() {
                return Err(desk_error(400, "sd.error.customer.name", "The full name cannot be empty."));
            }
            let id = create_customer(site, email, name)?;
            Ok(Answer::json(201, desk_user(jira, site.named(&id)?)))
        }
        ("GET", ["servicedeskapi", "servicedesk"]) => {
            let desks = site.desks.values().filter(|_| !lacks_permission).map(|desk| {
                json!({
                    "id": desk.id, "projectId": format!("100{}", desk.id), "projectName": desk.key,
                    "projectKey": desk.key,
                })
            });
            desk_page(jira, request, desks.collect())
        }
        ("POST", ["servicedeskapi", "servicedesk", desk, "customer"]) => {
            permitted()?;
            if !site.desks.contains_key(*desk) {
                return Err(no_such_desk());
            }
            let customers = known_names(site, request)?;
            site.desks.get_mut(*desk).ok_or_else(no_such_desk)?.customers.extend(customers);
            Ok(Answer::empty(204))
        }
        ("GET", ["servicedeskapi", "organization"]) => {
            let organizations = site.organizations.values().filter(|_| !lacks_permission);
            desk_page(jira, request, organizations.map(|one| organization(jira, one)).collect())
        }
        ("POST", ["servicedeskapi", "organization"]) => {
            permitted()?;
            let name = text(object(request, &["name"])?, "name");
            if name.is_empty() {
                return Err(desk_error(
                    400,
                    "sd.error.organization.name",
                    "The name of an organization cannot be empty.",
                ));
            }
            let id = site.organization_named(name);
            Ok(Answer::json(201, organization(jira, site.organization(&id)?)))
        }
        ("GET", ["servicedeskapi", "organization", id, "user"]) => {
            permitted()?;
            let members = site.accounts_in(&site.organization(id)?.members);
            desk_page(jira, request, members.map(|account| desk_user(jira, account)).collect())
        }
        ("POST", ["servicedeskapi", "organization", id, "user"]) => {
            permitted()?;
            site.organization(id)?;
            let joining = known_names(site, request)?;
            site.organization_mut(id)?.members.extend(joining);
            Ok(Answer::empty(204))
        }
        ("DELETE", ["servicedeskapi", "organization", id, "user"]) => {
            permitted()?;
            site.organization(id)?;
            let leaving = known_names(site, request)?;
            site.organization_mut(id)?.members.retain(|member| !leaving.contains(member));
            Ok(Answer::empty(204))
        }
        ("POST", ["servicedesk", "1", "pages", "people", "customers", "pagination", key, "invite"]) => {
            permitted()?;
            invite(site, request, key)
        }
        _ => Err(error_for(&request.path, 404, "sd.error.resource.missing", "There is no such resource.")),
    }
}

fn create_user(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let known = ["name", "emailAddress", "displayName", "password", "notification", "applicationKeys"];
    let body = object(request, &known)?;
    let (name, email, display_name) = (text(body, "name"), text(body, "emailAddress"), text(body, "displayName"));
    let refuse = |field: &str, message: &str| {
        Err(Answer::json(400, json!({ "errorMessages": [], "errors": { field: message } })))
    };
    if name.is_empty() || display_name.is_empty() {
        return refuse("username", "You must specify a username and a full name.");
    }
    if !is_email(email) {
        return refuse("email", "You must specify a valid email address.");
    }
    let id = name.to_lowercase();
    if site.accounts.contains_key(&id) {
        return refuse("username", "A user with that username already exists.");
    }
    site.insert_account(id, email, display_name, AccountKind::Atlassian);
    Ok(Answer::json(201, user(jira, site.named(name)?)))
}

/// Matches the beginning of the user name, of the address, or of a word of the name.
fn search(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let bad = |name| platform_error(400, &format!("{name} is not a number"));
    let start = request.query_number("startAt", 0).map_err(bad)?;
    let limit = request.query_number("maxResults", 50).map_err(bad)?.clamp(1, 1000);
    let query = required(request, "username")?.to_lowercase();
    if site.behaviour.lacks_permission {
        return Ok(Answer::json(200, json!([])));
    }
    let inactive_too = request.query("includeInactive") == Some("true");
    let mut found = Vec::new();
    for account in site.accounts.values_mut() {
        let name = account.display_name.to_lowercase();
        let matches = account.id.starts_with(&query)
            || account.email.to_lowercase().starts_with(&query)
            || name.starts_with(&query)
            || name.split(' ').any(|word| word.starts_with(&query));
        if !matches || !(account.active || inactive_too) {
            continue;
        }
        if account.unfound > 0 {
            account.unfound -= 1;
            continue;
        }
        found.push(user(jira, account));
    }
    Ok(Answer::json(200, found.into_iter().skip(start).take(limit).collect()))
}

fn add_to_group(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let name = text(object(request, &["name"])?, "name").to_lowercase();
    let group_name = required(request, "groupname")?;
    if name.is_empty() {
        return Err(platform_error(400, "The name of the user must be provided."));
    }
    if !site.groups.contains_key(group_name) {
        return Err(no_such_group());
    }
    let account = site.named(&name)?;
    if site.behaviour.restricted_portal_access && account.kind == AccountKind::Customer {
        return Err(platform_error(400, "Cannot add user. The user has access to the portal only."));
    }
    let group = site.groups.get_mut(group_name).ok_or_else(no_such_group)?;
    if !group.members.insert(name.clone()) {
        let message = format!("Cannot add user '{name}', user is already a member of '{group_name}'");
        return Err(platform_error(400, &message));
    }
    Ok(Answer::json(201, group_bean(jira, group)))
}

fn remove_from_group(site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let (group_name, name) = (required(request, "groupname")?, required(request, "username")?.to_lowercase());
    if !site.groups.contains_key(group_name) {
        return Err(no_such_group());
    }
    site.named(&name)?;
    let group = site.groups.get_mut(group_name).ok_or_else(no_such_group)?;
    if !group.members.remove(&name) {
        let message = format!(
            "Cannot remove user '{name}' from group '{group_name}' since user is not a member of '{group_name}'"
        );
        return Err(platform_error(400, &message));
    }
    Ok(Answer::empty(200))
}

fn create_customer(site: &mut Site, email: &str, name: &str) -> Result<String, Answer> {
    if !is_email(email) {
        return Err(desk_error(400, "sd.error.customer.email", "The email address is not valid."));
    }
    if site.account_of(email).is_some() || site.accounts.contains_key(&email.to_lowercase()) {
        let message = "An account already exists for this email address.";
        return Err(desk_error(400, "sd.error.customer.exists", message));
    }
    Ok(site.add_account(Edition::DataCenter, email, name, AccountKind::Customer))
}

/// Mails those who had no account; those who had are let into the service desk in silence.
fn invite(site: &mut Site, request: &Request, key: &str) -> Result<Answer, Answer> {
    let emails = names(request, "emails")?;
    if let Some(bad) = emails.iter().find(|email| !is_email(email)) {
        return Err(platform_error(400, &format!("{bad} is not an email address.")));
    }
    let desk = site.desks.values().find(|desk| desk.key == key).map(|desk| desk.id.clone()).ok_or_else(no_such_desk)?;
    for email in emails {
        let known = site.account_of(&email).map(|account| account.id.clone());
        let id = match known {
            Some(id) => id,
            None => {
                site.invitations.push(Invitation { email: email.clone(), service_desk: desk.clone() });
                site.add_account(Edition::DataCenter, &email, &email, AccountKind::Customer)
            }
        };
        site.desks.get_mut(&desk).ok_or_else(no_such_desk)?.customers.insert(id);
    }
    Ok(Answer::json(200, json!({})))
}

fn known_names(site: &Site, request: &Request) -> Result<Vec<String>, Answer> {
    let wanted: Vec<_> = names(request, "usernames")?.into_iter().map(|name| name.to_lowercase()).collect();
    if wanted.iter().all(|name| site.accounts.contains_key(name)) {
        return Ok(wanted);
    }
    Err(desk_error(400, "sd.error.user.unknown", "One or more of the users do not exist."))
}

fn text<'a>(body: &'a Map<String, Value>, field: &str) -> &'a str {
    body.get(field).and_then(Value::as_str).unwrap_or_default().trim()
}

fn required<'a>(request: &'a Request, name: &str) -> Result<&'a str, Answer> {
    let value = request.query(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| platform_error(400, &format!("The '{name}' query parameter needs to be provided")))
}

fn no_such_user(name: &str) -> Answer {
    platform_error(404, &format!("The user named '{name}' does not exist"))
}

fn no_such_group() -> Answer {
    platform_error(404, "The group does not exist.")
}

fn no_such_desk() -> Answer {
    desk_error(404, "sd.error.servicedesk.missing", "The service desk does not exist.")
}

impl Site {
    fn named(&self, name: &str) -> Result<&Account, Answer> {
        self.accounts.get(&name.to_lowercase()).ok_or_else(|| no_such_user(name))
    }
}

fn user(jira: &Jira, account: &Account) -> Value {
    let mut user = json!({
        "self": format!("{}/rest/api/2/user?username={}", jira.base_url, account.id),
        "key": account.key,
        "name": account.id,
        "avatarUrls": {},
        "displayName": account.display_name,
        "active": account.active,
        "deleted": false,
        "timeZone": "Europe/Zurich",
        "locale": "en_US",
    });
    if !account.email_hidden {
        user["emailAddress"] = json!(account.email);
    }
    user
}

fn desk_user(jira: &Jira, account: &Account) -> Value {
    let mut user = json!({
        "name": account.id,
        "key": account.key,
        "displayName": account.display_name,
        "active": account.active,
        "timeZone": "Europe/Zurich",
        "_links": { "self": format!("{}/rest/api/2/user?username={}", jira.base_url, account.id) },
    });
    if !account.email_hidden {
        user["emailAddress"] = json!(account.email);
    }
    user
}

fn group_bean(jira: &Jira, group: &Group) -> Value {
    json!({
        "name": group.name,
        "self": format!("{}/rest/api/2/group?groupname={}", jira.base_url, group.name),
        "users": { "size": group.members.len(), "items": [], "maxResults": 50 },
    })
}

fn organization(jira: &Jira, organization: &Organization) -> Value {
    json!({
        "id": organization.id,
        "name": organization.name,
        "_links": { "self": format!("{}/rest/servicedeskapi/organization/{}", jira.base_url, organization.id) },
    })
}

fn server_info(jira: &Jira) -> Value {
    json!({
        "baseUrl": jira.base_url,
        "version": "10.3.0",
        "versionNumbers": [10, 3, 0],
        "deploymentType": "Server",
        "buildNumber": 1_030_000,
        "serverTitle": "Jira",
    })
}
