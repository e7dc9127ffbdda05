//! Debian's own network tools on an emulated host: what they show and change is the host's.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;

/// Standard output and error of a program on host `a`.
fn run(lab: &Lab<'_>, args: &[&str]) -> String {
    let out = lab.program("a", args).output().expect("labctl starts");
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

fn expect(lab: &Lab<'_>, cases: &[(&str, &str)]) {
    for (command, want) in cases {
        let args: Vec<&str> = command.split(' ').collect();
        assert_eq!(run(lab, &args), *want, "{command}");
    }
}

#[test]
fn ip_shows_and_changes_addresses_routes_and_neighbours() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let addr = run(&lab, &["ip", "-4", "-o", "addr"]);
        let lo = addr.contains("lo    inet 127.0.0.1/8 scope host lo");
        assert!(lo && addr.contains("eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth0"), "{addr}");
        let link = run(&lab, &["ip", "-s", "link", "show", "eth0"]);
        assert!(
            link.starts_with(
                "2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc pfifo_fast state UP mode DEFAULT group default qlen 1000\n"
            ),
            "{link}"
        );
        expect(
            &lab,
            &[
                ("ip route", "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1 \n"),
                ("ip route get 10.0.0.2", "10.0.0.2 dev eth0 src 10.0.0.1 uid 0 \n    cache \n"),
                ("ip route get 8.8.8.8", "RTNETLINK answers: Network is unreachable\n"),
                ("ip addr add 10.8.0.1/24 dev eth0", ""),
                ("ip addr add 10.8.0.1/24 dev eth0", "Error: ipv4: Address already assigned.\n"),
                ("ip route add 10.7.0.0/16 via 10.0.0.2 metric 5", ""),
                ("ip route add blackhole 10.22.0.0/16", ""),
                ("ip route show 10.7.0.0/16", "10.7.0.0/16 via 10.0.0.2 dev eth0 metric 5 \n"),
                ("ip route get 10.22.0.1", "RTNETLINK answers: Invalid argument\n"),
                ("ip route del 10.99.0.0/16", "RTNETLINK answers: No such process\n"),
                ("ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev eth0", ""),
                ("ip neigh show 10.0.0.7", "10.0.0.7 dev eth0 lladdr 02:00:00:00:00:07 PERMANENT \n"),
                ("ip link set eth0 mtu 20", "Error: mtu less than device minimum.\n"),
                ("ip link set eth0 down", ""),
                ("ip route", "blackhole 10.22.0.0/16 \n"),
                ("ip link set eth0 name wan", ""),
                ("ip link set wan up", ""),
                ("ip -br addr show wan", "wan              UP             10.0.0.1/24 10.8.0.1/24 \n"),
                ("ip rule", "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n32767:\tfrom all lookup default\n"),
            ],
        );
    });
}

#[test]
fn sysctl_nstat_and_ss_read_the_host() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        expect(
            &lab,
            &[
                ("sysctl net.ipv4.tcp_rmem", "net.ipv4.tcp_rmem = 4096\t131072\t6291456\n"),
                ("sysctl -w net.ipv4.tcp_sack=0", "net.ipv4.tcp_sack = 0\n"),
                ("cat /proc/sys/net/ipv4/tcp_sack", "0\n"),
            ],
        );
        let nothing = run(&lab, &["sysctl", "net.ipv4.nothing"]);
        assert!(nothing.contains("cannot stat /proc/sys/net/ipv4/nothing"), "{nothing}");
        let out = lab.program("b", &["ss", "-Htln"]).output().expect("labctl starts");
        let listening = String::from_utf8_lossy(&out.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(listening.starts_with("LISTEN 0 ") && listening.ends_with("0.0.0.0:80 0.0.0.0:*"), "{listening}");
        let nstat = run(&lab, &["nstat", "-az", "TcpActiveOpens"]);
        assert!(nstat.contains("TcpActiveOpens"), "{nstat}");
    });
}
