//! One trace leads from Paddle's request to the last call that comes of it, through both programs; and each request has an id.

use std::collections::BTreeSet;

use oarlock_sandbox::paddle::{Classic, Signed};
use oarlock_sandbox::{Fault, JIRA_CLOUD_TOKEN, PADDLE_API_KEY, SLACK_TOKEN};
use oarlock_tests::{Collector, Oarlock, Settings, Span, WEBHOOK_SECRET};

const ANN: &str = "ann@example.com";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn exporting(collector: &Collector) -> Settings {
    Settings::default().set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).set("OTEL_BSP_SCHEDULE_DELAY", "50")
}

async fn posts(oarlock: &Oarlock, signed: &Signed, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = reqwest::Client::new()
        .post(oarlock.webhook())
        .header("Content-Type", signed.content_type)
        .body(signed.body.clone());
    for (name, value) in
        headers.iter().copied().chain(signed.header.as_ref().map(|(name, value)| (*name, value.as_str())))
    {
        request = request.header(name, value);
    }
    request.send().await.expect("the receiver answers")
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test]
async fn one_trace_leads_through_both_programs() {
    let collector = Collector::start().await;
    let oarlock = exporting(&collector).start().await;
    // Refused for good, so that a failure is among what is exported.
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    let alert = Classic::subscription_created(ANN).alert_id(7).signed_by(&oarlock.signer);
    let sent = format!("00-{TRACE}-{PARENT}-01");
    assert_eq!(posts(&oarlock, &alert, &[("traceparent", &sent)]).await.status(), 200);
    oarlock.settles().await;
    let spans = collector
        .sees("every action and its calls", |spans| {
            named(spans, "action").len() == 3 && named(spans, "call").len() >= 4
        })
        .await;

    let requests = named(&spans, "request");
    let [request] = requests[..] else { panic!("{requests:#?}") };
    assert_eq!((request.trace.as_str(), request.parent.as_str()), (TRACE, PARENT));
    assert_eq!(request.service, "oarlock-receiver");
    assert_eq!(request.attributes["alert.id"], "7");
    assert_eq!(request.attributes["http.response.status_code"], "200");
    assert!(request.events.iter().any(|event| event == "stored"), "{request:#?}");
    let outbox_id = &request.attributes["outbox_id"];
    for span in named(&spans, "action").into_iter().chain(named(&spans, "plan")) {
        assert_eq!((&span.trace, &span.parent), (&request.trace, &request.id), "{span:#?}");
        assert_eq!(span.service, "oarlock-worker");
        assert_eq!((&span.attributes["outbox_id"], span.attributes["alert.id"].as_str()), (outbox_id, "7"));
    }
    let kinds: BTreeSet<&str> = named(&spans, "action").iter().map(|span| span.attributes["kind"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["jira_access", "jira_invite", "slack_invite"]));
    assert_eq!(named(&spans, "plan").len(), 1);

    // Each call is of an action, and the vendor was told which.
    let actions: BTreeSet<&str> = named(&spans, "action").iter().map(|span| span.id.as_str()).collect();
    let calls = named(&spans, "call");
    assert!(calls.iter().all(|call| call.trace == TRACE && actions.contains(call.parent.as_str())), "{calls:#?}");
    let told: BTreeSet<String> =
        oarlock.sandbox.calls().into_iter().map(|call| call.traceparent.expect("each is told")).collect();
    let of_calls: BTreeSet<String> = calls.iter().map(|call| format!("00-{TRACE}-{}-01", call.id)).collect();
    assert_eq!(told, of_calls);
    let statuses = calls.iter().map(|call| call.attributes["http.response.status_code"].as_str());
    assert!(statuses.clone().any(|status| status == "201"), "{:?}", statuses.collect::<Vec<_>>());

    // All of it is ids and outcomes.
    assert!(collector.holds("user_disabled"), "the outcome is there");
    for secret in [
        "@example",
        "%40example",
        "example.com",
        JIRA_CLOUD_TOKEN,
        SLACK_TOKEN,
        PADDLE_API_KEY,
        WEBHOOK_SECRET,
        "p_signature",
        "alert_name",
    ] {
        assert!(!collector.holds(secret), "{secret} was exported: {:#?}", collector.spans());
    }
}

#[tokio::test]
async fn what_is_left_is_exported_at_the_end() {
    let collector = Collector::start().await;
    // Not before it is over, if that depended on the time.
    let mut oarlock = exporting(&collector).set("OTEL_BSP_SCHEDULE_DELAY", "3600000").without("jira").start().await;
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    assert_eq!(collector.spans(), []);
    for process in [oarlock.receivers.remove(0), oarlock.workers.remove(0)] {
        assert_eq!(process.stops().await.code, Some(0));
    }
    let names: BTreeSet<String> = collector.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["action", "call", "plan", "request"].map(str::to_owned).into());
}

/// Without a collector nothing is recorded, but the trace goes on all the same.
#[tokio::test]
async fn a_trace_goes_on_that_nobody_here_records() {
    let oarlock = Settings::default().without("jira").start().await;
    let alert = |id, email: &str| Classic::payment_succeeded(email).alert_id(id).signed_by(&oarlock.signer);
    let sent = format!("00-{TRACE}-{PARENT}-00");
    assert_eq!(posts(&oarlock, &alert(1, ANN), &[("traceparent", &sent)]).await.status(), 200);
    for (id, nonsense) in [(2, "nonsense"), (3, "00-00000000000000000000000000000000-b7ad6b7169203331-01")] {
        let email = format!("{id}@example.com");
        assert_eq!(posts(&oarlock, &alert(id, &email), &[("traceparent", nonsense)]).await.status(), 200);
    }
    oarlock.settles().await;
    let stored: Vec<String> = sqlx::query_scalar("select trace_parent from outbox order by alert_id")
        .fetch_all(oarlock.database.operator())
        .await
        .unwrap();
    let told: Vec<String> = oarlock.sandbox.calls().into_iter().filter_map(|call| call.traceparent).collect();
    assert_eq!((stored.len(), told.len()), (3, 3), "{stored:?} {told:?}");
    assert!(
        stored[0].starts_with(&format!("00-{TRACE}-")) && stored[0].ends_with("-00") && !stored[0].contains(PARENT)
    );
    let traces = |places: &[String]| places.iter().map(|place| place[3..35].to_owned()).collect::<BTreeSet<_>>();
    assert_eq!((traces(&stored), traces(&stored).len()), (traces(&told), 3), "{stored:?} {told:?}");
    // The logs of both say which trace it is.
    for process in [oarlock.receiver(), oarlock.worker()] {
        process.says("which trace it is", |line| line["span"]["trace_id"] == TRACE).await;
    }
}

/// A collector that is away, or takes and never answers, costs spans and nothing else.
#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_else() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for endpoint in ["http://127.0.0.1:1", &silent] {
        let settings = Settings::default().without("jira").set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        let mut oarlock = settings.set("OTEL_BSP_SCHEDULE_DELAY", "20").start().await;
        oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
        oarlock.settles().await;
        assert_eq!(oarlock.actions().await, ["slack_invite done invited"]);
        for process in [oarlock.receivers.remove(0), oarlock.workers.remove(0)] {
            let started = std::time::Instant::now();
            assert_eq!(process.stops().await.code, Some(0));
            assert!(started.elapsed().as_secs() < 8, "{:?}", started.elapsed());
        }
    }
    let oarlock = Settings::default()
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example")
        .set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .prepare(oarlock_tests::Database::create().await)
        .await;
    for program in ["oarlock-receiver", "oarlock-worker"] {
        let exit = oarlock.spawn(program, &[]).ends().await;
        assert_eq!((exit.code, exit.output.lines().count()), (Some(2), 2), "{}", exit.output);
        assert!(exit.output.contains("OTEL_EXPORTER_OTLP_ENDPOINT must") && exit.output.contains("http/protobuf"));
    }
}

#[tokio::test]
async fn each_request_has_an_id() {
    let oarlock = Settings::default().workers(0).start().await;
    let alert = Classic::payment_succeeded(ANN).alert_id(7).signed_by(&oarlock.signer);
    let id = |answer: &reqwest::Response| answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let kept = posts(&oarlock, &alert, &[("x-request-id", "proxy-1")]).await;
    assert_eq!((kept.status().as_u16(), id(&kept)), (200, "proxy-1".to_owned()));
    let stored = oarlock.receiver().says("that it is stored", |line| line["alert_id"] == "7").await;
    assert_eq!((&stored["span"]["request_id"], &stored["span"]["name"]), (&"proxy-1".into(), &"request".into()));
    // Also of a request that comes to nothing, and not one that is somebody's address.
    let refused =
        posts(&oarlock, &Signed { body: b"p_signature=AAAA".to_vec(), ..alert }, &[("x-request-id", ANN)]).await;
    assert_eq!(refused.status(), 403);
    let made = id(&refused);
    assert_eq!(made.len(), 36, "{made}");
    let line = oarlock.receiver().says("why", |line| line["span"]["request_id"] == made.as_str()).await;
    assert_eq!((&line["message"], &line["level"]), (&"an alert was not accepted".into(), &"INFO".into()));
    let elsewhere = reqwest::get(oarlock.webhook().replace("/paddle", "/elsewhere")).await.unwrap();
    assert_eq!((elsewhere.status().as_u16(), id(&elsewhere).len()), (404, 36));
}
