//! One TCP flow of a connection: its handshake, its mappings in both directions, its standing with the scheduler.
#![forbid(unsafe_code)]

use super::mapping::PeerMappings;
use crate::buf::Chain;
use crate::tcp::{OptionRoom, Reassembly, State, SynReceived, SynSent, Tcb};
use crate::time::{Instant, earliest};
use crate::wire::{Dsn, FlowTuple, MptcpOption, ResetReason, SeqNum, WindowScale};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use arrayvec::ArrayVec;

/// The TCP below a subflow.
#[derive(Debug)]
pub(super) enum Stage {
    SynSent(Box<SynSent>),
    SynReceived(Box<SynReceived>),
    Open(Box<Tcb>),
}

/// How far the MPTCP handshake of a subflow is.
#[derive(Debug)]
pub(super) enum Handshake {
    /// The connection's first subflow: MP_CAPABLE.
    Initial,
    /// We sent a SYN with MP_JOIN.
    JoinSent { nonce: u32 },
    /// We answered a SYN with MP_JOIN.
    JoinReceived(Box<JoinAnswer>),
    /// RFC 8684 3.2: the third ACK is out and no data may be sent until it is acknowledged.
    PreEstablished(Box<ThirdAck>),
    /// A join that is complete.
    Joined,
}

/// Our answer to a SYN with MP_JOIN.
#[derive(Debug)]
pub(super) struct JoinAnswer {
    pub nonce: u32,
    /// HMAC-B, as we sent it.
    pub answer: u64,
    /// HMAC-A, as it has to come.
    pub expected: [u8; 20],
}

/// The third ACK of our join.
#[derive(Debug)]
pub(super) struct ThirdAck {
    pub hmac: [u8; 20],
    pub retry_at: Instant,
    pub tries: u8,
}

/// Options that wait for a segment without text, in order; there are rarely any.
#[derive(Debug, Default)]
pub(super) struct Signals(Option<Box<ArrayVec<MptcpOption, MAX_SIGNALS>>>);

/// Options that may wait at a time.
const MAX_SIGNALS: usize = 4;

impl Signals {
    pub(super) fn iter(&self) -> impl Iterator<Item = &MptcpOption> {
        self.0.iter().flat_map(|signals| signals.iter())
    }

    pub(super) fn first(&self) -> Option<&MptcpOption> {
        self.iter().next()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether there was room for it.
    pub(super) fn push(&mut self, signal: MptcpOption) -> bool {
        self.0.get_or_insert_default().try_push(signal).is_ok()
    }

    pub(super) fn pop(&mut self) -> Option<MptcpOption> {
        let signal = self.0.as_mut()?.remove(0);
        if self.0.as_ref().is_some_and(|signals| signals.is_empty()) {
            self.0 = None;
        }
        Some(signal)
    }
}

/// Text that waits for its mapping.
#[derive(Debug, Default)]
pub(super) struct Unmapped {
    pieces: Vec<(SeqNum, Chain)>,
    octets: u32,
}

/// Pieces of it that may wait; more means that options have vanished on the way.
const MAX_UNMAPPED: usize = 4_096;

impl Unmapped {
    pub(super) fn push(&mut self, seq: SeqNum, text: Chain) {
        self.octets += text.len();
        self.pieces.push((seq, text));
    }

    /// Where the first of it stands.
    pub(super) fn first(&self) -> Option<SeqNum> {
        self.pieces.iter().map(|(seq, _)| *seq).reduce(SeqNum::min)
    }

    /// Whether it is more than a window of `octets` explains.
    pub(super) fn exceeds(&self, octets: u32) -> bool {
        self.octets > octets || self.pieces.len() > MAX_UNMAPPED
    }

    pub(super) fn into_pieces(self) -> Vec<(SeqNum, Chain)> {
        self.pieces
    }
}

/// A run of octets that was mapped to a subflow.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentRun {
    pub dsn: Dsn,
    pub end: Dsn,
    /// First sequence number after it.
    pub seq_end: SeqNum,
}

#[derive(Debug)]
pub(super) struct Subflow {
    pub flow: FlowTuple,
    pub local_id: u8,
    pub remote_id: u8,
    pub stage: Stage,
    pub handshake: Handshake,
    /// Shift of the peer's window fields.
    pub peer_scale: WindowScale,
    /// Subflow sequence number zero of the peer (RFC 8684 Appendix B: the SYN, moved by accepted SYN data).
    pub rx_base: SeqNum,
    /// Subflow sequence number zero of ours.
    pub tx_base: SeqNum,
    /// Sequence number of the next octet pushed.
    pub tx_next: SeqNum,
    pub mappings: PeerMappings,
    /// Text that no mapping covers yet, while there is any.
    pub unmapped: Option<Box<Unmapped>>,
    /// `rcv.nxt` when text was last mapped: text below has been through the mappings.
    pub mapped_upto: SeqNum,
    /// With checksums: text that waits for its mapping to be whole.
    pub unverified: Option<Box<Reassembly<SeqNum>>>,
    /// What was mapped here and is not acknowledged at the data level, while there is any.
    #[allow(clippy::box_collection, reason = "an idle subflow spends 8 octets on it, not 32")]
    sent: Option<Box<VecDeque<SentRun>>>,
    /// The peer asked us to send here only if nothing else works.
    pub backup: bool,
    /// Not scheduled until it makes progress.
    pub stale: bool,
    /// Its unacknowledged data was queued for re-injection since it last made progress.
    pub rescued: bool,
    /// The peer will send no more here.
    pub peer_fin: bool,
    /// Our FIN is queued or sent.
    pub closing: bool,
    /// In TIME-WAIT; goes when its last ACK has left.
    pub ended: bool,
    /// Right edge of the data window in the last segment sent here.
    pub advertised: Dsn,
    /// Reason for the RST that is about to be sent.
    pub reset: Option<(ResetReason, bool)>,
    /// Options to send once, on the next segments without text.
    pub signals: Signals,
    pub bytes_sent: u64,
}

impl Subflow {
    pub(super) fn new(
        flow: FlowTuple,
        stage: Stage,
        handshake: Handshake,
        ids: (u8, u8),
    ) -> Subflow {
        Subflow {
            flow,
            local_id: ids.0,
            remote_id: ids.1,
            stage,
            handshake,
            peer_scale: WindowScale::default(),
            rx_base: SeqNum(0),
            tx_base: SeqNum(0),
            tx_next: SeqNum(0),
            mappings: PeerMappings::default(),
            unmapped: None,
            mapped_upto: SeqNum(0),
            unverified: None,
            sent: None,
            backup: false,
            stale: false,
            rescued: false,
            peer_fin: false,
            closing: false,
            ended: false,
            advertised: Dsn(0),
            reset: None,
            signals: Signals::default(),
            bytes_sent: 0,
        }
    }

    pub(super) fn tcb(&self) -> Option<&Tcb> {
        match &self.stage {
            Stage::Open(tcb) => Some(tcb),
            _ => None,
        }
    }

    pub(super) fn tcb_mut(&mut self) -> Option<&mut Tcb> {
        match &mut self.stage {
            Stage::Open(tcb) => Some(tcb),
            _ => None,
        }
    }

    /// Whether data may be sent here: established, the fourth ACK seen, no FIN of ours, no reset under way.
    pub(super) fn may_send(&self) -> bool {
        let complete = matches!(self.handshake, Handshake::Initial | Handshake::Joined);
        let open = |tcb: &Tcb| matches!(tcb.state(), State::Established | State::CloseWait);
        complete && !self.closing && self.reset.is_none() && self.tcb().is_some_and(open)
    }

    /// Whether the scheduler may consider it.
    pub(super) fn is_usable(&self) -> bool {
        self.may_send() && !self.stale
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let below = match &self.stage {
            Stage::SynSent(syn) => syn.deadline(),
            Stage::SynReceived(syn) => syn.deadline(),
            Stage::Open(tcb) => tcb.deadline(),
        };
        match &self.handshake {
            Handshake::PreEstablished(third) => earliest(below, Some(third.retry_at)),
            _ => below,
        }
    }

    /// Runs that the peer may not have at the data level, in the order in which they were mapped.
    pub(super) fn sent(&self) -> impl Iterator<Item = &SentRun> {
        self.sent.iter().flat_map(|sent| sent.iter())
    }

    pub(super) fn note_sent(&mut self, run: SentRun) {
        self.sent.get_or_insert_default().push_back(run);
    }

    /// Forgets runs at the front that the peer has at the data level.
    pub(super) fn forget_sent(&mut self, una: Dsn) {
        let Some(sent) = &mut self.sent else { return };
        while sent.front().is_some_and(|run| run.end.at_or_before(una)) {
            sent.pop_front();
        }
        if sent.is_empty() {
            self.sent = None;
        }
    }

    pub(super) fn request_ack(&mut self) {
        if let Some(tcb) = self.tcb_mut() {
            tcb.request_ack();
        }
    }

    /// Octets of text that arrived here.
    pub(super) fn bytes_received(&self) -> u64 {
        self.tcb().map_or(0, |tcb| tcb.bytes_received())
    }

    /// Text of a full segment with `room`.
    pub(super) fn mss(&self, room: OptionRoom) -> u32 {
        self.tcb().map_or(0, |tcb| tcb.mss(room))
    }
}
