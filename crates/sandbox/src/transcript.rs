//! A transcript of what was exchanged with Jira and Slack, one JSON object a line, to be checked against the vendors' own
//! API descriptions.
//!
//! Paddle's side is not part of it, and neither is a call whose connection was cut: there was no answer to check. Nor is
//! what a fault made up, unless it is a status that any server may answer: that it is none of the vendor's is its purpose.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use serde_json::{Value, json};

use crate::calls::{Service, lock};
use crate::exchange::{Answer, AnswerBody, Request};

/// Names the file where [`Options`](crate::Options) are made by default.
pub(crate) const ENVIRONMENT: &str = "OARLOCK_SANDBOX_TRANSCRIPT";

#[derive(Debug)]
pub(crate) struct Transcript(Mutex<File>);

impl Transcript {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        // Append mode: several processes may write to one file, and each line is one write.
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(Mutex::new(file.with_context(|| format!("failed to open the transcript {}", path.display()))?)))
    }

    pub(crate) fn append(&self, service: Service, request: &Request, arguments: Option<&Value>, answer: &Answer) {
        let Some(line) = line(service, request, arguments, answer) else { return };
        if let Err(error) = lock(&self.0).write_all(line.as_bytes()) {
            tracing::error!(%error, "failed to write the transcript");
        }
    }
}

fn line(service: Service, request: &Request, arguments: Option<&Value>, answer: &Answer) -> Option<String> {
    let service_desk = request.path.starts_with("/rest/servicedesk");
    let api = match service {
        Service::JiraCloud if service_desk => "jsm-cloud",
        Service::JiraCloud => "jira-cloud",
        Service::JiraDataCenter if service_desk => "jsm-dc",
        Service::JiraDataCenter => "jira-dc",
        Service::Slack => "slack",
        Service::Paddle => return None,
    };
    let response = match &answer.body {
        AnswerBody::Json(value) => Some(value),
        AnswerBody::Empty | AnswerBody::Text { .. } => None,
    };
    let entry = json!({
        "service": api,
        "method": request.method,
        "path": request.path,
        "query": request.recorded_query(),
        "request": arguments,
        "status": answer.status,
        "response": response,
    });
    Some(format!("{entry}\n"))
}
