//! A server that cannot be reached shows at the client as it does without Plait.
#![forbid(unsafe_code)]

use crate::pair::{LINKS, Pair};
use crate::turn;
use pcap_tests::link::parse;
use pcap_tests::netns::Namespace;
use pcap_tests::topology::Reference;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// In the servers' network, but nobody's.
const NOBODY: &str = "192.168.9.77";

/// How a connection attempt to nobody ends, and after how long.
fn attempt(client: &Namespace) -> (ErrorKind, Duration) {
    let begun = Instant::now();
    let result = client.run(|| TcpStream::connect((NOBODY, 80)));
    let error = result.map(drop).expect_err("nobody is there");
    (error.kind(), begun.elapsed())
}

#[test]
fn a_host_that_is_not_there_is_unreachable_at_the_client() {
    let _turn = turn();
    let without = {
        let profiles = LINKS.map(|link| [parse::profile(link).expect("a link"); 2]);
        let net = Reference::build(&profiles).expect("namespaces (these tests need root)");
        attempt(&net.client)
    };
    assert_eq!(without.0, ErrorKind::HostUnreachable, "the kernels alone");
    let pair = Pair::start("unreachable");
    let with = attempt(&pair.net.client);
    assert_eq!(with.0, without.0);
    let difference = with.1.abs_diff(without.1);
    assert!(difference < Duration::from_secs(1), "{:?} and without {:?}", with.1, without.1);
    pair.settle(0);
}
