//! Processes: started, watched by pidfd, known again by number and start time.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CpuSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a process may take to end by itself.
pub const GRACE: Duration = Duration::from_millis(400);

/// A process that was started here, or adopted.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    /// A child is reaped when it ends; an adopted process is init's.
    child: Mutex<Option<Child>>,
}

/// Longest wait for the end of a process that has been killed.
const DYING: Duration = Duration::from_secs(5);

impl Process {
    /// Takes charge of a child.
    pub fn of_child(child: Child) -> io::Result<Arc<Self>> {
        let pid = child.id();
        // A child that has ended but is not reaped keeps its number: this cannot meet another process.
        let pidfd = open(pid)?;
        let start_time = start_time(pid).unwrap_or(0);
        Ok(Arc::new(Self { pid, start_time, pidfd: watch(pidfd)?, child: Mutex::new(Some(child)) }))
    }

    /// Finds the process again that had this number and start time. `None`: it has ended, which is waited for if it has only been killed.
    pub async fn adopt(pid: u32, start_time_then: u64) -> io::Result<Option<Arc<Self>>> {
        let pidfd = match open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::SRCH | Errno::INVAL)) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Read after the pidfd is open: if it matches, the pidfd is of this process.
        if start_time(pid) != Some(start_time_then) {
            return Ok(None);
        }
        let process = Arc::new(Self { pid, start_time: start_time_then, pidfd: watch(pidfd)?, child: Mutex::new(None) });
        if !process.is_going() {
            return Ok(Some(process));
        }
        // What it holds is free when it has ended, not before.
        if tokio::time::timeout(DYING, process.wait_end()).await.is_err() {
            tracing::warn!(pid, "a killed process does not end; it hangs in the kernel");
        }
        Ok(None)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Start time, as `/proc` has it: clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits for its end. The status is known of children only, and to the first who asks.
    pub async fn ended(&self) -> Option<ExitStatus> {
        self.wait_end().await;
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        child.wait().ok()
    }

    /// Waits for its end, and leaves the status to who asks [`Self::ended`].
    pub async fn wait_end(&self) {
        if let Err(error) = self.pidfd.ready(Interest::READABLE).await {
            tracing::warn!(pid = self.pid, %error, "the process's end cannot be watched");
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(self.pidfd.get_ref(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Whether it has ended, or is about to: nothing keeps a process that has been killed.
    pub fn is_going(&self) -> bool {
        // In this order: as long as it has not ended, its number was of no other process.
        is_dying(self.pid) || self.has_ended()
    }

    /// Sends a signal, to it alone.
    pub fn signal(&self, signal: Signal) {
        // It may have ended meanwhile: that is no error.
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Sends a signal to it and to its process group, if it leads one.
    pub fn signal_group(&self, signal: Signal) {
        // As long as it is not reaped, no other group has its number.
        let held = !self.has_ended() || self.child.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if let (true, Some(pid)) = (held, Pid::from_raw(self.pid.cast_signed())) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
        self.signal(signal);
    }
}

/// Ends processes: asks all, waits, then kills those that are left. `group` reaches their children.
pub async fn end_all(processes: &[Arc<Process>], group: bool) {
    let send = |signal| {
        for process in processes.iter().filter(|process| !process.has_ended()) {
            if group { process.signal_group(signal) } else { process.signal(signal) }
        }
    };
    let all_ended = async || {
        for process in processes {
            process.wait_end().await;
        }
    };
    send(Signal::TERM);
    if tokio::time::timeout(GRACE, all_ended()).await.is_err() {
        send(Signal::KILL);
        if tokio::time::timeout(DYING, all_ended()).await.is_err() {
            tracing::warn!("a killed process does not end; it hangs in the kernel");
        }
    }
}

/// What to start.
#[derive(Debug)]
pub struct Launch {
    /// Program and arguments.
    pub command: Command,
    /// Where standard output and error go; appended to.
    pub log: PathBuf,
    /// CPU to stay on.
    pub cpu: Option<u32>,
}

/// Starts a process. Its standard output is the log file, which identifies it.
pub async fn launch(launch: Launch) -> io::Result<Child> {
    let Launch { mut command, log, cpu } = launch;
    on_thread(move || {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(cpu) = cpu {
            let mut set = CpuSet::new();
            set.set(cpu as usize);
            rustix::thread::sched_setaffinity(None, &set)?;
        }
        command.spawn()
    })
    .await
}

/// Runs `f` on a thread of its own: whatever it changes of the thread (namespace, CPUs) its children inherit, and nobody else.
pub async fn on_thread<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("launch".into()).spawn(move || sender.send(f()))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the launching thread panicked")))
}

/// Processes whose standard output is `log`: at most the one that was announced with it, and what it forked.
pub fn with_stdout(log: &Path) -> Vec<(u32, u64)> {
    let Ok(wanted) = std::fs::metadata(log) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let same = std::fs::metadata(entry.path().join("fd/1")).is_ok_and(|file| file.dev() == wanted.dev() && file.ino() == wanted.ino());
        if let (true, Some(start)) = (same, start_time(pid)) {
            found.push((pid, start));
        }
    }
    found
}

/// Processes in one of these network namespaces, which must be mounts of namespaces other than our own.
pub fn inside_namespaces(mounts: &[PathBuf]) -> Vec<(u32, u64)> {
    let identity = |path: &Path| std::fs::metadata(path).map(|namespace| (namespace.dev(), namespace.ino())).ok();
    let own = identity(Path::new("/proc/self/ns/net"));
    // A mount point that lost its mount is a file of another file system: no process is "in" it.
    let wanted = mounts.iter().filter_map(|mount| identity(mount)).filter(|mount| own.is_some_and(|own| own != *mount)).collect::<Vec<_>>();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let there = identity(&entry.path().join("ns/net")).is_some_and(|namespace| wanted.contains(&namespace));
        if let (true, Some(start)) = (there, start_time(pid)) {
            found.push((pid, start));
        }
    }
    found
}

/// What a process's end says: "exit status 1", "signal 9".
pub fn describe(status: Option<ExitStatus>) -> String {
    match status {
        None => "ended".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
    }
}

/// The kernel's identity of this boot.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// CPUs that this process may use, in order.
pub fn usable_cpus() -> Vec<u32> {
    let set = rustix::thread::sched_getaffinity(None);
    let cpus = set.map(|set| (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect::<Vec<_>>());
    cpus.ok().filter(|cpus| !cpus.is_empty()).unwrap_or_else(|| vec![0])
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

#[expect(deprecated, reason = "a type may change its descriptor behind tokio's back; an `OwnedFd` keeps its one until it is dropped")]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// A field of a `stat` file, counted from 1. The second, the name, may hold anything, in parentheses.
fn stat_field<T: FromStr>(stat: &str, number: usize) -> Option<T> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

fn start_time(pid: u32) -> Option<u64> {
    stat_field(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 22)
}

/// Whether every thread of a process has been killed or ends: one alone may do so in a process that lives on.
fn is_dying(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| match ends(&thread.path()) {
        Ok(ends) => ends,
        // It has ended meanwhile; what else may go wrong says nothing of it.
        Err(error) => matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)),
    })
}

/// Whether a thread has been killed or ends.
fn ends(thread: &Path) -> io::Result<bool> {
    // In this order: it takes the signal, then says that it ends.
    let status = std::fs::read_to_string(thread.join("status"))?;
    let flags = stat_field::<u64>(&std::fs::read_to_string(thread.join("stat"))?, 9).unwrap_or(0);
    let pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    let mut sets = pending.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok());
    Ok(sets.any(|set| set & 1 << (Signal::KILL.as_raw() - 1) != 0) || flags & (PF_EXITING | PF_SIGNALED) != 0)
}

/// Field 9 of `stat`: it ends.
const PF_EXITING: u64 = 0x4;
/// Field 9 of `stat`: a signal ends it.
const PF_SIGNALED: u64 = 0x400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::io::{BufRead, BufReader, Write};

    async fn sleeper(scratch: &Scratch) -> Child {
        let mut command = Command::new("sleep");
        command.arg("60");
        launch(Launch { command, log: scratch.path().join("log"), cpu: Some(usable_cpus()[0]) }).await.unwrap()
    }

    #[tokio::test]
    async fn process_is_known_again_by_number_and_start_time_only() {
        let scratch = Scratch::new("process");
        let process = Process::of_child(sleeper(&scratch).await).unwrap();
        let again = Process::adopt(process.pid(), process.start_time()).await.unwrap().expect("alive");
        assert!(Process::adopt(process.pid(), process.start_time() + 1).await.unwrap().is_none());
        process.signal(Signal::KILL);
        assert_eq!(describe(process.ended().await), "signal 9");
        again.ended().await;
        assert!(again.has_ended());
        assert!(Process::adopt(again.pid(), again.start_time()).await.unwrap().is_none());
    }

    /// Forks, says the child's number, kills it when it is told to, and holds it in its end: a tracer may, with its memory and files,
    /// for as long as it likes.
    const TRACER: &str = "
import ctypes, os, signal, sys
SEIZE, TRACE_EXIT, EVENT_EXIT = 0x4206, 0x40, 6
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
child = os.fork()
while child == 0: signal.pause()
assert ptrace(SEIZE, child, None, TRACE_EXIT) == 0
print(child, flush=True)
sys.stdin.readline()
os.kill(child, signal.SIGKILL)
assert os.waitpid(child, 0)[1] >> 8 == signal.SIGTRAP | EVENT_EXIT << 8
print('held', flush=True)
sys.stdin.readline()
";

    #[tokio::test]
    async fn killed_process_that_still_ends_is_waited_for_and_not_adopted() {
        let mut tracer = Command::new("python3");
        let mut tracer = tracer.args(["-c", TRACER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(tracer.stdout.take().unwrap()).lines();
        let mut tells = tracer.stdin.take().unwrap();
        let pid = lines.next().unwrap().unwrap().parse().unwrap();
        let start = start_time(pid).unwrap();
        let lives = Process::adopt(pid, start).await.unwrap().expect("alive");
        assert!(!lives.is_going());
        tells.write_all(b"kill it\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "held");
        assert!(lives.is_going() && !lives.has_ended());
        let mut adopting = std::pin::pin!(Process::adopt(pid, start));
        let at_once = tokio::time::timeout(Duration::ZERO, &mut adopting).await;
        assert!(at_once.is_err(), "it has not ended: {at_once:?}");
        drop(tells);
        tracer.wait().unwrap();
        assert!(adopting.await.unwrap().is_none());
        assert!(lives.has_ended());
    }

    #[tokio::test]
    async fn process_whose_first_thread_has_ended_lives_on() {
        let scratch = Scratch::new("process-thread");
        let mut command = Command::new("python3");
        let script =
            "import ctypes, threading, time\nthreading.Thread(target=lambda: time.sleep(60)).start()\nctypes.CDLL(None).pthread_exit(None)";
        command.args(["-c", script]);
        let child = launch(Launch { command, log: scratch.path().join("log"), cpu: None }).await.unwrap();
        let process = Process::of_child(child).unwrap();
        let stat = format!("/proc/{}/stat", process.pid());
        while stat_field::<String>(&std::fs::read_to_string(&stat).unwrap(), 3).unwrap() != "Z" {
            tokio::task::yield_now().await;
        }
        assert!(Process::adopt(process.pid(), process.start_time()).await.unwrap().is_some());
        end_all(&[process], false).await;
    }

    #[tokio::test]
    async fn announced_process_is_found_by_its_log() {
        let scratch = Scratch::new("process-log");
        let process = Process::of_child(sleeper(&scratch).await).unwrap();
        assert_eq!(with_stdout(&scratch.path().join("log")), [(process.pid(), process.start_time())]);
        end_all(&[process], false).await;
        assert!(with_stdout(&scratch.path().join("log")).is_empty());
    }

    #[tokio::test]
    async fn process_that_ignores_the_request_is_killed() {
        let scratch = Scratch::new("process-kill");
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo ready; while :; do sleep 60; done"]);
        let log = scratch.path().join("log");
        let process = Process::of_child(launch(Launch { command, log: log.clone(), cpu: None }).await.unwrap()).unwrap();
        while std::fs::read_to_string(&log).unwrap() != "ready\n" {
            tokio::task::yield_now().await;
        }
        let children = with_stdout(&log);
        end_all(std::slice::from_ref(&process), false).await;
        assert!(process.has_ended());
        for (pid, start) in children {
            if let Some(child) = Process::adopt(pid, start).await.unwrap() {
                child.signal(Signal::KILL);
            }
        }
    }
}
