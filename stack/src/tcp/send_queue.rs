//! What is to be sent and what was: send queue, retransmission queue and SACK scoreboard in one.
#![forbid(unsafe_code)]

mod loss;
mod sizes;

pub(super) use loss::Renege;

use super::congestion::Lost;
use super::recovery::Spell;
use super::{Label, RangeSet};
use crate::buf::{Chain, SMALL, cut_before};
use crate::time::Instant;
use crate::wire::{SackBlock, SeqNum};
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// Text pushed and not sent.
#[derive(Debug)]
struct Chunk {
    text: Chain,
    label: Label,
    /// Octets of the chunk that were sent already.
    offset: u32,
}

/// Where octets that were sent are now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    InFlight,
    Sacked,
    /// Lost and not sent again yet.
    Lost,
}

/// Octets that were sent together and not acknowledged: one segment or super-segment, or what SACK left of one.
#[derive(Debug)]
struct Entry {
    seq: SeqNum,
    text: Chain,
    label: Label,
    offset: u32,
    fin: bool,
    place: Place,
    sent: Transmission,
}

/// One act of sending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transmission {
    /// Counts transmissions of the flow: the order in time.
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) again: bool,
    /// Text and options of its longest segment, octets.
    pub(super) size: u16,
}

/// The transmissions in order of time, for RACK: those in front are lost first. A record whose octets were delivered
/// or sent again since is stale and skipped.
#[derive(Debug)]
struct Record {
    seq: SeqNum,
    end: SeqNum,
    sent: Transmission,
}

/// Octets delivered by an ACK, told one entry at a time.
pub(super) trait OnDelivered {
    /// Octets up to `end` of one transmission have arrived.
    fn on_delivered(&mut self, spell: &mut Spell, sent: Transmission, end: SeqNum);
}

/// What is to go out as one segment or super-segment.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) seq: SeqNum,
    pub(super) text: Chain,
    pub(super) label: Label,
    pub(super) offset: u32,
    pub(super) fin: bool,
}

/// Who wants a FIN and whether it left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fin {
    NotYet,
    Queued,
    Sent,
    Acked,
}

/// What is to be sent and what is not acknowledged; while there is nothing, it takes no heap.
#[derive(Debug)]
pub(super) struct SendQueue {
    una: SeqNum,
    nxt: SeqNum,
    fin: Fin,
    /// Most octets of text and options in a segment: what both ends allow and the path is thought to carry.
    pub(super) path_mss: u16,
    /// The longest segment that was acknowledged, in the same terms.
    pub(super) passed: u16,
    busy: Option<Box<Busy>>,
}

/// `sent` covers `una..nxt` without gaps, in order; `unsent` follows.
#[derive(Debug)]
struct Busy {
    sent: VecDeque<Entry>,
    unsent: VecDeque<Chunk>,
    unsent_octets: u32,
    sacked: RangeSet<SeqNum>,
    octets: Octets,
    /// No lost entry lies before it.
    lost_from: SeqNum,
    log: VecDeque<Record>,
    transmissions: u64,
    spell: Spell,
}

/// How much of what was sent is in which place (sequence space).
#[derive(Clone, Copy, Default, Debug)]
struct Octets {
    sacked: u32,
    /// Segments that `sacked` came in.
    sacked_segments: u32,
    lost: u32,
    /// In flight and sent more than once.
    again: u32,
    /// Times that what was sent again was lost again.
    relost: u32,
}

impl Octets {
    /// `n` octets of `entry`, all of it or its beginning, leave the place where they are.
    fn leave(&mut self, entry: &Entry, n: u32, mss: u32) {
        match entry.place {
            Place::InFlight if entry.sent.again => self.again -= n,
            Place::InFlight => {}
            Place::Sacked => {
                self.sacked -= n;
                let (all, rest) = (entry.len().div_ceil(mss), (entry.len() - n).div_ceil(mss));
                self.sacked_segments = match self.sacked {
                    0 => 0,
                    _ => self.sacked_segments.saturating_sub(all - rest),
                };
            }
            Place::Lost => self.lost -= n,
        }
    }

    /// All of `entry` comes to the place where it now is.
    fn arrive(&mut self, entry: &Entry, mss: u32) {
        let n = entry.len();
        match entry.place {
            Place::InFlight if entry.sent.again => self.again += n,
            Place::InFlight => {}
            Place::Sacked => {
                self.sacked += n;
                self.sacked_segments += n.div_ceil(mss);
            }
            Place::Lost => self.lost += n,
        }
    }

    /// Moves an entry that is not SACKed and does not become so.
    fn put(&mut self, entry: &mut Entry, place: Place) {
        self.leave(entry, entry.len(), 1);
        entry.place = place;
        self.arrive(entry, 1);
    }
}

impl Busy {
    fn new(una: SeqNum) -> Busy {
        Busy {
            sent: VecDeque::new(),
            unsent: VecDeque::new(),
            unsent_octets: 0,
            sacked: RangeSet::new(),
            octets: Octets::default(),
            lost_from: una,
            log: VecDeque::new(),
            transmissions: 0,
            spell: Spell::new(una),
        }
    }

    fn transmission(&mut self, at: Instant, again: bool) -> Transmission {
        self.transmissions += 1;
        Transmission { number: self.transmissions, at, again, size: 0 }
    }

    /// First entry that ends after `at`.
    fn index_of(&self, at: SeqNum) -> usize {
        self.sent.partition_point(|e| e.end().at_or_before(at))
    }

    /// Makes `at` a border between entries.
    fn cut_at(&mut self, at: SeqNum) {
        let i = self.index_of(at);
        let Some(entry) = self.sent.get_mut(i) else { return };
        if !entry.seq.before(at) {
            return;
        }
        let n = at.since(entry.seq);
        if n >= entry.len() {
            return;
        }
        let rest = entry.split_off(n);
        self.sent.insert(i + 1, rest);
    }

    /// How long the first lost entry is (sequence space).
    fn first_lost(&mut self) -> Option<u32> {
        if self.octets.lost == 0 {
            return None;
        }
        let mut i = self.index_of(self.lost_from);
        while let Some(entry) = self.sent.get(i) {
            if entry.place == Place::Lost {
                self.lost_from = entry.seq;
                return Some(entry.len());
            }
            i += 1;
        }
        None
    }
}

impl Entry {
    fn len(&self) -> u32 {
        self.text.len() + u32::from(self.fin)
    }

    fn end(&self) -> SeqNum {
        self.seq + self.len()
    }

    fn lost(&self, now: Instant) -> Lost {
        Lost { now, number: self.sent.number, seq: self.seq, octets: self.len() }
    }
}

impl SendQueue {
    pub(super) fn new(una: SeqNum, path_mss: u16) -> SendQueue {
        SendQueue { una, nxt: una, fin: Fin::NotYet, path_mss, passed: 0, busy: None }
    }

    /// What is known about the octets at hand, while there are any.
    pub(super) fn spell(&self) -> Option<&Spell> {
        self.busy.as_ref().map(|busy| &busy.spell)
    }

    /// As [`SendQueue::spell`].
    pub(super) fn spell_mut(&mut self) -> Option<&mut Spell> {
        self.busy.as_mut().map(|busy| &mut busy.spell)
    }

    fn busy(&mut self) -> &mut Busy {
        let una = self.una;
        self.busy.get_or_insert_with(|| Box::new(Busy::new(una)))
    }

    /// Ends the spell if nothing is left of it.
    pub(super) fn rest(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.sent.is_empty() && busy.unsent.is_empty()) {
            self.busy = None;
        }
    }

    pub(super) fn una(&self) -> SeqNum {
        self.una
    }

    pub(super) fn nxt(&self) -> SeqNum {
        self.nxt
    }

    pub(super) fn fin(&self) -> Fin {
        self.fin
    }

    /// Octets pushed and not sent.
    pub(super) fn unsent(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.unsent_octets)
    }

    /// Octets of text pushed and not acknowledged.
    pub(super) fn queued(&self) -> u32 {
        // Once cleared, nothing is in flight, not even a FIN that was sent.
        let flight = self.flight().saturating_sub(u32::from(self.fin == Fin::Sent));
        flight + self.unsent()
    }

    /// SND.NXT - SND.UNA.
    pub(super) fn flight(&self) -> u32 {
        self.nxt.since(self.una)
    }

    /// RFC 6675 pipe: octets that are believed to be in the network.
    pub(super) fn pipe(&self) -> u32 {
        self.flight() - self.sacked() - self.lost()
    }

    pub(super) fn sacked(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.octets.sacked)
    }

    /// Segments that the peer holds beyond a hole.
    pub(super) fn sacked_segments(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.octets.sacked_segments)
    }

    /// Octets in flight that were sent more than once.
    pub(super) fn again(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.octets.again)
    }

    /// Octets lost and not sent again.
    pub(super) fn lost(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.octets.lost)
    }

    pub(super) fn push(&mut self, text: Chain, label: Label) {
        if text.is_empty() || self.fin != Fin::NotYet {
            return;
        }
        let busy = self.busy();
        busy.unsent_octets += text.len();
        if text.len() as usize <= SMALL
            && let Some(last) = busy.unsent.back_mut()
            && last.label == Label::PLAIN
            && label == Label::PLAIN
        {
            return last.text.collect(text);
        }
        busy.unsent.push_back(Chunk { text, label, offset: 0 });
    }

    pub(super) fn close(&mut self) {
        if self.fin == Fin::NotYet {
            self.fin = Fin::Queued;
        }
    }

    /// Octets that may go out in one piece, at most `limit`: plain chunks merge, labelled ones stand alone.
    pub(super) fn run(&self, limit: u32) -> u32 {
        let Some(busy) = &self.busy else { return 0 };
        let Some(first) = busy.unsent.front() else { return 0 };
        if first.label != Label::PLAIN {
            return first.text.len().min(limit);
        }
        let mut run = 0;
        for chunk in busy.unsent.iter().take_while(|c| c.label == Label::PLAIN) {
            run += chunk.text.len();
            if run >= limit {
                return limit;
            }
        }
        run
    }

    /// Where to cut for at most `n` octets.
    pub(super) fn cut_before(&self, n: u32, mss: u32) -> u32 {
        let unsent = self.busy.iter().flat_map(|busy| &busy.unsent);
        cut_before(unsent.flat_map(|chunk| chunk.text.parts()), n, mss)
    }

    /// Moves `n` octets (within one run), and the FIN if asked, from unsent to sent.
    pub(super) fn send(&mut self, n: u32, with_fin: bool, now: Instant) -> Piece {
        let seq = self.nxt;
        let busy = self.busy();
        let mut text = Chain::new();
        let (label, offset) =
            busy.unsent.front().map_or((Label::PLAIN, 0), |c| (c.label, c.offset));
        while text.len() < n {
            let Some(chunk) = busy.unsent.front_mut() else { break };
            let want = n - text.len();
            if want < chunk.text.len() {
                let rest = chunk.text.split_off(want);
                text.append(core::mem::replace(&mut chunk.text, rest));
                chunk.offset += want;
            } else if let Some(chunk) = busy.unsent.pop_front() {
                text.append(chunk.text);
            }
        }
        busy.unsent_octets -= text.len();
        let offset = if label == Label::PLAIN { 0 } else { offset };
        let sent = busy.transmission(now, false);
        let entry = Entry { seq, text, label, offset, fin: with_fin, place: Place::InFlight, sent };
        let (piece, end) = (entry.piece(), entry.end());
        busy.log.push_back(Record { seq, end, sent });
        busy.sent.push_back(entry);
        self.nxt = end;
        if with_fin {
            self.fin = Fin::Sent;
        }
        piece
    }

    /// Text that left with the SYN/ACK: in flight already.
    pub(super) fn adopt(&mut self, text: Chain, now: Instant) {
        let n = text.len();
        self.push(text, Label::PLAIN);
        if n > 0 {
            self.send(n, false, now);
        }
    }

    /// SEG.ACK between una and nxt: drops what is acknowledged. Returns octets of text among it.
    pub(super) fn ack(&mut self, ack: SeqNum, mss: u32, told: &mut impl OnDelivered) -> u32 {
        let mut octets = ack.since(self.una);
        self.una = ack;
        let Some(busy) = &mut self.busy else { return octets };
        while let Some(entry) = busy.sent.front_mut() {
            let (end, len) = (entry.end(), entry.len());
            if !entry.seq.before(ack) {
                break;
            }
            let covered = len.min(ack.since(entry.seq));
            busy.octets.leave(entry, covered, mss);
            if entry.place != Place::Sacked {
                told.on_delivered(&mut busy.spell, entry.sent, entry.seq + covered);
            }
            if ack.before(end) {
                entry.trim_front(covered);
                break;
            }
            if entry.fin {
                self.fin = Fin::Acked;
                octets -= 1;
            }
            busy.sent.pop_front();
        }
        busy.sacked.remove_before(ack);
        busy.lost_from = busy.lost_from.max(ack);
        while busy.log.front().is_some_and(|r| r.end.at_or_before(ack)) {
            busy.log.pop_front();
        }
        if busy.sent.is_empty() {
            busy.log.clear();
        }
        octets
    }

    /// Marks what a SACK block newly reports; returns octets. The block lies within una..nxt.
    pub(super) fn sack(&mut self, block: SackBlock, mss: u32, told: &mut impl OnDelivered) -> u32 {
        let Some(busy) = &mut self.busy else { return 0 };
        if busy.sacked.covers(block.left, block.right) {
            return 0;
        }
        let news: smallvec::SmallVec<[_; 4]> = busy.sacked.gaps(block.left, block.right).collect();
        let mut octets = 0;
        for (left, right) in news {
            busy.cut_at(left);
            busy.cut_at(right);
            let mut i = busy.index_of(left);
            while let Some(entry) = busy.sent.get_mut(i)
                && entry.seq.before(right)
            {
                busy.octets.leave(entry, entry.len(), mss);
                told.on_delivered(&mut busy.spell, entry.sent, entry.end());
                entry.place = Place::Sacked;
                busy.octets.arrive(entry, mss);
                octets += entry.len();
                i += 1;
            }
        }
        busy.sacked.insert(block.left, block.right);
        octets
    }

    /// The number of the last transmission; 0: none.
    pub(super) fn last_transmission(&self) -> u64 {
        self.busy.as_ref().map_or(0, |busy| busy.transmissions)
    }

    /// The number of the first transmission that may be under way or found lost.
    pub(super) fn oldest_transmission(&self) -> Option<u64> {
        self.busy.as_ref()?.log.front().map(|record| record.sent.number)
    }

    /// How long the first lost entry is (sequence space).
    pub(super) fn first_lost(&mut self) -> Option<u32> {
        self.busy.as_mut()?.first_lost()
    }

    /// Sends the first `n` octets of the first lost entry again.
    pub(super) fn resend_lost(&mut self, n: u32, now: Instant) -> Option<Piece> {
        let busy = self.busy.as_mut()?;
        busy.first_lost()?;
        let at = busy.lost_from;
        busy.cut_at(at + n);
        let i = busy.index_of(at);
        let sent = busy.transmission(now, true);
        let entry = busy.sent.get_mut(i)?;
        entry.sent = sent;
        busy.octets.put(entry, Place::InFlight);
        busy.log.push_back(Record { seq: entry.seq, end: entry.end(), sent });
        busy.lost_from = entry.end();
        Some(entry.piece())
    }

    /// Sends the last outstanding octets again, at most `n`: a tail loss probe (RFC 8985 7.3).
    pub(super) fn resend_tail(&mut self, n: u32, now: Instant) -> Option<Piece> {
        let busy = self.busy.as_mut()?;
        let last = busy.sent.back()?;
        if last.place != Place::InFlight {
            return None;
        }
        let len = last.len();
        if len > n {
            busy.cut_at(self.nxt - n);
        }
        let sent = busy.transmission(now, true);
        let entry = busy.sent.back_mut()?;
        busy.octets.leave(entry, entry.len(), 1);
        entry.sent = sent;
        busy.octets.arrive(entry, 1);
        busy.log.push_back(Record { seq: entry.seq, end: entry.end(), sent });
        Some(entry.piece())
    }

    /// Returns every frame to its pool.
    pub(super) fn clear(&mut self) {
        (self.una, self.busy) = (self.nxt, None);
    }

    /// Panics unless the entries cover una..nxt and the counters add up.
    #[cfg(any(test, fuzzing))]
    pub(super) fn assert_invariants(&self) {
        let Some(busy) = &self.busy else {
            assert_eq!(self.una, self.nxt, "what is in flight is forgotten");
            return;
        };
        let mut at = self.una;
        let (mut sacked, mut lost, mut again) = (0, 0, 0);
        for entry in &busy.sent {
            assert_eq!(entry.seq, at, "a gap in the send queue");
            assert!(entry.len() > 0);
            at = entry.end();
            match entry.place {
                Place::Sacked => sacked += entry.len(),
                Place::Lost => {
                    lost += entry.len();
                    assert!(busy.lost_from.at_or_before(entry.seq));
                }
                Place::InFlight if entry.sent.again => again += entry.len(),
                Place::InFlight => {}
            }
        }
        assert_eq!(at, self.nxt);
        let octets = busy.octets;
        assert_eq!((sacked, lost, again), (octets.sacked, octets.lost, octets.again));
        assert_eq!(busy.unsent.iter().map(|c| c.text.len()).sum::<u32>(), busy.unsent_octets);
        let covered: u64 = busy.sacked.iter().map(|(l, r)| u64::from(r.since(l))).sum();
        assert_eq!(covered, u64::from(sacked));
        busy.sacked.assert_invariants();
    }
}

impl Entry {
    fn piece(&self) -> Piece {
        Piece {
            seq: self.seq,
            text: self.text.clone(),
            label: self.label,
            offset: self.offset,
            fin: self.fin,
        }
    }

    /// Keeps the first `n` octets of sequence space; a FIN stays with the rest.
    fn split_off(&mut self, n: u32) -> Entry {
        let text = self.text.split_off(n.min(self.text.len()));
        let offset = if self.label == Label::PLAIN { 0 } else { self.offset + n };
        Entry {
            seq: self.seq + n,
            text,
            label: self.label,
            offset,
            fin: core::mem::take(&mut self.fin),
            place: self.place,
            sent: self.sent,
        }
    }

    fn trim_front(&mut self, n: u32) {
        *self = self.split_off(n);
    }
}
