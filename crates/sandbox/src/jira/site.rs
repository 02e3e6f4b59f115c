//! What a Jira site holds: accounts, and the groups, service desks and organizations they are in.
//!
//! Plain state, without HTTP and without locks. Members are kept by the id of their account, as Jira does it: a changed
//! address changes nothing about who is in a group.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{Edition, Invitation};

#[derive(Debug)]
pub(super) struct Site {
    /// Cloud: the e-mail of the token's account. Data Center: a user name.
    pub(super) user: String,
    /// Cloud: the API token. Data Center: the personal access token.
    pub(super) token: String,
    /// Data Center only.
    pub(super) password: String,
    /// By `accountId` or user name.
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) desks: BTreeMap<String, Desk>,
    pub(super) organizations: BTreeMap<String, Organization>,
    /// By name.
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) invitations: Vec<Invitation>,
    pub(super) behaviour: Behaviour,
    pub(super) next: u32,
}

/// Where vendors' sites differ from each other, or from what is documented.
#[derive(Debug)]
pub(super) struct Behaviour {
    pub(super) lacks_permission: bool,
    pub(super) restricted_portal_access: bool,
    /// How many searches do not find an account made from now on.
    pub(super) index_lag: u32,
    /// What the removal of somebody who is no member is answered.
    pub(super) absent_member_status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) id: String,
    /// Data Center only; on Cloud the key went away with the user name.
    pub(super) key: String,
    pub(super) email: String,
    pub(super) display_name: String,
    pub(super) kind: AccountKind,
    pub(super) active: bool,
    pub(super) email_hidden: bool,
    pub(super) unfound: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AccountKind {
    Atlassian,
    Customer,
}

#[derive(Debug)]
pub(super) struct Desk {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) open_access: bool,
    pub(super) customers: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Organization {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) members: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: String,
    pub(super) name: String,
    /// What being in it allows: `site-admin` or `admin`.
    pub(super) access: Option<&'static str>,
    pub(super) members: BTreeSet<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Place {
    Group(String),
    Desk(String),
    Organization(String),
}

impl Site {
    pub(super) fn new(edition: Edition) -> Self {
        let (user, token) = match edition {
            Edition::Cloud => (crate::JIRA_CLOUD_USER, crate::JIRA_CLOUD_TOKEN),
            Edition::DataCenter => ("oarlock-bot", crate::JIRA_DC_TOKEN),
        };
        let mut site = Self {
            user: user.to_owned(),
            token: token.to_owned(),
            password: "jira-dc-password".to_owned(),
            accounts: BTreeMap::new(),
            desks: BTreeMap::new(),
            organizations: BTreeMap::new(),
            groups: BTreeMap::new(),
            invitations: Vec::new(),
            behaviour: Behaviour {
                lacks_permission: false,
                restricted_portal_access: false,
                index_lag: 0,
                absent_member_status: match edition {
                    Edition::Cloud => 404,
                    Edition::DataCenter => 400,
                },
            },
            next: 10_100,
        };
        let bot = match edition {
            Edition::Cloud => site.new_id(edition, "bot@acme.example", AccountKind::Atlassian),
            Edition::DataCenter => user.to_owned(),
        };
        site.insert_account(bot.clone(), "bot@acme.example", "Support Bot", AccountKind::Atlassian);
        let administrators: &[_] = match edition {
            Edition::Cloud => &[("site-admins", "site-admin"), ("jira-admins-acme", "admin")],
            Edition::DataCenter => &[("jira-administrators", "admin")],
        };
        for (name, access) in administrators {
            site.add_group(name);
            site.groups.entry((*name).to_owned()).and_modify(|group| group.access = Some(access));
        }
        site.promote(&bot);
        site.add_desk("3", "SUP");
        site.add_group("commercial-support");
        site.organizations.insert("17".to_owned(), Organization::new("17", "Commercial customers"));
        site
    }

    pub(super) fn account_of(&self, email: &str) -> Option<&Account> {
        self.accounts.values().find(|account| same(&account.email, email))
    }

    pub(super) fn add_account(
        &mut self,
        edition: Edition,
        email: &str,
        display_name: &str,
        kind: AccountKind,
    ) -> String {
        let id = self.new_id(edition, email, kind);
        self.insert_account(id.clone(), email, display_name, kind);
        id
    }

    pub(super) fn new_id(&mut self, edition: Edition, email: &str, kind: AccountKind) -> String {
        match (edition, kind) {
            (Edition::Cloud, AccountKind::Atlassian) => format!("712020:{}", Uuid::now_v7()),
            (Edition::Cloud, AccountKind::Customer) => format!("qm:{}:{}", Uuid::now_v7(), self.number()),
            (Edition::DataCenter, AccountKind::Atlassian | AccountKind::Customer) => email.to_lowercase(),
        }
    }

    pub(super) fn insert_account(&mut self, id: String, email: &str, display_name: &str, kind: AccountKind) {
        let account = Account {
            key: format!("JIRAUSER{}", self.number()),
            id: id.clone(),
            email: email.to_owned(),
            display_name: display_name.to_owned(),
            kind,
            active: true,
            email_hidden: false,
            unfound: self.behaviour.index_lag,
        };
        self.accounts.insert(id, account);
    }

    /// Puts the account into every group of administrators.
    pub(super) fn promote(&mut self, account: &str) {
        for group in self.groups.values_mut().filter(|group| group.access.is_some()) {
            group.members.insert(account.to_owned());
        }
    }

    /// Whether the account of the token is in a group that gives this access, or one that gives more.
    pub(super) fn is_administrator(&self, access: &str) -> bool {
        let caller = self.accounts.values().find(|account| same(&account.email, &self.user) || account.id == self.user);
        caller.is_some_and(|caller| {
            let gives = |group: &&Group| group.access == Some(access) || group.access == Some("site-admin");
            self.groups.values().filter(gives).any(|group| group.members.contains(&caller.id))
        })
    }

    pub(super) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub(super) fn add_group(&mut self, name: &str) {
        self.groups.entry(name.to_owned()).or_insert_with(|| Group {
            id: Uuid::now_v7().to_string(),
            name: name.to_owned(),
            access: None,
            members: BTreeSet::new(),
        });
    }

    pub(super) fn add_desk(&mut self, id: &str, key: &str) {
        self.desks.entry(id.to_owned()).or_insert_with(|| Desk {
            id: id.to_owned(),
            key: key.to_owned(),
            open_access: false,
            customers: BTreeSet::new(),
        });
    }

    /// Jira answers with the organization that is there when the name is taken.
    pub(super) fn organization_named(&mut self, name: &str) -> String {
        if let Some(known) = self.organizations.values().find(|organization| organization.name == name) {
            return known.id.clone();
        }
        let id = self.number().to_string();
        self.organizations.insert(id.clone(), Organization::new(&id, name));
        id
    }

    pub(super) fn members(&self, place: &Place) -> Option<&BTreeSet<String>> {
        match place {
            Place::Group(name) => self.groups.get(name).map(|group| &group.members),
            Place::Desk(id) => self.desks.get(id).map(|desk| &desk.customers),
            Place::Organization(id) => self.organizations.get(id).map(|organization| &organization.members),
        }
    }

    pub(super) fn members_mut(&mut self, place: &Place) -> Option<&mut BTreeSet<String>> {
        match place {
            Place::Group(name) => self.groups.get_mut(name).map(|group| &mut group.members),
            Place::Desk(id) => self.desks.get_mut(id).map(|desk| &mut desk.customers),
            Place::Organization(id) => self.organizations.get_mut(id).map(|organization| &mut organization.members),
        }
    }

    pub(super) fn emails(&self, ids: &BTreeSet<String>) -> Vec<String> {
        let mut emails: Vec<_> = ids.iter().filter_map(|id| self.accounts.get(id)).map(|a| a.email.clone()).collect();
        emails.sort();
        emails
    }

    pub(super) fn accounts_in<'a>(&'a self, ids: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Account> {
        ids.iter().filter_map(|id| self.accounts.get(id))
    }
}

impl Organization {
    pub(super) fn new(id: &str, name: &str) -> Self {
        Self { id: id.to_owned(), name: name.to_owned(), members: BTreeSet::new() }
    }
}

pub(super) fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

pub(super) fn is_email(text: &str) -> bool {
    let well_placed = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty() && !domain.contains('@');
    !text.contains(char::is_whitespace) && text.split_once('@').is_some_and(well_placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_is() {
        for good in ["a@b", "ann+x@example.com"] {
            assert!(is_email(good), "{good}");
        }
        for bad in ["", "ann", "@example.com", "ann@", "a b@example.com", "a@b@c"] {
            assert!(!is_email(bad), "{bad}");
        }
    }
}
