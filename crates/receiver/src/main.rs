//! `oarlock-receiver [run|health] [--config FILE]`: serves the webhook until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oarlock_receiver::run;
use oarlock_receiver::signature::Verifier;
use oarlock_service::config::ReceiverConfig;
use oarlock_service::{admin, logs, refuse, signals};

/// Verifies Paddle's alerts, stores them in the outbox, answers 200.
#[derive(Debug, Parser)]
#[command(name = "oarlock-receiver", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration; else OARLOCK_CONFIG, else oarlock.toml if it is there. The environment beats the file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Serve the webhook until SIGTERM or SIGINT (what is done without a command).
    Run,
    /// Ask the receiver that runs here whether it can do its work: exit code 0 or 1.
    Health,
}

// One thread for the admin listener and what is done now and then; the webhook's own threads are started by its server.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, verifier) = match ReceiverConfig::load(arguments.config.as_deref(), Verifier::new) {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(&problems),
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Run => {
            let exporter = match logs::start("oarlock-receiver") {
                Ok(exporter) => exporter,
                Err(problems) => return refuse(&problems),
            };
            let stopped = match signals::shutdown() {
                Ok(shutdown) => run::run(config, verifier, shutdown).await,
                Err(error) => Err(error.into()),
            };
            exporter.finish().await;
            if let Err(error) = stopped {
                tracing::error!(error = format!("{error:#}"), "the receiver ends");
                return ExitCode::FAILURE;
            }
        }
        Command::Health => {
            if let Err(error) = admin::ask(&config.admin_listen).await {
                eprintln!("oarlock-receiver: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
