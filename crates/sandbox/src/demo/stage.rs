//! What a scene does: alerts are sent, the outbox is asked, SQL is run as an operator would, and what is told is
//! checked.
//!
//! Nothing here waits for time to pass: the stand-ins say when they change, the outbox is polled up to a deadline.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use oarlock_sandbox::paddle::{BillingAlert, BillingSigner, ClassicAlert, ClassicSigner, Signed};
use oarlock_sandbox::{Sandbox, Service};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Column as _, PgPool, Row as _, ValueRef as _};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::send;
use crate::voice::{Voice, readable};

/// How long a scene waits for what it expects; reached only when something is wrong.
const DEADLINE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Stage<'a> {
    pub(super) sandbox: &'a Sandbox,
    voice: &'a Voice,
    pool: PgPool,
    client: reqwest::Client,
    webhook: &'a str,
    classic: ClassicSigner,
    billing: BillingSigner,
    scene: Cell<usize>,
    checks: Cell<usize>,
}

/// An alert that was answered 200.
pub(super) struct Sent {
    source: &'static str,
    alert_id: String,
    at: Instant,
}

/// An action as the outbox has it.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Action {
    pub(super) id: Uuid,
    pub(super) kind: String,
    pub(super) destination: String,
    pub(super) status: String,
    pub(super) outcome: Option<String>,
    pub(super) attempts: i32,
    pub(super) last_error: Option<String>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        voice: &'a Voice,
        sandbox: &'a Sandbox,
        pool: PgPool,
        webhook: &'a str,
        classic: ClassicSigner,
    ) -> anyhow::Result<Self> {
        // A proxy leads out of this machine, and nothing here does.
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build()?;
        let billing = BillingSigner::new(send::WEBHOOK_SECRET);
        let (scene, checks) = (Cell::new(0), Cell::new(0));
        Ok(Self { sandbox, voice, pool, client, webhook, classic, billing, scene, checks })
    }

    /// A new scene begins.
    pub(super) fn scene(&self, title: &str) {
        self.scene.set(self.scene.get() + 1);
        self.title(&format!("{}. {title}", self.scene.get()));
    }

    pub(super) fn title(&self, title: &str) {
        self.voice.title(title);
    }

    pub(super) fn current_scene(&self) -> usize {
        self.scene.get()
    }

    pub(super) fn checks(&self) -> usize {
        self.checks.get()
    }

    pub(super) fn says(&self, who: &str, what: &str) {
        self.voice.line(who, what);
    }

    /// Tells it if it is so, and ends the demo if it is not.
    pub(super) fn holds(&self, is_so: bool, who: &str, what: &str) -> anyhow::Result<()> {
        if !is_so {
            self.voice.bad(who, &format!("not so: {what}"));
            bail!("this should be so and is not: {who}: {what}");
        }
        self.checks.set(self.checks.get() + 1);
        self.voice.line(who, what);
        Ok(())
    }

    /// Posts an alert as Paddle does, and looks at the answer.
    pub(super) async fn posts(&self, signed: &Signed, answer: u16, what: &str) -> anyhow::Result<()> {
        let mut request = self.client.post(self.webhook).header("Content-Type", signed.content_type);
        if let Some((name, value)) = &signed.header {
            request = request.header(*name, value);
        }
        let started = Instant::now();
        let response = request.body(signed.body.clone()).send().await.context("failed to post an alert")?;
        let (status, took) = (response.status().as_u16(), readable(started.elapsed()));
        self.holds(status == answer, "Paddle", &format!("{what}: answered {status} in {took}"))
    }

    /// Posts an alert signed with the sandbox's key.
    pub(super) async fn sends(&self, alert: ClassicAlert) -> anyhow::Result<Sent> {
        let [name, email] = ["alert_name", "email"].map(|field| alert.get(field).unwrap_or_default());
        let (signed, at) = (alert.signed_by(&self.classic), Instant::now());
        self.posts(&signed, 200, &format!("{name} of {email}")).await?;
        Ok(Sent { source: "classic", alert_id: alert.id().to_owned(), at })
    }

    /// Posts a Billing event signed with the sandbox's secret.
    pub(super) async fn sends_billing(&self, alert: BillingAlert, what: &str) -> anyhow::Result<Sent> {
        let (signed, at) = (alert.signed_by(&self.billing), Instant::now());
        self.posts(&signed, 200, what).await?;
        Ok(Sent { source: "billing", alert_id: alert.id().to_owned(), at })
    }

    /// The alert's actions, once it and each of them has come to an end.
    pub(super) async fn settled(&self, sent: &Sent) -> anyhow::Result<Vec<Action>> {
        // An alert is dead with its first dead action; the others go on.
        let is_open = |action: &Action| matches!(action.status.as_str(), "pending" | "running");
        self.actions_when(sent, "is settled", |alert, actions| alert != "pending" && !actions.iter().any(is_open)).await
    }

    /// The alert's actions, once they and its status are as wanted.
    pub(super) async fn actions_when(
        &self,
        sent: &Sent,
        what: &str,
        wanted: impl Fn(&str, &[Action]) -> bool,
    ) -> anyhow::Result<Vec<Action>> {
        let started = Instant::now();
        loop {
            let status: String = sqlx::query_scalar("select status from outbox where source = $1 and alert_id = $2")
                .bind(sent.source)
                .bind(&sent.alert_id)
                .fetch_one(&self.pool)
                .await
                .context("failed to look for an alert that was answered 200")?;
            let actions: Vec<Action> = sqlx::query_as(
                "select a.* from outbox_action a join outbox o on o.id = a.outbox_id
                 where o.source = $1 and o.alert_id = $2 order by a.id",
            )
            .bind(sent.source)
            .bind(&sent.alert_id)
            .fetch_all(&self.pool)
            .await
            .context("failed to read the outbox")?;
            if wanted(&status, &actions) {
                return Ok(actions);
            }
            if started.elapsed() > DEADLINE {
                bail!("waited {DEADLINE:?} until alert {} {what}; it is {status}, with {actions:#?}", sent.alert_id);
            }
            sleep(POLL).await;
        }
    }

    /// Waits until what the stand-ins hold is as wanted.
    pub(super) async fn until(&self, what: &str, wanted: impl Fn(&Sandbox) -> bool) -> anyhow::Result<()> {
        self.sandbox.wait_until(wanted, DEADLINE).await.with_context(|| format!("waited in vain until {what}"))
    }

    /// Waits until a query says true.
    pub(super) async fn until_sql(&self, what: &str, query: &'static str) -> anyhow::Result<()> {
        let waiting = async {
            while !sqlx::query_scalar::<_, bool>(query).fetch_one(&self.pool).await? {
                sleep(POLL).await;
            }
            anyhow::Ok(())
        };
        timeout(DEADLINE, waiting).await.with_context(|| format!("waited {DEADLINE:?} until {what}"))?
    }

    pub(super) async fn count(&self, query: &'static str) -> anyhow::Result<i64> {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.with_context(|| format!("failed to run {query}"))
    }

    /// Runs a statement as somebody with psql would, and says so.
    pub(super) async fn runs(&self, statement: &str) -> anyhow::Result<()> {
        self.voice.line("SQL", &format!("{statement};"));
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&self.pool)
            .await
            .with_context(|| format!("failed to run {statement}"))?;
        Ok(())
    }

    /// Runs a query as somebody with psql would, and shows what it gives. Returns the number of rows.
    pub(super) async fn shows(&self, query: &str) -> anyhow::Result<usize> {
        self.voice.line("SQL", &format!("{query};"));
        self.shows_result(query).await
    }

    /// The same without showing the query.
    pub(super) async fn shows_result(&self, query: &str) -> anyhow::Result<usize> {
        // As text whatever the types are, which is how such a query is answered.
        let rows = sqlx::raw_sql(AssertSqlSafe(query))
            .fetch_all(&self.pool)
            .await
            .with_context(|| format!("failed to run {query}"))?;
        let columns: Vec<String> = rows
            .first()
            .map(|row| row.columns().iter().map(|column| column.name().to_owned()).collect())
            .unwrap_or_default();
        let cells = rows.iter().map(cells).collect::<Result<Vec<_>, _>>()?;
        self.voice.table(&columns, &cells);
        Ok(rows.len())
    }

    /// How long after the alert was posted Slack was first asked to invite this address, and did.
    pub(super) fn to_slack(&self, sent: &Sent, email: &str) -> anyhow::Result<String> {
        let calls = self.sandbox.calls();
        let call = calls.iter().find(|call| {
            let argument = call.request.as_ref().and_then(|request| request["email"].as_str());
            call.service == Service::Slack && call.worked && argument == Some(email)
        });
        let call = call.with_context(|| format!("Slack was not asked to invite {email}"))?;
        Ok(readable(call.started.duration_since(sent.at)))
    }

    /// How often a vendor was called so far.
    pub(super) fn calls(&self, service: Service) -> usize {
        self.sandbox.calls().iter().filter(|call| call.service == service).count()
    }
}

fn cells(row: &PgRow) -> anyhow::Result<Vec<String>> {
    let cell = |at| {
        let value = row.try_get_raw(at)?;
        let text = if value.is_null() { "" } else { value.as_str().map_err(anyhow::Error::from_boxed)? };
        anyhow::Ok(text.to_owned())
    };
    (0..row.len()).map(cell).collect()
}

/// `jira_invite invited, slack_invite invited`
pub(super) fn summary(actions: &[Action]) -> String {
    let of = |action: &Action| format!("{} {}", action.kind, action.outcome.as_deref().unwrap_or(&action.status));
    actions.iter().map(of).collect::<Vec<_>>().join(", ")
}
