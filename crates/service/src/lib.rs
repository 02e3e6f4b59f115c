//! What both programs are as services: configuration, the way to Postgres, logs and traces, signals, and the admin listener with
//! health, readiness and metrics. It knows nothing of alerts beyond the words a configuration may use.

pub mod admin;
pub mod config;
pub mod database;
pub mod logs;
pub mod signals;
pub mod trace;

/// The end of a program that cannot start as configured: exit code 2, every problem on a line of its own.
pub fn refuse(problems: &config::Problems) -> std::process::ExitCode {
    for problem in &problems.0 {
        eprintln!("{problem}");
    }
    std::process::ExitCode::from(2)
}
