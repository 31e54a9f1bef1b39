//! Sets of sequence ranges: what arrived out of order, what the peer reported by SACK.
#![forbid(unsafe_code)]

use crate::wire::{Dsn, SeqNum};
use alloc::vec::Vec;

/// A modular sequence space: octets of a TCP flow or of an MPTCP connection.
pub trait Sequence: Copy + PartialEq + core::fmt::Debug {
    /// Strictly before `other`.
    fn is_before(self, other: Self) -> bool;
    /// Octets from `earlier`, which is at or before `self`.
    fn distance_from(self, earlier: Self) -> u64;
    /// `n` octets later.
    fn advanced(self, n: u64) -> Self;
}

impl Sequence for SeqNum {
    fn is_before(self, other: SeqNum) -> bool {
        self.before(other)
    }
    fn distance_from(self, earlier: SeqNum) -> u64 {
        u64::from(self.since(earlier))
    }
    fn advanced(self, n: u64) -> SeqNum {
        self + n as u32
    }
}

impl Sequence for Dsn {
    fn is_before(self, other: Dsn) -> bool {
        self.before(other)
    }
    fn distance_from(self, earlier: Dsn) -> u64 {
        self.since(earlier)
    }
    fn advanced(self, n: u64) -> Dsn {
        self + n
    }
}

/// Disjoint ranges `start..end` in order, none empty, none touching the next. All lie within half the sequence space.
#[derive(Clone, Debug)]
pub struct RangeSet<S> {
    ranges: Vec<(S, S)>,
}

impl<S> Default for RangeSet<S> {
    fn default() -> Self {
        RangeSet { ranges: Vec::new() }
    }
}

impl<S: Sequence> RangeSet<S> {
    /// The empty set.
    pub fn new() -> Self {
        RangeSet::default()
    }

    /// How many ranges.
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (S, S)> + '_ {
        self.ranges.iter().copied()
    }

    /// The range that holds `at`.
    pub fn find(&self, at: S) -> Option<(S, S)> {
        let i = self.ranges.partition_point(|r| !at.is_before(r.1));
        self.ranges.get(i).copied().filter(|r| !at.is_before(r.0))
    }

    /// Whether all of `start..end` is in the set.
    pub fn covers(&self, start: S, end: S) -> bool {
        !start.is_before(end) || self.find(start).is_some_and(|r| !r.1.is_before(end))
    }

    /// Whether `start..end` touches none of the ranges.
    pub fn is_apart(&self, start: S, end: S) -> bool {
        let i = self.ranges.partition_point(|r| r.1.is_before(start));
        self.ranges.get(i).is_none_or(|r| end.is_before(r.0))
    }

    /// Adds `start..end`; returns how many octets were new.
    pub fn insert(&mut self, start: S, end: S) -> u64 {
        if !start.is_before(end) {
            return 0;
        }
        let first = self.ranges.partition_point(|r| r.1.is_before(start));
        let mut last = first;
        let (mut lo, mut hi, mut known) = (start, end, 0);
        while let Some(&(s, e)) = self.ranges.get(last) {
            if end.is_before(s) {
                break;
            }
            if s.is_before(lo) {
                lo = s;
            }
            if hi.is_before(e) {
                hi = e;
            }
            let from = if s.is_before(start) { start } else { s };
            let to = if end.is_before(e) { end } else { e };
            if from.is_before(to) {
                known += to.distance_from(from);
            }
            last += 1;
        }
        if last == first + 1 {
            self.ranges[first] = (lo, hi);
        } else {
            self.ranges.splice(first..last, [(lo, hi)]);
        }
        end.distance_from(start) - known
    }

    /// The parts of `start..end` that are not in the set, in order.
    pub fn gaps(&self, start: S, end: S) -> impl Iterator<Item = (S, S)> + '_ {
        let mut at = start;
        let mut i = self.ranges.partition_point(|r| !start.is_before(r.1));
        core::iter::from_fn(move || {
            while at.is_before(end) {
                let (next, after) = match self.ranges.get(i) {
                    Some(&(s, e)) if s.is_before(end) => (s, e),
                    _ => (end, end),
                };
                i += 1;
                let gap = (at, next);
                at = after;
                if gap.0.is_before(gap.1) {
                    return Some(gap);
                }
            }
            None
        })
    }

    /// Forgets everything before `at`.
    pub fn remove_before(&mut self, at: S) {
        let gone = self.ranges.partition_point(|r| !at.is_before(r.1));
        if gone > 0 {
            self.ranges.drain(..gone);
        }
        if let Some(first) = self.ranges.first_mut()
            && first.0.is_before(at)
        {
            first.0 = at;
        }
        if self.ranges.is_empty() {
            self.ranges = Vec::new(); // an idle connection keeps no heap
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges = Vec::new();
    }

    /// Where the last range ends.
    pub fn end(&self) -> Option<S> {
        self.ranges.last().map(|r| r.1)
    }

    /// Panics unless ranges are in order, not empty and apart.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        for r in &self.ranges {
            assert!(r.0.is_before(r.1), "empty range");
        }
        for w in self.ranges.windows(2) {
            assert!(w[0].1.is_before(w[1].0), "ranges touch or are out of order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_bitmap(ops in proptest::collection::vec((0u32..200, 0u32..40, 0u8..8), 1..60), base: u32) {
            let base = SeqNum(base);
            let mut set = RangeSet::new();
            let mut map = [false; 256];
            for (at, len, op) in ops {
                if op == 0 {
                    set.remove_before(base + at);
                    map[..at as usize].fill(false);
                } else {
                    let new = map[at as usize..(at + len) as usize].iter().filter(|b| !**b).count();
                    let gaps: u64 = set.gaps(base + at, base + at + len).map(|(s, e)| e.distance_from(s)).sum();
                    prop_assert_eq!(gaps, new as u64);
                    let near = (at as usize).saturating_sub(1)..(at + len + 1) as usize;
                    if len > 0 && at > 0 {
                        prop_assert_eq!(set.is_apart(base + at, base + at + len), !map[near].contains(&true));
                    }
                    prop_assert_eq!(set.insert(base + at, base + at + len), new as u64);
                    map[at as usize..(at + len) as usize].fill(true);
                }
                set.assert_invariants();
                for (i, bit) in map.iter().enumerate() {
                    prop_assert_eq!(set.find(base + i as u32).is_some(), *bit);
                }
            }
        }
    }
}
