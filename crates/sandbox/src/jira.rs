//! A Jira site with Service Management: its accounts, and what they are members of.
//!
//! In: what tests and operators do by hand (a colleague joins a group, a group is deleted, a token expires) and, through
//! [`cloud`] and [`data_center`], what arrives over HTTP. Out: who is member of what, and who was mailed an invitation.
//! Both editions share this state; they differ in what an account is called by (`accountId` or user name) and in the API.
//!
//! At first there are service desk 3 (project SUP), the group `commercial-support`, organization 17, groups of administrators
//! (Cloud: `site-admins` and `jira-admins-acme`, Data Center: `jira-administrators`), and, in these, the account whose credentials
//! are accepted: on Cloud `bot@acme.example` with the API token `jira-token`, on Data Center the personal access
//! token `jira-dc-token` or the user `oarlock-bot` with the password `jira-dc-password`.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde::Serialize;
use serde_json::{Map, Value, json};

use self::site::{Account, AccountKind, Place, Site, same};
use crate::calls::{Changes, lock};
use crate::faults::{Fault, Faults};

pub(crate) mod cloud;
pub(crate) mod data_center;
mod site;
mod wire;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edition {
    Cloud,
    DataCenter,
}

/// A Jira site of one edition.
#[derive(Debug)]
pub struct Jira {
    edition: Edition,
    base_url: String,
    site: Mutex<Site>,
    faults: Faults,
    changes: Changes,
}

/// An invitation that was mailed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Invitation {
    pub email: String,
    pub service_desk: String,
}

/// A group, a service desk or an organization, to be asked who is in it.
#[derive(Debug, Clone)]
pub struct Members<'a> {
    jira: &'a Jira,
    place: Place,
}

impl Jira {
    pub(crate) fn new(edition: Edition, base_url: String, changes: Changes) -> Self {
        Self { edition, base_url, site: Mutex::new(Site::new(edition)), faults: Faults::new(), changes }
    }

    /// Looks at the site, or changes it; waiters are woken afterwards.
    fn change<T>(&self, change: impl FnOnce(&mut Site) -> T) -> T {
        let result = change(&mut lock(&self.site));
        self.changes.note();
        result
    }

    fn look<T>(&self, look: impl FnOnce(&Site) -> T) -> T {
        look(&lock(&self.site))
    }

    /// The group with this name; it need not exist (yet), nobody is in it then.
    #[must_use]
    pub fn group(&self, name: &str) -> Members<'_> {
        Members { jira: self, place: Place::Group(name.to_owned()) }
    }

    /// The service desk with this id; it need not exist (yet), nobody is in it then.
    #[must_use]
    pub fn service_desk(&self, id: &str) -> Members<'_> {
        Members { jira: self, place: Place::Desk(id.to_owned()) }
    }

    /// The organization with this id; it need not exist (yet), nobody is in it then.
    #[must_use]
    pub fn organization(&self, id: &str) -> Members<'_> {
        Members { jira: self, place: Place::Organization(id.to_owned()) }
    }

    /// A new group without members, or the one of that name as it is.
    pub fn create_group(&self, name: &str) {
        self.change(|site| site.add_group(name));
    }

    /// The group is gone, and with it the memberships.
    pub fn delete_group(&self, name: &str) {
        self.change(|site| site.groups.remove(name));
    }

    pub fn create_service_desk(&self, id: &str, project_key: &str) {
        self.change(|site| site.add_desk(id, project_key));
    }

    pub fn delete_service_desk(&self, id: &str) {
        self.change(|site| site.desks.remove(id));
    }

    /// Open access or public signup: a service desk that lets everybody in takes nobody out.
    pub fn set_open_access(&self, service_desk: &str, open: bool) {
        self.change(|site| {
            if let Some(desk) = site.desks.get_mut(service_desk) {
                desk.open_access = open;
            }
        });
    }

    /// The id of the organization with this name, which is made if need be.
    pub fn create_organization(&self, name: &str) -> String {
        self.change(|site| site.organization_named(name))
    }

    pub fn delete_organization(&self, id: &str) {
        self.change(|site| site.organizations.remove(id));
    }

    /// An account that somebody else made: a colleague. Its `accountId` or user name, also if it was there before.
    pub fn create_account(&self, email: &str, display_name: &str) -> String {
        self.change(|site| {
            let known = site.account_of(email).map(|account| account.id.clone());
            known.unwrap_or_else(|| site.add_account(self.edition, email, display_name, AccountKind::Atlassian))
        })
    }

    /// The `accountId` or user name of whoever has this address.
    #[must_use]
    pub fn account_id(&self, email: &str) -> Option<String> {
        self.look(|site| site.account_of(email).map(|account| account.id.clone()))
    }

    /// The person hides the address from API answers, from administrators too.
    pub fn hide_email(&self, email: &str) {
        self.set_account(email, |account| account.email_hidden = true);
    }

    pub fn show_email(&self, email: &str) {
        self.set_account(email, |account| account.email_hidden = false);
    }

    pub fn deactivate(&self, email: &str) {
        self.set_account(email, |account| account.active = false);
    }

    /// The person changes the address of the account.
    pub fn change_email(&self, from: &str, to: &str) {
        self.set_account(from, |account| to.clone_into(&mut account.email));
    }

    fn set_account(&self, email: &str, set: impl FnOnce(&mut Account)) {
        self.change(|site| {
            let id = site.account_of(email).map(|account| account.id.clone());
            if let Some(account) = id.and_then(|id| site.accounts.get_mut(&id)) {
                set(account);
            }
        });
    }

    /// The invitations that were mailed, in order.
    #[must_use]
    pub fn invitations(&self) -> Vec<Invitation> {
        self.look(|site| site.invitations.clone())
    }

    /// How many invitations were mailed to this address.
    #[must_use]
    pub fn invited(&self, email: &str) -> usize {
        self.look(|site| site.invitations.iter().filter(|invitation| same(&invitation.email, email)).count())
    }

    /// From now on only this token is accepted. Data Center: the personal access token.
    pub fn set_token(&self, token: &str) {
        self.change(|site| token.clone_into(&mut site.token));
    }

    /// From now on only this user is accepted. Cloud: the e-mail of the token's account.
    pub fn set_user(&self, user: &str) {
        self.change(|site| {
            user.clone_into(&mut site.user);
            match self.edition {
                Edition::Cloud if site.account_of(user).is_none() => {
                    let id = site.add_account(self.edition, user, user, AccountKind::Atlassian);
                    site.promote(&id);
                }
                Edition::DataCenter if !site.accounts.contains_key(user) => {
                    site.insert_account(user.to_owned(), &format!("{user}@acme.example"), user, AccountKind::Atlassian);
                    site.promote(user);
                }
                Edition::Cloud | Edition::DataCenter => {}
            }
        });
    }

    /// Data Center: from now on only this password is accepted.
    pub fn set_password(&self, password: &str) {
        self.change(|site| password.clone_into(&mut site.password));
    }

    /// The account of the token may log in, and that is all: 403, and searches find nobody.
    pub fn lack_permission(&self, lacks: bool) {
        self.change(|site| site.behaviour.lacks_permission = lacks);
    }

    /// Customers who have only the portal cannot be put into groups.
    pub fn restrict_portal_access(&self, restricted: bool) {
        self.change(|site| site.behaviour.restricted_portal_access = restricted);
    }

    /// Accounts that are made from now on are not found by the first `searches` searches that should find them.
    pub fn set_index_lag(&self, searches: u32) {
        self.change(|site| site.behaviour.index_lag = searches);
    }

    /// What Jira Cloud answers when somebody is to be removed from a group who is not in it: 404, or 400.
    pub fn set_absent_member_status(&self, status: u16) {
        self.change(|site| site.behaviour.absent_member_status = status);
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
        self.look(|site| {
            let emails = |ids: &BTreeSet<String>| site.emails(ids);
            json!({
                "accounts": site.accounts.values().map(|account| json!({
                    "id": account.id, "email": account.email, "display_name": account.display_name,
                    "active": account.active, "email_hidden": account.email_hidden,
                })).collect::<Vec<_>>(),
                "groups": site.groups.values()
                    .map(|group| (group.name.clone(), json!(emails(&group.members)))).collect::<Map<_, _>>(),
                "service_desks": site.desks.values()
                    .map(|desk| (desk.id.clone(), json!(emails(&desk.customers)))).collect::<Map<_, _>>(),
                "organizations": site.organizations.values()
                    .map(|organization| (organization.id.clone(), json!(emails(&organization.members))))
                    .collect::<Map<_, _>>(),
                "invitations": site.invitations,
                "faults": self.faults.len(),
            })
        })
    }
}

impl Members<'_> {
    #[must_use]
    pub fn has(&self, email: &str) -> bool {
        self.jira.look(|site| {
            site.account_of(email)
                .is_some_and(|account| site.members(&self.place).is_some_and(|members| members.contains(&account.id)))
        })
    }

    /// The e-mail addresses of the members, sorted.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        self.jira.look(|site| site.members(&self.place).map(|members| site.emails(members)).unwrap_or_default())
    }

    #[must_use]
    pub fn exists(&self) -> bool {
        self.jira.look(|site| site.members(&self.place).is_some())
    }

    /// Somebody puts them there by hand. An account is made for an address that has none.
    #[track_caller]
    pub fn add_member(&self, email: &str) {
        let id = self.jira.create_account(email, email);
        let added = self.jira.change(|site| site.members_mut(&self.place).map(|members| members.insert(id)));
        assert!(added.is_some(), "there is no {:?}", self.place);
    }

    /// Somebody takes them out by hand.
    #[track_caller]
    pub fn remove_member(&self, email: &str) {
        let removed = self.jira.change(|site| {
            let id = site.account_of(email).map(|account| account.id.clone());
            site.members_mut(&self.place).map(|members| id.is_some_and(|id| members.remove(&id)))
        });
        assert!(removed.is_some(), "there is no {:?}", self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jira(edition: Edition) -> Jira {
        Jira::new(edition, "http://127.0.0.1:1/jira".to_owned(), Changes::new())
    }

    #[test]
    fn members_are_put_and_taken_by_hand() {
        for edition in [Edition::Cloud, Edition::DataCenter] {
            let jira = jira(edition);
            let group = jira.group("commercial-support");
            assert!(!group.has("ann@example.com"));
            group.add_member("ann@example.com");
            assert!(group.has("Ann@Example.com"), "an address is the same in any case");
            assert!(!jira.organization("17").has("ann@example.com"));
            group.remove_member("ann@example.com");
            assert_eq!(group.members(), Vec::<String>::new());
        }
    }

    #[test]
    fn a_deleted_group_comes_back_empty() {
        let jira = jira(Edition::Cloud);
        jira.group("commercial-support").add_member("ann@example.com");
        jira.delete_group("commercial-support");
        assert!(!jira.group("commercial-support").exists());
        jira.create_group("commercial-support");
        assert!(!jira.group("commercial-support").has("ann@example.com"));
    }
}
