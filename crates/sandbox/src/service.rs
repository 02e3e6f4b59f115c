//! The receiver and the worker as they are deployed: processes, configured by their environment, ended by SIGTERM.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::voice::{Voice, readable};

/// How long a service may take to come up, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Where the logs go. It goes with this value, unless it is kept.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    is_kept: bool,
}

impl Folder {
    /// For the logs of `what`.
    pub(crate) fn make(what: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("oarlock-{what}-{:08x}", rand::random::<u32>()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("failed to make the folder {}", path.display()))?;
        Ok(Self { path, is_kept: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept {
            // Two logs that stay among the temporary files are not worth failing for.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A process that ends with this value, if it has not before.
#[derive(Debug)]
pub(crate) struct Service {
    name: &'static str,
    process: Child,
    log: PathBuf,
}

/// Where a service listens, as its log says.
#[derive(Debug, Deserialize)]
pub(crate) struct Listens {
    /// The receiver alone has it.
    #[serde(rename = "address")]
    pub(crate) webhook: Option<String>,
    #[serde(rename = "admin_address")]
    pub(crate) admin: String,
}

impl Service {
    /// Starts the program that lies beside this one.
    pub(crate) fn start(
        name: &'static str,
        folder: &Folder,
        settings: &[(&'static str, String)],
    ) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("failed to find this program's own file")?;
        let program = this.with_file_name(name);
        if !program.exists() {
            bail!("{} is not there: build all three programs first (cargo build, or make demo)", program.display());
        }
        let log = folder.path().join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("failed to write {}", log.display()))?;
        let mut command = Command::new(program);
        // Nothing of a real deployment may reach these services: no file in the folder, no variable.
        command.current_dir(folder.path());
        for (variable, _) in std::env::vars_os() {
            let is_ours = variable.to_str().is_some_and(|it| it.starts_with("OARLOCK_") || it == "DATABASE_URL");
            if is_ours {
                command.env_remove(variable);
            }
        }
        command.envs(settings.iter().map(|(key, value)| (key, value)));
        // The addresses are read from the log; the sandbox is on this machine whatever proxy leads out of it.
        command.env("RUST_LOG", "info,sqlx=warn").env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        // In this program's process group: whoever ends that as a whole ends the services too.
        command.kill_on_drop(true);
        let process = command.spawn().with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name, process, log })
    }

    /// Comes when the service listens and can do its work.
    pub(crate) fn ready(&self) -> impl Future<Output = anyhow::Result<Listens>> + use<> {
        let (name, log) = (self.name, self.log.clone());
        async move {
            let ready = async {
                let listens = loop {
                    match listens(&log) {
                        Some(listens) => break listens,
                        None => sleep(POLL).await,
                    }
                };
                let client = reqwest::Client::builder().no_proxy().build()?;
                let url = format!("http://{}/readyz", listens.admin);
                while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                    sleep(POLL).await;
                }
                anyhow::Ok(listens)
            };
            timeout(PATIENCE, ready).await.with_context(|| format!("{name} is not ready after {PATIENCE:?}"))?
        }
    }

    /// The program's name without what all of them begin with.
    pub(crate) fn short_name(&self) -> &'static str {
        self.name.trim_start_matches("oarlock-")
    }

    /// Its process, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Comes when it ends, which it should not.
    pub(crate) async fn ends(&mut self) -> anyhow::Error {
        match self.process.wait().await {
            Ok(status) => anyhow::anyhow!("{} has ended: {status}", self.name),
            Err(error) => anyhow::Error::new(error).context(format!("failed to watch {}", self.name)),
        }
    }

    /// The end of its log, for finding out why.
    pub(crate) fn last_words(&self, voice: &Voice) {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        voice.title(&format!("The end of {}", self.log.display()));
        voice.text(&lines[lines.len().saturating_sub(20)..].join("\n"));
    }

    /// SIGTERM, and its answer: anything but status 0 is an error. Says how it ended.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<String> {
        let started = Instant::now();
        let (status, why) = match self.process.id() {
            Some(id) => (self.terminate(id).await?, format!("{} after SIGTERM", readable(started.elapsed()))),
            None => (self.process.wait().await?, "by itself".to_owned()),
        };
        let said = format!("ended {why}, {status}");
        if !status.success() {
            bail!("{} {said}", self.name);
        }
        Ok(said)
    }

    /// `kill -9`: it has no time to say anything.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await.with_context(|| format!("failed to kill {}", self.name))
    }

    async fn terminate(&mut self, id: u32) -> anyhow::Result<ExitStatus> {
        // The shell's own kill: there may be no program of that name.
        let sent = Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status().await;
        sent.context("failed to send SIGTERM")?;
        match timeout(PATIENCE, self.process.wait()).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                self.process.kill().await?;
                bail!("{} does not end within {PATIENCE:?} of SIGTERM, and was killed", self.name)
            }
        }
    }
}

fn listens(log: &Path) -> Option<Listens> {
    fs::read_to_string(log).ok()?.lines().find_map(|line| serde_json::from_str(line).ok())
}
