//! The story: what customers, vendors and operators do, and what comes of it.

use std::time::{Duration, Instant};

use anyhow::Context;
use oarlock_sandbox::paddle::{Billing, Classic};
use oarlock_sandbox::{Fault, Service};

use super::stage::{Action, Sent, Stage, summary};
use super::vectors;
use crate::voice::readable;

/// Whoever pays for a subscription is in this group of Jira's.
pub(super) const GROUP: &str = "commercial-support";
pub(super) const SERVICE_DESK: &str = "3";
/// The one token that Slack's stand-in takes.
pub(super) const SLACK_TOKEN: &str = "xoxp-sandbox";

const SUBSCRIBER: &str = "ann@example.com";
const BUYER: &str = "bea@example.com";
const BILLED: &str = "carla@example.com";
const UNLUCKY: &str = "dora@example.com";
const DISABLED: &str = "emil@example.com";
const PATIENT: &str = "fay@example.com";
const COLLEAGUE: &str = "jonas@acme.example";

pub(super) async fn tell(stage: &Stage<'_>) -> anyhow::Result<()> {
    let told = async {
        genuine_alerts(stage).await?;
        purchase(stage).await?;
        let subscribed = subscription(stage).await?;
        billing_subscription(stage).await?;
        slack_is_down(stage).await?;
        dead_letter(stage).await?;
        wrong_token(stage).await?;
        cancellation(stage, &subscribed).await
    };
    told.await.with_context(|| format!("scene {} does not go as told", stage.current_scene()))?;
    what_is_held(stage).await
}

async fn genuine_alerts(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.scene("Alerts that Paddle itself signed, in 2020 and 2023");
    stage.says("source", "published as test vectors by @devoxa/paddle-sdk (Classic) and deno-paddle-verify (Billing)");
    // The event names a customer and no address; whose it was is not known.
    stage.sandbox.paddle().set_customer(vectors::BILLING.customer, "owner@team.example");
    for vector in &vectors::GENUINE {
        stage.posts(&vector.signed(), 200, vector.name).await?;
    }
    let edited = &vectors::EDITED;
    stage.posts(&edited.signed(), 403, &format!("{}, edited after it was signed", edited.name)).await?;
    let billing = &vectors::BILLING;
    stage.posts(&billing.as_it_was(), 403, &format!("{}, with its signature of 2023", billing.name)).await?;
    stage.posts(&billing.signed_now(), 200, "the same bytes, signed now with its published secret").await?;

    let stored = stage.count("select count(*) from outbox").await?;
    for vector in &vectors::GENUINE {
        stage.posts(&vector.signed(), 200, &format!("{} again", vector.name)).await?;
    }
    stage.posts(&billing.signed_now(), 200, &format!("{} again", billing.name)).await?;
    let still = stage.count("select count(*) from outbox").await?;
    stage.holds(
        (stored, still) == (5, 5),
        "outbox",
        &format!("{stored} alerts before, {still} after: nothing twice"),
    )?;

    stage.until_sql("all alerts are settled", "select count(*) = 0 from outbox where status = 'pending'").await?;
    let group = stage.sandbox.jira_cloud().group(GROUP);
    for email in ["gordon35@example.org", "rconnelly@example.org", "dietrich.karlie@example.com", "owner@team.example"]
    {
        stage.holds(group.has(email), "Jira", &format!("{email} pays, and is in {GROUP}"))?;
    }
    stage.holds(!group.has("monroe84@example.com"), "Jira", "monroe84@example.com cancelled in 2020, and is not")
}

async fn purchase(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.scene("A purchase");
    let sent = stage.sends(Classic::payment_succeeded(BUYER)).await?;
    let actions = stage.settled(&sent).await?;
    invited(stage, &sent, BUYER)?;
    let in_group = stage.sandbox.jira_cloud().group(GROUP).has(BUYER);
    stage.holds(!in_group, "Jira", &format!("{BUYER} is in no group: nothing was subscribed to"))?;
    all_done(stage, &actions, 2)
}

async fn subscription(stage: &Stage<'_>) -> anyhow::Result<Sent> {
    stage.scene("A subscription");
    let sent = stage.sends(Classic::subscription_created(SUBSCRIBER).subscription("1001")).await?;
    let actions = stage.settled(&sent).await?;
    invited(stage, &sent, SUBSCRIBER)?;
    stage.holds(
        stage.sandbox.jira_cloud().group(GROUP).has(SUBSCRIBER),
        "Jira",
        &format!("{SUBSCRIBER} is in {GROUP}"),
    )?;
    all_done(stage, &actions, 3)?;
    Ok(sent)
}

async fn billing_subscription(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.scene("A subscription with Paddle Billing, whose alerts name no e-mail address");
    stage.sandbox.paddle().set_customer("ctm_carla", BILLED);
    let alert = Billing::subscription_created("ctm_carla").subscription("sub_1002");
    let sent = stage.sends_billing(alert, "subscription.created of ctm_carla").await?;
    let actions = stage.settled(&sent).await?;
    let asked = stage.sandbox.calls_to(Service::Paddle, "GET", "/customers/ctm_carla").len();
    stage.holds(asked == 1, "Paddle", &format!("asked once who ctm_carla is: {BILLED}"))?;
    invited(stage, &sent, BILLED)?;
    stage.holds(stage.sandbox.jira_cloud().group(GROUP).has(BILLED), "Jira", &format!("{BILLED} is in {GROUP}"))?;
    all_done(stage, &actions, 4)
}

async fn slack_is_down(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.scene("Slack is down: that delays Slack, and nothing else");
    stage.sandbox.slack().fail(Fault::status(503));
    let sent = stage.sends(Classic::subscription_created(UNLUCKY).subscription("1003")).await?;
    let waits = |_: &str, actions: &[Action]| {
        let jira_is_done = actions.iter().filter(|action| action.destination == "jira").all(|a| a.status == "done");
        jira_is_done && actions.iter().any(|a| a.destination == "slack" && a.attempts >= 3 && a.status == "pending")
    };
    let actions = stage.actions_when(&sent, "is done in Jira and retried in Slack", waits).await?;
    let in_group = stage.sandbox.jira_cloud().group(GROUP).has(UNLUCKY);
    stage.holds(in_group, "Jira", &format!("{UNLUCKY} is invited, and in {GROUP}"))?;
    let slack = the(&actions, "slack_invite")?;
    let error = slack.last_error.as_deref().unwrap_or_default();
    let is_unasked = !stage.sandbox.slack().invited(UNLUCKY);
    stage.holds(is_unasked, "Slack", &format!("{} attempts so far, the last: {error}", slack.attempts))?;

    let calls_to_jira = stage.calls(Service::JiraCloud);
    stage.sandbox.slack().clear_faults();
    stage.says("Slack", "is back");
    let actions = stage.settled(&sent).await?;
    let attempts = the(&actions, "slack_invite")?.attempts;
    let count = stage.sandbox.slack().invitation_count(UNLUCKY);
    stage.holds(count == 1, "Slack", &format!("invites {UNLUCKY}, once, in attempt {attempts}"))?;
    let repeated = stage.calls(Service::JiraCloud) - calls_to_jira;
    stage.holds(repeated == 0, "Jira", "was not called again")?;
    all_done(stage, &actions, 3)
}

async fn dead_letter(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.scene("What no retry can mend: a dead letter, and its replay");
    stage.sandbox.slack().fail(Fault::slack_error("user_disabled"));
    let sent = stage.sends(Classic::payment_succeeded(DISABLED)).await?;
    let actions = stage.settled(&sent).await?;
    let dead = the(&actions, "slack_invite")?;
    let error = dead.last_error.as_deref().unwrap_or_default();
    stage.holds(dead.status == "dead" && dead.attempts == 1, "Slack", &format!("refuses for good: {error}"))?;
    stage.holds(the(&actions, "jira_invite")?.status == "done", "Jira", "has invited all the same")?;
    let rows = stage.shows("select action_id, kind, email, attempts, last_error from dead_letter").await?;
    stage.holds(rows == 1, "outbox", "one dead letter, which waits for somebody")?;

    stage.sandbox.slack().clear_faults();
    stage.says("Slack", "has let the account in again");
    let replayed = Instant::now();
    stage.runs(&format!("select replay('{}')", dead.id)).await?;
    stage.until("Slack invites who was dead", |sandbox| sandbox.slack().invited(DISABLED)).await?;
    let took = readable(replayed.elapsed());
    stage.says("Slack", &format!("invites {DISABLED}, {took} after the replay"));
    let actions = stage.settled(&sent).await?;
    let left = stage.count("select count(*) from dead_letter").await?;
    stage.holds(left == 0, "outbox", "no dead letter is left")?;
    all_done(stage, &actions, 2)
}

async fn wrong_token(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.scene("A wrong token burns nothing");
    stage.sandbox.slack().set_token("xoxp-rotated");
    stage.says("Slack", "has a new token, of which the worker does not know");
    let sent = stage.sends(Classic::payment_succeeded(PATIENT)).await?;
    let handed_back = |_: &str, actions: &[Action]| {
        actions.iter().any(|a| a.destination == "slack" && a.status == "pending" && a.last_error.is_some())
            && actions.iter().any(|a| a.destination == "jira" && a.status == "done")
    };
    let actions = stage.actions_when(&sent, "is handed back by Slack and done in Jira", handed_back).await?;
    let paused = "select name, date_trunc('second', paused_until - now()) as paused_for, paused_reason \
                  from destination where paused_until > now()";
    let paused = stage.shows(paused).await?;
    stage.holds(paused == 1, "outbox", "Slack is paused, Jira is not")?;
    let slack = the(&actions, "slack_invite")?;
    stage.holds(slack.attempts == 0, "outbox", &format!("the invitation is {}, 0 attempts used", slack.status))?;
    let dead = stage.count("select count(*) from outbox_action where status = 'dead'").await?;
    stage.holds(dead == 0, "outbox", "nothing is dead")?;

    stage.sandbox.slack().set_token(SLACK_TOKEN);
    stage.says("Slack", "takes the old token again");
    let resumed = Instant::now();
    stage.runs("update destination set paused_until = null where name = 'slack'").await?;
    stage.until("Slack invites who waited", |sandbox| sandbox.slack().invited(PATIENT)).await?;
    let took = resumed.elapsed();
    let in_time = took < Duration::from_secs(1);
    stage.holds(in_time, "Slack", &format!("invites {PATIENT}, {} after the pause was ended", readable(took)))?;
    all_done(stage, &stage.settled(&sent).await?, 2)
}

async fn cancellation(stage: &Stage<'_>, subscribed: &Sent) -> anyhow::Result<()> {
    stage.scene("A cancellation, effective at once");
    let group = stage.sandbox.jira_cloud().group(GROUP);
    group.add_member(COLLEAGUE);
    stage.says("Jira", &format!("somebody puts a colleague, {COLLEAGUE}, into {GROUP} by hand"));
    let sent = stage.sends(Classic::subscription_cancelled(SUBSCRIBER).subscription("1001").ended()).await?;
    let actions = stage.settled(&sent).await?;
    stage.holds(!group.has(SUBSCRIBER), "Jira", &format!("{SUBSCRIBER} is out of {GROUP}"))?;
    all_done(stage, &actions, 1)?;

    stage.says("operator", "replays the subscription of scene 3 by mistake");
    let access = stage.settled(subscribed).await?;
    stage.runs(&format!("select replay('{}')", the(&access, "jira_access")?.id)).await?;
    let access = stage.settled(subscribed).await?;
    let is_unchanged = the(&access, "jira_access")?.outcome.as_deref() == Some("unchanged");
    stage.holds(is_unchanged && !group.has(SUBSCRIBER), "Jira", &format!("{SUBSCRIBER} stays out: unchanged"))?;
    stage.holds(group.has(COLLEAGUE), "Jira", &format!("{COLLEAGUE} stays in: Paddle did not put them there"))
}

async fn what_is_held(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.title("What is there now");
    stage.says("outbox", "each alert with the outcomes of its actions and (attempts)");
    stage
        .shows_result(
            "select o.alert_name, o.status, o.email,
                    string_agg(a.did, ', ' order by a.id) filter (where a.kind = 'paddle_customer') as paddle_customer,
                    string_agg(a.did, ', ' order by a.id) filter (where a.kind = 'jira_invite') as jira_invite,
                    string_agg(a.did, ', ' order by a.id) filter (where a.kind = 'jira_access') as jira_access,
                    string_agg(a.did, ', ' order by a.id) filter (where a.kind = 'slack_invite') as slack_invite
             from outbox o
             left join (select *, split_part(coalesce(outcome, status), ' by ', 1) || ' (' || attempts || ')' as did
                        from outbox_action) a on a.outbox_id = o.id
             group by o.id order by o.id",
        )
        .await?;
    let drift = stage.count("select count(*) from access where differs_since is not null").await?;
    stage.holds(drift == 0, "access", "what Oarlock has given is what is paid for: no customer differs")?;

    let (jira, slack) = (stage.sandbox.jira_cloud(), stage.sandbox.slack());
    stage.says("Jira", &format!("in {GROUP}: {}", jira.group(GROUP).members().join(", ")));
    let customers = jira.service_desk(SERVICE_DESK).members();
    let is_each_mailed_once = customers.iter().all(|email| jira.invited(email) == 1);
    let what = format!("invited to the service desk, once each: {}", customers.join(", "));
    stage.holds(is_each_mailed_once, "", &what)?;
    let invitations = slack.invitations();
    let is_each_asked_once = invitations.iter().all(|one| one.count == 1);
    let emails: Vec<_> = invitations.iter().map(|one| one.email.as_str()).collect();
    stage.holds(is_each_asked_once, "Slack", &format!("invited, once each: {}", emails.join(", ")))
}

/// Both vendors have invited the customer, once.
fn invited(stage: &Stage<'_>, sent: &Sent, email: &str) -> anyhow::Result<()> {
    let (jira, slack) = (stage.sandbox.jira_cloud(), stage.sandbox.slack());
    let is_customer = jira.service_desk(SERVICE_DESK).has(email) && jira.invited(email) == 1;
    stage.holds(is_customer, "Jira", &format!("mails {email} an invitation to the service desk"))?;
    let invitations = slack.invitation_count(email);
    let took = stage.to_slack(sent, email)?;
    stage.holds(invitations == 1, "Slack", &format!("is asked to invite {email}, {took} after the alert came"))
}

fn all_done(stage: &Stage<'_>, actions: &[Action], number: usize) -> anyhow::Result<()> {
    let are_done = actions.len() == number && actions.iter().all(|action| action.status == "done");
    stage.holds(are_done, "outbox", &format!("done: {}", summary(actions)))
}

fn the<'a>(actions: &'a [Action], kind: &str) -> anyhow::Result<&'a Action> {
    actions.iter().find(|action| action.kind == kind).with_context(|| format!("no {kind} was planned"))
}
