//! The agent's gRPC service: requests in, the other modules' answers out.

use crate::agent::apply::Progress;
use crate::agent::daemon::{Cancel, Role, channel};
use crate::agent::failure::Failure;
use crate::agent::held::Held;
use crate::agent::lab::Lab;
use crate::agent::plan::NodePlan;
use crate::agent::start::Maker;
use crate::agent::{Agent, asked_to_end, deploy, exec};
use ringlab_proto::agent::agent_server::{Agent as Service, AgentServer};
use ringlab_proto::agent::{
    DeployProgress, DeployRequest, DestroyProgress, DestroyRequest, ExecInput, InspectReply, InspectRequest, ListReply, ListRequest,
    NodeStat, Outcome, RestartReply, RestartRequest, SetLinkReply, SetLinkRequest, StatReply, StatRequest, TraceRequest, exec_input,
};
use ringlab_proto::host::host_client::HostClient;
use ringlab_proto::host::{self, ExecOutput, TraceBatch};
use ringlab_proto::nic::nic_client::NicClient;
use ringlab_proto::{nic, server};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// Octets of the largest request: a topology file, at most 4 MiB, and its path.
const MAX_REQUEST: usize = 5 << 20;
/// How long `inspect` waits for a NIC to tell its carrier.
const INSPECT_PATIENCE: Duration = Duration::from_secs(1);

/// Serves until the agent is idle (`true`) or told to end (`false`).
pub async fn serve(agent: Arc<Agent>, listener: UnixListener) -> anyhow::Result<bool> {
    let service = AgentServer::new(Server { agent: agent.clone() }).max_decoding_message_size(MAX_REQUEST);
    let mut idle = true;
    let end = async {
        tokio::select! {
            () = agent.idle() => {}
            _ = asked_to_end() => idle = false,
        }
    };
    let router = server::router::<AgentServer<Server>>().await.add_service(service);
    let connections = server::allowed(listener).map(|stream| stream.map(|stream| Held::new(&agent, stream)));
    tokio::select! {
        served = router.serve_with_incoming(connections) => served?,
        () = end => {}
    }
    Ok(idle)
}

struct Server {
    agent: Arc<Agent>,
}

type Reply<T> = Result<Response<T>, Status>;
type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn stream<T: Send + 'static>(receiver: mpsc::Receiver<Result<T, Status>>) -> Response<ReplyStream<T>> {
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

fn outcome(result: Result<Vec<String>, Failure>, started: Instant) -> Outcome {
    let elapsed_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    match result {
        Ok(changes) => Outcome { ok: true, error: String::new(), exit_code: 0, changes, elapsed_ns },
        Err(failure) => {
            Outcome { ok: false, error: failure.to_string(), exit_code: i32::from(failure.exit_code()), changes: Vec::new(), elapsed_ns }
        }
    }
}

impl Server {
    fn maker(&self, lab: &Arc<Lab>) -> Maker {
        Maker { lab: lab.clone(), programs: self.agent.programs.clone() }
    }

    /// A lab and the plan of one of its nodes.
    fn node(&self, lab: &str, node: &str) -> Result<(Arc<Lab>, NodePlan), Failure> {
        let lab = self.agent.lab(lab)?;
        let node = lab.node_plan(node)?;
        Ok((lab, node))
    }
}

#[tonic::async_trait]
impl Service for Server {
    type DeployStream = ReplyStream<DeployProgress>;
    type DestroyStream = ReplyStream<DestroyProgress>;
    type ExecStream = ReplyStream<ExecOutput>;
    type TraceStream = ReplyStream<TraceBatch>;

    async fn deploy(&self, request: Request<DeployRequest>) -> Reply<Self::DeployStream> {
        let (agent, request, busy) = (self.agent.clone(), request.into_inner(), self.agent.busy());
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            let _busy = busy;
            let started = Instant::now();
            let cancel = Cancel::new();
            let progress = Progress::new(Some(sender.clone()));
            // The one who asked has gone: undo.
            let gone = async {
                sender.closed().await;
                cancel.cancel();
                std::future::pending::<()>().await;
            };
            let result = tokio::select! {
                result = deploy::deploy(&agent, &request, &progress, &cancel) => result,
                () = gone => unreachable!("waits for ever"),
            };
            let last = DeployProgress { outcome: Some(outcome(result, started)), ..Default::default() };
            let _ = sender.send(Ok(last)).await;
        });
        Ok(stream(receiver))
    }

    async fn destroy(&self, request: Request<DestroyRequest>) -> Reply<Self::DestroyStream> {
        let (agent, request, busy) = (self.agent.clone(), request.into_inner(), self.agent.busy());
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            let _busy = busy;
            let started = Instant::now();
            let result = destroy(&agent, &request, &sender).await;
            let last = DestroyProgress { step: String::new(), outcome: Some(outcome(result, started)) };
            let _ = sender.send(Ok(last)).await;
        });
        Ok(stream(receiver))
    }

    async fn list(&self, _: Request<ListRequest>) -> Reply<ListReply> {
        let _busy = self.agent.busy();
        Ok(Response::new(ListReply { labs: self.agent.labs().iter().map(|lab| lab.summary()).collect() }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Reply<InspectReply> {
        let _busy = self.agent.busy();
        let lab = self.agent.lab(&request.into_inner().lab)?;
        let mut reply = lab.inspect();
        let mut tasks = JoinSet::new();
        for (position, info) in reply.nodes.iter().enumerate() {
            // It may have been taken out of the lab just now.
            let Ok(node) = lab.node_plan(&info.name) else { continue };
            let maker = self.maker(&lab);
            tasks.spawn(async move { (position, nic_stats(&maker, &node, INSPECT_PATIENCE).await) });
        }
        for (position, stats) in tasks.join_all().await {
            // A NIC that does not answer has no carrier to show.
            let ports = stats.and_then(Result::ok).map(|stats| stats.ports).unwrap_or_default();
            for interface in &mut reply.nodes[position].interfaces {
                interface.carrier = ports.iter().any(|port| port.name == interface.name && port.link_up);
            }
        }
        Ok(Response::new(reply))
    }

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Reply<Self::ExecStream> {
        let mut inputs = request.into_inner();
        let first = inputs.next().await.transpose()?.and_then(|input| input.kind);
        let Some(exec_input::Kind::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message names the program"));
        };
        let (lab, node) = self.node(&start.lab, &start.node)?;
        let program = start.program.unwrap_or_default();
        let (maker, number, busy) = (self.maker(&lab), self.agent.next_call(), self.agent.busy());
        let (sender, receiver) = mpsc::channel(16);
        if node.kind == "switch" {
            return Err(Failure::Usage(format!("node {} is a switch: no program runs there", node.name)).into());
        }
        tokio::spawn(async move {
            let _busy = busy;
            match &node.linux {
                Some(linux) => {
                    let ran = exec::on_linux(&lab, &node, linux, number, program, inputs, sender.clone()).await;
                    if let Err(failure) = ran {
                        let _ = sender.send(Err(failure.into())).await;
                    }
                }
                None => exec::on_host(&maker, &node, program, inputs, sender).await,
            }
        });
        Ok(stream(receiver))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Reply<StatReply> {
        let _busy = self.agent.busy();
        let request = request.into_inner();
        let lab = self.agent.lab(&request.lab)?;
        let nodes = if request.node.is_empty() { lab.state().plan.nodes.clone() } else { vec![lab.node_plan(&request.node)?] };
        let mut tasks = JoinSet::new();
        for (position, node) in nodes.into_iter().enumerate() {
            let maker = self.maker(&lab);
            tasks.spawn(async move { (position, stat(&maker, &node).await) });
        }
        let mut stats = tasks.join_all().await;
        stats.sort_by_key(|&(position, _)| position);
        let nodes = stats.into_iter().map(|(_, stat)| stat).collect::<Result<_, Failure>>()?;
        Ok(Response::new(StatReply { nodes }))
    }

    async fn trace(&self, request: Request<TraceRequest>) -> Reply<Self::TraceStream> {
        let request = request.into_inner();
        let (lab, node) = self.node(&request.lab, &request.node)?;
        if node.host.is_none() {
            return Err(Failure::Usage(format!("node {} is of kind {}: only emulated hosts are traced", node.name, node.kind)).into());
        }
        let (daemon, busy) = (self.maker(&lab).running(&node, Role::Hostd)?, self.agent.busy());
        let mut client = HostClient::new(channel(&daemon.socket)).max_decoding_message_size(64 << 20);
        let mut batches = client.trace(request.trace.unwrap_or_default()).await?.into_inner();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let _busy = busy;
            loop {
                let batch = tokio::select! {
                    batch = batches.next() => batch,
                    () = sender.closed() => return,
                };
                let Some(batch) = batch else { return };
                if sender.send(batch).await.is_err() {
                    return;
                }
            }
        });
        Ok(stream(receiver))
    }

    async fn restart(&self, request: Request<RestartRequest>) -> Reply<RestartReply> {
        let (agent, request, busy) = (self.agent.clone(), request.into_inner(), self.agent.busy());
        // A task of its own: it runs to its end also when the caller goes.
        let done = tokio::spawn(async move {
            let _busy = busy;
            deploy::restart(&agent, &request.lab, &request.node).await
        });
        done.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(RestartReply {}))
    }

    async fn set_link(&self, request: Request<SetLinkRequest>) -> Reply<SetLinkReply> {
        let (agent, request, busy) = (self.agent.clone(), request.into_inner(), self.agent.busy());
        let done = tokio::spawn(async move {
            let _busy = busy;
            deploy::set_link(&agent, &request).await
        });
        let link = done.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(SetLinkReply { link: Some(link) }))
    }
}

async fn destroy(
    agent: &Agent,
    request: &DestroyRequest,
    sender: &mpsc::Sender<Result<DestroyProgress, Status>>,
) -> Result<Vec<String>, Failure> {
    let names = match (request.all, request.lab.as_str()) {
        (true, _) => agent.labs().iter().map(|lab| lab.name.clone()).collect(),
        (false, name) => vec![agent.lab(name)?.name.clone()],
    };
    let mut changes = Vec::new();
    let mut failed = None;
    for name in names {
        match deploy::destroy(agent, &name).await {
            Ok(()) => {
                let _ = sender.try_send(Ok(DestroyProgress { step: format!("lab {name}"), outcome: None }));
                changes.push(format!("- lab {name}"));
            }
            // The others go all the same.
            Err(failure) => drop(failed.get_or_insert(failure)),
        }
    }
    failed.map_or(Ok(changes), Err)
}

/// What a node's NIC counts; `None` if it has none that runs and answers.
async fn nic_stats(maker: &Maker, node: &NodePlan, patience: Duration) -> Option<Result<nic::NicStats, Status>> {
    let daemon = maker.running(node, Role::Nicd).ok().filter(|_| node.nic.is_some())?;
    let mut client = NicClient::new(channel(&daemon.socket)).max_decoding_message_size(64 << 20);
    let answer = tokio::time::timeout(patience, client.stats(nic::StatsRequest {})).await.ok()?;
    Some(answer.map(Response::into_inner))
}

/// What a node's daemons count. One that is being started anew counts nothing.
async fn stat(maker: &Maker, node: &NodePlan) -> Result<NodeStat, Failure> {
    let patience = Duration::from_secs(5);
    let nic = nic_stats(maker, node, patience);
    let host = async {
        let daemon = maker.running(node, Role::Hostd).ok().filter(|_| node.host.is_some())?;
        let mut client = HostClient::new(channel(&daemon.socket)).max_decoding_message_size(64 << 20);
        tokio::time::timeout(patience, client.stats(host::StatsRequest {})).await.ok()
    };
    let (nic, host) = tokio::join!(nic, host);
    let failed = |status: Status| Failure::Deploy(format!("{}: {}", node.name, status.message()));
    let nic = nic.transpose().map_err(failed)?;
    let host = host.transpose().map_err(failed)?.map(Response::into_inner);
    Ok(NodeStat { node: node.name.clone(), host, nic })
}
