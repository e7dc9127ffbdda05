//! The service `ringlab.nic.v1.Nic` on a unix socket, with health and reflection.

use crate::config::{ImpairmentConfig, NicConfig};
use crate::control::{Command, CommandError, Control};
use anyhow::Context;
use ringlab_proto::nic as proto;
use ringlab_proto::nic::nic_server::{Nic, NicServer};
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// Serves until `stop` changes.
///
/// # Errors
/// When the socket or the reflection service fails.
pub async fn serve(listener: UnixListener, control: Control, stop: watch::Sender<bool>) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NicServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(ringlab_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("build the reflection service")?;
    let mut stopped = stop.subscribe();
    let streams = UnixListenerStream::new(listener).filter(|stream| stream.as_ref().map_or(true, is_allowed));
    tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(NicServer::new(Service { control, stop }))
        .serve_with_incoming_shutdown(streams, async move {
            // An error means that the sender is gone: stop as well.
            let _ = stopped.wait_for(|&stop| stop).await;
        })
        .await
        .context("serve gRPC")
}

/// Binds the socket, in place of one that a dead predecessor left. The process's
/// umask makes it 0600.
///
/// # Errors
/// What `bind` answers.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    crate::socket::unlink_stale(path).with_context(|| format!("replace {}", path.display()))?;
    UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))
}

/// Root and our own user may call.
fn is_allowed(stream: &UnixStream) -> bool {
    let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::getuid().as_raw());
    if !allowed {
        tracing::warn!("refused a gRPC connection of another user");
    }
    allowed
}

struct Service {
    control: Control,
    stop: watch::Sender<bool>,
}

impl From<CommandError> for Status {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::UnknownPort(_) => Status::not_found(error.to_string()),
            CommandError::Machine(_) => Status::failed_precondition(error.to_string()),
            CommandError::Failed(_) => Status::internal(error.to_string()),
            CommandError::Ended => Status::unavailable(error.to_string()),
        }
    }
}

#[tonic::async_trait]
impl Nic for Service {
    async fn configure(&self, request: Request<proto::NicConfig>) -> Result<Response<proto::ConfigureReply>, Status> {
        let config = NicConfig::parse(request.get_ref()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.control.ask(|reply| Command::Configure(config, reply)).await?;
        Ok(Response::new(proto::ConfigureReply {}))
    }

    async fn set_link(&self, request: Request<proto::SetLinkRequest>) -> Result<Response<proto::SetLinkReply>, Status> {
        let proto::SetLinkRequest { port, up, impairment } = request.into_inner();
        let impairment = impairment.as_ref().map(ImpairmentConfig::parse).transpose();
        let impairment = impairment.map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.control.ask(|reply| Command::SetLink { port, up, impairment, reply }).await?;
        Ok(Response::new(proto::SetLinkReply {}))
    }

    async fn stats(&self, _: Request<proto::StatsRequest>) -> Result<Response<proto::NicStats>, Status> {
        Ok(Response::new(self.control.ask(Command::Stats).await?))
    }

    async fn shutdown(&self, _: Request<proto::ShutdownRequest>) -> Result<Response<proto::ShutdownReply>, Status> {
        self.stop.send_replace(true);
        Ok(Response::new(proto::ShutdownReply {}))
    }
}
