//! What to send next: RST, ACK, probe, retransmission, new text, in this order (RFC 9293 3.8, RFC 5681).
#![forbid(unsafe_code)]

use super::congestion::{Departure, Sack};
use super::ecn::NewText;
use super::recovery::{Probe, Recovery};
use super::send_queue::{Fin, Piece};
use super::tcb::{AckOwed, Due, Reset, TIMESTAMPS_LEN, Tcb};
use super::{OptionRoom, RightEdge, State, TxSegment};
use crate::buf::Chain;
use crate::time::Instant;
use crate::wire::{
    Control, Ecn, Options, SackBlock, SackBlocks, Segment, SegmentOptions, SeqNum, Timestamps,
    UnscaledWindow, WindowSize,
};

/// Octets of a segment's options.
const OPTION_SPACE: u32 = 40;

/// Whether a piece was sent before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    First,
    Again,
}

impl Tcb {
    /// The next segment to send, `None` if there is none now. Call until `None` after every mutation; `room` is what
    /// the owner will add to it.
    pub fn poll_transmit(&mut self, now: Instant, room: OptionRoom) -> Option<TxSegment> {
        self.room = room;
        if core::mem::replace(&mut self.reset, Reset::No) == Reset::Owed {
            return Some(self.reset_segment(now));
        }
        if self.state == State::Closed {
            return None;
        }
        // SACK blocks stand in pure ACKs only, so that text and options always fit the MSS.
        let news = self.rcv.disorder.is_some();
        if self.ack == AckOwed::Pure || (self.ack == AckOwed::Now && news) {
            return Some(self.ack_segment(self.queue.nxt(), now));
        }
        let tx = self
            .poll_due(now)
            .or_else(|| self.poll_retransmission(now))
            .or_else(|| self.poll_new(now));
        if tx.is_none() {
            self.note_limit();
            self.note_pacing(now);
        }
        self.rearm(now);
        if tx.is_some() {
            return tx;
        }
        // MUST-58, MUST-59: one ACK for all that was processed since the last poll.
        if self.ack == AckOwed::Now || self.window_update_due() {
            return Some(self.ack_segment(self.queue.nxt(), now));
        }
        None
    }

    /// Whether cwnd is what stops us: room for less than a segment, or an eighth of a large window, is left.
    fn note_limit(&mut self) {
        let cwnd = self.congestion.cwnd();
        let slack = self.mss(self.room).max((cwnd / 8).min(self.cfg.gso_max));
        if self.inflight().saturating_add(slack) > cwnd {
            let nxt = self.queue.nxt();
            if let Some(spell) = self.queue.spell_mut() {
                spell.limited_until = nxt;
            }
        }
    }

    /// What a timer asked for, whatever the windows say.
    fn poll_due(&mut self, now: Instant) -> Option<TxSegment> {
        match self.due.take()? {
            Due::Retransmission => self.resend_first(now),
            Due::TailLossProbe => self.tail_loss_probe(now),
            // An old octet: outside of any window, so that a living peer must answer it.
            Due::KeepAlive => Some(self.ack_segment(self.queue.una() - 1, now)),
            Due::WindowProbe if self.window_room() > 0 && self.queue.unsent() > 0 => {
                // Silly-window avoidance waited long enough (RFC 9293 3.8.6.2.1 case 4).
                let n = self.queue.run(self.window_room().min(self.mss(self.room)));
                Some(self.send_new(n, now))
            }
            // No octet of text: it would have to be taken back, and with it its label.
            Due::WindowProbe => Some(self.ack_segment(self.queue.una() - 1, now)),
        }
    }

    /// RFC 8985 7.3: new text if the peer's window has room, else the last segment again.
    fn tail_loss_probe(&mut self, now: Instant) -> Option<TxSegment> {
        let mss = self.mss(self.room);
        self.rto_base = now; // RFC 8985 7.3: the RTO counts from the probe
        let fresh = self.queue.run(self.window_room().min(mss));
        if fresh > 0 {
            let tx = self.send_new(fresh, now);
            self.note_probe(Sent::First, now);
            return Some(tx);
        }
        let piece = self.queue.resend_tail(mss, now)?;
        self.note_probe(Sent::Again, now);
        Some(self.piece_segment(piece, Sent::Again, now))
    }

    fn note_probe(&mut self, sent: Sent, now: Instant) {
        let (end, flight) = (self.queue.nxt(), self.queue.flight());
        let trouble = self.trouble();
        trouble.tlps += 1;
        trouble.events.TCPLossProbes += 1;
        trouble.probe = Some(Probe { end, again: sent == Sent::Again, at: now, flight });
        trouble.unmeasured = true;
    }

    /// RFC 6298 5.4.
    fn resend_first(&mut self, now: Instant) -> Option<TxSegment> {
        let n = self.queue.first_lost()?.min(self.mss(self.room));
        let piece = self.queue.resend_lost(n, now)?;
        self.rto_base = now;
        Some(self.piece_segment(piece, Sent::Again, now))
    }

    /// Octets that congestion control lets out.
    pub(super) fn cwnd_room(&self) -> u32 {
        self.congestion.cwnd().saturating_sub(self.inflight())
    }

    fn poll_retransmission(&mut self, now: Instant) -> Option<TxSegment> {
        let len = self.queue.first_lost()?;
        if self.frto_holds() {
            return None;
        }
        let mss = self.mss(self.room);
        let first = self.queue.pipe() == 0; // the network is empty: nothing has to wait for a rate
        let burst = self.burst(mss, now).or(first.then_some(mss))?;
        let n = self.portion(len.min(burst), self.cwnd_room(), mss)?;
        let slow_start = matches!(self.recovery(), Recovery::Loss { .. });
        let events = &mut self.trouble().events;
        if slow_start {
            events.TCPSlowStartRetrans += n.div_ceil(mss);
        } else {
            events.TCPFastRetrans += n.div_ceil(mss);
        }
        let piece = self.queue.resend_lost(n, now)?;
        if first || piece.seq == self.queue.una() {
            self.rto_base = now; // RFC 6298 5.1 for the segment the timer is about
        }
        Some(self.piece_segment(piece, Sent::Again, now))
    }

    /// How much of `n` octets may go with `room`: all of it, or whole segments; never a runt because of the window's
    /// remainder. `None`: nothing yet. With an empty network one segment always goes.
    fn portion(&self, n: u32, room: u32, mss: u32) -> Option<u32> {
        if n <= room {
            return Some(n);
        }
        match room / mss * mss {
            0 if self.inflight() == 0 => Some(n.min(mss)),
            0 => None,
            whole => Some(whole),
        }
    }

    /// Most octets of text in one [`TxSegment`]: whole segments (SHLD-27, SHLD-28).
    pub(super) fn super_segment(&self, mss: u32) -> u32 {
        if self.agreed.ecn.forbids_super_segments() {
            return mss;
        }
        (self.cfg.gso_max / mss * mss).max(mss)
    }

    fn poll_new(&mut self, now: Instant) -> Option<TxSegment> {
        if self.queue.unsent() == 0 {
            return self.poll_fin(now);
        }
        self.restart_after_idle(now);
        if self.trouble.is_some()
            && let Some(tx) = self.poll_sounding(now)
        {
            return Some(tx);
        }
        let mss = self.mss(self.room);
        let run = self.queue.run(self.burst(mss, now)?);
        let wnd = self.window_room();
        let usable = if run <= wnd { run } else { wnd / mss * mss };
        if usable == 0 {
            // RFC 9293 3.8.6.2.1 case 3: half of the largest window ever seen is not silly.
            let half = wnd > 0 && self.queue.flight() == 0 && wnd >= self.snd.max / 2;
            return half.then(|| self.send_new(wnd, now));
        }
        let usable = self.let_out_by_nagle(usable, mss);
        if usable == 0 {
            return None;
        }
        let n = self.portion(usable, self.cwnd_room(), mss)?;
        Some(self.send_new(self.queue.cut_before(n, mss), now))
    }

    /// SHLD-7: while something is in flight, or goes before it, a small segment waits.
    fn let_out_by_nagle(&self, n: u32, mss: u32) -> u32 {
        let waits = self.cfg.nagle
            && (n > mss || self.queue.flight() > 0)
            && !matches!(self.queue.fin(), Fin::Queued);
        if waits { n / mss * mss } else { n }
    }

    fn poll_fin(&mut self, now: Instant) -> Option<TxSegment> {
        if self.queue.fin() != Fin::Queued || self.window_room() == 0 {
            return None;
        }
        Some(self.send_new(0, now))
    }

    /// RFC 5681 4.1.
    fn restart_after_idle(&mut self, now: Instant) {
        if self.queue.flight() == 0 && now.since(self.last_sent) > self.rto() {
            let mss = self.mss(self.room);
            self.congestion.on_idle(mss);
        }
    }

    pub(super) fn send_new(&mut self, n: u32, now: Instant) -> TxSegment {
        let last = n == self.queue.unsent();
        let with_fin = last && self.queue.fin() == Fin::Queued && n < self.window_room();
        if self.queue.flight() == 0 {
            self.rto_base = now; // RFC 6298 5.1
            self.restart_user_timeout();
        }
        let piece = self.queue.send(n, with_fin, now);
        if let Some(spell) = self.queue.spell_mut() {
            spell.pto_base = now;
        }
        self.piece_segment(piece, Sent::First, now)
    }

    fn piece_segment(&mut self, piece: Piece, sent: Sent, now: Instant) -> TxSegment {
        let len = piece.text.len();
        let mss = match sent {
            Sent::First => self.segment_limit(piece.seq),
            Sent::Again => self.mss(self.room),
        };
        self.queue.note_size(piece.seq, (len.min(mss) + self.options_len()) as u16);
        self.last_sent = now;
        self.sums.bytes_sent += u64::from(len);
        if self.congestion.models_path() {
            self.tell_sent(len, now);
        }
        self.pace(len, now);
        if sent == Sent::Again {
            self.trouble().bytes_retrans += u64::from(len);
            self.note_resent(len + u32::from(piece.fin), now);
        }
        if let Some(spell) = self.queue.spell_mut()
            && let Recovery::Fast { prr, .. } = &mut spell.recovery
        {
            prr.on_sent(len);
        }
        let control = if piece.fin { Control::Fin } else { Control::None };
        let mut segment = self.segment(piece.seq, control, now);
        if sent == Sent::First && len > 0 && self.agreed.ecn.marks() {
            // RFC 3168 6.1.4(a), 6.1.5(a): neither ACKs nor what is sent again.
            segment.traffic_class = segment.traffic_class.with_ecn(Ecn::Ect0);
            segment.ecn = self.agreed.ecn.flags(NewText::Yes);
        } else {
            segment.ecn = self.agreed.ecn.flags(NewText::No);
        }
        let newest = piece.seq + len == self.queue.nxt();
        segment.push = (newest && self.queue.unsent() == 0) || piece.fin;
        segment.text = piece.text;
        TxSegment {
            segment,
            label: piece.label,
            offset: piece.offset,
            gso_size: if len > mss { mss as u16 } else { 0 },
            retransmission: sent == Sent::Again,
            option_room: (OPTION_SPACE - self.stamps_len()) as u8,
        }
    }

    fn tell_sent(&mut self, octets: u32, now: Instant) {
        let sent = Departure {
            now,
            number: self.queue.last_transmission(),
            octets,
            inflight: self.queue.pipe(),
            after_gap: self.after_gap(now),
        };
        let sack = if self.agreed.sack { Sack::Agreed } else { Sack::No };
        self.congestion.on_sent(sent, self.mss(self.room), self.rtt.srtt(), sack);
    }

    fn stamps_len(&self) -> u32 {
        if self.agreed.timestamps.is_some() { TIMESTAMPS_LEN } else { 0 }
    }

    /// A segment without text at `seq`.
    fn ack_segment(&mut self, seq: SeqNum, now: Instant) -> TxSegment {
        let mut segment = self.segment(seq, Control::None, now);
        segment.ecn = self.agreed.ecn.flags(NewText::No);
        let free = OPTION_SPACE - self.stamps_len();
        let blocks = free.saturating_sub(u32::from(self.room.ack) + 4) / 8;
        let mut used = 0;
        if self.agreed.sack && blocks > 0 {
            let sack = self.sack_blocks(blocks as usize);
            used = if sack.is_empty() { 0 } else { 4 + 8 * sack.len() as u32 };
            if let Options::Segment(options) = &mut segment.options {
                options.sack = sack;
            }
            self.count_dsack();
        }
        self.rcv.forget_duplicate();
        plain(segment, (free - used) as u8)
    }

    fn count_dsack(&mut self) {
        let Some(block) = self.rcv.disorder.as_ref().and_then(|d| d.duplicate) else { return };
        let old = block.left.before(self.rcv.nxt);
        let events = &mut self.trouble().events;
        events.TCPDSACKOldSent += u32::from(old);
        events.TCPDSACKOfoSent += u32::from(!old);
    }

    /// The duplicate, then the ranges that changed last, then the others (RFC 2018 4, RFC 2883 4).
    fn sack_blocks(&self, most: usize) -> SackBlocks {
        let mut blocks = SackBlocks::new();
        let most = most.min(blocks.capacity());
        let Some(disorder) = &self.rcv.disorder else { return blocks };
        blocks.extend(disorder.duplicate);
        let first = blocks.len();
        let recent = disorder.recent.iter().filter_map(|at| disorder.holes.find(*at));
        for (left, right) in recent.chain(disorder.holes.iter()) {
            if blocks.len() >= most {
                break;
            }
            let block = SackBlock { left, right };
            if !blocks[first..].contains(&block) {
                blocks.push(block);
            }
        }
        blocks
    }

    /// RFC 7323 3.2: once agreed upon, in every segment.
    fn timestamps(&self, now: Instant) -> Option<Timestamps> {
        let stamps = self.agreed.timestamps?;
        Some(Timestamps { val: stamps.val(now), ecr: stamps.recent })
    }

    /// A segment that acknowledges all there is.
    fn segment(&mut self, seq: SeqNum, control: Control, now: Instant) -> Segment {
        self.ack = AckOwed::None;
        self.rcv.unacked = 0;
        self.rcv.last_ack_sent = self.rcv.nxt;
        let timestamps = self.timestamps(now);
        Segment {
            seq,
            ack: Some(self.rcv.nxt),
            control,
            push: false,
            window: self.offer_window(),
            options: Options::Segment(SegmentOptions { timestamps, ..Default::default() }),
            text: Chain::new(),
            ..Default::default()
        }
    }

    /// Advertises the window and remembers the edge that the field really expresses.
    fn offer_window(&mut self) -> UnscaledWindow {
        let scale = self.agreed.rcv_scale;
        let window = self.window_to_offer();
        let mut field = WindowSize(window).unscale(scale);
        let promised = self.rcv.advertised.saturating_since(self.rcv.nxt);
        let rounded_off = field.scale(scale).0 < promised;
        if self.cfg.window == RightEdge::NeverRetreats && rounded_off && field.0 < u16::MAX {
            field.0 += 1; // rounding must not take back what was offered (RFC 7323 2.4)
        }
        self.rcv.advertised = self.rcv.nxt + field.scale(scale).0;
        self.rcv.edge = self.rcv.edge.max(self.rcv.advertised);
        field
    }

    /// RFC 9293 3.10.5: at SND.NXT, so that the peer believes it (RFC 5961 3.2 asks for RCV.NXT).
    fn reset_segment(&mut self, now: Instant) -> TxSegment {
        let timestamps = self.timestamps(now); // RFC 7323 3.2
        let segment = Segment {
            seq: self.queue.nxt(),
            ack: Some(self.rcv.nxt),
            control: Control::Rst,
            push: false,
            window: UnscaledWindow(0),
            options: Options::Segment(SegmentOptions { timestamps, ..Default::default() }),
            text: Chain::new(),
            ..Default::default()
        };
        plain(segment, (OPTION_SPACE - self.stamps_len()) as u8)
    }
}

/// A segment without text, hence without label.
pub(super) fn plain(segment: Segment, option_room: u8) -> TxSegment {
    TxSegment {
        segment,
        label: super::Label::PLAIN,
        offset: 0,
        gso_size: 0,
        retransmission: false,
        option_room,
    }
}
