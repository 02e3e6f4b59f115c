//! The operations of Jira Cloud's `/rest/servicedeskapi`: customers, invitations, organizations.

use serde_json::{Value, json};

use crate::exchange::{Answer, Request};
use crate::jira::site::{Account, AccountKind, Desk, Organization, Site, is_email};
use crate::jira::wire::{desk_error, desk_page, names, object};
use crate::jira::{Edition, Invitation, Jira};

pub(super) fn answer(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let path = request.segments();
    let path = path.get(2..).unwrap_or_default();
    let lists_only = matches!(path, ["info"] | ["servicedesk"]);
    if site.behaviour.lacks_permission && !lists_only {
        return Err(desk_error(403, "sd.error.permission", "You do not have the permission to do this."));
    }
    match (request.method.as_str(), path) {
        ("GET", ["info"]) => Ok(Answer::json(
            200,
            json!({
                "version": "1001.0.0-SNAPSHOT", "platformVersion": "1001.0.0-SNAPSHOT", "buildChangeSet": "sandbox",
                "isLicensedForUse": true,
            }),
        )),
        ("POST", ["customer"]) => {
            let id = create_customer(site, request)?;
            Ok(Answer::json(201, user(jira, site.customer(&id)?)))
        }
        ("GET", ["servicedesk"]) => {
            let visible = !site.behaviour.lacks_permission;
            let desks = site.desks.values().filter(|_| visible);
            desk_page(jira, request, desks.map(|desk| service_desk(jira, desk)).collect())
        }
        ("GET", ["servicedesk", desk]) => Ok(Answer::json(200, service_desk(jira, site.desk(desk)?))),
        ("GET", ["servicedesk", desk, "customer"]) => {
            experimental(request)?;
            let query = request.query("query").unwrap_or_default().to_lowercase();
            let wanted = |account: &&Account| {
                account.email.to_lowercase().contains(&query) || account.display_name.to_lowercase().contains(&query)
            };
            let customers = site.accounts_in(&site.desk(desk)?.customers).filter(wanted);
            desk_page(jira, request, customers.map(|account| user(jira, account)).collect())
        }
        ("POST", ["servicedesk", desk, "customer"]) => {
            let id = site.desk(desk)?.id.clone();
            let wanted = names(request, "accountIds")?;
            let (known, unknown): (Vec<_>, Vec<_>) =
                wanted.into_iter().partition(|account| site.accounts.contains_key(account));
            // Those that exist are added even if the request is refused for the sake of another.
            site.desks.get_mut(&id).ok_or_else(no_such_desk)?.customers.extend(known);
            if unknown.is_empty() { Ok(Answer::empty(204)) } else { Err(no_such_customer()) }
        }
        ("DELETE", ["servicedesk", desk, "customer"]) => {
            experimental(request)?;
            let (id, open) = (site.desk(desk)?.id.clone(), site.desk(desk)?.open_access);
            let leaving = names(request, "accountIds")?;
            if open {
                let message = "Customers cannot be removed from a service desk with open access.";
                return Err(desk_error(400, "sd.error.servicedesk.open", message));
            }
            let desk = site.desks.get_mut(&id).ok_or_else(no_such_desk)?;
            desk.customers.retain(|customer| !leaving.contains(customer));
            Ok(Answer::empty(204))
        }
        ("POST", ["servicedesk", desk, "customer", "invite"]) => {
            experimental(request)?;
            // The project key is not documented to stand for the id here, as it does elsewhere.
            if !site.desks.contains_key(*desk) {
                return Err(no_such_desk());
            }
            let id = create_customer(site, request)?;
            let email = site.customer(&id)?.email.clone();
            site.desks.get_mut(*desk).ok_or_else(no_such_desk)?.customers.insert(id.clone());
            site.invitations.push(Invitation { email, service_desk: (*desk).to_owned() });
            Ok(Answer::json(201, user(jira, site.customer(&id)?)))
        }
        ("GET", ["organization"]) => {
            let member = request.query("accountId");
            if let Some(id) = member {
                site.accounts
                    .get(id)
                    .ok_or_else(|| desk_error(404, "sd.error.user.missing", "The user does not exist."))?;
            }
            let wanted = |organization: &&Organization| member.is_none_or(|id| organization.members.contains(id));
            let organizations = site.organizations.values().filter(wanted);
            desk_page(jira, request, organizations.map(|one| organization(jira, one)).collect())
        }
        ("POST", ["organization"]) => {
            let name = object(request, &["name"])?.get("name").and_then(Value::as_str).unwrap_or_default().trim();
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
        ("GET", ["organization", id]) => Ok(Answer::json(200, organization(jira, site.organization(id)?))),
        ("GET", ["organization", id, "user"]) => {
            let members = site.accounts_in(&site.organization(id)?.members);
            desk_page(jira, request, members.map(|account| user(jira, account)).collect())
        }
        ("POST", ["organization", id, "user"]) => {
            let joining = members_named(site, id, request)?;
            site.organization_mut(id)?.members.extend(joining);
            Ok(Answer::empty(204))
        }
        ("DELETE", ["organization", id, "user"]) => {
            let leaving = members_named(site, id, request)?;
            site.organization_mut(id)?.members.retain(|member| !leaving.contains(member));
            Ok(Answer::empty(204))
        }
        _ => Err(desk_error(404, "sd.error.resource.missing", "There is no such resource.")),
    }
}

/// Operations that Atlassian marks experimental want the caller to say that it knows.
fn experimental(request: &Request) -> Result<(), Answer> {
    if request.header("X-ExperimentalApi") == Some("opt-in") {
        return Ok(());
    }
    let message = "This API is experimental. To use it, send the header 'X-ExperimentalApi: opt-in'.";
    Err(desk_error(412, "sd.error.experimental", message))
}

fn create_customer(site: &mut Site, request: &Request) -> Result<String, Answer> {
    if !site.is_administrator("admin") {
        return Err(desk_error(403, "sd.error.permission", "You do not have the permission to do this."));
    }
    let body = object(request, &["email", "displayName", "fullName"])?;
    let text = |field| body.get(field).and_then(Value::as_str).unwrap_or_default().trim();
    // `fullName` is the deprecated spelling, and the invitation does not have it.
    let invites = request.path.ends_with("/invite");
    let name = match text("displayName") {
        "" if !invites => text("fullName"),
        name => name,
    };
    let email = text("email");
    if name.is_empty() {
        return Err(desk_error(400, "sd.error.customer.name", "The display name cannot be empty."));
    }
    if !is_email(email) {
        return Err(desk_error(400, "sd.error.customer.email", "The email address is not valid."));
    }
    if site.account_of(email).is_some() {
        let strict = request.query("strictConflictStatusCode") == Some("true");
        let message = "An account already exists for this email address.";
        return Err(desk_error(if strict { 409 } else { 400 }, "sd.error.customer.exists", message));
    }
    Ok(site.add_account(Edition::Cloud, email, name, AccountKind::Customer))
}

fn members_named(site: &Site, organization: &str, request: &Request) -> Result<Vec<String>, Answer> {
    site.organization(organization)?;
    let wanted = names(request, "accountIds")?;
    if wanted.iter().all(|id| site.accounts.contains_key(id)) { Ok(wanted) } else { Err(no_such_customer()) }
}

fn no_such_desk() -> Answer {
    desk_error(404, "sd.error.servicedesk.missing", "The service desk does not exist.")
}

fn no_such_customer() -> Answer {
    desk_error(400, "sd.error.user.unknown", "One or more of the users do not exist.")
}

impl Site {
    fn customer(&self, id: &str) -> Result<&Account, Answer> {
        self.accounts.get(id).ok_or_else(no_such_customer)
    }

    /// By id or by project key.
    fn desk(&self, identifier: &str) -> Result<&Desk, Answer> {
        let by_key = || self.desks.values().find(|desk| desk.key == identifier);
        self.desks.get(identifier).or_else(by_key).ok_or_else(no_such_desk)
    }
}

fn user(jira: &Jira, account: &Account) -> Value {
    let mut user = json!({
        "accountId": account.id,
        "displayName": account.display_name,
        "active": account.active,
        "timeZone": "Europe/Zurich",
        "_links": {
            "jiraRest": format!("{}/rest/api/2/user?accountId={}", jira.base_url, account.id),
            "avatarUrls": {},
            "self": format!("{}/rest/api/2/user?accountId={}", jira.base_url, account.id),
        },
    });
    if !account.email_hidden {
        user["emailAddress"] = json!(account.email);
    }
    user
}

fn service_desk(jira: &Jira, desk: &Desk) -> Value {
    json!({
        "id": desk.id,
        "projectId": format!("100{}", desk.id),
        "projectName": desk.key,
        "projectKey": desk.key,
        "projectTypeKey": "service_desk",
        "_links": { "self": format!("{}/rest/servicedeskapi/servicedesk/{}", jira.base_url, desk.id) },
    })
}

fn organization(jira: &Jira, organization: &Organization) -> Value {
    json!({
        "id": organization.id,
        "name": organization.name,
        "scimManaged": false,
        "_links": { "self": format!("{}/rest/servicedeskapi/organization/{}", jira.base_url, organization.id) },
    })
}
