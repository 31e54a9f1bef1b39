//! MP_CAPABLE and MP_JOIN handshakes (RFC 8684 3.1, 3.2).
#![forbid(unsafe_code)]

use super::config::SharedConfig;
use super::connection::{Connection, Event, Mode, Receive, Role};
use super::fallback::FallbackCause;
use super::key::{Key, join_hmac, left64, left160, same};
use super::subflow::{Handshake, JoinAnswer, Stage, Subflow, ThirdAck};
use crate::buf::Chain;
use crate::rng::Rng;
use crate::tcp::{
    CloseReason, Phase, Reassembly, SynReceived, SynReceivedOutcome, SynSent, SynSentOutcome, Tcb,
    reset_reply,
};
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, FlowTuple, MP_CAPABLE_CHECKSUM, MP_CAPABLE_NO_JOIN_HERE, MpCapable, MpJoin,
    MptcpOption, MptcpOptions, Options, ResetReason, Segment, WindowScale,
};
use alloc::boxed::Box;
use alloc::rc::Rc;

pub(super) const VERSION: u8 = 1;
/// Flag H: HMAC-SHA256, the only algorithm there is.
pub(super) const SHA256: u8 = 0x01;
/// Flag B: extensibility nobody has defined.
const EXTENSIBILITY: u8 = 0x40;
/// First wait for a fourth ACK when no round-trip time is known.
const THIRD_ACK_RTO: Duration = Duration::from_millis(500);
/// Third ACKs before a join is given up.
const MAX_THIRD_ACKS: u8 = 6;

/// Why a SYN with MP_JOIN is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum JoinRefusal {
    /// Not a SYN with MP_JOIN for our token.
    NotForUs,
    /// The connection is plain TCP, not confirmed yet, or closing.
    NotNow,
    /// As many subflows as allowed.
    TooMany,
    /// The flow exists.
    Duplicate,
}

impl JoinRefusal {
    /// The reason to give in MP_TCPRST.
    pub const fn reason(self) -> ResetReason {
        match self {
            JoinRefusal::TooMany => ResetReason::LackOfResources,
            _ => ResetReason::MptcpSpecific,
        }
    }
}

/// The RST that refuses a SYN with MP_JOIN, such as one with an unknown token (RFC 8684 3.2). `None` for a segment that
/// must not be answered.
pub fn refuse_join(syn: &Segment, reason: ResetReason) -> Option<Segment> {
    let mut rst = reset_reply(syn)?;
    if let Options::Segment(options) = &mut rst.options {
        let _ = options.mptcp.try_push(MptcpOption::MpTcpRst { transient: false, reason });
    }
    Some(rst)
}

/// A SYN's or SYN/ACK's MP_CAPABLE that we can work with (RFC 8684 3.1: else it counts as absent).
pub(super) fn usable(options: &MptcpOptions) -> Option<MpCapable> {
    options.iter().find_map(|option| match option {
        MptcpOption::MpCapable(m)
            if m.version == VERSION && m.flags & EXTENSIBILITY == 0 && m.flags & SHA256 != 0 =>
        {
            Some(*m)
        }
        _ => None,
    })
}

/// Shift of the window fields that follow a SYN with these options.
fn scale_of(options: &Options) -> WindowScale {
    match options {
        Options::Syn(syn) => WindowScale::new(syn.window_scale.unwrap_or(0)),
        Options::Segment(_) => WindowScale::default(),
    }
}

impl Connection {
    /// Opens a connection: a SYN with MP_CAPABLE, carrying `syn_text` outside of the data sequence space (RFC 8684
    /// Appendix B). `key` must be unique among live connections.
    pub fn connect(
        cfg: Rc<SharedConfig>,
        key: Key,
        flow: FlowTuple,
        syn_text: Chain,
        draw: &mut Rng,
        now: Instant,
    ) -> Connection {
        let mut connection = Connection::blank(cfg, Role::Initiator, key, flow);
        let opening = connection.cfg.opening(flow, draw, now);
        let syn = SynSent::new(&connection.cfg.subflow, opening, syn_text, now);
        let stage = Stage::SynSent(Box::new(syn));
        connection.subflows.push(Subflow::new(flow, stage, Handshake::Initial, (0, 0)));
        connection
    }

    /// Takes a SYN in, accepting the first `accept_text` octets of its payload, and says nothing until
    /// [`Connection::answer`]. `None`: its MP_CAPABLE is unusable, the caller goes on with plain TCP.
    pub fn accept(
        cfg: Rc<SharedConfig>,
        key: Key,
        flow: FlowTuple,
        syn: &Segment,
        accept_text: u32,
        rng: &mut Rng,
        now: Instant,
    ) -> Option<Connection> {
        let capable = usable(syn.options.mptcp())?;
        if capable.sender_key.is_some() {
            return None;
        }
        let opening = cfg.opening(flow, rng, now);
        let held = SynReceived::new(&cfg.subflow, syn, opening, accept_text, now);
        let mut connection = Connection::responder(cfg, key, flow, syn, held, capable.flags);
        if let Some(subflow) = connection.subflows.first_mut() {
            subflow.rx_base += accept_text;
        }
        connection.counters.MPCapableSYNRX += 1;
        Some(connection)
    }

    /// The end that did not begin. `flags` are those of the peer's MP_CAPABLE.
    pub(super) fn responder(
        cfg: Rc<SharedConfig>,
        key: Key,
        flow: FlowTuple,
        syn: &Segment,
        received: SynReceived,
        flags: u8,
    ) -> Connection {
        let mut connection = Connection::blank(cfg, Role::Responder, key, flow);
        connection.checksum |= flags & MP_CAPABLE_CHECKSUM != 0;
        connection.paths.initial_remote_forbidden = flags & MP_CAPABLE_NO_JOIN_HERE != 0;
        let (rx_base, tx_base) = (received.irs(), received.iss());
        let stage = Stage::SynReceived(Box::new(received));
        let mut subflow = Subflow::new(flow, stage, Handshake::Initial, (0, 0));
        (subflow.rx_base, subflow.tx_base) = (rx_base, tx_base);
        subflow.peer_scale = scale_of(&syn.options);
        connection.subflows.push(subflow);
        connection
    }

    /// Answers the SYN held since [`Connection::accept`], with `synack_text` outside of the data sequence space.
    pub fn answer(&mut self, synack_text: Chain, now: Instant) {
        let Some(sf) = self.subflows.first_mut() else { return };
        if let Stage::SynReceived(syn) = &mut sf.stage {
            sf.tx_base = syn.iss() + synack_text.len();
            syn.answer(synack_text, now);
        }
    }

    /// Refuses the SYN held since [`Connection::accept`]: RST.
    pub fn refuse(&mut self) {
        if let Some(Stage::SynReceived(syn)) = self.subflows.first_mut().map(|sf| &mut sf.stage) {
            syn.refuse();
        }
    }

    /// Takes in a SYN with MP_JOIN for our token.
    ///
    /// # Errors
    /// Why it is refused; except for a duplicate the RST is then among what [`Connection::poll_transmit`] yields.
    pub fn join(
        &mut self,
        flow: FlowTuple,
        syn: Segment,
        rng: &mut Rng,
        now: Instant,
    ) -> Result<(), JoinRefusal> {
        self.counters.MPJoinSynRx += 1;
        let accepted = self.accept_join(flow, &syn, rng, now);
        match accepted {
            Ok(()) => self.tell(Event::FlowOpened(flow)),
            Err(JoinRefusal::Duplicate) => {}
            Err(refusal) => {
                self.counters.MPJoinRejected += 1;
                self.counters.MPRstTx += 1;
                self.news()
                    .replies
                    .extend(refuse_join(&syn, refusal.reason()).map(|rst| (flow, rst)));
            }
        }
        accepted
    }

    fn accept_join(
        &mut self,
        flow: FlowTuple,
        syn: &Segment,
        rng: &mut Rng,
        now: Instant,
    ) -> Result<(), JoinRefusal> {
        let join = syn.options.mptcp().iter().find_map(|option| match option {
            MptcpOption::MpJoin(MpJoin::Syn { backup, address_id, token, nonce }) => {
                (*token == self.token).then_some((*backup, *address_id, *nonce))
            }
            _ => None,
        });
        let (backup, remote_id, peer_nonce) = join.ok_or(JoinRefusal::NotForUs)?;
        let peer = self.peer.filter(|_| self.manages_paths()).ok_or(JoinRefusal::NotNow)?;
        if let Some(i) = self.index_of(flow) {
            // Both ends dialled: the connection's responder gives way, so that one attempt survives.
            let ours = self.subflows.get(i).is_some_and(|sf| matches!(sf.stage, Stage::SynSent(_)));
            if !ours || self.role == Role::Initiator {
                return Err(JoinRefusal::Duplicate);
            }
            self.subflows.remove(i);
        }
        if self.subflows.len() >= usize::from(self.cfg.max_subflows) {
            return Err(JoinRefusal::TooMany);
        }
        let nonce = rng.u32();
        let answer = left64(&join_hmac(self.key, peer, nonce, peer_nonce));
        let expected = left160(&join_hmac(peer, self.key, peer_nonce, nonce));
        let opening = self.cfg.opening(flow, rng, now);
        let mut held = SynReceived::new(&self.cfg.subflow, syn, opening, 0, now);
        held.answer(Chain::new(), now);
        let handshake = Handshake::JoinReceived(Box::new(JoinAnswer { nonce, answer, expected }));
        let ids = (self.local_id(flow.local.addr), remote_id);
        let (rx_base, tx_base) = (held.irs(), held.iss());
        let mut subflow = Subflow::new(flow, Stage::SynReceived(Box::new(held)), handshake, ids);
        (subflow.rx_base, subflow.tx_base) = (rx_base, tx_base);
        subflow.peer_scale = scale_of(&syn.options);
        subflow.backup = backup;
        self.add_subflow(subflow);
        Ok(())
    }

    pub(super) fn add_subflow(&mut self, mut subflow: Subflow) {
        subflow.advertised = self.rcv.nxt();
        self.subflows_total = self.subflows_total.saturating_add(1);
        self.subflows.push(subflow);
        self.dirty = true;
    }

    /// A segment for a subflow whose SYN is out.
    pub(super) fn on_syn_sent(&mut self, i: usize, seg: Segment, now: Instant) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let Stage::SynSent(syn) = &mut sf.stage else { return };
        let options = seg.options.mptcp().clone();
        let (scale, window) = (scale_of(&seg.options), seg.window.0);
        let iss = syn.iss();
        match syn.on_segment(seg, now) {
            SynSentOutcome::Nothing => {}
            SynSentOutcome::Refused(why) => {
                let flow = sf.flow;
                self.subflow_gone(i, why, now);
                let for_good =
                    |o: &MptcpOption| matches!(o, MptcpOption::MpTcpRst { transient: false, .. });
                if options.iter().any(for_good) {
                    self.paths.give_up(flow); // RFC 8684 3.6: T=0, do not try again
                }
            }
            SynSentOutcome::Simultaneous(_) => self.subflow_gone(i, CloseReason::Aborted, now),
            SynSentOutcome::Established { tcb, acked_text, text, .. } => {
                sf.peer_scale = scale;
                sf.rx_base = tcb.rcv_nxt() - 1;
                sf.tx_base = iss + acked_text;
                sf.tx_next = tcb.snd_una() + tcb.queued();
                sf.stage = Stage::Open(tcb);
                match sf.handshake {
                    Handshake::Initial => {
                        self.on_syn_ack(i, &options, window);
                        self.established(text, acked_text);
                    }
                    _ => self.on_join_syn_ack(i, &options, now),
                }
            }
        }
    }

    fn established(&mut self, synack_text: Chain, acked_text: u32) {
        self.phase = Phase::Open;
        let mptcp = self.is_mptcp();
        // The fallback, if there is one, is reported after this.
        self.news().events.push_front(Event::Established { synack_text, acked_text, mptcp });
        self.dirty = true;
    }

    /// The SYN/ACK of the first subflow decides between MPTCP and TCP.
    fn on_syn_ack(&mut self, i: usize, options: &MptcpOptions, window: u16) {
        let form2 = usable(options).and_then(|m| m.sender_key.map(|key| (key, m.flags)));
        let (Some((key, flags)), false) = (form2, self.syn_plain) else {
            self.counters.MPCapableFallbackSYNACK += 1;
            let cause =
                if self.syn_plain { FallbackCause::SynRetries } else { FallbackCause::SynAck };
            return self.plain_from_start(cause);
        };
        self.counters.MPCapableSYNACKRX += 1;
        self.checksum |= flags & MP_CAPABLE_CHECKSUM != 0;
        self.paths.initial_remote_forbidden = flags & MP_CAPABLE_NO_JOIN_HERE != 0;
        self.go_multipath(i, key);
        // A window in a SYN is never scaled (RFC 7323 2.2).
        self.snd_edge = self.snd_edge.max(self.snd.una() + u64::from(window));
    }

    fn go_multipath(&mut self, i: usize, peer_key: u64) {
        let peer = Key(peer_key);
        self.peer = Some(peer);
        self.rcv = Receive::starting_at(peer.idsn() + 1, self.cfg.subflow.first_window());
        self.mode = Mode::Mptcp;
        self.prepare_subflow(i);
    }

    /// A subflow whose TCP is open gets what receiving on it needs.
    fn prepare_subflow(&mut self, i: usize) {
        let (checksum, nxt) = (self.checksum, self.rcv.nxt());
        let Some(sf) = self.subflows.get_mut(i) else { return };
        sf.advertised = nxt;
        sf.mapped_upto = sf.rx_base + 1;
        if checksum {
            sf.unverified = Some(Box::new(Reassembly::new(sf.rx_base + 1)));
        }
    }

    /// A segment for a subflow whose SYN we hold or answered.
    pub(super) fn on_syn_received(&mut self, i: usize, seg: Segment, now: Instant) {
        let synchronizing = !matches!(seg.control, Control::Syn | Control::Rst);
        if synchronizing && !self.check_third_packet(i, &seg, now) {
            return;
        }
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let Stage::SynReceived(syn) = &mut sf.stage else { return };
        match syn.on_segment(&seg, now) {
            SynReceivedOutcome::Nothing => {}
            SynReceivedOutcome::Closed(why) => self.subflow_gone(i, why, now),
            SynReceivedOutcome::Established(tcb) => self.on_third_packet(i, tcb, seg, now),
        }
    }

    /// Whether the segment may complete the handshake; if not, it has been dealt with.
    fn check_third_packet(&mut self, i: usize, seg: &Segment, now: Instant) -> bool {
        let Some(sf) = self.subflows.get(i) else { return false };
        let options = seg.options.mptcp();
        match &sf.handshake {
            Handshake::Initial => {
                // Form 3 or 4 is under way if only a DSS came: without the peer's key it means nothing yet.
                let dss = options.iter().any(|o| matches!(o, MptcpOption::Dss(_)));
                let capable = options.iter().any(|o| matches!(o, MptcpOption::MpCapable(_)));
                capable || !dss
            }
            Handshake::JoinReceived(join) => {
                let good = options.iter().any(|option| {
                    matches!(option, MptcpOption::MpJoin(MpJoin::Ack { hmac }) if same(hmac, &join.expected))
                });
                if good {
                    self.counters.MPJoinAckRx += 1;
                    return true;
                }
                let flow = sf.flow;
                self.counters.MPJoinAckHMacFailure += 1;
                self.counters.MPRstTx += 1;
                let rst = refuse_join(seg, ResetReason::MptcpSpecific);
                self.news().replies.extend(rst.map(|rst| (flow, rst)));
                self.subflow_gone(i, CloseReason::Refused, now);
                false
            }
            _ => true,
        }
    }

    fn on_third_packet(&mut self, i: usize, tcb: Box<Tcb>, seg: Segment, now: Instant) {
        let form3 = seg.options.mptcp().iter().find_map(|option| match option {
            MptcpOption::MpCapable(m) if m.receiver_key == Some(self.key.0) => {
                m.sender_key.map(|key| (key, m.flags))
            }
            _ => None,
        });
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let initial = matches!(sf.handshake, Handshake::Initial);
        let answered = match &sf.stage {
            Stage::SynReceived(syn) => sf.tx_base.since(syn.iss()),
            _ => 0,
        };
        sf.tx_next = sf.tx_base + 1;
        sf.stage = Stage::Open(tcb);
        if !initial {
            sf.handshake = Handshake::Joined;
            self.prepare_subflow(i);
            self.on_open(i, seg, now);
            if let Some(sf) = self.subflows.get_mut(i) {
                sf.request_ack(); // RFC 8684 3.2: the fourth ACK, at once
            }
            return;
        }
        match form3 {
            Some((key, flags)) => {
                self.counters.MPCapableACKRX += 1;
                self.checksum |= flags & MP_CAPABLE_CHECKSUM != 0;
                self.confirmed = true;
                self.go_multipath(i, key);
            }
            None => {
                self.counters.MPCapableFallbackACK += 1;
                self.plain_from_start(FallbackCause::ThirdPacket);
            }
        }
        self.established(Chain::new(), answered);
        let bare_ack = seg.is_empty();
        self.on_open(i, seg, now);
        if let (Mode::Mptcp, true, Some(sf)) = (&self.mode, bare_ack, self.subflows.get_mut(i)) {
            sf.request_ack(); // proves to the peer that we hold its key, so that it may join
        }
    }

    fn on_join_syn_ack(&mut self, i: usize, options: &MptcpOptions, now: Instant) {
        let answer = options.iter().find_map(|option| match option {
            MptcpOption::MpJoin(MpJoin::SynAck { backup, address_id, hmac, nonce }) => {
                Some((*backup, *address_id, *hmac, *nonce))
            }
            _ => None,
        });
        let (key, peer) = (self.key, self.peer);
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let Handshake::JoinSent { nonce } = sf.handshake else { return };
        if answer.is_some() {
            self.counters.MPJoinSynAckRx += 1;
        }
        let verified = answer.zip(peer).filter(|((_, _, hmac, peer_nonce), peer)| {
            let expected = left64(&join_hmac(*peer, key, *peer_nonce, nonce));
            same(&expected.to_be_bytes(), &hmac.to_be_bytes())
        });
        let Some(((backup, address_id, _, peer_nonce), peer)) = verified else {
            if answer.is_some() {
                self.counters.MPJoinSynAckHMacFailure += 1;
            }
            return self.reset_subflow(i, ResetReason::MptcpSpecific, false);
        };
        sf.backup |= backup;
        sf.remote_id = address_id;
        let hmac = left160(&join_hmac(key, peer, nonce, peer_nonce));
        let retry_at = now + THIRD_ACK_RTO;
        sf.handshake = Handshake::PreEstablished(Box::new(ThirdAck { hmac, retry_at, tries: 1 }));
        self.prepare_subflow(i);
    }

    /// The third ACK takes no sequence space, so TCP does not repeat it (RFC 8684 3.2).
    pub(super) fn retry_third_ack(&mut self, i: usize, now: Instant) {
        let Some(sf) = self.subflows.get_mut(i) else { return };
        let Handshake::PreEstablished(third) = &mut sf.handshake else { return };
        if now < third.retry_at {
            return;
        }
        if third.tries >= MAX_THIRD_ACKS {
            return self.reset_subflow(i, ResetReason::Unacceptable, true);
        }
        third.retry_at = now + THIRD_ACK_RTO * (1 << third.tries).min(16);
        third.tries += 1;
        sf.request_ack();
    }

    /// MP_CAPABLE or MP_JOIN for a SYN or SYN/ACK of subflow `i`.
    pub(super) fn syn_option(&mut self, i: usize) -> Option<MptcpOption> {
        let sf = self.subflows.get(i)?;
        let backup = self.is_backup(sf.flow.local.addr);
        let flags = SHA256 | if self.checksum { MP_CAPABLE_CHECKSUM } else { 0 };
        let form = |sender_key| {
            MptcpOption::MpCapable(MpCapable {
                version: VERSION,
                flags,
                sender_key,
                receiver_key: None,
                data: None,
            })
        };
        match (&sf.handshake, &sf.stage) {
            (Handshake::Initial, Stage::SynSent(_)) => {
                self.syn_plain = self.syns_sent > self.cfg.syn_retrans_before_tcp_fallback;
                self.syns_sent = self.syns_sent.saturating_add(1);
                if self.syn_plain {
                    self.counters.MPCapableSYNTXDrop += 1;
                    return None;
                }
                self.counters.MPCapableSYNTX += 1;
                Some(form(None))
            }
            (Handshake::Initial, _) => Some(form(Some(self.key.0))),
            (&Handshake::JoinSent { nonce }, _) => {
                self.counters.MPJoinSynTx += 1;
                let (address_id, token) = (sf.local_id, self.peer?.token());
                Some(MptcpOption::MpJoin(MpJoin::Syn { backup, address_id, token, nonce }))
            }
            (Handshake::JoinReceived(join), _) => {
                let address_id = sf.local_id;
                Some(MptcpOption::MpJoin(MpJoin::SynAck {
                    backup,
                    address_id,
                    hmac: join.answer,
                    nonce: join.nonce,
                }))
            }
            _ => None,
        }
    }

    /// MP_CAPABLE in form 3, or form 4 with the mapping of the first data.
    pub(super) fn keys_option(&self, data: Option<(u16, Option<u16>)>) -> Option<MptcpOption> {
        Some(MptcpOption::MpCapable(MpCapable {
            version: VERSION,
            flags: SHA256 | if self.checksum { MP_CAPABLE_CHECKSUM } else { 0 },
            sender_key: Some(self.key.0),
            receiver_key: Some(self.peer?.0),
            data,
        }))
    }
}
