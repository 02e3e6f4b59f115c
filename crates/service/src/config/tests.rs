use secrecy::ExposeSecret;

use super::*;

const MINIMAL: &str = "";

fn receiver(file: &str, environment: &[(&str, &str)]) -> Result<ReceiverConfig, Vec<String>> {
    ReceiverConfig::from_table(table(file, environment)).map_err(|problems| problems.0)
}

fn worker(file: &str, environment: &[(&str, &str)]) -> Result<WorkerConfig, Vec<String>> {
    WorkerConfig::from_table(table(file, environment)).map_err(|problems| problems.0)
}

fn table(file: &str, environment: &[(&str, &str)]) -> Table {
    let mut table = file.parse().unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    environment::overlay(&mut table, &environment);
    table
}

#[test]
fn everything_has_a_default_but_the_accounts() {
    let config = receiver(MINIMAL, &[]).unwrap();
    assert_eq!(
        (config.listen.as_str(), config.path.as_str(), config.max_body_bytes),
        ("0.0.0.0:8080", "/paddle", 1_048_576)
    );
    assert_eq!(config.ack_timeout, Duration::from_secs(4));
    let config = worker(MINIMAL, &[]).unwrap();
    assert!(config.jira.is_none() && config.slack.is_none());
    assert_eq!(config.worker.retry_cap, Duration::from_secs(6 * 3600));
}

#[test]
fn the_environment_beats_the_file() {
    let file = "[database]\nurl = \"postgres://file/db\"\n[paddle.billing]\nwebhook_secret_files = [\"/nowhere\"]\n";
    let environment = [
        ("DATABASE_URL", "postgres://general/db"),
        ("OARLOCK_DATABASE__URL", "postgres://particular/db"),
        ("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", "pdl_ntfset_a, pdl_ntfset_b"),
        ("OARLOCK_RECEIVER__ACK_TIMEOUT", "250ms"),
        ("OARLOCK_SERVICE_HOST", "10.0.0.1"),
        ("OARLOCK_RECEIVER__PATH", ""),
    ];
    let config = receiver(file, &environment).unwrap();
    assert_eq!(config.database.url.expose_secret(), "postgres://particular/db");
    assert_eq!(config.billing_webhook_secrets.len(), 2);
    assert_eq!(config.ack_timeout, Duration::from_millis(250));
    assert_eq!(config.path, "/paddle");
    assert_eq!(
        receiver(file, &environment[..1]).unwrap_err().len(),
        1,
        "the file that the environment did not replace"
    );
}

#[test]
fn lists_of_tables_come_through_the_environment() {
    let environment = [
        ("OARLOCK_JIRA__EDITION", "data_center"),
        ("OARLOCK_JIRA__BASE_URL", "https://acme.example/jira/"),
        ("OARLOCK_JIRA__TOKEN", "secret"),
        ("OARLOCK_JIRA__SERVICE_DESK_ID", "3"),
        ("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"support"},{"plans":[7],"organization":"17"}]"#),
        ("OARLOCK_ROUTES__PAYMENT_SUCCEEDED", "slack_invite"),
    ];
    let config = worker("", &environment).unwrap();
    let jira = config.jira.unwrap();
    assert_eq!(jira.base_url.as_str(), "https://acme.example/jira");
    assert_eq!(jira.access[1], JiraAccess { plans: vec!["7".into()], grants: Membership::Organization("17".into()) });
    assert_eq!(config.routes[&AlertName::PaymentSucceeded], [Kind::SlackInvite]);
}

#[test]
fn every_problem_is_said_at_once_and_names_its_key() {
    let file = r#"
        [receiver]
        listen = "nowhere"
        ack_timeout = "0s"
        lissten = 1
        [worker]
        lease = "10s"
        concurrency = 0
        [jira]
        edition = "server"
        token = "hunter2"
        token_file = "/run/secrets/jira"
        [[jira.access]]
        plans = []
        group = "a"
        organization = "1"
        [slack]
        mode = "admin_invite"
        [routes]
        subscription_created = ["jira_invit"]
        subscription_create = []
        [typo]
    "#;
    let expected = [
        "receiver.listen",
        "receiver.ack_timeout",
        "receiver.lissten is not a key",
        "worker.lease must be longer than worker.request_timeout",
        "worker.concurrency",
        "jira.edition must be one of",
        "jira.base_url is missing",
        "jira.token and jira.token_file are both given",
        "jira.access[0].plans",
        "jira.access[0].group give exactly one",
        "slack.token is missing",
        "slack.team_id is missing",
        "slack.channel_ids is missing",
        "routes.subscription_created \"jira_invit\" is not one of",
        "routes.subscription_create is not the name of an alert",
        "typo is not a key",
    ];
    for problems in [receiver(file, &[]).unwrap_err(), worker(file, &[]).unwrap_err()] {
        for expected in expected {
            assert!(
                problems.iter().any(|problem| problem.starts_with(expected)),
                "{expected:?} is not among {problems:#?}"
            );
        }
        assert!(!problems.join("\n").contains("hunter2"));
    }
}

#[test]
fn a_program_opens_no_secret_of_the_other() {
    let file =
        "[jira]\nedition = \"cloud\"\nbase_url = \"https://acme.example\"\nuser = \"bot\"\ntoken_file = \"/nowhere\"\n";
    assert!(receiver(file, &[]).is_ok());
    let problems = worker(file, &[]).unwrap_err();
    assert!(problems[0].starts_with("jira.token_file names /nowhere, which cannot be read"), "{problems:?}");
}

#[test]
fn a_secret_is_in_no_debug_output() {
    let config = worker(
        "[slack]\nmode = \"legacy_invite\"\ntoken = \"xoxp-secret\"\n",
        &[("DATABASE_URL", "postgres://u:pw@h/d")],
    )
    .unwrap();
    let debug = format!("{config:?}");
    assert!(!debug.contains("xoxp-secret") && !debug.contains("pw"), "{debug}");
}
