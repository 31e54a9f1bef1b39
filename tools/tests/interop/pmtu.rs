//! A Linux router whose far link is narrower than what both ends have: it says so, or it is not heard.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::ipv6::{give_ipv6, v6};
use crate::mtu::ip;
use crate::turn;
use pcap_tests::netlink::{add_address, replace_route};
use pcap_tests::netns::Namespace;
use pcap_tests::topology::{PREFIX_LEN, Reference, on_link};
use pcap_tests::traffic::{self, Amount, Direction, Transfer, Transport};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Between the router and the server; all other devices have 1500.
const NARROW: u64 = 1300;
const PORT: u16 = 7000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
}

/// Whether the router's ICMP gets out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Router {
    Heard,
    Silent,
}

/// Whose address the server sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Replace,
    Keep,
}

impl Family {
    /// A host's, in front of the router (0) or behind it (1).
    fn address(self, network: u8, host: u8) -> IpAddr {
        match self {
            Family::V4 => on_link(network.into(), host),
            Family::V6 => v6(u16::from(network) + 1, host.into()),
        }
    }

    fn give(self, namespace: &Namespace, device: &str, address: IpAddr) {
        match self {
            Family::V4 => {
                namespace.run(|| add_address(device, address, PREFIX_LEN)).expect("an address");
            }
            Family::V6 => give_ipv6(namespace, device, address),
        }
    }

    /// Octets of a full segment on the narrow link, with timestamps.
    fn narrow_text(self) -> u64 {
        NARROW - 20 - 12 - if self == Family::V4 { 20 } else { 40 }
    }
}

/// client - Plait - router - server (the topology's dMCP).
struct Setup {
    net: Reference,
    plait: Appliance,
    server: SocketAddr,
    router: Namespace,
    _scratch: Scratch,
}

impl Setup {
    fn new(family: Family, heard: Router, source: Source) -> Setup {
        let net = Reference::build(&[]).expect("namespaces (these tests need root)");
        let router = Namespace::new("router").expect("a namespace");
        net.umcp.join("wan1", &router, "near").expect("devices");
        net.dmcp.join("wan1", &router, "far").expect("devices");
        let (near, far) = (family.address(0, 11), family.address(1, 11));
        let (ours, server) = (family.address(0, 1), family.address(1, 12));
        family.give(&router, "near", near);
        family.give(&router, "far", far);
        family.give(&net.umcp, "wan1", family.address(0, 21));
        family.give(&net.dmcp, "wan1", server);
        let (key, len, front) = match family {
            Family::V4 => ("net.ipv4.ip_forward", PREFIX_LEN, on_link(0, 0)),
            Family::V6 => ("net.ipv6.conf.all.forwarding", 64, v6(1, 0)),
        };
        router.set_sysctl(key, "1").expect("a router");
        net.dmcp.run(|| replace_route(front, len, far)).expect("a route");
        ip(&router, &["link", "set", "far", "mtu", &NARROW.to_string()]);
        if heard == Router::Silent {
            let (which, protocol) =
                if family == Family::V4 { ("-4", "icmp") } else { ("-6", "ipv6-icmp") };
            ip(&router, &[which, "rule", "add", "iif", "lo", "ipproto", protocol, "blackhole"]);
        }
        let scratch = Scratch::new(&format!("pmtu-{family:?}-{heard:?}-{source:?}"));
        let server = SocketAddr::new(server, PORT);
        let mut config = ports(ours, len, near);
        config += &match source {
            Source::Replace => relay(ours, server),
            Source::Keep => KEEPING.to_owned(),
        };
        let plait = Appliance::start(&net.umcp, "pmtu", &config, &scratch);
        Setup { net, plait, server, router, _scratch: scratch }
    }

    /// Plait sends so many octets over the narrow link; they arrive as they were.
    fn send(&mut self, octets: u64) {
        let through = Some(SocketAddr::new([192, 168, 1, 3].into(), PORT));
        let plain = Transfer::tcp(self.server, Direction::Up, Amount::Octets(octets));
        self.transfer(Transfer { through, ..plain });
    }

    fn transfer(&mut self, transfer: Transfer) {
        let transfer = Transfer { patience: Duration::from_secs(60), ..transfer };
        let outcome = traffic::run(&self.net.client, &self.net.dmcp, transfer).expect("a transfer");
        self.plait.check_alive();
        assert!(outcome.intact(), "{outcome:?}");
        assert_eq!(Amount::Octets(outcome.received), transfer.amount);
    }

    fn count(&self, name: &str) -> u64 {
        let all = self.plait.show("counters");
        all[name].as_u64().unwrap_or_else(|| panic!("no {name} in {all}"))
    }
}

fn ports(ours: IpAddr, len: u8, router: IpAddr) -> String {
    format!(
        r#"
[[port]]
name = "lan"
device = "lan0"
addresses = ["192.168.1.3/24"]
[[port]]
name = "wan"
device = "wan1"
addresses = ["{ours}/{len}"]
gateway = "{router}"
"#
    )
}

fn relay(ours: IpAddr, server: SocketAddr) -> String {
    format!(
        r#"
[[service]]
mode = "relay"
listen = "192.168.1.3:{PORT}"
server = "{server}"
connect = "tcp"
[convert]
source-addresses = ["{ours}"]
"#
    )
}

/// MPTCP clients reach the server by their own addresses.
const KEEPING: &str = r#"
[[path]]
address = "192.168.1.3"
[[rule]]
name = "mptcp-clients"
port = "lan"
from = "192.168.1.0/24"
to = "10.0.2.0/24"
action = "terminate"
source = "keep"
[[return]]
port = "wan"
to = "192.168.1.0/24"
[convert]
source-addresses = ["10.0.1.1"]
preserved-sources = ["192.168.1.0/24"]
"#;

/// RFC 1191 6.4(a), RFC 8201 5.4(a): what was under way when the router spoke is sent again, and nothing else.
fn a_router_that_says_so(family: Family) {
    const SIZE: u64 = 4_000_000;
    let _turn = turn();
    let mut setup = Setup::new(family, Router::Heard, Source::Replace);
    setup.send(SIZE);
    assert_eq!(setup.count("PmtuReduced"), 1);
    let again = setup.count("RetransSegs");
    let all = SIZE / family.narrow_text();
    assert!((1..all / 50).contains(&again), "{again} of {all} segments were sent again");
    assert_eq!(setup.count("PmtuBlackHoles"), 0);
    // RFC 1191 6.2, RFC 8201 5.2(a): the next connection knows it.
    setup.send(SIZE);
    assert_eq!(setup.count("PmtuReduced"), 1);
}

/// RFC 4821 7.7: a path that swallows full segments without a word is found to be narrow.
fn a_router_that_is_silent(family: Family) {
    let _turn = turn();
    let mut setup = Setup::new(family, Router::Silent, Source::Replace);
    setup.send(300_000);
    assert_eq!(setup.count("PmtuReduced"), 0, "the router was not to be heard");
    assert_eq!(setup.count("PmtuBlackHoles"), 1);
}

#[test]
fn a_linux_router_is_heard_over_ipv4() {
    a_router_that_says_so(Family::V4);
}

#[test]
fn a_linux_router_is_heard_over_ipv6() {
    a_router_that_says_so(Family::V6);
}

#[test]
fn a_router_without_icmp_is_a_black_hole_that_is_left_over_ipv4() {
    a_router_that_is_silent(Family::V4);
}

#[test]
fn a_router_without_icmp_is_a_black_hole_that_is_left_over_ipv6() {
    a_router_that_is_silent(Family::V6);
}

/// What the router says goes to the client, whose address the server's side of the connection has.
#[test]
fn a_linux_router_is_heard_when_it_speaks_to_the_client() {
    let _turn = turn();
    let mut setup = Setup::new(Family::V4, Router::Heard, Source::Keep);
    let clients = IpAddr::from([192, 168, 1, 0]);
    for (host, gateway) in [(&setup.router, on_link(0, 21)), (&setup.net.dmcp, on_link(1, 11))] {
        host.run(|| replace_route(clients, PREFIX_LEN, gateway)).expect("a route");
    }
    let plain = Transfer::tcp(setup.server, Direction::Up, Amount::Octets(1_000_000));
    setup.transfer(Transfer { client_speaks: Transport::Mptcp, ..plain });
    assert_eq!(setup.count("PmtuReduced"), 1);
    assert_eq!(setup.count("PmtuBlackHoles"), 0);
}
