//! `oarlock-receiver [run|health] [--config FILE]`: serves the webhook until SIGTERM or SIGINT.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oarlock_receiver::run;
use oarlock_receiver::signature::Verifier;
use oarlock_service::config::{Problems, ReceiverConfig};
use oarlock_service::{admin, logs, refuse, signals};
use tokio::runtime::Builder;

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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = arguments.command.unwrap_or(Command::Run);
    // One thread for the admin listener and what is done now and then; the webhook's own threads are started by its server.
    let runtime = Builder::new_current_thread().enable_all().build().expect("the machine gives us a runtime");
    let ended = runtime.block_on(perform(command, arguments.config.as_deref()));
    // A name that is still being looked up, which nothing can interrupt, is not waited for.
    runtime.shutdown_background();
    ended.unwrap_or_else(|problems| refuse(&problems))
}

async fn perform(command: Command, file: Option<&Path>) -> Result<ExitCode, Problems> {
    let (config, verifier) = ReceiverConfig::load(file, Verifier::new)?;
    match command {
        Command::Run => {
            let exporter = logs::start("oarlock-receiver")?;
            let stopped = match signals::shutdown() {
                Ok(shutdown) => run::run(config, verifier, shutdown).await,
                Err(error) => Err(error.into()),
            };
            exporter.finish().await;
            if let Err(error) = stopped {
                tracing::error!(error = format!("{error:#}"), "the receiver ends");
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Health => {
            if let Err(error) = admin::ask(&config.admin_listen).await {
                eprintln!("oarlock-receiver: {error}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
