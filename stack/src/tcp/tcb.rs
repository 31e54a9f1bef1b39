//! The transmission control block: a flow in the synchronized states (RFC 9293 3.3.1).
#![forbid(unsafe_code)]

use super::congestion::{Congestion, Limited};
use super::ecn::EcnState;
use super::pmtu::{Path, RAISE, initial_mss};
use super::recovery::{Probe, Rack, Recovery};
use super::rtt::Rtt;
use super::send_queue::{Fin, SendQueue};
use super::timer::Awaited;
use super::undo::Undo;
use super::{
    CloseReason, Event, Label, OptionRoom, RangeSet, RightEdge, State, TcpConfig, TcpEvents,
    TcpInfo, transition,
};
use crate::buf::Chain;
use crate::time::{Duration, Instant};
use crate::wire::{SackBlock, SeqNum, UnscaledWindow, WindowScale, WindowSize};
use alloc::boxed::Box;
use alloc::rc::Rc;
use arrayvec::ArrayVec;

/// Octets of the Timestamps option with its padding.
pub(super) const TIMESTAMPS_LEN: u32 = 12;
/// Least MSS that a peer can impose on us: leaves 48 octets beside 40 of options, as Linux does.
pub(super) const MIN_MSS: u16 = 88;

/// What both ends settled in the handshake for the time after it.
#[derive(Clone, Debug)]
pub(super) struct Agreed {
    /// Peer's MSS, or the default if it told none.
    pub(super) peer_mss: u16,
    /// Scale of windows we receive and of those we send.
    pub(super) snd_scale: WindowScale,
    pub(super) rcv_scale: WindowScale,
    pub(super) sack: bool,
    pub(super) ecn: EcnState,
    pub(super) timestamps: Option<Stamps>,
}

/// State of the Timestamps option (RFC 7323).
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamps {
    /// Added to the clock in ms.
    pub(super) offset: u32,
    /// TS.Recent and when it was set.
    pub(super) recent: u32,
    pub(super) recent_at: Instant,
}

impl Stamps {
    pub(super) fn val(&self, now: Instant) -> u32 {
        (now.as_millis() as u32).wrapping_add(self.offset)
    }
}

/// Peer's window (RFC 9293 3.3.1).
#[derive(Clone, Debug)]
pub(super) struct SendWindow {
    pub(super) wnd: u32,
    pub(super) wl1: SeqNum,
    pub(super) wl2: SeqNum,
    /// Largest ever offered (MAX.SND.WND).
    pub(super) max: u32,
}

/// The receiving side.
#[derive(Clone, Debug)]
pub(super) struct Receive {
    pub(super) nxt: SeqNum,
    /// Right edge that the owner allows, and that was last advertised.
    pub(super) allowed: SeqNum,
    pub(super) advertised: SeqNum,
    /// Largest right edge ever advertised: what is accepted.
    pub(super) edge: SeqNum,
    /// Window the owner set, for [`RightEdge::Shared`].
    pub(super) window: u32,
    /// While something is missing, or was received twice.
    pub(super) disorder: Option<Box<Disorder>>,
    /// The peer's FIN, by its sequence number.
    pub(super) fin: Option<SeqNum>,
    pub(super) last_ack_sent: SeqNum,
    /// Longest segment seen, to tell full segments.
    pub(super) mss: u16,
    /// Octets not acknowledged.
    pub(super) unacked: u32,
    /// Segments still to be acknowledged at once.
    pub(super) quick_acks: u8,
}

/// What SACK has to tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Disorder {
    /// What arrived beyond nxt.
    pub(super) holes: RangeSet<SeqNum>,
    /// An octet of each range that changed last, most recent first (RFC 2018 4).
    pub(super) recent: ArrayVec<SeqNum, 4>,
    /// A duplicate to report (RFC 2883).
    pub(super) duplicate: Option<SackBlock>,
}

impl Receive {
    /// Everything up to nxt is here, and nothing beyond.
    pub(super) fn in_order(&self) -> bool {
        self.holes().is_none()
    }

    /// What arrived beyond nxt, if anything did.
    pub(super) fn holes(&self) -> Option<&RangeSet<SeqNum>> {
        self.disorder.as_ref().map(|disorder| &disorder.holes).filter(|holes| !holes.is_empty())
    }

    pub(super) fn disorder(&mut self) -> &mut Disorder {
        self.disorder.get_or_insert_default()
    }

    /// Octets that came twice, to be reported with the next ACK (RFC 2883).
    pub(super) fn note_duplicate(&mut self, left: SeqNum, right: SeqNum) {
        self.disorder().duplicate = Some(SackBlock { left, right });
    }

    /// They were reported.
    pub(super) fn forget_duplicate(&mut self) {
        if let Some(disorder) = &mut self.disorder {
            disorder.duplicate = None;
            if disorder.holes.is_empty() {
                self.disorder = None;
            }
        }
    }
}

/// An ACK that is owed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AckOwed {
    None,
    /// Until `ack_at`.
    Delayed,
    Now,
    /// By itself, even if text is to go out: the owner has something to say.
    Pure,
}

/// Sums for [`TcpInfo`].
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) bytes_sent: u64,
    pub(super) bytes_acked: u64,
    pub(super) bytes_received: u64,
}

/// What went wrong so far: kept apart, because mostly nothing does.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    pub(super) challenges: Challenges,
    /// A tail loss probe on its way.
    pub(super) probe: Option<Probe>,
    /// The path carries less than both ends allow, or it is not known whether it does.
    pub(super) path: Option<Box<Path>>,
    /// The RTT was not measured since the last one (RFC 8985 7.3).
    pub(super) unmeasured: bool,
    /// What to restore if the last loss was none.
    pub(super) undo: Option<Box<Undo>>,
    /// Octets that the peer reported as duplicates.
    pub(super) dsacked: u64,
    /// What was not yet taken by [`Tcb::take_events`].
    pub(super) events: TcpEvents,
    pub(super) bytes_retrans: u64,
    pub(super) lost: u64,
    pub(super) rtos: u32,
    pub(super) tlps: u32,
    pub(super) recoveries: u32,
    pub(super) duplicates_in: u32,
    pub(super) out_of_order_in: u32,
    /// Packets that came with CE, and that went out and are said to have met it.
    pub(super) ce_in: u32,
    pub(super) delivered_ce: u32,
}

/// A flow in a synchronized state. Arguments down, values up: it calls nobody and reads no clock.
#[derive(Debug)]
pub struct Tcb {
    pub(super) cfg: Rc<TcpConfig>,
    pub(super) state: State,
    pub(super) agreed: Agreed,
    pub(super) snd: SendWindow,
    pub(super) queue: SendQueue,
    pub(super) rcv: Receive,
    pub(super) ack: AckOwed,
    pub(super) ack_at: Instant,
    pub(super) rtt: Rtt,
    pub(super) congestion: Congestion,
    pub(super) rack: Rack,
    /// When the timer goes off, and what it is then about.
    pub(super) timer: Option<Instant>,
    pub(super) awaited: Awaited,
    /// What the timer asks the next poll for.
    pub(super) due: Option<Due>,
    /// RTO counts from here.
    pub(super) rto_base: Instant,
    pub(super) last_sent: Instant,
    pub(super) last_heard: Instant,
    /// Unanswered probes in a row.
    pub(super) probes: u8,
    pub(super) reset: Reset,
    /// Option room at the last poll: what the MSS was.
    pub(super) room: OptionRoom,
    pub(super) sums: Sums,
    pub(super) trouble: Option<Box<Trouble>>,
}

/// Of every idle connection that is bridged to two subflows there are three.
const _: () = assert!(size_of::<Tcb>() <= 264);

/// A send that the timer wants, beyond what the windows allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// RFC 6298 5.4: the earliest segment again, whatever cwnd says.
    Retransmission,
    TailLossProbe,
    WindowProbe,
    KeepAlive,
}

/// Whether a RST is to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reset {
    No,
    Owed,
}

/// Challenge ACKs of the current span (RFC 5961 7).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Challenges {
    began: Instant,
    count: u8,
}

impl Challenges {
    /// At most ten in 5 s and connection; no counter is shared, so none can be observed from elsewhere.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        const SPAN: Duration = Duration::from_secs(5);
        const MOST: u8 = 10;
        if self.count == 0 || now.since(self.began) > SPAN {
            *self = Challenges { began: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= MOST
    }
}

/// A flow as the handshake leaves it.
pub(super) struct Start {
    pub(super) agreed: Agreed,
    /// SND.UNA, and text that is in flight from there.
    pub(super) una: SeqNum,
    pub(super) in_flight: Chain,
    pub(super) rcv_nxt: SeqNum,
    /// Window as received, scaled where it should be.
    pub(super) snd_wnd: WindowSize,
    pub(super) wl1: SeqNum,
    /// Window as we offered it.
    pub(super) offered: u32,
    /// What the path is known to carry, as an MSS.
    pub(super) path_mss: u16,
    pub(super) rtt: Rtt,
    pub(super) ack: AckOwed,
}

impl Tcb {
    pub(super) fn new(cfg: &Rc<TcpConfig>, start: Start, now: Instant) -> Tcb {
        let agreed = start.agreed;
        let stamps = if agreed.timestamps.is_some() { TIMESTAMPS_LEN } else { 0 };
        let path_mss = initial_mss(cfg, agreed.peer_mss.min(cfg.mss), start.path_mss);
        let mss = u32::from(path_mss) - stamps;
        let mut queue = SendQueue::new(start.una, path_mss);
        queue.adopt(start.in_flight, now);
        if let Some(spell) = queue.spell_mut() {
            spell.pto_base = now;
        }
        let edge = start.rcv_nxt + start.offered;
        let mut tcb = Tcb {
            state: State::Established,
            snd: SendWindow {
                wnd: start.snd_wnd.0,
                wl1: start.wl1,
                wl2: start.una,
                max: start.snd_wnd.0,
            },
            rack: Rack::new(),
            queue,
            rcv: Receive {
                nxt: start.rcv_nxt,
                allowed: start.rcv_nxt + cfg.receive_buffer,
                advertised: edge,
                edge,
                window: cfg.receive_buffer,
                disorder: None,
                fin: None,
                last_ack_sent: start.rcv_nxt,
                mss: cfg.mss.min(536),
                unacked: 0,
                quick_acks: 8,
            },
            ack: start.ack,
            ack_at: now,
            rtt: start.rtt,
            congestion: Congestion::new(cfg.congestion, mss),
            timer: None,
            awaited: Awaited::Rto,
            due: None,
            rto_base: now,
            last_sent: now,
            last_heard: now,
            probes: 0,
            reset: Reset::No,
            room: OptionRoom::default(),
            sums: Sums::default(),
            trouble: None,
            agreed,
            cfg: cfg.clone(),
        };
        tcb.begin_path((start.path_mss == path_mss).then_some(now + RAISE));
        tcb
    }

    /// Queues text. Ignored after [`Tcb::close`].
    pub fn push(&mut self, text: Chain, label: Label) {
        if self.state.can_send() {
            self.queue.push(text, label);
        }
    }

    /// Queues a FIN behind all text (RFC 9293 3.10.4).
    pub fn close(&mut self) {
        if self.state.can_send() {
            self.queue.close();
            self.on_event(Event::Close);
        }
    }

    /// Gives up: frames are released, the next poll yields the RST (RFC 9293 3.10.5).
    pub fn abort(&mut self, _why: CloseReason) {
        let owed = !matches!(self.state, State::Closed | State::TimeWait);
        self.end();
        if owed {
            self.reset = Reset::Owed;
        }
    }

    pub(super) fn on_event(&mut self, event: Event) {
        if let Some(next) = transition(self.state, event) {
            self.state = next;
        }
    }

    /// CLOSED: nothing is sent or kept any more.
    pub(super) fn end(&mut self) {
        self.on_event(Event::End);
        self.queue.clear();
        self.rcv.disorder = None;
        (self.timer, self.due, self.ack) = (None, None, AckOwed::None);
    }

    /// Asks for a pure ACK at the next poll, owed or not: the owner has options to send.
    pub fn request_ack(&mut self) {
        if self.state != State::Closed {
            self.ack = AckOwed::Pure;
        }
    }

    /// Free space to advertise, octets beyond `rcv.nxt` as it is now.
    pub fn set_window(&mut self, octets: u32) {
        let octets = octets.min(self.cfg.receive_buffer);
        self.rcv.window = octets;
        self.rcv.allowed = self.rcv.nxt + octets;
    }

    /// The window to advertise now, which may be none for ever (MAY-8), and the least step worth telling the peer about (RFC 9293 3.8.6.2.2).
    pub(super) fn window_to_offer(&self) -> u32 {
        let expressible = UnscaledWindow(u16::MAX).scale(self.agreed.rcv_scale).0;
        let current = self.rcv.advertised.saturating_since(self.rcv.nxt);
        if self.cfg.window == RightEdge::Shared {
            return self.rcv.window.min(expressible);
        }
        let allowed = self.rcv.allowed.saturating_since(self.rcv.nxt).min(expressible);
        let step = (self.cfg.receive_buffer / 2).min(u32::from(self.cfg.mss));
        if allowed >= current.saturating_add(step) { allowed } else { current }
    }

    /// Whether the peer should hear of more room though nothing else is to be said: it doubled, at least.
    pub(super) fn window_update_due(&self) -> bool {
        if self.rcv.fin.is_some() || self.state == State::Closed {
            return false;
        }
        let current = self.rcv.advertised.saturating_since(self.rcv.nxt);
        let step = (self.cfg.receive_buffer / 2).min(u32::from(self.cfg.mss));
        self.window_to_offer() >= current.saturating_mul(2).max(current.saturating_add(step))
    }

    /// Octets that could be pushed now and would leave at once: min(cwnd - pipe, peer's window) less what is unsent,
    /// in whole segments; 0 while a timeout is being repaired, and until [`Tcb::paced_until`].
    pub fn send_room(&self, now: Instant) -> u32 {
        if !self.state.can_send() || matches!(self.recovery(), Recovery::Loss { .. }) {
            return 0;
        }
        let mss = self.mss(self.room);
        let cwnd = self.congestion.cwnd().saturating_sub(self.queue.pipe() + self.queue.lost());
        let room = cwnd.min(self.window_room()).min(self.pacing_room(mss, now));
        let free = room.saturating_sub(self.queue.unsent());
        free / mss * mss
    }

    /// Where loss recovery is.
    pub(super) fn recovery(&self) -> &Recovery {
        self.queue.spell().map_or(&Recovery::Open, |spell| &spell.recovery)
    }

    /// What is known about the octets at hand, of which there must be some for it to be kept.
    pub(super) fn set_recovery(&mut self, recovery: Recovery) {
        if let Some(spell) = self.queue.spell_mut() {
            spell.recovery = recovery;
        }
    }

    pub(super) fn trouble(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    /// The tail loss probe on its way.
    pub(super) fn probe(&self) -> Option<Probe> {
        self.trouble.as_ref().and_then(|trouble| trouble.probe)
    }

    pub(super) fn end_probe(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.probe = None;
        }
    }

    pub(super) fn rto(&self) -> Duration {
        self.rtt.rto(&self.cfg)
    }

    /// Octets that the peer's window still takes.
    pub(super) fn window_room(&self) -> u32 {
        self.snd.wnd.saturating_sub(self.queue.flight())
    }

    /// State.
    pub fn state(&self) -> State {
        self.state
    }

    /// RCV.NXT.
    pub fn rcv_nxt(&self) -> SeqNum {
        self.rcv.nxt
    }

    /// SND.UNA.
    pub fn snd_una(&self) -> SeqNum {
        self.queue.una()
    }

    /// SND.NXT.
    pub fn snd_nxt(&self) -> SeqNum {
        self.queue.nxt()
    }

    /// Octets of text pushed and not yet sent.
    pub fn unsent(&self) -> u32 {
        self.queue.unsent()
    }

    /// Octets of text pushed and not yet acknowledged, sent or not.
    pub fn queued(&self) -> u32 {
        self.queue.queued()
    }

    /// Octets of sequence space in flight: SND.NXT - SND.UNA.
    pub fn flight_size(&self) -> u32 {
        self.queue.flight()
    }

    /// When a segment of the peer's was last accepted.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Octets of text received, each counted once.
    pub fn bytes_received(&self) -> u64 {
        self.sums.bytes_received
    }

    /// Smoothed round-trip time, once measured.
    pub fn srtt(&self) -> Option<Duration> {
        self.rtt.srtt()
    }

    /// Retransmission timeout, backoff left out.
    pub fn base_rto(&self) -> Duration {
        self.rtt.base_rto(&self.cfg)
    }

    /// Congestion window in octets.
    pub fn cwnd(&self) -> u32 {
        self.congestion.cwnd()
    }

    /// Peer's window in octets, as it last told it.
    pub fn snd_wnd(&self) -> u32 {
        self.snd.wnd
    }

    /// Most octets of text in one segment when the owner adds `room` (RFC 9293 3.7.1): text and options together
    /// never exceed what either end announced.
    pub fn mss(&self, room: OptionRoom) -> u32 {
        u32::from(self.queue.path_mss) - self.options_beside(room)
    }

    /// Octets of options in a segment with text, the owner's `room` among them.
    fn options_beside(&self, room: OptionRoom) -> u32 {
        let stamps = if self.agreed.timestamps.is_some() { TIMESTAMPS_LEN } else { 0 };
        (stamps + u32::from(room.text)).min(40)
    }

    /// The same for the room of the last poll.
    pub(super) fn options_len(&self) -> u32 {
        self.options_beside(self.room)
    }

    /// Retransmission timeouts since the peer last acknowledged something.
    pub fn consecutive_rtos(&self) -> u8 {
        self.rtt.timeouts
    }

    /// Whether the peer acknowledged our FIN.
    pub fn fin_acked(&self) -> bool {
        self.queue.fin() == Fin::Acked
    }

    /// Whether the peer's FIN has come into order.
    pub fn fin_received(&self) -> bool {
        self.rcv.fin.is_some_and(|fin| fin.before(self.rcv.nxt))
    }

    /// A snapshot.
    pub fn info(&self) -> TcpInfo {
        let calm = Trouble::default();
        let trouble = self.trouble.as_deref().unwrap_or(&calm);
        TcpInfo {
            state: self.state,
            congestion: Some(self.cfg.congestion),
            rtt: self.rtt.srtt(),
            rttvar: self.rtt.rttvar(),
            minrtt: self.rtt.min(),
            rto: self.rto(),
            cwnd: self.congestion.cwnd(),
            ssthresh: self.congestion.ssthresh(),
            mss: self.mss(self.room),
            pacing_rate: self.pacing_rate(),
            path_mss: self.queue.path_mss,
            advmss: self.cfg.mss,
            rcvmss: self.rcv.mss,
            delivery_rate: self.congestion.delivery_rate().map(|(rate, _)| rate),
            app_limited: matches!(
                self.congestion.delivery_rate(),
                Some((_, Limited::ByApplication))
            ),
            unacked: self.queue.pipe(),
            notsent: self.queue.unsent(),
            snd_wnd: self.snd.wnd,
            rcv_wnd: self.rcv.advertised.saturating_since(self.rcv.nxt),
            bytes_sent: self.sums.bytes_sent,
            bytes_acked: self.sums.bytes_acked,
            bytes_received: self.sums.bytes_received,
            bytes_retrans: trouble.bytes_retrans,
            lost: trouble.lost,
            rto_count: trouble.rtos,
            tlp_count: trouble.tlps,
            recoveries: trouble.recoveries,
            dup_in: trouble.duplicates_in,
            rcv_ooopack: trouble.out_of_order_in,
            ecn: self.agreed.ecn.name(),
            ce_in: trouble.ce_in,
            delivered_ce: trouble.delivered_ce,
        }
    }

    /// What went wrong since it was last asked.
    pub fn take_events(&mut self) -> Option<TcpEvents> {
        let events = core::mem::take(&mut self.trouble.as_deref_mut()?.events);
        (events != TcpEvents::default()).then_some(events)
    }

    /// What TIME-WAIT needs.
    pub(super) fn remains(&self) -> (SeqNum, SeqNum, UnscaledWindow, Option<(u32, u32)>, Duration) {
        let window = WindowSize(self.window_to_offer()).unscale(self.agreed.rcv_scale);
        let stamps = self.agreed.timestamps.map(|ts| (ts.offset, ts.recent));
        (self.queue.nxt(), self.rcv.nxt, window, stamps, self.cfg.time_wait)
    }

    /// Panics if the flow contradicts itself.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        self.queue.assert_invariants();
        if let Some(disorder) = &self.rcv.disorder {
            disorder.holes.assert_invariants();
            assert!(!disorder.holes.is_empty() || disorder.duplicate.is_some(), "nothing to tell");
        }
        assert!(!self.rcv.edge.before(self.rcv.advertised), "an edge beyond all edges");
        if let Some((first, _)) = self.rcv.holes().and_then(|holes| holes.iter().next()) {
            assert!(self.rcv.nxt.before(first), "text in order is still out of order");
        }
        // The owner's options come and go, and a segment's text with them. BBR looks at it with the next ACK.
        let least = u32::from(self.queue.path_mss) - 40;
        let cwnd = self.congestion.cwnd();
        assert!(cwnd >= least || self.congestion.models_path(), "cwnd below a segment");
        assert!(self.queue.path_mss <= self.ceiling(), "segments beyond what both ends allow");
        assert!(self.queue.passed <= self.queue.path_mss, "more passed than is sent");
        if let Some(path) = self.trouble.as_ref().and_then(|trouble| trouble.path.as_deref()) {
            path.assert_invariants(self.queue.path_mss, self.ceiling());
        }
    }
}
