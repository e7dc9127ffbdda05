//! Serving gRPC: the socket, who may connect, and when to stop.

use crate::grpc::HostService;
use anyhow::{Context, bail};
use ringlab_proto::FILE_DESCRIPTOR_SET;
use ringlab_proto::host::host_server::HostServer;
use rustix::fs::Mode;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
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
    let listener = bind(path).with_context(|| format!("socket {}", path.display()))?;
    let stop = Arc::new(Notify::new());
    let service = HostService::new(stop.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<HostServer<HostService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("reflection")?;
    info!(%node, socket = %path.display(), "ready");
    let (begin_stop, stopping) = oneshot::channel::<()>();
    let serving = Server::builder()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(HostServer::new(service.clone()))
        .serve_with_incoming_shutdown(trusted(UnixListenerStream::new(listener)), async {
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
    // The socket is this process's own: `bind` made it.
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

/// Binds `path` with mode 0600. A socket that nobody serves any more is replaced.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another process serves it");
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // Not `chmod` after `bind`: there would be a moment in which others could connect.
    let mask = rustix::process::umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    Ok(listener?)
}

/// Connections of this user and of root; others are closed.
fn trusted(incoming: UnixListenerStream) -> impl Stream<Item = std::io::Result<UnixStream>> {
    let me = rustix::process::geteuid().as_raw();
    incoming.filter(move |stream| match stream {
        Ok(stream) => match stream.peer_cred() {
            Ok(cred) if cred.uid() == me || cred.uid() == 0 => true,
            Ok(cred) => {
                warn!(uid = cred.uid(), "refused a connection of another user");
                false
            }
            Err(error) => {
                warn!(%error, "refused a connection without credentials");
                false
            }
        },
        Err(_) => true,
    })
}
