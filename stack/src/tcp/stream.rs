//! A TCP endpoint: a flow and one reassembly queue.
#![forbid(unsafe_code)]

use super::{
    Arrival, CloseReason, FastOpenGrant, FastOpenLesson, FastOpenTry, Label, MtuTally, Opening,
    OptionRoom, Proven, Reassembly, State, Stop, SynReceived, SynReceivedOutcome, SynSent,
    SynSentOutcome, Tcb, TcpConfig, TcpEvents, TcpInfo, TimeWait, TooBig, TxSegment,
};
use crate::buf::Chain;
use crate::time::Instant;
use crate::wire::{IcmpError, Segment, SeqNum};
use alloc::boxed::Box;
use alloc::rc::Rc;

/// Where an endpoint is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Handshake, held or on its way.
    Opening,
    /// Both directions may carry text, or the peer has closed its own.
    Open,
    /// We closed our direction.
    Closing,
    /// Both closed in order; waits for stray segments.
    TimeWait,
    /// Over.
    Closed(CloseReason),
}

#[derive(Debug)]
enum Life {
    SynSent(Box<SynSent>),
    SynReceived(Box<SynReceived>),
    Flow(Box<Tcb>),
    /// And the answer to a stray segment.
    TimeWait(Box<(TimeWait, Option<Segment>)>),
    /// Over; the flow may still have a RST or a last ACK to send.
    Closed(CloseReason, Option<Box<Tcb>>),
}

/// What the user asked for before there was a flow.
#[derive(Debug, Default)]
struct Early {
    text: Chain,
    close: bool,
    /// What the handshake taught, until the owner takes it.
    lesson: Option<FastOpenLesson>,
}

/// A TCP endpoint with the six methods of a leg.
#[derive(Debug)]
pub struct Stream {
    life: Life,
    early: Option<Box<Early>>,
    inbox: Reassembly<SeqNum>,
    fin_received: bool,
    /// Octets the owner can take.
    granted: u32,
}

impl Stream {
    fn new(cfg: &Rc<TcpConfig>, life: Life) -> Stream {
        Stream {
            life,
            early: None,
            inbox: Reassembly::new(SeqNum(0)),
            fin_received: false,
            granted: cfg.first_window(),
        }
    }

    /// Opens actively.
    pub fn connect(cfg: &Rc<TcpConfig>, opening: Opening, now: Instant) -> Stream {
        Stream::fast_connect(cfg, opening, FastOpenTry::Not, Chain::new(), now)
    }

    /// Opens actively with `text` to send, of which as much as `what` allows goes with the SYN (RFC 7413).
    pub fn fast_connect(
        cfg: &Rc<TcpConfig>,
        opening: Opening,
        what: FastOpenTry,
        text: Chain,
        now: Instant,
    ) -> Stream {
        let mut syn = SynSent::new(cfg, opening, Chain::new(), now);
        let rest = syn.try_fast_open(what, text);
        let mut stream = Stream::new(cfg, Life::SynSent(Box::new(syn)));
        stream.send(rest);
        stream
    }

    /// Holds a SYN; its text, if any, is not taken.
    pub fn accept(cfg: &Rc<TcpConfig>, syn: &Segment, opening: Opening, now: Instant) -> Stream {
        Stream::fast_accept(cfg, syn, opening, FastOpenGrant::default(), now)
    }

    /// Holds a SYN, of whose text as much is taken as `grant` says: [`Stream::recv`] has it at once (RFC 7413 4.2.2(a)).
    pub fn fast_accept(
        cfg: &Rc<TcpConfig>,
        syn: &Segment,
        opening: Opening,
        grant: FastOpenGrant,
        now: Instant,
    ) -> Stream {
        let received = SynReceived::with_fast_open(cfg, syn, opening, grant, now);
        let mut stream = Stream::new(cfg, Life::SynReceived(Box::new(received)));
        let mut text = syn.text.clone();
        text.truncate(grant.text.min(text.len()));
        stream.inbox = Reassembly::new(syn.seq + 1);
        stream.inbox.insert(syn.seq + 1, text);
        stream
    }

    /// What an attempt at Fast Open taught, once.
    pub fn take_lesson(&mut self) -> Option<FastOpenLesson> {
        let early = self.early.as_mut().filter(|_| matches!(self.life, Life::Flow(_)))?;
        let lesson = early.lesson.take();
        self.early = None;
        lesson
    }

    /// A flow whose third segment returned a cookie: feed it that segment next.
    pub fn proven(cfg: &Rc<TcpConfig>, proven: &Proven, now: Instant) -> Stream {
        Stream::new(cfg, Life::SynReceived(Box::new(SynReceived::proven(cfg, proven, now))))
    }

    /// Answers the held SYN.
    pub fn answer(&mut self, now: Instant) {
        if let Life::SynReceived(syn) = &mut self.life {
            syn.answer(Chain::new(), now);
        }
    }

    /// ISS, during the handshake.
    pub fn iss(&self) -> Option<SeqNum> {
        match &self.life {
            Life::SynSent(syn) => Some(syn.iss()),
            Life::SynReceived(syn) => Some(syn.iss()),
            _ => None,
        }
    }

    /// Refuses the held SYN.
    pub fn refuse(&mut self) {
        if let Life::SynReceived(syn) = &mut self.life {
            syn.refuse();
        }
    }

    /// Processes one arriving segment; returns why that stopped early, if it did. Poll afterwards.
    pub fn on_segment(&mut self, seg: Segment, now: Instant) -> Option<Stop> {
        match &mut self.life {
            Life::SynSent(syn) => match syn.on_segment(seg, now) {
                SynSentOutcome::Nothing => {}
                SynSentOutcome::Refused(reason) => self.life = Life::Closed(reason, None),
                SynSentOutcome::Simultaneous(syn) => self.life = Life::SynReceived(syn),
                SynSentOutcome::Established { tcb, text, lesson, .. } => {
                    let at = tcb.rcv_nxt() - text.len();
                    self.establish(tcb, at);
                    self.inbox.insert(at, text);
                    if lesson.is_some() {
                        self.early.get_or_insert_default().lesson = lesson;
                    }
                }
            },
            Life::SynReceived(syn) => match syn.on_segment(&seg, now) {
                SynReceivedOutcome::Nothing => {}
                SynReceivedOutcome::Closed(reason) => self.life = Life::Closed(reason, None),
                SynReceivedOutcome::Established(tcb) => {
                    let at = tcb.rcv_nxt();
                    self.establish(tcb, at);
                    return self.on_segment(seg, now);
                }
            },
            Life::Flow(tcb) => {
                let arrival = tcb.on_segment(seg, now);
                let stop = arrival.stop;
                self.on_arrival(arrival);
                return stop;
            }
            Life::TimeWait(rest) => rest.1 = rest.0.on_segment(&seg, now),
            Life::Closed(..) => {}
        }
        None
    }

    /// A router says that a segment is too big for the path. Poll afterwards.
    pub fn on_too_big(&mut self, error: &IcmpError, now: Instant) -> TooBig {
        match &mut self.life {
            Life::Flow(tcb) => tcb.on_too_big(error, now),
            _ => TooBig::OutOfWindow,
        }
    }

    /// As [`Tcb::drain_mtu_tally`].
    pub fn drain_mtu_tally(&mut self) -> MtuTally {
        match &mut self.life {
            Life::Flow(tcb) => tcb.drain_mtu_tally(),
            _ => MtuTally::NONE,
        }
    }

    fn establish(&mut self, mut tcb: Box<Tcb>, nxt: SeqNum) {
        if self.inbox.nxt() != nxt {
            self.inbox = Reassembly::new(nxt); // else it has text of the SYN
        }
        tcb.set_window(self.granted.saturating_sub(self.inbox.ready()));
        if let Some(early) = self.early.take() {
            tcb.push(early.text, Label::PLAIN);
            if early.close {
                tcb.close();
            }
        }
        self.life = Life::Flow(tcb);
    }

    fn on_arrival(&mut self, arrival: Arrival) {
        if let Some((at, text)) = arrival.text {
            self.inbox.insert(at, text);
        }
        self.fin_received |= arrival.fin;
        if let Some(reason) = arrival.closed
            && !matches!(&self.life, Life::Flow(tcb) if tcb.state() == State::TimeWait)
        {
            self.end(reason);
        }
    }

    /// Keeps the flow for what it still has to say.
    fn end(&mut self, reason: CloseReason) {
        let before = core::mem::replace(&mut self.life, Life::Closed(reason, None));
        if let Life::Flow(tcb) = before {
            self.life = Life::Closed(reason, Some(tcb));
        }
        self.early = None;
    }

    /// Runs what is due. Poll afterwards.
    pub fn on_deadline(&mut self, now: Instant) {
        let closed = match &mut self.life {
            Life::SynSent(syn) => syn.on_deadline(now),
            Life::SynReceived(syn) => syn.on_deadline(now),
            Life::Flow(tcb) => tcb.on_deadline(now),
            Life::TimeWait(rest) => rest.0.expired(now).then_some(CloseReason::Done),
            Life::Closed(..) => None,
        };
        if let Some(reason) = closed {
            self.end(reason);
        }
    }

    /// When [`Stream::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.life {
            Life::SynSent(syn) => syn.deadline(),
            Life::SynReceived(syn) => syn.deadline(),
            Life::Flow(tcb) => tcb.deadline(),
            Life::TimeWait(rest) => Some(rest.0.deadline()),
            Life::Closed(..) => None,
        }
    }

    /// The next segment to send; call until `None` after every mutation.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<TxSegment> {
        let room = OptionRoom::default();
        match &mut self.life {
            Life::SynSent(syn) => syn.poll_transmit(now),
            Life::SynReceived(syn) => {
                let tx = syn.poll_transmit(now)?;
                if tx.segment.control == crate::wire::Control::Rst && tx.segment.ack.is_some() {
                    self.life = Life::Closed(CloseReason::Refused, None);
                }
                Some(tx)
            }
            Life::Flow(tcb) => {
                let tx = tcb.poll_transmit(now, room);
                if tx.is_none() && tcb.state() == State::TimeWait {
                    self.life = Life::TimeWait(Box::new((TimeWait::new(tcb, now), None)));
                }
                tx
            }
            Life::TimeWait(rest) => rest.1.take().map(|segment| super::output::plain(segment, 0)),
            Life::Closed(_, last) => {
                let tx = last.as_mut()?.poll_transmit(now, room);
                if tx.is_none() {
                    *last = None;
                }
                tx
            }
        }
    }

    /// Takes all text that is in order.
    pub fn recv(&mut self) -> Option<Chain> {
        let text = self.inbox.take()?;
        if let Life::Flow(tcb) = &mut self.life {
            tcb.set_window(self.granted);
        }
        Some(text)
    }

    /// The peer's FIN is here and everything before it was taken.
    pub fn recv_finished(&self) -> bool {
        self.fin_received && self.inbox.ready() == 0
    }

    /// Queues text to send; ignored once closed.
    pub fn send(&mut self, text: Chain) {
        match &mut self.life {
            Life::Flow(tcb) => tcb.push(text, Label::PLAIN),
            Life::SynSent(_) | Life::SynReceived(_) if !text.is_empty() => {
                let early = self.early.get_or_insert_default();
                if !early.close {
                    early.text.append(text);
                }
            }
            _ => {}
        }
    }

    /// Octets that [`Stream::send`] should still be given.
    pub fn room(&self) -> u32 {
        let open = match &self.life {
            Life::Flow(tcb) => tcb.state().can_send(),
            Life::SynSent(_) | Life::SynReceived(_) => {
                self.early.as_ref().is_none_or(|early| !early.close)
            }
            Life::TimeWait(..) | Life::Closed(..) => false,
        };
        if open { self.send_limit().saturating_sub(self.queued()) } else { 0 }
    }

    /// Octets of text that the peer has not acknowledged, sent or not.
    pub fn queued(&self) -> u32 {
        match &self.life {
            Life::Flow(tcb) => tcb.queued(),
            _ => self.early.as_ref().map_or(0, |early| early.text.len()),
        }
    }

    /// How many of them the path has a use for.
    pub fn send_limit(&self) -> u32 {
        let cwnd = self.tcb().map_or(0, Tcb::cwnd);
        self.cfg().map_or(0, |cfg| cfg.send_limit(u64::from(cwnd)))
    }

    /// The window that is offered until the owner grants something.
    pub fn first_window(&self) -> u32 {
        self.cfg().map_or(0, TcpConfig::first_window)
    }

    /// The largest window that is ever offered.
    pub fn receive_buffer(&self) -> u32 {
        self.cfg().map_or(0, |cfg| cfg.receive_buffer)
    }

    /// The configuration, as long as there is a handshake or a flow.
    fn cfg(&self) -> Option<&TcpConfig> {
        match &self.life {
            Life::SynSent(syn) => Some(syn.cfg()),
            Life::SynReceived(syn) => Some(syn.cfg()),
            Life::Flow(tcb) => Some(&tcb.cfg),
            Life::TimeWait(..) | Life::Closed(..) => None,
        }
    }

    /// Octets the owner can take now, those waiting in [`Stream::recv`] included. Until the first call it is
    /// `receive_buffer_default`; it holds until the next.
    pub fn grant(&mut self, octets: u32) {
        let Some(cfg) = self.cfg() else { return };
        self.granted = octets.min(cfg.receive_buffer);
        let ready = self.inbox.ready();
        if let Life::Flow(tcb) = &mut self.life {
            tcb.set_window(self.granted.saturating_sub(ready));
        }
    }

    /// Queues a FIN.
    pub fn close(&mut self) {
        match &mut self.life {
            Life::Flow(tcb) => tcb.close(),
            Life::SynSent(_) | Life::SynReceived(_) => {
                self.early.get_or_insert_default().close = true;
            }
            _ => {}
        }
    }

    /// Gives up with a RST; what was not taken is dropped.
    pub fn abort(&mut self, why: CloseReason) {
        match &mut self.life {
            Life::Flow(tcb) => tcb.abort(why),
            Life::SynReceived(syn) => {
                syn.refuse();
                return;
            }
            Life::Closed(..) => return,
            Life::SynSent(_) | Life::TimeWait(..) => {}
        }
        self.inbox.clear();
        self.end(why);
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match &self.life {
            Life::SynSent(_) | Life::SynReceived(_) => Phase::Opening,
            Life::Flow(tcb) => match tcb.state() {
                State::Established | State::CloseWait => Phase::Open,
                State::TimeWait => Phase::TimeWait,
                _ => Phase::Closing,
            },
            Life::TimeWait(..) => Phase::TimeWait,
            Life::Closed(reason, _) => Phase::Closed(*reason),
        }
    }

    /// What has to linger, once the flow is in TIME-WAIT and has said everything.
    pub fn time_wait(&self) -> Option<TimeWait> {
        match &self.life {
            Life::TimeWait(rest) if rest.1.is_none() => Some(rest.0.clone()),
            _ => None,
        }
    }

    /// The flow while there is one.
    pub fn tcb(&self) -> Option<&Tcb> {
        match &self.life {
            Life::Flow(tcb) => Some(tcb),
            _ => None,
        }
    }

    /// What went wrong since it was last asked.
    pub fn take_events(&mut self) -> Option<TcpEvents> {
        match &mut self.life {
            Life::Flow(tcb) | Life::Closed(_, Some(tcb)) => tcb.take_events(),
            _ => None,
        }
    }

    /// A snapshot.
    pub fn info(&self) -> TcpInfo {
        match &self.life {
            Life::Flow(tcb) => tcb.info(),
            Life::SynSent(_) => TcpInfo::empty(State::SynSent),
            Life::SynReceived(_) => TcpInfo::empty(State::SynReceived),
            Life::TimeWait(..) => TcpInfo::empty(State::TimeWait),
            Life::Closed(..) => TcpInfo::empty(State::Closed),
        }
    }

    /// Panics if it contradicts itself.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        self.inbox.assert_invariants();
        if let Life::Flow(tcb) = &self.life {
            tcb.assert_invariants();
            let fin = u32::from(tcb.fin_received());
            assert_eq!(tcb.rcv_nxt(), self.inbox.nxt() + fin, "flow and inbox agree");
        }
    }
}
