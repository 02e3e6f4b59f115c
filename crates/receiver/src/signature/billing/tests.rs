use std::path::Path;

use proptest::prelude::*;

use super::*;

struct Vector {
    secret: String,
    header: String,
    body: Bytes,
    signed_at: SystemTime,
}

fn vector() -> Vector {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/billing/subscription.activated");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    Vector {
        secret: read("secret.txt"),
        header: read("paddle_signature_header.txt"),
        body: std::fs::read(folder.join("body.txt")).unwrap().into(),
        signed_at: UNIX_EPOCH + Duration::from_secs(1_692_730_519),
    }
}

fn secrets(secrets: &[&str]) -> Secrets {
    let secrets: Vec<SecretString> = secrets.iter().map(|secret| (*secret).into()).collect();
    Secrets::new(&secrets, Duration::from_secs(300))
}

#[test]
fn a_genuine_notification_verifies() {
    let Vector { secret, header, body, signed_at } = vector();
    let alert = secrets(&[&secret]).verify(header.as_bytes(), body.clone(), signed_at).unwrap();
    assert_eq!(
        (alert.alert_name.as_str(), alert.alert_id.as_str()),
        ("subscription.activated", "evt_01h8f9kvwn9vnmhrev93sxtdrw")
    );
    assert_eq!(alert.body, body);
}

#[test]
fn the_tolerance_holds_both_ways() {
    let Vector { secret, header, body, signed_at } = vector();
    let secrets = secrets(&[&secret]);
    let check = |now| secrets.verify(header.as_bytes(), body.clone(), now).map(drop);
    let seconds = Duration::from_secs;
    assert_eq!(check(signed_at + seconds(300)), Ok(()));
    assert_eq!(check(signed_at - seconds(300)), Ok(()));
    assert_eq!(check(signed_at + seconds(301)), Err(Refusal::OutsideTolerance { seconds_off: 301 }));
    assert_eq!(check(signed_at - seconds(301)), Err(Refusal::OutsideTolerance { seconds_off: 301 }));
}

#[test]
fn headers() {
    let Vector { secret, header, body, signed_at } = vector();
    let (ts, h1) = header.split_once(';').unwrap();
    let wrong = format!("h1={}", "0".repeat(64));
    let check =
        |header: &str| secrets(&["another", &secret]).verify(header.as_bytes(), body.clone(), signed_at).map(drop);
    for good in [
        format!("{ts};{h1}"),
        format!("{h1};{ts}"),
        format!("{ts};{wrong};{h1}"),
        format!("{ts};{h1};{wrong}"),
        format!("{ts};{h1};h2=abc;x"),
        format!("{ts}; {h1};"),
        format!("{ts};h1=short;{h1}"),
    ] {
        assert_eq!(check(&good), Ok(()), "{good}");
    }
    for (bad, expected) in [
        (String::new(), Refusal::NotASignature),
        (ts.to_owned(), Refusal::NotASignature),
        (h1.to_owned(), Refusal::NotASignature),
        (format!("{ts};{ts};{h1}"), Refusal::NotASignature),
        (format!("ts=;{h1}"), Refusal::NotASignature),
        (format!("ts=-1;{h1}"), Refusal::NotASignature),
        (format!("ts=99999999999999999999;{h1}"), Refusal::NotASignature),
        (format!("{ts};h1="), Refusal::NotASignature),
        (format!("{ts};h1=é{}", &h1[5..]), Refusal::NotASignature),
        (format!("{ts};{wrong}"), Refusal::WrongSignature),
        (format!("ts=01692730519;{h1}"), Refusal::WrongSignature),
        (format!("{ts};{}", h1.to_uppercase().replace("H1", "h1")), Refusal::NotASignature),
    ] {
        assert_eq!(check(&bad), Err(expected), "{bad}");
    }
}

#[test]
fn signed_and_yet_no_alert() {
    let Vector { secret, signed_at, .. } = vector();
    let check = |body: &'static str| {
        let tag =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), format!("1692730519:{body}").as_bytes());
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        secrets(&[&secret]).verify(format!("ts=1692730519;h1={hex}").as_bytes(), body.into(), signed_at).map(drop)
    };
    assert_eq!(check(r#"{"event_id":"evt_1"}"#), Ok(()));
    assert!(matches!(check("alert_id=1"), Err(Refusal::Malformed(_))));
    assert!(matches!(check(r#"{"event_type":"x"}"#), Err(Refusal::Malformed(_))));
    assert_eq!(secrets(&[]).verify(b"", Bytes::new(), signed_at).unwrap_err(), Refusal::NotConfigured);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn one_bit_of_the_body_or_of_the_header_breaks_it(at: prop::sample::Index, bit in 0..8u8) {
        let Vector { secret, header, body, signed_at } = vector();
        let mut body = Vec::from(body);
        let mut header = header.into_bytes();
        let at = at.index(header.len() + body.len());
        let byte = if at < header.len() { &mut header[at] } else { let at = at - header.len(); &mut body[at] };
        *byte ^= 1 << bit;
        prop_assert!(secrets(&[&secret]).verify(&header, body.into(), signed_at).is_err());
    }

    #[test]
    fn any_header_and_body_are_answered(header: Vec<u8>, body: Vec<u8>) {
        prop_assert!(secrets(&["secret"]).verify(&header, body.into(), SystemTime::now()).is_err());
    }
}
