//! Data kept until the peer's DATA_ACK, and the parts of it that must be mapped again (RFC 8684 3.3.5, 3.3.6).
#![forbid(unsafe_code)]

use crate::buf::Chain;
use crate::wire::Dsn;
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
    mapped: VecDeque<(Dsn, Chain)>,
    waiting: VecDeque<Chain>,
    waiting_len: u32,
    again: Vec<(Dsn, Dsn)>,
}

impl SendQueue {
    /// Empty, the first octet being `first`.
    pub fn new(first: Dsn) -> SendQueue {
        SendQueue {
            una: first,
            nxt: first,
            mapped: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_len: 0,
            again: Vec::new(),
        }
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
        self.nxt + u64::from(self.waiting_len)
    }

    /// Octets never mapped.
    pub fn waiting(&self) -> u32 {
        self.waiting_len
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
            self.waiting_len += text.len();
            self.waiting.push_back(text);
        }
    }

    /// The next run of at most `most` octets to map for the first time; small chunks are merged.
    pub fn take_new(&mut self, most: u32) -> Option<(Dsn, Chain)> {
        let mut run = Chain::new();
        while run.len() < most {
            let Some(mut chunk) = self.waiting.pop_front() else { break };
            let want = most - run.len();
            if chunk.len() > want {
                self.waiting.push_front(chunk.split_off(want));
            }
            run.append(chunk);
        }
        if run.is_empty() {
            return None;
        }
        let dsn = self.nxt;
        self.waiting_len -= run.len();
        self.nxt = self.nxt + u64::from(run.len());
        self.mapped.push_back((dsn, run.clone()));
        Some((dsn, run))
    }

    /// Everything before `ack` has reached the peer. The caller has checked that `ack` lies in `una..=nxt`.
    pub fn on_data_ack(&mut self, ack: Dsn) -> u32 {
        debug_assert!(self.una.at_or_before(ack) && ack.at_or_before(self.nxt));
        let acked = ack.since(self.una) as u32;
        self.una = ack;
        while let Some((dsn, run)) = self.mapped.front_mut() {
            let end = *dsn + u64::from(run.len());
            if end.at_or_before(ack) {
                self.mapped.pop_front();
                continue;
            }
            if dsn.before(ack) {
                run.trim_front(ack.since(*dsn) as u32);
                *dsn = ack;
            }
            break;
        }
        self.again.retain(|(_, end)| ack.before(*end));
        if let Some((start, _)) = self.again.first_mut() {
            *start = start.max(ack);
        }
        if self.is_empty() {
            (self.mapped, self.waiting, self.again) = Default::default(); // give the heap back
        }
        acked
    }

    /// Octets `start..end` shall be mapped again, as far as they are not acknowledged.
    pub fn map_again(&mut self, start: Dsn, end: Dsn) {
        let (start, end) = (start.max(self.una), end.min(self.nxt));
        if !start.before(end) {
            return;
        }
        let at = self.again.partition_point(|(s, _)| s.before(start));
        self.again.insert(at, (start, end));
        let mut merged: Vec<(Dsn, Dsn)> = Vec::with_capacity(self.again.len());
        for (s, e) in self.again.drain(..) {
            match merged.last_mut() {
                Some((_, last)) if s.at_or_before(*last) => *last = last.max(e),
                _ => merged.push((s, e)),
            }
        }
        self.again = merged;
    }

    /// Octets waiting to be mapped again.
    pub fn again_len(&self) -> u32 {
        self.again.iter().map(|(s, e)| e.since(*s) as u32).sum()
    }

    /// The next run of at most `most` octets to map again.
    pub fn take_again(&mut self, most: u32) -> Option<(Dsn, Chain)> {
        let (start, end) = *self.again.first()?;
        let run = self.slice(start, end.since(start).min(u64::from(most)) as u32);
        let taken = start + u64::from(run.len());
        match self.again.first_mut() {
            Some(first) if taken.before(end) && !run.is_empty() => first.0 = taken,
            _ => drop(self.again.remove(0)),
        }
        (!run.is_empty()).then_some((start, run))
    }

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

    /// Lets go of everything: nobody will ask for it any more.
    pub fn clear(&mut self) {
        self.nxt = self.end();
        self.una = self.nxt;
        self.waiting_len = 0;
        (self.mapped, self.waiting, self.again) = Default::default();
    }

    /// Checks what must hold between any two calls.
    #[cfg(any(test, fuzzing, feature = "testkit"))]
    pub fn assert_invariants(&self) {
        let mut at = self.una;
        for (dsn, run) in &self.mapped {
            assert_eq!(*dsn, at, "mapped octets have no gap");
            at = at + u64::from(run.len());
        }
        assert_eq!(at, self.nxt);
        assert_eq!(self.waiting.iter().map(Chain::len).sum::<u32>(), self.waiting_len);
        for pair in self.again.windows(2) {
            assert!(pair[0].1.before(pair[1].0), "ranges to map again are apart");
        }
        for (s, e) in &self.again {
            assert!(self.una.at_or_before(*s) && s.before(*e) && e.at_or_before(self.nxt));
        }
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
                        let run = if op == 1 { queue.take_new(len) } else { queue.take_again(len) };
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
