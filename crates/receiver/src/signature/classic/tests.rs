use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use proptest::prelude::*;

use super::*;

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/classic").join(name)
}

fn body(name: &str) -> Bytes {
    std::fs::read(vector(name).join("body.txt")).unwrap().into()
}

static KEYS: LazyLock<PublicKeys> = LazyLock::new(|| {
    let pem = std::fs::read_to_string(vector("subscription_created").join("public_key.pem")).unwrap();
    PublicKeys::new(&[pem]).unwrap()
});

const GENUINE: [&str; 4] =
    ["subscription_created", "subscription_updated", "subscription_cancelled", "subscription_payment_succeeded"];

#[test]
fn genuine_alerts_verify() {
    for name in GENUINE {
        let alert = KEYS.verify(body(name), false).unwrap();
        assert_eq!(alert.alert_name, name);
        assert!(alert.mended_payload.is_none() && !alert.signature.is_empty());
    }
}

#[test]
fn the_edited_alert_does_not() {
    assert_eq!(KEYS.verify(body("payment_refunded"), false).unwrap_err(), Refusal::WrongSignature);
}

#[test]
fn any_of_several_keys_will_do() {
    let good = std::fs::read_to_string(vector("subscription_created").join("public_key.pem")).unwrap();
    let other = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa4096).unwrap();
    let der: PublicKeyX509Der<'_> = aws_lc_rs::signature::KeyPair::public_key(&other).as_der().unwrap();
    let other = pem(der.as_ref());
    let both = PublicKeys::new(&[other.clone(), good.clone()]).unwrap();
    assert!(both.verify(body("subscription_created"), false).is_ok());
    let in_one_text = PublicKeys::new(&[format!("{other}{good}").replace('\n', "\\n")]).unwrap();
    assert!(in_one_text.verify(body("subscription_created"), false).is_ok());
    let only_other = PublicKeys::new(&[other]).unwrap();
    assert_eq!(only_other.verify(body("subscription_created"), false).unwrap_err(), Refusal::WrongSignature);
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

/// 1024 bits: too few to verify anything with.
const SHORT_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCaMere7QgKwQ8uMc4n1MHUZXnD
jMhXCwt22fmvQa+8IeJCzWlab/f1BhPO7mIePwGldwaiGMTuQqNghnGCflKBKIec
n7ZdD0B3OeinAZeqHHlSr/ehc8PkHjW5NweDA0dH9v9TLRQ91q7kv6udP70PPLSl
Ke3Nqn2H0xSk3v0ijwIDAQAB
-----END PUBLIC KEY-----
";

#[test]
fn what_is_no_key_is_said_by_number() {
    let problems = PublicKeys::new(&["pdl_ntfset_1".into(), pem(b"abc"), SHORT_KEY.into()]).unwrap_err();
    assert_eq!(problems.len(), 3);
    assert!(problems[1].contains("entry 2"), "{problems:?}");
}

/// Rows of real PHP's parse_str, ksort, string cast and serialize (8.3.33 and 7.4.33).
#[test]
fn serializes_as_php_does() {
    let check = |body: &[u8], expected: &[u8]| {
        let serialized = serialize(&form::decode(body));
        assert_eq!(String::from_utf8_lossy(&serialized), String::from_utf8_lossy(expected));
        assert_eq!(serialized, expected);
    };
    check(b"a=&b", br#"a:2:{s:1:"a";s:0:"";s:1:"b";s:0:"";}"#);
    check(
        b"name=J%C3%BCrgen+M%C3%BCller&sp=+lead+trail+",
        "a:2:{s:4:\"name\";s:15:\"Jürgen Müller\";s:2:\"sp\";s:12:\" lead trail \";}".as_bytes(),
    );
    check(
        b"plus=a%2Bb&raw=a+b&pct=100%25&bad=%ZZ",
        br#"a:4:{s:3:"bad";s:3:"%ZZ";s:3:"pct";s:4:"100%";s:4:"plus";s:3:"a+b";s:3:"raw";s:3:"a b";}"#,
    );
    check(b"inv=%FF%FE", b"a:1:{s:3:\"inv\";s:2:\"\xff\xfe\";}");
    check(b"q=%22quoted%22%3B&nl=a%0D%0Ab", b"a:2:{s:2:\"nl\";s:4:\"a\r\nb\";s:1:\"q\";s:9:\"\"quoted\";\";}");
    // Upper case, underscore, lower case: the order of bytes.
    check(b"a=1&B=2&_c=3", br#"a:3:{s:1:"B";s:1:"2";s:2:"_c";s:1:"3";s:1:"a";s:1:"1";}"#);
    // Not numbers to PHP: a leading zero, and more than 64 bits.
    check(b"05=y&9999999999999999999=z", br#"a:2:{s:2:"05";s:1:"y";s:19:"9999999999999999999";s:1:"z";}"#);
    // Four bytes, two UTF-16 units, one character: only the bytes count.
    check("e=%F0%9F%98%80".as_bytes(), "a:1:{s:1:\"e\";s:4:\"😀\";}".as_bytes());
    check(
        b"null=&true=1&false=&float=1.5&int=3",
        br#"a:5:{s:5:"false";s:0:"";s:5:"float";s:3:"1.5";s:3:"int";s:1:"3";s:4:"null";s:0:"";s:4:"true";s:1:"1";}"#,
    );
    check(b"a=1&&b=2&", br#"a:2:{s:1:"a";s:1:"1";s:1:"b";s:1:"2";}"#);
    check(b"a=b=c", br#"a:1:{s:1:"a";s:3:"b=c";}"#);
}

#[test]
fn names_that_php_would_rewrite_are_refused() {
    for body in ["0=zero", "-5=x", "10=t&9=n&abc=z&1a=q", "a.b=1", "c+d=2", "e%5Bf=3", "x[]=1&x[]=2", "x[k]=3", "=x"] {
        let names = check_names(&form::decode(body.as_bytes()));
        assert_eq!(names.unwrap_err(), Refusal::AmbiguousName, "{body}");
    }
    for body in ["a=1&a=2", "a=1&%61=2", "p_signature=a&p_signature=b"] {
        let names = check_names(&form::decode(body.as_bytes()));
        assert_eq!(names.unwrap_err(), Refusal::Malformed(Malformed::DuplicateName), "{body}");
    }
}

#[test]
fn what_is_no_form_and_what_is_not_signed() {
    let check = |body: &[u8], says_json| KEYS.verify(Bytes::copy_from_slice(body), says_json).unwrap_err();
    assert_eq!(check(b"", false), Refusal::NotAForm);
    assert_eq!(check(b"hello", false), Refusal::NotAForm);
    assert_eq!(check(br#"{"event_id":"evt_1","url":"https://x/?a=b.c=d"}"#, true), Refusal::NoSignature);
    assert_eq!(check(br#"{"event_id":"evt_1"}"#, false), Refusal::NotAForm);
    assert_eq!(check(br#"{"event_id":"evt_1"}"#, true), Refusal::NoSignature);
    assert_eq!(check(b"alert_id=1", false), Refusal::NoSignature);
    assert_eq!(check(b"alert_id=1&p_signature=", false), Refusal::WrongSignature);
    assert_eq!(check(b"alert_id=1&p_signature=%FF", false), Refusal::NotASignature);
    assert_eq!(check(b"alert_id=1&p_signature=!!", false), Refusal::NotASignature);
    // Encoded twice on the way: still a sender's mistake, not to be guessed at.
    let twice = String::from_utf8(body("subscription_created").into())
        .unwrap()
        .replace("%2B", "%252B")
        .replace("%2F", "%252F")
        .replace("%3D", "%253D");
    assert!(KEYS.verify(twice.into(), false).is_err());
}

#[test]
fn without_a_key_a_stranger_is_still_a_stranger() {
    let without = |body: Bytes| PublicKeys::new(&[]).unwrap().verify(body, false).unwrap_err();
    assert_eq!(without(body("subscription_created")), Refusal::NotConfigured);
    assert_eq!(without("alert_id=1".into()), Refusal::NoSignature);
    assert_eq!(without("hello".into()), Refusal::NoSignature);
}

/// A body whose fields are these, encoded byte by byte.
fn encode(fields: &[Field<'_>]) -> Bytes {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
    fields.iter().map(|(name, value)| format!("{}={}", hex(name), hex(value))).collect::<Vec<_>>().join("&").into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Whichever bit of whichever decoded name or value is turned, the signature's included, the alert is not accepted.
    #[test]
    fn one_bit_of_any_field_or_of_the_signature_breaks_it(which in 0..GENUINE.len(), at: prop::sample::Index, bit in 0..8u8) {
        let body = body(GENUINE[which]);
        let mut fields = form::decode(&body);
        prop_assert!(KEYS.verify(encode(&fields), false).is_ok(), "the encoding itself breaks nothing");
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        let mut at = at.index(bytes);
        'flip: for (name, value) in &mut fields {
            for part in [name, value] {
                if at < part.len() {
                    part.to_mut()[at] ^= 1 << bit;
                    break 'flip;
                }
                at -= part.len();
            }
        }
        prop_assert!(KEYS.verify(encode(&fields), false).is_err());
    }

    /// Nothing that can be posted makes the verifier panic.
    #[test]
    fn any_body_is_answered(body: Vec<u8>, says_json: bool) {
        prop_assert!(KEYS.verify(body.into(), says_json).is_err());
    }
}
