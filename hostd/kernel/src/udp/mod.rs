//! UDP (RFC 768; Linux `net/ipv4/udp.c`).
//!
//! A datagram in is looked up by destination port, then by how exactly the
//! socket's addresses match it (`table.rs`), and queued at once, also when a process
//! is in a call on the socket (the host's `udp_backlog` setting brings back the
//! backlog of before Linux 4.10). No room in the receive buffer: dropped and
//! counted `RcvbufErrors`. A datagram out has no queue of its own: it is charged to
//! the socket until the device has sent it (`output.rs`).
//!
//! States: a socket has a port or not, and a peer or not. Errors that ICMP
//! reports reach a connected socket, or one that asked for them by `IP_RECVERR`.

pub mod header;
mod input;
mod output;
mod table;

pub(crate) use output::Path;
pub use table::UdpTable;

use crate::Kernel;
use crate::errno::Errno;
use crate::ip::route::{Flow, RouteKind};
use crate::sock::{Sock, SockState};
use crate::syscall::OptVal;
use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use rand_core::Rng as _;

/// `UDP_CORK`.
const UDP_CORK: i32 = 1;

/// `struct udp_sock`.
#[derive(Debug, Default)]
pub struct UdpSock {
    /// `UDP_CORK` is set.
    corked: bool,
    /// A datagram being put together (`MSG_MORE`, `UDP_CORK`).
    pub(crate) cork: Option<output::Cork>,
}

impl Kernel {
    /// `connect` of a datagram socket: filter, default destination, cached route (Linux `ip4_datagram_connect`).
    pub(crate) fn dgram_connect(&mut self, sk: &mut Sock, to: SocketAddr) -> Result<(), Errno> {
        let to = sk.to_ipv4(to)?;
        let ip = if to.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *to.ip() };
        self.inet_autobind(sk)?;
        let oif = sk.dgram_oif(ip);
        let route = self.ip_route_output(Flow { daddr: ip, saddr: sk.saddr, oif })?;
        if route.kind == RouteKind::Broadcast && !sk.opt.broadcast {
            return Err(Errno::EACCES);
        }
        if sk.saddr.is_unspecified() {
            sk.saddr = route.saddr;
        }
        if sk.rcv_saddr.is_unspecified() {
            sk.rcv_saddr = route.saddr;
        }
        sk.daddr = ip;
        sk.dport = to.port();
        sk.ss = SockState::Connected;
        sk.dst = Some((self.fib_generation(), route));
        sk.ip_id = self.rng.next_u32() as u16;
        sk.txhash = self.rng.next_u32() | 1;
        Ok(())
    }

    /// `connect(AF_UNSPEC)` of a datagram socket (Linux `__udp_disconnect`).
    pub(crate) fn dgram_disconnect(&mut self, sk: &mut Sock) {
        sk.daddr = Ipv4Addr::UNSPECIFIED;
        sk.dport = 0;
        sk.dst = None;
        sk.ss = SockState::Unconnected;
        if !sk.bound_addr {
            sk.saddr = Ipv4Addr::UNSPECIFIED;
            sk.rcv_saddr = Ipv4Addr::UNSPECIFIED;
        }
        if !sk.bound_port {
            match sk.proto {
                crate::sock::Proto::Udp(_) => self.udp_unhash(sk),
                crate::sock::Proto::Ping => self.ping_unhash(sk),
                _ => return,
            }
            sk.sport = 0;
        }
    }

    pub(crate) fn udp_setsockopt(&mut self, sk: &mut Sock, name: i32, val: i32) -> Result<(), Errno> {
        let crate::sock::Proto::Udp(up) = &mut sk.proto else { return Err(Errno::ENOPROTOOPT) };
        if name != UDP_CORK {
            return Err(Errno::ENOPROTOOPT);
        }
        up.corked = val != 0;
        if val == 0 {
            self.udp_push_pending(sk)?;
        }
        Ok(())
    }

    pub(crate) fn udp_getsockopt(&mut self, sk: &Sock, name: i32) -> Result<OptVal, Errno> {
        match &sk.proto {
            crate::sock::Proto::Udp(up) if name == UDP_CORK => Ok(OptVal::Int(up.corked.into())),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }
}

impl Sock {
    /// Interface that the socket's options choose for a destination; 0: the route's.
    pub(crate) fn dgram_oif(&self, to: Ipv4Addr) -> u32 {
        match self.bound_dev_if {
            0 if to.is_multicast() => self.inet.mc_if,
            0 => self.inet.unicast_if,
            dev => dev,
        }
    }
}

/// An IPv4 destination of a datagram.
fn destination(sk: &Sock, to: Option<SocketAddr>) -> Result<SocketAddrV4, Errno> {
    let to = match to {
        None if sk.is_connected_dgram() => return Ok(SocketAddrV4::new(sk.daddr, sk.dport)),
        None => return Err(Errno::EDESTADDRREQ),
        Some(to) => sk.to_ipv4(to)?,
    };
    let ip = if to.ip().is_unspecified() { Ipv4Addr::LOCALHOST } else { *to.ip() };
    Ok(SocketAddrV4::new(ip, to.port()))
}
