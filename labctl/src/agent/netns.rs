//! Network namespaces: made, entered, configured.
//!
//! A namespace is made by a thread of its own, which leaves the machine's, and
//! kept by a bind mount below the lab's run directory: two labs with the same
//! node names do not meet, and `nsenter --net=PATH` enters it. A netlink socket
//! belongs to the namespace in which it was made, so the agent enters each only
//! for that, on a thread that then ends.

use crate::agent::plan::{INFRA, InterfacePlan, LinkPlan, LinuxPlan};
use crate::agent::process::on_thread;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_stream::StreamExt;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A file, mount or namespace.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// A netlink request.
    #[error("{what}: {source}")]
    Netlink {
        /// What was tried.
        what: String,
        /// The answer.
        source: rtnetlink::Error,
    },
    /// nicd made no TAP.
    #[error("interface {0} did not appear")]
    Missing(String),
}

fn io_failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetnsError {
    let what = what.into();
    move |source| NetnsError::Io { what, source }
}

fn netlink_failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetnsError {
    let what = what.into();
    move |source| NetnsError::Netlink { what, source }
}

/// Makes a namespace, mounts it at `path`, brings its loopback up.
pub async fn make(path: &Path) -> Result<(), NetnsError> {
    let at = path.to_path_buf();
    on_thread(move || {
        File::create(&at)?;
        leave(UnshareFlags::NEWNET)?;
        // The thread's own entry, not the process's: only this thread has left.
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &at)?;
        Ok(())
    })
    .await
    .map_err(io_failed(format!("namespace {}", path.display())))?;
    let net = Netns::open(path).await?;
    net.set_up("lo").await
}

/// Unmounts and removes a namespace of the lab's.
pub fn remove(path: &Path) {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Never mounted, or not there at all.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "unmounting a namespace"),
    }
    let _ = std::fs::remove_file(path);
}

/// Leaves a namespace of the machine's, on this thread.
fn leave(which: UnshareFlags) -> io::Result<()> {
    assert!(!which.contains(UnshareFlags::FILES));
    #[expect(deprecated, reason = "because of one flag, refused above, which takes the thread's descriptor table from it")]
    rustix::thread::unshare(which)?;
    Ok(())
}

/// Runs `f` on a thread of its own in the namespace at `path`.
pub async fn inside<T: Send + 'static>(path: &Path, f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let namespace = File::open(path)?;
    on_thread(move || {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        f()
    })
    .await
}

/// As [`inside`], with `/etc/hosts` replaced and `/sys` showing the namespace's devices, as `ip netns exec` does.
pub async fn inside_as_host<T: Send + 'static>(
    path: &Path,
    hosts: PathBuf,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    inside(path, move || {
        leave(UnshareFlags::NEWNS)?;
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        // Names and /sys are a courtesy: a program that wants neither runs all the same.
        if let Err(error) = rustix::mount::mount_bind(&hosts, "/etc/hosts") {
            tracing::debug!(%error, "/etc/hosts stays the machine's");
        }
        if let Err(error) = rustix::mount::mount("ringlab", "/sys", "sysfs", MountFlags::empty(), None) {
            tracing::debug!(%error, "/sys stays the machine's");
        }
        f()
    })
    .await
}

/// Whether this process may make and configure namespaces: tried, because a container may refuse what the capabilities allow.
pub async fn may_make() -> io::Result<()> {
    on_thread(|| {
        let failed = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        leave(UnshareFlags::NEWNET | UnshareFlags::NEWNS).map_err(|error| failed("making namespaces", error))?;
        let private = rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC);
        private.map_err(|error| failed("changing mounts", error.into()))?;
        if !rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::NET_ADMIN) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "configuring namespaces: CAP_NET_ADMIN is not there"));
        }
        Ok(())
    })
    .await
}

/// Writes sysctls in a namespace: `net.ipv4.ip_forward` is `/proc/sys/net/ipv4/ip_forward`.
pub async fn set_sysctls(path: &Path, sysctls: BTreeMap<String, String>) -> Result<(), NetnsError> {
    for (name, value) in sysctls {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        inside(path, move || std::fs::write(file, value)).await.map_err(io_failed(format!("sysctl {name}")))?;
    }
    Ok(())
}

/// Whether somebody listens on a TCP port in a namespace.
pub async fn listens(path: &Path, port: u16) -> io::Result<bool> {
    let tables = inside(path, || {
        let read = |table| std::fs::read_to_string(table).unwrap_or_default();
        Ok([read("/proc/thread-self/net/tcp"), read("/proc/thread-self/net/tcp6")])
    })
    .await?;
    // `sl local_address rem_address st`: port in hexadecimal after the colon, 0A is LISTEN.
    let listening = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().and_then(|local| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok());
        local == Some(port) && fields.nth(1) == Some("0A")
    };
    Ok(tables.iter().any(|table| table.lines().skip(1).any(listening)))
}

/// A namespace's configuration, over netlink.
pub struct Netns {
    handle: Handle,
}

impl Netns {
    /// Opens a netlink socket in the namespace at `path`.
    pub async fn open(path: &Path) -> Result<Self, NetnsError> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = inside(path, move || {
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        })
        .await
        .map_err(io_failed(format!("namespace {}", path.display())))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Index of an interface, if there is one of this name.
    pub async fn index(&self, name: &str) -> Option<u32> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.next().await {
            Some(Ok(link)) => Some(link.header.index),
            _ => None,
        }
    }

    /// Index of an interface that nicd has been told to make.
    async fn expect(&self, name: &str) -> Result<u32, NetnsError> {
        // nicd makes its TAPs before it answers; a little patience costs nothing where it does not.
        for _ in 0..100 {
            if let Some(index) = self.index(name).await {
                return Ok(index);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(NetnsError::Missing(name.to_owned()))
    }

    /// Brings an interface up.
    pub async fn set_up(&self, name: &str) -> Result<(), NetnsError> {
        let index = self.expect(name).await?;
        self.set(LinkUnspec::new_with_index(index).up().build(), &format!("{name} up")).await
    }

    async fn set(&self, message: rtnetlink::packet_route::link::LinkMessage, what: &str) -> Result<(), NetnsError> {
        self.handle.link().set(message).execute().await.map_err(netlink_failed(what))
    }

    /// Gives the interfaces of a Linux node (TAPs that nicd has made) their addresses, and the node its routes.
    pub async fn configure(&self, interfaces: &[InterfacePlan], plan: &LinuxPlan) -> Result<(), NetnsError> {
        let mut indices = BTreeMap::new();
        for interface in interfaces {
            let index = self.expect(&interface.name).await?;
            indices.insert(interface.name.as_str(), index);
            // The hardware address changes while the interface is down.
            let down = LinkUnspec::new_with_index(index).down().mtu(interface.mtu).address(interface.mac.to_vec()).build();
            self.set(down, &format!("{} address and mtu", interface.name)).await?;
            self.replace_addresses(index, interface).await?;
            self.set(LinkUnspec::new_with_index(index).up().build(), &format!("{} up", interface.name)).await?;
        }
        for route in &plan.routes {
            let message =
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(route.to.addr(), route.to.prefix_len()).gateway(route.via);
            let message = match indices.get(route.dev.as_str()) {
                Some(&index) => message.output_interface(index),
                None => message,
            };
            let added = self.handle.route().add(message.build()).replace().execute().await;
            added.map_err(netlink_failed(format!("route {} via {}", route.to, route.via)))?;
        }
        Ok(())
    }

    /// Takes the addresses from an interface, and gives it that of the plan. Routes by it go with the addresses.
    async fn replace_addresses(&self, index: u32, interface: &InterfacePlan) -> Result<(), NetnsError> {
        let mut addresses = self.handle.address().get().set_link_index_filter(index).execute();
        let mut old = Vec::new();
        while let Some(Ok(address)) = addresses.next().await {
            old.push(address);
        }
        for address in old {
            let _ = self.handle.address().del(address).execute().await;
        }
        if let Some(net) = interface.ipv4 {
            let added = self.handle.address().add(index, net.addr().into(), net.prefix_len()).execute().await;
            added.map_err(netlink_failed(format!("address {net} on {}", interface.name)))?;
        }
        Ok(())
    }

    /// Makes the bridge of a `medium: tap` link.
    pub async fn make_bridge(&self, link: &LinkPlan) -> Result<(), NetnsError> {
        let (name, _) = link.bridge();
        let what = format!("bridge {name}");
        self.handle.link().add(LinkBridge::new(&name).build()).execute().await.map_err(netlink_failed(what))?;
        self.set_up(&name).await
    }

    /// Puts the TAP of one end into a link's bridge and brings it up.
    pub async fn join_bridge(&self, link: &LinkPlan, end: usize) -> Result<(), NetnsError> {
        let (bridge, taps) = link.bridge();
        let bridge_index = self.expect(&bridge).await?;
        let tap = self.expect(&taps[end]).await?;
        let message = LinkUnspec::new_with_index(tap).mtu(link.mtu).controller(bridge_index).up().build();
        self.set(message, &format!("{} in {bridge}", taps[end])).await?;
        self.set(LinkUnspec::new_with_index(bridge_index).mtu(link.mtu).build(), &format!("{bridge} mtu")).await
    }

    /// Removes an interface, if it is there.
    pub async fn delete(&self, name: &str) {
        if let Some(index) = self.index(name).await {
            let _ = self.handle.link().del(index).execute().await;
        }
    }

    /// Names of the interfaces, for tests and messages.
    pub async fn names(&self) -> Vec<String> {
        let mut links = self.handle.link().get().execute();
        let mut names = Vec::new();
        while let Some(Ok(link)) = links.next().await {
            names.extend(link.attributes.into_iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name) } else { None }));
        }
        names
    }
}

/// Where the TAPs and bridges of a lab's `medium: tap` links are.
pub fn infra(run_dir: &Path) -> PathBuf {
    run_dir.join("netns").join(INFRA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// Tests below make namespaces; an ordinary user cannot.
    async fn privileged() -> bool {
        may_make().await.is_ok()
    }

    #[tokio::test]
    async fn namespace_is_made_configured_and_removed() {
        if !privileged().await {
            return;
        }
        let scratch = Scratch::new("netns");
        let path = scratch.path().join("n");
        make(&path).await.unwrap();
        let net = Netns::open(&path).await.unwrap();
        assert_eq!(net.names().await, ["lo"]);
        set_sysctls(&path, [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into()).await.unwrap();
        assert_eq!(inside(&path, || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).await.unwrap(), "1\n");
        assert!(!listens(&path, 4321).await.unwrap());
        let listener = inside(&path, || std::net::TcpListener::bind("127.0.0.1:4321")).await.unwrap();
        assert!(listens(&path, 4321).await.unwrap());
        drop(listener);
        remove(&path);
        assert!(!path.exists());
        remove(&path);
    }

    #[tokio::test]
    async fn program_in_a_namespace_sees_the_nodes_names() {
        if !privileged().await {
            return;
        }
        let scratch = Scratch::new("netns-hosts");
        let (path, hosts) = (scratch.path().join("n"), scratch.path().join("hosts"));
        std::fs::write(&hosts, "10.9.9.9 web\n").unwrap();
        make(&path).await.unwrap();
        let out =
            inside_as_host(&path, hosts, || std::process::Command::new("sh").args(["-c", "cat /etc/hosts; ls /sys/class/net"]).output());
        assert_eq!(String::from_utf8(out.await.unwrap().stdout).unwrap(), "10.9.9.9 web\nlo\n");
        remove(&path);
    }
}
