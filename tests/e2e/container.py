"""Runs its arguments under the seccomp filter of a container engine's default profile, on x86-64, without an added capability.

The profile refuses whatever it does not name. Below stand the calls that it does not name, in numbers, and its conditions on
arguments; what is left of the numbers of Linux 6.13 is allowed.
"""
import ctypes, os, struct, sys

LAST = 466  # removexattrat
REFUSED = [
    134, 136, 139, 153, 155, 156,                     # uselib ustat sysfs vhangup pivot_root _sysctl
    103, 163, 164, 165, 166, 167, 168, 169, 170, 171, # syslog acct settimeofday mount umount2 swapon swapoff reboot set*name
    172, 173, 174, 175, 176, 177, 178, 179, 180,      # iopl ioperm, modules, quotactl nfsservctl
    181, 182, 183, 184, 185, 212, 227, 236,           # calls never made, lookup_dcookie clock_settime vserver
    237, 238, 239, 246, 248, 249, 250, 256, 279,      # mbind *mempolicy kexec_load *key keyctl migrate_pages move_pages
    272, 298, 300, 304, 308, 312, 313, 320, 321, 323, # unshare perf_event_open fanotify_init open_by_handle_at setns kcmp … bpf userfaultfd
    425, 426, 427, 428, 429, 430, 431, 432, 433,      # io_uring_*, open_tree to fspick
    438, 440, 442, 443, 450, 459, 460, 461,           # pidfd_getfd process_madvise mount_setattr quotactl_fd …
] + list(range(336, 424))                             # no calls
SOCKET, CLONE, PERSONALITY, CLONE3 = 41, 56, 135, 435
# Not DECnet, ECONET, ATMSVC, IRDA, WANPIPE, ISDN, CAIF, ALG, VSOCK.
FAMILIES = [f for f in range(46) if f not in (12, 19, 20, 23, 25, 34, 37, 38, 40)]
PERSONALITIES = [0, 8, 0x20000, 0x20008, 0xFFFFFFFF]
NAMESPACES = 0x7E020000  # of mounts, cgroups, UTS, IPC, users, processes, network

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def when(number, block):
    return [(EQUAL, 0, len(block), number)] + block


def one_of(values):
    """The first argument, all 64 bits, is one of these."""
    block = [(LOAD, 0, 0, 20), (EQUAL, 1, 0, 0), (RETURN, 0, 0, EPERM), (LOAD, 0, 0, 16)]
    return block + [i for v in values for i in ((EQUAL, 0, 1, v), (RETURN, 0, 0, ALLOW))] + [(RETURN, 0, 0, EPERM)]


def ranges():
    special = {SOCKET, CLONE, PERSONALITY, CLONE3}
    allowed = [n for n in range(LAST + 1) if n not in REFUSED and n not in special]
    start = allowed[0]
    for a, b in zip(allowed, allowed[1:] + [None]):
        if b != a + 1:
            yield start, a
            start = b


code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, 0xC000003E), (RETURN, 0, 0, EPERM), (LOAD, 0, 0, 0)]
for first, last in ranges():
    code += [(AT_LEAST, 0, 2, first), (AT_LEAST, 1, 0, last + 1), (RETURN, 0, 0, ALLOW)]
code += when(SOCKET, one_of(FAMILIES)) + when(PERSONALITY, one_of(PERSONALITIES))
code += when(CLONE, [(LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NAMESPACES), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)])
code += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ENOSYS), (RETURN, 0, 0, EPERM)]

insns = b"".join(struct.pack("HBBI", *i) for i in code)
buf = ctypes.create_string_buffer(insns, len(insns))
prog = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buf))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(prog), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
