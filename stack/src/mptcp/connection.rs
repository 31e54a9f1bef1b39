//! One Multipath TCP connection: what its owner sees of it.
#![forbid(unsafe_code)]

use super::config::SharedConfig;
use super::fallback::{FallbackCause, Infinite};
use super::info::{MptcpCounters, MptcpInfo, SubflowInfo, Tally};
use super::key::Key;
use super::path_manager::PathManager;
use super::reinjection::SendQueue;
use super::state::DataState;
use super::subflow::{Stage, Subflow};
use crate::buf::Chain;
use crate::tcp::{CloseReason, Phase, Reassembly, Tcb, TcpEvents, TimeWait, TxSegment};
use crate::time::{Duration, Instant, earliest};
use crate::wire::{Dsn, FlowTuple, ResetReason, Segment};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// What happened that the owner has to know.
#[derive(Debug)]
pub enum Event {
    /// The first subflow's handshake is complete.
    Established {
        /// Payload of the peer's SYN/ACK.
        synack_text: Chain,
        /// Octets of our SYN payload (or SYN/ACK payload) that the peer took. The rest is not repeated: whether to
        /// send it again as data is the owner's to decide.
        acked_text: u32,
        /// False: this is plain TCP.
        mptcp: bool,
    },
    /// A subflow came into being; its segments belong here.
    FlowOpened(FlowTuple),
    /// A subflow is gone; its last state, if it has to linger.
    FlowClosed(FlowTuple, Option<Box<TimeWait>>),
    /// From now on this is plain TCP.
    Fallback(FallbackCause),
    /// The connection is gone, with all its subflows.
    Closed(CloseReason),
}

/// Which end of the first handshake we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Initiator,
    Responder,
}

/// What the handshake led to.
#[derive(Debug)]
pub(super) enum Mode {
    Opening,
    Mptcp,
    Plain(Box<Infinite>),
}

/// What waits to be taken by the owner.
#[derive(Debug, Default)]
pub(super) struct News {
    pub events: VecDeque<Event>,
    /// Segments that belong to no subflow.
    pub replies: VecDeque<(FlowTuple, Segment)>,
}

/// The receiving half of the data level.
#[derive(Debug)]
pub(super) struct Receive {
    /// What the owner has not taken yet, in order or not.
    pub text: Reassembly<Dsn>,
    /// Right edge of the window; it never retreats (RFC 8684 3.3.4).
    pub edge: Dsn,
    pub fin_taken: bool,
    /// The peer uses 64-bit DSNs, so DATA_ACKs must be as long (RFC 8684 3.3.2).
    pub long: bool,
    /// Last DATA_ACK sent.
    pub acked: Dsn,
    /// A DSS with a mapping or DATA_ACK was seen.
    pub dss_seen: bool,
}

/// What matters only when a direction ends, or the last subflow is gone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ending {
    /// Where the peer's DATA_FIN (or FIN, after a fallback) stands, once known.
    pub peer_fin: Option<Dsn>,
    /// When our DATA_FIN is sent again, and how often it was.
    pub fin_at: Option<Instant>,
    pub fin_tries: u8,
    /// Until when we live without subflows.
    pub lonely_until: Option<Instant>,
}

/// A Multipath TCP connection, or the plain TCP connection it turned into at the handshake. Sans-IO: after every call
/// that changes something, drain `poll_event` and `poll_transmit`, and look at `deadline`.
#[derive(Debug)]
pub struct Connection {
    pub(super) cfg: Rc<SharedConfig>,
    pub(super) role: Role,
    pub(super) mode: Mode,
    pub(super) key: Key,
    pub(super) token: u32,
    pub(super) idsn: Dsn,
    pub(super) peer: Option<Key>,
    pub(super) checksum: bool,
    /// The peer is known to hold our key.
    pub(super) confirmed: bool,
    pub(super) first: FlowTuple,
    pub(super) syns_sent: u8,
    pub(super) syn_plain: bool,
    pub(super) subflows: Vec<Subflow>,
    /// The subflow that is to be asked first.
    pub(super) cursor: u8,
    pub(super) snd: SendQueue,
    /// Right edge of the peer's data window.
    pub(super) snd_edge: Dsn,
    pub(super) data_acked: bool,
    pub(super) rcv: Receive,
    pub(super) state: DataState,
    pub(super) close_wanted: bool,
    pub(super) abort_wanted: Option<CloseReason>,
    /// The peer sent MP_FASTCLOSE: our RSTs need not.
    pub(super) peer_aborted: bool,
    /// When a DATA_ACK that did not fit on data goes out by itself.
    pub(super) data_ack_at: Option<Instant>,
    pub(super) phase: Phase,
    pub(super) paths: PathManager,
    pub(super) stall_count: u8,
    pub(super) ending: Option<Box<Ending>>,
    pub(super) dirty: bool,
    news: Option<Box<News>>,
    pub(super) counters: Tally,
    pub(super) subflows_total: u8,
    pub(super) bytes_sent: u64,
    pub(super) bytes_retrans: u64,
    pub(super) bytes_acked: u64,
}

/// At rest nothing of it is elsewhere but its subflows and the paths that it knows of.
const _: () = assert!(size_of::<Connection>() <= 360 && size_of::<Subflow>() <= 184);

impl Connection {
    pub(super) fn blank(
        cfg: Rc<SharedConfig>,
        role: Role,
        key: Key,
        flow: FlowTuple,
    ) -> Connection {
        let idsn = key.idsn();
        Connection {
            role,
            mode: Mode::Opening,
            key,
            token: key.token(),
            idsn,
            peer: None,
            checksum: cfg.checksum,
            confirmed: false,
            first: flow,
            syns_sent: 0,
            syn_plain: false,
            subflows: Vec::with_capacity(2),
            cursor: 0,
            snd: SendQueue::new(idsn + 1),
            snd_edge: idsn + 1,
            data_acked: false,
            rcv: Receive::starting_at(Dsn(0), cfg.subflow.first_window()),
            state: DataState::Estab,
            close_wanted: false,
            abort_wanted: None,
            peer_aborted: false,
            data_ack_at: None,
            phase: Phase::Opening,
            paths: PathManager::new(),
            stall_count: 0,
            ending: None,
            dirty: true,
            news: None,
            counters: Tally::default(),
            subflows_total: 1,
            bytes_sent: 0,
            bytes_retrans: 0,
            bytes_acked: 0,
            cfg,
        }
    }

    /// What happened since; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.take_news(|news| news.events.pop_front())
    }

    /// The next segment that belongs to no subflow.
    pub(super) fn take_reply(&mut self) -> Option<(FlowTuple, Segment)> {
        self.take_news(|news| news.replies.pop_front())
    }

    fn take_news<T>(&mut self, take: impl FnOnce(&mut News) -> Option<T>) -> Option<T> {
        let taken = take(self.news.as_mut()?);
        if self.news.as_ref().is_some_and(|n| n.events.is_empty() && n.replies.is_empty()) {
            self.news = None;
        }
        taken
    }

    pub(super) fn news(&mut self) -> &mut News {
        self.news.get_or_insert_default()
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.news().events.push_back(event);
    }

    /// The earliest instant at which [`Connection::on_deadline`] has work.
    pub fn deadline(&self) -> Option<Instant> {
        if matches!(self.phase, Phase::Closed(_)) {
            return None;
        }
        let own = [
            self.snd.watch().and_then(|watch| watch.stall_at),
            self.snd.watch().and_then(|watch| watch.probe_at),
            self.ending().fin_at,
            self.data_ack_at,
            self.ending().lonely_until,
            self.fin_awaited_until(),
            self.paths.deadline().filter(|_| self.manages_paths()),
            self.paced_until(),
        ];
        let below = self.subflows.iter().map(Subflow::deadline);
        own.into_iter().chain(below).fold(None, earliest)
    }

    /// When pacing lets a subflow have more of what waits here.
    fn paced_until(&self) -> Option<Instant> {
        if self.snd.waiting() == 0 && self.snd.again_len() == 0 {
            return None;
        }
        let usable = self.subflows.iter().filter(|sf| sf.is_usable());
        usable.map(|sf| sf.tcb()?.paced_until()).fold(None, earliest)
    }

    /// The next octets of the peer's stream, in order.
    pub fn recv(&mut self) -> Option<Chain> {
        self.rcv.text.take()
    }

    /// Whether the peer has finished and everything was taken.
    pub fn recv_finished(&self) -> bool {
        self.rcv.fin_taken && self.rcv.text.ready() == 0
    }

    /// Appends to our stream. More than [`Connection::room`] is taken as well, but should not be given. Ignored after
    /// [`Connection::close`].
    pub fn send(&mut self, text: Chain) {
        if !self.close_wanted && !matches!(self.phase, Phase::Closed(_)) {
            self.snd.push(text);
            self.dirty = true;
        }
    }

    /// Octets of send buffer left.
    pub fn room(&self) -> u32 {
        self.send_limit().saturating_sub(self.queued())
    }

    /// Octets that the peer has not acknowledged, sent or not.
    pub fn queued(&self) -> u32 {
        self.snd.len()
    }

    /// How many of them the paths have a use for: what the fast ones send while the slowest makes one round trip has to be
    /// kept, as its octets may be the ones that are missing (RFC 6182 5.3).
    pub fn send_limit(&self) -> u32 {
        let slowest = self.rtt().unwrap_or_default();
        let under_way = |tcb: &Tcb| {
            let cwnd = u64::from(tcb.cwnd());
            match tcb.srtt() {
                // No path is so slow that only the product of the two could tell.
                Some(srtt) if srtt < slowest => {
                    let micros = |time: Duration| time.as_micros().min(1 << 30) as u64;
                    cwnd * micros(slowest) / micros(srtt).max(1)
                }
                _ => cwnd,
            }
        };
        let all = self.subflows.iter().filter(|sf| sf.is_usable()).filter_map(Subflow::tcb);
        self.cfg.subflow.send_limit(all.map(under_way).sum())
    }

    /// The longest round trip of its paths, once measured.
    fn rtt(&self) -> Option<Duration> {
        self.subflows.iter().filter_map(|sf| sf.tcb()?.srtt()).max()
    }

    /// For how long octets that arrive have to wait for others, once measured: a round trip, and with several paths half a
    /// timeout, for of two windows one is to last until the path that lost octets sends them again (RFC 6182 5.3).
    pub fn span(&self) -> Option<Duration> {
        let rtt = self.rtt()?;
        if self.subflows.len() < 2 {
            return Some(rtt);
        }
        let rto = self.subflows.iter().filter_map(|sf| Some(sf.tcb()?.base_rto())).max();
        Some(rtt.max(rto.unwrap_or_default() / 2))
    }

    /// The window that is offered until the owner grants something.
    pub fn first_window(&self) -> u32 {
        self.cfg.subflow.first_window()
    }

    /// The largest window that is ever offered.
    pub fn receive_buffer(&self) -> u32 {
        self.cfg.receive_buffer
    }

    /// Offers the peer a window of `octets` beyond what the owner has taken. What was offered before stays offered.
    pub fn grant(&mut self, octets: u32) {
        let taken = self.rcv.nxt() - u64::from(self.rcv.text.ready());
        let edge = taken + u64::from(octets.min(self.cfg.receive_buffer));
        if self.rcv.edge.before(edge) {
            self.rcv.edge = edge;
            self.announce_window();
        }
    }

    /// Ends our stream after what was sent: DATA_FIN.
    pub fn close(&mut self) {
        self.close_wanted = true;
        self.dirty = true;
    }

    /// Ends both streams at once: MP_FASTCLOSE, or RST after a fallback.
    pub fn abort(&mut self, why: CloseReason) {
        if self.abort_wanted.is_none() && !matches!(self.phase, Phase::Closed(_)) {
            self.abort_wanted = Some(why);
            self.start_abort(why);
        }
    }

    /// How far the connection is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Our token: what a peer's MP_JOIN names us by.
    pub fn token(&self) -> u32 {
        self.token
    }

    /// The first subflow's flow, which names the connection even after that subflow is gone.
    pub fn flow(&self) -> FlowTuple {
        self.first
    }

    /// The flows of its subflows.
    pub fn flows(&self) -> impl Iterator<Item = FlowTuple> {
        self.subflows.iter().map(|sf| sf.flow)
    }

    /// Whether one of its subflows is `flow`.
    pub fn has_flow(&self, flow: FlowTuple) -> bool {
        self.index_of(flow).is_some()
    }

    /// Whether this is MPTCP, not plain TCP.
    pub fn is_mptcp(&self) -> bool {
        matches!(self.mode, Mode::Mptcp)
    }

    /// What went wrong on its subflows since it was last asked, one subflow at a time.
    pub fn take_events(&mut self) -> Option<TcpEvents> {
        self.subflows.iter_mut().find_map(|sf| match &mut sf.stage {
            Stage::Open(tcb) => tcb.take_events(),
            Stage::SynSent(_) | Stage::SynReceived(_) => None,
        })
    }

    /// Whether anything was counted since `drain_counters`.
    pub fn has_counted(&self) -> bool {
        !self.counters.is_zero()
    }

    /// Events since the last call.
    pub fn drain_counters(&mut self) -> MptcpCounters {
        self.counters.drain()
    }

    /// A snapshot under the kernel's names.
    pub fn info(&self) -> MptcpInfo {
        MptcpInfo {
            subflows: self.subflows.len() as u8,
            subflows_total: self.subflows_total,
            add_addr_signal: self.paths.announced(),
            add_addr_accepted: self.paths.accepted(),
            token: self.token,
            write_seq: self.snd.end().0,
            snd_una: self.snd.una().0,
            rcv_nxt: self.rcv.nxt().0,
            csum_enabled: self.checksum,
            retransmits: u64::from(self.stall_count),
            bytes_sent: self.bytes_sent,
            bytes_received: self.rcv.nxt().since(self.first_dsn()),
            bytes_acked: self.bytes_acked,
            bytes_retrans: self.bytes_retrans,
            fallback: matches!(self.mode, Mode::Plain(_)),
        }
    }

    /// The subflows alive.
    pub fn subflows(&self) -> impl Iterator<Item = SubflowInfo> {
        self.subflows.iter().map(|sf| SubflowInfo {
            flow: sf.flow,
            local_id: sf.local_id,
            remote_id: sf.remote_id,
            backup: sf.backup,
            stale: sf.stale,
            bytes_sent: sf.bytes_sent,
            bytes_received: sf.bytes_received(),
            tcp: sf.tcb().map(|tcb| tcb.info()),
        })
    }

    /// Checks what must hold between any two calls.
    #[cfg(any(test, fuzzing, feature = "testkit"))]
    pub fn assert_invariants(&self) {
        self.snd.assert_invariants();
        assert!(self.rcv.nxt().at_or_before(self.rcv.edge), "nothing beyond the window is taken");
        assert!(self.ending().peer_fin.is_none_or(|fin| self.rcv.nxt().at_or_before(fin)));
        let closed = matches!(self.phase, Phase::Closed(_));
        assert!(!closed || self.subflows.is_empty(), "closed means no subflows");
        assert!(self.subflows.len() <= usize::from(self.cfg.max_subflows));
        for sf in self.subflows.iter().filter(|_| self.is_mptcp()) {
            for run in sf.sent() {
                assert!(run.dsn.before(run.end) && run.end.at_or_before(self.snd.nxt()));
                assert!(run.seq_end.at_or_before(sf.tx_next));
            }
        }
    }

    pub(super) fn ending(&self) -> Ending {
        self.ending.as_deref().copied().unwrap_or_default()
    }

    pub(super) fn ending_mut(&mut self) -> &mut Ending {
        self.ending.get_or_insert_default()
    }

    pub(super) fn index_of(&self, flow: FlowTuple) -> Option<usize> {
        self.subflows.iter().position(|sf| sf.flow == flow)
    }

    /// The ACK number of the data level: the peer's DATA_FIN counts once everything before it came.
    pub(super) fn data_ack(&self) -> Dsn {
        self.rcv.nxt() + u64::from(self.rcv.fin_taken)
    }

    /// Octets of shared window to advertise.
    pub(super) fn window(&self) -> u32 {
        if self.rcv.nxt().before(self.rcv.edge) {
            self.rcv.edge.since(self.rcv.nxt()).min(u64::from(u32::MAX)) as u32
        } else {
            0
        }
    }

    /// A peer to which the window looks less than half as large as it is is told on every subflow, as each keeps its own
    /// copy of it; but not of less than a segment (RFC 9293 3.8.6.2.2).
    fn announce_window(&mut self) {
        let (nxt, edge) = (self.rcv.nxt(), self.rcv.edge);
        let step = (self.cfg.receive_buffer / 2).min(u32::from(self.cfg.tcp.mss));
        for sf in &mut self.subflows {
            let left = if nxt.before(sf.advertised) { sf.advertised.since(nxt) } else { 0 };
            let gain = edge.since(nxt).saturating_sub(left);
            if gain >= left.max(u64::from(step)) {
                sf.request_ack();
            }
        }
    }

    /// Resets one subflow with a reason; what it carried goes elsewhere.
    pub(super) fn reset_subflow(&mut self, i: usize, reason: ResetReason, transient: bool) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        sf.reset = Some((reason, transient));
        match &mut sf.stage {
            Stage::Open(tcb) => tcb.abort(CloseReason::Aborted),
            Stage::SynReceived(syn) => syn.refuse(),
            Stage::SynSent(_) => {}
        }
        self.rescue(i);
        self.dirty = true;
    }
}

impl Receive {
    /// The first octet that is missing.
    pub(super) fn nxt(&self) -> Dsn {
        self.text.nxt()
    }

    pub(super) fn starting_at(nxt: Dsn, window: u32) -> Receive {
        Receive {
            text: Reassembly::new(nxt),
            edge: nxt + u64::from(window),
            fin_taken: false,
            long: false,
            acked: nxt,
            dss_seen: false,
        }
    }
}

/// A segment that no `Tcb` made.
pub(super) fn bare(segment: Segment) -> TxSegment {
    TxSegment {
        segment,
        label: crate::tcp::Label::PLAIN,
        offset: 0,
        gso_size: 0,
        retransmission: false,
        option_room: 0,
    }
}
