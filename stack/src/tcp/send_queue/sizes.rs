//! How long the segments in flight are, and which of them are lost for being too long.
#![forbid(unsafe_code)]

use super::{Entry, Place, SendQueue};
use crate::wire::SeqNum;

impl SendQueue {
    /// The octets at `seq` went out just now in segments of at most `size` octets.
    pub(in crate::tcp) fn note_size(&mut self, seq: SeqNum, size: u16) {
        let Some(busy) = &mut self.busy else { return };
        let i = match busy.sent.back() {
            Some(last) if last.seq == seq => busy.sent.len() - 1,
            _ => busy.index_of(seq),
        };
        if let Some(entry) = busy.sent.get_mut(i) {
            entry.sent.size = size;
        }
    }

    fn at(&self, seq: SeqNum) -> Option<&Entry> {
        let busy = self.busy.as_ref().filter(|_| seq.within(self.una, self.nxt))?;
        busy.sent.get(busy.index_of(seq))
    }

    /// How long the segment at `seq` was, if it is not known to have arrived.
    pub(in crate::tcp) fn size_in_flight(&self, seq: SeqNum) -> Option<u16> {
        self.at(seq).filter(|entry| entry.place != Place::Sacked).map(|entry| entry.sent.size)
    }

    /// Whether the octet at `seq` is lost and not sent again.
    pub(in crate::tcp) fn is_lost(&self, seq: SeqNum) -> bool {
        self.at(seq).is_some_and(|entry| entry.place == Place::Lost)
    }

    /// Octets between `start` and `end` that are lost.
    pub(in crate::tcp) fn lost_within(&self, start: SeqNum, end: SeqNum) -> u32 {
        let Some(busy) = &self.busy else { return 0 };
        let entries = busy.sent.range(busy.index_of(start)..);
        let inside = entries.take_while(|entry| entry.seq.before(end));
        inside.filter(|entry| entry.place == Place::Lost).map(Entry::len).sum()
    }

    /// Everything between `start` and `end` that has not arrived is lost.
    pub(in crate::tcp) fn lose_range(&mut self, start: SeqNum, end: SeqNum) {
        let Some(busy) = &mut self.busy else { return };
        busy.cut_at(end);
        let first = busy.index_of(start);
        for entry in busy.sent.range_mut(first..).take_while(|entry| entry.seq.before(end)) {
            busy.octets.mark_lost(entry, &mut busy.lost_from);
        }
    }

    /// What is in flight in segments of more than `size` octets is lost.
    pub(in crate::tcp) fn lose_larger(&mut self, size: u16) {
        let Some(busy) = &mut self.busy else { return };
        for entry in busy.sent.iter_mut().filter(|entry| entry.sent.size > size) {
            busy.octets.mark_lost(entry, &mut busy.lost_from);
        }
    }
}
