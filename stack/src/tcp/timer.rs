//! The one send timer: retransmission, probes and keepalive exclude each other (RFC 8985 8).
#![forbid(unsafe_code)]

use super::congestion::LossEvent;
use super::recovery::{DUP_THRESH, Frto, Recovery, Spell, probe_timeout};
use super::send_queue::{Fin, Renege};
use super::tcb::{AckOwed, Due, Tcb};
use super::{CloseReason, State};
use crate::time::{Duration, Instant, earliest};

/// Between keepalive probes, and how many may go unanswered (RFC 9293 3.8.4: never decide on one).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u8 = 9;

/// What the flow waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaited {
    /// RFC 6298.
    Rto,
    /// RFC 8985 7.
    Tlp,
    /// RFC 8985 6.3: a segment is lost unless it shows up by then.
    Reorder,
    /// RFC 9293 3.8.6.1, also when silly-window avoidance holds text back.
    Persist,
    /// Text waits for the rate.
    Pacing,
    KeepAlive,
    /// MUST-21.
    UserTimeout,
}

impl Tcb {
    /// When [`Tcb::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let ack = (self.ack == AckOwed::Delayed).then_some(self.ack_at);
        earliest(self.timer, ack)
    }

    /// Runs what is due; a reason if the connection ended. Poll afterwards.
    pub fn on_deadline(&mut self, now: Instant) -> Option<CloseReason> {
        if self.ack == AckOwed::Delayed && self.ack_at <= now {
            self.ack = AckOwed::Now;
        }
        if self.timer.is_none_or(|at| at > now) {
            return None;
        }
        self.timer = None;
        if matches!(self.awaited, Awaited::Tlp | Awaited::Rto) && self.confirm_claim(now) {
            return None; // what a router said is why nothing comes back
        }
        let closed = match self.awaited {
            Awaited::Reorder => {
                self.detect_loss(now);
                self.enter_recovery_if_lost(0, now);
                None
            }
            Awaited::Tlp => {
                self.due = Some(Due::TailLossProbe);
                None
            }
            Awaited::Rto => self.on_rto(now),
            Awaited::Persist => self.on_persist(now),
            Awaited::Pacing => {
                self.end_hold(now);
                None
            }
            Awaited::KeepAlive => self.on_keepalive(now),
            Awaited::UserTimeout => Some(CloseReason::TimedOut), // RFC 9293 3.10.8
        };
        match closed {
            Some(_) => self.end(),
            None => self.rearm(now),
        }
        closed
    }

    /// RFC 6298 5.4 to 5.6.
    fn on_rto(&mut self, now: Instant) -> Option<CloseReason> {
        let earlier = self.rtt.timeouts;
        // A peer that closed its window over text in flight, and answers, is alive: probe for ever (MUST-36).
        let answered = self.snd.wnd == 0 && self.last_heard >= self.rto_base;
        if !answered {
            self.rtt.timeouts = self.rtt.timeouts.saturating_add(1);
        }
        if self.rtt.timeouts > self.cfg.data_retries {
            return Some(CloseReason::TimedOut);
        }
        let (event, frto) = match self.recovery() {
            Recovery::Open => (LossEvent::New, Frto::FirstAck),
            // Its losses were answered when recovery began, as Linux sees it.
            Recovery::Fast { .. } => (LossEvent::Known, Frto::Off),
            Recovery::Refit { .. } => (LossEvent::New, Frto::Off),
            // RFC 5681 3.1: once for every segment that times out. RFC 5682 3.1 (step 1): not while another is repaired.
            Recovery::Loss { .. } if earlier == 0 => (LossEvent::New, Frto::Off),
            Recovery::Loss { .. } => (LossEvent::Known, Frto::FirstAck),
        };
        if matches!(self.recovery(), Recovery::Open) && self.queue.sacked_segments() >= DUP_THRESH {
            self.rack.on_timeout_while_waiting();
        }
        self.trouble().rtos += 1;
        self.trouble().events.TCPTimeouts += 1;
        self.suspect_black_hole(now);
        self.repair_timeout(event, frto, now);
        self.rtt.back_off();
        self.end_probe();
        self.rto_base = now;
        self.due = Some(Due::Retransmission);
        None
    }

    fn repair_timeout(&mut self, event: LossEvent, frto: Frto, now: Instant) {
        if event == LossEvent::New {
            self.remember();
        }
        let mss = self.mss(self.room);
        let before = self.queue.lost();
        // Until something is delivered the handshake's RTT is the best guess.
        let rtt = match self.rack.rtt() {
            Duration::ZERO => self.rtt.srtt().unwrap_or_default(),
            rtt => rtt,
        };
        let waited = rtt + self.reo_wnd();
        self.congestion.on_timeout(self.flight_let_out(), mss, event);
        self.agreed.ecn.on_reduced();
        let relost = self.queue.relost();
        let renege = self.queue.lose_at_timeout(waited, now, &mut self.congestion);
        let relost = self.queue.relost() - relost;
        let events = &mut self.trouble().events;
        events.TCPLostRetransmit += relost;
        events.TCPSACKReneging += u32::from(renege == Renege::Yes);
        self.count_lost(self.queue.lost().saturating_sub(before));
        let frto = if renege == Renege::Yes { Frto::Off } else { frto };
        let point = self.queue.nxt();
        if let Some(spell) = self.queue.spell_mut() {
            spell.recovery = Recovery::Loss { point, frto };
            (spell.reorder_timer, spell.reneged, spell.dup_acks) = (None, None, 0);
        }
    }

    fn on_persist(&mut self, now: Instant) -> Option<CloseReason> {
        self.probes = self.probes.saturating_add(1);
        if self.probes > self.cfg.data_retries {
            return Some(CloseReason::TimedOut); // no answer at all; answers reset the count
        }
        self.due = Some(Due::WindowProbe);
        self.rtt.back_off();
        self.rto_base = now;
        None
    }

    fn on_keepalive(&mut self, now: Instant) -> Option<CloseReason> {
        self.probes = self.probes.saturating_add(1);
        if self.probes > KEEPALIVE_PROBES {
            return Some(CloseReason::TimedOut);
        }
        self.due = Some(Due::KeepAlive);
        self.rto_base = now;
        None
    }

    /// Sets the timer to what the state calls for. Derived, so it may be called at any time.
    pub(super) fn rearm(&mut self, now: Instant) {
        let timer = if matches!(self.state, State::Closed | State::TimeWait) {
            None
        } else if self.queue.flight() > 0 {
            Some(self.retransmission_timer())
        } else if self.queue.unsent() > 0 || self.queue.fin() == Fin::Queued {
            // Only the peer's window can hold text back when nothing is in flight.
            Some((Awaited::Persist, self.rto_base.max(self.last_sent) + self.rto()))
        } else {
            self.keepalive_timer()
        };
        let timer = match (timer, self.text_released_at()) {
            (Some((Awaited::Persist, _)), Some(at)) => Some((Awaited::Pacing, at)),
            (Some((_, due)), Some(at)) if at < due => Some((Awaited::Pacing, at)),
            (timer, _) => timer,
        };
        let timer = match (timer, self.user_timeout_at(now)) {
            (Some((_, due)), Some(at)) if at < due => Some((Awaited::UserTimeout, at)),
            (timer, _) => timer,
        };
        self.timer = timer.map(|(_, at)| at);
        if let Some((awaited, _)) = timer {
            self.awaited = awaited;
        }
    }

    /// When what waits for an acknowledgement has waited for too long, in flight or before a closed window.
    fn user_timeout_at(&mut self, now: Instant) -> Option<Instant> {
        let timeout = self.cfg.user_timeout?;
        let waits = self.queue.flight() > 0 || self.queue.unsent() > 0;
        let spell = self.queue.spell_mut()?;
        if !waits {
            spell.waits_since = None;
            return None;
        }
        Some(*spell.waits_since.get_or_insert(now) + timeout)
    }

    /// Something was acknowledged, or is the first to leave: what waits now waits from now on.
    pub(super) fn restart_user_timeout(&mut self) {
        if let Some(spell) = self.queue.spell_mut() {
            spell.waits_since = None;
        }
    }

    fn retransmission_timer(&self) -> (Awaited, Instant) {
        let rto = self.rto_base + self.rto();
        let Some(spell) = self.queue.spell() else { return (Awaited::Rto, rto) };
        if let Some(at) = spell.reorder_timer {
            return (Awaited::Reorder, at);
        }
        if let Some(at) = spell.reneged {
            return (Awaited::Rto, rto.min(at));
        }
        if self.may_probe(spell) {
            let pto = probe_timeout(&self.rtt, self.queue.flight(), self.mss(self.room));
            return (Awaited::Tlp, (spell.pto_base + pto).min(rto));
        }
        (Awaited::Rto, rto)
    }

    /// RFC 8985 7.2, 7.3: with SACK, nothing SACKed, not while recovering; one probe at a time, and the RTT was measured
    /// since the last.
    fn may_probe(&self, spell: &Spell) -> bool {
        let probed = self.trouble.as_ref().is_some_and(|t| t.probe.is_some() || t.unmeasured);
        self.agreed.sack
            && matches!(spell.recovery, Recovery::Open)
            && self.queue.sacked() == 0
            && !probed
            && self.due.is_none()
            && self.rtt.timeouts == 0
    }

    fn keepalive_timer(&self) -> Option<(Awaited, Instant)> {
        let idle = self.cfg.keepalive?;
        let at = match self.probes {
            0 => self.last_heard.max(self.last_sent) + idle,
            _ => self.rto_base + KEEPALIVE_INTERVAL,
        };
        Some((Awaited::KeepAlive, at))
    }
}
