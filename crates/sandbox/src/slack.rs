//! A Slack workspace: channels, members and invitations, behind the methods that invite.
//!
//! In: calls of the Web API, as a form or as JSON, and what people do by hand (somebody joins, a channel is archived). Out:
//! who was invited how often and who is a member. Follows Slack's method reference; `users.admin.invite`, which Slack never
//! described, as its users describe it (<https://github.com/ErikKalkoken/slackApiDoc>).
//!
//! At first there are the workspace `T1` with the channels `C1` (#support) and `C2` (#general), and the token
//! `xoxp-sandbox`, which has every scope. A wrong token is answered as Slack does it: status 200 and `{"ok": false, "error": "invalid_auth"}`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::calls::{Changes, lock};
use crate::exchange::{Answer, Content, Request};
use crate::faults::{Fault, Faults};

#[derive(Debug)]
pub struct Slack {
    workspace: Mutex<Workspace>,
    faults: Faults,
    changes: Changes,
}

/// An invitation that Slack sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlackInvitation {
    pub email: String,
    /// The method that was called: `admin.users.invite`, `conversations.inviteShared` or `users.admin.invite`.
    pub method: String,
    pub channels: Vec<String>,
    /// How many mails went out: 1, and one more for each time it was sent again.
    pub count: u32,
}

#[derive(Debug)]
struct Workspace {
    team: String,
    token: String,
    scopes: BTreeSet<String>,
    /// By id.
    channels: BTreeMap<String, Channel>,
    /// By lower-case address.
    members: BTreeMap<String, Member>,
    invitations: Vec<SlackInvitation>,
    next: u32,
}

#[derive(Debug)]
struct Channel {
    name: String,
    archived: bool,
    /// Addresses of people from other workspaces, for Slack Connect.
    shared_with: BTreeSet<String>,
}

#[derive(Debug)]
struct Member {
    id: String,
    email: String,
    deactivated: bool,
}

impl Slack {
    pub(crate) fn new(changes: Changes) -> Self {
        let channel = |name: &str| Channel { name: name.to_owned(), archived: false, shared_with: BTreeSet::new() };
        let mut workspace = Workspace {
            team: "T1".to_owned(),
            token: crate::SLACK_TOKEN.to_owned(),
            scopes: ALL_SCOPES.map(str::to_owned).into(),
            channels: BTreeMap::from([("C1".to_owned(), channel("support")), ("C2".to_owned(), channel("general"))]),
            members: BTreeMap::new(),
            invitations: Vec::new(),
            next: 0,
        };
        workspace.add_member("bot@acme.example");
        Self { workspace: Mutex::new(workspace), faults: Faults::new(), changes }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Workspace) -> T) -> T {
        let result = change(&mut lock(&self.workspace));
        self.changes.note();
        result
    }

    fn look<T>(&self, look: impl FnOnce(&Workspace) -> T) -> T {
        look(&lock(&self.workspace))
    }

    /// Slack has sent this address an invitation, whatever became of it.
    #[must_use]
    pub fn invited(&self, email: &str) -> bool {
        self.invitation_count(email) > 0
    }

    /// How many invitation mails this address got.
    #[must_use]
    pub fn invitation_count(&self, email: &str) -> u32 {
        self.look(|w| w.invitations.iter().filter(|one| same(&one.email, email)).map(|one| one.count).sum())
    }

    #[must_use]
    pub fn invitations(&self) -> Vec<SlackInvitation> {
        self.look(|workspace| workspace.invitations.clone())
    }

    #[must_use]
    pub fn is_member(&self, email: &str) -> bool {
        self.look(|workspace| workspace.members.get(&email.to_lowercase()).is_some_and(|member| !member.deactivated))
    }

    /// The person accepts the invitation, or joins without one.
    pub fn join(&self, email: &str) {
        self.change(|workspace| workspace.add_member(email));
    }

    /// The person accepts an invitation to a channel through Slack Connect, from another workspace.
    pub fn join_channel(&self, email: &str, channel: &str) {
        self.change(|workspace| {
            if let Some(channel) = workspace.channels.get_mut(channel) {
                channel.shared_with.insert(email.to_lowercase());
            }
        });
    }

    /// The workspace's administrator locks the person out.
    pub fn deactivate(&self, email: &str) {
        self.change(|workspace| {
            workspace.add_member(email);
            if let Some(member) = workspace.members.get_mut(&email.to_lowercase()) {
                member.deactivated = true;
            }
        });
    }

    pub fn create_channel(&self, id: &str, name: &str) {
        let channel = Channel { name: name.to_owned(), archived: false, shared_with: BTreeSet::new() };
        self.change(|workspace| workspace.channels.insert(id.to_owned(), channel));
    }

    pub fn delete_channel(&self, id: &str) {
        self.change(|workspace| workspace.channels.remove(id));
    }

    pub fn archive_channel(&self, id: &str) {
        self.change(|workspace| {
            if let Some(channel) = workspace.channels.get_mut(id) {
                channel.archived = true;
            }
        });
    }

    /// From now on only this token is accepted.
    pub fn set_token(&self, token: &str) {
        self.change(|workspace| token.clone_into(&mut workspace.token));
    }

    /// From now on the token has these scopes and no others.
    pub fn set_scopes(&self, scopes: &[&str]) {
        self.change(|workspace| workspace.scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect());
    }

    /// From now on the token is one of this workspace.
    pub fn set_team(&self, team: &str) {
        self.change(|workspace| team.clone_into(&mut workspace.team));
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
        self.look(|workspace| {
            let members = workspace.members.values();
            json!({
                "team": workspace.team,
                "channels": workspace.channels.iter().map(|(id, channel)| json!({
                    "id": id, "name": channel.name, "archived": channel.archived, "shared_with": channel.shared_with,
                })).collect::<Vec<_>>(),
                "members": members.filter(|member| !member.deactivated).map(|m| m.email.clone()).collect::<Vec<_>>(),
                "invitations": workspace.invitations,
                "faults": self.faults.len(),
            })
        })
    }
}

/// The arguments of a call as JSON, whichever way they came. A form's fields have the types of the method's description.
pub(crate) fn arguments(request: &Request) -> Option<Value> {
    match &request.content {
        Content::Json(value) => Some(value.clone()),
        Content::Form(fields) => {
            let legacy = request.path == "/users.admin.invite";
            let typed = fields.iter().filter(|(name, _)| name != "token").map(|(name, value)| {
                let value = match name.as_str() {
                    "emails" | "user_ids" => list(value),
                    "limit" | "count" => value.parse::<u32>().map_or_else(|_| json!(value), Value::from),
                    _ if !legacy && (value == "true" || value == "false") => json!(value == "true"),
                    _ => json!(value),
                };
                (name.clone(), value)
            });
            Some(Value::Object(typed.collect()))
        }
        Content::None | Content::Malformed | Content::Other => None,
    }
}

/// An array in a form is its elements with commas between, or JSON.
fn list(text: &str) -> Value {
    let parsed = serde_json::from_str::<Vec<String>>(text).ok();
    json!(parsed.unwrap_or_else(|| split(text)))
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

type Failure = (&'static str, Value);

const ALL_SCOPES: [&str; 7] = [
    "identify",
    "client",
    "admin.users:read",
    "admin.users:write",
    "conversations.connect:manage",
    "conversations.connect:write",
    "users:read.email",
];

/// The scope that a method wants, by its page in the reference.
fn scope(path: &str) -> Option<&'static str> {
    match path {
        "/admin.users.invite" | "/admin.users.remove" => Some("admin.users:write"),
        "/admin.users.list" => Some("admin.users:read"),
        "/conversations.inviteShared" => Some("conversations.connect:write"),
        "/conversations.listConnectInvites" => Some("conversations.connect:manage"),
        "/users.lookupByEmail" => Some("users:read.email"),
        "/users.admin.invite" => Some("client"),
        _ => None,
    }
}

pub(crate) fn answer(slack: &Slack, request: &Request, arguments: Option<&Value>) -> Answer {
    let empty = Map::new();
    let arguments = arguments.and_then(Value::as_object).unwrap_or(&empty);
    let mut scopes = None;
    let answered = slack.change(|workspace| {
        method_and_body(request)?;
        authenticate(workspace, request)?;
        let held = workspace.scopes.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        scopes = Some(held.clone());
        match scope(&request.path) {
            Some(needed) if !workspace.scopes.contains(needed) => {
                Err(("missing_scope", json!({ "needed": needed, "provided": held })))
            }
            _ => call(workspace, request, arguments),
        }
    });
    let body = match answered {
        Ok(mut body) => {
            body["ok"] = json!(true);
            body
        }
        Err((code, mut body)) => {
            body["ok"] = json!(false);
            body["error"] = json!(code);
            body
        }
    };
    let mut answer = Answer::json(200, body);
    // Who is known is told what they may do.
    answer.headers.extend(scopes.map(|scopes| ("X-OAuth-Scopes".to_owned(), scopes)));
    answer
}

fn fail<T>(code: &'static str) -> Result<T, Failure> {
    Err((code, json!({})))
}

fn method_and_body(request: &Request) -> Result<(), Failure> {
    match (&request.content, request.method.as_str()) {
        (Content::Malformed, _) => fail("invalid_form_data"),
        (Content::Json(value), _) if !value.is_object() => fail("invalid_form_data"),
        (Content::Other, _) if request.header("content-type").is_none() => fail("missing_post_type"),
        (Content::Other, _) => fail("invalid_post_type"),
        (Content::None | Content::Json(_) | Content::Form(_), _) => Ok(()),
    }
}

/// The token comes in the header, or as a field of a form. One in the query string is not looked at: Slack takes it from
/// apps made before 2021 only.
fn authenticate(workspace: &Workspace, request: &Request) -> Result<(), Failure> {
    let in_form = match &request.content {
        Content::Form(fields) => fields.iter().find(|(name, _)| name == "token").map(|(_, token)| token.as_str()),
        Content::None | Content::Json(_) | Content::Malformed | Content::Other => None,
    };
    let in_header = request.authorization().filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match in_header.map(|(_, token)| token).or(in_form) {
        None => fail("not_authed"),
        Some(token) if token != workspace.token => fail("invalid_auth"),
        // A bot may share a channel; inviting to the workspace takes a person's token.
        Some(token) if token.starts_with("xoxb-") && request.path.contains("admin.") => fail("not_allowed_token_type"),
        Some(_) => Ok(()),
    }
}

fn call(workspace: &mut Workspace, request: &Request, arguments: &Map<String, Value>) -> Result<Value, Failure> {
    let text = |name: &str| {
        let value = arguments.get(name).and_then(Value::as_str).or_else(|| request.query(name)).unwrap_or_default();
        value.trim().to_owned()
    };
    match request.path.as_str() {
        "/auth.test" => {
            let mut identity = json!({
                "url": "https://acme.slack.com/", "team": "Acme", "user": "bot", "team_id": workspace.team, "user_id": "U1",
            });
            if workspace.token.starts_with("xoxb-") {
                identity["bot_id"] = json!("B1");
            }
            Ok(identity)
        }
        "/admin.users.invite" => {
            required(arguments, &["team_id", "email", "channel_ids"])?;
            let (email, channels) = (text("email"), split(&text("channel_ids")));
            if text("team_id") != workspace.team {
                return fail("team_not_found");
            }
            if channels.is_empty() || !channels.iter().all(|id| workspace.open_channel(id)) {
                return fail("failed_to_validate_channels");
            }
            workspace.may_join(&email)?;
            let resend = arguments.get("resend").and_then(Value::as_bool).unwrap_or(false);
            workspace.invite("admin.users.invite", &email, channels, resend, "already_in_team_invited_user")?;
            Ok(json!({}))
        }
        "/users.admin.invite" => {
            required(arguments, &["email"])?;
            let (email, channels) = (text("email"), split(&text("channels")));
            if !channels.iter().all(|id| workspace.open_channel(id)) {
                return fail("channel_not_found");
            }
            workspace.may_join(&email)?;
            // Since 2026 a second invitation is refused in these words, also with `resend`.
            workspace.invite("users.admin.invite", &email, channels, false, "already_in_team_invited_user")?;
            Ok(json!({}))
        }
        "/conversations.inviteShared" => share(workspace, arguments, &text("channel")),
        "/conversations.listConnectInvites" => {
            let shared = workspace.invitations.iter().filter(|one| one.method == "conversations.inviteShared");
            let invites =
                shared.map(|one| json!({ "recipient_email": one.email, "channel": { "id": one.channels[0] } }));
            Ok(json!({ "invites": invites.collect::<Vec<_>>() }))
        }
        "/users.lookupByEmail" => {
            let email = text("email").to_lowercase();
            match workspace.members.get(&email).filter(|member| !member.deactivated) {
                Some(member) => Ok(json!({ "user": user(&workspace.team, member) })),
                None => fail("users_not_found"),
            }
        }
        "/admin.users.list" => {
            let users = workspace.members.values().map(|member| {
                json!({
                    "id": member.id, "email": member.email, "is_active": !member.deactivated, "is_bot": false,
                    "username": member.email, "full_name": member.email, "workspaces": [workspace.team],
                })
            });
            Ok(json!({ "users": users.collect::<Vec<_>>() }))
        }
        "/admin.users.remove" => {
            required(arguments, &["team_id", "user_id"])?;
            if text("team_id") != workspace.team {
                return fail("team_not_found");
            }
            match workspace.members.values_mut().find(|member| member.id == text("user_id")) {
                None => fail("user_not_found"),
                Some(member) if member.deactivated => fail("user_already_deleted"),
                Some(member) => {
                    member.deactivated = true;
                    Ok(json!({}))
                }
            }
        }
        _ => fail("unknown_method"),
    }
}

/// Slack Connect: one address a call, into a channel of ours, from the workspace of the invited.
fn share(workspace: &mut Workspace, arguments: &Map<String, Value>, channel_id: &str) -> Result<Value, Failure> {
    required(arguments, &["channel"])?;
    let emails: Vec<String> = match arguments.get("emails") {
        None => return fail("recipients_not_specified"),
        Some(Value::Array(emails)) => emails.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(_) => return fail("invalid_array_arg"),
    };
    let email = match emails.as_slice() {
        [] => return fail("recipients_not_specified"),
        [email] => email,
        _ => return fail("too_many_emails"),
    };
    let Some(channel) = workspace.channels.get(channel_id) else { return fail("channel_not_found") };
    if channel.archived {
        return fail("channel_archived");
    }
    if !is_email(email) {
        return fail("invalid_email");
    }
    if channel.shared_with.contains(&email.to_lowercase()) {
        return fail("already_in_channel");
    }
    let channels = vec![channel_id.to_owned()];
    let pending = "connection_limit_exceeded_pending";
    let number = workspace.invite("conversations.inviteShared", email, channels, false, pending)?;
    Ok(json!({ "invite_id": format!("I{number:010}"), "is_legacy_shared_channel": false }))
}

/// Slack names what is missing in the metadata of its answer.
fn required(arguments: &Map<String, Value>, names: &[&str]) -> Result<(), Failure> {
    let missing: Vec<_> = names
        .iter()
        .filter(|name| arguments.get(**name).and_then(Value::as_str).unwrap_or_default().is_empty())
        .map(|name| format!("[ERROR] missing required field: {name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(("invalid_arguments", json!({ "response_metadata": { "messages": missing } })))
}

impl Workspace {
    fn add_member(&mut self, email: &str) {
        self.next += 1;
        let id = format!("U{}", self.next);
        self.members.entry(email.to_lowercase()).or_insert_with(|| Member {
            id,
            email: email.to_owned(),
            deactivated: false,
        });
    }

    fn open_channel(&self, id: &str) -> bool {
        self.channels.get(id).is_some_and(|channel| !channel.archived)
    }

    fn may_join(&self, email: &str) -> Result<(), Failure> {
        if !is_email(email) {
            return fail("invalid_email");
        }
        match self.members.get(&email.to_lowercase()) {
            Some(member) if member.deactivated => fail("user_disabled"),
            Some(_) => fail("already_in_team"),
            None => Ok(()),
        }
    }

    /// Sends an invitation unless one is under way; `pending` is what a second one is refused with.
    fn invite(
        &mut self,
        method: &str,
        email: &str,
        channels: Vec<String>,
        resend: bool,
        pending: &'static str,
    ) -> Result<u32, Failure> {
        // An invitation to the workspace is one to all of it; Slack Connect invites to each channel.
        let shared = method == "conversations.inviteShared";
        let known = self.invitations.iter_mut().find(|one| {
            same(&one.email, email)
                && (one.method == "conversations.inviteShared") == shared
                && (!shared || one.channels == channels)
        });
        match known {
            Some(known) if resend => known.count += 1,
            Some(_) => return fail(pending),
            None => {
                let (email, method) = (email.to_owned(), method.to_owned());
                self.invitations.push(SlackInvitation { email, method, channels, count: 1 });
            }
        }
        self.next += 1;
        Ok(self.next)
    }
}

fn user(team: &str, member: &Member) -> Value {
    json!({
        "id": member.id, "team_id": team, "name": member.email, "deleted": false, "real_name": member.email,
        "profile": { "real_name": member.email, "display_name": member.email, "email": member.email, "team": team },
        "is_admin": false, "is_owner": false, "is_primary_owner": false, "is_restricted": false,
        "is_ultra_restricted": false, "is_bot": false, "is_app_user": false, "updated": 1_700_000_000,
    })
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

fn is_email(text: &str) -> bool {
    let well_placed =
        |(local, domain): (&str, &str)| !local.is_empty() && domain.contains('.') && !domain.contains('@');
    !text.contains(char::is_whitespace) && text.split_once('@').is_some_and(well_placed)
}
