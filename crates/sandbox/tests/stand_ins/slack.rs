use oarlock_sandbox::{Sandbox, Service};
use serde_json::{Value, json};

use crate::{Caller, sandbox, sandbox_for_wrong_calls};

fn bot(sandbox: &Sandbox) -> Caller {
    Caller::bearer(sandbox.slack_url(), "xoxp-sandbox")
}

fn error(answer: &(u16, Value)) -> &str {
    assert_eq!(answer.0, 200, "Slack answers 200 whatever happens");
    assert_eq!(answer.1["ok"].as_bool(), Some(answer.1.get("error").is_none()));
    answer.1["error"].as_str().unwrap_or("ok")
}

#[tokio::test]
async fn an_invitation_to_the_workspace() {
    let sandbox = sandbox().await;
    let (bot, slack) = (bot(&sandbox), sandbox.slack());
    assert_eq!(bot.call_empty("POST /auth.test").await.1["team_id"], "T1");
    let invite = async |email: &str, team: &str, channels: &str| {
        let form = [("email", email), ("team_id", team), ("channel_ids", channels), ("resend", "false")];
        error(&bot.form("POST /admin.users.invite", &form).await).to_owned()
    };
    assert_eq!(invite("ann@example.com", "T1", "C1,C2").await, "ok");
    assert!(slack.invited("Ann@example.com"));
    assert_eq!(slack.invitations()[0].channels, ["C1", "C2"]);
    assert_eq!(invite("ann@example.com", "T1", "C1").await, "already_in_team_invited_user");
    assert_eq!(slack.invitation_count("ann@example.com"), 1);
    slack.join("ann@example.com");
    assert_eq!(invite("ann@example.com", "T1", "C1").await, "already_in_team");
    slack.deactivate("ann@example.com");
    assert_eq!(invite("ann@example.com", "T1", "C1").await, "user_disabled");
    assert_eq!(invite("ann", "T1", "C1").await, "invalid_email");
    assert_eq!(invite("bob@example.com", "T2", "C1").await, "team_not_found");
    assert_eq!(invite("bob@example.com", "T1", "C9").await, "failed_to_validate_channels");
    slack.archive_channel("C1");
    assert_eq!(invite("bob@example.com", "T1", "C1").await, "failed_to_validate_channels");

    let json = json!({ "email": "bob@example.com", "team_id": "T1", "channel_ids": "C2", "resend": true });
    for count in 1..=2 {
        assert_eq!(error(&bot.call("POST /admin.users.invite", json.clone()).await), "ok");
        assert_eq!(slack.invitation_count("bob@example.com"), count);
    }
    let recorded = sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite");
    assert_eq!(recorded[0].request.as_ref().unwrap()["resend"], json!(false), "a form has its fields' types");
}

#[tokio::test]
async fn an_invitation_to_a_shared_channel() {
    let sandbox = sandbox().await;
    let (bot, slack) = (bot(&sandbox), sandbox.slack());
    let share = async |channel: &str, emails: Value| {
        let body = json!({ "channel": channel, "emails": emails, "external_limited": true });
        bot.call("POST /conversations.inviteShared", body).await
    };
    let answer = share("C1", json!(["ann@example.com"])).await;
    assert_eq!(error(&answer), "ok");
    assert!(answer.1["invite_id"].is_string() && answer.1["is_legacy_shared_channel"] == false);
    assert_eq!(error(&share("C1", json!(["ann@example.com"])).await), "connection_limit_exceeded_pending");
    slack.join_channel("ann@example.com", "C1");
    assert_eq!(error(&share("C1", json!(["ann@example.com"])).await), "already_in_channel");
    assert_eq!(error(&share("C2", json!(["ann@example.com"])).await), "ok");
    assert_eq!(error(&share("C1", json!(["a@example.com", "b@example.com"])).await), "too_many_emails");
    assert_eq!(error(&share("C1", json!([])).await), "recipients_not_specified");
    assert_eq!(error(&share("C9", json!(["ann@example.com"])).await), "channel_not_found");
    slack.archive_channel("C1");
    assert_eq!(error(&share("C1", json!(["bob@example.com"])).await), "channel_archived");
    let form = [("channel", "C2"), ("emails", "bob@example.com")];
    assert_eq!(error(&bot.form("POST /conversations.inviteShared", &form).await), "ok");
    let (_, invites) = bot.call_empty("POST /conversations.listConnectInvites").await;
    assert_eq!(invites["invites"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn the_method_of_old() {
    let sandbox = sandbox().await;
    let bot = bot(&sandbox);
    let invite = async |email: &str, channels: &str| {
        let form = [("email", email), ("channels", channels), ("resend", "true")];
        error(&bot.form("POST /users.admin.invite", &form).await).to_owned()
    };
    assert_eq!(invite("ann@example.com", "C1").await, "ok");
    assert_eq!(invite("ann@example.com", "C1").await, "already_in_team_invited_user");
    assert_eq!(invite("bob@example.com", "C9").await, "channel_not_found");
}

#[tokio::test]
async fn people_are_looked_up() {
    let sandbox = sandbox().await;
    let (bot, slack) = (bot(&sandbox), sandbox.slack());
    let look_up = "/users.lookupByEmail?email=ann@example.com";
    assert_eq!(error(&bot.get(look_up).await), "users_not_found");
    slack.join("ann@example.com");
    let (_, found) = bot.get(look_up).await;
    let id = found["user"]["id"].as_str().unwrap();
    let (_, list) = bot.form("POST /admin.users.list", &[("team_id", "T1"), ("limit", "100")]).await;
    assert_eq!(list["users"].as_array().unwrap().len(), 2);
    let remove = [("team_id", "T1"), ("user_id", id)];
    assert_eq!(error(&bot.form("POST /admin.users.remove", &remove).await), "ok");
    assert_eq!(error(&bot.form("POST /admin.users.remove", &remove).await), "user_already_deleted");
    assert_eq!(error(&bot.get(look_up).await), "users_not_found", "deactivated people cannot be seen");
}

#[tokio::test]
async fn a_wrong_token_is_answered_200() {
    let sandbox = sandbox().await;
    assert_eq!(
        error(&Caller::bearer(sandbox.slack_url(), "xoxp-old").call_empty("POST /auth.test").await),
        "invalid_auth"
    );
    sandbox.slack().set_token("xoxb-bot");
    let bot = Caller::bearer(sandbox.slack_url(), "xoxb-bot");
    let form = [("email", "ann@example.com"), ("team_id", "T1"), ("channel_ids", "C1")];
    assert_eq!(error(&bot.form("POST /admin.users.invite", &form).await), "not_allowed_token_type");
    assert!(!sandbox.slack().invited("ann@example.com"));
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let sandbox = sandbox_for_wrong_calls().await;
    let bot = bot(&sandbox);
    let answer = bot.form("POST /admin.users.invite", &[("email", "ann@example.com")]).await;
    assert_eq!(error(&answer), "invalid_arguments");
    assert_eq!(answer.1["response_metadata"]["messages"].as_array().unwrap().len(), 2);
    assert_eq!(error(&bot.call_empty("POST /users.invite").await), "unknown_method");
    let text = bot.request("POST /admin.users.invite").header("Content-Type", "text/plain").body("email=ann");
    assert_eq!(error(&crate::answer(text).await), "invalid_post_type");
    let no_token = reqwest::Client::new().post(format!("{}/auth.test?token=xoxp-sandbox", bot.base));
    assert_eq!(error(&crate::answer(no_token).await), "not_authed");
    assert!(sandbox.slack().invitations().is_empty());
}
