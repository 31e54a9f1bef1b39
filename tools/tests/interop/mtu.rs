//! The MSS follows the MTU of the devices while Plait runs.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::conversation::{Conversation, await_that};
use crate::single::DIRECT;
use crate::turn;
use pcap_tests::netns::Namespace;
use pcap_tests::topology::{Reference, dmcp_kernel};
use pcap_tests::traffic::Transport;
use socket2::SockRef;
use std::net::SocketAddr;
use std::process::Command;

/// What two Ethernet devices leave: IPv4 and TCP headers 40, a DSS 28, timestamps 12 octets.
const OF_1500: u32 = 1500 - 40 - 28 - 12;
const OF_1300: u32 = OF_1500 - 200;

/// Runs `ip`.
pub fn ip(namespace: &Namespace, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    let output = namespace.output(command).expect("ip");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Plait between a plain client and a Linux MPTCP server, over two pairs of virtual devices.
struct Setup {
    net: Reference,
    plait: Appliance,
    _scratch: Scratch,
}

impl Setup {
    fn open(&self, port: u16) -> Conversation {
        let at = SocketAddr::new(dmcp_kernel(0), port);
        let client = (&self.net.client, Transport::Tcp);
        Conversation::open(client, at, (&self.net.dmcp, Transport::Mptcp), at)
    }

    /// A number of the second link's port.
    fn second_link(&self, of: impl Fn(&serde_json::Value) -> Option<u64>) -> u64 {
        let ports = self.plait.show("ports");
        let row = ports.as_array().into_iter().flatten().find(|row| row["device"] == "wan2");
        row.and_then(of).unwrap_or_else(|| panic!("wan2: {ports}"))
    }

    fn await_mtu(&self, mtu: u64) {
        let now = || self.second_link(|row| row["mtu"].as_u64());
        await_that(&format!("an MTU of {mtu}"), || now() == mtu, || now().to_string());
    }
}

/// Octets that the client's kernel puts into a segment, as Plait's SYN/ACK allowed.
fn segment(open: &Conversation) -> u32 {
    SockRef::from(&open.client).tcp_mss().expect("an option")
}

#[test]
fn new_connections_fit_in_the_present_mtu_of_the_narrowest_device() {
    let _turn = turn();
    let net = Reference::direct(2).expect("namespaces (these tests need root)");
    let scratch = Scratch::new("mtu");
    let plait = Appliance::start(&net.umcp, "mtu", DIRECT, &scratch);
    let setup = Setup { net, plait, _scratch: scratch };
    let wide = setup.open(8001);
    assert_eq!(segment(&wide), OF_1500);

    ip(&setup.net.umcp, &["link", "set", "wan2", "mtu", "1300"]);
    setup.await_mtu(1300);
    let narrow = setup.open(8002);
    assert_eq!(segment(&narrow), OF_1300);
    assert!(SockRef::from(&narrow.server).tcp_mss().expect("an option") <= 1300 - 40 - 12);
    narrow.pass_both_ways(1_000_000);

    // Another device of that name, with the MTU of all new ones.
    ip(&setup.net.umcp, &["link", "del", "wan2"]);
    await_that(
        "a lost device",
        || setup.second_link(|row| row["counters"]["lost"].as_u64()) == 1,
        || setup.plait.log(),
    );
    setup.net.umcp.join("wan2", &setup.net.dmcp, "wan2").expect("a new device");
    setup.await_mtu(1500);
    let again = setup.open(8003);
    assert_eq!(segment(&again), OF_1500);
    again.pass_both_ways(1_000_000);
}
