//! SYNs from sources that do not exist, more than there is memory for: real clients get through all the same.

use crate::common::*;
use stack::buf::{Chain, Pool};
use stack::mcp::{Action, Service, SourceMode, Transport};
use stack::shard::Counters;
use stack::tcp::CookiePolicy;
use stack::testkit::reference::{CONVERT_PORT, Network, SERVER, SERVER_PORT, Topology, dmcp, umcp};
use stack::testkit::{Close, End, Host, McpNode, Node, NodeId, Plan, TcpHost};
use stack::wire::plain_mode::{Convert, Target};
use stack::wire::{
    Control, Endpoint, FlowTuple, MpCapable, MptcpOption, Options, Segment, SeqNum, SynOptions,
    Timestamps, UnscaledWindow, emit,
};
use std::net::{IpAddr, Ipv4Addr};

/// Where nobody answers.
const SILENT_PORT: u16 = 81;
/// What a conversion point admits.
const HALF_OPEN: u32 = 512;
const REAL: usize = 30;
const SPOOFED: u32 = 100_000;
const STEPS: u32 = 1_000;

fn topology() -> Topology {
    let mut topology = Topology::new(41, &two_links());
    for mcp in [&mut topology.umcp, &mut topology.dmcp] {
        (mcp.max_half_open, mcp.max_connections) = (HALF_OPEN, 2_000);
    }
    topology
}

/// A SYN to `to` from somebody in `network`, a /16.
fn spoofed(n: u32, network: [u8; 2], to: Endpoint, text: &[u8], mptcp: bool) -> Vec<u8> {
    let [_, a, b, c] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    let source = Ipv4Addr::new(network[0], network[1], a | 1, b | 1);
    let flow = FlowTuple {
        local: Endpoint::new(source.into(), 1024 + u16::from(c) * 200 + (n % 200) as u16),
        remote: to,
    };
    let capable = MptcpOption::MpCapable(MpCapable {
        version: 1,
        flags: 1,
        sender_key: None,
        receiver_key: None,
        data: None,
    });
    let syn = Segment {
        seq: SeqNum(n),
        control: Control::Syn,
        window: UnscaledWindow(64_000),
        options: Options::Syn(SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { val: n, ecr: 0 }),
            mptcp: mptcp.then_some(capable).into_iter().collect(),
            fast_open: None,
        }),
        text: Chain::copy_from(&Pool::new(1, 256), 0, text).unwrap_or_default(),
        ..Default::default()
    };
    let mut packet = emit(flow, &syn, 0);
    packet.finish_checksum();
    packet.to_vec()
}

/// Ten seconds of flood at `victim`, with a real client connecting to `to` every third of a second.
fn survive(
    network: &mut Network<TcpHost, TcpHost>,
    victim: NodeId<McpNode>,
    iface: usize,
    to: Endpoint,
    packet: impl Fn(u32) -> Vec<u8>,
) -> Counters {
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::echo(), 100);
    network.sim[server].ignore(SILENT_PORT);
    let each = SPOOFED / STEPS;
    for step in 0..STEPS {
        let now = network.sim.now();
        for n in step * each..(step + 1) * each {
            network.sim[victim].receive(iface, packet(n), now);
        }
        // The flood has half a second to fill what it can.
        if step >= 50 && step % 31 == 0 && network.sim[client].apps().len() < REAL {
            let plan = Plan::send(5_000, u64::from(step)).close(Close::AfterReceiving(5_000));
            network.sim[client].connect(to, plan, now);
        }
        network.sim.run_for(ms(10));
        let occupancy = network.sim[victim].shard().occupancy();
        assert!(occupancy.half_open <= HALF_OPEN as usize + REAL, "{occupancy:?}");
        assert!(occupancy.sessions <= 2 * HALF_OPEN as usize, "{occupancy:?}");
    }
    network.sim.run_for(ms(20_000));
    for app in network.sim[client].apps() {
        assert_eq!((app.end, app.sent), (Some(End::Done), app.received), "a real client");
    }
    assert_eq!(network.sim[client].apps().len(), REAL);
    assert!(network.sim[victim].least_free > 0, "frames are left for others");
    *network.sim[victim].shard().counters()
}

/// What an `auto` listener under a flood counts.
fn answered_by_cookies(counters: &Counters) {
    assert!(counters.TCPReqQFullDoCookies > u64::from(SPOOFED) * 9 / 10, "{counters:?}");
    assert_eq!(counters.TCPReqQFullDoCookies, counters.SyncookiesSent, "only beyond the limit");
    assert!(counters.SyncookiesRecv >= REAL as u64 * 9 / 10, "{counters:?}");
    assert_eq!((counters.SyncookiesFailed, counters.ListenDrops), (0, 0));
    assert_eq!((counters.HalfOpenEvicted, counters.MemoryPressures), (0, 0));
}

fn silent() -> Endpoint {
    Endpoint::new(SERVER, SILENT_PORT)
}

#[test]
fn clients_of_a_convert_rule_get_through_by_cookies() {
    let mut topology = topology();
    topology.umcp.rules[0].from = None;
    let mut network = topology.build();
    let (umcp, _) = network.mcps.unwrap();
    let to = Endpoint::new(SERVER, SERVER_PORT);
    let syn = |n| spoofed(n, [172, 16], silent(), &[], false);
    let counters = survive(&mut network, umcp, 0, to, syn);
    answered_by_cookies(&counters);
    assert!(counters.ConvertEstab >= REAL as u64, "and are converted");
}

#[test]
fn clients_of_a_direct_rule_get_through_by_cookies() {
    let mut topology = topology();
    let rule = &mut topology.umcp.rules[0];
    (rule.from, rule.action) = (None, Action::Direct { source: SourceMode::Keep });
    let mut network = topology.build();
    let (umcp, _) = network.mcps.unwrap();
    let to = Endpoint::new(SERVER, SERVER_PORT);
    let syn = |n| spoofed(n, [172, 16], silent(), &[], false);
    answered_by_cookies(&survive(&mut network, umcp, 0, to, syn));
}

/// The server behind a relay answers everybody, so that the flood holds what has both legs but no client.
#[test]
fn clients_of_a_relay_get_through_by_cookies() {
    let mut topology = topology();
    topology.umcp.services = vec![Service::Relay {
        listen: Endpoint::new(umcp(0), SERVER_PORT),
        server: Endpoint::new(SERVER, SERVER_PORT),
        connect: Transport::Tcp,
    }];
    let mut network = topology.build();
    let (node, _) = network.mcps.unwrap();
    let to = Endpoint::new(umcp(0), SERVER_PORT);
    answered_by_cookies(&survive(&mut network, node, 0, to, |n| {
        spoofed(n, [172, 16], to, &[], false)
    }));
}

/// SPEC T18: an explicit SYN cannot be answered without keeping it. The oldest make room instead.
#[test]
fn clients_of_an_explicit_service_get_through_as_the_oldest_make_room() {
    let mut network = topology().build();
    let (_, node) = network.mcps.unwrap();
    let target = Target { addr: SERVER, port: Some(SILENT_PORT) };
    let elements = Convert { destination: Some(target), source: None }.write();
    let (to, via) = (Endpoint::new(SERVER, SERVER_PORT), Endpoint::new(dmcp(0), CONVERT_PORT));
    let syn = |n| spoofed(n, [172, 16], via, &elements, true);
    let counters = survive(&mut network, node, 1, to, syn);
    assert!(counters.HalfOpenEvicted > u64::from(SPOOFED) * 9 / 10, "{counters:?}");
    assert_eq!((counters.SyncookiesSent, counters.ListenDrops), (0, 0), "{counters:?}");
    assert!(counters.PassiveOpens >= u64::from(SPOOFED) + REAL as u64);
}

/// One host that does exist may take up its own share and no more.
#[test]
fn a_source_has_its_share_of_half_open_connections() {
    let mut topology = topology();
    topology.dmcp.max_half_open_per_source = 20;
    let mut network = topology.build();
    let (_, node) = network.mcps.unwrap();
    let target = Target { addr: SERVER, port: Some(SILENT_PORT) };
    let elements = Convert { destination: Some(target), source: None }.write();
    let via = Endpoint::new(dmcp(0), CONVERT_PORT);
    let now = network.sim.now();
    network.sim[network.server].ignore(SILENT_PORT);
    for n in 0..100 {
        let source: IpAddr = Ipv4Addr::new(172, 16, 0, 1 + n % 2).into();
        let mut packet = stack::testkit::packet::TcpPacket::parse(spoofed(
            u32::from(n),
            [172, 16],
            via,
            &elements,
            true,
        ))
        .unwrap();
        let flow = packet.flow();
        packet.set_flow(FlowTuple { local: Endpoint::new(source, 2000 + u16::from(n)), ..flow });
        network.sim[node].receive(1, packet.finish(), now);
    }
    network.sim.run_for(ms(50));
    let shard = network.sim[node].shard();
    assert_eq!(shard.occupancy().half_open, 40);
    assert_eq!((shard.counters().HalfOpenPerSource, shard.counters().ListenDrops), (60, 60));
}

/// `always`: the same transfers as without, whoever speaks what.
#[test]
fn every_client_may_be_answered_by_a_cookie() {
    for (up, down) in [(300_000, 200_000), (0, 0), (0, 50_000)] {
        let mut topology = topology();
        topology.umcp.tcp.syn_cookies = CookiePolicy::Always;
        let mut network = topology.build();
        let transfer = stack::testkit::reference::Transfer::new(up, down);
        exact(&mut network, &transfer);
        let (node, _) = network.mcps.unwrap();
        let counters = network.sim[node].shard().counters();
        let (sent, recv) = (counters.SyncookiesSent, counters.SyncookiesRecv);
        assert_eq!((sent, recv, counters.SyncookiesFailed), (1, 1, 0));
        assert_eq!(counters.TCPReqQFullDoCookies, 0);
    }
}

/// uMCP direct, dMCP terminate: MPTCP between them begins with a cookie.
#[test]
fn mptcp_begins_with_a_cookie_and_joins_as_ever() {
    for shards in [1, 3] {
        let mut topology = topology();
        topology.shards = shards;
        topology.umcp.rules[0].action = Action::Direct { source: SourceMode::Keep };
        topology.dmcp.services.clear();
        topology.dmcp.rules = topology.umcp.rules.clone();
        topology.dmcp.rules[0].action = Action::Terminate { source: SourceMode::Keep };
        topology.dmcp.tcp.syn_cookies = CookiePolicy::Always;
        let mut network = topology.build();
        exact(&mut network, &stack::testkit::reference::Transfer::new(3_000_000, 200_000));
        let (_, node) = network.mcps.unwrap();
        let mut counters = Counters::default();
        network.sim[node].shards().iter().for_each(|shard| counters.add(shard.counters()));
        assert_eq!((counters.SyncookiesSent, counters.SyncookiesRecv), (1, 1));
        let mptcp = |count: fn(&stack::mptcp::MptcpCounters) -> u64| -> u64 {
            let all = network.sim[node].shards().iter();
            all.map(|shard| count(shard.config().mptcp_counters())).sum()
        };
        assert_eq!(mptcp(|c| c.MPCapableACKRX), 1);
        assert_eq!(mptcp(|c| c.MPCapableFallbackACK), 0);
        assert!(mptcp(|c| c.MPJoinAckRx) >= 1, "the second link is used");
    }
}

/// The price: a refusal comes as a reset of what was established.
#[test]
fn behind_a_cookie_a_refusal_is_a_reset() {
    let mut topology = topology();
    topology.umcp.tcp.syn_cookies = CookiePolicy::Always;
    let mut network = topology.build();
    let client = network.client;
    let now = network.sim.now();
    let app = network.sim[client].connect(Endpoint::new(SERVER, 99), Plan::sink(), now);
    network.sim.run_while(ms(5_000), |sim| sim[client].app(0).end.is_none());
    assert_eq!(network.sim[client].app(app).end, Some(End::Reset));
    nothing_left(&mut network);
}
