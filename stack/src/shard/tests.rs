//! A shard with toy sessions: whose packet it is, turns, deadlines, admission.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::Chain;
use crate::tcp::CookiePolicy;
use crate::time::Duration;
use crate::wire::{
    Control, Endpoint, IcmpError, MpJoin, MptcpOption, Options, Parsed, ResetReason, RxChecksum,
    SegmentOptions, SeqNum, SynOptions, Unreachable, UnscaledWindow, emit_unreachable, parse,
};
use alloc::vec;
use std::collections::BTreeSet;

/// Orders come in the segments' fields: `window` packets to send, a deadline at `seq` milliseconds, FIN ends it.
struct Toy {
    flow: FlowTuple,
    owed: u32,
    deadline: Option<Instant>,
    stage: Stage,
}

struct ToyConfig {
    limits: Limits,
    fired: Vec<(u16, Instant)>,
    removed: u32,
}

impl Session for Toy {
    type Config = ToyConfig;

    fn limits(config: &ToyConfig) -> Limits {
        config.limits
    }

    fn open(_: &mut ToyConfig, flow: FlowTuple, _: &Segment, cx: &mut Cx<'_>) -> Opened<Toy> {
        match flow.local.port {
            1 => Opened::Pass,
            2 => Opened::Refuse(Refusal::Prohibited),
            3 => Opened::Ignore,
            _ => {
                assert!(cx.add_flow(flow) && cx.add_token(u32::from(flow.remote.port)));
                Opened::Session(Toy { flow, owed: 0, deadline: None, stage: Stage::HalfOpen })
            }
        }
    }

    fn on_segment(&mut self, _: &mut ToyConfig, _: FlowTuple, seg: Segment, _: &mut Cx<'_>) {
        self.owed += u32::from(seg.window.0);
        if seg.seq.0 > 0 {
            self.deadline = Some(Instant::from_millis(u64::from(seg.seq.0)));
        }
        self.stage = if seg.control == Control::Fin { Stage::Finished } else { Stage::Open };
    }

    fn on_join(&mut self, _: &mut ToyConfig, flow: FlowTuple, _: Segment, cx: &mut Cx<'_>) {
        assert!(cx.add_flow(flow));
        self.owed += 1;
    }

    fn on_evicted(&mut self, _: &mut ToyConfig, _: &mut Cx<'_>) {
        self.stage = Stage::Finished;
    }

    fn on_icmp(&mut self, _: &mut ToyConfig, _: IcmpError, _: &mut Cx<'_>) {
        self.stage = Stage::Finished;
    }

    fn on_deadline(&mut self, config: &mut ToyConfig, cx: &mut Cx<'_>) {
        config.fired.push((self.flow.remote.port, cx.now));
        self.deadline = None;
    }

    fn poll_transmit(&mut self, _: &mut ToyConfig, _: &mut Cx<'_>) -> Option<TxPacket> {
        self.owed = self.owed.checked_sub(1)?;
        Some(emit(self.flow, &segment(Control::None, 0, 0), 0))
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn stage(&self) -> Stage {
        self.stage
    }

    fn on_removed(&mut self, config: &mut ToyConfig, cx: &mut Cx<'_>) {
        config.removed += 1;
        cx.remove_flow(self.flow);
        cx.remove_token(u32::from(self.flow.remote.port));
    }
}

fn segment(control: Control, seq: u32, window: u16) -> Segment {
    Segment {
        seq: SeqNum(seq),
        ack: (control != Control::Syn).then_some(SeqNum(9)),
        control,
        push: false,
        window: UnscaledWindow(window),
        options: match control {
            Control::Syn => Options::Syn(SynOptions::default()),
            _ => Options::Segment(SegmentOptions::default()),
        },
        text: Chain::new(),
        ..Default::default()
    }
}

fn flow(client_port: u16, server_port: u16) -> FlowTuple {
    FlowTuple {
        local: Endpoint::new("10.0.0.1".parse().unwrap(), server_port),
        remote: Endpoint::new("192.168.1.2".parse().unwrap(), client_port),
    }
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn limits(sessions: u32, half_open: u32) -> Limits {
    let cookies = CookiePolicy::Off;
    Limits { sessions, half_open, half_open_per_source: u32::MAX, cookies }
}

struct Bench {
    shard: Shard<Toy>,
}

impl Bench {
    /// Calls every session.
    fn each(&mut self, now: Instant, mut act: impl FnMut(&mut Toy, &mut ToyConfig, &mut Cx<'_>)) {
        let ids: Vec<SessionId> = self.shard.ids().collect();
        for id in ids {
            self.shard.run(id, now, &mut act);
        }
    }

    fn new(change: impl FnOnce(&mut ShardConfig, &mut Limits)) -> Bench {
        let owned = vec!["10.0.0.1".parse().unwrap()];
        let mut config = ShardConfig { owned, ..ShardConfig::default() };
        let mut limits = limits(100, 100);
        change(&mut config, &mut limits);
        let toys = ToyConfig { limits, fired: vec![], removed: 0 };
        let pool = Pool::new(16, 2048);
        Bench { shard: Shard::new(config, toys, pool, Rng::from_number(1)) }
    }

    /// `flow` is the receiver's view.
    fn rx(&self, flow: FlowTuple, segment: &Segment) -> RxPacket {
        let octets = emit(flow.reversed(), segment, 0).to_vec();
        let octets = Chain::copy_from(&self.shard.pool, 0, &octets).unwrap();
        RxPacket { octets, checksum: RxChecksum::Valid, port: 5, gso_size: 0 }
    }

    fn recv(&mut self, flow: FlowTuple, segment: Segment, now: Instant) {
        let mut rx = vec![self.rx(flow, &segment)];
        self.shard.ingest(&mut rx, now);
    }

    fn sent(&mut self, budget: usize, now: Instant) -> Vec<TxPacket> {
        let mut tx = Vec::new();
        self.shard.transmit(&mut tx, budget, now);
        tx
    }

    /// The one packet that is sent, as the other end reads it.
    fn reply(&mut self, now: Instant) -> Option<Segment> {
        let mut tx = self.sent(10, now);
        assert!(tx.len() <= 1);
        let octets = Chain::copy_from(&self.shard.pool, 0, &tx.pop()?.to_vec()).unwrap();
        match parse(RxPacket { octets, checksum: RxChecksum::Valid, port: 0, gso_size: 0 }) {
            Ok(Parsed::Tcp(_, segment)) => Some(segment),
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, client_port: u16, now: Instant) {
        self.recv(flow(client_port, 80), segment(Control::Syn, 0, 0), now);
        self.recv(flow(client_port, 80), segment(Control::None, 0, 0), now);
        assert!(self.sent(10, now).is_empty());
    }
}

#[test]
fn a_segment_of_no_flow_is_reset_only_for_our_own_address() {
    let mut b = Bench::new(|_, _| {});
    b.recv(flow(4000, 80), segment(Control::None, 0, 0), at(0));
    let rst = b.reply(at(0)).unwrap();
    assert_eq!((rst.control, rst.seq), (Control::Rst, SeqNum(9)), "RFC 9293 3.10.7.1");
    b.recv(flow(4000, 80), segment(Control::Rst, 0, 0), at(0));
    assert!(b.reply(at(0)).is_none(), "never a RST for a RST");
    let elsewhere = FlowTuple { local: flow(1, 1).remote, remote: flow(1, 1).local };
    b.recv(elsewhere, segment(Control::None, 0, 0), at(0));
    assert!(b.reply(at(0)).is_none());
    assert_eq!(b.shard.passed().count(), 1);
    assert_eq!((b.shard.counters().InNoFlow, b.shard.counters().OutRsts), (2, 1));
}

#[test]
fn what_is_not_ours_comes_back_octet_by_octet() {
    let mut b = Bench::new(|config, _| config.owned.clear());
    let syn = segment(Control::Syn, 77, 1000);
    let expected = emit(flow(4000, 1).reversed(), &syn, 0).to_vec();
    b.recv(flow(4000, 1), syn, at(0));
    let back: Vec<RxPacket> = b.shard.passed().collect();
    assert_eq!((back.len(), back[0].port), (1, 5));
    assert_eq!(back[0].octets.to_vec(), expected);
    drop(back);
    assert_eq!(b.shard.pool.free(), 16);
}

/// In somebody else's name, too (`source = "keep"`): only what quotes a flow of ours is ours.
#[test]
fn an_icmp_error_is_taken_if_it_quotes_a_flow_of_ours_and_else_comes_back() {
    let mut b = Bench::new(|config, _| config.owned.clear());
    b.open(4000, at(0));
    let mut hear = |client_port| {
        let sent = flow(client_port, 80).reversed();
        let error = emit_unreachable(Unreachable::Host, sent, SeqNum(1)).to_vec();
        let octets = Chain::copy_from(&b.shard.pool, 0, &error).unwrap();
        let mut rx = vec![RxPacket { octets, checksum: RxChecksum::Valid, port: 5, gso_size: 0 }];
        b.shard.ingest(&mut rx, at(1));
        b.sent(10, at(1));
        let back: Vec<Vec<u8>> = b.shard.passed().map(|packet| packet.octets.to_vec()).collect();
        (error, back, b.shard.counters().InIcmpErrors, b.shard.counters().CurrEstab)
    };
    let (error, back, taken, open) = hear(4001);
    assert_eq!((back, taken, open), (vec![error], 0, 1), "somebody else's");
    let (_, back, taken, open) = hear(4000);
    assert_eq!((back.len(), taken, open), (0, 1, 0), "the toy ends by it");
}

#[test]
fn a_syn_is_refused_or_ignored_as_its_session_says() {
    let mut b = Bench::new(|_, _| {});
    b.recv(flow(4000, 2), segment(Control::Syn, 7, 0), at(0));
    let rst = b.reply(at(0)).unwrap();
    assert_eq!((rst.control, rst.ack), (Control::Rst, Some(SeqNum(8))));
    b.recv(flow(4000, 3), segment(Control::Syn, 7, 0), at(0));
    assert!(b.reply(at(0)).is_none());
    b.recv(flow(4000, 1), segment(Control::Syn, 7, 0), at(0));
    assert_eq!(b.reply(at(0)).unwrap().control, Control::Rst, "passed on to ourselves: nobody");
    assert_eq!(b.shard.occupancy(), Occupancy::default());
}

fn join(token: u32) -> Segment {
    let mut syn = segment(Control::Syn, 0, 0);
    let option = MptcpOption::MpJoin(MpJoin::Syn { backup: false, address_id: 1, token, nonce: 3 });
    if let Options::Syn(options) = &mut syn.options {
        options.mptcp.push(option);
    }
    syn
}

#[test]
fn a_join_finds_its_session_by_token() {
    let mut b = Bench::new(|_, _| {});
    b.open(4000, at(0));
    b.recv(flow(4001, 1), join(4000), at(0));
    assert_eq!((b.sent(10, at(0)).len(), b.shard.occupancy().flows), (1, 2));
}

#[test]
fn a_join_with_an_unknown_token_is_reset_with_reason_1() {
    let mut b = Bench::new(|_, _| {});
    b.recv(flow(4001, 1), join(5), at(0));
    let rst = b.reply(at(0)).unwrap();
    let reason = ResetReason::MptcpSpecific;
    let expected = MptcpOption::MpTcpRst { transient: false, reason };
    assert_eq!(rst.options.mptcp().as_slice(), [expected]);
    assert_eq!(b.shard.counters().MPJoinNoTokenFound, 1);
    let mut b = Bench::new(|config, _| config.owned.clear());
    b.recv(flow(4001, 80), join(5), at(0));
    assert!(b.reply(at(0)).is_none());
    assert_eq!(b.shard.passed().count(), 1, "somebody behind us may know the token");
}

#[test]
fn who_has_much_to_send_does_not_starve_the_others() {
    let mut b = Bench::new(|_, _| {});
    for port in [4000, 4001] {
        b.open(port, at(0));
    }
    b.recv(flow(4000, 80), segment(Control::None, 0, 1000), at(0));
    b.recv(flow(4001, 80), segment(Control::None, 0, 10), at(0));
    let tx = b.sent(32, at(0));
    let of = |port| tx.iter().filter(|p| p.flow.remote.port == port).count();
    assert_eq!((of(4000), of(4001)), (22, 10));
    assert_eq!(b.shard.deadline(), Some(Instant::ZERO), "there is more");
    assert_eq!(b.sent(2000, at(0)).len(), 978);
    assert_eq!(b.shard.deadline(), None);
}

#[test]
fn a_deadline_that_moves_fires_once_and_at_its_last_place() {
    let mut b = Bench::new(|_, _| {});
    b.open(4000, at(0));
    let mut order = |ms, now| {
        b.recv(flow(4000, 80), segment(Control::None, ms, 0), at(now));
        b.sent(10, at(now));
    };
    order(100, 0);
    order(500, 1); // later: costs nothing
    order(50, 2); // earlier: a second entry
    order(60, 3); // later again
    assert_eq!(b.shard.occupancy().deadlines, 2);
    for ms in 0..700 {
        b.shard.expire(at(ms));
        b.sent(10, at(ms));
    }
    let fired = &b.shard.config.fired;
    assert_eq!(fired.len(), 1);
    let late = fired[0].1.since(at(60));
    assert!(at(60) <= fired[0].1 && late <= Duration::from_millis(2), "{fired:?}");
    assert_eq!(b.shard.occupancy().deadlines, 0, "stale entries leave when they are found");
}

#[test]
fn a_crowd_of_deadlines_is_served_a_part_at_a_time() {
    const CROWD: u16 = 3 * EXPIRE_MOVES as u16 + 1;
    let mut b = Bench::new(|_, limits| *limits = tests::limits(9999, 9999));
    for port in 1..=CROWD {
        b.open(port, at(0));
        b.recv(flow(port, 80), segment(Control::None, 100, 0), at(0));
        b.sent(10, at(0));
    }
    let mut calls = 0;
    while b.shard.deadline().is_some_and(|due| due <= at(101)) {
        let before = b.shard.config.fired.len();
        b.shard.expire(at(101));
        b.sent(10, at(101));
        assert!(b.shard.config.fired.len() - before <= EXPIRE_SESSIONS);
        calls += 1;
    }
    assert_eq!((b.shard.config.fired.len(), b.shard.deadline()), (CROWD.into(), None));
    // Those that run, and those that move entries from level to level.
    let (least, levels) = (usize::from(CROWD) / EXPIRE_SESSIONS, 3);
    assert!((least..=least + 3 * (levels + 1)).contains(&calls), "{calls}");
}

#[test]
fn a_finished_session_leaves_nothing_behind() {
    let mut b = Bench::new(|_, _| {});
    b.open(4000, at(0));
    b.recv(flow(4000, 80), segment(Control::None, 90, 0), at(0));
    b.sent(10, at(0));
    assert_eq!((b.shard.counters().CurrEstab, b.shard.occupancy().half_open), (1, 0));
    b.recv(flow(4000, 80), segment(Control::Fin, 0, 3), at(0));
    assert_eq!(b.sent(10, at(0)).len(), 3, "what it still had to say is sent first");
    b.open(4000, at(1)); // takes the slot
    b.shard.expire(at(100));
    assert!(b.shard.config.fired.is_empty(), "the old session's deadline is not the new one's");
    assert_eq!((b.shard.config.removed, b.shard.counters().CurrEstab), (1, 1));
    b.recv(flow(4000, 80), segment(Control::Fin, 0, 0), at(101));
    b.sent(10, at(101));
    b.shard.expire(at(1000));
    assert_eq!(b.shard.occupancy(), Occupancy::default());
    assert_eq!((b.shard.pool.free(), b.shard.counters().CurrEstab), (16, 0));
}

#[test]
fn a_batch_may_open_and_close_a_flow() {
    let mut b = Bench::new(|_, _| {});
    let f = flow(4000, 80);
    let mut rx = vec![
        b.rx(f, &segment(Control::Syn, 0, 0)),
        b.rx(f, &segment(Control::None, 0, 2)),
        b.rx(f, &segment(Control::Fin, 0, 1)),
    ];
    b.shard.ingest(&mut rx, at(0));
    assert_eq!(b.sent(10, at(0)).len(), 3);
    assert_eq!(b.shard.occupancy(), Occupancy::default());
}

#[test]
fn newcomers_wait_when_limits_or_frames_run_out() {
    let mut b = Bench::new(|_, limits| *limits = tests::limits(3, 1));
    let syn = || segment(Control::Syn, 0, 0);
    b.recv(flow(4000, 80), syn(), at(0));
    b.recv(flow(4001, 80), syn(), at(0));
    b.sent(10, at(0));
    assert_eq!((b.shard.counters().HalfOpenEvicted, b.shard.occupancy().sessions), (1, 1));
    assert_eq!(b.shard.config().removed, 1, "the first has waited longer");
    b.recv(flow(4001, 80), segment(Control::None, 0, 0), at(0));
    b.sent(1, at(0));
    b.open(4002, at(0));
    b.open(4003, at(0));
    b.recv(flow(4004, 80), syn(), at(0));
    assert_eq!((b.shard.counters().ListenOverflows, b.shard.occupancy().sessions), (1, 3));
    let mut b = Bench::new(|_, _| {});
    let held: Vec<_> = (0..15).map(|_| b.shard.pool.take().unwrap()).collect();
    b.recv(flow(4000, 80), syn(), at(0));
    assert!(b.sent(10, at(0)).is_empty(), "the peer tries again");
    assert_eq!((b.shard.counters().MemoryPressures, b.shard.occupancy().sessions), (1, 0));
    drop(held);
    b.open(4000, at(0));
}

#[test]
fn keys_lead_to_the_shard_that_drew_them_and_ports_are_its_own() {
    let (mut keys, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let homes = Homes { shards: 3, key: 12_345 };
    for index in 0..3 {
        let mut b = Bench::new(|config, _| {
            config.homes = homes;
            config.index = index;
            config.ephemeral = 50_000..=50_011;
        });
        let at_home = (4000..).find(|port| homes.home(&flow(*port, 80)) == index).unwrap();
        b.open(at_home, at(0));
        b.each(at(0), |_, _, cx| {
            let token_of = |key: u64| (key >> 7) as u32;
            let token = token_of(cx.fresh_key(token_of).unwrap());
            assert_eq!(homes.of_token(token), index);
            assert!(keys.insert(token));
            let (local, remote) = (flow(1, 1).local.addr, flow(4000, 80).remote);
            while let Some(port) = cx.ephemeral_port(local, remote) {
                assert!((50_000..=50_011).contains(&port) && ports.insert(port));
                let flow = FlowTuple { local: Endpoint::new(local, port), remote };
                assert_eq!(homes.home(&flow), index);
                assert!(cx.add_flow(flow));
            }
        });
    }
    assert_eq!(ports.len(), 12);
}

#[test]
fn a_search_for_a_port_is_short_and_the_next_goes_on_behind_it() {
    let ports = 10_000..=17_999;
    let mut b = Bench::new(|config, _| config.ephemeral = ports.clone());
    b.open(4000, at(0));
    b.each(at(0), |_, _, cx| {
        let (local, remote) = (flow(1, 1).local.addr, flow(4000, 80).remote);
        let of = |port| FlowTuple { local: Endpoint::new(local, port), remote };
        assert!(ports.clone().filter(|port| *port != 15_000).all(|port| cx.add_flow(of(port))));
        let mut found = (0..16).filter_map(|_| cx.ephemeral_port(local, remote));
        assert_eq!(found.next(), Some(15_000));
    });
}

#[test]
fn a_reopened_flow_starts_after_its_predecessor() {
    let mut b = Bench::new(|_, _| {});
    b.open(4000, at(0));
    let mut iss = |now| {
        let mut out = None;
        b.each(now, |_, _, cx| out = Some(cx.opening(flow(1, 2)).iss));
        out.unwrap()
    };
    let (first, second) = (iss(at(0)), iss(at(4)));
    assert_eq!(second.since(first), 1000, "RFC 6528: 4 microseconds a step");
}

/// One of three shards.
fn third(index: u32) -> (Bench, Homes) {
    let homes = Homes { shards: 3, key: 12_345 };
    let change = |config: &mut ShardConfig, _: &mut Limits| {
        (config.homes, config.index) = (homes, index);
    };
    (Bench::new(change), homes)
}

/// The client's port of a flow to port 80 at home in this shard.
fn port_at(home: u32, homes: Homes) -> u16 {
    (4000..).find(|port| homes.home(&flow(*port, 80)) == home).unwrap()
}

impl Bench {
    fn away(&mut self) -> Vec<(u32, Away)> {
        self.shard.away().collect()
    }

    fn recv_crossed(&mut self, flow: FlowTuple, segment: Segment) {
        let mut rx = vec![self.rx(flow, &segment)];
        self.shard.ingest_crossed(&mut rx, at(0));
    }
}

#[test]
fn what_is_nobodys_goes_home_once() {
    let (mut b, homes) = third(0);
    let stray = flow(port_at(1, homes), 80);
    for control in [Control::Syn, Control::None] {
        b.recv(stray, segment(control, 0, 0), at(0));
        assert!(matches!(b.away()[..], [(1, Away::Packet(_))]), "{control:?} goes home");
    }
    assert!(b.sent(10, at(0)).is_empty());
    b.recv_crossed(stray, segment(Control::None, 0, 0));
    assert!(b.away().is_empty(), "and not back");
    assert_eq!(b.sent(10, at(0)).len(), 1, "RST: who sent it here knows that we have it");
}

#[test]
fn a_join_goes_to_its_token_and_home_learns_of_it() {
    let ((mut a, homes), (mut b, _)) = (third(0), third(1));
    let elder = port_at(1, homes);
    b.open(elder, at(0));
    let token = (4000..).find(|token| homes.of_token(*token) == 1).unwrap();
    b.each(at(0), |_, _, cx| assert!(cx.add_token(token)));
    assert!(b.away().is_empty(), "what is at home is nobody else's business");
    let joined = flow(port_at(0, homes), 80);
    a.recv(joined, join(token), at(0));
    let mail = a.away();
    assert!(matches!(mail[..], [(1, Away::Packet(_))]), "{mail:?}");
    b.recv_crossed(joined, join(token));
    assert!(matches!(b.away()[..], [(0, Away::Adopted(f))] if f == joined));
    a.shard.on_adopted(joined, 1);
    a.recv_crossed(joined, segment(Control::None, 0, 0));
    assert!(matches!(a.away()[..], [(1, Away::Packet(_))]), "home hands on, even what crossed");
    b.each(at(0), |_, _, cx| cx.remove_flow(joined));
    assert!(matches!(b.away()[..], [(0, Away::Released(f))] if f == joined));
    a.shard.on_released(joined, 2);
    assert_eq!(a.shard.occupancy().flows, 1, "only who adopted it may release it");
    a.shard.on_released(joined, 1);
    assert_eq!(a.shard.occupancy().flows, 0);
}

#[test]
fn home_keeps_what_it_has_when_another_claims_it() {
    let (mut b, homes) = third(0);
    let mine = port_at(0, homes);
    b.open(mine, at(0));
    b.shard.on_adopted(flow(mine, 80), 1);
    b.recv(flow(mine, 80), segment(Control::None, 0, 1), at(0));
    assert_eq!((b.sent(10, at(0)).len(), b.away().len()), (1, 0));
}
