//! Takes over what an agent before this one has left: labs go on, half-made ones go.

use crate::agent::apply::{Progress, apply};
use crate::agent::daemon::{Cancel, Daemon, Role};
use crate::agent::diff::{Diff, NodeChange, Part};
use crate::agent::failure::Failure;
use crate::agent::journal::{Owned, Record};
use crate::agent::lab::{Lab, TOPOLOGY};
use crate::agent::plan::{NodePlan, Numbers, Places, Plan, plan};
use crate::agent::process::{Process, boot_id, end_all};
use crate::agent::remove::{processes, remove_lab};
use crate::agent::start::Maker;
use crate::agent::supervise;
use ringlab_proto::topology::{self, Topology};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How often a lab is repaired.
const ATTEMPTS: u32 = 5;

/// Adopts every lab below `labs`; removes those that were not deployed to the end or whose machine was restarted since.
pub async fn adopt_all(labs: &Path, programs: &Path) -> BTreeMap<String, Arc<Lab>> {
    let mut adopted = BTreeMap::new();
    for entry in std::fs::read_dir(labs).into_iter().flatten().flatten() {
        let run_dir = entry.path();
        let owned = match Owned::read(&run_dir) {
            Ok(owned) => owned,
            Err(error) => {
                tracing::warn!(run_dir = %run_dir.display(), %error, "what this lab owns is not known; it is left alone");
                continue;
            }
        };
        let alive = owned.committed && owned.lab.as_ref().is_some_and(|(_, _, boot, _)| *boot == boot_id());
        if alive {
            match adopt(&run_dir, owned.clone(), programs).await {
                Ok(lab) => {
                    tracing::info!(lab = lab.name, "adopted");
                    adopted.insert(lab.name.clone(), lab);
                    continue;
                }
                Err(failure) => tracing::warn!(run_dir = %run_dir.display(), %failure, "a lab cannot be adopted; it is removed"),
            }
        }
        // After a failed attempt the journal knows more than it did.
        let owned = Owned::read(&run_dir).unwrap_or(owned);
        if let Err(error) = remove_lab(&run_dir, &owned).await {
            tracing::warn!(run_dir = %run_dir.display(), %error, "a lab's remains cannot be removed");
        }
    }
    adopted
}

async fn adopt(run_dir: &Path, owned: Owned, programs: &Path) -> Result<Arc<Lab>, Failure> {
    let (name, path, _, since) = owned.lab.clone().expect("looked at by the caller");
    let topology = load(run_dir)?;
    let numbers = Numbers(owned.numbers.clone());
    let base = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let plan = plan(&topology, Places { run_dir, base: &base, numbers: &numbers }, &owned.overrides);
    let lab = Lab::new(&name, run_dir);
    lab.open(owned.clone())?;
    let maker = Maker { lab: lab.clone(), programs: programs.to_path_buf() };
    {
        let mut state = lab.state();
        (state.path, state.since_unix_ns) = (path, since);
        (state.plan, state.topology) = (plan.clone(), Some(topology));
        for (node, &times) in &owned.restarts {
            state.nodes.entry(node.clone()).or_default().restarts = times;
        }
    }
    let life = lab.operate().await;
    let mut keys = Vec::new();
    let mut strangers = Vec::new();
    for (key, process) in &owned.processes {
        let found = processes([process]).await;
        let named = process.identity.is_some() && !owned.changing.iter().any(|node| key.split(' ').nth(1) == Some(node));
        match found.into_iter().next() {
            Some(process) if named && take(&maker, &plan, key, &process) => {}
            Some(process) => {
                strangers.push(process);
                keys.push(key.clone());
            }
            None => keys.push(key.clone()),
        }
    }
    end_all(&strangers, true).await;
    lab.journal(keys.into_iter().map(|key| Record::Gone { key }))?;
    repair(&maker, &plan).await?;
    drop(life);
    Ok(lab)
}

/// Starts what has ended anew. What is killed while that goes on is no reason to give the lab up: it is started anew, too.
async fn repair(maker: &Maker, plan: &Plan) -> Result<(), Failure> {
    let lab = &maker.lab;
    for attempt in 1.. {
        let diff = repairs(lab, plan, &lab.owned().changing);
        if diff.nodes.is_empty() {
            break;
        }
        let kept = kept(lab, &diff);
        tracing::info!(lab = lab.name, nodes = ?diff.nodes, "parts that have ended meanwhile are started anew");
        match apply(maker, plan, &diff, &Progress::new(None), &Cancel::new()).await {
            Ok(_) => {
                lab.commit([Record::Commit])?;
                break;
            }
            Err(failure) if attempt < ATTEMPTS && kept.iter().any(|process| process.is_going()) => {
                tracing::warn!(lab = lab.name, %failure, attempt, "a lab cannot be repaired, because more of it has ended");
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// The daemons that go on as they are.
fn kept(lab: &Lab, diff: &Diff) -> Vec<Arc<Process>> {
    let mut kept = Vec::new();
    for (name, node) in &lab.state().nodes {
        let (nic, host) = match diff.nodes.iter().find(|(other, _)| other == name) {
            None => (Part::Keep, Part::Keep),
            Some((_, NodeChange::Update { nic, host })) => (*nic, *host),
            Some(_) => continue,
        };
        let goes_on =
            |part, daemon: &Option<Daemon>| daemon.as_ref().filter(|_| part != Part::Restart).map(|daemon| daemon.process.clone());
        kept.extend(goes_on(nic, &node.nicd));
        kept.extend(goes_on(host, &node.hostd));
    }
    kept
}

/// The topology that is up in `run_dir`.
pub fn load(run_dir: &Path) -> Result<Topology, Failure> {
    let file = run_dir.join(TOPOLOGY);
    let text = std::fs::read_to_string(&file).map_err(|error| Failure::Deploy(format!("{}: {error}", file.display())))?;
    topology::parse(&file.to_string_lossy(), &text).map_err(|problems| Failure::Deploy(problems.to_string()))
}

/// Takes charge of a process that runs. `false`: nothing in the plan has it.
fn take(maker: &Maker, plan: &Plan, key: &str, process: &Arc<Process>) -> bool {
    let mut words = key.split(' ');
    let (Some(program), Some(name)) = (words.next(), words.next()) else { return false };
    let Some(node) = plan.node(name) else { return false };
    let (role, socket) = match (program, &node.nic, &node.host) {
        ("nicd", Some((socket, _)), _) => (Role::Nicd, socket),
        ("hostd", _, Some((socket, _))) => (Role::Hostd, socket),
        ("program", _, _) => return take_program(maker, node, words.next(), key, process),
        _ => return false,
    };
    let log = maker.lab.run_dir.join(format!("{program}-{name}.log"));
    let daemon = Daemon { process: process.clone(), socket: socket.clone(), log };
    *maker.lab.state().nodes.entry(name.to_owned()).or_default().daemon(role) = Some(daemon.clone());
    supervise::watch(maker.clone(), name.to_owned(), role, daemon);
    true
}

fn take_program(maker: &Maker, node: &NodePlan, position: Option<&str>, key: &str, process: &Arc<Process>) -> bool {
    let Some(position) = position.and_then(|text| text.parse().ok()) else { return false };
    if node.linux.as_ref().is_none_or(|linux| linux.run.len() <= position) {
        return false;
    }
    maker.lab.state().nodes.entry(node.name.clone()).or_default().programs.insert(position, process.clone());
    supervise::watch_program(maker.lab.clone(), node.name.clone(), position, key.to_owned(), process.clone());
    true
}

/// What has to be started for the plan to be up: parts that have ended, and nodes that were being changed.
pub fn repairs(lab: &Lab, plan: &Plan, changing: &[String]) -> Diff {
    let state = lab.state();
    let mut diff = Diff::default();
    for name in changing.iter().filter(|name| plan.node(name).is_none()) {
        diff.nodes.push((name.clone(), NodeChange::Remove));
    }
    for node in &plan.nodes {
        if changing.contains(&node.name) {
            diff.nodes.push((node.name.clone(), NodeChange::Replace));
            continue;
        }
        let there = state.nodes.get(&node.name);
        let part = |wanted: bool, runs: bool| if wanted && !runs { Part::Restart } else { Part::Keep };
        let runs = |daemon: &Option<Daemon>| daemon.as_ref().is_some_and(|daemon| !daemon.process.is_going());
        let nic = part(node.nic.is_some(), there.is_some_and(|there| runs(&there.nicd)));
        let host = part(node.host.is_some(), there.is_some_and(|there| runs(&there.hostd)));
        // A Linux node's addresses went with its TAPs.
        let host = if node.linux.is_some() { nic } else { host };
        if (nic, host) != (Part::Keep, Part::Keep) {
            diff.nodes.push((node.name.clone(), NodeChange::Update { nic, host }));
        }
    }
    diff
}
