//! A link in the middle carries less than the ends: with routers that say so, and with a black hole; over both families,
//! and under one of two paths.

use crate::common::*;
use stack::tcp::{MtuProbing, TcpConfig};
use stack::testkit::reference::{Network, Topology, Transfer};
use stack::testkit::{Close, End, Host, LinkId, Middlebox, Narrow, NodeId, Plan, Sim, TcpHost};
use stack::time::Duration;
use stack::wire::Endpoint;
use std::net::IpAddr;

const PORT: u16 = 80;
const OCTETS: u64 = 2_000_000;

/// What a transfer through the narrow place took.
struct Run {
    took: Duration,
    /// Packets that the sender handed to its link.
    sent: u64,
}

/// Who sends [`OCTETS`].
#[derive(Clone, Copy, PartialEq)]
enum Sends {
    Client,
    Both,
}

/// A transfer through a place of `mtu` octets.
fn transfer(family: u8, mtu: usize, routers: &[&str], probing: MtuProbing, sends: Sends) -> Run {
    let mut sim = Sim::new(4_821);
    let end = |host: u8| -> IpAddr {
        match family {
            4 => IpAddr::from([192, 168, 1, host]),
            _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]),
        }
    };
    let mss = if family == 4 { 1460 } else { 1440 };
    let cfg = TcpConfig { mss, mtu_probing: probing, ..TcpConfig::default() };
    let (a, b) = (sim.fork_rng(), sim.fork_rng());
    let client: NodeId<TcpHost> = sim.add(TcpHost::new(end(1), cfg.clone(), a));
    let server: NodeId<TcpHost> = sim.add(TcpHost::new(end(2), cfg, b));
    let routers = routers.iter().map(|router| router.parse().expect("an address")).collect();
    let middle = sim.add(Middlebox::new(Narrow { mtu, routers }));
    let near: LinkId = sim.link((client, 0), (middle, 0), link(50, 10));
    sim.link((middle, 1), (server, 0), link(50, 10));
    let down = if sends == Sends::Both { OCTETS } else { 0 };
    let close = if down > 0 { Close::AfterReceiving(down) } else { Close::AfterSending };
    let plan = |send, seed, close| Plan { send, seed, close, ..Plan::default() };
    sim[server].listen(PORT, plan(down, 1, Close::AfterPeer), 1);
    let up = plan(OCTETS, 2, close);
    let begin = sim.now();
    sim[client].connect(Endpoint::new(end(2), PORT), up, begin);
    sim.run_while(ms(60_000), |sim| sim[client].app(0).end.is_none());
    let (client, server) = (sim[client].app(0), sim[server].app(0));
    assert_eq!(client.end, Some(End::Done), "IPv{family}, {mtu}");
    assert!(client.received == server.sent && server.received == client.sent);
    assert_eq!((client.received.len, server.received.len), (down, OCTETS));
    Run { took: sim.now().since(begin), sent: sim.stats(near)[0].sent }
}

const ROUTERS: [&str; 2] = ["10.99.0.1", "fd00:99::1"];

/// RFC 1191 6.4(a), RFC 8201 5.4(a): one round trip, not a timeout.
#[test]
fn routers_are_heard_over_both_families() {
    for family in [4, 6] {
        let wide = transfer(family, 1500, &ROUTERS, MtuProbing::BlackHole, Sends::Both);
        for mtu in [1280, 1400, 1492] {
            let narrow = transfer(family, mtu, &ROUTERS, MtuProbing::BlackHole, Sends::Both);
            let late = narrow.took.saturating_sub(wide.took);
            assert!(late < ms(250), "IPv{family}, {mtu}: {late:?} later than a wide path");
            assert!(narrow.sent < wide.sent * 3 / 2, "{} packets, not {}", narrow.sent, wide.sent);
        }
    }
}

/// RFC 4821 7.7, RFC 8899 5.1.2: in a black hole it takes three timeouts, 1.7 s, and then it goes on.
#[test]
fn a_black_hole_is_left_over_both_families() {
    for family in [4, 6] {
        for mtu in [1280, 1400] {
            let run = transfer(family, mtu, &[], MtuProbing::BlackHole, Sends::Client);
            assert!(run.took < ms(6_000), "IPv{family}, {mtu}: {:?}", run.took);
        }
    }
}

/// `always`: no timeout at all, as nothing too large is sent but probes (RFC 4821 7.6.2(a)).
#[test]
fn who_always_searches_is_not_caught() {
    for family in [4, 6] {
        let run = transfer(family, 1400, &[], MtuProbing::Always, Sends::Both);
        assert!(run.took < ms(2_000), "IPv{family}: {:?}", run.took);
    }
}

/// Two paths, one of them narrow: `routers` say so, or not.
fn uneven(seed: u64, narrow: usize, routers: &[&str]) -> Network<TcpHost, TcpHost> {
    let routers = routers.iter().map(|router| router.parse().expect("an address")).collect();
    let topology = Topology::new(seed, &two_links());
    topology.middlebox(narrow, Narrow { mtu: 1300, routers }).build()
}

/// A mapping that was given to a subflow spans more, smaller segments (RFC 8684 3.3); the first path's first octets too.
#[test]
fn each_subflow_has_its_own_path_mtu() {
    for narrow in [0, 1] {
        let mut network = uneven(1_191, narrow, &ROUTERS);
        let outcome = exact(&mut network, &Transfer::new(8_000_000, 8_000_000));
        assert!(outcome.up.stall() < ms(400), "path {narrow}: {:?}", outcome.up.stall());
        let (umcp, dmcp) = network.mcps.expect("conversion points");
        for (name, node) in [("uMCP", umcp), ("dMCP", dmcp)] {
            let counters = network.sim[node].shard().counters();
            assert!(counters.PmtuReduced > 0, "{name}, path {narrow}");
            assert_eq!(counters.PmtuBlackHoles, 0, "{name}, path {narrow}");
        }
    }
}

#[test]
fn a_subflow_leaves_a_black_hole() {
    for narrow in [0, 1] {
        let mut network = uneven(8_899, narrow, &[]);
        exact(&mut network, &Transfer::new(8_000_000, 8_000_000));
    }
}

/// RFC 1191 6.2, RFC 8201 5.2(a): the second connection knows.
#[test]
fn what_one_connection_learns_the_next_begins_with() {
    let mut network = uneven(1_192, 0, &ROUTERS);
    exact(&mut network, &Transfer::new(500_000, 0));
    let (umcp, _) = network.mcps.expect("conversion points");
    let before = network.sim[umcp].shard().counters().PmtuReduced;
    assert!(before > 0);
    exact(&mut network, &Transfer::new(500_000, 0));
    assert_eq!(network.sim[umcp].shard().counters().PmtuReduced, before);
}
