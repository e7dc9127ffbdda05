//! Which window to offer, which segment size to use (Linux `tcp_select_window`, `tcp_sync_mss`).

use crate::Kernel;
use crate::sock::Sock;
use crate::tcp::sock::{TCP_MSS_DEFAULT, TcpSock, tp};
use ringlab_counters::Mib;

/// Octets of IPv4 header without options.
const IP_HEADER: u32 = 20;
/// Largest IP packet.
const IP_MAX_MTU: u32 = 65535;

/// What a SYN or SYN-ACK offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialWindow {
    /// Window field, octets.
    pub rcv_wnd: u32,
    /// Largest window ever.
    pub clamp: u32,
    /// Shift.
    pub wscale: u8,
}

/// First window and scale (Linux `tcp_select_initial_window`): as many whole segments as the
/// buffer holds, and a scale that lets the window grow to the largest buffer (`rmem_max`).
pub fn select_initial_window(space: u32, mss: u32, clamp: u32, wscale_ok: bool, rmem_max: u32) -> InitialWindow {
    let clamp = if clamp == 0 { 0xffff << 14 } else { clamp };
    let mut space = space.min(clamp);
    if space > mss && mss > 0 {
        space -= space % mss;
    }
    let rcv_wnd = space.min(0xffff);
    let wscale = if wscale_ok {
        let most = space.max(rmem_max).min(clamp);
        (most.max(1).ilog2().saturating_sub(15) as u8).min(14)
    } else {
        0
    };
    InitialWindow { rcv_wnd, clamp: clamp.min(0xffff << wscale), wscale }
}

impl Sock {
    /// The window that free memory allows (Linux `__tcp_select_window`). Avoids silly
    /// windows (RFC 9293 §3.8.6.2.2): nothing below an MSS or a sixteenth of the buffer.
    pub(crate) fn tcp_window_to_offer(&self) -> u32 {
        let tp = self.tp();
        let mut mss = tp.ack.rcv_mss;
        let mut free = self.tcp_space();
        let allowed = self.tcp_full_space();
        let full = tp.window_clamp.min(allowed);
        if mss > full {
            mss = full;
            if mss == 0 {
                return 0;
            }
        }
        let unit = 1u32 << tp.rx_opt.rcv_wscale;
        if free < full / 2 {
            free -= free % unit;
            if free < allowed / 16 || free < mss {
                return 0;
            }
        }
        free = free.min(tp.rcv_ssthresh);
        if tp.rx_opt.rcv_wscale > 0 {
            return free.next_multiple_of(unit);
        }
        let window = tp.rcv_wnd;
        if window <= free.saturating_sub(mss) || window > free {
            free - free % mss.max(1)
        } else if mss == full && free > window + full / 2 {
            free
        } else {
            window
        }
    }
}

impl Kernel {
    /// Chooses the window of the segment that is going out; what was offered is not
    /// taken back (RFC 9293 §3.8.6; Linux `tcp_select_window`). Returns the header field.
    pub(crate) fn tcp_select_window(&mut self, sk: &mut Sock) -> u16 {
        let mut new = sk.tcp_window_to_offer();
        let tp = tp!(sk);
        let (old, left) = (tp.rcv_wnd, tp.receive_window());
        if new < left {
            if new == 0 {
                self.mib.inc(Mib::TCPWantZeroWindowAdv);
            }
            new = left.next_multiple_of(1 << tp.rx_opt.rcv_wscale);
        }
        tp.rcv_wnd = new;
        tp.rcv_wup = tp.rcv_nxt;
        let most = if tp.rx_opt.rcv_wscale == 0 { 0xffff } else { 0xffffu32 << tp.rx_opt.rcv_wscale };
        let field = (new.min(most) >> tp.rx_opt.rcv_wscale) as u16;
        if field == 0 {
            tp.fast_path = false;
            if old != 0 {
                self.mib.inc(Mib::TCPToZeroWindowAdv);
            }
        } else if old == 0 {
            self.mib.inc(Mib::TCPFromZeroWindowAdv);
        }
        field
    }

    /// MSS for the path's MTU (Linux `tcp_sync_mss`).
    pub(crate) fn tcp_sync_mss(&mut self, sk: &mut Sock, pmtu: u32) -> u32 {
        let min = self.tcp.sysctl.min_snd_mss;
        let tp = tp!(sk);
        let mss = tp.mtu_to_mss(pmtu, min);
        tp.pmtu_cookie = pmtu;
        tp.mss_cache = tp.bound_to_half_wnd(mss);
        tp.mss_cache
    }

    /// Payload octets of the next segment (Linux `tcp_current_mss`).
    pub(crate) fn tcp_current_mss(&mut self, sk: &mut Sock) -> u32 {
        let pmtu = sk.tcp_path_mtu();
        let mut mss = sk.tp().mss_cache;
        if pmtu.is_some_and(|p| p != sk.tp().pmtu_cookie) {
            mss = self.tcp_sync_mss(sk, pmtu.unwrap_or_default());
        }
        let tp = sk.tp();
        mss.saturating_sub(tp.next_header_len() - tp.header_len()).max(8)
    }
}

impl Sock {
    /// MTU of the route, or less if ICMP said so.
    pub(crate) fn tcp_path_mtu(&self) -> Option<u32> {
        let (_, route) = self.dst.as_ref()?;
        let mtu = route.mtu.min(IP_MAX_MTU);
        Some(self.tp().icmp_mtu.map_or(mtu, |m| mtu.min(m)))
    }
}

/// MSS to advertise for a route (Linux `ipv4_default_advmss`).
pub fn advmss(mtu: u32) -> u32 {
    mtu.min(IP_MAX_MTU).saturating_sub(IP_HEADER + 20).clamp(256, IP_MAX_MTU - 40)
}

impl TcpSock {
    fn mtu_to_mss(&self, pmtu: u32, min: u32) -> u32 {
        let mut mss = pmtu.saturating_sub(IP_HEADER + 20);
        if self.rx_opt.mss_clamp != 0 {
            mss = mss.min(u32::from(self.rx_opt.mss_clamp));
        }
        mss.max(min).saturating_sub(self.header_len() - 20).max(8)
    }

    /// Not more than half the largest window of the peer, so that small windows do not
    /// stall (Linux `tcp_bound_to_half_wnd`).
    pub(crate) fn bound_to_half_wnd(&self, size: u32) -> u32 {
        let most = if self.max_window > TCP_MSS_DEFAULT { self.max_window / 2 } else { self.max_window };
        if most != 0 && size > most { most.max(68 - self.header_len()) } else { size }
    }

    /// Most payload octets of a packet handed to the device (Linux `tcp_xmit_size_goal`).
    pub(crate) fn size_goal(&self, mss: u32) -> u32 {
        const MOST: u32 = IP_MAX_MTU - 60 - 60;
        if mss >= MOST { mss } else { self.bound_to_half_wnd(MOST).max(mss) / mss * mss }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_windows_are_those_of_linux() {
        let syn = select_initial_window(65536, 1460, 0, true, 6 << 20);
        assert_eq!((syn.rcv_wnd, syn.wscale), (64240, 7));
        let synack = select_initial_window(65536, 1448, 0, true, 6 << 20);
        assert_eq!((synack.rcv_wnd, synack.wscale), (65160, 7));
        let unscaled = select_initial_window(1 << 20, 1460, 0, false, 6 << 20);
        assert_eq!((unscaled.rcv_wnd, unscaled.wscale, unscaled.clamp), (65535, 0, 65535));
    }

    #[test]
    fn mss_leaves_room_for_headers_and_timestamps() {
        let mut tp = TcpSock::default();
        assert_eq!(tp.mtu_to_mss(1500, 48), 1460);
        tp.rx_opt.tstamp_ok = true;
        assert_eq!(tp.mtu_to_mss(1500, 48), 1448);
        tp.rx_opt.mss_clamp = 1000;
        assert_eq!(tp.mtu_to_mss(1500, 48), 988);
        assert_eq!(tp.mtu_to_mss(40, 48), 36);
        assert_eq!(advmss(1500), 1460);
        assert_eq!(tp.size_goal(1448), 65160);
        tp.max_window = 20000;
        assert_eq!(tp.size_goal(1000), 10000);
        tp.max_window = 500;
        assert_eq!(tp.bound_to_half_wnd(1448), 500);
    }
}
