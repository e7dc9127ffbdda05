//! Removes exactly what a journal says.
//!
//! The same for `destroy`, for a deployment that is undone, and for what an agent
//! that was killed has left: it needs nothing but the journal.

use crate::agent::daemon::Role;
use crate::agent::diff::{NodeChange, Part};
use crate::agent::journal::{Owned, OwnedProcess, Record, tap_key};
use crate::agent::lab::Lab;
use crate::agent::netns::{self, Netns};
use crate::agent::process::{Process, boot_id, end_all, inside_namespaces, with_stdout};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often processes of a namespace are looked for: those that are found may have started others meanwhile, which may have, too.
const ROUNDS: u32 = 20;

/// Removes a lab's processes, namespaces and TAPs, and its run directory.
pub async fn remove_lab(run_dir: &Path, owned: &Owned) -> io::Result<()> {
    if owned.lab.as_ref().is_none_or(|(_, _, boot, _)| *boot == boot_id()) {
        end_all(&processes(owned.processes.values()).await, true).await;
        empty(&owned.netns).await;
        remove_taps(&owned.taps).await;
    }
    owned.netns.iter().for_each(|path| netns::remove(path));
    // The journal goes last: killed before, the next agent finds it and goes on here.
    let journal = run_dir.join(crate::agent::journal::FILE_NAME);
    for entry in std::fs::read_dir(run_dir)? {
        let entry = entry?;
        if entry.path() == journal {
            continue;
        }
        let removed = if entry.file_type()?.is_dir() { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
        removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    }
    std::fs::remove_dir_all(run_dir)
}

/// Ends what still runs in the lab's own namespaces (a program that `exec` left in the background): its machine is switched off.
async fn empty(namespaces: &[PathBuf]) {
    for _ in 0..ROUNDS {
        let found = adopt(inside_namespaces(namespaces)).await;
        if found.is_empty() {
            return;
        }
        end_all(&found, false).await;
    }
    tracing::warn!("a program in a namespace starts others faster than they can be ended");
}

/// Those of a journal's processes that run.
pub async fn processes<'a>(owned: impl IntoIterator<Item = &'a OwnedProcess>) -> Vec<Arc<Process>> {
    let mut identities = Vec::new();
    for process in owned {
        match (&process.identity, &process.log) {
            (Some(identity), _) => identities.push(*identity),
            // Killed between announcing and naming it: its standard output tells.
            (None, Some(log)) => identities.extend(with_stdout(log)),
            (None, None) => {}
        }
    }
    adopt(identities).await
}

async fn adopt(identities: Vec<(u32, u64)>) -> Vec<Arc<Process>> {
    let mut found = Vec::new();
    for (pid, start_time) in identities {
        match Process::adopt(pid, start_time).await {
            Ok(process) => found.extend(process),
            Err(error) => tracing::warn!(pid, %error, "a process of the lab cannot be reached"),
        }
    }
    found
}

/// TAPs in namespaces that are not the lab's: they went with nicd, unless it had made them persistent.
async fn remove_taps(taps: &[(PathBuf, String)]) {
    for (path, name) in taps {
        if let Ok(namespace) = Netns::open(path).await {
            namespace.delete(name).await;
        }
    }
}

/// Ends the parts of a lab's nodes that the changes restart or remove.
pub async fn stop_parts(lab: &Lab, changes: &[(String, NodeChange)]) -> Result<(), crate::agent::failure::Failure> {
    let mut keys = Vec::new();
    let mut ending = Vec::new();
    let mut groups = Vec::new();
    let mut gone_nodes = Vec::new();
    {
        let mut state = lab.state();
        for (name, change) in changes {
            let (nic, host) = match change {
                NodeChange::Add | NodeChange::Remove | NodeChange::Replace => (true, true),
                NodeChange::Update { nic, host } => (*nic == Part::Restart, *host == Part::Restart),
            };
            let Some(node) = state.nodes.get_mut(name) else { continue };
            for (role, stop) in [(Role::Nicd, nic), (Role::Hostd, host)] {
                if let Some(daemon) = node.daemon(role).take_if(|_| stop) {
                    keys.push(role.key(name));
                    ending.push(daemon.process);
                }
            }
            if host {
                for (position, process) in std::mem::take(&mut node.programs) {
                    keys.push(format!("program {name} {position}"));
                    groups.push(process);
                }
            }
            if !matches!(change, NodeChange::Update { .. }) {
                gone_nodes.push(name.clone());
                state.nodes.remove(name);
            }
        }
    }
    tokio::join!(end_all(&ending, false), end_all(&groups, true));
    let owned = lab.owned();
    for name in gone_nodes {
        let path = lab.run_dir.join("netns").join(&name);
        if owned.netns.contains(&path) {
            empty(std::slice::from_ref(&path)).await;
            netns::remove(&path);
            keys.push(path.to_string_lossy().into_owned());
        }
        if let Some(linux) = lab.state().plan.node(&name).and_then(|node| node.linux.clone()).filter(|linux| !linux.owned) {
            let mine = owned.taps.iter().filter(|(netns, _)| *netns == linux.netns);
            keys.extend(mine.map(|(netns, name)| tap_key(netns, name)));
        }
    }
    lab.journal(keys.into_iter().map(|key| Record::Gone { key }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::journal::Journal;
    use crate::agent::process::{Launch, launch};
    use crate::scratch::Scratch;
    use std::process::Command;

    #[tokio::test]
    async fn lab_of_a_killed_agent_is_removed_by_its_journal() {
        let scratch = Scratch::new("remove");
        let dir = scratch.path().join("lab");
        std::fs::create_dir_all(dir.join("s")).unwrap();
        let mut journal = Journal::open(&dir, Owned::default()).unwrap();
        let mut start = async |key: &str, named: bool| {
            let log = dir.join(format!("{key}.log"));
            journal.write([Record::Announce { key: key.into(), log: Some(log.clone()) }]).unwrap();
            let mut command = Command::new("sleep");
            command.arg("60");
            let process = Process::of_child(launch(Launch { command, log, cpu: None }).await.unwrap()).unwrap();
            if named {
                journal.write([Record::Process { key: key.into(), pid: process.pid(), start_time: process.start_time() }]).unwrap();
            }
            process
        };
        let named = start("nicd a", true).await;
        let announced = start("nicd b", false).await;
        remove_lab(&dir, &Owned::read(&dir).unwrap()).await.unwrap();
        assert!(named.has_ended() && announced.has_ended());
        assert!(!dir.exists());
    }

    #[tokio::test]
    async fn what_runs_in_the_labs_namespace_ends_with_it() {
        if netns::may_make().await.is_err() {
            return;
        }
        let scratch = Scratch::new("remove-netns");
        let dir = scratch.path().join("lab");
        std::fs::create_dir(&dir).unwrap();
        let namespace = dir.join("n");
        let mut journal = Journal::open(&dir, Owned::default()).unwrap();
        journal.write([Record::Netns { path: namespace.clone() }]).unwrap();
        netns::make(&namespace).await.unwrap();
        let child = netns::inside(&namespace, || Command::new("sleep").arg("60").spawn()).await.unwrap();
        let process = Process::of_child(child).unwrap();
        remove_lab(&dir, &Owned::read(&dir).unwrap()).await.unwrap();
        assert!(process.has_ended());
        assert!(!dir.exists());
    }

    #[tokio::test]
    async fn what_is_started_while_a_namespace_is_emptied_ends_too() {
        if netns::may_make().await.is_err() {
            return;
        }
        let scratch = Scratch::new("remove-starts");
        let namespace = scratch.path().join("n");
        netns::make(&namespace).await.unwrap();
        // Not asked to end, but killed; what it starts until then nobody has seen.
        let script = "trap '' TERM; while :; do setsid sleep 60 & sleep 0.05; done";
        let child = netns::inside(&namespace, move || Command::new("sh").args(["-c", script]).spawn()).await.unwrap();
        let process = Process::of_child(child).unwrap();
        let all = [namespace.clone()];
        while inside_namespaces(&all).len() < 3 {
            tokio::task::yield_now().await;
        }
        empty(&all).await;
        assert!(process.has_ended());
        let left = inside_namespaces(&all);
        netns::remove(&namespace);
        for process in adopt(left.clone()).await {
            process.signal(rustix::process::Signal::KILL);
        }
        assert_eq!(left, []);
    }

    #[tokio::test]
    async fn process_that_has_the_number_of_a_dead_one_is_left_alone() {
        let scratch = Scratch::new("remove-reuse");
        let mut command = Command::new("sleep");
        command.arg("60");
        let launched = launch(Launch { command, log: scratch.path().join("other.log"), cpu: None }).await.unwrap();
        let other = Process::of_child(launched).unwrap();
        let old = OwnedProcess { log: Some(scratch.path().join("gone.log")), identity: Some((other.pid(), other.start_time() - 1)) };
        assert!(processes([&old]).await.is_empty());
        assert!(!other.has_ended());
        end_all(&[other], false).await;
    }
}
