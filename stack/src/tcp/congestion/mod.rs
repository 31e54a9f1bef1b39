//! Congestion control: a window in octets, grown by ACKs and cut by loss (RFC 5681; MAY-18 for the others).
#![forbid(unsafe_code)]

mod bbr;
mod bbr_model;
mod bbr_probe;
mod cubic;
mod hystart;
mod max_filter;
mod newreno;
mod rate;

use super::Algorithm;
use super::pacing::MIN_RATE;
use crate::time::{Duration, Instant};
use crate::wire::SeqNum;
use alloc::boxed::Box;
use bbr::Bbr;
use cubic::Cubic;
use hystart::{HyStart, Verdict};
use newreno::NewReno;
pub(super) use rate::Departure;

/// IW is ten segments, but not above this many octets unless two segments are longer (RFC 6928 2).
const INITIAL_WINDOW: u32 = 14_600;

/// What an ACK tells congestion control.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    pub(super) now: Instant,
    /// Octets newly delivered, in order or by SACK.
    pub(super) octets: u32,
    /// Sender MSS.
    pub(super) mss: u32,
    /// A round-trip measurement made with this ACK.
    pub(super) sample: Option<Duration>,
    pub(super) srtt: Duration,
    pub(super) una: SeqNum,
    pub(super) nxt: SeqNum,
    /// Whether the window was what held the sender back.
    pub(super) limited: Limited,
}

/// What an ACK tells an algorithm that models the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub(super) now: Instant,
    /// Octets newly delivered, in order or by SACK.
    pub(super) octets: u32,
    /// The latest transmission among them, by its number; 0: none.
    pub(super) newest: u64,
    /// The earliest transmission that may still be under way, if there is one.
    pub(super) oldest: Option<u64>,
    /// A round-trip measurement made with this ACK, of what was sent last.
    pub(super) sample: Option<Duration>,
    /// Octets in the network.
    pub(super) inflight: u32,
    pub(super) mss: u32,
    pub(super) limited: Limited,
    /// Loss recovery goes on.
    pub(super) recovering: bool,
}

/// Octets that were marked lost: all of one transmission or part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) now: Instant,
    pub(super) number: u64,
    pub(super) seq: SeqNum,
    pub(super) octets: u32,
}

/// What kept the sender from sending more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limited {
    ByCwnd,
    /// RFC 7661 4.3: a window that is not used says nothing about the path, so it does not grow.
    ByApplication,
}

#[derive(Clone, Debug)]
enum Growth {
    /// The first slow start: watched once the window is in use. Most flows end before it does.
    Watched(Algorithm, Option<Box<HyStart>>),
    NewReno(NewReno),
    Cubic(Box<Cubic>),
    Bbr(Box<Bbr>),
}

/// The window of one flow.
#[derive(Clone, Debug)]
pub(super) struct Congestion {
    cwnd: u32,
    ssthresh: u32,
    growth: Growth,
}

const _: () = assert!(size_of::<Congestion>() == 24);

/// IW for `mss` (RFC 6928 2).
pub(super) fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(INITIAL_WINDOW))
}

impl Congestion {
    pub(super) fn new(algorithm: Algorithm, mss: u32) -> Congestion {
        Congestion {
            cwnd: initial_window(mss),
            ssthresh: u32::MAX,
            growth: Growth::Watched(algorithm, None),
        }
    }

    pub(super) fn cwnd(&self) -> u32 {
        self.cwnd
    }

    pub(super) fn ssthresh(&self) -> u32 {
        self.ssthresh
    }

    /// Octets per second to pace at, as Linux does it: fast enough for the window to double, then to grow.
    pub(super) fn pacing_rate(&self, srtt: Option<Duration>) -> Option<u64> {
        if let Growth::Bbr(bbr) = &self.growth {
            return Some(bbr.pacing_rate());
        }
        let round = u64::try_from(srtt?.as_nanos()).unwrap_or(u64::MAX).max(1);
        let percent = if self.cwnd < self.ssthresh / 2 { 200 } else { 120 };
        Some((u64::from(self.cwnd) * percent * 10_000_000 / round).max(MIN_RATE))
    }

    /// While recovery decides on the window (RFC 9937), which BBR never lets it.
    pub(super) fn set_cwnd(&mut self, cwnd: u32) {
        if !self.models_path() {
            self.cwnd = cwnd;
        }
    }

    /// Whether it wants to be told of all that is sent, delivered and lost.
    pub(super) fn models_path(&self) -> bool {
        matches!(self.growth, Growth::Bbr(_) | Growth::Watched(Algorithm::Bbr, _))
    }

    /// Text leaves.
    pub(super) fn on_sent(
        &mut self,
        sent: Departure,
        mss: u32,
        srtt: Option<Duration>,
        sack: Sack,
    ) {
        if let Growth::Watched(Algorithm::Bbr, _) = self.growth {
            self.growth = Growth::Bbr(Box::new(Bbr::new(&sent, mss, srtt, sack)));
        }
        if let Growth::Bbr(bbr) = &mut self.growth {
            self.cwnd = bbr.on_sent(sent, self.cwnd);
        }
    }

    /// An ACK, in whatever state of recovery.
    pub(super) fn on_delivery(&mut self, delivery: &Delivery) {
        if let Growth::Bbr(bbr) = &mut self.growth {
            self.cwnd = bbr.on_ack(self.cwnd, delivery);
        }
    }

    /// Octets were marked lost.
    pub(super) fn on_lost(&mut self, lost: Lost) {
        if let Growth::Bbr(bbr) = &mut self.growth {
            bbr.on_lost(lost, self.cwnd);
        }
    }

    /// Octets per second that the network delivers, and whether the application kept that down.
    pub(super) fn delivery_rate(&self) -> Option<(u64, Limited)> {
        let Growth::Bbr(bbr) = &self.growth else { return None };
        let limited = if bbr.is_app_limited() { Limited::ByApplication } else { Limited::ByCwnd };
        Some((bbr.delivery_rate(), limited))
    }

    fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// Grows the window. Not called during fast recovery.
    pub(super) fn on_ack(&mut self, ack: Ack) {
        if self.models_path() {
            return;
        }
        if ack.limited == Limited::ByApplication {
            if let Growth::Cubic(cubic) = &mut self.growth {
                cubic.pause(ack.now);
            }
            return;
        }
        if self.in_slow_start() {
            // RFC 3465 2.2: by what was delivered. No limit per ACK (RFC 3465 2.3's L): receivers that merge segments
            // acknowledge dozens at once, and octets that SACK reported before are not counted again after a timeout.
            let (grown, verdict) = match &mut self.growth {
                Growth::Watched(_, watch) => {
                    let watch = watch.get_or_insert_default();
                    (watch.growth(ack.octets), watch.on_ack(&ack))
                }
                _ => (ack.octets, Verdict::GoOn),
            };
            // RFC 5681 3.1(b): up to ssthresh.
            self.cwnd = self.cwnd.saturating_add(grown).min(self.ssthresh.max(self.cwnd));
            if verdict == Verdict::LeaveSlowStart {
                self.end_first_slow_start();
                self.ssthresh = self.cwnd;
            }
            return;
        }
        let grown = match &mut self.growth {
            Growth::NewReno(reno) => reno.growth(self.cwnd, &ack),
            Growth::Cubic(cubic) => cubic.growth(self.cwnd, &ack),
            Growth::Watched(..) | Growth::Bbr(_) => 0,
        };
        self.cwnd = self.cwnd.saturating_add(grown);
    }

    /// Loss was found without a timeout: one reduction, however much was lost. The window itself is left to PRR.
    pub(super) fn on_loss(&mut self, flight: u32, mss: u32) {
        if let Growth::Bbr(bbr) = &mut self.growth {
            return bbr.note_loss(self.cwnd); // what it makes of it, ACKs will tell
        }
        self.end_first_slow_start();
        let target = match &mut self.growth {
            Growth::NewReno(reno) => reno.reduce(flight),
            Growth::Cubic(cubic) => cubic.reduce(self.cwnd, flight, mss),
            Growth::Watched(..) | Growth::Bbr(_) => self.ssthresh,
        };
        self.ssthresh = target.max(2 * mss); // RFC 5681 3.1(d), RFC 9438 4.6: no less than two segments
    }

    /// A mark instead of a loss (RFC 3168 6.1.2): there is nothing to repair, so the window is cut at once.
    pub(super) fn on_congestion_experienced(&mut self, flight: u32, mss: u32, abe: bool) {
        if let Growth::Bbr(bbr) = &mut self.growth {
            return bbr.on_marked(self.cwnd);
        }
        let before = self.cwnd;
        let in_slow_start = self.in_slow_start();
        self.on_loss(flight, mss);
        // RFC 8511 3.1(a): in slow start the window may be twice what the path carries, and a mark is as good as a loss.
        if abe && !in_slow_start {
            let (by, of) = match self.growth {
                Growth::NewReno(_) => (80, 50),
                Growth::Cubic(_) | Growth::Watched(..) | Growth::Bbr(_) => (85, 70),
            };
            self.ssthresh = (u64::from(self.ssthresh) * by / of).min(u64::from(before)) as u32;
        }
        self.cwnd = self.ssthresh.min(before);
    }

    /// RFC 9406 4.3(a): from here on the algorithm decides, in later slow starts as well.
    fn end_first_slow_start(&mut self) {
        self.growth = match self.growth {
            Growth::Watched(Algorithm::NewReno, _) => Growth::NewReno(NewReno::default()),
            Growth::Watched(Algorithm::Cubic, _) => Growth::Cubic(Box::default()),
            Growth::Watched(Algorithm::Bbr, _) => return,
            Growth::NewReno(_) | Growth::Cubic(_) | Growth::Bbr(_) => return,
        };
    }

    /// A retransmission timeout; `first`: of this loss event (RFC 5681 3.1(e): ssthresh is cut once).
    pub(super) fn on_timeout(&mut self, flight: u32, mss: u32, event: LossEvent) {
        if let Growth::Bbr(bbr) = &mut self.growth {
            self.cwnd = bbr.on_timeout(self.cwnd);
            return;
        }
        if event == LossEvent::New {
            self.on_loss(flight, mss);
        }
        if let Growth::Cubic(cubic) = &mut self.growth {
            cubic.on_timeout();
        }
        self.cwnd = mss; // RFC 5681 3.1(e): the loss window
    }

    /// What [`Congestion::undo`] needs. BBR remembers for itself.
    pub(super) fn before_loss(&self) -> Congestion {
        if self.models_path() {
            return Congestion { growth: Growth::Watched(Algorithm::Bbr, None), ..*self };
        }
        self.clone()
    }

    /// The loss was none: as before it, but never less than now (RFC 4015 3.2 step 6, RFC 9438 4.9).
    pub(super) fn undo(&mut self, before: Congestion) {
        if let Growth::Bbr(bbr) = &mut self.growth {
            self.cwnd = bbr.on_spurious(self.cwnd);
            return;
        }
        let cwnd = self.cwnd.max(before.cwnd);
        *self = Congestion { cwnd, ..before };
    }

    /// Nothing was sent for longer than RTO (RFC 5681 4.1: the restart window).
    pub(super) fn on_idle(&mut self, mss: u32) {
        if self.models_path() {
            return; // what it knows of the path grows old by its own rules, and it paces
        }
        self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3); // RFC 7661 4.4.2: remember what the path carried
        self.cwnd = self.cwnd.min(initial_window(mss));
        if let Growth::Cubic(cubic) = &mut self.growth {
            cubic.restart();
        }
    }
}

/// Whether the peer tells what arrived out of order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sack {
    Agreed,
    No,
}

/// Whether a timeout continues a loss event that was answered already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LossEvent {
    New,
    Known,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(octets: u32, limited: Limited) -> Ack {
        Ack {
            now: Instant::from_millis(100),
            octets,
            mss: 1000,
            sample: None,
            srtt: Duration::from_millis(50),
            una: SeqNum(0),
            nxt: SeqNum(100_000),
            limited,
        }
    }

    /// RFC 6928 2.
    #[test]
    fn the_initial_window_is_ten_segments() {
        assert_eq!(initial_window(1460), 14_600);
        assert_eq!(initial_window(536), 5_360);
        assert_eq!(initial_window(9000), 18_000);
    }

    /// RFC 5681 3.1(a), RFC 3465 2.2: by what is acknowledged. RFC 7661 4.3: only if the window was in use.
    #[test]
    fn slow_start_doubles_and_an_application_limited_window_stays() {
        for algorithm in [Algorithm::NewReno, Algorithm::Cubic] {
            let mut cc = Congestion::new(algorithm, 1000);
            cc.on_ack(ack(10_000, Limited::ByApplication));
            assert_eq!(cc.cwnd(), 10_000);
            cc.on_ack(ack(10_000, Limited::ByCwnd));
            assert_eq!(cc.cwnd(), 20_000);
        }
    }

    /// RFC 5681 3.1(b): slow start ends at ssthresh, however much one ACK acknowledges.
    #[test]
    fn slow_start_does_not_overshoot_ssthresh() {
        let mut cc = Congestion::new(Algorithm::Cubic, 1000);
        cc.on_timeout(40_000, 1000, LossEvent::New);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (1000, 28_000));
        cc.on_ack(ack(20_000, Limited::ByCwnd));
        cc.on_ack(ack(20_000, Limited::ByCwnd));
        assert_eq!(cc.cwnd(), 28_000);
    }

    /// RFC 9406 4.3(a): a delay in a later slow start, which ends at ssthresh anyway, is nothing to HyStart++.
    #[test]
    fn only_the_first_slow_start_is_watched() {
        let mut cc = Congestion::new(Algorithm::NewReno, 1000);
        cc.on_timeout(400_000, 1000, LossEvent::New);
        for round in 0..10u32 {
            for _ in 0..10 {
                let sample = Some(Duration::from_millis(50 + 20 * u64::from(round)));
                let (una, nxt) = (SeqNum(round * 10_000 + 10_000), SeqNum(round * 10_000 + 20_000));
                cc.on_ack(Ack { sample, una, nxt, ..ack(1000, Limited::ByCwnd) });
            }
        }
        assert_eq!((cc.cwnd(), cc.ssthresh()), (101_000, 200_000));
    }

    /// RFC 5681 3.1(d): half of what is in flight, two segments at least; RFC 9438 4.6: 0.7 of it.
    #[test]
    fn ssthresh_is_a_share_of_the_flight() {
        for (algorithm, share) in [(Algorithm::NewReno, 5), (Algorithm::Cubic, 7)] {
            let mut cc = Congestion::new(algorithm, 1000);
            cc.on_loss(50_000, 1000);
            assert_eq!(cc.ssthresh(), 5000 * share);
            cc.on_loss(1000, 1000);
            assert_eq!(cc.ssthresh(), 2000);
        }
    }

    /// RFC 5681 4.1: the restart window; RFC 7661 4.4.2: and what the path carried is not forgotten.
    #[test]
    fn after_idling_the_window_starts_again() {
        for algorithm in [Algorithm::NewReno, Algorithm::Cubic] {
            let mut cc = Congestion::new(algorithm, 1000);
            cc.on_loss(40_000, 1000);
            cc.set_cwnd(80_000);
            cc.on_idle(1000);
            assert_eq!((cc.cwnd(), cc.ssthresh()), (10_000, 60_000));
        }
    }

    /// RFC 5681 3.1(c), RFC 3465 2.1.
    #[test]
    fn newreno_grows_one_segment_per_window_and_halves() {
        let mut cc = Congestion::new(Algorithm::NewReno, 1000);
        cc.on_loss(20_000, 1000);
        cc.set_cwnd(cc.ssthresh());
        assert_eq!(cc.cwnd(), 10_000);
        (0..10).for_each(|_| cc.on_ack(ack(1000, Limited::ByCwnd)));
        assert_eq!(cc.cwnd(), 11_000);
    }

    /// RFC 5681 3.1(e): the loss window is one segment, and ssthresh is cut once.
    #[test]
    fn a_second_timeout_of_one_event_leaves_ssthresh() {
        let mut cc = Congestion::new(Algorithm::Cubic, 1000);
        cc.on_timeout(10_000, 1000, LossEvent::New);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (1000, 7000));
        cc.on_timeout(1000, 1000, LossEvent::Known);
        assert_eq!((cc.cwnd(), cc.ssthresh()), (1000, 7000));
    }
}
