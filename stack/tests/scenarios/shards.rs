//! Conversion points of several shards, where packets arrive at any of them.

use crate::common::*;
use stack::mcp::Bridge;
use stack::shard::{Counters, Shard};
use stack::testkit::reference::{Network, SERVER, SERVER_PORT, Topology, Transfer};
use stack::testkit::{Close, End, Host, McpNode, NodeId, Plan, TcpHost};
use stack::wire::Endpoint;

const SHARDS: u32 = 4;

fn sharded(seed: u64) -> Network<TcpHost, TcpHost> {
    let mut topology = Topology::new(seed, &two_links());
    topology.shards = SHARDS;
    topology.build()
}

fn total(node: &McpNode) -> Counters {
    node.shards().iter().fold(Counters::default(), |mut sum, shard| {
        sum.add(shard.counters());
        sum
    })
}

fn mcps(network: &Network<TcpHost, TcpHost>) -> [NodeId<McpNode>; 2] {
    let (umcp, dmcp) = network.mcps.unwrap();
    [umcp, dmcp]
}

/// Nobody was told that a flow does not exist.
fn nothing_was_lost_between_shards(network: &Network<TcpHost, TcpHost>) {
    for node in mcps(network) {
        let counters = total(&network.sim[node]);
        assert_eq!((counters.OutRsts, counters.InNoFlow, counters.MPJoinNoTokenFound), (0, 0, 0));
    }
}

#[test]
fn a_connection_whose_packets_arrive_anywhere_is_exact() {
    let mut crossed = [0; 2];
    for seed in 0..8 {
        let mut network = sharded(seed);
        let outcome = exact(&mut network, &Transfer::new(400_000, 400_000));
        assert!(outcome.took < ms(3_000), "both links carried: {:?}", outcome.took);
        nothing_was_lost_between_shards(&network);
        for (crossed, node) in crossed.iter_mut().zip(mcps(&network)) {
            *crossed += network.sim[node].crossed;
        }
    }
    assert!(crossed.iter().all(|crossed| *crossed > 1000), "hardly anything crossed: {crossed:?}");
}

#[test]
fn many_connections_spread_over_shards_and_leave_nothing() {
    let mut network = sharded(21);
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::echo(), 200);
    let now = network.sim.now();
    for i in 0..200 {
        let plan = Plan::send(5_000, i).close(Close::AfterReceiving(5_000));
        network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), plan, now);
    }
    network.sim.run_while(ms(60_000), |sim| {
        sim[client].open() + sim[server].open() > 0 || sim[server].apps().len() < 200
    });
    let apps = network.sim[client].apps();
    assert_eq!(apps.len(), 200);
    assert!(apps.iter().all(|app| app.end == Some(End::Done) && app.sent == app.received));
    for node in mcps(&network) {
        let opened = |shard: &Shard<Bridge>| shard.counters().PassiveOpens;
        let each: Vec<u64> = network.sim[node].shards().iter().map(opened).collect();
        assert_eq!(each.iter().sum::<u64>(), 200);
        assert!(each.iter().all(|opened| (25..=75).contains(opened)), "uneven: {each:?}");
    }
    nothing_was_lost_between_shards(&network);
    nothing_left(&mut network);
}

/// The cut is announced by nobody; what was under way on the dead link is sent again on the other, whichever shard the
/// flows' packets arrive at.
#[test]
fn a_link_may_die() {
    for seed in 30..34 {
        let mut network = sharded(seed);
        let transfer = Transfer::new(1_000_000, 1_000_000).cut(1, ms(300));
        exact(&mut network, &transfer);
        let counters = total(&network.sim[mcps(&network)[0]]);
        assert_eq!((counters.OutRsts, counters.InNoFlow), (0, 0));
    }
}
