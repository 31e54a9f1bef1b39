//! Additive increase, multiplicative decrease (RFC 5681 3.1, RFC 6582).
#![forbid(unsafe_code)]

use super::Ack;

/// Octets acknowledged since the window last grew (RFC 3465 2.1).
#[derive(Clone, Debug, Default)]
pub(super) struct NewReno {
    credit: u32,
}

impl NewReno {
    /// Octets to add to `cwnd`: one MSS per window acknowledged (RFC 5681 3.1(c), RFC 3465 2.1).
    pub(super) fn growth(&mut self, cwnd: u32, ack: &Ack) -> u32 {
        self.credit = self.credit.saturating_add(ack.octets);
        if self.credit < cwnd {
            return 0;
        }
        self.credit -= cwnd;
        ack.mss
    }

    /// The new ssthresh (RFC 5681 3.1(d)).
    pub(super) fn reduce(&mut self, flight: u32) -> u32 {
        self.credit = 0;
        flight / 2
    }
}
