//! docs/runbook.md: every block of SQL is executed in the state that its section is about, by the role it is for, and what it
//! shows and does is checked.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use chrono::{Duration as Span, Utc};
use oarlock_sandbox::paddle::{Billing, Classic};
use oarlock_sandbox::{Fault, Service};
use oarlock_tests::{Oarlock, PATIENCE, Settings};
use sqlx::{AssertSqlSafe, Column, Connection, PgConnection, Row};

const ANN: &str = "ann@example.com";
const BOB: &str = "bob@example.com";

macro_rules! sections {
    ($($heading:literal => $lived:ident),+ $(,)?) => {
        mod section {
            $(#[tokio::test]
            async fn $lived() {
                let mut section = super::Section::open($heading);
                super::$lived(&mut section).await;
                assert!(section.blocks.is_empty(), "not executed: {:#?}", section.blocks);
            })+
        }

        #[test]
        fn every_section_is_lived_through() {
            let with_sql: Vec<String> = headings().into_iter().filter(|heading| !Section::open(heading).blocks.is_empty()).collect();
            assert_eq!(with_sql, [$($heading),+]);
        }
    };
}

sections! {
    "Customer paid, no access" => customer_paid_no_access,
    "Alerts are not planned" => alerts_are_not_planned,
    "Slack was down" => slack_was_down,
    "Token expired" => token_expired,
    "Who is in that should not be" => who_is_in_that_should_not_be,
    "Replay yesterday's" => replay_yesterdays,
    "Forget this customer" => forget_this_customer,
    "Pause Jira for maintenance" => pause_jira_for_maintenance,
    "Postgres failed over" => postgres_failed_over,
    "Key rotation" => key_rotation,
    "Paddle is refused" => paddle_is_refused,
    "No alerts arrive" => no_alerts_arrive,
    "Table sizes" => table_sizes,
}

async fn customer_paid_no_access(section: &mut Section) {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    // Paddle knows no such customer.
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock.settles().await;
    group.remove_member(ANN);
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'paddle'").await;

    let [access, subscriptions, actions, paused] = section.run(&oarlock).await;
    assert_eq!(access.column("paid"), ["t"]);
    assert_eq!(access.column("wanted"), ["{group:commercial-support}"]);
    assert_eq!(access.column("given"), access.column("wanted"));
    assert_eq!((subscriptions.column("subscription_id"), subscriptions.column("status")), (vec!["1"], vec!["active"]));
    assert_eq!(actions.rows_with("kind", "slack_invite").column("status"), ["dead"]);
    assert!(actions.rows_with("status", "dead").column("last_error")[0].contains("user_disabled"));
    assert_eq!(actions.rows_with("status", "done").column("outcome"), ["granted", "invited"]);
    assert_eq!(paused.column("name"), ["paddle"]);

    let [without_address] = section.run(&oarlock).await;
    assert_eq!(without_address.column("alert_name"), ["subscription.created"]);
    assert!(without_address.column("last_error")[0].contains("not found"));

    oarlock.slack().clear_faults();
    let [replayed] = section.run(&oarlock).await;
    assert_eq!(replayed.column("replay"), ["1"]);
    oarlock.sees("the invitation", |sandbox| sandbox.slack().invited(ANN)).await;

    assert!(!group.has(ANN));
    let [_] = section.run(&oarlock).await;
    oarlock.sees("the customer is in", |_| group.has(ANN)).await;

    // With an account that hides.
    oarlock.settles().await;
    let [_] = section.run(&oarlock).await;
    assert_eq!(
        oarlock.value::<String>("select jira_account from customer where email = 'ann@example.com'").await,
        "ACCOUNT_ID"
    );
}

async fn alerts_are_not_planned(section: &mut Section) {
    let oarlock = Oarlock::start().await;
    let mut forgotten = oarlock.pool().begin().await.expect("the database is there");
    sqlx::query("lock table subscription_alert").execute(&mut *forgotten).await.expect("the database is there");
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    let waits = "select count(*) = 1 from pg_locks where not granted and relation = 'subscription_alert'::regclass";
    oarlock.until("the planner waits", waits).await;

    let [mut waiting, mut who] = section.run(&oarlock).await;
    let looking = async {
        while who.column("pid").is_empty() {
            [waiting, who] = section.again(&oarlock).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("it is seen to wait");
    assert_eq!(waiting.column("count"), ["1"]);
    assert_eq!(who.column("application_name"), ["oarlock-worker"]);
    let holder: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *forgotten).await.expect("the database is there");
    assert_eq!(who.column("waits_for"), [holder.to_string()]);

    assert!(oarlock.worker().metric("oarlock_oldest_unplanned_seconds").await > Some(0.0));
    forgotten.rollback().await.expect("the database is there");
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN));
    // The counts are read anew once a second.
    let told = async { while oarlock.worker().metric("oarlock_oldest_unplanned_seconds").await != Some(0.0) {} };
    assert!(tokio::time::timeout(PATIENCE, told).await.is_ok());
}

async fn slack_was_down(section: &mut Section) {
    // Retries wait for hours, and nobody looks by himself for as long.
    let oarlock = Settings::default()
        .set("OARLOCK_WORKER__RETRY_BASE", "6h")
        .set("OARLOCK_WORKER__RETRY_CAP", "6h")
        .set("OARLOCK_WORKER__POLL_INTERVAL", "1h")
        .without("jira")
        .start()
        .await;
    oarlock.slack().fail(Fault::slack_error("user_disabled").times(1));
    oarlock.slack().fail(Fault::status(503));
    oarlock.paddle_sends(&Classic::payment_succeeded(BOB)).await;
    oarlock.until("one is dead", "select count(*) = 1 from dead_letter").await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock
        .until("one waits", "select count(*) = 1 from outbox_action where status = 'pending' and attempts = 1")
        .await;
    oarlock.slack().clear_faults();

    let [look] = section.run(&oarlock).await;
    let waits = look.rows_with("status", "pending");
    assert_eq!((waits.column("count"), waits.column("attempts")), (vec!["1"], vec!["1"]));
    assert!(waits.column("an_error")[0].contains("503"));
    assert_eq!(look.rows_with("status", "dead").column("count"), ["1"]);

    let [_, _] = section.run(&oarlock).await;
    oarlock.sees("what waited is done", |sandbox| sandbox.slack().invited(ANN)).await;
    assert!(!oarlock.slack().invited(BOB));

    let [replayed] = section.run(&oarlock).await;
    assert_eq!(replayed.column("replay_dead_letters"), ["1"]);
    oarlock.sees("what gave up is done", |sandbox| sandbox.slack().invited(BOB)).await;

    let [_] = section.run(&oarlock).await;
    assert_eq!(oarlock.value::<i32>("select actions_per_minute from destination where name = 'slack'").await, 60);

    oarlock.sql("update destination set paused_until = 'infinity' where name = 'slack'").await;
    oarlock.paddle_sends(&Classic::payment_succeeded("eve@example.com")).await;
    oarlock.until("it waits", "select count(*) = 1 from outbox_action where status = 'pending'").await;
    let [_] = section.run(&oarlock).await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status <> 'done'").await, 0);
}

async fn token_expired(section: &mut Section) {
    let oarlock = Oarlock::start().await;
    oarlock.jira().set_token("another");
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock
        .until("it stands back", "select count(*) = 1 from outbox_action where setbacks = 1 and status = 'pending'")
        .await;
    oarlock.jira().set_token(oarlock_sandbox::JIRA_CLOUD_TOKEN);

    let [paused, waiting] = section.run(&oarlock).await;
    assert_eq!((paused.column("name"), paused.column("failures")), (vec!["jira"], vec!["1"]));
    assert!(paused.column("paused_reason")[0].contains("token wrong or expired"));
    assert_eq!(waiting.rows_with("destination", "jira").column("waiting"), ["1"]);

    let [_] = section.run(&oarlock).await;
    oarlock.sees("Jira is called", |sandbox| sandbox.jira_cloud().invited(ANN) == 1).await;
}

async fn who_is_in_that_should_not_be(section: &mut Section) {
    let mut oarlock =
        Settings::default().set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"old"}]"#).start().await;
    oarlock.jira().create_group("old");
    let group = |name| oarlock.sandbox.jira_cloud().group(name);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.paddle_sends(&Classic::subscription_created(BOB).subscription("2").at(Utc::now() - Span::days(1))).await;
    oarlock
        .paddle_sends(&Classic::subscription_cancelled(BOB).subscription("2").ends_at(Utc::now() + Span::days(1)))
        .await;
    oarlock.settles().await;
    assert_eq!(group("old").members(), [ANN, BOB]);
    // From now on another group is what they pay for.
    oarlock.workers.remove(0).stops().await;
    oarlock.set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"commercial-support"}]"#);
    oarlock.start_worker().await;
    oarlock
        .until("the rules are known", "select count(*) = 1 from access_rule where target = 'group:commercial-support'")
        .await;

    let [too_much] = section.run(&oarlock).await;
    assert_eq!(too_much.column("wanted"), ["{group:commercial-support}"; 2]);
    assert_eq!(too_much.column("given"), ["{group:old}"; 2]);
    let [memberships] = section.run(&oarlock).await;
    assert_eq!((memberships.column("target"), memberships.column("state")), (vec!["group:old"], vec!["given"]));
    let [later] = section.run(&oarlock).await;
    assert_eq!(later.column("email"), [BOB]);

    let [mut reconciled] = section.run(&oarlock).await;
    reconciled.0.sort();
    assert_eq!(reconciled.column("email"), [ANN, BOB]);
    oarlock.settles().await;
    let group = |name| oarlock.sandbox.jira_cloud().group(name).members();
    assert_eq!((group("old"), group("commercial-support")), (vec![], vec![ANN.to_owned(), BOB.to_owned()]));
    let [ours] = section.run(&oarlock).await;
    assert_eq!(ours.column("email"), [ANN, BOB]);

    oarlock.workers.remove(0).stops().await;
    oarlock
        .set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["*"],"group":"old"}]"#);
    oarlock.start_worker().await;
    oarlock.until("the rules are known", "select count(*) = 2 from access_rule").await;
    let [evaluated] = section.run(&oarlock).await;
    assert_eq!(evaluated.column("evaluated"), ["2"]);
    oarlock.settles().await;
    assert_eq!(oarlock.jira().group("old").members(), [ANN, BOB]);

    // Given up, and deleted in Jira before anybody was taken out.
    oarlock.workers.remove(0).stops().await;
    oarlock.set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"commercial-support"}]"#);
    oarlock.jira().delete_group("old");
    oarlock.start_worker().await;
    oarlock.until("the rules are known", "select count(*) = 1 from access_rule").await;
    oarlock.sql("select reconcile(email) from access").await;
    oarlock.until("they are dead letters", "select count(*) = 2 from dead_letter").await;
    let [_, replayed] = section.run(&oarlock).await;
    assert_eq!(replayed.column("replay_dead_letters"), ["2"]);
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);

    // Gone on as somebody who hides it.
    oarlock.jira().hide_email(ANN);
    for (method, path) in
        [("DELETE", "/rest/api/3/group/user"), ("GET", "/rest/api/3/user/groups"), ("GET", "/rest/api/3/user")]
    {
        oarlock.jira().fail(Fault::status(404).on(method, path));
    }
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
    let in_its_place = "select count(*) = 1 from dead_letter where last_error like '%come in its place%'";
    oarlock.until("it is a dead letter", in_its_place).await;
    oarlock.jira().clear_faults();
    oarlock.jira().group("commercial-support").remove_member(ANN);
    let [_, replayed] = section.run(&oarlock).await;
    assert_eq!(replayed.column("replay_dead_letters"), ["1"]);
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
    oarlock.jira().show_email(ANN);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("3")).await;
    oarlock.settles().await;

    // Renamed.
    oarlock.workers.remove(0).stops().await;
    oarlock.jira().create_group("new");
    for who in [ANN, BOB] {
        oarlock.jira().group("new").add_member(who);
    }
    oarlock.jira().delete_group("commercial-support");
    oarlock.set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"new"}]"#);
    let [_] = section.run(&oarlock).await;
    oarlock.start_worker().await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("3").ended()).await;
    oarlock.settles().await;
    assert_eq!(oarlock.jira().group("new").members(), [BOB], "{}", oarlock.outbox().await);
}

async fn replay_yesterdays(section: &mut Section) {
    let oarlock = Settings::default().without("jira").start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::payment_succeeded(BOB)).await;
    oarlock.settles().await;
    oarlock.slack().clear_faults();
    oarlock.time_passes(Span::days(1)).await;
    oarlock.paddle_sends(&Classic::payment_succeeded("eve@example.com")).await;
    oarlock.settles().await;

    let [look] = section.run(&oarlock).await;
    assert_eq!((look.column("status"), look.column("count")), (vec!["dead", "done"], vec!["1", "1"]));
    let calls = || oarlock.sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").len();
    let before = calls();

    let [dead] = section.run(&oarlock).await;
    assert_eq!(dead.column("replayed"), ["1"]);
    oarlock.settles().await;
    assert!(oarlock.slack().invited(BOB));
    assert_eq!(calls(), before + 1);

    let [all] = section.run(&oarlock).await;
    assert_eq!(all.column("replayed"), ["2"]);
    oarlock.settles().await;
    assert_eq!(calls(), before + 3, "yesterday's two, and not today's");
}

async fn forget_this_customer(section: &mut Section) {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    let then = Utc::now() - Span::hours(1);
    let created = Classic::subscription_created("ann@old.example.com").subscription("1").at(then);
    oarlock.paddle_sends(&created).await;
    // Invited at the old address: what has not begun by then would follow to the new one.
    oarlock.settles().await;
    oarlock
        .paddle_sends(&Classic::update_audience_member("ann@old.example.com", ANN).at(then + Span::minutes(1)))
        .await;
    oarlock.settles().await;
    oarlock.paddle_sends(&Classic::subscription_created(BOB).subscription("2")).await;
    let cancelled = Classic::subscription_cancelled(ANN).subscription("1").ends_at(Utc::now() + Span::days(20));
    oarlock.paddle_sends(&cancelled).await;
    oarlock.settles().await;
    // One that is dead, and one that waits for the end of what was paid.
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    oarlock.slack().clear_faults();
    assert_eq!(group.members(), [ANN, BOB]);
    let history = "select string_agg(concat_ws(' ', source, alert_id, alert_name, subscription_id, received_at), ', ' order by id) from outbox";
    let before: String = oarlock.value(history).await;

    let [changes, under_other_addresses] = section.run(&oarlock).await;
    assert_eq!(changes.column("old_email"), ["ann@old.example.com"]);
    assert_eq!(under_other_addresses.column("email").len(), 2);

    let [forgotten] = section.run(&oarlock).await;
    assert_eq!(forgotten.column("forget"), ["access is being taken away; run this again when it is"]);
    oarlock.sees("the customer is out", |_| group.members() == [BOB]).await;
    oarlock.settles().await;
    let [forgotten] = section.again(&oarlock).await;
    assert_eq!(forgotten.column("forget"), ["forgotten: 4 alerts, 6 actions"], "{}", oarlock.outbox().await);

    let [alerts, actions, access] = section.run(&oarlock).await;
    for count in [alerts, actions, access] {
        assert_eq!(count.column("count"), ["0"]);
    }
    assert_eq!(traces(&oarlock, ANN).await, NOWHERE);
    // What stays: the history, and that a repeat is one.
    let after: String = oarlock.value(history).await;
    assert!(after.starts_with(&before), "{before}\n{after}");
    oarlock.paddle_sends(&cancelled).await;
    assert_eq!(
        oarlock
            .receiver()
            .metric(
                "oarlock_alerts_total{alert_name=\"subscription_cancelled\",result=\"repeated\",source=\"classic\"}"
            )
            .await,
        Some(1.0)
    );
    // Whatever is replayed, nobody is called about who is forgotten; the others are as they were.
    let calls = oarlock.sandbox.calls().len();
    oarlock
        .sql("update outbox_action set status = 'pending' where status <> 'pending' and email like 'forgotten-%'")
        .await;
    oarlock.sql("select replay(id) from outbox where email like 'forgotten-%'").await;
    oarlock.settles().await;
    assert_eq!(oarlock.sandbox.calls().len(), calls, "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
    assert_eq!(oarlock.value::<i64>("select count(*) from dead_letter").await, 0);
    assert_eq!(group.members(), [BOB]);
}

async fn pause_jira_for_maintenance(section: &mut Section) {
    let oarlock = Oarlock::start().await;
    let [_] = section.run(&oarlock).await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.sees("Slack is called", |sandbox| sandbox.slack().invited(ANN)).await;
    oarlock.until("Slack is recorded", "select count(*) = 1 from outbox_action where status = 'done'").await;

    let [look] = section.run(&oarlock).await;
    assert_eq!((look.column("running"), look.column("waiting")), (vec!["0"], vec!["1"]));
    assert_eq!(look.column("paused_reason"), ["maintenance"]);
    assert!(oarlock.sandbox.calls().iter().all(|call| call.service == Service::Slack));

    let [_] = section.run(&oarlock).await;
    oarlock.sees("Jira is called", |sandbox| sandbox.jira_cloud().invited(ANN) == 1).await;
}

async fn postgres_failed_over(section: &mut Section) {
    let mut oarlock = Settings::default()
        .set("OARLOCK_WORKER__LEASE", "4s")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "3s")
        .without("slack")
        .start()
        .await;
    let group = |oarlock: &Oarlock| oarlock.jira().group("commercial-support").members();
    // Given by us, as the record would say that is lost.
    oarlock.jira().create_account(ANN, "Ann");
    oarlock.jira().group("commercial-support").add_member(ANN);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    // In the middle of another customer's the worker is cut off, and a while later the database.
    oarlock.jira().fail(Fault::hang());
    oarlock.paddle_sends(&Classic::payment_succeeded(BOB)).await;
    oarlock
        .until(
            "one is running",
            "select count(*) = 1 from outbox_action where destination = 'jira' and status = 'running'",
        )
        .await;
    oarlock.workers.remove(0).dies().await;
    oarlock.database.goes_away().await;
    oarlock.database.comes_back().await;
    oarlock
        .until(
            "its lease is over",
            "select count(*) = 1 from outbox_action where status = 'running' and run_at <= now()",
        )
        .await;
    oarlock.receiver().ready().await;

    let [server, connected, overdue, newest] = section.run(&oarlock).await;
    assert_eq!((server.column("standby"), server.column("read_only")), (vec!["f"], vec!["off"]));
    assert!(!server.column("up")[0].is_empty());
    assert!(connected.column("application_name").contains(&"oarlock-receiver"));
    assert_eq!((overdue.column("destination"), overdue.column("overdue")), (vec!["jira"], vec!["1"]));
    assert_eq!(newest.column("source"), ["classic"]);

    let [found] = section.run(&oarlock).await;
    assert_eq!(found.column("email"), [ANN]);
    let [_] = section.run(&oarlock).await;
    oarlock.jira().clear_faults();
    oarlock.start_worker().await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
    oarlock.sees("the customer is out", |_| group(&oarlock).is_empty()).await;
    oarlock.settles().await;
    assert_eq!(oarlock.jira().invited(BOB), 1);
}

async fn key_rotation(section: &mut Section) {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    let [look] = section.run(&oarlock).await;
    assert_eq!((look.column("source"), look.column("alerts")), (vec!["classic"], vec!["1"]));
    assert!(!look.column("newest")[0].is_empty());
}

async fn paddle_is_refused(section: &mut Section) {
    let oarlock = Settings::default().set("OARLOCK_RECEIVER__ACK_TIMEOUT", "300ms").workers(0).start().await;
    let forged = Classic::payment_succeeded(ANN).with_signature("AAAA");
    assert_eq!(oarlock.posts(&forged).await.status, 403);
    let reason = "the signature is not by any of the configured keys";
    assert!(runbook().contains(&format!("| {reason} |")));
    oarlock.receiver().says("why", |line| line["reason"].as_str().is_some_and(|said| said.starts_with(reason))).await;
    let unsigned =
        reqwest::Client::new().post(oarlock.webhook()).form(&[("x", "1")]).send().await.expect("the receiver answers");
    assert_eq!(unsigned.status(), 403);

    let mut forgotten = oarlock.pool().begin().await.expect("the database is there");
    sqlx::query("lock table outbox in access exclusive mode")
        .execute(&mut *forgotten)
        .await
        .expect("the database is there");
    let alert = Classic::payment_succeeded(ANN).at(Utc::now() - Span::hours(2));
    assert_eq!(oarlock.posts(&alert.signed_by(&oarlock.signer)).await.status, 503);

    let [server] = section.run(&oarlock).await;
    assert_eq!((server.column("standby"), server.column("read_only")), (vec!["f"], vec!["off"]));
    forgotten.rollback().await.expect("the database is there");
    oarlock.paddle_sends(&alert).await;
    oarlock.paddle_sends(&Classic::payment_succeeded(BOB)).await;
    let [late] = section.run(&oarlock).await;
    assert_eq!(late.column("alert_id"), [alert.id()]);
    assert!(late.column("late")[0].starts_with("02:00:"));
}

async fn no_alerts_arrive(section: &mut Section) {
    let oarlock = Settings::default().workers(0).start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.time_passes(Span::days(2)).await;
    oarlock.paddle_sends(&Classic::payment_succeeded(BOB)).await;
    let [look] = section.run(&oarlock).await;
    assert_eq!(
        (look.column("source"), look.column("last_day"), look.column("usual")),
        (vec!["classic"], vec!["1"], vec!["0.3"])
    );
    assert!(!look.column("newest")[0].is_empty());
}

async fn table_sizes(section: &mut Section) {
    let oarlock = Settings::default().without("jira").start().await;
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    oarlock.time_passes(Span::days(400)).await;

    let [sizes] = section.run(&oarlock).await;
    let outbox = sizes.rows_with("name", "outbox");
    assert!(outbox.column("total")[0].ends_with(" kB") && outbox.column("indexes")[0].ends_with(" kB"));
    assert_eq!(outbox.column("vacuumed"), [""]);
    let [finished] = section.run(&oarlock).await;
    assert_eq!((finished.column("status"), finished.column("count")), (vec!["dead"], vec!["1"]));

    let [ended] = section.run(&oarlock).await;
    assert_eq!(ended.column("ended"), ["1"]);
    assert_eq!(oarlock.actions().await, ["slack_invite discarded"]);
    let [_] = section.run(&oarlock).await;
    let vacuumed = "select count(last_vacuum) = 3 from pg_stat_user_tables where relname in ('outbox', 'outbox_action', 'outbox_attempt')";
    oarlock.until("they are vacuumed", vacuumed).await;
}

/// What `forget` refuses, and what is special about Billing: the address is where the customer's id leads.
#[tokio::test]
async fn who_still_pays_or_is_not_known_is_not_forgotten() {
    let oarlock = Oarlock::start().await;
    let forget = async |email: &str| {
        let forgotten = sqlx::query_scalar::<_, String>("select forget($1)").bind(email);
        forgotten.fetch_one(oarlock.database.operator()).await.map_err(|error| error.to_string())
    };
    oarlock.paddle_api().set_customer("ctm_1", ANN);
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock.billing_sends(&Billing::named("transaction.updated", "ctm_1", ANN)).await;
    oarlock.settles().await;
    assert!(forget("nn@example.com").await.unwrap_err().contains("nobody of this address is known"));
    assert!(forget(ANN).await.unwrap_err().contains("not cancelled"));
    assert!(oarlock.jira().group("commercial-support").has(ANN));

    oarlock.billing_sends(&Billing::subscription_canceled("ctm_1").subscription("sub_1")).await;
    oarlock.settles().await;
    assert!(!oarlock.jira().group("commercial-support").has(ANN));
    assert_eq!(
        forget(" Ann@Example.com ").await.unwrap(),
        "forgotten: 3 alerts, 5 actions",
        "{}",
        oarlock.outbox().await
    );
    assert_eq!(traces(&oarlock, ANN).await, NOWHERE);
    assert_eq!(traces(&oarlock, "ctm_1").await, NOWHERE);
    // Not even a look-up brings them back.
    let calls = oarlock.sandbox.calls().len();
    oarlock.sql("select replay(id) from outbox").await;
    oarlock.settles().await;
    assert_eq!(oarlock.sandbox.calls().len(), calls);
}

/// What is no address, and is in what was received from everybody, is nobody to forget.
#[tokio::test]
async fn who_is_no_address_is_not_forgotten() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").field("passthrough", "")).await;
    oarlock.settles().await;
    for forget in ["select forget('')", "select forget(null)", "select forget('active')", "select forget('ctm_1')"] {
        let refused = sqlx::query(forget).execute(oarlock.database.operator()).await.unwrap_err();
        assert!(refused.to_string().contains("give the e-mail address"), "{forget}: {refused}");
    }
    let received = "select count(*) from outbox where raw_body = ''";
    assert_eq!(sqlx::query_scalar::<_, i64>(received).fetch_one(oarlock.pool()).await.unwrap(), 0);
}

/// While something of theirs is under way the customer is not forgotten: its end would be written after it.
#[tokio::test]
async fn who_is_being_served_is_not_forgotten() {
    let oarlock = Settings::default().without("jira").start().await;
    oarlock.slack().fail(Fault::delay(Duration::from_secs(2)));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("it is under way", "select count(*) = 1 from outbox_action where status = 'running'").await;
    let forget = "select forget('ann@example.com')";
    let refused = sqlx::query(forget).execute(oarlock.database.operator()).await.unwrap_err();
    assert!(refused.to_string().contains("under way"), "{refused}");
    oarlock.settles().await;
    assert_eq!(oarlock.value::<String>(forget).await, "forgotten: 1 alerts, 1 actions");
}

const NOWHERE: [&str; 0] = [];

/// Not every alert is decoded to see whether it names somebody: none may be passed over for how it is written.
#[tokio::test]
async fn however_an_address_is_written_it_is_forgotten() {
    let oarlock = Settings::default().receivers(0).workers(0).start().await;
    oarlock
        .sets_up(
            r#"insert into outbox (id, source, alert_id, alert_name, status, to_plan, finished_at, raw_body, raw_signature, mended_payload)
            select gen_random_uuid(), source, 'n' || n, 'unknown', 'ignored', false, now(), convert_to(body, 'UTF8'), 's', mended::jsonb
            from (values
              (1, 'classic', 'alert_id=1&note=ann%40example.com', null),
              (2, 'classic', 'alert_id=2&note=+%41nn%40E%78ample.com+', null),
              (3, 'classic', 'alert_id=3&note=ann@example.com&flag', null),
              (4, 'classic', 'alert_id=4&note=?', '{"note": "ann@example.com"}'),
              (5, 'billing', '{"event_id": "n5", "data": [{"note": "ANN@example.com"}]}', null),
              (6, 'billing', '{"event_id": "n6", "data": {"note": "\u0061nn@ex\u0041mple.com"}}', null),
              (7, 'classic', 'alert_id=7&note=joann%40example.com', null),
              (8, 'billing', '{"event_id": "n8", "ann@example.com": "ann at example.com"}', null)
            ) as alert (n, source, body, mended)"#,
        )
        .await;
    let forgotten = oarlock.value::<String>("select forget('Ann@example.com')").await;
    assert_eq!(forgotten, "forgotten: 6 alerts, 0 actions");
    let left = "select string_agg(alert_id, ' ' order by alert_id) from outbox join outbox_evidence on outbox_id = id where payload <> '{}'";
    let left: String = sqlx::query_scalar(left).fetch_one(oarlock.pool()).await.expect("the query is right");
    assert_eq!(left, "n7 n8");
}

/// Tables that hold this text anywhere, also in bytes.
async fn traces(oarlock: &Oarlock, text: &str) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'",
    )
    .fetch_all(oarlock.pool())
    .await
    .expect("the query is right");
    assert!(tables.len() > 10);
    let mut found = Vec::new();
    for table in tables {
        let query = format!(
            "select exists (select from {table} t where t::text like '%' || $1 || '%' or t::text like '%' || $2 || '%')"
        );
        let hex: String = text.replace('@', "%40").bytes().map(|byte| format!("{byte:02x}")).collect();
        if sqlx::query_scalar(AssertSqlSafe(query))
            .bind(text)
            .bind(hex)
            .fetch_one(oarlock.pool())
            .await
            .expect("the query is right")
        {
            found.push(table);
        }
    }
    found
}

/// A section of the runbook, and those of its blocks that are not executed yet.
struct Section {
    blocks: VecDeque<String>,
    last: String,
}

impl Section {
    fn open(heading: &str) -> Self {
        let text = runbook();
        let after = text.split(&format!("\n## {heading}\n")).nth(1).expect("the runbook has this section");
        let section = after.split("\n## ").next().expect("there is always a first");
        let blocks =
            section.split("\n```sql\n").skip(1).map(|block| block.split("\n```").next().expect("a first").to_owned());
        Self { blocks: blocks.collect(), last: String::new() }
    }

    /// Executes the next block; returns what each of its statements shows.
    async fn run<const STATEMENTS: usize>(&mut self, oarlock: &Oarlock) -> [Shown; STATEMENTS] {
        self.last = self.blocks.pop_front().expect("the section has another block");
        self.again(oarlock).await
    }

    /// Executes the same block once more.
    async fn again<const STATEMENTS: usize>(&self, oarlock: &Oarlock) -> [Shown; STATEMENTS] {
        let role = self.last.lines().next().and_then(|line| line.strip_prefix("-- as ")).unwrap_or("oarlock_operator");
        let mut connection = PgConnection::connect(&oarlock.database.url_as(role)).await.expect("the role may connect");
        let mut shown = Vec::new();
        for statement in self.last.split_terminator(';').filter(|statement| !statement.trim().is_empty()) {
            let rows = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).fetch_all(&mut connection).await;
            let rows = rows.unwrap_or_else(|error| panic!("{error}\n{statement}"));
            let text = |row: &sqlx::postgres::PgRow| {
                let columns = row.columns().iter();
                // As text, like everything that comes of a plain statement; null is empty.
                columns
                    .map(|column| {
                        (
                            column.name().to_owned(),
                            row.get_unchecked::<Option<String>, _>(column.ordinal()).unwrap_or_default(),
                        )
                    })
                    .collect()
            };
            shown.push(Shown(rows.iter().map(text).collect()));
        }
        shown.try_into().unwrap_or_else(|shown: Vec<Shown>| panic!("{} statements\n{}", shown.len(), self.last))
    }
}

/// The rows that a statement shows: names of columns and their values.
#[derive(Debug)]
struct Shown(Vec<Vec<(String, String)>>);

impl Shown {
    #[track_caller]
    fn column(&self, name: &str) -> Vec<&str> {
        let value = |row: &'_ Vec<(String, String)>| row.iter().position(|(column, _)| column == name);
        self.0.iter().map(|row| row[value(row).unwrap_or_else(|| panic!("no {name} in {row:?}"))].1.as_str()).collect()
    }

    fn rows_with(&self, name: &str, value: &str) -> Self {
        Self(
            self.0
                .iter()
                .filter(|row| row.iter().any(|(column, held)| column == name && held == value))
                .cloned()
                .collect(),
        )
    }
}

fn runbook() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbook.md"))
        .expect("the runbook is there")
}

fn headings() -> Vec<String> {
    runbook().lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect()
}
