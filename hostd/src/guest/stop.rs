//! Stopping a thread of a program for a moment, by `ptrace`, to change its signal mask or to end its call.
//!
//! The kernel thread must not wait until a thread stands, and a tracer is one thread: so there are helpers, as many as
//! stops are under way at once. Each attaches (`PTRACE_SEIZE`), interrupts, awaits the stop, does what it was told, and lets go.
//!
//! ```text
//! supervisor ── Want ──▶ helper: seize, interrupt, wait      the call's wait ends, to be restarted
//!            ◀─ Report ─           mask installed             it is restarted under the mask
//!            ◀─ Report ─           halted
//!            ── Go ────▶           registers, mask, detach    it returns, or is restarted
//! ```
//!
//! Once attached, a thread stops before a handler runs: so if its call still waited for the supervisor after that, the first
//! stop is at that call. A thread that another one traces is left alone.

use super::Map;
use super::notify::Listener;
use super::token::{self, Token};
use rustix::event::{EventfdFlags, epoll as ep, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Helpers that are kept for the next stop.
const IDLE: usize = 2;
/// Octets of a helper's stack.
const STACK: usize = 64 << 10;
/// What an interrupted wait for the supervisor leaves in the result's register (Linux `ERESTARTSYS`).
const RESTART: u64 = -512_i64 as u64;
/// Octets of the machine's kernel's signal set.
const SET: usize = 8;
/// Linux `PTRACE_EVENT_STOP`.
const EVENT_STOP: i32 = 128;

/// What a thread is stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// To make its call again under this signal mask.
    Mask(u64),
    /// To stand at its call until [`Stops::go`].
    Halt,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The mask is installed and the thread goes on; this was the one before.
    Masked(u64),
    /// It stands.
    Halted,
    /// It is not at the call any more.
    Elsewhere,
    /// It is traced by another process, or the machine does not permit it.
    Refused,
}

/// How a thread that stands goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Go {
    /// With this signal mask; `None`: with the one it has.
    pub mask: Option<u64>,
    /// The call returns this; `None`: it is made again.
    pub answer: Option<i64>,
}

struct Order {
    number: u64,
    tid: i32,
    listener: Listener,
    id: u64,
    nr: i32,
    want: Want,
}

enum Word {
    Stop(Order),
    Go(Go),
}

struct Busy {
    tid: i32,
    helper: Sender<Word>,
}

struct Link {
    reports: Receiver<(u64, Report)>,
    tell: Sender<(u64, Report)>,
    bell: Arc<OwnedFd>,
}

/// All stops under way.
#[derive(Default)]
pub struct Stops {
    idle: Vec<Sender<Word>>,
    busy: Map<u64, Busy>,
    last: u64,
    link: Option<Link>,
}

impl Stops {
    /// True if there are any.
    pub fn any(&self) -> bool {
        !self.busy.is_empty()
    }

    /// True if there is one of this thread: another one has to wait for it.
    pub fn has(&self, tid: i32) -> bool {
        self.busy.values().any(|b| b.tid == tid)
    }

    /// Stops a thread that waits for the answer to call `id`, whose number is `nr`; the stop's number.
    ///
    /// # Errors
    /// What making a thread or a descriptor answers.
    pub fn begin(&mut self, epoll: &OwnedFd, tid: i32, listener: &Listener, (id, nr): (u64, i32), want: Want) -> io::Result<u64> {
        let listener = Listener::new(listener.as_fd().try_clone_to_owned()?);
        let helper = match self.idle.pop() {
            Some(helper) => helper,
            None => self.hire(epoll)?,
        };
        self.last += 1;
        let number = self.last;
        helper.send(Word::Stop(Order { number, tid, listener, id, nr, want })).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.busy.insert(number, Busy { tid, helper });
        Ok(number)
    }

    /// What came of a stop: its number, its thread. A thread that is [`Report::Halted`] stands until [`Self::go`].
    pub fn next(&mut self) -> Option<(u64, i32, Report)> {
        let link = self.link.as_ref()?;
        let (number, report) = link.reports.try_recv().ok()?;
        let tid = self.busy.get(&number)?.tid;
        if report != Report::Halted {
            self.over(number);
        }
        Some((number, tid, report))
    }

    /// Lets a thread go that stands.
    pub fn go(&mut self, number: u64, how: Go) {
        if let Some(busy) = self.busy.get(&number) {
            // A helper that is gone has let it go.
            let _ = busy.helper.send(Word::Go(how));
        }
        self.over(number);
    }

    /// The bell has been heard.
    pub fn heard(&self) {
        if let Some(link) = &self.link {
            let _ = rustix::io::read(&link.bell, &mut [0; 8]);
        }
    }

    fn over(&mut self, number: u64) {
        if let Some(busy) = self.busy.remove(&number)
            && self.idle.len() < IDLE
        {
            self.idle.push(busy.helper);
        }
    }

    fn hire(&mut self, epoll: &OwnedFd) -> io::Result<Sender<Word>> {
        if self.link.is_none() {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            ep::add(epoll, &bell, token::data(Token::Stops), ep::EventFlags::IN)?;
            let (tell, reports) = channel();
            self.link = Some(Link { reports, tell, bell: Arc::new(bell) });
        }
        let Some(link) = &self.link else { return Err(io::ErrorKind::NotFound.into()) };
        let (helper, words) = channel();
        let (tell, bell) = (link.tell.clone(), link.bell.clone());
        let main = move || help(&words, &tell, &bell);
        std::thread::Builder::new().name("stops".to_owned()).stack_size(STACK).spawn(main)?;
        Ok(helper)
    }
}

/// A helper's life: until nobody has an order for it any more.
fn help(words: &Receiver<Word>, tell: &Sender<(u64, Report)>, bell: &OwnedFd) {
    block_signals();
    while let Ok(word) = words.recv() {
        let Word::Stop(order) = word else { continue };
        let report = |report: Report| {
            let _ = tell.send((order.number, report));
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        };
        match stand(&order) {
            Stand::Not(what) => report(what),
            Stand::At(mut regs) => match order.want {
                Want::Mask(mask) => match exchange_mask(order.tid, mask) {
                    // Said before the thread can say anything.
                    Some(before) => {
                        report(Report::Masked(before));
                        detach(order.tid, 0);
                    }
                    None => {
                        detach(order.tid, 0);
                        report(Report::Elsewhere);
                    }
                },
                Want::Halt => {
                    report(Report::Halted);
                    let Ok(Word::Go(how)) = words.recv() else { return detach(order.tid, 0) };
                    if let Some(answer) = how.answer {
                        // No call to restart: the thread returns with this.
                        (regs.rax, regs.orig_rax) = (answer as u64, u64::MAX);
                        set_registers(order.tid, &regs);
                    }
                    if let Some(mask) = how.mask {
                        exchange_mask(order.tid, mask);
                    }
                    detach(order.tid, 0);
                }
            },
        }
    }
}

enum Stand {
    At(Box<libc::user_regs_struct>),
    Not(Report),
}

/// Makes a thread stand at its call.
fn stand(order: &Order) -> Stand {
    let tid = order.tid;
    if !order.listener.is_valid(order.id) {
        return Stand::Not(Report::Elsewhere);
    }
    if let Err(error) = request(libc::PTRACE_SEIZE, tid, 0, 0) {
        let gone = error.raw_os_error() == Some(libc::ESRCH);
        return Stand::Not(if gone { Report::Elsewhere } else { Report::Refused });
    }
    // From here on it stops before a handler runs.
    let waits = order.listener.is_valid(order.id);
    // Fails if it has stopped already, or ended.
    let _ = request(libc::PTRACE_INTERRUPT, tid, 0, 0);
    let Some(status) = stopped(tid) else { return Stand::Not(Report::Elsewhere) };
    let event = status >> 16;
    if waits
        && event == EVENT_STOP
        && let Some(regs) = registers(tid)
        && (regs.rax, regs.orig_rax) == (RESTART, order.nr as u64)
    {
        return Stand::At(Box::new(regs));
    }
    // A signal before its handler is passed on.
    detach(tid, if event == 0 { libc::WSTOPSIG(status) } else { 0 });
    Stand::Not(Report::Elsewhere)
}

/// Waits until a thread stands; `None` if it has ended.
fn stopped(tid: i32) -> Option<i32> {
    loop {
        let mut status = 0;
        // SAFETY: the status is written before the call returns.
        match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return None,
            _ => return libc::WIFSTOPPED(status).then_some(status),
        }
    }
}

fn registers(tid: i32) -> Option<libc::user_regs_struct> {
    // SAFETY: the structure is plain numbers.
    let mut regs: libc::user_regs_struct = unsafe { core::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as usize).ok().map(|()| regs)
}

fn set_registers(tid: i32, regs: &libc::user_regs_struct) {
    // It has been killed if this fails.
    let _ = request(libc::PTRACE_SETREGS, tid, 0, core::ptr::from_ref(regs) as usize);
}

/// Installs a signal mask; the one before. `None` if the thread has been killed.
fn exchange_mask(tid: i32, mask: u64) -> Option<u64> {
    let mut before = 0_u64;
    request(libc::PTRACE_GETSIGMASK, tid, SET, &raw mut before as usize).ok()?;
    request(libc::PTRACE_SETSIGMASK, tid, SET, &raw const mask as usize).ok()?;
    Some(before)
}

fn detach(tid: i32, signal: i32) {
    let _ = request(libc::PTRACE_DETACH, tid, 0, signal as usize);
}

/// `ptrace`; `data` is a number, or the address of what the request reads or writes, as long as the request says.
fn request(what: libc::c_uint, tid: i32, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: the callers above pass structures of their own that outlive the call, of the size that the request
    // names, exclusive where they are written; the other requests take numbers.
    match unsafe { libc::ptrace(what as _, tid, addr, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Signals are the other threads' affair.
fn block_signals() {
    let mut set = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the first call before the second reads it.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), core::ptr::null_mut());
    }
}
