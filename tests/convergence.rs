//! Access follows payment as things change and time passes: one rule at a time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::{Duration as Span, Utc};
use oarlock_sandbox::paddle::history::{Customer, Generation, Happens, Step};
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic};
use oarlock_sandbox::{Fault, Service};
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

/// What is paid for until a day ahead: in until then, out within two seconds after.
#[tokio::test]
async fn a_cancelled_subscription_lasts_until_its_end() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    let end = Utc::now() + Span::days(30);
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").at(Utc::now() - Span::days(1))).await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").ends_at(end)).await;
    oarlock.settles().await;
    for _ in 0..29 {
        oarlock.time_passes(Span::days(1)).await;
        oarlock.settles().await;
        assert!(group.has(ANN), "{}", oarlock.outbox().await);
    }
    // Three seconds before the end.
    let left = end - Utc::now() - Span::days(29) - Span::seconds(3);
    oarlock.time_passes(left).await;
    let (before, after) = (Duration::from_secs(2), Duration::from_secs(5));
    let started = Instant::now();
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

/// The same things happen to a customer of either generation: step by step they are in the same places.
#[tokio::test]
async fn a_billing_story_and_a_classic_story_end_alike() {
    let rules = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["1"],"organization":"17"}]"#;
    let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", rules).start().await;
    let (classic, billing) = (oarlock.signer.clone(), BillingSigner::new(WEBHOOK_SECRET));
    let today = Utc::now();
    let begins = today - Span::hours(3);
    let customer = |generation, number| Customer { generation, number, begins, today, refund_ends_access: false };
    let customers = [customer(Generation::Classic, 1), customer(Generation::Billing, 2)];
    let story: Vec<(usize, Happens)> = vec![
        (0, Happens::Paid),
        (0, Happens::Plan(1)),
        (1, Happens::Paid),
        (0, Happens::PaymentFailed),
        (0, Happens::Status("paused")),
        (0, Happens::NewAddress),
        (0, Happens::Status("active")),
        (1, Happens::Plan(2)),
        (0, Happens::RefundedInFull),
        (0, Happens::Cancelled(-2)),
        (1, Happens::NewAddress),
        (1, Happens::Status("trialing")),
        (1, Happens::Cancelled(-1)),
    ];
    let mut seen = BTreeSet::new();
    for told in 1..=story.len() {
        let steps: Vec<Step> = story[..told]
            .iter()
            .map(|(subscription, happens)| Step { after: 60, subscription: *subscription, happens: happens.clone() })
            .collect();
        let mut places = Vec::new();
        for customer in customers {
            let history = customer.lives(&steps);
            oarlock.paddle_api().set_customer(&customer.id(), history.address());
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
