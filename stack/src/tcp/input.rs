//! A segment arrives (RFC 9293 3.10.7.4): one function per check, in the RFC's order.
#![forbid(unsafe_code)]

use super::ecn::News;
use super::tcb::{AckOwed, Tcb};
use super::{Arrival, CloseReason, Event, RangeSet, State, Stop, Why};
use crate::buf::SMALL;
use crate::time::{Duration, Instant};
use crate::wire::{Control, Segment, SeqNum};
use core::ops::ControlFlow::{self, Break, Continue};

/// Most holes in what was received, as many as [`Reassembly`](super::Reassembly) has room for behind one; text that would
/// make another is dropped and sent again later. A queue that overflows at the end of slow start drops every twelfth
/// segment of a window: that of 1 Gbit/s and 300 ms then has thousands.
const MAX_HOLES: usize = 8192;
/// Who sent text at most so many delays of an ACK ago is likely to answer before the next ACK has been delayed.
const ANSWERED_WITHIN: u32 = 5;
/// As many for text that leaves most of its frame empty, as every hole costs a frame: the octets behind fewer than that
/// were lost if the sender is an honest one.
const MAX_SMALL_HOLES: usize = 64;
/// After this much silence TS.Recent means nothing (RFC 7323 5.5).
const TS_RECENT_LIFETIME: Duration = Duration::from_secs(24 * 86_400);

impl Tcb {
    /// Processes one arriving segment. Poll afterwards.
    pub fn on_segment(&mut self, seg: Segment, now: Instant) -> Arrival {
        let mut arrival = Arrival::default();
        if self.state == State::Closed {
            arrival.stop = Some(Stop::Silent(Why::Closed));
            return arrival;
        }
        if let Break(stop) = self.arrive(seg, now, &mut arrival) {
            arrival.stop = Some(stop);
            match stop {
                Stop::Silent(_) => {}
                Stop::Ack(_) => self.owe_ack_now(),
                Stop::Closed(reason) => {
                    arrival.closed = Some(reason);
                    self.end();
                }
            }
        }
        self.rearm(now);
        arrival
    }

    fn arrive(
        &mut self,
        mut seg: Segment,
        now: Instant,
        arrival: &mut Arrival,
    ) -> ControlFlow<Stop> {
        self.check_paws(&seg, now)?;
        self.check_sequence(&seg, now)?; // first
        self.check_rst(&seg, now)?; // second
        self.check_syn(&seg, now)?; // fourth
        self.check_ack(&seg, now, arrival)?; // fifth
        self.take_text(&mut seg, now, arrival)?; // seventh
        self.check_fin(&seg, arrival); // eighth
        Continue(())
    }

    /// RFC 7323 5.3 R1. A segment without the option passes, as in Linux: middleboxes strip it.
    fn check_paws(&mut self, seg: &Segment, now: Instant) -> ControlFlow<Stop> {
        let (Some(stamps), Some(ts)) = (self.agreed.timestamps, seg.options.timestamps()) else {
            return Continue(());
        };
        let old = (ts.val.wrapping_sub(stamps.recent) as i32) < 0;
        if old && seg.control != Control::Rst && now.since(stamps.recent_at) < TS_RECENT_LIFETIME {
            self.note_duplicate(seg);
            return Break(Stop::Ack(Why::Paws));
        }
        Continue(())
    }

    /// Acceptability (RFC 9293 3.10.7.4, table 6), by the largest right edge ever offered.
    fn check_sequence(&mut self, seg: &Segment, now: Instant) -> ControlFlow<Stop> {
        let (nxt, edge) = (self.rcv.nxt, self.rcv.edge);
        let first_in = seg.seq.within(nxt, edge);
        let acceptable = match (seg.len(), edge.saturating_since(nxt)) {
            // At a zero window ACKs and RSTs are still good, its text is not.
            (_, 0) => seg.seq == nxt,
            (0, _) => first_in || seg.seq == edge,
            (len, _) => first_in || (seg.seq + (len - 1)).within(nxt, edge),
        };
        if acceptable {
            return Continue(());
        }
        if seg.control == Control::Rst {
            return Break(Stop::Silent(Why::ResetOutsideWindow));
        }
        if seg.control == Control::Syn {
            return Break(self.challenge(Why::Syn, now)); // RFC 5961 4.2: wherever it lies
        }
        if seg.is_empty() {
            // Two ends that disagree must not answer each other's ACKs for ever (RFC 5961 7).
            return Break(self.challenge(Why::OutsideWindow, now));
        }
        self.note_duplicate(seg);
        Break(Stop::Ack(Why::OutsideWindow))
    }

    /// RFC 2883: octets that are here already are reported with the next ACK.
    fn note_duplicate(&mut self, seg: &Segment) {
        let end = (seg.seq + seg.text.len()).min(self.rcv.nxt);
        if seg.seq.before(end) {
            self.trouble().duplicates_in += 1;
            self.rcv.note_duplicate(seg.seq, end);
        }
    }

    /// RFC 5961 3.2: a guessed RST must not kill us.
    fn check_rst(&mut self, seg: &Segment, now: Instant) -> ControlFlow<Stop> {
        if seg.control != Control::Rst {
            return Continue(());
        }
        if seg.seq != self.rcv.nxt {
            return Break(self.challenge(Why::ResetOutOfOrder, now));
        }
        let over = matches!(self.state, State::Closing | State::LastAck | State::TimeWait);
        let delivered = self.queue.queued() == 0;
        let reason = if over && delivered { CloseReason::Done } else { CloseReason::Reset };
        Break(Stop::Closed(reason))
    }

    /// RFC 5961 4.2.
    fn check_syn(&mut self, seg: &Segment, now: Instant) -> ControlFlow<Stop> {
        if seg.control == Control::Syn {
            return Break(self.challenge(Why::Syn, now));
        }
        Continue(())
    }

    fn challenge(&mut self, why: Why, now: Instant) -> Stop {
        if self.trouble().challenges.allow(now) {
            Stop::Ack(why)
        } else {
            Stop::Silent(Why::ChallengeLimit)
        }
    }

    fn check_ack(
        &mut self,
        seg: &Segment,
        now: Instant,
        arrival: &mut Arrival,
    ) -> ControlFlow<Stop> {
        let Some(ack) = seg.ack else { return Break(Stop::Silent(Why::NoAck)) };
        if self.queue.nxt().before(ack) {
            return Break(self.challenge(Why::AckOfUnsent, now));
        }
        let una = self.queue.una();
        if ack.before(una - self.snd.max) {
            return Break(self.challenge(Why::AckTooOld, now)); // MAY-12, RFC 5961 5.2
        }
        arrival.accepted = true;
        self.last_heard = now;
        self.probes = 0;
        let younger = self.update_ts_recent(seg, now);
        let old = ack.before(una);
        let news = if una.before(ack) || younger && !old { News::Yes } else { News::No };
        self.take_ecn(seg, ack, news);
        if old {
            self.take_ack(seg, arrival, now); // it was overtaken: only what it SACKs may be news
            return Continue(());
        }
        arrival.window_changed = self.update_window(seg, ack);
        arrival.acked = self.take_ack(seg, arrival, now);
        if self.fin_acked() {
            self.on_event(Event::AckOfFin);
            match self.state {
                State::TimeWait => arrival.closed = Some(CloseReason::Done),
                State::Closed => return Break(Stop::Closed(CloseReason::Done)),
                _ => {}
            }
        }
        Continue(())
    }

    /// RFC 7323 4.3; RFC 7323 5.5: what is too old to compare with is replaced. Whether the stamp is younger than all before.
    fn update_ts_recent(&mut self, seg: &Segment, now: Instant) -> bool {
        let before = self.agreed.timestamps.map(|stamps| stamps.recent);
        if let (Some(stamps), Some(ts)) = (&mut self.agreed.timestamps, seg.options.timestamps())
            && seg.seq.at_or_before(self.rcv.last_ack_sent)
            && ((ts.val.wrapping_sub(stamps.recent) as i32) >= 0
                || now.since(stamps.recent_at) >= TS_RECENT_LIFETIME)
        {
            (stamps.recent, stamps.recent_at) = (ts.val, now);
        }
        self.agreed.timestamps.map(|stamps| stamps.recent) != before
    }

    /// RFC 9293 3.10.7.4: not from segments that were overtaken.
    fn update_window(&mut self, seg: &Segment, ack: SeqNum) -> bool {
        let newer = self.snd.wl1.before(seg.seq)
            || (self.snd.wl1 == seg.seq && self.snd.wl2.at_or_before(ack));
        if !newer {
            return false;
        }
        let wnd = seg.window.scale(self.agreed.snd_scale).0;
        (self.snd.wl1, self.snd.wl2) = (seg.seq, ack);
        self.snd.max = self.snd.max.max(wnd);
        let changed = core::mem::replace(&mut self.snd.wnd, wnd) != wnd;
        if changed && self.queue.flight() == 0 {
            self.rtt.reset_backoff(); // that was the persist timer's
        }
        changed
    }

    fn take_text(
        &mut self,
        seg: &mut Segment,
        now: Instant,
        arrival: &mut Arrival,
    ) -> ControlFlow<Stop> {
        if seg.text.is_empty() {
            return Continue(());
        }
        if let Some(fin) = self.rcv.fin
            && fin.before(seg.seq + seg.text.len())
        {
            return Break(Stop::Ack(Why::TextAfterFin));
        }
        let len = seg.text.len();
        let mut text = core::mem::take(&mut seg.text);
        let mut at = seg.seq;
        if at.before(self.rcv.nxt) {
            let right = self.rcv.nxt.min(at + len);
            self.rcv.note_duplicate(at, right);
            text.trim_front(self.rcv.nxt.since(at).min(len));
            at = self.rcv.nxt;
        }
        let room = self.rcv.edge.saturating_since(at);
        if text.len() > room {
            text.truncate(room); // RFC 9293 3.10.7.4: trim what lies beyond the window
            seg.control = if seg.control == Control::Fin { Control::None } else { seg.control };
            self.owe_ack_now();
        }
        seg.seq = at + text.len(); // where a FIN would be
        if text.is_empty() {
            return Continue(());
        }
        let end = at + text.len();
        if self.rcv.holes().is_some_and(|holes| holes.covers(at, end)) {
            self.trouble().duplicates_in += 1;
            self.rcv.note_duplicate(at, end);
            self.owe_ack_now();
            return if seg.control == Control::Fin {
                Continue(())
            } else {
                Break(Stop::Ack(Why::DuplicateText))
            };
        }
        let most = if text.len() as usize > SMALL { MAX_HOLES } else { MAX_SMALL_HOLES };
        let full = |holes: &RangeSet<_>| holes.count() >= most && holes.is_apart(at, end);
        if at != self.rcv.nxt && self.rcv.holes().is_some_and(full) {
            return Break(Stop::Ack(Why::TooManyHoles));
        }
        self.note_overlap(at, end);
        self.store(at, end, len, now);
        if seg.push {
            self.note_push(now);
        }
        arrival.text = Some((at, text));
        Continue(())
    }

    /// A push ends what the sender may send for now: a second segment to wait for (RFC 5681 4.2) may never come, and with a
    /// small window its sender stands still meanwhile. Unless we send text too, on which the ACK can ride.
    fn note_push(&mut self, now: Instant) {
        let answers = now.since(self.last_sent) < self.cfg.delayed_ack * ANSWERED_WITHIN;
        if self.ack == AckOwed::Delayed && !answers {
            self.owe_ack_now();
        }
    }

    /// RFC 2883 4.2.2: of text that is in part here already, the first octets that are.
    fn note_overlap(&mut self, at: SeqNum, end: SeqNum) {
        let overlap = self.rcv.holes().and_then(|holes| {
            let held = |at| holes.find(at).filter(|_| at.before(end));
            let (left, (_, right)) = match held(at) {
                Some(range) => (at, range),
                None => {
                    let (_, left) = holes.gaps(at, end).next()?;
                    (left, held(left)?)
                }
            };
            Some((left, right.min(end)))
        });
        if let Some((left, right)) = overlap
            && self.rcv.disorder().duplicate.is_none()
        {
            self.rcv.note_duplicate(left, right);
        }
    }

    /// Counts `at..end` as received and decides when to acknowledge (RFC 5681 4.2).
    fn store(&mut self, at: SeqNum, end: SeqNum, len: u32, now: Instant) {
        if len <= u32::from(self.cfg.mss) {
            self.rcv.mss = self.rcv.mss.max(len as u16);
        }
        if at == self.rcv.nxt && self.rcv.in_order() {
            self.rcv.nxt = end;
            self.sums.bytes_received += u64::from(end.since(at));
            self.rcv.unacked += len;
            let quick = self.rcv.quick_acks > 0;
            self.rcv.quick_acks = self.rcv.quick_acks.saturating_sub(1);
            // A sender that has used up its window waits for us, and takes silence for a loss.
            let stopped = self.rcv.advertised.saturating_since(end) < u32::from(self.rcv.mss);
            if quick || stopped || self.rcv.unacked > u32::from(self.rcv.mss) {
                self.owe_ack_now(); // SHLD-19: every second full segment
            } else if self.ack == AckOwed::None {
                (self.ack, self.ack_at) = (AckOwed::Delayed, now + self.cfg.delayed_ack);
            }
            return;
        }
        // Out of order (SHLD-31, MAY-13), or filling a hole: the sender is waiting to hear of it.
        self.owe_ack_now();
        let nxt = self.rcv.nxt;
        if at != nxt {
            let trouble = self.trouble();
            trouble.out_of_order_in += 1;
            trouble.events.TCPOFOQueue += 1;
        }
        let disorder = self.rcv.disorder();
        self.sums.bytes_received += disorder.holes.insert(at, end);
        if at != nxt {
            if disorder.recent.is_full() {
                disorder.recent.pop();
            }
            disorder.recent.insert(0, at);
        }
        if let Some((_, end)) = disorder.holes.find(nxt) {
            disorder.holes.remove_before(end);
            disorder.recent.retain(|at| !at.before(end));
            if disorder.holes.is_empty() && disorder.duplicate.is_none() {
                self.rcv.disorder = None;
            }
            self.rcv.nxt = end;
        }
    }

    /// The FIN stands at `seg.seq` (text was taken off) and is consumed when everything before it is here.
    fn check_fin(&mut self, seg: &Segment, arrival: &mut Arrival) {
        if seg.control == Control::Fin && self.rcv.fin.is_none() {
            let end = self.rcv.holes().and_then(|holes| holes.end());
            let beyond = seg.seq.before(end.unwrap_or(self.rcv.nxt));
            if beyond || !self.state.can_receive() {
                return; // text was seen after it: not a FIN that can be true
            }
            self.rcv.fin = Some(seg.seq);
            self.owe_ack_now();
        }
        if self.rcv.fin != Some(self.rcv.nxt) {
            return;
        }
        self.rcv.nxt += 1;
        self.rcv.edge = self.rcv.edge.max(self.rcv.nxt);
        self.rcv.advertised = self.rcv.advertised.max(self.rcv.nxt);
        self.rcv.allowed = self.rcv.allowed.max(self.rcv.nxt);
        self.owe_ack_now();
        arrival.fin = true;
        self.on_event(Event::Fin);
        if self.state == State::TimeWait {
            arrival.closed = Some(CloseReason::Done);
        }
    }

    pub(super) fn owe_ack_now(&mut self) {
        if self.ack != AckOwed::Pure {
            self.ack = AckOwed::Now;
        }
    }
}
