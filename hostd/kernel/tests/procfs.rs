//! `/proc` of a host: layout as Linux prints it, values as the host has them.

mod common;

use common::tasks::{AF_INET, DGRAM, Prog, RAW, SOL_SOCKET, STREAM};
use common::{A, HostConfig, Lab, PortConfig};
use ringlab_counters::Mib;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::Call;
use ringlab_kernel::vfs::procfs::{self, Entry};
use ringlab_kernel::vfs::sysfs;

fn read(lab: &Lab, path: &str) -> String {
    lab.hosts[A].kernel.procfs_read(path).unwrap_or_else(|| panic!("{path} exists"))
}

fn write(lab: &mut Lab, path: &str, text: &str) -> Result<usize, Errno> {
    lab.hosts[A].kernel.procfs_write(path, text.as_bytes())
}

#[test]
fn interfaces_and_routes_look_as_on_linux() {
    let lab = Lab::pair(1);
    let dev = read(&lab, "/proc/net/dev");
    let mut lines = dev.lines();
    assert_eq!(lines.next(), Some("Inter-|   Receive                                                |  Transmit"));
    assert_eq!(
        lines.next(),
        Some(" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed")
    );
    assert_eq!(
        lines.next(),
        Some("    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0")
    );
    assert!(lines.next().is_some_and(|l| l.starts_with("  eth0: ")) && lines.next().is_none());
    let route = read(&lab, "/proc/net/route");
    let pad = |text: &str| format!("{text:<127}\n");
    assert_eq!(
        route,
        pad("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT")
            + &pad("eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0")
    );
    assert_eq!(read(&lab, "/proc/self/net/route"), route);
    assert_eq!(read(&lab, "/proc/42/task/43/net/route"), route);
}

#[test]
fn sockets_stand_in_their_files() {
    let mut lab = Lab::pair(2);
    let p = Prog::spawn(&mut lab, A, "server");
    let any = |port: u16| format!("10.0.0.1:{port}").parse().expect("an address");
    let tcp = p.ok(&mut lab, Call::Socket(AF_INET, STREAM, 0)) as i32;
    p.ok(&mut lab, Call::Bind(tcp, any(8080)));
    p.ok(&mut lab, Call::Listen(tcp, 5));
    let udp = p.ok(&mut lab, Call::Socket(AF_INET, DGRAM, 0)) as i32;
    p.ok(&mut lab, Call::Bind(udp, any(53)));
    p.ok(&mut lab, Call::Socket(AF_INET, RAW, 1));
    let text = read(&lab, "/proc/net/tcp");
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows.iter().all(|r| r.len() == 149), "{text}");
    let listener =
        "   0: 0100000A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000001 100 0 0 10 0";
    assert_eq!(rows[1].trim_end(), listener);
    let text = read(&lab, "/proc/net/udp");
    assert!(text.lines().all(|r| r.len() == 127), "{text}");
    assert!(text.contains("   53: 0100000A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 2 2 "), "{text}");
    let text = read(&lab, "/proc/net/raw");
    assert!(text.lines().nth(1).is_some_and(|r| r.starts_with("   1: 00000000:0001 00000000:0000 07 ")), "{text}");
    let text = read(&lab, "/proc/net/sockstat");
    assert_eq!(
        text,
        "sockets: used 3\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 0\nUDP: inuse 1 mem 0\nUDPLITE: inuse 0\nRAW: inuse 1\nFRAG: inuse 0 memory 0\n"
    );
    p.setopt(&mut lab, udp, SOL_SOCKET, 8, 0);
    for _ in 0..9 {
        p.send_to(&mut lab, udp, &[0; 900], std::net::Ipv4Addr::new(10, 0, 0, 1), 53);
    }
    lab.run_for(std::time::Duration::from_millis(1));
    let drops = lab.hosts[A].kernel.stats().mib.get(Mib::UdpRcvbufErrors);
    let text = read(&lab, "/proc/net/udp");
    assert!(drops > 0 && text.lines().nth(1).is_some_and(|r| r.trim_end().ends_with(&format!(" {drops}"))), "{drops}\n{text}");
}

#[test]
fn counters_stand_under_the_names_of_linux() {
    let mut lab = Lab::pair(3);
    let p = Prog::spawn(&mut lab, A, "sender");
    let udp = p.ok(&mut lab, Call::Socket(AF_INET, DGRAM, 0)) as i32;
    let iov = lab.hosts[A].mem.iov(b"x");
    let to = "127.0.0.1:9".parse().expect("an address");
    p.ok(&mut lab, Call::Send { fd: udp, iov, flags: 0, to: Some(to), control: Vec::new() });
    let text = read(&lab, "/proc/net/snmp");
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
    for pair in rows.chunks(2) {
        assert_eq!(pair[0].len(), pair[1].len(), "{pair:?}");
        assert_eq!(pair[0][0], pair[1][0]);
    }
    let value = |group: &str, name: &str| {
        let names = rows.iter().find(|r| r[0] == group).expect("a group");
        let at = names.iter().position(|&n| n == name).expect("a counter");
        rows.iter().filter(|r| r[0] == group).nth(1).expect("values")[at].to_string()
    };
    assert_eq!(value("Udp:", "OutDatagrams"), "1");
    assert_eq!(value("Udp:", "NoPorts"), "1");
    assert_eq!(value("IcmpMsg:", "OutType3"), "1");
    assert_eq!(value("Ip:", "Forwarding"), "2");
    assert_eq!(value("Tcp:", "MaxConn"), "-1");
    let netstat = read(&lab, "/proc/net/netstat");
    assert!(netstat.starts_with("TcpExt: SyncookiesSent SyncookiesRecv") && netstat.contains("\nIpExt: InNoRoutes "));
}

#[test]
fn interrupts_have_a_row_for_each_vector_and_a_column_for_each_cpu() {
    let lab = Lab::pair_with(4, HostConfig { cpus: 2, ..HostConfig::default() }, PortConfig::default());
    let text = read(&lab, "/proc/interrupts");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("           CPU0       CPU1       "));
    assert_eq!(lines.next(), Some(" 24:          0          0 PCI-MSIX-0000:00:02.0   0-edge      eth0-0"));
    let text = read(&lab, "/proc/softirqs");
    assert_eq!(text.lines().next(), Some("                    CPU0       CPU1       "));
    assert_eq!(text.lines().nth(1), Some("          HI:          0          0"));
    assert_eq!(read(&lab, "/proc/net/softnet_stat").lines().count(), 2);
}

#[test]
fn sysctls_are_files_that_can_be_read_written_and_listed() {
    let mut lab = Lab::pair(5);
    assert_eq!(read(&lab, "/proc/sys/net/ipv4/tcp_rmem"), "4096\t131072\t6291456\n");
    assert_eq!(write(&mut lab, "/proc/sys/net/ipv4/tcp_rmem", "4096 8192 16384\n"), Ok(16));
    assert_eq!(read(&lab, "/proc/sys/net/ipv4/tcp_rmem"), "4096\t8192\t16384\n");
    assert_eq!(write(&mut lab, "/proc/sys/net/ipv4/conf/all/forwarding", "1\n"), Ok(2));
    assert_eq!(read(&lab, "/proc/sys/net/ipv4/ip_forward"), "1\n");
    assert_eq!(write(&mut lab, "/proc/sys/net/ipv4/neigh/eth0/gc_stale_time", "7"), Ok(1));
    assert_eq!(read(&lab, "/proc/sys/net/ipv4/neigh/default/gc_stale_time"), "7\n");
    for (path, value, error) in [
        ("/proc/sys/net/ipv4/tcp_sack", "many", Errno::EINVAL),
        ("/proc/sys/net/ipv4/tcp_sack", "\u{0}\u{fffd}", Errno::EINVAL),
        ("/proc/sys/net/ipv4/tcp_congestion_control", "vegas", Errno::ENOENT),
        ("/proc/sys/net/ipv4/nothing", "1", Errno::ENOENT),
        ("/proc/sys/net/ipv4/neigh/eth9/gc_stale_time", "1", Errno::ENOENT),
        ("/proc/sys/net/ipv4/neigh/eth0/gc_thresh1", "1", Errno::ENOENT),
        ("/proc/sys/net/ipv4/tcp_available_congestion_control", "reno", Errno::EACCES),
        ("/proc/sys/net/ipv4", "1", Errno::EISDIR),
        ("/proc/net/dev", "1", Errno::EACCES),
        ("/proc/net/nothing", "1", Errno::ENOENT),
    ] {
        assert_eq!(write(&mut lab, path, value), Err(error), "{path} = {value:?}");
    }
    let kernel = &lab.hosts[A].kernel;
    let names = |path: &str| kernel.procfs_list(path).expect("a directory").into_iter().map(|e| (e.name, e.kind)).collect::<Vec<_>>();
    assert_eq!(names("/proc/sys/net"), [("core".to_string(), Entry::Directory), ("ipv4".to_string(), Entry::Directory)]);
    let interfaces: Vec<String> = names("/proc/sys/net/ipv4/neigh").into_iter().map(|e| e.0).collect();
    assert_eq!(interfaces, ["default", "eth0", "lo"]);
    assert_eq!(kernel.procfs_list("/proc/sys/net/ipv4/tcp_rmem"), None);
}

#[test]
fn every_file_that_is_listed_can_be_read_and_has_a_mode() {
    let lab = Lab::pair(6);
    let kernel = &lab.hosts[A].kernel;
    let mut dirs = vec!["/proc/net".to_string(), "/proc/sys/net".to_string()];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        assert_eq!(kernel.procfs_mode(&dir), Some(0o555), "{dir}");
        for entry in kernel.procfs_list(&dir).expect("a directory") {
            let path = format!("{dir}/{}", entry.name);
            assert!(procfs::covers(&path));
            assert_eq!(kernel.procfs_entry(&path), Some(entry.kind.clone()), "{path}");
            if entry.kind == Entry::Directory {
                dirs.push(path);
            } else {
                assert!(kernel.procfs_read(&path).is_some_and(|t| t.is_empty() || t.ends_with('\n')), "{path}");
                assert!(matches!(kernel.procfs_mode(&path), Some(0o644 | 0o444)), "{path}");
                files += 1;
            }
        }
    }
    assert!(files > 80, "{files}");
    for path in ["/proc/net/if_inet6", "/proc/net/tcp6", "/proc/net/wireless", "/proc/sys/net/ipv6/conf"] {
        assert!(procfs::covers(path), "{path} is the host's");
        assert_eq!(kernel.procfs_read(path), None, "{path}");
        assert_eq!(kernel.procfs_mode(path), None, "{path}");
    }
    for path in ["/proc/self/status", "/proc/sys/kernel/hostname", "/proc/network", "/proc/meminfo", "/etc/hosts"] {
        assert!(!procfs::covers(path), "{path} is not");
    }
}

#[test]
fn interfaces_are_links_to_directories_that_hold_what_is_listed() {
    let lab = Lab::pair(6);
    let kernel = &lab.hosts[A].kernel;
    let mut dirs = vec!["/sys/class/net".to_string(), "/sys/devices/virtual/net".to_string()];
    let (mut files, mut links) = (0, Vec::new());
    while let Some(dir) = dirs.pop() {
        assert_eq!(kernel.sysfs_entry(&dir), Some(Entry::Directory), "{dir}");
        for entry in kernel.sysfs_list(&dir).expect("a directory") {
            let path = format!("{dir}/{}", entry.name);
            assert_eq!(kernel.sysfs_entry(&path), Some(entry.kind.clone()), "{path}");
            match entry.kind {
                Entry::Directory => dirs.push(path),
                Entry::Link(text) => links.push((path, text)),
                Entry::File(_) => {
                    assert!(kernel.sysfs_read(&path).is_some(), "{path}");
                    files += 1;
                }
            }
        }
    }
    assert!(files > 100, "{files}");
    links.sort();
    let expected = [
        ("/sys/class/net/eth0", "../../devices/virtual/net/eth0"),
        ("/sys/class/net/lo", "../../devices/virtual/net/lo"),
        ("/sys/devices/virtual/net/eth0/subsystem", "../../../../class/net"),
        ("/sys/devices/virtual/net/lo/subsystem", "../../../../class/net"),
    ];
    assert_eq!(links, expected.map(|(path, text)| (path.to_string(), text.to_string())));
    let device = "/sys/devices/virtual/net/eth0";
    for (path, follow, at) in [
        ("/sys/class/net/eth0", false, "/sys/class/net/eth0"),
        ("/sys/class/net/eth0", true, device),
        ("/sys/class/net/eth0/mtu", false, "/sys/devices/virtual/net/eth0/mtu"),
        ("/sys/class/net/lo/subsystem/eth0/subsystem", false, "/sys/devices/virtual/net/eth0/subsystem"),
        ("/sys/class/net/lo/subsystem", true, "/sys/class/net"),
    ] {
        assert_eq!(sysfs::canonical(path, follow).as_deref(), Some(at), "{path}");
    }
    assert_eq!(kernel.sysfs_read("/sys/class/net/lo/subsystem/eth0/mtu"), Some(Some("1500\n".to_string())));
    assert_eq!((sysfs::canonical("/sys/class/network", true), sysfs::canonical("/sys/devices/virtual", true)), (None, None));
    for path in ["/sys/class/net/eth9", "/sys/class/net/eth9/mtu", "/sys/class/net/eth0/nothing", "/sys/class/net/eth0/mtu/x"] {
        assert_eq!(kernel.sysfs_entry(path), None, "{path}");
    }
}
