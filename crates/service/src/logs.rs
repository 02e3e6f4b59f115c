//! Logs: to standard error, for people at a terminal, as JSON lines anywhere else.
//!
//! `RUST_LOG` chooses what is said, such as `debug` or `warn,oarlock_worker=debug`; without it `info`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. Call it once, first of all.
pub fn start() {
    // The database driver tells of slow statements with their text; that is for developers.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
    }
}
