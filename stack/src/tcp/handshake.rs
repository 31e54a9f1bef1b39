//! The handshake: what SYNs say, and SYN-SENT (RFC 9293 3.5, 3.10.7.3).
#![forbid(unsafe_code)]

use super::ecn::{self, EcnState};
use super::output::plain;
use super::pmtu::default_mss;
use super::rtt::{INITIAL_RTO, Rtt};
use super::syn_received::Origin;
use super::tcb::{AckOwed, Agreed, MIN_MSS, Stamps, Start};
use super::{
    CloseReason, FastOpenFate, FastOpenLesson, FastOpenTry, Label, SynReceived, Tcb, TcpConfig,
    TxSegment, reset_reply,
};
use crate::buf::Chain;
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, FastOpen, MptcpOptions, Options, Segment, SeqNum, SynOptions, Timestamps,
    UnscaledWindow, WindowScale, WindowSize,
};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::net::IpAddr;

/// Octets of options in a segment.
pub(super) const OPTION_SPACE: u8 = 40;

/// Numbers that the caller draws for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Initial send sequence number (RFC 6528).
    pub iss: SeqNum,
    /// Added to the clock for TSval (RFC 7323 5.4).
    pub ts_offset: u32,
    /// Most octets of text and options that the path is known to carry in a segment; `u16::MAX`: nothing is known.
    pub path_mss: u16,
    /// MSS of the peer if it tells none: [`default_mss`](super::default_mss).
    pub default_mss: u16,
}

impl Opening {
    /// Of a flow to `peer` (RFC 6528): a clock of 4 microseconds plus `hash`, a keyed hash of the flow that only we can
    /// compute. When the flow is opened again its numbers and timestamps are beyond those of its predecessor, so that a
    /// peer in TIME-WAIT believes the SYN (RFC 6191).
    pub fn new(peer: IpAddr, hash: u64, now: Instant) -> Opening {
        let clock = (now.as_micros() / 4) as u32;
        Opening {
            iss: SeqNum((hash as u32).wrapping_add(clock)), // MUST-8, MUST-9
            ts_offset: (hash >> 32) as u32,
            path_mss: u16::MAX,
            default_mss: default_mss(peer),
        }
    }
}

/// Our SYN or SYN/ACK on its way: sent, repeated with doubled patience, given up.
#[derive(Debug)]
pub(super) struct Attempt {
    /// A transmission is due at the next poll.
    pub(super) owed: bool,
    pub(super) retries: u8,
    /// Transmissions, also those that a repeated SYN asked for.
    pub(super) sent: u8,
    /// Challenge ACKs so far.
    pub(super) challenges: u8,
    /// The last ACK of what was never sent: where its RST goes.
    pub(super) wrong_ack: SeqNum,
    pub(super) last_sent: Option<Instant>,
}

impl Attempt {
    pub(super) fn new() -> Attempt {
        Attempt {
            owed: true,
            retries: 0,
            sent: 0,
            challenges: 0,
            wrong_ack: SeqNum(0),
            last_sent: None,
        }
    }

    /// One that was made and answered without us.
    pub(super) fn over() -> Attempt {
        Attempt { owed: false, ..Attempt::new() }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = INITIAL_RTO.saturating_mul(1 << self.retries.min(16));
        self.last_sent.map(|at| at + patience)
    }

    pub(super) fn on_deadline(&mut self, cfg: &TcpConfig, now: Instant) -> Option<CloseReason> {
        if self.deadline().is_none_or(|at| at > now) {
            return None;
        }
        if self.retries >= cfg.syn_retries {
            return Some(CloseReason::TimedOut);
        }
        self.retries += 1;
        self.owed = true;
        None
    }

    /// Whether it is due now; counts it as sent.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.owed {
            self.last_sent = Some(now);
            self.sent = self.sent.saturating_add(1);
        }
        core::mem::replace(&mut self.owed, false)
    }

    /// The estimator to begin with: one measurement, unless it is not known which transmission was answered.
    pub(super) fn rtt(&self, now: Instant) -> Rtt {
        let mut rtt = Rtt::new();
        match self.last_sent {
            Some(at) if self.sent == 1 => rtt.on_sample(now.since(at), now),
            _ if self.retries > 0 => rtt.on_syn_timeout(),
            _ => {} // MUST-18
        }
        rtt
    }
}

pub(super) fn our_syn(cfg: &TcpConfig) -> SynOptions {
    SynOptions {
        mss: Some(cfg.mss),
        window_scale: Some(WindowScale::for_window(cfg.receive_buffer).shift()),
        sack_permitted: cfg.sack,
        timestamps: None,
        fast_open: None,
        mptcp: MptcpOptions::new(),
    }
}

/// The window of a SYN is never scaled (RFC 7323 2.2).
pub(super) fn syn_window(cfg: &TcpConfig) -> UnscaledWindow {
    WindowSize(cfg.first_window()).unscale(WindowScale::new(0))
}

pub(super) fn syn_segment(
    cfg: &TcpConfig,
    seq: SeqNum,
    ack: Option<SeqNum>,
    options: SynOptions,
    text: Chain,
    again: bool,
) -> TxSegment {
    let option_room = OPTION_SPACE - syn_options_len(&options);
    let segment = Segment {
        seq,
        ack,
        control: Control::Syn,
        push: !text.is_empty(),
        window: syn_window(cfg),
        options: Options::Syn(options),
        text,
        ..Default::default()
    };
    TxSegment { retransmission: again, ..plain(segment, option_room) }
}

/// Octets that these options take, padding included: SACK-permitted shares a word with Timestamps.
fn syn_options_len(options: &SynOptions) -> u8 {
    let mss = if options.mss.is_some() { 4 } else { 0 };
    let scale = if options.window_scale.is_some() { 4 } else { 0 };
    let rest = match (options.sack_permitted, options.timestamps.is_some()) {
        (_, true) => 12,
        (true, false) => 4,
        (false, false) => 0,
    };
    mss + scale + rest + options.fast_open.map_or(0, |option| option.written_len() as u8)
}

/// What both SYNs say together.
pub(super) fn agree(cfg: &TcpConfig, opening: Opening, syn: &Segment, now: Instant) -> Agreed {
    let none = SynOptions::default();
    let theirs = match &syn.options {
        Options::Syn(options) => options,
        Options::Segment(_) => &none,
    };
    let (snd_scale, rcv_scale) = match theirs.window_scale {
        Some(shift) => (WindowScale::new(shift), WindowScale::for_window(cfg.receive_buffer)),
        None => Default::default(),
    };
    Agreed {
        peer_mss: theirs.mss.unwrap_or(opening.default_mss).max(MIN_MSS),
        snd_scale,
        rcv_scale,
        sack: cfg.sack && theirs.sack_permitted,
        ecn: match syn.ack {
            Some(_) => EcnState::answered(cfg.ecn, syn),
            None => EcnState::accept(cfg.ecn, syn),
        },
        timestamps: theirs.timestamps.filter(|_| cfg.timestamps).map(|ts| Stamps {
            offset: opening.ts_offset,
            recent: ts.val,
            recent_at: now,
        }),
    }
}

fn stamp(opening: Opening, now: Instant) -> u32 {
    (now.as_millis() as u32).wrapping_add(opening.ts_offset)
}

/// SYN-SENT.
#[derive(Debug)]
pub struct SynSent {
    cfg: Rc<TcpConfig>,
    opening: Opening,
    text: Chain,
    first: Option<Box<FirstSyn>>,
    attempt: Attempt,
    reply: Option<Segment>,
}

/// What goes with the first SYN only: a SYN that is sent again may have been lost for it (RFC 7413 4.1.3.1(a)).
#[derive(Debug)]
struct FirstSyn {
    option: FastOpen,
    text: Chain,
}

/// What a segment did to a [`SynSent`].
#[derive(Debug)]
pub enum SynSentOutcome {
    /// Nothing that matters to the owner.
    Nothing,
    /// Established. The `tcb` owes an ACK: its next poll yields it.
    Established {
        /// The flow.
        tcb: Box<Tcb>,
        /// Octets of our SYN's text that the peer took; the owner pushes the rest again, except what Fast Open sent.
        acked_text: u32,
        /// The SYN/ACK's text, counted into `rcv.nxt` already.
        text: Chain,
        /// What an attempt at Fast Open taught.
        lesson: Option<FastOpenLesson>,
    },
    /// The peer refused.
    Refused(CloseReason),
    /// A SYN crossed ours (RFC 9293 Figure 7): continue with this.
    Simultaneous(Box<SynReceived>),
}

impl SynSent {
    /// Opens actively; the SYN carries `text`. Poll for the SYN.
    pub fn new(cfg: &Rc<TcpConfig>, opening: Opening, text: Chain, _now: Instant) -> SynSent {
        let attempt = Attempt::new();
        SynSent { cfg: cfg.clone(), opening, text, first: None, attempt, reply: None }
    }

    /// Lets the first SYN try Fast Open; returns what does not go with it of `text` (RFC 7413 4.1.3(b): what fits the MSS).
    pub fn try_fast_open(&mut self, what: FastOpenTry, mut text: Chain) -> Chain {
        let (cookie, most) = match what {
            FastOpenTry::Not => return text,
            FastOpenTry::Request => (None, 0),
            FastOpenTry::Text(..) if text.is_empty() => return text,
            FastOpenTry::Text(cookie, mss) => {
                (Some(cookie), mss.min(self.cfg.mss).saturating_sub(OPTION_SPACE.into()))
            }
        };
        let rest = text.split_off(text.len().min(most.into()));
        let option = FastOpen { cookie, ..FastOpen::default() };
        self.first = Some(Box::new(FirstSyn { option, text }));
        rest
    }

    /// Octets of text that some SYN of ours carried.
    fn text_len(&self) -> u32 {
        self.text.len() + self.first.as_ref().map_or(0, |first| first.text.len())
    }

    /// RFC 7413 4.1.3: what the SYN/ACK says of the first SYN.
    fn lesson(&self, seg: &Segment, acked_text: u32) -> Option<FastOpenLesson> {
        let first = self.first.as_ref()?;
        let Options::Syn(options) = &seg.options else { return None };
        let cookie = options.fast_open.and_then(|option| option.cookie);
        let unsaid = self.attempt.retries > 0 && cookie.is_none();
        let fate = match first.option.cookie {
            None if unsaid => return None, // the SYN that was answered may be the one that did not ask
            None => FastOpenFate::Asked,
            Some(_) if acked_text > 0 => FastOpenFate::TextTaken,
            Some(_) if unsaid => FastOpenFate::Lost,
            Some(_) => FastOpenFate::TextRefused,
        };
        Some(FastOpenLesson { fate, cookie, mss: options.mss.unwrap_or(self.opening.default_mss) })
    }

    pub(super) fn cfg(&self) -> &TcpConfig {
        &self.cfg
    }

    /// ISS.
    pub fn iss(&self) -> SeqNum {
        self.opening.iss
    }

    /// How often the SYN was sent again.
    pub fn retries(&self) -> u8 {
        self.attempt.retries
    }

    /// Processes one arriving segment (RFC 9293 3.10.7.3). Poll afterwards.
    pub fn on_segment(&mut self, seg: Segment, now: Instant) -> SynSentOutcome {
        let nxt = self.opening.iss + 1 + self.text_len();
        let acked = match seg.ack {
            Some(ack) if self.opening.iss.before(ack) && ack.at_or_before(nxt) => Some(ack),
            Some(_) => {
                self.reply = reset_reply(&seg);
                return SynSentOutcome::Nothing;
            }
            None => None,
        };
        match (seg.control, acked) {
            (Control::Rst, Some(_)) => SynSentOutcome::Refused(CloseReason::Refused),
            (Control::Syn, Some(ack)) => self.establish(seg, ack, now),
            (Control::Syn, None) => self.cross(&seg, now),
            _ => SynSentOutcome::Nothing,
        }
    }

    fn establish(&mut self, seg: Segment, ack: SeqNum, now: Instant) -> SynSentOutcome {
        let acked_text = ack.since(self.opening.iss + 1);
        let lesson = self.lesson(&seg, acked_text);
        let start = Start {
            agreed: agree(&self.cfg, self.opening, &seg, now),
            una: ack,
            in_flight: Chain::new(),
            rcv_nxt: seg.seq + seg.len(),
            snd_wnd: seg.window.scale(WindowScale::new(0)),
            wl1: seg.seq,
            offered: u32::from(syn_window(&self.cfg).0).saturating_sub(seg.text.len()),
            rtt: self.attempt.rtt(now),
            path_mss: self.opening.path_mss,
            ack: AckOwed::Now,
        };
        let mut tcb = Box::new(Tcb::new(&self.cfg, start, now));
        if let Some(first) = self.first.take() {
            let mut text = first.text;
            text.trim_front(acked_text.min(text.len()));
            tcb.push(text, Label::PLAIN); // RFC 7413 4.1.3(c): what was not acknowledged goes again
        }
        SynSentOutcome::Established { tcb, acked_text, text: seg.text, lesson }
    }

    fn cross(&mut self, seg: &Segment, now: Instant) -> SynSentOutcome {
        let mut received = SynReceived::new(&self.cfg, seg, self.opening, 0, now);
        let mut text = core::mem::take(&mut self.text);
        text.append(self.first.take().map(|first| first.text).unwrap_or_default());
        received.answer(text, now);
        received.origin = Origin::Active;
        SynSentOutcome::Simultaneous(Box::new(received))
    }

    /// The SYN when it is due, or the answer to a wrong segment.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<TxSegment> {
        if let Some(reply) = self.reply.take() {
            return Some(plain(reply, OPTION_SPACE));
        }
        if !self.attempt.take(now) {
            return None;
        }
        let mut options = our_syn(&self.cfg);
        if self.cfg.timestamps {
            options.timestamps = Some(Timestamps { val: stamp(self.opening, now), ecr: 0 });
        }
        let (iss, again) = (self.opening.iss, self.attempt.retries > 0);
        // This text goes with every transmission: it says where the flow is to go (SPEC T3).
        let mut text = self.text.clone();
        if let (Some(first), false) = (&self.first, again) {
            options.fast_open = Some(first.option);
            text.append(first.text.clone());
        }
        let mut tx = syn_segment(&self.cfg, iss, None, options, text, again);
        tx.segment.push &= self.first.is_none(); // a SYN of Fast Open looks like the kernel's
        if !again {
            tx.segment.ecn = ecn::request(self.cfg.ecn); // RFC 3168 6.1.1.1(a): perhaps somebody drops SYNs for it
        }
        Some(tx)
    }

    /// When [`SynSent::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.attempt.deadline()
    }

    /// Retransmits, or gives up.
    pub fn on_deadline(&mut self, now: Instant) -> Option<CloseReason> {
        self.attempt.on_deadline(&self.cfg, now)
    }
}

/// R2 for a SYN must be at least 3 minutes (MUST-23): 1 s, doubling, with the default number of retries.
const _: () = {
    let retries = 7;
    let total = INITIAL_RTO.as_secs() * ((1 << (retries + 1)) - 1);
    assert!(Duration::from_secs(total).as_secs() >= 180);
};
