//! Losses that were none: found by timestamps, by F-RTO and by DSACK, and undone (RFC 3522, 5682, 3708, 4015).
#![forbid(unsafe_code)]

use super::ack::Progress;
use super::congestion::Congestion;
use super::recovery::{Frto, Original, Recovery};
use super::tcb::Tcb;
use crate::time::Instant;
use crate::wire::{SackBlock, Segment, SeqNum};
use alloc::boxed::Box;

/// Segments that F-RTO sends to find out (RFC 5682 2.1 step 2b), and those that may be under way when it has failed
/// (step 3a).
const FRTO_NEW_SEGMENTS: u32 = 2;
const FRTO_REAL_SEGMENTS: u32 = 3;

/// What congestion control was before it answered a loss, and what would prove that there was none.
#[derive(Clone, Debug)]
pub(super) struct Undo {
    congestion: Congestion,
    /// SND.UNA then.
    from: SeqNum,
    /// TSval of the first retransmission.
    stamp: Option<u32>,
    /// Octets sent again that were not yet reported as duplicates; none before the first.
    owed: Option<u32>,
}

/// What proved that a loss was none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Proof {
    /// The ACK echoes a timestamp from before the retransmission (RFC 3522 3.2), or there was none.
    Eifel,
    /// What was not sent again arrived (RFC 5682 3.1 step 3b).
    Frto,
    /// All that was sent again arrived twice (RFC 3708 2).
    Dsack,
}

impl Tcb {
    /// Congestion control is about to answer a loss.
    pub(super) fn remember(&mut self) {
        let again = self.queue.again();
        let probe = self.probe().filter(|probe| probe.again);
        let undo = Undo {
            congestion: self.congestion.before_loss(),
            from: self.queue.una(),
            stamp: probe.and_then(|probe| self.stamp_at(probe.at)),
            owed: (again > 0).then_some(again),
        };
        self.trouble().undo = Some(Box::new(undo));
    }

    fn stamp_at(&self, at: Instant) -> Option<u32> {
        self.agreed.timestamps.map(|stamps| stamps.val(at))
    }

    /// `octets` of sequence space are sent again.
    pub(super) fn note_resent(&mut self, octets: u32, now: Instant) {
        let stamp = self.stamp_at(now);
        let Some(undo) = self.trouble().undo.as_deref_mut() else { return };
        undo.stamp = undo.stamp.or(stamp);
        undo.owed = Some(undo.owed.unwrap_or(0).saturating_add(octets));
    }

    /// The peer got these octets twice. More duplicates than we sent are the network's doing.
    pub(super) fn note_dsack(&mut self, block: SackBlock) {
        let (una, nxt) = (self.queue.una(), self.queue.nxt());
        let probe = self.probe().is_some_and(|probe| probe.end == block.right);
        let fast = matches!(self.recovery(), Recovery::Fast { .. });
        let trouble = self.trouble();
        trouble.dsacked += u64::from(block.right.since(block.left));
        if trouble.dsacked > trouble.bytes_retrans {
            return;
        }
        if let Some(undo) = trouble.undo.as_deref_mut()
            && undo.from.before(block.right)
            && let Some(owed) = undo.owed.as_mut()
        {
            *owed = owed.saturating_sub(block.right.since(block.left.max(undo.from)));
        }
        if probe {
            return; // a timer sent it, not RACK
        }
        if fast {
            self.rack.on_reordering();
        }
        if self.queue.spell_mut().is_none_or(|spell| spell.begins_dsack_round(una, nxt)) {
            self.rack.on_dsack();
        }
    }

    /// Undoes the answer to a loss if this ACK shows that there was none.
    pub(super) fn check_spurious(
        &mut self,
        seg: &Segment,
        ack: SeqNum,
        progress: &Progress,
        now: Instant,
    ) {
        let frto = self.run_frto(seg, ack, progress);
        let Some(undo) = self.trouble.as_deref().and_then(|trouble| trouble.undo.as_deref()) else {
            return;
        };
        let advanced = progress.advanced > 0;
        let doubled = progress.dsack.is_some() && undo.owed == Some(0);
        let early = advanced && undo.precedes(seg);
        let proof = match *self.recovery() {
            Recovery::Fast { point, .. } if early => {
                self.rack.on_reordering();
                // A retransmission that is still under way may have been needed.
                let open = ack.before(point) && self.queue.again() > 0;
                (!open).then_some(Proof::Eifel)
            }
            Recovery::Fast { .. } if advanced && undo.owed.is_none() => Some(Proof::Eifel),
            Recovery::Loss { .. } if early => Some(Proof::Eifel),
            Recovery::Loss { .. } => frto,
            Recovery::Refit { .. } => return, // what is lost there was too large
            _ => None,
        };
        let Some(proof) = proof.or(doubled.then_some(Proof::Dsack)) else { return };
        if self.is_all_clear(now) {
            self.undo(proof, ack, progress);
        }
    }

    /// Whether what is marked lost and was not sent again is in flight after all. Some of a window may be late and the
    /// rest lost: then there was something to answer.
    fn is_all_clear(&mut self, now: Instant) -> bool {
        if !matches!(self.recovery(), Recovery::Fast { .. }) || self.queue.lost() == 0 {
            return true;
        }
        self.rack.on_reordering();
        self.queue.unlose();
        self.detect_loss(now) == 0
    }

    fn undo(&mut self, proof: Proof, ack: SeqNum, progress: &Progress) {
        let trouble = self.trouble();
        let Some(undo) = trouble.undo.take() else { return };
        let state = self.recovery().clone();
        self.count_undo(proof, &state, ack);
        self.congestion.undo(undo.congestion);
        self.queue.unlose();
        if let Some(spell) = self.queue.spell_mut() {
            (spell.recovery, spell.reduced_until) = (Recovery::Open, None);
            if self.agreed.timestamps.is_none() {
                // RFC 8985 6.2 step 2 may have taken an original for its copy: what was sent before that is not late.
                spell.forget_newest();
            }
        }
        match state {
            Recovery::Loss { .. } => {
                self.rtt.timeouts = 0;
                self.rtt.reset_backoff();
                if let Some(r) = progress.measured {
                    self.rtt.on_spurious_timeout(r);
                }
            }
            Recovery::Fast { .. } | Recovery::Open | Recovery::Refit { .. } => {
                self.rack.on_reordering()
            }
        }
    }

    fn count_undo(&mut self, proof: Proof, state: &Recovery, ack: SeqNum) {
        let events = &mut self.trouble().events;
        match (proof, state) {
            (_, Recovery::Loss { .. }) => events.TCPLossUndo += 1,
            (Proof::Dsack, _) => events.TCPDSACKUndo += 1,
            (_, Recovery::Fast { point, .. }) if ack.before(*point) => events.TCPPartialUndo += 1,
            _ => events.TCPFullUndo += 1,
        }
        events.TCPSpuriousRTOs += u32::from(proof == Proof::Frto);
    }

    /// F-RTO, with SACK (RFC 5682 3.1) and without (2.1).
    fn run_frto(&mut self, seg: &Segment, ack: SeqNum, progress: &Progress) -> Option<Proof> {
        let Recovery::Loss { point, frto } = *self.recovery() else { return None };
        let mss = self.mss(self.room);
        let advanced = progress.advanced > 0;
        let duplicate = !advanced && seg.is_empty() && !self.agreed.sack;
        let next = match frto {
            Frto::Off => return None,
            // Step 2: SACKs before the ACK only update the scoreboard; all acknowledged: nothing is left to find out.
            Frto::FirstAck if duplicate || !ack.before(point) => Frto::Off,
            Frto::FirstAck if !advanced => Frto::FirstAck,
            Frto::FirstAck if self.queue.unsent() > 0 && self.window_room() > 0 => {
                self.congestion.set_cwnd(self.congestion.cwnd().max(FRTO_NEW_SEGMENTS * mss));
                Frto::NewText
            }
            Frto::FirstAck => Frto::Off,
            Frto::NewText if progress.original == Original::Delivered => return Some(Proof::Frto),
            Frto::NewText if duplicate || progress.delivered > 0 => {
                self.congestion.set_cwnd(self.congestion.cwnd().min(FRTO_REAL_SEGMENTS * mss));
                Frto::Off
            }
            Frto::NewText => Frto::NewText,
        };
        self.set_recovery(Recovery::Loss { point, frto: next });
        None
    }

    /// Whether F-RTO wants nothing sent again for now; the timeout itself was answered.
    pub(super) fn frto_holds(&self) -> bool {
        match self.recovery() {
            Recovery::Loss { frto: Frto::FirstAck, .. } => true,
            Recovery::Loss { frto: Frto::NewText, .. } => {
                self.queue.unsent() > 0 && self.window_room() > 0
            }
            _ => false,
        }
    }
}

impl Undo {
    /// Whether `seg` echoes a timestamp from before the first retransmission.
    fn precedes(&self, seg: &Segment) -> bool {
        match (self.stamp, seg.options.timestamps()) {
            (Some(stamp), Some(ts)) => (ts.ecr.wrapping_sub(stamp) as i32) < 0,
            _ => false,
        }
    }
}
