//! What goes out: runs of octets to subflows, and MPTCP options onto the segments that TCP makes.
#![forbid(unsafe_code)]

use super::connection::{Connection, Mode, Role, bare};
use super::mapping::{Mapping, dss_checksum};
use super::scheduler::{PathView, schedule};
use super::subflow::{Handshake, SentRun, Stage};
use crate::buf::Chain;
use crate::rng::Rng;
use crate::tcp::{CloseReason, OptionRoom, Phase, TxSegment};
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, DataAck, Dsn, Dss, DssDsn, DssMapping, FlowTuple, MpFastclose, MpJoin, MptcpOption,
    Options, Segment,
};
use smallvec::SmallVec;

/// Room for a DSS with a 64-bit mapping, with or without checksum, but without DATA_ACK: bulk data.
const ROOM_MAPPING: u8 = 20;
/// Room for a mapping and a DATA_ACK, both 64 bits, or for MP_CAPABLE in form 4.
const ROOM_FULL: u8 = 28;
/// Longest run that one mapping covers; its length field has 16 bits.
const MAX_RUN: u32 = 65_535;
/// Wait before a closed data window is probed.
const PROBE: Duration = Duration::from_millis(500);

impl Connection {
    /// The next segment to send; call until `None` after everything that changes something, and drain
    /// [`Connection::poll_event`] afterwards: a RST or a last ACK that leaves may end a flow or the connection.
    pub fn poll_transmit(&mut self, rng: &mut Rng, now: Instant) -> Option<(FlowTuple, TxSegment)> {
        if let Some((flow, segment)) = self.take_reply() {
            return Some((flow, bare(segment)));
        }
        if matches!(self.phase, Phase::Closed(_)) {
            return None;
        }
        for _ in 0..2 {
            if core::mem::take(&mut self.dirty) {
                self.progress(rng, now);
            }
            for _ in 0..self.subflows.len() {
                if usize::from(self.cursor) >= self.subflows.len() {
                    self.cursor = 0;
                }
                if let Some(out) = self.poll_subflow(usize::from(self.cursor), now) {
                    return Some(out);
                }
                self.cursor += 1;
            }
            if !self.dirty {
                break;
            }
        }
        None
    }

    /// Time has come for something.
    pub fn on_deadline(&mut self, rng: &mut Rng, now: Instant) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        let _ = rng;
        self.dirty = true;
        let mut i = 0;
        while i < self.subflows.len() {
            let due = self.subflows.get(i).and_then(|sf| sf.deadline()).is_some_and(|at| at <= now);
            let left = self.subflows.len();
            if due {
                self.on_subflow_deadline(i, now);
            }
            i += usize::from(self.subflows.len() == left);
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.snd.watch().and_then(|watch| watch.stall_at)) {
            self.on_stall(now);
        }
        if due(self.snd.watch().and_then(|watch| watch.probe_at)) {
            self.probe_window();
        }
        if due(self.ending().fin_at) {
            self.on_fin_timer(now);
        }
        if due(self.data_ack_at) {
            self.data_ack_at = None;
            if self.rcv.acked != self.data_ack() {
                self.ask_for_ack();
            }
        }
        if due(self.fin_awaited_until()) {
            self.stop_awaiting_fins(now);
        }
        if due(self.ending().lonely_until) {
            self.finish(CloseReason::TimedOut);
        }
    }

    fn on_subflow_deadline(&mut self, i: usize, now: Instant) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let closed = match &mut sf.stage {
            Stage::SynSent(syn) => syn.on_deadline(now),
            Stage::SynReceived(syn) => syn.on_deadline(now),
            Stage::Open(tcb) => tcb.on_deadline(now),
        };
        match closed {
            Some(why) => self.subflow_gone(i, why, now),
            None => self.retry_third_ack(i, now),
        }
    }

    /// Everything that follows from what changed since the last poll.
    fn progress(&mut self, rng: &mut Rng, now: Instant) {
        self.manage_paths(rng, now);
        self.check_stale();
        self.assign(now);
        let idle = self.snd.una() == self.snd.nxt();
        if let Some(watch) = self.snd.watch_mut() {
            // No window, or no subflow to learn of it.
            watch.probe_at = idle.then(|| watch.probe_at.unwrap_or(now + PROBE));
        }
        self.progress_close(now);
        let outstanding = self.snd.una().before(self.snd.nxt());
        let watched = matches!(self.mode, Mode::Mptcp) && outstanding;
        let patience = self.patience();
        if let Some(watch) = self.snd.watch_mut() {
            watch.stall_at = watched.then(|| watch.stall_at.unwrap_or(now + patience));
        }
    }

    /// Fail fast: at the first RTO what a subflow carries is queued for the others, and it gets nothing new until it
    /// makes progress (RFC 8684 3.3.6).
    fn check_stale(&mut self) {
        if !matches!(self.mode, Mode::Mptcp) {
            return;
        }
        for i in 0..self.subflows.len() {
            let Some(sf) = self.subflows.get(i) else { return };
            let Some(tcb) = sf.tcb() else { continue };
            let stuck = tcb.flight_size() > 0 && (sf.stale || tcb.consecutive_rtos() > 0);
            if !stuck || sf.rescued {
                if sf.stale && tcb.flight_size() == 0 && tcb.queued() == 0 {
                    self.subflows[i].stale = false;
                }
                continue;
            }
            let other = |(j, sf): (usize, &super::subflow::Subflow)| {
                j != i && sf.is_usable() && sf.tcb().is_some_and(|t| t.consecutive_rtos() == 0)
            };
            if self.subflows.iter().enumerate().any(other) {
                self.mark_stale(i);
            }
        }
    }

    fn mark_stale(&mut self, i: usize) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        if !core::mem::replace(&mut sf.stale, true) {
            self.counters.SubflowStale += 1;
        }
        sf.rescued = true;
        self.rescue(i);
    }

    /// Queues for re-injection what subflow `i` carried and the peer has not acknowledged at the data level.
    pub(super) fn rescue(&mut self, i: usize) {
        if !matches!(self.mode, Mode::Mptcp) {
            return;
        }
        let Some(sf) = self.subflows.get(i) else { return };
        for run in sf.sent() {
            self.snd.map_again(run.dsn, run.end);
        }
        self.dirty = true;
    }

    /// No DATA_ACK has moved for too long (RFC 8684 3.3.5): whoever carries the head is passed over.
    fn on_stall(&mut self, now: Instant) {
        if let Some(watch) = self.snd.watch_mut() {
            watch.stall_at = None;
        }
        let (una, nxt) = (self.snd.una(), self.snd.nxt());
        if !una.before(nxt) || !matches!(self.mode, Mode::Mptcp) {
            return;
        }
        self.stall_count = self.stall_count.saturating_add(1);
        let patience = self.patience();
        if let Some(watch) = self.snd.watch_mut() {
            watch.stall_at = Some(now + patience);
        }
        if self.snd_edge.at_or_before(una) {
            return; // the peer's window is closed: nothing is lost
        }
        for i in 0..self.subflows.len() {
            let Some(sf) = self.subflows.get(i) else { return };
            let carries = |run: &&SentRun| run.dsn.at_or_before(una) && una.before(run.end);
            let Some(run) = sf.sent().find(carries).copied() else { continue };
            let acked = sf.tcb().is_some_and(|tcb| run.seq_end.at_or_before(tcb.snd_una()));
            let others = self.subflows.iter().enumerate().any(|(j, sf)| j != i && sf.is_usable());
            if acked {
                // Taken by the subflow's far end and lost behind it.
                self.snd.map_again(run.dsn, run.end);
            } else if others && !sf.rescued {
                self.mark_stale(i);
            }
        }
    }

    fn probe_window(&mut self) {
        if let Some(watch) = self.snd.watch_mut() {
            watch.probe_at = None;
        }
        let silent = matches!(self.mode, Mode::Mptcp) && self.snd.una() == self.snd.nxt();
        let usable = self.subflows.iter().position(|sf| sf.is_usable());
        let Some(i) = usable.filter(|_| silent) else { return };
        if let Some((dsn, run)) = self.snd.take_new(1, 0) {
            self.counters.WinProbe += 1;
            self.push_run(i, dsn, run);
        }
    }

    /// Hands out octets, first those to be mapped again, as long as a subflow can send them now.
    fn assign(&mut self, now: Instant) {
        match &self.mode {
            Mode::Plain(_) => return self.assign_plain(),
            Mode::Opening => return,
            Mode::Mptcp => {}
        }
        loop {
            let again = self.snd.again_len();
            let nxt = self.snd.nxt();
            let window = if nxt.before(self.snd_edge) { self.snd_edge.since(nxt) } else { 0 };
            let fresh = u64::from(self.snd.waiting()).min(window) as u32;
            let backlog = if again > 0 { again } else { fresh };
            if backlog == 0 {
                self.on_window_blocked(now);
                if self.snd.again_len() == 0 {
                    return;
                }
                continue;
            }
            let views = self.views(now);
            let Some(pick) = schedule(&views, backlog) else { return };
            let most = self.longest_run(&pick).min(backlog);
            let run = if again > 0 {
                self.snd.take_again(most)
            } else {
                self.snd.take_new(most, pick.mss)
            };
            let Some((dsn, run)) = run else { return };
            if again > 0 {
                self.counters.MPTCPRetrans += 1;
                self.bytes_retrans += u64::from(run.len());
            }
            self.push_run(pick.index, dsn, run);
        }
    }

    fn views(&self, now: Instant) -> SmallVec<[PathView; 4]> {
        let room = self.text_room();
        let usable = self.subflows.iter().enumerate().filter(|(_, sf)| sf.is_usable());
        usable
            .filter_map(|(index, sf)| {
                let tcb = sf.tcb()?;
                Some(PathView {
                    index,
                    srtt: tcb.srtt(),
                    room: tcb.send_room(now),
                    mss: tcb.mss(room).max(1),
                    idle: tcb.flight_size() == 0 && tcb.unsent() == 0,
                    backup: sf.backup,
                })
            })
            .collect()
    }

    /// Octets for one mapping: whole segments if there are several.
    fn longest_run(&self, path: &PathView) -> u32 {
        let first_data = self.snd.nxt() == self.idsn + 1 && self.role == Role::Initiator;
        if first_data && !self.confirmed {
            return path.mss.min(path.room); // one segment carries form 4
        }
        let cap =
            if self.checksum { self.cfg.tcp.gso_max.clamp(path.mss, MAX_RUN) } else { MAX_RUN };
        let most = path.room.min(cap);
        if most > path.mss { most - most % path.mss } else { most }
    }

    /// When the data window holds back what a fast subflow could send, the fast one repeats the head that a slower one
    /// still carries, once (opportunistic retransmission).
    fn on_window_blocked(&mut self, now: Instant) {
        if self.snd.waiting() == 0 {
            return;
        }
        let (una, nxt) = (self.snd.una(), self.snd.nxt());
        if una == nxt {
            return;
        }
        let repeated = self.snd.watch().and_then(|watch| watch.repeated);
        if repeated.is_some_and(|upto| una.before(upto)) {
            return;
        }
        let views = self.views(now);
        let Some(fast) = schedule(&views, 1) else { return };
        let head = |sf: &super::subflow::Subflow| {
            sf.sent().find(|r| r.dsn.at_or_before(una) && una.before(r.end)).map(|r| r.end)
        };
        let carried_by_fast = self.subflows.get(fast.index).is_some_and(|sf| head(sf).is_some());
        if carried_by_fast || fast.room < fast.mss {
            return;
        }
        if let Some(end) = self.subflows.iter().find_map(head) {
            if let Some(watch) = self.snd.watch_mut() {
                watch.repeated = Some(end);
            }
            self.snd.map_again(una, end);
        }
    }

    /// One run, one mapping, one label.
    fn push_run(&mut self, i: usize, dsn: Dsn, mut run: Chain) {
        let checksum = self.checksum;
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let (len, ssn) = (run.len(), sf.tx_next.since(sf.tx_base));
        debug_assert!(len > 0 && len <= MAX_RUN, "a mapping's length has 16 bits");
        let checksum = if checksum { dss_checksum(dsn, ssn, len as u16, run.sum()) } else { 0 };
        let mapping = Mapping { dsn, ssn, len: len as u16, checksum };
        sf.tx_next += len;
        sf.bytes_sent += u64::from(len);
        self.bytes_sent += u64::from(len);
        sf.note_sent(SentRun { dsn, end: dsn + u64::from(len), seq_end: sf.tx_next });
        if let Some(tcb) = sf.tcb_mut() {
            tcb.push(run, mapping.label());
        }
    }

    /// Option octets that segments with text need for sure.
    fn text_room(&self) -> OptionRoom {
        let text = match &self.mode {
            Mode::Plain(infinite) if infinite.announce => ROOM_MAPPING,
            Mode::Plain(_) | Mode::Opening => 0,
            Mode::Mptcp if self.data_acked => ROOM_MAPPING,
            Mode::Mptcp => ROOM_FULL,
        };
        OptionRoom { text, ack: 0 }
    }

    /// Octets of a DSS that carries only a DATA_ACK.
    fn data_ack_len(&self) -> u8 {
        if self.rcv.long { 12 } else { 8 }
    }

    fn option_room(&self, i: usize) -> OptionRoom {
        let text = self.text_room().text;
        let Some(sf) = self.subflows.get(i) else { return OptionRoom { text, ack: 0 } };
        let moved = self.rcv.acked != self.data_ack() || sf.advertised != self.rcv.edge;
        let ack = match (&self.mode, &sf.handshake) {
            (Mode::Plain(_) | Mode::Opening, _) => sf.signals.first().map_or(0, signal_len),
            (_, Handshake::PreEstablished(_)) => 24,
            _ if self.keys_due(i) => 20,
            _ if !sf.signals.is_empty() => {
                let signal = sf.signals.first().map_or(0, signal_len);
                if signal + self.data_ack_len() <= 28 {
                    signal + self.data_ack_len()
                } else {
                    signal
                }
            }
            _ if self.data_fin().is_some() => ROOM_FULL,
            // RFC 8684 3.3.2: a DATA_ACK that has not moved may be left out, which leaves room for SACK blocks.
            _ if !moved => 0,
            _ => self.data_ack_len(),
        };
        OptionRoom { text, ack }
    }

    /// Whether an ACK on subflow `i` repeats the keys (MP_CAPABLE, form 3).
    fn keys_due(&self, i: usize) -> bool {
        self.role == Role::Initiator
            && !self.confirmed
            && self.subflows.get(i).is_some_and(|sf| {
                matches!(sf.handshake, Handshake::Initial) && sf.tx_next == sf.tx_base + 1
            })
    }

    fn poll_subflow(&mut self, i: usize, now: Instant) -> Option<(FlowTuple, TxSegment)> {
        let (room, window) = (self.option_room(i), self.window());
        let sf = self.subflows.get_mut(i)?;
        let flow = sf.flow;
        let mut tx = match &mut sf.stage {
            Stage::SynSent(syn) => syn.poll_transmit(now)?,
            Stage::SynReceived(syn) => syn.poll_transmit(now)?,
            Stage::Open(tcb) => {
                tcb.set_window(window);
                match tcb.poll_transmit(now, room) {
                    Some(tx) => tx,
                    None if sf.ended => {
                        self.subflow_gone(i, CloseReason::Done, now);
                        return None;
                    }
                    None => return None,
                }
            }
        };
        let open = matches!(sf.stage, Stage::Open(_));
        match tx.segment.control {
            Control::Syn if !open => {
                if let (Options::Syn(options), Some(option)) =
                    (&mut tx.segment.options, self.syn_option(i))
                {
                    let _ = options.mptcp.try_push(option);
                }
            }
            // In SYN-SENT it answers an old segment: the attempt goes on (RFC 9293 3.10.7.3).
            Control::Rst if matches!(sf.stage, Stage::SynSent(_)) => {}
            Control::Rst => self.decorate_reset(i, &mut tx, now),
            _ if tx.segment.text.is_empty() => self.decorate_ack(i, &mut tx),
            _ => self.decorate_text(i, &mut tx, now),
        }
        Some((flow, tx))
    }

    /// A RST says why, and ends the subflow.
    fn decorate_reset(&mut self, i: usize, tx: &mut TxSegment, now: Instant) {
        let Some(sf) = self.subflows.get(i) else { return };
        if matches!(self.mode, Mode::Mptcp) {
            if let (Some(_), false, Some(peer)) = (self.abort_wanted, self.peer_aborted, self.peer)
            {
                let receiver_key = peer.0;
                add(&mut tx.segment, MptcpOption::MpFastclose(MpFastclose { receiver_key }));
                self.counters.MPFastcloseTx += 1;
            }
            for signal in sf.signals.iter().filter(|s| matches!(s, MptcpOption::MpFail(_))) {
                add(&mut tx.segment, *signal);
            }
            if let Some((reason, transient)) = sf.reset {
                add(&mut tx.segment, MptcpOption::MpTcpRst { transient, reason });
                self.counters.MPRstTx += 1;
            }
        }
        self.subflow_gone(i, self.abort_wanted.unwrap_or(CloseReason::Aborted), now);
    }

    fn decorate_ack(&mut self, i: usize, tx: &mut TxSegment) {
        let mut left = tx.option_room;
        let keys_due = self.keys_due(i);
        let Some(sf) = self.subflows.get_mut(i) else { return };
        match (&self.mode, &sf.handshake) {
            (Mode::Opening, _) => return,
            (Mode::Plain(_), _) => {
                // The last word of MPTCP may be an MP_FAIL.
                if sf.signals.first().is_some_and(|s| signal_len(s) <= left)
                    && let Some(signal) = sf.signals.pop()
                {
                    add(&mut tx.segment, signal);
                }
                return;
            }
            (_, Handshake::PreEstablished(third)) => {
                let hmac = third.hmac;
                return add(&mut tx.segment, MptcpOption::MpJoin(MpJoin::Ack { hmac }));
            }
            _ => {}
        }
        if keys_due {
            if let Some(option) = self.keys_option(None) {
                add(&mut tx.segment, option);
            }
            return;
        }
        if let Some(signal) = sf.signals.first().copied().filter(|s| signal_len(s) <= left) {
            sf.signals.pop();
            left -= signal_len(&signal);
            add(&mut tx.segment, signal);
            if !sf.signals.is_empty() {
                sf.request_ack();
            }
        }
        let fin = self.data_fin().filter(|_| left >= ROOM_FULL).map(|dsn| DssMapping {
            dsn: DssDsn::Long(dsn),
            ssn: 0,
            len: 1,
            checksum: self.checksum.then(|| dss_checksum(dsn, 0, 1, 0)),
        });
        if left >= self.data_ack_len() {
            let data_ack = Some(self.take_data_ack(i));
            let dss = Dss { data_ack, mapping: fin, data_fin: fin.is_some() };
            add(&mut tx.segment, MptcpOption::Dss(dss));
        }
    }

    /// The DATA_ACK to send now, noted as sent.
    fn take_data_ack(&mut self, i: usize) -> DataAck {
        let ack = self.data_ack();
        self.rcv.acked = ack;
        self.data_ack_at = None;
        let edge = self.rcv.edge;
        if let Some(sf) = self.subflows.get_mut(i) {
            sf.advertised = edge;
        }
        if self.rcv.long { DataAck::Long(ack) } else { DataAck::Short(ack.0 as u32) }
    }

    fn decorate_text(&mut self, i: usize, tx: &mut TxSegment, now: Instant) {
        let Some(sf) = self.subflows.get(i) else { return };
        if let Mode::Plain(infinite) = &mut self.mode {
            if core::mem::take(&mut infinite.announce) {
                let option = infinite.announcement(sf, tx.segment.seq, self.checksum);
                add(&mut tx.segment, option);
            }
            return;
        }
        let Some(m) = self.mapping_of(tx.label) else { return };
        let checksum = self.checksum.then_some(m.checksum);
        // A part of it that goes again by itself names its mapping as any other does.
        let first =
            m.dsn == self.idsn + 1 && m.ssn == 1 && self.role == Role::Initiator && tx.offset == 0;
        if first && !self.data_acked {
            if let Some(option) = self.keys_option(Some((m.len, checksum))) {
                add(&mut tx.segment, option);
            }
            return;
        }
        let mapping = DssMapping { dsn: DssDsn::Long(m.dsn), ssn: m.ssn, len: m.len, checksum };
        // The DATA_ACK rides along where it does not make a full segment too long.
        let text = if tx.gso_size > 0 { u32::from(tx.gso_size) } else { tx.segment.text.len() };
        let fits =
            tx.option_room >= ROOM_FULL && text <= sf.mss(OptionRoom { text: ROOM_FULL, ack: 0 });
        let data_ack = fits.then(|| self.take_data_ack(i));
        let owed = self.data_ack().since(self.rcv.acked);
        if owed > 0 && self.data_ack_at.is_none() {
            self.data_ack_at = Some(now + self.cfg.tcp.delayed_ack);
        }
        if (owed > 2 * u64::from(self.cfg.tcp.mss) || (owed > 0 && self.rcv.fin_taken))
            && let Some(sf) = self.subflows.get_mut(i)
        {
            sf.request_ack();
        }
        let dss = Dss { data_ack, mapping: Some(mapping), data_fin: false };
        add(&mut tx.segment, MptcpOption::Dss(dss));
    }
}

/// Octets of an option that is sent once, padded.
fn signal_len(signal: &MptcpOption) -> u8 {
    match signal {
        MptcpOption::AddAddr(add) => {
            let addr = if add.addr.is_ipv4() { 8 } else { 20 };
            addr + if add.hmac.is_some() { 8 } else { 0 } + if add.port.is_some() { 4 } else { 0 }
        }
        MptcpOption::MpFail(_) | MptcpOption::MpFastclose(_) => 12,
        _ => 4,
    }
}

fn add(segment: &mut Segment, option: MptcpOption) {
    if let Options::Segment(options) = &mut segment.options {
        let _ = options.mptcp.try_push(option);
    }
}
