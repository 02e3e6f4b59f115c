//! The running system: both programs as processes, a database of their own, the stand-ins on sockets.
//!
//! A test says in words of the domain what Paddle sends and what Jira and Slack hold afterwards. It waits for events, each
//! with a deadline, and never sleeps. Whatever a program has written is searched at its end for what must not be there: e-mail
//! addresses, tokens, bodies.

mod cluster;
mod collector;
mod database;
mod load;
mod pooler;
mod process;
mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oarlock_sandbox::paddle::{BillingAlert, BillingSigner, ClassicAlert, ClassicSigner, Reply, Sender, Signed};
use oarlock_sandbox::{Edition, Jira, Options, PaddleApi, Sandbox, Service, Slack};
use sqlx::PgPool;
use uuid::Uuid;

pub use cluster::Cluster;
pub use collector::{Collector, Span};
pub use database::Database;
pub use load::{Load, Told};
pub use pooler::Pooler;
pub use process::{Exit, Process, program};
pub use switch::Switch;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The secret that the stand-in for Billing signs with.
pub const WEBHOOK_SECRET: &str = "pdl_ntfset_01tests_0123456789";

/// How a system is configured: environment variables, as operators would set them.
#[derive(Debug, Clone)]
pub struct Settings {
    variables: BTreeMap<String, String>,
    edition: Edition,
    workers: usize,
    receivers: usize,
    /// Where the programs find Postgres, if not where the harness does.
    database_url: Option<String>,
    /// Both programs are one role, which owns everything and migrates at start.
    one_role: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let settings = Self {
            variables: BTreeMap::new(),
            edition: Edition::Cloud,
            workers: 1,
            receivers: 1,
            database_url: None,
            one_role: false,
        };
        settings
            .set("OARLOCK_RECEIVER__LISTEN", "127.0.0.1:0")
            .set("OARLOCK_RECEIVER__ADMIN_LISTEN", "127.0.0.1:0")
            .set("OARLOCK_WORKER__ADMIN_LISTEN", "127.0.0.1:0")
            .set("OARLOCK_WORKER__RETRY_BASE", "20ms")
            .set("OARLOCK_WORKER__RETRY_CAP", "200ms")
            .set("OARLOCK_JIRA__SERVICE_DESK_ID", "3")
            .set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"commercial-support"}]"#)
            .set("OARLOCK_SLACK__MODE", "admin_invite")
            .set("OARLOCK_SLACK__TEAM_ID", "T1")
            .set("OARLOCK_SLACK__CHANNEL_IDS", "C1")
    }
}

impl Settings {
    #[must_use]
    pub fn set(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.variables.insert(variable.to_owned(), value.into());
        self
    }

    /// Takes a whole section out of the configuration.
    #[must_use]
    pub fn without(mut self, section: &str) -> Self {
        let prefix = format!("OARLOCK_{}__", section.to_uppercase());
        self.variables.retain(|name, _| !name.starts_with(&prefix));
        self.variables.insert(prefix, String::new());
        self
    }

    #[must_use]
    pub fn jira(mut self, edition: Edition) -> Self {
        self.edition = edition;
        self
    }

    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    #[must_use]
    pub fn receivers(mut self, receivers: usize) -> Self {
        self.receivers = receivers;
        self
    }

    /// Another way to the database than the straight one, which both programs go as one role.
    #[must_use]
    pub fn database_url(mut self, url: impl Into<String>) -> Self {
        self.database_url = Some(url.into());
        self.one_role()
    }

    /// As after an installation without `roles.sql`: one role owns everything and migrates at start. Else the owner migrates
    /// first, and each program has a role of its own.
    #[must_use]
    pub fn one_role(mut self) -> Self {
        self.one_role = true;
        self
    }

    /// Starts everything and waits until it is ready.
    pub async fn start(self) -> Oarlock {
        let database = Database::create().await;
        self.start_on(database).await
    }

    /// Starts everything on a database that is there already.
    pub async fn start_on(self, database: Database) -> Oarlock {
        let mut oarlock = self.prepare(database).await;
        oarlock.start_programs().await;
        oarlock
    }

    /// Everything but the programs.
    pub async fn prepare(self, database: Database) -> Oarlock {
        let sandbox = Sandbox::start(Options::default()).await.expect("the stand-ins start");
        let signer = ClassicSigner::cached().expect("a key can be made");
        let mut variables = self.variables.clone();
        let wants = |section: &str| !variables.contains_key(&format!("OARLOCK_{section}__"));
        let (wants_jira, wants_slack) = (wants("JIRA"), wants("SLACK"));
        let mut default = |name: &str, value: &str| {
            variables.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        };
        if self.one_role {
            default("OARLOCK_DATABASE__URL", self.database_url.as_deref().unwrap_or(database.url()));
        }
        default("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", signer.public_key_pem());
        default("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", WEBHOOK_SECRET);
        default("OARLOCK_PADDLE__BILLING__API_URL", &sandbox.paddle_url());
        default("OARLOCK_PADDLE__BILLING__API_KEY", oarlock_sandbox::PADDLE_API_KEY);
        if wants_jira {
            match self.edition {
                Edition::Cloud => {
                    default("OARLOCK_JIRA__EDITION", "cloud");
                    default("OARLOCK_JIRA__BASE_URL", &sandbox.jira_cloud_url());
                    default("OARLOCK_JIRA__USER", oarlock_sandbox::JIRA_CLOUD_USER);
                    default("OARLOCK_JIRA__TOKEN", oarlock_sandbox::JIRA_CLOUD_TOKEN);
                }
                Edition::DataCenter => {
                    default("OARLOCK_JIRA__EDITION", "data_center");
                    default("OARLOCK_JIRA__BASE_URL", &sandbox.jira_dc_url());
                    default("OARLOCK_JIRA__TOKEN", oarlock_sandbox::JIRA_DC_TOKEN);
                }
            }
        }
        if wants_slack {
            default("OARLOCK_SLACK__BASE_URL", &sandbox.slack_url());
            default("OARLOCK_SLACK__TOKEN", oarlock_sandbox::SLACK_TOKEN);
        }
        Oarlock {
            settings: Self { variables, ..self },
            receivers: Vec::new(),
            workers: Vec::new(),
            sandbox,
            database,
            signer,
            sender: Sender::new(),
        }
    }
}

/// The running system.
#[derive(Debug)]
pub struct Oarlock {
    settings: Settings,
    // In the order in which they are dropped: the database goes last.
    pub receivers: Vec<Process>,
    pub workers: Vec<Process>,
    pub sandbox: Sandbox,
    pub database: Database,
    pub signer: ClassicSigner,
    sender: Sender,
}

impl Oarlock {
    /// One receiver, one worker, Jira Cloud, Slack.
    pub async fn start() -> Self {
        Settings::default().start().await
    }

    pub async fn start_programs(&mut self) {
        if !self.settings.one_role {
            let migrated = self.spawn("oarlock-worker", &["migrate"]).ends().await;
            assert_eq!(migrated.code, Some(0), "{}", migrated.output);
        }
        for _ in 0..self.settings.receivers {
            self.start_receiver().await;
        }
        for _ in 0..self.settings.workers {
            self.start_worker().await;
        }
    }

    pub async fn start_receiver(&mut self) {
        let process = self.spawn("oarlock-receiver", &[]);
        process.ready().await;
        self.receivers.push(process);
    }

    pub async fn start_worker(&mut self) {
        let process = self.spawn("oarlock-worker", &[]);
        process.ready().await;
        self.workers.push(process);
    }

    /// Starts a program with this system's configuration.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Process {
        let mut variables = self.settings.variables.clone();
        if !self.settings.one_role {
            let role = match (program, arguments) {
                ("oarlock-receiver", _) => "oarlock_receiver",
                (_, ["migrate", ..]) => "oarlock_owner",
                _ => "oarlock_worker",
            };
            variables.entry("OARLOCK_DATABASE__URL".to_owned()).or_insert_with(|| self.database.url_as(role));
            variables.entry("OARLOCK_DATABASE__MIGRATE".to_owned()).or_insert_with(|| "false".to_owned());
        }
        Process::spawn(program, arguments, &variables)
    }

    /// Changes a setting for the programs started from now on.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.settings.variables.insert(variable.to_owned(), value.to_owned());
    }

    pub fn receiver(&self) -> &Process {
        &self.receivers[0]
    }

    pub fn worker(&self) -> &Process {
        &self.workers[0]
    }

    pub fn jira(&self) -> &Jira {
        self.sandbox.jira(self.settings.edition)
    }

    /// Who is in `group:NAME` or `organization:ID`: addresses.
    pub fn members(&self, target: &str) -> BTreeSet<String> {
        let (kind, name) = target.split_once(':').expect("group:NAME or organization:ID");
        let members = if kind == "group" { self.jira().group(name) } else { self.jira().organization(name) };
        members.members().into_iter().collect()
    }

    pub fn slack(&self) -> &Slack {
        self.sandbox.slack()
    }

    /// How often Slack was asked to invite each address, with and without effect.
    pub fn calls_to_slack(&self) -> BTreeMap<String, i64> {
        let mut calls = BTreeMap::new();
        for call in self.sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite") {
            let email =
                call.request.as_ref().and_then(|form| form["email"].as_str()).expect("an invitation names somebody");
            *calls.entry(email.to_owned()).or_default() += 1;
        }
        calls
    }

    pub fn paddle_api(&self) -> &PaddleApi {
        self.sandbox.paddle()
    }

    pub fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    /// Where alerts are posted.
    pub fn webhook(&self) -> String {
        format!("http://{}/paddle", self.receiver().address())
    }

    /// A sender of one's own, for tasks beside the test.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Paddle Classic sends an alert, which must be answered 200.
    #[track_caller]
    pub fn paddle_sends(&self, alert: &ClassicAlert) -> impl Future<Output = ()> {
        self.accepts(alert.signed_by(&self.signer))
    }

    /// Paddle Billing sends a notification, which must be answered 200.
    #[track_caller]
    pub fn billing_sends(&self, alert: &BillingAlert) -> impl Future<Output = ()> {
        self.accepts(alert.signed_by(&BillingSigner::new(WEBHOOK_SECRET)))
    }

    async fn accepts(&self, signed: Signed) {
        let reply = self.posts(&signed).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "Ok\n"));
    }

    /// Posts whatever it is, and returns the answer.
    pub async fn posts(&self, signed: &Signed) -> Reply {
        self.sender.post(&self.webhook(), signed).await.expect("the receiver answers")
    }

    /// Each of the programs can do its work, as it says itself.
    pub async fn is_ready(&self) {
        for process in self.receivers.iter().chain(&self.workers) {
            let (status, why) = process.admin("/readyz").await;
            assert_eq!(status, 200, "{why}");
        }
    }

    /// Waits until all is done that is due.
    pub async fn settles(&self) {
        self.settles_within(PATIENCE).await;
    }

    /// Waits until all is done that is due, with a patience of one's own.
    pub async fn settles_within(&self, patience: Duration) {
        self.until_within(
            patience,
            "everything due is done",
            "select not exists (select from outbox where to_plan)
                and not exists (select from outbox_action where status in ('pending', 'running') and due_at <= now())",
        )
        .await;
    }

    /// Time passes, as far as the system can tell: Postgres's clock is the only one it goes by, and every time in the database
    /// lies that much further back.
    pub async fn time_passes(&self, time: chrono::Duration) {
        let passing = self.database.moves_back(time);
        assert!(tokio::time::timeout(PATIENCE, passing).await.is_ok(), "it runs for ever\n{}", self.outbox().await);
    }

    /// Waits until a query says true.
    pub async fn until(&self, what: &str, query: &'static str) {
        self.until_within(PATIENCE, what, query).await;
    }

    /// Waits until a query says true, with a patience of one's own.
    pub async fn until_within(&self, patience: Duration, what: &str, query: &'static str) {
        let waiting = async {
            while !sqlx::query_scalar::<_, bool>(query).fetch_one(self.pool()).await.unwrap_or(false) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(patience, waiting).await.is_err() {
            panic!("in vain waited until {what}: {query}\n{}\n{}", self.outbox().await, self.logs());
        }
    }

    /// Waits until the stand-ins are as described.
    pub async fn sees(&self, what: &str, condition: impl Fn(&Sandbox) -> bool) {
        if self.sandbox.wait_until(condition, PATIENCE).await.is_err() {
            panic!("in vain waited until {what}\n{}\n{}", self.outbox().await, self.logs());
        }
    }

    /// Runs a statement as an operator would, with their role; returns how many rows it concerned.
    pub async fn sql(&self, statement: &'static str) -> u64 {
        let run = sqlx::query(statement).execute(self.database.operator()).await;
        run.expect("the statement is right, and an operator's").rows_affected()
    }

    /// Changes what no operator may, to set a test's scene.
    pub async fn sets_up(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(self.pool()).await.expect("the statement is right");
    }

    /// The one value of a query, which an operator may make.
    pub async fn value<T>(&self, query: &'static str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(query)
            .fetch_one(self.database.operator())
            .await
            .expect("the query is right, and an operator's")
    }

    /// All actions as `kind status outcome`, in the order they were planned.
    pub async fn actions(&self) -> Vec<String> {
        sqlx::query_scalar("select concat_ws(' ', kind, status, outcome) from outbox_action order by id")
            .fetch_all(self.pool())
            .await
            .expect("the query is right")
    }

    /// The id of the only action of this kind.
    pub async fn action(&self, kind: &str) -> Uuid {
        let ids: Vec<Uuid> = sqlx::query_scalar("select id from outbox_action where kind = $1")
            .bind(kind)
            .fetch_all(self.pool())
            .await
            .expect("the query is right");
        assert_eq!(ids.len(), 1, "actions of kind {kind}\n{}", self.outbox().await);
        ids[0]
    }

    /// The end of the outbox, for a failing test's message.
    pub async fn outbox(&self) -> String {
        let rows: Vec<String> = sqlx::query_scalar(
            "select concat_ws(' | ', o.alert_name, o.status, o.last_error, a.kind, a.status, a.outcome, a.attempts, a.last_error, a.run_at - now())
             from (select * from outbox order by id desc limit 200) o left join outbox_action a on a.outbox_id = o.id order by o.id, a.id",
        )
        .fetch_all(self.pool())
        .await
        .unwrap_or_else(|error| vec![error.to_string()]);
        rows.join("\n")
    }

    /// What the programs logged.
    pub fn logs(&self) -> String {
        self.receivers.iter().chain(&self.workers).map(Process::logs).collect::<Vec<_>>().join("\n")
    }
}
