"""What becomes of calls that change the node's own files, by root and by another user: one line each."""
import errno, os, sys

FILES = ["hosts", "hostname", "resolv.conf"]


def say(what, call, *args, **named):
    try:
        result = call(*args, **named)
        print(what, "done" if result is None else result)
    except OSError as error:
        print(what, errno.errorcode[error.errno])


def put(path, flags, text):
    fd = os.open(path, flags, 0o600)
    os.write(fd, text)
    os.close(fd)


def get(path):
    with open(path) as file:
        return file.read()


def seen(path):
    at = os.stat(path)
    return oct(at.st_mode), at.st_uid, at.st_gid, at.st_size


def names(name, at):
    """Names that are taken away, given and made."""
    path = "/etc/" + name
    ways = [(path, None), (name, at), ("../etc//" + name, at), (name, None), ("/proc/self/root/etc/./" + name, None)]
    for way, dir_fd in ways:
        say("unlink", os.unlink, way, dir_fd=dir_fd)
        say("rmdir", os.rmdir, way, dir_fd=dir_fd)
        say("rename from", os.rename, way, "/etc/other", src_dir_fd=dir_fd)
        say("rename to", os.rename, "/etc/mine", way, dst_dir_fd=dir_fd)
        say("rename to itself", os.rename, way, path, src_dir_fd=dir_fd)
        say("link from", os.link, way, "/etc/other", src_dir_fd=dir_fd)
        say("link to", os.link, "/etc/mine", way, dst_dir_fd=dir_fd)
        say("symlink", os.symlink, "mine", way, dir_fd=dir_fd)
        say("mkdir", os.mkdir, way, dir_fd=dir_fd)
        say("mknod", os.mknod, way, dir_fd=dir_fd)
        say("make", put, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, b"")
    say("with a slash", os.unlink, path + "/")
    say("truncate with a slash", os.truncate, path + "/", 0)


def contents(name, at):
    """What is in a file, and what is said of it."""
    path = "/etc/" + name
    say("chmod", os.chmod, path, 0o640)
    say("chmod at", os.chmod, name, 0o604, dir_fd=at)
    say("seen", lambda: seen(path)[:3])
    say("chmod", os.chmod, path, 0o644)
    say("utime", os.utime, path, (5, 6))
    say("utime at", os.utime, name, ns=(7_000_000_001, 8_000_000_002), dir_fd=at)
    say("mtime", lambda: os.stat(path).st_mtime_ns > 1 << 60 or os.stat(path).st_mtime_ns)
    say("touch", os.utime, path)
    say("chown", os.chown, path, 0, 0)
    say("chown to nobody", os.chown, path, -1, -1, follow_symlinks=False)
    say("write", put, path, os.O_WRONLY | os.O_TRUNC, b"one\ntwo\n")
    say("append", put, path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, b"three\n")
    say("truncate", os.truncate, path, -1)
    say("truncate", os.truncate, path, 11)
    say("over", put, name, os.O_RDWR, b"ONE")
    say("access", os.access, path, os.W_OK)
    if os.getuid() == 0:
        say("seen", seen, path)
        say("text", get, path)


def elsewhere():
    for name, path in [("proc", "/proc/net/tcp"), ("sysctl", "/proc/sys/net/ipv4/ip_forward"), ("link", "/sys/class/net/lo")]:
        say(name + " unlink", os.unlink, path)
        say(name + " rmdir", os.rmdir, path)
        say(name + " mkdir", os.mkdir, path)
        say(name + " link", os.link, path, "/etc/other", follow_symlinks=False)
    say("sysctl chmod", os.chmod, "/proc/sys/net/ipv4/ip_forward", 0)
    say("mkdir", os.mkdir, "/sys/class/net/other")
    say("rmdir", os.rmdir, "/proc/sys/net/ipv4")
    say("unlink", os.unlink, "/proc/sys/net/ipv4")


def everything():
    at = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir("/etc")
    for name in FILES:
        print("#", name, "user", os.getuid())
        names(name, at)
        contents(name, at)
    elsewhere()


everything()
sys.stdout.flush()
if os.fork() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    everything()
    sys.stdout.flush()
    os._exit(0)
os.wait()
