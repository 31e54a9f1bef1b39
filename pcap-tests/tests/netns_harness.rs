//! The harness itself: the reference topology comes up, carries traffic as its links say, and leaves nothing behind.
#![forbid(unsafe_code)]

use pcap_tests::link::parse;
use pcap_tests::netns::Namespace;
use pcap_tests::peer;
use pcap_tests::requests::{self, Server};
use pcap_tests::topology::{Reference, SERVER, dmcp_kernel};
use pcap_tests::traffic::{self, Amount, Direction, Transfer, Transport};
use pcap_tests::trial;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    trial::run(&[
        ("each_link_carries_its_rate_and_delay", each_link_carries_its_rate_and_delay),
        ("a_lossy_link_loses_its_share", a_lossy_link_loses_its_share),
        ("a_cut_link_carries_nothing_until_restored", a_cut_link_carries_nothing_until_restored),
        ("a_link_keeps_the_order", a_link_keeps_the_order),
        ("the_kernels_mptcp_is_a_peer", the_kernels_mptcp_is_a_peer),
        ("the_kernels_mptcp_uses_both_links", the_kernels_mptcp_uses_both_links),
        ("short_connections_take_round_trips", short_connections_take_round_trips),
        ("a_child_dies_with_its_namespace", a_child_dies_with_its_namespace),
        ("teardown_leaves_nothing", teardown_leaves_nothing),
    ])
}

fn teardown_leaves_nothing() {
    let before = system_state();
    let net = build(&["100mbit,2ms,0,300", "100mbit,2ms,0,300"]);
    let transfer = Transfer::tcp(server(), Direction::Up, Amount::Octets(1_000_000));
    assert!(traffic::run(&net.client, &net.server, transfer).unwrap().intact());
    assert_ne!(system_state(), before);
    drop(net);
    // What is over in a panic is gone as well.
    let panics = std::panic::catch_unwind(|| {
        let _net = build(&["100mbit,2ms,0,300"]);
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panics.is_err());
    // The kernel takes threads and namespaces apart in the background.
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        system_state() == before
    });
    assert!(gone, "left behind:\n{:#?}\nbefore:\n{before:#?}", system_state());
}

/// Devices of this namespace, names in /run/netns, namespaces that threads of this process are in, descriptors.
fn system_state() -> (String, Vec<String>, Vec<String>, usize) {
    let list = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let devices = fs::read_to_string("/proc/net/dev").unwrap();
    let devices = devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    let mut namespaces: Vec<String> = list("/proc/self/task")
        .iter()
        .filter_map(|task| fs::read_link(format!("{task}/ns/net")).ok())
        .map(|link| link.display().to_string())
        .collect();
    namespaces.sort();
    (devices.collect(), list("/run/netns"), namespaces, list("/proc/self/fd").len())
}

fn server() -> SocketAddr {
    SocketAddr::new(SERVER, 7000)
}

fn build(links: &[&str]) -> Reference {
    let profiles: Vec<_> = links.iter().map(|l| [parse::profile(l).unwrap(); 2]).collect();
    Reference::build(&profiles).unwrap()
}

fn each_link_carries_its_rate_and_delay() {
    let net = build(&["100mbit,5ms,0,300", "40mbit,15ms,0,300"]);
    assert_ne!(
        nix::sys::stat::fstat(net.client.as_fd()).unwrap().st_ino,
        nix::sys::stat::fstat(net.server.as_fd()).unwrap().st_ino,
    );
    for (link, rate, rtt_ms) in [(0, 100e6, 10), (1, 40e6, 30)] {
        net.route_through(link).unwrap();
        for direction in [Direction::Up, Direction::Down] {
            let amount = Amount::For(Duration::from_millis(2500));
            let transfer = Transfer::tcp(server(), direction, amount);
            let outcome = traffic::run(&net.client, &net.server, transfer).unwrap();
            assert!(outcome.intact());
            // 1448 octets of text in 1514 of frame.
            let share = outcome.steady_rate(Duration::from_secs(1)) / (rate * 1448.0 / 1514.0);
            println!(
                "link {link} {direction:?}: {:.1} Mbit/s ({:.1} %), connect {:?}, {}",
                outcome.steady_rate(Duration::from_secs(1)) / 1e6,
                share * 100.0,
                outcome.connect,
                outcome.congestion,
            );
            // A hole that is filled just after the start of the window delivers a round trip's worth at once.
            assert!((0.95..1.08).contains(&share), "{share}");
            if direction == Direction::Up {
                continue; // the first connection over a link also waits for ARP
            }
            let rtt = Duration::from_millis(rtt_ms);
            assert!(outcome.connect >= rtt, "{:?}", outcome.connect);
            assert!(outcome.connect < rtt + Duration::from_millis(20), "{:?}", outcome.connect);
        }
    }
}

fn a_lossy_link_loses_its_share() {
    let mut net = build(&["1gbit,1ms,1%,1000"]);
    let transfer = Transfer::tcp(server(), Direction::Up, Amount::Octets(8_000_000));
    let outcome = traffic::run(&net.client, &net.server, transfer).unwrap();
    assert!(outcome.intact());
    let [there, _] = net.links.remove(0).stop().unwrap();
    let share = there.shaper.lost as f64 / (there.shaper.lost + there.shaper.packets) as f64;
    println!("{there:?}: lost {:.2} %", share * 100.0);
    assert!((0.005..0.015).contains(&share), "{share}");
    assert!(there.super_frames > 0, "the kernel sends super-frames");
}

/// Two kernels that talk over links without loss, from all their processors, never see a segment before its predecessor.
fn a_link_keeps_the_order() {
    let net = build(&["200mbit,2ms,0,32MB", "200mbit,2ms,0,32MB"]);
    if !peer::speaks_mptcp(&net.client) {
        return println!("skipped: no MPTCP in this kernel");
    }
    let ends = [&net.umcp, &net.dmcp];
    for host in ends {
        peer::set_mptcp_limits(host, 2, 2).unwrap();
    }
    peer::add_mptcp_endpoint(&net.dmcp, dmcp_kernel(1), peer::EndpointRole::Signal).unwrap();
    for direction in [Direction::Up, Direction::Down] {
        let to = SocketAddr::new(dmcp_kernel(0), 7000);
        let tcp = Transfer::tcp(to, direction, Amount::Octets(100_000_000));
        let speaks = Transport::Mptcp;
        let transfer = Transfer { client_speaks: speaks, server_speaks: speaks, ..tcp };
        assert!(traffic::run(&net.umcp, &net.dmcp, transfer).unwrap().intact());
    }
    for end in ends {
        let counters = peer::counters(end).unwrap();
        for early in ["TcpExtTCPOFOQueue", "TcpExtTCPSACKReorder", "TcpExtTCPFastRetrans"] {
            assert_eq!(counters.get(early), Some(&0), "{early} of {}", end.name());
        }
    }
}

fn a_cut_link_carries_nothing_until_restored() {
    let net = build(&["100mbit,2ms,0,300"]);
    let transfer = Transfer::tcp(server(), Direction::Down, Amount::For(Duration::from_secs(2)));
    let running = traffic::start(&net.client, &net.server, transfer).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    net.links[0].switch().set_up(false);
    std::thread::sleep(Duration::from_millis(300));
    net.links[0].switch().set_up(true);
    let outcome = running.finish().unwrap();
    assert!(outcome.intact());
    assert!(outcome.longest_gap >= Duration::from_millis(290), "{:?}", outcome.longest_gap);
    assert!(outcome.longest_gap < Duration::from_millis(1500), "{:?}", outcome.longest_gap);
}

fn the_kernels_mptcp_is_a_peer() {
    let net = build(&["200mbit,1ms,0,300"]);
    if !peer::speaks_mptcp(&net.client) {
        return println!("skipped: no MPTCP in this kernel");
    }
    let signal = peer::EndpointRole::Signal;
    peer::add_mptcp_endpoint(&net.server, "192.168.9.3".parse().unwrap(), signal).unwrap();
    let dir = std::env::temp_dir().join(format!("plait-harness-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let link = net.links[0].namespace();
    let capture = peer::Capture::start(link, "b", &dir.join("link.pcap")).unwrap();
    let mptcp = Transport::Mptcp;
    let tcp = Transfer::tcp(server(), Direction::Up, Amount::Octets(1_000_000));
    let transfer = Transfer { client_speaks: mptcp, server_speaks: mptcp, ..tcp };
    let outcome = traffic::run(&net.client, &net.server, transfer).unwrap();
    assert!(outcome.intact());
    let counters = peer::counters(&net.server).unwrap();
    assert_eq!(counters.get("MPTcpExtMPCapableSYNRX"), Some(&1));
    if let Some(capture) = capture {
        let file = capture.finish().unwrap();
        if let Some(lines) = peer::tshark(&file, "tcp.options.mptcp.subtype == 3").unwrap() {
            assert!(!lines.is_empty(), "ADD_ADDR was announced");
        }
        if let Some(lines) = peer::tshark(&file, "_ws.malformed || tcp.len > 1460").unwrap() {
            assert!(lines.is_empty(), "{lines:?}");
        }
    }

    fs::remove_dir_all(&dir).unwrap();
}

fn a_child_dies_with_its_namespace() {
    let namespace = Namespace::new("short").unwrap();
    let mut command = std::process::Command::new("sleep");
    command.arg("100");
    let process = namespace.spawn(command).unwrap();
    let inside = format!("/proc/{}/ns/net", process.id());
    assert_ne!(fs::read_link(&inside).unwrap(), fs::read_link("/proc/self/ns/net").unwrap());
    drop(process);
    assert!(fs::read_link(&inside).is_err());
}

fn short_connections_take_round_trips() {
    let net = build(&["100mbit,5ms,0,300"]);
    let body = vec![b'x'; 3000];
    let _http = Server::http(&net.server, server(), body.clone()).unwrap();
    let _echo = Server::echo(&net.server, SocketAddr::new(SERVER, 7001)).unwrap();
    let round_trip = Duration::from_millis(10);
    let times = requests::fetch(&net.client, server(), 20, &body).unwrap();
    assert!(times.iter().all(|time| *time >= 2 * round_trip), "{times:?}");
    let address = SocketAddr::new(SERVER, 7001);
    let mut times =
        requests::type_keys(&net.client, address, 20, Duration::from_millis(2)).unwrap();
    times.sort();
    assert!(times[0] >= round_trip && times[10] < round_trip * 2, "{times:?}");
}

/// What Plait has to better, and the proof that two emulated links do not disturb each other.
fn the_kernels_mptcp_uses_both_links() {
    let net = build(&["50mbit,5ms,0,300", "50mbit,15ms,0,300"]);
    if !peer::speaks_mptcp(&net.client) {
        return println!("skipped: no MPTCP in this kernel");
    }
    for host in [&net.umcp, &net.dmcp] {
        peer::set_mptcp_limits(host, 2, 2).unwrap();
    }
    peer::add_mptcp_endpoint(&net.dmcp, dmcp_kernel(1), peer::EndpointRole::Signal).unwrap();
    let speaks = Transport::Mptcp;
    let address = SocketAddr::new(dmcp_kernel(0), 7000);
    let tcp = Transfer::tcp(address, Direction::Up, Amount::For(Duration::from_secs(3)));
    let transfer = Transfer { client_speaks: speaks, server_speaks: speaks, ..tcp };
    let outcome = traffic::run(&net.umcp, &net.dmcp, transfer).unwrap();
    assert!(outcome.intact());
    let rate = outcome.steady_rate(Duration::from_secs(1));
    let joins = peer::counters(&net.dmcp).unwrap()["MPTcpExtMPJoinAckRx"];
    assert_eq!(joins, 1, "one further subflow");
    println!("kernel MPTCP over 2 x 50 Mbit/s: {:.1} Mbit/s", rate / 1e6);
    assert!(rate > 60e6, "more than one link can carry");
}
