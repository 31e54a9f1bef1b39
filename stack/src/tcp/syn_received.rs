//! SYN-RECEIVED: what a SYN has asked for, held until it is answered or refused (RFC 9293 3.10.7.4).
#![forbid(unsafe_code)]

use super::handshake::{Attempt, OPTION_SPACE, agree, our_syn, syn_segment, syn_window};
use super::output::plain;
use super::tcb::{AckOwed, Agreed, Start};
use super::{CloseReason, FastOpenGrant, Opening, Proven, Tcb, TcpConfig, TxSegment};
use crate::buf::Chain;
use crate::time::Instant;
use crate::wire::{
    Control, Ecn, FastOpen, Options, Segment, SegmentOptions, SeqNum, Timestamps, UnscaledWindow,
    WindowScale, WindowSize,
};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::ops::ControlFlow::{self, Break, Continue};

/// Challenge ACKs in SYN-RECEIVED.
const MAX_CHALLENGES: u8 = 10;

/// What a [`SynReceived`] is about to do.
#[derive(Debug)]
enum Answer {
    /// Waits for its owner; duplicates of the SYN are ignored (SPEC T30).
    Held,
    /// The SYN/ACK with its text.
    Accepted { text: Chain, attempt: Attempt },
    /// A RST is owed, or was sent: at `seq` once a SYN/ACK may have taken numbers from the peer's window.
    Refused { owed: bool, seq: SeqNum },
}

/// SYN-RECEIVED: silent until it is answered or refused.
#[derive(Debug)]
pub struct SynReceived {
    cfg: Rc<TcpConfig>,
    opening: Opening,
    irs: SeqNum,
    agreed: Agreed,
    /// RCV.NXT, and the end of all the SYN carried.
    rcv_nxt: SeqNum,
    syn_end: SeqNum,
    window: WindowSize,
    /// What the SYN was marked with.
    syn_ecn: Ecn,
    /// Both ends offer scaling, so ours is in the SYN/ACK.
    scaling: bool,
    /// For the SYN/ACK, the first time (RFC 7413 4.2.2(c)).
    fast_open: Option<Box<FastOpen>>,
    answer: Answer,
    pub(super) origin: Origin,
    retort: Retort,
}

/// Who opened (MUST-11): a peer that refuses ends both, but only one of them was tried by our user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Passive,
    /// A SYN crossed ours.
    Active,
}

/// What is owed to a segment that has no place here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Retort {
    Nothing,
    Ack,
    /// At `wrong_ack` of the attempt.
    Reset,
}

/// What a segment did to a [`SynReceived`].
#[derive(Debug)]
pub enum SynReceivedOutcome {
    /// Nothing that matters to the owner.
    Nothing,
    /// Established: feed the same segment to the [`Tcb`]. Text of the SYN/ACK that it does not acknowledge is in flight.
    Established(Box<Tcb>),
    /// Over.
    Closed(CloseReason),
}

impl SynReceived {
    /// Holds `syn`, of whose text the first `accept_text` octets are taken (by the owner) and will be acknowledged.
    pub fn new(
        cfg: &Rc<TcpConfig>,
        syn: &Segment,
        opening: Opening,
        accept_text: u32,
        now: Instant,
    ) -> SynReceived {
        SynReceived {
            cfg: cfg.clone(),
            opening,
            irs: syn.seq,
            agreed: agree(cfg, opening, syn, now),
            rcv_nxt: syn.seq + 1 + accept_text.min(syn.text.len()),
            syn_end: syn.seq + syn.len(),
            window: syn.window.scale(WindowScale::new(0)),
            syn_ecn: syn.traffic_class.ecn(),
            scaling: matches!(&syn.options, Options::Syn(o) if o.window_scale.is_some()),
            fast_open: None,
            answer: Answer::Held,
            origin: Origin::Passive,
            retort: Retort::Nothing,
        }
    }

    /// As [`SynReceived::new`], answering as `grant` says.
    pub fn with_fast_open(
        cfg: &Rc<TcpConfig>,
        syn: &Segment,
        opening: Opening,
        grant: FastOpenGrant,
        now: Instant,
    ) -> SynReceived {
        let mut received = SynReceived::new(cfg, syn, opening, grant.text, now);
        received.fast_open = grant.option.map(Box::new);
        received
    }

    /// The flow whose third segment returned a cookie: feed it that segment next.
    pub fn proven(cfg: &Rc<TcpConfig>, proven: &Proven, now: Instant) -> SynReceived {
        let mut received = SynReceived::new(cfg, &proven.syn, proven.opening, 0, now);
        received.answer = Answer::Accepted { text: Chain::new(), attempt: Attempt::over() };
        received
    }

    pub(super) fn cfg(&self) -> &TcpConfig {
        &self.cfg
    }

    /// ISS.
    pub fn iss(&self) -> SeqNum {
        self.opening.iss
    }

    /// How often the SYN/ACK was sent again.
    pub fn retries(&self) -> u8 {
        match &self.answer {
            Answer::Accepted { attempt, .. } => attempt.retries,
            Answer::Held | Answer::Refused { .. } => 0,
        }
    }

    /// IRS.
    pub fn irs(&self) -> SeqNum {
        self.irs
    }

    /// Lets the SYN/ACK go, with `text` in it. Only the first answer counts.
    pub fn answer(&mut self, text: Chain, _now: Instant) {
        if matches!(self.answer, Answer::Held) {
            self.answer = Answer::Accepted { text, attempt: Attempt::new() };
        }
    }

    /// The next poll yields RST and ACK.
    pub fn refuse(&mut self) {
        let seq = match &self.answer {
            Answer::Held => SeqNum(0), // RFC 9293 3.10.7.1: nothing of ours is known yet
            // RFC 5961 3.2: elsewhere than at SND.NXT it would not end what the SYN/ACK began.
            Answer::Accepted { text, .. } => self.opening.iss + 1 + text.len(),
            Answer::Refused { .. } => return,
        };
        self.answer = Answer::Refused { owed: true, seq };
    }

    /// Processes one arriving segment (RFC 9293 3.10.7.4 for SYN-RECEIVED). Poll afterwards.
    pub fn on_segment(&mut self, seg: &Segment, now: Instant) -> SynReceivedOutcome {
        let Answer::Accepted { attempt, .. } = &mut self.answer else {
            return match self.is_exact_reset(seg) {
                true => SynReceivedOutcome::Closed(CloseReason::Reset),
                false => SynReceivedOutcome::Nothing,
            };
        };
        let again = seg.control == Control::Syn && seg.seq == self.irs;
        if again && seg.ack.is_none() {
            attempt.owed = true; // the SYN/ACK was lost
            return SynReceivedOutcome::Nothing;
        }
        match self.check(seg, again) {
            Continue(()) => self.establish(now),
            Break(outcome) => outcome,
        }
    }

    /// The RFC's order. `again`: the other side's SYN/ACK in a simultaneous open, whose SYN was processed already.
    fn check(&mut self, seg: &Segment, again: bool) -> ControlFlow<SynReceivedOutcome> {
        if !again {
            self.check_sequence(seg)?; // first
            self.check_rst(seg)?; // second
            if seg.control == Control::Syn {
                return self.challenge(); // fourth; RFC 5961 4.2
            }
        }
        // Fifth.
        let Some(ack) = seg.ack else { return Break(SynReceivedOutcome::Nothing) };
        if self.opening.iss.before(ack) && ack.at_or_before(self.nxt()) {
            return Continue(());
        }
        if let Answer::Accepted { attempt, .. } = &mut self.answer {
            (attempt.wrong_ack, self.retort) = (ack, Retort::Reset);
        }
        Break(SynReceivedOutcome::Nothing)
    }

    fn check_sequence(&mut self, seg: &Segment) -> ControlFlow<SynReceivedOutcome> {
        let (nxt, edge) = (self.rcv_nxt, self.rcv_nxt + u32::from(syn_window(&self.cfg).0));
        let last = seg.seq + seg.len().saturating_sub(1);
        let inside = seg.seq.within(nxt, edge) || last.within(nxt, edge);
        let old = match (self.agreed.timestamps, seg.options.timestamps()) {
            (Some(stamps), Some(ts)) => (ts.val.wrapping_sub(stamps.recent) as i32) < 0,
            _ => false,
        };
        match seg.control {
            Control::Rst if inside => Continue(()),
            Control::Rst => Break(SynReceivedOutcome::Nothing),
            _ if inside && !old => Continue(()),
            _ => self.challenge(),
        }
    }

    /// RFC 5961 3.2 applies here too: only the exact sequence number counts.
    fn check_rst(&mut self, seg: &Segment) -> ControlFlow<SynReceivedOutcome> {
        if seg.control != Control::Rst {
            return Continue(());
        }
        if !self.is_exact_reset(seg) {
            return self.challenge();
        }
        Break(SynReceivedOutcome::Closed(match self.origin {
            Origin::Passive => CloseReason::Reset,
            Origin::Active => CloseReason::Refused,
        }))
    }

    fn is_exact_reset(&self, seg: &Segment) -> bool {
        seg.control == Control::Rst && (seg.seq == self.rcv_nxt || seg.seq == self.syn_end)
    }

    /// RFC 5961 7: at most ten in a handshake.
    fn challenge(&mut self) -> ControlFlow<SynReceivedOutcome> {
        if let Answer::Accepted { attempt, .. } = &mut self.answer
            && attempt.challenges < MAX_CHALLENGES
        {
            attempt.challenges += 1;
            self.retort = Retort::Ack;
        }
        Break(SynReceivedOutcome::Nothing)
    }

    /// SND.NXT.
    fn nxt(&self) -> SeqNum {
        let text = match &self.answer {
            Answer::Accepted { text, .. } => text.len(),
            Answer::Held | Answer::Refused { .. } => 0,
        };
        self.opening.iss + 1 + text
    }

    fn establish(&mut self, now: Instant) -> SynReceivedOutcome {
        let Answer::Accepted { text, attempt } = &mut self.answer else {
            return SynReceivedOutcome::Nothing;
        };
        let start = Start {
            agreed: self.agreed.clone(),
            una: self.opening.iss + 1,
            in_flight: core::mem::take(text),
            rcv_nxt: self.rcv_nxt,
            snd_wnd: self.window,
            wl1: self.irs,
            offered: u32::from(syn_window(&self.cfg).0),
            rtt: attempt.rtt(now),
            path_mss: self.opening.path_mss,
            ack: AckOwed::None,
        };
        SynReceivedOutcome::Established(Box::new(Tcb::new(&self.cfg, start, now)))
    }

    /// What a segment that has no place here calls for.
    fn retort(&mut self, now: Instant) -> Option<TxSegment> {
        match core::mem::replace(&mut self.retort, Retort::Nothing) {
            Retort::Nothing => None,
            Retort::Reset => match &self.answer {
                Answer::Accepted { attempt, .. } => {
                    Some(plain(reset(attempt.wrong_ack, None), OPTION_SPACE))
                }
                Answer::Held | Answer::Refused { .. } => None,
            },
            Retort::Ack => {
                let timestamps = self
                    .agreed
                    .timestamps
                    .map(|ts| Timestamps { val: ts.val(now), ecr: ts.recent });
                let mut segment = reset(self.nxt(), Some(self.rcv_nxt));
                segment.control = Control::None;
                segment.window =
                    WindowSize(u32::from(syn_window(&self.cfg).0)).unscale(self.agreed.rcv_scale);
                segment.options =
                    Options::Segment(SegmentOptions { timestamps, ..Default::default() });
                let room = if timestamps.is_some() { OPTION_SPACE - 12 } else { OPTION_SPACE };
                Some(plain(segment, room))
            }
        }
    }

    /// The SYN/ACK when it is due, the RST, or the answer to a wrong segment.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<TxSegment> {
        if let Some(retort) = self.retort(now) {
            return Some(retort);
        }
        match &mut self.answer {
            Answer::Held => None,
            Answer::Refused { owed, seq } => core::mem::replace(owed, false)
                .then(|| plain(reset(*seq, Some(self.syn_end)), OPTION_SPACE)),
            Answer::Accepted { text, attempt } => {
                if !attempt.take(now) {
                    return None;
                }
                let mut options = our_syn(&self.cfg);
                options.window_scale = options.window_scale.filter(|_| self.scaling);
                options.sack_permitted = self.agreed.sack;
                options.timestamps = self
                    .agreed
                    .timestamps
                    .map(|ts| Timestamps { val: ts.val(now), ecr: ts.recent });
                options.fast_open = self.fast_open.take().map(|option| *option);
                let again = attempt.retries > 0;
                let ack = Some(self.rcv_nxt);
                let iss = self.opening.iss;
                let mut tx = syn_segment(&self.cfg, iss, ack, options, text.clone(), again);
                tx.segment.ecn = self.agreed.ecn.syn_ack_flags(self.syn_ecn);
                Some(tx)
            }
        }
    }

    /// When [`SynReceived::on_deadline`] wants to be called; never while held.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.answer {
            Answer::Accepted { attempt, .. } => attempt.deadline(),
            _ => None,
        }
    }

    /// Retransmits, or gives up.
    pub fn on_deadline(&mut self, now: Instant) -> Option<CloseReason> {
        match &mut self.answer {
            Answer::Accepted { attempt, .. } => attempt.on_deadline(&self.cfg, now),
            _ => None,
        }
    }
}

fn reset(seq: SeqNum, ack: Option<SeqNum>) -> Segment {
    Segment {
        seq,
        ack,
        control: Control::Rst,
        push: false,
        window: UnscaledWindow(0),
        options: Options::Segment(Default::default()),
        text: Chain::new(),
        ..Default::default()
    }
}
