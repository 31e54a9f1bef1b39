//! How connections begin, with the Linux kernel as client and as server: Fast Open (RFC 7413) and SYN cookies.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::single::topology;
use crate::turn;
use pcap_tests::netns::Namespace;
use pcap_tests::peer;
use pcap_tests::topology::{SERVER, dmcp_plait};
use pcap_tests::traffic::{self, Amount, Direction, PATIENCE, Transfer, Transport};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

const SIZE: u64 = 2_000_000;
const PORT: u16 = 8001;
/// Linux's flag that makes sending connect, with the text in the SYN if there is a cookie.
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// A relay between the two sides.
fn relay(tcp: &str) -> String {
    format!(
        r#"
[[port]]
name = "wan1"
device = "wan1"
addresses = ["10.0.1.2/24"]
[[port]]
name = "server"
device = "srv0"
io = "af-packet"
addresses = ["192.168.9.3/24"]
[[service]]
mode = "relay"
listen = "10.0.1.2:80"
server = "192.168.9.2:8001"
connect = "tcp"
[tcp]
{tcp}
"#
    )
}

fn counter(namespace: &Namespace, name: &str) -> u64 {
    peer::counters(namespace).expect("counters").get(name).copied().unwrap_or(0)
}

fn count(plait: &Appliance, name: &str) -> u64 {
    let all = plait.show("counters");
    all[name].as_u64().unwrap_or_else(|| panic!("no {name} in {all}"))
}

/// The client's kernel sends its request with the SYN once it has the relay's cookie, and the relay passes it on with its
/// own SYN once it has the server's.
#[test]
fn a_linux_client_and_a_linux_server_fast_open_through_a_relay() {
    let _turn = turn();
    let net = topology();
    let scratch = Scratch::new("fast-open");
    net.umcp.set_sysctl("net.ipv4.tcp_fastopen", "1").expect("a client");
    // Every listener takes part: 2 and 0x400.
    net.server.set_sysctl("net.ipv4.tcp_fastopen", "1026").expect("a server");
    let config = relay("fast-open = [\"client\", \"server\"]");
    let plait = Appliance::start(&net.dmcp, "fast-open", &config, &scratch);
    let to = SocketAddr::new(dmcp_plait(0), 80);
    let listener = net.server.run(|| TcpListener::bind((SERVER, PORT))).expect("a listener");
    let rounds = 4;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                let (mut stream, _) = listener.accept().expect("a connection");
                stream.set_read_timeout(Some(PATIENCE)).expect("an option");
                let mut request = Vec::new();
                stream.read_to_end(&mut request).expect("the request");
                stream.write_all(&request).expect("the answer");
            }
        });
        for round in 0..rounds {
            let request = format!("request {round}").repeat(40);
            let socket = net.umcp.run(|| -> std::io::Result<Socket> {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                let sent =
                    socket.send_to_with_flags(request.as_bytes(), &to.into(), MSG_FASTOPEN)?;
                assert_eq!(sent, request.len());
                Ok(socket)
            });
            let mut stream = TcpStream::from(socket.expect("a connection"));
            stream.set_read_timeout(Some(PATIENCE)).expect("an option");
            stream.shutdown(Shutdown::Write).expect("a shutdown");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("the answer");
            assert_eq!(answer, request, "once, and all of it");
        }
    });
    let later = rounds - 1;
    assert_eq!(counter(&net.umcp, "TcpExtTCPFastOpenActive"), later, "the client's kernel");
    assert_eq!(counter(&net.umcp, "TcpExtTCPFastOpenActiveFail"), 0);
    assert_eq!(
        (count(&plait, "TCPFastOpenCookieReqd"), count(&plait, "TCPFastOpenPassive")),
        (1, later)
    );
    assert_eq!(
        (count(&plait, "TCPFastOpenActive"), count(&plait, "TCPFastOpenActiveFail")),
        (later, 0)
    );
    assert_eq!(counter(&net.server, "TcpExtTCPFastOpenPassive"), later, "the server's kernel");
    assert_eq!(counter(&net.server, "TcpExtTCPFastOpenPassiveFail"), 0);
}

/// Every SYN is answered by a cookie: the kernel notices nothing, whether it speaks TCP or MPTCP.
#[test]
fn linux_clients_of_tcp_and_mptcp_begin_with_a_syn_cookie() {
    let _turn = turn();
    let net = topology();
    assert!(peer::speaks_mptcp(&net.umcp), "this kernel has no MPTCP to test against");
    let scratch = Scratch::new("cookies");
    let config = relay("syn-cookies = \"always\"");
    let mut plait = Appliance::start(&net.dmcp, "cookies", &config, &scratch);
    let through = Some(SocketAddr::new(dmcp_plait(0), 80));
    for client_speaks in [Transport::Tcp, Transport::Mptcp] {
        for direction in [Direction::Up, Direction::Down] {
            let at = SocketAddr::new(SERVER, PORT);
            let transfer = Transfer {
                client_speaks,
                through,
                ..Transfer::tcp(at, direction, Amount::Octets(SIZE))
            };
            let outcome = traffic::run(&net.umcp, &net.server, transfer);
            plait.check_alive();
            let outcome = outcome.unwrap_or_else(|e| panic!("{direction:?}: {e}\n{}", plait.log()));
            assert!(outcome.intact() && outcome.sent == SIZE, "{direction:?}: {outcome:?}");
        }
    }
    assert_eq!((count(&plait, "SyncookiesSent"), count(&plait, "SyncookiesRecv")), (4, 4));
    assert_eq!(count(&plait, "SyncookiesFailed"), 0);
    assert_eq!(counter(&net.umcp, "MPTcpExtMPCapableSYNACKRX"), 2, "MPTCP it is");
    for bad in
        ["MPCapableFallbackSYNACK", "MPCapableDataFallback", "MPFallbackTokenInit", "DssFallback"]
    {
        assert_eq!(counter(&net.umcp, &format!("MPTcpExt{bad}")), 0, "{bad}");
    }
}
