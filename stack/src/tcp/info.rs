//! What can be told about a flow, under the names that `ss -i` uses.
#![forbid(unsafe_code)]

use super::{Algorithm, State};
use crate::time::Duration;

/// A snapshot of one flow.
#[derive(Clone, Debug)]
pub struct TcpInfo {
    /// RFC 9293 state.
    pub state: State,
    /// Congestion control, of a flow that is in a synchronized state.
    pub congestion: Option<Algorithm>,
    /// Smoothed round-trip time, if one was measured.
    pub rtt: Option<Duration>,
    /// Its mean deviation.
    pub rttvar: Duration,
    /// Least round-trip time of the last seconds.
    pub minrtt: Option<Duration>,
    /// Retransmission timeout, backoff included.
    pub rto: Duration,
    /// Congestion window in octets.
    pub cwnd: u32,
    /// Slow-start threshold in octets (`u32::MAX`: none yet).
    pub ssthresh: u32,
    /// Sender MSS in octets, options taken off.
    pub mss: u32,
    /// Octets per second at which text leaves, if it is paced.
    pub pacing_rate: Option<u64>,
    /// What the path is thought to carry, in octets of text and options of a segment; `pmtu` of `ss` less the headers.
    pub path_mss: u16,
    /// MSS that we announced.
    pub advmss: u16,
    /// Longest segment received lately.
    pub rcvmss: u16,
    /// Octets per second that the network delivered in the last round, where congestion control measures it.
    pub delivery_rate: Option<u64>,
    /// The application kept that rate down, not the network.
    pub app_limited: bool,
    /// Octets sent and neither acknowledged, SACKed nor lost (RFC 6675 pipe).
    pub unacked: u32,
    /// Octets queued and not yet sent.
    pub notsent: u32,
    /// Peer's window in octets.
    pub snd_wnd: u32,
    /// Window we offer in octets.
    pub rcv_wnd: u32,
    /// Octets of text sent, retransmissions included.
    pub bytes_sent: u64,
    /// Octets of text the peer acknowledged.
    pub bytes_acked: u64,
    /// Octets of text received in order or not, duplicates left out.
    pub bytes_received: u64,
    /// Octets of text sent again.
    pub bytes_retrans: u64,
    /// Octets marked lost so far.
    pub lost: u64,
    /// Retransmission timeouts so far.
    pub rto_count: u32,
    /// Tail loss probes so far.
    pub tlp_count: u32,
    /// Times loss recovery was entered, timeouts left out.
    pub recoveries: u32,
    /// Segments that arrived with duplicate text.
    pub dup_in: u32,
    /// Segments of text that arrived out of order.
    pub rcv_ooopack: u32,
    /// Which ECN was agreed on, if any: `ecn` (RFC 3168) or `accecn` (RFC 9768).
    pub ecn: Option<&'static str>,
    /// Packets that arrived with CE.
    pub ce_in: u32,
    /// Packets sent that met CE, as far as the peer tells.
    pub delivered_ce: u32,
}

impl TcpInfo {
    /// All zero, in `state`.
    pub(super) fn empty(state: State) -> TcpInfo {
        TcpInfo {
            state,
            congestion: None,
            rtt: None,
            rttvar: Duration::ZERO,
            minrtt: None,
            rto: Duration::ZERO,
            cwnd: 0,
            ssthresh: u32::MAX,
            mss: 0,
            pacing_rate: None,
            path_mss: 0,
            advmss: 0,
            rcvmss: 0,
            delivery_rate: None,
            app_limited: false,
            unacked: 0,
            notsent: 0,
            snd_wnd: 0,
            rcv_wnd: 0,
            bytes_sent: 0,
            bytes_acked: 0,
            bytes_received: 0,
            bytes_retrans: 0,
            lost: 0,
            rto_count: 0,
            tlp_count: 0,
            recoveries: 0,
            dup_in: 0,
            rcv_ooopack: 0,
            ecn: None,
            ce_in: 0,
            delivered_ce: 0,
        }
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Rare events of a flow that its owner has not yet been told, under the kernel's names.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        #[allow(non_snake_case, reason = "the kernel's names, as dashboards know them")]
        pub struct TcpEvents {
            $($(#[$doc])* pub $name: u32,)*
        }

        impl TcpEvents {
            /// Adds all of `other`.
            pub(super) fn add(&mut self, other: &TcpEvents) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }

            /// Names and values.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

events! {
    /// Retransmission timeouts.
    TCPTimeouts,
    /// Timeouts that F-RTO found to be spurious (RFC 5682).
    TCPSpuriousRTOs,
    /// Timeouts undone, for whatever proof.
    TCPLossUndo,
    /// Fast recoveries undone when they ended: the originals had arrived (RFC 3522).
    TCPFullUndo,
    /// Fast recoveries undone half-way.
    TCPPartialUndo,
    /// Fast recoveries undone because all retransmissions were duplicates (RFC 3708).
    TCPDSACKUndo,
    /// Tail loss probes (RFC 8985 7).
    TCPLossProbes,
    /// Losses that a tail loss probe repaired unseen, and that were answered.
    TCPLossProbeRecovery,
    /// Segments sent again in fast recovery.
    TCPFastRetrans,
    /// Segments sent again after a timeout.
    TCPSlowStartRetrans,
    /// Retransmissions found lost.
    TCPLostRetransmit,
    /// Fast recoveries with SACK.
    TCPSackRecovery,
    /// Fast recoveries without.
    TCPRenoRecovery,
    /// Times a peer threw away what it had SACKed (RFC 2018 8).
    TCPSACKReneging,
    /// SACK blocks that cannot be true.
    TCPSACKDiscard,
    /// Duplicates reported below the ACK (RFC 2883 4.1).
    TCPDSACKRecv,
    /// Duplicates reported beyond a hole.
    TCPDSACKOfoRecv,
    /// Duplicate reports that cannot be true, or of more than was sent twice.
    TCPDSACKIgnoredDubious,
    /// Duplicates below rcv.nxt reported to the peer.
    TCPDSACKOldSent,
    /// Duplicates beyond a hole reported to the peer.
    TCPDSACKOfoSent,
    /// Segments received out of order.
    TCPOFOQueue,
    /// Times a path was first seen to reorder.
    TCPSACKReorder,
}
