//! The one send timer: retransmission, probes and keepalive exclude each other (RFC 8985 8).
#![forbid(unsafe_code)]

use super::congestion::LossEvent;
use super::recovery::{Recovery, probe_timeout};
use super::send_queue::Fin;
use super::tcb::{AckOwed, Due, Tcb, Undo};
use super::{CloseReason, State};
use crate::time::{Duration, Instant, earliest};
use alloc::boxed::Box;

/// Between keepalive probes, and how many may go unanswered (RFC 9293 3.8.4: never decide on one).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u8 = 9;

/// What the flow waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SendTimer {
    Idle,
    /// RFC 6298.
    Rto(Instant),
    /// RFC 8985 7.
    Tlp(Instant),
    /// RFC 8985 6.3: a segment is lost unless it shows up by then.
    Reorder(Instant),
    /// RFC 9293 3.8.6.1, also when silly-window avoidance holds text back.
    Persist(Instant),
    KeepAlive(Instant),
}

impl SendTimer {
    fn at(self) -> Option<Instant> {
        match self {
            SendTimer::Idle => None,
            SendTimer::Rto(at)
            | SendTimer::Tlp(at)
            | SendTimer::Reorder(at)
            | SendTimer::Persist(at)
            | SendTimer::KeepAlive(at) => Some(at),
        }
    }
}

impl Tcb {
    /// When [`Tcb::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let ack = match self.ack {
            AckOwed::Delayed(at) => Some(at),
            _ => None,
        };
        earliest(self.timer.at(), ack)
    }

    /// Runs what is due; a reason if the connection ended. Poll afterwards.
    pub fn on_deadline(&mut self, now: Instant) -> Option<CloseReason> {
        if let AckOwed::Delayed(at) = self.ack
            && at <= now
        {
            self.ack = AckOwed::Now;
        }
        if self.timer.at().is_none_or(|at| at > now) {
            return None;
        }
        let closed = match core::mem::replace(&mut self.timer, SendTimer::Idle) {
            SendTimer::Idle => None,
            SendTimer::Reorder(_) => {
                self.detect_loss(now);
                self.enter_recovery_if_lost(0);
                None
            }
            SendTimer::Tlp(_) => {
                self.due = Some(Due::TailLossProbe);
                None
            }
            SendTimer::Rto(_) => self.on_rto(now),
            SendTimer::Persist(_) => self.on_persist(now),
            SendTimer::KeepAlive(_) => self.on_keepalive(now),
        };
        match closed {
            Some(_) => self.end(),
            None => self.rearm(now),
        }
        closed
    }

    /// RFC 6298 5.4 to 5.6.
    fn on_rto(&mut self, now: Instant) -> Option<CloseReason> {
        // A peer that closed its window over text in flight, and answers, is alive: probe for ever (MUST-36).
        let answered = self.snd.wnd == 0 && self.last_heard >= self.rto_base;
        if !answered {
            self.rtos = self.rtos.saturating_add(1);
        }
        if self.rtos > self.cfg.data_retries {
            return Some(CloseReason::TimedOut);
        }
        self.sums.rtos += 1;
        let mss = self.mss(self.room);
        let event = match self.recovery {
            Recovery::Loss { .. } => LossEvent::Known,
            Recovery::Open | Recovery::Fast { .. } => LossEvent::New,
        };
        if event == LossEvent::New {
            self.undo = Some(Box::new(Undo { congestion: self.congestion.clone(), stamp: None }));
        }
        let before = self.queue.lost();
        let waited = self.rack.rtt() + self.reo_wnd();
        self.congestion.on_timeout(self.queue.flight(), mss, event);
        self.queue.lose_at_timeout(waited, now);
        self.sums.lost += u64::from(self.queue.lost().saturating_sub(before));
        self.recovery = Recovery::Loss { point: self.queue.nxt() };
        self.rtt.back_off();
        (self.probe, self.rack.timer, self.dup_acks) = (None, None, 0);
        self.rto_base = now;
        None
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
    pub(super) fn rearm(&mut self, _now: Instant) {
        self.timer = if matches!(self.state, State::Closed | State::TimeWait) {
            SendTimer::Idle
        } else if self.queue.flight() > 0 {
            self.retransmission_timer()
        } else if self.queue.unsent() > 0 || self.queue.fin() == Fin::Queued {
            // Only the peer's window can hold text back when nothing is in flight.
            SendTimer::Persist(self.rto_base.max(self.last_sent) + self.rtt.rto())
        } else {
            self.keepalive_timer()
        };
    }

    fn retransmission_timer(&self) -> SendTimer {
        if let Some(at) = self.rack.timer {
            return SendTimer::Reorder(at);
        }
        let rto = self.rto_base + self.rtt.rto();
        if self.may_probe() {
            let pto = self.pto_base + probe_timeout(&self.rtt);
            return SendTimer::Tlp(pto.min(rto));
        }
        SendTimer::Rto(rto)
    }

    /// RFC 8985 7.2: with SACK, not while recovering, one probe at a time.
    fn may_probe(&self) -> bool {
        self.agreed.sack
            && matches!(self.recovery, Recovery::Open)
            && self.queue.sacked() == 0
            && self.probe.is_none()
            && self.due.is_none()
            && self.rtos == 0
    }

    fn keepalive_timer(&self) -> SendTimer {
        let Some(idle) = self.cfg.keepalive else { return SendTimer::Idle };
        if self.probes == 0 {
            return SendTimer::KeepAlive(self.last_heard.max(self.last_sent) + idle);
        }
        SendTimer::KeepAlive(self.rto_base + KEEPALIVE_INTERVAL)
    }
}
