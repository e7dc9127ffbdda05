//! `AF_PACKET` by unmodified programs: tcpdump, and a ring in a program's own memory.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;

/// Starts `tcpdump OPTIONS` on `a`, runs `then` when it listens, waits for it.
fn captured(lab: &Lab<'_>, options: &str, then: &str) -> String {
    let script = format!(
        "d=$(mktemp -d); chmod 777 $d; cd $d; trap 'rm -r $d' EXIT
         tcpdump -n {options} >out 2>said & p=$!
         until grep -q 'listening on' said; do kill -0 $p || {{ cat said; exit 1; }}; sleep 0.05; done
         {then}
         wait $p; [ ! -e file ] || tcpdump -n -r file >out 2>/dev/null; cat out said"
    );
    lab.ok(lab.program("a", &["timeout", "60", "sh", "-ec", &script]))
}

#[test]
fn tcpdump_shows_both_directions_and_counts() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let text = captured(&lab, "-e -i eth0 -c 4 icmp or arp", "ping -c 1 b >/dev/null");
        let lines: Vec<&str> = text.lines().collect();
        let wanted = [
            "Request who-has 10.0.0.2 tell 10.0.0.1",
            "Reply 10.0.0.2 is-at",
            "10.0.0.1 > 10.0.0.2: ICMP echo request",
            "10.0.0.2 > 10.0.0.1: ICMP echo reply",
        ];
        for (line, want) in lines.iter().zip(wanted) {
            assert!(line.contains(want), "{want}: {text}");
        }
        assert!(text.contains("4 packets captured\n") && text.contains("\n0 packets dropped by kernel\n"), "{text}");
    });
}

#[test]
fn tcpdump_filters_on_all_interfaces_and_at_once() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let fetch = "ping -c 1 127.0.0.1 >/dev/null; curl -sf http://b/ >/dev/null";
        let text = captured(&lab, "-A -i any -c 2 'tcp[tcpflags] & tcp-push != 0'", fetch);
        assert!(text.contains("eth0  Out IP 10.0.0.1.") && text.contains("GET / HTTP/1.1"), "{text}");
        assert!(text.contains("eth0  In  IP 10.0.0.2.80 > ") && text.contains("\nhello"), "{text}");
        // Without blocks that fill: frames one by one (`TPACKET_V2`).
        let text = captured(&lab, "--immediate-mode -i lo -c 2", fetch);
        assert!(text.contains("IP 127.0.0.1 > 127.0.0.1: ICMP echo request") && text.contains("ICMP echo reply"), "{text}");
    });
}

#[test]
fn tcpdump_writes_a_file_until_it_is_interrupted() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        let then = "ping -q -c 3 -i 0.2 b >/dev/null
             until [ $(tcpdump -r file 2>/dev/null | grep -c ICMP) = 6 ]; do sleep 0.05; done
             kill -INT $p";
        let text = captured(&lab, "-U -i eth0 -w file icmp", then);
        assert_eq!((text.matches("echo request").count(), text.matches("echo reply").count()), (3, 3), "{text}");
        assert!(text.contains("6 packets captured"), "{text}");
        assert_eq!(lab.ok(lab.program("a", &["grep", "-c", "", "/proc/net/packet"])), "1\n", "the heading: no socket is left");
    });
}

#[test]
fn a_ring_lies_in_the_programs_memory_and_its_socket_stays_one() {
    let script = "
import socket, mmap, struct, select, os, stat
SOL_PACKET, VERSION, RX_RING = 263, 10, 5
def refused(f):
    try: f(); return 'done'
    except OSError as e: return e.strerror
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
t = socket.socket()
print(refused(lambda: mmap.mmap(s.fileno(), 8192)), '/', refused(lambda: mmap.mmap(t.fileno(), 8192)))
s.setsockopt(SOL_PACKET, VERSION, 1)
ring = struct.pack('IIII', 4096, 2, 2048, 4)
print(refused(lambda: s.setsockopt(SOL_PACKET, RX_RING, struct.pack('IIII', 4095, 2, 2048, 4))))
print(refused(lambda: s.setsockopt(SOL_PACKET, RX_RING, struct.pack('IIII', 1 << 20, 4095, 2048, 4095 * 512))))
s.setsockopt(SOL_PACKET, RX_RING, ring)
print(refused(lambda: s.setsockopt(SOL_PACKET, RX_RING, ring)), '/', refused(lambda: mmap.mmap(s.fileno(), 4096)))
d = s.dup()
m = mmap.mmap(s.fileno(), 8192)
s.bind(('lo', 3))
print(stat.S_ISSOCK(os.fstat(s.fileno()).st_mode), os.get_inheritable(s.fileno()))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 7)); u.connect(('127.0.0.1', 7))
for i in range(3):
    u.send(b'frame %d' % i)
    for at in (i * 2, i * 2 + 1):
        at = at % 4 * 2048
        while not m[at] & 1: select.select([s], [], [])
        size, mac = struct.unpack('I', m[at + 4:at + 8])[0], struct.unpack('H', m[at + 12:at + 14])[0]
        print(size, m[at + mac + 42:at + mac + size].decode(), end='; ')
        m[at:at + 4] = bytes(4)
print()
s.close(); print(open('/proc/net/packet').read().count('\\n'))
d.close(); m.close(); print(open('/proc/net/packet').read().count('\\n'))
";
    let want = "Invalid argument / No such device\nInvalid argument\nCannot allocate memory\nDevice or resource busy / Invalid argument\nTrue False\n\
                49 frame 0; 49 frame 0; 49 frame 1; 49 frame 1; 49 frame 2; 49 frame 2; \n2\n1\n";
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(lab.ok(lab.program("a", &["timeout", "60", "python3", "-c", script])), want);
    });
}
