//! How octets get into and out of a program's pipe, without waiting for it.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno as OsErrno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice, tee};

/// What a pipe has for a writer.
pub enum Room {
    /// A buffer at least.
    Some,
    /// None.
    Full,
    /// No reader.
    Gone,
}

impl Room {
    /// What there is now.
    pub fn of(pipe: &OwnedFd) -> Self {
        match ready(pipe, PollFlags::OUT) {
            found if found.contains(PollFlags::ERR) => Self::Gone,
            found if found.contains(PollFlags::OUT) => Self::Some,
            _ => Self::Full,
        }
    }
}

/// A pipe of hostd's own, through which all octets pass. It is empty between two calls.
#[derive(Default)]
pub struct Stage(Option<Ends>);

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    /// `/dev/null`.
    nowhere: OwnedFd,
}

impl Stage {
    fn ends(&mut self) -> rustix::io::Result<&Ends> {
        if self.0.is_none() {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            let nowhere = open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            self.0 = Some(Ends { read, write, nowhere });
        }
        self.0.as_ref().ok_or(OsErrno::MFILE)
    }

    /// Writes as much to a program's pipe as fits. How much.
    pub fn push(&mut self, data: &[u8], pipe: &OwnedFd) -> rustix::io::Result<usize> {
        let done = self.ends()?.push(data, pipe);
        // What did not fit lies in the stage.
        if !matches!(done, Ok(n) if n == data.len()) {
            self.0 = None;
        }
        done
    }

    /// Copies what the first buffers of a program's pipe hold, at most `most` octets. How many, and whether they fill the stage.
    pub fn look(&mut self, pipe: &OwnedFd, most: u64, to: &mut Vec<u8>) -> rustix::io::Result<(usize, bool)> {
        let ends = self.ends()?;
        let len = tee(pipe, &ends.write, most as usize, SpliceFlags::NONBLOCK)?;
        let full = !ready(&ends.write, PollFlags::OUT).contains(PollFlags::OUT);
        to.resize(len, 0);
        let mut at = 0;
        while at < len {
            match rustix::io::read(&ends.read, &mut to[at..]) {
                Ok(n @ 1..) => at += n,
                other => {
                    self.0 = None;
                    return Err(other.err().unwrap_or(OsErrno::IO));
                }
            }
        }
        Ok((len, full))
    }

    /// Takes octets out of a program's pipe.
    pub fn discard(&mut self, pipe: &OwnedFd, octets: u64) -> rustix::io::Result<()> {
        let ends = self.ends()?;
        let mut left = octets as usize;
        while left > 0 {
            match splice(pipe, None, &ends.nowhere, None, left, SpliceFlags::NONBLOCK) {
                // Somebody else has taken them.
                Ok(0) | Err(OsErrno::AGAIN) => break,
                Ok(n) => left -= n,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Ends {
    fn push(&self, data: &[u8], pipe: &OwnedFd) -> rustix::io::Result<usize> {
        let mut done = 0;
        while done < data.len() {
            let mut staged = rustix::io::write(&self.write, &data[done..])?;
            while staged > 0 {
                match splice(&self.read, None, pipe, None, staged, SpliceFlags::NONBLOCK) {
                    Ok(n @ 1..) => (staged, done) = (staged - n, done + n),
                    Ok(_) | Err(OsErrno::AGAIN) => return Ok(done),
                    Err(_) if done > 0 => return Ok(done),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(done)
    }
}

fn ready(pipe: &OwnedFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), events)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{read, write};

    #[test]
    fn what_does_not_fit_is_not_counted_and_does_not_come_later() {
        let mut stage = Stage::default();
        let (r, w) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let size = rustix::pipe::fcntl_setpipe_size(&w, 8192).expect("resized");
        let data: Vec<u8> = (0..20_000u32).map(|i| i as u8).collect();
        assert_eq!(stage.push(&data, &w), Ok(size));
        assert_eq!(stage.push(&data, &w), Ok(0));
        assert!(matches!(Room::of(&w), Room::Full));
        let mut got = vec![0; size + 1];
        assert_eq!(read(&r, &mut got[..]), Ok(size));
        assert_eq!(got[..size], data[..size]);
        assert_eq!(stage.push(b"next", &w), Ok(4));
        assert_eq!(read(&r, &mut got[..]), Ok(4));
        drop(r);
        assert!(matches!(Room::of(&w), Room::Gone));
        assert_eq!(stage.push(b"lost", &w), Err(OsErrno::PIPE));
    }

    #[test]
    fn a_look_leaves_the_pipe_as_it_is() {
        let mut stage = Stage::default();
        let (r, w) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let mut seen = Vec::new();
        assert_eq!(stage.look(&r, 1 << 20, &mut seen), Err(OsErrno::AGAIN));
        write(&w, b"abcdef").expect("room");
        for _ in 0..2 {
            assert_eq!(stage.look(&r, 1 << 20, &mut seen), Ok((6, false)));
            assert_eq!(seen, b"abcdef");
        }
        stage.discard(&r, 4).expect("discarded");
        assert_eq!(stage.look(&r, 1, &mut seen), Ok((1, false)));
        assert_eq!(seen, b"e");
        write(&w, &[7; 61_440]).expect("room");
        assert_eq!(stage.look(&r, 1 << 20, &mut seen).map(|(_, full)| full), Ok(true));
        stage.discard(&r, 1 << 20).expect("discarded");
        drop(w);
        assert_eq!(stage.look(&r, 1 << 20, &mut seen), Ok((0, false)));
    }
}
