//! Stand-ins for Jira Cloud, Jira Data Center, Slack and Paddle.
//!
//! They speak HTTP on a real socket, keep state, answer as the vendors document it, refuse what the vendors refuse, and
//! fail on demand. One [`Sandbox`] is one server; the stand-ins live below path prefixes of it:
//!
//! | base URL | stands for |
//! |---|---|
//! | `/jira-cloud` | a Jira Cloud site with Service Management: [`Jira`] |
//! | `/jira-dc` | Jira Data Center with a context path: [`Jira`] |
//! | `/slack/api` | Slack's Web API: [`Slack`] |
//! | `/paddle` | Paddle Billing's API: [`PaddleApi`] |
//! | `/control` | what a test does in Rust, as JSON over HTTP: see [`control`] |
//!
//! Paddle as the sender of alerts is in [`paddle`]: it needs no server.
//!
//! Not for production: the credentials are published below, and nothing limits what is stored.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::calls::{Calls, Changes};
use crate::exchange::{Answer, Request};
use crate::faults::Faults;
use crate::transcript::Transcript;

pub use crate::calls::{Call, Service};
pub use crate::faults::Fault;
pub use crate::jira::{Edition, Invitation, Jira, Members};
pub use crate::paddle::api::PaddleApi;
pub use crate::slack::{Slack, SlackInvitation};

mod calls;
pub mod control;
mod exchange;
mod faults;
mod jira;
pub mod paddle;
mod slack;
mod transcript;

/// The account that Jira Cloud accepts, with [`JIRA_CLOUD_TOKEN`].
pub const JIRA_CLOUD_USER: &str = "bot@acme.example";
pub const JIRA_CLOUD_TOKEN: &str = "jira-token";
/// The personal access token that Jira Data Center accepts.
pub const JIRA_DC_TOKEN: &str = "jira-dc-token";
pub const SLACK_TOKEN: &str = "xoxp-sandbox";
/// The API key of Paddle Billing's sandbox.
pub const PADDLE_API_KEY: &str = "pdl_sdbx_apikey_sandbox";

/// Where a sandbox listens and what it writes down.
#[derive(Debug, Clone)]
pub struct Options {
    /// Any free port of 127.0.0.1 by default.
    pub listen: Option<SocketAddr>,
    /// Appended to. By default the file that `OARLOCK_SANDBOX_TRANSCRIPT` names, if it is set.
    pub transcript: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: None, transcript: std::env::var_os(transcript::ENVIRONMENT).map(PathBuf::from) }
    }
}

/// One server with all stand-ins. Clones are the same sandbox; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
    address: SocketAddr,
    _server: Arc<DropGuard>,
}

/// What the server and the tests look at together.
#[derive(Debug)]
pub(crate) struct Shared {
    changes: Changes,
    calls: Calls,
    transcript: Option<Transcript>,
    jira_cloud: Jira,
    jira_data_center: Jira,
    slack: Slack,
    paddle: PaddleApi,
}

impl Sandbox {
    /// Binds the port and serves until the sandbox is dropped.
    ///
    /// # Errors
    /// When the address cannot be bound or the transcript not be opened.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let wanted = options.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(wanted).await.with_context(|| format!("failed to listen on {wanted}"))?;
        let address = listener.local_addr().context("failed to read the address listened on")?;
        let base = |service: Service| format!("http://{address}{}", service.prefix());
        let changes = Changes::new();
        let shared = Arc::new(Shared {
            calls: Calls::new(changes.clone()),
            transcript: options.transcript.as_deref().map(Transcript::open).transpose()?,
            jira_cloud: Jira::new(Edition::Cloud, base(Service::JiraCloud), changes.clone()),
            jira_data_center: Jira::new(Edition::DataCenter, base(Service::JiraDataCenter), changes.clone()),
            slack: Slack::new(changes.clone()),
            paddle: PaddleApi::new(changes.clone()),
            changes,
        });
        let stop = CancellationToken::new();
        tokio::spawn(exchange::serve(Arc::clone(&shared), listener, stop.clone()));
        Ok(Self { shared, address, _server: Arc::new(stop.drop_guard()) })
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn base(&self, service: Service) -> String {
        format!("{}{}", self.url(), service.prefix())
    }

    /// The `jira.base_url` for `edition = "cloud"`.
    #[must_use]
    pub fn jira_cloud_url(&self) -> String {
        self.base(Service::JiraCloud)
    }

    /// The `jira.base_url` for `edition = "data_center"`.
    #[must_use]
    pub fn jira_dc_url(&self) -> String {
        self.base(Service::JiraDataCenter)
    }

    /// The `slack.base_url`.
    #[must_use]
    pub fn slack_url(&self) -> String {
        self.base(Service::Slack)
    }

    /// The `paddle.billing.api_url`.
    #[must_use]
    pub fn paddle_url(&self) -> String {
        self.base(Service::Paddle)
    }

    #[must_use]
    pub fn jira_cloud(&self) -> &Jira {
        &self.shared.jira_cloud
    }

    #[must_use]
    pub fn jira_dc(&self) -> &Jira {
        &self.shared.jira_data_center
    }

    /// The Jira of an edition, for tests that run with both.
    #[must_use]
    pub fn jira(&self, edition: Edition) -> &Jira {
        match edition {
            Edition::Cloud => self.jira_cloud(),
            Edition::DataCenter => self.jira_dc(),
        }
    }

    #[must_use]
    pub fn slack(&self) -> &Slack {
        &self.shared.slack
    }

    #[must_use]
    pub fn paddle(&self) -> &PaddleApi {
        &self.shared.paddle
    }

    /// Everything the stand-ins have been asked, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.list().clone()
    }

    /// The calls with this method and path (below the base URL).
    #[must_use]
    pub fn calls_to(&self, service: Service, method: &str, path: &str) -> Vec<Call> {
        let list = self.shared.calls.list();
        list.iter().filter(|call| call.service == service && call.is(method, path)).cloned().collect()
    }

    /// Waits until the calls are as wanted. `wanted` must not ask for [`Sandbox::calls`]: it has them.
    ///
    /// # Errors
    /// When that has not come about after `deadline`; the error lists the calls.
    pub async fn wait_for(&self, wanted: impl Fn(&[Call]) -> bool, deadline: Duration) -> anyhow::Result<()> {
        self.wait(|| wanted(&self.shared.calls.list()), deadline).await
    }

    /// Waits until anything at all is as wanted: looked at after every call and every change made by hand.
    ///
    /// # Errors
    /// When that has not come about after `deadline`; the error lists the calls.
    pub async fn wait_until(&self, wanted: impl Fn(&Self) -> bool, deadline: Duration) -> anyhow::Result<()> {
        self.wait(|| wanted(self), deadline).await
    }

    async fn wait(&self, wanted: impl Fn() -> bool, deadline: Duration) -> anyhow::Result<()> {
        let mut changes = self.shared.changes.subscribe();
        let waited = tokio::time::timeout(deadline, async {
            // The receiver has seen everything up to here, and each change after the look wakes it.
            while !wanted() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
        if waited.await.is_err() {
            let calls: Vec<_> = self.calls().iter().map(summary).collect();
            bail!("not as wanted after {deadline:?}; calls so far:\n{}", calls.join("\n"));
        }
        Ok(())
    }

    /// Who is member of what, who was invited, what still fails: everything, as JSON.
    #[must_use]
    pub fn state(&self) -> Value {
        self.shared.state()
    }
}

fn summary(call: &Call) -> String {
    let status = call.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    format!("  {} {} {} {} -> {status}", call.sequence, call.service, call.method, call.path)
}

impl Shared {
    fn faults(&self, service: Service) -> &Faults {
        match service {
            Service::JiraCloud => self.jira_cloud.faults(),
            Service::JiraDataCenter => self.jira_data_center.faults(),
            Service::Slack => self.slack.faults(),
            Service::Paddle => self.paddle.faults(),
        }
    }

    fn answer(&self, service: Service, request: &Request, arguments: Option<&Value>) -> Answer {
        match service {
            Service::JiraCloud => jira::cloud::answer(&self.jira_cloud, request),
            Service::JiraDataCenter => jira::data_center::answer(&self.jira_data_center, request),
            Service::Slack => slack::answer(&self.slack, request, arguments),
            Service::Paddle => paddle::api::answer(&self.paddle, request),
        }
    }

    fn state(&self) -> Value {
        json!({
            "jira-cloud": self.jira_cloud.state(),
            "jira-dc": self.jira_data_center.state(),
            "slack": self.slack.state(),
            "paddle": self.paddle.state(),
        })
    }
}
