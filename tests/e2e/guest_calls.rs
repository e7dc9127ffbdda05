//! How the calls of unmodified programs behave where descriptors, signals and processes meet.

use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Lab;

fn python(lab: &Lab<'_>, script: &str) -> String {
    lab.ok(lab.program("a", &["timeout", "60", "python3", "-c", script]))
}

/// Runs a script on `a`; `b` serves HTTP.
fn prints(script: &str, want: &str) {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(python(&lab, script), want);
    });
}

const GET: &str = "
import socket, os, threading, select, signal, asyncio
def get():
    s = socket.create_connection(('b', 80)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); d = b''
    while c := s.recv(100): d += c
    return d.endswith(b'hello')
";

#[test]
fn threads_share_descriptors_and_children_inherit_them() {
    let script = "
ok = []
ts = [threading.Thread(target=lambda: ok.append(get())) for _ in range(20)]
[t.start() for t in ts]; [t.join() for t in ts]
print(len(ok), all(ok))
s = socket.create_connection(('b', 80))
if (pid := os.fork()) == 0:
    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
d = b''
while c := s.recv(100): d += c
print(d.endswith(b'hello'))
";
    prints(&format!("{GET}{script}"), "20 True\n5\nTrue\n");
}

#[test]
fn sockets_pass_over_unix_sockets_and_close_with_the_last_reference() {
    let script = "
a, b = socket.socketpair()
s = socket.socket(); s.bind(('0.0.0.0', 7777)); s.listen()
socket.send_fds(a, [b'x'], [s.fileno()]); s.close()
_, fds, _, _ = socket.recv_fds(b, 1, 1)
t = socket.socket(fileno=fds[0]); print(t.getsockname())
u = t.dup(); t.close()
try: socket.socket().bind(('0.0.0.0', 7777))
except OSError as e: print(e.strerror)
u.close()
s = socket.socket(); s.bind(('0.0.0.0', 7777)); s.listen(); print('bound')
";
    prints(&format!("{GET}{script}"), "('0.0.0.0', 7777)\nAddress already in use\nbound\n");
}

#[test]
fn one_epoll_set_holds_sockets_and_pipes() {
    let script = "
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
r, w = os.pipe(); ep = select.epoll()
ep.register(l, select.EPOLLIN); ep.register(r, select.EPOLLIN)
print(ep.poll(0))
os.write(w, b'x'); print([f == r for f, _ in ep.poll(5)])
c = socket.create_connection(l.getsockname()); print(sorted(f in (r, l.fileno()) for f, _ in ep.poll(5)))
os.read(r, 1); print([f == l.fileno() for f, _ in ep.poll(5)])
d, _ = l.accept(); print(ep.poll(0))
threading.Timer(0.2, lambda: os.write(w, b'y')).start(); print([f == r for f, _ in ep.poll(5)])
os.read(r, 1)
threading.Timer(0.2, lambda: socket.create_connection(l.getsockname())).start(); print([f == l.fileno() for f, _ in ep.poll(5)])
p = select.poll(); p.register(d, select.POLLIN); p.register(r, select.POLLIN); print(p.poll(0))
threading.Timer(0.2, lambda: os.write(w, b'z')).start(); print([f == r for f, _ in p.poll(5000)])
os.read(r, 1); threading.Timer(0.2, lambda: c.send(b'q')).start(); print([f == d.fileno() for f, _ in p.poll(5000)])
print([x == [d] or x for x in select.select([d, r], [], [], 5)])
";
    let want = "[]\n[True]\n[True, True]\n[True]\n[]\n[True]\n[True]\n[]\n[True]\n[True]\n[True, [], []]\n";
    prints(&format!("{GET}{script}"), want);
}

#[test]
fn sendfile_of_a_file_that_comes_in_small_pieces_ends() {
    // `/proc` gives a page at a time: more than a thousand pieces, none of which waits.
    let script = "
open('/proc/sys/net/core/wmem_max', 'w').write('33554432')
l = socket.create_server(('127.0.0.1', 0)); c = socket.socket()
c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24); c.connect(l.getsockname()); d, _ = l.accept()
f = open('/proc/kallsyms', 'rb'); c.setblocking(False); n = os.sendfile(c.fileno(), f.fileno(), None, 1 << 24); c.close()
got = b''.join(iter(lambda: d.recv(1 << 20), b''))
print(n > 1 << 20, got == open('/proc/kallsyms', 'rb').read(n))
";
    prints(&format!("{GET}{script}"), "True True\n");
}

#[test]
fn asyncio_opens_fifty_connections() {
    let script = "
async def one():
    r, w = await asyncio.open_connection('b', 80); w.write(b'GET / HTTP/1.0\\r\\n\\r\\n'); d = await r.read(); w.close(); return d.endswith(b'hello')
async def main(): print(all(await asyncio.gather(*[one() for _ in range(50)])))
asyncio.run(main())
";
    prints(&format!("{GET}{script}"), "True\n");
}

#[test]
fn signals_end_waiting_calls() {
    // The C library's call, so that the interpreter does not repeat it.
    let script = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))
def interrupted(restart, call):
    signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    n = call(); return n, os.strerror(ctypes.get_errno()) if n < 0 else ''
buf = ctypes.create_string_buffer(16)
print(interrupted(False, lambda: libc.recv(s.fileno(), buf, 16, 0)))
ep = select.epoll(); ep.register(s, select.EPOLLIN)
print(interrupted(True, lambda: libc.epoll_wait(ep.fileno(), buf, 1, -1)))
threading.Timer(1, lambda: s.sendto(b'late', s.getsockname())).start()
print(interrupted(True, lambda: libc.recv(s.fileno(), buf, 16, 0)))
r = socket.create_connection(('b', 80)); r.close
signal.signal(signal.SIGPIPE, lambda *_: print('SIGPIPE'))
r.shutdown(socket.SHUT_WR)
try: r.send(b'x')
except BrokenPipeError: print('EPIPE')
";
    let want = "(-1, 'Interrupted system call')\n(-1, 'Interrupted system call')\n(4, '')\nSIGPIPE\nEPIPE\n";
    prints(&format!("{GET}{script}"), want);
}

#[test]
fn the_machines_own_network_is_out_of_reach() {
    in_site(|site| {
        let machine = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of the machine");
        let port = machine.local_addr().expect("bound").port();
        let lab = site.deploy(TWO_HOSTS);
        let refused =
            lab.program("a", &["curl", "-sS", "--max-time", "10", &format!("http://127.0.0.1:{port}/")]).output().expect("labctl starts");
        assert_eq!(refused.status.code(), Some(7));
        let names = lab.ok(lab.program("a", &["ip", "-o", "link"]));
        assert_eq!(names.lines().map(|l| l.split(' ').nth(1).unwrap_or("")).collect::<Vec<_>>(), ["lo:", "eth0:"]);
        let sysctl = "cat /proc/sys/net/ipv4/tcp_congestion_control; echo reno > /proc/sys/net/ipv4/tcp_congestion_control; cat /proc/sys/net/ipv4/tcp_congestion_control";
        assert_eq!(lab.ok(lab.program("a", &["sh", "-ec", sysctl])), "cubic\nreno\n");
    });
}

#[test]
fn wild_pointers_and_numbers_harm_only_the_program() {
    let script = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
call = lambda *a: (libc.syscall(*[ctypes.c_long(x) for x in a]), ctypes.get_errno())[1]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); n = s.fileno()
s.sendto(b'x', s.getsockname())
wild = [8, -1, 1 << 62]
for w in wild:
    call(45, n, w, 100, 64, 0, 0); call(44, n, w, 100, 0, w, 16); call(46, n, w, 0); call(47, n, w, 64)
    call(54, n, 1, 2, w, 4); call(55, n, 1, 2, w, w); call(49, n, w, 16); call(42, n, w, w); call(7, w, 3, 0)
    call(23, 64, w, w, w, w); call(20, n, w, 1000); call(19, n, w, w); call(257, -100, w, 0); call(16, n, 0x8912, w)
    call(307, n, w, 5, 0); call(299, n, w, 5, 64, w); call(63, w); call(232, w, w, w, 0); call(3, 1 << 40); call(436, w, w, 0)
libc.getsockopt.restype = ctypes.c_int
print('alive', get())
";
    prints(&format!("{GET}{script}"), "alive True\n");
}

#[test]
fn accept_without_a_free_descriptor_leaves_the_connection_in_its_queue() {
    let script = "
import resource
l = socket.create_server(('127.0.0.1', 0)); l.setblocking(False)
c = [socket.create_connection(l.getsockname()) for _ in range(2)]
p = select.poll(); p.register(l, select.POLLIN)
n = os.dup(0); os.close(n)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (n, hard))
for _ in range(3):
    try: l.accept()
    except OSError as e: print(e.strerror, len(p.poll(0)))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
s = [l.accept() for _ in range(2)]
print([a == c[i].getsockname() for i, (_, a) in enumerate(s)], p.poll(0))
c[0].send(b'x'); c[1].send(b'y'); print(s[0][0].recv(9), s[1][0].recv(9))
";
    let refused = "Too many open files 1\n".repeat(3);
    prints(&format!("{GET}{script}"), &format!("{refused}[True, True] []\nb'x' b'y'\n"));
}

#[test]
fn addresses_are_looked_at_in_linuxs_order() {
    let script = "
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    ctypes.set_errno(0); n = libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in a])
    return errno.errorcode[ctypes.get_errno()] if n < 0 else n
s, u = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
six = socket.socket(socket.AF_INET6)
addr = ctypes.create_string_buffer(b'\\x0a\\x00' + bytes(26))
print(*[call(nr, x.fileno(), addr, n) for nr in (49, 42) for x in (s, u, six) for n in (15, 16)])
print(call(44, u.fileno(), addr, 1, 0, addr, 16))
kernel = -1 << 47
e = select.epoll()
print(*[call(nr, u.fileno(), kernel, 0, 0x40, 0, 0) for nr in (45, 44, 0, 1)], call(232, e.fileno(), kernel, 1, 0))
";
    let want = "EINVAL EAFNOSUPPORT EINVAL EAFNOSUPPORT EINVAL EINVAL EINVAL EAFNOSUPPORT EINVAL EAFNOSUPPORT EINVAL EINVAL\nEAFNOSUPPORT\nEFAULT EFAULT EFAULT EFAULT EFAULT\n";
    prints(&format!("{GET}{script}"), want);
}

#[test]
fn a_number_whose_socket_is_replaced_unseen_is_what_it_is_now() {
    crate::guest_signals::same_of("tables", &[&["shared"], &["split"], &["i386"]]);
}
