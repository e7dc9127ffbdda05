//! The service `ringlab.nic.v1.Nic` on a unix socket, with health and reflection.

use crate::config::{ImpairmentConfig, NicConfig};
use crate::control::{Command, CommandError, Control};
use anyhow::Context;
use ringlab_proto::nic as proto;
use ringlab_proto::nic::nic_server::{Nic, NicServer};
use ringlab_proto::server;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Serves until `stop` changes.
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: UnixListener, control: Control, stop: watch::Sender<bool>) -> anyhow::Result<()> {
    let mut stopped = stop.subscribe();
    let router = server::router::<NicServer<Service>>().await.add_service(NicServer::new(Service { control, stop }));
    router
        .serve_with_incoming_shutdown(server::allowed(listener), async move {
            // An error means that the sender is gone: stop as well.
            let _ = stopped.wait_for(|&stop| stop).await;
        })
        .await
        .context("serve gRPC")
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
