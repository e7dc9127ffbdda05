//! Who a program thinks that it is, and what it cannot reach: identity, `/proc`, `/sys/class/net`, ways to the machine's own network.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;
use std::os::unix::net::UnixListener;

fn sh(lab: &Lab<'_>, script: &str) -> String {
    lab.ok(lab.program("a", &["sh", "-c", script]))
}

fn python(lab: &Lab<'_>, script: &str) -> String {
    lab.ok(lab.program("a", &["timeout", "60", "/usr/bin/python3", "-c", script]))
}

#[test]
fn a_program_is_on_its_host_by_whatever_name_it_asks() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(sh(&lab, "hostname; uname -n; cat /etc/hostname /proc/sys/kernel/hostname"), "a\na\na\na\n");
        let names = "
import socket
print(socket.gethostname(), socket.gethostbyname('a'), socket.gethostbyname('b'), socket.gethostbyaddr('10.0.0.2')[0])
print(socket.if_nameindex(), socket.if_nametoindex('eth0'), socket.if_indextoname(1))
";
        assert_eq!(python(&lab, names), "a 10.0.0.1 10.0.0.2 b\n[(1, 'lo'), (2, 'eth0')] 2 lo\n");
        // By getifaddrs.
        assert_eq!(sh(&lab, "hostname -I"), "10.0.0.1 \n");
        // However the path is written, and wherever one stands.
        let ways = "cat /etc/hosts | md5sum; cat /etc/../etc//hosts | md5sum; cd /etc; cat hosts | md5sum; cat ./hosts | md5sum
            cd /; cat etc/hosts | md5sum; cat /proc/self/root/etc/hosts | md5sum; cd /usr/lib; cat ../../etc/hosts | md5sum";
        let sums = sh(&lab, ways);
        assert_eq!(sums.lines().count(), 7);
        assert!(sums.lines().all(|l| Some(l) == sums.lines().next()), "{sums}");
        assert!(sh(&lab, "cat /etc/resolv.conf").starts_with("# No name server"));
    });
}

#[test]
fn proc_is_the_hosts_from_every_side() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let files = "tcp udp raw unix dev route arp snmp netstat sockstat softnet_stat packet igmp protocols netlink";
        for file in files.split(' ') {
            let ways = format!(
                "for d in /proc/net /proc/self/net /proc/$$/net /proc/thread-self/net; do head -n 1 $d/{file} | md5sum; done; cd /proc/net; head -n 1 {file} | md5sum"
            );
            let sums = sh(&lab, &ways);
            assert!(sums.lines().count() == 5 && sums.lines().all(|l| Some(l) == sums.lines().next()), "{file}: {sums}");
        }
        assert_eq!(sh(&lab, "cd /proc/self/net && tail -n +3 dev | cut -d: -f1 | tr -d ' '"), "lo\neth0\n");
        // What the host has not is not there: not even the machine's.
        let listed = sh(&lab, "ls /proc/net");
        assert!(files.split(' ').all(|f| listed.lines().any(|l| l == f)) && !listed.contains("if_inet6"), "{listed}");
        assert_eq!(sh(&lab, "cat /proc/net/if_inet6 2>&1 || true"), "cat: /proc/net/if_inet6: No such file or directory\n");
        assert!(sh(&lab, "cat /proc/interrupts").contains("eth0") && sh(&lab, "cat /proc/softirqs").contains("NET_RX"));
        let sysctl = "cd /proc/sys/net/ipv4; cat tcp_sack; echo 0 > tcp_sack; cat /proc/sys/net/ipv4/tcp_sack; cat ../ipv4/ip_forward; ls /proc/sys/net | tr '\n' ' '";
        let shown = sh(&lab, sysctl);
        assert!(shown.starts_with("1\n0\n0\n") && shown.contains("core ") && shown.contains("ipv4 "), "{shown}");
    });
}

#[test]
fn sys_class_net_shows_the_hosts_interfaces() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(sh(&lab, "ls /sys/class/net"), "eth0\nlo\n");
        let mac = lab.node("a")["interfaces"][0]["mac"].as_str().expect("a MAC").to_owned();
        let want =
            "mtu 1500\noperstate up\ncarrier 1\nifindex 2\nflags 0x1003\ntype 1\ntx_queue_len 1000\nduplex unknown\nspeed -1\naddr_len 6\n";
        // A shell's `cd` asks the machine; a program may open from the directory's descriptor.
        let walk = "
import os
d = os.open('/sys/class/net/eth0', os.O_RDONLY)
for f in 'mtu operstate carrier ifindex flags type tx_queue_len duplex speed addr_len'.split():
    print(f, os.read(os.open(f, os.O_RDONLY, dir_fd=d), 100).decode().strip())
";
        assert_eq!(python(&lab, walk), want);
        assert_eq!(
            sh(&lab, "cat /sys/class/net/eth0/address /sys/class/net/lo/flags /sys/class/net/lo/type"),
            format!("{mac}\n0x9\n772\n")
        );
        assert_eq!(sh(&lab, "ls /sys/class/net/eth0/queues; ls /sys/class/net/eth0/queues/rx-0"), "rx-0\ntx-0\nrps_cpus\nrps_flow_cnt\n");
        assert_eq!(sh(&lab, "ls /sys/class/net/eth0/statistics | wc -l"), "24\n");
        let counted =
            "cat /sys/class/net/eth0/statistics/rx_packets; curl -s http://b/ > /dev/null; cat /sys/class/net/eth0/statistics/rx_packets";
        let counts: Vec<u64> = sh(&lab, counted).lines().map(|l| l.parse().expect("a number")).collect();
        assert!(counts[1] > counts[0], "{counts:?}");
        // It follows what changes.
        let changed = "ip link set eth0 down; cat /sys/class/net/eth0/operstate; cat /sys/class/net/eth0/carrier 2>&1; ip link set eth0 name wan; ls /sys/class/net; cat /sys/class/net/wan/ifindex; cat /sys/class/net/eth0/mtu 2>&1; true";
        let want = "down\ncat: /sys/class/net/eth0/carrier: Invalid argument\nlo\nwan\n2\ncat: /sys/class/net/eth0/mtu: No such file or directory\n";
        assert_eq!(sh(&lab, changed), want);
        assert_eq!(sh(&lab, "echo 9 > /sys/class/net/wan/mtu 2>/dev/null || echo refused"), "refused\n");
    });
}

#[test]
fn who_asks_about_a_path_without_opening_it_hears_of_the_host() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        // As scripts ask: whatever the machine has at these paths.
        let asked = "
for p in /sys/class/net/eth0 /sys/class/net/../net/lo/mtu /proc/sys/net/ipv4/conf/eth0 /proc/self/net/tcp /proc/net /etc/resolv.conf \\
    /sys/class/net/eth9 /sys/class/net/docker0 /sys/class/net/eth0/device /proc/sys/net/ipv6 /proc/net/if_inet6 /proc/sys/net/netfilter; do
  if test -e $p; then echo -n + ; else echo -n - ; fi
done; echo
test -d /sys/class/net/eth0 && test -L /sys/class/net/eth0 && test ! -L /sys/class/net/eth0/ && test -f /proc/net/dev && echo kinds
test -r /proc/net/dev && test ! -w /proc/net/dev && test -w /proc/sys/net/ipv4/ip_forward && test ! -w /sys/class/net/lo/mtu && test ! -x /etc/hosts && echo rights
readlink /sys/class/net/eth0 /sys/class/net/eth0/subsystem; readlink -f /sys/class/net/eth0/mtu; readlink /sys/class/net/lo/mtu || echo no link
cat /sys/class/net/*/mtu; cd /sys/class/net; echo */mtu; cat eth0/mtu; test -e lo/mtu -a ! -e eth9 && pwd -P; cd ../net/eth9 2>/dev/null || echo no eth9
ls -l /sys/class/net | tail -n +2 | cut -c 1-10; stat -c '%A %U %G %s' /proc/net/tcp /sys/class/net/eth0/mtu; ls -l /sys/class/net/lo/ 2>&1 >/dev/null
test $(wc -c < /etc/hosts) = $(stat -c %s /etc/hosts) && stat -c '%F %a' /etc/hosts /sys/class/net/eth0 /sys/class/net/eth0/
";
        let want = "++++++------
kinds
rights
../../devices/virtual/net/eth0
../../../../class/net
/sys/devices/virtual/net/eth0/mtu
no link
1500
65536
eth0/mtu lo/mtu
1500
/sys/class/net
no eth9
lrwxrwxrwx
lrwxrwxrwx
-r--r--r-- root root 0
-r--r--r-- root root 4096
regular file 644
symbolic link 777
directory 755
";
        assert_eq!(sh(&lab, asked), want);
        // Who walks: names, and the numbers by which a walk knows that it is where it looked.
        assert_eq!(
            sh(&lab, "find /sys/class/net /proc/sys/net -maxdepth 1 | sort | tr '\n' ' '"),
            "/proc/sys/net /proc/sys/net/core /proc/sys/net/ipv4 /sys/class/net /sys/class/net/eth0 /sys/class/net/lo "
        );
        let same = "grep -r . /proc/sys/net/ipv4/conf/eth0 | wc -l; find -L /sys/class/net/eth0/ -maxdepth 2 -name rx_packets; du -s /sys/class/net/ > /dev/null && echo walked";
        assert_eq!(sh(&lab, same), "13\n/sys/class/net/eth0/statistics/rx_packets\nwalked\n");
        let from_descriptors = "
import os
d = os.open('/sys/class/net', os.O_RDONLY); os.fchdir(d)
print(os.getcwd(), os.readlink('/proc/self/cwd'), os.stat('eth0/mtu', dir_fd=d).st_size, os.readlink('eth0', dir_fd=d), os.path.exists('eth9'))
print(os.fstat(d).st_ino == os.stat('/sys/class/net').st_ino, os.path.realpath('lo/mtu'), open('lo/mtu').read().strip())
f = os.open('/proc/net/tcp', os.O_RDONLY); w = os.open('/proc/sys/net/ipv4/ip_forward', os.O_RDWR)
print(os.readlink(f'/proc/self/fd/{f}'), os.readlink(f'/proc/self/fd/{w}'))
def errno_of(what, *args, **more):
    try: what(*args, **more)
    except OSError as e: return e.strerror
print([errno_of(os.stat, '/proc/net/tcp/x'), errno_of(os.chdir, '/proc/net/tcp'), errno_of(os.open, '/sys/class/net/lo', os.O_NOFOLLOW),
       errno_of(os.getxattr, '/sys/class/net/eth0/mtu', 'user.x'), errno_of(os.stat, '/sys/class/net/eth9')], os.listxattr('/sys/class/net/eth0/mtu'))
";
        let want = "/sys/class/net /sys/class/net 4096 ../../devices/virtual/net/eth0 False
True /sys/devices/virtual/net/lo/mtu 65536
/proc/net/tcp /proc/sys/net/ipv4/ip_forward
['Not a directory', 'Not a directory', 'Too many levels of symbolic links', 'No data available', 'No such file or directory'] []
";
        assert_eq!(python(&lab, from_descriptors), want);
        // It follows what changes.
        let changed = "ip link set eth0 down; ip link set eth0 name wan; test ! -e /sys/class/net/eth0 -a -d /sys/class/net/wan/queues/rx-0 && ls /proc/sys/net/ipv4/conf | tr '\n' ' '";
        assert_eq!(sh(&lab, changed), "all default lo wan ");
    });
}

#[test]
fn no_call_leads_to_the_machines_network() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let script = "
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    return errno.errorcode.get(ctypes.get_errno(), '?') if libc.syscall(*[ctypes.c_long(x) for x in a]) < 0 else 'ok'
modelled = [1, 2, 10, 16, 17]
odd = [f for f in range(50) if f not in modelled and (call(41, f, 1, 0), call(41, f, 2, 0), call(41, f, 3, 0)) != ('EAFNOSUPPORT',) * 3]
print('families', odd)
print('netlink', [p for p in range(1, 24) if p not in (4, 16) and call(41, 16, 3, p) != 'EPROTONOSUPPORT'])
print('uring', call(425, 8, 0), call(426, 0, 0, 0, 0, 0), call(427, 0, 0, 0, 0))
pid = os.pidfd_open(os.getppid())
print('getfd', call(438, pid, 0, 0))
s = socket.socket()
try: os.open(f'/proc/self/fd/{s.fileno()}', os.O_RDWR)
except OSError as e: print('reopen', errno.errorcode[e.errno])
print('names', call(170, 0, 0), call(171, 0, 0))
s.close(); os.close(pid)
fds = os.listdir('/proc/self/fd')
print('inherited', sorted(int(f) for f in fds if os.path.exists(f'/proc/self/fd/{f}')))
";
        let want =
            "families []\nnetlink []\nuring ENOSYS ENOSYS ENOSYS\ngetfd EPERM\nreopen ENXIO\nnames EPERM EPERM\ninherited [0, 1, 2]\n";
        assert_eq!(python(&lab, script), want);
    });
}

#[test]
fn a_socket_of_the_machine_that_somebody_passes_is_of_no_use() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let path = site.dir.join("passes");
        let listener = UnixListener::bind(&path).expect("a socket");
        let machine = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of the machine");
        let address = machine.local_addr().expect("bound");
        let giver = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("the program connects");
            let inet = std::net::TcpStream::connect(address).expect("the machine's");
            let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("the machine's");
            let (pair, _kept) = std::os::unix::net::UnixStream::pair().expect("a pair");
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
            let fds = [&inet as &dyn std::os::fd::AsFd, &udp, &pair].map(|fd| fd.as_fd());
            assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            let octet = [std::io::IoSlice::new(b"x")];
            rustix::net::sendmsg(&stream, &octet, &mut ancillary, rustix::net::SendFlags::empty()).expect("sent");
            // They stay until the program has gone.
            let mut end = [0];
            assert_eq!(std::io::Read::read(&mut &stream, &mut end).expect("its end"), 0);
        });
        let script = format!(
            "
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    return errno.errorcode.get(ctypes.get_errno(), '?') if libc.syscall(*[ctypes.c_long(x) for x in a]) < 0 else 'ok'
u = socket.socket(socket.AF_UNIX); u.connect({:?})
_, fds, _, _ = socket.recv_fds(u, 1, 3)
file = os.open('/etc/passwd', os.O_RDONLY)
buf = ctypes.create_string_buffer(64); at = ctypes.addressof(buf)
for fd in [fds[0], os.dup(fds[1])]:
    # read write sendto getsockname connect sendmsg setsockopt sendfile
    print(call(0, fd, at, 1), call(1, fd, at, 1), call(44, fd, at, 1, 0, 0, 0), call(51, fd, at, at), call(42, fd, at, 16), call(46, fd, at, 0),
          call(54, fd, 1, 2, at, 4), call(40, fd, file, 0, 10))
ctx = ctypes.c_ulong(); print(call(206, 4, ctypes.addressof(ctx)))
def submit(*fds):
    blocks = [(ctypes.c_uint32 * 16)(0, 0, 0, 0, 0, f, at & 0xffffffff, at >> 32, 1) for f in fds]
    pointers = (ctypes.c_ulong * len(fds))(*map(ctypes.addressof, blocks))
    return call(209, ctx.value, len(fds), ctypes.addressof(pointers))
own = socket.socket()
print(submit(file), submit(fds[0]), submit(file, fds[0]), submit(own.fileno()), call(209, ctx.value, 1, 8))
p = socket.socket(fileno=fds[2]); print(p.family == socket.AF_UNIX, p.getsockname() == '')
print([call(3, fd) for fd in fds[:2]])
",
            path.to_str().expect("UTF-8")
        );
        let refused = ["EACCES"; 8].join(" ");
        assert_eq!(python(&lab, &script), format!("{refused}\n{refused}\nok\nok EACCES EACCES EINVAL EFAULT\nTrue True\n['ok', 'ok']\n"));
        giver.join().expect("it has given");
        std::fs::remove_file(&path).expect("removed");
    });
}
