//! What an acceptable ACK changes: the scoreboard, round-trip time, loss recovery, congestion window (RFC 5681, 8985).
#![forbid(unsafe_code)]

use super::congestion::{Ack, Delivery, Limited};
use super::recovery::{DUP_THRESH, Delivered, Frto, Original, Prr, Recovery, Safety};
use super::send_queue::Renege;
use super::tcb::Tcb;
use super::{Arrival, TcpEvents};
use crate::time::{Duration, Instant};
use crate::wire::{Options, SackBlock, Segment, SegmentOptions, SeqNum};
use arrayvec::ArrayVec;

/// Least patience with a peer that seems to have thrown away what it had SACKed, as Linux.
const RENEGE_PATIENCE: Duration = Duration::from_millis(10);

/// An echo that is older, in ms, is no measurement.
const MAX_ECHO: u32 = 120_000;

/// What one ACK did to the scoreboard.
pub(super) struct Progress {
    /// Octets of sequence space acknowledged in order.
    pub(super) advanced: u32,
    /// Octets newly delivered, in order or not.
    pub(super) delivered: u32,
    /// A duplicate that the peer reports.
    pub(super) dsack: Option<SackBlock>,
    /// RTT of the newest octets that were sent once.
    pub(super) sample: Option<Duration>,
    /// An RTT, by timestamps if nothing was sent only once.
    pub(super) measured: Option<Duration>,
    pub(super) original: Original,
    /// The latest transmission that was delivered, by its number.
    newest: u64,
    pub(super) newly_lost: u32,
}

/// Whether an ACK says for the second time what was said before (RFC 5681 2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duplicate {
    No,
    Yes,
}

impl Tcb {
    /// SEG.ACK is at most nxt. Returns octets of text newly acknowledged in order. An ACK from before una that was overtaken
    /// may still tell what was SACKed.
    pub(super) fn take_ack(&mut self, seg: &Segment, arrival: &Arrival, now: Instant) -> u32 {
        let una = self.queue.una();
        let Some(told) = seg.ack else { return 0 };
        let ack = told.max(una);
        if told.before(una) && !self.agreed.sack {
            return 0;
        }
        let pipe_before = self.queue.pipe();
        let (acked, mut progress) = self.update_scoreboard(seg, ack, now);
        if progress.advanced > 0 {
            self.rtt.timeouts = 0;
            self.rto_base = now; // RFC 6298 5.3
            self.restart_user_timeout();
            self.sums.bytes_acked += u64::from(acked);
            self.note_renege(now);
        }
        if progress.delivered > 0
            && let Some(spell) = self.queue.spell_mut()
        {
            spell.pto_base = now;
        }
        let duplicate = duplicate(seg, told == una, arrival, &progress);
        if let Some(block) = progress.dsack {
            self.note_dsack(block);
        }
        self.finish_probe(ack, duplicate, &progress);
        self.check_spurious(seg, ack, &progress, now);
        progress.newly_lost = if self.agreed.sack {
            self.detect_loss(now)
        } else {
            self.count_duplicates(duplicate, &mut progress)
        };
        let recovering = matches!(self.recovery(), Recovery::Fast { .. });
        self.run_recovery(ack, &progress, now);
        if self.congestion.models_path() {
            self.model_path(una, &progress, now);
        } else if !recovering {
            self.grow(una, pipe_before, &progress, now);
        }
        self.queue.rest();
        acked
    }

    fn update_scoreboard(&mut self, seg: &Segment, ack: SeqNum, now: Instant) -> (u32, Progress) {
        let empty = SegmentOptions::default();
        let options = match &seg.options {
            Options::Segment(options) => options,
            Options::Syn(_) => &empty,
        };
        let echo = match (self.agreed.timestamps, options.timestamps) {
            (Some(stamps), Some(ts)) => Some((ts.ecr, stamps.offset)),
            _ => None,
        };
        let una = self.queue.una();
        let sacked_before = self.queue.sacked();
        let min_rtt = self.rtt.min().unwrap_or_default();
        let mss = self.mss(self.room);
        let point = match self.recovery() {
            Recovery::Loss { point, .. } => Some(*point),
            Recovery::Open | Recovery::Fast { .. } | Recovery::Refit { .. } => None,
        };
        let (dsack, blocks) = match &options.sack[..] {
            [] => (None, ArrayVec::new()),
            _ if !self.agreed.sack => (None, ArrayVec::new()),
            sack => self.sort_blocks(sack, seg.ack.unwrap_or(ack), ack),
        };
        let reordering = self.rack.reordering_seen();
        let original = Original::None;
        let rack = &mut self.rack;
        let mut told = Delivered {
            rack,
            now,
            min_rtt,
            echo,
            clean: None,
            largest: 0,
            newest: 0,
            point,
            original,
        };
        let acked = self.queue.ack(ack, mss, &mut told);
        for block in blocks {
            self.queue.sack(block, mss, &mut told);
        }
        let (clean, original, largest) = (told.clean, told.original, told.largest);
        let newest = told.newest;
        self.on_delivered_size(largest);
        let advanced = ack.since(una);
        let delivered = (advanced + self.queue.sacked()).saturating_sub(sacked_before);
        if self.rack.reordering_seen() && !reordering {
            self.trouble().events.TCPSACKReorder += 1;
        }
        let sample = clean.map(|(_, last)| now.since(last));
        let first = clean.map(|(first, _)| now.since(first));
        let measured = first.or_else(|| echo.filter(|_| advanced > 0).and_then(|e| echoed(e, now)));
        if let Some(r) = measured {
            self.on_measured(r, now);
        }
        let newly_lost = 0;
        (
            acked,
            Progress { advanced, delivered, dsack, sample, measured, original, newest, newly_lost },
        )
    }

    /// Karn: a segment that was sent again tells the RTT only by its timestamp; until something does, the backoff stays.
    fn on_measured(&mut self, r: Duration, now: Instant) {
        self.rtt.on_sample(r, now);
        self.rtt.reset_backoff();
        if let Some(trouble) = &mut self.trouble {
            trouble.unmeasured = false;
        }
    }

    /// The duplicate that is reported, and what is held beyond holes, lowest first. What cannot be true is dropped and
    /// counted; what is merely old is not.
    fn sort_blocks(
        &mut self,
        sack: &[SackBlock],
        told: SeqNum,
        una: SeqNum,
    ) -> (Option<SackBlock>, ArrayVec<SackBlock, 4>) {
        let (nxt, most) = (self.queue.nxt(), self.snd.max);
        let mut events = TcpEvents::default();
        let (mut dsack, mut blocks) = (None, ArrayVec::new());
        for (i, block) in sack.iter().enumerate() {
            let old = i == 0 && block.left.before(told);
            if i == 0 && is_dsack(*block, sack.get(1), told) {
                let len = block.right.since(block.left);
                if (1..=most).contains(&len) && block.right.at_or_before(nxt) {
                    events.TCPDSACKRecv += u32::from(old);
                    events.TCPDSACKOfoRecv += u32::from(!old);
                    dsack = Some(*block);
                } else {
                    events.TCPDSACKIgnoredDubious += 1;
                }
            } else if is_outstanding(*block, una, nxt) {
                let _ = blocks.try_push(*block);
            } else if told == una || una.before(block.right) {
                events.TCPSACKDiscard += 1;
            }
        }
        blocks.sort_unstable_by_key(|block| block.left.since(una));
        if events != TcpEvents::default() {
            self.trouble().events.add(&events);
        }
        (dsack, blocks)
    }

    /// una has come to what the peer had SACKed. If it does not go on soon, the peer has thrown it away (RFC 2018 8).
    fn note_renege(&mut self, now: Instant) {
        let patience = (self.rtt.srtt().unwrap_or_default() / 2).max(RENEGE_PATIENCE);
        let reneged = self.queue.reneged();
        if let Some(spell) = self.queue.spell_mut() {
            spell.reneged = (reneged == Renege::Yes).then_some(now + patience);
        }
    }

    /// RFC 8985 7.4.2: did the probe repair a loss that nothing else would show?
    fn finish_probe(&mut self, ack: SeqNum, duplicate: Duplicate, progress: &Progress) {
        let Some(probe) = self.probe() else { return };
        if ack.before(probe.end) {
            return;
        }
        // Both copies arrived if the peer says so, or says nothing new twice.
        let twice = progress.dsack.is_some_and(|block| block.right == probe.end)
            || (duplicate == Duplicate::Yes && progress.delivered == 0 && ack == probe.end);
        if probe.again && !twice {
            if ack == probe.end {
                return; // the other copy may be on its way
            }
            // One copy alone arrived: the probe hid a loss from us. Answer it once.
            let mss = self.mss(self.room);
            self.remember();
            self.congestion.on_loss(probe.flight.min(self.congestion.cwnd()), mss);
            self.congestion.set_cwnd(self.congestion.ssthresh().min(self.congestion.cwnd()));
            self.agreed.ecn.on_reduced();
            self.trouble().events.TCPLossProbeRecovery += 1;
        }
        self.end_probe();
    }

    pub(super) fn reo_wnd(&self) -> Duration {
        let recovering = !matches!(self.recovery(), Recovery::Open);
        self.rack.reo_wnd(&self.rtt, recovering, self.queue.sacked_segments())
    }

    /// RACK (RFC 8985 6.2 step 5). Returns octets newly lost.
    pub(super) fn detect_loss(&mut self, now: Instant) -> u32 {
        let newest = self.queue.spell().and_then(|spell| spell.newest());
        let Some((number, end)) = newest else { return 0 };
        let (before, relost) = (self.queue.lost(), self.queue.relost());
        let patience = self.rack.rtt() + self.reo_wnd();
        let timer = self.queue.lose_older(number, end, patience, now, &mut self.congestion);
        if let Some(spell) = self.queue.spell_mut() {
            spell.reorder_timer = timer;
        }
        let lost = self.queue.lost() - before;
        self.count_lost(lost);
        let relost = self.queue.relost() - relost;
        if relost > 0 {
            self.trouble().events.TCPLostRetransmit += relost;
        }
        lost
    }

    pub(super) fn count_lost(&mut self, octets: u32) {
        if octets > 0 {
            self.trouble().lost += u64::from(octets);
        }
    }

    /// Loss detection without SACK: three duplicates, then a partial ACK at a time (RFC 6582 3.2). A duplicate says that a
    /// segment was delivered; an ACK that advances does not say so again.
    fn count_duplicates(&mut self, duplicate: Duplicate, progress: &mut Progress) -> u32 {
        let mss = self.mss(self.room);
        let before = self.queue.lost();
        let (una, flight) = (self.queue.una(), self.queue.flight());
        let fresh = !self.queue.first_was_resent();
        let Some(spell) = self.queue.spell_mut() else { return 0 };
        let first_lost = if progress.advanced > 0 {
            let segments = progress.advanced.div_ceil(mss);
            let new = progress.advanced.saturating_sub(spell.dup_acks.saturating_mul(mss));
            match &spell.recovery {
                Recovery::Fast { point, .. } if una.before(*point) => {
                    progress.delivered = new.max(mss);
                    spell.dup_acks = spell.dup_acks.saturating_sub(segments - 1);
                    true
                }
                // What the timeout did not take for lost (RFC 8985 6.3) and is the next hole, is lost.
                Recovery::Loss { point, frto: Frto::Off } => {
                    spell.dup_acks = 0;
                    una.before(*point) && fresh
                }
                _ => {
                    spell.dup_acks = 0;
                    false
                }
            }
        } else if duplicate == Duplicate::Yes && flight > 0 {
            progress.delivered = mss;
            spell.dup_acks = (spell.dup_acks + 1).min(flight / mss + 1);
            let again = spell.recover == Some(una);
            spell.dup_acks == DUP_THRESH && matches!(spell.recovery, Recovery::Open) && !again
        } else {
            false
        };
        if first_lost {
            self.queue.lose_first(mss.min(flight));
        }
        let lost = self.queue.lost().saturating_sub(before);
        self.count_lost(lost);
        lost
    }

    /// Octets that duplicate ACKs say have left the network, where there is no SACK to say which.
    pub(super) fn inflight(&self) -> u32 {
        if self.agreed.sack {
            return self.queue.pipe();
        }
        self.queue.pipe().saturating_sub(self.left_by_duplicates())
    }

    /// Of FlightSize what cwnd let out (RFC 5681 3.1: not what Limited Transmit added). While una stands still, what was
    /// SACKed would count again and again.
    pub(super) fn flight_let_out(&self) -> u32 {
        self.queue.flight().min(self.congestion.cwnd())
    }

    fn left_by_duplicates(&self) -> u32 {
        let dup_acks = self.queue.spell().map_or(0, |spell| spell.dup_acks);
        dup_acks.saturating_mul(self.mss(self.room)).min(self.queue.flight())
    }

    /// Fast recovery begins when something is lost: one reduction per round, however much is found later.
    pub(super) fn enter_recovery_if_lost(&mut self, delivered: u32, now: Instant) {
        if self.queue.lost() == 0 || !matches!(self.recovery(), Recovery::Open) {
            return;
        }
        if self.explain_loss(now) {
            return;
        }
        let mss = self.mss(self.room);
        self.remember();
        self.count_recovery();
        self.agreed.ecn.on_reduced();
        self.congestion.on_loss(self.flight_let_out(), mss);
        // RFC 9937 6: RecoverFS.
        let held = if self.agreed.sack { self.queue.sacked() } else { self.left_by_duplicates() };
        let recover_fs = self.queue.flight() - held + delivered;
        let mut prr = Prr::new(recover_fs);
        let cwnd =
            prr.on_ack(delivered, self.inflight(), self.congestion.ssthresh(), mss, Safety::Unsafe);
        self.congestion.set_cwnd(cwnd.max(mss));
        let point = self.queue.nxt();
        if let Some(spell) = self.queue.spell_mut() {
            spell.recovery = Recovery::Fast { point, prr };
            spell.reduced_until = Some(point);
        }
    }

    fn count_recovery(&mut self) {
        let sack = self.agreed.sack;
        let trouble = self.trouble();
        trouble.recoveries += 1;
        trouble.events.TCPSackRecovery += u32::from(sack);
        trouble.events.TCPRenoRecovery += u32::from(!sack);
    }

    fn run_recovery(&mut self, ack: SeqNum, progress: &Progress, now: Instant) {
        match self.recovery() {
            Recovery::Open => {}
            Recovery::Loss { point, .. } | Recovery::Refit { point } if ack.before(*point) => {
                return;
            }
            Recovery::Fast { point, .. } if ack.before(*point) => {
                self.reduce_rate(progress);
                return;
            }
            Recovery::Refit { .. } => self.set_recovery(Recovery::Open),
            Recovery::Loss { .. } => self.end_recovery(ack),
            Recovery::Fast { .. } => {
                // RFC 9937 6(e), but at most ten segments at once; slow start has the rest of the way to ssthresh.
                let mss = self.mss(self.room);
                let burst = self.queue.pipe().saturating_add(10 * mss);
                self.congestion.set_cwnd(self.congestion.ssthresh().min(burst));
                self.end_recovery(ack);
            }
        }
        self.enter_recovery_if_lost(progress.delivered, now);
    }

    fn end_recovery(&mut self, ack: SeqNum) {
        let sack = self.agreed.sack;
        if let Some(spell) = self.queue.spell_mut() {
            spell.recovery = Recovery::Open;
            spell.recover = (!sack).then_some(ack);
        }
        self.rack.on_recovery_exit();
    }

    fn reduce_rate(&mut self, progress: &Progress) {
        let mss = self.mss(self.room);
        let (pipe, ssthresh) = (self.inflight(), self.congestion.ssthresh());
        let safety = if progress.advanced > 0 && progress.newly_lost == 0 {
            Safety::Safe
        } else {
            Safety::Unsafe
        };
        let delivered = progress.delivered;
        if let Some(spell) = self.queue.spell_mut()
            && let Recovery::Fast { prr, .. } = &mut spell.recovery
            && delivered > 0
        {
            let cwnd = prr.on_ack(delivered, pipe, ssthresh, mss, safety);
            self.congestion.set_cwnd(cwnd.max(mss));
        }
    }

    /// For BBR, which looks at every ACK that delivers something.
    fn model_path(&mut self, una: SeqNum, progress: &Progress, now: Instant) {
        if progress.delivered == 0 {
            return;
        }
        let limited = self.queue.spell().is_some_and(|spell| una.before(spell.limited_until));
        let delivery = Delivery {
            now,
            octets: progress.delivered,
            newest: progress.newest,
            oldest: self.queue.oldest_transmission(),
            sample: progress.sample,
            inflight: self.queue.pipe(),
            mss: self.mss(self.room),
            limited: if limited { Limited::ByCwnd } else { Limited::ByApplication },
            recovering: !matches!(self.recovery(), Recovery::Open),
        };
        self.congestion.on_delivery(&delivery);
    }

    fn grow(&mut self, una: SeqNum, pipe_before: u32, progress: &Progress, now: Instant) {
        let deciding = |frto| frto != Frto::Off;
        match *self.recovery() {
            Recovery::Fast { .. } => return,
            Recovery::Loss { frto, .. } if deciding(frto) => return,
            // RFC 3042: cwnd stays while ACKs are duplicates; where the path reorders they are the rule.
            _ if progress.delivered == 0 => return,
            _ if progress.advanced == 0 && !(self.agreed.sack && self.rack.reordering_seen()) => {
                return;
            }
            _ => {}
        }
        // RFC 3168 6.1.2(d): not in the window that a mark reduced.
        let una_now = self.queue.una();
        if let Some(spell) = self.queue.spell_mut()
            && let Some(until) = spell.reduced_until
            && matches!(spell.recovery, Recovery::Open)
        {
            if una_now.before(until) {
                return;
            }
            if until.before(una_now) {
                spell.reduced_until = None; // or it would lie ahead again, half the sequence space later
            }
        }
        let cwnd = self.congestion.cwnd();
        let slow_start = cwnd < self.congestion.ssthresh();
        // RFC 7661: the window was used if it stopped us in this round; slow start grants half of it besides, as one
        // can hardly fill a window that doubles.
        let limited = self.queue.spell().is_some_and(|spell| una.before(spell.limited_until));
        let used = limited || (slow_start && pipe_before >= cwnd / 2);
        let ack = Ack {
            now,
            octets: progress.delivered,
            mss: self.mss(self.room),
            sample: progress.sample,
            srtt: self.rtt.srtt().unwrap_or_default(),
            una: self.queue.una(),
            nxt: self.queue.nxt(),
            limited: if used { Limited::ByCwnd } else { Limited::ByApplication },
        };
        self.congestion.on_ack(ack);
    }
}

/// Whether a block lies in `una..nxt`; by distance, as a hostile one may span half the sequence space.
fn is_outstanding(block: SackBlock, una: SeqNum, nxt: SeqNum) -> bool {
    let (left, right) = (block.left.since(una), block.right.since(una));
    left < right && right <= nxt.since(una)
}

/// RFC 5681 2: nothing is acknowledged, SACKed, carried or offered that was not before.
fn duplicate(seg: &Segment, same: bool, arrival: &Arrival, progress: &Progress) -> Duplicate {
    let news = !seg.is_empty() || arrival.window_changed || progress.delivered > 0;
    if same && !news { Duplicate::Yes } else { Duplicate::No }
}

/// The round-trip time by a timestamp's echo, which counts in milliseconds (RFC 7323 4.1).
fn echoed((tsecr, offset): (u32, u32), now: Instant) -> Option<Duration> {
    let val = (now.as_millis() as u32).wrapping_add(offset);
    let ms = val.wrapping_sub(tsecr);
    (ms <= MAX_ECHO).then(|| Duration::from_millis(u64::from(ms.max(1))))
}

/// RFC 2883 4: the first block reports a duplicate if it lies below the ACK or within the second block.
fn is_dsack(first: SackBlock, second: Option<&SackBlock>, ack: SeqNum) -> bool {
    (first.left.before(ack) && first.right.at_or_before(ack))
        || second.is_some_and(|second| {
            second.left.at_or_before(first.left) && first.right.at_or_before(second.right)
        })
}
