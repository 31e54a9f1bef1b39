//! Ending: DATA_FIN, subflow FINs, MP_FASTCLOSE, and what is left when subflows go (RFC 8684 3.3.3, 3.5).
#![forbid(unsafe_code)]

use super::connection::{Connection, Event, Mode, Role};
use super::fallback::FallbackCause;
use super::state::DataEvent;
use super::subflow::{Handshake, Stage, Subflow};
use crate::tcp::{CloseReason, Phase, State, TimeWait};
use crate::time::{Duration, Instant};
use crate::wire::{Dsn, MpFastclose};
use alloc::boxed::Box;

/// DATA_FINs sent before the peer is given up.
const MAX_DATA_FINS: u8 = 12;

/// Retransmission timeouts in a row after which a subflow of a finished connection is reset: with the least RTO of
/// 200 ms the first five come within 6 s.
const STUCK_RTOS: u8 = 5;

impl Connection {
    /// Moves closing on as far as it goes now.
    pub(super) fn progress_close(&mut self, now: Instant) {
        if !matches!(self.mode, Mode::Mptcp) || matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        if self.close_wanted && self.snd.waiting() == 0 {
            let before = self.state;
            self.state = self.state.after(DataEvent::SendDataFin);
            if self.state != before {
                let fin_at = Some(now + self.patience());
                let ending = self.ending_mut();
                (ending.fin_tries, ending.fin_at) = (0, fin_at);
                self.ask_for_ack();
            }
        }
        if self.close_wanted && self.phase == Phase::Open {
            self.phase = Phase::Closing;
        }
        if self.state.is_over() {
            self.ending_mut().fin_at = None;
            for sf in &mut self.subflows {
                sf.close();
                sf.give_up_when_stuck();
            }
            // A join that is not answered at once comes too late to be of use.
            while let Some(i) = self.subflows.iter().position(Subflow::is_late) {
                self.subflow_gone(i, CloseReason::Aborted, now);
            }
        }
    }

    /// Until when the peer may close a subflow that has nothing to carry any more. RFC 9293 3.6 lets a half-closed
    /// connection live for ever, but here the data level is through in both directions (RFC 8684 3.3.3), so that a peer
    /// that stays silent has forgotten the subflow: Linux's `tcp_fin_timeout`.
    pub(super) fn fin_awaited_until(&self) -> Option<Instant> {
        if !self.state.is_over() {
            return None;
        }
        let heard = self.subflows.iter().filter_map(Subflow::awaits_fin_since).min()?;
        Some(heard + self.cfg.close_timeout)
    }

    /// Forgets the subflows whose peers did not close them in time.
    pub(super) fn stop_awaiting_fins(&mut self, now: Instant) {
        let timeout = self.cfg.close_timeout;
        let late = |sf: &Subflow| sf.awaits_fin_since().is_some_and(|at| at + timeout <= now);
        while let Some(i) = self.subflows.iter().position(late) {
            self.subflow_gone(i, CloseReason::TimedOut, now);
        }
    }

    /// An ACK without text on the subflow that serves best now, to carry signalling.
    pub(super) fn ask_for_ack(&mut self) {
        let usable = self.subflows.iter().position(|sf| sf.is_usable() && !sf.backup);
        let any = || self.subflows.iter().position(|sf| sf.tcb().is_some());
        if let Some(sf) = usable.or_else(any).and_then(|i| self.subflows.get_mut(i)) {
            sf.request_ack();
        }
    }

    /// How long the connection waits for the data level to move (RFC 8684 3.3.5 leaves it open).
    pub(super) fn patience(&self) -> Duration {
        let slowest = self.subflows.iter().filter_map(|sf| sf.tcb()?.srtt()).max();
        let base = (slowest.unwrap_or_default() * 2).max(Duration::from_millis(300));
        (base * (1 << self.stall_count.min(7))).min(Duration::from_secs(60))
    }

    /// DSN of our DATA_FIN, once it is out.
    pub(super) fn data_fin(&self) -> Option<Dsn> {
        self.state.owes_data_fin().then(|| self.snd.nxt())
    }

    pub(super) fn on_data_fin_acked(&mut self) {
        self.state = self.state.after(DataEvent::DataFinAcked);
        self.ending_mut().fin_at = None;
    }

    /// The peer's DATA_FIN stands at `fin`.
    pub(super) fn on_data_fin(&mut self, i: usize, fin: Dsn) {
        if fin.before(self.rcv.nxt()) || self.ending().peer_fin.is_some_and(|known| known != fin) {
            if !self.rcv.fin_taken {
                self.counters.DSSNotMatching += 1;
            }
        } else {
            self.ending_mut().peer_fin = Some(fin);
        }
        self.check_data_fin();
        if let (true, Some(sf)) = (self.rcv.fin_taken, self.subflows.get_mut(i)) {
            sf.request_ack(); // a repeated DATA_FIN means that our DATA_ACK was lost
        }
    }

    /// Takes the peer's DATA_FIN when all before it has come.
    pub(super) fn check_data_fin(&mut self) {
        if self.ending().peer_fin == Some(self.rcv.nxt()) && !self.rcv.fin_taken {
            self.rcv.fin_taken = true;
            self.state = self.state.after(DataEvent::ReceiveDataFin);
            if matches!(self.mode, Mode::Mptcp) {
                self.ask_for_ack();
            }
            self.dirty = true;
        }
    }

    /// Time to send the DATA_FIN again, on every subflow.
    pub(super) fn on_fin_timer(&mut self, now: Instant) {
        if self.data_fin().is_none() {
            self.ending_mut().fin_at = None;
            return;
        }
        let tries = self.ending().fin_tries + 1;
        self.ending_mut().fin_tries = tries;
        if tries > MAX_DATA_FINS {
            return self.finish(CloseReason::TimedOut);
        }
        let wait = self.patience() * (1 << tries.min(6));
        self.ending_mut().fin_at = Some(now + wait.min(Duration::from_secs(60)));
        for sf in &mut self.subflows {
            sf.request_ack();
        }
    }

    /// MP_FASTCLOSE from the peer. A wrong key means nothing.
    pub(super) fn on_fastclose(&mut self, close: &MpFastclose) {
        if close.receiver_key == self.key.0 && self.abort_wanted.is_none() {
            self.counters.MPFastcloseRx += 1;
            self.abort_wanted = Some(CloseReason::Reset);
            self.peer_aborted = true;
            self.start_abort(CloseReason::Reset);
        }
    }

    /// RST on every subflow; what has no TCP yet just goes.
    pub(super) fn start_abort(&mut self, why: CloseReason) {
        self.phase = Phase::Closing;
        self.dirty = true;
        for sf in &mut self.subflows {
            match &mut sf.stage {
                Stage::Open(tcb) => tcb.abort(why),
                Stage::SynReceived(syn) => syn.refuse(),
                Stage::SynSent(_) => {}
            }
        }
        let (gone, left): (_, alloc::vec::Vec<Subflow>) = core::mem::take(&mut self.subflows)
            .into_iter()
            .partition(|sf| matches!(sf.stage, Stage::SynSent(_)));
        self.subflows = left;
        for sf in gone {
            self.tell(Event::FlowClosed(sf.flow, None));
        }
        if self.subflows.is_empty() {
            self.finish(why);
        }
    }

    /// All is over; subflows that are left are forgotten.
    pub(super) fn finish(&mut self, why: CloseReason) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        for sf in core::mem::take(&mut self.subflows) {
            self.tell(Event::FlowClosed(sf.flow, None));
        }
        self.phase = Phase::Closed(why);
        self.state = self.state.after(DataEvent::SubflowsGone);
        self.snd.clear();
        (self.ending, self.data_ack_at) = (None, None);
        self.tell(Event::Closed(why));
    }

    /// Subflow `i` is closed or given up: what it carried goes elsewhere.
    pub(super) fn subflow_gone(&mut self, i: usize, why: CloseReason, now: Instant) {
        if i >= self.subflows.len() {
            return;
        }
        self.rescue(i);
        let sf = self.subflows.remove(i);
        let lingering = sf.tcb().filter(|tcb| tcb.state() == State::TimeWait);
        let time_wait = lingering.map(|tcb| Box::new(TimeWait::new(tcb, now)));
        self.tell(Event::FlowClosed(sf.flow, time_wait));
        self.dirty = true;
        if !self.state.is_over() && self.abort_wanted.is_none() {
            self.paths.on_subflow_gone(sf.flow, self.first, now);
        }
        if self.subflows.is_empty() {
            self.on_last_subflow_gone(&sf, why, now);
        }
    }

    fn on_last_subflow_gone(&mut self, last: &Subflow, why: CloseReason, now: Instant) {
        let join = !matches!(last.handshake, Handshake::Initial | Handshake::Joined);
        match &self.mode {
            Mode::Opening | Mode::Plain(_) => self.finish(self.abort_wanted.unwrap_or(why)),
            Mode::Mptcp if self.abort_wanted.is_some() => {
                self.finish(self.abort_wanted.unwrap_or(why));
            }
            Mode::Mptcp if self.state.is_over() => self.finish(CloseReason::Done),
            // The peer closed everything while our last DATA_ACKs were on their way.
            Mode::Mptcp if self.rcv.fin_taken && self.snd.is_empty() && self.close_wanted => {
                self.finish(CloseReason::Done);
            }
            // RFC 8684 3.2: before a DSS nobody may join, so that this was the only subflow there can be.
            Mode::Mptcp if why == CloseReason::Reset && !self.confirmed => self.finish(why),
            // Nobody there knows us any more.
            Mode::Mptcp if join && why == CloseReason::Refused => self.finish(CloseReason::Reset),
            Mode::Mptcp if self.ending().lonely_until.is_some_and(|until| until <= now) => {
                self.finish(why)
            }
            Mode::Mptcp => {
                // RFC 8684 3.3.3: break before make; without subflows a connection lives on for a while.
                let until = now + self.cfg.close_timeout;
                self.ending_mut().lonely_until.get_or_insert(until);
                if self.role == Role::Initiator {
                    self.paths.retry_now(now);
                }
            }
        }
    }

    /// The peer's FIN on subflow `i`, in order.
    pub(super) fn on_subflow_fin(&mut self, i: usize) {
        let nxt = self.rcv.nxt();
        let Some(sf) = self.subflows.get_mut(i) else { return };
        sf.peer_fin = true;
        match &self.mode {
            Mode::Plain(_) => {
                self.ending_mut().peer_fin = Some(nxt);
                self.check_data_fin();
            }
            // The peer sends no more here, so that this subflow serves nobody for long: it is closed from our side as
            // well, which other subflows need not notice.
            Mode::Mptcp => {
                let never_mptcp = !self.rcv.dss_seen && self.subflows.len() == 1;
                if never_mptcp {
                    self.fall_back(i, FallbackCause::DataWithoutDss, None);
                    self.ending_mut().peer_fin = Some(nxt);
                    self.check_data_fin();
                } else if let Some(sf) = self.subflows.get_mut(i) {
                    sf.close();
                }
            }
            Mode::Opening => {}
        }
        self.dirty = true;
    }
}

impl Subflow {
    /// Its handshake has already waited for one timeout.
    fn is_late(&self) -> bool {
        match &self.stage {
            Stage::SynSent(syn) => syn.retries() > 0,
            Stage::SynReceived(syn) => syn.retries() > 0,
            Stage::Open(_) => false,
        }
    }

    /// The data level is through in both directions, so what a dead path still carries serves nobody (RFC 8684 3.3.6).
    fn give_up_when_stuck(&mut self) {
        if let Some(tcb) = self.tcb_mut()
            && tcb.consecutive_rtos() >= STUCK_RTOS
        {
            tcb.abort(CloseReason::Aborted);
        }
    }

    /// Since when its peer, who acknowledged our FIN, is silent instead of sending its own.
    fn awaits_fin_since(&self) -> Option<Instant> {
        self.tcb().filter(|tcb| tcb.state() == State::FinWait2).map(|tcb| tcb.last_heard())
    }

    /// FIN after what is queued here. A handshake under way is completed first.
    pub(super) fn close(&mut self) {
        if self.closing {
            return;
        }
        if let Some(tcb) = self.tcb_mut() {
            tcb.close();
            self.closing = true;
        }
    }
}
