//! Configuration: one TOML file for both programs, overlaid by the environment.
//!
//! In: `--config FILE`, else `OARLOCK_CONFIG`, else `oarlock.toml` if it is there; then every `OARLOCK_<SECTION>__<KEY>`
//! and `DATABASE_URL`. Out: one of [`ReceiverConfig`] and [`WorkerConfig`], or *every* problem found, each naming its key
//! and none a secret's value.
//!
//! Both programs check the whole file, so that a typing error is found wherever it is; but a program reads only the
//! secret files of its own sections, so that the receiver needs no access to Jira's token.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use oarlock_outbox::{AlertName, Kind};
use secrecy::SecretString;
use toml::Table;
use url::Url;

use self::section::Section;

mod environment;
mod section;

#[derive(Debug, Clone)]
pub struct Database {
    pub url: SecretString,
    /// Apply pending migrations at start.
    pub migrate: bool,
    pub max_connections: u32,
}

#[derive(Debug)]
pub struct ReceiverConfig {
    pub database: Database,
    /// `host:port` the webhook listens on.
    pub listen: String,
    /// The one path that alerts are posted to.
    pub path: String,
    /// `host:port` of `/healthz`, `/readyz` and `/metrics`.
    pub admin_listen: String,
    pub max_body_bytes: usize,
    /// 503 if the alert is not committed by then.
    pub ack_timeout: Duration,
    /// PEM texts; each may hold several keys.
    pub classic_public_keys: Vec<String>,
    pub billing_webhook_secrets: Vec<SecretString>,
    /// How far a Billing `ts` may lie from our clock, either way.
    pub billing_tolerance: Duration,
}

#[derive(Debug)]
pub struct WorkerConfig {
    pub database: Database,
    pub worker: Worker,
    /// What differs from the default routes.
    pub routes: BTreeMap<AlertName, Vec<Kind>>,
    pub paddle: PaddleApi,
    pub jira: Option<Jira>,
    pub slack: Option<Slack>,
}

#[derive(Debug, Clone)]
pub struct Worker {
    pub admin_listen: String,
    /// Calls in flight per destination.
    pub concurrency: usize,
    pub poll_interval: Duration,
    /// How long a claim is good for.
    pub lease: Duration,
    /// The longest one HTTP request may take.
    pub request_timeout: Duration,
    pub shutdown_grace: Duration,
    pub max_attempts: u32,
    pub retry_base: Duration,
    pub retry_cap: Duration,
    /// Finished alerts older than this are deleted.
    pub retention: Duration,
}

/// Paddle Billing's API, where the e-mail address of a customer is looked up.
#[derive(Debug, Clone)]
pub struct PaddleApi {
    pub api_url: Url,
    pub api_key: Option<SecretString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JiraEdition {
    Cloud,
    DataCenter,
}

#[derive(Debug, Clone)]
pub struct Jira {
    pub edition: JiraEdition,
    /// May carry a path: `https://api.atlassian.com/ex/jira/ID`, `https://acme.example/jira`.
    pub base_url: Url,
    /// Cloud: the e-mail of the API token's account. Data Center: a user name; without it `token` is a personal access token.
    pub user: Option<String>,
    pub token: SecretString,
    pub service_desk_id: Option<String>,
    /// Data Center only: the internal page that creates a customer *and* mails the invitation.
    pub invite_path: Option<String>,
    pub access: Vec<JiraAccess>,
    /// Whether a full refund of a subscription's payment ends access at once.
    pub revoke_on_full_refund: bool,
}

/// One `[[jira.access]]` row: who pays for one of `plans` is in `grants`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JiraAccess {
    /// Classic subscription_plan_id, Billing price or product id; `*` is any.
    pub plans: Vec<String>,
    pub grants: Membership,
}

/// Something in Jira that a customer can be a member of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Membership {
    /// A group, by name.
    Group(String),
    /// A Service Management organization, by numeric id.
    Organization(String),
}

/// By which of Slack's methods people are invited, with what it needs besides the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlackMode {
    /// `admin.users.invite`: Enterprise plan. At least one channel.
    AdminInvite { team_id: String, channel_ids: Vec<String> },
    /// `conversations.inviteShared`: Slack Connect.
    Connect { channel: String },
    /// `users.admin.invite`: undocumented, legacy tokens only.
    LegacyInvite { channel_ids: Vec<String> },
}

#[derive(Debug, Clone)]
pub struct Slack {
    pub mode: SlackMode,
    pub base_url: Url,
    pub token: SecretString,
}

/// Everything that is wrong with the configuration, one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Database {
    /// Reads the configuration of what needs the database and nothing else; no other secret's file is opened.
    ///
    /// # Errors
    /// Every problem found in the file and in the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, Problems> {
        Self::from_table(environment::read(file)?)
    }

    fn from_table(table: Table) -> Result<Self, Problems> {
        Ok(Everything::check(table, Program::Migration, |all| all.receiver.database, |_| Ok(()))?.0)
    }
}

impl ReceiverConfig {
    /// Reads the configuration of the receiver, and makes of it what the program needs.
    ///
    /// # Errors
    /// Every problem found in the file, in the environment, and by `make`.
    pub fn load<T>(
        file: Option<&Path>,
        make: impl FnOnce(&Self) -> Result<T, Vec<String>>,
    ) -> Result<(Self, T), Problems> {
        Self::from_table(environment::read(file)?, make)
    }

    fn from_table<T>(table: Table, make: impl FnOnce(&Self) -> Result<T, Vec<String>>) -> Result<(Self, T), Problems> {
        Everything::check(table, Program::Receiver, |all| all.receiver, make)
    }
}

impl WorkerConfig {
    /// Reads the configuration of the worker, and makes of it what the program needs.
    ///
    /// # Errors
    /// Every problem found in the file, in the environment, and by `make`.
    pub fn load<T>(
        file: Option<&Path>,
        make: impl FnOnce(&Self) -> Result<T, Vec<String>>,
    ) -> Result<(Self, T), Problems> {
        Self::from_table(environment::read(file)?, make)
    }

    fn from_table<T>(table: Table, make: impl FnOnce(&Self) -> Result<T, Vec<String>>) -> Result<(Self, T), Problems> {
        Everything::check(table, Program::Worker, |all| all.worker, make)
    }
}

/// The whole configuration, with the secrets of one program.
struct Everything {
    receiver: ReceiverConfig,
    worker: WorkerConfig,
}

impl Everything {
    fn check<C, T>(
        table: Table,
        program: Program,
        config: impl FnOnce(Self) -> C,
        make: impl FnOnce(&C) -> Result<T, Vec<String>>,
    ) -> Result<(C, T), Problems> {
        let problems = RefCell::new(Vec::new());
        let config = config(Self::read(&mut Section::root(table, program, &problems)));
        let mut problems = problems.into_inner();
        if program != Program::Migration {
            problems.extend(crate::trace::problems());
        }
        // Also with what is wrong already: all is to be told at once.
        match make(&config) {
            Ok(made) if problems.is_empty() => Ok((config, made)),
            made => {
                problems.extend(made.err().into_iter().flatten());
                Err(Problems(problems))
            }
        }
    }

    fn read(root: &mut Section<'_>) -> Self {
        let database = database(&mut root.section("database"));
        let mut receiver = receiver(&mut root.section("receiver"), database.clone());
        let paddle = paddle(&mut root.section("paddle"), &mut receiver);
        let worker = WorkerConfig {
            database,
            worker: worker(&mut root.section("worker")),
            routes: routes(&mut root.section("routes")),
            paddle,
            jira: root.has("jira").then(|| jira(&mut root.section("jira").with_secrets_of(Program::Worker))),
            slack: root.has("slack").then(|| slack(&mut root.section("slack").with_secrets_of(Program::Worker))),
        };
        root.finish();
        Self { receiver, worker }
    }
}

/// Which program reads the configuration; each opens only the secret files that are its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Receiver,
    Worker,
    Migration,
}

fn database(section: &mut Section<'_>) -> Database {
    let url = section.secret("url").unwrap_or_else(|| "postgres://oarlock@localhost/oarlock".into());
    if let Err(error) = crate::database::parse_url(&url) {
        section.problem("url", &error);
    }
    let migrate = section.boolean("migrate", true);
    let max_connections = section.integer("max_connections", 2, 1000).unwrap_or(10);
    section.finish();
    Database { url, migrate, max_connections: u32::try_from(max_connections).expect("at most 1000") }
}

fn receiver(section: &mut Section<'_>, database: Database) -> ReceiverConfig {
    let config = ReceiverConfig {
        database,
        listen: section.address("listen", "0.0.0.0:8080"),
        path: section.string("path").unwrap_or_else(|| "/paddle".to_owned()),
        admin_listen: section.address("admin_listen", "127.0.0.1:8081"),
        max_body_bytes: usize::try_from(section.integer("max_body_bytes", 1, 64 << 20).unwrap_or(1 << 20))
            .expect("at most 64 MiB"),
        ack_timeout: section.duration("ack_timeout", "4s"),
        // These stand in the section of the vendor.
        classic_public_keys: Vec::new(),
        billing_webhook_secrets: Vec::new(),
        billing_tolerance: Duration::ZERO,
    };
    if !config.path.starts_with('/') || config.path.contains(['?', '#', '{', '}', '*', '%', ' ']) {
        section.problem("path", "must be a plain path such as \"/paddle\"");
    }
    section.finish();
    config
}

/// Paddle's section serves both: the receiver verifies, the worker looks up addresses.
fn paddle(section: &mut Section<'_>, receiver: &mut ReceiverConfig) -> PaddleApi {
    let mut classic = section.section("classic").with_secrets_of(Program::Receiver);
    receiver.classic_public_keys = classic.contents("public_keys", "public_key_files");
    classic.finish();
    let mut billing = section.section("billing").with_secrets_of(Program::Receiver);
    let secrets = billing.contents("webhook_secrets", "webhook_secret_files");
    if secrets.iter().any(|secret| secret.contains(['\r', '\n'])) {
        billing.problem(
            "webhook_secrets",
            "has a line break in a secret: several are a list, or a file each in webhook_secret_files",
        );
    }
    receiver.billing_webhook_secrets = secrets.into_iter().map(Into::into).collect();
    receiver.billing_tolerance = billing.duration("tolerance", "5m");
    let mut billing = billing.with_secrets_of(Program::Worker);
    let api = PaddleApi {
        api_url: billing.url("api_url", Some("https://api.paddle.com")),
        api_key: billing.secret("api_key"),
    };
    billing.finish();
    section.finish();
    api
}

fn worker(section: &mut Section<'_>) -> Worker {
    let has_base = section.has("retry_base");
    let mut worker = Worker {
        admin_listen: section.address("admin_listen", "127.0.0.1:8082"),
        concurrency: usize::try_from(section.integer("concurrency", 1, 1000).unwrap_or(32)).expect("at most 1000"),
        poll_interval: section.duration("poll_interval", "1s"),
        lease: section.duration("lease", "60s"),
        request_timeout: section.duration("request_timeout", "15s"),
        shutdown_grace: section.duration_or_zero("shutdown_grace", "20s"),
        max_attempts: u32::try_from(section.integer("max_attempts", 1, 1000).unwrap_or(20)).expect("at most 1000"),
        retry_base: section.duration("retry_base", "5s"),
        retry_cap: section.duration("retry_cap", "6h"),
        retention: section.duration("retention", "90d"),
    };
    if worker.lease <= worker.request_timeout {
        section.problem(
            "lease",
            "must be longer than worker.request_timeout, or a claim runs out while its call is still under way",
        );
    }
    if worker.retry_base > worker.retry_cap {
        if has_base {
            section.problem("retry_base", "must not be longer than worker.retry_cap");
        }
        // Who sets only a cap below the default base means the cap.
        worker.retry_base = worker.retry_cap;
    }
    section.finish();
    worker
}

fn routes(section: &mut Section<'_>) -> BTreeMap<AlertName, Vec<Kind>> {
    let mut routes = BTreeMap::new();
    for key in section.keys() {
        let Some(words) = section.strings(&key) else { continue };
        // Through the environment a name arrives in lower case; every documented name is.
        let name = match key.parse::<AlertName>() {
            Ok(name) => name,
            Err(_) => {
                section.problem(&key, "is not the name of an alert about a customer that Paddle documents");
                continue;
            }
        };
        let mut kinds = Vec::new();
        for word in words {
            match word.parse::<Kind>() {
                Ok(Kind::PaddleCustomer) | Err(_) => {
                    section.problem(&key, &format!("{word:?} is not one of: jira_invite, jira_access, slack_invite"));
                }
                Ok(kind) if kinds.contains(&kind) => section.problem(&key, &format!("names {word:?} twice")),
                Ok(kind) => kinds.push(kind),
            }
        }
        routes.insert(name, kinds);
    }
    section.finish();
    routes
}

fn jira(section: &mut Section<'_>) -> Jira {
    let editions = [("cloud", JiraEdition::Cloud), ("data_center", JiraEdition::DataCenter)];
    let edition = section.one_of("edition", &editions, JiraEdition::Cloud).unwrap_or(JiraEdition::Cloud);
    let base_url = section.url("base_url", None);
    let user = section.string("user");
    if edition == JiraEdition::Cloud && user.is_none() {
        section.problem("user", "is missing: Jira Cloud wants the e-mail address of the API token's account");
    }
    let token = section.required_secret("token");
    let service_desk_id = section.string("service_desk_id");
    if let Some(id) = &service_desk_id
        && !id.bytes().all(|b| b.is_ascii_digit())
    {
        section.problem("service_desk_id", "must be the numeric id, as GET /rest/servicedeskapi/servicedesk lists it");
    }
    // Cloud has an API for it.
    let invite_path = section.string("invite_path").filter(|_| edition == JiraEdition::DataCenter);
    if invite_path.as_ref().is_some_and(|path| !path.starts_with('/')) {
        section.problem("invite_path", "must start with /");
    }
    let revoke_on_full_refund = section.boolean("revoke_on_full_refund", false);
    let mut access = Vec::new();
    for mut row in section.sections("access") {
        let plans = row.strings("plans").unwrap_or_default();
        if plans.is_empty() {
            row.problem("plans", "is missing: name the plans, or [\"*\"] for any");
        }
        match (row.string("group"), row.string("organization")) {
            (Some(group), None) => access.push(JiraAccess { plans, grants: Membership::Group(group) }),
            (None, Some(id)) if id.bytes().all(|b| b.is_ascii_digit()) => {
                access.push(JiraAccess { plans, grants: Membership::Organization(id) });
            }
            (None, Some(_)) => row.problem("organization", "must be the numeric id of the organization, in quotes"),
            _ => row.problem("group", "give exactly one of group and organization"),
        }
        row.finish();
    }
    section.finish();
    Jira { edition, base_url, user, token, service_desk_id, invite_path, access, revoke_on_full_refund }
}

fn slack(section: &mut Section<'_>) -> Slack {
    let modes = ["admin_invite", "connect", "legacy_invite"].map(|word| (word, word));
    let mode = section.one_of("mode", &modes, "admin_invite");
    let base_url = section.url("base_url", Some("https://slack.com/api"));
    let token = section.required_secret("token");
    let team_id = section.string("team_id");
    let channel_ids = section.strings("channel_ids").unwrap_or_default();
    let mode = match mode {
        Some("admin_invite") => {
            if team_id.is_none() {
                section.problem("team_id", "is missing: admin.users.invite wants the workspace, such as \"T1\"");
            }
            if channel_ids.is_empty() {
                section.problem("channel_ids", "is missing: admin.users.invite wants at least one channel");
            }
            SlackMode::AdminInvite { team_id: team_id.unwrap_or_default(), channel_ids }
        }
        Some("connect") => {
            let channel = channel_ids.into_iter().next();
            if channel.is_none() {
                section.problem("channel_ids", "is missing: conversations.inviteShared wants the channel");
            }
            SlackMode::Connect { channel: channel.unwrap_or_default() }
        }
        // It needs nothing, as what is no mode does: what another one would need is not to be told of that.
        _ => SlackMode::LegacyInvite { channel_ids },
    };
    section.finish();
    Slack { mode, base_url, token }
}

#[cfg(test)]
mod tests;
