//! Formats and checksums. Octets are parsed once, to cheap values; values are written into headroom.
//!
//! Ethernet, ARP, IP, ICMP and NDP views are smoltcp's; TCP, MPTCP and conversion signalling are our own.
#![forbid(unsafe_code)]

pub use crate::checksum;
mod coalesce;
mod fast_open;
mod flow;
mod icmp;
mod ip;
mod mptcp_option;
mod octets;
pub mod plain_mode;
mod segmentation;
mod seq;
mod tcp;
mod tcp_option;

pub use coalesce::Run;
pub use fast_open::{FastOpen, FastOpenCookie, FastOpenKind};
pub use flow::{Endpoint, FlowTuple, Prefix};
pub use icmp::{
    IcmpError, IcmpErrorKind, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Unreachable, emit_unreachable,
};
pub(crate) use ip::skip_extensions;
pub use ip::{Ecn, TrafficClass};
pub use mptcp_option::{
    AddAddr, AddressIds, DataAck, Dss, DssDsn, DssMapping, MP_CAPABLE_CHECKSUM,
    MP_CAPABLE_NO_JOIN_HERE, MpCapable, MpFastclose, MpJoin, MptcpOption, MptcpOptions,
    ResetReason,
};
pub use segmentation::{Segments, segment_packet};
pub use seq::{Dsn, SeqNum, UnscaledWindow, WindowScale, WindowSize};
pub use tcp::{
    Control, EcnFlags, Malformed, Parsed, RxChecksum, RxPacket, Segment, TxPacket, emit, parse,
};
pub use tcp_option::{Options, SackBlock, SackBlocks, SegmentOptions, SynOptions, Timestamps};

#[cfg(test)]
mod tests;
