//! Many short connections.

use crate::common::*;
use stack::testkit::reference::{Network, SERVER, SERVER_PORT, Transfer};
use stack::testkit::{Close, End, Host, Plan, TcpHost};
use stack::wire::Endpoint;

fn all_done(network: &Network<TcpHost, TcpHost>, expected: usize) {
    let sim = &network.sim;
    let (clients, servers) = (sim[network.client].apps(), sim[network.server].apps());
    assert_eq!((clients.len(), servers.len()), (expected, expected));
    for client in &clients {
        assert_eq!(client.end, Some(End::Done));
        assert_eq!(client.sent, client.received, "echoed");
    }
    assert!(servers.iter().all(|server| server.end == Some(End::Done)));
}

#[test]
fn two_hundred_in_sequence() {
    let mut network = over(12, &two_links());
    for _ in 0..200 {
        let outcome = network.run(&Transfer::new(2_000, 3_000));
        assert!(outcome.is_exact(), "{outcome:?}");
    }
    nothing_left(&mut network);
}

#[test]
fn a_hundred_at_once() {
    let mut network = over(13, &two_links());
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::echo(), 100);
    let now = network.sim.now();
    for i in 0..100 {
        let plan = Plan::send(5_000, i).close(Close::AfterReceiving(5_000));
        network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), plan, now);
    }
    network.sim.run_while(ms(60_000), |sim| {
        sim[client].open() + sim[server].open() > 0 || sim[server].apps().len() < 100
    });
    all_done(&network, 100);
    nothing_left(&mut network);
}
