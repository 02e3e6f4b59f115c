//! The README's guarantees, a test each, named after it.

use std::time::Duration;

use nix::sys::signal::Signal;
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic, Sender};
use oarlock_sandbox::{Fault, Service};
use oarlock_tests::{Oarlock, Settings, WEBHOOK_SECRET};

const ANN: &str = "ann@example.com";

#[tokio::test]
async fn stored_before_said() {
    let mut oarlock = Oarlock::start().await;
    // Every alert that was answered 200 is there after the receiver is killed in the middle of a stream of them, and after
    // the database has cut it off.
    let mut said = 0;
    for round in 0..3 {
        let receiver = oarlock.receivers.remove(0);
        let webhook = format!("http://{}/paddle", receiver.address());
        let streams: Vec<_> = (0..8)
            .map(|stream| {
                let webhook = webhook.clone();
                tokio::spawn(async move {
                    let (sender, signer) = (Sender::new(), BillingSigner::new(WEBHOOK_SECRET));
                    let mut stored = Vec::new();
                    for number in 0..10_000 {
                        let id = format!("evt_{round}_{stream}_{number}");
                        let alert = Billing::named("address.created", "add_1", ANN).event_id(&id).signed_by(&signer);
                        match sender.post(&webhook, &alert).await {
                            Ok(reply) if reply.status == 200 => stored.push(id),
                            _ => break,
                        }
                    }
                    stored
                })
            })
            .collect();
        let enough: i64 = oarlock.value::<i64>("select count(*) from outbox").await + 200;
        while oarlock.value::<i64>("select count(*) from outbox").await < enough {}
        if round == 1 {
            oarlock.database.goes_away().await;
        }
        receiver.dies().await;
        oarlock.database.comes_back().await;
        let mut stored = Vec::new();
        for stream in streams {
            stored.extend(stream.await.unwrap());
        }
        let there: i64 = sqlx::query_scalar("select count(*) from outbox where alert_id = any($1)")
            .bind(&stored)
            .fetch_one(oarlock.pool())
            .await
            .unwrap();
        assert_eq!(usize::try_from(there).unwrap(), stored.len());
        said += stored.len();
        oarlock.start_receiver().await;
    }
    assert!(said > 500, "only {said} alerts were accepted");
}

#[tokio::test]
async fn once_in() {
    let oarlock = Settings::default().receivers(2).start().await;
    let alert = Classic::subscription_created(ANN).signed_by(&oarlock.signer);
    let sender = Sender::new();
    let posts: Vec<_> = (0..40)
        .map(|number| {
            let (sender, alert) = (sender.clone(), alert.clone());
            let webhook = format!("http://{}/paddle", oarlock.receivers[number % 2].address());
            tokio::spawn(async move { sender.post(&webhook, &alert).await.unwrap().status })
        })
        .collect();
    for post in posts {
        assert_eq!(post.await.unwrap(), 200);
    }
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox").await, 1);
    assert_eq!(oarlock.slack().invitation_count(ANN), 1);
    assert_eq!(oarlock.jira().invited(ANN), 1);
}

#[tokio::test]
async fn no_limbo() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "3").start().await;
    // One of each end: done, dead by refusal, dead by attempts, discarded, ignored, not to be planned.
    oarlock.slack().fail(Fault::slack_error("user_disabled").times(1));
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.settles().await;
    oarlock.jira().fail(Fault::status(500));
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.paddle_sends(&Classic::named("transfer_paid", ANN)).await;
    oarlock.paddle_sends(&Classic::payment_succeeded("email")).await;
    oarlock.settles().await;
    let ends = "select string_agg(distinct status, ' ' order by status) from outbox_action";
    assert_eq!(oarlock.value::<String>(ends).await, "dead done");
    assert_eq!(
        oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead' and attempts = 3").await,
        1
    );
    oarlock.sql("select discard(action_id, 'the customer asked to be forgotten') from dead_letter where destination = 'slack'").await;
    assert_eq!(oarlock.value::<String>(ends).await, "dead discarded done");

    let alerts = "select string_agg(alert_name || ' ' || status, ', ' order by id) from outbox";
    assert_eq!(
        oarlock.value::<String>(alerts).await,
        "subscription_created done, payment_succeeded dead, transfer_paid ignored, payment_succeeded dead"
    );
    // What ended says when, what did not work says why.
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where finished_at is null").await, 0);
    assert_eq!(
        oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead' and last_error is null").await,
        0
    );
    // And what waits is visible.
    assert_eq!(oarlock.worker().metric("oarlock_actions{destination=\"jira\",status=\"dead\"}").await, Some(1.0));
    assert_eq!(oarlock.worker().metric("oarlock_outbox_alerts{status=\"dead\"}").await, Some(2.0));
}

#[tokio::test]
async fn access_follows_payment() {
    let oarlock = Oarlock::start().await;
    let group = oarlock.jira().group("commercial-support");
    group.add_member("colleague@example.com");
    let (then, later) =
        (chrono::Utc::now() - chrono::Duration::days(2), chrono::Utc::now() - chrono::Duration::days(1));
    let created = Classic::subscription_created(ANN).subscription("1").at(then);
    oarlock.paddle_sends(&created).await;
    oarlock.settles().await;
    assert!(group.has(ANN), "{}", oarlock.outbox().await);

    // One of two ends: nothing changes.
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("2").at(then)).await;
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("1").at(later).ends(later)).await;
    oarlock.settles().await;
    assert!(group.has(ANN));

    // The last one ends: out.
    oarlock.paddle_sends(&Classic::subscription_cancelled(ANN).subscription("2").at(later).ends(later)).await;
    oarlock.settles().await;
    assert!(!group.has(ANN), "{}", oarlock.outbox().await);

    // Late, repeated and replayed: still out, and not invited again.
    let invitations = (oarlock.slack().invitation_count(ANN), oarlock.jira().invited(ANN));
    oarlock.paddle_sends(&created.clone().alert_id(77)).await;
    oarlock.settles().await;
    oarlock.sql("select replay(id) from outbox order by random()").await;
    oarlock.settles().await;
    assert!(!group.has(ANN), "{}", oarlock.outbox().await);
    assert_eq!((oarlock.slack().invitation_count(ANN), oarlock.jira().invited(ANN)), invitations);
    assert!(group.has("colleague@example.com"));
    assert_eq!(oarlock.value::<i64>("select count(*) from access where differs_since is not null").await, 0);
}

#[tokio::test]
async fn fenced() {
    let mut oarlock = Settings::default()
        .set("OARLOCK_WORKER__LEASE", "4s")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "3900ms")
        .start()
        .await;
    // The first worker is stopped amid its call to Slack (well before that times out), for longer than its lease.
    oarlock.slack().fail(Fault::hang().times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock
        .sees("the call hangs", |sandbox| !sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").is_empty())
        .await;
    oarlock.worker().signal(Signal::SIGSTOP);
    oarlock.start_worker().await;
    oarlock.settles().await;
    let row = "select concat_ws(' ', status, outcome, attempts, claim_token, finished_at) from outbox_action where kind = 'slack_invite'";
    let before: String = oarlock.value(row).await;
    assert!(before.starts_with("done invited 2"), "{before}");

    // It comes to, and finds that it has nothing to say any more.
    oarlock.worker().signal(Signal::SIGCONT);
    oarlock
        .worker()
        .says("that the claim was lost", |line| {
            line["message"].as_str().is_some_and(|text| text.contains("claim was lost"))
        })
        .await;
    assert_eq!(oarlock.value::<String>(row).await, before);
    let attempts = "select string_agg(concat_ws(' ', attempt, http_status, error), ', ' order by attempt)
                    from outbox_attempt t join outbox_action a on a.id = t.action_id where a.kind = 'slack_invite'";
    assert_eq!(oarlock.value::<String>(attempts).await, "1 its worker vanished, 2 200");
    assert_eq!(oarlock.slack().invitation_count(ANN), 1);
}

#[tokio::test]
async fn apart() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__CONCURRENCY", "4").start().await;
    // Every call to Slack hangs, more of them than may be in flight.
    oarlock.slack().fail(Fault::hang());
    for number in 0..12 {
        oarlock.paddle_sends(&Classic::payment_succeeded(&format!("c{number}@example.com"))).await;
    }
    oarlock
        .until("Jira is done", "select count(*) = 12 from outbox_action where kind = 'jira_invite' and status = 'done'")
        .await;
    assert_eq!(
        oarlock
            .value::<i64>("select count(*) from outbox_action where kind = 'slack_invite' and status = 'done'")
            .await,
        0
    );
    // And the receiver answers as ever.
    let reply = oarlock.posts(&Classic::payment_succeeded(ANN).signed_by(&oarlock.signer)).await;
    assert!(reply.status == 200 && reply.took < Duration::from_secs(1), "{reply:?}");
    oarlock.slack().clear_faults();
    oarlock.settles().await;
    assert!(
        (0..12).all(|number| oarlock.jira().invited(&format!("c{number}@example.com")) == 1),
        "no call to Jira was repeated"
    );
}

#[tokio::test]
async fn a_wrong_token_burns_nothing() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__POLL_INTERVAL", "1h").start().await;
    oarlock.slack().set_token("another");
    for number in 0..10 {
        oarlock.paddle_sends(&Classic::payment_succeeded(&format!("c{number}@example.com"))).await;
    }
    oarlock
        .until("the pause", "select paused_until > now() + interval '4 min' from destination where name = 'slack'")
        .await;
    oarlock
        .until("Jira is done", "select count(*) = 10 from outbox_action where kind = 'jira_invite' and status = 'done'")
        .await;
    oarlock.until("all is handed back", "select count(*) = 0 from outbox_action where status = 'running'").await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead'").await, 0);
    assert_eq!(oarlock.value::<i64>("select sum(attempts) from outbox_action where destination = 'slack'").await, 0);
    let reason: String = oarlock.value("select paused_reason from destination where name = 'slack'").await;
    assert!(reason.contains("invalid_auth"), "{reason}");
    assert_eq!(oarlock.worker().metric("oarlock_destination_paused{destination=\"slack\"}").await, Some(1.0));

    oarlock.slack().set_token(oarlock_sandbox::SLACK_TOKEN);
    oarlock.sql("update destination set paused_until = null where name = 'slack'").await;
    oarlock.sees("Slack is called", |sandbox| sandbox.slack().invited("c0@example.com")).await;
    oarlock.settles().await;
    assert!((0..10).all(|number| oarlock.slack().invitation_count(&format!("c{number}@example.com")) == 1));
    assert!(oarlock.value::<bool>("select not probing and failures = 0 from destination where name = 'slack'").await);
}

#[tokio::test]
async fn at_least_once_effectively_once() {
    let mut oarlock = Settings::default()
        .set("OARLOCK_WORKER__LEASE", "9s")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "8s")
        .start()
        .await;
    oarlock.paddle_sends(&Classic::subscription_created("bob@example.com").subscription("2")).await;
    oarlock.settles().await;
    // The worker is killed between a call's effect and its record: the answer never reaches it.
    oarlock.slack().fail(Fault::effect_then_hang().times(1));
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock
        .until("Jira is done", "select count(*) = 4 from outbox_action where destination = 'jira' and status = 'done'")
        .await;
    oarlock.sees("Slack has invited", |sandbox| sandbox.slack().invited(ANN)).await;
    let before = oarlock.sandbox.calls().len();
    oarlock.workers.remove(0).dies().await;
    oarlock.start_worker().await;
    oarlock.settles().await;
    // That one call is repeated, nothing else, and it ends right.
    let calls = oarlock.sandbox.calls().split_off(before);
    assert_eq!(calls.len(), 1, "{calls:#?}");
    assert!(calls[0].is("POST", "/admin.users.invite"));
    let row = "select concat_ws(' ', status, outcome, attempts) from outbox_action where kind = 'slack_invite' and email = 'ann@example.com'";
    assert_eq!(oarlock.value::<String>(row).await, "done already invited 2");
    assert_eq!(oarlock.slack().invitation_count(ANN), 1);
}
