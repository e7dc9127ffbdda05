//! Connection states (RFC 9293 §3.3.2).

/// Connection state, Linux `TCP_*` numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum State {
    /// Data flows both ways.
    Established = 1,
    /// Active open, SYN sent.
    SynSent,
    /// SYN received.
    SynRecv,
    /// We closed, FIN not acknowledged.
    FinWait1,
    /// Our FIN is acknowledged.
    FinWait2,
    /// 2 MSL.
    TimeWait,
    /// Nothing.
    #[default]
    Close,
    /// Peer closed.
    CloseWait,
    /// Peer closed, then we did.
    LastAck,
    /// Passive open.
    Listen,
    /// Both closed at once.
    Closing,
}

impl State {
    /// The application closes its direction: next state, and whether a FIN goes
    /// out (RFC 9293 §3.10.4; Linux `tcp_close_state`).
    pub fn on_close(self) -> (State, bool) {
        match self {
            State::Established | State::SynRecv => (State::FinWait1, true),
            State::CloseWait => (State::LastAck, true),
            State::SynSent | State::Listen => (State::Close, false),
            s => (s, false),
        }
    }

    /// The peer's FIN is taken in order (RFC 9293 §3.10.7.4, eighth). `None`: it changes nothing.
    pub fn on_fin(self) -> Option<State> {
        match self {
            State::SynRecv | State::Established => Some(State::CloseWait),
            State::FinWait1 => Some(State::Closing),
            State::FinWait2 => Some(State::TimeWait),
            _ => None,
        }
    }

    /// Our FIN is acknowledged (RFC 9293 §3.10.7.4, fifth). `None`: it changes nothing.
    pub fn on_fin_acked(self) -> Option<State> {
        match self {
            State::FinWait1 => Some(State::FinWait2),
            State::Closing => Some(State::TimeWait),
            State::LastAck => Some(State::Close),
            _ => None,
        }
    }

    /// A handshake is done and the connection not over: data or FINs may be in flight.
    pub fn is_synchronized(self) -> bool {
        !matches!(self, State::Close | State::Listen | State::SynSent | State::SynRecv)
    }

    /// The application may still queue data.
    pub fn can_send(self) -> bool {
        matches!(self, State::Established | State::CloseWait)
    }
}

#[cfg(test)]
mod tests {
    use super::State::*;

    #[test]
    fn active_and_passive_close_end_as_the_diagram_says() {
        assert_eq!(Established.on_close(), (FinWait1, true));
        assert_eq!(FinWait1.on_fin_acked(), Some(FinWait2));
        assert_eq!(FinWait2.on_fin(), Some(TimeWait));
        assert_eq!(Established.on_fin(), Some(CloseWait));
        assert_eq!(CloseWait.on_close(), (LastAck, true));
        assert_eq!(LastAck.on_fin_acked(), Some(Close));
        assert_eq!(FinWait1.on_fin(), Some(Closing));
        assert_eq!(Closing.on_fin_acked(), Some(TimeWait));
        assert_eq!(CloseWait.on_fin(), None);
    }
}
