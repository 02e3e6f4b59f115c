//! Access follows payment as things change and time passes: one rule at a time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::{Duration as Span, SubsecRound as _, Utc};
use oarlock_sandbox::paddle::history::{Generation, Happens, Household, Step};
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic};
use oarlock_sandbox::{Edition, Fault, Service};
use oarlock_tests::{Oarlock, Settings, WEBHOOK_SECRET};

const ANN: &str = "ann@example.com";

/// The second change of an address arrives first: it applies as soon as the first one is known.
#[tokio::test]
async fn changes_of_address_arrive_in_the_wrong_order() {
    let oarlock = Oarlock::start().await;
    let (then, group) = (Utc::now() - Span::hours(1), oarlock.jira().group("commercial-support"));
    let change =
        |old: &str, new: &str, minutes| Classic::update_audience_member(old, new).at(then + Span::minutes(minutes));
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(then)).await;
    oarlock.settles().await;
    oarlock.paddle_sends(&change("ann@b.example.com", "ann@c.example.com", 2)).await;
    oarlock.settles().await;
    oarlock.paddle_sends(&change(ANN, "ann@b.example.com", 1)).await;
    oarlock.settles().await;
    assert_eq!(group.members(), ["ann@c.example.com"], "{}", oarlock.outbox().await);
}

/// An address that had two owners in turn: each subscription follows its own, whichever change is told last.
#[tokio::test]
async fn an_address_has_another_owner_later() {
    let oarlock = Oarlock::start().await;
    let (then, shared) = (Utc::now() - Span::hours(1), "box@example.com");
    let change =
        |old: &str, new: &str, minutes| Classic::update_audience_member(old, new).at(then + Span::minutes(minutes));
    for (email, subscription) in [(ANN, "1"), ("eve@example.com", "2")] {
        oarlock.paddle_sends(&Classic::subscription_created(email).subscription(subscription).at(then)).await;
        oarlock.settles().await;
    }
    let late = change(shared, "ann@b.example.com", 2);
    for alert in
        [change(ANN, shared, 1), change("eve@example.com", shared, 3), change(shared, "eve@b.example.com", 4), late]
    {
        oarlock.paddle_sends(&alert).await;
        oarlock.settles().await;
    }
    let owners = "select string_agg(subscription_id || ' ' || email, ', ' order by subscription_id) from subscription";
    assert_eq!(oarlock.value::<String>(owners).await, "1 ann@b.example.com, 2 eve@b.example.com");
    assert_eq!(oarlock.members("group:commercial-support").len(), 2, "{}", oarlock.outbox().await);
}

/// Whatever became of the action that was to end it, what is paid for until a day ahead ends then.
#[tokio::test]
async fn an_end_that_was_not_planned_comes_all_the_same() {
    let oarlock = Oarlock::start().await;
    let end = Utc::now() + Span::days(9);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ends_at(end)).await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where due_at > now()").await, 1);
    oarlock.sets_up("delete from outbox_action where due_at > now()").await;
    oarlock.sql("select reconcile('ann@example.com')").await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where due_at > now()").await, 1);
    oarlock.sql("select reconcile('ann@example.com')").await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where due_at > now()").await, 1, "once");
    assert!(oarlock.jira().group("commercial-support").has(ANN));
    oarlock.time_passes(Span::days(9)).await;
    oarlock.settles().await;
    assert!(!oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
}

/// A group that is gone, and that no row of `jira.access` names any more, is a matter of who was in it.
#[tokio::test]
async fn a_group_that_is_given_up_holds_up_nobody() {
    let access = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["*"],"group":"old"}]"#;
    let mut oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", access).start().await;
    oarlock.jira().create_group("old");
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("old").has(ANN));
    oarlock.workers.remove(0).stops().await;
    oarlock.jira().delete_group("old");
    oarlock.set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"commercial-support"}]"#);
    oarlock.start_worker().await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
    oarlock.paddle_sends(&Classic::subscription_created("bob@example.com").subscription("2")).await;
    oarlock.settles().await;
    assert_eq!(oarlock.members("group:commercial-support"), ["bob@example.com".to_owned()].into());
    assert!(oarlock.value::<bool>("select bool_and(paused_until is null) from destination").await);
    let said: String = oarlock.value("select last_error from dead_letter").await;
    assert!(said.contains("\"old\"") && said.contains("jira.access does not name it"), "{said}");
    oarlock.sets_up("delete from membership where target = 'group:old'").await;
    oarlock.sql("select replay_dead_letters()").await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from membership where email = 'ann@example.com'").await, 0);
}

/// A Jira that is off the air, or that does not let us look, shows no group either: then nobody is told that it is gone.
#[tokio::test]
async fn a_group_that_is_given_up_is_not_taken_for_gone() {
    let access = r#"[{"plans":["*"],"group":"old"}]"#;
    let mut oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", access).start().await;
    oarlock.jira().create_group("old");
    for (email, subscription) in [(ANN, "1"), ("bob@example.com", "2")] {
        let created = Classic::subscription_created(email).subscription(subscription);
        oarlock.paddle_sends(&created.at(Utc::now() - Span::hours(1))).await;
    }
    oarlock.settles().await;
    oarlock.workers.remove(0).stops().await;
    oarlock.set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"commercial-support"}]"#);
    oarlock.start_worker().await;
    for (email, subscription) in [(ANN, "1"), ("bob@example.com", "2")] {
        match email {
            ANN => oarlock.jira().fail(Fault::html(404)),
            _ => oarlock.jira().lack_permission(true),
        }
        oarlock.paddle_sends(&Classic::subscription_cancelled(email).subscription(subscription).ended()).await;
        oarlock.until("the pause", "select paused_until > now() from destination where name = 'jira'").await;
        oarlock.jira().clear_faults();
        oarlock.jira().lack_permission(false);
        oarlock.sql("update destination set paused_until = null where name = 'jira'").await;
        oarlock.settles().await;
        assert!(!oarlock.jira().group("old").has(email), "{}", oarlock.outbox().await);
    }
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead'").await, 0);
}

/// A call that is under way has looked already, also for those that wait to share it.
#[tokio::test]
async fn who_is_reconciled_is_looked_at_anew() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    // Two evaluations, of which the second is tied to the first, which looks and then hangs.
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'jira'").await;
    for _ in 0..2 {
        oarlock.paddle_sends(&Classic::subscription_updated(ANN).subscription("1")).await;
    }
    oarlock.until("both wait", "select count(*) = 2 from outbox_action where status = 'pending'").await;
    group.remove_member(ANN);
    oarlock.jira().fail(Fault::effect_then_hang().on("POST", "/rest/api/3/group/user"));
    oarlock.sql("update destination set paused_until = null where name = 'jira'").await;
    oarlock.sees("it has acted", |_| group.has(ANN)).await;
    group.remove_member(ANN);
    oarlock.sql("select reconcile('ann@example.com')").await;
    oarlock.jira().clear_faults();
    oarlock.settles().await;
    assert!(group.has(ANN), "{}", oarlock.outbox().await);
}

/// What is paid for until a day ahead: in until then, out within two seconds after.
#[tokio::test]
async fn a_cancelled_subscription_lasts_until_its_end() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    // An alert tells whole seconds.
    let end = (Utc::now() + Span::days(30)).trunc_subsecs(0);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::days(1))).await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ends_at(end)).await;
    oarlock.settles().await;
    for _ in 0..29 {
        oarlock.time_passes(Span::days(1)).await;
        oarlock.settles().await;
        assert!(group.has(ANN), "{}", oarlock.outbox().await);
    }
    // Three seconds before the end.
    let (left, started) = (end - Utc::now() - Span::days(29) - Span::seconds(3), Instant::now());
    oarlock.time_passes(left).await;
    let (before, after) = (Duration::from_millis(2900), Duration::from_secs(5));
    oarlock.sees("the customer is out", |sandbox| !sandbox.jira_cloud().group("commercial-support").has(ANN)).await;
    let took = started.elapsed();
    assert!((before..after).contains(&took), "out {took:?} after three seconds before the end");
}

/// Between the cancellation and its end the customer buys again: the end comes, and changes nothing.
#[tokio::test]
async fn who_renews_in_between_stays() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    let now = Utc::now();
    let end = now + Span::days(30);
    for (email, subscription) in [(ANN, "1"), ("bob@example.com", "2"), ("eve@example.com", "3")] {
        oarlock
            .paddle_sends(&Classic::subscription_created(email).subscription(subscription).at(now - Span::days(1)))
            .await;
        let cancelled = Classic::subscription_cancelled(email).subscription(subscription).ends_at(end);
        oarlock.paddle_sends(&cancelled.at(now - Span::hours(1))).await;
    }
    oarlock.settles().await;
    oarlock.time_passes(Span::days(10)).await;
    // Ann buys anew, Bob's subscription is taken up again, and Eve cancels once more, for later.
    let now = Utc::now();
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("4").at(now)).await;
    oarlock
        .paddle_sends(&Classic::subscription_updated("bob@example.com").subscription("2").old_status("deleted").at(now))
        .await;
    let later = Classic::subscription_cancelled("eve@example.com").subscription("3").ends_at(end + Span::days(300));
    oarlock.paddle_sends(&later.at(now)).await;
    oarlock.settles().await;
    assert_eq!(group.members(), [ANN, "bob@example.com", "eve@example.com"], "{}", oarlock.outbox().await);
    oarlock.time_passes(Span::days(21)).await;
    oarlock.settles().await;
    assert_eq!(group.members(), [ANN, "bob@example.com"], "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
}

/// Paddle's API does not know a new customer yet, and then an alert tells the address.
#[tokio::test]
async fn an_alert_answers_the_look_up_that_found_nobody() {
    let oarlock = Oarlock::start().await;
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock.until("the look-up is dead", "select count(*) = 1 from dead_letter where kind = 'paddle_customer'").await;
    oarlock.billing_sends(&Billing::customer_created("ctm_1", ANN)).await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status = 'dead'").await, 0);
    assert_eq!(oarlock.sandbox.calls_to(Service::Paddle, "GET", "/customers/ctm_1").len(), 1, "nobody is asked again");
}

/// The same, while the look-up is under way.
#[tokio::test]
async fn an_alert_overtakes_the_look_up_that_finds_nobody() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().fail(Fault::effect_then_hang());
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock
        .sees("the look-up", |sandbox| !sandbox.calls_to(Service::Paddle, "GET", "/customers/ctm_1").is_empty())
        .await;
    oarlock.billing_sends(&Billing::customer_created("ctm_1", ANN)).await;
    oarlock.until("the address is known", "select count(*) = 1 from billing_customer").await;
    oarlock.paddle_api().clear_faults();
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
    assert_eq!(oarlock.actions().await[0], "paddle_customer done unchanged");
    assert_eq!(oarlock.sandbox.calls_to(Service::Paddle, "GET", "/customers/ctm_1").len(), 1);
}

/// Paddle allows 240 calls a minute; two workers share them: 40 at once, and then one every 300 ms.
#[tokio::test]
async fn addresses_are_looked_up_no_faster_than_paddle_allows() {
    let oarlock = Settings::default().workers(2).start().await;
    for number in 0..70 {
        oarlock.paddle_api().set_customer(&format!("ctm_{number}"), &format!("c{number}@example.com"));
        oarlock
            .billing_sends(
                &Billing::subscription_created(&format!("ctm_{number}")).subscription(&format!("sub_{number}")),
            )
            .await;
    }
    oarlock.settles().await;
    let calls: Vec<_> = oarlock.sandbox.calls().into_iter().filter(|call| call.service == Service::Paddle).collect();
    assert_eq!(calls.len(), 70);
    for (number, call) in (0..).zip(&calls) {
        let since = call.started - calls[0].started + Duration::from_millis(50);
        assert!(since >= Duration::from_millis(300) * u32::saturating_sub(number, 41), "call {number} after {since:?}");
    }
    assert_eq!(oarlock.value::<i32>("select max(attempts) from outbox_action where kind = 'paddle_customer'").await, 1);
    assert_eq!(oarlock.jira().group("commercial-support").members().len(), 70);
}

/// A look-up that failed is answered by another one that did not: here a cancellation comes first.
#[tokio::test]
async fn a_look_up_answers_those_that_failed_before() {
    let oarlock = Oarlock::start().await;
    let canceled = Billing::subscription_canceled("ctm_1").subscription("sub_1").at(Utc::now());
    oarlock.billing_sends(&canceled).await;
    oarlock.until("the look-up is dead", "select count(*) = 1 from dead_letter where kind = 'paddle_customer'").await;
    oarlock.paddle_api().set_customer("ctm_1", ANN);
    let created = Billing::subscription_created("ctm_1").subscription("sub_1").at(Utc::now() - Span::hours(1));
    oarlock.billing_sends(&created).await;
    oarlock.settles().await;
    assert_eq!(oarlock.jira().group("commercial-support").members(), [""; 0], "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status <> 'done'").await, 0);
}

/// What needs no call does not wait for a pause to end either, nor for the poll.
#[tokio::test]
async fn an_answered_look_up_waits_for_nobody() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__POLL_INTERVAL", "1h").start().await;
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'paddle'").await;
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock.until("it waits", "select count(*) = 1 from outbox_action where kind = 'paddle_customer'").await;
    oarlock.billing_sends(&Billing::customer_created("ctm_1", ANN)).await;
    oarlock.sees("access", |sandbox| sandbox.jira_cloud().group("commercial-support").has(ANN)).await;
}

/// A subscription moved from one Billing customer to another, and then an alert about the first one comes late.
#[tokio::test]
async fn a_subscription_moves_to_another_customer() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    let (then, updated) =
        (Utc::now() - Span::hours(1), |id: &str| Billing::subscription_updated(id).subscription("sub_1"));
    oarlock.paddle_api().set_customer("ctm_1", ANN);
    oarlock.paddle_api().set_customer("ctm_2", "bob@example.com");
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1").at(then)).await;
    oarlock.settles().await;
    assert_eq!(group.members(), [ANN]);
    oarlock.billing_sends(&updated("ctm_2").at(then + Span::minutes(30))).await;
    oarlock.settles().await;
    assert_eq!(group.members(), ["bob@example.com"], "{}", oarlock.outbox().await);
    oarlock.billing_sends(&updated("ctm_1").at(then + Span::minutes(20))).await;
    oarlock.settles().await;
    assert_eq!(group.members(), ["bob@example.com"], "{}", oarlock.outbox().await);
    // One that names no customer concerns whom it belongs to.
    oarlock
        .billing_sends(&updated("").set("/data/customer_id", serde_json::Value::Null).at(then + Span::minutes(40)))
        .await;
    oarlock.settles().await;
    assert_eq!(group.members(), ["bob@example.com"], "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status <> 'done'").await, 0);
}

/// The address is given up before the subscription under it is told of: nobody writes to it any more.
#[tokio::test]
async fn invitations_go_to_the_address_of_now() {
    let oarlock = Oarlock::start().await;
    let (old, now) = ("old@example.com", Utc::now());
    oarlock.paddle_sends(&Classic::update_audience_member(old, ANN).at(now)).await;
    oarlock.settles().await;
    oarlock.paddle_sends(&Classic::subscription_created(old).subscription("1").at(now - Span::hours(1))).await;
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN) && oarlock.jira().invited(ANN) == 1, "{}", oarlock.outbox().await);
    assert!(!oarlock.slack().invited(old) && oarlock.jira().invited(old) == 0, "{}", oarlock.outbox().await);
    assert_eq!(
        oarlock.value::<String>("select email from outbox where alert_name = 'subscription_created'").await,
        old
    );
}

/// The address is given up before anybody was invited at it: the invitations go to the new one.
#[tokio::test]
async fn invitations_follow_the_subscription() {
    let oarlock = Oarlock::start().await;
    let (old, then) = ("old@example.com", Utc::now() - Span::hours(1));
    let is_invited = async || {
        oarlock.settles().await;
        assert!(oarlock.slack().invited(ANN) && oarlock.jira().invited(ANN) == 1, "{}", oarlock.outbox().await);
        assert!(!oarlock.slack().invited(old) && oarlock.jira().invited(old) == 0, "{}", oarlock.outbox().await);
        assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status <> 'done'").await, 0);
    };
    oarlock.sql("update destination set paused_until = 'infinity'").await;
    oarlock.paddle_sends(&Classic::subscription_created(old).subscription("1").at(then)).await;
    oarlock.until("it is planned", "select not to_plan from outbox").await;
    oarlock.paddle_sends(&Classic::update_audience_member(old, ANN)).await;
    oarlock.until("both are planned", "select count(*) = 2 and not bool_or(to_plan) from outbox").await;
    oarlock.sql("update destination set paused_until = null").await;
    is_invited().await;
    // By now they are hers, whatever the alert says.
    oarlock.sql("select replay(id) from outbox").await;
    is_invited().await;
}

/// The same while a call is about to be made, and when one is tried again that was refused.
#[tokio::test]
async fn invitations_that_were_begun_follow_the_subscription() {
    for is_refused in [false, true] {
        // The retry waits until it is asked for.
        let oarlock = Settings::default()
            .without("jira")
            .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "1s")
            .set("OARLOCK_WORKER__RETRY_BASE", "6h")
            .set("OARLOCK_WORKER__RETRY_CAP", "6h")
            .start()
            .await;
        let (old, then) = ("old@example.com", Utc::now() - Span::hours(1));
        let fault = if is_refused { Fault::slack_error("invalid_email") } else { Fault::hang() };
        oarlock.slack().fail(fault.times(1));
        oarlock.paddle_sends(&Classic::subscription_created(old).subscription("1").at(then)).await;
        oarlock.sees("Slack is called", |sandbox| !sandbox.calls().is_empty()).await;
        oarlock.paddle_sends(&Classic::update_audience_member(old, ANN)).await;
        oarlock.until("both are planned", "select count(*) = 2 and not bool_or(to_plan) from outbox").await;
        if is_refused {
            oarlock.until("it is dead", "select count(*) = 1 from dead_letter").await;
            oarlock.sql("select replay_dead_letters()").await;
        } else {
            oarlock.until("it fails", "select attempts = 1 and status = 'pending' from outbox_action").await;
            oarlock.sql("update outbox_action set run_at = now()").await;
        }
        oarlock.settles().await;
        assert!(oarlock.slack().invited(ANN) && !oarlock.slack().invited(old), "{}", oarlock.outbox().await);
    }
}

/// Nothing was paid for when the invitation was due, nor when the address changed: it is made when something is.
#[tokio::test]
async fn invitations_that_are_owed_follow_the_subscription() {
    let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", "[]").start().await;
    let (old, then) = ("old@example.com", Utc::now() - Span::hours(1));
    oarlock.paddle_api().set_customer("ctm_1", old);
    let alerts = [
        Billing::subscription_paused("ctm_1").subscription("sub_1").at(then + Span::minutes(1)),
        Billing::subscription_created("ctm_1").subscription("sub_1").at(then),
        Billing::customer_updated("ctm_1", ANN),
        Billing::subscription_resumed("ctm_1").subscription("sub_1").at(then + Span::minutes(3)),
    ];
    for alert in alerts {
        assert!(!oarlock.slack().invited(ANN) && oarlock.jira().invited(ANN) == 0, "{}", oarlock.outbox().await);
        oarlock.billing_sends(&alert).await;
        oarlock.settles().await;
    }
    assert!(oarlock.slack().invited(ANN) && oarlock.jira().invited(ANN) == 1, "{}", oarlock.outbox().await);
    assert!(!oarlock.slack().invited(old) && oarlock.jira().invited(old) == 0, "{}", oarlock.outbox().await);
}

/// A customer with two addresses of one Jira account, each with a subscription of its own.
async fn two_addresses_of_one_account(oarlock: &Oarlock, number: u32) -> [String; 2] {
    let addresses = ["a", "b"].map(|name| format!("{name}{number}@example.com"));
    let then = Utc::now() - Span::hours(1);
    for (email, subscription) in addresses.iter().zip(1..) {
        let subscription = format!("{number}{subscription}");
        oarlock.paddle_sends(&Classic::subscription_created(email).subscription(&subscription).at(then)).await;
        oarlock.settles().await;
        oarlock.jira().change_email(&addresses[0], &addresses[1]);
    }
    assert!(oarlock.jira().group("commercial-support").has(&addresses[1]), "{}", oarlock.outbox().await);
    addresses
}

#[tokio::test]
async fn two_addresses_of_one_account_leave_at_once() {
    let oarlock = Oarlock::start().await;
    let end = Utc::now() + Span::days(3);
    for number in 0..6 {
        for (email, subscription) in two_addresses_of_one_account(&oarlock, number).await.iter().zip(1..) {
            let cancelled = Classic::subscription_cancelled(email).subscription(&format!("{number}{subscription}"));
            oarlock.paddle_sends(&cancelled.ends_at(end)).await;
        }
    }
    oarlock.settles().await;
    assert_eq!(oarlock.jira().group("commercial-support").members().len(), 6);
    oarlock.jira().fail(Fault::delay(Duration::from_millis(20)));
    oarlock.time_passes(Span::days(3)).await;
    oarlock.settles().await;
    assert_eq!(oarlock.jira().group("commercial-support").members(), [""; 0], "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from membership").await, 0);
}

#[tokio::test]
async fn two_addresses_of_one_account_do_not_block_each_other() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "3").start().await;
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'jira'").await;
    oarlock.jira().create_account(ANN, "Ann");
    for (email, subscription) in [(ANN, "1"), ("ann@b.example.com", "2")] {
        oarlock.paddle_sends(&Classic::subscription_created(email).subscription(subscription)).await;
    }
    oarlock.until("both are planned", "select count(*) = 2 from outbox where not to_plan").await;
    let account = oarlock.jira().account_id(ANN).expect("made above");
    for email in [ANN, "ann@b.example.com"] {
        sqlx::query("insert into customer (email, jira_account) values ($1, $2) on conflict (email) do update set jira_account = $2")
            .bind(email)
            .bind(&account)
            .execute(oarlock.pool())
            .await
            .unwrap();
    }
    oarlock
        .jira()
        .fail(Fault::status(500).after(Duration::from_millis(100)).on("POST", "/rest/api/3/group/user").times(2));
    oarlock.sql("update destination set paused_until = null where name = 'jira'").await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from dead_letter").await, 0, "{}", oarlock.outbox().await);
    assert!(oarlock.jira().group("commercial-support").has(ANN));
}

/// The customer changes the address in Jira as well: whichever of the two is evaluated first, and however slowly.
#[tokio::test]
async fn a_membership_on_its_way_to_another_address_stays_ours() {
    let oarlock = Oarlock::start().await;
    let (group, new) = (oarlock.jira().group("commercial-support"), "ann@b.example.com");
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    oarlock.jira().change_email(ANN, new);
    oarlock.jira().fail(Fault::delay(Duration::from_millis(150)).on("GET", "/rest/api/3/user/groups"));
    oarlock.jira().fail(Fault::delay(Duration::from_millis(300)).on("DELETE", "/rest/api/3/group/user"));
    oarlock.paddle_sends(&Classic::update_audience_member(ANN, new)).await;
    oarlock.settles().await;
    assert_eq!(group.members(), [new], "{}", oarlock.outbox().await);
    assert_eq!(
        oarlock.value::<String>("select string_agg(email || ' ' || state, ', ') from membership").await,
        format!("{new} given")
    );
}

/// A colleague who buys under two addresses stays a colleague.
#[tokio::test]
async fn what_was_found_is_found_under_any_address() {
    let oarlock = Oarlock::start().await;
    oarlock.jira().group("commercial-support").add_member("a7@example.com");
    for (email, subscription) in two_addresses_of_one_account(&oarlock, 7).await.iter().zip(1..) {
        oarlock
            .paddle_sends(&Classic::subscription_cancelled(email).subscription(&format!("7{subscription}")).ended())
            .await;
        oarlock.settles().await;
    }
    assert!(oarlock.jira().group("commercial-support").has("b7@example.com"), "{}", oarlock.outbox().await);
}

/// A site that is off the air says of everybody that they are not there; whose address is hidden would not be found again.
#[tokio::test]
async fn a_jira_that_knows_nobody_for_a_moment_is_not_believed() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    // The group is known by then.
    oarlock.paddle_sends(&Classic::subscription_created("bob@example.com").subscription("2")).await;
    oarlock.settles().await;
    oarlock.jira().hide_email(ANN);
    oarlock.jira().fail(Fault::status(404));
    oarlock.paddle_sends(&Classic::subscription_updated(ANN).subscription("1")).await;
    oarlock.until("the pause", "select paused_until > now() from destination where name = 'jira'").await;
    oarlock.jira().clear_faults();
    oarlock.sql("update destination set paused_until = null where name = 'jira'").await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
}

/// What can be read of an account may contradict itself, as an index that is late does: nothing is taken for granted then.
#[tokio::test]
async fn an_account_that_is_there_and_is_not_keeps_its_removal_open() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "2").start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    oarlock.jira().fail(Fault::status(404).on("DELETE", "/rest/api/3/group/user"));
    oarlock.jira().fail(Fault::status(404).on("GET", "/rest/api/3/user/groups"));
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
    oarlock.until("it is dead", "select count(*) = 1 from dead_letter").await;
    oarlock.jira().clear_faults();
    oarlock.sql("select replay_dead_letters()").await;
    oarlock.settles().await;
    assert!(!oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
}

/// The same of an account that was made a moment ago.
#[tokio::test]
async fn an_account_that_is_made_and_not_there_yet_is_tried_again() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__RETRY_BASE", "10ms").start().await;
    oarlock.jira().fail(Fault::status(404).on("GET", "/rest/api/3/user/groups").times(1));
    oarlock.paddle_sends(&Classic::subscription_updated(ANN).subscription("1")).await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i32>("select attempts from outbox_action").await, 2);
}

/// Nobody can tell which account is to be given what is paid for; what is not any more is taken from the one that was.
#[tokio::test]
async fn what_cannot_be_given_keeps_nothing_that_is_to_be_taken_away() {
    let settings = Settings::default()
        .jira(Edition::DataCenter)
        .set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["1"],"group":"commercial-support"},{"plans":["2"],"group":"pro"}]"#);
    let oarlock = settings.start().await;
    let jira = oarlock.jira();
    jira.create_group("pro");
    let then = Utc::now() - Span::hours(1);
    oarlock.paddle_sends(&Classic::subscription_updated(ANN).plan("1").subscription("1").at(then)).await;
    oarlock.settles().await;
    assert!(jira.group("commercial-support").has(ANN));
    // The one that was kept is forgotten, and there are two.
    sqlx::raw_sql("update customer set jira_account = null").execute(oarlock.pool()).await.unwrap();
    jira.create_account("other@example.com", "Other");
    jira.change_email("other@example.com", ANN);
    oarlock.paddle_sends(&Classic::subscription_updated(ANN).plan("2").subscription("1")).await;
    oarlock
        .until("it is dead", "select count(*) = 1 from dead_letter where last_error like '%several accounts%'")
        .await;
    assert_eq!(oarlock.value::<i64>("select count(*) from membership").await, 0, "{}", oarlock.outbox().await);
    assert_eq!(jira.group("commercial-support").members(), Vec::<String>::new());
}

/// An account that hides its address is a customer's, and nobody can tell whose: it is invited, and given nothing.
#[tokio::test]
async fn a_customer_who_hides_is_invited_and_given_no_access() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "5").start().await;
    oarlock.jira().create_account(ANN, "Ann");
    oarlock.jira().hide_email(ANN);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock
        .until("access is dead", "select count(*) = 1 from dead_letter where last_error like '%does not show it%'")
        .await;
    let invited = "select concat_ws(' ', status, outcome, attempts) = 'done already invited 3' from outbox_action where kind = 'jira_invite'";
    oarlock.until("the invitation is done", invited).await;
    assert!(!oarlock.jira().group("commercial-support").has(ANN));
    oarlock.jira().show_email(ANN);
    oarlock.sql("select replay_dead_letters()").await;
    oarlock.sees("access", |sandbox| sandbox.jira_cloud().group("commercial-support").has(ANN)).await;
}

/// An account that became another goes on with what it had, and may hide that it is the same person.
#[tokio::test]
async fn an_account_that_may_have_a_successor_is_not_forgotten() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    oarlock.jira().hide_email(ANN);
    for (method, path) in
        [("DELETE", "/rest/api/3/group/user"), ("GET", "/rest/api/3/user/groups"), ("GET", "/rest/api/3/user")]
    {
        oarlock.jira().fail(Fault::status(404).on(method, path));
    }
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
    oarlock.until("it is dead", "select count(*) = 1 from dead_letter where last_error like '%in its place%'").await;
    let drift = "select count(*) from access where not paid and given = '{group:commercial-support}' and differs_since is not null";
    assert_eq!(oarlock.value::<i64>(drift).await, 1);
    oarlock.jira().clear_faults();
    oarlock.sql("select replay_dead_letters()").await;
    oarlock.settles().await;
    assert!(!oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
}

/// What one membership is refused for is no matter of the others.
#[tokio::test]
async fn a_group_that_refuses_a_customer_keeps_no_organization_from_them() {
    let rules = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["*"],"organization":"17"}]"#;
    let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", rules).start().await;
    oarlock.jira().restrict_portal_access(true);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.until("it is dead", "select count(*) = 1 from dead_letter").await;
    assert!(oarlock.jira().organization("17").has(ANN), "{}", oarlock.outbox().await);
}

#[tokio::test]
async fn a_removal_that_fails_is_drift() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "2").start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    oarlock.jira().fail(Fault::status(500).on("DELETE", "/rest/api/3/group/user"));
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
    oarlock.until("it is dead", "select count(*) = 1 from dead_letter").await;
    let drift = "select count(*) from access where not paid and given = '{group:commercial-support}' and differs_since is not null";
    assert_eq!(oarlock.value::<i64>(drift).await, 1);
    oarlock.jira().clear_faults();
    oarlock.sql("select replay_dead_letters()").await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
}

/// A pause is told before the subscription: whoever was to be invited is when payment comes back.
#[tokio::test]
async fn an_invitation_is_made_when_it_is_paid_for() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", "[]").start().await;
        oarlock.paddle_api().set_customer("ctm_1", ANN);
        let then = Utc::now() - Span::hours(1);
        let alerts = [
            Billing::subscription_created("ctm_1"),
            Billing::subscription_paused("ctm_1"),
            Billing::subscription_resumed("ctm_1"),
        ];
        for number in order {
            let at = then + Span::minutes(i64::try_from(number).expect("a few"));
            oarlock.billing_sends(&alerts[number].clone().subscription("sub_1").at(at)).await;
            oarlock.settles().await;
        }
        assert!(oarlock.slack().invited(ANN), "{}", oarlock.outbox().await);
        assert_eq!((oarlock.jira().invited(ANN), oarlock.slack().invitation_count(ANN)), (1, 1));
        assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status <> 'done'").await, 0);
    }
}

/// While a worker finds that nothing is paid for, payment comes back: before that is recorded, and after.
#[tokio::test]
async fn an_invitation_that_found_nothing_paid_for_looks_again() {
    for is_recorded in [false, true] {
        let oarlock = Oarlock::start().await;
        let then = Utc::now() - Span::hours(1);
        oarlock.sql("update destination set paused_until = 'infinity' where name = 'slack'").await;
        oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(then)).await;
        oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ended()).await;
        let evaluated = "select count(*) = 3 from outbox_action where destination = 'jira' and status = 'done'";
        oarlock.until("Jira is done", evaluated).await;
        // The result is on its way, and cannot be written.
        let mut holding = oarlock.pool().begin().await.unwrap();
        sqlx::query("select from outbox for update").execute(&mut *holding).await.unwrap();
        oarlock.sql("update destination set paused_until = null where name = 'slack'").await;
        let waits =
            |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains("holds the row"));
        oarlock.worker().says("that its result waits", waits).await;
        let updated = Classic::subscription_updated(ANN).subscription("2");
        if is_recorded {
            // As the worker would, and not committed yet.
            sqlx::query(
                "select outbox_record(array[id], array[claim_token], '{done}', '{unchanged}', '{null}', '{0}', '{true}', '{null}',
                                      '{null}', '{null}', '{null}', '{false}', '{false}', '{false}', '{}')
                 from outbox_action where status = 'running'",
            )
            .execute(&mut *holding)
            .await
            .unwrap();
            oarlock.paddle_sends(&updated).await;
            let waits = "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock' and query like '%with subscriptions as%'";
            oarlock.until("the planner waits", waits).await;
            holding.commit().await.unwrap();
        } else {
            oarlock.paddle_sends(&updated).await;
            oarlock.until("it is planned", "select not exists (select from outbox where to_plan)").await;
            holding.rollback().await.unwrap();
        }
        oarlock.settles().await;
        assert!(oarlock.slack().invited(ANN), "{}", oarlock.outbox().await);
    }
}

/// What was right until the configuration changed differs since then, however long ago it was paid for.
#[tokio::test]
async fn what_was_made_right_did_not_differ_before() {
    let mut oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock.settles().await;
    oarlock.time_passes(Span::days(200)).await;
    oarlock.sql("select reconcile('ann@example.com')").await;
    oarlock.settles().await;
    oarlock.workers.remove(0).stops().await;
    oarlock.set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"organization":"17"}]"#);
    oarlock.start_worker().await;
    oarlock.until("it differs", "select differs_since is not null from access").await;
    let since = "select differs_since > now() - interval '1 hour' from access";
    assert!(oarlock.value::<bool>(since).await);
}

/// An alert that comes when an old one has its last attempt has all of its own.
#[tokio::test]
async fn a_new_alert_does_not_die_with_an_old_one() {
    let oarlock = Oarlock::start().await;
    oarlock.slack().fail(Fault::status(500));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock
        .until("it fails", "select count(*) = 1 from outbox_action where destination = 'slack' and attempts > 1")
        .await;
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'slack'").await;
    oarlock.until("it rests", "select count(*) = 0 from outbox_action where status = 'running'").await;
    oarlock
        .sets_up(
            "update outbox_action set attempts = 19, run_at = now() - interval '1 hour' where destination = 'slack'",
        )
        .await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock
        .until("both wait", "select count(*) = 2 from outbox_action where destination = 'slack' and status = 'pending'")
        .await;
    // It is tried last, so that the new one is tied to it and not the other way round.
    oarlock
        .sql("update outbox_action set run_at = now() + interval '3 s' where destination = 'slack' and attempts = 0")
        .await;
    oarlock.sql("update destination set paused_until = null where name = 'slack'").await;
    oarlock.until("the old one is dead", "select count(*) = 1 from dead_letter").await;
    oarlock.slack().clear_faults();
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN), "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from dead_letter").await, 1);
}

/// An alert whose only action was a look-up is planned again.
#[tokio::test]
async fn a_replayed_look_up_leaves_nothing_in_limbo() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().set_customer("ctm_1", ANN);
    oarlock.billing_sends(&Billing::named("subscription.imported", "ctm_1", ANN).subscription("sub_1")).await;
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock.settles().await;
    oarlock.sql("select replay(id) from outbox").await;
    oarlock.settles().await;
    assert_eq!(
        oarlock.value::<i64>("select count(*) from outbox where status = 'pending'").await,
        0,
        "{}",
        oarlock.outbox().await
    );
}

/// An alert has each of its actions once, however often the look-up of its address is replayed.
#[tokio::test]
async fn a_replayed_look_up_plans_nothing_twice() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().set_customer("ctm_1", ANN);
    oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    oarlock.settles().await;
    for replay in [
        "select replay(id) from outbox_action where kind = 'paddle_customer'",
        "update outbox_action set status = 'pending' where status = 'done'",
    ] {
        oarlock.sql(replay).await;
        oarlock.settles().await;
        assert_eq!(oarlock.actions().await.len(), 4, "{replay}\n{}", oarlock.outbox().await);
        assert_eq!(oarlock.value::<String>("select status from outbox").await, "done");
    }
}

/// Somebody who replays a look-up and leaves the transaction open holds up that customer, and goes first.
#[tokio::test]
async fn a_look_up_that_somebody_holds_keeps_no_other_alert_from_being_planned() {
    let oarlock = Oarlock::start().await;
    for _ in 0..2 {
        oarlock.billing_sends(&Billing::subscription_created("ctm_1").subscription("sub_1")).await;
    }
    oarlock.until("the look-ups are dead", "select count(*) = 2 from dead_letter where kind = 'paddle_customer'").await;
    let mut holding = oarlock.database.operator().begin().await.unwrap();
    sqlx::query("select replay(action_id) from dead_letter order by action_id limit 1")
        .execute(&mut *holding)
        .await
        .unwrap();
    oarlock.billing_sends(&Billing::customer_created("ctm_1", ANN)).await;
    for number in 0..3 {
        oarlock.paddle_sends(&Classic::payment_succeeded(&format!("c{number}@example.com"))).await;
    }
    let others = "select count(*) = 6 from outbox_action where status = 'done' and email like 'c_@example.com'";
    oarlock.until("the others are served", others).await;
    // The planner may be waiting for the first while the second is asked for.
    sqlx::query("select replay(action_id) from dead_letter")
        .execute(&mut *holding)
        .await
        .expect("the operator goes first");
    holding.commit().await.unwrap();
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
}

/// A removal that waits for its time waits for it also after it was discarded and replayed.
#[tokio::test]
async fn a_replayed_removal_keeps_its_time() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::hours(1))).await;
    oarlock
        .paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ends_at(Utc::now() + Span::days(9)))
        .await;
    oarlock.settles().await;
    oarlock.sets_up("update outbox_action set status = 'discarded', finished_at = now() where status = 'pending' and run_at > now()").await;
    assert_eq!(oarlock.sql("update outbox_action set status = 'pending' where status = 'discarded'").await, 1);
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN));
    oarlock.time_passes(Span::days(9)).await;
    oarlock.settles().await;
    assert!(!oarlock.jira().group("commercial-support").has(ANN), "{}", oarlock.outbox().await);
}

/// A wrong key is noticed although the pace is what pauses Paddle most of the time.
#[tokio::test]
async fn a_wrong_key_is_noticed_behind_the_pace() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().set_api_key("another");
    oarlock.sql("update destination set actions_per_minute = 60, paused_until = now() + interval '1 hour' where name = 'paddle'").await;
    for number in 0..40 {
        oarlock
            .billing_sends(
                &Billing::subscription_created(&format!("ctm_{number}")).subscription(&format!("sub_{number}")),
            )
            .await;
    }
    oarlock.until("all wait", "select count(*) = 40 from outbox_action where kind = 'paddle_customer'").await;
    oarlock.sql("update destination set paused_until = null where name = 'paddle'").await;
    oarlock.until("it is noticed", "select probing and failures = 1 and paused_until > now() + interval '4 min' from destination where name = 'paddle'").await;
    oarlock.until("all is handed back", "select count(*) = 0 from outbox_action where status = 'running'").await;
    assert_eq!(oarlock.value::<i64>("select sum(attempts) from outbox_action").await, 0);
}

/// The same things happen to a customer of either generation: step by step they are in the same places.
#[tokio::test]
async fn a_billing_story_and_a_classic_story_end_alike() {
    let rules = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["1"],"organization":"17"}]"#;
    let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", rules).start().await;
    let (classic, billing) = (oarlock.signer.clone(), BillingSigner::new(WEBHOOK_SECRET));
    let today = Utc::now();
    let begins = today - Span::hours(3);
    let customer = |generation, number| Household {
        customers: vec![generation],
        number,
        begins,
        today,
        refund_ends_access: false,
    };
    let customers = [customer(Generation::Classic, 1), customer(Generation::Billing, 2)];
    let story: Vec<(usize, Happens)> = vec![
        (0, Happens::Paid),
        (0, Happens::Plan(1)),
        (1, Happens::Paid),
        (0, Happens::PaymentFailed),
        (0, Happens::Status("paused")),
        (0, Happens::NewAddress(0)),
        (0, Happens::Status("active")),
        (1, Happens::Plan(2)),
        (0, Happens::RefundedInFull),
        (0, Happens::Cancelled(-2)),
        (1, Happens::NewAddress(1)),
        (1, Happens::Status("trialing")),
        (1, Happens::Cancelled(-1)),
    ];
    let mut seen = BTreeSet::new();
    for told in 1..=story.len() {
        let steps: Vec<Step> = story[..told]
            .iter()
            .map(|(subscription, happens)| Step {
                after: 60,
                customer: 0,
                subscription: *subscription,
                happens: happens.clone(),
            })
            .collect();
        let mut places = Vec::new();
        for customer in &customers {
            let history = customer.lives(&steps);
            oarlock.paddle_api().set_customer(&history.customers[0].id, &history.customers[0].address);
            for told in &history.alerts {
                let reply = oarlock.posts(&told.alert.signed_by(&classic, &billing)).await;
                assert_eq!(reply.status, 200);
            }
            oarlock.settles().await;
            let own = format!("c{}-", customer.number);
            let is_in = ["group:commercial-support", "organization:17"].map(|target| {
                let members = oarlock.members(target).into_iter();
                members.filter_map(|email| email.strip_prefix(&own).map(str::to_owned)).collect::<Vec<_>>()
            });
            places.push(is_in);
        }
        assert_eq!(places[0], places[1], "after {:?}\n{}", story[told - 1], oarlock.outbox().await);
        seen.insert(places.remove(0));
    }
    assert!(seen.len() > 5 && seen.contains(&[vec![], vec![]]), "{seen:?}");
}
