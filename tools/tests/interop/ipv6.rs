//! One conversion point between a Linux MPTCP host and a plain one, over IPv6, and over both families at a time.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::conversation::{Conversation, Since, await_that, carried};
use crate::single::topology;
use crate::turn;
use pcap_tests::netlink::{add_address, replace_route};
use pcap_tests::netns::Namespace;
use pcap_tests::peer::{self, EndpointRole};
use pcap_tests::topology::{Reference, umcp_kernel};
use pcap_tests::traffic::Transport;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

const SIZE: usize = 5_000_000;
const PORT: u16 = 8001;

/// fd00:NETWORK::HOST. Networks 1 and 2 are the links, 9 is the server's.
pub const fn v6(network: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, host))
}

const SERVER: IpAddr = v6(9, 2);

/// Switches IPv6 on and gives a device an address, and waits until it is usable: the kernel ends even a
/// duplicate address detection of no transmissions in its own time.
pub fn give_ipv6(namespace: &Namespace, device: &str, address: IpAddr) {
    let set = |key: &str, value: &str| {
        let key = format!("net.ipv6.conf.{device}.{key}");
        namespace.set_sysctl(&key, value).expect("the kernel has IPv6");
    };
    set("dad_transmits", "0");
    set("disable_ipv6", "0");
    namespace.run(|| add_address(device, address, 64)).expect("an address");
    let usable = || namespace.run(|| UdpSocket::bind((address, 0))).is_ok();
    await_that("an address of use", usable, || address.to_string());
}

/// The links and the server's network have IPv6 besides IPv4; the client reaches the server through Plait's address.
fn both_families() -> Reference {
    let net = topology();
    assert!(peer::speaks_mptcp(&net.umcp), "this kernel has no MPTCP to test against");
    give_ipv6(&net.umcp, "wan1", v6(1, 0x11));
    give_ipv6(&net.umcp, "wan2", v6(2, 0x11));
    give_ipv6(&net.server, "eth0", SERVER);
    net.umcp.run(|| replace_route(v6(9, 0), 64, v6(1, 2))).expect("a route");
    peer::set_mptcp_limits(&net.umcp, 2, 2).expect("limits");
    net
}

/// `io`: of the ports towards the links. `second`: Plait's address on the second link.
fn config(io: &str, second: &str) -> String {
    format!(
        r#"
[[port]]
name = "wan1"
device = "wan1"
io = "{io}"
addresses = ["fd00:1::2/64"]
[[port]]
name = "wan2"
device = "wan2"
io = "{io}"
addresses = ["{second}"]
[[port]]
name = "server"
device = "srv0"
io = "af-packet"
addresses = ["fd00:9::3/64"]
[[path]]
address = "{}"
flags = ["signal"]
[[rule]]
name = "mptcp-clients"
port = "wan1"
to = "fd00:9::/64"
action = "terminate"
source = "replace"
[convert]
source-addresses = ["fd00:9::3"]
"#,
        second.split('/').next().unwrap_or(second)
    )
}

/// A transfer each way from the Linux client at both links to the plain server, all links used.
fn judge(net: &Reference, plait: &mut Appliance) {
    let since = Since::now(&net.umcp);
    let at = SocketAddr::new(SERVER, PORT);
    let client = (&net.umcp, Transport::Mptcp);
    let open = Conversation::open(client, at, (&net.server, Transport::Tcp), at);
    assert_eq!(open.seen.ip(), v6(9, 3));
    await_that("a join", || since.grown("MPJoinSynAckRx") > 0, || plait.log());
    let before = carried(net, 1);
    open.pass_both_ways(SIZE);
    let after = carried(net, 1);
    for way in [0, 1] {
        let octets = after[way] - before[way];
        assert!(octets > SIZE as u64 / 5, "second link, direction {way}: {octets} octets");
    }
    open.close();
    plait.check_alive();
    let left = || plait.show("connections");
    let none = || left().as_array().is_some_and(Vec::is_empty);
    await_that("no connection left", none, || left().to_string());
    assert_eq!(since.grown("MPCapableSYNACKRX"), 1);
    assert!(since.grown("AddAddr") > 0, "the announced address was not understood");
    since.assert_content();
}

fn over_ipv6(io: &str) {
    let _turn = turn();
    let net = both_families();
    let scratch = Scratch::new(&format!("ipv6-{io}"));
    let mut plait = Appliance::start(&net.dmcp, "ipv6", &config(io, "fd00:2::2/64"), &scratch);
    judge(&net, &mut plait);
}

#[test]
fn a_linux_mptcp_client_reaches_a_plain_server_over_ipv6_by_af_packet() {
    over_ipv6("af-packet");
}

#[test]
fn a_linux_mptcp_client_reaches_a_plain_server_over_ipv6_by_af_xdp() {
    over_ipv6("af-xdp");
}

#[test]
fn a_plain_client_reaches_a_linux_mptcp_server_over_ipv6() {
    let _turn = turn();
    let net = topology();
    assert!(peer::speaks_mptcp(&net.dmcp), "this kernel has no MPTCP to test against");
    give_ipv6(&net.client, "eth0", v6(8, 2));
    give_ipv6(&net.dmcp, "wan1", v6(1, 0x12));
    give_ipv6(&net.dmcp, "wan2", v6(2, 0x12));
    net.client.run(|| replace_route(v6(1, 0), 64, v6(8, 1))).expect("a route");
    peer::set_mptcp_limits(&net.dmcp, 2, 2).expect("limits");
    peer::add_mptcp_endpoint(&net.dmcp, v6(2, 0x12), EndpointRole::Signal).expect("an endpoint");
    let config = r#"
[[port]]
name = "lan"
device = "lan0"
io = "af-packet"
addresses = ["fd00:8::1/64"]
[[port]]
name = "wan1"
device = "wan1"
addresses = ["fd00:1::1/64"]
[[port]]
name = "wan2"
device = "wan2"
addresses = ["fd00:2::1/64"]
[[path]]
address = "fd00:1::1"
flags = ["subflow"]
[[path]]
address = "fd00:2::1"
flags = ["subflow"]
reach = "fd00:2::/64"
[[rule]]
name = "to-mptcp-servers"
port = "lan"
from = "fd00:8::/64"
to = "fd00:1::/64"
action = "direct"
source = "replace"
[convert]
source-addresses = ["fd00:1::1"]
"#;
    let scratch = Scratch::new("direct6");
    let mut plait = Appliance::start(&net.umcp, "direct6", config, &scratch);
    let since = Since::now(&net.dmcp);
    let at = SocketAddr::new(v6(1, 0x12), PORT);
    let server = (&net.dmcp, Transport::Mptcp);
    let open = Conversation::open((&net.client, Transport::Tcp), at, server, at);
    assert_eq!(open.seen.ip(), v6(1, 1));
    await_that("a join", || since.grown("MPJoinAckRx") > 0, || plait.log());
    let before = carried(&net, 1);
    open.pass_both_ways(SIZE);
    let after = carried(&net, 1);
    for way in [0, 1] {
        let octets = after[way] - before[way];
        assert!(octets > SIZE as u64 / 5, "second link, direction {way}: {octets} octets");
    }
    open.close();
    plait.check_alive();
    assert_eq!(since.grown("MPCapableACKRX"), 1);
    assert!(since.grown("EchoAdd") > 0, "Plait did not echo the announced address");
    since.assert_content();
}

#[test]
fn a_linux_mptcp_client_joins_over_ipv4_what_it_began_over_ipv6() {
    let _turn = turn();
    let net = both_families();
    let scratch = Scratch::new("mixed");
    let config = config("af-packet", "10.0.2.2/24");
    let mut plait = Appliance::start(&net.dmcp, "mixed", &config, &scratch);
    peer::add_mptcp_endpoint(&net.umcp, umcp_kernel(1), EndpointRole::Subflow).expect("endpoint");
    judge(&net, &mut plait);
}

#[test]
fn the_kernel_pings_addresses_that_plait_owns() {
    let _turn = turn();
    let net = both_families();
    let scratch = Scratch::new("ping6");
    let config = config("af-packet", "fd00:2::2/64");
    let _plait = Appliance::start(&net.dmcp, "ping6", &config, &scratch);
    for (host, address) in [(&net.umcp, v6(1, 2)), (&net.umcp, v6(2, 2)), (&net.server, v6(9, 3))] {
        crate::transparent::ping(host, address);
    }
}
