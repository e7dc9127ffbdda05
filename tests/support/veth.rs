//! Two real network namespaces joined by veth: the reference of every figure.

use crate::{stale, unique};
use std::process::{Command, Output, Stdio};

/// The pair; the namespaces go with it.
pub struct Veth {
    /// Names of the namespaces.
    pub ns: [String; 2],
}

/// Addresses of the two ends.
pub const ADDR: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

impl Veth {
    /// Makes the pair.
    ///
    /// # Panics
    /// If `ip` fails: root and iproute2 are needed.
    pub fn new() -> Self {
        stale::sweep_once();
        let name = unique(stale::NAMESPACE);
        let pair = Self { ns: [format!("{name}a"), format!("{name}b")] };
        for ns in &pair.ns {
            ip(&["netns", "add", ns]);
            ip(&["-n", ns, "link", "set", "lo", "up"]);
        }
        ip(&["-n", &pair.ns[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &pair.ns[1]]);
        for (ns, addr) in pair.ns.iter().zip(ADDR) {
            ip(&["-n", ns, "addr", "add", &format!("{addr}/24"), "dev", "eth0"]);
            ip(&["-n", ns, "link", "set", "eth0", "up"]);
        }
        pair
    }

    /// A command in one of the namespaces.
    pub fn command(&self, end: usize, program: &str, args: &[&str]) -> Command {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", &self.ns[end], program]).args(args).stdin(Stdio::null());
        c
    }

    /// Runs a command to its end and expects success.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&self, end: usize, program: &str, args: &[&str]) -> Output {
        let out = self.command(end, program, args).output().expect("the command starts");
        assert!(out.status.success(), "{program} {args:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
        out
    }
}

impl Default for Veth {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        for ns in &self.ns {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("iproute2 is installed");
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}
