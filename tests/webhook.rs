//! What the receiver answers over HTTP: the contract's table, row by row, over a socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use nix::sys::signal::Signal;
use oarlock_outbox::AlertName;
use oarlock_sandbox::paddle::{Billing, BillingAlert, BillingSigner, Classic, ClassicAlert, ClassicSigner, Signed};
use oarlock_tests::{Database, Oarlock, PATIENCE, Pooler, Settings, WEBHOOK_SECRET};
use reqwest::header::{ALLOW, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANN: &str = "ann@example.com";

/// In the body of whatever must not be quoted.
const PRIVATE: &str = "what-stands-in-the-body";

/// The receiver alone: what it stores stays as it is.
fn receiver() -> Settings {
    Settings::default().workers(0)
}

// 200

#[tokio::test]
async fn what_is_committed_is_answered_200() {
    let oarlock = receiver().start().await;
    for alert in
        [classic(&oarlock, &Classic::subscription_created(ANN)), billing(&Billing::subscription_created("ctm_1"))]
    {
        let rows = stored(&oarlock).await;
        let answer = ask(post(&oarlock, "/paddle", &alert)).await;
        // The commit came before the answer.
        assert_eq!(stored(&oarlock).await, rows + 1);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(answer.body, "Ok\n");
    }
    assert_eq!(alerts(&oarlock, "classic", "subscription_created", "stored").await, 1.0);
    assert_eq!(alerts(&oarlock, "billing", "subscription.created", "stored").await, 1.0);
    assert_eq!(oarlock.receiver().metric("oarlock_ack_seconds_count").await, Some(2.0));
}

#[tokio::test]
async fn a_classic_alert_is_stored_as_it_came() {
    let oarlock = receiver().start().await;
    let time = "2026-02-03T04:05:06Z".parse().unwrap();
    let alert = Classic::subscription_created("Ann@Example.com").subscription("8").at(time);
    let signed = classic(&oarlock, &alert);
    accepted(&oarlock, &signed).await;
    let row = row(&oarlock, alert.id()).await;
    assert_eq!((row.source.as_str(), row.status.as_str()), ("classic", "pending"));
    assert_eq!(row.alert_name, "subscription_created");
    assert_eq!(row.occurred_at, Some(time));
    assert_eq!(row.email.as_deref(), Some(ANN));
    assert_eq!(row.subscription_id.as_deref(), Some("8"));
    assert_eq!(row.body, signed.body);
    assert!(row.received_at > Utc::now() - TimeDelta::minutes(1));
    // The signature as it is when decoded, over all the other fields, which are the payload.
    let mut fields: BTreeMap<String, String> = serde_json::from_value(row.payload).unwrap();
    assert_eq!(row.signature, oarlock.signer.sign(&fields));
    assert_eq!(fields.remove("customer_name"), None);
    assert_eq!(fields.remove("email").as_deref(), Some("Ann@Example.com"));
    assert_eq!(fields.remove("passthrough").as_deref(), Some(r#"{"team": "Förde Rowing Club"}"#));
}

#[tokio::test]
async fn a_billing_alert_is_stored_as_it_came() {
    let oarlock = receiver().start().await;
    let time = "2026-02-03T04:05:06.123456Z".parse().unwrap();
    let alert = Billing::subscription_created("ctm_1").subscription("sub_8").at(time);
    let signed = billing(&alert);
    accepted(&oarlock, &signed).await;
    let stored = row(&oarlock, alert.id()).await;
    assert_eq!((stored.source.as_str(), stored.status.as_str()), ("billing", "pending"));
    assert_eq!(stored.alert_name, "subscription.created");
    assert_eq!(stored.occurred_at, Some(time));
    // It names a customer; whose address that is the worker asks.
    assert_eq!(stored.email, None);
    assert_eq!(stored.subscription_id.as_deref(), Some("sub_8"));
    assert_eq!(stored.body, signed.body);
    assert_eq!(Some(stored.signature), signed.header.map(|(_, value)| value));
    assert_eq!(stored.payload, serde_json::from_slice::<Value>(&signed.body).unwrap());

    let customer = Billing::customer_updated("ctm_1", "Ann@Example.com");
    accepted(&oarlock, &billing(&customer)).await;
    let stored = row(&oarlock, customer.id()).await;
    assert_eq!((stored.email.as_deref(), stored.subscription_id), (Some(ANN), None));
}

#[tokio::test]
async fn what_paddle_itself_signed_is_stored_once() {
    let genuine =
        ["subscription_created", "subscription_updated", "subscription_cancelled", "subscription_payment_succeeded"];
    let oarlock = with_the_vectors_key().start().await;
    for (rows, name) in (1..).zip(genuine) {
        let signed = form(read(&vector("classic", name, "body.txt")));
        for _ in 0..3 {
            accepted(&oarlock, &signed).await;
            assert_eq!(stored(&oarlock).await, rows, "{name}");
        }
        let fields = decoded(&signed.body);
        let row = row(&oarlock, &fields["alert_id"]).await;
        assert_eq!((row.source.as_str(), row.alert_name.as_str()), ("classic", name));
        assert_eq!(row.body, signed.body);
        assert_eq!(row.signature, fields["p_signature"]);
        assert_eq!(row.email.as_ref(), Some(&fields["email"]));
        assert_eq!(row.subscription_id.as_ref(), Some(&fields["subscription_id"]));
        assert_eq!(row.occurred_at.unwrap().format("%F %T").to_string(), fields["event_time"]);
        assert_eq!(row.payload["passthrough"], fields["passthrough"].as_str());
        assert_eq!(alerts(&oarlock, "classic", name, "repeated").await, 2.0);
        assert_eq!(alerts(&oarlock, "classic", name, "mismatch").await, 0.0);
    }
    // And ours beside them: there are two keys.
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
}

#[tokio::test]
async fn what_somebody_edited_is_not() {
    let oarlock = with_the_vectors_key().start().await;
    refused(
        &oarlock,
        &form(read(&vector("classic", "payment_refunded", "body.txt"))),
        403,
        "not by any of the configured keys",
    )
    .await;
}

#[tokio::test]
async fn what_paddle_itself_signed_for_billing_is_stored_within_the_tolerance_alone() {
    let file = |name: &str| String::from_utf8(read(&vector("billing", "subscription.activated", name))).unwrap();
    let signed = json(file("body.txt").into_bytes(), file("paddle_signature_header.txt").trim());
    let settings = receiver().set("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", file("secret.txt").trim());

    let oarlock = settings.clone().start().await;
    refused(&oarlock, &signed, 403, "paddle.billing.tolerance").await;

    // It is of 2023.
    let oarlock = settings.set("OARLOCK_PADDLE__BILLING__TOLERANCE", "36500d").start().await;
    for _ in 0..2 {
        accepted(&oarlock, &signed).await;
    }
    assert_eq!(stored(&oarlock).await, 1);
    let payload: Value = serde_json::from_slice(&signed.body).unwrap();
    let row = row(&oarlock, payload["event_id"].as_str().unwrap()).await;
    assert_eq!((row.source.as_str(), row.alert_name.as_str()), ("billing", "subscription.activated"));
    assert_eq!(row.occurred_at.unwrap(), payload["occurred_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap());
    assert_eq!(row.subscription_id.as_deref(), payload["data"]["id"].as_str());
    assert_eq!((row.body, row.payload), (signed.body, payload));
}

#[tokio::test]
async fn another_alert_of_the_same_number_is_kept_once() {
    let oarlock = receiver().start().await;
    let first = Classic::payment_succeeded(ANN).alert_id(7);
    let first_body = classic(&oarlock, &first).body;
    oarlock.paddle_sends(&first).await;
    accepted(&oarlock, &classic(&oarlock, &Classic::payment_succeeded("bob@example.com").alert_id(7))).await;
    assert_eq!(stored(&oarlock).await, 1);
    let row = row(&oarlock, "7").await;
    assert_eq!((row.email.as_deref(), &row.body), (Some(ANN), &first_body));
    assert_eq!(alerts(&oarlock, "classic", "payment_succeeded", "mismatch").await, 1.0);
    oarlock
        .receiver()
        .says("that there are two", |line| {
            line["level"] == "WARN"
                && line["alert_id"] == "7"
                && line["message"].as_str().unwrap().contains("another alert of this number")
        })
        .await;

    // The generations number their alerts apart.
    oarlock.billing_sends(&Billing::transaction_completed("ctm_1").event_id("7")).await;
    assert_eq!(stored(&oarlock).await, 2);
    oarlock.billing_sends(&Billing::transaction_completed("ctm_2").event_id("7")).await;
    assert_eq!(stored(&oarlock).await, 2);
    assert_eq!(alerts(&oarlock, "billing", "transaction.completed", "mismatch").await, 1.0);
}

#[tokio::test]
async fn a_repeat_differs_where_paddle_makes_it_differ() {
    let oarlock = receiver().start().await;
    // A replay, and another destination: a notification of its own, signed anew.
    let alert = Billing::subscription_updated("ctm_1");
    oarlock.billing_sends(&alert).await;
    let again =
        alert.notified_again().signed_by(&BillingSigner::new(WEBHOOK_SECRET).at(Utc::now() + TimeDelta::minutes(2)));
    accepted(&oarlock, &again).await;
    assert_eq!(alerts(&oarlock, "billing", "subscription.updated", "repeated").await, 1.0);
    // The customer's private links go to the primary endpoint alone.
    let alert = Classic::subscription_updated(ANN);
    oarlock.paddle_sends(&alert).await;
    oarlock.paddle_sends(&alert.without("cancel_url").without("update_url")).await;
    assert_eq!(alerts(&oarlock, "classic", "subscription_updated", "repeated").await, 1.0);
    assert_eq!(stored(&oarlock).await, 2);
    assert!(!oarlock.receiver().admin("/metrics").await.1.contains("result=\"mismatch\",source=\"classic\"} 1"));
}

#[tokio::test]
async fn whatever_paddle_signs_is_stored() {
    let oarlock = receiver().start().await;
    let payment = || Classic::payment_succeeded(ANN);
    let odd = [
        ("a field never seen before", payment().field("brand_new", "1")),
        ("an unknown name", Classic::named("subscription_teleported", ANN)),
        ("no name", payment().without("alert_name")),
        ("a name without end", payment().field("alert_name", &"x".repeat(5000))),
        ("a NUL", payment().field("passthrough", "a\0b").field("alert_name", "a\0b").field("subscription_id", "\0")),
        ("four-byte characters", payment().field("customer_name", "🛶 𝒵oë")),
        ("spaces around", payment().field("customer_name", "  Zoë  ").field("passthrough", "\t")),
        ("PHP's own punctuation", payment().field("passthrough", "\";s:1:\"a\";}\r\n")),
        ("signs that a form escapes", payment().field("passthrough", "100% a+b&c=d;e")),
        ("empty values", payment().field("email", "").field("event_time", "").field("marketing_consent", "")),
        (
            "the simulator's placeholders",
            ["email", "event_time", "subscription_id", "unit_price", "next_payment_amount", "status"]
                .iter()
                .fold(payment(), |alert, name| alert.field(name, name)),
        ),
        (
            "nonsense times",
            payment().field("event_time", "9999999-99-99 99:99:99").field("next_bill_date", "2026-02-30"),
        ),
    ];
    for (what, alert) in odd {
        let signed = classic(&oarlock, &alert);
        let reply = oarlock.posts(&signed).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "Ok\n"), "{what}");
        let row = row(&oarlock, alert.id()).await;
        assert_eq!(row.body, signed.body, "{what}");
        let fields = decoded(&signed.body).into_iter().filter(|(name, _)| name != "p_signature");
        let said: Value = fields.map(|(name, value)| (name, value.replace('\0', "\u{fffd}"))).collect();
        assert_eq!(row.payload, said, "{what}");
    }
    for name in AlertName::ALL.iter().map(|name| name.as_str()) {
        let signed = if name.contains('.') {
            billing(&Billing::named(name, "ctm_1", ANN))
        } else {
            classic(&oarlock, &Classic::named(name, ANN))
        };
        accepted(&oarlock, &signed).await;
    }
    let names = "select count(distinct alert_name) from outbox where alert_name = any ($1)";
    let all: Vec<&str> = AlertName::ALL.iter().map(|name| name.as_str()).collect();
    let stored: i64 = sqlx::query_scalar(names).bind(&all).fetch_one(oarlock.pool()).await.unwrap();
    assert_eq!(usize::try_from(stored), Ok(all.len()));
    let placeholders: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', email, occurred_at, subscription_id) from outbox join outbox_evidence on outbox_id = id where payload ->> 'email' in ('email', '') order by id",
    )
    .fetch_all(oarlock.pool())
    .await
    .unwrap();
    assert_eq!(placeholders, ["", "subscription_id"]);

    let odd = [
        (
            "a member never seen before",
            Billing::subscription_created("ctm_1").set("/data/brand_new", json!({ "a": [1] })),
        ),
        ("an unknown name", Billing::named("oar.dipped", "ctm_1", ANN)),
        ("no name", Billing::subscription_created("ctm_1").set("/event_type", Value::Null)),
        ("a NUL", Billing::subscription_created("ctm_1").set("/data/custom_data", json!({ "a\0b": "\0" }))),
        ("four-byte characters", Billing::customer_updated("ctm_1", ANN).set("/data/name", json!("🛶"))),
        (
            "other types",
            Billing::subscription_created("ctm_1").set("/data/id", json!(5)).set("/occurred_at", json!(["x"])),
        ),
        ("no data", Billing::subscription_created("ctm_1").set("/data", Value::Null)),
    ];
    for (what, alert) in odd {
        let signed = billing(&alert);
        let reply = oarlock.posts(&signed).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "Ok\n"), "{what}");
        let row = row(&oarlock, alert.id()).await;
        assert_eq!(row.body, signed.body, "{what}");
        let said = String::from_utf8_lossy(&signed.body).replace("\\u0000", "\u{fffd}");
        assert_eq!(row.payload, serde_json::from_str::<Value>(&said).unwrap(), "{what}");
    }
}

/// The same fields can be written in many ways; what is signed is what they say, and what is kept is how they came.
#[tokio::test]
async fn however_it_is_encoded() {
    let oarlock = receiver().start().await;
    let bytes = |text: &str| text.as_bytes().to_vec();
    /// A name, its value, and how the two are written.
    type Written<'a> = (&'a str, &'a [u8], &'a [u8], &'a [u8]);
    let forms: [Written<'_>; 9] = [
        ("unencoded UTF-8", b"name", "Zoë 🛶".as_bytes(), "name=Zoë 🛶".as_bytes()),
        ("lower-case escapes", b"name", "ü".as_bytes(), b"name=%c3%bc"),
        ("no UTF-8 at all", b"name", b"\xff\xfe", b"name=%FF%FE"),
        ("bytes as they are", b"name", b"\xff\xfe", b"name=\xff\xfe"),
        ("a name that is no UTF-8", b"\xff", b"x", b"%FF=x"),
        ("a bad escape", b"name", b"%ZZ%4", b"name=%ZZ%4"),
        ("a name without a value", b"flag", b"", b"flag"),
        ("a value with an equals sign", b"name", b"a=b=", b"name=a=b="),
        ("empty pairs", b"name", b"x", b"&&name=x&&"),
    ];
    for (number, (what, name, value, written)) in (1..).zip(forms) {
        let id = number.to_string();
        let fields = BTreeMap::from([
            (bytes("alert_id"), bytes(&id)),
            (bytes("alert_name"), bytes("payment_succeeded")),
            (name.to_vec(), value.to_vec()),
        ]);
        let signature = oarlock.signer.sign(&fields);
        let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let start = format!("p_signature={signature}&alert_name=payment_succeeded&alert_id={id}&");
        let signed = form([start.as_bytes(), written].concat());
        let reply = oarlock.posts(&signed).await;
        assert_eq!(reply.status, 200, "{what}: {}", oarlock.logs());
        let row = row(&oarlock, &id).await;
        assert_eq!(row.body, signed.body, "{what}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said: Value = fields.iter().map(|(name, value)| (text(name), text(value))).collect();
        assert_eq!(row.payload, said, "{what}");
    }
    // Whatever it is called.
    let called_json =
        Signed { content_type: "application/json", ..classic(&oarlock, &Classic::payment_succeeded(ANN)) };
    accepted(&oarlock, &called_json).await;

    // JSON as no serializer of ours would write it.
    let body = "\n{ \"event_id\" : \"evt_1\",\t\"event_type\":\"\\u0073ubscription.created\", \"big\": 12345678901234567890123456789,
        \"\\u0000\": \"\\ud83d\\udef6 a\\/b\", \"none\": null, \"e\": 1E+2, \"tiny\": 1e-20000 }\r\n";
    let signature = BillingSigner::new(WEBHOOK_SECRET).sign(body.as_bytes());
    accepted(&oarlock, &json(bytes(body), &signature)).await;
    let row = row(&oarlock, "evt_1").await;
    assert_eq!((row.body, row.alert_name.as_str()), (bytes(body), "subscription.created"));
}

#[tokio::test]
async fn a_query_on_the_url_changes_nothing() {
    let oarlock = receiver().start().await;
    for query in ["?x=1", "?alert_id=9&email=mallory%40example.com&p_signature=x", "?"] {
        for alert in
            [classic(&oarlock, &Classic::payment_succeeded(ANN)), billing(&Billing::transaction_completed("ctm_1"))]
        {
            let answer = ask(post(&oarlock, &format!("/paddle{query}"), &alert)).await;
            assert_eq!(answer.status, 200, "{query}");
        }
    }
    assert_eq!(
        oarlock
            .value::<i64>(
                "select count(distinct alert_id) from outbox where email is distinct from 'mallory@example.com'"
            )
            .await,
        6
    );
}

#[tokio::test]
async fn secrets_and_keys_are_rotated_without_a_gap() {
    let (old, new) = ("pdl_ntfset_01old_0123456789", "pdl_ntfset_01new_0123456789");
    let (previous, next) = (ClassicSigner::cached().unwrap(), ClassicSigner::generate().unwrap());
    let oarlock = receiver()
        .set("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", format!("{old},{new}"))
        .set("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", format!("{},{}", previous.public_key_pem(), next.public_key_pem()))
        .start()
        .await;
    let alert = || Billing::transaction_completed("ctm_1");
    for secret in [old, new] {
        accepted(&oarlock, &alert().signed_by(&BillingSigner::new(secret))).await;
    }
    for signer in [&previous, &next] {
        accepted(&oarlock, &Classic::payment_succeeded(ANN).signed_by(signer)).await;
    }
    // Paddle signs with both, in whichever order, and of one of them we may know nothing.
    for secrets in [[old, new], [new, old], ["pdl_ntfset_another", new], [old, "pdl_ntfset_another"]] {
        accepted(&oarlock, &alert().signed_by(&BillingSigner::rotating(secrets))).await;
    }
    // What a later version adds is not ours to judge.
    let alert = alert();
    let signature = BillingSigner::new(new).sign(&alert.body());
    accepted(&oarlock, &alert.with_signature(&format!("{signature};h2=0123"))).await;
    refused(
        &oarlock,
        &Billing::transaction_completed("ctm_1").signed_by(&BillingSigner::new(WEBHOOK_SECRET)),
        403,
        "configured keys",
    )
    .await;
}

// 403

#[tokio::test]
async fn a_missing_signature_is_answered_403() {
    let oarlock = receiver().start().await;
    let mut alert = classic(&oarlock, &private());
    let at = String::from_utf8_lossy(&alert.body).find("&p_signature=").unwrap();
    alert.body.truncate(at);
    refused(&oarlock, &alert, 403, "there is no signature").await;

    let mut alert = billing(&private_billing());
    alert.header = None;
    refused(&oarlock, &alert, 403, "there is no signature").await;
    assert_eq!(alerts(&oarlock, "classic", "other", "unsigned").await, 2.0);
}

#[tokio::test]
async fn a_wrong_signature_is_answered_403() {
    let oarlock = receiver().start().await;
    let stranger = ClassicSigner::generate().unwrap();
    let wrong = "configured keys";
    refused(&oarlock, &private().signed_by(&stranger), 403, wrong).await;
    // A right signature, of another alert; one field more; one fewer; one changed.
    let signature = |alert: &Signed| decoded(&alert.body)["p_signature"].clone();
    let right = signature(&classic(&oarlock, &private()));
    refused(&oarlock, &private().with_signature(&right), 403, wrong).await;
    let alert = private();
    let right = signature(&classic(&oarlock, &alert));
    refused(&oarlock, &alert.clone().field("more", "").with_signature(&right), 403, wrong).await;
    refused(&oarlock, &alert.clone().without("country").with_signature(&right), 403, wrong).await;
    refused(&oarlock, &alert.field("email", "mallory@example.com").with_signature(&right), 403, wrong).await;
    for text in ["", "not base64", "c2hvcnQ="] {
        refused(&oarlock, &private().with_signature(text), 403, "").await;
    }

    let signer = BillingSigner::new(WEBHOOK_SECRET);
    refused(&oarlock, &private_billing().signed_by(&BillingSigner::new("another")), 403, wrong).await;
    refused(&oarlock, &private_billing().with_signature(&signer.sign(&private_billing().body())), 403, wrong).await;
    // The time is signed as well.
    let alert = private_billing();
    let right = alert.signed_by(&signer).header.unwrap().1;
    let (_, h1) = right.split_once(';').unwrap();
    refused(&oarlock, &alert.with_signature(&format!("ts={};{h1}", Utc::now().timestamp() - 1)), 403, wrong).await;
    for text in [
        "",
        "ts=1",
        h1,
        "ts=;h1=",
        "ts=1;h1=zz",
        &format!("ts=-1;{h1}"),
        &format!("{right};ts=1"),
        &right.replace("h1", "h2"),
    ] {
        refused(&oarlock, &alert.with_signature(text), 403, "").await;
    }
    // By a Billing secret a form is no alert, whatever its own signature.
    let mut both = classic(&oarlock, &private());
    both.header = Some(("Paddle-Signature", "ts=1;h1=zz".to_owned()));
    refused(&oarlock, &both, 403, "").await;
}

#[tokio::test]
async fn a_signature_outside_the_tolerance_is_answered_403() {
    let oarlock = receiver().start().await;
    let signed = |minutes| {
        private_billing().signed_by(&BillingSigner::new(WEBHOOK_SECRET).at(Utc::now() + TimeDelta::minutes(minutes)))
    };
    for minutes in [-4, 4] {
        accepted(&oarlock, &signed(minutes)).await;
    }
    for minutes in [-6, 6, -60 * 24 * 365, 60 * 24 * 365 * 50] {
        refused(&oarlock, &signed(minutes), 403, "off our clock").await;
    }
    // Of a signature that is wrong as well, the clock is not what is said.
    let wrong = private_billing().signed_by(&BillingSigner::new("another").at(Utc::now() - TimeDelta::days(1)));
    refused(&oarlock, &wrong, 403, "configured keys").await;
}

#[tokio::test]
async fn several_signature_headers_are_answered_403() {
    let oarlock = receiver().start().await;
    let alert = private_billing();
    let signed = billing(&alert);
    let right = BillingSigner::new(WEBHOOK_SECRET).sign(&alert.body());
    for other in [right.as_str(), "ts=1;h1=00"] {
        let answer = ask(post(&oarlock, "/paddle", &signed).header("Paddle-Signature", other)).await;
        assert_eq!((answer.status, answer.body.as_str()), (403, "Forbidden\n"));
    }
    assert_eq!(stored(&oarlock).await, 0);
    accepted(&oarlock, &signed).await;
}

#[tokio::test]
async fn without_a_key_the_generation_is_answered_403_and_the_other_works() {
    let (form, notification) = (private(), private_billing());
    let oarlock = receiver().set("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", "").start().await;
    refused(&oarlock, &classic(&oarlock, &form), 403, "no key or secret is configured").await;
    accepted(&oarlock, &billing(&notification)).await;

    let oarlock = receiver().set("OARLOCK_PADDLE__BILLING__WEBHOOK_SECRETS", "").start().await;
    refused(&oarlock, &billing(&notification), 403, "no key or secret is configured").await;
    // Not with an empty secret either.
    refused(&oarlock, &notification.signed_by(&BillingSigner::new("")), 403, "no key or secret is configured").await;
    accepted(&oarlock, &classic(&oarlock, &form)).await;
}

// 400

#[tokio::test]
async fn what_is_no_form_is_answered_400() {
    let oarlock = receiver().start().await;
    for body in ["", "neither", PRIVATE, "{\"event_id\":\"evt_1\"}", "\0\0"] {
        refused(&oarlock, &form(body.as_bytes().to_vec()), 400, "the body is not a form").await;
    }
    assert_eq!(alerts(&oarlock, "classic", "other", "malformed").await, 5.0);
}

#[tokio::test]
async fn what_is_no_json_is_answered_400() {
    let oarlock = receiver().start().await;
    let bodies: [&[u8]; 8] = [
        b"",
        b"alert_id=1&alert_name=x",
        b"{\"event_id\":\"evt_1\"",
        b"{\"event_id\":\"evt_1\"} {}",
        b"[{\"event_id\":\"evt_1\"}]",
        b"\"evt_1\"",
        b"null",
        b"{\"event_id\":\"evt_1\",\"x\":\"\xff\"}",
    ];
    for body in bodies {
        refused(&oarlock, &signed_json(body), 400, "the body is not JSON").await;
    }
    assert_eq!(alerts(&oarlock, "billing", "other", "malformed").await, 8.0);
}

#[tokio::test]
async fn duplicate_names_are_answered_400() {
    let oarlock = receiver().start().await;
    // Signed as PHP would sign it, which keeps the last, and as others would, who keep the first.
    for more in ["&email=mallory%40example.com", "&%65mail=mallory%40example.com", "&email"] {
        let last = if more == "&email" { "" } else { "mallory@example.com" };
        let (body, signature) = ("alert_id=1&alert_name=payment_succeeded&email=ann%40example.com", "&p_signature=");
        for email in [ANN, last] {
            let fields = BTreeMap::from([("alert_id", "1"), ("alert_name", "payment_succeeded"), ("email", email)]);
            let right = oarlock.signer.sign(&fields).replace('+', "%2B");
            refused(
                &oarlock,
                &form(format!("{body}{more}{signature}{right}").into_bytes()),
                400,
                "a field name appears twice",
            )
            .await;
        }
    }
    // Two signatures, one of them right.
    let mut alert = classic(&oarlock, &private());
    alert.body.extend_from_slice(b"&p_signature=x");
    refused(&oarlock, &alert, 400, "a field name appears twice").await;

    for body in [
        r#"{"event_id":"evt_1","event_id":"evt_2","event_type":"x"}"#,
        r#"{"event_id":"evt_1","event_id":"evt_1","event_type":"x"}"#,
        r#"{"event_id":"evt_1","\u0065vent_id":"evt_2"}"#,
        r#"{"event_id":"evt_1","data":{"id":"sub_1","id":"sub_2"}}"#,
        r#"{"event_id":"evt_1","data":[{"items":[{"a":1,"b":2,"a":1}]}]}"#,
    ] {
        refused(&oarlock, &signed_json(body.as_bytes()), 400, "a field name appears twice").await;
    }
}

#[tokio::test]
async fn names_that_php_would_rewrite_are_answered_400() {
    let oarlock = receiver().start().await;
    // What PHP makes of the name, which is what Paddle would have signed, and the name as it is.
    for (rewritten, name) in [
        ("a_b", "a.b"),
        ("a_b", "a+b"),
        ("a_b", "a%20b"),
        ("a_b", "a%5Bb"),
        ("a[b]", "a[b]"),
        ("a[]", "a%5B%5D"),
        ("7", "7"),
        ("-5", "-5"),
        ("", ""),
    ] {
        let mut fields = BTreeMap::from([("alert_id", "1"), ("alert_name", "payment_succeeded"), (rewritten, "x")]);
        if name.is_empty() {
            fields.remove("");
        }
        let signature = oarlock.signer.sign(&fields).replace('+', "%2B");
        let body = format!("{name}=x&alert_id=1&alert_name=payment_succeeded&p_signature={signature}");
        refused(&oarlock, &form(body.into_bytes()), 400, "a name that PHP would rewrite").await;
    }
}

#[tokio::test]
async fn an_alert_without_a_number_is_answered_400() {
    let oarlock = receiver().start().await;
    for alert in
        [private().without("alert_id"), private().field("alert_id", ""), private().field("alert_id", &"9".repeat(256))]
    {
        refused(&oarlock, &classic(&oarlock, &alert), 400, "no alert_id").await;
    }
    // Classic's fulfillment has none: Paddle mails the answer to the buyer.
    let fulfillment = BTreeMap::from([("p_order_id", "1"), ("event_time", "2026-02-03 04:05:06")]);
    let signature = oarlock.signer.sign(&fulfillment).replace('+', "%2B");
    let body = format!("p_order_id=1&event_time=2026-02-03+04%3A05%3A06&p_signature={signature}");
    refused(&oarlock, &form(body.into_bytes()), 400, "no alert_id").await;

    for id in [Value::Null, json!(""), json!(5), json!("e".repeat(256)), json!(["evt_1"])] {
        refused(&oarlock, &billing(&private_billing().set("/event_id", id)), 400, "no event_id").await;
    }
}

// 413, 405, 404

#[tokio::test]
async fn a_body_over_the_limit_is_answered_413() {
    const LIMIT: usize = 16 * 1024;
    let oarlock = receiver().set("OARLOCK_RECEIVER__MAX_BODY_BYTES", LIMIT.to_string()).start().await;
    let of_length = |length: usize| {
        let alert = Billing::transaction_completed("ctm_1").set("/data/custom_data", json!(""));
        let padding = "x".repeat(length - alert.body().len());
        billing(&alert.set("/data/custom_data", json!(padding)))
    };
    let (exact, over) = (of_length(LIMIT), of_length(LIMIT + 1));
    for (signed, expected) in [(&exact, 200), (&over, 413)] {
        let length = format!("Content-Length: {}", signed.body.len());
        let (status, _) = raw(&oarlock, &[&head(signed, &length), &signed.body]).await;
        assert_eq!(status, expected, "with a length");
    }
    for (signed, expected) in [(&of_length(LIMIT), 200), (&over, 413)] {
        let mut pieces = vec![head(signed, "Transfer-Encoding: chunked")];
        for chunk in signed.body.chunks(1000) {
            pieces.push([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        pieces.push(b"0\r\n\r\n".to_vec());
        let (status, _) = raw(&oarlock, &pieces).await;
        assert_eq!(status, expected, "in chunks");
    }
    assert_eq!(stored(&oarlock).await, 2);
    // It is not waited for, and not believed either.
    for length in ["20000000", "18446744073709551615"] {
        let (status, took) = raw(&oarlock, &[head(&over, &format!("Content-Length: {length}"))]).await;
        assert_eq!(status, 413, "{length}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(alerts(&oarlock, "billing", "other", "too_large").await, 4.0);
    accepted(&oarlock, &classic(&oarlock, &Classic::payment_succeeded(ANN))).await;
}

#[tokio::test]
async fn another_method_is_answered_405() {
    let oarlock = receiver().start().await;
    let alert = classic(&oarlock, &Classic::payment_succeeded(ANN));
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        let answer = ask(request(&oarlock, method.clone(), "/paddle", &alert)).await;
        assert_eq!((answer.status, answer.headers[ALLOW].as_bytes()), (405, b"POST".as_slice()), "{method}");
    }
    assert_eq!(stored(&oarlock).await, 0);
}

#[tokio::test]
async fn another_path_is_answered_404() {
    let oarlock = receiver().set("OARLOCK_RECEIVER__PATH", "/hooks/paddle").start().await;
    let alert = classic(&oarlock, &Classic::payment_succeeded(ANN));
    for path in [
        "/",
        "/paddle",
        "/hooks/paddle/",
        "/hooks/paddle/x",
        "/hooks",
        "/HOOKS/PADDLE",
        "/metrics",
        "/healthz",
        "//hooks/paddle",
    ] {
        assert_eq!(ask(post(&oarlock, path, &alert)).await.status, 404, "{path}");
    }
    assert_eq!(stored(&oarlock).await, 0);
    assert_eq!(ask(post(&oarlock, "/hooks/paddle", &alert)).await.status, 200);
}

// 503

/// How long the receiver is given below, and how much later its answer may get here on a busy machine.
const ACK_TIMEOUT: Duration = Duration::from_millis(700);
const SLACK: Duration = Duration::from_millis(500);

fn impatient() -> Settings {
    receiver().set("OARLOCK_RECEIVER__ACK_TIMEOUT", "700ms")
}

/// Posts what cannot be stored now: Paddle is told to come again, and in time. Returns after how long.
async fn put_off(oarlock: &Oarlock, alert: &Signed) -> Duration {
    let answer = ask(post(oarlock, "/paddle", alert)).await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "Service Unavailable\n"));
    let retry_after: u32 =
        answer.headers[RETRY_AFTER].to_str().ok().and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=3600).contains(&retry_after), "{retry_after}");
    assert!(answer.took < ACK_TIMEOUT + SLACK, "{:?}", answer.took);
    answer.took
}

#[tokio::test]
async fn a_database_that_is_away_is_answered_503() {
    let oarlock = impatient().start().await;
    let alert = classic(&oarlock, &Classic::payment_succeeded(ANN));
    oarlock.database.goes_away().await;
    let mut times = Vec::new();
    for _ in 0..3 {
        times.push(put_off(&oarlock, &alert).await);
    }
    // However busy the machine is, not each time.
    assert!(times.iter().any(|took| *took <= ACK_TIMEOUT), "{times:?}");
    assert_eq!(oarlock.receiver().admin("/healthz").await.0, 200);
    assert_eq!(oarlock.receiver().admin("/readyz").await.0, 503);
    // What is wrong with the alert itself is said all the same: it needs no database.
    assert_eq!(oarlock.posts(&private().with_signature("x")).await.status, 403);

    oarlock.database.comes_back().await;
    until_accepted(&oarlock, &alert).await;
    assert_eq!(stored(&oarlock).await, 1);
    assert_eq!(alerts(&oarlock, "classic", "payment_succeeded", "unavailable").await, 3.0);
}

#[tokio::test]
async fn a_database_that_was_never_there_is_answered_503() {
    let settings = impatient().database_url("postgres://oarlock@127.0.0.1:1/oarlock");
    let mut oarlock = settings.prepare(Database::create().await).await;
    launch(&mut oarlock).await;
    for alert in
        [classic(&oarlock, &Classic::payment_succeeded(ANN)), billing(&Billing::transaction_completed("ctm_1"))]
    {
        put_off(&oarlock, &alert).await;
    }
    assert_eq!(oarlock.receiver().admin("/healthz").await.0, 200);
    assert_eq!(oarlock.receiver().admin("/readyz").await.0, 503);
}

#[tokio::test]
async fn a_database_that_is_slow_is_answered_503() {
    let oarlock = impatient().start().await;
    let (one, other) =
        (classic(&oarlock, &Classic::payment_succeeded(ANN)), billing(&Billing::transaction_completed("ctm_1")));
    let mut lock = oarlock.pool().begin().await.unwrap();
    sqlx::query("lock table outbox in access exclusive mode").execute(&mut *lock).await.unwrap();
    // One whose commit is under way, and one that waits for its turn.
    tokio::join!(put_off(&oarlock, &one), put_off(&oarlock, &other));
    put_off(&oarlock, &one).await;

    lock.rollback().await.unwrap();
    // As when Paddle repeats it, and a new one at once.
    for alert in [&one, &other, &classic(&oarlock, &Classic::payment_succeeded("bob@example.com"))] {
        accepted(&oarlock, alert).await;
    }
    assert_eq!(stored(&oarlock).await, 3);
}

/// While somebody listens and never reads, the notifications that wait may come to fill all the room there is for them.
#[tokio::test]
async fn what_no_worker_can_be_told_of_is_stored_all_the_same() {
    tells_nobody(&receiver().start().await).await;
}

/// A commit that fails ends its transaction: the next statement has one of its own again, whatever server that comes to.
#[tokio::test]
async fn what_no_worker_can_be_told_of_is_stored_through_a_pooler() {
    let database = Database::create().await;
    let pooler = Pooler::start(&database, 3).await;
    let oarlock = receiver().database_url(pooler.url()).start_on(database).await;
    // Others, who are given the servers in between.
    let others = sqlx::PgPool::connect_with(pooler.way()).await.unwrap();
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let others = others.clone();
        busy.spawn(async move { while sqlx::raw_sql("select 1").execute(&others).await.is_ok() {} });
    }
    tells_nobody(&oarlock).await;
    busy.shutdown().await;
}

async fn tells_nobody(oarlock: &Oarlock) {
    // Found before Postgres's own, and fails when that does: at the commit.
    oarlock
        .sets_up(
            "create table told (number bigint generated always as identity);
             grant insert on told to public; grant select on told_number_seq to public;
             create function too_many() returns trigger language plpgsql as $$
             begin raise 'too many notifications in the NOTIFY queue' using errcode = 'program_limit_exceeded'; end $$;
             create constraint trigger full_queue after insert on told deferrable initially deferred for each row execute function too_many();
             create function pg_notify(text, text) returns void language sql as $$ insert into told default values $$;
             do $$ begin execute format('alter database %I set search_path = public, pg_catalog', current_database()); end $$",
        )
        .await;
    oarlock.database.cuts_connections().await;
    until_accepted(oarlock, &classic(oarlock, &Classic::payment_succeeded(ANN))).await;
    for number in 0..20 {
        let alert = Billing::transaction_completed("ctm_1").event_id(&format!("evt_{number}"));
        accepted(oarlock, &billing(&alert)).await;
    }
    assert_eq!(stored(oarlock).await, 21);
    assert!(oarlock.value::<bool>("select is_called from told_number_seq").await, "nobody was to be told");
}

/// As `initdb` makes databases where no locale is set.
#[tokio::test]
async fn a_database_without_an_encoding_takes_every_character() {
    let database = Database::create().await;
    database.administer("drop database {}").await;
    database
        .administer("create database {} owner oarlock_owner template template0 encoding 'SQL_ASCII' locale 'C'")
        .await;
    let oarlock = receiver().start_on(database).await;
    let body = r#"{"event_id":"evt_1","\u00e9":"\ud83d\udef6","name":"Zoë 🛶"}"#;
    let signature = BillingSigner::new(WEBHOOK_SECRET).sign(body.as_bytes());
    accepted(&oarlock, &json(body.as_bytes().to_vec(), &signature)).await;
    assert_eq!(row(&oarlock, "evt_1").await.payload, serde_json::from_str::<Value>(body).unwrap());
}

#[tokio::test]
async fn a_full_queue_is_answered_503() {
    let oarlock = receiver().set("OARLOCK_RECEIVER__ACK_TIMEOUT", "25s").start().await;
    let mut lock = oarlock.pool().begin().await.unwrap();
    sqlx::query("lock table outbox in access exclusive mode").execute(&mut *lock).await.unwrap();
    // There is room for five of this size.
    let mut posts = tokio::task::JoinSet::new();
    for number in 0..8 {
        let alert = Billing::transaction_completed("ctm_1")
            .event_id(&format!("evt_{number}"))
            .set("/data/custom_data", json!("x".repeat(1_040_000)));
        posts.spawn(ask(post(&oarlock, "/paddle", &billing(&alert))));
    }
    for _ in 0..3 {
        let answer = posts.join_next().await.unwrap().unwrap();
        assert_eq!((answer.status, answer.headers.contains_key(RETRY_AFTER)), (503, true));
    }
    oarlock
        .receiver()
        .says("that it is full", |line| {
            line["reason"].as_str().is_some_and(|reason| reason.contains("too many alerts"))
        })
        .await;
    lock.rollback().await.unwrap();
    while let Some(answer) = posts.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(stored(&oarlock).await, 5);
    // The room is free again.
    until_accepted(
        &oarlock,
        &billing(&Billing::transaction_completed("ctm_1").set("/data/custom_data", json!("x".repeat(1_040_000)))),
    )
    .await;
}

#[tokio::test]
async fn a_database_without_the_schema_is_answered_503() {
    let mut oarlock = impatient().prepare(Database::create().await).await;
    launch(&mut oarlock).await;
    let alert = classic(&oarlock, &Classic::payment_succeeded(ANN));
    put_off(&oarlock, &alert).await;
    assert_eq!(oarlock.receiver().admin("/healthz").await, (200, "ok\n".to_owned()));
    let (status, why) = oarlock.receiver().admin("/readyz").await;
    assert!(status == 503 && why.contains("not migrated"), "{status} {why}");
    let logs = oarlock.receiver().logs();
    let cause = r#"relation \"outbox\" does not exist (SQLSTATE 42P01)"#;
    assert!(logs.contains(cause) && logs.contains("not ready: the database is not migrated"), "{logs}");
    // One trouble after the other: each is told.
    oarlock.database.goes_away().await;
    assert_eq!(oarlock.receiver().admin("/readyz").await.0, 503);
    let reasons = ["not ready: the database cannot be reached", "not ready: the database does not answer"];
    oarlock.receiver().says("the other trouble", |line| reasons.iter().any(|reason| line["message"] == *reason)).await;
    oarlock.database.comes_back().await;

    assert_eq!(oarlock.spawn("oarlock-worker", &["migrate"]).ends().await.code, Some(0));
    oarlock.receiver().ready().await;
    accepted(&oarlock, &alert).await;
}

// Bodies that do not come

#[tokio::test]
async fn a_slow_body_is_not_waited_for() {
    let oarlock = impatient().start().await;
    let (form, notification) = (classic(&oarlock, &private()), billing(&private_billing()));
    for (alert, came) in [(&form, 0), (&notification, notification.body.len() - 1)] {
        let length = format!("Content-Length: {}", alert.body.len());
        let (status, took, mut connection) =
            raw_on_connection(&oarlock, &[&head(alert, &length), &alert.body[..came]]).await;
        assert_eq!(status, 408);
        assert!(took < ACK_TIMEOUT + SLACK, "{took:?}");
        // Nor is the connection kept for the rest.
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), connection.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "it is open");
    }
    assert_eq!(stored(&oarlock).await, 0);
}

/// Anybody can begin to post, and hold as much as the receiver lets them.
#[tokio::test]
async fn large_bodies_that_do_not_end_leave_room_for_alerts() {
    const BODIES: usize = 400;
    const MOST_MIB: f64 = 300.0;
    let oarlock = receiver().set("OARLOCK_RECEIVER__ACK_TIMEOUT", "25s").start().await;
    let large =
        billing(&Billing::transaction_completed("ctm_1").set("/data/custom_data", json!("x".repeat(1_000_000))));
    let begun = [head(&large, &format!("Content-Length: {}", large.body.len() + 1)), large.body.clone()].concat();
    let mut connections = Vec::new();
    for _ in 0..BODIES {
        let mut stream = TcpStream::connect(oarlock.receiver().address()).await.expect("it listens");
        stream.write_all(&begun).await.expect("it reads");
        connections.push(stream);
    }
    accepted(&oarlock, &classic(&oarlock, &Classic::payment_succeeded(ANN))).await;
    put_off(&oarlock, &large).await;
    let is_refused = |line: &Value| line["reason"].as_str().is_some_and(|reason| reason.contains("large bodies"));
    oarlock.receiver().says("that there is no room for it", is_refused).await;
    let resident = oarlock.receiver().resident_mib();
    println!("{resident} MiB while {BODIES} bodies of a megabyte are begun");
    assert!(resident < MOST_MIB, "{resident} MiB");

    drop(connections);
    until_accepted(&oarlock, &large).await;
    assert_eq!(stored(&oarlock).await, 2);
}

#[tokio::test]
async fn whoever_hangs_up_midway_stores_nothing() {
    let oarlock = receiver().start().await;
    let alert = classic(&oarlock, &Classic::payment_succeeded(ANN));
    let mut stream = TcpStream::connect(oarlock.receiver().address()).await.unwrap();
    let head = head(&alert, &format!("Content-Length: {}", alert.body.len()));
    stream.write_all(&[&head, &alert.body[..alert.body.len() / 2]].concat()).await.unwrap();
    drop(stream);
    oarlock
        .receiver()
        .says("that it broke off", |line| line["message"].as_str().is_some_and(|text| text.contains("broke off")))
        .await;
    assert_eq!(stored(&oarlock).await, 0);
    accepted(&oarlock, &alert).await;
}

/// A request that was sent before the receiver was told to stop may not have been read by then.
#[tokio::test]
async fn who_was_let_in_is_answered_at_the_end() {
    let mut oarlock = receiver().start().await;
    let request = |number: usize| {
        let alert = billing(&Billing::transaction_completed("ctm_1").event_id(&format!("evt_{number}")));
        [head(&alert, &format!("Content-Length: {}", alert.body.len())), alert.body].concat()
    };
    let mut connections = Vec::new();
    for number in 0..40 {
        let (status, _, connection) = raw_on_connection(&oarlock, &[request(number)]).await;
        assert_eq!(status, 200);
        connections.push(connection);
    }
    let mut idle = connections.pop().expect("made above");
    for (connection, number) in connections.iter_mut().zip(40..) {
        connection.write_all(&request(number)).await.unwrap();
    }
    let address = oarlock.receiver().address();
    let receiver = oarlock.receivers.remove(0);
    receiver.signal(Signal::SIGTERM);
    // One after the other, and not so many that they fill the queue of those who wait to be let in.
    while TcpStream::connect(&address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Who asks once more over a connection that is there is told to go elsewhere from here on.
    idle.write_all(&request(79)).await.unwrap();
    connections.push(idle);
    let mut last = String::new();
    for mut connection in connections {
        last.clear();
        connection.read_to_string(&mut last).await.expect("it is closed in order");
        assert!(last.contains("HTTP/1.1 200"), "{last:?}");
    }
    assert!(last.to_ascii_lowercase().contains("connection: close"), "{last:?}");
    assert_eq!(receiver.ends().await.code, Some(0));
    assert_eq!(stored(&oarlock).await, 80);
}

// The admin listener

#[tokio::test]
async fn the_receiver_says_how_it_is() {
    let oarlock = receiver().start().await;
    let receiver = oarlock.receiver();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(receiver.admin(path).await, (200, "ok\n".to_owned()));
    }
    oarlock.database.goes_away().await;
    assert_eq!(receiver.admin("/healthz").await.0, 200);
    assert_eq!(receiver.admin("/readyz").await.0, 503);
    oarlock.database.comes_back().await;
    receiver.ready().await;
    // It is not where alerts are posted, nor the other way round.
    assert_eq!(receiver.admin("/paddle").await.0, 404);
    let answer = reqwest::get(format!("http://{}/metrics", receiver.address())).await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn metrics_have_the_contracts_names_and_nobodys_address() {
    let oarlock = receiver().start().await;
    oarlock.paddle_sends(&Classic::subscription_created(ANN).field("passthrough", PRIVATE)).await;
    // What is not of the closed list would let anybody make a series of their own.
    oarlock.paddle_sends(&Classic::named("ann@example.com", ANN)).await;
    oarlock.billing_sends(&private_billing()).await;
    oarlock.posts(&private().with_signature("x")).await;
    let listens = oarlock.receiver().says("where it listens", |line| line.get("admin_address").is_some()).await;
    let address = listens["admin_address"].as_str().unwrap();
    let answer = reqwest::get(format!("http://{address}/metrics")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"));
    let text = answer.text().await.unwrap();
    for sample in [
        "# TYPE oarlock_alerts_total counter",
        "oarlock_alerts_total{alert_name=\"subscription_created\",result=\"stored\",source=\"classic\"} 1",
        "oarlock_alerts_total{alert_name=\"other\",result=\"stored\",source=\"classic\"} 1",
        "oarlock_alerts_total{alert_name=\"other\",result=\"refused\",source=\"classic\"} 1",
        "oarlock_alerts_total{alert_name=\"other\",result=\"unsigned\",source=\"classic\"} 0",
        "oarlock_alerts_total{alert_name=\"other\",result=\"mismatch\",source=\"classic\"} 0",
        "# TYPE oarlock_ack_seconds histogram",
        "oarlock_ack_seconds_bucket{le=\"+Inf\"} 3",
        "# TYPE oarlock_build_info gauge",
        &format!("oarlock_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample} is not in\n{text}");
    }
    for secret in ["example", PRIVATE, "ctm_1", WEBHOOK_SECRET, "BEGIN PUBLIC KEY", "postgres"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

// What is asked and looked at above

fn classic(oarlock: &Oarlock, alert: &ClassicAlert) -> Signed {
    alert.signed_by(&oarlock.signer)
}

fn billing(alert: &BillingAlert) -> Signed {
    alert.signed_by(&BillingSigner::new(WEBHOOK_SECRET))
}

fn private() -> ClassicAlert {
    Classic::payment_succeeded(ANN).field("passthrough", PRIVATE)
}

fn private_billing() -> BillingAlert {
    Billing::transaction_completed("ctm_1").set("/data/custom_data", json!(PRIVATE))
}

fn form(body: Vec<u8>) -> Signed {
    Signed { body, content_type: "application/x-www-form-urlencoded", header: None }
}

fn json(body: Vec<u8>, signature: &str) -> Signed {
    Signed { body, content_type: "application/json", header: Some(("Paddle-Signature", signature.to_owned())) }
}

fn signed_json(body: &[u8]) -> Signed {
    json(body.to_vec(), &BillingSigner::new(WEBHOOK_SECRET).sign(body))
}

fn vector(source: &str, name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(source).join(name).join(file)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The account whose alerts are published beside the sandbox's.
fn with_the_vectors_key() -> Settings {
    let published =
        String::from_utf8(read(&vector("classic", "subscription_created", "public_key.pem"))).expect("a text");
    let ours = ClassicSigner::cached().expect("a key can be made");
    receiver().set("OARLOCK_PADDLE__CLASSIC__PUBLIC_KEYS", format!("{published},{}", ours.public_key_pem()))
}

/// The fields of a form, by another reader than the receiver's.
fn decoded(body: &[u8]) -> BTreeMap<String, String> {
    let mut url = reqwest::Url::parse("http://localhost").expect("a URL");
    url.set_query(Some(std::str::from_utf8(body).expect("a text")));
    url.query_pairs().into_owned().collect()
}

async fn stored(oarlock: &Oarlock) -> i64 {
    oarlock.value("select count(*) from outbox").await
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    source: String,
    alert_name: String,
    occurred_at: Option<DateTime<Utc>>,
    received_at: DateTime<Utc>,
    email: Option<String>,
    subscription_id: Option<String>,
    status: String,
    payload: Value,
    body: Vec<u8>,
    signature: String,
}

async fn row(oarlock: &Oarlock, alert_id: &str) -> Row {
    sqlx::query_as("select * from outbox join outbox_evidence on outbox_id = id where alert_id = $1")
        .bind(alert_id)
        .fetch_one(oarlock.pool())
        .await
        .expect("it is stored")
}

/// How many alerts were counted so.
async fn alerts(oarlock: &Oarlock, source: &str, name: &str, result: &str) -> f64 {
    let sample = format!("oarlock_alerts_total{{alert_name=\"{name}\",result=\"{result}\",source=\"{source}\"}}");
    oarlock.receiver().metric(&sample).await.unwrap_or(0.0)
}

async fn accepted(oarlock: &Oarlock, alert: &Signed) {
    let reply = oarlock.posts(alert).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "Ok\n"), "{}", oarlock.logs());
}

/// Paddle repeats it until it is accepted.
async fn until_accepted(oarlock: &Oarlock, alert: &Signed) {
    let repeating = async { while oarlock.posts(alert).await.status != 200 {} };
    assert!(tokio::time::timeout(PATIENCE, repeating).await.is_ok(), "never accepted\n{}", oarlock.logs());
}

/// Posts what must not be accepted: the answer says nothing, nothing is stored, and the log says why without the body.
async fn refused(oarlock: &Oarlock, alert: &Signed, status: u16, reason: &str) {
    let rows = stored(oarlock).await;
    let reply = oarlock.posts(alert).await;
    let said = if status == 403 { "Forbidden\n" } else { "Bad Request\n" };
    assert_eq!((reply.status, reply.body.as_str()), (status, said), "{}", oarlock.logs());
    assert_eq!(stored(oarlock).await, rows);
    oarlock.receiver().says(reason, |line| line["reason"].as_str().is_some_and(|said| said.contains(reason))).await;
    assert!(!oarlock.logs().contains(PRIVATE), "the log quotes the body");
}

/// Starts a receiver that cannot do its work yet.
async fn launch(oarlock: &mut Oarlock) {
    let receiver = oarlock.spawn("oarlock-receiver", &[]);
    receiver.says("that it listens", |line| line.get("admin_address").is_some()).await;
    oarlock.receivers.push(receiver);
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
    took: Duration,
}

fn post(oarlock: &Oarlock, path: &str, alert: &Signed) -> RequestBuilder {
    request(oarlock, Method::POST, path, alert)
}

fn request(oarlock: &Oarlock, method: Method, path: &str, alert: &Signed) -> RequestBuilder {
    let url = format!("http://{}{path}", oarlock.receiver().address());
    let request =
        reqwest::Client::new().request(method, url).header(CONTENT_TYPE, alert.content_type).body(alert.body.clone());
    match &alert.header {
        Some((name, value)) => request.header(*name, value),
        None => request,
    }
}

async fn ask(request: RequestBuilder) -> Answer {
    let started = Instant::now();
    let response = request.timeout(PATIENCE).send().await.expect("the receiver answers");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.text().await.expect("a text"), took: started.elapsed() }
}

/// The head of a request whose body is announced in this way.
fn head(alert: &Signed, announced: &str) -> Vec<u8> {
    let signature = alert.header.as_ref().map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
    let content_type = alert.content_type;
    format!(
        "POST /paddle HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{signature}{announced}\r\n\r\n"
    )
    .into_bytes()
}

/// What no client would send, piece by piece; the status of the answer, and how long it took.
async fn raw(oarlock: &Oarlock, pieces: &[impl AsRef<[u8]>]) -> (u16, Duration) {
    let (status, took, _) = raw_on_connection(oarlock, pieces).await;
    (status, took)
}

async fn raw_on_connection(oarlock: &Oarlock, pieces: &[impl AsRef<[u8]>]) -> (u16, Duration, TcpStream) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(oarlock.receiver().address()).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    for piece in pieces {
        stream.write_all(piece.as_ref()).await.expect("it reads");
    }
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("it answers");
        assert!(read.is_ok_and(|bytes| bytes > 0), "closed amid {:?}", String::from_utf8_lossy(&answer));
    }
    let took = started.elapsed();
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), took, stream)
}
