//! A hierarchical timing wheel. Entries are never cancelled, only found early.
//!
//! Whoever needs a deadline inserts a key; when it comes out, the owner looks whether there is something to do and, if
//! the deadline moved, inserts it again. Moving a deadline later therefore costs nothing until the old one passes.
#![forbid(unsafe_code)]

use crate::blocks::{BlockQueue, BlockVec};
use crate::time::Instant;
use alloc::vec::Vec;

/// A tick is 2^16 ns, 65.5 microseconds: two 1,500-octet packets at 366 Mbit/s, and well below the reordering windows of
/// RACK (a quarter of the minimum RTT).
const TICK_SHIFT: u32 = 16;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 48 bits of ticks: all that an [`Instant`] can say.
const LEVELS: usize = 8;
const LAST_TICK: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;

/// Deadlines by key. Nothing comes out early; late by at most one tick (plus how late `expire` is called, and how often
/// it may move entries).
#[derive(Debug)]
pub struct Wheel<K> {
    levels: [Level<K>; LEVELS],
    /// The tick up to which everything has come out.
    elapsed: u64,
    /// What was due when it was inserted, in order of insertion.
    due: BlockQueue<K>,
    /// Level and slot that are being emptied. Nothing enters that slot: `elapsed` is its first tick.
    emptying: Option<(usize, usize)>,
    len: usize,
}

/// 64 slots of 64^level ticks each.
#[derive(Debug)]
struct Level<K> {
    slots: [BlockVec<Entry<K>>; SLOTS],
    /// Bit i: slot i holds something, and is not being emptied.
    occupied: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry<K> {
    key: K,
    tick: u64,
}

/// The first tick at or after `at`.
fn tick_at_or_after(at: Instant) -> u64 {
    let (ticks, part) = (at.as_nanos() >> TICK_SHIFT, at.as_nanos() & ((1 << TICK_SHIFT) - 1));
    (ticks + u64::from(part > 0)).min(LAST_TICK)
}

/// The slot of `tick` on `level`.
fn slot_of(tick: u64, level: usize) -> usize {
    (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS
}

impl<K: Copy> Wheel<K> {
    /// An empty wheel at the clock's origin.
    pub fn new() -> Wheel<K> {
        Wheel {
            levels: core::array::from_fn(|_| Level {
                slots: core::array::from_fn(|_| BlockVec::new()),
                occupied: 0,
            }),
            elapsed: 0,
            due: BlockQueue::new(),
            emptying: None,
            len: 0,
        }
    }

    /// How many entries are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets `key` come out of the first [`Wheel::expire`] at or after `at` (rounded up to a tick). The same key may be in
    /// the wheel many times; each comes out.
    pub fn insert(&mut self, key: K, at: Instant) {
        self.len += 1;
        self.place(Entry { key, tick: tick_at_or_after(at) });
    }

    fn place(&mut self, entry: Entry<K>) {
        if entry.tick <= self.elapsed {
            self.due.push_back(entry.key);
            return;
        }
        // The level of the highest digit in which the deadline differs from now: all digits above agree, so on its level
        // the slot lies strictly ahead, and a lower level always empties before a higher one.
        let highest_bit = 63 - (entry.tick ^ self.elapsed).leading_zeros();
        let level_index = (highest_bit / SLOT_BITS) as usize;
        let slot = slot_of(entry.tick, level_index);
        let Some(level) = self.levels.get_mut(level_index) else { return };
        level.occupied |= 1 << slot;
        level.slots[slot].push(entry);
    }

    /// Moves keys whose time has come to the end of `out`: by tick, within one tick in no particular order. After `moves`
    /// moves of an entry (one brings it to a lower level or out) the rest stays for the next call; `next_deadline` is not
    /// after `now` then.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<K>, moves: usize) {
        let now = (now.as_nanos() >> TICK_SHIFT).min(LAST_TICK);
        let mut left = moves;
        while left > 0 {
            if let Some(key) = self.due.pop_front() {
                out.push(key);
                self.len -= 1;
                left -= 1;
            } else if let Some((level, slot)) = self.emptying {
                let entries = &mut self.levels[level].slots[slot];
                let entry = entries.pop();
                if entries.is_empty() {
                    self.emptying = None;
                }
                if let Some(entry) = entry {
                    self.place(entry);
                    left -= 1;
                }
            } else if let Some((level, slot, start)) = self.next_slot()
                && start <= now
            {
                self.elapsed = start;
                self.emptying = Some((level, slot));
                self.levels[level].occupied &= !(1 << slot);
            } else {
                self.elapsed = self.elapsed.max(now);
                return;
            }
        }
    }

    /// No entry comes out before this; `None` if there is none. May lie before the earliest deadline (an entry far away is
    /// known by its slot only): whoever waits until then and expires gets nothing, and a better bound.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.due.is_empty() || self.emptying.is_some() {
            return Some(Instant::from_nanos(self.elapsed << TICK_SHIFT));
        }
        self.next_slot().map(|(_, _, start)| Instant::from_nanos(start << TICK_SHIFT))
    }

    /// Level, slot and first tick of the slot that is next to be emptied.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let index = self.levels.iter().position(|l| l.occupied != 0)?;
        let slot = self.levels[index].occupied.trailing_zeros() as usize;
        let shift = SLOT_BITS * index as u32;
        let above = self.elapsed >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        Some((index, slot, above | (slot as u64) << shift))
    }
}

impl<K: Copy> Default for Wheel<K> {
    fn default() -> Wheel<K> {
        Wheel::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const TICK: u64 = 1 << TICK_SHIFT;

    fn expire(wheel: &mut Wheel<u32>, now: Instant) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.expire(now, &mut out, usize::MAX);
        out
    }

    #[test]
    fn an_entry_comes_out_at_its_tick_and_never_before() {
        let mut wheel = Wheel::new();
        let at = Instant::from_micros(1_000);
        wheel.insert(1, at);
        assert!(wheel.next_deadline().unwrap() <= at + Duration::from_nanos(TICK));
        assert!(expire(&mut wheel, at - Duration::from_nanos(1)).is_empty());
        assert_eq!(expire(&mut wheel, at + Duration::from_nanos(TICK)), [1]);
        assert!(wheel.is_empty() && wheel.next_deadline().is_none());
    }

    #[test]
    fn what_is_due_when_inserted_comes_out_at_once() {
        let mut wheel = Wheel::new();
        let now = Instant::from_millis(5);
        assert!(expire(&mut wheel, now).is_empty());
        wheel.insert(1, Instant::ZERO);
        assert!(wheel.next_deadline().unwrap() <= now);
        assert_eq!(expire(&mut wheel, now), [1]);
    }

    #[test]
    fn the_far_future_has_its_place() {
        let mut wheel = Wheel::new();
        wheel.insert(1, Instant::from_nanos(u64::MAX));
        wheel.insert(2, Instant::from_nanos(1 << 63));
        assert_eq!(expire(&mut wheel, Instant::from_nanos((1 << 63) + TICK)), [2]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn waiting_for_the_bound_reaches_every_entry_in_few_steps() {
        let mut wheel = Wheel::new();
        wheel.insert(1, Instant::from_nanos(3_600_000_000_123));
        let mut steps = 0;
        while let Some(at) = wheel.next_deadline() {
            expire(&mut wheel, at);
            steps += 1;
        }
        assert!(steps <= LEVELS, "{steps}");
    }

    #[test]
    fn a_crowd_in_one_slot_leaves_in_bounded_steps_and_takes_its_memory_along() {
        const CROWD: u32 = 20_000;
        const MOVES: usize = 256;
        let mut wheel = Wheel::new();
        let at = Instant::from_millis(60_000);
        (0..CROWD).for_each(|key| wheel.insert(key, at));
        let (mut out, mut calls) = (Vec::new(), 0);
        while wheel.next_deadline().is_some_and(|bound| bound <= at + Duration::from_nanos(TICK)) {
            let before = out.len();
            wheel.expire(at + Duration::from_nanos(TICK), &mut out, MOVES);
            assert!(out.len() - before <= MOVES);
            calls += 1;
        }
        out.sort();
        assert!(out.iter().copied().eq(0..CROWD));
        // Down from the fourth level, and out: a move each.
        assert!(calls <= 5 * CROWD as usize / MOVES + 1, "{calls}");
        assert!(wheel.levels.iter().flat_map(|l| &l.slots).all(|slot| slot.capacity() <= 64));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Pass(u64),
        /// To the next deadline.
        Wait,
        /// At most so many moves from now on.
        Limit(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Spans over all levels: a random number of random bits.
        let span = || (0u32..50, any::<u64>()).prop_map(|(bits, n)| n & ((1 << bits) - 1));
        prop_oneof![
            3 => span().prop_map(Step::Insert),
            1 => span().prop_map(Step::Pass),
            1 => Just(Step::Wait),
            1 => prop_oneof![1..20usize, Just(usize::MAX)].prop_map(Step::Limit),
        ]
    }

    proptest! {
        #[test]
        fn it_equals_a_naive_list(steps in vec(step(), 1..120)) {
            let mut wheel = Wheel::new();
            let mut model: Vec<(u32, Instant)> = Vec::new();
            let mut now = Instant::ZERO;
            let mut moves = usize::MAX;
            for (key, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(after) => {
                        let at = now + Duration::from_nanos(after);
                        wheel.insert(key as u32, at);
                        model.push((key as u32, at));
                        continue;
                    }
                    Step::Pass(by) => now += Duration::from_nanos(by),
                    Step::Wait => now = wheel.next_deadline().map_or(now, |at| at.max(now)),
                    Step::Limit(limit) => moves = limit,
                }
                if let Some(bound) = wheel.next_deadline() {
                    let tick = Duration::from_nanos(TICK);
                    prop_assert!(model.iter().all(|(_, at)| bound < *at + tick));
                }
                let mut out = Vec::new();
                wheel.expire(now, &mut out, moves);
                prop_assert!(out.len() <= moves);
                for key in &out {
                    let at = model.iter().find(|(k, _)| k == key).unwrap().1;
                    prop_assert!(at <= now, "early");
                }
                model.retain(|(key, _)| !out.contains(key));
                out.sort();
                prop_assert!(out.windows(2).all(|w| w[0] != w[1]), "twice");
                let late = |at: &Instant| *at + Duration::from_nanos(TICK) <= now;
                let unfinished = wheel.next_deadline().is_some_and(|bound| bound <= now);
                prop_assert!(!unfinished || moves < usize::MAX);
                prop_assert!(unfinished || !model.iter().any(|(_, at)| late(at)), "more than a tick late");
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
