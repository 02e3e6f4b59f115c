//! Logs: to standard error, for people at a terminal, as JSON lines anywhere else.
//!
//! `RUST_LOG` chooses what is said, such as `debug` or `warn,oarlock_worker=debug`; without it `info`.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, registry};

use crate::config::Problems;
use crate::trace::{self, Exporter};

/// Starts logging, and the export of traces if that is asked for. Call it once, first of all.
///
/// # Errors
/// When traces are to be exported in a way that cannot be.
pub fn start(program: &'static str) -> Result<Exporter, Problems> {
    // The database driver tells of slow statements with their text; that is for developers.
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|asked| !asked.trim().is_empty());
    let filter =
        asked.and_then(|asked| EnvFilter::try_new(asked).ok()).unwrap_or_else(|| EnvFilter::new("info,sqlx=warn"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if std::io::stderr().is_terminal() {
        lines.with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    };
    let (exporter, tracer) = trace::start(program)?;
    match tracer {
        // A filter for all costs less than one for each.
        None => registry().with(lines).with(filter).init(),
        Some(tracer) => {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false);
            let ours = Targets::new().with_target("oarlock", Level::DEBUG);
            registry().with(lines.with_filter(filter)).with(spans.with_filter(ours)).init();
        }
    }
    Ok(exporter)
}
