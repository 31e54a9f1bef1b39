//! smoltcp at either end: a TCP that is not ours.

use crate::common::*;
use stack::rng::Rng;
use stack::testkit::reference::{CLIENT, SERVER, Topology, Transfer};
use stack::testkit::{SmoltcpHost, TcpHost};

#[test]
fn smoltcp_as_client() {
    let topology = Topology::new(19, &two_links());
    let tcp = topology.tcp.clone();
    let mut network = topology.build_with(
        |mut rng| SmoltcpHost::new(CLIENT, &mut rng),
        |rng| TcpHost::new(SERVER, tcp, rng),
    );
    exact(&mut network, &Transfer::new(500_000, 500_000));
}

#[test]
fn smoltcp_as_server() {
    let topology = Topology::new(20, &two_links());
    let tcp = topology.tcp.clone();
    let mut network = topology.build_with(
        |rng| TcpHost::new(CLIENT, tcp, rng),
        |mut rng| SmoltcpHost::new(SERVER, &mut rng),
    );
    exact(&mut network, &Transfer::new(500_000, 500_000));
}

#[test]
fn smoltcp_at_both_ends_over_bad_links() {
    let links = two_links().map(|link| link.loss(0.01).reorder(0.01, ms(5)));
    let mut network = Topology::new(21, &links).build_with(
        |mut rng: Rng| SmoltcpHost::new(CLIENT, &mut rng),
        |mut rng: Rng| SmoltcpHost::new(SERVER, &mut rng),
    );
    exact(&mut network, &Transfer::new(500_000, 500_000));
}
