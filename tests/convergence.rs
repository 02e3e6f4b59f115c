//! Access follows payment through everything at once: disorder, repetition, failing vendors, killed workers, replays, time.
//!
//! The histories and the truth about them are those of `oarlock_sandbox::paddle::history`, which knows nothing of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Duration as Span, Utc};
use oarlock_sandbox::paddle::history::{Customer, Generation, Happens, History, Step, Told};
use oarlock_sandbox::paddle::{BillingSigner, Classic, Signed};
use oarlock_sandbox::{Call, Fault, Service};
use oarlock_tests::{Oarlock, Settings, WEBHOOK_SECRET};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

const ANN: &str = "ann@example.com";

/// Plan 0 and 2 give the group `pro`, plan 1 the organization, each the support group.
const RULES: &str = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["0","2"],"group":"pro"},{"plans":["1"],"organization":"17"}]"#;

/// Who is in what: `group:pro` with its members' addresses.
type Memberships = BTreeMap<&'static str, BTreeSet<String>>;

const PLACES: [&str; 3] = ["group:commercial-support", "group:pro", "organization:17"];
const COLLEAGUES: [&str; 3] = ["boss@acme.example", "dev@acme.example", "ops@acme.example"];

fn memberships(oarlock: &Oarlock) -> Memberships {
    let members = |place: &'static str| match place.split_once(':') {
        Some(("group", name)) => oarlock.jira().group(name).members(),
        _ => oarlock.jira().organization("17").members(),
    };
    PLACES.into_iter().map(|place| (place, members(place).into_iter().collect())).collect()
}

fn paid_for(histories: &[History], at: DateTime<Utc>) -> Memberships {
    let mut all: Memberships = PLACES.into_iter().map(|place| (place, COLLEAGUES.map(str::to_owned).into())).collect();
    for (email, plans) in histories.iter().flat_map(|history| history.paid_at(at)) {
        let mut is_in = |place| all.entry(place).or_default().insert(email.clone());
        is_in("group:commercial-support");
        for plan in plans {
            is_in(if plan == "1" { "organization:17" } else { "group:pro" });
        }
    }
    all
}

fn colleagues_join(oarlock: &Oarlock) {
    oarlock.jira().create_group("pro");
    for colleague in COLLEAGUES {
        oarlock.jira().group("commercial-support").add_member(colleague);
        oarlock.jira().group("pro").add_member(colleague);
        oarlock.jira().organization("17").add_member(colleague);
    }
}

#[track_caller]
fn assert_memberships(oarlock: &Oarlock, expected: &Memberships, when: &str) {
    for (place, found) in memberships(oarlock) {
        let expected = &expected[place];
        let missing: Vec<_> = expected.difference(&found).collect();
        let surplus: Vec<_> = found.difference(expected).collect();
        assert!(missing.is_empty() && surplus.is_empty(), "{when}, {place}: missing {missing:?}, surplus {surplus:?}");
    }
}

/// Customers by halves of either generation, each with up to a dozen things that happened to them.
fn draw(random: &mut StdRng, count: u32, today: DateTime<Utc>) -> Vec<(Customer, History)> {
    (0..count)
        .map(|number| {
            let generation = if number % 2 == 0 { Generation::Classic } else { Generation::Billing };
            let begins = today - Span::hours(3);
            let customer = Customer { generation, number, begins, today, refund_ends_access: false };
            let steps: Vec<Step> = (0..random.random_range(1..12)).map(|_| Step::drawn(random.random())).collect();
            (customer, customer.lives(&steps))
        })
        .collect()
}

/// A third of all calls goes wrong, in every way there is.
fn everything_fails_at_times(oarlock: &Oarlock, seed: u64) {
    let faults = || {
        [
            (0.06, Fault::status(500)),
            (0.03, Fault::status(503).after_effect()),
            (0.03, Fault::html(502)),
            (0.03, Fault::malformed(200).after_effect()),
            (0.05, Fault::reset()),
            (0.05, Fault::effect_then_reset()),
            (0.01, Fault::hang()),
            (0.01, Fault::effect_then_hang()),
            (0.05, Fault::delay(Duration::from_millis(50))),
            (0.001, Fault::status(429).retry_after(Duration::from_secs(1))),
        ]
    };
    oarlock.jira().fail(Fault::mix(seed, faults()));
    oarlock.slack().fail(Fault::mix(seed + 1, faults()));
    oarlock.paddle_api().fail(Fault::mix(seed + 2, faults()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_chaos_and_replay_memberships_are_what_is_paid_for() {
    const CUSTOMERS: u32 = 320;
    let seed = std::env::var("OARLOCK_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("OARLOCK_CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut oarlock = Settings::default()
        .workers(2)
        .set("OARLOCK_JIRA__ACCESS", RULES)
        .set("OARLOCK_WORKER__POLL_INTERVAL", "100ms")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "1s")
        .set("OARLOCK_WORKER__LEASE", "3s")
        .start()
        .await;
    colleagues_join(&oarlock);
    // Paddle's limit is for another test.
    oarlock.sql("update destination set actions_per_minute = 60000 where name = 'paddle'").await;
    let today = Utc::now();
    let (customers, histories): (Vec<_>, Vec<_>) = draw(&mut random, CUSTOMERS, today).into_iter().unzip();
    for (customer, history) in customers.iter().zip(&histories) {
        oarlock.paddle_api().set_customer(&customer.id(), history.address());
    }
    everything_fails_at_times(&oarlock, random.random());

    // Each alert at least once, some again, in any order, while workers die.
    let mut alerts: Vec<&Told> = histories.iter().flat_map(|history| &history.alerts).collect();
    let again: Vec<&Told> = alerts.iter().copied().filter(|_| random.random_bool(0.2)).collect();
    alerts.extend(again);
    alerts.shuffle(&mut random);
    let (classic, billing) = (oarlock.signer.clone(), BillingSigner::new(WEBHOOK_SECRET));
    let signed: Vec<Signed> = alerts.iter().map(|told| told.alert.signed_by(&classic, &billing)).collect();
    let delivered = deliver(&oarlock, signed);
    let mut kills = 0;
    let mut calls = 0;
    loop {
        calls += random.random_range(50..500);
        let more = oarlock.sandbox.wait_for(|made| made.len() >= calls, Duration::from_secs(5)).await;
        if more.is_err() && delivered.is_finished() {
            break;
        }
        let victim = random.random_range(0..oarlock.workers.len());
        oarlock.workers.remove(victim).dies().await;
        oarlock.start_worker().await;
        kills += 1;
    }
    delivered.await.unwrap();
    oarlock.settles_within(Duration::from_secs(60)).await;
    println!("{} alerts, {kills} kills, {} calls", alerts.len(), oarlock.sandbox.calls().len());

    let paid = paid_for(&histories, today);
    assert!(kills >= 5, "only {kills} workers were killed");
    assert!(PLACES.iter().all(|place| paid[place].len() > 40), "too few customers in {paid:?}");
    assert_memberships(&oarlock, &paid, "after the chaos");
    assert_eq!(oarlock.value::<i64>("select count(*) from dead_letter").await, 0, "{}", oarlock.outbox().await);
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
    assert_eq!(oarlock.value::<i64>("select count(*) from membership where state = 'intended'").await, 0);
    assert_apart(&oarlock, &histories);

    // Every row again, the oldest first and then in any order.
    oarlock.jira().clear_faults();
    oarlock.slack().clear_faults();
    oarlock.paddle_api().clear_faults();
    let rows = oarlock.value::<i64>("select count(*) from outbox_action").await;
    for replay in [
        "select replay(id) from (select id from outbox order by id) as every",
        "select replay(id) from (select id from outbox order by random()) as every",
    ] {
        oarlock.sql(replay).await;
        oarlock.settles_within(Duration::from_secs(60)).await;
        assert_memberships(&oarlock, &paid, replay);
    }
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action").await, rows, "a replay makes no new actions");

    // The ends that lay ahead come to pass, some and then all.
    for passed in [100, 101] {
        oarlock.time_passes(Span::hours(passed)).await;
        oarlock.settles_within(Duration::from_secs(60)).await;
        let now = today + Span::hours(if passed == 100 { 100 } else { 201 });
        assert_memberships(&oarlock, &paid_for(&histories, now), "as time passes");
    }
    assert_eq!(
        oarlock.value::<i64>("select count(*) from outbox_action where status in ('pending', 'running')").await,
        0
    );
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
}

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
    let started = std::time::Instant::now();
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

/// The same things happen to a customer of either generation: step by step they are in the same places.
#[tokio::test]
async fn a_billing_story_and_a_classic_story_end_alike() {
    let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", RULES).start().await;
    colleagues_join(&oarlock);
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
            let own = |email: &String| email.starts_with(&format!("c{}-", customer.number));
            let is_in: Vec<(&str, String)> = memberships(&oarlock)
                .into_iter()
                .flat_map(|(place, members)| members.into_iter().filter(own).map(move |email| (place, email)))
                .map(|(place, email)| (place, email.replace(&format!("c{}-", customer.number), "c-")))
                .collect();
            places.push(is_in);
        }
        assert_eq!(places[0], places[1], "after {:?}\n{}", story[told - 1], oarlock.outbox().await);
        seen.insert(places.remove(0));
    }
    assert!(seen.len() > 5 && seen.contains(&Vec::new()), "{seen:?}");
    assert_memberships(&oarlock, &paid_for(&[], today), "in the end");
}

/// Posts alerts in this order, eight at a time, each until it is answered 200: as Paddle does.
fn deliver(oarlock: &Oarlock, alerts: Vec<Signed>) -> tokio::task::JoinHandle<()> {
    let (sender, webhook) = (oarlock.sender(), oarlock.webhook());
    tokio::spawn(async move {
        let alerts = std::sync::Arc::new(tokio::sync::Mutex::new(alerts.into_iter()));
        let streams: Vec<_> = (0..8)
            .map(|_| {
                let (alerts, sender, webhook) = (alerts.clone(), sender.clone(), webhook.clone());
                tokio::spawn(async move {
                    loop {
                        let Some(alert) = alerts.lock().await.next() else { return };
                        while !sender.post(&webhook, &alert).await.is_ok_and(|reply| reply.status == 200) {}
                    }
                })
            })
            .collect();
        for stream in streams {
            stream.await.unwrap();
        }
    })
}

/// No two calls for one customer overlapped, as Jira saw them.
#[track_caller]
fn assert_apart(oarlock: &Oarlock, histories: &[History]) {
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for email in histories.iter().flat_map(|history| &history.addresses) {
        names.insert(email.clone(), email);
        names.extend(oarlock.jira().account_id(email).map(|account| (account, email.as_str())));
    }
    let mut by_customer: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for call in oarlock.sandbox.calls().into_iter().filter(|call| call.service == Service::JiraCloud) {
        let mut words: Vec<&str> = call.query.values().map(String::as_str).collect();
        collect_text(call.request.as_ref().unwrap_or(&Value::Null), &mut words);
        match words.into_iter().find_map(|word| names.get(word).copied()) {
            Some(email) => by_customer.entry(email).or_default().push(call),
            // Groups are looked up by name for everybody.
            None => assert!(call.is("GET", "/rest/api/3/group/bulk"), "whom is it about? {call:?}"),
        }
    }
    assert!(by_customer.len() > 200, "only {} customers were called for", by_customer.len());
    // That a caller has gone is noticed a little later than it went.
    let unnoticed = Duration::from_millis(100);
    for calls in by_customer.values() {
        for pair in calls.windows(2) {
            let over = pair[0].finished.unwrap();
            let over = if pair[0].status.is_some() { over } else { over - unnoticed };
            assert!(over <= pair[1].started, "overlap: {pair:#?}");
        }
    }
}

fn collect_text<'v>(value: &'v Value, words: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => words.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_text(item, words)),
        Value::Object(members) => members.values().for_each(|member| collect_text(member, words)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
