//! `oarlock-worker [run|migrate|doctor|health] [--config FILE]`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oarlock_outbox::schema;
use oarlock_service::config::{Database, Problems, WorkerConfig};
use oarlock_service::{admin, database, logs, refuse, signals};
use oarlock_worker::act::Vendors;
use oarlock_worker::doctor::{self, Report};
use oarlock_worker::run;

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
    Doctor {
        /// One JSON document instead.
        #[arg(long)]
        json: bool,
    },
    /// Ask the worker that runs here whether it can do its work: exit code 0 or 1.
    Health,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = arguments.command.unwrap_or(Command::Run);
    let runtime = tokio::runtime::Runtime::new().expect("the machine gives us threads");
    let ended = runtime.block_on(perform(command, arguments.config.as_deref()));
    // A name that is still being looked up, which nothing can interrupt, is not waited for.
    runtime.shutdown_background();
    ended.unwrap_or_else(|problems| refuse(&problems))
}

async fn perform(command: Command, file: Option<&Path>) -> Result<ExitCode, Problems> {
    let load = || WorkerConfig::load(file, Vendors::new);
    let result = match command {
        Command::Run => {
            let (config, vendors) = load()?;
            let exporter = logs::start("oarlock-worker")?;
            let ended = work(config, vendors).await;
            exporter.finish().await;
            if let Err(error) = ended {
                tracing::error!(error = format!("{error:#}"), "the worker ends");
                return Ok(ExitCode::FAILURE);
            }
            Ok(())
        }
        Command::Migrate => migrate(&Database::load(file)?).await,
        Command::Doctor { json } => {
            let loaded = load();
            let report = match &loaded {
                Ok((config, vendors)) => doctor::run(config, vendors).await,
                Err(problems) => Report::of_problems(problems),
            };
            // Whoever reads may have seen enough.
            let _ = match json {
                true => writeln!(io::stdout(), "{}", report.to_json()),
                // Refusing says the same.
                false if loaded.is_err() => Ok(()),
                false => write!(io::stdout(), "{report}"),
            };
            loaded?;
            return Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Health => admin::ask(&load()?.0.worker.admin_listen).await.map_err(Into::into),
    };
    Ok(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oarlock-worker: {error}");
            ExitCode::FAILURE
        }
    })
}

async fn migrate(database: &Database) -> anyhow::Result<()> {
    let pool = database::pool(database, "oarlock-worker migrate");
    schema::migrate(&pool).await.map_err(|error| anyhow::anyhow!(schema::cause(&error)))?;
    println!("the database is migrated");
    Ok(())
}

async fn work(config: WorkerConfig, vendors: Vendors) -> anyhow::Result<()> {
    let shutdown = signals::shutdown()?;
    run::run(config, vendors, shutdown).await
}
