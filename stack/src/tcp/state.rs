//! The state diagram (RFC 9293 Figure 5) as a table. RFC 8684 Figure 22 is the same graph with DATA_FIN for FIN.
#![forbid(unsafe_code)]

/// States of RFC 9293 3.3.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs, reason = "named by the RFC")]
pub enum State {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

/// What moves a connection from state to state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// SYN and ACK of our SYN.
    SynAck,
    /// SYN alone.
    Syn,
    /// ACK of our SYN.
    AckOfSyn,
    /// The user closes: FIN is queued behind what is unsent.
    Close,
    /// The peer acknowledged our FIN.
    AckOfFin,
    /// The peer's FIN is in order.
    Fin,
    /// 2 MSL in TIME-WAIT, a reset either way, or the user gave up.
    End,
}

/// The next state, or `None` where the event changes nothing.
pub const fn transition(state: State, event: Event) -> Option<State> {
    use State::*;
    Some(match (state, event) {
        (SynSent, Event::SynAck) => Established,
        (SynSent, Event::Syn) => SynReceived,
        (SynReceived, Event::AckOfSyn) => Established,
        (SynSent, Event::Close) => Closed,
        (SynReceived | Established, Event::Close) => FinWait1,
        (CloseWait, Event::Close) => LastAck,
        (FinWait1, Event::AckOfFin) => FinWait2,
        (Closing, Event::AckOfFin) => TimeWait,
        (LastAck, Event::AckOfFin) => Closed,
        (SynReceived | Established, Event::Fin) => CloseWait,
        (FinWait1, Event::Fin) => Closing,
        (FinWait2, Event::Fin) => TimeWait,
        (Closed, _) => return None,
        (_, Event::End) => Closed,
        _ => return None,
    })
}

impl State {
    /// Whether the user may still queue text.
    pub const fn can_send(self) -> bool {
        matches!(self, State::SynSent | State::SynReceived | State::Established | State::CloseWait)
    }

    /// Whether the peer may still send text that is new.
    pub const fn can_receive(self) -> bool {
        matches!(self, State::Established | State::FinWait1 | State::FinWait2)
    }
}
