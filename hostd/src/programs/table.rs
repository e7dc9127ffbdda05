//! The built-in programs of a host that run, and those of `run:`.

use super::process::{Exit, Process, ProgramId, Streams};
use super::sys::Sys;
use crate::config::{ExecSpec, RunSpec, StartSpec};
use crate::host::Shared;
use crate::stats;
use ringlab_proto::host::ProgramInfo;
use std::collections::BTreeMap;
use std::rc::Rc;
use tracing::{debug, warn};

/// `SIGKILL`.
const SIGKILL: i32 = 9;

/// The programs.
#[derive(Default)]
pub struct ProgramTable {
    last: u64,
    running: BTreeMap<ProgramId, Rc<Process>>,
    run: Vec<(RunSpec, Rc<Process>)>,
}

impl ProgramTable {
    /// Starts the programs of `run:`; `streams` has an element for each.
    pub fn run_all(&mut self, shared: &Rc<Shared>, specs: &[RunSpec], streams: Vec<Streams>) {
        for (spec, streams) in specs.iter().zip(streams) {
            let process = match &spec.start {
                ExecSpec::Builtin(start) => {
                    let id = self.start(shared, start, streams);
                    self.running.get(&id).cloned()
                }
                // The control thread starts it; here it is only shown.
                ExecSpec::Guest(start) => Some(Rc::new(Process::new(spec.start.name(), start.cwd.clone().into(), streams))),
            };
            self.run.extend(process.map(|process| (spec.clone(), process)));
        }
    }

    /// Starts a program.
    pub fn start(&mut self, shared: &Rc<Shared>, start: &StartSpec, streams: Streams) -> ProgramId {
        self.running.retain(|_, process| !process.is_finished());
        self.last += 1;
        let id = ProgramId(self.last);
        let process = Rc::new(Process::new(&start.builtin, start.cwd.clone(), streams));
        let task = shared.new_task(&start.builtin);
        let sys = Sys::new(shared.clone(), task, shared.new_memory(task), process.clone());
        debug!(program = %start.builtin, pid = task.0, "started");
        shared.adopt(task, process.clone(), super::main_of(&start.builtin, sys, start.argv.clone()));
        self.running.insert(id, process);
        id
    }

    /// An unmodified program of `run:` has ended. `error`: why it did not start.
    pub fn run_ended(&self, index: usize, exit: Exit, error: &str) {
        if let Some((_, process)) = self.run.get(index) {
            process.set_last_error(error);
            process.finish(exit);
        }
    }

    /// Sends a program a signal, if it still runs.
    pub fn signal(&self, shared: &Shared, id: ProgramId, signal: i32) {
        if let Some(process) = self.running.get(&id) {
            shared.signal(process, signal);
        }
    }

    /// Ends all programs.
    pub fn kill_all(&self, shared: &Shared) {
        self.running.values().for_each(|process| shared.signal(process, SIGKILL));
    }

    /// States of the programs of `run:`, in order.
    pub fn states(&self, shared: &Shared) -> Vec<ProgramInfo> {
        let listening = stats::listening_ports(shared);
        let state = |(spec, process): &(RunSpec, Rc<Process>)| {
            let ended = process.ended();
            let ready = ended.is_none() && spec.ready_tcp.is_none_or(|port| listening.contains(&port));
            ProgramInfo {
                name: process.name.clone(),
                state: match (ended, ready) {
                    (Some(_), _) => "exited",
                    (None, true) => "running",
                    (None, false) => "starting",
                }
                .to_owned(),
                exit_code: ended.map_or(0, |e| e.code),
                ready: ready || (spec.ready_tcp.is_none() && ended.is_some_and(|e| e.code == 0)),
                error: ended.filter(|e| e.code != 0).map(|_| process.last_error()).unwrap_or_default(),
            }
        };
        let states: Vec<_> = self.run.iter().map(state).collect();
        if let Some(bad) = states.iter().find(|s| s.state == "exited" && s.exit_code != 0) {
            warn!(program = %bad.name, code = bad.exit_code, "a program has failed");
        }
        states
    }
}
