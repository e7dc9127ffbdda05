//! Asynchronous I/O of files (`io_submit`): not on sockets.
//!
//! Databases and servers ask their files for it (InnoDB, `fio`, nginx with `aio on`), and complain if it is not there; what is submitted
//! for sockets would go to their placeholders, or by a socket that somebody has passed to the machine's network.

use super::{Outcome, Result};
use crate::guest::Guests;
use crate::guest::decode::{u32_at, u64_at};
use crate::guest::fds::Kind;
use crate::guest::notify::Notif;
use crate::guest::table::Caller;
use ringlab_kernel::errno::Errno;

/// Octets of `struct iocb`.
const IOCB: usize = 64;
/// Where its descriptor stands.
const FILDES: usize = 20;
/// Pointers that are read at once.
const BATCH: usize = 64;

impl Guests {
    /// `io_submit`: the machine's kernel does it, unless one of the requests is for a socket.
    ///
    /// Deviation: Linux serves those before it, and sockets at all.
    pub(super) fn sys_io_submit(&mut self, c: Caller, n: &Notif) -> Result<Outcome> {
        let (mut left, mut at) = (n.args[1], n.args[2]);
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
            let mut pointers = [0; 8 * BATCH];
            // What cannot be read the machine's kernel refuses: all up to there is looked at.
            let Ok(read) = c.mem.read_some(at, &mut pointers[..8 * some]) else { break };
            for i in 0..read / 8 {
                let mut iocb = [0; IOCB];
                if c.mem.read(u64_at(&pointers, 8 * i), &mut iocb).is_err() {
                    return Ok(Outcome::Continue);
                }
                match self.kind(c, u32_at(&iocb, FILDES) as i32) {
                    Kind::Foreign => return Err(Errno::EACCES),
                    Kind::Modelled(_) => {
                        self.unimplemented(n.nr, 0, format_args!("io_submit on a socket"));
                        return Err(Errno::EINVAL);
                    }
                    Kind::None | Kind::Real | Kind::Epoll(_) | Kind::File(_) => {}
                }
            }
            if read < 8 * some {
                break;
            }
            left -= some as u64;
            at = at.wrapping_add(read as u64);
        }
        Ok(Outcome::Continue)
    }
}
