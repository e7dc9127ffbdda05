//! The command that mends what a machine lacks: what helps depends on who asks, and on what exactly was refused.

use rustix::io::Errno;
use std::io;
use std::path::Path;

/// Whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asks {
    /// Root, perhaps without its capabilities.
    pub root: bool,
    /// Under a seccomp filter, as in a container.
    pub filtered: bool,
}

impl Asks {
    /// This process.
    pub fn here() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let filtered = status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
        Self { root: rustix::process::geteuid().is_root(), filtered }
    }

    /// What only root may do.
    fn as_root(self, what: &str) -> String {
        if self.root { what.to_owned() } else { format!("as root: {what}") }
    }

    /// When `/dev/net/tun` cannot be opened.
    pub fn tun(self, error: &io::Error) -> String {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NODEV | Errno::NXIO) => self.as_root("modprobe tun   (in a container: on the machine itself)"),
            // The file may be made in a container; who may open it the container's device rules say.
            Some(Errno::PERM) => "give the container the device   (Docker: --device /dev/net/tun)".to_owned(),
            Some(Errno::ACCESS) if !self.root => "as root: chmod 666 /dev/net/tun; or run labctl as root (sudo labctl …)".to_owned(),
            Some(Errno::ACCESS) => "mount -o remount,dev /dev   (Docker: --device /dev/net/tun)".to_owned(),
            _ => self.as_root(
                "modprobe tun; mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun   (Docker: --device /dev/net/tun)",
            ),
        }
    }

    /// When network namespaces cannot be made, entered or configured.
    pub fn namespaces(self) -> String {
        let who = if self.root { "run labctl with all capabilities" } else { "run labctl as root (sudo labctl …)" };
        format!(
            "{who}   (Docker: --cap-add NET_ADMIN --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
        )
    }

    /// When programs cannot have a root, binds (`user`: a user) of their own; `sysctls` forbid it.
    pub fn own_files(self, user: bool, sysctls: &[String]) -> String {
        const OPEN: &str = "--security-opt seccomp=unconfined --security-opt apparmor=unconfined";
        match (self.root, user) {
            (true, true) => return "run labctl with all capabilities   (Docker: --cap-add SYS_PTRACE)".to_owned(),
            (true, false) => {
                return format!("run labctl with all capabilities   (Docker: --cap-add SYS_ADMIN --cap-add SYS_PTRACE {OPEN})");
            }
            (false, _) => {}
        }
        let mut cures = Vec::new();
        if !sysctls.is_empty() {
            cures.push(self.as_root(&sysctls.join("; ")));
        }
        // What a filter refuses to one user it refuses to root, too.
        if self.filtered {
            cures.push(format!("run labctl without a seccomp filter   (Docker: {OPEN})"));
        }
        if cures.is_empty() { format!("run labctl as root (sudo labctl …)   (Docker: {OPEN})") } else { cures.join("; and ") }
    }
}

/// Settings that forbid an ordinary user to make user namespaces, as far as this kernel has them: the commands that change them.
pub fn forbidding_sysctls() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let sysctls = [
        ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", 0, 15000),
        ("/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", 0, 1),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "kernel.apparmor_restrict_unprivileged_userns", 1, 0),
    ];
    let wrong = sysctls.iter().filter(|(path, _, bad, _)| read(path) == Some(*bad));
    wrong.map(|(_, name, _, good)| format!("sysctl -w {name}={good}")).collect()
}

/// When a daemon is not there, or cannot be started.
pub fn daemon(path: &Path, error: &io::Error) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("chmod a+x {}, on a file system that is not mounted noexec", path.display()),
        _ => format!("put {name} beside labctl: cargo build --release --workspace --bins"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Asks = Asks { root: true, filtered: false };
    const USER: Asks = Asks { root: false, filtered: false };
    const BOXED: Asks = Asks { root: false, filtered: true };

    #[test]
    fn device_is_mended_as_it_is_broken() {
        let tun = |asks: Asks, errno: Errno| asks.tun(&errno.into());
        assert!(tun(ROOT, Errno::NOENT).starts_with("modprobe tun; mkdir -p /dev/net && mknod"));
        assert!(tun(USER, Errno::NOENT).starts_with("as root: modprobe tun; mkdir"));
        assert_eq!(tun(ROOT, Errno::NODEV), "modprobe tun   (in a container: on the machine itself)");
        // It is there: making it again would fail, and what follows would not be done.
        for errno in [Errno::ACCESS, Errno::PERM, Errno::NODEV] {
            assert!(!tun(USER, errno).contains("mknod") && !tun(ROOT, errno).contains("mknod"), "{errno}");
        }
        assert!(tun(USER, Errno::ACCESS).contains("chmod 666"));
        assert!(tun(ROOT, Errno::PERM).contains("--device /dev/net/tun"));
    }

    #[test]
    fn root_is_not_told_to_become_root() {
        for cure in [ROOT.namespaces(), ROOT.own_files(false, &[]), ROOT.own_files(true, &[])] {
            assert!(!cure.contains("sudo") && cure.contains("all capabilities"), "{cure}");
        }
        assert!(USER.namespaces().contains("sudo labctl"));
    }

    #[test]
    fn user_is_told_what_forbids_namespaces() {
        let sysctl = ["sysctl -w user.max_user_namespaces=15000".to_owned()];
        assert_eq!(USER.own_files(false, &sysctl), "as root: sysctl -w user.max_user_namespaces=15000");
        assert!(USER.own_files(false, &[]).contains("sudo labctl"));
        // Root is refused by a filter as others are.
        assert!(!BOXED.own_files(true, &[]).contains("sudo") && BOXED.own_files(true, &[]).contains("seccomp=unconfined"));
        let both = BOXED.own_files(false, &sysctl);
        assert!(both.contains("sysctl") && both.contains("seccomp=unconfined"), "{both}");
    }
}
