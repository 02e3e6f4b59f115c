//! What a failure means: every class of it, for every call that the worker makes.
//!
//! | class | what happens |
//! |---|---|
//! | done | recorded with what was done, also if it had been done before |
//! | transient | tried again, until it is done or its attempts are used up |
//! | rate limited | the whole destination pauses for every worker, no attempt is used |
//! | configuration | the destination pauses until it is mended, no attempt is used |
//! | permanent | dead at once |
//! | unknown | a few attempts, then dead |
//!
//! Whatever becomes of one destination, the others' actions are done.

use std::time::{Duration, Instant};

use chrono::Duration as Span;
use oarlock_sandbox::paddle::{Billing, Classic};
use oarlock_sandbox::{Call, Edition, Fault, Sandbox, Service};
use oarlock_tests::{Oarlock, Settings};
use serde_json::{Value, json};

const GROUP: &str = "commercial-support";

/// The calls that change something over there, and the one that asks for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    CloudInvite,
    CloudAccess,
    DataCenterInvite,
    DataCenterAccess,
    SlackInvite,
    PaddleCustomer,
}

use Act::{CloudAccess, CloudInvite, DataCenterAccess, DataCenterInvite, PaddleCustomer, SlackInvite};

// Done

#[tokio::test]
async fn slack_done() {
    let trial = Trial::start(SlackInvite, settings()).await;
    trial.pays("ann").await;
    trial.is("ann", "done invited 1").await;
    assert_eq!(trial.effects("ann"), 1);
    // Invited before, a member already, and in all the words that Slack has for it.
    trial.pays("ann").await;
    trial.oarlock.settles().await;
    let outcomes = "select string_agg(outcome, ', ' order by id) from outbox_action where kind = 'slack_invite'";
    assert_eq!(trial.oarlock.value::<String>(outcomes).await, "invited, already invited");
    trial.oarlock.slack().join("bob@example.com");
    trial.pays("bob").await;
    trial.is("bob", "done already invited 1").await;
    for code in
        ["already_in_team", "already_invited", "already_in_team_invited_user", "sent_recently", "already_in_channel"]
    {
        trial.goes_wrong(Fault::slack_error(code).times(1));
        trial.pays(code).await;
        trial.is(code, "done already invited 1").await;
    }
    assert_eq!(trial.oarlock.slack().invitations().len(), 1);
}

#[tokio::test]
async fn slack_done_by_slack_connect() {
    let oarlock = settings().set("OARLOCK_SLACK__MODE", "connect").start().await;
    oarlock.slack().join_channel("bob@example.com", "C1");
    for email in ["ann@example.com", "bob@example.com"] {
        oarlock.paddle_sends(&Classic::payment_succeeded(email)).await;
        oarlock.settles().await;
    }
    assert_eq!(
        oarlock.actions().await,
        [
            "jira_invite done invited",
            "slack_invite done invited",
            "jira_invite done invited",
            "slack_invite done already invited"
        ]
    );
    let invitations = oarlock.slack().invitations();
    assert_eq!(invitations.len(), 1);
    assert_eq!(
        (invitations[0].email.as_str(), invitations[0].channels.as_slice()),
        ("ann@example.com", ["C1".to_owned()].as_slice())
    );
}

#[tokio::test]
async fn slack_done_by_the_legacy_method() {
    let oarlock = settings().set("OARLOCK_SLACK__MODE", "legacy_invite").start().await;
    oarlock.slack().join("bob@example.com");
    for email in ["ann@example.com", "bob@example.com"] {
        oarlock.paddle_sends(&Classic::payment_succeeded(email)).await;
        oarlock.settles().await;
    }
    assert_eq!(
        oarlock.actions().await,
        [
            "jira_invite done invited",
            "slack_invite done invited",
            "jira_invite done invited",
            "slack_invite done already invited"
        ]
    );
    assert_eq!(oarlock.slack().invitations().len(), 1);
    assert_eq!(oarlock.slack().invitations()[0].method, "users.admin.invite");
}

#[tokio::test]
async fn jira_cloud_done() {
    let trial = Trial::start(CloudInvite, settings()).await;
    trial.pays("ann").await;
    trial.is("ann", "done invited 1").await;
    assert_eq!(trial.effects("ann"), 1);
    // 409: there is an account, of which nothing is said. It is found, let in, and not mailed.
    trial.oarlock.jira().create_account("bob@example.com", "Bob");
    trial.pays("bob").await;
    trial.is("bob", "done already invited 1").await;
    assert!(trial.oarlock.jira().service_desk("3").has("bob@example.com"));
    assert_eq!(trial.effects("bob"), 0);
}

#[tokio::test]
async fn jira_data_center_done() {
    let trial = Trial::start(DataCenterInvite, settings()).await;
    trial.pays("ann").await;
    trial.is("ann", "done invited 1").await;
    trial.oarlock.jira().create_account("bob@example.com", "Bob");
    trial.pays("bob").await;
    trial.is("bob", "done already invited 1").await;
    assert!(
        ["ann@example.com", "bob@example.com"].iter().all(|email| trial.oarlock.jira().service_desk("3").has(email))
    );
    // 400 in words that nobody documents: the account was made between our look and our call.
    trial.goes_wrong(Fault::status(400).body(json!({ "errorMessage": "Das gibt es schon." })).after_effect().times(1));
    trial.pays("eve").await;
    trial.is("eve", "done already invited 1").await;
    assert!(trial.oarlock.jira().service_desk("3").has("eve@example.com"));
}

#[tokio::test]
async fn jira_data_center_done_by_the_page_that_mails() {
    let path = "/rest/servicedesk/1/pages/people/customers/pagination/SUP/invite";
    let trial = Trial::start(DataCenterInvite, settings().set("OARLOCK_JIRA__INVITE_PATH", path)).await;
    trial.pays("ann").await;
    trial.is("ann", "done invited 1").await;
    assert_eq!(trial.oarlock.jira().invited("ann@example.com"), 1);
    trial.oarlock.jira().create_account("bob@example.com", "Bob");
    trial.pays("bob").await;
    trial.is("bob", "done already invited 1").await;
    assert_eq!(trial.oarlock.jira().invited("bob@example.com"), 0);
    assert!(trial.oarlock.jira().service_desk("3").has("bob@example.com"));
}

#[tokio::test]
async fn jira_cloud_access_done() {
    access_done(CloudAccess).await;
}

#[tokio::test]
async fn jira_data_center_access_done() {
    access_done(DataCenterAccess).await;
}

async fn access_done(act: Act) {
    let trial = Trial::start(act, settings()).await;
    let group = trial.oarlock.jira().group(GROUP);
    trial.pays("ann").await;
    trial.is("ann", "done granted 1").await;
    assert!(group.has("ann@example.com"));
    // A member already: by our look, and by the answer, if somebody was quicker.
    group.add_member("bob@example.com");
    trial.pays("bob").await;
    trial.is("bob", "done unchanged 1").await;
    trial.goes_wrong(
        Fault::status(400)
            .body(json!({ "errorMessages": ["Cannot add user. User is already a member of '{1}'"] }))
            .after_effect()
            .times(1),
    );
    trial.pays("eve").await;
    trial.is("eve", "done granted 1").await;
    assert!(group.has("eve@example.com"));
    // In another language the text says nothing, but then a look does.
    trial.goes_wrong(
        Fault::status(400).body(json!({ "errorMessages": ["Ist schon Mitglied."] })).after_effect().times(1),
    );
    trial.pays("zoe").await;
    trial.is("zoe", "done granted 1").await;

    // And back: taken out by us, or by hand before we come.
    trial.leaves("ann").await;
    trial.is_in_the_end("ann", "done revoked 1").await;
    assert!(!group.has("ann@example.com"));
    group.remove_member("eve@example.com");
    trial.leaves("eve").await;
    trial.is_in_the_end("eve", "done unchanged 1").await;
    assert_eq!(group.members(), ["bob@example.com", "zoe@example.com"]);
}

#[tokio::test]
async fn paddle_done() {
    let trial = Trial::start(PaddleCustomer, settings()).await;
    trial.pays("ann").await;
    trial.is("ann", "done unchanged 1").await;
    assert_eq!(trial.effects("ann"), 1);
    assert_eq!(
        trial.oarlock.value::<String>("select email from outbox where source = 'billing'").await,
        "ann@example.com"
    );
    // It is asked once.
    trial.pays("ann").await;
    trial.oarlock.settles().await;
    assert_eq!(trial.calls().len(), 1);
}

// Transient

#[tokio::test]
async fn slack_transient() {
    let trial = transient(SlackInvite).await;
    for code in [
        "internal_error",
        "fatal_error",
        "request_timeout",
        "service_unavailable",
        "team_added_to_org",
        "failed_to_send_invite",
    ] {
        trial.is_tried_again(code, Fault::slack_error(code), Some(200), code).await;
    }
    // "Some aspect of the operation may have succeeded."
    for code in ["internal_error", "fatal_error"] {
        trial.is_tried_again(&format!("half_{code}"), Fault::slack_error(code).after_effect(), Some(200), code).await;
    }
}

#[tokio::test]
async fn jira_cloud_transient() {
    let trial = transient(CloudInvite).await;
    trial.is_tried_again("malformed", Fault::malformed(200), Some(200), "not what the API documents").await;
    // The mail went out, and that it did is lost.
    trial.is_tried_again("half", Fault::status(500).after_effect(), Some(500), "HTTP 500").await;
    // Indexed late: what 409 says is there is not found at first.
    let jira = trial.oarlock.jira();
    jira.set_index_lag(2);
    jira.create_account("late@example.com", "Late");
    trial.pays("late").await;
    trial.is("late", "done already invited 3").await;
}

#[tokio::test]
async fn jira_cloud_access_transient() {
    transient(CloudAccess).await;
}

#[tokio::test]
async fn jira_data_center_transient() {
    let trial = transient(DataCenterInvite).await;
    trial.is_tried_again("malformed", Fault::malformed(200), Some(200), "not what the API documents").await;
    trial.is_tried_again("half", Fault::status(500).after_effect(), Some(500), "HTTP 500").await;
}

#[tokio::test]
async fn jira_data_center_access_transient() {
    transient(DataCenterAccess).await;
}

#[tokio::test]
async fn paddle_transient() {
    let trial = transient(PaddleCustomer).await;
    trial.is_tried_again("malformed", Fault::malformed(200), Some(200), "not what the API documents").await;
}

/// What passes by itself, wherever it happens.
async fn transient(act: Act) -> Trial {
    let trial = Trial::start(act, settings().set("OARLOCK_WORKER__REQUEST_TIMEOUT", "2s")).await;
    for status in [500, 502, 504] {
        trial
            .is_tried_again(
                &format!("c{status}"),
                Fault::status(status),
                Some(i32::from(status)),
                &format!("HTTP {status}"),
            )
            .await;
    }
    // A page, of a proxy or of whoever says 200 to everything.
    for status in [200, 503] {
        trial
            .is_tried_again(
                &format!("page{status}"),
                Fault::html(status),
                Some(i32::from(status)),
                &format!("HTTP {status}"),
            )
            .await;
    }
    trial.is_tried_again("reset", Fault::reset(), None, "").await;
    trial.is_tried_again("reset_too_late", Fault::effect_then_reset(), None, "").await;
    trial.is_tried_again("hangs", Fault::hang(), None, "timed out").await;
    trial.is_tried_again("hangs_too_late", Fault::effect_then_hang(), None, "timed out").await;

    // Not sooner than asked.
    let wait = Duration::from_secs(1);
    trial.is_tried_again("later", Fault::status(503).retry_after(wait), Some(503), "HTTP 503").await;
    let calls = trial.calls();
    let [.., failed, again] = calls.as_slice() else { panic!("{calls:#?}") };
    assert_eq!(failed.status, Some(503));
    let waited = again.started - failed.finished.expect("it was answered");
    assert!(waited >= wait, "{waited:?}");
    assert_eq!(trial.pauses().await, "");
    trial
}

impl Trial {
    /// One that fails so is tried once more and then done, once, over there.
    async fn is_tried_again(&self, who: &str, fault: Fault, status: Option<i32>, error: &str) {
        let before = self.calls().len();
        self.goes_wrong(fault.times(1));
        self.pays(who).await;
        self.oarlock.settles().await;
        // It was done, and that is what got lost.
        let halfway = self.calls()[before].worked;
        let outcome = match self.act.outcome() {
            "invited" if halfway => "already invited",
            outcome => outcome,
        };
        self.is(who, &format!("done {outcome} 2")).await;
        let history = self.history(who).await;
        let [failed, done] = history.as_slice() else { panic!("{who}: {history:?}") };
        assert_eq!((failed.attempt, failed.http_status), (1, status), "{who}: {history:?}");
        assert!(
            failed.error.as_ref().is_some_and(|said| !said.is_empty() && said.contains(error)),
            "{who}: {history:?}"
        );
        assert!(done.attempt == 2 && done.error.is_none(), "{who}: {history:?}");
        // Jira says 400 to who asks for what is there already.
        let again = halfway && matches!(self.act, CloudAccess | DataCenterAccess);
        assert!(
            done.http_status.is_some_and(|status| (200..300).contains(&status) || (again && status == 400)),
            "{who}: {history:?}"
        );
        self.oarlock.sees("it is done over there", |sandbox| self.act.effects(sandbox, who) > 0).await;
        assert_eq!(self.effects(who), 1, "{who}");
    }
}

#[tokio::test]
async fn slack_transient_for_ever() {
    transient_for_ever(SlackInvite, Fault::slack_error("internal_error"), "internal_error").await;
}

#[tokio::test]
async fn jira_cloud_transient_for_ever() {
    transient_for_ever(CloudInvite, Fault::status(503), "HTTP 503").await;
}

#[tokio::test]
async fn jira_cloud_access_transient_for_ever() {
    transient_for_ever(CloudAccess, Fault::reset(), "").await;
}

#[tokio::test]
async fn jira_data_center_transient_for_ever() {
    transient_for_ever(DataCenterInvite, Fault::html(502), "HTTP 502").await;
}

#[tokio::test]
async fn jira_data_center_access_transient_for_ever() {
    transient_for_ever(DataCenterAccess, Fault::status(500), "HTTP 500").await;
}

#[tokio::test]
async fn paddle_transient_for_ever() {
    transient_for_ever(PaddleCustomer, Fault::status(500), "HTTP 500").await;
}

/// The attempts are used up: dead, with all of them in its history.
async fn transient_for_ever(act: Act, fault: Fault, error: &str) {
    let trial = Trial::start(act, settings().set("OARLOCK_WORKER__MAX_ATTEMPTS", "3")).await;
    trial.goes_wrong(fault);
    trial.pays("ann").await;
    trial.is("ann", "dead 3").await;
    let history = trial.history("ann").await;
    assert_eq!(history.iter().map(|tried| tried.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(history.iter().all(|tried| tried.error.is_some()), "{history:?}");
    trial.is_a_dead_letter("ann", 3, error).await;
    assert_eq!((trial.calls().len(), trial.effects("ann")), (3, 0));
    trial.others_are_done().await;
    assert_eq!(trial.pauses().await, "");
}

// Rate limited

#[tokio::test]
async fn slack_rate_limited() {
    rate_limited(SlackInvite, Fault::status(429)).await;
}

#[tokio::test]
async fn slack_rate_limited_in_either_spelling() {
    // Of Slack Connect it is the latter.
    rate_limited(SlackInvite, Fault::slack_error("ratelimited")).await;
    rate_limited(SlackInvite, Fault::slack_error("ratelimit")).await;
}

#[tokio::test]
async fn jira_cloud_rate_limited() {
    rate_limited(CloudInvite, Fault::status(429)).await;
}

#[tokio::test]
async fn jira_cloud_access_rate_limited() {
    rate_limited(CloudAccess, Fault::status(429)).await;
}

#[tokio::test]
async fn jira_data_center_rate_limited() {
    rate_limited(DataCenterInvite, Fault::status(429)).await;
}

#[tokio::test]
async fn jira_data_center_access_rate_limited() {
    rate_limited(DataCenterAccess, Fault::status(429)).await;
}

#[tokio::test]
async fn paddle_rate_limited() {
    rate_limited(PaddleCustomer, Fault::status(429)).await;
}

/// Of two workers one is asked to slow down; the other, which was not, obeys as well.
async fn rate_limited(act: Act, fault: Fault) {
    const PAUSE: Duration = Duration::from_secs(5);
    let mut trial = Trial::start(act, settings().workers(2)).await;
    trial.goes_wrong(fault.retry_after(PAUSE).times(1));
    trial.pays("ann").await;
    trial.until_paused().await;
    trial.is_handed_back().await;
    trial.others_are_done().await;
    let was_asked = |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("no attempt used"));
    let asked = tokio::select! {
        _ = trial.oarlock.workers[0].says("that it was asked", was_asked) => 0,
        _ = trial.oarlock.workers[1].says("that it was asked", was_asked) => 1,
    };
    let asked = trial.oarlock.workers.remove(asked);
    asked.dies().await;

    let customers = ["bob", "eve", "zoe"];
    for who in customers {
        trial.pays(who).await;
    }
    trial.others_are_done().await;
    assert_eq!(trial.oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead'").await, 0);

    // It goes on by itself, and no attempt was used.
    trial.is("ann", &format!("done {} 1", trial.act.outcome())).await;
    for who in customers {
        trial.is(who, &format!("done {} 1", trial.act.outcome())).await;
    }
    trial.oarlock.settles().await;
    let history = trial.history("ann").await;
    assert_eq!(
        history.iter().map(|tried| (tried.attempt, tried.error.is_some())).collect::<Vec<_>>(),
        [(1, true), (1, false)]
    );
    for who in ["ann", "bob", "eve", "zoe"] {
        assert_eq!(trial.effects(who), 1, "{who}");
    }
    let calls: Vec<Call> =
        trial.oarlock.sandbox.calls().into_iter().filter(|call| call.service == trial.act.service()).collect();
    let limited = calls.iter().position(|call| !call.worked).expect("the fault struck");
    let (asked_at, after) = (calls[limited].finished.expect("it was answered"), &calls[limited + 1..]);
    assert!(after.len() >= 4, "{calls:#?}");
    let first = after.iter().map(|call| call.started - asked_at).min().expect("there are some");
    assert!(first >= PAUSE, "called again after {first:?}");
}

/// The next action is claimed while a call is under way, if calls are quick; but amid a pause nobody is called for it.
#[tokio::test]
async fn what_was_claimed_ahead_is_handed_back_when_the_destination_pauses() {
    const PAUSE: Duration = Duration::from_secs(2);
    let trial = Trial::start(SlackInvite, settings().set("OARLOCK_WORKER__CONCURRENCY", "1")).await;
    trial.oarlock.sql("update destination set paused_until = 'infinity' where name = 'slack'").await;
    for number in 0..20 {
        trial.pays(&format!("customer-{number}")).await;
    }
    trial.goes_wrong(Fault::status(429).retry_after(PAUSE).with_probability(0.2, 1).times(1));
    trial.oarlock.sql("update destination set paused_until = null where name = 'slack'").await;
    trial.oarlock.settles().await;

    let calls = trial.calls();
    assert_eq!(calls.len(), 21);
    let limited = calls.iter().position(|call| !call.worked).expect("the fault struck");
    assert!((1..20).contains(&limited), "it struck amid the others: {limited}");
    let asked_at = calls[limited].finished.expect("it was answered");
    let first = calls[limited + 1..].iter().map(|call| call.started - asked_at).min().expect("there are some");
    assert!(first >= PAUSE, "called again after {first:?}");
    let attempts = "select sum(attempts) from outbox_action where kind = 'slack_invite'";
    assert_eq!(trial.oarlock.value::<i64>(attempts).await, 20);
}

#[tokio::test]
async fn how_long_to_pause_when_nobody_says() {
    let trial = Trial::start(SlackInvite, settings()).await;
    for (code, least) in [("ratelimited", "20 s"), ("ratelimit", "20 s"), ("invite_limit_reached", "20 min")] {
        trial.goes_wrong(Fault::slack_error(code).times(1));
        trial.pays(code).await;
        trial.until_paused().await;
        trial.is_handed_back().await;
        trial.is_now(code, "pending 0").await;
        let lasts: bool =
            sqlx::query_scalar("select paused_until > now() + $1::interval from destination where name = 'slack'")
                .bind(least)
                .fetch_one(trial.oarlock.pool())
                .await
                .unwrap_or_default();
        assert!(lasts, "{code}");
        assert!(trial.pauses().await.contains(code));
        trial.resumes().await;
        trial.is(code, "done invited 1").await;
    }
}

#[tokio::test]
async fn an_invitation_that_waits_for_the_customer_is_no_hurry() {
    let oarlock = settings().set("OARLOCK_SLACK__MODE", "connect").start().await;
    oarlock.slack().fail(Fault::slack_error("connection_limit_exceeded_pending").times(1));
    oarlock.paddle_sends(&Classic::payment_succeeded("ann@example.com")).await;
    oarlock
        .until(
            "it waits",
            "select status = 'pending' and attempts = 1 and run_at between now() + interval '5 h' and now() + interval '7 h'
             from outbox_action where kind = 'slack_invite'",
        )
        .await;
    // Nobody else has to wait for that, and nothing of it is late.
    oarlock.paddle_sends(&Classic::payment_succeeded("bob@example.com")).await;
    oarlock.sees("Bob is invited", |sandbox| sandbox.slack().invited("bob@example.com")).await;
    oarlock.settles().await;
    let late = "select count(*) from outbox_action where status = 'pending' and due_at <= now()";
    assert_eq!(oarlock.value::<i64>(late).await, 0);
    // The call for a new alert serves for that one as well.
    oarlock.paddle_sends(&Classic::payment_succeeded("ann@example.com")).await;
    oarlock.settles().await;
    let covered = "select count(*) from outbox_action where attempts = 1 and outcome like 'covered by %'";
    assert_eq!(oarlock.value::<i64>(covered).await, 1, "{}", oarlock.outbox().await);
    // Also before its time. A replay of it does not wait for that.
    let replay = "select replay(id) from outbox_action where outcome like 'covered by %'";
    assert_eq!(oarlock.value::<i32>(replay).await, 1);
    oarlock.until("it is done again", "select bool_and(status = 'done') from outbox_action").await;
}

#[tokio::test]
async fn an_invitation_that_the_customer_has_is_not_waited_for() {
    let oarlock = settings().set("OARLOCK_SLACK__MODE", "connect").start().await;
    let waits = "connection_limit_exceeded_pending";
    for (days, outcome) in [(0, "done invited"), (13, "done already invited"), (2, waits)] {
        oarlock.time_passes(Span::days(days)).await;
        oarlock.paddle_sends(&Classic::payment_succeeded("ann@example.com")).await;
        let tried = "select not exists (select from outbox where to_plan)
                     and not exists (select from outbox_action where status = 'running' or status = 'pending' and attempts = 0)";
        oarlock.until("it is tried", tried).await;
        let last = "select concat_ws(' ', status, outcome, last_error) from outbox_action where kind = 'slack_invite' order by id desc limit 1";
        let last = oarlock.value::<String>(last).await;
        assert!(last.ends_with(outcome), "{last} instead of {outcome}");
    }
    oarlock.slack().join_channel("ann@example.com", "C1");
    oarlock.time_passes(Span::hours(7)).await;
    oarlock.until("all is done", "select bool_and(status = 'done') from outbox_action").await;
}

// Configuration

#[tokio::test]
async fn slack_misconfigured() {
    let trial = misconfigured(SlackInvite).await;
    let slack = trial.oarlock.slack();
    trial
        .waits(
            "token",
            || slack.set_token("another"),
            || slack.set_token(oarlock_sandbox::SLACK_TOKEN),
            &["invalid_auth"],
        )
        .await;
    trial
        .waits(
            "channel",
            || slack.delete_channel("C1"),
            || slack.create_channel("C1", "support"),
            &["failed_to_validate_channels"],
        )
        .await;
    let scope = json!({ "ok": false, "error": "missing_scope", "needed": "admin.users:write", "provided": "identify,chat:write" });
    let scope = Fault::status(200).body(scope);
    trial
        .waits_at("scope", scope, &["missing_scope", "needed admin.users:write", "provided identify,chat:write"])
        .await;
    for code in [
        "channel_not_found",
        "not_allowed_token_type",
        "team_not_found",
        "token_expired",
        "not_an_admin",
        "invalid_arguments",
    ] {
        trial.waits_at(code, Fault::slack_error(code), &[code]).await;
    }
    trial.waits_at("page", Fault::html(404), &["slack.base_url"]).await;
}

#[tokio::test]
async fn slack_misconfigured_channel_of_slack_connect() {
    let trial = Trial::start(
        SlackInvite,
        quiet().set("OARLOCK_SLACK__MODE", "connect").set("OARLOCK_SLACK__CHANNEL_IDS", "C9"),
    )
    .await;
    let slack = trial.oarlock.slack();
    trial.waits("none", || (), || slack.create_channel("C9", "customers"), &["channel_not_found"]).await;
    trial
        .waits(
            "archived",
            || slack.archive_channel("C9"),
            || slack.create_channel("C9", "customers"),
            &["channel_archived"],
        )
        .await;
}

#[tokio::test]
async fn jira_cloud_misconfigured() {
    let trial = misconfigured(CloudInvite).await;
    let jira = trial.oarlock.jira();
    trial
        .waits(
            "token",
            || jira.set_token("x"),
            || jira.set_token(oarlock_sandbox::JIRA_CLOUD_TOKEN),
            &["HTTP 401", "token wrong or expired"],
        )
        .await;
    trial
        .waits("permission", || jira.lack_permission(true), || jira.lack_permission(false), &["HTTP 403", "permission"])
        .await;
    trial
        .waits(
            "desk",
            || jira.delete_service_desk("3"),
            || jira.create_service_desk("3", "SUP"),
            &["service desk 3", "jira.service_desk_id"],
        )
        .await;
    let scope = Fault::status(401).body(json!({ "code": 401, "message": "Unauthorized; scope does not match" }));
    trial.waits_at("scope", scope, &["HTTP 401", "scope", "https://api.atlassian.com/ex/jira/"]).await;
    trial.waits_at("login", Fault::html(401), &["HTTP 401"]).await;
    trial.waits_at("site", Fault::html(404), &["jira.base_url"]).await;
}

#[tokio::test]
async fn jira_cloud_access_misconfigured() {
    let trial = misconfigured(CloudAccess).await;
    let jira = trial.oarlock.jira();
    trial
        .waits(
            "token",
            || jira.set_token("x"),
            || jira.set_token(oarlock_sandbox::JIRA_CLOUD_TOKEN),
            &["HTTP 401", "token wrong or expired"],
        )
        .await;
    trial.waits("permission", || jira.lack_permission(true), || jira.lack_permission(false), &["permission"]).await;
    trial.waits("group", || jira.delete_group(GROUP), || jira.create_group(GROUP), &[GROUP, "there is none"]).await;
    let scim = Fault::status(400).body(json!({ "errorMessages": ["The group is read-only."] }));
    trial.waits_at("scim", scim, &["read-only"]).await;
    trial.waits_at("site_admin", Fault::status(403), &["HTTP 403", "permission"]).await;
    // Jira would not admit that it is the permission. (Of an account of the portal alone it may be said because of that.)
    jira.create_account("silent@example.com", "Silent");
    trial.waits_at("silent", Fault::status(404), &["HTTP 404", "permission"]).await;
}

#[tokio::test]
async fn jira_cloud_organization_misconfigured() {
    let trial =
        Trial::start(CloudAccess, quiet().set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"organization":"10101"}]"#))
            .await;
    organization_misconfigured(&trial).await;
}

#[tokio::test]
async fn jira_data_center_organization_misconfigured() {
    let trial = Trial::start(
        DataCenterAccess,
        quiet().set("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"organization":"10101"}]"#),
    )
    .await;
    organization_misconfigured(&trial).await;
}

/// Its id is the one that the next organization would get.
async fn organization_misconfigured(trial: &Trial) {
    trial.pays("ann").await;
    trial.until_paused_for_long().await;
    let pause = trial.pauses().await;
    assert!(pause.contains("organization 10101"), "{pause}");
    trial.is_handed_back().await;
    trial.is_now("ann", "pending 0").await;
    trial.others_are_done().await;
    assert!(trial.oarlock.jira().organization("17").members().is_empty());
}

#[tokio::test]
async fn jira_data_center_misconfigured() {
    let trial = misconfigured(DataCenterInvite).await;
    let jira = trial.oarlock.jira();
    trial
        .waits(
            "token",
            || jira.set_token("x"),
            || jira.set_token(oarlock_sandbox::JIRA_DC_TOKEN),
            &["HTTP 401", "token wrong or expired"],
        )
        .await;
    trial
        .waits("permission", || jira.lack_permission(true), || jira.lack_permission(false), &["HTTP 403", "permission"])
        .await;
    trial
        .waits(
            "desk",
            || jira.delete_service_desk("3"),
            || jira.create_service_desk("3", "SUP"),
            &["service desk 3", "jira.service_desk_id"],
        )
        .await;
    let captcha = Fault::status(403)
        .header("X-Authentication-Denied-Reason", "CAPTCHA_CHALLENGE; login-url=http://jira/login.jsp");
    trial.waits_at("captcha", captcha, &["CAPTCHA"]).await;
    trial.waits_at("site", Fault::html(404), &["jira.base_url"]).await;
}

#[tokio::test]
async fn jira_data_center_misconfigured_page_that_mails() {
    let path = "/rest/servicedesk/1/pages/people/customers/pagination/OTHER/invite";
    let trial = Trial::start(DataCenterInvite, quiet().set("OARLOCK_JIRA__INVITE_PATH", path)).await;
    let jira = trial.oarlock.jira();
    trial.waits("page", || (), || jira.create_service_desk("4", "OTHER"), &["jira.invite_path"]).await;
}

#[tokio::test]
async fn jira_data_center_access_misconfigured() {
    let trial = misconfigured(DataCenterAccess).await;
    let jira = trial.oarlock.jira();
    trial
        .waits(
            "token",
            || jira.set_token("x"),
            || jira.set_token(oarlock_sandbox::JIRA_DC_TOKEN),
            &["HTTP 401", "token wrong or expired"],
        )
        .await;
    trial.waits("permission", || jira.lack_permission(true), || jira.lack_permission(false), &["permission"]).await;
    trial.waits("group", || jira.delete_group(GROUP), || jira.create_group(GROUP), &[GROUP, "no such"]).await;
    let directory =
        Fault::status(400).body(json!({ "errorMessages": ["Cannot modify the group, the directory is read only."] }));
    trial.waits_at("ldap", directory, &["read only"]).await;
}

#[tokio::test]
async fn paddle_misconfigured() {
    let trial = misconfigured(PaddleCustomer).await;
    let paddle = trial.oarlock.paddle_api();
    trial
        .waits(
            "key",
            || paddle.set_api_key("x"),
            || paddle.set_api_key(oarlock_sandbox::PADDLE_API_KEY),
            &["forbidden", "paddle.billing.api_key", "customer.read"],
        )
        .await;
    trial.waits_at("page", Fault::html(404), &["paddle.billing.api_url"]).await;
}

/// Wrong for everybody alike, wherever it happens.
async fn misconfigured(act: Act) -> Trial {
    let trial = Trial::start(act, quiet()).await;
    let address = match act.service() {
        Service::JiraCloud | Service::JiraDataCenter => "jira.base_url",
        Service::Slack => "slack.base_url",
        Service::Paddle => "paddle.billing.api_url",
    };
    let elsewhere = Fault::status(302).header("Location", "https://elsewhere.example/login");
    trial.waits_at("redirect", elsewhere, &["HTTP 302", "redirect", address]).await;
    trial.waits_at("moved", Fault::status(301), &["HTTP 301", address]).await;
    trial.waits_at("proxy", Fault::html(403), &["HTTP 403"]).await;
    trial
}

/// Hardly polls: what wakes the worker is what is done.
fn quiet() -> Settings {
    settings().set("OARLOCK_WORKER__POLL_INTERVAL", "10s")
}

impl Trial {
    async fn waits_at(&self, who: &str, fault: Fault, reason: &[&str]) {
        self.waits(who, || self.goes_wrong(fault), || self.is_mended(), reason).await;
    }

    /// Nothing is lost by a mistake in the configuration: the destination pauses for a reason that can be understood, and
    /// goes on as soon as it is mended and somebody says so.
    async fn waits(&self, who: &str, mistake: impl FnOnce(), mended: impl FnOnce(), reason: &[&str]) {
        mistake();
        self.pays(who).await;
        self.until_paused_for_long().await;
        let said = self.pauses().await;
        assert!(reason.iter().all(|part| said.contains(part)), "{who}: {said}");
        self.is_handed_back().await;
        self.is_now(who, "pending 0").await;
        assert_eq!(self.effects(who), 0, "{who}");
        assert_eq!(self.oarlock.value::<i64>("select count(*) from outbox_action where status = 'dead'").await, 0);
        let metric = format!("oarlock_destination_paused{{destination=\"{}\"}}", self.act.destination());
        assert_eq!(self.oarlock.worker().metric(&metric).await, Some(1.0));
        self.others_are_done().await;

        mended();
        let took = self.resumes().await;
        assert!(took < Duration::from_secs(1), "{who}: it took {took:?}");
        self.oarlock.settles().await;
        let row = self.rows(who).await.join(", ");
        // Data Center makes the account in one call and lets it in by another.
        let halfway = self.act == DataCenterInvite && row == "done already invited 1";
        assert!(halfway || row == format!("done {} 1", self.act.outcome()), "{who}: {row}");
        self.oarlock.sees("it is done over there", |sandbox| self.act.effects(sandbox, who) > 0).await;
        assert_eq!(self.effects(who), 1, "{who}");
        assert_eq!(self.pauses().await, "");
        assert!(
            self.oarlock.value::<bool>("select bool_and(not probing and failures = 0) from destination").await,
            "{who}"
        );
    }

    /// The operator ends the pause; returns how long it took until somebody called.
    async fn resumes(&self) -> Duration {
        let calls =
            |sandbox: &Sandbox| sandbox.calls().iter().filter(|call| call.service == self.act.service()).count();
        let (before, resumed) = (calls(&self.oarlock.sandbox), Instant::now());
        match self.act.destination() {
            "jira" => self.oarlock.sql("update destination set paused_until = null where name = 'jira'").await,
            "slack" => self.oarlock.sql("update destination set paused_until = null where name = 'slack'").await,
            _ => self.oarlock.sql("update destination set paused_until = null where name = 'paddle'").await,
        };
        self.oarlock.sees("it is called again", |sandbox| calls(sandbox) > before).await;
        resumed.elapsed()
    }
}

#[tokio::test]
async fn paddle_misconfigured_without_a_key() {
    let mut trial = Trial::start(PaddleCustomer, settings().set("OARLOCK_PADDLE__BILLING__API_KEY", "")).await;
    trial.pays("ann").await;
    trial.until_paused_for_long().await;
    let said = trial.pauses().await;
    assert!(said.contains("set paddle.billing.api_key"), "{said}");
    trial.is_handed_back().await;
    trial.is_now("ann", "pending 0").await;
    assert_eq!(trial.calls().len(), 0);
    trial.others_are_done().await;

    trial.oarlock.set("OARLOCK_PADDLE__BILLING__API_KEY", oarlock_sandbox::PADDLE_API_KEY);
    trial.oarlock.workers.remove(0).stops().await;
    trial.oarlock.start_worker().await;
    trial.resumes().await;
    trial.is("ann", "done unchanged 1").await;
    trial.oarlock.sees("Ann is invited", |sandbox| sandbox.slack().invited("ann@example.com")).await;
}

#[tokio::test]
async fn one_at_a_time_tries_whether_it_is_mended() {
    let trial = Trial::start(SlackInvite, settings().workers(2)).await;
    let slack = trial.oarlock.slack();
    slack.set_token("another");
    for who in ["ann", "bob", "eve", "zoe"] {
        trial.pays(who).await;
    }
    trial.until_paused_for_long().await;
    trial.is_handed_back().await;
    let mut lasts: f64 = 5.0;
    for _ in 0..4 {
        let before = trial.calls().len();
        // The pause is over, and nothing is mended.
        trial.oarlock.sql("update destination set paused_until = now() where name = 'slack'").await;
        trial.until_paused_for_long().await;
        trial.is_handed_back().await;
        assert_eq!(trial.calls().len(), before + 1);
        lasts = (lasts * 2.0).min(60.0);
        let minutes =
            "select extract(epoch from paused_until - now())::float8 / 60 from destination where name = 'slack'";
        let minutes: f64 = trial.oarlock.value(minutes).await;
        assert!((lasts - 0.5..=lasts).contains(&minutes), "{minutes} and not {lasts} minutes");
    }
    assert_eq!(
        trial.oarlock.value::<i64>("select sum(attempts) from outbox_action where kind = 'slack_invite'").await,
        0
    );

    // It is mended while nobody looks: the next probe finds out, and all go on.
    slack.set_token(oarlock_sandbox::SLACK_TOKEN);
    trial.oarlock.sql("update destination set paused_until = now() where name = 'slack'").await;
    for who in ["ann", "bob", "eve", "zoe"] {
        trial.is(who, "done invited 1").await;
    }
    assert!(
        trial.oarlock.value::<bool>("select not probing and failures = 0 from destination where name = 'slack'").await
    );
}

// Permanent

#[tokio::test]
async fn slack_permanent() {
    let trial = Trial::start(SlackInvite, settings()).await;
    trial.oarlock.slack().deactivate("disabled@example.com");
    trial.is_hopeless("disabled", "user_disabled").await;
    for code in ["invalid_email", "failed_looking_up_user", "user_not_found"] {
        trial.goes_wrong(Fault::slack_error(code).times(1));
        trial.is_hopeless(code, code).await;
    }
}

#[tokio::test]
async fn jira_cloud_permanent() {
    let trial = Trial::start(CloudInvite, settings()).await;
    trial.goes_wrong(Fault::status(400).body(json!({ "errorMessage": "The address is suppressed." })).times(1));
    trial.is_hopeless("refused", "The address is suppressed.").await;
    // What Jira refuses is not quoted with the address.
    trial.goes_wrong(Fault::status(400).body(json!({ "errorMessage": "quoted@example.com is suppressed." })).times(1));
    trial.is_hopeless("quoted", "(address) is suppressed.").await;
}

#[tokio::test]
async fn jira_cloud_access_permanent() {
    access_permanent(CloudAccess).await;
}

#[tokio::test]
async fn jira_data_center_permanent() {
    let trial = Trial::start(DataCenterInvite, settings()).await;
    trial.goes_wrong(Fault::status(400).body(json!({ "errorMessage": "The address is suppressed." })).times(1));
    trial.is_hopeless("refused", "The address is suppressed.").await;
    // Two accounts of one address: whichever we took could be somebody else's.
    let jira = trial.oarlock.jira();
    jira.create_account("first@example.com", "First");
    jira.create_account("second@example.com", "Second");
    jira.change_email("first@example.com", "twice@example.com");
    jira.change_email("second@example.com", "twice@example.com");
    trial.is_hopeless("twice", "several accounts").await;
}

#[tokio::test]
async fn jira_data_center_access_permanent() {
    access_permanent(DataCenterAccess).await;
}

async fn access_permanent(act: Act) {
    let trial = Trial::start(act, settings()).await;
    trial.goes_wrong(Fault::status(400).body(json!({ "errorMessages": ["The account is locked."] })).times(1));
    trial.is_hopeless("locked", "The account is locked.").await;
}

#[tokio::test]
async fn paddle_permanent() {
    let trial = Trial::start(PaddleCustomer, settings()).await;
    trial.oarlock.paddle_api().set_customer("ctm_nowhere", "nowhere");
    trial.is_hopeless_as_it_is("nowhere", "no usable e-mail address").await;
    trial.is_hopeless_as_it_is("stranger", "HTTP 404").await;
    trial.goes_wrong(Fault::status(400).times(1));
    trial.is_hopeless("refused", "HTTP 400").await;
    // What would lead to another path is not asked at all.
    let before = trial.calls().len();
    trial.oarlock.billing_sends(&Billing::transaction_completed("ctm_1/../../events")).await;
    trial.oarlock.settles().await;
    let dead = "select count(*) from dead_letter where customer_id = 'ctm_1/../../events' and attempts = 1";
    assert_eq!((trial.oarlock.value::<i64>(dead).await, trial.calls().len()), (1, before));
}

impl Trial {
    async fn is_hopeless(&self, who: &str, error: &str) {
        self.introduces(who);
        self.is_hopeless_as_it_is(who, error).await;
    }

    /// It would never work: it is dead after its first attempt.
    async fn is_hopeless_as_it_is(&self, who: &str, error: &str) {
        self.pays_as_it_is(who).await;
        self.is(who, "dead 1").await;
        self.is_a_dead_letter(who, 1, error).await;
        assert_eq!((self.history(who).await.len(), self.effects(who)), (1, 0), "{who}");
        self.others_are_done().await;
        assert_eq!(self.pauses().await, "");
    }
}

// Unknown

#[tokio::test]
async fn slack_unknown() {
    unknown(SlackInvite, Fault::slack_error("never_heard_of"), "never_heard_of").await;
}

#[tokio::test]
async fn jira_cloud_unknown() {
    unknown(CloudInvite, Fault::status(418), "HTTP 418").await;
}

#[tokio::test]
async fn jira_cloud_access_unknown() {
    unknown(CloudAccess, Fault::status(418), "HTTP 418").await;
}

#[tokio::test]
async fn jira_data_center_unknown() {
    unknown(DataCenterInvite, Fault::status(418), "HTTP 418").await;
}

#[tokio::test]
async fn jira_data_center_access_unknown() {
    unknown(DataCenterAccess, Fault::status(418), "HTTP 418").await;
}

#[tokio::test]
async fn paddle_unknown() {
    unknown(PaddleCustomer, Fault::status(418), "HTTP 418").await;
}

/// A few attempts, of the twenty that there are; or fewer, if it passes.
async fn unknown(act: Act, fault: Fault, code: &str) {
    let trial = Trial::start(act, settings()).await;
    trial.goes_wrong(fault.clone());
    trial.pays("ann").await;
    trial.is("ann", "dead 5").await;
    trial.is_a_dead_letter("ann", 5, code).await;
    assert_eq!((trial.history("ann").await.len(), trial.calls().len(), trial.effects("ann")), (5, 5, 0));
    trial.others_are_done().await;
    assert_eq!(trial.pauses().await, "");

    trial.is_mended();
    // It is the first time in either case, however often something else went wrong before.
    trial.goes_wrong(Fault::status(500).times(5));
    trial.goes_wrong(fault.times(2));
    trial.pays("bob").await;
    trial.is("bob", &format!("done {} 8", act.outcome())).await;
    trial.oarlock.sees("it is done over there", |sandbox| act.effects(sandbox, "bob") == 1).await;
}

// What is asked and looked at above

impl Act {
    fn service(self) -> Service {
        match self {
            CloudInvite | CloudAccess => Service::JiraCloud,
            DataCenterInvite | DataCenterAccess => Service::JiraDataCenter,
            SlackInvite => Service::Slack,
            PaddleCustomer => Service::Paddle,
        }
    }

    fn edition(self) -> Edition {
        match self {
            DataCenterInvite | DataCenterAccess => Edition::DataCenter,
            CloudInvite | CloudAccess | SlackInvite | PaddleCustomer => Edition::Cloud,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            CloudInvite | DataCenterInvite => "jira_invite",
            CloudAccess | DataCenterAccess => "jira_access",
            SlackInvite => "slack_invite",
            PaddleCustomer => "paddle_customer",
        }
    }

    fn destination(self) -> &'static str {
        match self {
            CloudInvite | DataCenterInvite | CloudAccess | DataCenterAccess => "jira",
            SlackInvite => "slack",
            PaddleCustomer => "paddle",
        }
    }

    /// The call that does it; there are others before and after.
    fn call(self) -> (&'static str, &'static str) {
        match self {
            CloudInvite => ("POST", "/rest/servicedeskapi/servicedesk/3/customer/invite"),
            CloudAccess => ("POST", "/rest/api/3/group/user"),
            DataCenterInvite => ("POST", "/rest/servicedeskapi/customer"),
            DataCenterAccess => ("POST", "/rest/api/2/group/user"),
            SlackInvite => ("POST", "/admin.users.invite"),
            PaddleCustomer => ("GET", "/customers/*"),
        }
    }

    /// What it comes to when nobody did it before.
    fn outcome(self) -> &'static str {
        match self {
            CloudInvite | DataCenterInvite | SlackInvite => "invited",
            CloudAccess | DataCenterAccess => "granted",
            PaddleCustomer => "unchanged",
        }
    }

    /// How often it was done for a customer, over there. An address is worth an invitation.
    fn effects(self, sandbox: &Sandbox, who: &str) -> usize {
        let (jira, slack, email) = (sandbox.jira(self.edition()), sandbox.slack(), email(who));
        match self {
            CloudInvite => jira.invited(&email),
            DataCenterInvite => usize::from(jira.service_desk("3").has(&email) || jira.service_desk("4").has(&email)),
            CloudAccess | DataCenterAccess => usize::from(jira.group(GROUP).has(&email)),
            SlackInvite | PaddleCustomer => {
                slack.invitations().iter().filter(|one| one.email == email).map(|one| one.count as usize).sum()
            }
        }
    }
}

fn email(who: &str) -> String {
    format!("{who}@example.com")
}

/// Each alert has one action of the kind that is looked at, and one of another destination.
fn settings() -> Settings {
    Settings::default()
        .set("OARLOCK_WORKER__POLL_INTERVAL", "100ms")
        .set("OARLOCK_ROUTES__SUBSCRIPTION_CREATED", "jira_access,slack_invite")
        .set("OARLOCK_ROUTES__SUBSCRIPTION_CANCELLED", "jira_access")
}

/// A running system, of which one kind of action is looked at.
#[derive(Debug)]
struct Trial {
    act: Act,
    oarlock: Oarlock,
}

#[derive(Debug, sqlx::FromRow)]
struct Attempt {
    attempt: i32,
    http_status: Option<i32>,
    error: Option<String>,
}

impl Trial {
    async fn start(act: Act, settings: Settings) -> Self {
        Self { act, oarlock: settings.jira(act.edition()).start().await }
    }

    fn goes_wrong(&self, fault: Fault) {
        let (method, path) = self.act.call();
        let fault = fault.on(method, path);
        match self.act.service() {
            Service::JiraCloud | Service::JiraDataCenter => self.oarlock.jira().fail(fault),
            Service::Slack => self.oarlock.slack().fail(fault),
            Service::Paddle => self.oarlock.paddle_api().fail(fault),
        }
    }

    fn is_mended(&self) {
        self.oarlock.jira().clear_faults();
        self.oarlock.slack().clear_faults();
        self.oarlock.paddle_api().clear_faults();
    }

    /// Billing knows a customer by a number, and by an address that only Paddle's API tells.
    fn introduces(&self, who: &str) {
        self.oarlock.paddle_api().set_customer(&format!("ctm_{who}"), &email(who));
    }

    /// Somebody pays, which leads to one action of the kind looked at, and to one of another destination.
    async fn pays(&self, who: &str) {
        self.introduces(who);
        self.pays_as_it_is(who).await;
    }

    async fn pays_as_it_is(&self, who: &str) {
        match self.act {
            CloudInvite | DataCenterInvite | SlackInvite => {
                self.oarlock.paddle_sends(&Classic::payment_succeeded(&email(who))).await
            }
            CloudAccess | DataCenterAccess => {
                self.oarlock.paddle_sends(&Classic::subscription_created(&email(who)).subscription(who)).await
            }
            PaddleCustomer => {
                let payment =
                    Billing::transaction_completed(&format!("ctm_{who}")).set("/data/subscription_id", Value::Null);
                self.oarlock.billing_sends(&payment).await;
                self.oarlock
                    .paddle_sends(&Classic::payment_succeeded(&format!("neighbour_of_{who}@example.com")))
                    .await;
            }
        }
    }

    async fn leaves(&self, who: &str) {
        self.oarlock.paddle_sends(&Classic::subscription_cancelled(&email(who)).subscription(who).ended()).await;
    }

    /// Waits until the customer's action has ended, and looks how.
    async fn is(&self, who: &str, row: &str) {
        self.oarlock.settles().await;
        self.is_now(who, row).await;
    }

    async fn is_now(&self, who: &str, row: &str) {
        assert_eq!(self.rows(who).await, [row], "{who}: {}\n{}", self.oarlock.outbox().await, self.oarlock.logs());
    }

    /// The same of the last of several actions.
    async fn is_in_the_end(&self, who: &str, row: &str) {
        self.oarlock.settles().await;
        let rows = self.rows(who).await;
        assert_eq!(rows.last().map(String::as_str), Some(row), "{who}: {}", self.oarlock.outbox().await);
    }

    fn subject(&self, who: &str) -> String {
        if self.act == PaddleCustomer { format!("ctm_{who}") } else { email(who) }
    }

    /// The customer's actions of this kind: `status outcome attempts`.
    async fn rows(&self, who: &str) -> Vec<String> {
        sqlx::query_scalar("select concat_ws(' ', status, outcome, attempts) from outbox_action where kind = $1 and subject = $2 order by id")
            .bind(self.act.kind())
            .bind(self.subject(who))
            .fetch_all(self.oarlock.pool())
            .await
            .expect("the query is right")
    }

    async fn history(&self, who: &str) -> Vec<Attempt> {
        sqlx::query_as(
            "select t.attempt, t.http_status, t.error from outbox_attempt t join outbox_action a on a.id = t.action_id
             where a.kind = $1 and a.subject = $2 and t.duration_ms >= 0 and t.started_at between a.created_at and now() order by t.id",
        )
        .bind(self.act.kind())
        .bind(self.subject(who))
        .fetch_all(self.oarlock.pool())
        .await
        .expect("the query is right")
    }

    async fn is_a_dead_letter(&self, who: &str, attempts: i32, error: &str) {
        let (tried, said): (i32, String) = sqlx::query_as(
            "select d.attempts, d.last_error from dead_letter d join outbox o on o.id = d.outbox_id
             where d.kind = $1 and coalesce(d.email, d.customer_id) = $2 and d.destination = $3 and o.status = 'dead'",
        )
        .bind(self.act.kind())
        .bind(self.subject(who))
        .bind(self.act.destination())
        .fetch_one(self.oarlock.pool())
        .await
        .expect("the query is right");
        assert_eq!(tried, attempts, "{who}");
        assert!(!said.is_empty() && said.contains(error), "{who}: {said}");
    }

    fn effects(&self, who: &str) -> usize {
        self.act.effects(&self.oarlock.sandbox, who)
    }

    /// The calls that were to do it.
    fn calls(&self) -> Vec<Call> {
        let (method, path) = self.act.call();
        let start = path.trim_end_matches('*');
        let is_one = |call: &Call| call.service == self.act.service() && call.method == method;
        let there = |call: &Call| if start == path { call.path == path } else { call.path.starts_with(start) };
        self.oarlock.sandbox.calls().into_iter().filter(|call| is_one(call) && there(call)).collect()
    }

    /// What pauses for which reason, of all destinations.
    async fn pauses(&self) -> String {
        let pauses = "select coalesce(string_agg(name || ': ' || coalesce(paused_reason, ''), ', '), '') from destination where paused_until > now()";
        self.oarlock.value(pauses).await
    }

    async fn until_paused(&self) {
        let query = match self.act.destination() {
            "jira" => "select paused_until > now() from destination where name = 'jira'",
            "slack" => "select paused_until > now() from destination where name = 'slack'",
            _ => "select paused_until > now() from destination where name = 'paddle'",
        };
        self.oarlock.until("the pause", query).await;
    }

    async fn until_paused_for_long(&self) {
        let query = match self.act.destination() {
            "jira" => "select paused_until > now() + interval '4 min' from destination where name = 'jira'",
            "slack" => "select paused_until > now() + interval '4 min' from destination where name = 'slack'",
            _ => "select paused_until > now() + interval '4 min' from destination where name = 'paddle'",
        };
        self.oarlock.until("the pause", query).await;
    }

    async fn is_handed_back(&self) {
        let query = match self.act.destination() {
            "jira" => "select not exists (select from outbox_action where destination = 'jira' and status = 'running')",
            "slack" => {
                "select not exists (select from outbox_action where destination = 'slack' and status = 'running')"
            }
            _ => "select not exists (select from outbox_action where destination = 'paddle' and status = 'running')",
        };
        self.oarlock.until("all is handed back", query).await;
    }

    /// The other destinations' actions, of which there are some.
    async fn others_are_done(&self) {
        let query = match self.act.destination() {
            "jira" => "select bool_and(status = 'done') from outbox_action where destination <> 'jira'",
            "slack" => "select bool_and(status = 'done') from outbox_action where destination <> 'slack'",
            _ => "select bool_and(status = 'done') from outbox_action where destination <> 'paddle'",
        };
        self.oarlock.until("the others are done", query).await;
    }
}
