//! What a machine must have, and the command that mends what it lacks.

use crate::agent::cure::{self, Asks, forbidding_sysctls};
use crate::agent::netns;
use crate::agent::plan::{LinuxPlan, Plan};
use crate::agent::process::usable_cpus;
use crate::paths::SOCKET_PATH_MAX;
use ringlab_proto::account::UserSpec;
use ringlab_proto::host::Files;
use ringlab_proto::topology::{Medium, read_in};
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, getegid, geteuid, getpid, pidfd_open};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

/// How a requirement is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Ok,
    /// Some labs cannot run.
    Limited,
    /// No lab can run.
    Missing,
}

/// One finding of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `tun`.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What it is needed for, if it is not there.
    pub needed_for: &'static str,
    /// What mends it; empty if nothing is broken.
    pub mend: String,
}

const REAL_LINUX: &str = "nodes of kind linux and links with medium: tap";
const EVERYTHING: &str = "every lab";

/// Looks at everything.
pub async fn examine(programs: &Path) -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.push(finding(
        "memfd",
        memfd(),
        Verdict::Missing,
        EVERYTHING,
        "run Linux 4.14 or newer, with a seccomp profile that allows memfd_create",
    ));
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).map(|_| "pidfd_open works".to_owned()).map_err(io::Error::from);
    findings.push(finding(
        "pidfd",
        pidfd,
        Verdict::Missing,
        EVERYTHING,
        "run Linux 5.3 or newer, with a seccomp profile that allows pidfd_open",
    ));
    for program in ["nicd", "hostd"] {
        let there = daemon(programs, program);
        let mend = there.as_ref().err().map(|error| cure::daemon(&programs.join(program), error)).unwrap_or_default();
        let there = there.map(|path| path.display().to_string()).map_err(|error| in_words(&programs.join(program), &error));
        findings.push(finding(program, there, Verdict::Missing, EVERYTHING, &mend));
    }
    let asks = Asks::here();
    let device = tun();
    let mend = device.as_ref().err().map(|error| asks.tun(error)).unwrap_or_default();
    let device = device.map(|()| format!("{TUN} can be opened")).map_err(|error| in_words(Path::new(TUN), &error));
    findings.push(finding("tun", device, Verdict::Limited, REAL_LINUX, &mend));
    let namespaces = netns::may_make().await.map(|()| "network namespaces can be made".to_owned());
    findings.push(finding("privilege", namespaces, Verdict::Limited, REAL_LINUX, &asks.namespaces()));
    let sysctls = forbidding_sysctls();
    findings.push(finding("files", own_files(programs, "files").await, Verdict::Limited, OWN_FILES, &asks.own_files(false, &sysctls)));
    findings.push(finding("user", own_files(programs, "user").await, Verdict::Limited, OWN_USER, &asks.own_files(true, &sysctls)));
    findings.push(cpus());
    findings.push(memory());
    findings
}

fn finding(what: &'static str, result: io::Result<String>, bad: Verdict, needed_for: &'static str, mend: &str) -> Finding {
    match result {
        Ok(found) => Finding { what, verdict: Verdict::Ok, found, needed_for, mend: String::new() },
        Err(error) => Finding { what, verdict: bad, found: error.to_string(), needed_for, mend: mend.to_owned() },
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let result = if version >= (5, 10) { Ok(release) } else { Err(io::Error::other(format!("{release}: older than 5.10"))) };
    finding("kernel", result, Verdict::Missing, EVERYTHING, "run Linux 5.10 or newer")
}

fn memfd() -> io::Result<String> {
    rustix::fs::memfd_create("ringlab-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    Ok("memfd_create works".to_owned())
}

const TUN: &str = "/dev/net/tun";

fn tun() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(TUN).map(drop)
}

/// What went wrong with a file.
fn in_words(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

const OWN_FILES: &str = "nodes with a `root` or `binds`";
const OWN_USER: &str = "nodes with a `user`, and exec --user";

/// Tries what hostd does for programs with a root, binds or a user of their own: namespaces and mounts, or a change of user.
async fn own_files(programs: &Path, what: &str) -> io::Result<String> {
    let output = tokio::process::Command::new(daemon(programs, "hostd")?).args(["guest-ns-probe", what]).output().await?;
    match output.status.success() {
        true => Ok(format!("programs may have {} of their own", if what == "user" { "a user" } else { "a root and binds" })),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stdout).trim().to_owned())),
    }
}

fn cpus() -> Finding {
    let cpus = usable_cpus();
    let found = format!("{} usable", cpus.len());
    let result = if cpus.len() > 1 { Ok(found) } else { Err(io::Error::other(found)) };
    finding(
        "cpus",
        result,
        Verdict::Limited,
        "labs of more than a few nodes at full speed",
        "give the machine or container a second CPU (Docker: --cpuset-cpus)",
    )
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let mib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024;
    let found = format!("{mib} MiB available");
    let result = if mib >= 512 { Ok(found) } else { Err(io::Error::other(found)) };
    finding(
        "memory",
        result,
        Verdict::Limited,
        "labs of more than about 50 hosts (8 MiB each)",
        "end other programs, or give the machine more memory",
    )
}

/// A daemon that can be started.
fn daemon(programs: &Path, name: &str) -> io::Result<PathBuf> {
    let path = programs.join(name);
    if !std::fs::metadata(&path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    rustix::fs::access(&path, rustix::fs::Access::EXEC_OK)?;
    Ok(path)
}

/// What the machine lacks for `plan`. Nothing has been made yet.
pub async fn lacks(plan: &Plan, run_dir: &Path, programs: &Path) -> Option<String> {
    let lacking =
        |what: String, mend: &str| Some(format!("{what}\n  mend it with: {mend}\n  `labctl doctor` shows all that this machine lacks"));
    for name in ["nicd", "hostd"] {
        if let Err(error) = daemon(programs, name) {
            let path = programs.join(name);
            return lacking(in_words(&path, &error).to_string(), &cure::daemon(&path, &error));
        }
    }
    if let Err(error) = memfd() {
        return lacking(format!("memfd_create: {error}"), "a seccomp profile that allows memfd_create");
    }
    let longest = plan.nodes.iter().flat_map(|node| [node.nic.as_ref().map(|(path, _)| path), node.host.as_ref().map(|(path, _)| path)]);
    let longest = longest.flatten().map(|path| path.as_os_str().len() + "b.vhost".len()).max().unwrap_or(0);
    if longest > SOCKET_PATH_MAX {
        return lacking(
            format!("the path {} is too long for sockets in it", run_dir.display()),
            "RINGLAB_DIR=/tmp/ringlab, or another short path",
        );
    }
    let asks = Asks::here();
    if let Some((lack, user)) = lacks_own_files(plan, programs).await {
        return lacking(lack, &asks.own_files(user, &forbidding_sysctls()));
    }
    let namespaces = plan.nodes.iter().filter_map(|node| node.linux.as_ref()).collect::<Vec<&LinuxPlan>>();
    if namespaces.is_empty() && plan.links.iter().all(|link| link.medium == Medium::Cable) {
        return None;
    }
    if let Err(error) = netns::may_make().await {
        return lacking(format!("{REAL_LINUX} need the privilege to make and enter namespaces: {error}"), &asks.namespaces());
    }
    if let Err(error) = tun() {
        return lacking(format!("{REAL_LINUX} need TAP devices: {TUN}: {error}"), &asks.tun(&error));
    }
    let missing = namespaces.iter().filter(|linux| !linux.owned).find(|linux| !linux.netns.exists())?;
    lacking(format!("there is no network namespace {}", missing.netns.display()), "ip netns add NAME")
}

/// What programs with a root, binds or (`true`) a user of their own cannot have here.
async fn lacks_own_files(plan: &Plan, programs: &Path) -> Option<(String, bool)> {
    let files = || plan.nodes.iter().filter_map(|node| Some((&node.name, node.host.as_ref()?.1.files.as_ref()?)));
    if let Some((name, _)) = files().find(|(_, files)| !files.root.is_empty() || !files.binds.is_empty())
        && let Err(error) = own_files(programs, "files").await
    {
        return Some((format!("node {name} has a `root` or `binds`, and this machine refuses namespaces and mounts: {error}"), false));
    }
    let (name, files) = files().find(|(_, files)| !files.user.is_empty() && !is_own_user(files))?;
    let error = own_files(programs, "user").await.err()?;
    Some((format!("node {name} has the user {}, and this machine refuses another user: {error}", files.user), true))
}

/// Whether the user is the one whose the agent is.
fn is_own_user(files: &Files) -> bool {
    let root = Path::new(if files.root.is_empty() { "/" } else { &files.root });
    let read = |path: &str| read_in(root, path).unwrap_or_default();
    let account = files.user.parse().and_then(|spec: UserSpec| spec.resolve(&read("/etc/passwd"), &read("/etc/group")));
    account.is_ok_and(|a| (a.uid, a.gid) == (geteuid().as_raw(), getegid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn missing_daemon_is_found_before_anything_is_made() {
        let scratch = crate::scratch::Scratch::new("machine");
        let lacks = lacks(&Plan::default(), Path::new("/run/x"), scratch.path()).await.unwrap();
        assert!(lacks.contains("nicd") && lacks.contains("mend it with"), "{lacks}");
    }

    #[tokio::test]
    async fn every_broken_thing_has_its_mending_command() {
        let scratch = crate::scratch::Scratch::new("machine-doctor");
        let findings = examine(scratch.path()).await;
        assert!(findings.iter().any(|finding| finding.what == "hostd" && finding.verdict == Verdict::Missing));
        assert!(findings.iter().all(|finding| (finding.verdict == Verdict::Ok) == finding.mend.is_empty()));
    }
}
