//! Logs: to standard error, for people at a terminal, as JSON lines anywhere else.
//!
//! `RUST_LOG` chooses what is said, such as `debug` or `warn,oarlock_worker=debug`; without it `info`.

use std::io::IsTerminal;

use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
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
    let asked = asked.map(EnvFilter::try_new).transpose();
    let not_understood = asked.as_ref().err().map(ToString::to_string);
    let filter =
        asked.ok().flatten().unwrap_or_else(|| EnvFilter::new("info,actix_server=warn,sqlx=warn,sqlx::query=error"));
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
            registry().with(lines.with_filter(filter)).with(spans.with_filter(ours())).init();
        }
    }
    if let Some(error) = not_understood {
        tracing::warn!(
            error,
            "RUST_LOG is not understood, and not heeded: it reads like debug or warn,oarlock_worker=debug"
        );
    }
    Ok(exporter)
}

/// What of the two programs' own is exported.
///
/// It is asked anew each time. What `tracing::enabled!` was answered, and no event came of, stays behind with the thread, and
/// the next span or event whose answer is settled once and for all would be taken for what that was about. The database
/// driver does so when two threads come to a query for the first time at once.
fn ours<S>() -> impl Filter<S> {
    let is_ours = |of: &Metadata<'_>| of.target().starts_with("oarlock") && *of.level() <= Level::DEBUG;
    dynamic_filter_fn(move |of, _| is_ours(of))
        .with_max_level_hint(Level::DEBUG)
        .with_callsite_filter(move |of| if is_ours(of) { Interest::sometimes() } else { Interest::never() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::{Subscriber, span};
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::Context;

    use super::*;

    struct Spans(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Spans {
        fn on_new_span(&self, _: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_question_that_nothing_came_of_costs_no_span() {
        let is_drivers = |of: &Metadata<'_>| of.target() == "driver";
        // What the driver asks is never settled, as while another thread is about to settle it.
        let lines = dynamic_filter_fn(move |of, _| !is_drivers(of))
            .with_callsite_filter(move |of| if is_drivers(of) { Interest::sometimes() } else { Interest::always() });
        let seen = Arc::new(AtomicUsize::new(0));
        let subscriber = registry()
            .with(fmt::layer().with_writer(std::io::sink).with_filter(lines))
            .with(Spans(Arc::clone(&seen)).with_filter(ours()));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                let _ = tracing::enabled!(target: "driver", Level::DEBUG);
                let _ = tracing::error_span!("action");
            }
        });
        assert_eq!(seen.load(Ordering::Relaxed), 3);
    }
}
