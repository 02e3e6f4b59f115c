//! `oarlock-worker [run|migrate|doctor] [--config FILE]`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oarlock_outbox::schema;
use oarlock_service::config::WorkerConfig;
use oarlock_service::{database, logs, refuse, signals};
use oarlock_worker::act::Vendors;
use oarlock_worker::{doctor, run};

/// Plans and runs the Jira and Slack actions of the outbox.
#[derive(Debug, Parser)]
#[command(name = "oarlock-worker", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration; else OARLOCK_CONFIG, else oarlock.toml if it is there. The environment beats the file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Plan and run actions until SIGTERM or SIGINT (what is done without a command).
    Run,
    /// Apply pending migrations and exit.
    Migrate,
    /// Check configuration, database, Jira, Slack and Paddle with read-only calls: a line each.
    Doctor,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, vendors) = match WorkerConfig::load(arguments.config.as_deref(), Vendors::new) {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(&problems),
    };
    let result = match arguments.command.unwrap_or(Command::Run) {
        Command::Run => {
            logs::start();
            work(config, vendors).await
        }
        Command::Migrate => {
            let pool = database::pool(&config.database, "oarlock-worker migrate");
            schema::migrate(&pool).await.map(|()| println!("the database is migrated")).map_err(Into::into)
        }
        Command::Doctor => {
            return if doctor::run(&config, &vendors).await { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oarlock-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work(config: WorkerConfig, vendors: Vendors) -> anyhow::Result<()> {
    let shutdown = signals::shutdown()?;
    run::run(config, vendors, shutdown).await
}
