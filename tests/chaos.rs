//! Access follows payment through everything at once: disorder, repetition, failing vendors, killed workers, replays, time.
//!
//! The histories and the truth about them are those of `oarlock_sandbox::paddle::history`, which knows nothing of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Duration as Span, SubsecRound as _, Utc};
use oarlock_sandbox::paddle::history::{Alert, Generation, Happens, History, Household, Step, Told};
use oarlock_sandbox::paddle::{Billing, BillingSigner, Signed};
use oarlock_sandbox::{Call, Edition, Fault, Service};
use oarlock_tests::{Oarlock, Settings, WEBHOOK_SECRET};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_chaos_and_replay_memberships_are_what_is_paid_for() {
    through_chaos_and_replay(Settings::default(), 160).await;
}

/// Where people are known by user name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_chaos_and_replay_in_data_center() {
    through_chaos_and_replay(
        Settings::default().jira(Edition::DataCenter).set("OARLOCK_SLACK__MODE", "legacy_invite"),
        80,
    )
    .await;
}

async fn through_chaos_and_replay(settings: Settings, households: u32) {
    let mut random = seeded();
    let mut oarlock = settings
        .workers(2)
        .set("OARLOCK_JIRA__ACCESS", RULES)
        .set("OARLOCK_WORKER__POLL_INTERVAL", "100ms")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "1s")
        .set("OARLOCK_WORKER__LEASE", "3s")
        // A third of all calls fails, an evaluation may take nine of them, and each worker that dies costs an attempt as well: the
        // default number, which is meant for days, may be used up within these seconds.
        .set("OARLOCK_WORKER__MAX_ATTEMPTS", "200")
        .start()
        .await;
    colleagues_join(&oarlock);
    // Paddle's limit is for another test.
    oarlock.sql("update destination set actions_per_minute = 60000 where name = 'paddle'").await;
    let today = Utc::now();
    let (households, histories): (Vec<_>, Vec<_>) = draw(&mut random, households, today, 0.0).into_iter().unzip();
    paddle_knows(&oarlock, &histories);
    everything_fails_at_times(&oarlock, random.random());

    // Each alert at least once, some again, in any order, while workers die.
    let mut alerts: Vec<&Told> = histories.iter().flat_map(|history| &history.alerts).collect();
    let again: Vec<&Told> = alerts.iter().copied().filter(|_| random.random_bool(0.2)).collect();
    alerts.extend(again);
    alerts.shuffle(&mut random);
    let billing = BillingSigner::new(WEBHOOK_SECRET);
    let (mut kills, mut calls) = (0, 0);
    // In parts, so that much is done while half is known.
    for part in alerts.chunks(alerts.len().div_ceil(3)) {
        let signed = part.iter().map(|told| told.alert.signed_by(&oarlock.signer, &billing)).collect();
        let delivered = deliver(&oarlock, signed);
        loop {
            calls += random.random_range(50..500);
            let more = oarlock.sandbox.wait_for(|made| made.len() >= calls, Duration::from_secs(2)).await;
            if more.is_err() && delivered.is_finished() {
                break;
            }
            interfere(&oarlock, INTERFERENCE[random.random_range(0..INTERFERENCE.len())]).await;
            let victim = random.random_range(0..oarlock.workers.len());
            oarlock.workers.remove(victim).dies().await;
            oarlock.start_worker().await;
            kills += 1;
        }
        delivered.await.expect("each alert is taken at last");
    }
    oarlock.settles_within(Duration::from_secs(60)).await;
    let most = oarlock.value::<i32>("select max(attempts) from outbox_action").await;
    println!(
        "{} alerts, {kills} kills, {} calls, {most} attempts at most",
        alerts.len(),
        oarlock.sandbox.calls().len()
    );

    let paid = paid_for(&histories, today);
    assert!(kills >= 5, "only {kills} workers were killed");
    assert!(PLACES.iter().all(|place| paid[place].len() > 20), "nobody is in {paid:?}");
    assert_eq!(oarlock.value::<Option<String>>(DEAD).await, None, "nothing dies");
    assert_memberships(&oarlock, &paid, "after the chaos").await;
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
    assert_eq!(oarlock.value::<i64>("select count(*) from membership where state = 'intended'").await, 0);
    assert_apart(&oarlock, &households);
    assert_invited(&oarlock, &histories, today);

    // Every row again, the oldest first and then in any order.
    oarlock.jira().clear_faults();
    oarlock.slack().clear_faults();
    oarlock.paddle_api().clear_faults();
    // What was hurried before its time makes one for the time that was meant.
    let begun = "select not exists (select from outbox_action where status in ('pending', 'running') and (attempts > 0 or run_at <= now()))";
    oarlock.until("what has begun is done", begun).await;
    let rows = oarlock.value::<i64>("select count(*) from outbox_action").await;
    for replay in [
        "select replay(id) from (select id from outbox order by id) as every",
        "select replay(id) from (select id from outbox order by random()) as every",
    ] {
        oarlock.sql(replay).await;
        oarlock.settles_within(Duration::from_secs(60)).await;
        assert_memberships(&oarlock, &paid, replay).await;
    }
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action").await, rows, "a replay makes no new actions");

    // The ends that lay ahead come to pass, some and then all.
    for passed in [100, 101] {
        oarlock.time_passes(Span::hours(passed)).await;
        oarlock.settles_within(Duration::from_secs(60)).await;
        let now = today + Span::hours(if passed == 100 { 100 } else { 201 });
        assert_memberships(&oarlock, &paid_for(&histories, now), "as time passes").await;
    }
    assert_eq!(
        oarlock.value::<i64>("select count(*) from outbox_action where status in ('pending', 'running')").await,
        0
    );
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
}

/// What the ledger holds in the end is what was lived, with Postgres and each batch of alerts in between: the planner sees of the
/// ledger what concerns the batch alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_order_the_ledger_comes_to_what_is_paid_for() {
    const HOUSEHOLDS: u32 = 1_000;
    let mut random = seeded();
    let oarlock = Settings::default().without("jira").without("slack").start().await;
    oarlock.sql("update destination set actions_per_minute = null where name = 'paddle'").await;
    let today = Utc::now();
    let (_, histories): (Vec<_>, Vec<_>) = draw(&mut random, HOUSEHOLDS, today, 0.4).into_iter().unzip();
    paddle_knows(&oarlock, &histories);
    let mut alerts: Vec<&Told> = histories.iter().flat_map(|history| &history.alerts).collect();
    alerts.shuffle(&mut random);
    let mut left = alerts.as_slice();
    while !left.is_empty() {
        let (batch, rest) = left.split_at(random.random_range(1..=200).min(left.len()));
        are_stored(&oarlock, batch).await;
        left = rest;
    }
    oarlock.settles_within(Duration::from_secs(60)).await;

    let held: Vec<(String, String)> = sqlx::query_as(
        "select email, string_agg(distinct plan, ' ' order by plan) from subscription cross join unnest(plans) as plan
         where entitled_until is null or entitled_until > $1 group by email",
    )
    .bind(today)
    .fetch_all(oarlock.pool())
    .await
    .expect("the query is right");
    let paid = histories.iter().flat_map(|history| history.paid_at(today));
    let paid: BTreeMap<String, String> =
        paid.map(|(email, plans)| (email, plans.into_iter().collect::<Vec<_>>().join(" "))).collect();
    assert!(paid.len() > 500, "only {} addresses pay", paid.len());
    assert_eq!(held.into_iter().collect::<BTreeMap<_, _>>(), paid);
}

/// After a day without vendors a customer costs one call of a kind, however many alerts came in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_away_costs_customers_and_not_alerts() {
    const CUSTOMERS: usize = 2_000;
    const ALERTS: usize = 20_000;
    let oarlock = Settings::default()
        // A day of the default schedule is fifteen tries for everybody; this is seven.
        .set("OARLOCK_WORKER__RETRY_BASE", "1h")
        .set("OARLOCK_WORKER__RETRY_CAP", "6h")
        .set("OARLOCK_WORKER__POLL_INTERVAL", "200ms")
        .start()
        .await;
    oarlock.jira().fail(Fault::status(503));
    oarlock.slack().fail(Fault::status(503));
    let mut random = StdRng::seed_from_u64(7);
    let signer = BillingSigner::new(WEBHOOK_SECRET);
    // Customers come throughout the day; then whatever comes, for whomever there is.
    let mut alerts: Vec<Signed> = Vec::new();
    for customer in 0..CUSTOMERS {
        let names = |customer| (format!("ctm_{customer}"), format!("sub_{customer}"));
        let (id, subscription) = names(customer);
        alerts.push(Billing::customer_created(&id, &format!("c{customer}@example.com")).signed_by(&signer));
        alerts.push(Billing::subscription_created(&id).subscription(&subscription).signed_by(&signer));
        alerts.extend((2..ALERTS / CUSTOMERS).map(|_| {
            let (id, subscription) = names(random.random_range(0..=customer));
            let alert = match random.random_range(0..4) {
                0 | 1 => Billing::transaction_completed(&id),
                2 => Billing::subscription_updated(&id).subscription(&subscription),
                _ => Billing::subscription_updated(&id).subscription(&format!("{subscription}b")),
            };
            alert.signed_by(&signer)
        }));
    }
    assert_eq!(alerts.len(), ALERTS);

    // Whoever is new was tried for, or waits for one who was.
    let tried = "select not exists (select from outbox where to_plan)
                    and not exists (select from outbox_action where status = 'pending' and attempts = 0 and leader_id is null and run_at <= now())";
    for hours in alerts.chunks(ALERTS / 8) {
        deliver(&oarlock, hours.to_vec()).await.unwrap();
        oarlock.until_within(Duration::from_secs(120), "all is tried", tried).await;
        oarlock.time_passes(Span::hours(3)).await;
    }
    assert_eq!(oarlock.value::<Option<String>>(DEAD).await, None, "nothing dies in a day");
    let in_vain = oarlock.value::<i64>("select max(id) from outbox_attempt").await;

    oarlock.jira().clear_faults();
    oarlock.slack().clear_faults();
    // What waits longest waits six hours.
    for _ in 0..6 {
        oarlock.time_passes(Span::hours(1)).await;
    }
    oarlock.settles_within(Duration::from_secs(60)).await;
    let calls: Vec<(String, i64)> = sqlx::query_as(
        "select kind, count(*) from outbox_attempt t join outbox_action a on a.id = t.action_id where t.id > $1 group by kind",
    )
    .bind(in_vain)
    .fetch_all(oarlock.pool())
    .await
    .unwrap();
    println!("{in_vain} calls in vain, and then {calls:?}");
    assert_eq!(calls.len(), 3);
    for (kind, made) in calls {
        assert!(made * 10 <= i64::try_from(CUSTOMERS).unwrap() * 12, "{made} calls for {kind}");
    }
    assert!((0..CUSTOMERS).all(|number| oarlock.slack().invitation_count(&format!("c{number}@example.com")) == 1));
    assert_eq!(oarlock.jira().group("commercial-support").members().len(), CUSTOMERS);
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status not in ('done', 'ignored')").await, 0);
}

/// What has died, and of what.
const DEAD: &str =
    "select string_agg(concat_ws(' ', kind, attempts, last_error, first_try, dead_since), ', ') from dead_letter";

/// What operators do in the middle of it.
const INTERFERENCE: [&str; 5] = [
    "select replay(id) from (select id from outbox where status = 'done' order by random() limit 20) as chosen",
    "select replay(id) from (select id from outbox_action where status = 'done' order by random() limit 20) as chosen",
    "select reconcile(email) from (select distinct email from subscription limit 20) as chosen",
    "update outbox_action set run_at = now() where status = 'pending'",
    "update destination set paused_until = now() + interval '300 ms', paused_reason = 'maintenance'",
];

/// Who has moved in this moment may be nobody any more, which `reconcile` says.
async fn interfere(oarlock: &Oarlock, statement: &'static str) {
    if let Err(error) = sqlx::query(statement).execute(oarlock.database.operator()).await {
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("P0002"), "{statement}: {error}");
    }
}

/// Plan 0 and 2 give the group `pro`, plan 1 the organization, each the support group.
const RULES: &str = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["0","2"],"group":"pro"},{"plans":["1"],"organization":"17"}]"#;

/// Who is in what: `group:pro` with its members' addresses.
type Memberships = BTreeMap<&'static str, BTreeSet<String>>;

const PLACES: [&str; 3] = ["group:commercial-support", "group:pro", "organization:17"];
const COLLEAGUES: [&str; 3] = ["boss@acme.example", "dev@acme.example", "ops@acme.example"];

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

async fn assert_memberships(oarlock: &Oarlock, expected: &Memberships, when: &str) {
    for (place, expected) in expected {
        let found = oarlock.members(place);
        let missing: Vec<_> = expected.difference(&found).collect();
        let surplus: Vec<_> = found.difference(expected).collect();
        if let Some(wrong) = missing.iter().chain(&surplus).next() {
            let story = story_of(oarlock, wrong).await;
            panic!("{when}, {place}: missing {missing:?}, surplus {surplus:?}\n{wrong}:\n{story}");
        }
    }
}

/// What the tables say of a customer, and what Jira was asked about them.
async fn story_of(oarlock: &Oarlock, email: &str) -> String {
    let rows: Vec<String> = sqlx::query_scalar(
        "select row_to_json(s)::text from subscription s where email = $1 or told_email = $1
         union all select row_to_json(m)::text from membership m where email = $1
         union all select row_to_json(a)::text from (
           select a.*, (select json_agg(t order by t.id) from outbox_attempt t where t.action_id = a.id) as tried
           from outbox_action a where email = $1 and kind <> 'slack_invite' order by coalesce(finished_at, created_at)) a",
    )
    .bind(email)
    .fetch_all(oarlock.pool())
    .await
    .expect("the query is right");
    let account = oarlock.jira().account_id(email);
    let names: Vec<&str> = [Some(email), account.as_deref()].into_iter().flatten().collect();
    let now = (Utc::now(), Instant::now());
    let calls = oarlock.sandbox.calls().into_iter().filter_map(|call| {
        let at = |instant| now.0 - (now.1 - instant);
        words_of(&call).iter().any(|word| names.contains(word)).then(|| {
            let (started, finished) = (at(call.started), call.finished.map(at));
            format!(
                "{started} to {finished:?}: {} {} {:?}, worked: {}",
                call.method, call.path, call.status, call.worked
            )
        })
    });
    rows.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}

/// With the seed that a run before has printed, or a new one.
fn seeded() -> StdRng {
    let seed = std::env::var("OARLOCK_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("OARLOCK_CHAOS_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Households of one to three customers of either generation, each with up to a dozen and a half things that happened; `moves` is the
/// share of these that becomes a change of address, beside those that are one anyway.
fn draw(random: &mut StdRng, count: u32, today: DateTime<Utc>, moves: f64) -> Vec<(Household, History)> {
    (0..count)
        .map(|number| {
            let generations = [Generation::Classic, Generation::Billing];
            let customers = (0..random.random_range(1..=3)).map(|_| generations[random.random_range(0..2)]).collect();
            // Classic tells whole seconds.
            let begins = (today - Span::hours(3)).trunc_subsecs(0);
            let household = Household { customers, number, begins, today, refund_ends_access: false };
            let happened = random.random_range(1..18);
            let step = |_| {
                let step = Step::drawn(random.random());
                let is_move = random.random_bool(moves);
                if is_move { Step { happens: Happens::NewAddress(random.random_range(0..12)), ..step } } else { step }
            };
            let steps: Vec<Step> = (0..happened).map(step).collect();
            let history = household.lives(&steps);
            (household, history)
        })
        .collect()
}

/// Who is asked for finds the address of now.
fn paddle_knows(oarlock: &Oarlock, histories: &[History]) {
    for customer in histories.iter().flat_map(|history| &history.customers) {
        oarlock.paddle_api().set_customer(&customer.id, &customer.address);
    }
}

/// As the receiver stores alerts, in this order and all at once: signing, which takes longer than all the rest, is left out.
async fn are_stored(oarlock: &Oarlock, alerts: &[&Told]) {
    let received = |told: &&Told| match &told.alert {
        Alert::Classic(alert) => ("classic", alert.with_signature("").body),
        Alert::Billing(alert) => ("billing", alert.body()),
    };
    let (sources, bodies): (Vec<&str>, Vec<Vec<u8>>) = alerts.iter().map(received).unzip();
    sqlx::query(
        "insert into outbox (id, source, alert_id, alert_name, occurred_at, raw_body, raw_signature)
         select id, source, alert_id, alert_name, occurred_at, body, ''
         from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bytea[])
           as new (id, source, alert_id, alert_name, occurred_at, body)",
    )
    .bind(alerts.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
    .bind(sources)
    .bind(alerts.iter().map(|told| told.alert.id()).collect::<Vec<_>>())
    .bind(alerts.iter().map(|told| told.alert.name()).collect::<Vec<_>>())
    .bind(alerts.iter().map(|told| told.at).collect::<Vec<_>>())
    .bind(bodies)
    .execute(oarlock.pool())
    .await
    .expect("the statement is right");
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

/// Posts alerts in this order, eight at a time, each until it is answered 200: as Paddle does.
fn deliver(oarlock: &Oarlock, alerts: Vec<Signed>) -> JoinHandle<()> {
    let (sender, webhook) = (oarlock.sender(), oarlock.webhook());
    let alerts = Arc::new(Mutex::new(alerts.into_iter()));
    let mut streams = JoinSet::new();
    for _ in 0..8 {
        let (alerts, sender, webhook) = (Arc::clone(&alerts), sender.clone(), webhook.clone());
        streams.spawn(async move {
            let next = || alerts.lock().expect("no stream panics").next();
            while let Some(alert) = next() {
                while !sender.post(&webhook, &alert).await.is_ok_and(|reply| reply.status == 200) {}
            }
        });
    }
    tokio::spawn(async move { streams.join_all().await.clear() })
}

/// Whoever pays was invited, also if they did not when it was tried first. (Who moves may have been invited under the old address.)
#[track_caller]
fn assert_invited(oarlock: &Oarlock, histories: &[History], today: DateTime<Utc>) {
    let customers = histories.iter().flat_map(|history| &history.customers);
    let stayed = customers.filter(|customer| !customer.has_moved && customer.plans_at(today).next().is_some());
    let stayed: BTreeSet<&str> = stayed.map(|customer| customer.address.as_str()).collect();
    assert!(stayed.len() * 3 > histories.len(), "only {} customers stayed and pay", stayed.len());
    let (desk, slack) = (oarlock.jira().service_desk("3"), oarlock.slack());
    let not: Vec<_> =
        stayed.into_iter().filter(|email| !desk.has(email) || slack.invitation_count(email) == 0).collect();
    assert!(not.is_empty(), "not invited: {not:?}");
}

/// No two calls for one customer overlapped, as Jira saw them.
#[track_caller]
fn assert_apart(oarlock: &Oarlock, households: &[Household]) {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for email in households.iter().flat_map(Household::addresses) {
        names.extend(oarlock.jira().account_id(&email).map(|account| (account, email.clone())));
        names.insert(email.clone(), email);
    }
    let mut by_customer: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    let jira = [Service::JiraCloud, Service::JiraDataCenter];
    for call in oarlock.sandbox.calls().into_iter().filter(|call| jira.contains(&call.service)) {
        match words_of(&call).into_iter().find_map(|word| names.get(word)) {
            Some(email) => by_customer.entry(email).or_default().push(call),
            None => assert!(is_about_nobody(&call), "whom is it about? {call:?}"),
        }
    }
    assert!(by_customer.len() * 4 > households.len() * 5, "only {} customers were called for", by_customer.len());
    // That a caller has gone is noticed a little later than it went.
    let unnoticed = Duration::from_millis(100);
    for calls in by_customer.values() {
        for pair in calls.windows(2) {
            let over = pair[0].finished.expect("all has settled");
            let over = if pair[0].status.is_some() { over } else { over - unnoticed };
            assert!(over <= pair[1].started, "overlap: {pair:#?}");
        }
    }
}

/// What is asked of a group or an organization alone.
fn is_about_nobody(call: &Call) -> bool {
    let questions = ["/rest/api/3/group/bulk", "/rest/api/2/group/member", "/rest/servicedeskapi/organization/17/user"];
    questions.iter().any(|question| call.is("GET", question))
}

/// All texts in what was asked.
fn words_of(call: &Call) -> Vec<&str> {
    let mut words = call.query.values().map(String::as_str).collect();
    collect_text(call.request.as_ref().unwrap_or(&Value::Null), &mut words);
    words
}

fn collect_text<'v>(value: &'v Value, words: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => words.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_text(item, words)),
        Value::Object(members) => members.values().for_each(|member| collect_text(member, words)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
