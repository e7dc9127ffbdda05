//! Starts daemons anew that have ended unasked.
//!
//! A watcher waits for each daemon's pidfd. Who ends a daemon on purpose takes it
//! from the node first; the watcher then finds another, or none, and is done. A
//! nicd comes back with the same configuration: its host renegotiates the rings,
//! connections survive. A hostd comes back as a machine does that was reset.

use crate::agent::daemon::{Cancel, Daemon, Role};
use crate::agent::diff::Part;
use crate::agent::failure::Failure;
use crate::agent::journal::Record;
use crate::agent::lab::{Lab, Life};
use crate::agent::process::{Process, describe, end_all};
use crate::agent::start::Maker;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A daemon that ran so long is started anew at once.
const STABLE: Duration = Duration::from_secs(10);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Attempts in a row after which the node has failed.
const ATTEMPTS: u32 = 8;

/// Watches a daemon until it ends, and starts it anew if nobody wanted that.
pub fn watch(maker: Maker, node: String, role: Role, daemon: Daemon) {
    tokio::spawn(async move {
        let started = Instant::now();
        let status = daemon.process.ended().await;
        let end = describe(status);
        if !is_current(&maker.lab, &node, role, &daemon) {
            return;
        }
        tracing::warn!(lab = maker.lab.name, node, daemon = role.program(), end, "a daemon has ended; it is started anew");
        maker.lab.state().nodes.entry(node.clone()).or_default().restarting = true;
        // Boxed: a new daemon's watcher is started from within this one's future.
        Box::pin(restart(&maker, &node, role, &daemon, started)).await;
    });
}

/// Whether the node still has this daemon: nobody has taken or replaced it.
fn is_current(lab: &Lab, node: &str, role: Role, daemon: &Daemon) -> bool {
    let mut state = lab.state();
    let current = state.nodes.get_mut(node).and_then(|node| node.daemon(role).as_ref());
    current.is_some_and(|current| Arc::ptr_eq(&current.process, &daemon.process))
}

/// Whether the node has no such daemon: an attempt to start it has failed.
fn is_empty(lab: &Lab, node: &str, role: Role) -> bool {
    lab.state().nodes.get_mut(node).is_some_and(|node| node.daemon(role).is_none())
}

async fn restart(maker: &Maker, node: &str, role: Role, dead: &Daemon, started: Instant) {
    let lab = &maker.lab;
    let recent = if started.elapsed() > STABLE { 0 } else { lab.state().nodes.get(node).map_or(0, |node| node.restarts) };
    if recent > 0 {
        tokio::time::sleep((Duration::from_millis(20) * 2u32.pow(recent.min(10))).min(LONGEST_PAUSE)).await;
    }
    for attempt in 1..=ATTEMPTS {
        {
            let life = lab.operate().await;
            // A deployment that was under way may have seen to it, or the lab may be gone.
            let mine = is_current(lab, node, role, dead) || (attempt > 1 && is_empty(lab, node, role));
            if *life == Life::Removed || !mine {
                return;
            }
            let roles = to_start(lab, node, role);
            match start(maker, node, &roles).await {
                Ok(()) => return,
                Err(failure) => {
                    tracing::warn!(lab = lab.name, node, daemon = role.program(), %failure, attempt, "a daemon cannot be started");
                    take(lab, node, &roles).await;
                }
            }
        }
        tokio::time::sleep((Duration::from_millis(50) * 2u32.pow(attempt)).min(LONGEST_PAUSE)).await;
    }
    let mut state = lab.state();
    let node_state = state.nodes.entry(node.to_owned()).or_default();
    node_state.failed = true;
    tracing::error!(lab = lab.name, node, daemon = role.program(), "gave up: `labctl restart` tries again");
}

/// What is to be started for a daemon that has ended. A host waits for its NIC: if that has been killed, too, both are.
fn to_start(lab: &Lab, node: &str, role: Role) -> Vec<Role> {
    let mut state = lab.state();
    let has_nic = state.plan.node(node).is_some_and(|plan| plan.nic.is_some());
    let nicd = state.nodes.get_mut(node).and_then(|node| node.nicd.as_ref());
    if role == Role::Hostd && has_nic && nicd.is_none_or(|nicd| nicd.process.is_going()) {
        return vec![Role::Nicd, Role::Hostd];
    }
    vec![role]
}

/// Takes daemons from their node, and sees that they have ended.
async fn take(lab: &Lab, node: &str, roles: &[Role]) {
    let taken = {
        let mut state = lab.state();
        let node = state.nodes.entry(node.to_owned()).or_default();
        roles.iter().filter_map(|&role| node.daemon(role).take()).map(|daemon| daemon.process).collect::<Vec<_>>()
    };
    end_all(&taken, false).await;
}

async fn start(maker: &Maker, node: &str, roles: &[Role]) -> Result<(), Failure> {
    let lab = &maker.lab;
    let plan = lab.state().plan.clone();
    let Some(node_plan) = plan.node(node) else { return Ok(()) };
    take(lab, node, roles).await;
    for _ in roles {
        lab.count_restart(node)?;
    }
    let part = |role: Role| if roles.contains(&role) { Part::Restart } else { Part::Keep };
    maker.node(node_plan, &plan, part(Role::Nicd), part(Role::Hostd), &Cancel::new()).await?;
    if roles.contains(&Role::Nicd) {
        maker.after_nic_restart(node_plan, &plan).await?;
    }
    for role in roles {
        tracing::info!(lab = lab.name, node, daemon = role.program(), "a daemon is up again");
    }
    Ok(())
}

/// Reaps a program of `run:` on a Linux node. Programs end when they like; they are not started anew.
pub fn watch_program(lab: Arc<Lab>, node: String, position: usize, key: String, process: Arc<Process>) {
    tokio::spawn(async move {
        let end = describe(process.ended().await);
        let current = {
            let mut state = lab.state();
            let programs = state.nodes.get_mut(&node).map(|node| &mut node.programs);
            let mine = programs.filter(|programs| programs.get(&position).is_some_and(|p| Arc::ptr_eq(p, &process)));
            mine.and_then(|programs| programs.remove(&position)).is_some()
        };
        if current {
            tracing::info!(lab = lab.name, node, program = position, end, "a program has ended");
            if let Err(error) = lab.journal([Record::Gone { key }]) {
                tracing::warn!(%error, "the journal cannot be written");
            }
        }
    });
}
