//! Daemons as Debian ships them that ask more of a host's network than sockets: routes, addresses, raw packets, timestamps, signals
//! beside sockets.

use crate::guest_servers::{Files, path, serve, sh};
use crate::in_site;
use ringlab_tests::lab::Lab;
use std::os::unix::fs::PermissionsExt;

/// Makes a node wait for what it will see.
fn until(lab: &Lab<'_>, node: &str, condition: &str) {
    lab.ok(lab.program(node, &["timeout", "60", "sh", "-c", &format!("until {condition}; do sleep 0.1; done")]));
}

/// Routers `r1` and `r2`, each of which runs a program.
fn routers(name: &str, programs: [Vec<String>; 2]) -> String {
    let [one, two] = programs.map(|cmd| serde_json::to_string(&cmd).expect("strings"));
    format!(
        "name: {name}\nnodes:\n  r1:\n    kind: router\n    run: [{{cmd: {one}}}]\n  r2:\n    kind: router\n    run: [{{cmd: {two}}}]\n\
         links:\n  - endpoints: [\"r1:eth0\", \"r2:eth0\"]\n    ipv4: [10.1.0.1/24, 10.1.0.2/24]\n"
    )
}

#[test]
fn bird_learns_routes_by_bgp_and_forgets_them() {
    let files = Files::new();
    let bird = |n: u32| {
        let (other, dir) = (3 - n, files.0.display());
        let conf = files.write(
            &format!("bird{n}.conf"),
            format!(
                "log stderr all;\nrouter id {n}.{n}.{n}.{n};\nprotocol device {{ scan time 1; }}\nprotocol kernel {{ ipv4 {{ export all; }}; }}\n\
                 protocol static {{ ipv4; route 172.16.{n}.0/24 blackhole; }}\n\
                 protocol bgp peer {{ local 10.1.0.{n} as 6500{n}; neighbor 10.1.0.{other} as 6500{other}; connect delay time 1; \
                 connect retry time 1; error wait time 1, 2; ipv4 {{ import all; export all; }}; }}\n"
            ),
        );
        ["/usr/sbin/bird", "-f", "-c", path(&conf), "-s", &format!("{dir}/ctl{n}")].map(str::to_owned).to_vec()
    };
    in_site(|site| {
        let lab = site.deploy(&routers("bgp", [bird(1), bird(2)]));
        for (n, other) in [(1, 2), (2, 1)] {
            until(&lab, &format!("r{n}"), &format!("ip route | grep -q '172.16.{other}.0/24 via 10.1.0.{other} .* proto bird'"));
        }
        // What one announces the other one reaches.
        sh(&lab, "r1", "ip addr add 172.16.1.1/32 dev lo");
        sh(&lab, "r2", "ping -c 1 -W 20 172.16.1.1");
        let ctl = files.0.join("ctl1");
        sh(&lab, "r1", &format!("birdc -s {} disable peer", ctl.display()));
        until(&lab, "r2", "! ip route | grep -q 172.16.1.0/24");
        sh(&lab, "r1", &format!("birdc -s {} enable peer", ctl.display()));
        until(&lab, "r2", "ip route | grep -q 172.16.1.0/24");
    });
}

#[test]
fn keepalived_moves_an_address_by_vrrp() {
    let files = Files::new();
    let keepalived = |n: u32| {
        let conf = files.write(
            &format!("vrrp{n}.conf"),
            format!(
                "global_defs {{\n router_id r{n}\n vrrp_version 3\n}}\nvrrp_instance V {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n \
                 priority {}\n advert_int 0.3\n virtual_ipaddress {{\n  10.1.0.100/24\n }}\n}}\n",
                100 + n
            ),
        );
        let at = |name: &str| files.0.join(format!("{name}{n}")).display().to_string();
        let options = ["-n", "-l", "-P", "-f", path(&conf), "-p", &at("pid"), "-r", &at("vrrp")].map(str::to_owned);
        [&["/usr/sbin/keepalived".to_owned()][..], &options].concat()
    };
    let has = "ip -4 addr show eth0 | grep -q 10.1.0.100";
    in_site(|site| {
        let lab = site.deploy(&routers("vrrp", [keepalived(1), keepalived(2)]));
        // The higher priority wins.
        until(&lab, "r2", has);
        until(&lab, "r1", &format!("! {has}"));
        // Its end is a signal, which it reads beside its sockets; its last word is that it goes.
        sh(&lab, "r2", &format!("kill $(cat {})", files.0.join("pid2").display()));
        until(&lab, "r1", has);
        until(&lab, "r2", &format!("! {has}"));
        sh(&lab, "r2", "ping -c 1 -W 20 10.1.0.100");
    });
}

#[test]
fn chrony_tells_the_time() {
    let files = Files::new();
    let dir = files.0.join("run");
    std::fs::create_dir(&dir).expect("a fresh directory");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o770)).expect("its own");
    let at = |name: &str| dir.join(name).display().to_string();
    let server = format!("local stratum 5\nallow\ncmdport 0\nbindcmdaddress /\npidfile {}\n", at("server"));
    let client = format!("server b iburst minpoll 0 maxpoll 0\nbindcmdaddress {}\npidfile {}\n", at("socket"), at("client"));
    let run = |name: &str, text: String| {
        let conf = files.write(name, text);
        ["/usr/sbin/chronyd", "-d", "-x", "-u", "root", "-f", path(&conf)].map(str::to_owned).to_vec()
    };
    let [a, b] = [run("client", client), run("server", server)].map(|cmd| serde_json::to_string(&cmd).expect("strings"));
    in_site(|site| {
        let lab = site.deploy(&format!(
            "name: ntp\nnodes:\n  a:\n    run: [{{cmd: {a}}}]\n  b:\n    run: [{{cmd: {b}}}]\nlinks:\n  - endpoints: [\"a:eth0\", \"b:eth0\"]\n    ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"
        ));
        until(&lab, "a", &format!("chronyc -n -c -h {} sources | grep -q '^^,[*],10.0.0.2,5,'", at("socket")));
    });
}

#[test]
fn rsync_carries_a_tree_to_and_fro() {
    let files = Files::new();
    let (from, to) = (files.0.join("html"), files.0.join("copy"));
    for i in 0..60usize {
        files.write(&format!("html/f{i}"), vec![i as u8; i * i * 40]);
    }
    let conf =
        files.write("rsyncd.conf", format!("use chroot = no\nuid = root\ngid = root\n[tree]\npath = {}\nread only = no\n", from.display()));
    let (from, to) = (path(&from), path(&to));
    in_site(|site| {
        let lab = serve(site, &["/usr/bin/rsync", "--daemon", "--no-detach", "--port=873", &format!("--config={}", path(&conf))], 873);
        sh(&lab, "a", &format!("rsync -a --timeout=30 rsync://b/tree/ {to}/; diff -r {from} {to}"));
        sh(
            &lab,
            "a",
            &format!("rm {to}/f7; echo more >>{to}/f50; rsync -a --delete --timeout=30 {to}/ rsync://b/tree/; diff -r {from} {to}"),
        );
    });
}
