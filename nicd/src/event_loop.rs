//! The datapath thread: polls ports that are awake, spins a little where that can
//! help, and sleeps in epoll.
//!
//! Spinning pays when the peer runs on another CPU and answers within microseconds;
//! on one CPU it keeps the peer from running. It is therefore off where only one
//! CPU is allowed, short everywhere, and given up for a while when it finds nothing.

use crate::config::NicConfig;
use crate::control::{Command, CommandError, Commands};
use crate::nic::Nic;
use crate::poller::{Poller, Token, Wait, now};
use crate::privilege::drop_capabilities;
use anyhow::Context;
use ringlab_device::time::Instant;
use std::num::NonZeroU64;
use std::path::PathBuf;

/// Rounds with work after which descriptors get a look even so.
const ROUNDS: u32 = 16;

/// How early an idle machine is up for a delayed frame: under a hypervisor a timer comes 60 to 100 µs late, and the
/// peer takes as long to wake up.
const EARLY_NS: u64 = 250_000;
/// Without work for so long the thread has been idle. Waiting for the moment takes the CPU: at most a tenth of it.
const IDLE_NS: u64 = 2_000_000;
/// A frame that comes after so long a pause comes alone.
const LONE_NS: u64 = 100_000;

/// Runs until told to end.
///
/// # Errors
/// When epoll fails.
pub fn run(run_dir: PathBuf, commands: &Commands) -> anyhow::Result<()> {
    // Delays are kept to the microsecond: the default slack is 50.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("set timer slack")?;
    let mut poller = Poller::new().context("make epoll")?;
    poller.add_edge(commands.bell(), Token::Control).context("watch for commands")?;
    let mut nic = Nic::new(run_dir);
    let mut spin = Spin::new();
    let mut events = Vec::new();
    let mut rounds = 0;
    let mut woke = None;
    loop {
        // A frame is on the wire from when its doorbell woke the NIC, not from when the NIC has got to it.
        let time = woke.take().unwrap_or_else(now);
        let idle = time.nanos_since(spin.last_work);
        let early = if idle < IDLE_NS { 0 } else { EARLY_NS };
        nic.on_time(time, early, &poller);
        let work = nic.poll(time, early, &poller);
        if work {
            spin.on_work(time);
            rounds += 1;
        }
        // Behind frames that come close upon each other comes another one. Behind a lone one comes sleep, which looks
        // for work itself.
        let mut asleep = None;
        let wait = if work && idle < LONE_NS {
            if rounds % ROUNDS != 0 {
                continue;
            }
            Wait::Look
        } else if spin.goes_on(time) {
            std::hint::spin_loop();
            continue;
        } else if nic.sleep(time, &poller) {
            let time = now();
            asleep = Some(time);
            rest(&nic, time, spin.last_work)
        } else {
            std::hint::spin_loop();
            continue;
        };
        events.clear();
        poller.wait(wait, |token| events.push(token)).context("epoll")?;
        let time = now();
        woke = Some(time);
        for &token in &events {
            if token == Token::Control {
                while let Some(command) = commands.next() {
                    if !serve(&mut nic, &mut spin, command, time, &poller) {
                        return Ok(());
                    }
                }
            }
            nic.on_event(time, asleep, token, &poller);
        }
    }
}

/// How long to sleep. A machine that has been idle takes tens of microseconds to wake up: before a delayed frame
/// is due it is woken early, and hands it over with its time, or (a TAP knows no time) looks around until it is due.
/// Between frames of busy traffic nothing is idle.
fn rest(nic: &Nic, now: Instant, last_work: Instant) -> Wait {
    let deadline = nic.deadline();
    let Some(due) = nic.due() else { return Wait::Until(deadline) };
    let left = due.nanos_since(now);
    if due.nanos_since(last_work) < IDLE_NS {
        return Wait::Until(deadline);
    }
    if left <= EARLY_NS {
        return Wait::Look;
    }
    let early = Instant(due.0 - EARLY_NS);
    Wait::Until(Some(deadline.map_or(early, |d| d.min(early))))
}

/// False: end.
fn serve(nic: &mut Nic, spin: &mut Spin, command: Command, time: Instant, poller: &Poller) -> bool {
    // A reply that nobody waits for is no fault of ours.
    match command {
        Command::Configure(config, reply) => drop(reply.send(configure(nic, spin, config, time, poller))),
        Command::SetLink { port, up, impairment, reply } => drop(reply.send(nic.set_link(time, &port, up, impairment, poller))),
        Command::Stats(reply) => drop(reply.send(Ok(nic.stats(time)))),
        Command::Shutdown => return false,
    }
    true
}

fn configure(nic: &mut Nic, spin: &mut Spin, config: NicConfig, time: Instant, poller: &Poller) -> Result<(), CommandError> {
    spin.configure(config.adaptive);
    nic.configure(time, config, poller)?;
    // TAP devices are made: nothing else needs a privilege.
    drop_capabilities().map_err(|e| CommandError::Failed(format!("drop capabilities: {e}")))
}

/// Whether to spin.
struct Spin {
    enabled: bool,
    last_work: Instant,
    spinning: bool,
    /// Successes and failures of late.
    credit: i32,
}

const SPIN_NS: u64 = 30_000;
const CREDIT: i32 = 8;
/// Sleeps without spinning after the credit was used up.
const REST: i32 = 64;

impl Spin {
    fn new() -> Self {
        Self { enabled: false, last_work: Instant(0), spinning: false, credit: CREDIT }
    }

    fn configure(&mut self, adaptive: bool) {
        let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        self.enabled = adaptive && cpus > 1;
    }

    #[inline]
    fn on_work(&mut self, time: Instant) {
        if std::mem::take(&mut self.spinning) {
            self.credit = (self.credit + 1).min(CREDIT);
        }
        self.last_work = time;
    }

    #[inline]
    fn goes_on(&mut self, time: Instant) -> bool {
        if !self.enabled {
            return false;
        }
        if self.credit <= 0 {
            self.credit = if self.credit <= -REST { 1 } else { self.credit - 1 };
            return false;
        }
        if time.nanos_since(self.last_work) < SPIN_NS {
            self.spinning = true;
            return true;
        }
        if std::mem::take(&mut self.spinning) {
            self.credit -= 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_that_finds_nothing_rests_and_tries_again() {
        let mut spin = Spin { enabled: true, ..Spin::new() };
        let mut time = 0;
        let mut spins = 0;
        for _ in 0..200 {
            time += 1_000_000;
            spin.on_work(Instant(time));
            spins += u32::from(spin.goes_on(Instant(time + 1)));
            assert!(!spin.goes_on(Instant(time + SPIN_NS)));
            assert!(!spin.spinning);
        }
        assert!((8..20).contains(&spins), "{spins} of 200");
    }

    #[test]
    fn spinning_that_helps_goes_on() {
        let mut spin = Spin { enabled: true, ..Spin::new() };
        for i in 0..100 {
            spin.on_work(Instant(i * 1000));
            assert!(spin.goes_on(Instant(i * 1000 + 500)));
        }
    }

    #[test]
    fn one_cpu_never_spins() {
        let mut spin = Spin::new();
        spin.on_work(Instant(0));
        assert!(!spin.goes_on(Instant(0)));
    }
}
