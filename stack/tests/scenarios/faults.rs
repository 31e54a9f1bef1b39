//! Loss, bursts, reordering, duplication, damage.

use crate::common::*;
use stack::testkit::reference::Transfer;
use stack::testkit::{Burst, Link};

fn both(change: impl Fn(Link) -> Link) {
    let links = two_links().map(change);
    exact(&mut over(6, &links), &Transfer::new(1_000_000, 1_000_000));
}

#[test]
fn random_loss_costs_no_octet() {
    for loss in [0.001, 0.01, 0.03] {
        both(|link| link.loss(loss));
    }
}

#[test]
fn bursts_of_loss_cost_no_octet() {
    both(|link| link.burst(Burst { begin: 0.002, end: 0.2 }));
}

#[test]
fn reordering_costs_no_octet() {
    both(|link| link.reorder(0.02, ms(5)));
}

#[test]
fn duplication_costs_no_octet() {
    both(|link| link.duplicate(0.05));
}

#[test]
fn damage_is_dropped_by_the_checksum() {
    let links = two_links().map(|link| link.corrupt(0.01));
    let mut network = over(7, &links);
    exact(&mut network, &Transfer::new(1_000_000, 1_000_000));
    let damaged: u64 =
        network.links.iter().flat_map(|l| network.sim.stats(*l)).map(|s| s.corrupted).sum();
    assert!(damaged > 10, "{damaged}");
}

#[test]
fn damage_under_dss_checksums_as_well() {
    let links = two_links().map(|link| link.corrupt(0.005).loss(0.005));
    let mut topology = stack::testkit::reference::Topology::new(8, &links);
    topology.umcp.mptcp.checksum = true;
    exact(&mut topology.build(), &Transfer::new(1_000_000, 1_000_000));
}

#[test]
fn everything_at_once() {
    both(|link| link.loss(0.01).reorder(0.01, ms(8)).duplicate(0.01).corrupt(0.005));
}
