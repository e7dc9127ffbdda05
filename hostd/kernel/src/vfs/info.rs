//! What `ss` shows of the sockets.

use crate::Kernel;
use crate::cpu::sched::TaskId;
use crate::sock::{Proto, Sock};
use crate::tcp::TcpInfo;
use alloc::vec::Vec;
use core::net::SocketAddr;

/// A socket as `ss` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct SocketInfo {
    /// "tcp", "udp", "icmp", "raw".
    pub netid: &'static str,
    /// "ESTAB", "LISTEN", "UNCONN" …
    pub state: &'static str,
    /// Octets received and not read; of a listener, connections not yet accepted.
    pub recv_q: u32,
    /// Octets sent and not acknowledged.
    pub send_q: u32,
    /// Local address and port (of raw sockets, the protocol).
    pub local: SocketAddr,
    /// The peer; unspecified without one.
    pub peer: SocketAddr,
    /// `SO_BINDTODEVICE`; 0: none.
    pub ifindex: u32,
    /// Task that made it.
    pub creator: Option<TaskId>,
    /// Of TCP.
    pub tcp: Option<TcpInfo>,
}

impl Kernel {
    /// All sockets.
    pub fn sockets_info(&self) -> Vec<SocketInfo> {
        self.socks.iter().filter(|sk| !matches!(sk.proto, Proto::Netlink(_))).map(|sk| self.socket_info(sk)).collect()
    }

    fn socket_info(&self, sk: &Sock) -> SocketInfo {
        let local = if sk.rcv_saddr.is_unspecified() { sk.saddr } else { sk.rcv_saddr };
        let (netid, port) = match sk.proto {
            Proto::Tcp(_) => ("tcp", sk.sport),
            Proto::Udp(_) => ("udp", sk.sport),
            Proto::Ping => ("icmp", sk.sport),
            Proto::Netlink(_) => ("nl", 0),
            Proto::Packet(ref po) if po.kind() == 3 => ("p_raw", po.protocol),
            Proto::Packet(ref po) => ("p_dgr", po.protocol),
            Proto::Raw { protocol, .. } => ("raw", protocol.into()),
        };
        let tcp = matches!(sk.proto, Proto::Tcp(_));
        let state = match sk.state() {
            crate::tcp::State::Close if !tcp => "UNCONN",
            state => state.ss_name(),
        };
        // A listener answers neither; what it shows is not in octets.
        let (recv_q, send_q) = match tcp {
            true => (self.tcp_inq(sk).unwrap_or(0), self.tcp_outq(sk).unwrap_or(0)),
            false => (sk.rmem_alloc, sk.wmem_alloc),
        };
        SocketInfo {
            netid,
            state,
            recv_q,
            send_q,
            local: sk.to_user_addr(local, port),
            peer: sk.to_user_addr(sk.daddr, sk.dport),
            ifindex: sk.bound_dev_if,
            creator: sk.creator,
            tcp: tcp.then(|| self.tcp_info(sk)),
        }
    }
}

impl crate::tcp::State {
    /// As `ss` prints it.
    pub fn ss_name(self) -> &'static str {
        use crate::tcp::State::*;
        match self {
            Established => "ESTAB",
            SynSent => "SYN-SENT",
            SynRecv => "SYN-RECV",
            FinWait1 => "FIN-WAIT-1",
            FinWait2 => "FIN-WAIT-2",
            TimeWait => "TIME-WAIT",
            Close => "UNCONN",
            CloseWait => "CLOSE-WAIT",
            LastAck => "LAST-ACK",
            Listen => "LISTEN",
            Closing => "CLOSING",
        }
    }
}
