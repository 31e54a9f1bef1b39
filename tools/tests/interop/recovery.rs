//! Loss recovery with the kernel as the other end, over a link that loses, reorders and duplicates.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::turn;
use pcap_tests::link::{Loss, Profile, QueueLimit, Reorder};
use pcap_tests::peer;
use pcap_tests::topology::{Reference, dmcp_kernel};
use pcap_tests::traffic::{self, Amount, Direction, Outcome, Transfer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

const SIZE: u64 = 6_000_000;

/// TCP from the client's network, TCP over the link.
const RELAY: &str = r#"
[[port]]
name = "lan"
device = "lan0"
io = "af-packet"
addresses = ["192.168.1.3/24"]
[[port]]
name = "wan"
device = "wan1"
io = "af-packet"
addresses = ["10.0.1.1/24"]
[[service]]
mode = "relay"
listen = "192.168.1.3:7000"
server = "10.0.1.12:7000"
connect = "tcp"
[convert]
source-addresses = ["10.0.1.1"]
"#;

/// Of 4,200 packets some 40 are lost, 80 are late by as much as 20 packets take, 20 come twice.
fn bad() -> Profile {
    Profile {
        rate: Some(20_000_000),
        delay: Duration::from_millis(10),
        loss: Loss::random(0.01),
        queue: QueueLimit::Octets(200_000),
        reorder: Some(Reorder { share: 0.02, late: Duration::from_millis(12) }),
        duplicate: 0.005,
        ..Profile::default()
    }
}

fn clean() -> Profile {
    Profile { loss: Loss::NONE, reorder: None, duplicate: 0.0, ..bad() }
}

fn transfer(net: &Reference, direction: Direction) -> Outcome {
    let server = SocketAddr::new(dmcp_kernel(0), 7000);
    let through = Some(SocketAddr::new([192, 168, 1, 3].into(), 7000));
    let transfer = Transfer {
        through,
        patience: Duration::from_secs(60),
        ..Transfer::tcp(server, direction, Amount::Octets(SIZE))
    };
    traffic::run(&net.client, &net.dmcp, transfer).expect("a transfer")
}

/// What the kernel counted, zeros left out.
fn counters(net: &Reference) -> BTreeMap<String, u64> {
    let mut all = peer::counters(&net.dmcp).expect("counters");
    all.retain(|name, count| name.starts_with("TcpExt") && *count > 0);
    all
}

/// The link did what it is asked for, to the data of this transfer.
fn assert_bad(link: &pcap_tests::link::DirectionStats) {
    let counted = link.shaper;
    assert!(counted.lost >= 10, "{counted:?}");
    assert!(counted.delayed >= 20, "{counted:?}");
    assert!(counted.duplicated >= 5, "{counted:?}");
    assert_eq!((link.malformed, link.send_errors), (0, 0));
}

#[test]
fn plait_sends_through_loss_reordering_and_duplicates() {
    let _turn = turn();
    let mut net = Reference::build_seeded(&[[bad(), clean()]], 7).expect("namespaces (root)");
    let scratch = Scratch::new("recovery-sends");
    let mut plait = Appliance::start(&net.umcp, "relay", RELAY, &scratch);
    let outcome = transfer(&net, Direction::Up);
    plait.check_alive();
    assert!(outcome.intact() && outcome.received == SIZE, "{outcome:?}");
    let [data, _] = net.links.remove(0).stop().expect("its counters");
    assert_bad(&data);
    let counters = counters(&net);
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    // The receiving kernel saw holes, late segments and duplicates.
    assert!(count("TcpExtTCPOFOQueue") >= 100, "{}", count("TcpExtTCPOFOQueue"));
    assert!(count("TcpExtTCPDSACKOldSent") + count("TcpExtTCPDSACKOfoSent") >= 3, "{counters:?}");
    // A sender that recovers by what SACKs tell sends again about what was lost, and what it took for lost until it had
    // learnt how far the path reorders (RFC 8985 6.2); one that falls back to timeouts sends whole windows again.
    let full = (SIZE / 1448) as f64;
    let sent =
        data.shaper.packets + data.shaper.lost + data.shaper.queue_drops - data.shaper.duplicated;
    let extra = (sent as f64 - full) / full;
    assert!(extra < 0.08, "{sent} packets for {full:.0} full ones; {data:?}");
}

#[test]
fn plait_receives_through_loss_reordering_and_duplicates() {
    let _turn = turn();
    let mut net = Reference::build_seeded(&[[clean(), bad()]], !7).expect("namespaces (root)");
    let scratch = Scratch::new("recovery-receives");
    let mut plait = Appliance::start(&net.umcp, "relay", RELAY, &scratch);
    let outcome = transfer(&net, Direction::Down);
    plait.check_alive();
    assert!(outcome.intact() && outcome.received == SIZE, "{outcome:?}");
    let [_, data] = net.links.remove(0).stop().expect("its counters");
    assert_bad(&data);
    let counters = counters(&net);
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    // The sending kernel was told what is missing and what came late or twice, block by block.
    assert!(count("TcpExtTCPSackRecovery") >= 5, "{counters:?}");
    assert!(count("TcpExtTCPSACKReorder") >= 1, "it noticed the reordering: {counters:?}");
    assert!(count("TcpExtTCPDSACKRecv") >= 3, "RFC 2883: {counters:?}");
    // Every SACK block made sense. (More DSACKs than it sent again, as when the path duplicates, it does not believe.)
    assert!(count("TcpExtTCPSACKDiscard") <= count("TcpExtTCPDSACKIgnoredDubious"), "{counters:?}");
    assert!(count("TcpExtTCPTimeouts") <= 3, "its timer had nothing to do: {counters:?}");
}
