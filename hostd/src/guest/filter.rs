//! The seccomp filter of a guest: which calls come to hostd, which go to the machine's kernel.
//!
//! Trapped are all calls that could act on a modelled socket, that change which
//! descriptor is what, or that tell who the host is. Decided by number, where
//! possible by arguments too: `AF_UNIX` sockets, most `fcntl` and `ioctl` commands and
//! all else go by. Calls of other instruction sets (i386, x32) that could reach a
//! network, and io_uring, do not exist for a guest: `ENOSYS`.
//!
//! The list is in the order in which a busy network program needs it: the kernel walks it from the front.
//! Calls that are allowed by their number alone do not walk it at all (the kernel keeps a bitmap of them).

use super::bpf::{ARCH, IP_HIGH, IP_LOW, Insn, NR, and, arg, jeq, jge, jset, load, ret};
use ringlab_preload::layout::{CALL, NATIVE};

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ENOSYS: u32 = RET_ERRNO | libc::ENOSYS as u32;
const RET_EINVAL: u32 = RET_ERRNO | libc::EINVAL as u32;
const RET_EPERM: u32 = RET_ERRNO | libc::EPERM as u32;

const ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

/// Calls that always come to hostd, beside those of [`PATHS`] that name no directory.
const TRAPPED: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_writev,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_poll,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_select,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_sendfile,
    libc::SYS_openat,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_splice,
    libc::SYS_shutdown,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_close_range,
    libc::SYS_open,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_uname,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_create,
    libc::SYS_epoll_pwait2,
    libc::SYS_openat2,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_rt_sigreturn,
    libc::SYS_io_submit,
    libc::SYS_creat,
];

/// Calls that come to hostd, but for those from [`NATIVE`]: a program makes them there that knows what the descriptor is
/// (`ringlab_preload`). One that jumps there on its own reaches a placeholder, which refuses it.
const DATA: &[i64] = &[libc::SYS_read, libc::SYS_write, libc::SYS_close];

/// Calls that ask about a path, or go there. Those of a directory's descriptor come only with `AT_FDCWD`: from another one a
/// program gets to what the node has by a directory that shows it, and there the machine's kernel is right. So who
/// walks through a tree (`find`, `rm -r`, `du`) does not pay.
pub const PATHS: &[i64] = &[
    libc::SYS_newfstatat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_chdir,
    libc::SYS_getcwd,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
];

/// Of those the ones that name a directory, and which argument has the flags, among which `AT_EMPTY_PATH` makes them `fstat`.
const PATHS_AT: &[(i64, Option<u32>)] = &[
    (libc::SYS_newfstatat, Some(3)),
    (libc::SYS_statx, Some(2)),
    (libc::SYS_faccessat, None),
    (libc::SYS_faccessat2, Some(3)),
    (libc::SYS_readlinkat, None),
];

/// Calls that change what a path names, from whatever directory: they are rare, and the machine's file may be at stake.
pub fn changes(nr: i64) -> bool {
    matches!(
        nr,
        libc::SYS_rename
            | libc::SYS_renameat
            | libc::SYS_renameat2
            | libc::SYS_unlink
            | libc::SYS_unlinkat
            | libc::SYS_rmdir
            | libc::SYS_link
            | libc::SYS_linkat
            | libc::SYS_symlink
            | libc::SYS_symlinkat
            | libc::SYS_mkdir
            | libc::SYS_mkdirat
            | libc::SYS_mknod
            | libc::SYS_mknodat
            | libc::SYS_truncate
            | libc::SYS_chmod
            | libc::SYS_fchmodat
            | libc::SYS_fchmodat2
            | libc::SYS_chown
            | libc::SYS_lchown
            | libc::SYS_fchownat
            | libc::SYS_utime
            | libc::SYS_utimes
            | libc::SYS_futimesat
            | libc::SYS_utimensat
            | libc::SYS_setxattr
            | libc::SYS_lsetxattr
            | libc::SYS_removexattr
            | libc::SYS_lremovexattr
    )
}

/// No call of [`changes`] has a number beyond this.
const LAST: i64 = libc::SYS_fchmodat2;

/// `fcntl` commands that a modelled socket answers itself: `F_GETFL`, `F_SETFL`, `F_SETOWN`, `F_GETOWN`,
/// `F_SETSIG`, `F_GETSIG`, `F_SETOWN_EX`, `F_GETOWN_EX`. The rest is right on its placeholder.
const FCNTL: &[u32] = &[3, 4, 8, 9, 10, 11, 15, 16];

/// `ioctl` requests of sockets beside the range 0x8900 to 0x8bff: `FIONBIO`, `FIONREAD`, `FIOASYNC`, `TIOCOUTQ`.
const IOCTL: &[u32] = &[0x5421, 0x541b, 0x5452, 0x5411];

/// Faults of kernels, hostd's copies among them, are not the program's to answer.
const UFFD_USER_MODE_ONLY: u32 = 1;
/// `ioctl` of `/dev/userfaultfd`; its argument are the flags.
const USERFAULTFD_IOC_NEW: u32 = 0xaa00;

/// `ioctl` that makes an interface of `/dev/net/tun`: it would be the machine's.
const TUNSETIFF: u32 = 0x4004_54ca;

/// i386: `socketcall`, `socket` to `shutdown`, io_uring.
const I386_NETWORK: &[(u32, u32)] = &[(102, 103), (359, 374), (425, 428)];

/// i386: what changes who has which descriptor, or ends a thread: `exit`, `close`, `execve`, `dup2`, `clone`, `exit_group`,
/// `unshare`, `dup3`, `execveat`, `clone3`, `close_range`.
const I386_TABLES: &[u32] = &[1, 6, 11, 63, 120, 252, 310, 330, 358, 435, 436];
/// Of those the ones that end a thread.
pub const I386_EXITS: [i32; 2] = [1, 252];
/// Of those `execve` and `execveat`.
pub const I386_EXECS: [i32; 2] = [11, 358];

/// The program.
pub fn program() -> Vec<Insn> {
    let mut p = vec![load(ARCH)];
    // Another instruction set: what it calls a network does not exist.
    let mut other = vec![load(NR)];
    for &(from, to) in I386_NETWORK {
        other.extend([jge(from, 0, 2), jge(to, 1, 0), ret(RET_ENOSYS)]);
    }
    for &nr in I386_TABLES {
        other.extend([jeq(nr, 0, 1), ret(RET_NOTIFY)]);
    }
    other.push(ret(RET_ALLOW));
    p.push(jeq(ARCH_X86_64, other.len() as u8, 0));
    p.append(&mut other);
    p.extend([load(NR), jset(X32_BIT, 0, 1), ret(RET_ENOSYS)]);
    for &nr in DATA {
        let (low, high) = ((NATIVE + CALL) as u32, ((NATIVE + CALL) as u64 >> 32) as u32);
        when(&mut p, nr, vec![load(IP_LOW), jeq(low, 0, 3), load(IP_HIGH), jeq(high, 0, 1), ret(RET_ALLOW), ret(RET_NOTIFY)]);
    }
    let wholly = PATHS.iter().filter(|nr| PATHS_AT.iter().all(|p| p.0 != **nr));
    for nr in TRAPPED.iter().chain(wholly).copied().chain((0..=LAST).filter(|&nr| changes(nr))) {
        p.extend([jeq(nr as u32, 0, 1), ret(RET_NOTIFY)]);
    }
    for nr in [libc::SYS_socket, libc::SYS_socketpair] {
        when(&mut p, nr, vec![load(arg(0)), jeq(libc::AF_UNIX as u32, 0, 1), ret(RET_ALLOW), ret(RET_NOTIFY)]);
    }
    for &(nr, flags) in PATHS_AT {
        let mut block = vec![load(arg(0)), jeq(libc::AT_FDCWD as u32, 1, 0), ret(RET_ALLOW)];
        if let Some(flags) = flags {
            block.extend([load(arg(flags)), jset(libc::AT_EMPTY_PATH as u32, 0, 1), ret(RET_ALLOW)]);
        }
        block.push(ret(RET_NOTIFY));
        when(&mut p, nr, block);
    }
    // Shared memory of a file: it may be a packet socket's.
    let mapped = [load(arg(3)), and((libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32), jeq(libc::MAP_SHARED as u32, 1, 0)];
    when(&mut p, libc::SYS_mmap, [&mapped[..], &[ret(RET_ALLOW), ret(RET_NOTIFY)]].concat());
    when(&mut p, libc::SYS_fcntl, listed(FCNTL));
    // Memory whose faults the program answers itself would keep hostd waiting for it; Linux allows it to the privileged only.
    when(&mut p, libc::SYS_userfaultfd, vec![load(arg(0)), jset(UFFD_USER_MODE_ONLY, 0, 1), ret(RET_ALLOW), ret(RET_EPERM)]);
    let mut ioctl = vec![load(arg(1)), jeq(USERFAULTFD_IOC_NEW, 0, 3), load(arg(2)), jset(UFFD_USER_MODE_ONLY, 1, 0), ret(RET_EPERM)];
    ioctl.extend([load(arg(1)), jeq(TUNSETIFF, 0, 1), ret(RET_EPERM)]);
    ioctl.extend([load(arg(1)), and(0xffff), jge(0x8900, 0, 2), jge(0x8c00, 1, 0), ret(RET_NOTIFY)]);
    ioctl.extend(listed(IOCTL));
    when(&mut p, libc::SYS_ioctl, ioctl);
    // hostd reads and writes the memory of its guests: one that hides it gets its way in name only.
    let dumpable = vec![load(arg(0)), jeq(libc::PR_SET_DUMPABLE as u32, 0, 3), load(arg(1)), jeq(0, 0, 1), ret(RET_ERRNO), ret(RET_ALLOW)];
    when(&mut p, libc::SYS_prctl, dumpable);
    for nr in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        p.extend([jeq(nr as u32, 0, 1), ret(RET_ENOSYS)]);
    }
    // Processes that share their descriptors, threads that do not. What `clone3` is asked for is out of a filter's sight.
    let files = jset(libc::CLONE_FILES as u32, 1, 0);
    // A network of its own would be the machine's, and its sockets still the node's: a kernel without such namespaces says so.
    let network = [load(arg(0)), jset(libc::CLONE_NEWNET as u32, 0, 1), ret(RET_EINVAL)];
    let clone = [files, ret(RET_ALLOW), jset(libc::CLONE_THREAD as u32, 0, 1), ret(RET_ALLOW), ret(RET_NOTIFY)];
    when(&mut p, libc::SYS_clone, [&network[..], &clone].concat());
    when(&mut p, libc::SYS_unshare, [&network[..], &[files, ret(RET_ALLOW), ret(RET_NOTIFY)]].concat());
    when(&mut p, libc::SYS_setns, vec![load(arg(1)), jset(libc::CLONE_NEWNET as u32, 0, 1), ret(RET_EINVAL), ret(RET_ALLOW)]);
    p.extend([jeq(libc::SYS_clone3 as u32, 0, 1), ret(RET_ENOSYS)]);
    // The machine's name is not the node's.
    // Nor are sockets of other processes of the user.
    for nr in [libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_pidfd_getfd] {
        p.extend([jeq(nr as u32, 0, 1), ret(RET_EPERM)]);
    }
    p.push(ret(RET_ALLOW));
    p
}

fn when(p: &mut Vec<Insn>, nr: i64, block: Vec<Insn>) {
    p.push(jeq(nr as u32, 0, block.len() as u8));
    p.extend(block);
}

/// Notifies if the lower half of the second argument is one of the list.
fn listed(list: &[u32]) -> Vec<Insn> {
    let mut block = vec![load(arg(1))];
    for (i, &k) in list.iter().enumerate() {
        let left = (list.len() - i) as u8;
        block.push(jeq(k, left, 0));
    }
    block.extend([ret(RET_ALLOW), ret(RET_NOTIFY)]);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bpf::run;

    const ARCH_I386: u32 = 0x4000_0003;

    fn decide(arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&nr.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (i, a) in args.iter().enumerate() {
            data[16 + 8 * i..24 + 8 * i].copy_from_slice(&a.to_ne_bytes());
        }
        run(&program(), &data).expect("the program is well-formed")
    }

    fn native(nr: i64, args: [u64; 2]) -> u32 {
        decide(ARCH_X86_64, nr as u32, [args[0], args[1], 0, 0, 0, 0])
    }

    #[test]
    fn calls_that_may_act_on_sockets_are_trapped() {
        for &nr in TRAPPED.iter().chain(DATA) {
            assert_eq!(native(nr, [0, 0]), RET_NOTIFY, "{nr}");
        }
        for nr in [libc::SYS_mmap, libc::SYS_futex, libc::SYS_clone, libc::SYS_dup, libc::SYS_pipe2, libc::SYS_eventfd2] {
            assert_eq!(native(nr, [0, 0]), RET_ALLOW, "{nr}");
        }
    }

    #[test]
    fn files_are_read_and_written_from_one_address_only() {
        let from = |nr: i64, ip: u64| {
            let mut data = [0; 64];
            data[..4].copy_from_slice(&(nr as u32).to_ne_bytes());
            data[4..8].copy_from_slice(&ARCH_X86_64.to_ne_bytes());
            data[8..16].copy_from_slice(&ip.to_ne_bytes());
            run(&program(), &data).expect("the program is well-formed")
        };
        let native = (NATIVE + CALL) as u64;
        for &nr in DATA {
            assert_eq!(from(nr, native), RET_ALLOW, "{nr}");
            for ip in [0, native - 1, native + 1, native & 0xffff_ffff, native & !0xffff_ffff] {
                assert_eq!(from(nr, ip), RET_NOTIFY, "{nr} {ip:#x}");
            }
        }
        for nr in [libc::SYS_sendto, libc::SYS_dup2, libc::SYS_openat, libc::SYS_getsockopt] {
            assert_eq!(from(nr, native), RET_NOTIFY, "{nr}");
        }
    }

    #[test]
    fn only_unix_sockets_are_made_natively() {
        for nr in [libc::SYS_socket, libc::SYS_socketpair] {
            assert_eq!(native(nr, [libc::AF_UNIX as u64, 0]), RET_ALLOW);
            // The kernel looks at the lower half only.
            assert_eq!(native(nr, [libc::AF_UNIX as u64 | 1 << 32, 0]), RET_ALLOW);
            for family in (0..64).filter(|&f| f != libc::AF_UNIX as u64) {
                assert_eq!(native(nr, [family, 0]), RET_NOTIFY, "{family}");
            }
        }
    }

    #[test]
    fn commands_of_files_go_by() {
        for cmd in 0..2000 {
            let want = if FCNTL.contains(&cmd) { RET_NOTIFY } else { RET_ALLOW };
            assert_eq!(native(libc::SYS_fcntl, [3, cmd.into()]), want, "fcntl {cmd}");
        }
        for request in [0x8905u32, 0x8912, 0x89ff, 0x8b01, 0x5421, 0x541b, 0x5452, 0x5411] {
            assert_eq!(native(libc::SYS_ioctl, [3, request.into()]), RET_NOTIFY, "ioctl {request:#x}");
        }
        for request in [0x5401u32, 0x5413, 0x8c00, 0x88ff, 0x1234_5401] {
            assert_eq!(native(libc::SYS_ioctl, [3, request.into()]), RET_ALLOW, "ioctl {request:#x}");
        }
    }

    #[test]
    fn paths_from_the_current_directory_are_trapped() {
        let decided = |nr: i64, dir: i32, at: u32, flags: i32| {
            let mut args = [dir as u32 as u64, 0, 0, 0, 0, 0];
            args[at as usize] |= flags as u64;
            decide(ARCH_X86_64, nr as u32, args)
        };
        for &(nr, flags) in PATHS_AT {
            let at = flags.unwrap_or(5);
            assert!(PATHS.contains(&nr));
            assert_eq!(decided(nr, libc::AT_FDCWD, at, libc::AT_SYMLINK_NOFOLLOW), RET_NOTIFY, "{nr}");
            assert_eq!(decided(nr, 5, at, 0), RET_ALLOW, "{nr}");
            let empty = if flags.is_some() { RET_ALLOW } else { RET_NOTIFY };
            assert_eq!(decided(nr, libc::AT_FDCWD, at, libc::AT_EMPTY_PATH), empty, "{nr}");
        }
        for nr in [libc::SYS_stat, libc::SYS_access, libc::SYS_readlink, libc::SYS_chdir, libc::SYS_getcwd, libc::SYS_llistxattr] {
            assert_eq!(native(nr, [0, 0]), RET_NOTIFY, "{nr}");
        }
    }

    #[test]
    fn changes_of_paths_are_trapped_from_whatever_directory() {
        for nr in [libc::SYS_rename, libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_truncate, libc::SYS_utimensat, libc::SYS_fchmodat2] {
            for dir in [libc::AT_FDCWD as u64, 5] {
                assert_eq!(native(nr, [dir, 0]), RET_NOTIFY, "{nr}");
            }
        }
        assert_eq!((0..600).filter(|&nr| changes(nr)).count(), (0..=LAST).filter(|&nr| changes(nr)).count());
    }

    #[test]
    fn only_shared_mappings_of_files_are_trapped() {
        let map = |flags: i32| decide(ARCH_X86_64, libc::SYS_mmap as u32, [0, 4096, 3, flags as u64, 5, 0]);
        assert_eq!(map(libc::MAP_SHARED), RET_NOTIFY);
        assert_eq!(map(libc::MAP_SHARED_VALIDATE | libc::MAP_POPULATE), RET_NOTIFY);
        assert_eq!(map(libc::MAP_PRIVATE), RET_ALLOW);
        assert_eq!(map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), RET_ALLOW);
        assert_eq!(map(libc::MAP_SHARED | libc::MAP_ANONYMOUS), RET_ALLOW);
    }

    #[test]
    fn other_ways_to_a_network_do_not_exist() {
        for nr in [102, 359, 373, 425, 427] {
            assert_eq!(decide(ARCH_I386, nr, [0; 6]), RET_ENOSYS, "i386 {nr}");
        }
        for nr in [2, 4, 101, 103, 357, 374, 428] {
            assert_eq!(decide(ARCH_I386, nr, [0; 6]), RET_ALLOW, "i386 {nr}");
        }
        assert_eq!(decide(ARCH_X86_64, X32_BIT | 41, [2, 1, 0, 0, 0, 0]), RET_ENOSYS);
        assert_eq!(native(libc::SYS_io_uring_setup, [1, 0]), RET_ENOSYS);
    }

    #[test]
    fn tables_of_descriptors_that_are_not_a_process_s_are_noticed() {
        let (files, thread) = (libc::CLONE_FILES as u64, libc::CLONE_THREAD as u64);
        for (flags, want) in [(0, RET_ALLOW), (files | thread, RET_ALLOW), (files, RET_NOTIFY), (libc::CLONE_VM as u64, RET_ALLOW)] {
            assert_eq!(native(libc::SYS_clone, [flags, 0]), want, "{flags:#x}");
        }
        assert_eq!((native(libc::SYS_unshare, [files, 0]), native(libc::SYS_unshare, [thread, 0])), (RET_NOTIFY, RET_ALLOW));
        assert_eq!(native(libc::SYS_clone3, [0, 0]), RET_ENOSYS);
        for nr in I386_TABLES {
            assert_eq!(decide(ARCH_I386, *nr, [0; 6]), RET_NOTIFY, "i386 {nr}");
        }
    }

    #[test]
    fn networks_of_the_machine_are_not_made() {
        let network = libc::CLONE_NEWNET as u64;
        for nr in [libc::SYS_unshare, libc::SYS_clone] {
            assert_eq!((native(nr, [network, 0]), native(nr, [network | libc::CLONE_FILES as u64, 0])), (RET_EINVAL, RET_EINVAL));
            assert_eq!(native(nr, [libc::CLONE_NEWNS as u64, 0]), RET_ALLOW);
        }
        assert_eq!(
            (native(libc::SYS_setns, [3, network]), native(libc::SYS_setns, [3, libc::CLONE_NEWNS as u64])),
            (RET_EINVAL, RET_ALLOW)
        );
        assert_eq!(native(libc::SYS_ioctl, [3, TUNSETIFF.into()]), RET_EPERM);
    }

    #[test]
    fn faults_of_kernels_are_not_the_programs_to_answer() {
        let device = |flags| decide(ARCH_X86_64, libc::SYS_ioctl as u32, [3, USERFAULTFD_IOC_NEW.into(), flags, 0, 0, 0]);
        for (flags, want) in [(0, RET_EPERM), (1, RET_ALLOW), (libc::O_CLOEXEC as u64, RET_EPERM), (libc::O_CLOEXEC as u64 | 1, RET_ALLOW)]
        {
            assert_eq!((native(libc::SYS_userfaultfd, [flags, 0]), device(flags)), (want, want), "{flags:#x}");
        }
    }

    #[test]
    fn hiding_memory_succeeds_without_effect() {
        assert_eq!(native(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 0]), RET_ERRNO);
        assert_eq!(native(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1]), RET_ALLOW);
        assert_eq!(native(libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0]), RET_ALLOW);
    }
}
