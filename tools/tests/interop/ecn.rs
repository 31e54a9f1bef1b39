//! Explicit congestion notification with the kernel as the other end, over a link that marks instead of dropping.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::turn;
use pcap_tests::link::{DirectionStats, Profile, QueueLimit};
use pcap_tests::peer;
use pcap_tests::topology::{Reference, dmcp_kernel};
use pcap_tests::traffic::{self, Amount, Direction, Transfer};
use std::net::SocketAddr;
use std::time::Duration;

const SIZE: u64 = 4_000_000;

/// TCP in, TCP with a request for RFC 3168 out.
const RELAY: &str = r#"
[tcp]
ecn = "on"
[[port]]
name = "lan"
device = "lan0"
addresses = ["192.168.1.3/24"]
[[port]]
name = "wan"
device = "wan1"
addresses = ["10.0.1.1/24"]
[[service]]
mode = "relay"
listen = "192.168.1.3:7000"
server = "10.0.1.12:7000"
connect = "tcp"
[convert]
source-addresses = ["10.0.1.1"]
"#;

/// A queue that never overflows, and says so when a packet has to wait for 4 ms.
fn marking() -> Profile {
    Profile {
        rate: Some(20_000_000),
        delay: Duration::from_millis(10),
        queue: QueueLimit::Octets(8_000_000),
        mark: Some(Duration::from_millis(4)),
        ..Profile::default()
    }
}

/// Sends [`SIZE`] octets; what became of the packets that carried them, and what the kernel server counted as `counter`.
fn transfer(name: &str, direction: Direction, counter: &str) -> (DirectionStats, u64) {
    let mut net = Reference::build(&[[marking(), marking()]]).expect("namespaces (root)");
    let scratch = Scratch::new(name);
    let mut plait = Appliance::start(&net.umcp, "relay", RELAY, &scratch);
    let server = SocketAddr::new(dmcp_kernel(0), 7000);
    let through = Some(SocketAddr::new([192, 168, 1, 3].into(), 7000));
    let transfer = Transfer {
        through,
        patience: Duration::from_secs(60),
        ..Transfer::tcp(server, direction, Amount::Octets(SIZE))
    };
    let outcome = traffic::run(&net.client, &net.dmcp, transfer).expect("a transfer");
    plait.check_alive();
    assert!(outcome.intact() && outcome.received == SIZE, "{outcome:?}");
    let counted = peer::counters(&net.dmcp).expect("counters").get(counter).copied().unwrap_or(0);
    let [up, down] = net.links.remove(0).stop().expect("its counters");
    (if direction == Direction::Up { up } else { down }, counted)
}

/// Octets of SIZE in full packets, with a few per cent of shorter ones.
fn packets_without_repetition() -> u64 {
    SIZE / 1300
}

#[test]
fn plait_slows_down_when_the_kernel_echoes_marks() {
    let _turn = turn();
    let (link, ce) = transfer("ecn-sends", Direction::Up, "IpExtInCEPkts");
    // RFC 3168 6.1.2(a): slow start alone would have filled the queue with all that there is to send.
    assert!(link.shaper.marked > 0 && ce > 0, "{link:?}, {ce} seen by the kernel");
    assert!(link.shaper.marked < link.shaper.packets / 2, "{link:?}");
    assert_eq!(link.shaper.queue_drops, 0);
    assert!(link.shaper.packets < packets_without_repetition(), "nothing was sent twice: {link:?}");
}

#[test]
fn the_kernel_slows_down_when_plait_echoes_marks() {
    let _turn = turn();
    let (link, told) = transfer("ecn-receives", Direction::Down, "TcpExtTCPDeliveredCE");
    assert!(link.shaper.marked > 0 && told > 0, "{link:?}, {told} told to the kernel");
    assert!(link.shaper.marked < link.shaper.packets / 2, "{link:?}");
    assert_eq!(link.shaper.queue_drops, 0);
}
