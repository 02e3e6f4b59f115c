use oarlock_sandbox::{Invitation, Sandbox};
use serde_json::{Value, json};

use crate::{Caller, sandbox, sandbox_for_wrong_calls};

const DESK: &str = "/rest/servicedeskapi/servicedesk/3";

fn bot(sandbox: &Sandbox) -> Caller {
    Caller::basic(sandbox.jira_cloud_url(), "bot@acme.example", "jira-token")
}

async fn invite(bot: &Caller, email: &str) -> (u16, Value) {
    let call = format!("POST {DESK}/customer/invite?strictConflictStatusCode=true");
    bot.call(&call, json!({ "email": email, "displayName": "Ann" })).await
}

async fn group_id(bot: &Caller) -> String {
    let (status, page) = bot.get("/rest/api/3/group/bulk?groupName=commercial-support").await;
    assert_eq!(status, 200);
    page["values"][0]["groupId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_customer_comes_and_goes() {
    let sandbox = sandbox().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_cloud());

    let (status, ann) = invite(&bot, "ann@example.com").await;
    assert_eq!(status, 201);
    let id = ann["accountId"].as_str().unwrap();
    assert!(id.starts_with("qm:"), "{id}");
    assert!(jira.service_desk("3").has("ann@example.com"));
    let expected = Invitation { email: "ann@example.com".to_owned(), service_desk: "3".to_owned() };
    assert_eq!(jira.invitations(), [expected]);
    assert_eq!(invite(&bot, "ANN@example.com").await.0, 409);
    assert_eq!(jira.invited("ann@example.com"), 1);

    let (status, found) = bot.get("/rest/api/3/user/search?query=ann@example.com&maxResults=50").await;
    assert_eq!((status, found[0]["accountId"].as_str()), (200, Some(id)));

    let group = group_id(&bot).await;
    let add = format!("POST /rest/api/3/group/user?groupId={group}");
    assert_eq!(bot.call(&add, json!({ "accountId": id })).await.0, 201);
    assert!(jira.group("commercial-support").has("ann@example.com"));
    let (status, refusal) = bot.call(&add, json!({ "accountId": id })).await;
    assert_eq!(status, 400);
    assert_eq!(refusal["errorMessages"][0], "Cannot add user. User is already a member of '{1}'");

    let (_, groups) = bot.get(&format!("/rest/api/3/user/groups?accountId={id}")).await;
    assert_eq!(groups[0]["name"], "commercial-support");
    let (_, members) = bot.get(&format!("/rest/api/3/group/member?groupId={group}")).await;
    assert_eq!(members["values"][0]["accountId"], id);

    let remove = format!("DELETE /rest/api/3/group/user?groupId={group}&accountId={id}");
    assert_eq!(bot.call_empty(&remove).await.0, 200);
    assert!(!jira.group("commercial-support").has("ann@example.com"));
    assert_eq!(bot.call_empty(&remove).await.0, 404);
    jira.set_absent_member_status(400);
    assert_eq!(bot.call_empty(&remove).await.0, 400);
}

#[tokio::test]
async fn every_other_operation_works() {
    let sandbox = sandbox().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_cloud());
    let (_, myself) = bot.get("/rest/api/3/myself").await;
    assert_eq!(myself["emailAddress"], "bot@acme.example");
    assert_eq!(bot.get("/rest/api/3/serverInfo").await.1["deploymentType"], "Cloud");
    assert_eq!(bot.get("/rest/servicedeskapi/info").await.0, 200);
    assert_eq!(bot.get("/rest/servicedeskapi/servicedesk").await.1["values"][0]["projectKey"], "SUP");
    assert_eq!(bot.get("/rest/servicedeskapi/servicedesk/SUP").await.1["id"], "3");
    assert_eq!(bot.get("/rest/servicedeskapi/servicedesk/4").await.0, 404);

    let customer = json!({ "email": "ann@example.com", "displayName": "Ann" });
    let (status, ann) = bot.call("POST /rest/servicedeskapi/customer", customer.clone()).await;
    assert_eq!(status, 201);
    assert_eq!(
        bot.call("POST /rest/servicedeskapi/customer", customer).await.0,
        400,
        "409 is for those who ask for it"
    );
    assert!(!jira.service_desk("3").has("ann@example.com"));
    let ids = json!({ "accountIds": [ann["accountId"]] });
    let id = ann["accountId"].as_str().unwrap();
    assert_eq!(bot.get(&format!("/rest/api/3/user?accountId={id}")).await.1["accountType"], "customer");
    assert_eq!(bot.get("/rest/api/3/user?accountId=nobody").await.0, 404);

    for _ in 0..2 {
        assert_eq!(bot.call(&format!("POST {DESK}/customer"), ids.clone()).await.0, 204);
        assert_eq!(bot.get(&format!("{DESK}/customer?query=ann&start=0&limit=10")).await.1["size"], 1);
    }
    let with_nobody = json!({ "accountIds": ["nobody"] });
    assert_eq!(bot.call(&format!("POST {DESK}/customer"), with_nobody.clone()).await.0, 400);
    jira.set_open_access("3", true);
    assert_eq!(bot.call(&format!("DELETE {DESK}/customer"), ids.clone()).await.0, 400);
    jira.set_open_access("3", false);
    for _ in 0..2 {
        assert_eq!(bot.call(&format!("DELETE {DESK}/customer"), ids.clone()).await.0, 204);
        assert!(!jira.service_desk("3").has("ann@example.com"));
    }

    let organization = "/rest/servicedeskapi/organization";
    for _ in 0..2 {
        assert_eq!(bot.call(&format!("POST {organization}/17/user"), ids.clone()).await.0, 204);
        assert!(jira.organization("17").has("ann@example.com"));
    }
    assert_eq!(bot.call(&format!("POST {organization}/17/user"), with_nobody).await.0, 400);
    assert_eq!(bot.call(&format!("POST {organization}/18/user"), ids.clone()).await.0, 404);
    let (_, page) = bot.get(&format!("{organization}/17/user?start=0&limit=50")).await;
    assert_eq!(page["values"][0]["emailAddress"], "ann@example.com");
    let (_, page) = bot.get(&format!("{organization}?accountId={id}")).await;
    assert_eq!(page["values"][0]["id"], "17");
    assert_eq!(bot.get(&format!("{organization}/17")).await.1["id"], "17");
    for _ in 0..2 {
        assert_eq!(bot.call(&format!("DELETE {organization}/17/user"), ids.clone()).await.0, 204);
        assert!(!jira.organization("17").has("ann@example.com"));
    }
    let (status, new) = bot.call(&format!("POST {organization}"), json!({ "name": "Rowers" })).await;
    assert_eq!(status, 201);
    assert_eq!(bot.call(&format!("POST {organization}"), json!({ "name": "Rowers" })).await.1["id"], new["id"]);
}

#[tokio::test]
async fn a_hidden_address_is_found_and_not_shown() {
    let sandbox = sandbox().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_cloud());
    invite(&bot, "ann@example.com").await;
    jira.create_account("ann@example.com.au", "Somebody Else");
    jira.hide_email("ann@example.com");
    let (_, found) = bot.get("/rest/api/3/user/search?query=ann@example.com").await;
    let emails: Vec<_> = found.as_array().unwrap().iter().map(|user| user["emailAddress"].as_str()).collect();
    assert_eq!(emails.len(), 2, "the other address begins with this one");
    assert!(emails.contains(&None) && emails.contains(&Some("ann@example.com.au")), "{emails:?}");
}

#[tokio::test]
async fn a_new_account_is_found_late() {
    let sandbox = sandbox().await;
    let bot = bot(&sandbox);
    sandbox.jira_cloud().set_index_lag(2);
    invite(&bot, "ann@example.com").await;
    for expected in [0, 0, 1] {
        let (_, found) = bot.get("/rest/api/3/user/search?query=ann@example.com").await;
        assert_eq!(found.as_array().unwrap().len(), expected);
    }
}

#[tokio::test]
async fn pages() {
    let sandbox = sandbox().await;
    let bot = bot(&sandbox);
    let group = group_id(&bot).await;
    for number in 0..5 {
        sandbox.jira_cloud().group("commercial-support").add_member(&format!("ann{number}@example.com"));
    }
    let page = |start| {
        let bot = &bot;
        let path = format!("/rest/api/3/group/member?groupId={group}&startAt={start}&maxResults=3");
        async move { bot.get(&path).await.1 }
    };
    let (first, second) = (page(0).await, page(3).await);
    assert_eq!((first["values"].as_array().unwrap().len(), &first["isLast"]), (3, &json!(false)));
    assert_eq!((second["values"].as_array().unwrap().len(), &second["isLast"]), (2, &json!(true)));
}

#[tokio::test]
async fn who_may_not_call() {
    let sandbox = sandbox().await;
    let jira = sandbox.jira_cloud();
    for wrong in [
        Caller::basic(sandbox.jira_cloud_url(), "bot@acme.example", "old-token"),
        Caller::basic(sandbox.jira_cloud_url(), "someone@acme.example", "jira-token"),
        Caller::bearer(sandbox.jira_cloud_url(), "jira-token"),
    ] {
        assert_eq!(wrong.get("/rest/api/3/myself").await.0, 401);
        assert!(wrong.get("/rest/servicedeskapi/organization").await.1["errorMessage"].is_string());
    }
    jira.set_token("new-token");
    assert_eq!(bot(&sandbox).get("/rest/api/3/myself").await.0, 401);
    let bot = Caller::basic(sandbox.jira_cloud_url(), "bot@acme.example", "new-token");
    assert_eq!(bot.get("/rest/api/3/myself").await.0, 200);

    jira.lack_permission(true);
    assert_eq!(invite(&bot, "ann@example.com").await.0, 403);
    assert_eq!(bot.get("/rest/api/3/group/bulk").await.0, 403);
    let (status, found) = bot.get("/rest/api/3/user/search?query=bot").await;
    assert_eq!((status, found), (200, json!([])), "an empty list may mean no permission");
    assert!(jira.invitations().is_empty());
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let sandbox = sandbox_for_wrong_calls().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_cloud());
    let group = group_id(&bot).await;
    let id = jira.create_account("ann@example.com", "Ann");
    let check = async |call: &str, body: Value, expected: u16| {
        let (status, answer) = bot.call(call, body).await;
        assert_eq!(status, expected, "{call}: {answer}");
    };
    let add = format!("POST /rest/api/3/group/user?groupId={group}");
    check(&add, json!({ "name": "ann" }), 400).await;
    check(&add, json!({}), 400).await;
    check(&add, json!({ "accountId": "nobody" }), 404).await;
    check(&format!("{add}&groupname=commercial-support"), json!({ "accountId": id }), 400).await;
    check("POST /rest/api/3/group/user", json!({ "accountId": id }), 400).await;
    check("POST /rest/api/3/group/user?groupId=gone", json!({ "accountId": id }), 404).await;
    check("POST /rest/api/3/group/usr?groupId=gone", json!({ "accountId": id }), 404).await;

    let invite = format!("POST {DESK}/customer/invite");
    check(&invite, json!({ "email": "bob@example.com" }), 400).await;
    check(&invite, json!({ "email": "bob@example.com", "displayName": "" }), 400).await;
    check(&invite, json!({ "email": "bob@example.com", "fullName": "Bob" }), 400).await;
    check(&invite, json!({ "email": "bob", "displayName": "Bob" }), 400).await;
    check(&invite, json!({ "emails": ["bob@example.com"] }), 400).await;
    let by_key = "POST /rest/servicedeskapi/servicedesk/SUP/customer/invite";
    check(by_key, json!({ "email": "bob@example.com", "displayName": "Bob" }), 404).await;
    check(&format!("POST {DESK}/customer"), json!({ "usernames": ["ann"] }), 400).await;
    check("POST /rest/servicedeskapi/organization/17/user", json!({ "accountIds": [] }), 400).await;

    let remove = format!("DELETE /rest/api/3/group/user?groupId={group}");
    assert_eq!(bot.call_empty(&format!("{remove}&username=ann")).await.0, 400);
    assert_eq!(bot.call_empty(&remove).await.0, 400);
    assert_eq!(bot.get("/rest/api/3/user/search?username=ann").await.0, 400);
    assert_eq!(bot.form(&invite, &[("email", "bob@example.com"), ("displayName", "Bob")]).await.0, 415);

    let shy = reqwest::Client::new().get(format!("{}{DESK}/customer", bot.base));
    let (status, _) = crate::answer(shy.header("Authorization", &bot.authorization)).await;
    assert_eq!(status, 412, "an experimental operation wants to be asked for");
    assert!(jira.invitations().is_empty() && !jira.group("commercial-support").has("ann@example.com"));
}

#[tokio::test]
async fn customers_of_a_restricted_portal_stay_out_of_groups() {
    let sandbox = sandbox().await;
    let (bot, jira) = (bot(&sandbox), sandbox.jira_cloud());
    jira.restrict_portal_access(true);
    let (_, ann) = invite(&bot, "ann@example.com").await;
    let add = format!("POST /rest/api/3/group/user?groupId={}", group_id(&bot).await);
    assert_eq!(bot.call(&add, json!({ "accountId": ann["accountId"] })).await.0, 400);
    let colleague = jira.create_account("joe@acme.example", "Joe");
    assert_eq!(bot.call(&add, json!({ "accountId": colleague })).await.0, 201);
}
