//! The clients of Jira, Slack and Paddle against stand-ins that keep state and speak HTTP: what the vendor then holds, and
//! what each way of going wrong means.

use std::time::Duration;

use oarlock_sandbox::{Edition, Fault, Options, Sandbox};
use oarlock_service::config::{self, JiraAccess, JiraEdition, Membership, SlackMode};
use oarlock_worker::failure::{Failure, Meaning};
use oarlock_worker::finding::Finding;
use oarlock_worker::jira::{AccountId, Jira};
use oarlock_worker::outcome::{Added, InviteOutcome, Removed};
use oarlock_worker::paddle::Paddle;
use oarlock_worker::slack::Slack;
use serde_json::json;

const ANN: &str = "ann@example.com";
const EDITIONS: [Edition; 2] = [Edition::Cloud, Edition::DataCenter];
const TIMEOUT: Duration = Duration::from_secs(5);
const INVITE_PATH: &str = "/rest/servicedesk/1/pages/people/customers/pagination/SUP/invite";

async fn sandbox() -> Sandbox {
    Sandbox::start(Options::default()).await.expect("a free port")
}

/// For exchanges that no vendor describes: kept out of the transcript that is checked against the descriptions.
async fn unrecorded() -> Sandbox {
    Sandbox::start(Options { transcript: None, ..Options::default() }).await.expect("a free port")
}

fn group() -> Membership {
    Membership::Group("commercial-support".to_owned())
}

fn organization() -> Membership {
    Membership::Organization("17".to_owned())
}

fn jira_settings(sandbox: &Sandbox, edition: Edition) -> config::Jira {
    let access = [group(), organization()].map(|grants| JiraAccess { plans: vec!["*".to_owned()], grants });
    let (edition, base_url, user, token) = match edition {
        Edition::Cloud => (JiraEdition::Cloud, sandbox.jira_cloud_url(), Some("bot@acme.example"), "jira-token"),
        Edition::DataCenter => (JiraEdition::DataCenter, sandbox.jira_dc_url(), None, "jira-dc-token"),
    };
    config::Jira {
        edition,
        base_url: base_url.parse().expect("a URL"),
        user: user.map(str::to_owned),
        token: token.into(),
        service_desk_id: Some("3".to_owned()),
        invite_path: None,
        access: access.into(),
        revoke_on_full_refund: false,
    }
}

fn jira(sandbox: &Sandbox, edition: Edition) -> Jira {
    Jira::new(&jira_settings(sandbox, edition), TIMEOUT).expect("good settings")
}

fn channels() -> Vec<String> {
    vec!["C1".to_owned(), "C2".to_owned()]
}

fn slack(sandbox: &Sandbox, mode: SlackMode) -> Slack {
    let settings =
        config::Slack { mode, base_url: sandbox.slack_url().parse().expect("a URL"), token: "xoxp-sandbox".into() };
    Slack::new(&settings, TIMEOUT).expect("good settings")
}

fn paddle(sandbox: &Sandbox) -> Paddle {
    let api_url = sandbox.paddle_url().parse().expect("a URL");
    let settings = config::PaddleApi { api_url, api_key: Some("pdl_sdbx_apikey_sandbox".into()) };
    Paddle::new(&settings, TIMEOUT).expect("good settings")
}

#[track_caller]
fn meaning<T: std::fmt::Debug>(result: Result<T, Failure>) -> Meaning {
    let failure = result.expect_err("this goes wrong");
    assert!(!failure.detail().contains('@') && !failure.detail().contains("http://"), "{failure}");
    failure.meaning
}

#[track_caller]
fn all_well(findings: &[Finding]) {
    assert!(!findings.is_empty() && findings.iter().all(|finding| finding.result.is_ok()), "{findings:#?}");
}

fn wrong(findings: Vec<Finding>) -> Vec<String> {
    findings.into_iter().filter(|finding| finding.result.is_err()).map(|finding| finding.name()).collect()
}

#[tokio::test]
async fn jira_invites_once() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        assert_eq!(jira.find(ANN).await, Ok(None));
        let first = jira.invite(ANN, None).await.expect("invited");
        assert_eq!(first.outcome, InviteOutcome::Invited);
        assert_eq!(Some(first.account.as_str()), site.account_id(ANN).as_deref());
        assert!(site.service_desk("3").has(ANN));

        site.service_desk("3").remove_member(ANN);
        let again = jira.invite("Ann@Example.com", None).await.expect("known");
        assert_eq!((again.outcome, &again.account), (InviteOutcome::AlreadyInvited, &first.account));
        assert!(site.service_desk("3").has(ANN));

        site.service_desk("3").remove_member(ANN);
        let known = jira.invite(ANN, Some(&first.account)).await.expect("known");
        assert_eq!((known.outcome, &known.account), (InviteOutcome::AlreadyInvited, &first.account));
        assert!(site.service_desk("3").has(ANN));
        assert_eq!(jira.find(ANN).await, Ok(Some(first.account)));
    }
    assert_eq!(sandbox.jira_cloud().invited(ANN), 1);
}

#[tokio::test]
async fn jira_without_a_service_desk_makes_the_account() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let settings = config::Jira { service_desk_id: None, ..jira_settings(&sandbox, edition) };
        let jira = Jira::new(&settings, TIMEOUT).expect("good settings");
        let first = jira.invite(ANN, None).await.expect("invited");
        assert_eq!(first.outcome, InviteOutcome::Invited);
        for known in [None, Some(&first.account)] {
            let again = jira.invite(ANN, known).await.expect("known");
            assert_eq!((again.outcome, &again.account), (InviteOutcome::AlreadyInvited, &first.account));
        }
        all_well(&jira.check().await);
    }
}

#[tokio::test]
async fn data_center_mails_by_its_own_page() {
    let sandbox = sandbox().await;
    let settings = |path: &str| config::Jira {
        user: Some("oarlock-bot".to_owned()),
        token: "jira-dc-password".into(),
        invite_path: Some(path.to_owned()),
        ..jira_settings(&sandbox, Edition::DataCenter)
    };
    let jira = Jira::new(&settings(INVITE_PATH), TIMEOUT).expect("good settings");
    assert_eq!(jira.invite(ANN, None).await.map(|invited| invited.outcome), Ok(InviteOutcome::Invited));
    assert_eq!(jira.invite(ANN, None).await.map(|invited| invited.outcome), Ok(InviteOutcome::AlreadyInvited));
    assert_eq!(sandbox.jira_dc().invited(ANN), 1);
    let jira = Jira::new(&settings("/rest/servicedesk/1/pages/people/customers/pagination/NO/invite"), TIMEOUT);
    let result = jira.expect("good settings").invite("bob@example.com", None).await;
    assert!(result.as_ref().is_err_and(|failure| failure.detail().contains("jira.invite_path")), "{result:?}");
    assert_eq!(meaning(result), Meaning::Configuration);
}

#[tokio::test]
async fn jira_membership_comes_and_goes() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        let account = jira.invite(ANN, None).await.expect("invited").account;
        for (membership, members) in
            [(group(), site.group("commercial-support")), (organization(), site.organization("17"))]
        {
            assert_eq!(jira.is_member(&membership, &account).await, Ok(false));
            assert_eq!(jira.add(&membership, &account).await, Ok(Added::Now));
            assert!(members.has(ANN));
            assert_eq!(jira.is_member(&membership, &account).await, Ok(true));
            assert!(jira.add(&membership, &account).await.is_ok());
            assert_eq!(jira.remove(&membership, &account).await, Ok(Removed::Now));
            assert!(!members.has(ANN));
            assert!(jira.remove(&membership, &account).await.is_ok());
            assert_eq!(jira.is_member(&membership, &account).await, Ok(false));
        }
        site.group("commercial-support").add_member(ANN);
        assert_eq!(jira.add(&group(), &account).await, Ok(Added::Already));
        site.group("commercial-support").remove_member(ANN);
        for status in [400, 404] {
            site.set_absent_member_status(status);
            assert_eq!(jira.remove(&group(), &account).await, Ok(Removed::NotThere), "{status}");
        }
    }
}

#[tokio::test]
async fn jira_lists_are_read_to_their_end() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        for number in 0..120 {
            site.group("commercial-support").add_member(&format!("{number:03}@example.com"));
            site.organization("17").add_member(&format!("{number:03}@example.com"));
            let other = site.create_organization(&format!("organization {number}"));
            site.organization(&other).add_member("119@example.com");
        }
        let last = jira.find("119@example.com").await.expect("found").expect("one");
        for membership in [group(), organization()] {
            assert_eq!(jira.is_member(&membership, &last).await, Ok(true), "{membership:?}");
        }
    }
}

#[tokio::test]
async fn jira_cloud_finds_a_group_that_was_made_again() {
    let sandbox = sandbox().await;
    let (jira, site) = (jira(&sandbox, Edition::Cloud), sandbox.jira_cloud());
    let account = jira.invite(ANN, None).await.expect("invited").account;
    let remake = || {
        site.delete_group("commercial-support");
        site.create_group("commercial-support");
    };
    assert_eq!(jira.add(&group(), &account).await, Ok(Added::Now));
    remake();
    assert_eq!(jira.add(&group(), &account).await, Ok(Added::Now));
    remake();
    site.group("commercial-support").add_member(ANN);
    assert_eq!(jira.is_member(&group(), &account).await, Ok(true));
    assert_eq!(jira.remove(&group(), &account).await, Ok(Removed::Now));
    assert!(!site.group("commercial-support").has(ANN));
}

#[tokio::test]
async fn jira_says_that_an_account_is_gone() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let jira = jira(&sandbox, edition);
        let nobody = AccountId::new("nobody");
        assert_eq!(meaning(jira.invite(ANN, Some(&nobody)).await), Meaning::AccountGone);
        for membership in [group(), organization()] {
            assert_eq!(meaning(jira.is_member(&membership, &nobody).await), Meaning::AccountGone, "{membership:?}");
            assert_eq!(meaning(jira.add(&membership, &nobody).await), Meaning::AccountGone, "{membership:?}");
            assert_eq!(meaning(jira.remove(&membership, &nobody).await), Meaning::AccountGone, "{membership:?}");
        }
    }
}

#[tokio::test]
async fn jira_names_what_the_configuration_has_wrong() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        all_well(&jira.check().await);
        let account = jira.invite(ANN, None).await.expect("invited").account;
        site.delete_group("commercial-support");
        site.delete_organization("17");
        site.delete_service_desk("3");
        for (membership, name) in [(group(), "commercial-support"), (organization(), "organization 17")] {
            let result = jira.add(&membership, &account).await;
            assert!(result.as_ref().is_err_and(|failure| failure.detail().contains(name)), "{result:?}");
            // Of organizations Cloud does not tell whether they are gone or not shown.
            let is_told = edition == Edition::DataCenter || membership == group();
            assert_eq!(meaning(result), if is_told { Meaning::TargetGone } else { Meaning::Configuration });
        }
        for known in [None, Some(&account)] {
            let result = jira.invite(ANN, known).await;
            assert!(result.as_ref().is_err_and(|failure| failure.detail().contains("service desk 3")), "{result:?}");
            assert_eq!(meaning(result), Meaning::Configuration);
        }
        let missing = ["jira.service_desk 3", "jira.group commercial-support", "jira.organization 17"];
        assert_eq!(wrong(jira.check().await), missing);

        site.lack_permission(true);
        assert_eq!(meaning(jira.invite("bob@example.com", None).await), Meaning::Configuration);
        assert!(wrong(jira.check().await).contains(&"jira.search".to_owned()));
    }
}

#[tokio::test]
async fn jira_says_that_a_token_is_wrong() {
    let sandbox = unrecorded().await;
    for edition in EDITIONS {
        let jira = jira(&sandbox, edition);
        sandbox.jira(edition).set_token("another");
        let result = jira.find(ANN).await;
        assert!(
            result.as_ref().is_err_and(|failure| failure.detail().contains("token wrong or expired")),
            "{result:?}"
        );
        assert_eq!(meaning(result), Meaning::Configuration);
        assert!(wrong(jira.check().await).contains(&"jira.credentials".to_owned()));
        let shown = format!("{jira:?}");
        assert!(!shown.contains('@') && !shown.contains("-token"), "{shown}");
    }
}

#[tokio::test]
async fn jira_of_the_other_edition_is_seen() {
    let sandbox = unrecorded().await;
    let cloud = config::Jira {
        base_url: sandbox.jira_dc_url().parse().expect("a URL"),
        ..jira_settings(&sandbox, Edition::Cloud)
    };
    let data_center = config::Jira {
        base_url: sandbox.jira_cloud_url().parse().expect("a URL"),
        ..jira_settings(&sandbox, Edition::DataCenter)
    };
    for settings in [cloud, data_center] {
        let jira = Jira::new(&settings, TIMEOUT).expect("good settings");
        // Whoever does not know us says nothing else.
        let findings = jira.check().await;
        let trouble = findings[0].result.as_ref().expect_err("it is not what it should be");
        assert!(findings.len() == 1 && trouble.remedy.contains("jira.edition"), "{findings:?}");
    }
}

#[tokio::test]
async fn jira_hides_addresses_and_indexes_late() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        site.create_account("ann@example.com.au", ANN);
        assert_eq!(jira.find(ANN).await, Ok(None), "the first hit is somebody else");
        let account = AccountId::new(site.create_account(ANN, "Ann"));
        assert_eq!(jira.find(ANN).await, Ok(Some(account.clone())));
        site.hide_email(ANN);
        match edition {
            // Not even administrators can tell; the invitation cannot either.
            Edition::Cloud => {
                assert_eq!(jira.find(ANN).await, Ok(None));
                assert_eq!(meaning(jira.invite(ANN, None).await), Meaning::NotShown);
            }
            Edition::DataCenter => assert_eq!(jira.find(ANN).await, Ok(Some(account.clone()))),
        }
        // Who keeps the id is not concerned.
        assert_eq!(jira.add(&group(), &account).await, Ok(Added::Now));

        site.set_index_lag(1);
        site.fail(Fault::effect_then_reset().on("POST", "/rest/servicedeskapi/**").times(1));
        assert!(matches!(meaning(jira.invite("bob@example.com", None).await), Meaning::Transient { .. }));
        let again = jira.invite("bob@example.com", None).await.expect("there by now");
        assert_eq!(again.outcome, InviteOutcome::AlreadyInvited);
        assert!(site.service_desk("3").has("bob@example.com"));
    }
    assert_eq!(sandbox.jira_cloud().invited("bob@example.com"), 1);
}

#[tokio::test]
async fn jira_refuses_a_customer() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        assert_eq!(meaning(jira.invite("no address", None).await), Meaning::Permanent);
        site.restrict_portal_access(true);
        let account = jira.invite(ANN, None).await.expect("invited").account;
        assert_eq!(meaning(jira.add(&group(), &account).await), Meaning::Permanent);
        assert_eq!(jira.add(&organization(), &account).await, Ok(Added::Now));
    }
}

/// A site may say so as it says of everything that is missing: one customer's account does not stop the others.
#[tokio::test]
async fn jira_cloud_does_not_find_a_customer_for_a_group() {
    let sandbox = sandbox().await;
    let (jira, site) = (jira(&sandbox, Edition::Cloud), sandbox.jira_cloud());
    let portal_only = jira.invite(ANN, None).await.expect("invited").account;
    let atlassian = AccountId::new(site.create_account("bob@example.com", "Bob"));
    site.fail(Fault::status(404).on("POST", "/rest/api/3/group/user"));
    let refused = jira.add(&group(), &portal_only).await;
    assert!(refused.as_ref().is_err_and(|failure| failure.detail().contains("organization")), "{refused:?}");
    assert_eq!(meaning(refused), Meaning::Permanent);
    assert_eq!(meaning(jira.add(&group(), &atlassian).await), Meaning::Configuration);
}

/// Who may not browse finds nobody, and is told so with a 200.
#[tokio::test]
async fn jira_that_shows_nobody_is_a_matter_of_the_configuration() {
    let sandbox = unrecorded().await;
    for (edition, search, exists) in
        [(Edition::Cloud, "/rest/api/3/user/search", 409), (Edition::DataCenter, "/rest/api/2/user/search", 400)]
    {
        let settings = config::Jira { service_desk_id: None, ..jira_settings(&sandbox, edition) };
        let (jira, site) = (Jira::new(&settings, TIMEOUT).expect("good settings"), sandbox.jira(edition));
        site.fail(Fault::status(200).body(json!([])).on("GET", search));
        site.fail(Fault::status(404).on("GET", "/rest/api/2/user"));
        site.fail(Fault::status(exists).on("POST", "/rest/servicedeskapi/customer"));
        let result = jira.invite(ANN, None).await;
        assert!(result.as_ref().is_err_and(|failure| failure.detail().contains("Browse users")), "{result:?}");
        assert_eq!(meaning(result), Meaning::Configuration);
    }
}

/// The page mails whenever it is asked.
#[tokio::test]
async fn data_center_does_not_mail_again_whom_it_cannot_find() {
    let sandbox = unrecorded().await;
    let settings =
        config::Jira { invite_path: Some(INVITE_PATH.to_owned()), ..jira_settings(&sandbox, Edition::DataCenter) };
    let (jira, site) = (Jira::new(&settings, TIMEOUT).expect("good settings"), sandbox.jira_dc());
    site.set_index_lag(1);
    site.fail(Fault::status(404).on("GET", "/rest/api/2/user"));
    assert_eq!(meaning(jira.invite(ANN, None).await), Meaning::Permanent);
    assert_eq!(site.invited(ANN), 1);
    site.clear_faults();
    site.fail(Fault::html(404).on("POST", INVITE_PATH));
    let result = jira.invite("bob@example.com", None).await;
    assert!(result.as_ref().is_err_and(|failure| failure.detail().contains("jira.invite_path")), "{result:?}");
}

#[tokio::test]
async fn jira_out_of_order() {
    let sandbox = sandbox().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        let account = jira.invite(ANN, None).await.expect("invited").account;
        let seven = Duration::from_secs(7);
        let table = [
            (Fault::status(500), Meaning::Transient { retry_after: None }),
            (Fault::status(503).retry_after(seven), Meaning::Transient { retry_after: Some(seven) }),
            (Fault::status(429).retry_after(seven), Meaning::RateLimited { retry_after: seven }),
            (Fault::status(429), Meaning::RateLimited { retry_after: Duration::from_secs(30) }),
            (Fault::html(502), Meaning::Transient { retry_after: None }),
            (Fault::reset(), Meaning::Transient { retry_after: None }),
            (Fault::status(401), Meaning::Configuration),
        ];
        for (fault, expected) in table {
            site.fail(fault);
            for membership in [group(), organization()] {
                assert_eq!(meaning(jira.is_member(&membership, &account).await), expected);
                assert_eq!(meaning(jira.add(&membership, &account).await), expected);
                assert_eq!(meaning(jira.remove(&membership, &account).await), expected);
            }
            assert_eq!(meaning(jira.find(ANN).await), expected);
            assert_eq!(meaning(jira.invite("bob@example.com", None).await), expected);
            site.clear_faults();
        }
        site.fail(Fault::malformed(200));
        assert_eq!(meaning(jira.find(ANN).await), Meaning::Transient { retry_after: None });
        site.clear_faults();
    }
}

/// What no description has, and what Jira or what lies before it has been seen to answer or may well.
#[tokio::test]
async fn jira_says_odd_things() {
    let sandbox = unrecorded().await;
    for edition in EDITIONS {
        let (jira, site) = (jira(&sandbox, edition), sandbox.jira(edition));
        let account = jira.invite(ANN, None).await.expect("invited").account;

        // The service desk's API is not there, though Jira and the account are.
        site.fail(Fault::status(404).on("*", "/rest/servicedeskapi/**"));
        assert_eq!(meaning(jira.is_member(&organization(), &account).await), Meaning::Configuration);
        assert_eq!(meaning(jira.add(&organization(), &account).await), Meaning::Configuration);
        assert_eq!(meaning(jira.remove(&organization(), &account).await), Meaning::Configuration);
        site.clear_faults();

        // A conflict is no membership.
        for (membership, path) in
            [(group(), "/rest/api/*/group/user"), (organization(), "/rest/servicedeskapi/organization/17/user")]
        {
            site.fail(Fault::status(409).on("POST", path));
            assert_eq!(meaning(jira.add(&membership, &account).await), Meaning::Unknown);
            site.clear_faults();

            // Done, and said with nothing under the header of a page; or not done, and said the same.
            let nothing = |status| Fault::empty_page(status).on("*", path);
            site.fail(nothing(204).after_effect().times(1));
            assert_eq!(jira.add(&membership, &account).await, Ok(Added::Now));
            site.fail(nothing(200).on("DELETE", path).times(1));
            assert_eq!(meaning(jira.remove(&membership, &account).await), Meaning::Transient { retry_after: None });
            site.fail(nothing(200).on("DELETE", path).after_effect().times(1));
            assert_eq!(jira.remove(&membership, &account).await, Ok(Removed::NotThere));
            site.fail(nothing(200).on("POST", path).after_effect().times(1));
            assert_eq!(jira.add(&membership, &account).await, Ok(Added::Already));
        }

        // A group without an id.
        if edition == Edition::Cloud {
            let groups = json!([{ "name": "old", "groupId": null }, { "name": "commercial-support", "groupId": "g" }]);
            site.fail(Fault::status(200).body(groups).on("GET", "/rest/api/3/user/groups").times(1));
            assert_eq!(jira.is_member(&group(), &account).await, Ok(true));
        }

        // Two accounts have the address: neither is provably theirs.
        let twin = |id| json!({ "accountId": id, "name": id, "emailAddress": ANN });
        site.fail(Fault::status(200).body(json!([twin("1"), twin("2")])).on("GET", "/rest/api/*/user/search"));
        assert_eq!(meaning(jira.find(ANN).await), Meaning::Permanent);
        site.clear_faults();
    }
}

#[tokio::test]
async fn a_silent_vendor_is_given_up() {
    let sandbox = sandbox().await;
    let settings = jira_settings(&sandbox, Edition::Cloud);
    let jira = Jira::new(&settings, Duration::from_millis(200)).expect("good settings");
    sandbox.jira_cloud().fail(Fault::hang());
    let result = jira.find(ANN).await;
    assert!(result.as_ref().is_err_and(|failure| failure.detail() == "timed out"), "{result:?}");
    assert_eq!(meaning(result), Meaning::Transient { retry_after: None });
    sandbox.jira_cloud().clear_faults();
}

#[tokio::test]
async fn slack_invites_in_three_ways() {
    let modes = [
        SlackMode::AdminInvite { team_id: "T1".to_owned(), channel_ids: channels() },
        SlackMode::LegacyInvite { channel_ids: channels() },
        SlackMode::Connect { channel: "C1".to_owned() },
    ];
    for mode in modes {
        let sandbox = sandbox().await;
        let slack = slack(&sandbox, mode.clone());
        all_well(&slack.check().await);
        assert_eq!(slack.invite(ANN).await, Ok(InviteOutcome::Invited));
        assert_eq!(sandbox.slack().invitation_count(ANN), 1);
        let channels = sandbox.slack().invitations()[0].channels.clone();
        match mode {
            SlackMode::AdminInvite { .. } | SlackMode::LegacyInvite { .. } => {
                assert_eq!(channels, ["C1", "C2"]);
                assert_eq!(slack.invite(ANN).await, Ok(InviteOutcome::AlreadyInvited));
                sandbox.slack().join(ANN);
                assert_eq!(slack.invite(ANN).await, Ok(InviteOutcome::AlreadyInvited));
                sandbox.slack().deactivate(ANN);
                assert_eq!(meaning(slack.invite(ANN).await), Meaning::Permanent);
            }
            SlackMode::Connect { .. } => {
                assert_eq!(channels, ["C1"]);
                assert_eq!(meaning(slack.invite(ANN).await), Meaning::InvitationPending);
                sandbox.slack().join_channel(ANN, "C1");
                assert_eq!(slack.invite(ANN).await, Ok(InviteOutcome::AlreadyInvited));
            }
        }
        assert_eq!(meaning(slack.invite("no address").await), Meaning::Permanent);
        assert_eq!(sandbox.slack().invitation_count(ANN), 1);
        sandbox.slack().archive_channel("C1");
        assert_eq!(meaning(slack.invite("bob@example.com").await), Meaning::Configuration);
        sandbox.slack().set_token("another");
        assert_eq!(meaning(slack.invite("bob@example.com").await), Meaning::Configuration);
        assert_eq!(wrong(slack.check().await), ["slack.credentials"]);
    }
}

#[tokio::test]
async fn slack_out_of_order() {
    let sandbox = sandbox().await;
    let slack = slack(&sandbox, SlackMode::LegacyInvite { channel_ids: channels() });
    let seven = Duration::from_secs(7);
    let table = [
        (
            Fault::slack_error("invite_limit_reached"),
            Meaning::RateLimited { retry_after: Duration::from_secs(30 * 60) },
        ),
        (Fault::slack_error("internal_error"), Meaning::Transient { retry_after: None }),
        (Fault::slack_error("no_perms"), Meaning::Configuration),
        (Fault::status(429).retry_after(seven), Meaning::RateLimited { retry_after: seven }),
        (Fault::status(503), Meaning::Transient { retry_after: None }),
        (Fault::html(200), Meaning::Transient { retry_after: None }),
        (Fault::malformed(200), Meaning::Transient { retry_after: None }),
        (Fault::reset(), Meaning::Transient { retry_after: None }),
    ];
    for (fault, expected) in table {
        sandbox.slack().fail(fault.times(1));
        assert_eq!(meaning(slack.invite(ANN).await), expected);
    }
    sandbox.slack().fail(Fault::effect_then_reset().times(1));
    assert_eq!(meaning(slack.invite(ANN).await), Meaning::Transient { retry_after: None });
    assert_eq!(slack.invite(ANN).await, Ok(InviteOutcome::AlreadyInvited));
}

#[tokio::test]
async fn paddle_knows_its_customers() {
    let sandbox = sandbox().await;
    let paddle = paddle(&sandbox);
    sandbox.paddle().set_customer("ctm_1", ANN);
    let customer = paddle.customer("ctm_1").await.expect("there");
    assert_eq!((customer.id.as_str(), customer.email.as_str()), ("ctm_1", ANN));
    assert_eq!(meaning(paddle.customer("ctm_2").await), Meaning::Permanent);
    all_well(&paddle.check().await);
    let seven = Duration::from_secs(7);
    let table = [
        (Fault::status(429).retry_after(seven), Meaning::RateLimited { retry_after: seven }),
        (Fault::status(500), Meaning::Transient { retry_after: None }),
        (Fault::malformed(200), Meaning::Transient { retry_after: None }),
        (Fault::reset(), Meaning::Transient { retry_after: None }),
    ];
    for (fault, expected) in table {
        sandbox.paddle().fail(fault.times(1));
        assert_eq!(meaning(paddle.customer("ctm_1").await), expected);
    }
    sandbox.paddle().set_api_key("another");
    assert_eq!(meaning(paddle.customer("ctm_1").await), Meaning::Configuration);
    assert_eq!(wrong(paddle.check().await), ["paddle.credentials"]);
}
