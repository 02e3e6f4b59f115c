use oarlock_sandbox::Sandbox;
use serde_json::{Value, json};

use crate::{Caller, sandbox, sandbox_for_wrong_calls};

const INVITE: &str = "POST /rest/servicedesk/1/pages/people/customers/pagination/SUP/invite";

fn bot(sandbox: &Sandbox) -> Caller {
    Caller::bearer(sandbox.jira_dc_url(), "jira-dc-token")
}

#[tokio::test]
async fn every_operation_works() {
    let sandbox = sandbox().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_dc());
    assert_eq!(bot.get("/rest/api/2/myself").await.1["name"], "oarlock-bot");
    assert_eq!(bot.get("/rest/api/2/serverInfo").await.1["deploymentType"], "Server");
    assert_eq!(bot.get("/rest/servicedeskapi/info").await.0, 200);
    assert_eq!(bot.get("/rest/servicedeskapi/servicedesk?start=0&limit=50").await.1["values"][0]["id"], "3");
    assert_eq!(bot.get("/rest/api/2/user?username=ann@example.com").await.0, 404);

    let customer = json!({ "email": "Ann@example.com", "fullName": "Ann" });
    let (status, ann) = bot.call("POST /rest/servicedeskapi/customer", customer.clone()).await;
    assert_eq!((status, &ann["name"]), (201, &json!("ann@example.com")));
    assert_eq!(bot.call("POST /rest/servicedeskapi/customer", customer).await.0, 400);
    assert!(jira.invitations().is_empty(), "making a customer mails nothing");
    let by_key = format!("/rest/api/2/user?key={}", ann["key"].as_str().unwrap());
    assert_eq!(bot.get(&by_key).await.1["emailAddress"], "Ann@example.com");
    assert_eq!(bot.get("/rest/api/2/user/search?username=ann@example.com").await.1[0]["name"], "ann@example.com");

    let names = json!({ "usernames": ["ann@example.com"] });
    let nobody = json!({ "usernames": ["nobody"] });
    let desk = "POST /rest/servicedeskapi/servicedesk/3/customer";
    assert_eq!(bot.call(desk, names.clone()).await.0, 204);
    assert!(jira.service_desk("3").has("ann@example.com"));
    assert_eq!(bot.call(desk, nobody.clone()).await.0, 400);
    assert_eq!(bot.call("POST /rest/servicedeskapi/servicedesk/4/customer", names.clone()).await.0, 404);

    let organization = "/rest/servicedeskapi/organization";
    assert_eq!(bot.get(organization).await.1["values"][0]["id"], "17");
    assert_eq!(bot.call(&format!("POST {organization}"), json!({ "name": "Rowers" })).await.0, 201);
    assert_eq!(bot.call(&format!("POST {organization}/17/user"), names.clone()).await.0, 204);
    assert_eq!(bot.call(&format!("POST {organization}/17/user"), nobody).await.0, 400);
    assert!(jira.organization("17").has("ann@example.com"));
    let (_, page) = bot.get(&format!("{organization}/17/user?start=0&limit=50")).await;
    assert_eq!(page["values"][0]["name"], "ann@example.com");
    assert_eq!(bot.call(&format!("DELETE {organization}/17/user"), names).await.0, 204);
    assert!(!jira.organization("17").has("ann@example.com"));

    let add = "POST /rest/api/2/group/user?groupname=commercial-support";
    let ann = json!({ "name": "ann@example.com" });
    assert_eq!(bot.call(add, ann.clone()).await.0, 201);
    assert!(jira.group("commercial-support").has("ann@example.com"));
    let (status, refusal) = bot.call(add, ann).await;
    assert_eq!(status, 400);
    assert!(refusal["errorMessages"][0].as_str().unwrap().contains("user is already a member of"));
    let (_, page) = bot.get("/rest/api/2/group/member?groupname=commercial-support").await;
    assert_eq!(page["values"][0]["name"], "ann@example.com");
    let remove = "DELETE /rest/api/2/group/user?groupname=commercial-support&username=ann@example.com";
    assert_eq!(bot.call_empty(remove).await.0, 200);
    let (status, refusal) = bot.call_empty(remove).await;
    assert_eq!(status, 400);
    assert!(refusal["errorMessages"][0].as_str().unwrap().contains("since user is not a member of"));

    let user = json!({ "name": "joe", "emailAddress": "joe@acme.example", "displayName": "Joe" });
    assert_eq!(bot.call("POST /rest/api/2/user", user.clone()).await.0, 201);
    assert_eq!(bot.call("POST /rest/api/2/user", user).await.0, 400);
}

#[tokio::test]
async fn only_the_page_mails_and_only_once() {
    let sandbox = sandbox().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_dc());
    for _ in 0..2 {
        assert_eq!(bot.call(INVITE, json!({ "emails": ["ann@example.com"] })).await.0, 200);
    }
    assert_eq!(jira.invited("ann@example.com"), 1);
    assert!(jira.service_desk("3").has("ann@example.com"));
    let other = INVITE.replace("SUP", "GONE");
    assert_eq!(bot.call(&other, json!({ "emails": ["bob@example.com"] })).await.0, 404);
}

#[tokio::test]
async fn who_may_call() {
    let sandbox = sandbox().await;
    let url = || sandbox.jira_dc_url();
    let check = async |caller: Caller, expected: u16| {
        assert_eq!(caller.get("/rest/api/2/myself").await.0, expected);
    };
    check(Caller::bearer(url(), "jira-dc-token"), 200).await;
    check(Caller::basic(url(), "oarlock-bot", "jira-dc-password"), 200).await;
    check(Caller::basic(url(), "oarlock-bot", "jira-dc-token"), 401).await;
    check(Caller::bearer(url(), "expired"), 401).await;
    sandbox.jira_dc().lack_permission(true);
    let customer = json!({ "email": "ann@example.com", "fullName": "Ann" });
    assert_eq!(bot(&sandbox).call("POST /rest/servicedeskapi/customer", customer).await.0, 403);
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let sandbox = sandbox_for_wrong_calls().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_dc());
    jira.create_account("ann@example.com", "Ann");
    let check = async |call: &str, body: Value, expected: u16| {
        let (status, answer) = bot.call(call, body).await;
        assert_eq!(status, expected, "{call}: {answer}");
    };
    check("POST /rest/servicedeskapi/customer", json!({ "email": "b@example.com", "displayName": "B" }), 400).await;
    check("POST /rest/servicedeskapi/customer", json!({ "email": "b@example.com", "fullName": "" }), 400).await;
    check("POST /rest/servicedeskapi/servicedesk/3/customer", json!({ "accountIds": ["ann@example.com"] }), 400).await;
    check("POST /rest/api/2/group/user", json!({ "name": "ann@example.com" }), 400).await;
    check("POST /rest/api/2/group/user?groupname=commercial-support", json!({ "name": "" }), 400).await;
    check("POST /rest/api/2/group/user?groupname=gone", json!({ "name": "ann@example.com" }), 404).await;
    check("POST /rest/api/2/group/user?groupname=commercial-support", json!({ "name": "nobody" }), 404).await;
    check(INVITE, json!({ "emails": ["ann"] }), 400).await;
    assert_eq!(bot.get("/rest/api/2/user/search?query=ann").await.0, 400);
    assert_eq!(bot.get("/rest/api/3/myself").await.0, 404);
    assert!(jira.invitations().is_empty());
}
