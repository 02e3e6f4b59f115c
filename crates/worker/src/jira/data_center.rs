//! Jira Data Center (and Server): people are known by user name.
//!
//! The API for customers creates an account but sends no invitation; only an internal page of the service desk does both,
//! which is why its path is a setting. A customer's user name is their e-mail address at the time.
//!
//! Nobody is ever taken out of a service desk: the API has no call for it. Groups and organizations are what counts.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use oarlock_service::config::{self, Membership};
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
    status: "its log, or ask its administrators",
    token: "see that jira.edition is right; make a new personal access token (profile, Personal access tokens), put it where jira.token or jira.token_file has \
            it, without jira.user, and restart the workers",
    scopes: "make a token that has all rights of its user",
};

#[derive(Debug)]
pub(super) struct Client {
    http: http::Client,
    service_desk: Option<String>,
    invite_path: Option<String>,
}

impl Client {
    pub(super) fn new(settings: &config::Jira, timeout: Duration) -> anyhow::Result<Self> {
        // A personal access token does not work as the password of its user.
        let authorization = match &settings.user {
            Some(user) => http::basic(user, &settings.token, "jira.token")?,
            None => http::bearer(&settings.token, "jira.token")?,
        };
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, authorization),
            // Older versions want it for the customers' calls.
            (HeaderName::from_static("x-experimentalapi"), HeaderValue::from_static("opt-in")),
        ]);
        Ok(Self {
            http: http::Client::new(&settings.base_url, headers, timeout)?,
            service_desk: settings.service_desk_id.clone(),
            invite_path: settings.invite_path.clone(),
        })
    }

    pub(super) async fn invite(&self, email: &str, known: Option<&AccountId>) -> Result<Invited, Failure> {
        let what = "inviting the customer";
        let found = match known {
            Some(account) => Found::One(account.clone()),
            None => self.find(email).await?,
        };
        let (account, outcome) = match (found, &self.invite_path) {
            (Found::One(account), _) => (account, InviteOutcome::AlreadyInvited),
            (found @ Found::Several, _) => return Err(unproved(&found, what)),
            (Found::Nobody | Found::Hidden, Some(path)) => return self.invite_by_page(path, email, what).await,
            (Found::Nobody | Found::Hidden, None) => self.create(email, what).await?,
        };
        self.admit(&account).await?;
        Ok(Invited { account, outcome })
    }

    /// The page lets them into its service desk too, but says nothing about the account it made.
    async fn invite_by_page(&self, path: &str, email: &str, what: &str) -> Result<Invited, Failure> {
        let answer = send(self.http.post(path).json(&Emails { emails: [email] })).await?;
        if answer.status == 404 {
            return Err(answer.meaning(Meaning::Configuration, what, "no such page; is jira.invite_path right?"));
        }
        match said(&answer, what)? {
            Said::Done | Said::Already(_) => {}
            Said::NotFound(failure) | Said::Refused(failure) | Said::NotMember(failure) => return Err(failure),
        }
        match self.find(email).await? {
            Found::One(account) => Ok(Invited { account, outcome: InviteOutcome::Invited }),
            found => {
                self.sees_anybody().await?;
                // Not again by itself: each time the page mails another invitation.
                let failure = unproved(&found, "looking for the customer who was just invited");
                Err(Failure::new(Meaning::Permanent, None, failure.detail()))
            }
        }
    }

    async fn create(&self, email: &str, what: &str) -> Result<(AccountId, InviteOutcome), Failure> {
        let request = self.http.post("rest/servicedeskapi/customer");
        let answer = send(request.json(&NewCustomer { email, full_name: email })).await?;
        let failure = match said(&answer, what)? {
            Said::Done => return Ok((answer.json::<User>(what)?.into(), InviteOutcome::Invited)),
            // Somebody was quicker, or an account that the search does not show: there is no status for it, and the text
            // is not documented.
            Said::Already(_) => None,
            Said::Refused(failure) => Some(failure),
            Said::NotFound(failure) | Said::NotMember(failure) => return Err(failure),
        };
        match (self.find(email).await?, failure) {
            (Found::One(account), _) => Ok((account, InviteOutcome::AlreadyInvited)),
            (found, failure) => {
                self.sees_anybody().await?;
                Err(failure.unwrap_or_else(|| unproved(&found, what)))
            }
        }
    }

    /// Without the permission to browse there seems to be nobody at all.
    async fn sees_anybody(&self) -> Result<(), Failure> {
        let myself = self.myself().await?;
        self.sees_people(&myself).await.map(drop)
    }

    /// Lets an account that exists into the service desk; says the same if it was in.
    async fn admit(&self, account: &AccountId) -> Result<(), Failure> {
        let what = "adding the customer to the service desk";
        let Some(desk) = &self.service_desk else { return self.exists(account, what).await };
        let request = self.http.post(&format!("rest/servicedeskapi/servicedesk/{desk}/customer"));
        match said(&send(request.json(&Usernames::of(account))).await?, what)? {
            Said::Done | Said::Already(_) => Ok(()),
            Said::Refused(failure) | Said::NotMember(failure) => {
                self.exists(account, what).await?;
                Err(failure)
            }
            Said::NotFound(failure) => {
                self.exists(account, what).await?;
                Err(no_service_desk(desk, failure.http_status, what))
            }
        }
    }

    pub(super) async fn find(&self, email: &str) -> Result<Found, Failure> {
        let what = "searching the account";
        // The parameter is called so, but searches names and addresses too.
        let query = [("username", email), ("maxResults", "50")];
        let answer = send(self.http.get("rest/api/2/user/search").query(&query)).await?;
        let users: Vec<User> = match said(&answer, what)? {
            Said::NotFound(_) => Vec::new(),
            other => other.done().and_then(|()| answer.json(what))?,
        };
        let found = Found::among(users.iter().filter(|user| user.active != Some(false)).map(User::hit), email);
        let (Found::Nobody | Found::Hidden) = found else { return Ok(found) };
        // "User email visibility" may hide the address; but the user name of a customer is one.
        let answer = send(self.http.get("rest/api/2/user").query(&[("username", email)])).await?;
        if let Said::NotFound(_) = said(&answer, what)? {
            return Ok(found);
        }
        let user: User = read(&answer, what)?;
        // Who has changed their address since may have left the old one to somebody else.
        let address = user.email_address.as_deref().filter(|address| address.contains('@')).unwrap_or(email);
        let hits = (user.active != Some(false)).then_some((Some(address), user.name.as_str()));
        Ok(match Found::among(hits.into_iter(), email) {
            Found::Nobody => found,
            by_name => by_name,
        })
    }

    /// Whether the account is a member, looked up in the list of members: there is no list by account.
    pub(super) async fn is_member(&self, of: &Membership, account: &AccountId) -> Result<bool, Failure> {
        let what = format!("looking into {}", name(of));
        if self.is_listed(of, account, &what).await? {
            return Ok(true);
        }
        // A user who was renamed is not listed by the old name, but may well be a member.
        self.exists(account, &what).await?;
        Ok(false)
    }

    async fn is_listed(&self, of: &Membership, account: &AccountId, what: &str) -> Result<bool, Failure> {
        let wanted = account.as_str().to_lowercase();
        let mut start = Some(0);
        while let Some(at) = start {
            let page = self.members(of, at, "50", what).await?;
            if page.values.iter().any(|user| user.name.to_lowercase() == wanted) {
                return Ok(true);
            }
            start = page.next(at);
        }
        Ok(false)
    }

    async fn members(&self, of: &Membership, at: usize, size: &str, what: &str) -> Result<Page<User>, Failure> {
        let at = at.to_string();
        let request = match of {
            // The inactive too: they are members again once they are active.
            Membership::Group(name) => self.http.get("rest/api/2/group/member").query(&[
                ("groupname", name.as_str()),
                ("includeInactiveUsers", "true"),
                ("startAt", &at),
                ("maxResults", size),
            ]),
            Membership::Organization(id) => self
                .http
                .get(&format!("rest/servicedeskapi/organization/{id}/user"))
                .query(&[("start", at.as_str()), ("limit", size)]),
        };
        let answer = send(request).await?;
        match said(&answer, what)? {
            Said::NotFound(failure) => {
                // If anything is to be seen at all.
                match of {
                    Membership::Group(_) => drop(self.myself().await?),
                    Membership::Organization(_) => {
                        let request = self.http.get("rest/servicedeskapi/organization").query(&[("limit", "1")]);
                        said(&send(request).await?, what)?.done()?;
                    }
                }
                let detail = format!("{what}: there is no such {}", name(of));
                Err(Failure::new(Meaning::TargetGone, failure.http_status, detail))
            }
            other => other.done().and_then(|()| answer.json(what)),
        }
    }

    pub(super) async fn change(
        &self,
        change: Change,
        membership: &Membership,
        account: &AccountId,
        what: &str,
    ) -> Result<Said, Failure> {
        let request = match (membership, change) {
            (Membership::Group(name), Change::Add) => {
                let body = NewMember { name: account.as_str() };
                self.http.post("rest/api/2/group/user").query(&[("groupname", name)]).json(&body)
            }
            (Membership::Group(name), Change::Remove) => self
                .http
                .delete("rest/api/2/group/user")
                .query(&[("groupname", name.as_str()), ("username", account.as_str())]),
            (Membership::Organization(id), change) => {
                organization_users(&self.http, change, id).json(&Usernames::of(account))
            }
        };
        said(&send(request).await?, what)
    }

    /// Jira says 404 alike when the group or organization is missing and when the account is.
    pub(super) async fn why_not_found(
        &self,
        membership: &Membership,
        account: &AccountId,
        failure: Failure,
        what: &str,
    ) -> Result<Failure, Failure> {
        self.members(membership, 0, "1", what).await?;
        self.exists(account, what).await?;
        let detail = format!(
            "{}; both it and the account are there: the token's account lacks the permission",
            failure.detail()
        );
        Ok(Failure::new(Meaning::Configuration, failure.http_status, detail))
    }

    async fn exists(&self, account: &AccountId, what: &str) -> Result<(), Failure> {
        let answer = send(self.http.get("rest/api/2/user").query(&[("username", account.as_str())])).await?;
        match said(&answer, what)? {
            Said::NotFound(failure) => Err(account_gone(&failure, what)),
            other => other.done(),
        }
    }

    pub(super) async fn check(&self, access: &BTreeSet<Membership>) -> Vec<Finding> {
        let deadline = round();
        let (edition, myself) = tokio::join!(until(deadline, self.edition()), until(deadline, self.myself()));
        let account = myself.as_ref().map(|_| "accepted".to_owned()).map_err(Clone::clone);
        let mut findings = entrance(&VENDOR, edition, account);
        // Anything after this would only repeat what is wrong.
        let (Ok(myself), true) = (myself, findings.iter().all(|finding| finding.result.is_ok())) else {
            return findings;
        };
        let deadline = round();
        let desk = async {
            let id = self.service_desk.as_deref()?;
            let found = until(deadline, self.sees_service_desk(id)).await;
            let remedy = "set jira.service_desk_id to one that GET /rest/servicedeskapi/servicedesk lists, and make the token's \
                          account administrator of its project";
            Some(VENDOR.finding("jira.service_desk", Some(id), found, remedy))
        };
        let (people, desk, invites) =
            tokio::join!(until(deadline, self.sees_people(&myself)), desk, until(deadline, self.may_invite()));
        let remedy = "give the token's account the global permission \"Browse users\"";
        findings.push(VENDOR.finding("jira.search", None, people, remedy));
        findings.extend(desk);
        let administer = "give the token's account the global permission \"Jira administrators\"";
        findings.push(VENDOR.finding("jira.invite", None, invites, administer));
        let memberships = stream::iter(access).map(async |membership| {
            let found =
                until(deadline, self.members(membership, 0, "1", "looking up")).await.map(|_| "there".to_owned());
            // Missing, or not allowed: what is to be done is not the same.
            let is_missing = found.as_ref().is_err_and(|failure| failure.http_status == Some(404));
            match membership {
                Membership::Group(name) => {
                    let remedy = "make the group, or correct its name in jira.access (upper and lower case count)";
                    VENDOR.finding("jira.group", Some(name), found, if is_missing { remedy } else { administer })
                }
                Membership::Organization(id) => {
                    let remedy = "correct the number in jira.access: GET /rest/servicedeskapi/organization lists them";
                    let staff = "make the token's account administrator of a service desk's project";
                    VENDOR.finding("jira.organization", Some(id), found, if is_missing { remedy } else { staff })
                }
            }
        });
        findings.extend(memberships.buffered(Self::SIDE_BY_SIDE).collect::<Vec<_>>().await);
        findings
    }

    /// Requests of `check` at once.
    const SIDE_BY_SIDE: usize = 4;

    /// To make a customer takes an administrator of Jira, and only to one does Jira say who is in a group: also that there is
    /// none of the name that administrators have unless somebody changed it.
    async fn may_invite(&self) -> Result<String, Failure> {
        let what = "looking into the group of administrators";
        let query = [("groupname", "jira-administrators"), ("maxResults", "1")];
        match said(&send(self.http.get("rest/api/2/group/member").query(&query)).await?, what)? {
            Said::NotFound(_) => {}
            other => other.done()?,
        }
        Ok("may make customers: administrator".to_owned())
    }

    async fn edition(&self) -> Result<String, Failure> {
        let answer = send(self.http.get("rest/api/2/serverInfo")).await?;
        super::edition(&answer, "Server", "data_center")
    }

    async fn myself(&self) -> Result<User, Failure> {
        let answer = send(self.http.get("rest/api/2/myself")).await?;
        read(&answer, "asking who we are")
    }

    /// Without the permission a search is a success that finds nobody.
    async fn sees_people(&self, myself: &User) -> Result<String, Failure> {
        let what = "searching our own account";
        let answer = send(self.http.get("rest/api/2/user/search").query(&[("username", &myself.name)])).await?;
        if read::<Vec<User>>(&answer, what)?.is_empty() {
            let said = "found nobody; give the token's account the global permission \"Browse users\"";
            return Err(answer.meaning(Meaning::Configuration, what, said));
        }
        Ok("found our own account".to_owned())
    }

    /// In the list of all: a call for one is not in the API we hold to.
    async fn sees_service_desk(&self, id: &str) -> Result<String, Failure> {
        let what = "looking up the service desk";
        let mut start = Some(0);
        while let Some(at) = start {
            let query = [("start", at.to_string()), ("limit", "50".to_owned())];
            let answer = send(self.http.get("rest/servicedeskapi/servicedesk").query(&query)).await?;
            let page: Page<ServiceDesk> = read(&answer, what)?;
            if let Some(desk) = page.values.iter().find(|desk| desk.id == id) {
                return Ok(format!("project {}", desk.project_key.as_deref().unwrap_or_default()));
            }
            start = page.next(at);
        }
        Err(no_service_desk(id, None, what))
    }
}

#[derive(Serialize)]
struct Emails<'a> {
    emails: [&'a str; 1],
}

/// Here `fullName`, where Cloud has `displayName`. It must not be empty.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewCustomer<'a> {
    email: &'a str,
    full_name: &'a str,
}

#[derive(Serialize)]
struct NewMember<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Usernames<'a> {
    usernames: [&'a str; 1],
}

impl<'a> Usernames<'a> {
    fn of(account: &'a AccountId) -> Self {
        Self { usernames: [account.as_str()] }
    }
}

/// A user of the platform or a customer of the service desk: both say these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    name: String,
    email_address: Option<String>,
    active: Option<bool>,
}

impl User {
    fn hit(&self) -> (Option<&str>, &str) {
        (self.email_address.as_deref(), &self.name)
    }
}

impl From<User> for AccountId {
    fn from(user: User) -> Self {
        Self::new(user.name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceDesk {
    id: String,
    project_key: Option<String>,
}
