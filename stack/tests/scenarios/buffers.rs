//! Buffers are as large as paths and readers need them, and no larger.

use crate::common::*;
use stack::testkit::reference::{Network, SERVER, SERVER_PORT, Topology, Transfer};
use stack::testkit::{Close, Host, Link, Plan, TcpHost};
use stack::time::Duration;
use stack::wire::Endpoint;

/// Both conversion points begin with windows and send queues of this size.
fn begin_with(topology: &mut Topology, octets: u32) {
    for config in [&mut topology.umcp, &mut topology.dmcp] {
        config.buffer = 32 << 20;
        for tcp in [&mut config.tcp, &mut config.mptcp.tcp] {
            (tcp.receive_buffer, tcp.send_buffer) = (32 << 20, 32 << 20);
            (tcp.receive_buffer_default, tcp.send_buffer_default) = (octets, octets);
        }
    }
}

/// Conversion points whose windows begin with 64 KiB, for links that are slow or a pool that many share.
fn begin_with_little(topology: &mut Topology) {
    for mcp in [&mut topology.umcp, &mut topology.dmcp] {
        for tcp in [&mut mcp.tcp, &mut mcp.mptcp.tcp] {
            tcp.receive_buffer_default = 64 << 10;
        }
    }
}

/// An upload and a download over 1 Gbit/s and 100 ms, through conversion points that begin with such buffers.
fn long_fat(octets: u32) -> [Duration; 2] {
    [(40_000_000, 0), (0, 40_000_000)].map(|(up, down)| {
        let mut topology = Topology::new(41, &[link(1_000, 50).queue(16 << 20)]);
        begin_with(&mut topology, octets);
        topology.frames = 65_536;
        let near = || Link::new(10_000_000_000, Duration::from_micros(100)).queue(16 << 20);
        (topology.lan, topology.server_link) = (near(), near());
        (topology.tcp.receive_buffer, topology.tcp.send_buffer) = (4 << 20, 4 << 20);
        exact(&mut topology.build(), &Transfer::new(up, down)).took
    })
}

#[test]
fn windows_that_begin_small_are_never_behind_a_sender_in_slow_start() {
    let (fixed, grown) = (long_fat(32 << 20), long_fat(64 << 10));
    for (fixed, grown) in fixed.into_iter().zip(grown) {
        assert!(grown < fixed * 105 / 100, "{grown:?} instead of {fixed:?}");
    }
}

/// Frames that a conversion point ever held.
fn most_held(network: &Network<TcpHost, TcpHost>) -> [u32; 2] {
    let (umcp, dmcp) = network.mcps.unwrap();
    [umcp, dmcp].map(|node| {
        let node = &network.sim[node];
        node.shard().pool().capacity() - node.least_free
    })
}

#[test]
fn a_slow_path_is_not_given_more_than_it_has_a_use_for() {
    // 250 kB/s and 40 ms: 10 kB under way. The client would hand over a megabyte at once.
    let mut topology = Topology::new(42, &[link(2, 20)]);
    begin_with_little(&mut topology);
    let mut network = topology.build();
    exact(&mut network, &Transfer::new(1_000_000, 0));
    // A first window, a first send queue, and what the congestion window makes of the link's queue.
    let [umcp, _] = most_held(&network);
    assert!(umcp * 1_400 < 300_000, "{umcp} frames");
}

#[test]
fn a_thousand_idle_connections_hold_no_frame() {
    let mut topology = Topology::new(43, &two_links());
    topology.frames = 4_096;
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::echo(), 1_000);
    for batch in 0..20 {
        let now = network.sim.now();
        for i in 0..50 {
            let plan = Plan::send(3_000, batch * 50 + i).close(Close::Never);
            network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), plan, now);
        }
        network.sim.run_for(ms(1_000));
    }
    network.sim.run_for(ms(60_000));
    let (umcp, dmcp) = network.mcps.unwrap();
    for node in [umcp, dmcp] {
        let shard = network.sim[node].shard();
        assert_eq!(shard.occupancy().sessions, 1_000);
        assert_eq!(shard.pool().free(), shard.pool().capacity());
    }
    assert!(network.sim[client].apps().iter().all(|app| app.received == app.sent));
}

/// Goodput of one download beside so many connections whose readers take a thousand octets per second.
fn beside(slow: u64) -> f64 {
    let mut topology = Topology::new(44, &[link(100, 10)]);
    topology.frames = 8_192;
    begin_with_little(&mut topology);
    (topology.tcp.receive_buffer, topology.tcp.send_buffer) = (64 << 10, 128 << 10);
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    let to = |port| Endpoint::new(SERVER, port);
    network.sim[server].listen(SERVER_PORT + 1, Plan::send(10_000_000, 5).close(Close::Never), 50);
    let now = network.sim.now();
    for _ in 0..slow {
        network.sim[client].connect(to(SERVER_PORT + 1), Plan::sink().read_rate(1_000), now);
    }
    network.sim.run_for(ms(20_000));
    network.sim[server].listen(SERVER_PORT, Plan::send(20_000_000, 6), 1);
    let now = network.sim.now();
    let fast = network.sim[client].connect(to(SERVER_PORT), Plan::sink(), now);
    network.sim.run_while(ms(60_000), |sim| !sim[client].app(fast).saw_end);
    let app = network.sim[client].app(fast);
    assert_eq!(app.received.len, 20_000_000);
    app.progress.goodput(Duration::ZERO)
}

#[test]
fn one_fast_reader_beside_fifty_slow_ones() {
    let (alone, beside) = (beside(0), beside(50));
    assert!(beside > 0.9 * alone, "{beside} instead of {alone}");
}

/// Frames held when a client that sends segments of so many octets has filled everything on the way to a reader that stopped.
fn held_before_a_stopped_reader(mss: u16) -> [u32; 2] {
    let mut topology = Topology::new(45, &[link(20, 10)]);
    topology.tcp.mss = mss;
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::sink().read_rate(10), 1);
    let now = network.sim.now();
    let plan = Plan::send(3_000_000, 7);
    network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), plan, now);
    network.sim.run_for(ms(20_000));
    let (umcp, dmcp) = network.mcps.unwrap();
    [umcp, dmcp].map(|node| {
        let pool = network.sim[node].shard().pool();
        pool.capacity() - pool.free()
    })
}

#[test]
fn small_segments_that_wait_hold_hardly_more_frames_than_large_ones() {
    let (large, small) = (held_before_a_stopped_reader(1_460), held_before_a_stopped_reader(112));
    for (large, small) in large.into_iter().zip(small) {
        assert!(large > 20 && small < 3 * large, "{small} frames instead of {large}");
    }
}
