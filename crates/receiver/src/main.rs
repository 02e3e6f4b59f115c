//! `oarlock-receiver [--config FILE]`: serves the webhook until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use oarlock_receiver::run::Receiver;
use oarlock_receiver::signature::Verifier;
use oarlock_service::config::ReceiverConfig;
use oarlock_service::{logs, refuse, signals};

/// Verifies Paddle's alerts, stores them in the outbox, answers 200.
#[derive(Debug, Parser)]
#[command(name = "oarlock-receiver", version)]
struct Arguments {
    /// The configuration; else OARLOCK_CONFIG, else oarlock.toml if it is there. The environment beats the file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

// One thread for the commits and the admin listener; the webhook's own threads are started by its server.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let receiver = match ReceiverConfig::load(arguments.config.as_deref(), Verifier::new) {
        Ok((config, verifier)) => Receiver { config, verifier },
        Err(problems) => return refuse(&problems),
    };
    logs::start();
    let stopped = match signals::shutdown() {
        Ok(shutdown) => receiver.run(shutdown).await,
        Err(error) => Err(error.into()),
    };
    match stopped {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the receiver ends");
            ExitCode::FAILURE
        }
    }
}
