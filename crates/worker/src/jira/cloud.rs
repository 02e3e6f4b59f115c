//! Jira Cloud: people are known by account id.
//!
//! Finding somebody by e-mail address is the weak spot: profiles may hide the address even from administrators, and a new
//! account is indexed late. So the id is taken from the answer that created the account, and kept by the caller.
//!
//! Customers of the portal alone cannot be put into groups by default; organizations are what Atlassian means for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use oarlock_service::config::{self, Membership};
use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::{
    AccountId, Change, Found, Invited, Page, Said, account_gone, entrance, name, no_service_desk, organization_users,
    read, said, unproved,
};
use crate::failure::{Failure, Meaning};
use crate::finding::{Finding, Vendor, round, until};
use crate::http::{self, send};
use crate::outcome::InviteOutcome;

const VENDOR: Vendor = Vendor {
    name: "Jira",
    address: "jira.base_url",
    status: "https://jira-service-management.status.atlassian.com",
    token: "see that jira.edition is right; make a new token for the account of jira.user (id.atlassian.com, Security, API tokens), put it where jira.token or \
            jira.token_file has it, and restart the workers",
    scopes: "set jira.base_url to https://api.atlassian.com/ex/jira/CLOUD_ID and make a token that has all the scopes of \
             docs/setup.md#jira-cloud, or one without scopes",
};

pub(super) struct Client {
    http: http::Client,
    service_desk: Option<String>,
    /// Whose token it is.
    user: String,
    /// The ids of groups by name: names can change, and calls by name are deprecated.
    groups: Mutex<BTreeMap<String, String>>,
}

impl fmt::Debug for Client {
    /// Without the user, which is an e-mail address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("http", &self.http).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(settings: &config::Jira, timeout: Duration) -> anyhow::Result<Self> {
        // The configuration tells what is missing in it.
        let user = settings.user.clone().unwrap_or_default();
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, http::basic(&user, &settings.token, "jira.token")?),
            // Some of the calls are experimental, and which ones changes.
            (HeaderName::from_static("x-experimentalapi"), HeaderValue::from_static("opt-in")),
        ]);
        Ok(Self {
            http: http::Client::new(&settings.base_url, headers, timeout)?,
            service_desk: settings.service_desk_id.clone(),
            user,
            groups: Mutex::default(),
        })
    }

    pub(super) async fn invite(&self, email: &str, known: Option<&AccountId>) -> Result<Invited, Failure> {
        if let Some(account) = known {
            self.admit(account).await?;
            return Ok(Invited { account: account.clone(), outcome: InviteOutcome::AlreadyInvited });
        }
        if let Some(account) = self.create(email).await? {
            return Ok(Invited { account, outcome: InviteOutcome::Invited });
        }
        match self.find(email).await? {
            Found::One(account) => {
                self.admit(&account).await?;
                Ok(Invited { account, outcome: InviteOutcome::AlreadyInvited })
            }
            found => {
                // Without the permission to browse there seems to be nobody at all.
                self.sees_people().await?;
                Err(unproved(&found, "inviting the customer"))
            }
        }
    }

    /// Creates the account, and invites it to the service desk if there is one. None: it exists.
    async fn create(&self, email: &str) -> Result<Option<AccountId>, Failure> {
        let what = "inviting the customer";
        let path = match &self.service_desk {
            Some(desk) => format!("rest/servicedeskapi/servicedesk/{desk}/customer/invite"),
            None => "rest/servicedeskapi/customer".to_owned(),
        };
        // Without the flag an account that exists is a 400 like any other. The name must not be empty.
        let request = self.http.post(&path).query(&[("strictConflictStatusCode", "true")]);
        let answer = send(request.json(&NewCustomer { email, display_name: email })).await?;
        match said(&answer, what)? {
            Said::Done => Ok(Some(answer.json::<User>(what)?.into())),
            Said::Already(_) => Ok(None),
            Said::NotFound(failure) => Err(match &self.service_desk {
                Some(desk) => no_service_desk(desk, failure.http_status, what),
                None => failure,
            }),
            Said::Refused(failure) | Said::NotMember(failure) => Err(failure),
        }
    }

    /// Lets an account that exists into the service desk; says the same if it was in.
    async fn admit(&self, account: &AccountId) -> Result<(), Failure> {
        let what = "adding the customer to the service desk";
        let Some(desk) = &self.service_desk else { return self.exists(account, what).await };
        let request = self.http.post(&format!("rest/servicedeskapi/servicedesk/{desk}/customer"));
        match said(&send(request.json(&AccountIds::of(account))).await?, what)? {
            Said::Done | Said::Already(_) => Ok(()),
            Said::Refused(failure) | Said::NotMember(failure) => {
                self.exists(account, what).await?;
                Err(failure)
            }
            Said::NotFound(failure) => Err(no_service_desk(desk, failure.http_status, what)),
        }
    }

    pub(super) async fn find(&self, email: &str) -> Result<Found, Failure> {
        let query = [("query", email), ("maxResults", "50")];
        let answer = send(self.http.get("rest/api/3/user/search").query(&query)).await?;
        let users: Vec<User> = read(&answer, "searching the account")?;
        let people = users.iter().filter(|user| user.account_type.as_deref() != Some("app"));
        let found = Found::among(people.filter(|user| user.active != Some(false)).map(User::hit), email);
        // The customer list may show an address that the search hides. It bears five requests a second for the whole site,
        // so it comes second.
        let (Found::Nobody | Found::Hidden, Some(desk)) = (&found, &self.service_desk) else { return Ok(found) };
        let what = "searching the customers of the service desk";
        let request = self.http.get(&format!("rest/servicedeskapi/servicedesk/{desk}/customer"));
        let answer = send(request.query(&[("query", email), ("limit", "50")])).await?;
        if let Said::NotFound(failure) = said(&answer, what)? {
            return Err(no_service_desk(desk, failure.http_status, what));
        }
        let page: Page<User> = read(&answer, what)?;
        let customers = page.values.iter().filter(|user| user.active != Some(false));
        Ok(match Found::among(customers.map(User::hit), email) {
            Found::Nobody => found,
            among_customers => among_customers,
        })
    }

    pub(super) async fn is_member(&self, of: &Membership, account: &AccountId) -> Result<bool, Failure> {
        let what = format!("looking into {}", name(of));
        match of {
            Membership::Group(name) => {
                let id = self.group_id(name).await?;
                let request = self.http.get("rest/api/3/user/groups").query(&[("accountId", account.as_str())]);
                let answer = send(request).await?;
                if let Said::NotFound(failure) = said(&answer, &what)? {
                    return Err(account_gone(&failure, &what));
                }
                // By name too: the id we keep may be that of a group since deleted and made again.
                let groups: Vec<Group> = read(&answer, &what)?;
                Ok(groups.iter().any(|group| group.group_id.as_ref() == Some(&id) || group.name == *name))
            }
            Membership::Organization(id) => {
                let mut start = Some(0);
                while let Some(at) = start {
                    let query = [("accountId", account.as_str()), ("start", &at.to_string()), ("limit", "50")];
                    let answer = send(self.http.get("rest/servicedeskapi/organization").query(&query)).await?;
                    if let Said::NotFound(failure) = said(&answer, &what)? {
                        self.exists(account, &what).await?;
                        return Err(failure);
                    }
                    let page: Page<Organization> = read(&answer, &what)?;
                    if page.values.iter().any(|organization| organization.id == *id) {
                        return Ok(true);
                    }
                    start = page.next(at);
                }
                Ok(false)
            }
        }
    }

    pub(super) async fn change(
        &self,
        change: Change,
        membership: &Membership,
        account: &AccountId,
        what: &str,
    ) -> Result<Said, Failure> {
        match membership {
            Membership::Group(name) => {
                let id = self.group_id(name).await?;
                let first = said(&send(self.group_request(change, &id, account)).await?, what)?;
                let Said::NotFound(_) = first else { return Ok(first) };
                // Perhaps a group of that name was deleted and made again since we looked it up.
                let fresh = self.look_up_group(name).await?;
                if fresh == id {
                    return Ok(first);
                }
                said(&send(self.group_request(change, &fresh, account)).await?, what)
            }
            Membership::Organization(id) => {
                let request = organization_users(&self.http, change, id).json(&AccountIds::of(account));
                said(&send(request).await?, what)
            }
        }
    }

    fn group_request(&self, change: Change, group_id: &str, account: &AccountId) -> RequestBuilder {
        let path = "rest/api/3/group/user";
        match change {
            Change::Add => {
                let body = NewMember { account_id: account.as_str() };
                self.http.post(path).query(&[("groupId", group_id)]).json(&body)
            }
            Change::Remove => self.http.delete(path).query(&[("groupId", group_id), ("accountId", account.as_str())]),
        }
    }

    /// Jira says 404 alike when the group or organization is missing, when the account is, and when it will not tell.
    /// The group has just been looked up when this is asked.
    pub(super) async fn why_not_found(
        &self,
        membership: &Membership,
        account: &AccountId,
        failure: Failure,
        what: &str,
    ) -> Result<Failure, Failure> {
        if let Membership::Organization(id) = membership {
            self.organization(id).await?;
        }
        let user = self.look_up(account, what).await?;
        let is_for_others = matches!(membership, Membership::Group(_)) && user.is_portal_only();
        let (meaning, why) = if user.active == Some(false) {
            (Meaning::Permanent, "the account is deactivated")
        } else if is_for_others && self.may_change_groups(&self.myself().await?).await.is_ok() {
            let why = "the account is one of the portal only, which groups do not take: grant an organization instead";
            (Meaning::Permanent, why)
        } else {
            let why =
                "both it and the account are there: the token's account lacks the permission (groups want site-admin)";
            (Meaning::Configuration, why)
        };
        Ok(Failure::new(meaning, failure.http_status, format!("{}; {why}", failure.detail())))
    }

    async fn exists(&self, account: &AccountId, what: &str) -> Result<(), Failure> {
        self.look_up(account, what).await.map(drop)
    }

    async fn look_up(&self, account: &AccountId, what: &str) -> Result<User, Failure> {
        let answer = send(self.http.get("rest/api/3/user").query(&[("accountId", account.as_str())])).await?;
        match said(&answer, what)? {
            Said::NotFound(failure) => Err(account_gone(&failure, what)),
            other => other.done().and_then(|()| answer.json(what)),
        }
    }

    async fn group_id(&self, name: &str) -> Result<String, Failure> {
        let kept = self.groups.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        match kept {
            Some(id) => Ok(id),
            None => self.look_up_group(name).await,
        }
    }

    async fn look_up_group(&self, name: &str) -> Result<String, Failure> {
        let what = format!("looking up the group {name:?}");
        let answer = send(self.http.get("rest/api/3/group/bulk").query(&[("groupName", name)])).await?;
        let page: Page<Group> = read(&answer, &what)?;
        let found = page.values.into_iter().find(|group| group.name == name).and_then(|group| group.group_id);
        {
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(id) = found {
                groups.insert(name.to_owned(), id.clone());
                return Ok(id);
            }
            groups.remove(name);
        }
        // Without the permission to browse there seems to be none either.
        self.sees_people().await?;
        Err(Failure::new(Meaning::TargetGone, Some(answer.status), format!("{what}: there is none")))
    }

    async fn organization(&self, id: &str) -> Result<Organization, Failure> {
        let what = format!("looking up the organization {id}");
        let answer = send(self.http.get(&format!("rest/servicedeskapi/organization/{id}"))).await?;
        read(&answer, &what)
    }

    pub(super) async fn check(&self, access: &BTreeSet<Membership>) -> Vec<Finding> {
        let deadline = round();
        let (edition, myself) = tokio::join!(until(deadline, self.edition()), until(deadline, self.myself()));
        let account = myself.as_ref().map(|account| format!("accepted, account {}", account.as_str()));
        let mut findings = entrance(&VENDOR, edition, account.map_err(Clone::clone));
        // Anything after this would only repeat what is wrong.
        let (Ok(myself), true) = (myself, findings.iter().all(|finding| finding.result.is_ok())) else {
            return findings;
        };
        let deadline = round();
        let desk = async {
            let id = self.service_desk.as_deref()?;
            let found = until(deadline, self.sees_service_desk(id)).await;
            let remedy = "set jira.service_desk_id to one that GET /rest/servicedeskapi/servicedesk lists, and let the token's \
                          account into its project";
            Some(VENDOR.finding("jira.service_desk", Some(id), found, remedy))
        };
        let (people, desk, invites, groups) = tokio::join!(
            until(deadline, self.sees_people()),
            desk,
            until(deadline, self.may_invite(&myself)),
            until(deadline, self.may_change_groups(&myself)),
        );
        let remedy = "give the token's account the global permission \"Browse users and groups\"";
        findings.push(VENDOR.finding("jira.search", None, people, remedy));
        let can_be_invited_to = desk.as_ref().is_none_or(|desk| desk.result.is_ok());
        findings.extend(desk);
        if can_be_invited_to {
            let remedy = "make the token's account Jira administrator, and administrator of the service desk's project";
            findings.push(VENDOR.finding("jira.invite", None, invites, remedy));
        }
        if access.iter().any(|membership| matches!(membership, Membership::Group(_))) {
            let remedy = "put the token's account into the group of site administrators (admin.atlassian.com), or let \
                          jira.access name organizations instead";
            findings.push(VENDOR.finding("jira.change_groups", None, groups, remedy));
        }
        let memberships = stream::iter(access).map(async |membership| match membership {
            Membership::Group(name) => {
                let found = until(deadline, self.look_up_group(name)).await.map(|id| format!("there, id {id}"));
                let remedy = "make the group, or correct its name in jira.access (upper and lower case count)";
                VENDOR.finding("jira.group", Some(name), found, remedy)
            }
            Membership::Organization(id) => {
                let found = until(deadline, self.sees_organization(id, &myself)).await;
                let remedy = "correct the number in jira.access (GET /rest/servicedeskapi/organization lists them), and make the \
                              token's account agent or administrator of a service desk";
                VENDOR.finding("jira.organization", Some(id), found, remedy)
            }
        });
        findings.extend(memberships.buffered(Self::SIDE_BY_SIDE).collect::<Vec<_>>().await);
        findings
    }

    /// Requests of `check` at once: far below what Jira bears.
    const SIDE_BY_SIDE: usize = 8;

    async fn edition(&self) -> Result<String, Failure> {
        let answer = send(self.http.get("rest/api/3/serverInfo")).await?;
        super::edition(&answer, "Cloud", "cloud")
    }

    async fn myself(&self) -> Result<AccountId, Failure> {
        let answer = send(self.http.get("rest/api/3/myself")).await?;
        read::<User>(&answer, "asking who we are").map(Into::into)
    }

    /// Without the permission a search is a success that finds nobody.
    async fn sees_people(&self) -> Result<String, Failure> {
        let what = "searching jira.user";
        let answer = send(self.http.get("rest/api/3/user/search").query(&[("query", self.user.as_str())])).await?;
        if read::<Vec<User>>(&answer, what)?.is_empty() {
            let said = "found nobody; give the token's account the global permission \"Browse users and groups\"";
            return Err(answer.meaning(Meaning::Configuration, what, said));
        }
        Ok("found jira.user".to_owned())
    }

    async fn sees_service_desk(&self, id: &str) -> Result<String, Failure> {
        let what = "looking up the service desk";
        let answer = send(self.http.get(&format!("rest/servicedeskapi/servicedesk/{id}"))).await?;
        if let Said::NotFound(failure) = said(&answer, what)? {
            return Err(no_service_desk(id, failure.http_status, what));
        }
        read::<ServiceDesk>(&answer, what).map(|desk| format!("project {}", desk.project_key.unwrap_or_default()))
    }

    /// The list of customers is shown to the service desk's staff alone. To invite takes an administrator of Jira besides;
    /// Jira tells which groups make one, but not of an account that was made one in another way.
    async fn may_invite(&self, myself: &AccountId) -> Result<String, Failure> {
        if let Some(desk) = &self.service_desk {
            let what = "looking at the customers of the service desk";
            let request = self.http.get(&format!("rest/servicedeskapi/servicedesk/{desk}/customer"));
            let answer = send(request.query(&[("limit", "1")])).await?;
            match said(&answer, what)? {
                Said::NotFound(failure) => return Err(no_service_desk(desk, failure.http_status, what)),
                other => other.done()?,
            }
        }
        let mine = self.groups_of(myself).await?;
        for access in ["admin", "site-admin"] {
            let making = self.groups_with(access).await?.unwrap_or_default();
            if let Some(group) = mine.iter().find(|group| group.is_among(&making)) {
                return Ok(format!("may invite: administrator by the group {:?}", group.name));
            }
        }
        Ok("may see the customers; not proven that it may invite, since none of its groups makes it a Jira administrator: if \
            the first invitation is refused (403), make it one"
            .to_owned())
    }

    async fn may_change_groups(&self, myself: &AccountId) -> Result<String, Failure> {
        let mine = self.groups_of(myself).await?;
        let Some(making) = self.groups_with("site-admin").await?.filter(|making| !making.is_empty()) else {
            return Ok("not proven: Jira does not tell which groups make a site administrator".to_owned());
        };
        match mine.iter().find(|group| group.is_among(&making)) {
            Some(group) => Ok(format!("may change groups: site administrator by the group {:?}", group.name)),
            None => {
                let detail =
                    "the token's account is in no group of site administrators, and only these may change groups";
                Err(Failure::new(Meaning::Configuration, None, detail))
            }
        }
    }

    async fn groups_of(&self, account: &AccountId) -> Result<Vec<Group>, Failure> {
        let request = self.http.get("rest/api/3/user/groups").query(&[("accountId", account.as_str())]);
        read(&send(request).await?, "asking for our own groups")
    }

    /// The ids of the groups that give this kind of access. None: Jira says that it cannot tell.
    async fn groups_with(&self, access: &str) -> Result<Option<Vec<String>>, Failure> {
        let mut ids = Vec::new();
        let mut start = Some(0);
        while let Some(at) = start {
            let query = [("accessType", access), ("startAt", &at.to_string()), ("maxResults", "50")];
            let answer = send(self.http.get("rest/api/3/group/bulk").query(&query)).await?;
            if matches!(answer.status, 400 | 500) {
                return Ok(None);
            }
            let page: Page<Group> = read(&answer, "asking which groups administer")?;
            start = page.next(at);
            ids.extend(page.values.into_iter().filter_map(|group| group.group_id));
        }
        Ok(Some(ids))
    }

    /// Its people are shown to those who may add some; which organizations somebody is in, to agents alone.
    async fn sees_organization(&self, id: &str, myself: &AccountId) -> Result<String, Failure> {
        let what = format!("looking at the people of organization {id}");
        let organization = self.organization(id).await?;
        let request = self.http.get(&format!("rest/servicedeskapi/organization/{id}/user")).query(&[("limit", "1")]);
        said(&send(request).await?, &what)?.done()?;
        self.is_member(&Membership::Organization(id.to_owned()), myself).await?;
        Ok(format!("there: {:?}", organization.name.unwrap_or_default()))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewCustomer<'a> {
    email: &'a str,
    display_name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewMember<'a> {
    account_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountIds<'a> {
    account_ids: [&'a str; 1],
}

impl<'a> AccountIds<'a> {
    fn of(account: &'a AccountId) -> Self {
        Self { account_ids: [account.as_str()] }
    }
}

/// A user of the platform or a customer of the service desk: both say these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    account_id: String,
    account_type: Option<String>,
    /// Absent, null or empty if the profile hides it.
    email_address: Option<String>,
    active: Option<bool>,
}

impl User {
    fn hit(&self) -> (Option<&str>, &str) {
        (self.email_address.as_deref(), &self.account_id)
    }

    /// A customer without an Atlassian account.
    fn is_portal_only(&self) -> bool {
        self.account_type.as_deref() == Some("customer") || self.account_id.starts_with("qm:")
    }
}

impl From<User> for AccountId {
    fn from(user: User) -> Self {
        Self::new(user.account_id)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    /// Null for some, which can then not be changed either.
    group_id: Option<String>,
}

impl Group {
    fn is_among(&self, ids: &[String]) -> bool {
        self.group_id.as_ref().is_some_and(|id| ids.contains(id))
    }
}

#[derive(Deserialize)]
struct Organization {
    id: String,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceDesk {
    project_key: Option<String>,
}
