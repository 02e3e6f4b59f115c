//! What operators see: a real Prometheus scrapes both programs as deploy/prometheus says, every alert rule but one goes off
//! on a day bad enough for it, and every query of the Grafana dashboard has an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oarlock_sandbox::Fault;
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic};
use oarlock_tests::{Oarlock, PATIENCE, Process, Settings};
use serde_json::Value;

const ANN: &str = "ann@example.com";

/// Needs a day of silence; `promtool test rules` has one.
const NOT_SEEN_HERE: &str = "OarlockNoAlerts";

#[tokio::test]
async fn every_alert_goes_off_and_every_panel_has_data() {
    let mut oarlock = Settings::default().set("OARLOCK_WORKER__MAX_ATTEMPTS", "1000").start().await;
    oarlock.sql("update destination set paused_until = 'infinity', paused_reason = 'test' where name = 'paddle'").await;
    // Before anything is counted, so that for Prometheus it was long ago.
    oarlock.billing_sends(&Billing::customer_created("ctm_1", ANN)).await;
    let prometheus = Prometheus::scrapes(&oarlock).await;

    oarlock.paddle_sends(&Classic::subscription_created(ANN).subscription("1").alert_id(7)).await;
    oarlock.settles().await;
    prometheus.warns_of(["OarlockDestinationPaused"]).await;

    // Slack refuses ten customers for good, Jira is down, and somebody who paid twenty minutes ago is not in.
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    for customer in 0..10 {
        oarlock.paddle_sends(&Classic::payment_succeeded(&format!("{customer}@example.com"))).await;
    }
    oarlock.settles().await;
    oarlock.jira().fail(Fault::status(500));
    oarlock.paddle_sends(&Classic::subscription_created("bob@example.com").subscription("2")).await;
    oarlock
        .until(
            "Jira has refused",
            "select exists (select from outbox_action where kind = 'jira_access' and last_error is not null)",
        )
        .await;
    // The worker lacks a right.
    oarlock.sets_up("revoke insert on subscription_alert from oarlock_worker").await;
    oarlock.paddle_sends(&Classic::subscription_created("eve@example.com").subscription("3")).await;
    oarlock.time_passes(chrono::Duration::minutes(20)).await;
    // Paddle's sandbox numbers its alerts as well.
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN).alert_id(7)).await;
    // Billing's secret was changed.
    for _ in 0..3 {
        let forged = Billing::named("transaction.completed", "ctm_1", ANN).signed_by(&BillingSigner::new("not ours"));
        assert_eq!(oarlock.posts(&forged).await.status, 403);
    }
    oarlock.database.goes_away().await;
    for _ in 0..3 {
        assert_eq!(oarlock.posts(&Classic::payment_succeeded(ANN).signed_by(&oarlock.signer)).await.status, 503);
    }
    oarlock.database.comes_back().await;
    let of_the_day = [
        "OarlockAccessDrift",
        "OarlockAnswers503",
        "OarlockDeadLetters",
        "OarlockDestinationPaused",
        "OarlockManyDeadLetters",
        "OarlockMismatch",
        "OarlockOldestDue",
        "OarlockPlanningStands",
        "OarlockSignaturesRefused",
    ];
    prometheus.warns_of(of_the_day).await;

    for panel in panels() {
        prometheus.draws(&panel).await;
    }

    oarlock.receivers.remove(0).stops().await;
    oarlock.workers.remove(0).stops().await;
    let at_the_end =
        ["OarlockDestinationPaused", "OarlockReceiverAbsent", "OarlockSignaturesRefused", "OarlockWorkerAbsent"];
    let seen: BTreeSet<_> =
        of_the_day.into_iter().chain(at_the_end).chain([NOT_SEEN_HERE]).map(str::to_owned).collect();
    prometheus.until("the programs are missed", |alerts| at_the_end.iter().all(|name| alerts.contains(*name))).await;
    assert_eq!(prometheus.rules().await, seen, "the rules, and those that this test has seen");
}

/// An old number would look like a good one.
#[tokio::test]
async fn what_cannot_be_read_is_not_shown() {
    let oarlock = Oarlock::start().await;
    let gauges = [
        "oarlock_outbox_alerts{status=\"dead\"}",
        "oarlock_actions{destination=\"jira\",status=\"dead\"}",
        "oarlock_oldest_due_seconds{destination=\"jira\"}",
        "oarlock_destination_paused{destination=\"jira\"}",
        "oarlock_oldest_unplanned_seconds",
        "oarlock_access_drift",
        "oarlock_access_drift_oldest_seconds",
    ];
    for (away, expected) in [(false, Some(0.0)), (true, None)] {
        if away {
            oarlock.database.goes_away().await;
        }
        let asking = async {
            loop {
                let (_, text) = oarlock.worker().admin("/metrics").await;
                // What was read a moment ago is still good: the counts for a while, the drift the longer the longer it took.
                let is_good = ["\noarlock_destination_paused{", "\noarlock_access_drift "]
                    .iter()
                    .any(|gauge| text.contains(gauge));
                if !away || !is_good {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let text = tokio::time::timeout(PATIENCE, asking).await.expect("what was read grows old");
        for gauge in gauges {
            let value = text.lines().find_map(|line| line.strip_prefix(gauge)?.trim().parse::<f64>().ok());
            assert_eq!(value, expected, "{gauge}, the database away: {away}\n{text}");
        }
    }
    oarlock.database.comes_back().await;
}

/// docs/runbook.md names every metric of both programs with its labels, and no other.
#[tokio::test]
async fn every_metric_is_in_the_runbook() {
    let oarlock = Oarlock::start().await;
    let mut shown = BTreeMap::new();
    for program in [oarlock.receiver(), oarlock.worker()] {
        let (_, text) = program.admin("/metrics").await;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        shown.extend(samples.filter_map(|line| line.rsplit_once(' ')).map(|(sample, _)| {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
            let labels: BTreeSet<String> = labels.map(|(label, _)| label.to_owned()).filter(|it| it != "le").collect();
            (name.to_owned(), labels)
        }));
    }
    let runbook = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbook.md")).unwrap();
    let (_, section) = runbook.split_once("\n## Metrics\n").expect("it has the section");
    let told: BTreeMap<String, BTreeSet<String>> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `oarlock_")?.split_once("` | "))
        .map(|(name, rest)| {
            let labels =
                rest.split('|').next().unwrap_or_default().split(',').map(|label| label.trim().trim_matches('`'));
            (format!("oarlock_{name}"), labels.filter(|label| !label.is_empty()).map(str::to_owned).collect())
        })
        .collect();
    assert_eq!(told, shown);
}

/// One query of a panel of the dashboard.
#[derive(Debug)]
struct Panel {
    title: String,
    query: String,
    legend: String,
}

fn panels() -> Vec<Panel> {
    let text = std::fs::read_to_string(deployed("grafana/dashboards/oarlock.json")).expect("the dashboard is there");
    let dashboard: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    let mut panels = Vec::new();
    for panel in dashboard["panels"].as_array().expect("it has panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            // Grafana's own variable: wide enough for a rate at the interval of scraping.
            let query = text(&target["expr"]).replace("$__rate_interval", "1m");
            panels.push(Panel { title: text(&panel["title"]), query, legend: text(&target["legendFormat"]) });
        }
    }
    assert!(panels.len() > 10, "{panels:?}");
    panels
}

/// A file of the deployment.
fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("deploy").join(path)
}

/// A real Prometheus, with the configuration of the deployment but for addresses and for its pace.
struct Prometheus {
    process: Process,
    url: String,
    directory: PathBuf,
}

impl Prometheus {
    /// Starts one, and waits until it has scraped both programs.
    async fn scrapes(oarlock: &Oarlock) -> Self {
        let directory = std::env::temp_dir().join(format!("oarlock-prometheus-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        let mut config = std::fs::read_to_string(deployed("prometheus/prometheus.yml")).expect("it is there");
        let target = |address: String| format!("static_configs: [{{ targets: [\"{address}\"] }}]");
        for (from, to) in [
            ("_interval: 15s", "_interval: 200ms".to_owned()),
            ("rule_files: [alerts.yml]", format!("rule_files: [{:?}]", deployed("prometheus/alerts.yml"))),
            ("alertmanager:9093", "127.0.0.1:9".to_owned()),
            (
                "dns_sd_configs: [{ names: [receiver], type: A, port: 8081 }]",
                target(oarlock.receiver().admin_address()),
            ),
            ("dns_sd_configs: [{ names: [worker], type: A, port: 8082 }]", target(oarlock.worker().admin_address())),
        ] {
            assert!(config.contains(from), "prometheus.yml no longer says {from}");
            config = config.replace(from, &to);
        }
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, config).expect("it can be written");
        let program = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|directory| directory.join("prometheus"))
            .find(|program| program.exists())
            .expect("no `prometheus` on the PATH: run `make test`, or tests/with-prometheus COMMAND");
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", directory.join("data").display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
            "--log.format=json".to_owned(),
        ];
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let process = Process::spawn(program.to_str().expect("a path of text"), &arguments, &BTreeMap::new());
        let listening = process.says("where it listens", |line| line["msg"] == "Listening on").await;
        let url = format!("http://{}", listening["address"].as_str().expect("an address"));
        // Until then it answers, but that it cannot.
        process
            .says("that it is ready", |line| line["msg"].as_str().is_some_and(|text| text.contains("Server is ready")))
            .await;
        let prometheus = Self { process, url, directory };
        prometheus.until_query("count(up == 1) == 2", |series| !series.is_empty()).await;
        prometheus
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let request = reqwest::Client::new().get(format!("{}/api/v1/{path}", self.url)).query(parameters);
        let answer: Value = request.send().await.expect("Prometheus answers").json().await.expect("with JSON");
        assert_eq!(answer["status"], "success", "{path} {parameters:?}: {answer}");
        answer["data"].clone()
    }

    async fn query(&self, query: &str) -> Vec<Value> {
        self.get("query", &[("query", query)]).await["result"].as_array().expect("a vector").clone()
    }

    async fn until_query(&self, query: &str, condition: impl Fn(&[Value]) -> bool) {
        let waiting = async {
            while !condition(&self.query(query).await) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("in vain waited for {query}: {:?}\n{}", self.query(query).await, self.process.logs());
        }
    }

    /// Waits until the alerts whose condition holds, whether long enough to tell anybody or not, are as described.
    async fn until(&self, what: &str, condition: impl Fn(&BTreeSet<String>) -> bool) {
        let names = |alerts: &[Value]| {
            alerts.iter().map(|alert| alert["metric"]["alertname"].as_str().expect("a name").to_owned()).collect()
        };
        let query = format!("ALERTS # {what}");
        self.until_query(&query, |alerts| condition(&names(alerts))).await;
    }

    async fn warns_of<const N: usize>(&self, expected: [&str; N]) {
        let expected: BTreeSet<_> = expected.into_iter().map(str::to_owned).collect();
        self.until(&format!("{expected:?}"), |alerts| *alerts == expected).await;
    }

    /// The names of all rules, each of which Prometheus can evaluate.
    async fn rules(&self) -> BTreeSet<String> {
        let groups = self.get("rules", &[]).await;
        let groups = groups["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules").clone());
        rules
            .map(|rule| {
                assert_eq!(rule["health"], "ok", "{rule}");
                rule["name"].as_str().expect("a name").to_owned()
            })
            .collect()
    }

    /// What a panel asks for comes back, with the labels its legend names.
    async fn draws(&self, panel: &Panel) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let (start, end) = ((now - 60).to_string(), now.to_string());
        let parameters = [("query", panel.query.as_str()), ("start", &start), ("end", &end), ("step", "1")];
        let answer = self.get("query_range", &parameters).await;
        let series = answer["result"].as_array().expect("a matrix");
        let numbers = series.iter().flat_map(|one| one["values"].as_array().expect("values"));
        assert!(numbers.clone().any(|number| number[1] != "NaN"), "{} shows nothing: {}", panel.title, panel.query);
        for label in panel.legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            assert!(
                series.iter().all(|one| one["metric"].get(label).is_some()),
                "{} has no {label}: {answer}",
                panel.title
            );
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
