//! What of the send queue is lost, and what is not after all (RFC 8985 6.2, 6.3; RFC 6582; RFC 4015).
#![forbid(unsafe_code)]

use super::{Busy, Entry, Octets, Place, Record, SendQueue};
use crate::tcp::congestion::Congestion;
use crate::time::{Duration, Instant};
use crate::wire::SeqNum;
use alloc::vec::Vec;

/// Whether the receiver went back on what it had SACKed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::tcp) enum Renege {
    No,
    Yes,
}

impl Octets {
    pub(super) fn mark_lost(&mut self, entry: &mut Entry, lost_from: &mut SeqNum) {
        if entry.place == Place::InFlight {
            self.relost += u32::from(entry.sent.again);
            self.put(entry, Place::Lost);
            *lost_from = (*lost_from).min(entry.seq);
        }
    }
}

impl Busy {
    /// RFC 2018 8: what was SACKed is as unknown as the rest.
    fn forget_sack(&mut self, una: SeqNum) {
        for entry in self.sent.iter_mut().filter(|e| e.place == Place::Sacked) {
            self.octets.put(entry, Place::Lost);
        }
        self.sacked.clear();
        self.octets.sacked_segments = 0;
        self.lost_from = una;
    }

    /// Records again what is in flight once more: [`SendQueue::lose_older`] had done with it.
    fn record_again(&mut self, mut found: Vec<Record>) {
        let first = self.log.front().map_or(u64::MAX, |record| record.sent.number);
        found.retain(|record| record.sent.number < first);
        found.sort_unstable_by_key(|record| (record.sent.number, record.seq.0));
        for record in found.into_iter().rev() {
            self.log.push_front(record);
        }
    }
}

impl SendQueue {
    /// RACK: marks lost what was sent before (`newest`, `newest_end`) and more than `patience` ago (RFC 8985 6.2
    /// step 5). Returns when the next will be, if one is waiting only for time.
    pub(in crate::tcp) fn lose_older(
        &mut self,
        newest: u64,
        newest_end: SeqNum,
        patience: Duration,
        now: Instant,
        told: &mut Congestion,
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
                    busy.octets.mark_lost(entry, &mut busy.lost_from);
                    told.on_lost(entry.lost(now));
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
    pub(in crate::tcp) fn lose_at_timeout(
        &mut self,
        patience: Duration,
        now: Instant,
        told: &mut Congestion,
    ) -> Renege {
        let renege = self.reneged();
        let Some(busy) = &mut self.busy else { return renege };
        if renege == Renege::Yes {
            busy.forget_sack(self.una);
        }
        let first = busy.sent.iter().position(|e| e.place != Place::Sacked);
        for (i, entry) in busy.sent.iter_mut().enumerate() {
            let late = Some(i) == first || entry.sent.at + patience <= now;
            if late && entry.place == Place::InFlight {
                busy.octets.mark_lost(entry, &mut busy.lost_from);
                told.on_lost(entry.lost(now));
            }
        }
        renege
    }

    /// Whether una stands at what the peer had SACKed: it threw it away (RFC 2018 8).
    pub(in crate::tcp) fn reneged(&self) -> Renege {
        let first = self.busy.as_ref().and_then(|busy| busy.sent.front());
        match first {
            Some(entry) if entry.place == Place::Sacked => Renege::Yes,
            _ => Renege::No,
        }
    }

    /// It was no loss: what is marked lost is in the network after all (RFC 4015 3.2 step 5).
    pub(in crate::tcp) fn unlose(&mut self) {
        let Some(busy) = &mut self.busy else { return };
        let mut found = Vec::new();
        for entry in busy.sent.iter_mut().filter(|e| e.place == Place::Lost) {
            busy.octets.put(entry, Place::InFlight);
            found.push(Record { seq: entry.seq, end: entry.end(), sent: entry.sent });
        }
        busy.record_again(found);
    }

    /// Without SACK: the first `n` octets are lost (RFC 6582).
    pub(in crate::tcp) fn lose_first(&mut self, n: u32) {
        let Some(busy) = &mut self.busy else { return };
        busy.cut_at(self.una + n);
        if let Some(first) = busy.sent.front_mut() {
            busy.octets.mark_lost(first, &mut busy.lost_from);
        }
    }

    /// Whether the first octets in flight were sent more than once.
    pub(in crate::tcp) fn first_was_resent(&self) -> bool {
        let first = self.busy.as_ref().and_then(|busy| busy.sent.front());
        first.is_some_and(|entry| entry.sent.again)
    }

    /// How many times something that had been sent again was lost once more.
    pub(in crate::tcp) fn relost(&self) -> u32 {
        self.busy.as_ref().map_or(0, |busy| busy.octets.relost)
    }
}
