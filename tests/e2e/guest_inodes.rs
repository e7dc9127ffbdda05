//! Tools that look for the process behind a socket: the number that tables show is the one of the descriptor.

use crate::{TWO_HOSTS, in_site};

/// A server, a connection and a datagram socket; then what others say of them, and what is left when they are closed.
const NAMED: &str = "
import os, re, socket, subprocess
def says(*argv): return subprocess.run(argv, capture_output=True, text=True).stdout
me = os.getpid()
l = socket.create_server(('0.0.0.0', 8080)); c = socket.create_connection(('127.0.0.1', 8080)); s, _ = l.accept()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('0.0.0.0', 5353))
def user(text, fd): return f'users:((\"python3\",pid={me},fd={fd}))' in text
print(user(says('ss', '-Htlnp', 'sport', '= 8080'), l.fileno()), user(says('ss', '-Hulnp', 'sport', '= 5353'), u.fileno()))
both = says('ss', '-Htnp', 'sport', '= 8080', 'or', 'dport', '= 8080').splitlines()
print([any(user(line, x.fileno()) for line in both) for x in (c, s)])
inode = lambda x: os.fstat(x.fileno()).st_ino
print([os.readlink(f'/proc/self/fd/{x.fileno()}') == f'socket:[{inode(x)}]' for x in (l, c, u)])
table = lambda name: [line.split()[9] for line in open(f'/proc/net/{name}').read().splitlines()[1:]]
print([str(inode(x)) in table(name) for x, name in ((l, 'tcp'), (c, 'tcp'), (s, 'tcp'), (u, 'udp'))])
# In a child, and passed on: it is the same.
if (pid := os.fork()) == 0:
    print(str(os.fstat(l.fileno()).st_ino) in table('tcp'), flush=True); os._exit(0)
os.waitpid(pid, 0)
known = inode(c)
c.close()
print(str(known) in table('tcp'), [line.split()[3] in ('04', '05') for line in open('/proc/net/tcp').read().splitlines()[1:] if line.split()[9] == '0'])
print(says('fuser', '8080/tcp').split() == [str(me)], str(me) in says('lsof', '-nPt', '-i', 'tcp:8080').split())
";
const WANT: &str = "True True\n[True, True]\n[True, True, True]\n[True, True, True, True]\nTrue\nFalse [True]\nTrue True\n";

#[test]
fn ss_fuser_and_lsof_name_the_process_of_a_socket() {
    in_site(|site| {
        let lab = site.deploy(TWO_HOSTS);
        assert_eq!(lab.ok(lab.program("a", &["timeout", "60", "python3", "-c", NAMED])), WANT);
    });
}
