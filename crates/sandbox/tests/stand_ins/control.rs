use std::path::PathBuf;

use oarlock_sandbox::{Options, Sandbox};
use serde_json::{Value, json};

use crate::{Caller, sandbox_for_wrong_calls};

#[tokio::test]
async fn what_a_test_does_in_rust_can_be_done_over_http() {
    let sandbox = sandbox_for_wrong_calls().await;
    let operator = Caller::bearer(format!("{}/control", sandbox.url()), "not looked at");
    let done = async |call: &str, body: Value| {
        let (status, answer) = operator.call(call, body).await;
        assert_eq!(status, 204, "{call}: {answer}");
    };
    let ann = json!({ "email": "ann@example.com" });

    done("POST /slack/faults", json!({ "status": 503, "times": 1 })).await;
    let slack = Caller::bearer(sandbox.slack_url(), "xoxp-sandbox");
    assert_eq!(slack.call_empty("POST /auth.test").await.0, 503);
    assert_eq!(slack.call_empty("POST /auth.test").await.0, 200);
    done("POST /slack/faults", json!({ "error": "invalid_auth", "path": "/auth.test" })).await;
    assert_eq!(slack.call_empty("POST /auth.test").await.1["error"], "invalid_auth");
    assert_eq!(operator.call_empty("DELETE /slack/faults").await.0, 204);
    done("PUT /slack/token", json!({ "token": "xoxp-new" })).await;
    assert_eq!(slack.call_empty("POST /auth.test").await.1["error"], "invalid_auth");
    done("POST /slack/members", ann.clone()).await;
    assert!(sandbox.slack().is_member("ann@example.com"));

    done("PUT /jira-cloud/groups/vip", json!({})).await;
    done("POST /jira-cloud/groups/vip/members", ann.clone()).await;
    assert!(sandbox.jira_cloud().group("vip").has("ann@example.com"));
    done("POST /jira-cloud/organizations/17/members", ann.clone()).await;
    done("DELETE /jira-cloud/organizations/17/members", ann.clone()).await;
    assert!(!sandbox.jira_cloud().organization("17").has("ann@example.com"));
    done("PUT /jira-dc/settings", json!({ "lacks_permission": true, "index_lag": 1 })).await;
    done("PUT /jira-dc/token", json!({ "token": "new", "user": "robot" })).await;
    let jira = Caller::bearer(sandbox.jira_dc_url(), "new");
    assert_eq!(jira.get("/rest/api/2/myself").await.1["name"], "robot");
    done("POST /paddle/customers", json!({ "id": "ctm_1", "email": "ann@example.com" })).await;

    let (status, state) = operator.get("/state").await;
    assert_eq!(status, 200);
    assert_eq!(state["jira-cloud"]["groups"]["vip"], json!(["ann@example.com"]));
    assert_eq!(state["paddle"]["customers"]["ctm_1"], "ann@example.com");
    let (_, calls) = operator.get("/calls?since=1&service=slack").await;
    assert_eq!(calls.as_array().unwrap().len(), 3);
    assert_eq!((&calls[0]["path"], &calls[0]["status"]), (&json!("/auth.test"), &json!(200)));

    assert_eq!(operator.call("POST /slak/faults", json!({ "status": 503 })).await.0, 404);
    assert_eq!(operator.call("POST /slack/faults", json!({})).await.0, 422);
    assert_eq!(operator.call("POST /jira-cloud/groups/gone/members", ann).await.0, 404);
}

#[tokio::test]
async fn the_transcript_has_a_line_for_every_answer() {
    let path: PathBuf = std::env::temp_dir().join(format!("oarlock-transcript-{}.jsonl", std::process::id()));
    let sandbox = Sandbox::start(Options { listen: None, transcript: Some(path.clone()) }).await.unwrap();
    let slack = Caller::bearer(sandbox.slack_url(), "xoxp-sandbox");
    slack.form("POST /users.admin.invite", &[("email", "ann@example.com"), ("token", "xoxp-sandbox")]).await;
    sandbox.slack().fail(oarlock_sandbox::Fault::reset().times(1));
    slack.request("POST /auth.test").send().await.unwrap_err();
    sandbox.slack().fail(oarlock_sandbox::Fault::html(502).times(1));
    slack.get("/users.lookupByEmail?email=ann@example.com").await;
    let jira = Caller::basic(sandbox.jira_cloud_url(), "bot@acme.example", "jira-token");
    jira.get("/rest/servicedeskapi/info").await;
    Caller::bearer(sandbox.paddle_url(), "x").get("/customers/ctm_1").await;

    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = json!({
        "service": "slack", "method": "POST", "path": "/users.admin.invite", "query": {},
        "request": { "email": "ann@example.com" }, "status": 200, "response": { "ok": true },
    });
    assert_eq!(lines[0], expected, "a token is nobody's business");
    assert_eq!(lines[1]["query"], json!({ "email": "ann@example.com" }));
    assert_eq!((&lines[1]["status"], &lines[1]["response"]), (&json!(502), &Value::Null));
    assert_eq!((&lines[2]["service"], &lines[2]["path"]), (&json!("jsm-cloud"), &json!("/rest/servicedeskapi/info")));
    assert_eq!(lines.len(), 3);
    assert!(!text.contains("xoxp-sandbox"));
}
