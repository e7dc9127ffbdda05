//! labctl's own standard streams while a program on a node has them. Reading and writing may wait for ever and cannot be interrupted:
//! threads do it, so that signals and the program's end are never waited for behind it.

use ringlab_proto::agent::{ExecInput, exec_input};
use ringlab_proto::exec::WINDOW;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Octets in one message.
const CHUNK: usize = 32 << 10;

/// Standard input: read as far as the program's end of it has room.
#[derive(Debug, Clone)]
pub struct Input(Arc<(Mutex<usize>, Condvar)>);

impl Input {
    /// Begins to read.
    pub fn start(sender: mpsc::Sender<ExecInput>) -> Self {
        let input = Self(Arc::new((Mutex::new(WINDOW), Condvar::new())));
        let own = input.clone();
        std::thread::spawn(move || own.carry(io::stdin().lock(), &sender));
        input
    }

    /// So many octets are on their way no more.
    pub fn taken(&self, octets: u64) {
        let (room, more) = &*self.0;
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        *room = room.saturating_add(usize::try_from(octets).unwrap_or(WINDOW)).min(WINDOW);
        more.notify_one();
    }

    fn carry(&self, mut from: impl Read, sender: &mpsc::Sender<ExecInput>) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let room = self.room().min(CHUNK);
            let kind = match from.read(&mut buffer[..room]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => exec_input::Kind::StdinEof(true),
                Ok(length) => exec_input::Kind::Stdin(buffer[..length].to_vec()),
            };
            let length = if let exec_input::Kind::Stdin(octets) = &kind { octets.len() } else { 0 };
            *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= length;
            if sender.blocking_send(ExecInput { kind: Some(kind) }).is_err() || length == 0 {
                return;
            }
        }
    }

    /// Waits for room; how much there is.
    fn room(&self) -> usize {
        let (room, more) = &*self.0;
        let room = room.lock().unwrap_or_else(PoisonError::into_inner);
        *more.wait_while(room, |room| *room == 0).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of a program's output.
#[derive(Debug)]
pub enum Piece {
    /// For standard output.
    Stdout(Vec<u8>),
    /// For standard error.
    Stderr(Vec<u8>),
}

/// Standard output and error, in order.
#[derive(Debug)]
pub struct Output {
    /// Where pieces go; `None` after the last one.
    pub pieces: Option<mpsc::Sender<Piece>>,
    /// Told once all is written (`Ok`), or nobody reads standard output.
    pub done: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Begins to write.
    pub fn start() -> Self {
        let (pieces, mut receiver) = mpsc::channel(1);
        let (tell, done) = oneshot::channel();
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let (Ok(()), Some(piece)) = (&result, receiver.blocking_recv()) {
                match piece {
                    Piece::Stdout(octets) => result = write(io::stdout(), &octets),
                    // Nobody reads complaints: that is their affair.
                    Piece::Stderr(octets) => drop(write(io::stderr(), &octets)),
                }
            }
            // labctl has ended meanwhile: nobody wants to know.
            let _ = tell.send(result);
        });
        Self { pieces: Some(pieces), done }
    }
}

fn write(mut to: impl Write, octets: &[u8]) -> io::Result<()> {
    to.write_all(octets)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_the_program_has_room_for() {
        let (sender, mut receiver) = mpsc::channel(WINDOW / CHUNK + 2);
        let input = Input(Arc::new((Mutex::new(WINDOW), Condvar::new())));
        let own = input.clone();
        let reader = std::thread::spawn(move || own.carry(io::repeat(7).take(WINDOW as u64 + 100), &sender));
        let mut read = || match receiver.blocking_recv().and_then(|i| i.kind) {
            Some(exec_input::Kind::Stdin(octets)) => octets.len(),
            other => panic!("{other:?}"),
        };
        let mut sum = 0;
        while sum < WINDOW {
            sum += read();
        }
        assert_eq!((sum, *input.0.0.lock().expect("no panic")), (WINDOW, 0));
        assert!(!reader.is_finished());
        input.taken(60);
        assert_eq!(read(), 60);
        input.taken(u64::MAX);
        assert_eq!(read(), 40);
        assert!(matches!(receiver.blocking_recv().and_then(|i| i.kind), Some(exec_input::Kind::StdinEof(true))));
        reader.join().expect("ends");
        assert_eq!(*input.0.0.lock().expect("no panic"), WINDOW - 40);
    }
}
