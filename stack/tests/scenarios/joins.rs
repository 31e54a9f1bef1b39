//! When a connection gets more than its first subflow.

use crate::common::*;
use stack::testkit::reference::Transfer;

/// MP_JOINs that the uMCP sent for a transfer of `octets` each way over two links with this delay.
fn joins(octets: u64, delay: u64) -> u64 {
    let mut network = over(40, &[link(100, delay), link(100, delay)]);
    exact(&mut network, &Transfer::new(octets, octets));
    let (umcp, _) = network.mcps.unwrap();
    network.sim[umcp].shard().config().mptcp_counters().MPJoinSynTx
}

#[test]
fn a_short_connection_stays_on_its_first_path() {
    assert_eq!(joins(5_000, 2), 0);
}

#[test]
fn one_that_moves_data_uses_all() {
    assert!(joins(20_000, 2) > 0);
}

#[test]
fn one_that_lasts_uses_all() {
    assert!(joins(100, 150) > 0);
}
