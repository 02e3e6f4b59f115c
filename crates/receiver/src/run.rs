//! The listeners are opened, served and closed.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use anyhow::Context;
use oarlock_service::config::ReceiverConfig;
use oarlock_service::{admin, database};
use tokio_util::sync::CancellationToken;

use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::request;
use crate::signature::Verifier;
use crate::webhook::{self, Webhook};

/// How long connections may take to finish what they have begun, once the receiver is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may stay open without a request.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A receiver that is configured and has not started.
#[derive(Debug)]
pub struct Receiver {
    pub config: ReceiverConfig,
    pub verifier: Verifier,
}

impl Receiver {
    /// Serves until the token is cancelled; then finishes what it has accepted.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { config, verifier } = self;
        let webhook_listener = TcpListener::bind(&config.listen)
            .with_context(|| format!("failed to listen on {} (receiver.listen)", config.listen))?;
        let admin_listener = tokio::net::TcpListener::bind(&config.admin_listen)
            .await
            .with_context(|| format!("failed to listen on {} (receiver.admin_listen)", config.admin_listen))?;
        let (address, admin_address) = (webhook_listener.local_addr()?, admin_listener.local_addr()?);
        if !verifier.can_verify_anything() {
            tracing::warn!(
                "neither paddle.classic.public_keys nor paddle.billing.webhook_secrets is set: every alert will be answered 403"
            );
        }

        let pool = database::pool(&config.database, "oarlock-receiver");
        if config.database.migrate {
            tokio::spawn(database::migrate(pool.clone(), shutdown.clone()));
        }
        let registry = admin::registry(env!("CARGO_PKG_VERSION"));
        let metrics = Metrics::new(&registry);
        // The admin listener outlives the webhook: what happens while stopping can still be seen.
        let stopped = CancellationToken::new();
        let admin = tokio::spawn(admin::serve(admin_listener, pool.clone(), registry, || async {}, stopped.clone()));

        let (intake, mut committers) = Intake::start(pool);
        let state = web::Data::from(Arc::new(Webhook {
            verifier,
            intake,
            metrics,
            max_body_bytes: config.max_body_bytes,
            ack_timeout: config.ack_timeout,
        }));
        let path = config.path.clone();
        let app_state = state.clone();
        let server = HttpServer::new(move || {
            App::new()
                .app_data(app_state.clone())
                .service(
                    web::resource(&path)
                        .route(web::post().to(webhook::receive))
                        .default_service(web::to(webhook::wrong_method)),
                )
                .default_service(web::to(webhook::wrong_path))
                .wrap(from_fn(request::in_its_span))
        })
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(STOP_TIMEOUT.as_secs())
        .disable_signals()
        .listen(webhook_listener)
        .context("failed to serve the webhook")?
        .run();
        tracing::info!(%address, path = config.path, %admin_address, "the receiver listens");

        let handle = server.handle();
        let stopper = tokio::spawn(async move {
            shutdown.cancelled().await;
            handle.stop(true).await;
        });
        server.await.context("the webhook's server failed")?;
        stopper.abort();
        // The last sender of the queue goes with the state; the committers write what is queued and end.
        drop(state);
        while let Some(ended) = committers.join_next().await {
            ended.context("a committer failed")?;
        }
        stopped.cancel();
        admin.await.context("the admin listener failed")?;
        tracing::info!("the receiver has stopped");
        Ok(())
    }
}
