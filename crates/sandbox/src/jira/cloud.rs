//! Jira Cloud over HTTP: who may call, and the operations of `/rest/api/3`.
//!
//! Follows Atlassian's OpenAPI documents "The Jira Cloud platform REST API" and "The Jira Service Management REST API", and
//! where they are silent what clients report: adding a member twice is a 400 whose text still holds the placeholder
//! (<https://jira.atlassian.com/browse/AX-17>), a `Bearer` header with an API token is refused on the site's own address
//! (<https://jira.atlassian.com/browse/JRACLOUD-72405>).

use serde_json::{Value, json};

use super::Jira;
use super::site::{Account, AccountKind, Group, Site, same};
use super::wire::{basic, error_for, object, platform_error, platform_page};
use crate::exchange::{Answer, Request};

mod service_desk;

pub(crate) fn answer(jira: &Jira, request: &Request) -> Answer {
    jira.change(|site| {
        if !authenticated(site, request) {
            let message = "Client must be authenticated to access this resource.";
            return error_for(&request.path, 401, "sd.error.unauthenticated", message);
        }
        let answered = if request.path.starts_with("/rest/servicedeskapi/") {
            service_desk::answer(jira, site, request)
        } else {
            platform(jira, site, request)
        };
        answered.unwrap_or_else(|refused| refused)
    })
}

fn authenticated(site: &Site, request: &Request) -> bool {
    let credentials = match request.authorization() {
        Some((scheme, credentials)) if scheme.eq_ignore_ascii_case("basic") => basic(credentials),
        Some(_) | None => None,
    };
    credentials.is_some_and(|(user, token)| same(&user, &site.user) && token == site.token)
}

fn platform(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let lacks_permission = site.behaviour.lacks_permission;
    let refusal = || platform_error(403, "You do not have the permission to do this.");
    let permitted = || if lacks_permission { Err(refusal()) } else { Ok(()) };
    // Who is in a group is for site administrators to say.
    let site_admin = site.is_administrator("site-admin");
    let administers = || if lacks_permission || !site_admin { Err(refusal()) } else { Ok(()) };
    match (request.method.as_str(), request.segments().as_slice()) {
        ("GET", ["rest", "api", "3", "myself"]) => {
            let caller = site.account_of(&site.user).ok_or_else(|| platform_error(401, "The account is gone."))?;
            Ok(Answer::json(200, user(jira, caller)))
        }
        ("GET", ["rest", "api", "3", "serverInfo"]) => Ok(Answer::json(200, server_info(jira))),
        ("GET", ["rest", "api", "3", "user", "search"]) => search(jira, site, request),
        ("GET", ["rest", "api", "3", "user"]) => {
            permitted()?;
            Ok(Answer::json(200, user(jira, site.by_account_id(required_account_id(request)?)?)))
        }
        ("GET", ["rest", "api", "3", "user", "groups"]) => {
            permitted()?;
            let account = site.by_account_id(required_account_id(request)?)?;
            let groups = site.groups.values().filter(|group| group.members.contains(&account.id));
            Ok(Answer::json(200, groups.map(|group| group_name(jira, group)).collect()))
        }
        ("GET", ["rest", "api", "3", "group", "bulk"]) => {
            permitted()?;
            let names: Vec<_> = request.query_all("groupName").collect();
            let ids: Vec<_> = request.query_all("groupId").collect();
            let access = request.query("accessType");
            if access.is_some_and(|access| !matches!(access, "site-admin" | "admin" | "user")) {
                return Err(platform_error(400, "'accessType' is not valid."));
            }
            let wanted = |group: &&Group| {
                let named = (names.is_empty() && ids.is_empty())
                    || names.contains(&group.name.as_str())
                    || ids.contains(&group.id.as_str());
                named && access.is_none_or(|access| group.access == Some(access))
            };
            let groups = site.groups.values().filter(wanted);
            let details = groups.map(|group| json!({ "groupId": group.id, "name": group.name })).collect();
            platform_page(jira, request, details)
        }
        ("GET", ["rest", "api", "3", "group", "member"]) => {
            permitted()?;
            let inactive_too = request.query("includeInactiveUsers") == Some("true");
            let group = site.groups.get(&site.wanted_group(request)?).ok_or_else(no_such_group)?;
            let members = site.accounts_in(&group.members).filter(|account| account.active || inactive_too);
            platform_page(jira, request, members.map(|account| user(jira, account)).collect())
        }
        ("POST", ["rest", "api", "3", "group", "user"]) => {
            administers()?;
            add_to_group(jira, site, request)
        }
        ("DELETE", ["rest", "api", "3", "group", "user"]) => {
            administers()?;
            remove_from_group(site, request)
        }
        _ => Err(platform_error(404, "There is no such resource.")),
    }
}

/// Matches the beginning of the address or of a word of the name, as the picker in the browser does: also the addresses of
/// other people, and also of those who hide theirs.
fn search(jira: &Jira, site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let bad = |name| platform_error(400, &format!("{name} is not a number"));
    let start = request.query_number("startAt", 0).map_err(bad)?;
    let limit = request.query_number("maxResults", 50).map_err(bad)?.clamp(1, 1000);
    let (query, account_id) = (request.query("query"), request.query("accountId"));
    if query.is_some() == account_id.is_some() {
        return Err(platform_error(400, "Exactly one of 'query' and 'accountId' needs to be provided."));
    }
    if site.behaviour.lacks_permission {
        return Ok(Answer::json(200, json!([])));
    }
    let query = query.map(str::to_lowercase);
    let mut found = Vec::new();
    for account in site.accounts.values_mut() {
        let name = account.display_name.to_lowercase();
        let matches = match &query {
            Some(query) => {
                account.email.to_lowercase().starts_with(query)
                    || name.starts_with(query)
                    || name.split(' ').any(|word| word.starts_with(query))
            }
            None => account_id == Some(account.id.as_str()),
        };
        if !matches || !account.active {
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
    let body = object(request, &["accountId", "name"])?;
    let account_id = match (body.get("accountId").and_then(Value::as_str), body.contains_key("name")) {
        (Some(id), false) if !id.is_empty() => id,
        (_, true) => return Err(platform_error(400, "'name' is no longer available: use 'accountId'.")),
        _ => return Err(platform_error(400, "The 'accountId' needs to be provided.")),
    };
    let name = site.wanted_group(request)?;
    let account = site.by_account_id(account_id)?;
    if site.behaviour.restricted_portal_access && account.kind == AccountKind::Customer {
        return Err(platform_error(400, "Cannot add user. The user has access to the portal only."));
    }
    let group = site.groups.get_mut(&name).ok_or_else(no_such_group)?;
    if !group.members.insert(account_id.to_owned()) {
        return Err(platform_error(400, "Cannot add user. User is already a member of '{1}'"));
    }
    let mut answer = group_name(jira, group);
    answer["expand"] = json!("users");
    answer["users"] =
        json!({ "size": group.members.len(), "items": [], "max-results": 50, "start-index": 0, "end-index": 0 });
    Ok(Answer::json(201, answer))
}

fn remove_from_group(site: &mut Site, request: &Request) -> Result<Answer, Answer> {
    let account_id = required_account_id(request)?;
    let name = site.wanted_group(request)?;
    site.by_account_id(account_id)?;
    let absent = site.behaviour.absent_member_status;
    let group = site.groups.get_mut(&name).ok_or_else(no_such_group)?;
    if !group.members.remove(account_id) {
        return Err(platform_error(absent, "Cannot remove user. User is not a member of the group."));
    }
    Ok(Answer::empty(200))
}

fn required_account_id(request: &Request) -> Result<&str, Answer> {
    if request.query("username").is_some() || request.query("key").is_some() {
        return Err(platform_error(400, "'username' and 'key' are no longer available: use 'accountId'."));
    }
    let id = request.query("accountId").filter(|id| !id.is_empty());
    id.ok_or_else(|| platform_error(400, "The 'accountId' query parameter needs to be provided."))
}

fn no_such_group() -> Answer {
    platform_error(404, "The group does not exist.")
}

impl Site {
    fn by_account_id(&self, id: &str) -> Result<&Account, Answer> {
        self.accounts
            .get(id)
            .ok_or_else(|| platform_error(404, "Specified user does not exist or you do not have required permissions"))
    }

    /// The name of the group that the query means: exactly one of `groupId` and `groupname`.
    fn wanted_group(&self, request: &Request) -> Result<String, Answer> {
        match (request.query("groupId"), request.query("groupname")) {
            (Some(id), None) => {
                let group = self.groups.values().find(|group| group.id == id).ok_or_else(no_such_group)?;
                Ok(group.name.clone())
            }
            (None, Some(name)) if self.groups.contains_key(name) => Ok(name.to_owned()),
            (None, Some(_)) => Err(no_such_group()),
            (Some(_), Some(_)) => Err(platform_error(400, "'groupId' and 'groupname' cannot be used together.")),
            (None, None) => Err(platform_error(400, "Query parameter 'groupId' or 'groupname' should be provided.")),
        }
    }
}

fn user(jira: &Jira, account: &Account) -> Value {
    let mut user = json!({
        "self": format!("{}/rest/api/3/user?accountId={}", jira.base_url, account.id),
        "accountId": account.id,
        "accountType": match account.kind {
            AccountKind::Atlassian => "atlassian",
            AccountKind::Customer => "customer",
        },
        "avatarUrls": {},
        "displayName": account.display_name,
        "active": account.active,
        "timeZone": "Europe/Zurich",
    });
    if !account.email_hidden {
        user["emailAddress"] = json!(account.email);
    }
    user
}

fn group_name(jira: &Jira, group: &Group) -> Value {
    json!({
        "name": group.name,
        "groupId": group.id,
        "self": format!("{}/rest/api/3/group?groupId={}", jira.base_url, group.id),
    })
}

fn server_info(jira: &Jira) -> Value {
    json!({
        "baseUrl": jira.base_url,
        "version": "1001.0.0-SNAPSHOT",
        "versionNumbers": [1001, 0, 0],
        "deploymentType": "Cloud",
        "buildNumber": 100_286,
        "serverTitle": "Jira",
    })
}
