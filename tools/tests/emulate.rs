//! `plait emulate` as a program: between two devices of a namespace, judged by the kernel's TCP on either side.
#![forbid(unsafe_code)]

use nix::sys::signal::Signal;
use pcap_tests::netlink::add_address;
use pcap_tests::netns::Namespace;
use pcap_tests::traffic::{self, Amount, Direction, Transfer};
use serde_json::Value;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 7, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 7, 0, 2));

#[test]
fn it_gives_rate_delay_and_an_outage_and_counts() {
    let [near, middle, far] = ["near", "middle", "far"]
        .map(|name| Namespace::new(name).expect("a namespace (these tests need root)"));
    near.join("eth0", &middle, "a").expect("a veth pair");
    far.join("eth0", &middle, "b").expect("a veth pair");
    near.run(|| add_address("eth0", A, 24)).expect("an address");
    far.run(|| add_address("eth0", B, 24)).expect("an address");
    let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
    command.args(["emulate", "--a", "a", "--b", "b", "--rate", "50mbit", "--delay", "10ms"]);
    command.args(["--queue", "300", "--down-at", "4s", "--up-at", "5s", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut emulator = middle.spawn(command).expect("plait emulate");
    std::thread::sleep(Duration::from_millis(500));

    let amount = Amount::For(Duration::from_secs(6));
    let outcome =
        traffic::run(&near, &far, Transfer::tcp(SocketAddr::new(B, 7000), Direction::Up, amount))
            .expect("a transfer");
    assert!(outcome.intact());
    assert!(outcome.connect >= Duration::from_millis(20), "one round trip: {:?}", outcome.connect);
    let gap = outcome.longest_gap;
    assert!(gap >= Duration::from_millis(950) && gap < Duration::from_secs(3), "outage {gap:?}");
    let before = outcome.bins.iter().skip(20).take(36).sum::<u64>() as f64 * 8.0 / 1.8;
    assert!((42e6..50e6).contains(&before), "{before} bit/s of 50 Mbit/s");

    let mut stdout = emulator.child().stdout.take().expect("a pipe");
    emulator.signal(Signal::SIGTERM).expect("a signal");
    let mut text = String::new();
    stdout.read_to_string(&mut text).expect("its last words");
    let counters: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let there = &counters["a_to_b"];
    assert!(there["octets"].as_u64() > Some(outcome.received), "{there}");
    assert!(there["down_drops"].as_u64() > Some(0), "the outage is counted: {there}");
    assert_eq!(there["malformed"], 0);
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["emulate", "--a", "nosuch0", "--b", "nosuch1"])
        .output()
        .expect("plait emulate");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("nosuch0"), "{text}");
}
