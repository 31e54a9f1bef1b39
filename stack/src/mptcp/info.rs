//! What can be asked and counted about connections, under the names the Linux kernel uses.
#![forbid(unsafe_code)]

use crate::tcp::TcpInfo;
use crate::wire::FlowTuple;
use alloc::boxed::Box;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Events of one connection since its owner last drained them; names after the kernel's `MPTcpExt`.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        #[allow(non_snake_case, reason = "the kernel's names, as dashboards know them")]
        pub struct MptcpCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl MptcpCounters {
            /// Nothing was counted.
            pub const ZERO: MptcpCounters = MptcpCounters { $($name: 0,)* };

            /// Adds all of `other`.
            pub fn add(&mut self, other: &MptcpCounters) {
                $(self.$name += other.$name;)*
            }

            /// Names and values, in the kernel's order.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// SYNs with MP_CAPABLE received.
    MPCapableSYNRX,
    /// SYNs with MP_CAPABLE sent.
    MPCapableSYNTX,
    /// SYN/ACKs with MP_CAPABLE received.
    MPCapableSYNACKRX,
    /// Third packets with MP_CAPABLE received.
    MPCapableACKRX,
    /// Fallbacks because the third packet had no MP_CAPABLE.
    MPCapableFallbackACK,
    /// Fallbacks because the SYN/ACK had no MP_CAPABLE.
    MPCapableFallbackSYNACK,
    /// SYNs sent without MP_CAPABLE after earlier ones stayed unanswered.
    MPCapableSYNTXDrop,
    /// Data-level retransmissions: octet runs mapped again.
    MPTCPRetrans,
    /// MP_JOIN SYNs received.
    MPJoinSynRx,
    /// MP_JOIN SYN/ACKs received.
    MPJoinSynAckRx,
    /// MP_JOIN SYN/ACKs with a wrong HMAC.
    MPJoinSynAckHMacFailure,
    /// MP_JOIN third ACKs received.
    MPJoinAckRx,
    /// MP_JOIN third ACKs with a wrong HMAC, or without the option.
    MPJoinAckHMacFailure,
    /// MP_JOIN SYNs refused.
    MPJoinRejected,
    /// MP_JOIN SYNs sent.
    MPJoinSynTx,
    /// A mapping contradicted an earlier one.
    DSSNotMatching,
    /// Checksum failures that ended in a fallback.
    DSSCorruptionFallback,
    /// Checksum failures that ended in a reset of the subflow.
    DSSCorruptionReset,
    /// Infinite mappings sent.
    InfiniteMapTx,
    /// Infinite mappings received.
    InfiniteMapRx,
    /// Checksum failures.
    DataCsumErr,
    /// Data that arrived in the window but out of order.
    OFOQueue,
    /// Octets out of order that were dropped: in too many small pieces.
    OfoPruned,
    /// Data outside the data window.
    NoDSSInWindow,
    /// Octet runs that had arrived before.
    DuplicateData,
    /// ADD_ADDRs received with a good HMAC.
    AddAddr,
    /// ADD_ADDRs sent.
    AddAddrTx,
    /// ADD_ADDR echoes received.
    EchoAdd,
    /// ADD_ADDR echoes sent.
    EchoAddTx,
    /// ADD_ADDRs dropped: bad HMAC or no room.
    AddAddrDrop,
    /// REMOVE_ADDRs received.
    RmAddr,
    /// Subflows closed by REMOVE_ADDR.
    RmSubflow,
    /// MP_PRIOs received.
    MPPrioRx,
    /// MP_FAILs sent.
    MPFailTx,
    /// MP_FAILs received.
    MPFailRx,
    /// MP_FASTCLOSEs sent.
    MPFastcloseTx,
    /// MP_FASTCLOSEs received.
    MPFastcloseRx,
    /// MP_TCPRSTs sent.
    MPRstTx,
    /// MP_TCPRSTs received.
    MPRstRx,
    /// Subflows that stopped making progress.
    SubflowStale,
    /// Stale subflows that answered again.
    SubflowRecover,
    /// Data-level window probes.
    WinProbe,
}

/// Counters that take room only from the first event until they are drained.
#[derive(Debug, Default)]
pub(super) struct Tally(Option<Box<MptcpCounters>>);

impl Tally {
    pub(super) fn is_zero(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn drain(&mut self) -> MptcpCounters {
        self.0.take().map_or(MptcpCounters::ZERO, |counters| *counters)
    }
}

impl core::ops::Deref for Tally {
    type Target = MptcpCounters;
    fn deref(&self) -> &MptcpCounters {
        self.0.as_deref().unwrap_or(&MptcpCounters::ZERO)
    }
}

impl core::ops::DerefMut for Tally {
    fn deref_mut(&mut self) -> &mut MptcpCounters {
        self.0.get_or_insert_default()
    }
}

/// A connection as `ss -M` shows it (`struct mptcp_info`).
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "the names of struct mptcp_info")]
pub struct MptcpInfo {
    pub subflows: u8,
    pub subflows_total: u8,
    pub add_addr_signal: u8,
    pub add_addr_accepted: u8,
    pub token: u32,
    pub write_seq: u64,
    pub snd_una: u64,
    pub rcv_nxt: u64,
    pub csum_enabled: bool,
    pub retransmits: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub bytes_acked: u64,
    pub bytes_retrans: u64,
    pub fallback: bool,
}

/// One subflow as `ss -M` shows it.
#[derive(Clone, Debug)]
pub struct SubflowInfo {
    /// The flow.
    pub flow: FlowTuple,
    /// Our address id.
    pub local_id: u8,
    /// The peer's address id.
    pub remote_id: u8,
    /// The peer asked not to send here while another subflow works.
    pub backup: bool,
    /// Not scheduled until it makes progress.
    pub stale: bool,
    /// Octets that were mapped here, re-injections included.
    pub bytes_sent: u64,
    /// Octets of text that arrived here first.
    pub bytes_received: u64,
    /// TCP's view; `None` during the handshake.
    pub tcp: Option<TcpInfo>,
}
