//! What the outside has asked: every request in order, and the signal that something changed.
//!
//! A call is in the list from the moment its request is read, so that a call which hangs can be seen too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::exchange::Request;

/// Which stand-in was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    JiraCloud,
    #[serde(rename = "jira-dc")]
    JiraDataCenter,
    Slack,
    Paddle,
}

impl Service {
    pub(crate) const ALL: [Self; 4] = [Self::JiraCloud, Self::JiraDataCenter, Self::Slack, Self::Paddle];

    /// The path of its base URL.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::JiraCloud => "/jira-cloud",
            Self::JiraDataCenter => "/jira-dc",
            Self::Slack => "/slack/api",
            Self::Paddle => "/paddle",
        }
    }

    /// Its name in `/control`, in a [`Call`] as JSON and in this program's output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::JiraCloud => "jira-cloud",
            Self::JiraDataCenter => "jira-dc",
            Self::Slack => "slack",
            Self::Paddle => "paddle",
        }
    }

    /// The stand-in that `path` leads to, and the path below its base URL.
    pub(crate) fn below(path: &str) -> Option<(Self, &str)> {
        Self::ALL
            .into_iter()
            .find_map(|service| Some((service, path.strip_prefix(service.prefix())?)))
            .filter(|(_, below)| below.starts_with('/'))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One request that came in, and what became of it.
#[derive(Debug, Clone)]
pub struct Call {
    /// 0, 1, 2, … in the order of arrival, over all stand-ins.
    pub sequence: usize,
    pub service: Service,
    pub method: String,
    /// Below the base URL: `/rest/api/3/group/user`, `/admin.users.invite`, `/customers/ctm_1`.
    pub path: String,
    /// A repeated name has its values joined by commas.
    pub query: BTreeMap<String, String>,
    /// The body: JSON as it came, a form as its typed fields, nothing otherwise.
    pub request: Option<Value>,
    /// The header of that name: which trace the caller says it belongs to.
    pub traceparent: Option<String>,
    /// `None` while it is under way, and for ever if the connection was cut or the caller went away.
    pub status: Option<u16>,
    /// The stand-in did what was asked (or refused it by itself): no fault came first.
    pub worked: bool,
    pub started: Instant,
    /// When the answer was ready or the connection gone.
    pub finished: Option<Instant>,
}

impl Call {
    /// `call.is("POST", "/rest/api/3/group/user")`
    #[must_use]
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }
}

/// Wakes whoever waits for a state: it changes with every call and every change made by hand.
#[derive(Debug, Clone)]
pub(crate) struct Changes(watch::Sender<u64>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(crate) fn note(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// A test that panics while it looks at a stand-in must not take the stand-in down with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(crate) struct Calls {
    list: Mutex<Vec<Call>>,
    changes: Changes,
}

impl Calls {
    pub(crate) fn new(changes: Changes) -> Self {
        Self { list: Mutex::new(Vec::new()), changes }
    }

    pub(crate) fn list(&self) -> MutexGuard<'_, Vec<Call>> {
        lock(&self.list)
    }

    pub(crate) fn begin(&self, service: Service, request: &Request, arguments: Option<Value>) -> OpenCall<'_> {
        let mut list = self.list();
        let sequence = list.len();
        list.push(Call {
            sequence,
            service,
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.recorded_query(),
            request: arguments,
            traceparent: request.header("traceparent").map(str::to_owned),
            status: None,
            worked: false,
            started: Instant::now(),
            finished: None,
        });
        drop(list);
        self.changes.note();
        OpenCall { calls: self, sequence }
    }
}

/// A call under way. Dropping it finishes it, which also happens when the caller hangs up.
#[derive(Debug)]
pub(crate) struct OpenCall<'a> {
    calls: &'a Calls,
    sequence: usize,
}

impl OpenCall<'_> {
    pub(crate) fn worked(&self) {
        self.calls.list()[self.sequence].worked = true;
    }

    pub(crate) fn answered(&self, status: u16) {
        self.calls.list()[self.sequence].status = Some(status);
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.calls.list()[self.sequence].finished = Some(Instant::now());
        self.calls.changes.note();
    }
}
