//! Links that go away, and come back.

use crate::common::*;
use stack::testkit::reference::Transfer;

/// The longest silence a user is to notice when a link dies.
const STALL: u64 = 1_000;

#[test]
fn a_cut_stalls_a_download_for_less_than_a_second() {
    for dead in 0..2 {
        let transfer = Transfer::new(0, 8_000_000).cut(dead, ms(1_500));
        let outcome = exact(&mut over(2, &two_links()), &transfer);
        assert!(outcome.down.stall() <= ms(STALL), "link {dead}: {:?}", outcome.down.stall());
    }
}

#[test]
fn a_cut_stalls_an_upload_for_less_than_a_second() {
    for dead in 0..2 {
        let transfer = Transfer::new(8_000_000, 0).cut(dead, ms(1_500));
        let outcome = exact(&mut over(2, &two_links()), &transfer);
        assert!(outcome.up.stall() <= ms(STALL), "link {dead}: {:?}", outcome.up.stall());
    }
}

#[test]
fn a_link_that_returns_is_used_again() {
    let mut network = over(3, &two_links());
    let transfer = Transfer::new(0, 24_000_000).cut(0, ms(1_500)).restore(0, ms(3_000));
    exact(&mut network, &transfer);
    let [_, back] = network.sim.stats(network.links[0]);
    // 1.4 s of 20 Mbit/s before the cut is 3.5 MB at most.
    assert!(back.carried_octets > 6_000_000, "{back:?}");
}

#[test]
fn flapping_links_lose_nothing() {
    let mut transfer = Transfer::new(3_000_000, 3_000_000);
    for i in 0..8 {
        let at = 500 + i * 700;
        transfer = transfer.cut(i as usize % 2, ms(at)).restore(i as usize % 2, ms(at + 500));
    }
    exact(&mut over(4, &two_links()), &transfer);
}

#[test]
fn all_links_may_be_away_for_a_while() {
    let transfer = Transfer::new(0, 4_000_000);
    let transfer = transfer.cut(0, ms(800)).cut(1, ms(900)).restore(1, ms(4_000));
    exact(&mut over(5, &two_links()), &transfer);
}
