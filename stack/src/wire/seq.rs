//! Sequence numbers and windows as types that refuse illegal arithmetic (RFC 9293 3.4, RFC 7323 2, RFC 8684 3.3).
#![forbid(unsafe_code)]

use core::ops::{Add, AddAssign, Sub};

/// A TCP sequence number, modulo 2^32. It has no `<`: order exists only within a window (RFC 9293 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SeqNum(pub u32);

impl SeqNum {
    /// Strictly before `other`, for numbers less than 2^31 apart.
    pub const fn before(self, other: SeqNum) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Before or equal to `other`.
    pub const fn at_or_before(self, other: SeqNum) -> bool {
        (self.0.wrapping_sub(other.0) as i32) <= 0
    }

    /// Octets from `earlier` to `self`; meaningful when `earlier` is at or before `self`.
    pub const fn since(self, earlier: SeqNum) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Octets from `earlier` to `self`, zero if `earlier` is in fact later.
    pub const fn saturating_since(self, earlier: SeqNum) -> u32 {
        let d = self.0.wrapping_sub(earlier.0);
        if (d as i32) < 0 { 0 } else { d }
    }

    /// The later of two.
    pub const fn max(self, other: SeqNum) -> SeqNum {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two.
    pub const fn min(self, other: SeqNum) -> SeqNum {
        if self.before(other) { self } else { other }
    }

    /// Whether `self` lies in `start..end`.
    pub const fn within(self, start: SeqNum, end: SeqNum) -> bool {
        start.at_or_before(self) && self.before(end)
    }
}

impl Add<u32> for SeqNum {
    type Output = SeqNum;
    fn add(self, n: u32) -> SeqNum {
        SeqNum(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for SeqNum {
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for SeqNum {
    type Output = SeqNum;
    fn sub(self, n: u32) -> SeqNum {
        SeqNum(self.0.wrapping_sub(n))
    }
}

impl core::fmt::Debug for SeqNum {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A data sequence number of MPTCP, always 64 bits in memory (RFC 8684 3.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Dsn(pub u64);

impl Dsn {
    /// Strictly before `other`, for numbers less than 2^63 apart.
    pub const fn before(self, other: Dsn) -> bool {
        (self.0.wrapping_sub(other.0) as i64) < 0
    }

    /// Before or equal to `other`.
    pub const fn at_or_before(self, other: Dsn) -> bool {
        (self.0.wrapping_sub(other.0) as i64) <= 0
    }

    /// Octets from `earlier` to `self`; meaningful when `earlier` is at or before `self`.
    pub const fn since(self, earlier: Dsn) -> u64 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The later of two.
    pub const fn max(self, other: Dsn) -> Dsn {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two.
    pub const fn min(self, other: Dsn) -> Dsn {
        if self.before(other) { self } else { other }
    }

    /// The full number whose low half is `low` and which lies nearest to `expected` (either side).
    pub const fn promote(low: u32, expected: Dsn) -> Dsn {
        let diff = low.wrapping_sub(expected.0 as u32) as i32;
        Dsn(expected.0.wrapping_add(diff as i64 as u64))
    }
}

impl Add<u64> for Dsn {
    type Output = Dsn;
    fn add(self, n: u64) -> Dsn {
        Dsn(self.0.wrapping_add(n))
    }
}

impl Sub<u64> for Dsn {
    type Output = Dsn;
    fn sub(self, n: u64) -> Dsn {
        Dsn(self.0.wrapping_sub(n))
    }
}

impl core::fmt::Debug for Dsn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The window field as it stands in a segment, before scaling: unsigned (MUST-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnscaledWindow(pub u16);

/// A window in octets (REC-1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WindowSize(pub u32);

/// A window scale, 0 to 14; larger values on the wire mean 14 (RFC 7323 2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WindowScale(u8);

impl WindowScale {
    /// Clamps to 14.
    pub const fn new(shift: u8) -> WindowScale {
        WindowScale(if shift > 14 { 14 } else { shift })
    }

    /// The smallest scale that can express `window` octets.
    pub const fn for_window(window: u32) -> WindowScale {
        let mut shift = 0;
        while shift < 14 && (window >> shift) > 0xffff {
            shift += 1;
        }
        WindowScale(shift)
    }

    /// The shift.
    pub const fn shift(self) -> u8 {
        self.0
    }
}

impl UnscaledWindow {
    /// The window in octets.
    pub const fn scale(self, scale: WindowScale) -> WindowSize {
        WindowSize((self.0 as u32) << scale.0)
    }
}

impl WindowSize {
    /// The field for this window, rounded down to what it can express.
    pub const fn unscale(self, scale: WindowScale) -> UnscaledWindow {
        let w = self.0 >> scale.0;
        UnscaledWindow(if w > 0xffff { 0xffff } else { w as u16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_survives_the_wrap() {
        let a = SeqNum(u32::MAX - 1);
        assert!(a.before(a + 10) && !(a + 10).before(a));
        assert_eq!((a + 10).since(a), 10);
        assert_eq!(a.saturating_since(a + 10), 0);
        assert!(a.at_or_before(a) && !a.before(a));
        assert!((a + 3).within(a, a + 4) && !(a + 4).within(a, a + 4));
    }

    #[test]
    fn a_window_scale_above_14_means_14() {
        assert_eq!(WindowScale::new(200).shift(), 14);
        assert_eq!(WindowScale::for_window(65_535).shift(), 0);
        assert_eq!(WindowScale::for_window(65_536).shift(), 1);
        assert_eq!(WindowSize(u32::MAX).unscale(WindowScale::new(0)), UnscaledWindow(0xffff));
    }

    proptest! {
        #[test]
        fn promotion_picks_the_nearest(expected: u64, delta in -0x7fff_ffffi64..0x7fff_ffff) {
            let actual = Dsn(expected.wrapping_add(delta as u64));
            prop_assert_eq!(Dsn::promote(actual.0 as u32, Dsn(expected)), actual);
        }
    }
}
