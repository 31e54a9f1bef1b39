//! MP_CAPABLE in a handshake of which nothing is kept (RFC 8684 3.1): our key is computed again, the peer's comes with
//! the third segment.
#![forbid(unsafe_code)]

use super::config::SharedConfig;
use super::connection::Connection;
use super::handshake::{SHA256, VERSION, usable};
use super::key::Key;
use crate::tcp::{Proven, SynReceived};
use crate::time::Instant;
use crate::wire::{FlowTuple, MP_CAPABLE_CHECKSUM, MpCapable, MptcpOption, Segment};
use alloc::rc::Rc;

/// The MP_CAPABLE that answers the one of `syn`; `None` if that is not usable.
pub fn cookie_option(cfg: &SharedConfig, syn: &Segment, key: Key) -> Option<MptcpOption> {
    let offered = usable(syn.options.mptcp()).filter(|m| m.sender_key.is_none())?;
    let checksum = if cfg.checksum { MP_CAPABLE_CHECKSUM } else { 0 };
    Some(MptcpOption::MpCapable(MpCapable {
        version: VERSION,
        flags: SHA256 | checksum | (offered.flags & MP_CAPABLE_CHECKSUM),
        sender_key: Some(key.0),
        receiver_key: None,
        data: None,
    }))
}

/// What a third segment says about the key in our SYN/ACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MpCapableAck {
    /// Nothing.
    Absent,
    /// It returns another one.
    OfAnother,
    /// It returns it beside its own.
    Complete,
}

impl MpCapableAck {
    /// Reads form 3 or 4 of MP_CAPABLE.
    pub fn read(ack: &Segment, key: Key) -> MpCapableAck {
        match capable(ack) {
            None => MpCapableAck::Absent,
            Some(MpCapable { sender_key: Some(_), receiver_key: Some(ours), .. })
                if *ours == key.0 =>
            {
                MpCapableAck::Complete
            }
            Some(_) => MpCapableAck::OfAnother,
        }
    }
}

fn capable(segment: &Segment) -> Option<&MpCapable> {
    segment.options.mptcp().iter().find_map(|option| match option {
        MptcpOption::MpCapable(m) => Some(m),
        _ => None,
    })
}

impl Connection {
    /// A connection whose third segment, `ack`, returned a cookie: feed it that segment next.
    pub fn proven(
        cfg: Rc<SharedConfig>,
        key: Key,
        flow: FlowTuple,
        proven: &Proven,
        ack: &Segment,
        now: Instant,
    ) -> Connection {
        let received = SynReceived::proven(&cfg.subflow, proven, now);
        // The flags of the SYN stand in form 3 and 4 again.
        let flags = capable(ack).map_or(0, |m| m.flags);
        Connection::responder(cfg, key, flow, &proven.syn, received, flags)
    }
}
