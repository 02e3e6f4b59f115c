//! The listeners are opened, served and closed.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use anyhow::Context;
use oarlock_service::config::{Database, ReceiverConfig};
use oarlock_service::{admin, database};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::body::Room;
use crate::intake::{Common, Intake};
use crate::metrics::Metrics;
use crate::request::{self, Stopping};
use crate::signature::Verifier;
use crate::webhook::{self, Webhook};

/// How long connections may take at least to finish what they have begun, once the receiver is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the server may take to leave off accepting. Who comes meanwhile is let in by the system and then dropped.
const PAUSING: Duration = Duration::from_millis(10);

/// How long what was accepted last has to be read. Longer than it takes to come, since whoever sent it had been let in.
const READING: Duration = Duration::from_millis(500);

/// What an answer may take to be written, once it is known.
const ANSWERING: Duration = Duration::from_secs(1);

/// How long a connection may stay open without a request.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How many threads serve the webhook: one for each core, each with a connection of its own, if there are enough of these. Of two
/// one verifies while the other's commit waits for the disk; of more than four each would only commit less at once.
const THREADS: RangeInclusive<usize> = 2..=4;

/// At least one connection is left for the rest: readiness, migrations, waking the workers.
fn threads(max_connections: u32) -> u32 {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.clamp(*THREADS.start(), *THREADS.end());
    u32::try_from(threads).expect("a few").min(max_connections - 1)
}

/// Serves until the token is cancelled; then finishes what it has accepted.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn run(config: ReceiverConfig, verifier: Verifier, shutdown: CancellationToken) -> anyhow::Result<()> {
    let webhook_listener = TcpListener::bind(&config.listen)
        .with_context(|| format!("failed to listen on {} (receiver.listen)", config.listen))?;
    let admin_listener = tokio::net::TcpListener::bind(&config.admin_listen)
        .await
        .with_context(|| format!("failed to listen on {} (receiver.admin_listen)", config.admin_listen))?;
    let (address, admin_address) = (webhook_listener.local_addr()?, admin_listener.local_addr()?);
    // The same socket as a stream: std has shutdown() for streams alone.
    let door = TcpStream::from(OwnedFd::from(webhook_listener.try_clone()?));
    if !verifier.can_verify_anything() {
        tracing::warn!(
            "neither paddle.classic.public_keys nor paddle.billing.webhook_secrets is set: every alert will be answered 403"
        );
    }

    let threads = threads(config.database.max_connections);
    let max_connections = config.database.max_connections - threads;
    let pool = database::pool(&Database { max_connections, ..config.database.clone() }, "oarlock-receiver");
    if config.database.migrate {
        // Nobody waits for it: an alert that comes before is answered 503, and comes again.
        drop(database::migrate(pool.clone(), shutdown.clone()));
    }
    let registry = admin::registry(env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::new(&registry);
    // The admin listener outlives the webhook: what happens while stopping can still be seen.
    let stopped = CancellationToken::new();
    let admin = tokio::spawn(admin::serve(admin_listener, pool.clone(), registry, || async {}, stopped.clone()));

    let (common, waking) = Common::new(pool.clone());
    let (verifier, room) = (Arc::new(verifier), Room::new(config.max_body_bytes));
    let (path, stopping) = (config.path.clone(), shutdown.clone());
    let server = HttpServer::new(move || {
        let webhook = Webhook {
            verifier: Arc::clone(&verifier),
            intake: Intake::start(pool.apart(1), common.clone()),
            metrics: metrics.clone(),
            room: room.clone(),
            ack_timeout: config.ack_timeout,
        };
        App::new()
            .app_data(web::Data::new(webhook))
            .app_data(web::Data::new(Stopping(stopping.clone())))
            .service(
                web::resource(&path)
                    .route(web::post().to(webhook::receive))
                    .default_service(web::to(webhook::wrong_method)),
            )
            .default_service(web::to(webhook::wrong_path))
            .wrap(from_fn(request::in_its_span))
    })
    .workers(threads as usize)
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(STOP_TIMEOUT.max(config.ack_timeout + ANSWERING).as_secs())
    .disable_signals()
    .listen(webhook_listener)
    .context("failed to serve the webhook")?
    .run();
    tracing::info!(%address, path = config.path, %admin_address, "the receiver listens");

    let handle = server.handle();
    let stopper = tokio::spawn(async move {
        shutdown.cancelled().await;
        handle.pause().await;
        // It only asks the server's threads to stop accepting, and does not wait for them.
        sleep(PAUSING).await;
        // Who comes from here on is refused at once, and may go to another receiver.
        if let Err(error) = door.shutdown(Shutdown::Both) {
            tracing::warn!(%error, "whoever comes now waits in vain");
        }
        // What was accepted may not have been read yet, and would pass for idle.
        sleep(READING).await;
        handle.stop(true).await;
    });
    server.await.context("the webhook's server failed")?;
    stopper.abort();
    // Whoever still waits for an answer has run out of time; of what was stored for the last ones the workers are still told.
    waking.await.context("waking the workers failed")?;
    stopped.cancel();
    admin.await.context("the admin listener failed")?;
    tracing::info!("the receiver has stopped");
    Ok(())
}
