//! What operators do and see: replay and pauses by SQL, stops and starts, wrong configuration, a database that comes and goes.

use std::time::{Duration, Instant};

use chrono::{Duration as Span, Utc};
use nix::sys::signal::Signal;
use oarlock_sandbox::paddle::{Billing, Classic, Signed};
use oarlock_sandbox::{Fault, Service};
use oarlock_tests::{Database, Oarlock, Process, Settings};
use uuid::Uuid;

const ANN: &str = "ann@example.com";

/// A system with a dead Slack action, whose cause is mended.
async fn with_a_dead_letter() -> Oarlock {
    let oarlock = Settings::default().set("OARLOCK_WORKER__POLL_INTERVAL", "1h").start().await;
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "dead");
    oarlock.slack().clear_faults();
    oarlock
}

/// Woken for it: nothing is looked for in between.
async fn is_done(oarlock: &Oarlock) {
    oarlock.sees("Slack is called", |sandbox| sandbox.slack().invited(ANN)).await;
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await, ["jira_invite done invited", "slack_invite done invited"]);
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "done");
    assert_eq!(oarlock.jira().invited(ANN), 1, "what was done is not done again");
    assert_eq!(oarlock.value::<i64>("select count(*) from dead_letter").await, 0);
}

#[tokio::test]
async fn a_dead_letter_says_what_is_needed_to_judge_it() {
    let oarlock = with_a_dead_letter().await;
    let row: String = oarlock
        .value(
            "select concat_ws(' | ', alert_name, kind, email, destination, attempts, last_error, first_try = last_try, first_try < now())
             from dead_letter",
        )
        .await;
    assert!(row.starts_with("payment_succeeded | slack_invite | ann@example.com | slack | 1 | "), "{row}");
    assert!(row.contains("user_disabled") && row.ends_with("t | t"), "{row}");
}

/// Those whose call was made for another's as well died of that one's try.
#[tokio::test]
async fn dead_letters_of_one_call_have_its_tries() {
    let oarlock = Oarlock::start().await;
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'slack'").await;
    for _ in 0..3 {
        oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    }
    oarlock.until("all is planned", "select count(*) = 3 from outbox_action where destination = 'slack'").await;
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.sql("update destination set paused_until = null where name = 'slack'").await;
    oarlock.until("they are dead", "select count(*) = 3 from dead_letter").await;
    assert_eq!(oarlock.calls_to_slack()[ANN], 1);
    let tries = "select bool_and(first_try = last_try and last_try < dead_since) and count(distinct last_try) = 1 from dead_letter";
    assert!(oarlock.value::<bool>(tries).await, "{}", oarlock.outbox().await);
    oarlock.slack().clear_faults();
    assert_eq!(oarlock.value::<i32>("select replay_dead_letters(null, null, null)").await, 3);
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN));
}

/// Who does not see what others have done since cannot tell what an alert comes to.
#[tokio::test]
async fn an_operator_who_does_not_see_the_others_is_told() {
    let oarlock = with_a_dead_letter().await;
    for statement in [
        "select discard(action_id, 'no') from dead_letter",
        "update outbox_action set status = 'pending' where status = 'dead'",
    ] {
        let mut snapshot =
            oarlock.database.operator().begin_with("begin isolation level repeatable read").await.unwrap();
        let error = sqlx::query(statement).execute(&mut *snapshot).await.unwrap_err();
        let hint = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?.hint());
        assert!(hint.is_some_and(|hint| hint.contains("read committed")), "{error}");
    }
}

/// Whatever the database makes of transactions by default.
#[tokio::test]
async fn the_programs_see_what_others_have_done() {
    let database = Database::create().await;
    database.administer("alter database {} set default_transaction_isolation = 'repeatable read'").await;
    let oarlock = Settings::default().workers(2).start_on(database).await;
    for number in 0..20 {
        oarlock
            .paddle_sends(
                &Classic::subscription_created(&format!("c{number}@example.com")).subscription(&number.to_string()),
            )
            .await;
    }
    oarlock.settles().await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status = 'done'").await, 20);
}

#[tokio::test]
async fn a_plain_update_replays() {
    let oarlock = with_a_dead_letter().await;
    let rows = oarlock
        .sql("update outbox_action set status = 'pending' where status = 'dead' and destination = 'slack'")
        .await;
    assert_eq!(rows, 1);
    is_done(&oarlock).await;
}

#[tokio::test]
async fn a_plain_update_of_the_alert_replays() {
    let oarlock = with_a_dead_letter().await;
    oarlock.sql("update outbox set status = 'pending' where status = 'dead'").await;
    is_done(&oarlock).await;
}

/// An end that was written by hand would hide what is dead.
#[tokio::test]
async fn an_alert_cannot_be_ended_by_hand() {
    let oarlock = with_a_dead_letter().await;
    for status in ["done", "ignored"] {
        let statement = format!("update outbox set status = '{status}' where status = 'dead'");
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(oarlock.database.operator()).await;
        let refused = refused.expect_err("it is the actions' to say").to_string();
        assert!(refused.contains("can be set to pending alone"), "{refused}");
    }
    oarlock.sql("select discard(id, 'paid by mistake') from outbox").await;
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "done");
}

#[tokio::test]
async fn what_is_no_destination_has_no_dead_letters() {
    let oarlock = with_a_dead_letter().await;
    let replay = "select replay_dead_letters(destination => 'Slack')";
    let refused = sqlx::query(replay).execute(oarlock.database.operator()).await.unwrap_err().to_string();
    assert!(refused.contains("no destination of this name: jira, slack, paddle"), "{refused}");
}

#[tokio::test]
async fn replay_takes_an_action_or_an_alert() {
    for id in ["select id from outbox_action where status = 'dead'", "select id from outbox"] {
        let oarlock = with_a_dead_letter().await;
        let id: Uuid = oarlock.value(id).await;
        let rows: i32 =
            sqlx::query_scalar("select replay($1)").bind(id).fetch_one(oarlock.database.operator()).await.unwrap();
        assert_eq!(rows, 1);
        is_done(&oarlock).await;
    }
    let oarlock = with_a_dead_letter().await;
    assert_eq!(oarlock.value::<i32>("select replay('01890000-0000-7000-8000-000000000000')").await, 0);
}

#[tokio::test]
async fn replay_dead_letters_by_destination_time_and_number() {
    let oarlock = with_a_dead_letter().await;
    let replay =
        "select replay_dead_letters(destination => 'jira', since => now() - interval '1 day', max_rows => 500)";
    assert_eq!(oarlock.value::<i32>(replay).await, 0);
    assert_eq!(oarlock.value::<i32>("select replay_dead_letters(since => now())").await, 0);
    assert_eq!(oarlock.value::<i32>("select replay_dead_letters(max_rows => 0)").await, 0);
    assert_eq!(oarlock.value::<i32>("select replay_dead_letters()").await, 1);
    is_done(&oarlock).await;
}

/// An alert with two dead actions of which one is replayed stays dead until the other is as well.
#[tokio::test]
async fn an_alert_is_as_dead_as_its_actions() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "1").start().await;
    oarlock.slack().fail(Fault::status(500));
    oarlock.jira().fail(Fault::status(500));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("both are dead", "select count(*) = 2 from outbox_action where status = 'dead'").await;
    oarlock.slack().clear_faults();
    oarlock.jira().clear_faults();
    oarlock.sql("update outbox_action set status = 'pending' where status = 'dead' and destination = 'slack'").await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "dead");
    assert_eq!(oarlock.value::<i32>("select replay(id) from outbox").await, 1);
    oarlock.settles().await;
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "done");
    assert_eq!(oarlock.slack().invitation_count(ANN), 1);
}

#[tokio::test]
async fn discard_ends_a_dead_letter_without_running_it() {
    let oarlock = with_a_dead_letter().await;
    let calls = oarlock.sandbox.calls().len();
    oarlock.time_passes(chrono::Duration::days(100)).await;
    assert!(
        sqlx::query("select discard(id, ' ') from outbox").execute(oarlock.database.operator()).await.is_err(),
        "a reason is wanted"
    );
    assert_eq!(
        oarlock
            .value::<i32>("select discard(id, 'asked to be forgotten') from outbox_action where status = 'dead'")
            .await,
        1
    );
    let row = "select concat_ws(' ', o.status, a.status, a.last_error) from outbox o join outbox_action a on a.outbox_id = o.id where kind = 'slack_invite'";
    let row: String = oarlock.value(row).await;
    assert!(row.starts_with("done discarded discarded: asked to be forgotten (was: "), "{row}");
    // It is kept as long as any other, from now on.
    let ended = "select bool_and(least(o.finished_at, a.finished_at) > now() - interval '1 hour')
                 from outbox o join outbox_action a on a.outbox_id = o.id where a.status = 'discarded'";
    assert!(oarlock.value::<bool>(ended).await);
    assert_eq!(oarlock.sandbox.calls().len(), calls);
}

/// An alert that could not be planned, or needed nothing as it was configured then, is planned again.
#[tokio::test]
async fn replay_plans_again_what_came_to_nothing() {
    let mut oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::named("locker_processed", ANN)).await;
    oarlock.settles().await;
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "ignored");
    oarlock.workers.remove(0).stops().await;
    oarlock.set("OARLOCK_ROUTES__LOCKER_PROCESSED", "slack_invite");
    oarlock.start_worker().await;
    assert_eq!(oarlock.value::<i32>("select replay(id) from outbox").await, 1);
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await, ["slack_invite done invited"]);
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "done");
}

/// The schema itself refuses what would be nonsense.
#[tokio::test]
async fn bad_states_cannot_be_written() {
    let oarlock = with_a_dead_letter().await;
    for statement in [
        "update outbox set status = 'finished'",
        "update outbox set status = 'done', finished_at = null",
        "update outbox set email = 'Ann@example.com'",
        "update outbox set source = 'stripe'",
        "update outbox_action set kind = 'jira_delete'",
        "update outbox_action set destination = 'jira'",
        "update outbox_action set status = 'running'",
        "update outbox_action set outcome = 'invited' where status = 'dead'",
        "update outbox_action set last_error = null where status = 'dead'",
        "update outbox_action set attempts = -1",
        "update outbox_action set customer_id = 'ctm_1'",
        "update destination set name = 'stripe' where name = 'jira'",
        "insert into outbox select (jsonb_populate_record(o, '{\"id\":\"01890000-0000-7000-8000-000000000000\"}')).* from outbox o",
    ] {
        assert!(sqlx::query(statement).execute(oarlock.pool()).await.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn a_pause_by_hand_holds_and_ends_at_once() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__POLL_INTERVAL", "1h").start().await;
    oarlock
        .sql("update destination set paused_until = 'infinity', paused_reason = 'maintenance' where name = 'jira'")
        .await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.sees("Slack is called", |sandbox| sandbox.slack().invited(ANN)).await;
    oarlock.until("Slack is recorded", "select count(*) = 1 from outbox_action where status = 'done'").await;
    assert!(oarlock.sandbox.calls().iter().all(|call| call.service == Service::Slack));
    assert_eq!(oarlock.worker().metric("oarlock_destination_paused{destination=\"jira\"}").await, Some(1.0));
    oarlock.sql("update destination set paused_until = null where name = 'jira'").await;
    oarlock.sees("Jira is called", |sandbox| sandbox.jira_cloud().invited(ANN) == 1).await;
}

#[tokio::test]
async fn bad_configuration_is_said_all_at_once() {
    let oarlock = Settings::default()
        .set("OARLOCK_RECEIVER__LISTEN", "nowhere")
        .set("OARLOCK_PADDLE__BILLING__TOLERANCE", "soon")
        .set("OARLOCK_WORKER__LEASE", "1s")
        .set("OARLOCK_JIRA__EDITION", "server")
        .set("OARLOCK_SLACK__TOKEN_FILE", "/nowhere/hunter2")
        .set("OARLOCK_SLACK__TYPO", "x")
        .set("OARLOCK_SLACK__TEAM_ID", "")
        .prepare(Database::create().await)
        .await;
    for program in ["oarlock-receiver", "oarlock-worker"] {
        let Exited { code, output } = run(&oarlock, program, &[]).await;
        assert_eq!(code, Some(2), "{output}");
        for key in [
            "receiver.listen",
            "paddle.billing.tolerance",
            "worker.lease",
            "jira.edition",
            "slack.typo",
            "slack.token",
            "slack.team_id",
        ] {
            assert_eq!(output.lines().filter(|line| line.starts_with(key)).count(), 1, "{key}\n{output}");
        }
        assert!(!output.contains(oarlock_sandbox::SLACK_TOKEN), "{output}");
    }
    // Keys that only the program itself can judge.
    let oarlock = Settings::default()
        .set("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", "nonsense")
        .prepare(Database::create().await)
        .await;
    let Exited { code, output } = run(&oarlock, "oarlock-receiver", &[]).await;
    assert!(code == Some(2) && output.contains("paddle.classic.public_keys"), "{output}");
    let missing = run(&oarlock, "oarlock-worker", &["--config", "/nowhere/oarlock.toml"]).await;
    assert!(missing.code == Some(2) && missing.output.contains("/nowhere/oarlock.toml"), "{}", missing.output);
}

struct Exited {
    code: Option<i32>,
    output: String,
}

async fn run(oarlock: &Oarlock, program: &str, arguments: &[&str]) -> Exited {
    let exit = oarlock.spawn(program, arguments).ends().await;
    Exited { code: exit.code, output: exit.output }
}

#[tokio::test]
async fn help_and_version() {
    let oarlock = Settings::default().prepare(Database::create().await).await;
    for program in ["oarlock-receiver", "oarlock-worker"] {
        let version = run(&oarlock, program, &["--version"]).await;
        assert_eq!((version.code, version.output), (Some(0), format!("{program} {}", env!("CARGO_PKG_VERSION"))));
        let help = run(&oarlock, program, &["--help"]).await;
        assert!(help.code == Some(0) && help.output.contains("--config"), "{}", help.output);
    }
}

#[tokio::test]
async fn a_database_that_comes_late_is_waited_for() {
    let database = Database::create().await;
    database.goes_away().await;
    let settings = Settings::default().set("OARLOCK_RECEIVER__ACK_TIMEOUT", "300ms").one_role();
    let mut oarlock = settings.prepare(database).await;
    let receiver = oarlock.spawn("oarlock-receiver", &[]);
    let worker = oarlock.spawn("oarlock-worker", &[]);
    for process in [&receiver, &worker] {
        process
            .says("that it waits", |line| {
                line["message"].as_str().is_some_and(|text| text.contains("cannot be migrated yet"))
            })
            .await;
        assert_eq!(process.admin("/healthz").await.0, 200);
        assert_eq!(process.admin("/readyz").await.0, 503);
    }
    oarlock.receivers.push(receiver);
    oarlock.workers.push(worker);
    let reply = oarlock.posts(&Classic::payment_succeeded(ANN).signed_by(&oarlock.signer)).await;
    assert!(reply.status == 503 && reply.took < Duration::from_millis(700), "{reply:?}");
    oarlock.database.comes_back().await;
    oarlock.receiver().ready().await;
    oarlock.worker().ready().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN));
}

/// A first start on an empty database is nothing to be warned of.
#[tokio::test]
async fn a_new_database_is_migrated_before_anything_else() {
    let mut oarlock = Settings::default().one_role().prepare(Database::create().await).await;
    let worker = oarlock.spawn("oarlock-worker", &[]);
    worker.says("that it runs", |line| line["message"] == "the worker runs").await;
    let logs = worker.logs();
    let migrated = logs.find("the database is migrated");
    assert!(migrated.is_some() && migrated < logs.find("the worker runs") && !logs.contains("42P01"), "{logs}");
    oarlock.workers.push(worker);
}

/// A table that gets a column while statements that read it are prepared: as when a newer program migrates.
#[tokio::test]
async fn a_column_that_is_new_stops_nobody() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_api().set_customer("ctm_1", "bob@example.com");
    let then = Utc::now() - Span::hours(1);
    let happens = async |minutes: i64, address: &str, new_address: &str| {
        let at = then + Span::minutes(minutes);
        oarlock.paddle_sends(&Classic::subscription_created(address).subscription(&minutes.to_string()).at(at)).await;
        oarlock.billing_sends(&Billing::subscription_updated("ctm_1").subscription("sub_1").at(at)).await;
        oarlock.settles().await;
        oarlock.paddle_sends(&Classic::update_audience_member(address, new_address).at(at + Span::seconds(1))).await;
        oarlock.settles().await;
        let cancelled = Classic::subscription_cancelled(new_address).subscription(&minutes.to_string());
        oarlock.paddle_sends(&cancelled.at(at + Span::seconds(2)).ended()).await;
        oarlock.settles().await;
        assert_eq!(oarlock.jira().group("commercial-support").members(), ["bob@example.com"]);
    };
    happens(1, ANN, "ann@b.example.com").await;
    oarlock
        .sets_up(
            "do $$ declare name text; begin
               for name in select table_name from information_schema.tables where table_schema = current_schema() and table_type = 'BASE TABLE' loop
                 execute format('alter table %I add column later integer', name);
               end loop;
             end $$",
        )
        .await;
    happens(2, "eve@example.com", "eve@b.example.com").await;
    assert!(!oarlock.logs().contains("0A000"), "{}", oarlock.logs());
}

#[tokio::test]
async fn a_database_that_goes_away_is_waited_for() {
    let oarlock = Settings::default().set("OARLOCK_RECEIVER__ACK_TIMEOUT", "300ms").start().await;
    // In the middle of a call: its result has to wait as well.
    oarlock.slack().fail(Fault::hang().times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("Jira is done", "select count(*) = 1 from outbox_action where status = 'done'").await;
    oarlock
        .sees("the call hangs", |sandbox| !sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").is_empty())
        .await;
    oarlock.database.goes_away().await;
    oarlock.slack().clear_faults();
    oarlock.sees("Slack has invited", |sandbox| sandbox.slack().invited(ANN)).await;
    let reply = oarlock.posts(&Classic::payment_succeeded("bob@example.com").signed_by(&oarlock.signer)).await;
    assert_eq!(reply.status, 503);
    oarlock
        .worker()
        .says("that results wait", |line| line["message"].as_str().is_some_and(|text| text.contains("results wait")))
        .await;
    oarlock.database.comes_back().await;
    oarlock.settles().await;
    assert_eq!(oarlock.actions().await, ["jira_invite done invited", "slack_invite done invited"]);
    assert_eq!(oarlock.slack().invitation_count(ANN), 1, "the result was kept, not the call repeated");
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.settles().await;
    assert!(oarlock.slack().invited("bob@example.com"));
}

#[tokio::test]
async fn connections_cut_a_moment_ago_cost_no_alert() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    // In use within this second: nothing tells the receiver that they are dead but the next statement.
    oarlock.database.cuts_connections().await;
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.settles().await;
    assert!(oarlock.slack().invited("bob@example.com"));
}

#[tokio::test]
async fn connections_cut_a_moment_ago_leave_the_programs_ready() {
    let oarlock = Oarlock::start().await;
    oarlock.is_ready().await;
    oarlock.database.cuts_connections().await;
    oarlock.is_ready().await;
}

/// What is stored is stored, also when Postgres cannot say whether a repeat of it says the same.
#[tokio::test]
async fn a_repeat_that_cannot_be_compared_is_answered_200() {
    let oarlock = Oarlock::start().await;
    let alerts: Vec<Signed> = ["a", "b"]
        .map(|name| Classic::payment_succeeded(&format!("{name}@example.com")))
        .iter()
        .map(|alert| alert.signed_by(&oarlock.signer))
        .collect();
    oarlock.sets_up("drop function alerts_with_other_content(uuid[], text[], text[], bytea[], text[])").await;
    for alert in [&alerts[0], &alerts[0], &alerts[1], &alerts[1]] {
        assert_eq!(oarlock.sender().post(&oarlock.webhook(), alert).await.unwrap().status, 200);
    }
    let is_told =
        |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains("could not tell"));
    oarlock.receiver().says("that it could not be compared", is_told).await;
}

/// Who has another search_path names the schema, and that is all.
#[tokio::test]
async fn operators_may_name_the_schema() {
    let oarlock = with_a_dead_letter().await;
    let mut connection = oarlock.database.operator().acquire().await.unwrap();
    sqlx::raw_sql("set search_path = pg_catalog").execute(&mut *connection).await.unwrap();
    for statement in [
        "update public.destination set paused_until = 'infinity'",
        "update public.outbox_action set status = 'pending' where status = 'dead'",
        "select public.replay(id) from public.outbox",
        "select public.replay_dead_letters()",
        "update public.outbox set status = 'pending' where status = 'dead'",
        "select from public.dead_letter, public.access",
        "update public.destination set paused_until = null",
    ] {
        sqlx::raw_sql(statement).execute(&mut *connection).await.expect(statement);
    }
    connection.close().await.unwrap();
    is_done(&oarlock).await;
}

#[tokio::test]
async fn what_was_received_is_read_with_any_setting() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN).field("passthrough", "50% \\ \u{e9}")).await;
    let mut connection = oarlock.pool().acquire().await.unwrap();
    sqlx::raw_sql("set standard_conforming_strings = off; set search_path = pg_catalog")
        .execute(&mut *connection)
        .await
        .unwrap();
    let said: String = sqlx::query_scalar("select payload ->> 'passthrough' from public.outbox_evidence")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert_eq!(said, "50% \\ \u{e9}");
    let refused =
        sqlx::query("select public.forget('nobody@example.com')").execute(&mut *connection).await.unwrap_err();
    assert!(refused.to_string().contains("nobody of this address"), "{refused}");
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_stopping_worker_lets_calls_finish() {
    let mut oarlock = Oarlock::start().await;
    oarlock.slack().fail(Fault::delay(Duration::from_millis(400)).times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock
        .sees("Slack is called", |sandbox| !sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").is_empty())
        .await;
    let exit = oarlock.workers.remove(0).stops().await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    assert_eq!(
        oarlock.value::<String>("select outcome from outbox_action where kind = 'slack_invite'").await,
        "invited"
    );
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where status = 'running'").await, 0);
}

#[tokio::test]
async fn a_stopping_worker_hands_back_what_does_not_finish_in_time() {
    let mut oarlock = Settings::default().set("OARLOCK_WORKER__SHUTDOWN_GRACE", "200ms").start().await;
    oarlock.slack().fail(Fault::hang().times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("Jira is done", "select count(*) = 1 from outbox_action where status = 'done'").await;
    oarlock
        .sees("the call hangs", |sandbox| !sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").is_empty())
        .await;
    let exit = oarlock.workers.remove(0).stops().await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    let row = "select concat_ws(' ', status, attempts, claim_token, run_at <= now()) from outbox_action where kind = 'slack_invite'";
    assert_eq!(oarlock.value::<String>(row).await, "pending 0 t");
    // The call was made, whatever came of it.
    let tried = "select string_agg(concat_ws(' ', attempt, error), ', ') from outbox_attempt where error is not null";
    assert_eq!(oarlock.value::<String>(tried).await, "1 cut off when the worker stopped");
    oarlock.slack().clear_faults();
    oarlock.start_worker().await;
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN));
}

#[tokio::test]
async fn a_stopping_receiver_answers_what_it_has_accepted() {
    let mut oarlock = Oarlock::start().await;
    let mut lock = oarlock.pool().begin().await.unwrap();
    sqlx::query("lock table outbox in access exclusive mode").execute(&mut *lock).await.unwrap();
    let (webhook, signer) = (oarlock.webhook(), oarlock.signer.clone());
    let posting = tokio::spawn(async move {
        let alert = Classic::payment_succeeded(ANN).signed_by(&signer);
        oarlock_sandbox::paddle::Sender::new().post(&webhook, &alert).await.unwrap()
    });
    // It is there when its statement waits for the lock.
    let waiting = "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock' and query like '%insert into outbox%' and datname = current_database()";
    oarlock.until("the alert waits for the lock", waiting).await;
    let receiver = oarlock.receivers.remove(0);
    receiver.signal(Signal::SIGTERM);
    receiver.says("that it stops", |line| line["message"] == "stopping").await;
    lock.commit().await.unwrap();
    assert_eq!(posting.await.unwrap().status, 200);
    let exit = receiver.ends().await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox").await, 1);
}

/// An idle connection that stays open does not keep a stopping receiver.
#[tokio::test]
async fn a_stopping_receiver_does_not_wait_for_idle_connections() {
    let mut oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    let stopping = Instant::now();
    let exit = oarlock.receivers.remove(0).stops().await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    assert!(stopping.elapsed() < Duration::from_secs(3), "it took {:?}", stopping.elapsed());
}

#[tokio::test]
async fn migrate_applies_what_is_pending_and_says_so() {
    let oarlock = Settings::default().prepare(Database::create().await).await;
    let worker = oarlock.spawn("oarlock-worker", &[]);
    worker.says("where it listens", |line| line.get("admin_address").is_some()).await;
    let (status, body) = worker.admin("/readyz").await;
    assert_eq!((status, body.as_str()), (503, "the database is not migrated\n"));
    // Two at once: one does the work, the other waits for it.
    let (one, other) =
        tokio::join!(run(&oarlock, "oarlock-worker", &["migrate"]), run(&oarlock, "oarlock-worker", &["migrate"]));
    assert_eq!((one.code, other.code), (Some(0), Some(0)), "{}{}", one.output, other.output);
    worker.ready().await;
    assert_eq!(worker.stops().await.code, Some(0));
}

/// Whatever character Paddle sends, there must be room for it.
#[tokio::test]
async fn a_database_of_few_characters_is_not_migrated() {
    let database = Database::create().await;
    database.administer("drop database {}").await;
    database.administer("create database {} owner oarlock_owner template template0 encoding 'LATIN1' locale 'C'").await;
    let oarlock = Settings::default().prepare(database).await;
    let Exited { code, output } = run(&oarlock, "oarlock-worker", &["migrate"]).await;
    assert!(code == Some(1) && output.contains("encoded as LATIN1"), "{output}");
}

/// What is set in the URL of the database may be a password, whatever it is called.
#[tokio::test]
async fn an_option_of_the_url_that_is_not_heeded_is_named_alone() {
    let mut oarlock = Settings::default().workers(0).receivers(0).start().await;
    let url = format!("{}&sslpassword=hunter2", oarlock.database.url_as("oarlock_receiver"));
    oarlock.set("OARLOCK_DATABASE__URL", &url);
    let receiver = oarlock.spawn("oarlock-receiver", &[]);
    receiver.says("what it does not heed", |line| line["option"] == "sslpassword").await;
    receiver.ready().await;
    assert!(!receiver.logs().contains("hunter2"), "{}", receiver.logs());
}

#[tokio::test]
async fn a_choice_of_logs_that_is_not_understood_is_told() {
    let oarlock = Settings::default().set("RUST_LOG", "warn,oarlock_worker=loud").start().await;
    let is_told = |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.starts_with("RUST_LOG"));
    for process in [oarlock.receiver(), oarlock.worker()] {
        let line = process.says("that it is not understood", is_told).await;
        assert!(line["error"].is_string(), "{line}");
        process.says("what runs, as without it", |line| line.get("admin_address").is_some()).await;
    }
}

/// A warning says what it is about, also where nothing but warnings is asked for.
#[tokio::test]
async fn warnings_alone_say_what_they_are_about() {
    let settings = Settings::default().set("RUST_LOG", "warn,oarlock_receiver::run=info,oarlock_worker::run=info");
    let oarlock = settings.start().await;
    oarlock.slack().fail(Fault::status(500).times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN).alert_id(7)).await;
    oarlock.settles().await;
    let line = oarlock.worker().says("that it is tried again", |line| line.get("retry_in_ms").is_some()).await;
    assert!(line["span"]["action_id"].is_string() && line["span"]["outbox_id"].is_string(), "{line}");
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com").alert_id(7)).await;
    let other =
        |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.starts_with("another alert"));
    let line = oarlock.receiver().says("that it is another", other).await;
    assert!(line["span"]["request_id"].is_string(), "{line}");
}

/// What a container's health check runs, in an image that holds nothing else.
#[tokio::test]
async fn health_is_what_the_running_program_says_of_itself() {
    let mut oarlock = Oarlock::start().await;
    let running = [
        ("oarlock-receiver", "OARLOCK_RECEIVER__ADMIN_LISTEN", oarlock.receiver().admin_address()),
        ("oarlock-worker", "OARLOCK_WORKER__ADMIN_LISTEN", oarlock.worker().admin_address()),
    ];
    for (_, variable, address) in &running {
        oarlock.set(variable, address);
    }
    for (program, ..) in &running {
        let well = run(&oarlock, program, &["health"]).await;
        assert_eq!((well.code, well.output.as_str()), (Some(0), ""));
    }
    oarlock.sets_up("delete from _sqlx_migrations").await;
    for (program, ..) in &running {
        let ill = run(&oarlock, program, &["health"]).await;
        assert_eq!((ill.code, ill.output), (Some(1), format!("{program}: the database is not migrated")));
    }
    oarlock.receivers.remove(0).stops().await;
    let gone = run(&oarlock, "oarlock-receiver", &["health"]).await;
    assert!(gone.code == Some(1) && gone.output.contains("refused"), "{}", gone.output);
    assert!(gone.output.contains(running[0].2.as_str()), "{}", gone.output);
}

#[tokio::test]
async fn metrics_have_the_promised_names() {
    let oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.settles().await;
    let (_, receiver) = oarlock.receiver().admin("/metrics").await;
    let (_, worker) = oarlock.worker().admin("/metrics").await;
    for sample in [
        "oarlock_alerts_total{alert_name=\"subscription_created\",result=\"stored\",source=\"classic\"} 1",
        "oarlock_ack_seconds_count 1",
        "oarlock_build_info{version=\"0.1.0\"} 1",
    ] {
        assert!(receiver.contains(sample), "{sample}\n{receiver}");
    }
    for sample in [
        "oarlock_actions_total{kind=\"jira_access\",result=\"done\"} 1",
        "oarlock_call_seconds_count{destination=\"jira\"} 2",
        "oarlock_outbox_alerts{status=\"done\"} 1",
        "oarlock_actions{destination=\"slack\",status=\"pending\"} 0",
        "oarlock_oldest_due_seconds{destination=\"jira\"} 0",
        "oarlock_destination_paused{destination=\"slack\"} 0",
        "oarlock_oldest_unplanned_seconds 0",
        "oarlock_access_drift 0",
        "oarlock_access_drift_oldest_seconds 0",
        "oarlock_build_info{version=\"0.1.0\"} 1",
    ] {
        assert!(worker.contains(sample), "{sample}\n{worker}");
    }
    for text in [receiver, worker] {
        assert!(!text.contains("example.com") && !text.contains(oarlock_sandbox::SLACK_TOKEN));
    }
}

#[tokio::test]
async fn finished_alerts_go_when_their_time_is_over_and_dead_ones_stay() {
    let mut oarlock = with_a_dead_letter().await;
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.paddle_sends(&Classic::named("transfer_paid", ANN)).await;
    oarlock.settles().await;
    oarlock.sets_up("update outbox set finished_at = finished_at - interval '91 days'").await;
    oarlock.paddle_sends(&Classic::payment_succeeded("eve@example.com")).await;
    oarlock.settles().await;
    oarlock.workers.remove(0).stops().await;
    oarlock.start_worker().await;
    oarlock.until("they are gone", "select count(*) = 2 from outbox").await;
    let left = "select string_agg(email || ' ' || status, ', ' order by id) from outbox";
    assert_eq!(oarlock.value::<String>(left).await, "ann@example.com dead, eve@example.com done");
}

/// What is old goes when nobody is in the way of it: not while others wait for their turn.
#[tokio::test]
async fn retention_stands_back_while_something_is_due() {
    let mut oarlock = Oarlock::start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded("old@example.com")).await;
    oarlock.settles().await;
    oarlock.workers.remove(0).stops().await;
    oarlock.sets_up("update outbox set finished_at = finished_at - interval '91 days'").await;
    oarlock.set("OARLOCK_WORKER__CONCURRENCY", "1");
    oarlock.slack().fail(Fault::hang());
    for who in ["bob", "eve"] {
        oarlock.paddle_sends(&Classic::payment_succeeded(&format!("{who}@example.com"))).await;
    }
    oarlock.start_worker().await;
    let stays = |line: &serde_json::Value| {
        line["message"].as_str().is_some_and(|text| text.contains("past their retention stay"))
    };
    oarlock.worker().says("that old alerts stay", stays).await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox").await, 3);
    oarlock.slack().clear_faults();
    oarlock.until("the old one is gone", "select count(*) = 2 from outbox").await;
    assert!(oarlock.slack().invited("bob@example.com") && oarlock.slack().invited("eve@example.com"));
}

/// What somebody holds is left until the next round, without looking again and again.
#[tokio::test]
async fn retention_leaves_what_somebody_holds() {
    let mut oarlock = Oarlock::start().await;
    for who in ["ann", "bob", "eve"] {
        oarlock.paddle_sends(&Classic::named("transfer_paid", &format!("{who}@example.com"))).await;
    }
    oarlock.settles().await;
    oarlock.workers.remove(0).stops().await;
    oarlock.sets_up("update outbox set finished_at = finished_at - interval '91 days'").await;
    let mut holding = oarlock.pool().begin().await.unwrap();
    sqlx::query("select from outbox order by id limit 1 for update").execute(&mut *holding).await.unwrap();
    oarlock.start_worker().await;
    let round = |line: &serde_json::Value| {
        line["message"].as_str().is_some_and(|text| text.starts_with("deleted finished alerts")) && line["alerts"] == 2
    };
    oarlock.worker().says("that the round is over", round).await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox").await, 1);
}

/// An alert that Postgres does not take at planning is buried, and holds up nobody.
#[tokio::test]
async fn an_alert_that_cannot_be_planned_holds_up_nobody() {
    let mut oarlock = Oarlock::start().await;
    oarlock.workers.remove(0).stops().await;
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1")).await;
    oarlock.paddle_sends(&Classic::payment_succeeded("eve@example.com")).await;
    oarlock.sets_up("alter table subscription add constraint trap check (subscription_id <> '1')").await;
    oarlock.start_worker().await;
    oarlock.settles().await;
    let rows = "select string_agg(alert_name || ' ' || status, ', ' order by id) from outbox";
    assert_eq!(
        oarlock.value::<String>(rows).await,
        "payment_succeeded done, subscription_created dead, payment_succeeded done"
    );
    assert!(
        oarlock
            .value::<String>("select last_error from outbox where status = 'dead'")
            .await
            .contains("failed to plan it")
    );
    oarlock.sets_up("alter table subscription drop constraint trap").await;
    oarlock.sql("select replay(id) from outbox where status = 'dead'").await;
    oarlock.settles().await;
    assert!(oarlock.jira().group("commercial-support").has(ANN));
}

/// An action whose worker vanishes in every attempt is buried when it is claimed once more.
#[tokio::test]
async fn an_action_that_kills_its_workers_is_buried() {
    let mut oarlock = Settings::default()
        .set("OARLOCK_WORKER__MAX_ATTEMPTS", "2")
        .set("OARLOCK_WORKER__LEASE", "4s")
        .set("OARLOCK_WORKER__REQUEST_TIMEOUT", "3900ms")
        .set("OARLOCK_WORKER__POLL_INTERVAL", "100ms")
        .without("jira")
        .start()
        .await;
    oarlock.slack().fail(Fault::hang());
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    for attempt in 1..=2 {
        oarlock
            .sees("the call hangs", |sandbox| {
                sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").len() == attempt
            })
            .await;
        oarlock.workers.remove(0).dies().await;
        oarlock.start_worker().await;
    }
    oarlock.settles().await;
    let row = "select concat_ws(' ', o.status, a.status, a.attempts, a.last_error) from outbox_action a join outbox o on o.id = a.outbox_id";
    assert_eq!(oarlock.value::<String>(row).await, "dead dead 2 its worker vanished amid the last of 2 attempts");
    // When they were begun is told all the same.
    let tries = "select first_try < last_try and last_try < dead_since from dead_letter";
    assert!(oarlock.value::<bool>(tries).await);
    assert_eq!(
        oarlock.value::<i64>("select count(*) from outbox_attempt where error = 'its worker vanished'").await,
        2
    );
}

/// While a destination is tried by one action at a time, one that is buried is none of them: the next one's turn is now.
#[tokio::test]
async fn a_burial_is_no_probe() {
    let mut oarlock = Settings::default().without("jira").set("OARLOCK_WORKER__MAX_ATTEMPTS", "2").start().await;
    oarlock.sql("update destination set paused_until = 'infinity' where name = 'slack'").await;
    for email in [ANN, "bob@example.com"] {
        oarlock.paddle_sends(&Classic::payment_succeeded(email)).await;
    }
    oarlock.until("both are planned", "select count(*) = 2 from outbox_action").await;
    oarlock.workers.remove(0).stops().await;
    oarlock
        .sets_up(
            "update outbox_action set status = 'running', attempts = 2, claim_token = gen_random_uuid(), claimed_by = 'gone', run_at = now()
             where email = 'ann@example.com';
             update destination set paused_until = null, probing = true where name = 'slack'",
        )
        .await;
    oarlock.start_worker().await;
    // Sooner than the lease of a probe is over.
    oarlock.sees("the next one is called for", |sandbox| sandbox.slack().invited("bob@example.com")).await;
    oarlock.settles().await;
    assert_eq!(
        oarlock.value::<String>("select status from outbox_action where email = 'ann@example.com'").await,
        "dead"
    );
    assert!(oarlock.value::<bool>("select not probing from destination where name = 'slack'").await);
}

/// An action that alone meets a wrong configuration stands back behind the others, and does not keep the pause for them.
#[tokio::test]
async fn one_action_that_is_wrong_by_itself_does_not_hold_up_the_others() {
    let access = r#"[{"plans":["*"],"group":"commercial-support"},{"plans":["9"],"group":"plan-9"}]"#;
    let oarlock = Settings::default().set("OARLOCK_JIRA__ACCESS", access).start().await;
    // There is no group for Ann's plan.
    oarlock.paddle_sends(&Classic::subscription_updated(ANN).subscription("1").plan("9")).await;
    oarlock.until("the pause", "select paused_until > now() from destination where name = 'jira'").await;
    for who in ["bob", "eve"] {
        oarlock.paddle_sends(&Classic::subscription_created(&format!("{who}@example.com")).subscription(who)).await;
    }
    oarlock
        .until(
            "they are planned",
            "select count(*) = 2 from outbox_action where kind = 'jira_invite' and status = 'pending'",
        )
        .await;
    // Five minutes pass, twice: who was waiting goes first, and the one that is wrong stands back for longer each time.
    for round in 1..=2 {
        let passes = "set session_replication_role = replica;
                      update destination set paused_until = paused_until - interval '5 min' where name = 'jira';
                      reset session_replication_role;
                      update outbox_action set run_at = run_at - interval '5 min' where status = 'pending'";
        sqlx::raw_sql(passes).execute(oarlock.pool()).await.unwrap();
        if round == 1 {
            oarlock
                .until(
                    "it failed again",
                    "select setbacks = 2 and status = 'pending' from outbox_action where setbacks > 0",
                )
                .await;
        }
    }
    let group = oarlock.jira().group("commercial-support");
    oarlock.sees("the others are served", |_| group.has("bob@example.com") && group.has("eve@example.com")).await;
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead'").await, 0);
}

/// Whatever a vendor answers, it holds up the records of nobody else.
#[tokio::test]
async fn an_answer_that_postgres_cannot_hold_holds_up_nobody() {
    let oarlock = Oarlock::start().await;
    oarlock.slack().fail(Fault::slack_error("odd\0code").times(5));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    let row = "select concat_ws(' ', status, attempts, last_error) from outbox_action where kind = 'slack_invite'";
    let row: String = oarlock.value(row).await;
    assert!(row.starts_with("dead 5 ") && row.contains("odd code"), "{row}");
    // A result that is refused for another reason ends its own action alone.
    oarlock.sets_up("alter table outbox_attempt add constraint trap check (http_status <> 418)").await;
    oarlock.slack().fail(Fault::status(418).times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.settles().await;
    let dead = "select email from outbox_action where last_error like 'its result cannot be stored%'";
    assert_eq!(oarlock.value::<String>(dead).await, "bob@example.com");
    assert_eq!(oarlock.jira().invited("bob@example.com"), 1);
}

/// Somebody who tries a statement and leaves the transaction open holds up what it has touched, and nothing else.
#[tokio::test]
async fn a_row_that_somebody_holds_keeps_no_other_result_from_being_written() {
    let oarlock = Oarlock::start().await;
    oarlock.slack().fail(Fault::hang().times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("Jira is done", "select count(*) = 1 from outbox_action where status = 'done'").await;
    let mut holding = oarlock.database.operator().begin().await.unwrap();
    sqlx::query("update outbox_action set status = 'pending' where status = 'done'")
        .execute(&mut *holding)
        .await
        .unwrap();
    oarlock.slack().clear_faults();
    oarlock
        .worker()
        .says("that a result waits", |line| line["message"].as_str().is_some_and(|text| text.contains("holds the row")))
        .await;
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock
        .until(
            "bob's are done",
            "select count(*) = 2 from outbox_action where status = 'done' and email = 'bob@example.com'",
        )
        .await;
    holding.rollback().await.unwrap();
    oarlock.settles().await;
    assert_eq!((oarlock.slack().invitation_count(ANN), oarlock.calls_to_slack()[ANN]), (1, 1));
}

/// The next in turn are one customer's, whose call does all of it; while it hangs the others have theirs.
#[tokio::test]
async fn a_customer_with_much_to_do_keeps_nobody_waiting() {
    let settings = Settings::default().set("OARLOCK_WORKER__POLL_INTERVAL", "1h");
    let oarlock = settings.set("OARLOCK_WORKER__REQUEST_TIMEOUT", "50s").start().await;
    oarlock.sql("update destination set paused_until = 'infinity'").await;
    for _ in 0..40 {
        oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    }
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.until("all is planned", "select count(*) = 82 from outbox_action").await;
    oarlock.slack().fail(Fault::hang());
    oarlock.sql("update destination set paused_until = null where name = 'slack'").await;
    oarlock
        .sees("both are called for", |sandbox| {
            sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite").len() == 2
        })
        .await;
    assert_eq!(oarlock.calls_to_slack().into_values().collect::<Vec<_>>(), [1, 1]);
    oarlock.slack().clear_faults();
    oarlock.sql("update destination set paused_until = null").await;
    oarlock.settles().await;
    assert_eq!(oarlock.calls_to_slack()[ANN], 1);
}

/// A stopping worker ends although the database neither answers nor fails.
#[tokio::test]
async fn a_stopping_worker_does_not_wait_for_a_database_that_hangs() {
    let mut oarlock = Settings::default().set("OARLOCK_WORKER__SHUTDOWN_GRACE", "100ms").start().await;
    let mut lock = oarlock.pool().begin().await.unwrap();
    sqlx::query("lock table outbox_action, outbox in access exclusive mode").execute(&mut *lock).await.unwrap();
    let waiting =
        "select count(*) > 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    oarlock.until("the worker waits", waiting).await;
    let stopping = Instant::now();
    let exit = oarlock.workers.remove(0).stops().await;
    assert!(
        exit.code == Some(0) && stopping.elapsed() < Duration::from_secs(15),
        "{:?} {}",
        stopping.elapsed(),
        exit.output
    );
    lock.rollback().await.unwrap();
}

/// Ready within a second, small when idle, and quick to act.
#[tokio::test]
async fn idle_it_is_small_and_quick() {
    let starting = Instant::now();
    let oarlock = Settings::default().one_role().start().await;
    let started = starting.elapsed();
    let mut waits = Vec::new();
    for number in 0..21 {
        let email = format!("c{number}@example.com");
        oarlock.paddle_sends(&Classic::payment_succeeded(&email)).await;
        let answered = Instant::now();
        oarlock.sees("Slack is called", |sandbox| sandbox.slack().invited(&email)).await;
        let calls = oarlock.sandbox.calls_to(Service::Slack, "POST", "/admin.users.invite");
        waits.push(calls.last().unwrap().started.saturating_duration_since(answered));
        oarlock.settles().await;
    }
    waits.sort();
    // Not a measurement: far from what is usual (10 ms), near enough to show that nobody waits for a poll (1 s).
    assert!(waits[10] < Duration::from_millis(250), "from the answer to Slack's call: {waits:?}");
    assert!(started < Duration::from_secs(10), "started in {started:?}");
    let resident = [oarlock.receiver().resident_mib(), oarlock.worker().resident_mib()];
    println!(
        "started in {started:?}; answer to call, p50: {:?}, worst: {:?}; resident: {resident:.1?} MiB",
        waits[10], waits[20]
    );
    assert!(resident.iter().all(|mib| *mib < 30.0), "{resident:?} MiB");
}

/// Without notifications everything happens, a poll later.
#[tokio::test]
async fn the_poll_alone_is_enough() {
    let oarlock = Settings::default().set("OARLOCK_WORKER__POLL_INTERVAL", "100ms").start().await;
    oarlock.sql("update destination set paused_until = 'infinity'").await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.until("it is planned", "select count(*) = 2 from outbox_action").await;
    // Neither trigger fires in replica mode, so nobody is notified.
    let mut session = oarlock.pool().acquire().await.unwrap();
    sqlx::raw_sql("set session_replication_role = replica; update destination set paused_until = null; reset session_replication_role")
        .execute(&mut *session)
        .await
        .unwrap();
    oarlock.settles().await;
    assert!(oarlock.slack().invited(ANN));
}

/// Whatever a program prints on its way up is for a machine to read.
#[tokio::test]
async fn logs_are_json_where_nobody_watches() {
    let oarlock = Oarlock::start().await;
    let process: &Process = oarlock.worker();
    assert!(
        process.logs().lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{}",
        process.logs()
    );
}
