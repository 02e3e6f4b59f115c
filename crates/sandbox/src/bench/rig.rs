//! What every measure stands on: a cluster, a corpus, stand-ins, and the two programs as they are deployed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use oarlock_sandbox::paddle::ClassicSigner;
use serde_json::json;

use super::corpus::Corpus;
use super::database::{Cluster, Database};
use super::usage::{self, Used};
use super::vendors::Vendors;
use crate::send;
use crate::service::{Folder, Service};

/// Reached only when something is wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// Connections that post at the same time, and clients of the baselines.
pub(super) const CONNECTIONS: usize = 64;

#[derive(Debug)]
pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) corpus: Corpus,
    pub(super) vendors: Vendors,
    pub(super) signer: ClassicSigner,
    pub(super) sizes: Sizes,
    pub(super) rounds: usize,
    pub(super) folder: Folder,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Posted, or drained, in one round.
    pub(super) alerts: usize,
    /// How long one run of a baseline takes, in seconds.
    pub(super) baseline_seconds: u32,
    /// Alerts at 500 a second.
    pub(super) at_rate: usize,
    /// Lone requests.
    pub(super) lone: usize,
    /// Alerts in an idle system, 50 ms apart.
    pub(super) wakes: usize,
    /// Drained while a snapshot is held.
    pub(super) under_snapshot: usize,
    /// Alerts for Jira while Slack hangs.
    pub(super) apart: usize,
    /// Rows behind: ten parts finished, five scheduled, one dead.
    pub(super) history: usize,
}

impl Sizes {
    pub(super) const FULL: Self = Self {
        alerts: 20_000,
        baseline_seconds: 4,
        at_rate: 4_000,
        lone: 500,
        wakes: 200,
        under_snapshot: 60_000,
        apart: 10_000,
        history: 1_600_000,
    };
    pub(super) const QUICK: Self = Self {
        alerts: 2_000,
        baseline_seconds: 1,
        at_rate: 500,
        lone: 50,
        wakes: 20,
        under_snapshot: 4_000,
        apart: 1_000,
        history: 16_000,
    };
}

/// Which vendors a worker is configured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Slack,
    JiraAndSlack,
}

/// A receiver that takes alerts.
#[derive(Debug)]
pub(super) struct Receiver {
    service: Service,
    pub(super) address: SocketAddr,
}

/// A worker that was started.
#[derive(Debug)]
pub(super) struct Worker {
    service: Service,
}

impl Rig {
    /// Comes when it takes alerts.
    pub(super) async fn receiver(&self, database: &Database) -> anyhow::Result<Receiver> {
        let mut settings = self.settings(database);
        settings.push(("OARLOCK_RECEIVER__LISTEN", "127.0.0.1:0".to_owned()));
        settings.push(("OARLOCK_RECEIVER__ADMIN_LISTEN", "127.0.0.1:0".to_owned()));
        let service = Service::start("oarlock-receiver", &self.folder, &settings)?;
        let webhook = service.ready().await?.webhook.context("the receiver does not say where it listens")?;
        Ok(Receiver { service, address: webhook.parse()? })
    }

    /// At once, before it is ready: its start is part of what is measured. Everything not in `more` is the default.
    pub(super) fn worker(
        &self,
        database: &Database,
        calls: Calls,
        more: &[(&'static str, &str)],
    ) -> anyhow::Result<Worker> {
        let mut settings = self.settings(database);
        settings.push(("OARLOCK_WORKER__ADMIN_LISTEN", "127.0.0.1:0".to_owned()));
        let text = str::to_owned;
        settings.extend([
            ("OARLOCK_SLACK__MODE", text("admin_invite")),
            ("OARLOCK_SLACK__BASE_URL", self.vendors.url()),
            ("OARLOCK_SLACK__TOKEN", text("xoxp-bench")),
            ("OARLOCK_SLACK__TEAM_ID", text("T1")),
            ("OARLOCK_SLACK__CHANNEL_IDS", text("C1")),
        ]);
        if calls == Calls::JiraAndSlack {
            settings.extend([
                ("OARLOCK_JIRA__EDITION", text("cloud")),
                ("OARLOCK_JIRA__BASE_URL", self.vendors.url()),
                ("OARLOCK_JIRA__USER", text("bench@acme.example")),
                ("OARLOCK_JIRA__TOKEN", text("jira-bench")),
                ("OARLOCK_JIRA__SERVICE_DESK_ID", text("3")),
            ]);
        }
        settings.extend(more.iter().map(|(key, value)| (*key, text(value))));
        Ok(Worker { service: Service::start("oarlock-worker", &self.folder, &settings)? })
    }

    fn settings(&self, database: &Database) -> Vec<(&'static str, String)> {
        vec![
            ("OARLOCK_DATABASE__URL", database.url().to_owned()),
            ("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", json!([self.signer.public_key_pem()]).to_string()),
            ("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", json!([send::WEBHOOK_SECRET]).to_string()),
        ]
    }
}

impl Receiver {
    /// Ends it, and says what it has used.
    pub(super) async fn stop(self) -> anyhow::Result<Used> {
        stop(self.service).await
    }
}

impl Worker {
    pub(super) async fn is_ready(&self) -> anyhow::Result<()> {
        self.service.ready().await.map(drop)
    }

    /// Ends it, and says what it has used.
    pub(super) async fn stop(self) -> anyhow::Result<Used> {
        stop(self.service).await
    }

    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.service.kill().await
    }
}

async fn stop(mut service: Service) -> anyhow::Result<Used> {
    let Some(id) = service.id() else { bail!("{} has ended by itself", service.short_name()) };
    let used = usage::of(service.short_name(), id)?;
    service.stop().await?;
    Ok(used)
}
