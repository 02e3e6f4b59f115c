//! `oarlock-worker doctor` tells apart what can be wrong, for people and in JSON; it changes nothing, shows no secret, and comes
//! to its end whoever hangs.

use std::time::{Duration, Instant};

use oarlock_sandbox::{Call, Edition, Fault};
use oarlock_tests::{Database, Oarlock, Settings, WEBHOOK_SECRET};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A migrated database and the stand-ins, without programs of ours.
async fn prepared(settings: Settings) -> Oarlock {
    settings.receivers(0).workers(0).start().await
}

/// With a group and an organization to give.
fn settings() -> Settings {
    let access = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["9"],"organization":"17"}]"#;
    Settings::default().set("OARLOCK_JIRA__ACCESS", access)
}

/// What it says, in JSON; what it says to people is held to be the same.
async fn report(oarlock: &Oarlock) -> Value {
    let json = oarlock.spawn("oarlock-worker", &["doctor", "--json"]).ends().await;
    let people = oarlock.spawn("oarlock-worker", &["doctor"]).ends().await;
    let report: Value = serde_json::from_str(&json.output).expect(&json.output);
    assert_eq!(json.code, people.code);
    assert_eq!(json.code, Some(if report["ok"] == true { 0 } else { 1 }), "{report:#}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let findings = report["findings"].as_array().expect("a list");
    assert_eq!(report["ok"], findings.iter().all(|finding| finding["ok"] == true));
    let lines: Vec<&str> = people.output.lines().collect();
    assert_eq!(lines.len(), findings.len(), "a line each\n{}", people.output);
    for (line, finding) in lines.iter().zip(findings) {
        let word = if finding["ok"] == true { "ok    " } else { "FAIL  " };
        assert!(line.starts_with(&format!("{word}{}: ", name(finding))), "{line}\n{finding}");
        let is_text = |field: &str| finding[field].as_str().is_some_and(|text| !text.is_empty());
        assert!(
            if finding["ok"] == true { is_text("found") } else { is_text("problem") && is_text("remedy") },
            "{finding}"
        );
    }
    let secrets = [
        "@",
        "geheim",
        WEBHOOK_SECRET,
        oarlock_sandbox::JIRA_CLOUD_TOKEN,
        oarlock_sandbox::JIRA_DC_TOKEN,
        oarlock_sandbox::SLACK_TOKEN,
        oarlock_sandbox::PADDLE_API_KEY,
    ];
    for secret in secrets {
        assert!(!json.output.contains(secret) && !people.output.contains(secret), "{secret}\n{}", people.output);
    }
    report
}

fn name(finding: &Value) -> String {
    let subject = finding["subject"].as_str().map(|subject| format!(" {subject}"));
    format!("{}{}", finding["check"].as_str().expect("a name"), subject.unwrap_or_default())
}

fn names(report: &Value, ok: bool) -> Vec<String> {
    report["findings"].as_array().expect("a list").iter().filter(|one| one["ok"] == ok).map(name).collect()
}

/// Exactly this is wrong; returns the problem and the remedy.
async fn is_wrong(oarlock: &Oarlock, check: &str) -> (String, String) {
    let report = report(oarlock).await;
    assert_eq!(names(&report, false), [check], "{report:#}");
    let finding = report["findings"].as_array().expect("a list").iter().find(|one| one["ok"] == false);
    let text = |field: &str| finding.expect("found above")[field].as_str().expect("a text").to_owned();
    (text("problem"), text("remedy"))
}

async fn says(oarlock: &Oarlock, check: &str, problem: &str, remedy: &str) {
    let (said, to_do) = is_wrong(oarlock, check).await;
    assert!(said.contains(problem), "{problem}\n{said}");
    assert!(to_do.contains(remedy), "{remedy}\n{to_do}");
}

#[tokio::test]
async fn all_is_well() {
    let database = ["configuration", "database.connection", "database.clock", "database.migrations", "database.rights"];
    for (edition, mode, jira, slack) in [
        (Edition::Cloud, "admin_invite", &["jira.invite", "jira.change_groups"][..], &["slack.team T1"][..]),
        (Edition::DataCenter, "connect", &["jira.invite"], &[]),
        (Edition::Cloud, "legacy_invite", &["jira.invite", "jira.change_groups"], &[]),
    ] {
        let oarlock = prepared(settings().jira(edition).set("OARLOCK_SLACK__MODE", mode)).await;
        let report = report(&oarlock).await;
        let expected = [
            &database[..],
            &["jira.address", "jira.credentials", "jira.search", "jira.service_desk 3"],
            jira,
            &["jira.group commercial-support", "jira.organization 17", "slack.credentials", "slack.scopes"],
            slack,
            &["slack.channel C1", "paddle.credentials"],
        ];
        assert_eq!(names(&report, true), expected.concat(), "{report:#}");
        assert_eq!(names(&report, false), [""; 0], "{report:#}");
        let calls = oarlock.sandbox.calls();
        let is_read_only = |call: &Call| call.method == "GET" || call.is("POST", "/auth.test");
        assert!(calls.len() > 8 && calls.iter().all(is_read_only), "{calls:#?}");
    }
    let oarlock = prepared(settings().without("jira").without("slack").one_role()).await;
    assert_eq!(oarlock.spawn("oarlock-worker", &["migrate"]).ends().await.code, Some(0));
    let report = report(&oarlock).await;
    assert_eq!(names(&report, true), [&database[..], &["jira", "slack", "paddle.credentials"]].concat());
    let rights = &report["findings"][4];
    assert!(rights["found"].as_str().is_some_and(|found| found.contains("owns the tables")), "{rights}");
}

#[tokio::test]
async fn what_is_wrong_with_jira() {
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let mut oarlock = prepared(settings().jira(edition)).await;
        let (token, users, base_url) = match edition {
            Edition::Cloud => (oarlock_sandbox::JIRA_CLOUD_TOKEN, "users and groups", oarlock.sandbox.jira_cloud_url()),
            Edition::DataCenter => (oarlock_sandbox::JIRA_DC_TOKEN, "Browse users", oarlock.sandbox.jira_dc_url()),
        };
        let jira = oarlock.jira();
        jira.delete_group("commercial-support");
        says(&oarlock, "jira.group commercial-support", "", "make the group").await;
        jira.create_group("commercial-support");
        jira.delete_service_desk("3");
        says(&oarlock, "jira.service_desk 3", "no service desk 3", "jira.service_desk_id").await;
        jira.create_service_desk("3", "SUP");
        jira.set_token("another");
        says(&oarlock, "jira.credentials", "HTTP 401", "token").await;
        jira.set_token(token);
        // Not even the list of people is shown, so that who is looked for is never found.
        jira.fail(Fault::status(200).body(json!([])).on("GET", "/rest/api/*/user/search"));
        says(&oarlock, "jira.search", "found nobody", users).await;
        jira.clear_faults();
        jira.fail(Fault::status(503));
        says(&oarlock, "jira.address", "HTTP 503", "run this again later").await;
        jira.clear_faults();
        oarlock.set("OARLOCK_JIRA__BASE_URL", "http://127.0.0.1:1");
        says(&oarlock, "jira.address", "refused", "jira.base_url").await;
        oarlock.set("OARLOCK_JIRA__BASE_URL", "http://jira.invalid");
        says(&oarlock, "jira.address", "failed to connect", "name resolution").await;
        oarlock.set("OARLOCK_JIRA__BASE_URL", &base_url);
        oarlock.jira().delete_organization("17");
        says(&oarlock, "jira.organization 17", "", "correct the number").await;
    }
}

#[tokio::test]
async fn what_the_account_may_not_do_in_jira() {
    let bot = "bot@acme.example";
    let oarlock = prepared(settings()).await;
    let jira = oarlock.jira();
    jira.group("site-admins").remove_member(bot);
    says(&oarlock, "jira.change_groups", "only these may change groups", "site administrators").await;
    // What Jira does not tell is not told as wrong.
    jira.group("jira-admins-acme").remove_member(bot);
    jira.group("site-admins").add_member("ann@example.com");
    let report = report(&oarlock).await;
    let invite = report["findings"].as_array().unwrap().iter().find(|one| one["check"] == "jira.invite").unwrap();
    assert!(
        invite["ok"] == true && invite["found"].as_str().is_some_and(|found| found.contains("not proven")),
        "{invite}"
    );
    jira.group("site-admins").add_member(bot);
    let refused = || Fault::status(403);
    jira.fail(refused().on("GET", "/rest/servicedeskapi/servicedesk/3/customer"));
    says(&oarlock, "jira.invite", "lacks a permission", "administrator of the service desk's project").await;
    jira.clear_faults();
    jira.fail(refused().on("GET", "/rest/servicedeskapi/organization/17/user"));
    says(&oarlock, "jira.organization 17", "lacks a permission", "agent or administrator").await;
    jira.clear_faults();
    // As Atlassian's gateway says it; there a scope that is missing is a 401, too.
    let scope = json!({ "code": 401, "message": "Unauthorized; scope does not match" });
    jira.fail(Fault::status(401).body(scope).on("GET", "/rest/servicedeskapi/servicedesk/3"));
    says(&oarlock, "jira.service_desk 3", "scope does not match", "all the scopes of docs/setup.md").await;

    let oarlock = prepared(settings().jira(Edition::DataCenter)).await;
    oarlock.jira().group("jira-administrators").remove_member(bot);
    let report = self::report(&oarlock).await;
    assert_eq!(names(&report, false), ["jira.invite", "jira.group commercial-support"], "{report:#}");
    let remedies = report["findings"].as_array().unwrap().iter().filter_map(|finding| finding["remedy"].as_str());
    assert!(remedies.clone().count() == 2 && remedies.clone().all(|remedy| remedy.contains("Jira administrators")));
}

#[tokio::test]
async fn what_is_wrong_with_slack_and_paddle() {
    for (mode, scope, others) in [
        ("admin_invite", "admin.users:write", "admin.users:read"),
        ("connect", "conversations.connect:write", "conversations.connect:manage"),
        ("legacy_invite", "client", "identify"),
    ] {
        let oarlock = prepared(settings().without("jira").set("OARLOCK_SLACK__MODE", mode)).await;
        oarlock.slack().set_scopes(&[others]);
        says(&oarlock, "slack.scopes", scope, "").await;
        assert!(is_wrong(&oarlock, "slack.scopes").await.0.ends_with(&format!("the token has: {others}")));
        oarlock.slack().set_scopes(&[scope]);
        oarlock.slack().set_token("another");
        says(&oarlock, "slack.credentials", "invalid_auth", "slack.token").await;
    }
    let mut oarlock = prepared(settings().without("jira")).await;
    oarlock.slack().set_team("T2");
    says(&oarlock, "slack.team T1", "workspace T2", "slack.team_id").await;
    oarlock.slack().set_team("T1");
    oarlock.slack().set_token("xoxb-geheim");
    oarlock.set("OARLOCK_SLACK__TOKEN", "xoxb-geheim");
    says(&oarlock, "slack.scopes", "a bot's", "xoxp-").await;
    oarlock.slack().set_token("xoxp-geheim");
    oarlock.set("OARLOCK_SLACK__TOKEN", "xoxp-geheim");
    oarlock.set("OARLOCK_SLACK__CHANNEL_IDS", "C1,#support");
    says(&oarlock, "slack.channel #support", "not the id", "slack.channel_ids").await;
    oarlock.set("OARLOCK_SLACK__CHANNEL_IDS", "C1");
    oarlock.slack().fail(Fault::html(200));
    says(&oarlock, "slack.credentials", "no answer of Slack's API", "slack.base_url").await;
    oarlock.slack().clear_faults();
    for (code, remedy) in [("fatal_error", "slack-status.com"), ("org_login_required", "a policy of theirs")] {
        oarlock.slack().fail(Fault::slack_error(code));
        says(&oarlock, "slack.credentials", code, remedy).await;
        oarlock.slack().clear_faults();
    }
    oarlock.set("OARLOCK_SLACK__BASE_URL", "http://127.0.0.1:1");
    says(&oarlock, "slack.address", "refused", "slack.base_url").await;
    oarlock.set("OARLOCK_SLACK__BASE_URL", &oarlock.sandbox.slack_url());
    oarlock.paddle_api().set_api_key("another");
    says(&oarlock, "paddle.credentials", "forbidden", "customer.read").await;
    oarlock.set("OARLOCK_PADDLE__BILLING__API_URL", "http://127.0.0.1:1");
    says(&oarlock, "paddle.address", "refused", "paddle.billing.api_url").await;
    oarlock.set("OARLOCK_PADDLE__BILLING__API_KEY", "pdl_live_apikey_geheim");
    oarlock.set("OARLOCK_PADDLE__BILLING__API_URL", "https://sandbox-api.paddle.com");
    says(&oarlock, "paddle.credentials", "a live key", "https://api.paddle.com").await;
}

/// The way to the database, and the role it is gone as.
#[tokio::test]
async fn what_is_wrong_with_the_database() {
    let lone = || settings().without("jira").without("slack");
    let mut oarlock = prepared(lone()).await;
    let url = oarlock.database.url_as("oarlock_worker");
    oarlock.set("OARLOCK_DATABASE__URL", "postgres://oarlock:geheim@127.0.0.1:1/oarlock");
    says(&oarlock, "database.connection", "refused", "database.url").await;
    oarlock.set("OARLOCK_DATABASE__URL", &url.replace("/oarlock_test_", "/no_oarlock_test_"));
    says(&oarlock, "database.connection", "does not exist", "database.url").await;
    oarlock.set("OARLOCK_DATABASE__URL", &format!("{url}&options[default_transaction_read_only]=on"));
    says(&oarlock, "database.connection", "nothing can be written", "primary").await;

    oarlock.sets_up("create function clock_timestamp() returns timestamptz language sql as 'select pg_catalog.clock_timestamp() - interval ''1 hour'''").await;
    oarlock.set("OARLOCK_DATABASE__URL", &format!("{url}&options[search_path]=public,pg_catalog"));
    says(&oarlock, "database.clock", "ms behind this machine's", "NTP").await;
    oarlock.set("OARLOCK_DATABASE__URL", &url);
    let report = self::report(&oarlock).await;
    let clock = report["findings"][2]["found"].as_str().expect("all is well again");
    let figure: i64 = clock.split(' ').nth(3).and_then(|word| word.parse().ok()).expect(clock);
    assert!(figure < 1000, "the same machine: {clock}");

    // Behind, in whole and in part.
    oarlock.sets_up("delete from _sqlx_migrations where version = 2").await;
    says(&oarlock, "database.migrations", "1 still", "oarlock-worker migrate").await;
    let mut empty = lone().prepare(Database::create().await).await;
    says(&empty, "database.migrations", "2 still", "oarlock-worker migrate").await;
    let url = empty.database.url().to_owned();
    empty.set("OARLOCK_DATABASE__URL", &url);
    says(&empty, "database.migrations", "2 still", "oarlock-worker migrate").await;
}

/// Each right that the role is given is one that is missed when it is not there, and no other is.
#[tokio::test]
async fn each_right_that_is_missing_is_named() {
    let oarlock = prepared(settings().without("jira").without("slack")).await;
    let granted: Vec<String> = sqlx::query_scalar(
        "select lower(g.privilege_type) || ' on ' || c.relname
         from pg_class c cross join aclexplode(c.relacl) g
         where c.relnamespace = 'public'::regnamespace and g.grantee = 'oarlock_worker'::regrole
         union all
         select lower(g.privilege_type) || ' (' || string_agg(a.attname, ', ' order by a.attnum) || ') on ' || c.relname
         from pg_class c join pg_attribute a on a.attrelid = c.oid cross join aclexplode(a.attacl) g
         where c.relnamespace = 'public'::regnamespace and g.grantee = 'oarlock_worker'::regrole
         group by g.privilege_type, c.relname",
    )
    .fetch_all(oarlock.pool())
    .await
    .unwrap();
    assert!(granted.len() > 25, "{granted:?}");
    let missing = async || {
        let (problem, remedy) = is_wrong(&oarlock, "database.rights").await;
        assert!(remedy.contains("grant_to_roles()"), "{remedy}");
        let list = problem.strip_prefix("oarlock_worker may not: ").expect(&problem);
        list.split("; ").map(str::to_owned).collect::<Vec<_>>()
    };
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    oarlock.sets_up("revoke all on all tables in schema public from oarlock_worker").await;
    assert_eq!(sorted(missing().await), sorted(granted));
    oarlock.sets_up("select grant_to_roles(); revoke delete on membership from oarlock_worker; revoke update (email) on outbox from oarlock_worker").await;
    assert_eq!(missing().await, ["update (email) on outbox", "delete on membership"]);
    oarlock.sets_up("select grant_to_roles()").await;
    assert_eq!(names(&report(&oarlock).await, false), [""; 0]);
    // What cannot be seen is not what is not there.
    oarlock.sets_up("revoke usage on schema public from public, oarlock_worker").await;
    says(&oarlock, "database.rights", "in the schema public", "grant usage").await;
}

/// Everybody takes the connection and says nothing.
#[tokio::test]
async fn it_does_not_wait_for_those_who_hang() {
    let mut oarlock = prepared(settings()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let took = async |oarlock: &Oarlock, expected: &[&str]| {
        let started = Instant::now();
        let exit = oarlock.spawn("oarlock-worker", &["doctor", "--json"]).ends().await;
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        let report: Value = serde_json::from_str(&exit.output).expect(&exit.output);
        assert_eq!(names(&report, false), expected, "{report:#}");
    };
    // First those that hang once one is in, then those that hang at the door.
    oarlock.jira().fail(Fault::hang().on("GET", "/rest/api/3/group/bulk"));
    oarlock.jira().fail(Fault::hang().on("GET", "/rest/servicedeskapi/**"));
    let inside = ["jira.service_desk 3", "jira.change_groups", "jira.group commercial-support", "jira.organization 17"];
    took(&oarlock, &inside).await;
    let database = format!("postgres://oarlock@{address}/oarlock?sslmode=disable");
    oarlock.set("OARLOCK_DATABASE__URL", &database);
    for url in ["JIRA__BASE_URL", "SLACK__BASE_URL", "PADDLE__BILLING__API_URL"] {
        oarlock.set(&format!("OARLOCK_{url}"), &format!("http://{address}"));
    }
    took(&oarlock, &["database.connection", "jira.address", "slack.address", "paddle.address"]).await;
    holding.abort();
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_a_finding_too() {
    let settings = settings().set("OARLOCK_WORKER__LEASE", "1s").set("OARLOCK_JIRA__SERVICE_DESK_ID", "SUP");
    let oarlock = settings.prepare(Database::create().await).await;
    let exit = oarlock.spawn("oarlock-worker", &["doctor", "--json"]).ends().await;
    assert_eq!(exit.code, Some(2), "{}", exit.output);
    // Beside what refusing says on standard error.
    let (json, refusal): (Vec<&str>, Vec<&str>) =
        exit.output.lines().partition(|line| line.starts_with(['{', '}', ' ']));
    let report: Value = serde_json::from_str(&json.join("\n")).expect(&exit.output);
    assert_eq!(refusal.len(), 2);
    assert_eq!(names(&report, false), ["configuration", "configuration"]);
    for key in ["worker.lease", "jira.service_desk_id"] {
        let is_told = |finding: &Value| finding["problem"].as_str().is_some_and(|problem| problem.contains(key));
        assert!(report["findings"].as_array().unwrap().iter().any(is_told), "{key}\n{report:#}");
    }
}
