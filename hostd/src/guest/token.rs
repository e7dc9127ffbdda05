//! What hostd's own epoll says of guests.

use rustix::event::epoll::EventData;

/// Whose readiness it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A filter has trapped calls, or is gone.
    Listener(u32),
    /// The last reference to a placeholder is gone.
    Placeholder(i32),
    /// A process has ended.
    Process(i32),
    /// Real descriptors of an epoll set are ready.
    Epoll(u32),
    /// Real descriptors of a `poll` are ready, by the task that waits.
    Poll(u32),
    /// Threads that were to be stopped stand.
    Stops,
    /// The pipe of a `splice` is ready, by the task that waits.
    Pipe(u32),
}

/// Smaller values are the event loop's own; so is the largest.
const BASE: u64 = 1 << 40;

/// As `epoll` carries it.
pub fn data(token: Token) -> EventData {
    let (kind, value) = match token {
        Token::Listener(n) => (1, n),
        Token::Placeholder(n) => (2, n as u32),
        Token::Process(n) => (3, n as u32),
        Token::Epoll(n) => (4, n),
        Token::Poll(n) => (5, n),
        Token::Stops => (6, 0),
        Token::Pipe(n) => (7, n),
    };
    EventData::new_u64((kind * BASE) | u64::from(value))
}

/// Back from `epoll`; `None` if it is not about guests.
pub fn parse(data: u64) -> Option<Token> {
    let value = data as u32;
    Some(match data / BASE {
        1 => Token::Listener(value),
        2 => Token::Placeholder(value as i32),
        3 => Token::Process(value as i32),
        4 => Token::Epoll(value),
        5 => Token::Poll(value),
        6 => Token::Stops,
        7 => Token::Pipe(value),
        _ => return None,
    })
}
