//! Calls that a signal interrupts.
//!
//! The machine's kernel knows only that a thread waited for the supervisor: with `SA_RESTART` the call comes again after
//! the handler, without it ends with `EINTR`, whatever call it is and whatever has been done of it. So the end of a
//! handler is trapped, too. The context to which it returns lies on the thread's stack and shows the call as it was
//! interrupted: there it is put right before the thread goes on.
//!
//! ```text
//! call ── waits ──┐ signal: handler ── rt_sigreturn ──▶ context says          is made to say
//!                 └───────────────────────────────────  EINTR or "again"  ──▶  n octets, if they were moved
//!                                                       "again"           ──▶  EINTR, if it is never restarted
//!                                                       EINTR             ──▶  "again", if it was not made yet
//! ```
//!
//! What a handler leaves by `siglongjmp` needs nothing: its context is given up. A thread that comes back without a
//! handler (stopped and continued, traced) makes the same call again at once. Waits for sets and those with `SO_RCVTIMEO`
//! or `SO_SNDTIMEO` end with `EINTR` then, too (signal(7)). A jump out of a handler may look alike; but a handler that ran
//! has left its context on the stack.

use super::Guests;
use super::calls::Finish;
use super::decode::u64_at;
use super::fds::Kind;
use super::filter::{PATHS, changes};
use super::mask::{Held, Mask, Stopping};
use super::notify::Notif;
use super::poll::{Form, Left};
use super::reply::Reply;
use super::table::Caller;
use crate::host::Shared;
use ringlab_kernel::errno::Errno;
use ringlab_kernel::syscall::{Call, Ret};
use ringlab_kernel::time::Instant;
use std::io::Write;
use std::time::Duration;

/// Octets of the instruction that makes a call.
const INSTRUCTION: u64 = 2;
/// `EINTR` as the machine's kernel leaves it in a register.
const EINTR: u64 = -(libc::EINTR as i64) as u64;
/// Link of a context to which a handler has returned.
const RETURNED: u64 = 1;
/// Where the context of a handler lies that has interrupted a call: below the stack's end, behind the vector registers; or above, as
/// long as the handler runs.
const BELOW: u64 = 24 << 10;
const ABOVE: u64 = 8 << 10;
/// Calls that a thread remembers: handlers that are left by a jump leave theirs behind.
const MOST: usize = 8;
/// How often a thread is looked at that has made its call and does not wait yet.
const LOOKS: usize = 1000;

/// A call that was interrupted, and how it ends when the thread comes back to it.
#[derive(Debug)]
pub struct Interrupted {
    nr: i32,
    ip: u64,
    args: [u64; 6],
    how: How,
    /// The thread has made another call meanwhile: it is in a handler, or has jumped out of one.
    passed: bool,
    /// A handler's end has made the thread come back to it.
    armed: bool,
    /// The signal mask that is in force, which is not the thread's own.
    held: Option<Held>,
    /// The time that was left, and where a call that ends with `EINTR` tells it.
    left: Option<(Left, Duration)>,
    /// When its time is up, if it goes on; [`Held`] has its own.
    until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// It had had its effect: this is what it answers.
    Answer(Reply),
    /// With `EINTR`, whatever the handler's flags; without a handler as well.
    Eintr,
    /// With `EINTR`, whatever the handler's flags. It goes on without a handler.
    Handled,
    /// It has not been made, and comes again.
    Again,
    /// As the machine's kernel says. Hostd has heard of it, that is all.
    Native,
}

impl Interrupted {
    fn new(n: &Notif, how: How) -> Self {
        Self { nr: n.nr, ip: n.ip, args: n.args, how, passed: false, armed: false, held: None, left: None, until: None }
    }

    fn is(&self, n: &Notif) -> bool {
        self.nr == n.nr && self.ip == n.ip && self.args == n.args
    }

    fn same(&self, other: &Self) -> bool {
        self.nr == other.nr && self.ip == other.ip && self.args == other.args
    }

    /// The answer that it holds.
    pub(super) fn reply(&self) -> Option<Reply> {
        match self.how {
            How::Answer(reply) => Some(reply),
            How::Eintr | How::Handled | How::Again | How::Native => None,
        }
    }
}

/// Registers of a context (Linux `struct ucontext` on x86-64) that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Context {
    args: [u64; 6],
    ax: u64,
    ip: u64,
    /// Signals that are blocked when it goes on.
    mask: u64,
}

impl Context {
    /// Offset of the link to another context, which signals do not use.
    const LINK: u64 = 8;
    /// Offset of the first register used.
    const FIRST: u64 = 40;
    const AX: u64 = 144;
    const IP: u64 = 168;
    const MASK: u64 = 296;
    const LEN: usize = (Self::MASK + 8 - Self::FIRST) as usize;

    fn parse(b: &[u8; Self::LEN]) -> Self {
        let at = |offset: u64| u64_at(b, (offset - Self::FIRST) as usize);
        // rdi, rsi, rdx, r10, r8, r9.
        Self { args: [at(104), at(112), at(136), at(56), at(40), at(48)], ax: at(Self::AX), ip: at(Self::IP), mask: at(Self::MASK) }
    }

    /// It makes the call again.
    fn repeats(&self, call: &Interrupted) -> bool {
        self.ip.wrapping_add(INSTRUCTION) == call.ip && self.ax as i32 == call.nr && self.args == call.args
    }

    /// It has been told that the call was interrupted.
    fn is_told(&self, call: &Interrupted) -> bool {
        self.ip == call.ip && self.ax == EINTR && self.args == call.args
    }

    fn repeat(&mut self, nr: i32, ip: u64) {
        (self.ax, self.ip) = (nr as u64, ip.wrapping_sub(INSTRUCTION));
    }

    fn answer(&mut self, value: i64, ip: u64) {
        (self.ax, self.ip) = (value as u64, ip);
    }
}

impl Guests {
    /// The answer to a call that comes again: the machine's kernel has restarted it.
    pub(super) fn take_answer(&mut self, shared: &Shared, c: Caller, n: &Notif) -> Option<Reply> {
        let task = self.tasks.get_mut(&c.tid)?;
        task.until = None;
        let calls = &mut task.interrupted;
        if calls.is_empty() {
            return None;
        }
        let Some(at) = calls.iter().rposition(|call| call.is(n)) else {
            calls.iter_mut().for_each(|call| call.passed = true);
            return None;
        };
        let call = calls.remove(at);
        let goes_on = call.armed || !call.passed;
        if goes_on {
            task.held = call.held;
            task.until = call.until.filter(|_| !has_left_context(c, &call));
        }
        match (call.reply(), call.how) {
            (Some(reply), _) if goes_on => Some(reply),
            // Made afresh after a jump out of the handler.
            (Some(reply), _) => {
                self.drop_reply(shared, reply);
                None
            }
            (None, How::Eintr) if goes_on && !has_left_context(c, &call) => match &mut task.held {
                // Not before the thread has its own mask.
                Some(held) => {
                    held.ends = true;
                    None
                }
                None => Some(Reply::Value(-i64::from(libc::EINTR))),
            },
            (None, _) => None,
        }
    }

    /// Nobody took an answer.
    pub(super) fn keep_answer(&mut self, shared: &Shared, c: Caller, n: &Notif, reply: Reply) {
        self.remember(shared, c, n, How::Answer(reply));
    }

    /// A call was not made that should have been: the signal came before it.
    pub(super) fn keep_unmade(&mut self, shared: &Shared, c: Caller, n: &Notif) {
        self.remember(shared, c, n, How::Again);
    }

    /// A blocked call for which nobody waits any more has ended.
    pub(super) fn interrupted(&mut self, shared: &Shared, c: Caller, pending: super::Pending, ret: Option<Ret>) {
        let super::Pending { notif, listener, finish } = pending;
        self.memory.set_bounce(c.task, None);
        match (ret, &finish) {
            // The machine's kernel has it.
            (ret, Finish::Bell(set)) => self.sets.leave(*set, ret),
            (_, Finish::Poll(p)) if matches!(p.mask, Mask::Wanted { .. }) => self.keep_unmade(shared, c, &notif),
            (ret, Finish::Poll(p)) if matches!(p.mask, Mask::Held(_)) || matches!(ret, None | Some(Ret::Err(Errno::EINTR))) => {
                // Whom hostd itself has stopped may come back for that alone.
                let how = if matches!(p.form, Form::Set(_)) && p.stopping == Stopping::No { How::Eintr } else { How::Handled };
                let held = if let Mask::Held(held) = p.mask { Some(held) } else { None };
                self.remember_wait(shared, c, &notif, how, (held, p.left, p.until));
            }
            // Pieces before this one were moved.
            (Some(ret), Finish::Transfer(t)) if t.has_moved() => self.finish(shared, c, &listener, &notif, finish, ret),
            (Some(ret), Finish::Splice(s)) if s.has_moved() => self.finish(shared, c, &listener, &notif, finish, ret),
            // Linux lingers no longer, and closes.
            (_, Finish::Closed) => self.keep_unmade(shared, c, &notif),
            (None | Some(Ret::Err(Errno::EINTR)), _) => {
                let ends = match &finish {
                    Finish::Splice(s) => self.splice_ends_with_eintr(shared, s),
                    _ => self.ends_with_eintr(shared, c, &notif),
                };
                let how = if ends { How::Eintr } else { How::Native };
                self.remember(shared, c, &notif, how);
            }
            (Some(ret), _) => self.finish(shared, c, &listener, &notif, finish, ret),
        }
    }

    /// A thread that has been stopped at its call is about to go on under the call's signal mask: it makes the call again, unless a
    /// handler runs.
    pub(super) fn remember_held(&mut self, shared: &Shared, c: Caller, n: &Notif, held: Held, left: Left) {
        self.remember_wait(shared, c, n, How::Handled, (Some(held), left, held.until));
    }

    fn remember_wait(
        &mut self,
        shared: &Shared,
        c: Caller,
        n: &Notif,
        how: How,
        (held, left, until): (Option<Held>, Left, Option<Instant>),
    ) {
        let rest = until.map_or(Duration::ZERO, |t| t.since(shared.now()));
        let until = until.filter(|_| held.is_none());
        self.keep(shared, c, Interrupted { held, left: Some((left, rest)), until, ..Interrupted::new(n, how) });
    }

    fn remember(&mut self, shared: &Shared, c: Caller, n: &Notif, how: How) {
        self.keep(shared, c, Interrupted::new(n, how));
    }

    fn keep(&mut self, shared: &Shared, c: Caller, call: Interrupted) {
        let Some(task) = self.tasks.get_mut(&c.tid) else { return };
        let calls = &mut task.interrupted;
        let old = calls.iter().position(|old| old.same(&call)).or((calls.len() == MOST).then_some(0));
        let old = old.and_then(|at| calls.remove(at).reply());
        calls.push(call);
        if let Some(reply) = old {
            self.drop_reply(shared, reply);
        }
    }

    /// True if Linux never restarts a call that waited.
    fn ends_with_eintr(&mut self, shared: &Shared, c: Caller, n: &Notif) -> bool {
        let name = match i64::from(n.nr) {
            libc::SYS_poll | libc::SYS_ppoll | libc::SYS_select | libc::SYS_pselect6 => return true,
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => return true,
            nr if receives(nr) => libc::SO_RCVTIMEO,
            nr if sends(nr) => libc::SO_SNDTIMEO,
            _ => return false,
        };
        let Kind::Modelled(handle) = self.kind(c, n.args[0] as i32) else { return false };
        self.has_time_limit(shared, handle, name)
    }

    /// True if `SO_RCVTIMEO` or `SO_SNDTIMEO` is set.
    pub(super) fn has_time_limit(&self, shared: &Shared, handle: i32, name: i32) -> bool {
        let Some(root) = self.root else { return false };
        let limit = shared.guest_syscall(root, Call::GetSockOptRaw(handle, libc::SOL_SOCKET, name, vec![0; 16]));
        matches!(limit, Some(Ret::OptRaw(value, _)) if value.iter().any(|&b| b != 0))
    }

    /// `rt_sigreturn`: a handler has ended; what it returns to may have to be put right. The machine's kernel does the rest.
    pub(super) fn sys_sigreturn(&mut self, c: Caller, n: &Notif) {
        let Some(sp) = stack_pointer(c.tid) else { return };
        let mut b = [0; Context::LEN];
        if c.mem.read(sp.wrapping_add(Context::FIRST), &mut b).is_err() {
            return;
        }
        let found = Context::parse(&b);
        let mut context = found;
        if found.ip == n.ip && found.ax == EINTR {
            // This handler interrupted the end of another one, which cannot end with an error.
            context.repeat(n.nr, n.ip);
        } else if let Some(task) = self.tasks.get_mut(&c.tid) {
            let known = put_right(&mut task.interrupted, &mut context);
            if known.is_some() {
                // Who looks for it later knows that it was returned to.
                let _ = c.mem.write(sp.wrapping_add(Context::LINK), &RETURNED.to_ne_bytes());
            }
            match known {
                Some(Some((left, rest))) => left.tell(c, rest),
                Some(None) => {}
                None if found.ax == EINTR => {
                    if let Some(nr) = self.unheard(c, &found) {
                        context.repeat(nr, found.ip);
                    }
                }
                None => {}
            }
        }
        let put = |offset: u64, value: u64| (sp.wrapping_add(offset), value.to_ne_bytes());
        let [ax, ip, mask] = [put(Context::AX, context.ax), put(Context::IP, context.ip), put(Context::MASK, context.mask)];
        // A stack that cannot be written is not the thread's any more: it is the machine's kernel's to say so.
        if (context.ax, context.ip) != (found.ax, found.ip) {
            let _ = c.mem.write_both((ax.0, &ax.1), (ip.0, &ip.1));
        }
        if context.mask != found.mask {
            let _ = c.mem.write(mask.0, &mask.1);
        }
    }

    /// The number of a call that ended with `EINTR` although hostd has not heard of it, if it would have: the signal came before.
    fn unheard(&mut self, c: Caller, context: &Context) -> Option<i32> {
        let mut code = [0; 7];
        c.mem.read(context.ip.wrapping_sub(code.len() as u64), &mut code).ok()?;
        let nr = number(&code, &context.args)?;
        let always = CERTAIN.contains(&nr.into()) || PATHS.contains(&nr.into()) || changes(nr.into());
        let mut on_file = || ON_FILES.contains(&nr.into()) && matches!(self.kind(c, context.args[0] as i32), Kind::Modelled(_));
        (always || on_file()).then_some(nr)
    }
}

/// Calls that Linux never ends with `EINTR`.
const CERTAIN: &[i64] = &[
    libc::SYS_close,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_close_range,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_epoll_create,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_uname,
    libc::SYS_mmap,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls on a file. On a modelled one all of them come to hostd.
const ON_FILES: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
];

/// `mov $nr, %eax; syscall`, or `xor %eax, %eax; syscall`: how C libraries make most calls. Or, not with another register's prefix,
/// `mov %edx, %eax`, `mov %esi, %eax`: how they end a process.
fn number(code: &[u8; 7], args: &[u64; 6]) -> Option<i32> {
    match code {
        [.., 0x40..=0x47 | 0x49..=0x4f, 0x89, 0xd0 | 0xf0, 0x0f, 0x05] => None,
        [.., 0x89, 0xd0, 0x0f, 0x05] => Some(args[2] as i32),
        [.., 0x89, 0xf0, 0x0f, 0x05] => Some(args[1] as i32),
        [.., 0x31, 0xc0, 0x0f, 0x05] => Some(0),
        [0xb8, nr @ .., 0x0f, 0x05] => Some(i32::from_ne_bytes(*nr)),
        _ => None,
    }
}

/// Makes a context say of its call what became of it; what is left of its time. `None` if that is none of these.
fn put_right(calls: &mut Vec<Interrupted>, context: &mut Context) -> Option<Option<(Left, Duration)>> {
    let at = calls.iter().rposition(|call| context.repeats(call) || context.is_told(call))?;
    let call = &mut calls[at];
    if let Some(held) = call.held {
        // The handler may have changed what is blocked when it returns.
        let changed = context.mask ^ held.mask;
        context.mask = held.before & !changed | context.mask & changed;
    }
    match call.how {
        How::Answer(Reply::Value(value)) => context.answer(value, call.ip),
        How::Eintr | How::Handled => context.answer(-i64::from(libc::EINTR), call.ip),
        How::Again => context.repeat(call.nr, call.ip),
        How::Native => {}
        How::Answer(Reply::Inject { .. }) => {
            // The descriptor is put there when the call comes.
            context.repeat(call.nr, call.ip);
            call.armed = true;
            return Some(None);
        }
    }
    let left = call.left.take();
    if context.ax == EINTR {
        // Another signal may come before the thread's next instruction, and find the same.
        (call.how, call.held) = (How::Native, None);
    } else {
        calls.remove(at);
    }
    Some(left)
}

/// True if a handler has interrupted a call and has not returned to it: it runs, or was left by a jump.
fn has_left_context(c: Caller, call: &Interrupted) -> bool {
    const PAGE: u64 = 4096;
    let Some(sp) = stack_pointer(c.tid) else { return false };
    let from = sp.wrapping_sub(BELOW) & !(PAGE - 1);
    let mut stack = vec![0; (BELOW + ABOVE) as usize];
    for (page, at) in stack.chunks_mut(PAGE as usize).zip((from..).step_by(PAGE as usize)) {
        // Below its end the stack need not be there.
        let _ = c.mem.read(at, page);
    }
    is_left(&stack, call)
}

fn is_left(stack: &[u8], call: &Interrupted) -> bool {
    stack.windows(Context::FIRST as usize + Context::LEN).step_by(8).any(|b| {
        // Most words are none of a context's.
        let ip = u64_at(b, Context::IP as usize);
        (ip == call.ip || ip.wrapping_add(INSTRUCTION) == call.ip) && u64_at(b, Context::LINK as usize) == 0 && {
            let mut octets = [0; Context::LEN];
            octets.copy_from_slice(&b[Context::FIRST as usize..]);
            let context = Context::parse(&octets);
            context.repeats(call) || context.is_told(call)
        }
    })
}

fn receives(nr: i64) -> bool {
    let family = [libc::SYS_read, libc::SYS_readv, libc::SYS_preadv2, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg];
    family.contains(&nr) || matches!(nr, libc::SYS_accept | libc::SYS_accept4)
}

fn sends(nr: i64) -> bool {
    let family = [libc::SYS_write, libc::SYS_writev, libc::SYS_pwritev2, libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg];
    family.contains(&nr) || matches!(nr, libc::SYS_connect | libc::SYS_sendfile)
}

/// The stack pointer of a thread that waits for the answer to a call.
fn stack_pointer(tid: i32) -> Option<u64> {
    let mut path = [0u8; 32];
    write!(&mut path[..], "/proc/{tid}/syscall").ok()?;
    let path = core::ffi::CStr::from_bytes_until_nul(&path).ok()?;
    for _ in 0..LOOKS {
        let file = rustix::fs::open(path, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()).ok()?;
        let mut text = [0; 256];
        let len = rustix::io::read(&file, &mut text[..]).ok()?;
        match parse_syscall(text.get(..len)?) {
            Some(sp) => return Some(sp),
            // It has asked and is about to wait.
            None => rustix::thread::sched_yield(),
        }
    }
    None
}

/// Number, six arguments, stack pointer, instruction pointer; or that the thread runs.
fn parse_syscall(text: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(text).ok()?;
    let sp = text.split_whitespace().nth(7)?.strip_prefix("0x")?;
    u64::from_str_radix(sp, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGS: [u64; 6] = [3, 0x1000, 16, 0, 0, 0];

    fn call(how: How) -> Vec<Interrupted> {
        let mut n = Notif::default();
        (n.nr, n.ip, n.args) = (45, 0x402, ARGS);
        vec![Interrupted { passed: true, ..Interrupted::new(&n, how) }]
    }

    fn again() -> Context {
        Context { args: ARGS, ax: 45, ip: 0x400, mask: 0 }
    }

    fn told(value: i64) -> Context {
        Context { args: ARGS, ax: value as u64, ip: 0x402, mask: 0 }
    }

    #[test]
    fn interrupted_call_ends_as_linux_ends_it() {
        let (n, eintr) = (Reply::Value(7), -i64::from(libc::EINTR));
        let accepted = Reply::Inject { handle: 5, cloexec: false };
        let cases = [
            (How::Answer(n), again(), told(7), 0),
            (How::Answer(n), told(eintr), told(7), 0),
            (How::Eintr, again(), told(eintr), 1),
            (How::Eintr, told(eintr), told(eintr), 1),
            (How::Handled, again(), told(eintr), 1),
            (How::Native, again(), again(), 0),
            (How::Native, told(eintr), told(eintr), 1),
            (How::Again, told(eintr), again(), 0),
            (How::Again, again(), again(), 0),
            (How::Answer(accepted), told(eintr), again(), 1),
            (How::Answer(accepted), again(), again(), 1),
        ];
        for (how, before, want, left) in cases {
            let (mut calls, mut context) = (call(how), before);
            assert!(put_right(&mut calls, &mut context).is_some(), "{how:?} {before:?}");
            assert_eq!((context, calls.len()), (want, left), "{how:?} {before:?}");
            let accepts = matches!(how, How::Answer(Reply::Inject { .. }));
            assert!(calls.iter().all(|c| c.armed == accepts && (accepts || c.how == How::Native)), "{how:?}");
        }
    }

    #[test]
    fn other_contexts_stay_as_they_are() {
        for context in [
            Context { ax: 46, ..again() },
            Context { ip: 0x500, ..again() },
            Context { args: [4, 0x1000, 16, 0, 0, 0], ..again() },
            Context { ax: 3, ..told(0) },
        ] {
            let (mut calls, mut after) = (call(How::Eintr), context);
            assert!(put_right(&mut calls, &mut after).is_none());
            assert_eq!((after, calls.len()), (context, 1));
        }
    }

    #[test]
    fn a_thread_gets_its_own_mask_back_with_what_the_handler_has_changed() {
        let held = Held { mask: 0x200, before: 0x2000, until: None, ends: false };
        for (mask, want) in [(0x200, 0x2000), (0x600, 0x2400), (0, 0x2000)] {
            let mut calls = call(How::Eintr);
            calls[0].held = Some(held);
            let mut context = Context { mask, ..again() };
            assert!(put_right(&mut calls, &mut context).is_some());
            assert_eq!((context.mask, context.ax), (want, EINTR));
        }
    }

    #[test]
    fn context_of_a_handler_that_did_not_return_is_found_on_the_stack() {
        let call = &call(How::Eintr)[0];
        for (word, link, want) in [(100, 0, true), (100, RETURNED, false), (0, 0, true)] {
            let mut stack = vec![0u8; 4096];
            let put = |stack: &mut [u8], at: u64, value: u64| {
                let at = 8 * word + at as usize;
                stack[at..at + 8].copy_from_slice(&value.to_ne_bytes());
            };
            let words = [(104, ARGS[0]), (112, ARGS[1]), (136, ARGS[2]), (Context::AX, EINTR), (Context::IP, call.ip)];
            for (at, value) in words.into_iter().chain([(Context::LINK, link)]) {
                put(&mut stack, at, value);
            }
            assert_eq!(is_left(&stack, call), want, "{word} {link}");
            put(&mut stack, 104, 4);
            assert!(!is_left(&stack, call), "another call");
        }
    }

    #[test]
    fn number_stands_before_the_call() {
        let (exit, args) = (libc::SYS_exit_group as u64, [0, 231, 60, 0, 0, 0]);
        assert_eq!(number(&[0xb8, 3, 0, 0, 0, 0x0f, 0x05], &args), Some(libc::SYS_close as i32));
        assert_eq!(number(&[0xb8, 0x74, 0x20, 0x31, 0xc0, 0x0f, 0x05], &args), Some(libc::SYS_read as i32));
        assert_eq!(number(&[0, 0, 0xf4, 0x89, 0xf0, 0x0f, 0x05], &args), Some(exit as i32));
        assert_eq!(number(&[0, 0, 0, 0x89, 0xd0, 0x0f, 0x05], &args), Some(libc::SYS_exit as i32));
        assert_eq!(number(&[0, 0, 0x44, 0x89, 0xf0, 0x0f, 0x05], &args), None, "r14");
        assert_eq!(number(&[0x89, 3, 0, 0, 0, 0x0f, 0x05], &args), None);
    }

    #[test]
    fn stack_pointer_is_the_eighth_word() {
        assert_eq!(parse_syscall(b"0 0x3 0x7f 0x10 0x0 0x0 0x0 0x7ffc10 0x7f55\n"), Some(0x7f_fc10));
        assert_eq!(parse_syscall(b"running\n"), None);
        assert_eq!(parse_syscall(b"-1 0x7ffc10 0x7f55\n"), None);
    }
}
