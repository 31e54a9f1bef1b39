//! Flows in TIME-WAIT: a small, bounded slab of their own.
#![forbid(unsafe_code)]

use crate::blocks::BlockVec;
use crate::tcp::TimeWait;
use crate::time::Instant;
use crate::wire::Segment;

/// The flow itself is in the flow table only: its hash leads there.
struct Slot {
    hash: u64,
    /// `None`: the slot is free.
    state: Option<TimeWait>,
    /// The neighbour in the line that is nearer to its end. [`NONE`]: this is the first.
    before: u32,
    /// The neighbour that is farther from it; of a free slot the next free one. [`NONE`]: this is the last.
    after: u32,
}

const NONE: u32 = u32::MAX;

/// More than memory holds; a flow table tells slots from shards by their highest bit.
const MAX: u32 = 1 << 31;

/// What a flow costs while nobody uses it any more, its 20 octets in the flow table apart.
const _: () = assert!(size_of::<Slot>() <= 56);

/// A slot that is free again, and where the flow table has its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gone {
    pub slot: u32,
    pub hash: u64,
}

/// The slab. When it is full the oldest makes room: TIME-WAIT protects, but is not owed to anybody.
pub(super) struct TimeWaitSlab {
    slots: BlockVec<Slot>,
    free: u32,
    /// Both ends of a line in order of (last) arrival: nearly the order of expiry, and late is harmless.
    first: u32,
    last: u32,
    len: u32,
    max: u32,
}

impl TimeWaitSlab {
    pub fn new(max: u32) -> TimeWaitSlab {
        let slots = BlockVec::new();
        TimeWaitSlab { slots, free: NONE, first: NONE, last: NONE, len: 0, max: max.clamp(1, MAX) }
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Adds; returns the slot, and who had to go for it.
    pub fn insert(&mut self, hash: u64, state: TimeWait) -> (u32, Option<Gone>) {
        let evicted = if self.len >= self.max { self.remove(self.first) } else { None };
        let new = Slot { hash, state: Some(state), before: NONE, after: NONE };
        let index = match self.slots.get_mut(self.free as usize) {
            Some(slot) => {
                let index = core::mem::replace(&mut self.free, slot.after);
                *slot = new;
                index
            }
            None => {
                self.slots.push(new);
                (self.slots.len() - 1) as u32
            }
        };
        self.len += 1;
        self.link_last(index);
        (index, evicted)
    }

    /// [`TimeWait::admits`].
    pub fn admits(&self, index: u32, syn: &Segment) -> bool {
        self.at(index).is_some_and(|state| state.admits(syn))
    }

    /// [`TimeWait::on_segment`].
    pub fn on_segment(&mut self, index: u32, segment: &Segment, now: Instant) -> Option<Segment> {
        let state = self.slots.get_mut(index as usize)?.state.as_mut()?;
        let before = state.deadline();
        let reply = state.on_segment(segment, now);
        if state.deadline() != before {
            self.unlink(index);
            self.link_last(index);
        }
        reply
    }

    pub fn remove(&mut self, index: u32) -> Option<Gone> {
        self.at(index)?;
        self.unlink(index);
        let slot = self.slots.get_mut(index as usize)?;
        slot.state = None;
        slot.after = core::mem::replace(&mut self.free, index);
        self.len -= 1;
        Some(Gone { slot: index, hash: slot.hash })
    }

    /// Removes one whose time has come.
    pub fn pop_expired(&mut self, now: Instant) -> Option<Gone> {
        if self.at(self.first)?.expired(now) { self.remove(self.first) } else { None }
    }

    /// When `pop_expired` should be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.at(self.first).map(TimeWait::deadline)
    }

    fn at(&self, index: u32) -> Option<&TimeWait> {
        self.slots.get(index as usize)?.state.as_ref()
    }

    fn link_last(&mut self, index: u32) {
        let before = core::mem::replace(&mut self.last, index);
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.after = index,
            None => self.first = index,
        }
        if let Some(slot) = self.slots.get_mut(index as usize) {
            (slot.before, slot.after) = (before, NONE);
        }
    }

    fn unlink(&mut self, index: u32) {
        let Some(&Slot { before, after, .. }) = self.slots.get(index as usize) else { return };
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.after = after,
            None => self.first = after,
        }
        match self.slots.get_mut(after as usize) {
            Some(slot) => slot.before = before,
            None => self.last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Chain;
    use crate::time::Duration;
    use crate::wire::{Control, Options, SegmentOptions, SeqNum, UnscaledWindow};
    use alloc::vec::Vec;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const LINGER: Duration = Duration::from_millis(50);
    const RCV_NXT: SeqNum = SeqNum(11);

    fn segment(control: Control, seq: u32) -> Segment {
        Segment {
            seq: SeqNum(seq),
            ack: Some(SeqNum(0)),
            control,
            push: false,
            window: UnscaledWindow(0),
            options: Options::Segment(SegmentOptions::default()),
            text: Chain::new(),
            ..Default::default()
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn insert(slab: &mut TimeWaitSlab, hash: u64, now: Instant) -> (u32, Option<Gone>) {
        slab.insert(hash, TimeWait::for_test(RCV_NXT, LINGER, now))
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut slab = TimeWaitSlab::new(2);
        let (a, _) = insert(&mut slab, 1, at(0));
        let (b, none) = insert(&mut slab, 2, at(1));
        assert_eq!(none, None);
        assert_eq!(insert(&mut slab, 3, at(2)).1, Some(Gone { slot: a, hash: 1 }));
        assert_eq!(insert(&mut slab, 4, at(3)).1, Some(Gone { slot: b, hash: 2 }));
        assert_eq!(slab.len(), 2);
    }

    #[test]
    fn a_fin_that_comes_again_goes_to_the_end_of_the_line_and_other_segments_do_not() {
        let mut slab = TimeWaitSlab::new(9);
        let (a, _) = insert(&mut slab, 1, at(0));
        let (b, _) = insert(&mut slab, 2, at(10));
        assert!(slab.on_segment(a, &segment(Control::Fin, 10), at(20)).is_some());
        assert!(slab.on_segment(b, &segment(Control::Fin, 7), at(30)).is_some());
        assert!(slab.on_segment(b, &segment(Control::Rst, 10), at(30)).is_none(), "RFC 1337");
        assert!(
            !slab.admits(b, &segment(Control::Syn, 5))
                && slab.admits(b, &segment(Control::Syn, 12))
        );
        assert_eq!((slab.deadline(), slab.pop_expired(at(59))), (Some(at(60)), None));
        assert_eq!(slab.pop_expired(at(60)), Some(Gone { slot: b, hash: 2 }));
        assert_eq!((slab.deadline(), slab.pop_expired(at(69))), (Some(at(70)), None));
        assert_eq!(slab.pop_expired(at(70)), Some(Gone { slot: a, hash: 1 }));
        assert_eq!((slab.deadline(), slab.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn it_equals_a_list(steps in vec((0..6u8, any::<usize>()), 1..200)) {
            const MAX: usize = 12;
            let mut slab = TimeWaitSlab::new(MAX as u32);
            // Slot, hash, expiry: in order of arrival.
            let mut model: Vec<(u32, u64, Instant)> = Vec::new();
            let mut now = at(0);
            for (i, (step, pick)) in steps.into_iter().enumerate() {
                let index = pick.checked_rem(model.len());
                match (step, index) {
                    (0 | 1, _) => {
                        let oldest = (model.len() == MAX).then(|| model.remove(0));
                        let (slot, gone) = insert(&mut slab, i as u64, now);
                        prop_assert_eq!(gone, oldest.map(|(slot, hash, _)| Gone { slot, hash }));
                        prop_assert!(model.iter().all(|(s, ..)| *s != slot));
                        model.push((slot, i as u64, now + LINGER));
                    }
                    (2, Some(index)) => {
                        let (slot, hash, until) = model[index];
                        slab.on_segment(slot, &segment(Control::Fin, 10), now);
                        if until != now + LINGER {
                            model.remove(index);
                            model.push((slot, hash, now + LINGER));
                        }
                    }
                    (3, Some(index)) => {
                        let (slot, hash, _) = model.remove(index);
                        prop_assert_eq!(slab.remove(slot), Some(Gone { slot, hash }));
                        prop_assert_eq!(slab.remove(slot), None);
                    }
                    (4, _) => {
                        let first = model.first().copied().filter(|(_, _, until)| *until <= now);
                        model.drain(..usize::from(first.is_some()));
                        let gone = first.map(|(slot, hash, _)| Gone { slot, hash });
                        prop_assert_eq!(slab.pop_expired(now), gone);
                    }
                    _ => now += Duration::from_millis(pick as u64 % 30),
                }
                prop_assert_eq!(slab.len(), model.len());
                prop_assert_eq!(slab.deadline(), model.first().map(|(_, _, until)| *until));
                prop_assert!(slab.slots.len() <= MAX);
            }
        }
    }
}
