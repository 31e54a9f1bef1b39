//! Two links carry what both can carry.

use crate::common::*;
use stack::testkit::reference::{Topology, Transfer};

const OCTETS: u64 = 16_000_000;

/// Bits per second, after the first second, of plain TCP over each link alone.
fn alone(transfer: &Transfer, way: impl Fn(&stack::testkit::reference::Outcome) -> f64) -> f64 {
    (0..2)
        .map(|path| {
            let mut network = Topology::new(1, &two_links()).build_plain(path);
            let outcome = exact(&mut network, transfer);
            way(&outcome)
        })
        .sum()
}

#[test]
fn downloads_get_the_sum_of_two_links() {
    let alone = alone(&Transfer::new(0, OCTETS / 2), |o| o.down.goodput());
    let outcome = exact(&mut over(1, &two_links()), &Transfer::new(0, OCTETS));
    let share = outcome.down.goodput() / alone;
    assert!(share >= 0.95, "{share:.3} of {alone:.0} bit/s");
}

#[test]
fn uploads_get_the_sum_of_two_links() {
    let alone = alone(&Transfer::new(OCTETS / 2, 0), |o| o.up.goodput());
    let outcome = exact(&mut over(1, &two_links()), &Transfer::new(OCTETS, 0));
    let share = outcome.up.goodput() / alone;
    assert!(share >= 0.95, "{share:.3} of {alone:.0} bit/s");
}

#[test]
fn one_link_is_as_good_as_plain_tcp() {
    let plain = Topology::new(1, &[link(20, 10)]).build_plain(0).run(&Transfer::new(0, 5_000_000));
    let outcome = exact(&mut over(1, &[link(20, 10)]), &Transfer::new(0, 5_000_000));
    let share = outcome.down.goodput() / plain.down.goodput();
    assert!(share >= 0.95, "{share:.3}");
}
