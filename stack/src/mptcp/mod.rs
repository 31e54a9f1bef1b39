//! One Multipath TCP connection over N subflows (RFC 8684, version 1).
//!
//! A [`Connection`] owns its subflows; each is a [`crate::tcp`] flow that knows nothing of MPTCP. Four values cross the
//! border: an `Arrival` comes up; option room, the shared window and labelled octets go down. A label is a mapping, so a
//! retransmission always declares what the first transmission declared.
#![forbid(unsafe_code)]

mod closing;
mod config;
mod connection;
mod cookie;
mod fallback;
mod handshake;
mod info;
mod input;
pub mod key;
mod mapping;
mod output;
mod path_manager;
mod reinjection;
mod scheduler;
mod state;
mod subflow;
#[cfg(test)]
mod tests;

pub use config::{LocalAddress, MptcpConfig, SharedConfig};
pub use connection::{Connection, Event};
pub use cookie::{MpCapableAck, cookie_option};
pub use fallback::FallbackCause;
pub use handshake::{JoinRefusal, refuse_join};
pub use info::{MptcpCounters, MptcpInfo, SubflowInfo};
pub use key::Key;
pub use mapping::{Declaration, Declared, Mapped, Mapping, PeerMappings, dss_checksum};
pub use reinjection::SendQueue;
pub use scheduler::{PathView, schedule};
pub use state::{DataEvent, DataState};
