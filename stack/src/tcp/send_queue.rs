//! What is to be sent and what was: send queue, retransmission queue and SACK scoreboard in one.
#![forbid(unsafe_code)]

mod sizes;

use super::recovery::Spell;
use super::{Label, RangeSet};
use crate::buf::{Chain, cut_before};
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
    sacked_octets: u32,
    lost_octets: u32,
    /// No lost entry lies before it.
    lost_from: SeqNum,
    log: VecDeque<Record>,
    transmissions: u64,
    spell: Spell,
}

impl Busy {
    fn new(una: SeqNum) -> Busy {
        Busy {
            sent: VecDeque::new(),
            unsent: VecDeque::new(),
            unsent_octets: 0,
            sacked: RangeSet::new(),
            sacked_octets: 0,
            lost_octets: 0,
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

    fn mark_lost(entry: &mut Entry, lost_octets: &mut u32, lost_from: &mut SeqNum) {
        if entry.place == Place::InFlight {
            entry.place = Place::Lost;
            *lost_octets += entry.len();
            *lost_from = lost_from.min(entry.seq);
        }
    }

    fn forget_sack(&mut self, una: SeqNum) {
        for entry in self.sent.iter_mut().filter(|e| e.place == Place::Sacked) {
            entry.place = Place::Lost;
            self.lost_octets += entry.len();
        }
        self.sacked.clear();
        self.sacked_octets = 0;
        self.lost_from = una;
    }

    /// How long the first lost entry is (sequence space).
    fn first_lost(&mut self) -> Option<u32> {
        if self.lost_octets == 0 {
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
        self.busy.as_ref().map_or(0, |busy| busy.sacked_octets)
    }

    /// Octets lost and not sent again.
    pub(super) fn lost(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.lost_octets)
    }

    pub(super) fn push(&mut self, text: Chain, label: Label) {
        if text.is_empty() || self.fin != Fin::NotYet {
            return;
        }
        let busy = self.busy();
        busy.unsent_octets += text.len();
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
    pub(super) fn ack(&mut self, ack: SeqNum, told: &mut impl OnDelivered) -> u32 {
        let mut octets = ack.since(self.una);
        self.una = ack;
        let Some(busy) = &mut self.busy else { return octets };
        while let Some(entry) = busy.sent.front_mut() {
            let (end, len) = (entry.end(), entry.len());
            if !entry.seq.before(ack) {
                break;
            }
            let covered = len.min(ack.since(entry.seq));
            match entry.place {
                Place::InFlight => {
                    told.on_delivered(&mut busy.spell, entry.sent, entry.seq + covered);
                }
                Place::Sacked => busy.sacked_octets -= covered,
                Place::Lost => {
                    told.on_delivered(&mut busy.spell, entry.sent, entry.seq + covered);
                    busy.lost_octets -= covered;
                }
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
    pub(super) fn sack(&mut self, block: SackBlock, told: &mut impl OnDelivered) -> u32 {
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
                let len = entry.len();
                if entry.place == Place::Lost {
                    busy.lost_octets -= len;
                }
                told.on_delivered(&mut busy.spell, entry.sent, entry.end());
                entry.place = Place::Sacked;
                octets += len;
                i += 1;
            }
        }
        busy.sacked.insert(block.left, block.right);
        busy.sacked_octets += octets;
        octets
    }

    /// RACK: marks lost what was sent before (`newest`, `newest_end`) and more than `patience` ago (RFC 8985 6.2
    /// step 5). Returns when the next will be, if one is waiting only for time.
    pub(super) fn lose_older(
        &mut self,
        newest: u64,
        newest_end: SeqNum,
        patience: core::time::Duration,
        now: Instant,
    ) -> Option<Instant> {
        let busy = self.busy.as_mut()?;
        while let Some(record) = busy.log.front() {
            if record.sent.number > newest {
                return None;
            }
            let due = record.sent.at + patience;
            let (start, end, number) = (record.seq, record.end, record.sent.number);
            let mut i = busy.index_of(start);
            let (mut waiting, mut stays) = (false, false);
            while let Some(entry) = busy.sent.get_mut(i)
                && entry.seq.before(end)
            {
                i += 1;
                if entry.sent.number != number || entry.place != Place::InFlight {
                    continue;
                }
                if number == newest && !entry.end().before(newest_end) {
                    stays = true;
                } else if due <= now {
                    Busy::mark_lost(entry, &mut busy.lost_octets, &mut busy.lost_from);
                } else {
                    waiting = true;
                }
            }
            if waiting {
                return Some(due);
            }
            if stays {
                return None;
            }
            busy.log.pop_front();
        }
        None
    }

    /// At a timeout: the first outstanding entry and all sent more than `patience` ago (RFC 8985 6.3).
    pub(super) fn lose_at_timeout(&mut self, patience: core::time::Duration, now: Instant) {
        let Some(busy) = &mut self.busy else { return };
        if busy.sent.front().is_some_and(|e| e.place == Place::Sacked) {
            busy.forget_sack(self.una); // RFC 2018 8: the receiver went back on its word
        }
        if let Some(first) = busy.sent.iter_mut().find(|e| e.place != Place::Sacked) {
            Busy::mark_lost(first, &mut busy.lost_octets, &mut busy.lost_from);
        }
        for entry in &mut busy.sent {
            if entry.sent.at + patience <= now {
                Busy::mark_lost(entry, &mut busy.lost_octets, &mut busy.lost_from);
            }
        }
    }

    /// The timeout was spurious: what is marked lost is in the network after all (RFC 4015).
    pub(super) fn unlose(&mut self) {
        let Some(busy) = &mut self.busy else { return };
        for entry in busy.sent.iter_mut().filter(|e| e.place == Place::Lost) {
            entry.place = Place::InFlight;
        }
        busy.lost_octets = 0;
    }

    /// Without SACK: the first `n` octets are lost (RFC 6582).
    pub(super) fn lose_first(&mut self, n: u32) {
        let Some(busy) = &mut self.busy else { return };
        busy.cut_at(self.una + n);
        if let Some(first) = busy.sent.front_mut() {
            Busy::mark_lost(first, &mut busy.lost_octets, &mut busy.lost_from);
        }
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
        busy.lost_octets -= entry.len();
        entry.place = Place::InFlight;
        entry.sent = sent;
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
        entry.sent = sent;
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
        let (mut sacked, mut lost) = (0, 0);
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
                Place::InFlight => {}
            }
        }
        assert_eq!(at, self.nxt);
        assert_eq!((sacked, lost), (busy.sacked_octets, busy.lost_octets));
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
