//! Some octets of a frame.
#![forbid(unsafe_code)]

use super::{Frame, Pool};
use crate::checksum;

/// Octets `start..start + len` of a frame, with their ones-complement sum once somebody found it.
#[derive(Clone, Debug)]
pub struct Payload {
    frame: Frame,
    start: u16,
    len: u16,
    /// Folded ones-complement sum of the octets, summed from an even offset; 0 = not known (a sum of zero is kept as
    /// its other name, 0xffff).
    sum: u16,
}

const _: () = assert!(size_of::<Payload>() == 16);

impl Payload {
    /// All of `frame[start..start + len]`.
    ///
    /// # Panics
    /// If that reaches past the frame.
    pub fn new(frame: Frame, start: u16, len: u16) -> Payload {
        assert!(usize::from(start) + usize::from(len) <= frame.capacity(), "outside of the frame");
        Payload { frame, start, len, sum: 0 }
    }

    /// A copy of `bytes` in a fresh frame behind `headroom` free octets. `None` if the pool is empty or the frame too
    /// small.
    pub fn copy_from(pool: &Pool, headroom: u16, bytes: &[u8]) -> Option<Payload> {
        if usize::from(headroom) + bytes.len() > pool.chunk_size() {
            return None;
        }
        let mut frame = pool.take()?;
        let start = usize::from(headroom);
        frame.unique_mut()?[start..start + bytes.len()].copy_from_slice(bytes);
        frame.set_data_start(headroom);
        Some(Payload { frame, start: headroom, len: bytes.len() as u16, sum: 0 })
    }

    /// The octets.
    pub fn bytes(&self) -> &[u8] {
        self.frame.bytes(self.start, self.len)
    }

    /// How many octets.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Offset of the first octet in the frame.
    pub fn start(&self) -> u16 {
        self.start
    }

    /// The frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The frame itself, dropping the view.
    pub fn into_frame(self) -> Frame {
        self.frame
    }

    /// Declares the octets in front headroom: whoever received this frame has parsed its headers and will not read
    /// them again. Does nothing while the frame is shared.
    pub fn release_headers(&mut self) {
        self.frame.set_data_start(self.start);
    }

    /// Headroom that may be written in front of exactly these octets: zero when another payload lies in front.
    pub fn headroom(&self) -> usize {
        if self.frame.data_start() == self.start { usize::from(self.start) } else { 0 }
    }

    /// Folded ones-complement sum of the octets, as if they began at an even offset. Read at most once, then kept.
    pub fn sum(&mut self) -> u16 {
        if self.sum == 0 {
            self.sum = nonzero(checksum::sum(self.bytes()));
        }
        self.sum
    }

    /// As [`Payload::sum`], without keeping it.
    pub fn peek_sum(&self) -> u16 {
        if self.sum == 0 { checksum::sum(self.bytes()) } else { self.sum }
    }

    /// Stores a sum that a receiver found while verifying.
    pub fn set_sum(&mut self, sum: u16) {
        self.sum = nonzero(sum);
    }

    /// Keeps `0..at`, returns the rest.
    ///
    /// # Panics
    /// If `at` is past the end.
    pub fn split_off(&mut self, at: u16) -> Payload {
        assert!(at <= self.len);
        let rest = Payload {
            frame: self.frame.clone(),
            start: self.start + at,
            len: self.len - at,
            sum: 0,
        };
        if rest.len > 0 {
            self.sum = 0;
        }
        self.len = at;
        rest
    }

    /// Takes the octets of `other` in behind its own. False: its frame has no room for them, or somebody else has a view
    /// of it.
    pub fn absorb(&mut self, other: &Payload) -> bool {
        let (end, len) = (usize::from(self.start) + self.len(), other.len());
        let room = self.frame.unique_mut().and_then(|octets| octets.get_mut(end..end + len));
        let Some(room) = room else { return false };
        room.copy_from_slice(other.bytes());
        self.len += other.len;
        self.sum = 0;
        true
    }

    /// Drops the first `n` octets.
    pub fn trim_front(&mut self, n: u16) {
        assert!(n <= self.len);
        if n > 0 {
            self.start += n;
            self.len -= n;
            self.sum = 0;
        }
    }

    /// Keeps the first `n` octets.
    pub fn truncate(&mut self, n: u16) {
        if n < self.len {
            self.len = n;
            self.sum = 0;
        }
    }
}

fn nonzero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_shares_the_frame_and_keeps_every_octet() {
        let pool = Pool::new(1, 64);
        let mut a = Payload::copy_from(&pool, 16, b"hello world").unwrap();
        let b = a.split_off(5);
        assert_eq!((a.bytes(), b.bytes()), (&b"hello"[..], &b" world"[..]));
        assert_eq!(a.frame().holders(), 2);
        assert_eq!((a.headroom(), b.headroom()), (16, 0), "only the first has headroom");
        drop(a);
        assert_eq!(pool.free(), 0);
        drop(b);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn absorbed_octets_lie_in_the_same_frame_and_nobody_else_sees_them() {
        let pool = Pool::new(4, 16);
        let payload = |bytes: &[u8]| Payload::copy_from(&pool, 4, bytes).unwrap();
        let mut a = payload(b"hello");
        let _ = a.sum();
        assert!(a.absorb(&payload(b" world!")));
        assert_eq!((a.bytes(), pool.free()), (&b"hello world!"[..], 3));
        assert_eq!(a.sum(), checksum::sum(b"hello world!"));
        assert!(!a.absorb(&payload(b"?")), "the frame is full");
        let mut b = payload(b"b");
        let view = b.clone();
        assert!(!b.absorb(&payload(b"c")));
        assert_eq!(view.bytes(), b"b");
    }

    #[test]
    fn the_sum_follows_the_octets() {
        let pool = Pool::new(1, 64);
        let mut a = Payload::copy_from(&pool, 0, &[0x12, 0x34, 0x56]).unwrap();
        assert_eq!(a.sum(), 0x1234 + 0x5600);
        a.truncate(2);
        assert_eq!(a.sum(), 0x1234);
        a.trim_front(2);
        assert_eq!(a.sum(), 0xffff, "zero under its other name");
    }
}
