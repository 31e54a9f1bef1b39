//! A slow reader slows the sender, and memory stays bounded.

use crate::common::*;
use stack::testkit::reference::{SERVER, SERVER_PORT, Topology};
use stack::testkit::{Close, End, Host, Plan};
use stack::wire::Endpoint;

#[test]
fn back_pressure_bounds_memory() {
    let mut topology = Topology::new(9, &two_links());
    topology.umcp.buffer = 256 << 10;
    topology.dmcp.buffer = 256 << 10;
    topology.tcp.receive_buffer = 128 << 10;
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    let (umcp, dmcp) = network.mcps.unwrap();
    network.sim[server].listen(SERVER_PORT, Plan::sink().read_rate(200_000), 1);
    let now = network.sim.now();
    let to = Endpoint::new(SERVER, SERVER_PORT);
    network.sim[client].connect(to, Plan::send(3_000_000, 1), now);
    network.sim.run_for(ms(10_000));
    let received = network.sim[server].app(0).received.len;
    assert!((1_500_000..2_100_000).contains(&received), "{received} in ten seconds");
    network.sim.run_while(ms(60_000), |sim| sim[server].app(0).end.is_none());
    assert_eq!(network.sim[server].app(0).received, network.sim[client].app(0).sent);
    assert_eq!(network.sim[server].app(0).end, Some(End::Done));
    for node in [umcp, dmcp] {
        let used = network.sim[node].shard().pool().capacity() - network.sim[node].least_free;
        // Twice the buffer in full segments, and as much again for what is on its way to be acknowledged.
        assert!(used < 4 * (256 << 10) / 1_400, "{used} frames");
        assert_eq!(network.sim[node].no_frame, 0);
    }
    nothing_left(&mut network);
}

#[test]
fn a_reader_that_stops_and_goes_on() {
    // One octet in ten seconds: windows close on every leg, and have to open again.
    let mut topology = Topology::new(10, &two_links());
    topology.tcp.receive_buffer = 64 << 10;
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    network.sim[client].connect(
        Endpoint::new(SERVER, SERVER_PORT),
        Plan { read_rate: Some(20_000), ..Plan::default() },
        stack::time::Instant::from_millis(1_000),
    );
    network.sim[server].listen(SERVER_PORT, Plan::send(600_000, 4), 1);
    network.sim.run_while(ms(120_000), |sim| sim[client].app(0).end.is_none());
    assert_eq!(network.sim[client].app(0).received, network.sim[server].app(0).sent);
    assert_eq!(network.sim[client].app(0).plan.close, Close::AfterPeer);
    nothing_left(&mut network);
}
