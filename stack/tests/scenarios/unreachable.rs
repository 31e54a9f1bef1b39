//! A server that refuses, cannot be reached, or says nothing: the client sees what it would see without us.

use crate::common::*;
use stack::testkit::packet::TcpPacket;
use stack::testkit::reference::{SERVER, SERVER_PORT, Topology};
use stack::testkit::{End, Host, Plan, Progress};
use stack::wire::Endpoint;

fn end_within(network: &mut Net, limit: u64) -> Option<End> {
    let client = network.client;
    let now = network.sim.now();
    network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), Plan::sink(), now);
    network.sim.run_while(ms(limit), |sim| sim[client].app(0).end.is_none());
    network.sim[client].app(0).end
}

type Net = stack::testkit::reference::Network<stack::testkit::TcpHost, stack::testkit::TcpHost>;

#[test]
fn refused_stays_refused() {
    let mut network = over(15, &two_links());
    let begin = network.sim.now();
    assert_eq!(end_within(&mut network, 1_000), Some(End::Refused));
    assert!(network.sim.now().since(begin) < ms(200));
    nothing_left(&mut network);
}

#[test]
fn silent_stays_silent() {
    let mut topology = Topology::new(16, &two_links());
    topology.tcp.syn_retries = 3;
    let mut network = topology.build();
    let server = network.server;
    network.sim[server].ignore(SERVER_PORT);
    assert_eq!(end_within(&mut network, 10_000), None, "the client goes on trying");
    network.sim.run_for(ms(60_000));
    let client = network.client;
    assert_eq!(network.sim[client].app(0).end, Some(End::TimedOut));
    network.sim.run_for(ms(300_000));
    nothing_left(&mut network);
}

#[test]
fn no_answer_before_the_server_answers() {
    // The server is 300 ms away from the dMCP; the client must not be told earlier.
    let mut topology = Topology::new(17, &two_links());
    topology.server_link = link(1_000, 300);
    let mut network = topology.build();
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, Plan::send(1_000, 1), 1);
    let begin = network.sim.now();
    let now = network.sim.now();
    network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), Plan::sink(), now);
    network.sim.run_while(ms(5_000), |sim| sim[client].app(0).end.is_none());
    let progress: &Progress = &network.sim[client].app(0).progress;
    assert!(progress.first().unwrap().since(begin) >= ms(620));
    nothing_left(&mut network);
}

#[test]
fn prohibited_is_reported_at_once() {
    use stack::testkit::packet::unreachable;
    // The last router says "prohibited": a hard error.
    struct Wall(Vec<Vec<u8>>);
    impl Host for Wall {
        fn listen(&mut self, _: u16, _: Plan, _: usize) {}
        fn connect(&mut self, _: Endpoint, _: Plan, _: stack::time::Instant) -> usize {
            0
        }
        fn apps(&self) -> Vec<&stack::testkit::App> {
            vec![]
        }
        fn open(&self) -> usize {
            0
        }
    }
    impl stack::testkit::Node for Wall {
        fn receive(&mut self, _: usize, packet: Vec<u8>, _: stack::time::Instant) {
            if TcpPacket::parse(packet.clone()).is_ok() {
                self.0.extend(unreachable(SERVER, &packet, 13));
            }
        }
        fn poll(&mut self, _: stack::time::Instant, out: &mut stack::testkit::Outbox) {
            out.extend(self.0.drain(..).map(|packet| (0, packet)));
        }
        fn deadline(&self) -> Option<stack::time::Instant> {
            None
        }
    }
    let topology = Topology::new(18, &two_links());
    let tcp = topology.tcp.clone();
    let mut network = topology.build_with(
        |rng| stack::testkit::TcpHost::new(stack::testkit::reference::CLIENT, tcp, rng),
        |_| Wall(vec![]),
    );
    let client = network.client;
    let now = network.sim.now();
    network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), Plan::sink(), now);
    network.sim.run_while(ms(5_000), |sim| sim[client].app(0).end.is_none());
    assert_eq!(network.sim[client].app(0).end, Some(End::Unreachable));
    nothing_left(&mut network);
}
