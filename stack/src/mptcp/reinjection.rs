//! Data kept until the peer's DATA_ACK, and the parts of it that must be mapped again (RFC 8684 3.3.5, 3.3.6).
#![forbid(unsafe_code)]

use crate::buf::{Chain, SMALL, cut_before};
use crate::time::Instant;
use crate::wire::Dsn;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Octets from `una` on: first those that were mapped to some subflow, then those that wait.
///
/// Frames are only released here by a DATA_ACK; a subflow that still retransmits them holds them as well, so that both
/// conditions of RFC 8684 3.3.6 are met by the reference count alone.
#[derive(Debug)]
pub struct SendQueue {
    una: Dsn,
    nxt: Dsn,
    /// While there is anything.
    held: Option<Box<Held>>,
}

/// The octets of a [`SendQueue`].
#[derive(Debug, Default)]
struct Held {
    mapped: VecDeque<(Dsn, Chain)>,
    waiting: VecDeque<Chain>,
    waiting_len: u32,
    again: Vec<(Dsn, Dsn)>,
    watch: Watch,
}

/// What to do if the octets at hand do not move: nothing of it matters once all are acknowledged.
#[derive(Debug, Default)]
pub struct Watch {
    /// When no DATA_ACK has moved for too long.
    pub stall_at: Option<Instant>,
    /// When a closed data window is probed.
    pub probe_at: Option<Instant>,
    /// The head was repeated on another subflow up to here.
    pub repeated: Option<Dsn>,
}

impl SendQueue {
    /// Empty, the first octet being `first`.
    pub fn new(first: Dsn) -> SendQueue {
        SendQueue { una: first, nxt: first, held: None }
    }

    /// What to do if the octets do not move, while there are any.
    pub fn watch(&self) -> Option<&Watch> {
        self.held.as_ref().map(|held| &held.watch)
    }

    /// As [`SendQueue::watch`].
    pub fn watch_mut(&mut self) -> Option<&mut Watch> {
        self.held.as_mut().map(|held| &mut held.watch)
    }

    /// `snd.una` of the data level.
    pub fn una(&self) -> Dsn {
        self.una
    }

    /// First octet that was never mapped.
    pub fn nxt(&self) -> Dsn {
        self.nxt
    }

    /// One past the last octet queued.
    pub fn end(&self) -> Dsn {
        self.nxt + u64::from(self.waiting())
    }

    /// Octets never mapped.
    pub fn waiting(&self) -> u32 {
        self.held.as_ref().map_or(0, |held| held.waiting_len)
    }

    /// Octets held.
    pub fn len(&self) -> u32 {
        self.end().since(self.una) as u32
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends.
    pub fn push(&mut self, text: Chain) {
        if !text.is_empty() {
            let held = self.held.get_or_insert_default();
            held.waiting_len += text.len();
            match held.waiting.back_mut() {
                Some(last) if text.len() as usize <= SMALL => last.collect(text),
                _ => held.waiting.push_back(text),
            }
        }
    }

    /// The next run of at most `most` octets to map for the first time, cut between segments of about `mss` octets where
    /// possible; small chunks are merged.
    pub fn take_new(&mut self, most: u32, mss: u32) -> Option<(Dsn, Chain)> {
        let held = self.held.as_mut()?;
        let most = cut_before(held.waiting.iter().flat_map(Chain::parts), most, mss);
        let mut run = Chain::new();
        while run.len() < most {
            let Some(mut chunk) = held.waiting.pop_front() else { break };
            let want = most - run.len();
            if chunk.len() > want {
                held.waiting.push_front(chunk.split_off(want));
            }
            run.append(chunk);
        }
        if run.is_empty() {
            return None;
        }
        let dsn = self.nxt;
        held.waiting_len -= run.len();
        self.nxt = self.nxt + u64::from(run.len());
        held.mapped.push_back((dsn, run.clone()));
        Some((dsn, run))
    }

    /// Everything before `ack` has reached the peer. The caller has checked that `ack` lies in `una..=nxt`.
    pub fn on_data_ack(&mut self, ack: Dsn) -> u32 {
        debug_assert!(self.una.at_or_before(ack) && ack.at_or_before(self.nxt));
        let acked = ack.since(self.una) as u32;
        self.una = ack;
        let Some(held) = &mut self.held else { return acked };
        while let Some((dsn, run)) = held.mapped.front_mut() {
            let end = *dsn + u64::from(run.len());
            if end.at_or_before(ack) {
                held.mapped.pop_front();
                continue;
            }
            if dsn.before(ack) {
                run.trim_front(ack.since(*dsn) as u32);
                *dsn = ack;
            }
            break;
        }
        held.again.retain(|(_, end)| ack.before(*end));
        if let Some((start, _)) = held.again.first_mut() {
            *start = start.max(ack);
        }
        if self.is_empty() {
            self.held = None;
        }
        acked
    }

    /// Octets `start..end` shall be mapped again, as far as they are not acknowledged.
    pub fn map_again(&mut self, start: Dsn, end: Dsn) {
        let (start, end) = (start.max(self.una), end.min(self.nxt));
        if !start.before(end) {
            return;
        }
        let Some(held) = &mut self.held else { return };
        let at = held.again.partition_point(|(s, _)| s.before(start));
        held.again.insert(at, (start, end));
        let mut merged: Vec<(Dsn, Dsn)> = Vec::with_capacity(held.again.len());
        for (s, e) in held.again.drain(..) {
            match merged.last_mut() {
                Some((_, last)) if s.at_or_before(*last) => *last = last.max(e),
                _ => merged.push((s, e)),
            }
        }
        held.again = merged;
    }

    fn again(&self) -> &[(Dsn, Dsn)] {
        self.held.as_ref().map_or(&[], |held| &held.again)
    }

    /// Octets waiting to be mapped again.
    pub fn again_len(&self) -> u32 {
        self.again().iter().map(|(s, e)| e.since(*s) as u32).sum()
    }

    /// The next run of at most `most` octets to map again.
    pub fn take_again(&mut self, most: u32) -> Option<(Dsn, Chain)> {
        let held = self.held.as_mut()?;
        let (start, end) = *held.again.first()?;
        let run = held.slice(start, end.since(start).min(u64::from(most)) as u32);
        let taken = start + u64::from(run.len());
        match held.again.first_mut() {
            Some(first) if taken.before(end) && !run.is_empty() => first.0 = taken,
            _ => drop(held.again.remove(0)),
        }
        (!run.is_empty()).then_some((start, run))
    }

    /// Lets go of everything: nobody will ask for it any more.
    pub fn clear(&mut self) {
        self.nxt = self.end();
        self.una = self.nxt;
        self.held = None;
    }

    /// Checks what must hold between any two calls.
    #[cfg(any(test, fuzzing, feature = "testkit"))]
    pub fn assert_invariants(&self) {
        let Some(held) = &self.held else {
            assert_eq!(self.una, self.nxt, "what the peer has not acknowledged is kept");
            return;
        };
        let mut at = self.una;
        for (dsn, run) in &held.mapped {
            assert_eq!(*dsn, at, "mapped octets have no gap");
            at = at + u64::from(run.len());
        }
        assert_eq!(at, self.nxt);
        assert_eq!(held.waiting.iter().map(Chain::len).sum::<u32>(), held.waiting_len);
        for pair in held.again.windows(2) {
            assert!(pair[0].1.before(pair[1].0), "ranges to map again are apart");
        }
        for (s, e) in &held.again {
            assert!(self.una.at_or_before(*s) && s.before(*e) && e.at_or_before(self.nxt));
        }
    }
}

impl Held {
    /// A view of mapped octets from `start`, at most `len`.
    fn slice(&self, start: Dsn, len: u32) -> Chain {
        let mut out = Chain::new();
        let at = self.mapped.partition_point(|(dsn, _)| dsn.at_or_before(start));
        for (dsn, run) in self.mapped.range(at.saturating_sub(1)..) {
            let at = start + u64::from(out.len());
            let skip = at.since(*dsn);
            if out.len() == len || skip >= u64::from(run.len()) {
                break;
            }
            let skip = skip as u32;
            out.append(run.slice(skip, (run.len() - skip).min(len - out.len())));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_octet_comes_out_under_its_number(
            ops in proptest::collection::vec((0u8..5, 1u32..50, 0u32..100), 1..60),
            first: u64,
        ) {
            let pool = Pool::new(4000, 16);
            let mut queue = SendQueue::new(Dsn(first));
            let octet = |dsn: Dsn| (dsn.since(Dsn(first)) % 251) as u8;
            for (op, len, at) in ops {
                match op {
                    0 => {
                        let end = queue.end();
                        let bytes: Vec<u8> = (0..len).map(|i| octet(end + u64::from(i))).collect();
                        queue.push(Chain::copy_from(&pool, 0, &bytes).unwrap());
                    }
                    1 | 2 => {
                        let run = if op == 1 { queue.take_new(len, at) } else { queue.take_again(len) };
                        if let Some((dsn, run)) = run {
                            prop_assert!(run.len() <= len && !run.is_empty());
                            for (i, byte) in run.to_vec().into_iter().enumerate() {
                                prop_assert_eq!(byte, octet(dsn + i as u64));
                            }
                        }
                    }
                    3 => {
                        let start = queue.una() + u64::from(at);
                        let before = queue.again_len();
                        queue.map_again(start, start + u64::from(len));
                        prop_assert!(queue.again_len() >= before);
                    }
                    _ => {
                        let mapped = queue.nxt().since(queue.una());
                        let ack = queue.una() + u64::from(at).min(mapped);
                        queue.on_data_ack(ack);
                        prop_assert_eq!(queue.una(), ack);
                    }
                }
                queue.assert_invariants();
            }
            drop(queue);
            prop_assert_eq!(pool.free(), 4000);
        }
    }
}
