use std::time::{Duration, Instant};

use oarlock_sandbox::{Fault, Sandbox, Service};
use serde_json::json;

use crate::{Caller, DEADLINE, sandbox, sandbox_for_wrong_calls};

const FORM: [(&str, &str); 3] = [("email", "ann@example.com"), ("team_id", "T1"), ("channel_ids", "C1")];
const INVITE: &str = "POST /admin.users.invite";

fn bot(sandbox: &Sandbox) -> Caller {
    Caller::bearer(sandbox.slack_url(), "xoxp-sandbox")
}

#[tokio::test]
async fn a_status_for_some_calls() {
    let sandbox = sandbox().await;
    let bot = bot(&sandbox);
    sandbox.slack().fail(Fault::status(429).retry_after(Duration::from_secs(7)).times(1));
    sandbox.slack().fail(Fault::slack_error("invite_limit_reached").on("POST", "/users.admin.invite"));
    let limited = bot.request(INVITE).form(&FORM).send().await.unwrap();
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].as_bytes()), (429, b"7".as_slice()));
    assert_eq!(bot.form(INVITE, &FORM).await.1, json!({ "ok": true }));
    let (status, answer) = bot.form("POST /users.admin.invite", &[("email", "bob@example.com")]).await;
    assert_eq!((status, answer), (200, json!({ "ok": false, "error": "invite_limit_reached" })));
    let worked: Vec<_> = sandbox.calls().iter().map(|call| call.worked).collect();
    assert_eq!(worked, [false, true, false]);
}

#[tokio::test]
async fn each_vendor_has_its_usual_error() {
    let sandbox = sandbox().await;
    let jira = Caller::basic(sandbox.jira_cloud_url(), "bot@acme.example", "jira-token");
    sandbox.jira_cloud().fail(Fault::status(503));
    assert!(jira.get("/rest/api/3/myself").await.1["errorMessages"].is_array());
    assert!(jira.get("/rest/servicedeskapi/info").await.1["errorMessage"].is_string());
    sandbox.jira_cloud().clear_faults();
    sandbox.jira_cloud().fail(Fault::html(502).times(1));
    let page = jira.request("GET /rest/api/3/myself").send().await.unwrap();
    assert_eq!(page.status(), 502);
    assert!(page.text().await.unwrap().starts_with("<html>"));
    sandbox.jira_cloud().fail(Fault::malformed(200).times(1));
    let broken = jira.request("GET /rest/api/3/myself").send().await.unwrap();
    assert!(broken.json::<serde_json::Value>().await.is_err());
    assert_eq!(jira.get("/rest/api/3/myself").await.0, 200);
}

#[tokio::test]
async fn a_connection_is_reset_before_the_effect_or_after() {
    let sandbox = sandbox().await;
    let (bot, slack) = (bot(&sandbox), sandbox.slack());
    slack.fail(Fault::reset().times(1));
    bot.request(INVITE).form(&FORM).send().await.unwrap_err();
    assert!(!slack.invited("ann@example.com"));
    slack.fail(Fault::effect_then_reset().times(1));
    bot.request(INVITE).form(&FORM).send().await.unwrap_err();
    assert!(slack.invited("ann@example.com"));
    let calls = sandbox.calls();
    assert!(calls.iter().all(|call| call.status.is_none() && call.finished.is_some()));
    assert_eq!(calls.iter().map(|call| call.worked).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_call_hangs_until_it_is_let_go() {
    let sandbox = sandbox().await;
    let (bot, slack) = (bot(&sandbox), sandbox.slack());
    slack.fail(Fault::hang());
    let caller = bot.clone();
    let hanging = tokio::spawn(async move { caller.form(INVITE, &FORM).await });
    sandbox.wait_for(|calls| calls.len() == 1, DEADLINE).await.unwrap();
    assert!(!hanging.is_finished() && !slack.invited("ann@example.com"));
    slack.clear_faults();
    assert_eq!(hanging.await.unwrap().1, json!({ "ok": true }));

    slack.fail(Fault::effect_then_hang());
    let caller = bot.clone();
    let form = [("email", "bob@example.com"), ("team_id", "T1"), ("channel_ids", "C1")];
    let hanging = tokio::spawn(async move { caller.form(INVITE, &form).await });
    sandbox.wait_until(|sandbox| sandbox.slack().invited("bob@example.com"), DEADLINE).await.unwrap();
    assert!(!hanging.is_finished());
    hanging.abort();
    // The caller's hanging up ends the call here too.
    sandbox.wait_for(|calls| calls[1].finished.is_some(), DEADLINE).await.unwrap();
    assert_eq!(sandbox.calls()[1].status, None);
}

#[tokio::test]
async fn a_call_that_hangs_before_its_effect_has_none_once_the_caller_is_gone() {
    let sandbox = sandbox().await;
    sandbox.slack().fail(Fault::hang());
    let caller = bot(&sandbox);
    let hanging = tokio::spawn(async move { caller.form(INVITE, &FORM).await });
    sandbox.wait_for(|calls| calls.len() == 1, DEADLINE).await.unwrap();
    hanging.abort();
    sandbox.wait_for(|calls| calls[0].finished.is_some(), DEADLINE).await.unwrap();
    sandbox.slack().clear_faults();
    assert_eq!(bot(&sandbox).form(INVITE, &FORM).await.1, json!({ "ok": true }), "nobody was invited before");
}

#[tokio::test]
async fn a_delay_and_an_answer_after_the_effect() {
    let sandbox = sandbox().await;
    let (bot, slack) = (bot(&sandbox), sandbox.slack());
    slack.fail(Fault::delay(Duration::from_millis(80)).times(1));
    let started = Instant::now();
    assert_eq!(bot.call_empty("POST /auth.test").await.0, 200);
    assert!(started.elapsed() >= Duration::from_millis(80));
    slack.fail(Fault::status(504).after_effect().times(1));
    assert_eq!(bot.form(INVITE, &FORM).await.0, 504);
    assert!(slack.invited("ann@example.com"));
}

#[tokio::test]
async fn waiting_ends_in_time_and_says_what_was_seen() {
    let sandbox = sandbox_for_wrong_calls().await;
    bot(&sandbox).call_empty("POST /auth.test").await;
    let error = sandbox.wait_for(|calls| calls.len() == 2, Duration::from_millis(20)).await.unwrap_err();
    assert!(error.to_string().contains("POST /auth.test -> 200"), "{error}");
    let joining = sandbox.clone();
    tokio::spawn(async move { joining.slack().join("ann@example.com") });
    sandbox.wait_until(|sandbox| sandbox.slack().is_member("ann@example.com"), DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_dropped_sandbox_is_gone() {
    let sandbox = sandbox_for_wrong_calls().await;
    let bot = bot(&sandbox);
    let clone = sandbox.clone();
    drop(sandbox);
    assert_eq!(bot.call_empty("POST /auth.test").await.0, 200);
    assert_eq!(clone.calls_to(Service::Slack, "POST", "/auth.test").len(), 1);
    drop(clone);
    bot.request("POST /auth.test").send().await.unwrap_err();
}
