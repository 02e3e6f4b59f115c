//! `oarlock-sandbox`: the stand-ins as a program, signed alerts from the command line, and load.
//!
//! For development only: the credentials it accepts are printed at its start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use oarlock_sandbox::paddle::ClassicSigner;
use oarlock_sandbox::{Options, Sandbox};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

mod bench;
mod demo;
mod load;
mod send;
mod service;
mod voice;

/// Stand-ins for Paddle, Jira and Slack. For development only.
#[derive(Debug, Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run the stand-ins until SIGTERM or SIGINT.
    Serve(Serve),
    /// Sign one alert and post it.
    Send(send::Send),
    /// Print the public key that Classic alerts are signed for, making the key if there is none.
    Keys(KeyFile),
    /// Tell the main job as a story, with the receiver and the worker that lie beside this program.
    Demo(demo::Demo),
    /// Post many distinct alerts and measure the answers.
    Load(load::Load),
    /// Measure what the receiver and the worker that lie beside this program achieve, and what Postgres does at best.
    Bench(bench::Bench),
}

#[derive(Debug, Args)]
struct Serve {
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Append every exchange with Jira and Slack to this file, as JSON lines.
    #[arg(long, env = "OARLOCK_SANDBOX_TRANSCRIPT")]
    transcript: Option<PathBuf>,
    #[command(flatten)]
    key: KeyFile,
}

#[derive(Debug, Clone, Args)]
struct KeyFile {
    /// The private key, PKCS#8 in DER; made if it is not there. By default one that all sandboxes of this user share.
    #[arg(long, env = "OARLOCK_SANDBOX_KEY_FILE")]
    key_file: Option<PathBuf>,
}

/// Which Paddle sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    Classic,
    Billing,
}

impl KeyFile {
    fn signer(&self) -> anyhow::Result<ClassicSigner> {
        match &self.key_file {
            Some(path) => ClassicSigner::from_file(path),
            None => ClassicSigner::cached(),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Command::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oarlock-sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Subcommands) -> anyhow::Result<()> {
    match command {
        Subcommands::Serve(serve) => self::serve(serve).await,
        Subcommands::Send(send) => send::run(send).await,
        Subcommands::Keys(keys) => {
            print!("{}", keys.signer()?.public_key_pem());
            Ok(())
        }
        Subcommands::Demo(demo) => demo::run(demo).await,
        Subcommands::Load(load) => load::run(load).await,
        Subcommands::Bench(bench) => bench::run(bench).await,
    }
}

async fn serve(serve: Serve) -> anyhow::Result<()> {
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let sandbox = Sandbox::start(Options { listen: Some(serve.listen), transcript: serve.transcript }).await?;
    let key = serve.key.signer().context("failed to make the key for Classic alerts")?;
    println!(
        "\
[jira]                          # Cloud
edition = \"cloud\"
base_url = \"{}\"
user = \"bot@acme.example\"
token = \"jira-token\"
service_desk_id = \"3\"

[jira]                          # or Data Center
edition = \"data_center\"
base_url = \"{}\"
token = \"jira-dc-token\"
service_desk_id = \"3\"
invite_path = \"/rest/servicedesk/1/pages/people/customers/pagination/SUP/invite\"

[slack]
base_url = \"{}\"
token = \"xoxp-sandbox\"
team_id = \"T1\"
channel_ids = [\"C1\"]

[paddle.billing]
api_url = \"{}\"
api_key = \"pdl_sdbx_apikey_sandbox\"
webhook_secrets = [\"{}\"]

[paddle.classic]
public_keys = [\"\"\"
{}\"\"\"]

# What it was asked and holds: {}/control/calls and /control/state",
        sandbox.jira_cloud_url(),
        sandbox.jira_dc_url(),
        sandbox.slack_url(),
        sandbox.paddle_url(),
        send::WEBHOOK_SECRET,
        key.public_key_pem(),
        sandbox.url(),
    );
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}
