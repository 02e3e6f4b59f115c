//! Failing on demand: which calls a fault strikes, and what it does to them.
//!
//! Faults are tried in the order they were given; the first that applies strikes. One without [`Fault::times`] stays until
//! it is cleared. A fault comes before everything else, as the gateway in front of a service does: also before the check of
//! the token.

use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::calls::{Service, lock};
use crate::exchange::{Answer, AnswerBody};

/// Something that goes wrong.
///
/// ```
/// # use std::time::Duration;
/// # use oarlock_sandbox::Fault;
/// Fault::status(503).times(3);
/// Fault::status(429).retry_after(Duration::from_secs(7)).on("POST", "/rest/api/3/group/user");
/// Fault::reset().after_effect();
/// Fault::mix(42, [(0.1, Fault::reset()), (0.1, Fault::status(500)), (0.05, Fault::hang().times(1))]);
/// ```
#[derive(Debug, Clone)]
pub struct Fault {
    method: Option<String>,
    path: Option<String>,
    times: Option<u32>,
    delay: Duration,
    effect_first: bool,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Only late.
    Normal,
    Answer(FaultAnswer),
    Reset,
    Hang,
    Mix {
        seed: u64,
        choices: Vec<(f64, Fault)>,
    },
}

/// An answer that the stand-in did not give.
#[derive(Debug, Clone)]
pub(crate) struct FaultAnswer {
    status: u16,
    headers: Vec<(String, String)>,
    body: FaultBody,
}

#[derive(Debug, Clone)]
enum FaultBody {
    /// What that vendor's error answers look like.
    Usual,
    Json(Value),
    Text {
        content_type: &'static str,
        text: String,
    },
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { method: None, path: None, times: None, delay: Duration::ZERO, effect_first: false, kind }
    }

    /// Answers with this status and the vendor's usual kind of error body, without doing what was asked.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::new(Kind::Answer(FaultAnswer { status, headers: Vec::new(), body: FaultBody::Usual }))
    }

    /// Slack's way of failing: status 200 and `{"ok": false, "error": code}`.
    #[must_use]
    pub fn slack_error(code: &str) -> Self {
        Self::status(200).body(json!({ "ok": false, "error": code }))
    }

    /// A page in HTML where JSON was promised, as gateways answer.
    #[must_use]
    pub fn html(status: u16) -> Self {
        let page = "<html><head><title>Please wait</title></head><body><h1>We are on it</h1></body></html>";
        Self::text(status, "text/html; charset=utf-8", page)
    }

    /// The header of a page, and nothing after it: as servlets answer that were given nothing to say.
    #[must_use]
    pub fn empty_page(status: u16) -> Self {
        Self::text(status, "text/html;charset=UTF-8", "")
    }

    /// Says it is JSON, and breaks off in the middle.
    #[must_use]
    pub fn malformed(status: u16) -> Self {
        Self::text(status, "application/json;charset=UTF-8", r#"{"ok": tr"#)
    }

    fn text(status: u16, content_type: &'static str, text: &str) -> Self {
        let body = FaultBody::Text { content_type, text: text.to_owned() };
        Self::new(Kind::Answer(FaultAnswer { status, headers: Vec::new(), body }))
    }

    /// Works, but only after this time.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self::new(Kind::Normal).after(delay)
    }

    /// Does not answer until the fault is cleared; then it works. It is not done if the caller has gone by then.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Kind::Hang)
    }

    /// The connection is reset.
    #[must_use]
    pub fn reset() -> Self {
        Self::new(Kind::Reset)
    }

    /// Does the work, then resets the connection.
    #[must_use]
    pub fn effect_then_reset() -> Self {
        Self::reset().after_effect()
    }

    /// Does the work at once, but does not answer until the fault is cleared.
    #[must_use]
    pub fn effect_then_hang() -> Self {
        Self::hang().after_effect()
    }

    /// Draws for each call: the first fault with its probability, the second with its own, … and nothing otherwise.
    ///
    /// The same seed strikes the same calls in the same order. `on` and `times` of the faults in the mix are not looked at,
    /// those of the mix are.
    #[must_use]
    pub fn mix(seed: u64, choices: impl IntoIterator<Item = (f64, Self)>) -> Self {
        Self::new(Kind::Mix { seed, choices: choices.into_iter().collect() })
    }

    /// Strikes only some of the calls.
    #[must_use]
    pub fn with_probability(self, probability: f64, seed: u64) -> Self {
        let (method, path, times) = (self.method.clone(), self.path.clone(), self.times);
        Self { method, path, times, ..Self::mix(seed, [(probability, self)]) }
    }

    /// Strikes only calls with this method and path (below the base URL). `*` is any method or any one segment of the path,
    /// `**` at the end of the path is any rest.
    #[must_use]
    pub fn on(mut self, method: &str, path: &str) -> Self {
        self.method = (method != "*").then(|| method.to_owned());
        self.path = Some(path.to_owned());
        self
    }

    /// Strikes this many calls and no more.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Waits first.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// What was asked is done first, and then this goes wrong.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        self.effect_first = true;
        self
    }

    /// The body of the answer. Without effect on a fault that does not answer.
    #[must_use]
    pub fn body(mut self, body: Value) -> Self {
        if let Kind::Answer(answer) = &mut self.kind {
            answer.body = FaultBody::Json(body);
        }
        self
    }

    /// A header of the answer. Without effect on a fault that does not answer.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Kind::Answer(answer) = &mut self.kind {
            answer.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// The header `Retry-After`, in whole seconds.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        self.header("Retry-After", &wait.as_secs().to_string())
    }

    fn applies_to(&self, method: &str, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|pattern| matches(pattern, path))
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        match (wanted, segments.next()) {
            ("**", _) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(segment)) if wanted == segment => {}
            (_, _) => return false,
        }
    }
    segments.next().is_none()
}

impl FaultAnswer {
    pub(crate) fn answer(self, service: Service, path: &str) -> Answer {
        let said = format!("fault: {}", self.status);
        let body = match (self.body, service) {
            (FaultBody::Json(value), _) => AnswerBody::Json(value),
            (FaultBody::Text { content_type, text }, _) => AnswerBody::Text { content_type, text },
            (FaultBody::Usual, Service::JiraCloud | Service::JiraDataCenter)
                if path.starts_with("/rest/servicedeskapi") =>
            {
                AnswerBody::Json(json!({ "errorMessage": said }))
            }
            (FaultBody::Usual, Service::JiraCloud | Service::JiraDataCenter) => {
                AnswerBody::Json(json!({ "errorMessages": [said], "errors": {} }))
            }
            (FaultBody::Usual, Service::Slack) if self.status == 429 => {
                AnswerBody::Json(json!({ "ok": false, "error": "ratelimited" }))
            }
            (FaultBody::Usual, Service::Slack) => AnswerBody::Text { content_type: "text/plain", text: said },
            (FaultBody::Usual, Service::Paddle) => AnswerBody::Json(crate::paddle::api::error(self.status, &said)),
        };
        Answer { status: self.status, headers: self.headers, body }
    }
}

/// The faults of one stand-in.
#[derive(Debug)]
pub(crate) struct Faults {
    armed: Mutex<Vec<Armed>>,
    cleared: watch::Sender<u64>,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    random: StdRng,
}

/// A fault that strikes a call.
#[derive(Debug)]
pub(crate) struct Strike {
    pub(crate) delay: Duration,
    pub(crate) effect_first: bool,
    pub(crate) ending: Ending,
    pub(crate) cleared: Cleared,
}

#[derive(Debug)]
pub(crate) enum Ending {
    Normal,
    Answer(FaultAnswer),
    Reset,
    Hang,
}

/// Comes when the faults are cleared.
#[derive(Debug)]
pub(crate) struct Cleared(watch::Receiver<u64>);

impl Cleared {
    pub(crate) async fn wait(&mut self) {
        // An error means that the stand-in is gone, and with it what could clear the fault.
        let _ = self.0.changed().await;
    }
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { armed: Mutex::new(Vec::new()), cleared: watch::Sender::new(0) }
    }

    pub(crate) fn arm(&self, fault: Fault) {
        let seed = if let Kind::Mix { seed, .. } = fault.kind { seed } else { 0 };
        lock(&self.armed).push(Armed { fault, random: StdRng::seed_from_u64(seed) });
    }

    pub(crate) fn clear(&self) {
        lock(&self.armed).clear();
        self.cleared.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// How many faults still wait for a call.
    pub(crate) fn len(&self) -> usize {
        lock(&self.armed).len()
    }

    pub(crate) fn take(&self, method: &str, path: &str) -> Option<Strike> {
        let mut armed = lock(&self.armed);
        // Subscribed under the lock: a clear that comes right after is not missed.
        let cleared = Cleared(self.cleared.subscribe());
        for (index, candidate) in armed.iter_mut().enumerate() {
            if !candidate.fault.applies_to(method, path) {
                continue;
            }
            let Some((delay, effect_first, ending)) = draw(&candidate.fault, &mut candidate.random) else { continue };
            if let Some(times) = &mut candidate.fault.times {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    armed.remove(index);
                }
            }
            return Some(Strike { delay, effect_first, ending, cleared });
        }
        None
    }
}

fn draw(fault: &Fault, random: &mut StdRng) -> Option<(Duration, bool, Ending)> {
    let ending = match &fault.kind {
        Kind::Normal => Ending::Normal,
        Kind::Answer(answer) => Ending::Answer(answer.clone()),
        Kind::Reset => Ending::Reset,
        Kind::Hang => Ending::Hang,
        Kind::Mix { choices, .. } => {
            let mut drawn = random.random::<f64>();
            for (probability, choice) in choices {
                if drawn < *probability {
                    let (delay, effect_first, ending) = draw(choice, random)?;
                    return Some((fault.delay + delay, fault.effect_first || effect_first, ending));
                }
                drawn -= probability;
            }
            return None;
        }
    };
    Some((fault.delay, fault.effect_first, ending))
}

/// A fault as `/control` takes it: exactly one of `status`, `error`, `kind` and `mix`, and what goes with it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FaultRequest {
    status: Option<u16>,
    /// Slack's error code.
    error: Option<String>,
    kind: Option<FaultKind>,
    mix: Option<Vec<FaultRequest>>,
    body: Option<Value>,
    /// Seconds.
    retry_after: Option<u64>,
    delay_ms: Option<u64>,
    method: Option<String>,
    path: Option<String>,
    times: Option<u32>,
    probability: Option<f64>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    after_effect: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FaultKind {
    Delay,
    Hang,
    Reset,
    EffectThenHang,
    EffectThenReset,
    Html,
    Malformed,
}

impl FaultRequest {
    pub(crate) fn build(self) -> Result<Fault, &'static str> {
        let fault = match (self.status, self.error, self.kind, self.mix) {
            (Some(status), None, None, None) => Fault::status(status),
            (None, Some(code), None, None) => Fault::slack_error(&code),
            (status, None, Some(kind), None) => match (kind, status) {
                (FaultKind::Html, status) => Fault::html(status.unwrap_or(502)),
                (FaultKind::Malformed, status) => Fault::malformed(status.unwrap_or(200)),
                (_, Some(_)) => return Err("status goes with kind html and malformed only"),
                (FaultKind::Delay, None) => Fault::delay(Duration::ZERO),
                (FaultKind::Hang, None) => Fault::hang(),
                (FaultKind::Reset, None) => Fault::reset(),
                (FaultKind::EffectThenHang, None) => Fault::effect_then_hang(),
                (FaultKind::EffectThenReset, None) => Fault::effect_then_reset(),
            },
            (None, None, None, Some(parts)) => {
                let choices: Result<Vec<_>, _> = parts
                    .into_iter()
                    .map(|mut part| {
                        let probability = part.probability.take().ok_or("each fault of a mix needs a probability")?;
                        Ok::<_, &'static str>((probability, part.build()?))
                    })
                    .collect();
                Fault::mix(self.seed, choices?)
            }
            _ => return Err("give exactly one of status, error, kind and mix"),
        };
        let mut fault = self.body.into_iter().fold(fault, Fault::body);
        if let Some(seconds) = self.retry_after {
            fault = fault.retry_after(Duration::from_secs(seconds));
        }
        if let Some(delay) = self.delay_ms {
            fault = fault.after(Duration::from_millis(delay));
        }
        if self.after_effect {
            fault = fault.after_effect();
        }
        fault.method = self.method.filter(|method| method != "*");
        fault.path = self.path;
        fault.times = self.times;
        Ok(match self.probability {
            Some(probability) => fault.with_probability(probability, self.seed),
            None => fault,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(faults: &Faults, count: usize) -> Vec<bool> {
        (0..count).map(|_| faults.take("GET", "/a").is_some()).collect()
    }

    #[test]
    fn patterns() {
        let check = |pattern: &str, path: &str, expected: bool| {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        };
        check("/rest/api/3/group/user", "/rest/api/3/group/user", true);
        check("/rest/api/3/group", "/rest/api/3/group/user", false);
        check("/servicedesk/*/customer", "/servicedesk/3/customer", true);
        check("/servicedesk/*/customer", "/servicedesk/3/customer/invite", false);
        check("/servicedesk/**", "/servicedesk/3/customer/invite", true);
        check("/users.admin.invite", "/admin.users.invite", false);
    }

    #[test]
    fn faults_strike_in_order_and_run_out() {
        let faults = Faults::new();
        faults.arm(Fault::status(503).times(2));
        faults.arm(Fault::status(500).on("POST", "/a"));
        assert_eq!(strikes(&faults, 3), [true, true, false]);
        assert!(faults.take("POST", "/a").is_some());
        assert!(faults.take("POST", "/b").is_none());
        faults.clear();
        assert!(faults.take("POST", "/a").is_none());
    }

    #[test]
    fn the_same_seed_strikes_the_same_calls() {
        let drawn = |seed| {
            let faults = Faults::new();
            faults.arm(Fault::reset().with_probability(0.5, seed));
            strikes(&faults, 64)
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        let struck = drawn(3).into_iter().filter(|struck| *struck).count();
        assert!((16..=48).contains(&struck), "{struck} of 64");
    }

    #[test]
    fn a_fault_can_be_asked_for_in_json() {
        let build = |value| serde_json::from_value::<FaultRequest>(value).map(FaultRequest::build);
        assert!(build(json!({ "status": 503, "times": 3 })).unwrap().is_ok());
        assert!(build(json!({ "kind": "effect_then_reset", "method": "POST", "path": "/a" })).unwrap().is_ok());
        let mix = json!({ "mix": [{ "kind": "reset", "probability": 0.1 }], "seed": 7 });
        assert!(build(mix).unwrap().is_ok());
        assert!(build(json!({ "status": 503, "error": "x" })).unwrap().is_err());
        assert!(build(json!({ "mix": [{ "kind": "reset" }] })).unwrap().is_err());
        assert!(build(json!({ "sttus": 503 })).is_err());
    }
}
