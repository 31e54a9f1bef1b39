//! Going on as plain TCP (RFC 8684 3.7): both directions become one infinite mapping.
#![forbid(unsafe_code)]

use super::connection::{Connection, Event, Mode};
use super::mapping::Mapping;
use super::subflow::Subflow;
use crate::buf::Chain;
use crate::tcp::Label;
use crate::wire::{Dsn, Dss, DssDsn, DssMapping, MptcpOption, ResetReason, SeqNum};
use alloc::boxed::Box;

/// Why a connection is plain TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FallbackCause {
    /// The SYN/ACK had no usable MP_CAPABLE.
    SynAck,
    /// We gave up sending MP_CAPABLE in the SYN.
    SynRetries,
    /// The third packet had no MP_CAPABLE.
    ThirdPacket,
    /// The first data came without a mapping.
    DataWithoutDss,
    /// Our first data was acknowledged without a DATA_ACK.
    NoDataAck,
    /// A checksum failed and there was nowhere else to go.
    Checksum,
    /// The peer sent MP_FAIL.
    PeerFailed,
    /// The peer sent an infinite mapping.
    InfiniteMapping,
}

/// The two infinite mappings: sequence numbers and the DSNs they stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Infinite {
    pub rx: (SeqNum, Dsn),
    pub tx: (SeqNum, Dsn),
    /// The peer still has to be told (RFC 8684 3.7), by a mapping of length zero.
    pub announce: bool,
}

impl Infinite {
    /// The DSN that stands for a sequence number we sent, at or after the point of fallback minus 2^31.
    pub(super) fn dsn_sent(&self, seq: SeqNum) -> Dsn {
        let delta = seq.0.wrapping_sub(self.tx.0.0) as i32;
        Dsn(self.tx.1.0.wrapping_add(i64::from(delta) as u64))
    }

    /// The DSN that stands for a sequence number the peer sent, nearest to `expected`.
    pub(super) fn dsn_received(&self, seq: SeqNum, expected: Dsn) -> Dsn {
        let low = seq.0.wrapping_sub(self.rx.0.0).wrapping_add(self.rx.1.0 as u32);
        Dsn::promote(low, expected)
    }

    /// The final mapping, of length zero, for a segment that begins at `seq`.
    pub(super) fn announcement(&self, sf: &Subflow, seq: SeqNum, checksum: bool) -> MptcpOption {
        MptcpOption::Dss(Dss {
            data_ack: None,
            mapping: Some(DssMapping {
                dsn: DssDsn::Long(self.dsn_sent(seq)),
                ssn: seq.since(sf.tx_base),
                len: 0,
                checksum: checksum.then_some(0),
            }),
            data_fin: false,
        })
    }
}

impl Connection {
    /// Falls back during the handshake: no data was ever mapped.
    pub(super) fn plain_from_start(&mut self, cause: FallbackCause) {
        let rx_nxt = self.rcv.nxt();
        let tx_nxt = self.snd.nxt();
        let Some(sf) = self.subflows.first() else { return };
        let rx = (sf.rx_base + 1, rx_nxt);
        let tx = (sf.tx_next, tx_nxt);
        self.mode = Mode::Plain(Box::new(Infinite { rx, tx, announce: false }));
        self.tell(Event::Fallback(cause));
    }

    /// Falls back after the handshake on the only subflow left; `rx` is where the peer's infinite mapping begins.
    /// With several subflows there is no fallback: the one at fault is reset (RFC 8684 3.7).
    pub(super) fn fall_back(&mut self, i: usize, cause: FallbackCause, rx: Option<(SeqNum, Dsn)>) {
        if !matches!(self.mode, Mode::Mptcp) {
            return;
        }
        if self.subflows.len() > 1 {
            return self.reset_subflow(i, ResetReason::Middlebox, false);
        }
        let Some(peer) = self.peer else { return };
        let (tx_nxt, again) = (self.snd.nxt(), self.snd.again_len() > 0);
        let Some(sf) = self.subflows.get_mut(i) else { return };
        if again {
            // Octets that no surviving subflow carried cannot be named without mappings.
            return self.reset_subflow(i, ResetReason::Middlebox, false);
        }
        let rx = rx.unwrap_or((sf.rx_base + 1, peer.idsn() + 1));
        let announce = !matches!(cause, FallbackCause::DataWithoutDss | FallbackCause::ThirdPacket);
        let tx = (sf.tx_next, tx_nxt);
        let held = sf.unmapped.take().map(|unmapped| unmapped.into_pieces());
        let unverified = sf.unverified.take();
        self.mode = Mode::Plain(Box::new(Infinite { rx, tx, announce }));
        if announce {
            self.counters.InfiniteMapTx += 1;
        }
        self.tell(Event::Fallback(cause));
        if let Some(mut order) = unverified
            && let Some(text) = order.take()
        {
            self.take_plain(order.nxt() - text.len(), text);
        }
        for (seq, text) in held.into_iter().flatten() {
            self.take_plain(seq, text);
        }
    }

    /// Text of a connection that fell back.
    pub(super) fn take_plain(&mut self, seq: SeqNum, text: Chain) {
        let Mode::Plain(infinite) = &self.mode else { return };
        let dsn = infinite.dsn_received(seq, self.rcv.nxt());
        self.deliver(dsn, text);
    }

    /// Subflow ACKs free the buffer once there are no DATA_ACKs.
    pub(super) fn on_plain_ack(&mut self) {
        let Mode::Plain(infinite) = &self.mode else { return };
        let Some(tcb) = self.subflows.first().and_then(Subflow::tcb) else { return };
        let ack = infinite.dsn_sent(tcb.snd_una()).min(self.snd.nxt());
        if self.snd.una().before(ack) {
            self.bytes_acked += u64::from(self.snd.on_data_ack(ack));
        }
    }

    /// Hands everything that waits to the only subflow.
    pub(super) fn assign_plain(&mut self) {
        let closing = self.close_wanted;
        while let Some((_, run)) = self.snd.take_new(u32::from(u16::MAX), 0) {
            let Some(sf) = self.subflows.first_mut() else { return };
            sf.tx_next += run.len();
            sf.bytes_sent += u64::from(run.len());
            if let Some(tcb) = sf.tcb_mut() {
                tcb.push(run, Label::PLAIN);
            }
        }
        let Some(sf) = self.subflows.first_mut() else { return };
        if closing
            && !sf.closing
            && let Some(tcb) = sf.tcb_mut()
        {
            tcb.close();
            sf.closing = true;
        }
    }

    /// Whether a label still means a mapping to be declared.
    pub(super) fn mapping_of(&self, label: Label) -> Option<Mapping> {
        matches!(self.mode, Mode::Mptcp).then(|| Mapping::from_label(label)).flatten()
    }
}
