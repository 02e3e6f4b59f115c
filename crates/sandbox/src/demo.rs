//! The demo: the main job, told as a story, by the real receiver and the real worker.
//!
//! In: a Postgres. Out: what happens, as it happens, and at the end what the outbox, Jira and Slack hold. Paddle, Jira
//! and Slack are the stand-ins of this crate; everything else is what runs in production. Each scene checks what it
//! tells; the first thing that is not so ends the demo with status 1 and the last lines of the services' logs.
//!
//! It works in a database of its own and leaves nothing behind: no process, no table, no file. Only after a failure the
//! logs stay, and their folder is named.

use std::future::pending;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use oarlock_sandbox::paddle::ClassicSigner;
use oarlock_sandbox::{Options, Sandbox};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use self::database::Database;
use self::stage::Stage;
use crate::send;
use crate::service::{Folder, Listens, Service};
use crate::voice::{Voice, readable};

mod database;
mod stage;
mod story;
mod vectors;

/// Within which a signal has surely been noticed.
const MOMENT: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Leave everything running after the story, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// A Postgres in which the demo may make a database, or else a schema, of its own.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
}

pub(crate) async fn run(demo: Demo) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut interrupts = Interrupts::new()?;
    let voice = Voice::new();
    voice.title("Oarlock by itself: Paddle's alerts become invitations and access");
    let given = demo.database_url.as_deref().filter(|url| !url.is_empty());
    let given =
        given.context("DATABASE_URL is not set: set it, or run `make demo`, which makes a throw-away Postgres")?;
    let database = Database::make(given).await?;
    voice.line("Postgres", &database.to_string());
    let performed = perform(&demo, &voice, &database, &mut interrupts, started).await;
    let gone = database.drop_it().await;
    performed.and(gone)
}

/// From the start of the services to their end.
async fn perform(
    demo: &Demo,
    voice: &Voice,
    database: &Database,
    interrupts: &mut Interrupts,
    started: Instant,
) -> anyhow::Result<()> {
    let mut folder = Folder::make("demo")?;
    let sandbox = Sandbox::start(Options::default()).await?;
    voice.line("sandbox", &format!("{} plays Jira Cloud, Slack and Paddle's API", sandbox.url()));
    let signer = ClassicSigner::cached().context("failed to make the key for Classic alerts")?;
    let settings = settings(database, &sandbox, &signer);
    let mut services = [
        Service::start("oarlock-receiver", &folder, &settings)?,
        Service::start("oarlock-worker", &folder, &settings)?,
    ];

    let [receiver, worker] = services.each_ref().map(Service::ready);
    let play = async {
        let addresses = Addresses::from(tokio::try_join!(receiver, worker)?);
        voice.line("receiver", &format!("takes alerts at {}", addresses.webhook));
        voice.line("worker", &format!("finds work in Postgres; all ready after {}", readable(started.elapsed())));
        let stage = Stage::new(voice, &sandbox, database.pool().await?, &addresses.webhook, signer)?;
        story::tell(&stage).await?;
        let took = readable(started.elapsed());
        voice.title(&format!("All of it is so: {} things checked, {took} in all", stage.checks()));
        Ok(addresses)
    };
    let mut played = unless_cut_short(play, interrupts, &mut services).await;
    if let (true, Ok(Some(addresses))) = (demo.keep, &played) {
        look_around(voice, database, &sandbox, addresses, &folder);
        if let Err(error) = unless_cut_short(pending::<anyhow::Result<()>>(), interrupts, &mut services).await {
            played = Err(error);
        }
    }

    let [receiver, worker] = services.each_mut().map(|service| stop(voice, service));
    let (receiver, worker) = tokio::join!(receiver, worker);
    let ended = match played {
        Ok(Some(_)) => receiver.and(worker),
        // Interrupted at any moment, the services may have ended in any way.
        Ok(None) => return Err(anyhow!("interrupted")),
        Err(error) => Err(error),
    };
    if ended.is_err() {
        services.iter().for_each(|service| service.last_words(voice));
        folder.keep();
    }
    ended
}

/// The result of `work`, nothing when somebody wants the demo to end, and an error when a service ends first.
async fn unless_cut_short<T>(
    work: impl Future<Output = anyhow::Result<T>>,
    interrupts: &mut Interrupts,
    [receiver, worker]: &mut [Service; 2],
) -> anyhow::Result<Option<T>> {
    let result = tokio::select! {
        done = work => done.map(Some),
        () = interrupts.next() => Ok(None),
        error = receiver.ends() => Err(error),
        error = worker.ends() => Err(error),
    };
    match result {
        // Ctrl-C on a terminal reaches the services as well, and what they do then may be seen first.
        Err(error) => timeout(MOMENT, interrupts.next()).await.map(|()| None).or(Err(error)),
        result => result,
    }
}

async fn stop(voice: &Voice, service: &mut Service) -> anyhow::Result<()> {
    let stopped = service.stop().await;
    match &stopped {
        Ok(said) => voice.line(service.short_name(), said),
        Err(error) => voice.bad(service.short_name(), &error.to_string()),
    }
    stopped.map(drop)
}

/// Where the services listen.
struct Addresses {
    webhook: String,
    receiver: String,
    worker: String,
}

impl From<(Listens, Listens)> for Addresses {
    fn from((receiver, worker): (Listens, Listens)) -> Self {
        Self {
            webhook: format!("http://{}/paddle", receiver.webhook.unwrap_or_default()),
            receiver: format!("http://{}", receiver.admin),
            worker: format!("http://{}", worker.admin),
        }
    }
}

/// The configuration of both services, as the environment says it. Retries come quickly: the story has half a minute.
fn settings(database: &Database, sandbox: &Sandbox, signer: &ClassicSigner) -> Vec<(&'static str, String)> {
    let text = str::to_owned;
    vec![
        ("OARLOCK_DATABASE__URL", text(database.url())),
        ("OARLOCK_DATABASE__MAX_CONNECTIONS", text("6")),
        ("OARLOCK_RECEIVER__LISTEN", text("127.0.0.1:0")),
        ("OARLOCK_RECEIVER__ADMIN_LISTEN", text("127.0.0.1:0")),
        ("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", json!([vectors::PUBLIC_KEY, signer.public_key_pem()]).to_string()),
        (
            "OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS",
            json!([vectors::BILLING.secret(), send::WEBHOOK_SECRET]).to_string(),
        ),
        ("OARLOCK_PADDLE__BILLING__API_URL", sandbox.paddle_url()),
        ("OARLOCK_PADDLE__BILLING__API_KEY", text("pdl_sdbx_apikey_sandbox")),
        ("OARLOCK_WORKER__ADMIN_LISTEN", text("127.0.0.1:0")),
        ("OARLOCK_WORKER__RETRY_BASE", text("200ms")),
        ("OARLOCK_WORKER__RETRY_CAP", text("1s")),
        ("OARLOCK_WORKER__SHUTDOWN_GRACE", text("5s")),
        ("OARLOCK_JIRA__EDITION", text("cloud")),
        ("OARLOCK_JIRA__BASE_URL", sandbox.jira_cloud_url()),
        ("OARLOCK_JIRA__USER", text("bot@acme.example")),
        ("OARLOCK_JIRA__TOKEN", text("jira-token")),
        ("OARLOCK_JIRA__SERVICE_DESK_ID", text(story::SERVICE_DESK)),
        ("OARLOCK_JIRA__ACCESS", json!([{ "plans": ["*"], "group": story::GROUP }]).to_string()),
        ("OARLOCK_SLACK__MODE", text("admin_invite")),
        ("OARLOCK_SLACK__BASE_URL", sandbox.slack_url()),
        ("OARLOCK_SLACK__TOKEN", text(story::SLACK_TOKEN)),
        ("OARLOCK_SLACK__TEAM_ID", text("T1")),
        ("OARLOCK_SLACK__CHANNEL_IDS", text("C1")),
    ]
}

fn look_around(voice: &Voice, database: &Database, sandbox: &Sandbox, at: &Addresses, folder: &Folder) {
    let (psql, sandbox) = (database.psql(), sandbox.url());
    let (webhook, receiver, worker) = (&at.webhook, &at.receiver, &at.worker);
    let program = std::env::args().next().unwrap_or_else(|| "oarlock-sandbox".to_owned());
    let logs = folder.path().display();
    voice.title("Everything still runs. Look around, and end it with Ctrl-C");
    voice.text(&format!(
        "\
The outbox:
  {psql}
    select alert_name, status, email, received_at, last_error from outbox order by id;
    select kind, email, status, outcome, attempts, last_error from outbox_action order by created_at;
    select * from access;         -- who pays for what, and what they were given

What the services and the vendors say:
  curl {receiver}/metrics
  curl {worker}/metrics
  curl {sandbox}/control/state
  tail -f {logs}/*.log

Another customer, and another bad day of Slack's:
  {program} send --to {webhook} subscription_created --email you@example.com --subscription 2001
  curl {sandbox}/control/slack/faults -H 'content-type: application/json' -d '{{\"status\": 503, \"times\": 3}}'"
    ));
}

/// Whatever asks a program to end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("failed to listen for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
