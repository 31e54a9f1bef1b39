//! Text that arrived out of order, put back into order without copying.
#![forbid(unsafe_code)]

use super::Sequence;
use crate::buf::Chain;
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// Most pieces held out of order. A peer that sends every second octet is refused beyond it rather than given memory.
const MAX_PIECES: usize = 8192;

/// A receive queue. Bounded by `limit` octets beyond `nxt`, in order or not; each octet is held once, the copy that
/// came first.
#[derive(Debug)]
pub struct Reassembly<S> {
    /// First octet not yet in order.
    nxt: S,
    /// In order, not yet taken; its owner takes it in the same turn, so that at rest there is none.
    ready: Option<Box<Chain>>,
    /// What is out of order, while anything is.
    early: Option<Box<Early<S>>>,
}

/// Out of order, sorted, disjoint, all after `nxt`.
#[derive(Debug)]
struct Early<S> {
    pieces: VecDeque<(S, Chain)>,
    /// Octets in `pieces`.
    octets: u32,
}

impl<S: Sequence> Reassembly<S> {
    /// Expects octet `nxt` first.
    pub fn new(nxt: S) -> Self {
        Reassembly { nxt, ready: None, early: None }
    }

    /// The first octet that is still missing.
    pub fn nxt(&self) -> S {
        self.nxt
    }

    /// Octets in order and not yet taken.
    pub fn ready(&self) -> u32 {
        self.ready.as_ref().map_or(0, |ready| ready.len())
    }

    /// Pieces held out of order, with holes between them.
    pub fn pieces(&self) -> usize {
        self.early.as_ref().map_or(0, |early| early.pieces.len())
    }

    /// Octets held out of order.
    pub fn waiting(&self) -> u32 {
        self.early.as_ref().map_or(0, |early| early.octets)
    }

    /// Stores what is new of `text`, whose first octet is `at`; returns how many octets were new. Text beyond the
    /// limit of pieces is not stored (it will be sent again, or the peer is hostile).
    pub fn insert(&mut self, mut at: S, mut text: Chain) -> u32 {
        if at.is_before(self.nxt) {
            let old = self.nxt.distance_from(at);
            if old >= u64::from(text.len()) {
                return 0;
            }
            text.trim_front(old as u32);
            at = self.nxt;
        }
        if text.is_empty() {
            return 0;
        }
        if at == self.nxt && self.early.is_none() {
            let len = text.len();
            self.nxt = at.advanced(u64::from(len));
            self.ready.get_or_insert_default().collect(text);
            return len;
        }
        let nxt = self.nxt;
        let new = || Box::new(Early { pieces: VecDeque::new(), octets: 0 });
        let stored = self.early.get_or_insert_with(new).insert(nxt, at, text);
        self.advance();
        stored
    }

    /// Moves pieces that have come into order.
    fn advance(&mut self) {
        let Some(early) = &mut self.early else { return };
        while let Some((start, _)) = early.pieces.front()
            && *start == self.nxt
            && let Some((_, chain)) = early.pieces.pop_front()
        {
            self.nxt = self.nxt.advanced(u64::from(chain.len()));
            early.octets -= chain.len();
            self.ready.get_or_insert_default().collect(chain);
        }
        if early.pieces.is_empty() {
            self.early = None;
        }
    }

    /// Takes all that is in order; `None` if nothing is.
    pub fn take(&mut self) -> Option<Chain> {
        self.ready.take().map(|ready| *ready)
    }

    /// Takes at most `limit` octets in order.
    pub fn take_at_most(&mut self, limit: u32) -> Option<Chain> {
        if limit >= self.ready() {
            return self.take();
        }
        let ready = self.ready.as_mut().filter(|_| limit > 0)?;
        let rest = ready.split_off(limit);
        Some(core::mem::replace(ready, rest))
    }

    /// Forgets everything, frames go back to their pool.
    pub fn clear(&mut self) {
        self.ready = None;
        self.early = None;
    }

    /// Panics unless pieces are sorted, disjoint and after `nxt`.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        let Some(early) = &self.early else { return };
        let mut at = self.nxt;
        let mut sum = 0;
        for (start, chain) in &early.pieces {
            assert!(!start.is_before(at) && *start != self.nxt, "pieces overlap");
            assert!(!chain.is_empty());
            at = start.advanced(u64::from(chain.len()));
            sum += chain.len();
        }
        assert_eq!(sum, early.octets);
        assert!(sum > 0, "nothing is early");
    }
}

impl<S: Sequence> Early<S> {
    /// Puts the parts of `text` that are not held yet between the pieces.
    fn insert(&mut self, nxt: S, mut at: S, mut text: Chain) -> u32 {
        let mut stored = 0;
        // First piece that ends after `at`.
        let mut i =
            self.pieces.partition_point(|(s, c)| !at.is_before(s.advanced(u64::from(c.len()))));
        while !text.is_empty() {
            let Some((start, held)) = self.pieces.get(i) else {
                stored += self.place(nxt, i, at, text);
                break;
            };
            let (start, end) = (*start, start.advanced(u64::from(held.len())));
            if at.is_before(start) {
                let gap = start.distance_from(at);
                if gap >= u64::from(text.len()) {
                    stored += self.place(nxt, i, at, text);
                    break;
                }
                let rest = text.split_off(gap as u32);
                let before = self.pieces.len();
                stored += self.place(nxt, i, at, text);
                // It may have become part of a neighbour, or have been refused.
                i += self.pieces.len() - before;
                (at, text) = (start, rest);
            }
            let known = end.distance_from(at);
            if known >= u64::from(text.len()) {
                break;
            }
            text.trim_front(known as u32);
            at = end;
            i += 1;
        }
        stored
    }

    /// Puts `text` in front of piece `i`, or at the end of the one before if that reaches up to it: a hole costs one
    /// piece, however many segments lie behind it. TCP bounds the holes, and has acknowledged what comes here.
    fn place(&mut self, nxt: S, i: usize, at: S, text: Chain) -> u32 {
        let len = text.len();
        if let Some((start, held)) = i.checked_sub(1).and_then(|i| self.pieces.get_mut(i))
            && start.advanced(u64::from(held.len())) == at
        {
            held.collect(text);
            self.octets += len;
            return len;
        }
        if self.pieces.len() >= MAX_PIECES && at != nxt {
            return 0;
        }
        self.octets += len;
        self.pieces.insert(i, (at, text));
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;
    use crate::wire::Dsn;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn many_small_segments_behind_one_hole_are_all_kept() {
        let pool = Pool::new(MAX_PIECES as u32 + 100, 64);
        let mut queue = Reassembly::new(Dsn(0));
        let octet = || Chain::copy_from(&pool, 0, b"x").unwrap();
        for at in 1..MAX_PIECES as u64 + 50 {
            assert_eq!(queue.insert(Dsn(at), octet()), 1, "octet {at}");
        }
        assert_eq!(queue.insert(Dsn(0), octet()), 1);
        assert_eq!(queue.take().map(|text| text.len()), Some(MAX_PIECES as u32 + 50));
    }

    proptest! {
        #[test]
        fn any_order_of_overlapping_pieces_yields_the_stream(
            cuts in proptest::collection::vec((0usize..300, 1usize..80), 0..60),
            base: u64,
        ) {
            let stream: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
            let pool = Pool::new(400, 64);
            let mut queue = Reassembly::new(Dsn(base));
            let mut have = [false; 300];
            let mut out = Vec::new();
            let full = (0..300).step_by(50).map(|at| (at, 50));
            for (at, len) in cuts.into_iter().chain(full) {
                let end = (at + len).min(300);
                let text = Chain::copy_from(&pool, 0, &stream[at..end]).unwrap();
                let new = have[at..end].iter().filter(|b| !**b).count();
                have[at..end].fill(true);
                prop_assert_eq!(queue.insert(Dsn(base) + at as u64, text) as usize, new);
                queue.assert_invariants();
                if let Some(chain) = queue.take_at_most(33) { out.extend(chain.to_vec()); }
            }
            while let Some(chain) = queue.take() { out.extend(chain.to_vec()); }
            prop_assert_eq!(out, stream);
            drop(queue);
            prop_assert_eq!(pool.free(), 400);
        }
    }
}
