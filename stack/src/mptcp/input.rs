//! What a received segment means to the connection: options first, then text.
#![forbid(unsafe_code)]

use super::connection::{Connection, Mode};
use super::fallback::FallbackCause;
use super::mapping::{Declaration, Declared, dss_checksum};
use super::subflow::{Handshake, Stage};
use crate::buf::{Chain, SMALL};
use crate::rng::Rng;
use crate::tcp::{CloseReason, MtuTally, Phase, Reassembly, State, Stop, TooBig};
use crate::time::Instant;
use crate::wire::{
    Control, DataAck, Dsn, Dss, DssDsn, DssMapping, FlowTuple, IcmpError, MpCapable, MpJoin,
    MptcpOption, MptcpOptions, ResetReason, Segment, SeqNum, Unreachable,
};
use alloc::boxed::Box;

/// Pieces out of order, at most, while what would be another leaves most of its frame empty: mappings of single octets,
/// each apart from the others, would hold thousands of frames.
const MAX_SMALL_PIECES: usize = 512;

impl Connection {
    /// A segment of one of our flows arrived; returns why TCP stopped to process it, if it did.
    pub fn on_segment(
        &mut self,
        flow: FlowTuple,
        seg: Segment,
        _rng: &mut Rng,
        now: Instant,
    ) -> Option<Stop> {
        let i = self.index_of(flow)?;
        self.dirty = true;
        match self.subflows.get(i).map(|sf| &sf.stage) {
            Some(Stage::SynSent(_)) => self.on_syn_sent(i, seg, now),
            Some(Stage::SynReceived(_)) => self.on_syn_received(i, seg, now),
            Some(Stage::Open(_)) => return self.on_open(i, seg, now),
            None => {}
        }
        None
    }

    /// An ICMP error says that the segment at `seq` could not be delivered on `flow` (RFC 8684 3.7: it concerns that
    /// subflow only).
    pub fn on_unreachable(&mut self, flow: FlowTuple, seq: SeqNum, why: Unreachable, now: Instant) {
        let Some(i) = self.index_of(flow) else { return };
        // RFC 5461: soft for a flow that has worked, unless it is not to pass and there are others to go on with.
        let gone = match self.subflows.get(i).map(|sf| &sf.stage) {
            Some(Stage::Open(tcb)) => {
                let in_flight = !seq.before(tcb.snd_una()) && seq.before(tcb.snd_nxt()); // RFC 5927 4.1
                in_flight && why.is_hard() && self.subflows.len() > 1
            }
            Some(_) => self.is_opening(flow, seq),
            None => false,
        };
        if gone {
            self.dirty = true;
            self.subflow_gone(i, CloseReason::Unreachable, now);
        }
    }

    /// A router says that a segment on `flow` is too big for its path: that subflow's segments become shorter, and a mapping
    /// that was given to it spans more of them.
    pub fn on_too_big(&mut self, error: &IcmpError, now: Instant) -> TooBig {
        let subflow = self.index_of(error.flow).and_then(|i| self.subflows.get_mut(i));
        match subflow.and_then(|sf| sf.tcb_mut()) {
            Some(tcb) => {
                let verdict = tcb.on_too_big(error, now);
                self.dirty |= matches!(verdict, TooBig::Believed(_));
                verdict
            }
            None => TooBig::OutOfWindow,
        }
    }

    /// What happened to the paths of the subflows since the last call.
    pub fn drain_mtu_tally(&mut self) -> MtuTally {
        let mut tally = MtuTally::NONE;
        for tcb in self.subflows.iter_mut().filter_map(|sf| sf.tcb_mut()) {
            tally.add(tcb.drain_mtu_tally());
        }
        tally
    }

    /// Whether `flow` is in its handshake and our SYN has this number (RFC 5927 4.1: forgers do not know it).
    pub fn is_opening(&self, flow: FlowTuple, seq: SeqNum) -> bool {
        let subflow = self.index_of(flow).and_then(|i| self.subflows.get(i));
        match subflow.map(|sf| &sf.stage) {
            Some(Stage::SynSent(syn)) => syn.iss() == seq,
            Some(Stage::SynReceived(syn)) => syn.iss() == seq,
            Some(Stage::Open(_)) | None => false,
        }
    }

    /// A segment for a subflow whose TCP is synchronized.
    pub(super) fn on_open(&mut self, i: usize, seg: Segment, now: Instant) -> Option<Stop> {
        let sf = self.subflows.get_mut(i)?;
        let Stage::Open(tcb) = &mut sf.stage else { return None };
        let options = seg.options.mptcp().clone();
        let window = u64::from(seg.window.scale(sf.peer_scale).0);
        let (control, seq) = (seg.control, seg.seq);
        let arrival = tcb.on_segment(seg, now);
        let stop = arrival.stop;
        let flow = sf.flow;
        if arrival.acked > 0 {
            if core::mem::take(&mut sf.stale) {
                self.counters.SubflowRecover += 1;
            }
            sf.rescued = false;
        }
        let reset = control == Control::Rst && arrival.closed.is_some();
        if (arrival.accepted || reset) && control != Control::Syn {
            self.on_options(i, &options, window, seq, now);
        }
        // An option may have removed the subflow, and with it its place in the list.
        let Some(i) = self.index_of(flow) else { return stop };
        if arrival.accepted && control == Control::None {
            self.on_confirmation(i);
            self.check_options_survive(i, &options, arrival.acked);
        }
        self.on_plain_ack();
        if let Some((seq, text)) = arrival.text {
            self.on_text(i, seq, text, options.is_empty());
        }
        if arrival.fin {
            self.on_subflow_fin(i);
        }
        self.check_closed(flow, arrival.closed, now);
        stop
    }

    /// A subflow whose TCP came to its end is taken out.
    fn check_closed(&mut self, flow: FlowTuple, closed: Option<CloseReason>, now: Instant) {
        let Some(i) = self.index_of(flow) else { return };
        let state = self.subflows.get(i).and_then(|sf| sf.tcb()).map(|tcb| tcb.state());
        match (closed, state) {
            // One last ACK is still to be polled.
            (_, Some(State::TimeWait)) => {
                if let Some(sf) = self.subflows.get_mut(i) {
                    sf.ended = true;
                }
            }
            (Some(why), _) => self.subflow_gone(i, why, now),
            _ => {}
        }
    }

    /// Anything the peer sends on a joined subflow after its SYN/ACK proves that it has our third ACK.
    fn on_confirmation(&mut self, i: usize) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        if matches!(sf.handshake, Handshake::PreEstablished(_)) {
            sf.handshake = Handshake::Joined;
            let flow = sf.flow;
            self.paths.on_joined(flow);
            if let Some(ending) = &mut self.ending {
                ending.lonely_until = None;
            }
        }
    }

    /// RFC 8684 3.7: our first data acknowledged without a DATA_ACK means that options do not get through.
    fn check_options_survive(&mut self, i: usize, options: &MptcpOptions, acked: u32) {
        let doubtful = !self.confirmed && !self.rcv.dss_seen && matches!(self.mode, Mode::Mptcp);
        let data = self.snd.una().before(self.snd.nxt());
        if doubtful && data && acked > 0 && options.is_empty() {
            self.fall_back(i, FallbackCause::NoDataAck, None);
        }
    }

    fn on_options(
        &mut self,
        i: usize,
        options: &MptcpOptions,
        window: u64,
        seq: SeqNum,
        now: Instant,
    ) {
        for option in options {
            match option {
                MptcpOption::Dss(dss) => self.on_dss(i, dss, window),
                MptcpOption::MpCapable(capable) => self.on_keys(i, capable, window),
                MptcpOption::MpJoin(MpJoin::Ack { .. }) => {
                    if let Some(sf) = self.subflows.get_mut(i) {
                        sf.request_ack(); // our fourth ACK was lost
                    }
                }
                MptcpOption::MpJoin(_) | MptcpOption::Unknown { .. } => {}
                _ if !matches!(self.mode, Mode::Mptcp) => {}
                MptcpOption::AddAddr(add) => self.on_add_addr(i, add, now),
                MptcpOption::RemoveAddr(ids) => self.on_remove_addr(ids),
                MptcpOption::MpPrio { backup } => {
                    self.counters.MPPrioRx += 1;
                    if let Some(sf) = self.subflows.get_mut(i) {
                        sf.backup = *backup;
                    }
                }
                MptcpOption::MpFail(_) => self.on_mp_fail(i, seq),
                MptcpOption::MpFastclose(close) => self.on_fastclose(close),
                MptcpOption::MpTcpRst { .. } => self.counters.MPRstRx += 1,
            }
        }
    }

    /// MP_CAPABLE after the handshake: form 3 again, or form 4 with the first mapping.
    fn on_keys(&mut self, i: usize, capable: &MpCapable, window: u64) {
        let (Some(peer), Mode::Mptcp) = (self.peer, &self.mode) else { return };
        let ours = capable.receiver_key == Some(self.key.0);
        if !ours || capable.sender_key != Some(peer.0) {
            return;
        }
        // It stands for a DATA_ACK of the octet that the MP_CAPABLE SYN/ACK occupies.
        self.snd_edge = self.snd_edge.max(self.idsn + 1 + window);
        if let Some((len, checksum)) = capable.data {
            let dsn = DssDsn::Long(peer.idsn() + 1);
            let long = self.rcv.long;
            self.on_mapping(i, &DssMapping { dsn, ssn: 1, len, checksum }, false);
            self.rcv.long = long; // the DSN was implied, not sent
        }
    }

    fn on_dss(&mut self, i: usize, dss: &Dss, window: u64) {
        if !matches!(self.mode, Mode::Mptcp) {
            return;
        }
        self.rcv.dss_seen = true;
        if let Some(ack) = dss.data_ack {
            let ack = match ack {
                DataAck::Short(low) => Dsn::promote(low, self.snd.una()),
                DataAck::Long(ack) => ack,
            };
            self.on_data_ack(ack, window);
        }
        if let Some(mapping) = &dss.mapping {
            self.on_mapping(i, mapping, dss.data_fin);
        }
    }

    fn on_data_ack(&mut self, ack: Dsn, window: u64) {
        let fin = self.data_fin();
        let (una, nxt) = (self.snd.una(), self.snd.nxt());
        let limit = nxt + u64::from(fin.is_some() || self.state_acked_fin());
        if ack.before(una) || limit.before(ack) {
            return; // old, or of data we never sent
        }
        self.confirmed = true;
        // RFC 8684 3.3.4: the edge only grows, and only by segments that carry a DATA_ACK.
        self.snd_edge = self.snd_edge.max(ack + window);
        if una.before(ack) {
            self.data_acked = true;
            self.stall_count = 0;
            if let Some(watch) = self.snd.watch_mut() {
                (watch.stall_at, watch.probe_at) = (None, None);
            }
            let upto = ack.min(nxt);
            self.bytes_acked += u64::from(self.snd.on_data_ack(upto));
            for sf in &mut self.subflows {
                sf.forget_sent(upto);
            }
        }
        if nxt.before(ack) && fin.is_some() {
            self.on_data_fin_acked();
        }
    }

    fn state_acked_fin(&self) -> bool {
        use super::state::DataState::*;
        matches!(self.state, FinWait2 | TimeWait | Closed)
    }

    fn on_mapping(&mut self, i: usize, mapping: &DssMapping, data_fin: bool) {
        let dsn = match mapping.dsn {
            DssDsn::Short(low) => Dsn::promote(low, self.rcv.nxt()),
            DssDsn::Long(dsn) => {
                self.rcv.long = true;
                dsn
            }
        };
        self.rcv.dss_seen = true;
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let seq = sf.rx_base + mapping.ssn;
        if mapping.len == 0 {
            self.counters.InfiniteMapRx += 1;
            return self.fall_back(i, FallbackCause::InfiniteMapping, Some((seq, dsn)));
        }
        if mapping.checksum.is_some() != self.checksum {
            self.counters.DSSNotMatching += 1;
            return self.reset_subflow(i, ResetReason::MptcpSpecific, false);
        }
        let text = mapping.len - u16::from(data_fin);
        let declared = Declared {
            seq,
            dsn,
            text,
            ssn: mapping.ssn,
            len: mapping.len,
            checksum: mapping.checksum,
        };
        let floor = match (&sf.unverified, sf.tcb()) {
            (Some(order), _) => order.nxt() - order.ready(),
            (None, Some(tcb)) => tcb.rcv_nxt().min(self.mapped_floor(i)),
            (None, None) => return,
        };
        let Some(sf) = self.subflows.get_mut(i) else { return };
        match sf.mappings.declare(declared, floor) {
            Declaration::Added => self.retry_unmapped(i),
            Declaration::Known => {}
            Declaration::Broken => {
                self.counters.DSSNotMatching += 1;
                return self.reset_subflow(i, ResetReason::MptcpSpecific, false);
            }
        }
        if data_fin {
            self.on_data_fin(i, dsn + u64::from(text));
        }
    }

    /// Where mappings still matter on a subflow: from the first text on that nobody mapped.
    fn mapped_floor(&self, i: usize) -> SeqNum {
        let Some(sf) = self.subflows.get(i) else { return SeqNum(0) };
        let held = sf.unmapped.as_ref().and_then(|unmapped| unmapped.first());
        // The segment at hand has been taken by TCP already, but its text is yet to be mapped.
        let before = sf.mapped_upto;
        held.map_or(before, |seq| seq.min(before))
    }

    /// Text that TCP has taken. In order or not, it is mapped at once, unless checksums make it wait.
    fn on_text(&mut self, i: usize, seq: SeqNum, text: Chain, bare: bool) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let complete = matches!(sf.handshake, Handshake::Initial | Handshake::Joined);
        match &self.mode {
            Mode::Plain(_) => self.take_plain(seq, text),
            Mode::Opening => {}
            Mode::Mptcp if !complete => {}
            Mode::Mptcp => {
                let never = bare && !self.rcv.dss_seen && self.rcv.nxt() == self.first_dsn();
                if never && self.subflows.len() == 1 {
                    self.fall_back(i, FallbackCause::DataWithoutDss, None);
                    return self.take_plain(seq, text);
                }
                self.map_text(i, seq, text);
            }
        }
    }

    pub(super) fn first_dsn(&self) -> Dsn {
        self.peer.map_or(Dsn(0), |peer| peer.idsn() + 1)
    }

    fn map_text(&mut self, i: usize, seq: SeqNum, text: Chain) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        if let Some(order) = &mut sf.unverified {
            order.insert(seq, text);
            return self.verify(i);
        }
        let mapped = sf.mappings.map(seq, text);
        for (seq, text) in mapped.unmapped {
            sf.unmapped.get_or_insert_default().push(seq, text);
        }
        let nxt = sf.tcb().map_or(sf.mapped_upto, |tcb| tcb.rcv_nxt());
        sf.mapped_upto = nxt;
        let held = sf.unmapped.as_ref().and_then(|unmapped| unmapped.first());
        sf.mappings.forget_before(held.map_or(nxt, |seq| seq.min(nxt)));
        let limit = self.cfg.receive_buffer;
        let too_much = sf.unmapped.as_ref().is_some_and(|unmapped| unmapped.exceeds(limit));
        for (dsn, text) in mapped.pieces {
            self.deliver(dsn, text);
        }
        if too_much {
            // RFC 8684 3.3.1: options have vanished on the way.
            self.reset_subflow(i, ResetReason::Middlebox, false);
        }
    }

    fn retry_unmapped(&mut self, i: usize) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        if sf.unverified.is_some() {
            return self.verify(i);
        }
        let Some(unmapped) = sf.unmapped.take() else { return };
        for (seq, text) in unmapped.into_pieces() {
            self.map_text(i, seq, text);
        }
    }

    /// Hands on every mapping at the front that is whole and whose checksum is right.
    fn verify(&mut self, i: usize) {
        loop {
            let Some(sf) = self.subflows.get_mut(i) else { return };
            let Some(order) = &mut sf.unverified else { return };
            let start = order.nxt() - order.ready();
            if order.ready() == 0 {
                return sf.mappings.forget_before(start);
            }
            let Some(m) = sf.mappings.covering(start).copied() else {
                if order.ready() > self.cfg.receive_buffer {
                    self.reset_subflow(i, ResetReason::Middlebox, false);
                }
                return;
            };
            if m.seq != start {
                // It reaches back over octets that an earlier mapping covered: never whole, so it would wait for ever.
                self.counters.DSSNotMatching += 1;
                return self.reset_subflow(i, ResetReason::MptcpSpecific, false);
            }
            if order.ready() < u32::from(m.text) {
                return;
            }
            let Some(mut text) = order.take_at_most(u32::from(m.text)) else { return };
            let sum = text.sum();
            if m.checksum.is_some_and(|c| {
                let ours = dss_checksum(m.dsn, m.ssn, m.len, sum);
                ours != c && !(ours == 0 && c == 0xffff) && !(ours == 0xffff && c == 0)
            }) {
                return self.on_bad_checksum(i, &m, text);
            }
            self.deliver(m.dsn, text);
        }
    }

    /// RFC 8684 3.7: with other subflows this one is reset; alone it goes on as plain TCP, damaged octets included, as
    /// the kernel does (a reset could not bring them back either).
    fn on_bad_checksum(&mut self, i: usize, mapping: &Declared, text: Chain) {
        self.counters.DataCsumErr += 1;
        self.counters.MPFailTx += 1;
        let others = self.subflows.len() > 1;
        let Some(sf) = self.subflows.get_mut(i) else { return };
        sf.signals.push(MptcpOption::MpFail(mapping.dsn));
        if others {
            self.counters.DSSCorruptionReset += 1;
            return self.reset_subflow(i, ResetReason::Middlebox, true);
        }
        self.counters.DSSCorruptionFallback += 1;
        let rest = sf.unverified.take().and_then(|mut order| order.take());
        let mut all = Reassembly::new(mapping.seq);
        all.insert(mapping.seq, text);
        all.insert(all.nxt(), rest.unwrap_or_default());
        sf.unverified = Some(Box::new(all));
        sf.request_ack();
        self.fall_back(i, FallbackCause::Checksum, Some((mapping.seq, mapping.dsn)));
    }

    /// MP_FAIL: on a RST the other subflows take over by themselves; alone it means plain TCP.
    fn on_mp_fail(&mut self, i: usize, _seq: SeqNum) {
        self.counters.MPFailRx += 1;
        if self.subflows.len() == 1 && self.phase != Phase::Opening {
            let fail = MptcpOption::MpFail(self.rcv.nxt());
            if let Some(sf) = self.subflows.get_mut(i) {
                sf.signals.push(fail);
                sf.request_ack();
                self.counters.MPFailTx += 1;
            }
            self.fall_back(i, FallbackCause::PeerFailed, None);
        }
    }

    /// Octets of the peer's stream under their DSN; the first copy wins.
    pub(super) fn deliver(&mut self, dsn: Dsn, mut text: Chain) {
        let end = dsn + u64::from(text.len());
        if end.at_or_before(self.rcv.nxt()) {
            self.counters.DuplicateData += 1;
            return;
        }
        if self.rcv.edge.before(end) {
            self.counters.NoDSSInWindow += 1;
            if self.rcv.edge.at_or_before(dsn) {
                return;
            }
            text.truncate(self.rcv.edge.since(dsn) as u32);
        }
        if self.rcv.nxt().before(dsn) {
            if text.len() as usize <= SMALL && self.rcv.text.pieces() >= MAX_SMALL_PIECES {
                self.counters.OfoPruned += 1;
                return; // not acknowledged at this level, so that it comes again
            }
            self.counters.OFOQueue += 1;
        }
        self.rcv.text.insert(dsn, text);
        self.check_data_fin();
    }
}
