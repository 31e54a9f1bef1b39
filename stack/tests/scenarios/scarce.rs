//! Few frames: slower, but nothing is lost, and nothing stops.

use crate::common::*;
use stack::testkit::reference::{SERVER, SERVER_PORT, Topology, Transfer};
use stack::testkit::{Close, End, Host, Plan};
use stack::wire::Endpoint;

#[test]
fn one_transfer_through_a_small_pool() {
    let mut topology = Topology::new(23, &two_links());
    topology.frames = 256;
    exact(&mut topology.build(), &Transfer::new(1_000_000, 1_000_000));
}

#[test]
fn many_transfers_through_a_small_pool() {
    let mut topology = Topology::new(24, &two_links().map(|link| link.loss(0.005)));
    topology.frames = 1_024;
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::echo(), 40);
    let now = network.sim.now();
    for i in 0..40 {
        let plan = Plan::send(60_000, i).close(Close::AfterReceiving(60_000));
        network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), plan, now);
    }
    network.sim.run_while(ms(240_000), |sim| sim[client].open() + sim[server].open() > 0);
    for app in network.sim[client].apps() {
        assert_eq!(app.end, Some(End::Done));
        assert_eq!(app.sent, app.received);
    }
    nothing_left(&mut network);
}
