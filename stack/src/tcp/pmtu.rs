//! The path MTU of a flow: what routers say (RFC 1191, RFC 8201), as far as it can be believed (RFC 5927), and what
//! probes find where routers are silent (RFC 4821, RFC 8899).
//!
//! Sizes are in the terms of the MSS option: text and TCP options of a segment, IP and TCP headers left out.
#![forbid(unsafe_code)]

use super::config::MtuProbing;
use super::recovery::Recovery;
use super::tcb::{MIN_MSS, Tcb};
use super::{TcpConfig, TxSegment};
use crate::time::{Duration, Instant};
use crate::wire::{IcmpError, IcmpErrorKind, SeqNum};
use alloc::boxed::Box;
use core::net::IpAddr;

/// How long a reduced MTU stays before larger ones are tried (RFC 1191 6.3, RFC 8201 4(c), RFC 8899 5.1.1: 10 minutes;
/// `net.ipv4.route.mtu_expires`).
pub(super) const RAISE: Duration = Duration::from_secs(600);
/// Reductions that routers may ask of one flow in that time: a path has few bottlenecks, a forger has much time.
const MAX_BELIEVED: u8 = 8;
/// Timeouts in a row of a segment that may be too large before it is taken for one (`net.ipv4.tcp_retries1`; RFC 8899
/// 5.1.2 MAX_PROBES).
const BLACK_HOLE_TIMEOUTS: u8 = 3;
/// The search ends when it is this close (`net.ipv4.tcp_probe_threshold`).
const SEARCH_END: u16 = 8;
/// Least MTU of any IPv6 link (RFC 8200 5).
const MIN_MTU_V6: u32 = 1280;

/// Octets of IP and TCP headers without options.
pub const fn header_len(peer: IpAddr) -> u16 {
    match peer {
        IpAddr::V4(_) => 40,
        IpAddr::V6(_) => 60,
    }
}

/// MSS of a peer that tells none (RFC 9293 3.7.1, MUST-15): what the least MTU of its family leaves.
pub const fn default_mss(peer: IpAddr) -> u16 {
    match peer {
        IpAddr::V4(_) => 576 - header_len(peer),
        IpAddr::V6(_) => MIN_MTU_V6 as u16 - header_len(peer),
    }
}

/// What became of an ICMP "packet too big", each a counter of the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum TooBig {
    /// Segments are this long from now on, headers left out, and what was too large is sent again.
    Believed(u16),
    /// Larger segments have passed before: it counts if the segment turns out to be lost (RFC 5927 7.2).
    Delayed,
    /// It quotes nothing that is in flight.
    OutOfWindow,
    /// It names an MTU that no path of ours has.
    TooSmall,
    /// The segment that it quotes is no larger than it says.
    NoNews,
    /// Too many have been believed.
    Limited,
}

/// A segment that is larger than what is known to pass.
#[derive(Clone, Copy, Debug)]
struct Sounding {
    start: SeqNum,
    end: SeqNum,
    size: u16,
}

/// What a router said about the segment at `seq`.
#[derive(Clone, Copy, Debug)]
struct Claim {
    seq: SeqNum,
    mss: u16,
}

/// What is known about a path that does not carry what both ends agreed on, or that has to prove that it does.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Nothing larger passes, as far as is known; `SendQueue::path_mss` passes (RFC 4821 7.1: search_high and search_low).
    high: u16,
    sounding: Option<Sounding>,
    claim: Option<Claim>,
    believed: u8,
    /// When `high` means nothing any more.
    raise_at: Instant,
    tally: MtuTally,
}

/// Events since they were last drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MtuTally {
    /// Probes that arrived.
    pub success: u32,
    /// Probes that did not.
    pub fail: u32,
    /// Delayed claims of routers that proved true.
    pub believed: u32,
    /// Falls to the base after timeouts.
    pub black_holes: u32,
}

impl MtuTally {
    /// None.
    pub const NONE: MtuTally = MtuTally { success: 0, fail: 0, believed: 0, black_holes: 0 };

    /// Adds all of `other`.
    pub fn add(&mut self, other: MtuTally) {
        self.success += other.success;
        self.fail += other.fail;
        self.believed += other.believed;
        self.black_holes += other.black_holes;
    }
}

impl Path {
    fn new(high: u16, raise_at: Instant) -> Path {
        Path {
            high,
            sounding: None,
            claim: None,
            believed: 0,
            raise_at,
            tally: MtuTally::default(),
        }
    }

    /// The size to try next (RFC 4821 7.3): at once what both ends allow, then the middle; at most two segments of
    /// today, so that it can be filled.
    fn next_size(&self, low: u16, ceiling: u16, options: u16) -> Option<u16> {
        let high = self.high.min(ceiling);
        let gap = high.checked_sub(low).filter(|gap| *gap > 0)?;
        if gap < SEARCH_END && high < ceiling {
            return None;
        }
        let size = if high == ceiling { high } else { low + gap.div_ceil(2) };
        Some(size.min(low.saturating_mul(2).saturating_sub(options)))
    }
}

#[cfg(any(test, fuzzing))]
impl Path {
    /// Panics if it contradicts itself or the sizes that the flow sends.
    pub(super) fn assert_invariants(&self, low: u16, ceiling: u16) {
        assert!(
            low <= self.high && self.high <= ceiling,
            "{low} passes, of {} to {ceiling}",
            self.high
        );
        assert!(self.believed <= MAX_BELIEVED);
        if let Some(sounding) = self.sounding {
            assert!(sounding.start.before(sounding.end), "an empty probe");
            assert!(
                low < sounding.size && sounding.size <= self.high,
                "a probe that teaches nothing"
            );
        }
    }
}

/// What a new flow begins with, of what both ends agreed on (`ceiling`) and what the path is known to carry.
pub(super) fn initial_mss(cfg: &TcpConfig, ceiling: u16, path_mss: u16) -> u16 {
    let base = match cfg.mtu_probing {
        MtuProbing::Always => cfg.base_mss,
        MtuProbing::Off | MtuProbing::BlackHole => u16::MAX,
    };
    ceiling.min(path_mss).min(base).max(MIN_MSS)
}

impl Tcb {
    /// The largest segment that both ends allow (RFC 9293 3.7.1).
    pub(super) fn ceiling(&self) -> u16 {
        self.agreed.peer_mss.min(self.cfg.mss).max(MIN_MSS)
    }

    fn path(&mut self) -> &mut Path {
        let ceiling = self.ceiling();
        let path = &mut self.trouble().path;
        path.get_or_insert_with(|| Box::new(Path::new(ceiling, Instant::ZERO)))
    }

    fn known_path(&self) -> Option<&Path> {
        self.trouble.as_ref()?.path.as_deref()
    }

    fn known_path_mut(&mut self) -> Option<&mut Path> {
        self.trouble.as_mut()?.path.as_deref_mut()
    }

    /// A flow that begins with less than both ends allow: because others found so, until then; or to search upwards.
    pub(super) fn begin_path(&mut self, known_until: Option<Instant>) {
        if self.queue.path_mss < self.ceiling() {
            let low = self.queue.path_mss;
            let path = self.path();
            match known_until {
                Some(until) => (path.high, path.raise_at) = (low, until),
                None => path.raise_at = Instant::ZERO,
            }
        }
    }

    /// A router says that a segment of this flow is too big. Anybody can say so: it has to quote what is in flight, name
    /// a size that makes sense, and must not contradict what was delivered.
    pub fn on_too_big(&mut self, error: &IcmpError, now: Instant) -> TooBig {
        let IcmpErrorKind::PacketTooBig { mtu } = error.kind else { return TooBig::NoNews };
        let peer = error.flow.remote.addr;
        let floor = match peer {
            IpAddr::V4(_) => u32::from(self.cfg.min_pmtu),
            IpAddr::V6(_) => MIN_MTU_V6, // RFC 8201 4(a): smaller ones are discarded
        };
        if mtu < floor {
            return TooBig::TooSmall;
        }
        let mss = mtu.saturating_sub(header_len(peer).into()).min(u16::MAX.into()) as u16;
        // RFC 5927 4.1: only what is in flight can have been refused.
        let Some(size) = self.queue.size_in_flight(error.seq) else { return TooBig::OutOfWindow };
        let refuted = self.refutes_sounding(error.seq, mss);
        // RFC 1191 3(c): never to a larger one, which what fell into a black hole may still be.
        if mss >= size || mss < MIN_MSS || (mss >= self.queue.path_mss && !refuted) {
            return TooBig::NoNews;
        }
        if let Some(path) = self.known_path_mut() {
            if path.believed >= MAX_BELIEVED {
                return TooBig::Limited;
            }
            path.believed += u8::from(path.claim.is_none());
        }
        if refuted {
            self.fail_sounding(mss, now);
            return TooBig::Believed(self.queue.path_mss);
        }
        if mss < self.queue.passed {
            // RFC 5927 7.2: it contradicts what was acknowledged, so wait whether the segment arrives after all.
            self.path().claim = Some(Claim { seq: error.seq, mss });
            return TooBig::Delayed;
        }
        self.shrink(mss, now);
        TooBig::Believed(mss)
    }

    /// Whether it is about a probe, and what is known to pass remains so.
    fn refutes_sounding(&self, seq: SeqNum, mss: u16) -> bool {
        let sounding = self.known_path().and_then(|path| path.sounding);
        sounding.is_some_and(|s| seq.within(s.start, s.end)) && mss >= self.queue.path_mss
    }

    /// Segments of at most `mss` from now on; what is in flight and larger goes again at once.
    fn shrink(&mut self, mss: u16, now: Instant) {
        self.queue.path_mss = mss;
        self.queue.passed = self.queue.passed.min(mss);
        let path = self.path();
        (path.high, path.raise_at) = (mss, now + RAISE);
        (path.sounding, path.claim) = (None, None);
        self.queue.lose_larger(mss);
        self.refit(self.queue.nxt(), now);
    }

    /// What is marked lost was too large: that says nothing about congestion (RFC 4821 7.6.2(b), RFC 1191 6.4(a), RFC 8201 5.4(a)), so it is
    /// sent again without a reduction.
    fn refit(&mut self, point: SeqNum, now: Instant) {
        self.end_probe();
        self.rto_base = now;
        if matches!(self.recovery(), Recovery::Open) {
            self.set_recovery(Recovery::Refit { point });
        }
        self.rearm(now);
    }

    /// No progress since a router said that a segment is too big, or that segment is lost: then it was right.
    pub(super) fn confirm_claim(&mut self, now: Instant) -> bool {
        let Some(claim) = self.known_path().and_then(|path| path.claim) else { return false };
        let open = self.queue.size_in_flight(claim.seq).is_some_and(|size| size > claim.mss);
        self.path().claim = None;
        if open {
            self.path().tally.believed += 1;
            self.shrink(claim.mss, now);
        }
        open
    }

    /// Whether what is lost is lost because of its size; if so, it is dealt with.
    pub(super) fn explain_loss(&mut self, now: Instant) -> bool {
        let Some(path) = self.known_path() else { return false };
        if let Some(claim) = path.claim
            && self.queue.is_lost(claim.seq)
        {
            return self.confirm_claim(now);
        }
        let Some(sounding) = path.sounding else { return false };
        match self.queue.lost_within(sounding.start, sounding.end) {
            0 => false,
            // RFC 4821 7.6.2(a): an isolated loss.
            lost if lost == self.queue.lost() => {
                let high = sounding.size - 1;
                self.fail_sounding(high, now);
                true
            }
            _ => {
                self.path().sounding = None; // RFC 4821 7.6.4: lost with others, so nothing is learnt
                false
            }
        }
    }

    fn fail_sounding(&mut self, high: u16, now: Instant) {
        let low = self.queue.path_mss;
        let path = self.path();
        let Some(sounding) = path.sounding.take() else { return };
        path.tally.fail += 1;
        (path.high, path.raise_at) = (high.max(low), now + RAISE);
        self.queue.lose_range(sounding.start, sounding.end);
        self.refit(sounding.end, now);
    }

    /// What an ACK says about sizes: `largest` of the segments that it reports for the first time.
    pub(super) fn on_delivered_size(&mut self, largest: u16) {
        self.queue.passed = self.queue.passed.max(largest.min(self.queue.path_mss));
        let una = self.queue.una();
        let Some(path) = self.known_path_mut() else { return };
        if path.claim.is_some_and(|claim| claim.seq.before(una)) {
            path.claim = None; // it arrived: the claim was false
        }
        let Some(sounding) = path.sounding else { return };
        if largest >= sounding.size {
            path.sounding = None;
            path.tally.success += 1;
            self.queue.passed = sounding.size;
            self.widen(sounding.size);
        } else if sounding.end.at_or_before(una) {
            path.sounding = None; // it arrived in smaller pieces
        }
    }

    /// Segments of up to `mss` from now on; the window holds at least one, also right after a timeout.
    fn widen(&mut self, mss: u16) {
        self.queue.path_mss = mss;
        self.congestion.set_cwnd(self.congestion.cwnd().max(mss.into()));
    }

    /// A retransmission timeout (RFC 4821 7.6.3, 7.7).
    pub(super) fn suspect_black_hole(&mut self, now: Instant) {
        let una = self.queue.una();
        if let Some(path) = self.known_path_mut()
            && let Some(sounding) = path.sounding.take()
            && sounding.start == una
        {
            path.tally.fail += 1;
            (path.high, path.raise_at) = (sounding.size - 1, now + RAISE);
        }
        if self.cfg.mtu_probing == MtuProbing::Off || self.rtt.timeouts < BLACK_HOLE_TIMEOUTS {
            return;
        }
        let low = self.queue.path_mss;
        let target = match self.cfg.base_mss {
            base if low > base => base,
            _ if self.rtt.timeouts < 2 * BLACK_HOLE_TIMEOUTS => return,
            _ => (low / 2).max(MIN_MSS),
        };
        let size = self.queue.size_in_flight(una);
        if low <= target || size.is_none_or(|size| size <= target) {
            return;
        }
        self.queue.path_mss = target;
        self.queue.passed = 0;
        let ceiling = self.ceiling();
        let path = self.path();
        (path.high, path.raise_at) = (ceiling, now + RAISE);
        path.tally.black_holes += 1;
    }

    /// A probe, if the search goes on and there is text for it (RFC 4821 7.5): one segment of new text.
    pub(super) fn poll_sounding(&mut self, now: Instant) -> Option<TxSegment> {
        let (low, ceiling, options) = (self.queue.path_mss, self.ceiling(), self.options_len());
        let probing = self.cfg.mtu_probing;
        let path = self.known_path_mut()?;
        if path.raise_at <= now && path.high < ceiling {
            (path.high, path.raise_at, path.believed) = (ceiling, now + RAISE, 0);
            if probing == MtuProbing::Off {
                self.widen(ceiling); // RFC 1191 6.3
                return None;
            }
        }
        if probing == MtuProbing::Off || path.sounding.is_some() || path.claim.is_some() {
            return None;
        }
        let size = path.next_size(low, ceiling, options as u16)?;
        let text = u32::from(size) - options;
        if !self.may_sound(text, now) {
            return None;
        }
        let start = self.queue.nxt();
        self.path().sounding = Some(Sounding { start, end: start + text, size });
        Some(self.send_new(text, now))
    }

    /// RFC 4821 7.4: nothing is wrong, there is as much new text under one label, and both windows take it.
    fn may_sound(&self, text: u32, now: Instant) -> bool {
        let mss = self.mss(self.room);
        matches!(self.recovery(), Recovery::Open)
            && self.queue.lost() == 0
            && self.queue.sacked() == 0
            && self.probe().is_none()
            && self.queue.run(text) == text
            && self.window_room() >= text
            && self.cwnd_room() >= mss
            && self.burst(mss, now).is_some()
            && self.congestion.cwnd() >= text + 3 * mss
    }

    /// Octets of text that go into one segment at `seq`, which is sent for the first time.
    pub(super) fn segment_limit(&self, seq: SeqNum) -> u32 {
        let mss = self.mss(self.room);
        match self.known_path().and_then(|path| path.sounding) {
            Some(sounding) if sounding.start == seq => sounding.end.since(sounding.start),
            _ => mss,
        }
    }

    /// What happened to the path since the last call.
    pub fn drain_mtu_tally(&mut self) -> MtuTally {
        self.known_path_mut().map_or(MtuTally::NONE, |path| core::mem::take(&mut path.tally))
    }
}
