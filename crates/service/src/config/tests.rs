use std::collections::BTreeSet;

use std::path::PathBuf;

use secrecy::ExposeSecret;
use toml::Value;

use super::*;

const MINIMAL: &str = "";

fn receiver(file: &str, environment: &[(&str, &str)]) -> Result<ReceiverConfig, Vec<String>> {
    ReceiverConfig::from_table(table(file, environment), |_| Ok(()))
        .map(|(config, ())| config)
        .map_err(|problems| problems.0)
}

fn worker(file: &str, environment: &[(&str, &str)]) -> Result<WorkerConfig, Vec<String>> {
    WorkerConfig::from_table(table(file, environment), |_| Ok(()))
        .map(|(config, ())| config)
        .map_err(|problems| problems.0)
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
fn a_webhook_secret_is_one_line() {
    let check = |secrets: &str| receiver(MINIMAL, &[("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", secrets)]).map(drop);
    assert_eq!(check("pdl_ntfset_a, pdl_ntfset_b\n"), Ok(()));
    let problems = check("pdl_ntfset_a\npdl_ntfset_b").unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("paddle.billing.webhook_secrets has a line break"), "{problems:?}");
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
    for (is_worker, problems) in [(false, receiver(file, &[]).unwrap_err()), (true, worker(file, &[]).unwrap_err())] {
        // A token that only the worker needs may be where only the worker looks.
        for expected in expected.into_iter().filter(|problem| is_worker || *problem != "slack.token is missing") {
            assert!(
                problems.iter().any(|problem| problem.starts_with(expected)),
                "{expected:?} is not among {problems:#?}"
            );
        }
        assert!(!problems.join("\n").contains("hunter2"));
    }
}

/// Empty is not given, and what was meant to be a list is one.
#[test]
fn what_is_empty_or_half_a_list_is_said() {
    let file = r#"
        [database]
        url = "postgres://user:a/b@host/db"
        [receiver]
        path = "/a%20b"
        [worker]
        retention = "200y"
        [jira]
        base_url = "https://acme.example"
        user = ""
        token = "t"
        [[jira.access]]
        plans = [""]
        group = " "
        [slack]
        token = "t"
        team_id = ""
    "#;
    let problems = worker(file, &[("OARLOCK_SLACK__CHANNEL_IDS", "[\"C1\"")]).unwrap_err();
    for expected in [
        "database.url must be a URL",
        "receiver.path must be",
        "worker.retention must be a length of time of at most 100 years",
        "jira.user is missing",
        "jira.access[0].plans has an empty entry",
        "jira.access[0].group give exactly one",
        "slack.team_id is missing",
        "slack.channel_ids must be a list",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(expected)),
            "{expected:?} is not among {problems:#?}"
        );
    }
    let url = |url: &str| receiver("", &[("DATABASE_URL", url)]).map(drop);
    assert!(url("postgres://user:a%2Fb@host/db?sslpassword=x").is_ok());
    assert!(url("postgres://user@one,two/db").is_err() && url("postgres://user@host/db?sslmode=bogus").is_err());
}

#[test]
fn a_program_opens_no_secret_of_the_other() {
    let file =
        "[jira]\nedition = \"cloud\"\nbase_url = \"https://acme.example\"\nuser = \"bot\"\ntoken_file = \"/nowhere\"\n";
    assert!(receiver(file, &[]).is_ok());
    let problems = worker(file, &[]).unwrap_err();
    assert!(problems[0].starts_with("jira.token_file names a file that cannot be read"), "{problems:?}");
    Database::from_table(table(file, &[])).unwrap();
    // Nor does it need what only the other one's environment has.
    let file = "[jira]\nbase_url = \"https://acme.example\"\nuser = \"bot\"\n[slack]\nmode = \"legacy_invite\"\n";
    assert!(receiver(file, &[]).is_ok());
    Database::from_table(table(file, &[])).unwrap();
    let problems = worker(file, &[]).unwrap_err();
    assert!(
        problems.iter().zip(["jira.token is missing", "slack.token is missing"]).all(|(is, want)| is.starts_with(want)),
        "{problems:?}"
    );
    assert!(worker(file, &[("OARLOCK_JIRA__TOKEN", "t"), ("OARLOCK_SLACK__TOKEN", "t")]).is_ok());
}

#[test]
fn all_that_is_no_toml_is_told_with_its_key() {
    let file = "[jira]\ntoken = \"a\"\ntoken = \"xoxp-secret\"\n[slack]\nmode = \"x\"\nmode = \"y\"\ntoken = xoxp-secret\n[[jira.access]]\nplans = [\"*\"\n";
    let problems = environment::parse_file(file).unwrap_err();
    for place in
        ["3: jira.token: not valid TOML: ", "6: slack.mode: not valid TOML: ", "7: slack.token: not valid TOML: "]
    {
        assert!(problems.iter().any(|problem| problem.starts_with(place)), "{place} is not among {problems:#?}");
    }
    assert!(problems.iter().any(|problem| problem.contains("jira.access.plans")), "{problems:#?}");
    assert!(
        problems.iter().all(|problem| !problem.contains("xoxp-secret") && !problem.contains('\n')),
        "{problems:#?}"
    );
    // A secret that stands in a text of several lines.
    let problems = environment::parse_file("[slack]\ntoken = \"\"\"\nXOXP1=\n\u{7}\"\"\"\n").unwrap_err();
    assert!(problems.iter().all(|problem| !problem.contains("XOXP1")), "{problems:#?}");
}

#[test]
fn a_problem_is_one_line_and_holds_no_secret_in_the_wrong_place() {
    let file = "database = \"x\"\n\"weird\\nkey\" = 1\n";
    let environment = [
        ("DATABASE_URL", "postgres://u@h/d"),
        ("OARLOCK_SLACK__TOKEN_FILE", "xoxp-secret"),
        ("OARLOCK_WORKER__ADMIN_LISTEN", "a b:1"),
    ];
    let keys = [("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEY_FILES", "/dev/null,/nowhere")];
    let of_keys = receiver("", &keys).unwrap_err();
    assert_eq!(of_keys[0], "paddle.classic.public_key_files, entry 1, names a file that is empty");
    assert!(of_keys[1].starts_with("paddle.classic.public_key_files, entry 2, names a file that cannot be read: "));
    let problems = worker(file, &environment).unwrap_err();
    for expected in [
        "database must be a section",
        "weird\\nkey is not a key",
        "slack.token_file names a file that cannot be read: ",
        "worker.admin_listen must be an address",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected} is not among {problems:#?}");
    }
    assert!(problems.iter().all(|problem| !problem.contains("xoxp-secret")), "{problems:#?}");
}

#[test]
fn a_variable_that_leads_on_from_a_key_is_none() {
    let file = "[jira]\nbase_url = \"https://acme.example\"\nuser = \"bot\"\ntoken = \"t\"\n[[jira.access]]\nplans = [\"*\"]\ngroup = \"g\"\n";
    assert!(worker(file, &[]).is_ok());
    let problems = worker(file, &[("OARLOCK_JIRA__ACCESS__0__GROUP", "vip"), ("OARLOCK_JIRA__TOKEN__X", "1")]);
    let is_none = "is not a key of the configuration";
    assert_eq!(problems.unwrap_err(), [format!("jira.access.0.group {is_none}"), format!("jira.token.x {is_none}")]);
}

#[test]
fn what_is_clear_enough_is_taken() {
    let file = "[worker]\nretry_cap = \"1s\"\nshutdown_grace = \"0s\"\n[jira]\nbase_url = \"https://acme.example\"\nuser = \"bot\"\ntoken = \"t\"\ninvite_path = \"/x\"\n[routes]\n\"transaction.paid\" = [\"slack_invite\"]\n";
    let config = worker(file, &[]).unwrap();
    assert_eq!((config.worker.retry_base, config.worker.shutdown_grace), (Duration::from_secs(1), Duration::ZERO));
    assert_eq!(config.jira.unwrap().invite_path, None);
    assert_eq!(config.routes[&AlertName::BillingTransactionPaid], [Kind::SlackInvite]);
    assert_eq!(receiver("[receiver]\nmax_body_bytes = 1\n", &[]).unwrap().max_body_bytes, 1);
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

/// The file that people start from. Its secrets are in files that only a deployment has: here they are in a directory of
/// the test's own.
struct Example {
    text: String,
    secrets: PathBuf,
}

impl Example {
    fn open(test: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oarlock.example.toml");
        let secrets = std::env::temp_dir().join(format!("oarlock-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&secrets).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        for quoted in text.split("\"/run/secrets/").skip(1) {
            let name = quoted.split('"').next().unwrap();
            // The only one whose content the configuration looks at is the database's address.
            std::fs::write(secrets.join(name), "postgres://oarlock:pw@localhost/oarlock\n").unwrap();
        }
        let text = text.replace("/run/secrets", secrets.to_str().unwrap());
        Self { text, secrets }
    }

    fn table(&self) -> Table {
        self.text.parse().unwrap()
    }

    /// What is commented out, paragraph by paragraph: each is one choice, and its section is the one it stands in.
    fn choices(&self) -> Vec<(String, Table)> {
        let mut choices = Vec::new();
        let (mut section, mut paragraph) = (String::new(), String::new());
        for line in self.text.lines().chain([""]) {
            if let Some(comment) = line.strip_prefix("# ") {
                let key = comment.split(" = ").next().filter(|key| *key != comment && !key.contains(' '));
                if key.is_some() || comment.starts_with('[') {
                    paragraph += &format!("{comment}\n");
                }
                continue;
            }
            if !paragraph.is_empty() {
                let header = if paragraph.starts_with('[') { "" } else { &section };
                choices.push((section.clone(), format!("{header}\n{paragraph}").parse().unwrap()));
                paragraph.clear();
            }
            if line.starts_with('[') {
                section = line.to_owned();
            }
        }
        choices
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.secrets);
    }
}

/// As if the comment marks of `choice` were removed, and what it replaces were deleted.
fn choose(choice: Table, table: &mut Table) {
    for (key, value) in choice {
        match (value, table.get_mut(&key)) {
            (Value::Table(choice), Some(Value::Table(table))) => choose(choice, table),
            (Value::Array(rows), Some(Value::Array(there))) if rows.iter().all(Value::is_table) => there.extend(rows),
            (value, _) => {
                table.remove(&format!("{key}_file"));
                table.insert(key, value);
            }
        }
    }
}

fn keys(table: &Table, section: &str, all: &mut Vec<String>) {
    for (key, value) in table {
        let path = format!("{section}{key}");
        match value {
            Value::Table(table) => keys(table, &format!("{path}."), all),
            Value::Array(rows) if rows.iter().all(Value::is_table) => {
                rows.iter().filter_map(Value::as_table).for_each(|row| keys(row, &format!("{path}."), all));
            }
            _ => all.push(path),
        }
    }
}

#[test]
fn the_example_loads_and_so_does_every_choice_in_it() {
    let example = Example::open("example-loads");
    let loaded = |table: &Table| {
        let receiver = ReceiverConfig::from_table(table.clone(), |_| Ok(())).map_err(|problems| problems.0)?.0;
        let worker = WorkerConfig::from_table(table.clone(), |_| Ok(())).map_err(|problems| problems.0)?.0;
        Ok::<_, Vec<String>>(format!("{receiver:#?} {worker:#?}"))
    };
    let as_it_is = loaded(&example.table()).unwrap();
    for (section, choice) in example.choices() {
        let mut table = example.table();
        choose(choice.clone(), &mut table);
        let chosen = loaded(&table).unwrap_or_else(|problems| panic!("{section} {choice}: {problems:#?}"));
        if ["[database]", "[receiver]", "[worker]"].contains(&section.as_str()) {
            assert_eq!(chosen, as_it_is, "what is commented out in {section} is the default");
        }
    }
}

thread_local! {
    /// The keys that the programs have asked for.
    pub(super) static ASKED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// What is required, if there are these sections at all.
const ACCOUNTS: [(&str, &str); 7] = [
    ("OARLOCK_JIRA__BASE_URL", "https://acme.example"),
    ("OARLOCK_JIRA__USER", "bot"),
    ("OARLOCK_JIRA__TOKEN", "secret"),
    ("OARLOCK_JIRA__ACCESS", r#"[{"plans":["*"],"group":"support"}]"#),
    ("OARLOCK_SLACK__TOKEN", "secret"),
    ("OARLOCK_SLACK__TEAM_ID", "T1"),
    ("OARLOCK_SLACK__CHANNEL_IDS", "C1"),
];

/// Every key there is, and, with their own names, those of the files that secrets may be in.
fn every_key() -> (BTreeSet<String>, BTreeSet<String>) {
    worker("", &ACCOUNTS).unwrap();
    let asked = ASKED.with_borrow(|asked| asked.iter().map(|key| key.replace("[0]", "")).collect::<BTreeSet<_>>());
    asked.into_iter().partition(|key| !key.ends_with("_file") && !key.ends_with("_files"))
}

#[test]
fn the_example_has_every_key_and_no_other() {
    let example = Example::open("example-keys");
    let mut table = example.table();
    let mut shown = Vec::new();
    keys(&table, "", &mut shown);
    for (_, choice) in example.choices() {
        keys(&choice, "", &mut shown);
        choose(choice, &mut table);
    }
    let shown: BTreeSet<String> = shown
        .into_iter()
        .filter(|key| !key.starts_with("routes."))
        .map(|key| match key.strip_suffix("_files") {
            Some(secret) => format!("{secret}s"),
            None => key.strip_suffix("_file").unwrap_or(&key).to_owned(),
        })
        .collect();
    assert_eq!(shown, every_key().0);

    // Taken all together the choices contradict each other, but each key is one that the programs know.
    let problems = WorkerConfig::from_table(table, |_| Ok(())).map_or_else(|problems| problems.0, |_| Vec::new());
    let unknown: Vec<_> = problems.iter().filter(|problem| problem.contains("is not a key")).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// docs/configuration.md: the rows of its tables as key, variable, default and description.
fn reference() -> Vec<[String; 4]> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let text = std::fs::read_to_string(file).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| `")).filter_map(|line| cells(line).try_into().ok());
    rows.map(|[key, variable, default, description]: [String; 4]| {
        let bare = |cell: &str| cell.trim_matches('`').to_owned();
        [bare(&key), bare(&variable), bare(&default), description]
    })
    .collect()
}

#[test]
fn the_reference_is_right() {
    let rows = reference();
    let (keys, files) = every_key();
    assert_eq!(rows.iter().map(|[key, ..]| key.clone()).collect::<BTreeSet<_>>(), keys);
    let with = |variable: &str, value: &str| {
        let mut environment = ACCOUNTS.to_vec();
        environment.push((variable, value));
        let (receiver, worker) = (receiver("", &environment).unwrap(), worker("", &environment).unwrap());
        format!("{} {receiver:?} {worker:?}", receiver.database.url.expose_secret())
    };
    for [key, variable, default, description] in &rows {
        // Rows of a list have one variable together.
        let whole = if key.starts_with("jira.access.") { "jira.access" } else { key };
        assert_eq!(*variable, format!("OARLOCK_{}", whole.replace('.', "__").to_uppercase()));
        if !default.is_empty() {
            assert_eq!(with(variable, default), with("RUST_LOG", "info"), "the default of {key}");
        }
        for file in [format!("{key}_file"), format!("{}_files", key.trim_end_matches('s'))] {
            assert_eq!(description.contains(&format!("`{file}`")), files.contains(&file), "{file}");
        }
    }
}

#[test]
fn what_the_program_finds_is_told_with_the_rest() {
    let table = "[receiver]\nlisten = \"nowhere\"\n".parse().unwrap();
    let problems =
        ReceiverConfig::from_table(table, |_| Err::<(), _>(vec!["a key that is none".to_owned()])).unwrap_err();
    assert_eq!(problems.0.len(), 2, "{problems}");
}

#[test]
fn a_mode_that_is_none_is_one_problem() {
    assert_eq!(worker("[slack]\nmode = \"invite\"\ntoken = \"x\"\n", &[]).unwrap_err().len(), 1);
}

#[test]
fn a_variable_that_is_no_text_is_told_by_name_if_it_is_ours() {
    use std::os::unix::ffi::OsStringExt;
    let wrong = |name: &str| (name.into(), std::ffi::OsString::from_vec(b"secret\xff".to_vec()));
    assert!(environment::ours([wrong("SOMETHING_ELSE")].into_iter()).unwrap().is_empty());
    let problems = environment::ours([wrong("OARLOCK_SLACK__TOKEN")].into_iter()).unwrap_err();
    assert_eq!(problems.0, ["OARLOCK_SLACK__TOKEN is not text"]);
}
