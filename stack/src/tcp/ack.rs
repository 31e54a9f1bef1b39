//! What an acceptable ACK changes: the scoreboard, round-trip time, loss recovery, congestion window (RFC 5681, 8985).
#![forbid(unsafe_code)]

use super::congestion::{Ack, Limited};
use super::recovery::{DUP_THRESH, Delivered, Prr, Recovery, Safety};
use super::tcb::Tcb;
use crate::time::{Duration, Instant};
use crate::wire::{Options, SackBlock, Segment, SegmentOptions, SeqNum};

/// What one ACK did to the scoreboard.
struct Progress {
    /// Octets of sequence space acknowledged in order.
    advanced: u32,
    /// Octets newly delivered, in order or not.
    delivered: u32,
    dsack: bool,
    sample: Option<Duration>,
    newly_lost: u32,
}

impl Tcb {
    /// SEG.ACK lies between una and nxt. Returns octets of text newly acknowledged in order.
    pub(super) fn take_ack(&mut self, seg: &Segment, ack: SeqNum, now: Instant) -> u32 {
        let una = self.queue.una();
        let pipe_before = self.queue.pipe();
        let (acked, mut progress) = self.update_scoreboard(seg, ack, now);
        if progress.advanced > 0 {
            self.rtt.timeouts = 0;
            self.rtt.reset_backoff();
            self.rto_base = now;
            self.sums.bytes_acked += u64::from(acked);
        }
        if progress.delivered > 0
            && let Some(spell) = self.queue.spell_mut()
        {
            spell.pto_base = now;
        }
        self.finish_probe(ack, progress.dsack);
        self.check_spurious_timeout(seg, progress.advanced);
        progress.newly_lost = if self.agreed.sack {
            self.detect_loss(now)
        } else {
            self.count_duplicates(seg, &progress)
        };
        let recovering = matches!(self.recovery(), Recovery::Fast { .. });
        self.run_recovery(ack, &progress, now);
        if !recovering {
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
        let mut told =
            Delivered { rack: &mut self.rack, now, min_rtt, echo, clean: None, largest: 0 };
        let acked = self.queue.ack(ack, &mut told);
        let mut dsack = false;
        if self.agreed.sack {
            for (i, block) in options.sack.iter().enumerate() {
                if i == 0 && is_dsack(*block, options.sack.get(1), ack) {
                    dsack = true;
                } else if is_outstanding(*block, ack, self.queue.nxt()) {
                    self.queue.sack(*block, &mut told);
                }
            }
        }
        let (clean, largest) = (told.clean, told.largest);
        self.on_delivered_size(largest);
        let (una_now, nxt) = (self.queue.una(), self.queue.nxt());
        if dsack && self.queue.spell_mut().is_none_or(|s| s.begins_dsack_round(una_now, nxt)) {
            self.rack.on_dsack();
        }
        let advanced = ack.since(una);
        let delivered = (advanced + self.queue.sacked()).saturating_sub(sacked_before);
        let sample = clean.map(|(_, last)| now.since(last));
        if let Some((first, _)) = clean {
            self.rtt.on_sample(now.since(first), now);
        }
        (acked, Progress { advanced, delivered, dsack, sample, newly_lost: 0 })
    }

    /// RFC 8985 7.4: did the probe repair a loss that nothing else would show?
    fn finish_probe(&mut self, ack: SeqNum, dsack: bool) {
        let Some(probe) = self.probe() else { return };
        if ack.before(probe.end) {
            return;
        }
        if probe.again && !dsack {
            if ack == probe.end {
                return; // a DSACK for the other copy may be on its way
            }
            // One copy alone arrived: the probe hid a loss from us. Answer it once.
            let mss = self.mss(self.room);
            self.congestion.on_loss(self.queue.flight(), mss);
            self.congestion.set_cwnd(self.congestion.ssthresh().min(self.congestion.cwnd()));
        }
        self.end_probe();
    }

    /// RFC 4015, RFC 3522: the ACK answers what was sent before the timeout.
    fn check_spurious_timeout(&mut self, seg: &Segment, advanced: u32) {
        let Some(spell) = self.queue.spell_mut() else { return };
        let Recovery::Loss { .. } = spell.recovery else { return };
        if advanced == 0 {
            return;
        }
        let Some(undo) = spell.undo.take() else { return };
        let (Some(stamp), Some(ts)) = (undo.stamp, seg.options.timestamps()) else { return };
        if (ts.ecr.wrapping_sub(stamp) as i32) < 0 {
            self.congestion = undo.congestion;
            spell.recovery = Recovery::Open;
            self.queue.unlose();
        }
    }

    pub(super) fn reo_wnd(&self) -> Duration {
        let recovering = !matches!(self.recovery(), Recovery::Open);
        let sacked = self.queue.sacked() / self.mss(self.room);
        self.rack.reo_wnd(&self.rtt, recovering, sacked)
    }

    /// RACK (RFC 8985 6.2 step 5). Returns octets newly lost.
    pub(super) fn detect_loss(&mut self, now: Instant) -> u32 {
        let newest = self.queue.spell().and_then(|spell| spell.newest());
        let Some((number, end)) = newest else { return 0 };
        let before = self.queue.lost();
        let patience = self.rack.rtt() + self.reo_wnd();
        let timer = self.queue.lose_older(number, end, patience, now);
        if let Some(spell) = self.queue.spell_mut() {
            spell.reorder_timer = timer;
        }
        let lost = self.queue.lost() - before;
        self.count_lost(lost);
        lost
    }

    pub(super) fn count_lost(&mut self, octets: u32) {
        if octets > 0 {
            self.trouble().lost += u64::from(octets);
        }
    }

    /// Loss detection without SACK: three duplicates, then a partial ACK at a time (RFC 6582).
    fn count_duplicates(&mut self, seg: &Segment, progress: &Progress) -> u32 {
        let mss = self.mss(self.room);
        let before = self.queue.lost();
        let (una, flight) = (self.queue.una(), self.queue.flight());
        let Some(spell) = self.queue.spell_mut() else { return 0 };
        let first_lost = if progress.advanced > 0 {
            spell.dup_acks = 0;
            matches!(&spell.recovery, Recovery::Fast { point, .. } if una.before(*point))
        } else if seg.is_empty() && flight > 0 {
            spell.dup_acks += 1;
            spell.dup_acks == DUP_THRESH && matches!(spell.recovery, Recovery::Open)
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
        let dup_acks = self.queue.spell().map_or(0, |spell| spell.dup_acks);
        self.queue.pipe().saturating_sub(dup_acks.saturating_mul(self.mss(self.room)))
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
        self.trouble().recoveries += 1;
        self.agreed.ecn.on_reduced();
        self.congestion.on_loss(self.queue.flight(), mss);
        // RFC 9937 6: RecoverFS.
        let recover_fs = self.queue.flight() - self.queue.sacked() + delivered;
        let mut prr = Prr::new(recover_fs);
        let cwnd =
            prr.on_ack(delivered, self.inflight(), self.congestion.ssthresh(), mss, Safety::Unsafe);
        self.congestion.set_cwnd(cwnd.max(mss));
        let point = self.queue.nxt();
        if let Some(spell) = self.queue.spell_mut() {
            spell.recovery = Recovery::Fast { point, prr };
            spell.reduced_until = Some(point);
            spell.undo = None;
        }
    }

    fn run_recovery(&mut self, ack: SeqNum, progress: &Progress, now: Instant) {
        match self.recovery() {
            Recovery::Open => {}
            Recovery::Loss { point } | Recovery::Refit { point } if ack.before(*point) => return,
            Recovery::Fast { point, .. } if ack.before(*point) => {
                self.reduce_rate(progress);
                return;
            }
            Recovery::Loss { .. } | Recovery::Refit { .. } => self.set_recovery(Recovery::Open),
            Recovery::Fast { .. } => {
                // At most ten segments at once; slow start has the rest of the way to ssthresh.
                let mss = self.mss(self.room);
                let burst = self.queue.pipe().saturating_add(10 * mss);
                self.congestion.set_cwnd(self.congestion.ssthresh().min(burst));
                self.set_recovery(Recovery::Open);
                self.rack.on_recovery_exit();
            }
        }
        self.enter_recovery_if_lost(progress.delivered, now);
    }

    fn reduce_rate(&mut self, progress: &Progress) {
        let mss = self.mss(self.room);
        let (pipe, ssthresh) = (self.inflight(), self.congestion.ssthresh());
        let safety = if progress.advanced > 0 && progress.newly_lost == 0 {
            Safety::Safe
        } else {
            Safety::Unsafe
        };
        let delivered = if self.agreed.sack || progress.advanced > 0 {
            progress.delivered
        } else {
            mss // a duplicate ACK: a segment has left the network
        };
        if let Some(spell) = self.queue.spell_mut()
            && let Recovery::Fast { prr, .. } = &mut spell.recovery
            && delivered > 0
        {
            let cwnd = prr.on_ack(delivered, pipe, ssthresh, mss, safety);
            self.congestion.set_cwnd(cwnd.max(mss));
        }
    }

    fn grow(&mut self, una: SeqNum, pipe_before: u32, progress: &Progress, now: Instant) {
        if progress.delivered == 0 || matches!(self.recovery(), Recovery::Fast { .. }) {
            return;
        }
        // RFC 3168 6.1.2(d): not in the window that a mark reduced.
        let una_now = self.queue.una();
        if let Some(spell) = self.queue.spell()
            && matches!(spell.recovery, Recovery::Open)
            && spell.reduced_until.is_some_and(|until| una_now.before(until))
        {
            return;
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

/// RFC 2883 4: the first block reports a duplicate if it lies below the ACK or within the second block.
fn is_dsack(first: SackBlock, second: Option<&SackBlock>, ack: SeqNum) -> bool {
    first.left.before(ack)
        || second.is_some_and(|second| {
            second.left.at_or_before(first.left) && first.right.at_or_before(second.right)
        })
}
