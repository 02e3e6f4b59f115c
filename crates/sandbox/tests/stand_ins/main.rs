//! The stand-ins as their callers meet them: over HTTP.
//!
//! Tests that send only what the vendors' descriptions allow start from [`Options::default`], so that a run with
//! `OARLOCK_SANDBOX_TRANSCRIPT` writes a transcript in which every fault is the stand-in's. Those that send what is to be
//! refused write none.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oarlock_sandbox::{Options, Sandbox};
use reqwest::Method;
use serde_json::Value;

mod control;
mod faults;
mod jira_cloud;
mod jira_data_center;
mod paddle;
mod slack;

const DEADLINE: Duration = Duration::from_secs(10);

async fn sandbox() -> Sandbox {
    Sandbox::start(Options::default()).await.unwrap()
}

async fn sandbox_for_wrong_calls() -> Sandbox {
    Sandbox::start(Options { listen: None, transcript: None }).await.unwrap()
}

/// Somebody with credentials, at a base URL.
#[derive(Clone)]
struct Caller {
    client: reqwest::Client,
    base: String,
    authorization: String,
}

impl Caller {
    fn bearer(base: String, token: &str) -> Self {
        Self { client: reqwest::Client::new(), base, authorization: format!("Bearer {token}") }
    }

    fn basic(base: String, user: &str, secret: &str) -> Self {
        let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:{secret}")));
        Self { client: reqwest::Client::new(), base, authorization }
    }

    fn request(&self, call: &str) -> reqwest::RequestBuilder {
        let (method, path) = call.split_once(' ').unwrap();
        let request = self.client.request(method.parse::<Method>().unwrap(), format!("{}{path}", self.base));
        request.header("Authorization", &self.authorization).header("X-ExperimentalApi", "opt-in")
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(&format!("GET {path}"))).await
    }

    /// `call("POST /customer", json!({…}))`
    async fn call(&self, call: &str, body: Value) -> (u16, Value) {
        answer(self.request(call).json(&body)).await
    }

    async fn call_empty(&self, call: &str) -> (u16, Value) {
        answer(self.request(call)).await
    }

    async fn form(&self, call: &str, fields: &[(&str, &str)]) -> (u16, Value) {
        answer(self.request(call).form(fields)).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}
