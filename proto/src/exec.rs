//! How a program's standard input travels: never more of it than its far end holds, so that signals do not wait behind it.
//!
//! Whoever calls `Exec` keeps at most [`WINDOW`] octets of input on their way: those sent that no `ExecOutput.stdin_taken` has told of yet.
//! The far end ([`feed`]) reads as long as it holds no more than that, whether the program reads or not; so a signal, a new size of
//! the window and the end of the input, which take no room, always arrive. A caller that sends more waits, and its signals with it.

use crate::host::{ExecInput, ExecOutput, WindowSize, exec_input, exec_output};
use std::collections::VecDeque;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

/// Octets of input that may be on their way to a program.
pub const WINDOW: usize = 256 << 10;

/// What comes for a program beside its input.
#[derive(Debug, Clone, PartialEq)]
pub enum Control {
    /// A signal's number, 1 to 64.
    Signal(i32),
    /// Its terminal's size.
    Resize(WindowSize),
    /// Its user has gone. Comes last.
    HangUp,
}

/// Carries standard input to a program and everything else to `control`, until its user has gone (`output` is closed, or `input` broken).
///
/// `stdin` is closed at the input's end, and may be closed by the program. `output` is told what was taken.
pub async fn feed(
    mut input: impl Stream<Item = Result<ExecInput, Status>> + Unpin,
    stdin: mpsc::Sender<Vec<u8>>,
    output: mpsc::Sender<Result<ExecOutput, Status>>,
    control: impl Fn(Control),
) {
    let mut waiting = Waiting { stdin: Some(stdin), pieces: VecDeque::new(), held: 0, taken: 0, ended: false };
    // Whether more may come; output goes on without, until its reader goes.
    let mut open = true;
    loop {
        tokio::select! {
            message = input.next(), if open && waiting.held <= WINDOW => match message {
                Some(Ok(message)) => match message.kind {
                    Some(exec_input::Kind::Stdin(octets)) => waiting.add(octets),
                    Some(exec_input::Kind::StdinEof(_)) => waiting.end(),
                    Some(exec_input::Kind::Signal(signal)) if (1..=64).contains(&signal) => control(Control::Signal(signal)),
                    Some(exec_input::Kind::Resize(size)) => control(Control::Resize(size)),
                    _ => tracing::warn!("a message that says nothing was ignored"),
                },
                Some(Err(_)) => break,
                None => {
                    open = false;
                    waiting.end();
                }
            },
            read = waiting.pass(), if !waiting.pieces.is_empty() => match read {
                true => waiting.end_if_empty(),
                false => waiting.discard(),
            },
            Ok(told) = output.reserve(), if waiting.taken > 0 => {
                told.send(Ok(ExecOutput { kind: Some(exec_output::Kind::StdinTaken(std::mem::take(&mut waiting.taken))) }));
            }
            () = output.closed() => break,
        }
    }
    control(Control::HangUp);
}

/// Input that the program has not taken.
struct Waiting {
    /// `None`: the program has closed it, or it has ended.
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    pieces: VecDeque<Vec<u8>>,
    /// Octets of `pieces`.
    held: usize,
    /// Octets that were taken, or that nobody wants, and that the caller has not been told of.
    taken: u64,
    ended: bool,
}

impl Waiting {
    fn add(&mut self, octets: Vec<u8>) {
        if self.stdin.is_none() || self.ended {
            self.taken += octets.len() as u64;
        } else if !octets.is_empty() {
            self.held += octets.len();
            self.pieces.push_back(octets);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.end_if_empty();
    }

    /// Passes the first piece on, as soon as there is room; false if nobody reads any more. May be dropped while it waits.
    async fn pass(&mut self) -> bool {
        let Some(stdin) = &self.stdin else { return false };
        let Ok(room) = stdin.reserve().await else { return false };
        if let Some(piece) = self.pieces.pop_front() {
            self.held -= piece.len();
            self.taken += piece.len() as u64;
            room.send(piece);
        }
        true
    }

    /// The end of the input goes behind its last piece.
    fn end_if_empty(&mut self) {
        if self.ended && self.pieces.is_empty() {
            self.stdin = None;
        }
    }

    /// Nobody reads any more.
    fn discard(&mut self) {
        self.stdin = None;
        self.pieces.clear();
        self.taken += std::mem::take(&mut self.held) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio_stream::wrappers::ReceiverStream;

    fn message(kind: exec_input::Kind) -> Result<ExecInput, Status> {
        Ok(ExecInput { kind: Some(kind) })
    }

    /// Runs [`feed`] beside `meanwhile`: that one's result, and what was controlled.
    async fn fed<T>(
        stdin: mpsc::Sender<Vec<u8>>,
        meanwhile: impl AsyncFnOnce(
            mpsc::Sender<Result<ExecInput, Status>>,
            mpsc::Receiver<Result<ExecOutput, Status>>,
            &Mutex<Vec<Control>>,
        ) -> T,
    ) -> (T, Vec<Control>) {
        let controls = Mutex::new(Vec::new());
        let (to, input) = mpsc::channel(1);
        let (output, outputs) = mpsc::channel(1);
        let feeding = feed(ReceiverStream::new(input), stdin, output, |c| controls.lock().expect("no panic").push(c));
        let (result, ()) = tokio::join!(meanwhile(to, outputs, &controls), feeding);
        (result, controls.into_inner().expect("no panic"))
    }

    /// Sends input until it has been told of as much as was sent.
    async fn told(outputs: &mut mpsc::Receiver<Result<ExecOutput, Status>>, octets: u64) {
        let mut sum = 0;
        while sum < octets {
            match outputs.recv().await {
                Some(Ok(ExecOutput { kind: Some(exec_output::Kind::StdinTaken(n)) })) => sum += n,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sum, octets);
    }

    #[tokio::test]
    async fn signals_overtake_a_window_of_input_that_nobody_reads() {
        let (stdin, mut program) = mpsc::channel(1);
        let ((), controls) = fed(stdin, async |to, mut outputs, controls| {
            for _ in 0..WINDOW / 4096 {
                to.send(message(exec_input::Kind::Stdin(vec![7; 4096]))).await.expect("it listens");
            }
            to.send(message(exec_input::Kind::StdinEof(true))).await.expect("it listens");
            to.send(message(exec_input::Kind::Signal(15))).await.expect("it listens");
            to.send(message(exec_input::Kind::Signal(65))).await.expect("it listens");
            // Behind the last message: it has been read.
            to.send(message(exec_input::Kind::Signal(2))).await.expect("it listens");
            drop(to.reserve().await.expect("it listens"));
            while controls.lock().expect("no panic").len() < 2 {
                tokio::task::yield_now().await;
            }
            // Nothing of the input is lost, and then comes its end.
            let mut octets = 0;
            while let Some(piece) = program.recv().await {
                octets += piece.len();
            }
            assert_eq!(octets, WINDOW);
            told(&mut outputs, WINDOW as u64).await;
        })
        .await;
        assert_eq!(controls, [Control::Signal(15), Control::Signal(2), Control::HangUp]);
    }

    #[tokio::test]
    async fn input_that_the_program_does_not_want_is_taken_all_the_same() {
        let (stdin, program) = mpsc::channel(1);
        let ((), controls) = fed(stdin, async |to, mut outputs, _| {
            to.send(message(exec_input::Kind::Stdin(vec![1; 10]))).await.expect("it listens");
            to.send(message(exec_input::Kind::Stdin(vec![1; 10]))).await.expect("it listens");
            told(&mut outputs, 10).await;
            drop(program);
            told(&mut outputs, 10).await;
            to.send(message(exec_input::Kind::Stdin(vec![1; 3 * WINDOW]))).await.expect("it listens");
            told(&mut outputs, 3 * WINDOW as u64).await;
        })
        .await;
        assert_eq!(controls, [Control::HangUp]);
    }

    #[tokio::test]
    async fn who_sends_more_than_the_window_waits() {
        const PIECE: usize = WINDOW / 4;
        let (stdin, mut program) = mpsc::channel(1);
        let (sent, _) = fed(stdin, async |to, _outputs, _| {
            let (mut sent, mut refusals) = (0, 0);
            // One thread runs both: after some turns `feed` has done what it can.
            while refusals < 100 {
                match to.try_send(message(exec_input::Kind::Stdin(vec![0; PIECE]))) {
                    Ok(()) => (sent, refusals) = (sent + PIECE, 0),
                    Err(_) => refusals += 1,
                }
                tokio::task::yield_now().await;
            }
            program.close();
            sent
        })
        .await;
        // One piece is the program's, one beyond the window fills it, one lies in the channel.
        assert!(sent > WINDOW && sent <= WINDOW + 3 * PIECE, "{sent}");
    }
}
