//! The main job: what Paddle sends ends in Jira and Slack, for both generations, both editions and all modes.

use std::path::Path;
use std::time::Duration;

use chrono::{Duration as Span, Utc};
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic, Signed};
use oarlock_sandbox::{Edition, Fault, Service};
use oarlock_tests::{Oarlock, Settings, WEBHOOK_SECRET};

const ANN: &str = "ann@example.com";

#[tokio::test]
async fn a_purchase() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded("Ann@Example.com")).await;
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await, ["jira_invite done invited", "slack_invite done invited"]);
    assert!(oarlock.jira().service_desk("3").has(ANN));
    assert!(oarlock.slack().invited(ANN));
    assert!(!oarlock.jira().group("commercial-support").has(ANN), "a purchase is no subscription");
}

/// On the way an address is part of a form, of JSON, of a query and of a path; it arrives as it was.
#[tokio::test]
async fn an_address_arrives_as_it_is() {
    let odd = [
        "o'brien+news@example.com",
        "a&b=c@example.com",
        "100%25@example.com",
        "ann#1/2?@example.com",
        "zoë@müller.example",
    ];
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let oarlock = Settings::default().jira(edition).start().await;
        for (number, email) in (1..).zip(odd) {
            let subscription = format!("{number}");
            oarlock.paddle_sends(&Classic::subscription_created(email).subscription(&subscription)).await;
        }
        oarlock.settles().await;
        let mut expected = odd.to_vec();
        expected.sort_unstable();
        assert_eq!(
            oarlock.jira().group("commercial-support").members(),
            expected,
            "{edition:?}\n{}",
            oarlock.outbox().await
        );
        for email in odd {
            assert!(
                oarlock.slack().invited(email) && oarlock.jira().service_desk("3").has(email),
                "{edition:?} {email}"
            );
        }
    }
}

#[tokio::test]
async fn a_subscription_and_its_cancellation() {
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let oarlock = Settings::default().jira(edition).start().await;
        let group = oarlock.jira().group("commercial-support");
        oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
        oarlock.settles().await;
        assert_eq!(
            oarlock.actions().await,
            ["jira_invite done invited", "jira_access done granted", "slack_invite done invited"]
        );
        assert!(oarlock.jira().service_desk("3").has(ANN) && group.has(ANN) && oarlock.slack().invited(ANN));

        oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
        oarlock.settles().await;
        assert!(!group.has(ANN), "{edition:?}\n{}", oarlock.outbox().await);
        assert_eq!(oarlock.actions().await[3], "jira_access done revoked");
    }
}

#[tokio::test]
async fn a_cancellation_with_a_date_ahead() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    let end = Utc::now() + Span::seconds(6);
    let cancelled = Classic::subscription_cancelled(ANN)
        .subscription("1")
        .field("cancellation_effective_date", &end.format("%Y-%m-%d %H:%M:%S").to_string());
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::days(1))).await;
    oarlock.paddle_sends(&cancelled).await;
    oarlock.settles().await;
    assert!(group.has(ANN) && Utc::now() < end, "what is paid for lasts until its end");
    // The removal waits where it can be seen.
    let waiting =
        "select count(*) from outbox_action where kind = 'jira_access' and status = 'pending' and run_at > now()";
    assert_eq!(oarlock.value::<i64>(waiting).await, 1);
    assert_eq!(
        oarlock.value::<String>("select status from outbox where alert_name = 'subscription_cancelled'").await,
        "pending"
    );
    oarlock.sees("the customer is out", |sandbox| !sandbox.jira_cloud().group("commercial-support").has(ANN)).await;
    let late = Utc::now() - end;
    assert!(late >= Span::seconds(-1) && late < Span::seconds(2), "out {late} after the end");
}

#[tokio::test]
async fn an_organization_for_some_plans() {
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let rules = r#"[{"plans":["7","8"],"organization":"17"},{"plans":["9"],"group":"commercial-support"}]"#;
        let oarlock = Settings::default().jira(edition).set("OARLOCK_JIRA__ACCESS", rules).start().await;
        let (organization, group) = (oarlock.jira().organization("17"), oarlock.jira().group("commercial-support"));
        oarlock
            .paddle_sends(
                &Classic::subscription_created(ANN).subscription("1").plan("7").at(Utc::now() - Span::hours(1)),
            )
            .await;
        oarlock.settles().await;
        assert!(organization.has(ANN) && !group.has(ANN), "{}", oarlock.outbox().await);
        oarlock.paddle_sends(&Classic::subscription_updated(ANN).subscription("1").plan("9").old_plan("7")).await;
        oarlock.settles().await;
        assert!(!organization.has(ANN) && group.has(ANN), "{edition:?}\n{}", oarlock.outbox().await);
    }
}

#[tokio::test]
async fn a_member_by_hand_is_neither_counted_nor_taken() {
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let oarlock = Settings::default().jira(edition).start().await;
        let group = oarlock.jira().group("commercial-support");
        group.add_member(ANN);
        oarlock
            .paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1)))
            .await;
        oarlock.settles().await;
        assert_eq!(oarlock.actions().await[1], "jira_access done unchanged");
        assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
        oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
        oarlock.settles().await;
        assert!(
            group.has(ANN),
            "{edition:?}: what the ledger did not give it does not take\n{}",
            oarlock.outbox().await
        );
    }
}

#[tokio::test]
async fn a_member_taken_out_by_hand_is_put_back_while_it_is_paid_for() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    group.add_member("bob@example.com");
    for (email, subscription) in [(ANN, "1"), ("bob@example.com", "2")] {
        oarlock
            .paddle_sends(
                &Classic::subscription_created(email).subscription(subscription).at(Utc::now() - Span::hours(1)),
            )
            .await;
        oarlock.settles().await;
        group.remove_member(email);
        oarlock
            .paddle_sends(
                &Classic::subscription_updated(email).subscription(subscription).at(Utc::now() - Span::minutes(9)),
            )
            .await;
        oarlock.settles().await;
        assert!(group.has(email), "{}", oarlock.outbox().await);
        oarlock.paddle_sends(&Classic::subscription_cancelled(email).subscription(subscription).ended()).await;
        oarlock.settles().await;
        assert!(!group.has(email), "it was ours by then\n{}", oarlock.outbox().await);
    }
}

/// An answer that never came leaves open whether the membership was there before or is ours: the intention decides.
#[tokio::test]
async fn a_membership_whose_answer_was_lost_is_still_ours() {
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let oarlock = Settings::default().jira(edition).start().await;
        let group = oarlock.jira().group("commercial-support");
        oarlock.jira().fail(Fault::effect_then_reset().on("POST", "/rest/api/*/group/user").times(1));
        oarlock
            .paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1)))
            .await;
        oarlock.settles().await;
        assert!(group.has(ANN));
        oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
        oarlock.settles().await;
        assert!(!group.has(ANN), "{edition:?}\n{}", oarlock.outbox().await);
    }
}

#[tokio::test]
async fn data_center_invites_by_its_own_page_where_configured() {
    let path = "/rest/servicedesk/1/pages/people/customers/pagination/SUP/invite";
    let oarlock = Settings::default().jira(Edition::DataCenter).set("OARLOCK_JIRA__INVITE_PATH", path).start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    assert!(oarlock.jira().service_desk("3").has(ANN));
    assert_eq!(oarlock.sandbox.calls_to(Service::JiraDataCenter, "POST", path).len(), 1, "one mail");
}

/// Each action asks the page once, however much access it is to give.
#[tokio::test]
async fn data_center_mails_once_whom_it_does_not_show() {
    let path = "/rest/servicedesk/1/pages/people/customers/pagination/SUP/invite";
    let rules = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["*"],"organization":"17"}]"#;
    let oarlock = Settings::default()
        .jira(Edition::DataCenter)
        .set("OARLOCK_JIRA__INVITE_PATH", path)
        .set("OARLOCK_JIRA__ACCESS", rules)
        .set("OARLOCK_ROUTES__SUBSCRIPTION_CREATED", "jira_access")
        .start()
        .await;
    oarlock.jira().set_index_lag(99);
    oarlock.jira().fail(Fault::status(404).on("GET", "/rest/api/2/user"));
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.until("it is dead", "select count(*) = 1 from dead_letter where attempts = 1").await;
    assert_eq!(oarlock.sandbox.calls_to(Service::JiraDataCenter, "POST", path).len(), 1, "one mail");
}

#[tokio::test]
async fn slack_in_all_modes() {
    for (mode, method) in [
        ("admin_invite", "/admin.users.invite"),
        ("connect", "/conversations.inviteShared"),
        ("legacy_invite", "/users.admin.invite"),
    ] {
        let oarlock = Settings::default().set("OARLOCK_SLACK__MODE", mode).start().await;
        oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
        oarlock.settles().await;
        assert!(oarlock.slack().invited(ANN), "{mode}\n{}", oarlock.outbox().await);
        assert_eq!(oarlock.sandbox.calls_to(Service::Slack, "POST", method).len(), 1, "{mode}");
    }
}

#[tokio::test]
async fn slack_down_keeps_nothing_else_and_repeats_nothing_else() {
    let oarlock = Oarlock::start().await;
    oarlock.slack().fail(Fault::status(503).times(3));
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock
        .until("Jira is done", "select count(*) = 2 from outbox_action where destination = 'jira' and status = 'done'")
        .await;
    let calls_to_jira =
        |oarlock: &Oarlock| oarlock.sandbox.calls().iter().filter(|call| call.service == Service::JiraCloud).count();
    let before = calls_to_jira(&oarlock);
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await[2], "slack_invite done invited");
    assert_eq!(oarlock.value::<i32>("select attempts from outbox_action where kind = 'slack_invite'").await, 4);
    assert_eq!(calls_to_jira(&oarlock), before);
    let history = "select string_agg(concat_ws(' ', attempt, http_status, error is null), ', ' order by t.id)
                   from outbox_attempt t join outbox_action a on a.id = t.action_id where kind = 'slack_invite'";
    assert_eq!(oarlock.value::<String>(history).await, "1 503 f, 2 503 f, 3 503 f, 4 200 t");
}

#[tokio::test]
async fn billing_finds_the_address_and_serves_alike() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().set_customer("ctm_01", ANN);
    let group = oarlock.jira().group("commercial-support");
    // Billing tells each change twice, in no order.
    oarlock
        .billing_sends(&Billing::subscription_activated("ctm_01").subscription("sub_1").at(Utc::now() - Span::hours(1)))
        .await;
    oarlock
        .billing_sends(&Billing::subscription_created("ctm_01").subscription("sub_1").at(Utc::now() - Span::hours(2)))
        .await;
    oarlock.settles().await;
    assert!(group.has(ANN) && oarlock.slack().invited(ANN), "{}", oarlock.outbox().await);
    assert_eq!(oarlock.slack().invitation_count(ANN), 1);
    let addresses = "select count(*) from outbox where email = 'ann@example.com' and subscription_id = 'sub_1'";
    assert_eq!(oarlock.value::<i64>(addresses).await, 2);

    // Announced only: still in. Then it ends.
    let announced = Billing::subscription_updated("ctm_01")
        .subscription("sub_1")
        .status("active")
        .scheduled_change("cancel", Utc::now());
    oarlock.billing_sends(&announced.at(Utc::now() - Span::minutes(30))).await;
    oarlock.settles().await;
    assert!(group.has(ANN));
    oarlock.billing_sends(&Billing::subscription_canceled("ctm_01").subscription("sub_1")).await;
    oarlock.settles().await;
    assert!(!group.has(ANN), "{}", oarlock.outbox().await);
    assert_eq!(oarlock.sandbox.calls_to(Service::Paddle, "GET", "/customers/ctm_01").len(), 1, "the address is kept");
}

#[tokio::test]
async fn payment_before_creation() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::subscription_payment_succeeded(ANN).subscription("1").status("active")).await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN), "it is paid for: {}", oarlock.outbox().await);
}

#[tokio::test]
async fn a_payment_for_a_subscription_that_is_not_known_yet_invites() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().set_customer("ctm_01", ANN);
    oarlock.billing_sends(&Billing::transaction_completed("ctm_01").set("/data/subscription_id", "sub_1".into())).await;
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN) && oarlock.jira().invited(ANN) == 1, "{}", oarlock.outbox().await);
}

/// A cancellation that leaves the address out still concerns whom the subscription belongs to.
#[tokio::test]
async fn an_alert_without_an_address_concerns_the_known_customer() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("8").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    oarlock.paddle_sends(&Classic::subscription_cancelled("").subscription("8").ended()).await;
    oarlock.settles().await;
    assert!(!group.has(ANN), "{}", oarlock.outbox().await);
}

/// One account, two addresses of the same person: the membership moves with the address, in whichever order the two are
/// evaluated.
#[tokio::test]
async fn an_address_changes_and_the_membership_stays() {
    for edition in [Edition::Cloud, Edition::DataCenter] {
        let oarlock = Settings::default().jira(edition).start().await;
        let group = oarlock.jira().group("commercial-support");
        oarlock
            .paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1)))
            .await;
        oarlock.settles().await;
        oarlock.jira().change_email(ANN, "ann@new.example.com");
        oarlock.paddle_sends(&Classic::update_audience_member(ANN, "ann@new.example.com")).await;
        oarlock.settles().await;
        assert!(group.has("ann@new.example.com"), "{edition:?}\n{}", oarlock.outbox().await);
        assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
        oarlock.paddle_sends(&Classic::subscription_cancelled("ann@new.example.com").subscription("1").ended()).await;
        oarlock.settles().await;
        assert!(!group.has("ann@new.example.com"), "{edition:?}\n{}", oarlock.outbox().await);
    }
}

#[tokio::test]
async fn routes_can_be_changed() {
    let oarlock = Settings::default()
        .set("OARLOCK_ROUTES__PAYMENT_SUCCEEDED", "slack_invite")
        .set("OARLOCK_ROUTES__LOCKER_PROCESSED", "jira_invite")
        .start()
        .await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.paddle_sends(&Classic::named("locker_processed", "bob@example.com")).await;
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await, ["slack_invite done invited", "jira_invite done invited"]);
}

#[tokio::test]
async fn what_is_not_configured_is_not_planned() {
    let oarlock = Settings::default().without("jira").start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.paddle_sends(&Classic::subscription_updated(ANN).subscription("1")).await;
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await, ["slack_invite done invited"]);
    assert_eq!(
        oarlock.value::<String>("select status from outbox where alert_name = 'subscription_updated'").await,
        "ignored"
    );
}

/// While nothing else is due, what is planned is claimed by the transaction that plans it: nobody has to be woken for that.
#[tokio::test]
async fn what_is_planned_is_begun_at_once() {
    let oarlock = Settings::default().without("JIRA").start().await;
    oarlock.slack().fail(Fault::hang());
    let mut begun_at_once = false;
    // A worker that has just started may have something to look for first.
    for number in 1..=10 {
        oarlock.paddle_sends(&Classic::payment_succeeded(&format!("ann{number}@example.com"))).await;
        oarlock
            .sees("the call hangs", |sandbox| {
                sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").len() == number
            })
            .await;
        // Which transaction wrote each of them as it is now.
        let written = "select a.xmin::text = o.xmin::text from outbox_action a join outbox o on o.id = a.outbox_id
                       where a.status = 'running' and a.attempts = 1 and a.claimed_by is not null order by a.id desc limit 1";
        begun_at_once |= sqlx::query_scalar::<_, bool>(written).fetch_one(oarlock.pool()).await.unwrap();
    }
    assert!(begun_at_once, "{}", oarlock.outbox().await);
}

/// After an outage a customer costs one call of a kind, however many alerts wait.
#[tokio::test]
async fn pending_actions_of_a_customer_are_done_by_one_call() {
    let oarlock = Oarlock::start().await;
    oarlock.sql("update destination set paused_until = now() + interval '1 hour', paused_reason = 'maintenance'").await;
    for number in 0..20 {
        oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription(&number.to_string())).await;
    }
    oarlock.until("all is planned", "select count(*) = 20 from outbox where not to_plan").await;
    assert!(oarlock.sandbox.calls().is_empty());
    oarlock.sql("update destination set paused_until = null").await;
    oarlock.settles().await;
    assert_eq!(oarlock.sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").len(), 1);
    assert_eq!(oarlock.sandbox.calls_to(Service::JiraCloud, "POST", "/rest/api/3/group/user").len(), 1);
    let covered = "select count(*) from outbox_action a join outbox_action l on a.outcome = 'covered by ' || l.id
                   where l.status = 'done' and l.kind = a.kind and l.email = a.email";
    assert_eq!(oarlock.value::<i64>(covered).await, 57);
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status = 'done'").await, 20);
}

/// Also when the worker has nothing else to do, and could begin the new alert's action as it is planned.
#[tokio::test]
async fn a_retry_that_waits_is_done_by_the_call_for_a_new_alert() {
    let oarlock = Settings::default()
        .without("JIRA")
        .set("OARLOCK_WORKER__RETRY_BASE", "1h")
        .set("OARLOCK_WORKER__RETRY_CAP", "6h")
        .start()
        .await;
    oarlock.slack().fail(Fault::status(500).times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("it waits", "select count(*) = 1 from outbox_action where status = 'pending' and attempts = 1").await;
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.until("Bob is served", "select count(*) = 1 from outbox_action where status = 'done'").await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    let covered = "select count(*) from outbox_action where attempts = 1 and outcome like 'covered by %'";
    assert_eq!(oarlock.value::<i64>(covered).await, 1, "{}", oarlock.outbox().await);
}

#[tokio::test]
async fn two_workers_never_serve_one_customer_at_once() {
    let oarlock = Settings::default().workers(2).start().await;
    oarlock.jira().fail(Fault::delay(Duration::from_millis(30)));
    for round in 0..30 {
        let at = Utc::now() - Span::seconds(60 - round);
        let id = (round % 3).to_string();
        let alert = if round % 2 == 0 {
            Classic::subscription_created(ANN)
        } else {
            Classic::subscription_cancelled(ANN).ended()
        };
        oarlock.paddle_sends(&alert.subscription(&id).at(at)).await;
    }
    oarlock.settles().await;
    let calls: Vec<_> = oarlock.sandbox.calls().into_iter().filter(|call| call.service == Service::JiraCloud).collect();
    assert!(calls.len() > 3);
    for pair in calls.windows(2) {
        assert!(pair[0].finished.unwrap() <= pair[1].started, "overlap: {pair:#?}");
    }
}

/// Alerts that Paddle itself signed, through the whole system.
#[tokio::test]
async fn the_genuine_alerts_end_where_they_should() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let key = std::fs::read_to_string(vectors.join("classic/subscription_created/public_key.pem")).unwrap();
    let oarlock = Settings::default().set("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", key).start().await;
    for name in
        ["subscription_created", "subscription_updated", "subscription_cancelled", "subscription_payment_succeeded"]
    {
        let body = std::fs::read(vectors.join("classic").join(name).join("body.txt")).unwrap();
        let alert = Signed { body, content_type: "application/x-www-form-urlencoded", header: None };
        assert_eq!(oarlock.posts(&alert).await.status, 200, "{name}");
    }
    // The body is Paddle's, the signature fresh: the one that was published is of 2023.
    let body = std::fs::read(vectors.join("billing/subscription.activated/body.txt")).unwrap();
    let header = BillingSigner::new(WEBHOOK_SECRET).sign(&body);
    oarlock.paddle_api().set_customer("ctm_01h84v23zmwr31xrza37s6mtwe", "otto@example.com");
    let alert = Signed { body, content_type: "application/json", header: Some(("Paddle-Signature", header)) };
    assert_eq!(oarlock.posts(&alert).await.status, 200);
    oarlock.settles().await;
    let group = oarlock.jira().group("commercial-support");
    assert!(group.has("gordon35@example.org"), "a trial\n{}", oarlock.outbox().await);
    assert!(group.has("rconnelly@example.org"), "a trial that became active");
    assert!(group.has("dietrich.karlie@example.com"), "a payment that came before the creation");
    assert!(group.has("otto@example.com"), "a Billing customer");
    assert!(!group.has("monroe84@example.com"), "a cancellation that took effect in 2020");
    assert!(oarlock.slack().invited("gordon35@example.org") && oarlock.slack().invited("otto@example.com"));
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status <> 'done'").await, 0);
}
