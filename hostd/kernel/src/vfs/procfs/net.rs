//! Files of `/proc/net` about interfaces, routes, neighbours, and the sums over sockets.

use crate::Kernel;
use crate::dev::net_device::{IfIndex, MacAddr};
use crate::ether::neigh::Nud;
use crate::ip::route::{Entry, Reject};
use crate::sock::Proto;
use crate::tcp::State;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::Ipv4Addr;
use ringlab_counters::Netdev;

/// All files.
pub(super) const NAMES: &[&str] = &[
    "arp",
    "dev",
    "dev_mcast",
    "icmp",
    "igmp",
    "netlink",
    "netstat",
    "packet",
    "protocols",
    "psched",
    "ptype",
    "raw",
    "route",
    "rt_cache",
    "snmp",
    "sockstat",
    "softnet_stat",
    "tcp",
    "udp",
    "udplite",
    "unix",
];

/// `ATF_COM`, `ATF_PERM`.
const ATF_COM: u32 = 2;
const ATF_PERM: u32 = 4;
/// `RTF_UP`, `RTF_GATEWAY`, `RTF_HOST`, `RTF_REJECT`.
const RTF_UP: u32 = 1;
const RTF_GATEWAY: u32 = 2;
const RTF_HOST: u32 = 4;
const RTF_REJECT: u32 = 0x200;
/// Octets of a page, in which socket memory is counted.
const PAGE: u64 = 4096;

/// An address as these files print it: the octets of the wire, read as a number of this machine.
pub(super) fn raw(addr: Ipv4Addr) -> u32 {
    addr.to_bits().swap_bytes()
}

impl Kernel {
    /// The text of a file of `/proc/net`.
    pub(super) fn proc_net(&self, name: &str) -> Option<String> {
        Some(match name {
            "arp" => self.proc_arp(),
            "dev" => self.proc_dev(),
            "dev_mcast" => self.proc_dev_mcast(),
            "icmp" => self.proc_icmp(),
            "igmp" => self.proc_igmp(),
            "netlink" => self.proc_netlink(),
            "netstat" => self.proc_netstat(),
            "packet" => self.proc_packet(),
            "protocols" => self.proc_protocols(),
            "psched" => String::from("000003e8 00000040 000f4240 3b9aca00\n"),
            "ptype" => String::from("Type Device      Function\n0800          ip_rcv\n0806          arp_rcv\n"),
            "raw" => self.proc_raw(),
            "route" => self.proc_route(),
            "rt_cache" => format!(
                "{:<127}\n",
                "Iface\tDestination\tGateway \tFlags\t\tRefCnt\tUse\tMetric\tSource\t\tMTU\tWindow\tIRTT\tTOS\tHHRef\tHHUptod\tSpecDst"
            ),
            "snmp" => self.proc_snmp(),
            "sockstat" => self.proc_sockstat(),
            "softnet_stat" => self.proc_softnet_stat(),
            "tcp" => self.proc_tcp(),
            "udp" => self.proc_udp(),
            "udplite" => super::sock::udp_header(),
            "unix" => String::from("Num       RefCount Protocol Flags    Type St Inode Path\n"),
            _ => return None,
        })
    }

    fn proc_dev(&self) -> String {
        let mut out = String::from(
            "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
        );
        for d in self.devs.iter() {
            let n = |c| d.stats.get(c);
            let frame = n(Netdev::RxLengthErrors) + n(Netdev::RxFrameErrors);
            // Infallible: writing to a string. (Also below.)
            let _ = write!(out, "{:>6}: {:7} {:7} ", d.name, n(Netdev::RxBytes), n(Netdev::RxPackets));
            let _ = write!(out, "{:4} {:4} {:4} ", n(Netdev::RxErrors), n(Netdev::RxDropped), 0);
            let _ = write!(out, "{frame:5} {:10} {:9} ", 0, n(Netdev::Multicast));
            let _ = write!(out, "{:8} {:7} {:4} ", n(Netdev::TxBytes), n(Netdev::TxPackets), n(Netdev::TxErrors));
            let _ = writeln!(out, "{:4} {:4} {:5} {:7} {:10}", n(Netdev::TxDropped), 0, 0, 0, 0);
        }
        out
    }

    fn proc_route(&self) -> String {
        let mut out = format!("{:<127}\n", "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT");
        let mut routes: Vec<&Entry> = self.fib.routes().collect();
        routes.sort_by_key(|e| e.dump_order());
        for e in routes {
            let mask = u32::MAX.checked_shl(32 - u32::from(e.len)).unwrap_or(0);
            let reject = matches!(e.reject, Some(Reject::Unreachable | Reject::Prohibit));
            let flags = RTF_UP
                | if e.via.is_unspecified() { 0 } else { RTF_GATEWAY }
                | if e.len == 32 { RTF_HOST } else { 0 }
                | if reject { RTF_REJECT } else { 0 };
            let dev = self.dev_get_name(e.dev).unwrap_or("*");
            let via = raw(e.via);
            let row = format!(
                "{dev}\t{:08X}\t{via:08X}\t{flags:04X}\t0\t0\t{}\t{:08X}\t0\t0\t0",
                e.net.swap_bytes(),
                e.metric,
                mask.swap_bytes()
            );
            let _ = writeln!(out, "{row:<127}");
        }
        out
    }

    fn proc_arp(&self) -> String {
        let mut out = String::from("IP address       HW type     Flags       HW address            Mask     Device\n");
        for n in self.neigh.iter() {
            let flags = if n.state.valid() { ATF_COM } else { 0 } | if n.state == Nud::Permanent { ATF_PERM } else { 0 };
            let mac = if n.state.valid() { n.mac } else { MacAddr::default() };
            let (addr, dev) = (format!("{}", n.addr), self.dev_get_name(n.dev).unwrap_or("*"));
            let _ = writeln!(out, "{addr:<16} 0x{:<10x}0x{flags:<10x}{mac}     *        {dev}", 1);
        }
        out
    }

    /// Multicast addresses on each interface: all-hosts, and the groups joined.
    fn proc_dev_mcast(&self) -> String {
        let mut out = String::new();
        for d in self.devs.iter().filter(|d| !d.is_loopback() && d.up) {
            for (group, users) in self.mc_groups_on(d.index.0) {
                let [_, b, c, e] = group.octets();
                let mac = format!("01005e{:02x}{c:02x}{e:02x}", b & 0x7f);
                let _ = writeln!(out, "{:<4} {:<15} {users:<5} {:<5} {mac}", d.index.0, d.name, 0);
            }
        }
        out
    }

    fn proc_igmp(&self) -> String {
        let mut out = String::from("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n");
        for d in self.devs.iter().filter(|d| d.up) {
            let groups = self.mc_groups_on(d.index.0);
            let _ = writeln!(out, "{}\t{:<10}: {:5} {:>7}", d.index.0, d.name, groups.len(), "V3");
            for (group, users) in groups {
                let _ = writeln!(out, "\t\t\t\t{:08X} {users:5} 0:{:08X}\t\t0", raw(group), 0);
            }
        }
        out
    }

    fn proc_sockstat(&self) -> String {
        let (mut tcp, mut alloc, mut mem) = (0, 0, 0);
        let (mut udp, mut udp_mem, mut raw, mut used) = (0, 0, 0, 0);
        for sk in self.socks.iter() {
            used += u32::from(!sk.dead);
            match &sk.proto {
                Proto::Tcp(tp) => {
                    alloc += 1;
                    tcp += u32::from(tp.state != State::Close);
                    mem += u64::from(sk.rmem_alloc) + u64::from(sk.wmem_queued);
                }
                Proto::Udp(_) => {
                    udp += u32::from(sk.sport != 0);
                    udp_mem += u64::from(sk.rmem_alloc);
                }
                Proto::Raw { .. } => raw += 1,
                Proto::Ping | Proto::Netlink(_) | Proto::Packet(_) => {}
            }
        }
        let (frags, frag_mem) = self.frags.usage();
        format!(
            "sockets: used {used}\nTCP: inuse {tcp} orphan {} tw {} alloc {} mem {}\nUDP: inuse {udp} mem {}\nUDPLITE: inuse 0\n\
             RAW: inuse {raw}\nFRAG: inuse {frags} memory {frag_mem}\n",
            self.tcp.orphans,
            self.tcp.tw_count,
            alloc + self.tcp.tw_count,
            mem.div_ceil(PAGE),
            udp_mem.div_ceil(PAGE),
        )
    }

    /// Protocols of this kernel: sizes are Linux's, methods as Linux's letters.
    fn proc_protocols(&self) -> String {
        let mut out = String::from(
            "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n",
        );
        let count = |f: fn(&Proto) -> bool| self.socks.iter().filter(|sk| f(&sk.proto)).count();
        let rows = [
            ("PING", 1016, count(|p| matches!(p, Proto::Ping)), -1, "NI", 0, "y  y  y  n  n  y  n  n  y  y  y  y  y  y  n  y  y  n"),
            ("RAW", 1152, count(|p| matches!(p, Proto::Raw { .. })), -1, "NI", 0, "y  y  y  n  y  y  y  n  y  y  y  y  y  y  y  y  n  n"),
            ("UDP", 1344, count(|p| matches!(p, Proto::Udp(_))), 0, "NI", 0, "y  y  y  n  y  y  y  n  y  y  y  y  n  n  y  y  y  n"),
            ("TCP", 2304, count(|p| matches!(p, Proto::Tcp(_))), 0, "no", 192, "y  y  y  y  y  y  y  y  y  y  y  y  n  y  y  y  y  y"),
            (
                "NETLINK",
                1096,
                count(|p| matches!(p, Proto::Netlink(_))),
                -1,
                "NI",
                0,
                "n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n",
            ),
        ];
        for (name, size, sockets, memory, pressure, header, methods) in rows {
            let slab = if name == "NETLINK" { "no" } else { "yes" };
            let _ = writeln!(
                out,
                "{name:<9} {size:4} {sockets:6}  {memory:6}   {pressure:<3} {header:6}   {slab:<4} {:<10}  {methods}",
                "kernel"
            );
        }
        out
    }

    /// Groups that an interface receives, with their users; all-hosts is always one.
    pub(crate) fn mc_groups_on(&self, dev: u32) -> Vec<(Ipv4Addr, u32)> {
        let all_hosts = Ipv4Addr::new(224, 0, 0, 1);
        let joined = self.vfs.groups.iter().filter(|(k, _)| k.1 == dev && k.0 != all_hosts).map(|(k, n)| (k.0, *n));
        let users = 1 + self.vfs.groups.get(&(all_hosts, dev)).copied().unwrap_or(0);
        joined.chain(self.devs.get(IfIndex(dev)).map(|_| (all_hosts, users))).collect()
    }

    fn proc_netlink(&self) -> String {
        let mut out = String::from("sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n");
        for sk in self.socks.iter() {
            let Proto::Netlink(nl) = &sk.proto else { continue };
            let (groups, dump) = (nl.groups() as u32, u8::from(nl.dumping()));
            let row =
                format!("{:016x} {:<3} {:<10} {groups:08x} {:<8} {:<8} {dump:<5}", sk.id.0, nl.protocol(), nl.portid(), sk.rmem_alloc, 0);
            let _ = writeln!(out, "{row} {:<8} {:<8} {:<8}", 2, nl.drops(), self.sock_inode(sk));
        }
        out
    }
}
