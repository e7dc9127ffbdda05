"""Sockets in known states on two hosts: each end says when all stand, and holds them until its input ends."""
import fcntl, select, socket, struct, sys

A, B = "10.99.0.1", "10.99.0.2"
SIOCOUTQ = 0x5411
kept = []


def keep(s):
    kept.append(s)
    return s


def stream(addr, port):
    s = keep(socket.socket())
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((addr, port))
    return s


def listen(port, backlog=5):
    s = stream(B, port)
    s.listen(backlog)
    return s


def connect(port):
    s = stream(A, port + 10000)
    s.connect((B, port))
    return s


def exactly(s, n):
    got = b""
    while len(got) < n:
        more = s.recv(n - len(got))
        assert more, "the peer has closed"
        got += more
    return got


def acknowledged(s):
    while struct.unpack("i", fcntl.ioctl(s, SIOCOUTQ, b"1234"))[0]:
        select.select([], [], [], 0.01)


def send(s, data):
    s.sendall(data)
    acknowledged(s)


def fill(s):
    """Sends until nothing has gone for half a second: what is left waits for the peer's window."""
    s.setblocking(False)
    while select.select([], [s], [], 0.5)[1]:
        try:
            s.send(b"w" * 10000)
        except BlockingIOError:
            pass


def server():
    listeners = {port: listen(port) for port in range(8001, 8008)}
    keep(socket.socket(type=socket.SOCK_DGRAM)).bind((B, 8010))
    keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, 89))
    print("ready", flush=True)
    s = {port: keep(listeners[port].accept()[0]) for port in range(8001, 8006)}
    exactly(s[8001], 100)
    send(s[8001], b"x" * 1000)
    exactly(s[8004], 10)
    send(s[8004], b"k")
    exactly(s[8005], 10)
    assert s[8005].recv(1) == b""
    s[8005].close()
    exactly(s[8001], 1)


def client():
    s = {port: connect(port) for port in range(8001, 8006)}
    # Idle after a request and its answer.
    send(s[8001], b"q" * 100)
    exactly(s[8001], 1000)
    # Unread data (how many ACKs they take depends on when they arrive); data that the peer has no room for.
    send(s[8002], b"u" * 5000)
    fill(s[8003])
    # CLOSE_WAIT and FIN_WAIT2; TIME_WAIT.
    send(s[8004], b"c" * 10)
    exactly(s[8004], 1)
    s[8004].shutdown(socket.SHUT_WR)
    send(s[8005], b"t" * 10)
    s[8005].shutdown(socket.SHUT_WR)
    assert s[8005].recv(1) == b""
    s[8005].close()
    # Not accepted; the second with a timer.
    connect(8006)
    connect(8007).setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    u = keep(socket.socket(type=socket.SOCK_DGRAM))
    u.bind((A, 8011))
    u.connect((B, 8010))
    u.send(b"d" * 100)
    send(s[8001], b"!")


{"server": server, "client": client}[sys.argv[1]]()
print("set", flush=True)
sys.stdin.read()
