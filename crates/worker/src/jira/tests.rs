//! What every answer means, by edition and API: status and body in, meaning out.

use super::*;

/// What the classification came to, comparable.
#[derive(Debug, PartialEq, Eq)]
enum Is {
    Done,
    Already,
    NotMember,
    Refused,
    NotFound,
    Failed(Meaning),
}

const TRANSIENT: Is = Is::Failed(Meaning::Transient { retry_after: None });
const CONFIGURATION: Is = Is::Failed(Meaning::Configuration);
const UNKNOWN: Is = Is::Failed(Meaning::Unknown);

fn limited(seconds: u64) -> Is {
    Is::Failed(Meaning::RateLimited { retry_after: Duration::from_secs(seconds) })
}

fn wait(seconds: u64) -> Is {
    Is::Failed(Meaning::Transient { retry_after: Some(Duration::from_secs(seconds)) })
}

#[track_caller]
fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: Is) -> String {
    let (is, detail) = match said(&Answer::of(status, headers, body), "asking") {
        Ok(Said::Done) => (Is::Done, String::new()),
        Ok(Said::Already(failure)) => (Is::Already, failure.detail().to_owned()),
        Ok(Said::NotMember(failure)) => (Is::NotMember, failure.detail().to_owned()),
        Ok(Said::Refused(failure)) => {
            let meaning = if status == 400 { Meaning::Permanent } else { Meaning::Transient { retry_after: None } };
            assert_eq!(failure.meaning, meaning, "{status} {body}");
            (Is::Refused, failure.detail().to_owned())
        }
        Ok(Said::NotFound(failure)) => {
            assert_eq!(failure.meaning, Meaning::Configuration, "{status} {body}");
            (Is::NotFound, failure.detail().to_owned())
        }
        Err(failure) => (Is::Failed(failure.meaning), failure.detail().to_owned()),
    };
    assert_eq!(is, expected, "{status} {body}");
    detail
}

fn platform(text: &str) -> String {
    format!(r#"{{"errorMessages":["{text}"],"errors":{{}}}}"#)
}

fn service_desk(text: &str, key: &str) -> String {
    format!(r#"{{"errorMessage":"{text}","i18nErrorMessage":{{"i18nKey":"{key}","parameters":[]}}}}"#)
}

#[test]
fn cloud_platform() {
    check(200, &[], "[]", Is::Done);
    check(201, &[], r#"{"name":"support"}"#, Is::Done);
    check(204, &[], "", Is::Done);
    check(204, &[("content-type", "text/html; charset=utf-8")], "", Is::Done);
    check(200, &[("content-type", "text/html; charset=utf-8")], "", Is::Refused);
    check(200, &[], "\n<!DOCTYPE html>", TRANSIENT);
    check(400, &[], &platform("Cannot add user. User is already a member of '{1}'"), Is::Already);
    check(400, &[], &platform("The group is READ-ONLY"), CONFIGURATION);
    check(400, &[], &platform("something else"), Is::Refused);
    check(400, &[], r#"{"errorMessages":[],"errors":{"accountId":"must be given"}}"#, Is::Refused);
    check(400, &[], "", Is::Refused);
    check(400, &[], "<html>", UNKNOWN);
    check(403, &[], &platform("Browse users and groups permission is required to view groups."), CONFIGURATION);
    check(403, &[], "<html>", CONFIGURATION);
    check(404, &[], &platform("The user does not exist."), Is::NotFound);
    check(404, &[], "", Is::NotFound);
    check(404, &[], "<html>", CONFIGURATION);
    check(302, &[("location", "https://id.atlassian.com/login")], "", CONFIGURATION);
    check(429, &[("retry-after", "5"), ("ratelimit-reason", "jira-burst-based")], "", limited(5));
    check(429, &[("x-ratelimit-reset", "2026-11-24T12:00:20Z")], "<html>", limited(20));
    check(429, &[], "", limited(30));
    for status in [500, 502, 504] {
        check(status, &[], "<html>", TRANSIENT);
    }
    check(503, &[("retry-after", "60")], "", wait(60));
    check(418, &[], "", UNKNOWN);
}

#[test]
fn cloud_credentials() {
    let detail = check(401, &[], "<html>", CONFIGURATION);
    assert_eq!(detail, "asking: HTTP 401: token wrong or expired (Cloud API tokens last a year)");
    let detail = check(401, &[], &platform("Client must be authenticated to access this resource."), CONFIGURATION);
    assert!(detail.ends_with("a year): Client must be authenticated to access this resource."), "{detail}");
    let detail = check(401, &[], r#"{"code":401,"message":"Unauthorized; scope does not match"}"#, CONFIGURATION);
    assert!(
        detail.contains("https://api.atlassian.com/ex/jira/CLOUD_ID") && detail.ends_with("does not match"),
        "{detail}"
    );
}

#[test]
fn cloud_service_desk() {
    check(201, &[], r#"{"accountId":"qm:1"}"#, Is::Done);
    check(204, &[], "", Is::Done);
    check(409, &[], &service_desk("An account exists", "sd.customer.exists"), Is::Already);
    check(409, &[], "", Is::Already);
    check(400, &[], &service_desk("An account already exists for this email", ""), Is::Already);
    let detail = check(400, &[], &service_desk("'ann@' is no e-mail address", "sd.email.invalid"), Is::Refused);
    assert_eq!(detail, "asking: HTTP 400: '(address)' is no e-mail address; [sd.email.invalid]");
    check(401, &[], &service_desk("You are not authenticated", ""), CONFIGURATION);
    check(403, &[], &service_desk("You are not an administrator", ""), CONFIGURATION);
    check(404, &[], &service_desk("The service desk does not exist", "sd.not.found"), Is::NotFound);
    check(429, &[("retry-after", "1")], "", limited(1));
    check(500, &[], &service_desk("Internal Server Error", ""), TRANSIENT);
}

#[test]
fn data_center() {
    check(200, &[], "", Is::Done);
    check(201, &[], r#"{"name":"support"}"#, Is::Done);
    check(400, &[], &platform("Cannot add user 'ann', user is already a member of 'support'"), Is::Already);
    check(
        400,
        &[],
        &platform("Cannot remove user 'u' from group 'g' since user is not a member of 'g'"),
        Is::NotMember,
    );
    check(400, &[], &service_desk("A user with that username already exists.", ""), Is::Already);
    check(400, &[], &platform("Cannot add user, the directory is read-only"), CONFIGURATION);
    check(400, &[], &platform("Group is managed externally."), CONFIGURATION);
    check(400, &[], &platform("The group is synced from your identity provider."), CONFIGURATION);
    check(400, &[], &platform("'ann@read-only.example' cannot be added"), Is::Refused);
    let body = platform("Cannot add user to 'Read-Only users'");
    let said = super::said(&Answer::of(400, &[], &body), "adding to group \"Read-Only users\"");
    assert!(matches!(said, Ok(Said::Refused(_))), "the name of a group says nothing");
    let body = platform("Cannot add user 'ann', user is already a member of 'member'");
    let said = super::said(&Answer::of(400, &[], &body), "adding to group \"member\"");
    assert!(matches!(said, Ok(Said::Already(_))), "and takes nothing away");
    check(400, &[], &platform("Empty group name"), Is::Refused);
    check(401, &[("www-authenticate", "OAuth realm")], "<html>", CONFIGURATION);
    let captcha = "CAPTCHA_CHALLENGE; login-url=https://jira.example/login.jsp";
    let detail = check(403, &[("x-authentication-denied-reason", captcha)], "<html>", CONFIGURATION);
    assert!(detail.contains("CAPTCHA solved"), "{detail}");
    let detail = check(403, &[("x-seraph-loginreason", "AUTHENTICATION_DENIED")], "", CONFIGURATION);
    assert!(detail.contains("CAPTCHA solved"), "{detail}");
    let plain = [("content-type", "text/plain;charset=UTF-8")];
    let detail = check(403, &plain, "XSRF check failed", CONFIGURATION);
    assert!(detail.contains("XSRF check failed"), "{detail}");
    check(403, &[], &platform("Forbidden"), CONFIGURATION);
    check(404, &[], &platform("The user named 'ann@example.com' does not exist"), Is::NotFound);
    check(404, &[], "<html>", CONFIGURATION);
    check(405, &[], "", CONFIGURATION);
    check(429, &[("retry-after", "2"), ("x-ratelimit-remaining", "0")], "", limited(2));
    check(503, &[], "<html>maintenance", TRANSIENT);
}

#[test]
fn only_one_proved_hit_is_somebody() {
    let check = |hits: &[(Option<&str>, &str)], expected: Found| {
        assert_eq!(Found::among(hits.iter().copied(), "Ann@Example.com"), expected, "{hits:?}");
    };
    let one = || Found::One(AccountId::new("1"));
    check(&[], Found::Nobody);
    check(&[(Some("ann@example.com.au"), "2")], Found::Nobody);
    check(&[(None, "1")], Found::Hidden);
    check(&[(Some(""), "1"), (Some("ann@example.com.au"), "2")], Found::Hidden);
    check(&[(Some("ann at example dot com"), "1")], Found::Hidden);
    check(&[(Some("ANN@example.com"), "1")], one());
    check(&[(None, "3"), (Some("ann@example.com"), "1"), (Some("ann@example.co"), "2")], one());
    check(&[(Some("ann@example.com"), "1"), (Some("ann@example.com"), "1")], one());
    check(&[(Some("ann@example.com"), "1"), (Some("Ann@Example.com"), "2")], Found::Several);
}

#[test]
fn lists_end() {
    let next = |text: &str, start| serde_json::from_str::<Page<u8>>(text).unwrap().next(start);
    assert_eq!(next(r#"{"isLast":false,"values":[1,2]}"#, 4), Some(6));
    assert_eq!(next(r#"{"isLastPage":false,"values":[1,2]}"#, 0), Some(2));
    assert_eq!(next(r#"{"isLastPage":true,"values":[1,2]}"#, 0), None);
    assert_eq!(next(r#"{"isLast":false,"values":[]}"#, 4), None);
    assert_eq!(next(r#"{"values":[1,2]}"#, 0), None);
}

#[test]
fn an_account_id_is_not_shown() {
    assert_eq!(format!("{:?}", AccountId::new("ann@example.com")), "AccountId { .. }");
}
