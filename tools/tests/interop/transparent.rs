//! A pair that keeps clients' addresses, and what passes it by.
#![forbid(unsafe_code)]

use crate::conversation::Conversation;
use crate::pair::{Pair, example};
use crate::turn;
use pcap_tests::netns::Namespace;
use pcap_tests::topology::{CLIENT, DMCP_SRV, SERVER, UMCP_LAN, dmcp_kernel, umcp_kernel};
use pcap_tests::traffic::Transport;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const SIZE: usize = 5_000_000;

/// The examples as their comments say: servers see the clients' own addresses.
fn keeping_pair(name: &str) -> Pair {
    let keep = |text: String| text.replace("source = \"replace\"", "source = \"keep\"");
    let more = "\n[[return]]\nport = \"srv\"\nto = \"192.168.1.0/24\"\n";
    let dmcp = keep(example("dmcp")) + more;
    let preserve = "preserved-sources = [\"192.168.1.0/24\"]\nsource-addresses";
    let dmcp = dmcp.replacen("source-addresses", preserve, 1);
    Pair::start_with(name, &keep(example("umcp")), &dmcp)
}

/// Sends one echo request and waits for its reply.
pub fn ping(from: &Namespace, to: IpAddr) {
    // Group 0 may open such sockets; the kernel writes identifier and checksum.
    from.set_sysctl("net.ipv4.ping_group_range", "0 0").expect("the sysctl");
    let (domain, protocol, request, reply_kind) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    from.run(|| {
        let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        socket.write_all(&[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'i', b'n', b'g'])?;
        let mut reply = [0; 64];
        let len = socket.read(&mut reply)?;
        let text = reply.get(8..len);
        assert_eq!((reply[0], text), (reply_kind, Some(&b"ping"[..])), "{to} answered otherwise");
        std::io::Result::Ok(())
    })
    .unwrap_or_else(|e| panic!("ping {} -> {to}: {e}", from.name()));
}

fn through(pair: &Pair, port: u16) -> Conversation {
    let at = SocketAddr::new(SERVER, port);
    let client = (&pair.net.client, Transport::Tcp);
    Conversation::open(client, at, (&pair.net.server, Transport::Tcp), at)
}

#[test]
fn the_server_sees_the_clients_own_address_and_port() {
    let _turn = turn();
    let pair = keeping_pair("keep");
    let open = [through(&pair, 8001), through(&pair, 8002)];
    for open in open {
        assert_eq!(open.client_at.ip(), CLIENT);
        assert_eq!(open.seen, open.client_at);
        open.pass_both_ways(SIZE);
        open.close();
    }
    pair.settle(2);
}

#[test]
fn what_is_not_converted_passes_a_running_pair() {
    let _turn = turn();
    let pair = keeping_pair("bypass");
    let converted = through(&pair, 8001);
    converted.pass_both_ways(SIZE / 10);
    ping(&pair.net.client, SERVER);
    ping(&pair.net.server, CLIENT);
    // The boxes' own addresses, near and far.
    for address in [UMCP_LAN, umcp_kernel(0), dmcp_kernel(0), DMCP_SRV] {
        ping(&pair.net.client, address);
        ping(&pair.net.server, address);
    }
    // The rule "ssh" leaves port 22 to the kernels: one connection, end to end.
    let bypassed = through(&pair, 22);
    assert_eq!(bypassed.seen, bypassed.client_at);
    assert_eq!(pair.connections(), 1, "only the other one is converted");
    bypassed.pass_both_ways(SIZE);
    bypassed.close();
    converted.pass_both_ways(SIZE / 10);
    converted.close();
    pair.settle(1);
}
