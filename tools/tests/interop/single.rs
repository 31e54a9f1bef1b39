//! One conversion point between a Linux MPTCP host and a plain one.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::turn;
use pcap_tests::link::parse;
use pcap_tests::netns::Namespace;
use pcap_tests::peer::{self, Capture, EndpointRole};
use pcap_tests::topology::{CLIENT, Reference, SERVER, dmcp_kernel, on_link, umcp_kernel};
use pcap_tests::traffic::{self, Amount, Direction, Transfer, Transport};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Links that drop nothing: their queue holds more than any window. (The other ports use AF_PACKET: with XDP a veth
/// has a ring of 256 frames, and an unshaped sender in the kernel overruns it.)
pub const LINK: &str = "100mbit,2ms,0,32MB";
const SIZE: u64 = 100_000_000;

/// Whether both sides put a checksum on every mapping.
#[derive(Clone, Copy, PartialEq)]
enum Checksums {
    Off,
    On,
}

pub fn topology() -> Reference {
    let link = parse::profile(LINK).expect("a link");
    Reference::build(&[[link; 2], [link; 2]]).expect("namespaces (these tests need root)")
}

/// Plait's side of the links is the dMCP's namespace: it ends the client's MPTCP and opens TCP to the server.
pub const TERMINATE: &str = r#"
[[port]]
name = "wan1"
device = "wan1"
addresses = ["10.0.1.2/24"]
[[port]]
name = "wan2"
device = "wan2"
addresses = ["10.0.2.2/24"]
[[port]]
name = "server"
device = "srv0"
io = "af-packet"
addresses = ["192.168.9.3/24"]
[[path]]
address = "10.0.2.2"
flags = ["signal"]
[[rule]]
name = "mptcp-clients"
port = "wan1"
to = "192.168.9.0/24"
action = "terminate"
source = "replace"
[convert]
source-addresses = ["192.168.9.3"]
"#;

/// Plait's side is the uMCP's namespace: it ends the client's TCP and opens MPTCP to the server itself.
pub const DIRECT: &str = r#"
[[port]]
name = "lan"
device = "lan0"
io = "af-packet"
[[port]]
name = "wan1"
device = "wan1"
addresses = ["10.0.1.1/24"]
[[port]]
name = "wan2"
device = "wan2"
addresses = ["10.0.2.1/24"]
[[path]]
address = "10.0.1.1"
flags = ["subflow"]
[[path]]
address = "10.0.2.1"
flags = ["subflow"]
reach = "10.0.2.0/24"
[[rule]]
name = "to-mptcp-servers"
port = "lan"
from = "192.168.1.0/24"
to = "10.0.1.0/24"
action = "direct"
source = "replace"
[convert]
source-addresses = ["10.0.1.1"]
"#;

fn with_checksums(config: &str, checksums: Checksums) -> String {
    match checksums {
        Checksums::Off => config.to_owned(),
        Checksums::On => format!("{config}\n[mptcp]\nchecksum-enabled = true\n"),
    }
}

/// Captures of all legs, taken at the kernels' ends and judged when the transfers are over.
pub struct Witness<'a> {
    captures: Vec<(Place<'a>, Capture)>,
}

/// A kernel's end of a leg: its namespace, its device, its addresses there.
pub type Place<'a> = (&'a Namespace, &'a str, Vec<IpAddr>);

impl<'a> Witness<'a> {
    pub fn start(places: [Place<'a>; 3], scratch: &Path) -> Witness<'a> {
        let captures = places.map(|place| {
            let (namespace, device) = (place.0, place.1);
            let file = scratch.join(format!("{}-{device}.pcap", namespace.name()));
            let capture = Capture::start(namespace, device, &file).expect("starting tcpdump");
            (place, capture.expect("tcpdump is one of the packages the tests need"))
        });
        Witness { captures: captures.into() }
    }

    /// Nothing malformed; nothing sent twice, least of all by Plait. The kernel probes for a lost tail when nothing was
    /// heard for a few milliseconds (RFC 8985 7), which a process that waits for its turn on a busy machine exceeds:
    /// these probes, and only these, are forgiven.
    pub fn judge(self) {
        for ((namespace, device, kernel), capture) in self.captures {
            let name = format!("{}-{device}", namespace.name());
            let file = capture.finish().expect("a capture");
            let lines = |filter: &str| {
                peer::tshark(&file, filter).expect("tshark runs").expect("tshark is installed")
            };
            assert!(lines("tcp").len() > 1000, "{name}: hardly anything captured");
            let malformed = lines("_ws.malformed");
            assert!(malformed.is_empty(), "{name}: malformed: {:#?}", &malformed[..1]);
            let again = "tcp.analysis.retransmission && tcp.flags.syn == 0";
            let kernel: Vec<String> = kernel.iter().map(IpAddr::to_string).collect();
            let kernel = format!("ip.src in {{{}}}", kernel.join(", "));
            let ours = lines(&format!("{again} && !({kernel})"));
            assert!(ours.is_empty(), "{name}: {} sent again by Plait: {}", ours.len(), ours[0]);
            let theirs = lines(&format!("{again} && {kernel}"));
            let counters = peer::counters(namespace).expect("counters");
            let counted = |key: &str| counters.get(key).copied().unwrap_or(0);
            assert_eq!(counted("TcpExtTCPTimeouts"), 0, "{name}: the kernel's timer expired");
            assert_eq!(counted("TcpExtTCPFastRetrans"), 0, "{name}: the kernel missed segments");
            let probes = counted("TcpExtTCPLossProbes");
            let told =
                format!("{name}: {} sent again by the kernel, {probes} probes", theirs.len());
            assert!(theirs.len() as u64 <= probes, "{told}: {}", theirs[0]);
        }
    }
}

pub fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, name: &str) -> u64 {
    let key = format!("MPTcpExt{name}");
    after.get(&key).copied().unwrap_or(0) - before.get(&key).copied().unwrap_or(0)
}

/// The kernel found nothing wrong with what Plait sent.
pub fn assert_kernel_content(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) {
    for bad in [
        "DataCsumErr",
        "DSSNotMatching",
        "DSSNoMatchTCP",
        "InfiniteMapRx",
        "MPFailTx",
        "MPFailRx",
        "MPRstTx",
        "MPRstRx",
        "MPJoinSynAckHMacFailure",
        "MPJoinAckHMacFailure",
        "AddAddrDrop",
        "MPCapableFallbackACK",
        "MPCapableFallbackSYNACK",
        "DssFallback",
        "MPTCPRetrans",
    ] {
        assert_eq!(grown(before, after, bad), 0, "{bad} of the kernel");
    }
}

fn linux_client(checksums: Checksums) {
    let _turn = turn();
    let net = topology();
    let scratch = Scratch::new("linux-client");
    let host = &net.umcp;
    assert!(peer::speaks_mptcp(host), "this kernel has no MPTCP to test against");
    let enabled = if checksums == Checksums::On { "1" } else { "0" };
    host.set_sysctl("net.mptcp.checksum_enabled", enabled).expect("the sysctl");
    peer::set_mptcp_limits(host, 2, 2).expect("limits");
    peer::add_mptcp_endpoint(host, umcp_kernel(1), EndpointRole::Subflow).expect("an endpoint");
    let config = with_checksums(TERMINATE, checksums);
    let mut plait = Appliance::start(&net.dmcp, "single", &config, &scratch);
    let witness = Witness::start(
        [
            (host, "wan1", vec![umcp_kernel(0)]),
            (host, "wan2", vec![umcp_kernel(1)]),
            (&net.server, "eth0", vec![SERVER]),
        ],
        scratch.path(),
    );
    let before = peer::counters(host).expect("counters");
    for (port, direction) in [(8001, Direction::Up), (8002, Direction::Down)] {
        let transfer = Transfer {
            client_speaks: Transport::Mptcp,
            ..Transfer::tcp(SocketAddr::new(SERVER, port), direction, Amount::Octets(SIZE))
        };
        let outcome = traffic::run(host, &net.server, transfer);
        plait.check_alive();
        let outcome = outcome.unwrap_or_else(|e| panic!("{direction:?}: {e}\n{}", plait.log()));
        assert!(outcome.intact(), "{direction:?}: {outcome:?}");
        assert_eq!(outcome.sent, SIZE);
    }
    let after = peer::counters(host).expect("counters");
    assert_eq!(grown(&before, &after, "MPCapableSYNTX"), 2);
    assert_eq!(grown(&before, &after, "MPCapableSYNACKRX"), 2);
    assert!(grown(&before, &after, "MPJoinSynAckRx") >= 2, "a second subflow each");
    assert!(grown(&before, &after, "AddAddr") >= 2, "the announced address was understood");
    assert_kernel_content(&before, &after);
    assert_both_links_carried(&net);
    witness.judge();
}

fn linux_server(checksums: Checksums) {
    let _turn = turn();
    let net = topology();
    let scratch = Scratch::new("linux-server");
    let host = &net.dmcp;
    let enabled = if checksums == Checksums::On { "1" } else { "0" };
    host.set_sysctl("net.mptcp.checksum_enabled", enabled).expect("the sysctl");
    peer::set_mptcp_limits(host, 2, 2).expect("limits");
    peer::add_mptcp_endpoint(host, dmcp_kernel(1), EndpointRole::Signal).expect("an endpoint");
    let config = with_checksums(DIRECT, checksums);
    let mut plait = Appliance::start(&net.umcp, "direct", &config, &scratch);
    let witness = Witness::start(
        [
            (host, "wan1", vec![dmcp_kernel(0)]),
            (host, "wan2", vec![dmcp_kernel(1)]),
            (&net.client, "eth0", vec![CLIENT]),
        ],
        scratch.path(),
    );
    let before = peer::counters(host).expect("counters");
    for (port, direction) in [(8001, Direction::Up), (8002, Direction::Down)] {
        let transfer = Transfer {
            server_speaks: Transport::Mptcp,
            ..Transfer::tcp(SocketAddr::new(dmcp_kernel(0), port), direction, Amount::Octets(SIZE))
        };
        let outcome = traffic::run(&net.client, host, transfer);
        plait.check_alive();
        let outcome = outcome.unwrap_or_else(|e| panic!("{direction:?}: {e}\n{}", plait.log()));
        assert!(outcome.intact(), "{direction:?}: {outcome:?}");
        assert_eq!(outcome.sent, SIZE);
    }
    let after = peer::counters(host).expect("counters");
    assert_eq!(grown(&before, &after, "MPCapableSYNRX"), 2);
    assert_eq!(grown(&before, &after, "MPCapableACKRX"), 2);
    assert!(grown(&before, &after, "MPJoinAckRx") >= 2, "a second subflow each");
    assert!(grown(&before, &after, "EchoAdd") >= 2, "Plait echoed the announced address");
    assert_kernel_content(&before, &after);
    assert_both_links_carried(&net);
    witness.judge();
}

/// Each link moved a good part of the 2 x 100 MB: the second subflow is not there for show.
fn assert_both_links_carried(net: &Reference) {
    for (i, link) in net.links.iter().enumerate() {
        let octets: u64 = link.namespace().run(|| {
            let text =
                std::fs::read_to_string("/proc/thread-self/net/dev").expect("device counters");
            let line = text.lines().find(|l| l.trim_start().starts_with("a:")).expect("device a");
            let fields: Vec<u64> =
                line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
            fields[0] + fields[8]
        });
        assert!(octets > SIZE / 2, "link {}: only {octets} octets (on {})", i + 1, on_link(i, 0));
    }
}

#[test]
fn a_linux_mptcp_client_reaches_a_plain_server() {
    linux_client(Checksums::Off);
}

#[test]
fn a_linux_mptcp_client_with_checksums_reaches_a_plain_server() {
    linux_client(Checksums::On);
}

#[test]
fn a_plain_client_reaches_a_linux_mptcp_server() {
    linux_server(Checksums::Off);
}

#[test]
fn a_plain_client_reaches_a_linux_mptcp_server_with_checksums() {
    linux_server(Checksums::On);
}
