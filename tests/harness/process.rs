//! One of our programs as a process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::{PATIENCE, WEBHOOK_SECRET};

/// Things that may never appear in a log line or a metric.
const SECRETS: [&str; 6] = [
    "@example.",
    "%40example.",
    WEBHOOK_SECRET,
    oarlock_sandbox::JIRA_CLOUD_TOKEN,
    oarlock_sandbox::SLACK_TOKEN,
    oarlock_sandbox::PADDLE_API_KEY,
];

/// A program that runs, with what it has written so far, which is searched when it is let go of.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
    written: watch::Receiver<usize>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    /// Standard output and standard error.
    pub output: String,
}

/// Where a program of the workspace was built: beside the tests.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("this test is a file");
    let built = tests.ancestors().nth(2).expect("target/<profile>/deps/<test>").join(name);
    assert!(built.exists(), "{} is not built: run `make test`, or `cargo build` before the tests", built.display());
    built
}

impl Process {
    /// Starts a program with exactly these variables of our own.
    pub fn spawn(name: &str, arguments: &[&str], variables: &BTreeMap<String, String>) -> Self {
        let mut command = Command::new(program(name));
        for (variable, _) in std::env::vars()
            .filter(|(name, _)| name.starts_with("OARLOCK_") || name.starts_with("OTEL_") || name == "DATABASE_URL")
        {
            command.env_remove(variable);
        }
        let mut child = command
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(variables)
            // No oarlock.toml of the developer's.
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let (writing, written) = watch::channel(0);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writing = Arc::new(writing);
        read(child.stdout.take().expect("piped above"), Arc::clone(&lines), Arc::clone(&writing));
        read(child.stderr.take().expect("piped above"), Arc::clone(&lines), writing);
        Self { child, name: name.to_owned(), lines, written }
    }

    /// Waits until the program can do its work.
    pub async fn ready(&self) {
        let ready = async {
            let url = format!("http://{}/readyz", self.field("admin_address").await);
            loop {
                if reqwest::get(&url).await.is_ok_and(|answer| answer.status() == 200) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            panic!("{} is not ready\n{}", self.name, self.logs());
        }
    }

    /// Waits for a log line that satisfies the condition.
    pub async fn says(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut written = self.written.clone();
        let waiting = async {
            loop {
                let found = self.parsed().find(|line| condition(line));
                if let Some(line) = found {
                    return line;
                }
                if written.changed().await.is_err() {
                    // It has ended: what is there is all there will be.
                    return self.parsed().find(|line| condition(line)).unwrap_or_default();
                }
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(line) if !line.is_null() => line,
            _ => panic!("{} never said {what}\n{}", self.name, self.logs()),
        }
    }

    async fn field(&self, name: &str) -> String {
        let line = self.says(name, |line| line.get(name).is_some()).await;
        line[name].as_str().expect("a text").to_owned()
    }

    fn parsed(&self) -> impl Iterator<Item = Value> {
        let lines = self.lines.lock().expect("no reader panics").clone();
        lines.into_iter().filter_map(|line| serde_json::from_str(&line).ok())
    }

    /// The address it says it listens on. Only once it does.
    pub fn address(&self) -> String {
        self.said("address")
    }

    pub fn admin_address(&self) -> String {
        self.said("admin_address")
    }

    fn said(&self, name: &str) -> String {
        let line = self.parsed().find(|line| line.get(name).is_some()).expect("it listens");
        line[name].as_str().expect("a text").to_owned()
    }

    /// GET on its admin listener.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.field("admin_address").await))
            .await
            .expect("the admin listener answers");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    }

    /// The value of a sample of `/metrics`, such as `oarlock_actions_total{kind="jira_invite",result="done"}`.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let (_, text) = self.admin("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        kill(Pid::from_raw(i32::try_from(id).expect("a process id")), signal).expect("it runs");
    }

    /// Asks it to stop and waits until it has.
    pub async fn stops(self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.ends().await
    }

    /// `kill -9`.
    pub async fn dies(self) -> Exit {
        self.signal(Signal::SIGKILL);
        self.ends().await
    }

    /// Waits until it ends by itself.
    pub async fn ends(mut self) -> Exit {
        let status = match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.expect("a child of ours"),
            Err(_) => panic!("{} does not end\n{}", self.name, self.logs()),
        };
        // Both pipes are at their end, or the output would be cut.
        while self.written.changed().await.is_ok() {}
        Exit { code: status.code(), output: self.logs() }
    }

    /// What it has written so far.
    pub fn logs(&self) -> String {
        self.lines.lock().expect("no reader panics").join("\n")
    }

    /// Resident memory in MiB, as the kernel counts it.
    pub fn resident_mib(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id().expect("it runs"))).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (logs, name) = (self.logs(), &self.name);
        let panic = logs.lines().find(|line| line.contains("panicked at"));
        assert_eq!(panic, None, "{name} panicked");
        for secret in SECRETS {
            let line = logs.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "a line of {name} holds {secret}");
        }
    }
}

fn read(
    pipe: impl AsyncRead + Unpin + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
    written: Arc<watch::Sender<usize>>,
) {
    tokio::spawn(async move {
        let mut pipe = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = pipe.next_line().await {
            lines.lock().expect("no reader panics").push(line);
            written.send_modify(|count| *count += 1);
        }
    });
}
