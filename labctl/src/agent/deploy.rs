//! Deploy and destroy: the operations on whole labs.

use crate::agent::Agent;
use crate::agent::adopt::{load, repairs};
use crate::agent::apply::{Progress, apply, undo};
use crate::agent::daemon::Cancel;
use crate::agent::diff::{Diff, NodeChange, Part};
use crate::agent::failure::Failure;
use crate::agent::journal::{Impairment, LinkState, Owned, Record};
use crate::agent::lab::{Lab, Life, TOPOLOGY, link_info};
use crate::agent::machine;
use crate::agent::placement::place;
use crate::agent::plan::{Numbers, Places, Plan, plan, wire_impairment};
use crate::agent::process::{boot_id, usable_cpus};
use crate::agent::remove::remove_lab;
use crate::agent::start::Maker;
use ringlab_proto::agent::{DeployRequest, LinkInfo, SetLinkRequest};
use ringlab_proto::nic::{self, nic_client::NicClient};
use ringlab_proto::topology::{self, Topology};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Deploys, or applies the difference. Returns what changed.
pub async fn deploy(agent: &Agent, request: &DeployRequest, progress: &Progress, cancel: &Cancel) -> Result<Vec<String>, Failure> {
    let base = Path::new(&request.path).parent().unwrap_or(Path::new("/"));
    let topology = topology::parse_in(&request.path, &request.yaml, base)
        .map_err(|problems| Failure::Usage(problems.lines().collect::<Vec<_>>().join("\n")))?;
    loop {
        let lab = agent.lab_or_new(&topology.name);
        let mut life = lab.operate().await;
        if *life == Life::Removed {
            continue;
        }
        let new = !lab.is_open();
        let result = deploy_locked(agent, &lab, &topology, request, progress, cancel).await;
        // A lab that failed, or was only looked at, is no lab.
        if new && !(result.is_ok() && lab.is_open()) {
            *life = Life::Removed;
            agent.forget(&lab);
        }
        return result;
    }
}

async fn deploy_locked(
    agent: &Agent,
    lab: &Arc<Lab>,
    topology: &Topology,
    request: &DeployRequest,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<String>, Failure> {
    let path = PathBuf::from(&request.path);
    let base = path.parent().unwrap_or(Path::new("/"));
    let owned = lab.owned();
    let mut numbers = Numbers(owned.numbers.clone());
    let records = numbers.assign(topology, &cpus(agent, topology));
    let before = lab.state().plan.clone();
    let target = plan(topology, Places { run_dir: &lab.run_dir, base, numbers: &numbers }, &BTreeMap::new());
    let diff = with_repairs(lab, Diff::between(&before, &target), &before);
    if let Some(lack) = machine::lacks(&target, &lab.run_dir, &agent.programs).await {
        return Err(Failure::Machine(lack));
    }
    if request.dry_run {
        return Ok(diff.changes);
    }
    let new = !lab.is_open();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    if new {
        if lab.run_dir.exists() {
            return Err(Failure::Machine(format!(
                "{} is there already, and its journal cannot be read: remove it by hand once nothing runs in it",
                lab.run_dir.display()
            )));
        }
        lab.open(Owned::default())?;
        let record = Record::Lab { name: lab.name.clone(), path: path.clone(), boot: boot_id(), since_unix_ns: since };
        lab.journal([record])?;
    }
    lab.journal(records)?;
    let maker = Maker { lab: lab.clone(), programs: agent.programs.clone() };
    let applied = if diff.is_empty() { Ok(Vec::new()) } else { apply(&maker, &target, &diff, progress, cancel).await };
    let finished = applied.and_then(|remarks| {
        if cancel.is_cancelled() { Err(Failure::Cancelled) } else { finish(lab, topology, request, &owned, new).map(|()| remarks) }
    });
    match finished {
        Ok(remarks) => {
            let mut state = lab.state();
            (state.path, state.topology) = (path, Some(topology.clone()));
            if new {
                state.since_unix_ns = since;
            }
            Ok(diff.changes.into_iter().chain(remarks).collect())
        }
        Err(failure) => Err(roll_back(&maker, new, &before, &target, failure).await),
    }
}

/// The difference, and what has ended meanwhile: deploying the same file brings a broken lab up again.
fn with_repairs(lab: &Lab, mut diff: Diff, before: &Plan) -> Diff {
    for (name, change) in repairs(lab, before, &[]).nodes {
        if !diff.nodes.iter().any(|(other, _)| *other == name) {
            diff.changes.push(format!("~ node {name}: started again"));
            diff.nodes.push((name, change));
        }
    }
    diff
}

/// Everything is up: what is up becomes what the lab is.
fn finish(lab: &Lab, topology: &Topology, request: &DeployRequest, owned: &Owned, new: bool) -> Result<(), Failure> {
    let file = lab.run_dir.join(TOPOLOGY);
    let next = lab.run_dir.join("topology.next");
    let written = std::fs::write(&next, &request.yaml).and_then(|()| std::fs::rename(&next, &file));
    written.map_err(|error| Failure::Machine(format!("{}: {error}", file.display())))?;
    let mut records = Vec::new();
    if !new && let Some((_, _, boot, since_unix_ns)) = owned.lab.clone() {
        records.push(Record::Lab { name: topology.name.clone(), path: PathBuf::from(&request.path), boot, since_unix_ns });
    }
    records.extend(owned.overrides.keys().map(|link| Record::Override { link: link.clone(), state: None }));
    records.push(Record::Commit);
    lab.commit(records)
}

/// Undoes a failed deployment. Returns the failure, and what failed in the undoing.
async fn roll_back(maker: &Maker, new: bool, before: &Plan, target: &Plan, failure: Failure) -> Failure {
    tracing::warn!(lab = maker.lab.name, %failure, "deployment failed; it is undone");
    let undone = if new {
        take_down(&maker.lab).await
    } else {
        let undone = undo(maker, before, target).await;
        undone.and_then(|()| maker.lab.commit([Record::Commit]))
    };
    match undone {
        Ok(()) => failure,
        Err(second) => Failure::Deploy(format!("{failure}\nand undoing it failed: {second}")),
    }
}

/// CPU of each node, were it new.
fn cpus(agent: &Agent, topology: &Topology) -> Vec<u32> {
    let usable = usable_cpus();
    let mut load = vec![0; usable.len()];
    for lab in agent.labs() {
        for node in lab.state().plan.nodes.iter().filter(|_| lab.name != topology.name) {
            if let Some(slot) = usable.iter().position(|&cpu| cpu == node.cpu) {
                load[slot] += 1;
            }
        }
    }
    let number = |name: &str| topology.nodes.iter().position(|node| node.name == name).expect("a link's ends are nodes");
    let links = topology.links.iter().map(|link| (number(&link.endpoints[0].0), number(&link.endpoints[1].0))).collect::<Vec<_>>();
    place(topology.placement, topology.nodes.len(), &links, &load).into_iter().map(|slot| usable[slot]).collect()
}

/// Destroys a lab.
pub async fn destroy(agent: &Agent, name: &str) -> Result<(), Failure> {
    let lab = agent.lab(name)?;
    let mut life = lab.operate().await;
    if *life == Life::Removed {
        return Ok(());
    }
    take_down(&lab).await?;
    *life = Life::Removed;
    agent.forget(&lab);
    Ok(())
}

async fn take_down(lab: &Lab) -> Result<(), Failure> {
    {
        // From here on no watcher starts anything anew.
        let mut state = lab.state();
        state.nodes.clear();
        state.execs.clear();
    }
    let removed = remove_lab(&lab.run_dir, &lab.owned()).await;
    removed.map_err(|error| Failure::Deploy(format!("{}: {error}", lab.run_dir.display())))
}

/// Restarts a node: its NIC and its host.
pub async fn restart(agent: &Agent, lab: &str, node: &str) -> Result<(), Failure> {
    let lab = agent.lab(lab)?;
    let life = lab.operate().await;
    if *life == Life::Removed {
        return Err(Failure::Usage(format!("lab {} has just been destroyed", lab.name)));
    }
    lab.node_plan(node)?;
    let change = NodeChange::Update { nic: Part::Restart, host: Part::Restart };
    let diff = Diff { nodes: vec![(node.to_owned(), change)], changes: Vec::new() };
    let plan = lab.state().plan.clone();
    let maker = Maker { lab: lab.clone(), programs: agent.programs.clone() };
    let restarted = apply(&maker, &plan, &diff, &Progress::new(None), &Cancel::new()).await;
    lab.state().nodes.entry(node.to_owned()).or_default().failed = restarted.is_err();
    lab.count_restart(node)?;
    lab.commit([Record::Commit])?;
    restarted.map(drop)
}

/// Changes a link by hand.
pub async fn set_link(agent: &Agent, request: &SetLinkRequest) -> Result<LinkInfo, Failure> {
    let lab = agent.lab(&request.lab)?;
    let life = lab.operate().await;
    if *life == Life::Removed {
        return Err(Failure::Usage(format!("lab {} has just been destroyed", lab.name)));
    }
    let link = lab.link_plan(&request.endpoint)?;
    let given = |given: &Option<nic::Impairment>, now: Impairment| match given {
        Some(i) if !(0.0..=1.0).contains(&i.loss) => Err(Failure::Usage(format!("loss {} is not a probability", i.loss))),
        Some(i) => Ok(Impairment { delay_ns: i.delay_ns, rate_bps: i.rate_bps, loss: i.loss }),
        None => Ok(now),
    };
    let state = LinkState {
        up: request.up.unwrap_or(link.state.up),
        forward: given(&request.forward, link.state.forward)?,
        backward: given(&request.backward, link.state.backward)?,
    };
    lab.commit([Record::Override { link: link.key.clone(), state: Some(state) }])?;
    let owned = lab.owned();
    let (topology, path) = {
        let state = lab.state();
        (state.topology.clone(), state.path.clone())
    };
    let topology = topology.map_or_else(|| load(&lab.run_dir), Ok)?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let target = plan(&topology, Places { run_dir: &lab.run_dir, base, numbers: &Numbers(owned.numbers) }, &owned.overrides);
    let maker = Maker { lab: lab.clone(), programs: agent.programs.clone() };
    for (end, impairment) in [state.forward, state.backward].into_iter().enumerate() {
        let (node, port) = &link.ends[end];
        let node = lab.node_plan(node)?;
        let daemon = maker.running(&node, crate::agent::daemon::Role::Nicd)?;
        let mut client = NicClient::new(crate::agent::daemon::channel(&daemon.socket));
        let request = nic::SetLinkRequest { port: port.clone(), up: Some(state.up), impairment: Some(wire_impairment(impairment)) };
        daemon.answer(client.set_link(request)).await?;
    }
    lab.state().plan = target;
    Ok(link_info(&lab.link_plan(&request.endpoint)?))
}
