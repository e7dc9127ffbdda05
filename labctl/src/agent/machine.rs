//! What a machine must have, and the command that mends what it lacks.

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
        let there = daemon(programs, program).map(|path| path.display().to_string());
        let mend = format!("put {program} beside labctl: cargo build --release --workspace --bins");
        findings.push(finding(program, there, Verdict::Missing, EVERYTHING, &mend));
    }
    findings.push(finding("tun", tun(), Verdict::Limited, REAL_LINUX, TUN_MEND));
    let namespaces = netns::may_make().await.map(|()| "network namespaces can be made".to_owned());
    findings.push(finding("privilege", namespaces, Verdict::Limited, REAL_LINUX, PRIVILEGE_MEND));
    findings.push(finding("files", own_files(programs, "files").await, Verdict::Limited, OWN_FILES, &own_files_mend()));
    findings.push(finding("user", own_files(programs, "user").await, Verdict::Limited, OWN_USER, &own_files_mend()));
    findings.push(cpus());
    findings.push(memory());
    findings
}

const TUN_MEND: &str =
    "modprobe tun; mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun   (Docker: --device /dev/net/tun)";
const PRIVILEGE_MEND: &str = "run labctl as root (sudo labctl …)   (Docker: --cap-add NET_ADMIN --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined)";

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

fn tun() -> io::Result<String> {
    let path = "/dev/net/tun";
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    Ok(format!("{path} can be opened"))
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

/// As far as the sysctls exist: what forbids user namespaces is one of them, or a container's profile.
fn own_files_mend() -> String {
    let docker = "Docker: --cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined";
    if geteuid().is_root() {
        return format!("run labctl with all capabilities   ({docker})");
    }
    let read = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let sysctls = [
        ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", 0, 15000),
        ("/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", 0, 1),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns", 1, 0),
    ];
    let wrong = sysctls.iter().filter(|(path, _, bad, _)| read(path) == Some(*bad));
    let wrong = wrong.map(|(_, name, _, good)| format!("sysctl -w {name}={good}")).collect::<Vec<_>>();
    if wrong.is_empty() { format!("run labctl as root (sudo labctl …)   ({docker})") } else { wrong.join("; ") }
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

fn daemon(programs: &Path, name: &str) -> io::Result<PathBuf> {
    let path = programs.join(name);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err(io::Error::other(format!("{} is not a file", path.display()))),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// What the machine lacks for `plan`. Nothing has been made yet.
pub async fn lacks(plan: &Plan, run_dir: &Path, programs: &Path) -> Option<String> {
    let lacking =
        |what: String, mend: &str| Some(format!("{what}\n  mend it with: {mend}\n  `labctl doctor` shows all that this machine lacks"));
    for name in ["nicd", "hostd"] {
        if let Err(error) = daemon(programs, name) {
            return lacking(error.to_string(), "cargo build --release --workspace --bins");
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
    if let Some(lack) = lacks_own_files(plan, programs).await {
        return lacking(lack, &own_files_mend());
    }
    let namespaces = plan.nodes.iter().filter_map(|node| node.linux.as_ref()).collect::<Vec<&LinuxPlan>>();
    if namespaces.is_empty() && plan.links.iter().all(|link| link.medium == Medium::Cable) {
        return None;
    }
    if let Err(error) = netns::may_make().await {
        return lacking(format!("{REAL_LINUX} need the privilege to make and enter namespaces: {error}"), PRIVILEGE_MEND);
    }
    if let Err(error) = tun() {
        return lacking(format!("{REAL_LINUX} need TAP devices: {error}"), TUN_MEND);
    }
    let missing = namespaces.iter().filter(|linux| !linux.owned).find(|linux| !linux.netns.exists())?;
    lacking(format!("there is no network namespace {}", missing.netns.display()), "ip netns add NAME")
}

/// What programs with a root, binds or a user of their own cannot have here.
async fn lacks_own_files(plan: &Plan, programs: &Path) -> Option<String> {
    let files = || plan.nodes.iter().filter_map(|node| Some((&node.name, node.host.as_ref()?.1.files.as_ref()?)));
    if let Some((name, _)) = files().find(|(_, files)| !files.root.is_empty() || !files.binds.is_empty())
        && let Err(error) = own_files(programs, "files").await
    {
        return Some(format!("node {name} has a `root` or `binds`, and this machine refuses namespaces and mounts: {error}"));
    }
    let (name, files) = files().find(|(_, files)| !files.user.is_empty() && !is_own_user(files))?;
    let error = own_files(programs, "user").await.err()?;
    Some(format!("node {name} has the user {}, and this machine refuses another user: {error}", files.user))
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
