//! A dMCP that does not know MP_CONVERT, in each shape that this takes: the client gets its server all the same.

use crate::common::*;
use stack::mcp::{McpConfig, Service, Transport};
use stack::testkit::packet::{ACK, SYN, TcpPacket};
use stack::testkit::reference::{CONVERT_PORT, SERVER, SERVER_PORT, Topology, Transfer, dmcp};
use stack::testkit::{EatSynPayload, End, Host, Pass, Plan, Strip, StripFrom};
use stack::time::Instant;
use stack::wire::Endpoint;

/// The transfer succeeds although the dMCP does not convert.
fn goes_direct(topology: Topology) {
    let mut network = topology.build();
    let transfer = Transfer::new(200_000, 200_000);
    let first = network.run(&transfer);
    assert!(first.is_exact(), "{first:?}");
    let (umcp, _) = network.mcps.unwrap();
    let cache = network.sim[umcp].shard().config().negative_cache();
    assert!(cache.avoided(0, network.sim.now()).is_some(), "remembered");
    let second = exact(&mut network, &transfer);
    assert!(second.took <= first.took, "{:?} then {:?}", first.took, second.took);
}

fn topology() -> Topology {
    Topology::new(14, &two_links())
}

/// A host that speaks MPTCP and does not know MP_CONVERT: a relay to the same server.
fn ordinary() -> Topology {
    let mut topology = topology();
    topology.dmcp.services = vec![Service::Relay {
        listen: Endpoint::new(dmcp(0), CONVERT_PORT),
        server: Endpoint::new(SERVER, SERVER_PORT),
        connect: Transport::Tcp,
    }];
    topology
}

/// The first shape is ambiguous: a dMCP answers with RST for a server that refused. So it is passed on.
#[test]
fn a_reset_is_taken_for_the_servers() {
    let mut topology = topology();
    topology.dmcp.services.clear();
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::sink(), 1);
    let now = network.sim.now();
    network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), Plan::sink(), now);
    network.sim.run_while(ms(5_000), |sim| sim[client].app(0).end.is_none());
    assert_eq!(network.sim[client].app(0).end, Some(End::Refused));
    nothing_left(&mut network);
}

#[test]
fn an_ordinary_mptcp_host_listens_there() {
    goes_direct(ordinary());
}

#[test]
fn an_ordinary_tcp_host_listens_there() {
    goes_direct(ordinary().middlebox(0, Strip::new(StripFrom::Syn)));
}

#[test]
fn nobody_answers_there() {
    struct Hole;
    impl Pass for Hole {
        fn pass(&mut self, _: usize, packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
            let flow = packet.flow();
            if flow.remote.addr != dmcp(0) && flow.local.addr != dmcp(0) {
                out.push(packet);
            }
        }
    }
    goes_direct(topology().middlebox(0, Hole));
}

#[test]
fn the_payload_is_ignored() {
    goes_direct(ordinary().middlebox(0, EatSynPayload::default()));
    goes_direct(topology().middlebox(0, EatSynPayload::default()));
}

/// A server that takes SYN payload for data: acknowledges it, echoes nothing.
#[test]
fn the_payload_is_taken_for_data() {
    struct NoEcho;
    impl Pass for NoEcho {
        fn pass(&mut self, _: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
            if packet.flags() & (SYN | ACK) == SYN | ACK {
                packet.set_text(&[]);
            }
            out.push(packet);
        }
    }
    goes_direct(topology().middlebox(0, NoEcho));
}

#[test]
fn mp_capable_does_not_come_back() {
    goes_direct(topology().middlebox(0, Strip::new(StripFrom::SynAck)));
}

#[test]
fn mp_capable_does_not_get_there() {
    goes_direct(topology().middlebox(0, Strip::new(StripFrom::Syn)));
}

#[test]
fn the_echo_differs() {
    struct Garble;
    impl Pass for Garble {
        fn pass(&mut self, _: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
            if packet.flags() & (SYN | ACK) == SYN | ACK && !packet.text().is_empty() {
                let mut text = packet.text().to_vec();
                text[9] ^= 1;
                packet.set_text(&text);
            }
            out.push(packet);
        }
    }
    goes_direct(topology().middlebox(0, Garble));
}

#[test]
fn a_converter_that_is_there_is_used() {
    let mut network = topology().build();
    exact(&mut network, &Transfer::new(2_000_000, 0));
    let (umcp, dmcp) = network.mcps.unwrap();
    let cache = network.sim[umcp].shard().config().negative_cache();
    assert!(cache.avoided(0, network.sim.now()).is_none());
    let config: &McpConfig = network.sim[dmcp].shard().config().config();
    assert!(matches!(config.services[0], Service::Explicit { port: Some(CONVERT_PORT), .. }));
    for link in &network.links {
        assert!(network.sim.stats(*link)[0].carried_octets > 100_000, "both paths carry");
    }
}
