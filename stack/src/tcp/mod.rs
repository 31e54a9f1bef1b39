//! One TCP flow: handshakes, synchronized states, time-wait (RFC 9293 and friends), sans-IO.
//!
//! [`Tcb`] decides which octets are new; its owner decides where they go. [`Stream`] is the plain owner: a TCP
//! endpoint with one reassembly queue. Reading order: `state`, `tcb`, `input`, `output`, `send_queue`, `recovery`.
#![forbid(unsafe_code)]

mod ack;
mod config;
mod congestion;
mod ecn;
mod fast_open;
mod handshake;
mod info;
mod input;
mod output;
mod pacing;
mod path_mtus;
mod pmtu;
mod range_set;
mod reassembly;
mod recovery;
mod rtt;
mod send_queue;
mod state;
mod stream;
mod syn_cookie;
mod syn_received;
mod tcb;
mod time_wait;
mod timer;
mod undo;
mod values;

pub use config::{Algorithm, EcnMode, MtuProbing, RightEdge, TcpConfig};
pub use fast_open::{
    CookieVerdict, FastOpenCache, FastOpenFate, FastOpenGrant, FastOpenLesson, FastOpenRoles,
    FastOpenSecret, FastOpenTry,
};
pub use handshake::{Opening, SynSent, SynSentOutcome};
pub use info::{TcpEvents, TcpInfo};
pub use pacing::Pacing;
pub use path_mtus::PathMtus;
pub use pmtu::{MtuTally, TooBig, default_mss, header_len};
pub use range_set::{RangeSet, Sequence};
pub use reassembly::Reassembly;
pub use state::{Event, State, transition};
pub use stream::{Phase, Stream};
pub use syn_cookie::{CookieJar, CookiePolicy, Proven};
pub use syn_received::{SynReceived, SynReceivedOutcome};
pub use tcb::Tcb;
pub use time_wait::{TimeWait, reset_reply};
pub use values::{Arrival, CloseReason, Label, OptionRoom, Stop, TxSegment, Why};

#[cfg(test)]
mod tests;
