//! Brings a lab from what is up to what a plan says: all of it, or nothing.

use crate::agent::daemon::Cancel;
use crate::agent::diff::{Diff, NodeChange, Part};
use crate::agent::failure::Failure;
use crate::agent::journal::Record;
use crate::agent::lab::Lab;
use crate::agent::netns::{self, Netns};
use crate::agent::plan::{LinkPlan, NodePlan, Plan};
use crate::agent::remove::stop_parts;
use crate::agent::start::Maker;
use ringlab_proto::agent::DeployProgress;
use ringlab_proto::topology::Medium;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::Status;

/// Nodes that are made at the same time, for each CPU.
const NODES_A_CPU: usize = 8;

/// Tells whoever deploys how far it is.
#[derive(Debug, Clone)]
pub struct Progress {
    sender: Option<mpsc::Sender<Result<DeployProgress, Status>>>,
    done: Arc<AtomicU32>,
    total: Arc<AtomicU32>,
}

impl Progress {
    /// Progress that goes to `sender`, or nowhere.
    pub fn new(sender: Option<mpsc::Sender<Result<DeployProgress, Status>>>) -> Self {
        Self { sender, done: Arc::default(), total: Arc::default() }
    }

    /// One more step is done. A client that reads slowly misses steps; it does not hold up the deployment.
    fn step(&self, step: String) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(step, "done");
        if let Some(sender) = &self.sender {
            let total = self.total.load(Ordering::Relaxed).max(done);
            let _ = sender.try_send(Ok(DeployProgress { done, total, step, outcome: None }));
        }
    }
}

/// Applies `diff`, which leads from what is up to `target`. After a failure what is up lies between the two:
/// call [`undo`]. Returns remarks for the user.
pub async fn apply(maker: &Maker, target: &Plan, diff: &Diff, progress: &Progress, cancel: &Cancel) -> Result<Vec<String>, Failure> {
    let lab = &maker.lab;
    let nodes = diff.nodes.iter().map(|(name, _)| name.clone()).collect();
    lab.journal([Record::Begin { nodes }])?;
    let removed = diff.nodes.iter().filter(|(_, change)| *change == NodeChange::Remove);
    let steps = diff.nodes.len() + target.nodes.iter().filter(|node| has_programs(node)).count();
    progress.total.fetch_add(u32::try_from(steps).unwrap_or(u32::MAX), Ordering::Relaxed);
    stop_parts(lab, &diff.nodes).await?;
    removed.for_each(|(name, _)| progress.step(format!("removed {name}")));
    bridges(lab, target).await?;
    let remarks = start_nodes(maker, target, diff, progress, cancel).await?;
    lab.state().plan = target.clone();
    Ok(remarks)
}

/// Leads back to `before`, from anywhere between it and `target`.
pub async fn undo(maker: &Maker, before: &Plan, target: &Plan) -> Result<(), Failure> {
    let diff = Diff::between(target, before);
    let progress = Progress::new(None);
    maker.lab.state().plan = target.clone();
    apply(maker, before, &diff, &progress, &Cancel::new()).await.map(drop)
}

fn has_programs(node: &NodePlan) -> bool {
    node.linux.as_ref().is_some_and(|linux| !linux.run.is_empty()) || node.host.as_ref().is_some_and(|(_, config)| !config.run.is_empty())
}

/// Makes the bridges that `target` needs, removes those that it does not.
async fn bridges(lab: &Lab, target: &Plan) -> Result<(), Failure> {
    let wanted = target.links.iter().filter(|link| link.medium == Medium::Tap).collect::<Vec<_>>();
    let path = netns::infra(&lab.run_dir);
    let there = lab.owned().netns.contains(&path);
    if wanted.is_empty() {
        if there {
            netns::remove(&path);
            lab.journal([Record::Gone { key: path.to_string_lossy().into_owned() }])?;
        }
        return Ok(());
    }
    if !there {
        lab.journal([Record::Netns { path: path.clone() }])?;
        netns::make(&path).await.map_err(Failure::deploy)?;
        // No frames of the kernel's own between the two ends.
        let quiet = ["default", "all"].map(|which| (format!("net.ipv6.conf.{which}.disable_ipv6"), "1".to_owned()));
        if let Err(error) = netns::set_sysctls(&path, quiet.into()).await {
            tracing::debug!(%error, "no IPv6 to switch off");
        }
    }
    let net = Netns::open(&path).await.map_err(Failure::deploy)?;
    let is_wanted = |name: &str| wanted.iter().any(|link| link.bridge().0 == name);
    for name in net.names().await.iter().filter(|name| name.starts_with("br") && !is_wanted(name)) {
        net.delete(name).await;
    }
    for link in wanted {
        make_bridge(&net, link).await?;
    }
    Ok(())
}

async fn make_bridge(net: &Netns, link: &LinkPlan) -> Result<(), Failure> {
    if net.index(&link.bridge().0).await.is_some() {
        return Ok(());
    }
    net.make_bridge(link).await.map_err(Failure::deploy)
}

/// Makes and changes nodes, many at a time; then waits for their links, then for their programs.
async fn start_nodes(maker: &Maker, target: &Plan, diff: &Diff, progress: &Progress, cancel: &Cancel) -> Result<Vec<String>, Failure> {
    let target = Arc::new(target.clone());
    let room = Arc::new(Semaphore::new(NODES_A_CPU * std::thread::available_parallelism().map_or(1, usize::from)));
    let mut tasks = JoinSet::new();
    let (mut with_programs, mut changed) = (Vec::new(), Vec::new());
    for (name, change) in &diff.nodes {
        let (nic, host) = match change {
            NodeChange::Remove => continue,
            NodeChange::Add | NodeChange::Replace => (Part::Restart, Part::Restart),
            NodeChange::Update { nic, host } => (*nic, *host),
        };
        let node = target.node(name).expect("what is not removed is in the target").clone();
        if host == Part::Restart && has_programs(&node) {
            with_programs.push(node.clone());
        }
        if (nic, host) != (Part::Keep, Part::InPlace) {
            changed.push(node.clone());
        }
        let (maker, target, progress, cancel, room) = (maker.clone(), target.clone(), progress.clone(), cancel.clone(), room.clone());
        tasks.spawn(async move {
            let _room = room.acquire_owned().await.expect("the semaphore is never closed");
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            let remark = maker.node(&node, &target, nic, host, &cancel).await?;
            progress.step(format!("node {}", node.name));
            Ok(remark)
        });
    }
    let mut remarks = all(tasks, cancel).await?;
    let mut tasks = JoinSet::new();
    for node in changed {
        let (maker, cancel, room) = (maker.clone(), cancel.clone(), room.clone());
        tasks.spawn(async move {
            let _room = room.acquire_owned().await.expect("the semaphore is never closed");
            maker.settled(&node, &cancel).await
        });
    }
    remarks.extend(all(tasks, cancel).await?);
    let mut tasks = JoinSet::new();
    for node in with_programs {
        let (maker, progress, cancel) = (maker.clone(), progress.clone(), cancel.clone());
        tasks.spawn(async move {
            maker.programs(&node, &cancel).await?;
            progress.step(format!("programs of {}", node.name));
            Ok(None)
        });
    }
    all(tasks, cancel).await?;
    Ok(remarks)
}

/// Waits for all tasks. The first failure cancels the others, which run to a safe point.
async fn all(mut tasks: JoinSet<Result<Option<String>, Failure>>, cancel: &Cancel) -> Result<Vec<String>, Failure> {
    let mut first = None;
    let mut remarks = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        match joined.unwrap_or_else(|error| Err(Failure::deploy(error))) {
            Ok(remark) => remarks.extend(remark),
            Err(failure) => {
                first.get_or_insert(failure);
                cancel.cancel();
            }
        }
    }
    remarks.sort();
    first.map_or(Ok(remarks), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_failure_is_the_one_reported_and_the_others_are_cancelled() {
        let cancel = Cancel::new();
        let mut tasks = JoinSet::new();
        for number in 0..3 {
            let cancel = cancel.clone();
            tasks.spawn(async move {
                if number == 1 {
                    return Err(Failure::Deploy("broken".into()));
                }
                cancel.cancelled().await;
                Err(Failure::Cancelled)
            });
        }
        assert_eq!(all(tasks, &cancel).await, Err(Failure::Deploy("broken".into())));
        assert!(cancel.is_cancelled());
    }
}
