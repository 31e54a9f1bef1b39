//! A run of octets over one or more frames.
#![forbid(unsafe_code)]

use super::{Payload, Pool};
use crate::checksum;
use smallvec::SmallVec;

/// Octets that are cheaper to copy than the rest of their frame is to keep: a quarter of one of 2 KiB.
pub const SMALL: usize = 512;

/// Octets that are put together in one frame: fewer than [`cut_before`] takes for a segment that came in whole.
const COLLECTED: usize = 768;

/// Payloads in order: the text of a segment or super-segment (up to 64 KB), never linearized. No part is empty.
#[derive(Clone, Default, Debug)]
pub struct Chain {
    parts: SmallVec<[Payload; 2]>,
    len: u32,
}

/// The parts of a chain, to be taken one by one.
pub type Parts = smallvec::IntoIter<[Payload; 2]>;

impl Chain {
    /// No octets.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// A copy of `bytes`, cut into as many frames as it needs, each behind `headroom` free octets. `None` if the pool
    /// runs dry.
    pub fn copy_from(pool: &Pool, headroom: u16, bytes: &[u8]) -> Option<Chain> {
        let room = pool.chunk_size().checked_sub(usize::from(headroom)).filter(|r| *r > 0)?;
        let mut chain = Chain::new();
        for part in bytes.chunks(room) {
            chain.push(Payload::copy_from(pool, headroom, part)?);
        }
        Some(chain)
    }

    /// Octets in all.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts in order.
    pub fn parts(&self) -> &[Payload] {
        &self.parts
    }

    /// Consumes the chain part by part.
    pub fn into_parts(self) -> Parts {
        self.parts.into_iter()
    }

    /// Appends; an empty payload is dropped.
    pub fn push(&mut self, payload: Payload) {
        if !payload.is_empty() {
            self.len += payload.len() as u32;
            self.parts.push(payload);
        }
    }

    /// Appends all of `other`.
    pub fn append(&mut self, mut other: Chain) {
        self.len += other.len;
        if self.parts.is_empty() {
            self.parts = other.parts;
        } else if other.parts.len() == 1
            && let Some(part) = other.parts.pop()
        {
            self.parts.push(part);
        } else {
            self.parts.append(&mut other.parts);
        }
    }

    /// As [`Chain::append`], for octets that will wait: what is small is copied behind what is there, so that a sender of
    /// single octets does not have a frame for each of them (Linux's `tcp_collapse`).
    pub fn collect(&mut self, other: Chain) {
        if other.parts.iter().all(|part| part.len() > SMALL) {
            return self.append(other);
        }
        for part in other.into_parts() {
            if part.len() <= SMALL
                && let Some(last) = self.parts.last_mut()
                && last.len() + part.len() <= COLLECTED
                && last.absorb(&part)
            {
                self.len += part.len() as u32;
            } else {
                self.push(part);
            }
        }
    }

    /// Keeps `0..at`, returns the rest.
    ///
    /// # Panics
    /// If `at` is past the end.
    pub fn split_off(&mut self, at: u32) -> Chain {
        assert!(at <= self.len, "split past the end");
        let mut seen = 0u32;
        for i in 0..self.parts.len() {
            let len = self.parts[i].len() as u32;
            if seen + len <= at {
                seen += len;
                continue;
            }
            let mut rest = Chain { parts: self.parts.drain(i..).collect(), len: self.len - seen };
            let keep = at - seen;
            if keep > 0 {
                let tail = rest.parts[0].split_off(keep as u16);
                self.parts.push(core::mem::replace(&mut rest.parts[0], tail));
                rest.len -= keep;
            }
            self.len = at;
            return rest;
        }
        Chain::new()
    }

    /// Drops the first `n` octets, in place.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn trim_front(&mut self, n: u32) {
        assert!(n <= self.len, "trim past the end");
        self.len -= n;
        if let Some(first) = self.parts.first_mut()
            && n < first.len() as u32
        {
            return first.trim_front(n as u16);
        }
        let (mut left, mut whole) = (n, 0);
        while let Some(part) = self.parts.get(whole)
            && part.len() as u32 <= left
        {
            left -= part.len() as u32;
            whole += 1;
        }
        self.parts.drain(..whole);
        if left > 0 {
            self.parts[0].trim_front(left as u16);
        }
    }

    /// Keeps the first `n` octets, in place.
    pub fn truncate(&mut self, n: u32) {
        while self.len > n
            && let Some(last) = self.parts.last_mut()
        {
            let (len, excess) = (last.len() as u32, self.len - n);
            if len > excess {
                last.truncate((len - excess) as u16);
                self.len = n;
            } else {
                self.parts.pop();
                self.len -= len;
            }
        }
    }

    /// A second view of octets `start..start + len` (frames are shared, not copied).
    ///
    /// # Panics
    /// If that reaches past the end.
    pub fn slice(&self, start: u32, len: u32) -> Chain {
        assert!(start + len <= self.len, "slice past the end");
        let mut out = Chain::new();
        let (mut skip, mut want) = (start, len);
        for part in &self.parts {
            let part_len = part.len() as u32;
            if skip >= part_len {
                skip -= part_len;
                continue;
            }
            if want == 0 {
                break;
            }
            let mut piece = part.clone();
            piece.trim_front(skip as u16);
            piece.truncate(want.min(u32::from(u16::MAX)) as u16);
            skip = 0;
            want -= piece.len() as u32;
            out.push(piece);
        }
        out
    }

    /// [`Payload::release_headers`] of the first part.
    pub fn release_headers(&mut self) {
        if let Some(first) = self.parts.first_mut() {
            first.release_headers();
        }
    }

    /// Folded ones-complement sum of all octets, as if the first lay at an even offset.
    pub fn sum(&mut self) -> u16 {
        let mut total = 0u32;
        let mut odd = false;
        for part in &mut self.parts {
            let sum = part.sum();
            total += u32::from(if odd { sum.swap_bytes() } else { sum });
            odd ^= part.len() % 2 == 1;
        }
        checksum::fold(total)
    }

    /// Copies all octets into `out`.
    ///
    /// # Panics
    /// If `out` is shorter than the chain.
    pub fn copy_to(&self, out: &mut [u8]) {
        let mut at = 0;
        for part in &self.parts {
            out[at..at + part.len()].copy_from_slice(part.bytes());
            at += part.len();
        }
    }

    /// The octets in one vector.
    pub fn to_vec(&self) -> alloc::vec::Vec<u8> {
        let mut out = alloc::vec![0; self.len as usize];
        self.copy_to(&mut out);
        out
    }
}

/// Where to cut `parts` for at most `n` octets: at the end of a part, if the next was received as a nearly full segment of
/// at most `segment` octets, or if that costs little; else at `n`. What came in as one segment then leaves as one, its frame
/// is not shared and its sum stays good.
pub fn cut_before<'a>(parts: impl Iterator<Item = &'a Payload>, n: u32, segment: u32) -> u32 {
    let mut end = 0;
    for part in parts {
        let len = part.len() as u32;
        if end + len > n {
            let little_is_lost = n - end <= segment / 8;
            let is_full = len >= segment - segment / 8;
            let whole = end > 0 && len <= segment && (little_is_lost || is_full);
            return if whole { end } else { n };
        }
        end += len;
    }
    end
}

impl From<Payload> for Chain {
    fn from(payload: Payload) -> Chain {
        let mut chain = Chain::new();
        chain.push(payload);
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn small_octets_that_wait_share_frames_and_large_ones_stay_where_they_are() {
        let pool = Pool::new(600, 2048);
        let mut chain = Chain::new();
        for octet in 0..500u32 {
            chain.collect(Chain::copy_from(&pool, 100, &[octet as u8]).unwrap());
        }
        assert_eq!((chain.len(), pool.free()), (500, 599));
        chain.collect(Chain::copy_from(&pool, 100, &[7; 1_400]).unwrap());
        assert_eq!((chain.parts().len(), pool.free()), (2, 598));
        let octets = chain.to_vec();
        assert!(octets[..500].iter().enumerate().all(|(i, octet)| *octet == i as u8));
        assert_eq!(octets[500..], [7; 1_400]);
    }

    #[test]
    fn cuts_keep_received_segments_whole() {
        let pool = Pool::new(8, 1000);
        let mut chain = Chain::new();
        for len in [900, 900, 300, 900] {
            chain.push(Payload::copy_from(&pool, 0, &[0; 1000][..len]).unwrap());
        }
        let cut = |n, segment| cut_before(chain.parts().iter(), n, segment);
        assert_eq!(cut(1950, 1000), 1950, "a small part may be cut");
        assert_eq!(cut(2900, 1000), 2100, "a nearly full one is not");
        assert_eq!(cut(2900, 2000), 2900, "far from full");
        assert_eq!(cut(2200, 2000), 2100, "little is lost");
        assert_eq!(cut(2900, 800), 2900, "longer than a segment");
        assert_eq!((cut(500, 1000), cut(5000, 1000)), (500, 3000));
    }

    proptest! {
        #[test]
        fn split_slice_and_sum_agree_with_a_plain_vector(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            chunk in 1usize..40,
            at in 0u32..300,
            len in 0u32..300,
        ) {
            let pool = Pool::new(400, chunk);
            let mut chain = Chain::copy_from(&pool, 0, &bytes).unwrap();
            prop_assert_eq!(chain.to_vec(), bytes.clone());
            prop_assert_eq!(chain.sum(), { let s = checksum::sum(&bytes); if s == 0 && !bytes.is_empty() { 0xffff } else { s } });
            let at = at.min(bytes.len() as u32);
            let len = len.min(bytes.len() as u32 - at);
            prop_assert_eq!(chain.slice(at, len).to_vec(), &bytes[at as usize..(at + len) as usize]);
            let (mut front, mut back) = (chain.clone(), chain.clone());
            front.truncate(at);
            back.trim_front(at);
            prop_assert_eq!((front.to_vec(), back.to_vec()), (bytes[..at as usize].to_vec(), bytes[at as usize..].to_vec()));
            prop_assert_eq!((front.len(), back.len()), (at, bytes.len() as u32 - at));
            prop_assert!(front.parts().iter().chain(back.parts()).all(|p| !p.is_empty()));
            drop((front, back));
            let rest = chain.split_off(at);
            prop_assert_eq!(chain.len(), at);
            let both: Vec<u8> = chain.to_vec().into_iter().chain(rest.to_vec()).collect();
            prop_assert_eq!(both, bytes);
            prop_assert!(chain.parts().iter().chain(rest.parts()).all(|p| !p.is_empty()));
            drop((chain, rest));
            prop_assert_eq!(pool.free(), 400);
        }
    }
}
