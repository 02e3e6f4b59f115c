//! Invitations to Slack, by one of three methods of its Web API.
//!
//! In: an e-mail address. Out: whether Slack invites it now or has before. Slack says HTTP 200 to failures too and names
//! them in `error` (docs.slack.dev/apis/web-api); each method's page lists its codes, and says that there may be others.
//! Nobody is looked up first: a repeated invitation answers `already_…`. Nobody is removed: that takes other scopes.

use std::time::Duration;

use oarlock_service::config::{self, SlackMode};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Meaning};
use crate::finding::{Finding, Trouble, Vendor, round, until};
use crate::http::{self, Answer};
use crate::outcome::InviteOutcome;

/// `invite_limit_reached`: Slack stops a workspace that invites many in a burst, and does not say for how long.
const INVITE_LIMIT_PAUSE: Duration = Duration::from_secs(30 * 60);

const VENDOR: Vendor = Vendor {
    name: "Slack",
    address: "slack.base_url",
    status: "https://slack-status.com",
    token: NEW_TOKEN,
    scopes: NEW_TOKEN,
};

const NEW_TOKEN: &str = "install the app again as docs/setup.md#slack says, put its token where slack.token or slack.token_file \
                         has it, and restart the workers";

/// What another token would be told as well.
const POLICIES: [&str; 4] = ["org_login_required", "enterprise_is_restricted", "accesslimited", "ekm_access_denied"];

#[derive(Debug)]
pub struct Slack {
    http: http::Client,
    mode: SlackMode,
}

impl Slack {
    /// # Errors
    /// A token that cannot be sent, no TLS.
    pub fn new(settings: &config::Slack, request_timeout: Duration) -> anyhow::Result<Self> {
        // In the header only: apps may not send it in the query string, and a form might be logged.
        let headers = HeaderMap::from_iter([(AUTHORIZATION, http::bearer(&settings.token, "slack.token")?)]);
        let http = http::Client::new(&settings.base_url, headers, request_timeout)?;
        Ok(Self { http, mode: settings.mode.clone() })
    }

    /// Invites the person behind `email`.
    ///
    /// # Errors
    /// What Slack refused, by what to do about it.
    pub async fn invite(&self, email: &str) -> Result<InviteOutcome, Failure> {
        let method = method(&self.mode);
        let request = self.http.post(method);
        let request = match &self.mode {
            SlackMode::AdminInvite { team_id, channel_ids } => {
                request.form(&AdminInvite { team_id, email, channel_ids: &channel_ids.join(",") })
            }
            // JSON, since a form has no agreed way to write an array.
            SlackMode::Connect { channel } => request.json(&InviteShared { channel, emails: [email] }),
            SlackMode::LegacyInvite { channel_ids } => {
                let channels = Some(channel_ids.join(",")).filter(|ids| !ids.is_empty());
                request.form(&LegacyInvite { email, channels, set_active: "true" })
            }
        };
        outcome(&http::send(request).await?, method)
    }

    /// Whether an invitation stands in the way of others until it is accepted, or has expired.
    pub fn waits_for_acceptance(&self) -> bool {
        matches!(self.mode, SlackMode::Connect { .. })
    }

    /// Whether the token is good for the configured way of inviting. Reads only.
    ///
    /// No call that invites can be tried without inviting, and the calls that look at a channel take scopes that inviting does
    /// not: so whether a channel is open shows with the first invitation.
    pub async fn check(&self) -> Vec<Finding> {
        let (answer, identity) = match until(round(), self.identity()).await {
            Ok(known) => known,
            Err(failure) if failure.http_status.is_none() => {
                return vec![VENDOR.finding("slack.address", None, Err(failure), "")];
            }
            Err(failure) => {
                let is_policy = POLICIES.iter().any(|code| failure.detail().contains(code));
                let remedy = if is_policy {
                    "ask an owner of the Slack organization: a policy of theirs refuses it"
                } else {
                    NEW_TOKEN
                };
                return vec![VENDOR.finding("slack.credentials", None, Err(failure), remedy)];
            }
        };
        let accepted = format!("accepted for the workspace {:?}", identity.team.as_deref().unwrap_or_default());
        let mut findings = vec![
            Finding::new("slack.credentials", Ok(accepted)),
            Finding::new("slack.scopes", judge_scopes(&self.mode, answer.header("x-oauth-scopes"), &identity)),
        ];
        if let SlackMode::AdminInvite { team_id, .. } = &self.mode {
            findings.push(Finding::about("slack.team", team_id, judge_team(team_id, &identity)));
        }
        for channel in channels(&self.mode) {
            findings.push(Finding::about("slack.channel", channel, judge_channel(channel)));
        }
        findings
    }

    async fn identity(&self) -> Result<(Answer, Identity), Failure> {
        let answer = http::send(self.http.post("auth.test")).await?;
        outcome(&answer, "auth.test")?;
        let identity = answer.json("auth.test")?;
        Ok((answer, identity))
    }
}

/// A token of a whole organization does not say which workspaces the app may act in.
fn judge_team(team_id: &str, identity: &Identity) -> Result<String, Trouble> {
    match identity.team_id.as_deref() {
        _ if identity.is_enterprise_install == Some(true) => {
            Ok("not compared: the token is one of the whole organization".to_owned())
        }
        Some(found) if found.starts_with('T') && found != team_id => Err(Trouble::new(
            format!("the token is one of the workspace {found}"),
            "set slack.team_id to that, or slack.token to a token of this workspace or of the organization",
        )),
        Some(found) if found == team_id => Ok("the token is one of it".to_owned()),
        _ => Ok("not compared: Slack does not tell whose the token is".to_owned()),
    }
}

fn judge_channel(id: &str) -> Result<String, Trouble> {
    let is_id = id.len() > 1
        && id.starts_with(['C', 'G'])
        && id.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    if is_id {
        return Ok("an id by its form; whether the channel is open shows with the first invitation".to_owned());
    }
    let remedy =
        "let slack.channel_ids have the channel's id, such as C0123456789: it is at the end of About in its details";
    Err(Trouble::new("not the id of a channel", remedy))
}

fn method(mode: &SlackMode) -> &'static str {
    match mode {
        SlackMode::AdminInvite { .. } => "admin.users.invite",
        SlackMode::Connect { .. } => "conversations.inviteShared",
        SlackMode::LegacyInvite { .. } => "users.admin.invite",
    }
}

/// Any of these will do.
fn scopes(mode: &SlackMode) -> &'static [&'static str] {
    match mode {
        SlackMode::AdminInvite { .. } => &["admin.users:write"],
        SlackMode::Connect { .. } => &["conversations.connect:write"],
        // Those of legacy tokens, which have none of today's.
        SlackMode::LegacyInvite { .. } => &["client", "admin"],
    }
}

fn channels(mode: &SlackMode) -> &[String] {
    match mode {
        SlackMode::AdminInvite { channel_ids, .. } | SlackMode::LegacyInvite { channel_ids } => channel_ids,
        SlackMode::Connect { channel } => std::slice::from_ref(channel),
    }
}

/// `held`: Slack lists a token's scopes in a header of every answer.
fn judge_scopes(mode: &SlackMode, held: Option<&str>, identity: &Identity) -> Result<String, Trouble> {
    let (method, wanted) = (method(mode), scopes(mode));
    if let (SlackMode::AdminInvite { .. }, Some(_)) = (mode, &identity.bot_id) {
        let remedy = "put the app's user token (xoxp-…) in place of its bot token (xoxb-…)";
        return Err(Trouble::new(format!("{method} takes a person's token, and this one is a bot's"), remedy));
    }
    let Some(held) = held else { return Ok("not told by Slack".to_owned()) };
    match wanted.iter().find(|scope| held.split(',').any(|one| one.trim() == **scope)) {
        Some(scope) => Ok(format!("{scope} is there")),
        None => Err(Trouble::new(
            format!("{method} needs the scope {}; the token has: {held}", wanted.join(" or ")),
            match mode {
                SlackMode::AdminInvite { .. } => {
                    "add the scope to the app (OAuth & Permissions; Slack gives it on an Enterprise plan alone), install it \
                     again, and put the new token in place"
                }
                SlackMode::Connect { .. } => {
                    "add the scope to the app (OAuth & Permissions), install it again, and put the new token in place"
                }
                SlackMode::LegacyInvite { .. } => "take a legacy token of an administrator, or another slack.mode",
            },
        )),
    }
}

#[derive(Serialize)]
struct AdminInvite<'a> {
    team_id: &'a str,
    email: &'a str,
    channel_ids: &'a str,
}

#[derive(Serialize)]
struct InviteShared<'a> {
    channel: &'a str,
    /// An array, of which Slack takes one address a call.
    emails: [&'a str; 1],
}

#[derive(Serialize)]
struct LegacyInvite<'a> {
    email: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<String>,
    set_active: &'a str,
}

#[derive(Deserialize)]
struct Reply {
    ok: bool,
    error: Option<String>,
    /// With `missing_scope`.
    needed: Option<String>,
    provided: Option<String>,
    response_metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    messages: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Identity {
    team: Option<String>,
    team_id: Option<String>,
    /// Of a bot's token only.
    bot_id: Option<String>,
    is_enterprise_install: Option<bool>,
}

/// What an answer of `method` means.
fn outcome(answer: &Answer, method: &str) -> Result<InviteOutcome, Failure> {
    // Limits and outages speak by status; everything else by the code in the body, whatever the status.
    let reply = match answer.status {
        300..=399 | 429 | 500.. => return Err(answer.failure(method, "", "slack.base_url")),
        _ => serde_json::from_slice::<Reply>(&answer.body).ok(),
    };
    let Some(reply) = reply else {
        let said = "no answer of Slack's API; is slack.base_url right?";
        return Err(match answer.status {
            404 => answer.meaning(Meaning::Configuration, method, said),
            _ => answer.failure(method, said, "slack.base_url"),
        });
    };
    if reply.ok {
        return Ok(InviteOutcome::Invited);
    }
    let code = reply.error.as_deref().unwrap_or("no error code");
    let meaning = match code {
        "already_in_team"
        | "already_invited"
        | "already_in_team_invited_user"
        | "sent_recently"
        | "already_in_channel" => {
            return Ok(InviteOutcome::AlreadyInvited);
        }
        _ => meaning(code, answer),
    };
    let mut said = code.to_owned();
    if code == "missing_scope" {
        let (needed, provided) = (reply.needed.as_deref(), reply.provided.as_deref());
        said += &format!(", needed {}, provided {}", needed.unwrap_or("unknown"), provided.unwrap_or("unknown"));
    }
    for message in reply.response_metadata.and_then(|metadata| metadata.messages).unwrap_or_default() {
        said += "; ";
        said += &message;
    }
    Err(answer.meaning(meaning, method, &said))
}

/// What a code means, by the error lists of the three methods and the list common to all (docs.slack.dev/reference/methods).
fn meaning(code: &str, answer: &Answer) -> Meaning {
    match code {
        "invalid_email" | "user_disabled" | "failed_looking_up_user" | "user_not_found" => Meaning::Permanent,

        "ratelimited" | "ratelimit" => Meaning::RateLimited { retry_after: answer.pause() },
        "invite_limit_reached" => {
            Meaning::RateLimited { retry_after: answer.retry_after().unwrap_or_default().max(INVITE_LIMIT_PAUSE) }
        }
        "connection_limit_exceeded_pending" => Meaning::InvitationPending,

        // Of the first two Slack says that something may have been done all the same; a repeat then answers already_….
        "internal_error" | "fatal_error" | "request_timeout" | "service_unavailable" | "team_added_to_org"
        | "failed_to_send_invite" | "invite_lookup_error" | "invite_not_found" => {
            Meaning::Transient { retry_after: answer.retry_after() }
        }

        // The token.
        "not_authed" | "invalid_auth" | "account_inactive" | "token_revoked" | "token_expired" | "missing_scope"
        | "not_allowed_token_type" | "not_an_admin" | "no_permission" | "no_perms" | "access_denied" | "accesslimited"
        | "is_bot" | "two_factor_setup_required"
        // The workspace, its plan and its policies.
        | "ekm_access_denied" | "enterprise_is_restricted" | "org_login_required" | "feature_not_enabled" | "paid_only"
        | "not_paid" | "not_allowed" | "not_supported" | "restricted_action" | "no_external_invite_permission"
        | "not_allowed_for_grid_workspace" | "team_not_found" | "team_access_not_granted" | "connection_limit_exceeded"
        | "legacy_connection_limit_exceeded" | "member_limit_exceeded"
        // The channels.
        | "not_in_channel" | "not_owner" | "invalid_channel_type" | "requires_one_channel"
        // The request: ours to mend, and wrong for every customer alike.
        | "expiration_requires_restricted" | "ultra_restricted" | "recipients_not_specified" | "too_many_emails"
        | "unknown_method" | "method_deprecated" | "deprecated_endpoint" | "invalid_arg_name" | "invalid_arguments"
        | "invalid_array_arg" | "invalid_charset" | "invalid_form_data" | "invalid_post_type" | "missing_post_type" => {
            Meaning::Configuration
        }
        _ if ["channel_", "failed_to_validate_", "cannot_share_"].iter().any(|start| code.starts_with(start)) => {
            Meaning::Configuration
        }
        _ => Meaning::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Option<Duration> = None;

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: Result<InviteOutcome, Meaning>) {
        let found = outcome(&Answer::of(status, headers, body), "users.admin.invite");
        assert_eq!(found.map_err(|failure| failure.meaning), expected, "{status} {body}");
    }

    #[track_caller]
    fn said(code: &str) -> Result<InviteOutcome, Failure> {
        outcome(&Answer::of(200, &[], &format!(r#"{{"ok":false,"error":"{code}"}}"#)), "users.admin.invite")
    }

    #[test]
    fn every_code_has_its_meaning() {
        let transient = |retry_after| Err(Meaning::Transient { retry_after });
        let limited = |seconds| Err(Meaning::RateLimited { retry_after: Duration::from_secs(seconds) });
        let table = [
            (
                "already_in_team already_invited already_in_team_invited_user sent_recently already_in_channel",
                Ok(InviteOutcome::AlreadyInvited),
            ),
            ("invalid_email user_disabled failed_looking_up_user user_not_found", Err(Meaning::Permanent)),
            (
                "not_authed invalid_auth account_inactive token_revoked token_expired missing_scope not_allowed_token_type \
                 not_an_admin no_permission no_perms access_denied accesslimited is_bot two_factor_setup_required",
                Err(Meaning::Configuration),
            ),
            (
                "ekm_access_denied enterprise_is_restricted org_login_required feature_not_enabled paid_only not_paid \
                 not_allowed not_supported restricted_action no_external_invite_permission team_not_found team_access_not_granted \
                 not_allowed_for_grid_workspace connection_limit_exceeded legacy_connection_limit_exceeded \
                 member_limit_exceeded",
                Err(Meaning::Configuration),
            ),
            (
                "channel_not_found channel_archived not_in_channel not_owner invalid_channel_type requires_one_channel \
                 cannot_share_cross_workspace_channel cannot_share_mandatory_channel failed_to_validate_channels \
                 failed_to_validate_team failed_to_validate_caller failed_to_validate_expiration \
                 failed_to_validate_custom_message",
                Err(Meaning::Configuration),
            ),
            (
                "unknown_method method_deprecated deprecated_endpoint invalid_arg_name invalid_arguments invalid_array_arg \
                 invalid_charset invalid_form_data invalid_post_type missing_post_type recipients_not_specified \
                 too_many_emails expiration_requires_restricted ultra_restricted",
                Err(Meaning::Configuration),
            ),
            (
                "internal_error fatal_error request_timeout service_unavailable team_added_to_org failed_to_send_invite \
                 invite_lookup_error invite_not_found",
                transient(None),
            ),
            ("ratelimited ratelimit", limited(30)),
            ("invite_limit_reached", limited(30 * 60)),
            ("connection_limit_exceeded_pending", Err(Meaning::InvitationPending)),
            ("never_heard_of", Err(Meaning::Unknown)),
        ];
        for (codes, expected) in table {
            for code in codes.split_whitespace() {
                let found = said(code);
                assert_eq!(found.as_ref().copied().map_err(|failure| failure.meaning), expected, "{code}");
                if let Err(failure) = found {
                    assert!(failure.detail().contains(code), "{failure}");
                }
            }
        }
    }

    #[test]
    fn statuses_and_bodies() {
        let body = r#"{"ok":false,"error":"invite_limit_reached","response_metadata":{"messages":null}}"#;
        check(200, &[("retry-after", "0")], body, Err(Meaning::RateLimited { retry_after: INVITE_LIMIT_PAUSE }));
        let configuration = Err(Meaning::Configuration);
        let transient = Err(Meaning::Transient { retry_after: NOW });
        let limited = |seconds| Err(Meaning::RateLimited { retry_after: Duration::from_secs(seconds) });
        check(200, &[], r#"{"ok":true,"surprise":{}}"#, Ok(InviteOutcome::Invited));
        check(200, &[], r#"{"ok":false}"#, Err(Meaning::Unknown));
        check(200, &[], "<html>", transient);
        check(200, &[], "", transient);
        check(429, &[("retry-after", "3")], r#"{"ok":false,"error":"ratelimited"}"#, limited(3));
        check(429, &[], "", limited(30));
        check(200, &[("retry-after", "4")], r#"{"ok":false,"error":"ratelimited"}"#, limited(4));
        check(500, &[], r#"{"ok":false,"error":"invalid_auth"}"#, transient);
        check(
            503,
            &[("retry-after", "5")],
            "<html>",
            Err(Meaning::Transient { retry_after: Some(Duration::from_secs(5)) }),
        );
        check(302, &[], "", configuration);
        check(401, &[], r#"{"ok":false,"error":"invalid_auth"}"#, configuration);
        check(403, &[], "<html>", configuration);
        check(404, &[], "<html>", configuration);
        check(400, &[], "", Err(Meaning::Unknown));
    }

    #[test]
    fn whose_token_it_is() {
        let of = |team: &str, bot: Option<&str>, whole| Identity {
            team: None,
            team_id: Some(team.to_owned()),
            bot_id: bot.map(str::to_owned),
            is_enterprise_install: whole,
        };
        assert!(judge_team("T1", &of("T1", None, None)).is_ok());
        assert!(judge_team("T1", &of("T2", None, Some(false))).is_err());
        assert!(judge_team("T1", &of("T2", None, Some(true))).is_ok_and(|found| found.starts_with("not compared")));
        assert!(judge_team("T1", &of("E1", None, None)).is_ok_and(|found| found.starts_with("not compared")));
        for (id, is_id) in [("C1", true), ("G0123456789", true), ("#support", false), ("support", false), ("C", false)]
        {
            assert_eq!(judge_channel(id).is_ok(), is_id, "{id}");
        }
        let admin = SlackMode::AdminInvite { team_id: "T1".to_owned(), channel_ids: vec!["C1".to_owned()] };
        let person = of("T1", None, None);
        assert!(judge_scopes(&admin, Some("identify, admin.users:write"), &person).is_ok());
        assert!(judge_scopes(&admin, Some("admin.users:write"), &of("T1", Some("B1"), None)).is_err());
        let trouble = judge_scopes(&admin, Some("identify"), &person).unwrap_err();
        assert_eq!(trouble.problem, "admin.users.invite needs the scope admin.users:write; the token has: identify");
        let legacy = SlackMode::LegacyInvite { channel_ids: Vec::new() };
        assert!(judge_scopes(&legacy, Some("identify,admin"), &person).is_ok());
        assert!(judge_scopes(&legacy, Some("identify"), &person).is_err());
    }

    #[test]
    fn a_missing_scope_is_named() {
        let body = r#"{"ok":false,"error":"missing_scope","needed":"admin.users:write","provided":"identify,admin"}"#;
        let failure = outcome(&Answer::of(200, &[], body), "admin.users.invite").unwrap_err();
        let expected = "admin.users.invite: HTTP 200: missing_scope, needed admin.users:write, provided identify,admin";
        assert_eq!(failure.detail(), expected);
        let body = r#"{"ok":false,"error":"invalid_arguments","response_metadata":{"messages":["[ERROR] no such ann@example.com"]}}"#;
        let failure = outcome(&Answer::of(200, &[], body), "admin.users.invite").unwrap_err();
        assert_eq!(failure.detail(), "admin.users.invite: HTTP 200: invalid_arguments; [ERROR] no such (address)");
    }
}
