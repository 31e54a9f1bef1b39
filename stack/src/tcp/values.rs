//! The values that pass between a [`Tcb`](super::Tcb) and its owner: arguments down, values up.
#![forbid(unsafe_code)]

use crate::buf::Chain;
use crate::wire::{Segment, SeqNum};

/// A mark on pushed text, opaque to TCP (MPTCP keeps its mapping there). Octets of different labels never share a
/// segment, and a label comes back with every transmission of its octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Label(pub u128);

impl Label {
    /// No mark: chunks may be merged and cut freely.
    pub const PLAIN: Label = Label(0);
}

/// Option octets that the owner will add to the segments TCP yields; multiples of 4. SACK gives way to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OptionRoom {
    /// On segments with text.
    pub text: u8,
    /// On segments without.
    pub ack: u8,
}

/// A segment to send, complete but for the owner's options.
#[derive(Clone, Debug)]
pub struct TxSegment {
    /// The segment; its text shares the frames of the send queue.
    pub segment: Segment,
    /// Of its text.
    pub label: Label,
    /// Of its text, in octets from the beginning of the chunk as pushed; 0 for [`Label::PLAIN`].
    pub offset: u32,
    /// Octets of text per segment if the text is longer than one segment, else 0.
    pub gso_size: u16,
    /// Whether any of its octets were sent before.
    pub retransmission: bool,
    /// Option octets left to the owner, out of 40.
    pub option_room: u8,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CloseReason {
    /// Both directions closed in order.
    Done,
    /// The peer reset it.
    Reset,
    /// The peer answered our SYN with a RST.
    Refused,
    /// Nothing was heard for R2 (RFC 9293 3.8.3).
    TimedOut,
    /// The network said that the peer cannot be reached.
    Unreachable,
    /// We gave it up.
    Aborted,
}

/// What a segment changed. The owner acts on it; TCP calls nobody.
#[derive(Debug, Default)]
pub struct Arrival {
    /// Sequence and ACK checks passed: the segment's options may be used.
    pub accepted: bool,
    /// Text within the window that holds something new, perhaps out of order, perhaps with old octets in it.
    pub text: Option<(SeqNum, Chain)>,
    /// Octets of our text that were newly acknowledged in order.
    pub acked: u32,
    /// The peer's window changed.
    pub window_changed: bool,
    /// The peer's FIN has come into order.
    pub fin: bool,
    /// The connection ended with this segment. `Done` with state TIME-WAIT: one last ACK is still to be polled.
    pub closed: Option<CloseReason>,
    /// Why processing stopped before its end, if it did.
    pub stop: Option<Stop>,
}

/// How a segment was stopped, each a counter of the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Stop {
    /// Dropped without a word.
    Silent(Why),
    /// Dropped, and an ACK is owed.
    Ack(Why),
    /// It ended the connection.
    Closed(CloseReason),
}

/// Why a segment was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Why {
    /// No octet of it is in the window (RFC 9293 3.10.7.4 first).
    OutsideWindow,
    /// Its timestamp is older than TS.Recent (RFC 7323 5.3).
    Paws,
    /// A RST in the window but not at `rcv.nxt` (RFC 5961 3.2).
    ResetOutOfOrder,
    /// A RST outside of the window.
    ResetOutsideWindow,
    /// A SYN in a synchronized state (RFC 5961 4.2).
    Syn,
    /// No ACK bit (RFC 9293 3.10.7.4 fifth).
    NoAck,
    /// It acknowledges what was never sent (RFC 9293 3.10.7.4 fifth).
    AckOfUnsent,
    /// It acknowledges what is older than any window was (RFC 5961 5.2).
    AckTooOld,
    /// Text after the peer's FIN.
    TextAfterFin,
    /// All of its text is here already.
    DuplicateText,
    /// More holes than we keep track of.
    TooManyHoles,
    /// A challenge ACK was due but the limit is reached (RFC 5961 7).
    ChallengeLimit,
    /// The connection is closed.
    Closed,
}
