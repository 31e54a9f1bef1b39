//! What can be told about a flow, under the names that `ss -i` uses.
#![forbid(unsafe_code)]

use super::State;
use crate::time::Duration;

/// A snapshot of one flow.
#[derive(Clone, Debug)]
pub struct TcpInfo {
    /// RFC 9293 state.
    pub state: State,
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
