//! Serving gRPC, and when to stop.

use crate::grpc::HostService;
use anyhow::{Context, bail};
use ringlab_proto::host::host_server::HostServer;
use ringlab_proto::server;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tracing::{info, warn};

/// How long open calls may go on after the end.
const GRACE: Duration = Duration::from_millis(200);

/// Serves the host's gRPC on `path` until it is told to stop.
///
/// # Errors
/// If the socket cannot be made, or the kernel thread ended by itself.
pub async fn serve(path: &Path, node: &str) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let listener = server::bind(path).with_context(|| format!("socket {}", path.display()))?;
    let stop = Arc::new(Notify::new());
    let service = HostService::new(stop.clone());
    info!(%node, socket = %path.display(), "ready");
    let (begin_stop, stopping) = oneshot::channel::<()>();
    let router = server::router::<HostServer<HostService>>().await.add_service(HostServer::new(service.clone()));
    let serving = router.serve_with_incoming_shutdown(server::allowed(listener), async {
        // Either way the time has come.
        let _ = stopping.await;
    });
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result.context("gRPC"),
        () = stop_asked(&stop, &mut terminate, &mut interrupt) => {
            service.shut_down();
            drop(begin_stop);
            // Calls in flight get their answers; a client that keeps a stream open does not hold the host.
            tokio::time::timeout(GRACE, serving).await.unwrap_or(Ok(())).context("gRPC")
        }
    };
    // The socket is this process's own: `server::bind` made it.
    if let Err(error) = std::fs::remove_file(path) {
        warn!(%error, "the socket was not removed");
    }
    info!(%node, "stopped");
    result?;
    match service.failure() {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}

async fn stop_asked(stop: &Notify, terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.notified() => {}
    }
}
