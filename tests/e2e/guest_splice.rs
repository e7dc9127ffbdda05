//! `splice` of unmodified programs: octets that go through a pipe from one modelled socket to another.

use crate::guest_profile::under_a_containers_profile;
use crate::{TWO_HOSTS, in_site};
use ringlab_tests::lab::Site;
use std::process::Command;

/// A relay: a source on one thread, `splice` from its connection into a pipe and from there to the sink, over an event
/// loop, without and with `O_NONBLOCK`; a named pipe between two processes; a pipe whose reader is gone.
const RELAY: &str = "
import hashlib, os, select, signal, socket, threading
SIZE = 3 << 20
DATA = bytes(range(251)) * (SIZE // 251 + 1)
def pair():
    l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); return c, l.accept()[0]
def relay(blocking):
    source, a = pair(); b, sink = pair(); r, w = os.pipe(); got = hashlib.sha256()
    for s in (a, b): s.setblocking(blocking)
    def give(): source.sendall(DATA); source.close()
    def take():
        while d := sink.recv(1 << 16): got.update(d)
    threads = [threading.Thread(target=t, daemon=True) for t in (give, take)]; [t.start() for t in threads]
    flags = 0 if blocking else os.SPLICE_F_NONBLOCK
    p = select.poll(); held = 0; ended = False
    while held or not ended:
        if not blocking:
            p.register(a, 0 if ended or held > 30000 else select.POLLIN); p.register(b, select.POLLOUT if held else 0); p.poll()
        try:
            if not ended and held <= 30000:
                n = os.splice(a.fileno(), w, 1 << 20, flags=flags); held += n; ended = n == 0
        except BlockingIOError: pass
        try:
            if held: held -= os.splice(r, b.fileno(), held, flags=flags | os.SPLICE_F_MOVE)
        except BlockingIOError: pass
    b.close(); [t.join() for t in threads]
    return got.digest() == hashlib.sha256(DATA).digest()
print(relay(True), relay(False))
path = os.path.join(os.environ['HOME'], 'fifo'); os.mkfifo(path)
c, s = pair()
if (pid := os.fork()) == 0:
    with open(path, 'wb') as f: f.write(DATA[:300000])
    os._exit(0)
n, got = 0, threading.Thread(target=lambda: print(sum(iter(lambda: len(s.recv(1 << 16)), 0))))
got.start()
with open(path, 'rb', 0) as f:
    while m := os.splice(f.fileno(), c.fileno(), 1 << 20): n += m
c.close(); got.join(); os.waitpid(pid, 0); os.unlink(path); print(n)
c, s = pair(); r, w = os.pipe(); os.close(r); c.send(b'kept')
signal.signal(signal.SIGPIPE, lambda *_: print('SIGPIPE'))
try: os.splice(s.fileno(), w, 10)
except BrokenPipeError: print('EPIPE', s.recv(9))
";
const RELAYED: &str = "True True\n300000\n300000\nSIGPIPE\nEPIPE b'kept'\n";

fn relays(site: &Site, wrap: impl Fn(Command) -> Command) {
    let file = site.file("two.yaml", TWO_HOSTS);
    let home = format!("HOME={}", site.dir.display());
    let run = |args: &[&str]| {
        let out = wrap(site.labctl(args)).output().expect("starts");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(out.status.success(), "{args:?}: {}\n{}\n{}", text(&out.stdout), text(&out.stderr), site.logs());
        text(&out.stdout)
    };
    run(&["deploy", &file]);
    assert_eq!(run(&["exec", "a", "--", "env", &home, "timeout", "60", "python3", "-c", RELAY]), RELAYED);
    run(&["destroy", "--all"]);
}

#[test]
fn octets_are_relayed_by_splice() {
    in_site(|site| relays(site, |command| command));
}

#[test]
fn octets_are_relayed_by_splice_in_a_container() {
    in_site(|site| relays(site, |command| under_a_containers_profile(&command)));
}
