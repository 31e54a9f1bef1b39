//! Several workers in a node, more than this machine may have cores: what one does alone, they do together.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::pair::{Pair, example};
use crate::single::{TERMINATE, Witness, assert_kernel_content, grown, topology};
use crate::turn;
use pcap_tests::netlink;
use pcap_tests::netns::Namespace;
use pcap_tests::peer::{self, EndpointRole};
use pcap_tests::topology::{Reference, SERVER, umcp_kernel};
use pcap_tests::traffic::{self, Amount, Direction, Running, Transfer, Transport};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

const WORKERS: usize = 3;
/// Connections at a time: with so many no worker but by a rare chance has none.
const CONNECTIONS: u16 = 12;
const SIZE: u64 = 4_000_000;
/// Addresses from which the client joins, besides the one of its second link.
const JOINING: [(&str, &str); 3] =
    [("wan1", "10.0.1.31"), ("wan1", "10.0.1.32"), ("wan2", "10.0.2.33")];

/// `config` with several workers and a short TIME-WAIT.
fn with_workers(config: &str) -> String {
    format!("workers = {WORKERS}\n{config}\n[tcp]\ntime-wait = \"1s\"\n")
}

/// Half of them up, half of them down, all at once.
fn start_all(client: &Namespace, server: &Namespace, client_speaks: Transport) -> Vec<Running> {
    let transfer = |number: u16| {
        let direction = if number.is_multiple_of(2) { Direction::Up } else { Direction::Down };
        let to = SocketAddr::new(SERVER, 8001 + number);
        Transfer { client_speaks, ..Transfer::tcp(to, direction, Amount::Octets(SIZE)) }
    };
    let start = |number| traffic::start(client, server, transfer(number)).expect("a transfer");
    (0..CONNECTIONS).map(start).collect()
}

fn assert_all_intact(running: Vec<Running>, appliances: &[&Appliance]) {
    for (number, transfer) in running.into_iter().enumerate() {
        let outcome = transfer.finish().unwrap_or_else(|error| {
            let logs: Vec<String> = appliances.iter().map(|plait| plait.log()).collect();
            panic!("{number}: {error}\n{}", logs.join("\n"))
        });
        assert!(outcome.intact(), "{number}: {outcome:?}");
        assert_eq!(outcome.sent, SIZE, "{number}");
    }
}

/// A column of `plait show workers`.
fn column(workers: &Value, name: &str) -> Vec<u64> {
    let rows = workers.as_array().expect("rows");
    assert_eq!(rows.len(), WORKERS);
    rows.iter().map(|row| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"))).collect()
}

/// Waits until all connections are there, and sees that they are spread, and told of as one node's.
fn assert_spread(plait: &Appliance) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let connections = loop {
        let connections = column(&plait.show("workers"), "connections");
        if connections.iter().sum::<u64>() >= u64::from(CONNECTIONS) {
            break connections;
        }
        assert!(Instant::now() < deadline, "{connections:?}\n{}", plait.log());
        thread::sleep(Duration::from_millis(5));
    };
    assert!(connections.iter().filter(|count| **count > 0).count() > 1, "{connections:?}");
    let rows = plait.show("connections");
    let mut names: Vec<(u64, u64)> = rows
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| (row["worker"].as_u64().expect("a number"), row["id"].as_u64().expect("an id")))
        .collect();
    assert_eq!(names.len(), usize::from(CONNECTIONS), "{rows}");
    names.dedup();
    assert_eq!(names.len(), usize::from(CONNECTIONS), "each once: {names:?}");
}

/// When all is over nothing is left at any worker, neither connections nor flows, and nothing was lost between them.
fn assert_clean(plait: &Appliance) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let workers = plait.show("workers");
        let left: u64 = ["connections", "flows", "time_wait"]
            .iter()
            .map(|name| column(&workers, name).iter().sum::<u64>())
            .sum();
        if left == 0 {
            assert_eq!(column(&workers, "crossed_dropped"), [0; WORKERS], "{workers}");
            let [sent, taken] = ["crossed_out", "crossed_in"]
                .map(|name| column(&workers, name).iter().sum::<u64>());
            assert_eq!(sent, taken, "packets crossed: {workers}");
            break;
        }
        assert!(Instant::now() < deadline, "left over: {workers}");
        thread::sleep(Duration::from_millis(100));
    }
    let counters = plait.show("counters");
    for bad in ["InErrs", "EstabResets", "MPJoinNoTokenFound", "OutOverflows"] {
        let count = counters.get(bad).or_else(|| counters.get(format!("Plait{bad}")));
        assert_eq!(count.and_then(Value::as_u64), Some(0), "{bad}: {counters}");
    }
}

/// A Linux client that joins from four more addresses, from ports of its choice: the token leads to the worker.
struct Joining {
    net: Reference,
    plait: Appliance,
    scratch: Scratch,
    before: BTreeMap<String, u64>,
}

impl Joining {
    fn start(io: &str) -> Joining {
        let net = topology();
        let scratch = Scratch::new("cores");
        let host = &net.umcp;
        assert!(peer::speaks_mptcp(host), "this kernel has no MPTCP to test against");
        peer::set_mptcp_limits(host, 8, 2).expect("limits");
        let endpoint = |addr| peer::add_mptcp_endpoint(host, addr, EndpointRole::Subflow);
        endpoint(umcp_kernel(1)).expect("an endpoint");
        for (device, addr) in JOINING {
            let addr = addr.parse().expect("an address");
            host.run(|| netlink::add_address(device, addr, 24)).expect("an address");
            endpoint(addr).expect("an endpoint");
        }
        // Not towards the server: with XDP its unshaped kernel would overrun a veth's ring.
        let wan = format!("\"\nio = \"{io}\"\naddresses = [\"10.0.");
        let config = with_workers(&TERMINATE.replace("\"\naddresses = [\"10.0.", &wan));
        let plait = Appliance::start(&net.dmcp, "cores", &config, &scratch);
        let before = peer::counters(host).expect("counters");
        Joining { net, plait, scratch, before }
    }

    /// So many connections all had their subflows, and are gone without a trace.
    fn settle(mut self, connections: u64) {
        self.plait.check_alive();
        let after = peer::counters(&self.net.umcp).expect("counters");
        let grown = |name| grown(&self.before, &after, name);
        assert_eq!(grown("MPCapableSYNACKRX"), connections);
        let joins = grown("MPJoinSynAckRx");
        assert!(joins >= 4 * connections, "{joins} joins of {connections} connections");
        assert_eq!((grown("MPJoinSynAckHMacFailure"), grown("MPRstRx")), (0, 0));
        let crossed = column(&self.plait.show("workers"), "crossed_in").iter().sum::<u64>();
        assert!(crossed > 100 * connections, "{crossed} packets crossed: joins from any port do");
        assert_clean(&self.plait);
    }
}

fn joins_find_their_connection(io: &str) {
    let _turn = turn();
    let joining = Joining::start(io);
    let running = start_all(&joining.net.umcp, &joining.net.server, Transport::Mptcp);
    assert_spread(&joining.plait);
    assert_all_intact(running, &[&joining.plait]);
    joining.settle(CONNECTIONS.into());
}

#[test]
fn joins_find_their_connection_over_af_packet() {
    joins_find_their_connection("af-packet");
}

#[test]
fn joins_find_their_connection_over_af_xdp() {
    joins_find_their_connection("af-xdp");
}

/// What crosses between workers keeps its order, and none of it is lost or late: the captures tell.
fn nothing_is_sent_twice(io: &str) {
    let _turn = turn();
    let joining = Joining::start(io);
    let (host, server) = (&joining.net.umcp, &joining.net.server);
    let more = JOINING.iter().map(|(_, addr)| addr.parse().expect("an address"));
    let addresses: Vec<IpAddr> = (0..2).map(umcp_kernel).chain(more).collect();
    let witness = Witness::start(
        [
            (host, "wan1", addresses.clone()),
            (host, "wan2", addresses),
            (server, "eth0", vec![SERVER]),
        ],
        joining.scratch.path(),
    );
    for (port, direction) in [(8001, Direction::Up), (8002, Direction::Down)] {
        let transfer = Transfer {
            client_speaks: Transport::Mptcp,
            ..Transfer::tcp(SocketAddr::new(SERVER, port), direction, Amount::Octets(3 * SIZE))
        };
        let outcome = traffic::run(host, server, transfer).expect("both ends finish");
        assert!(outcome.intact(), "{direction:?}: {outcome:?}");
    }
    assert_kernel_content(&joining.before, &peer::counters(host).expect("counters"));
    witness.judge();
    joining.settle(2);
}

#[test]
fn nothing_is_sent_twice_over_af_packet() {
    nothing_is_sent_twice("af-packet");
}

#[test]
fn nothing_is_sent_twice_over_af_xdp() {
    nothing_is_sent_twice("af-xdp");
}

/// A uMCP and a dMCP with several workers each between plain hosts.
fn a_pair_converts(io: &str) {
    let _turn = turn();
    let [umcp, dmcp] = ["umcp", "dmcp"].map(|name| {
        with_workers(&example(name).replace("io = \"af-packet\"", &format!("io = \"{io}\"")))
    });
    let pair = Pair::start_in(topology(), "cores-pair", &umcp, &dmcp);
    let [umcp, dmcp] = pair.appliances();
    let running = start_all(&pair.net.client, &pair.net.server, Transport::Tcp);
    assert_spread(umcp);
    assert_spread(dmcp);
    assert_all_intact(running, &[umcp, dmcp]);
    assert_clean(umcp);
    assert_clean(dmcp);
    pair.settle(CONNECTIONS.into());
}

#[test]
fn a_pair_converts_over_af_packet() {
    a_pair_converts("af-packet");
}

#[test]
fn a_pair_converts_over_af_xdp() {
    a_pair_converts("af-xdp");
}
