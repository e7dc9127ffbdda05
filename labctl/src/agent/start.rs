//! Makes the parts of one node: namespace, nicd, hostd, programs.
//!
//! Each resource is journaled before it is made. A step that makes one runs to its
//! end; what waits (for a daemon to answer, a program to be ready) can be cancelled.

use crate::agent::daemon::{Cancel, Daemon, Role, channel};
use crate::agent::diff::Part;
use crate::agent::failure::Failure;
use crate::agent::journal::Record;
use crate::agent::lab::Lab;
use crate::agent::netns::{self, Netns};
use crate::agent::plan::{LinuxPlan, NodePlan, Plan};
use crate::agent::process::{Launch, Process, launch};
use crate::agent::supervise;
use ringlab_proto::host::host_client::HostClient;
use ringlab_proto::host::{Program, ProgramsRequest, StatsRequest};
use ringlab_proto::nic;
use ringlab_proto::nic::nic_client::NicClient;
use ringlab_proto::nic::port_config::{Device, Wire};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a program of `run:` may take until it is ready.
const READY: Duration = Duration::from_secs(30);

/// How long links may take to come up before the deployment goes on without them.
const SETTLE: Duration = Duration::from_secs(3);

/// Who makes nodes.
#[derive(Debug, Clone)]
pub struct Maker {
    /// The lab.
    pub lab: Arc<Lab>,
    /// Where nicd and hostd are.
    pub programs: PathBuf,
}

impl Maker {
    /// Brings a node to what `plan` says. `nic` and `host` are what is to be done with its parts; those to be
    /// restarted have ended. Says what will take effect later only.
    pub async fn node(&self, node: &NodePlan, plan: &Plan, nic: Part, host: Part, cancel: &Cancel) -> Result<Option<String>, Failure> {
        if let Some(linux) = node.linux.as_ref().filter(|_| host == Part::Restart) {
            self.namespace(linux, node).await?;
        }
        let nicd = async {
            match (&node.nic, nic) {
                (Some((socket, config)), Part::Restart) => {
                    let daemon = self.daemon(node, Role::Nicd, socket).await?;
                    cancel.or(daemon.wait_ready()).await?;
                    cancel.or(daemon.configure_nic(config.clone())).await
                }
                (Some((_, config)), Part::InPlace) => self.running(node, Role::Nicd)?.configure_nic(config.clone()).await,
                _ => Ok(()),
            }
        };
        let hostd = async {
            match (&node.host, host) {
                (Some((socket, _)), Part::Restart) => {
                    let daemon = self.daemon(node, Role::Hostd, socket).await?;
                    cancel.or(daemon.wait_ready()).await
                }
                _ => Ok(()),
            }
        };
        // Both, so that neither is left in the middle when the other fails.
        let (nicd, hostd) = tokio::join!(nicd, hostd);
        nicd.and(hostd)?;
        if nic == Part::Restart {
            self.bridges(node, plan).await?;
        }
        let later = self.host(node, host, cancel).await?;
        if let Some(linux) = &node.linux {
            if host != Part::Keep {
                self.write_hosts(&node.name, linux)?;
            }
            if host == Part::Restart {
                Netns::open(&linux.netns)
                    .await
                    .map_err(Failure::deploy)?
                    .configure(&node.interfaces, linux)
                    .await
                    .map_err(Failure::deploy)?;
                netns::set_sysctls(&linux.netns, linux.sysctls.clone()).await.map_err(Failure::deploy)?;
            }
        }
        if let Some(state) = self.lab.state().nodes.get_mut(&node.name) {
            (state.restarting, state.failed) = (false, false);
        }
        Ok(later)
    }

    /// Configures an emulated host whose daemon answers and whose NIC is there.
    async fn host(&self, node: &NodePlan, part: Part, cancel: &Cancel) -> Result<Option<String>, Failure> {
        let Some((_, config)) = &node.host else { return Ok(None) };
        match part {
            Part::Keep => Ok(None),
            Part::Restart => {
                let hostd = self.running(node, Role::Hostd)?;
                cancel.or(self.with_nic(node, hostd.configure_host(config.clone()))).await.map(|()| None)
            }
            Part::InPlace => {
                let now = cancel.or(self.running(node, Role::Hostd)?.reconfigure_host(config.clone())).await?;
                Ok((!now).then(|| format!("  node {}: the new names when it restarts", node.name)))
            }
        }
    }

    /// What a host does that waits for its NIC: in vain, once that has ended.
    async fn with_nic(&self, node: &NodePlan, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        if node.nic.is_none() {
            return work.await;
        }
        let nicd = self.running(node, Role::Nicd)?;
        tokio::select! {
            biased;
            done = work => done,
            () = nicd.process.wait_end() => Err(nicd.failed("ended")),
        }
    }

    /// The node's daemon.
    pub fn running(&self, node: &NodePlan, role: Role) -> Result<Daemon, Failure> {
        let mut state = self.lab.state();
        let daemon = state.nodes.get_mut(&node.name).and_then(|node| node.daemon(role).clone());
        daemon.ok_or_else(|| Failure::Deploy(format!("{} of {} is not running", role.program(), node.name)))
    }

    /// Starts a daemon of a node and has it watched.
    async fn daemon(&self, node: &NodePlan, role: Role, socket: &Path) -> Result<Daemon, Failure> {
        let program = role.program();
        let key = role.key(&node.name);
        let log = self.lab.run_dir.join(format!("{program}-{}.log", node.name));
        self.lab.journal([Record::Announce { key: key.clone(), log: Some(log.clone()) }])?;
        // A killed daemon leaves its socket.
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new(self.programs.join(program));
        command.arg("--run-dir").arg(&self.lab.run_dir).arg("--node").arg(&node.name).arg("--grpc").arg(socket);
        command.current_dir("/").process_group(0);
        let child = launch(Launch { command, log: log.clone(), cpu: Some(node.cpu) }).await;
        let child = child.map_err(|error| Failure::Deploy(format!("{}: {error}", self.programs.join(program).display())))?;
        let process = Process::of_child(child).map_err(Failure::deploy)?;
        self.lab.journal([Record::Process { key, pid: process.pid(), start_time: process.start_time() }])?;
        let daemon = Daemon { process, socket: socket.to_path_buf(), log };
        *self.lab.state().nodes.entry(node.name.clone()).or_default().daemon(role) = Some(daemon.clone());
        supervise::watch(self.clone(), node.name.clone(), role, daemon.clone());
        Ok(daemon)
    }

    /// Makes, or finds, the namespace of a Linux node.
    async fn namespace(&self, linux: &LinuxPlan, node: &NodePlan) -> Result<(), Failure> {
        if linux.owned {
            if self.lab.owned().netns.contains(&linux.netns) {
                return Ok(());
            }
            self.lab.journal([Record::Netns { path: linux.netns.clone() }])?;
            return netns::make(&linux.netns).await.map_err(Failure::deploy);
        }
        let taps = node.interfaces.iter().map(|interface| Record::Tap { netns: linux.netns.clone(), name: interface.name.clone() });
        let owned = self.lab.owned();
        let new = taps.filter(|tap| !matches!(tap, Record::Tap { netns, name } if owned.taps.contains(&(netns.clone(), name.clone()))));
        let new = new.collect::<Vec<_>>();
        if !new.is_empty() {
            let there = Netns::open(&linux.netns).await.map_err(|error| Failure::Machine(error.to_string()))?;
            for record in &new {
                // An interface that is not the lab's must not become what destroy removes.
                if let Record::Tap { name, .. } = record
                    && there.index(name).await.is_some()
                {
                    return Err(Failure::Machine(format!("{} has an interface {name} already", linux.netns.display())));
                }
            }
        }
        self.lab.journal(new)
    }

    /// Puts the node's TAPs on `medium: tap` links into their bridges.
    async fn bridges(&self, node: &NodePlan, plan: &Plan) -> Result<(), Failure> {
        let Some((_, config)) = &node.nic else { return Ok(()) };
        for port in config.ports.iter().filter(|port| matches!(port.wire, Some(Wire::TapWire(_)))) {
            let at = (node.name.clone(), port.name.clone());
            let link = plan.links.iter().find(|link| link.ends.contains(&at)).expect("every port is a link's end");
            let net = Netns::open(&netns::infra(&self.lab.run_dir)).await.map_err(Failure::deploy)?;
            net.join_bridge(link, usize::from(link.ends[1] == at)).await.map_err(Failure::deploy)?;
        }
        Ok(())
    }

    /// Gives a restarted nicd's TAPs back what went with them.
    pub async fn after_nic_restart(&self, node: &NodePlan, plan: &Plan) -> Result<(), Failure> {
        self.bridges(node, plan).await?;
        let has_taps = node.nic.iter().any(|(_, config)| config.ports.iter().any(|port| matches!(port.device, Some(Device::Tap(_)))));
        if let Some(linux) = node.linux.as_ref().filter(|_| has_taps) {
            Netns::open(&linux.netns).await.map_err(Failure::deploy)?.configure(&node.interfaces, linux).await.map_err(Failure::deploy)?;
        }
        Ok(())
    }

    fn write_hosts(&self, node: &str, linux: &LinuxPlan) -> Result<(), Failure> {
        let path = hosts_path(&self.lab.run_dir, node);
        let mut text = String::from("127.0.0.1 localhost\n");
        linux.hosts.iter().for_each(|host| text.push_str(&format!("{} {}\n", host.ipv4, host.name)));
        // In place: programs that run have this very file mounted.
        std::fs::write(&path, text).map_err(|error| Failure::Machine(format!("{}: {error}", path.display())))
    }

    /// Waits until a node's links have carrier and its host drives its NICs. Says which do not in time: that is no failure.
    pub async fn settled(&self, node: &NodePlan, cancel: &Cancel) -> Result<Option<String>, Failure> {
        let deadline = Instant::now() + SETTLE;
        let mut pause = Duration::from_millis(1);
        loop {
            let waiting = cancel.or(self.without_carrier(node)).await?;
            if waiting.is_empty() {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Ok(Some(format!("  node {}: no carrier yet on {}", node.name, waiting.join(", "))));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Interfaces that should have carrier and have not.
    async fn without_carrier(&self, node: &NodePlan) -> Result<Vec<String>, Failure> {
        let mut waiting = Vec::new();
        if let Some((_, config)) = &node.nic {
            let daemon = self.running(node, Role::Nicd)?;
            let mut client = NicClient::new(channel(&daemon.socket)).max_decoding_message_size(64 << 20);
            let stats = daemon.answer(client.stats(nic::StatsRequest {})).await?.into_inner();
            let up = |name: &str| stats.ports.iter().any(|port| port.name == name && port.link_up);
            let wanted = config.ports.iter().filter(|port| !port.link_down && !up(&port.name));
            waiting.extend(wanted.map(|port| port.name.clone()));
        }
        if node.host.is_some() && waiting.is_empty() {
            let daemon = self.running(node, Role::Hostd)?;
            let mut client = HostClient::new(channel(&daemon.socket)).max_decoding_message_size(64 << 20);
            let stats = daemon.answer(client.stats(StatsRequest {})).await?.into_inner();
            let down = |name: &str| node.nic.iter().flat_map(|(_, config)| &config.ports).any(|port| port.link_down && port.name == name);
            let wanted = stats.interfaces.into_iter().filter(|interface| !interface.carrier && !down(&interface.name));
            waiting.extend(wanted.map(|interface| interface.name));
        }
        Ok(waiting)
    }

    /// Waits until the programs of `run:` on a node are ready; on a Linux node, starts them.
    pub async fn programs(&self, node: &NodePlan, cancel: &Cancel) -> Result<(), Failure> {
        if let Some(linux) = &node.linux {
            for (position, program) in linux.run.iter().enumerate() {
                self.linux_program(node, linux, position, program, cancel).await?;
            }
        }
        match &node.host {
            Some((_, config)) if !config.run.is_empty() => cancel.or(self.host_programs(node)).await,
            _ => Ok(()),
        }
    }

    async fn host_programs(&self, node: &NodePlan) -> Result<(), Failure> {
        let daemon = self.running(node, Role::Hostd)?;
        let mut client = HostClient::new(channel(&daemon.socket));
        let deadline = Instant::now() + READY;
        let mut pause = Duration::from_millis(1);
        loop {
            let programs = daemon.answer(client.programs(ProgramsRequest {})).await?.into_inner().programs;
            if let Some(broken) = programs.iter().find(|program| !program.error.is_empty()) {
                return Err(daemon.failed(&format!("program {} on {}: {}", broken.name, node.name, broken.error)));
            }
            let Some(waiting) = programs.iter().find(|program| !program.ready) else { return Ok(()) };
            if Instant::now() > deadline {
                let text =
                    format!("program {} on {} is not ready after {} s ({})", waiting.name, node.name, READY.as_secs(), waiting.state);
                return Err(daemon.failed(&text));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn linux_program(
        &self,
        node: &NodePlan,
        linux: &LinuxPlan,
        position: usize,
        program: &Program,
        cancel: &Cancel,
    ) -> Result<(), Failure> {
        let start = program.program.clone().unwrap_or_default();
        let [name, arguments @ ..] = &start.argv[..] else {
            return Err(Failure::Usage(format!("node {}: a Linux node runs real programs, not built-in ones", node.name)));
        };
        let key = format!("program {} {position}", node.name);
        let log = self.lab.run_dir.join(format!("program-{}-{position}.log", node.name));
        self.lab.journal([Record::Announce { key: key.clone(), log: Some(log.clone()) }])?;
        let mut command = Command::new(name);
        let dir = if linux.files.workdir.is_empty() { &start.cwd } else { &linux.files.workdir };
        command.args(arguments).envs(&linux.files.env).envs(&start.set_env).current_dir(dir).process_group(0).stdin(Stdio::null());
        let (hosts, log_path, cpu) = (hosts_path(&self.lab.run_dir, &node.name), log.clone(), node.cpu);
        let spawned = netns::inside_as_host(&linux.netns, hosts, move || {
            let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log_path)?;
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu as usize);
            rustix::thread::sched_setaffinity(None, &set)?;
            command.stdout(log.try_clone()?).stderr(log).spawn()
        });
        let child = spawned.await.map_err(|error| Failure::Deploy(format!("program {name} on {}: {error}", node.name)))?;
        let process = Process::of_child(child).map_err(Failure::deploy)?;
        self.lab.journal([Record::Process { key: key.clone(), pid: process.pid(), start_time: process.start_time() }])?;
        self.lab.state().nodes.entry(node.name.clone()).or_default().programs.insert(position, process.clone());
        supervise::watch_program(self.lab.clone(), node.name.clone(), position, key, process.clone());
        let Ok(port) = u16::try_from(program.ready_tcp) else { return Ok(()) };
        if port == 0 {
            return Ok(());
        }
        let failed = |what: String| {
            let tail = crate::agent::daemon::log_tail(&log, 5).join("\n    ");
            Failure::Deploy(format!("program {name} on {} {what}; the end of its log:\n    {tail}", node.name))
        };
        let ready = async {
            let deadline = Instant::now() + READY;
            while !netns::listens(&linux.netns, port).await.map_err(Failure::deploy)? {
                if process.has_ended() {
                    return Err(failed("ended before it was ready".into()));
                }
                if Instant::now() > deadline {
                    return Err(failed(format!("does not listen on port {port} after {} s", READY.as_secs())));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        cancel.or(ready).await
    }
}

/// `/etc/hosts` of a Linux node.
pub fn hosts_path(run_dir: &Path, node: &str) -> PathBuf {
    run_dir.join(format!("hosts-{node}"))
}
