//! TCP.

use crate::Kernel;
use crate::errno::Errno;
use crate::ip::IcmpError;
use crate::skb::SkBuff;
use crate::sock::{Sock, SockId};
use crate::syscall::{MsgState, OptVal, Shutdown, Step};
use crate::timer::TimerKey;
use crate::wait::queue::PollEvents;
use alloc::boxed::Box;
use core::net::{Ipv4Addr, SocketAddrV4};

/// Connection state, Linux `TCP_*` numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum State {
    /// Data flows both ways.
    Established = 1,
    /// Active open, SYN sent.
    SynSent,
    /// SYN received.
    SynRecv,
    /// We closed, FIN not acknowledged.
    FinWait1,
    /// Our FIN is acknowledged.
    FinWait2,
    /// 2 MSL.
    TimeWait,
    /// Nothing.
    #[default]
    Close,
    /// Peer closed.
    CloseWait,
    /// Peer closed, then we did.
    LastAck,
    /// Passive open.
    Listen,
    /// Both closed at once.
    Closing,
}

/// `struct tcp_sock`.
#[derive(Debug, Default)]
pub struct TcpSock {
    /// Connection state.
    pub state: State,
}

/// Connections, listeners, bound ports, minisockets.
#[derive(Debug, Default)]
pub struct TcpTable {}

/// What `ss -ti` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TcpInfo {
    /// State.
    pub state: State,
    /// Congestion window, segments.
    pub cwnd: u32,
    /// Slow-start threshold, segments.
    pub ssthresh: u32,
    /// Smoothed RTT, microseconds.
    pub srtt_us: u32,
    /// Retransmission timeout, microseconds.
    pub rto_us: u32,
    /// Segments retransmitted in all.
    pub total_retrans: u32,
    /// Send MSS.
    pub mss: u32,
}

impl Kernel {
    pub(crate) fn tcp_init_sock(&mut self, _sk: &mut Sock) {}
    pub(crate) fn tcp_get_port(&mut self, _sk: &mut Sock, _addr: Ipv4Addr, _port: u16) -> Result<(), Errno> {
        Ok(())
    }
    pub(crate) fn tcp_v4_connect(&mut self, _sk: &mut Sock, _to: SocketAddrV4) -> Result<(), Errno> {
        Ok(())
    }
    pub(crate) fn tcp_disconnect(&mut self, _sk: &mut Sock) -> Result<(), Errno> {
        Ok(())
    }
    pub(crate) fn tcp_listen(&mut self, _sk: &mut Sock, _backlog: i32) -> Result<(), Errno> {
        Ok(())
    }
    pub(crate) fn tcp_accept(&mut self, _sk: &mut Sock) -> Option<SockId> {
        None
    }
    pub(crate) fn tcp_sendmsg(&mut self, _sk: &mut Sock, _m: &mut MsgState) -> Step<Result<usize, Errno>> {
        Step::Done(Ok(0))
    }
    pub(crate) fn tcp_recvmsg(&mut self, _sk: &mut Sock, _m: &mut MsgState) -> Step<Result<usize, Errno>> {
        Step::Done(Ok(0))
    }
    pub(crate) fn tcp_poll(&self, _sk: &Sock) -> PollEvents {
        PollEvents::empty()
    }
    pub(crate) fn tcp_shutdown(&mut self, _sk: &mut Sock, _how: Shutdown) -> Result<(), Errno> {
        Ok(())
    }
    pub(crate) fn tcp_close(&mut self, _sk: Box<Sock>) {}
    pub(crate) fn tcp_setsockopt(&mut self, _sk: &mut Sock, _name: i32, _val: OptVal) -> Result<(), Errno> {
        Ok(())
    }
    pub(crate) fn tcp_getsockopt(&mut self, _sk: &mut Sock, _name: i32) -> Result<OptVal, Errno> {
        Err(Errno::ENOPROTOOPT)
    }
    pub(crate) fn tcp_inq(&self, _sk: &Sock) -> Result<u32, Errno> {
        Ok(0)
    }
    pub(crate) fn tcp_outq(&self, _sk: &Sock) -> Result<u32, Errno> {
        Ok(0)
    }
    pub(crate) fn tcp_v4_rcv(&mut self, skb: Box<SkBuff>) {
        self.consume_skb(skb);
    }
    pub(crate) fn tcp_v4_do_rcv(&mut self, _sk: &mut Sock, skb: Box<SkBuff>) {
        self.consume_skb(skb);
    }
    pub(crate) fn tcp_release_cb(&mut self, _sk: &mut Sock) {}
    pub(crate) fn tcp_v4_err(&mut self, _e: &IcmpError) {}
    pub(crate) fn tcp_timer(&mut self, _key: TimerKey) {}
    pub(crate) fn tcp_info(&self, _sk: &Sock) -> TcpInfo {
        TcpInfo::default()
    }
}
