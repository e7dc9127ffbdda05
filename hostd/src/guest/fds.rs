//! Which descriptor of a program is what.
//!
//! The program's real descriptor table is the truth: the machine's kernel keeps it
//! through `dup`, `fork`, `exec` and descriptor passing. What hostd knows is a cache per
//! process, filled by a look at `/proc/TID/fd/N`. An entry holds until the number is
//! closed or taken over, and all calls that do so are trapped. A `close` that has been let go by
//! happens some time later: until the closing thread's next call its number is looked up
//! afresh each time (a *tombstone*).

use super::window::{self, WindowId};
use rustix::fs::CWD;
use std::io::Write;
use std::mem::MaybeUninit;

/// What stands behind a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: `EBADF`.
    None,
    /// Something of the machine's kernel.
    Real,
    /// A modelled file, by its number in the model's table.
    Modelled(i32),
    /// A socket of the machine's own network, which somebody else has passed: it is of no use.
    Foreign,
    /// An epoll instance, by its number here.
    Epoll(u32),
    /// A file of the node's `/proc`, by its number here: what is written there goes to the model.
    File(u32),
}

/// Numbers beyond this are not cached: a program cannot make hostd's memory grow by naming them.
const MOST: usize = 1 << 16;

/// The tombstone of a range.
const ALL: i32 = -1;

/// The cache of a process.
#[derive(Debug, Default)]
pub struct FdCache {
    known: Vec<Kind>,
    /// Number, and the thread that closes it.
    tombs: Vec<(i32, i32)>,
    /// Where the process reads what is known to be the machine's.
    window: WindowId,
}

impl FdCache {
    /// What is known of a descriptor.
    pub fn get(&self, fd: i32) -> Option<Kind> {
        match self.known.get(usize::try_from(fd).ok()?) {
            None | Some(Kind::None) => None,
            Some(&kind) => Some(kind),
        }
    }

    /// Notes what was found, unless the descriptor is on its way out.
    pub fn note(&mut self, fd: i32, kind: Kind) {
        let Ok(at) = usize::try_from(fd) else { return };
        if kind == Kind::None || at >= MOST || self.tombs.iter().any(|t| t.0 == fd || t.0 == ALL) {
            return;
        }
        if at >= self.known.len() {
            self.known.resize(at + 1, Kind::None);
        }
        self.known[at] = kind;
        window::mark(self.window, at, kind == Kind::Real);
    }

    /// Notes what has just been put there: whatever was on its way out is gone.
    pub fn installed(&mut self, fd: i32, kind: Kind) {
        self.tombs.retain(|t| t.0 != fd);
        self.note(fd, kind);
    }

    /// Thread `tid` closes a descriptor.
    pub fn closing(&mut self, fd: i32, tid: i32) {
        if let Some(entry) = usize::try_from(fd).ok().and_then(|at| self.known.get_mut(at)) {
            match core::mem::replace(entry, Kind::None) {
                Kind::Epoll(_) => window::forget_sets(self.window),
                _ => window::set_state(self.window, fd, 0),
            }
            window::mark(self.window, fd as usize, false);
        }
        self.tombs.push((fd, tid));
    }

    /// Thread `tid` makes another call: what it closed is closed.
    pub fn closed(&mut self, tid: i32) {
        if !self.tombs.is_empty() {
            self.tombs.retain(|t| t.1 != tid);
        }
    }

    /// Thread `tid` closes descriptors `first` to `last`: the modelled files that are known among them, in the order
    /// in which the machine's kernel lets go of them: the last one first (Linux `task_work_run`).
    pub fn closing_range(&mut self, first: u32, last: u32, tid: i32) -> Vec<i32> {
        self.tombs.push((ALL, tid));
        let end = (last as usize).saturating_add(1).min(self.known.len());
        let Some(range) = self.known.get_mut(first as usize..end) else { return Vec::new() };
        let modelled = |k: &Kind| if let Kind::Modelled(handle) = k { Some(*handle) } else { None };
        let gone = range.iter().rev().filter_map(modelled).collect();
        range.fill(Kind::None);
        window::clear(self.window, first as usize, end.saturating_sub(1));
        window::forget_sets(self.window);
        gone
    }

    /// Everything may have changed. What other threads are closing is not closed for that.
    pub fn clear(&mut self) {
        self.known.clear();
        window::clear(self.window, 0, MOST);
        window::forget_sets(self.window);
    }

    /// From now on the process reads there what is known; as yet there is nothing.
    pub fn publish(&mut self, window: WindowId) {
        self.known.clear();
        self.window = window;
    }

    /// Where the process reads what is known.
    pub fn window(&self) -> WindowId {
        self.window
    }
}

/// What `/proc/TID/fd/N` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No such descriptor.
    None,
    /// A socket, by inode.
    Socket(u64),
    /// An epoll instance.
    Epoll,
    /// A signalfd.
    Signals,
    /// A file that hostd made ([`FILE`]), by its number.
    File(u32),
    /// Something else.
    Other,
}

/// Name of a memfd that stands for a file of the node; its number follows.
pub const FILE: &str = "ringlab-file-";

/// Looks at a descriptor of a thread. Reads a link only: a file system that hangs does not matter.
pub fn look(tid: i32, fd: i32) -> Link {
    let mut path = [0u8; 40];
    let mut rest = &mut path[..];
    if write!(rest, "/proc/{tid}/fd/{fd}\0").is_err() {
        return Link::None;
    }
    let Ok(path) = core::ffi::CStr::from_bytes_until_nul(&path) else { return Link::None };
    let mut buf = [MaybeUninit::<u8>::uninit(); 64];
    match rustix::fs::readlinkat_raw(CWD, path, &mut buf) {
        Ok((text, _)) => parse(text),
        Err(_) => Link::None,
    }
}

/// True if `exec` closes a thread's descriptor; `None` if there is none.
pub fn descriptor_closes_on_exec(tid: i32, fd: i32) -> Option<bool> {
    status_flags(tid, fd).map(|f| f & libc::O_CLOEXEC != 0)
}

/// Status flags of a thread's descriptor, `O_CLOEXEC` among them; `None` if there is none.
pub fn status_flags(tid: i32, fd: i32) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

/// Numbers of all descriptors of a process; none if it is gone.
pub fn open_descriptors(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// How many descriptors wait to be received from an `AF_UNIX` socket of a process.
pub fn waiting_descriptors(pid: i32, fd: i32) -> u32 {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    info.lines().find_map(|l| l.strip_prefix("scm_fds:")?.trim().parse().ok()).unwrap_or(0)
}

/// True if a socket of a thread cannot leave the machine: `AF_UNIX`. Its name says of what kind it is.
pub fn is_local(tid: i32, fd: i32) -> bool {
    let mut name = [0u8; 32];
    let path = format!("/proc/{tid}/fd/{fd}");
    match rustix::fs::getxattr(path, "system.sockprotoname", &mut name) {
        Ok(len) => name.get(..len).is_some_and(|n| n.starts_with(b"UNIX")),
        // It has just been closed.
        Err(_) => true,
    }
}

fn parse(text: &[u8]) -> Link {
    let file = text.strip_prefix(b"/memfd:").and_then(|t| t.strip_prefix(FILE.as_bytes()));
    if let Some(number) = file.and_then(|t| core::str::from_utf8(t).ok()?.split(' ').next()?.parse().ok()) {
        return Link::File(number);
    }
    if text == b"anon_inode:[eventpoll]" {
        return Link::Epoll;
    }
    if text == b"anon_inode:[signalfd]" {
        return Link::Signals;
    }
    let inode = text.strip_prefix(b"socket:[").and_then(|t| t.strip_suffix(b"]"));
    match inode.and_then(|t| core::str::from_utf8(t).ok()).and_then(|t| t.parse().ok()) {
        Some(inode) => Link::Socket(inode),
        None => Link::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn entry_holds_until_the_number_is_closed() {
        let mut cache = FdCache::default();
        cache.note(3, Kind::Modelled(7));
        cache.note(5, Kind::Real);
        assert_eq!((cache.get(3), cache.get(4), cache.get(5)), (Some(Kind::Modelled(7)), None, Some(Kind::Real)));
        cache.closing(3, 100);
        assert_eq!(cache.get(3), None);
        // The close may not have happened yet: what another thread sees is not kept.
        cache.note(3, Kind::Modelled(7));
        assert_eq!(cache.get(3), None);
        cache.closed(100);
        cache.note(3, Kind::Real);
        assert_eq!(cache.get(3), Some(Kind::Real));
    }

    #[test]
    fn close_of_another_thread_outlasts_what_changes_everything() {
        let mut cache = FdCache::default();
        cache.note(5, Kind::Real);
        cache.closing(3, 100);
        cache.clear();
        cache.note(3, Kind::Modelled(7));
        assert_eq!((cache.get(3), cache.get(5)), (None, None));
    }

    #[test]
    fn number_given_out_again_is_known_at_once() {
        let mut cache = FdCache::default();
        cache.closing(3, 100);
        cache.installed(3, Kind::Modelled(9));
        assert_eq!(cache.get(3), Some(Kind::Modelled(9)));
    }

    #[test]
    fn ranges_and_wild_numbers() {
        let mut cache = FdCache::default();
        (0..10).for_each(|fd| cache.note(fd, Kind::Real));
        cache.note(5, Kind::Modelled(7));
        cache.note(6, Kind::Modelled(4));
        assert_eq!(cache.closing_range(3, u32::MAX, 100), [4, 7]);
        assert_eq!((cache.get(2), cache.get(3), cache.get(9)), (Some(Kind::Real), None, None));
        cache.note(4, Kind::Real);
        assert_eq!(cache.get(4), None);
        cache.closed(100);
        assert!(cache.closing_range(u32::MAX, u32::MAX, 100).is_empty());
        cache.closed(100);
        cache.note(i32::MAX, Kind::Real);
        cache.note(-1, Kind::Real);
        assert_eq!((cache.get(i32::MAX), cache.get(-1)), (None, None));
    }

    #[test]
    fn descriptors_in_a_message_are_counted() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let tid = std::process::id() as i32;
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("pair");
        let passed = [a.as_fd(), b.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
        sendmsg(&a, &[std::io::IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("sent");
        let waiting = |s: &std::os::unix::net::UnixStream| waiting_descriptors(tid, s.as_raw_fd());
        assert_eq!((waiting(&a), waiting(&b), waiting_descriptors(tid, 1_000_000)), (0, 2, 0));
    }

    #[test]
    fn links_of_this_process() {
        let tid = std::process::id() as i32;
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("epoll");
        let (a, _b) = std::os::unix::net::UnixStream::pair().expect("pair");
        let inode = rustix::fs::fstat(&a).expect("stat").st_ino;
        assert_eq!(look(tid, epoll.as_raw_fd()), Link::Epoll);
        assert_eq!(look(tid, a.as_raw_fd()), Link::Socket(inode));
        assert!(is_local(tid, a.as_raw_fd()) && is_local(tid, 1_000_000));
        let inet = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(!is_local(tid, inet.as_raw_fd()));
        let file = rustix::fs::memfd_create(format!("{FILE}17"), rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        assert_eq!(look(tid, file.as_raw_fd()), Link::File(17));
        assert_eq!(descriptor_closes_on_exec(tid, file.as_raw_fd()), Some(true));
        assert_eq!((descriptor_closes_on_exec(tid, 0), descriptor_closes_on_exec(tid, 1_000_000)), (Some(false), None));
        assert_eq!(look(tid, 1_000_000), Link::None);
        assert!(open_descriptors(tid).contains(&epoll.as_raw_fd()) && open_descriptors(-5).is_empty());
        assert_eq!(look(-5, 0), Link::None);
    }
}
