//! One connection between the kernels of two namespaces, held open at both ends by the test, and the hosts' counters.
#![forbid(unsafe_code)]

use pcap_tests::netns::Namespace;
use pcap_tests::peer;
use pcap_tests::topology::Reference;
use pcap_tests::traffic::{self, PATIENCE, Transport};
use socket2::Socket;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// A connection's two ends.
pub struct Conversation {
    pub client: TcpStream,
    pub server: TcpStream,
    /// Whom the server accepted.
    pub seen: SocketAddr,
    /// Who the client is.
    pub client_at: SocketAddr,
    /// The kernel gives joins to the listener: none would succeed without it.
    _listener: Socket,
}

impl Conversation {
    /// The client connects to `to`, the server accepts at `at`.
    pub fn open(
        (client, client_speaks): (&Namespace, Transport),
        to: SocketAddr,
        (server, server_speaks): (&Namespace, Transport),
        at: SocketAddr,
    ) -> Conversation {
        let listener = server.run(|| traffic::listen(at, server_speaks, None)).expect("a listener");
        let client = client
            .run(|| traffic::connect(to, client_speaks, None))
            .unwrap_or_else(|e| panic!("connecting to {to}: {e}"));
        let (server, seen) = listener.accept().unwrap_or_else(|e| panic!("accepting at {at}: {e}"));
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE)).expect("an option");
            socket.set_write_timeout(Some(PATIENCE)).expect("an option");
        }
        let client_at = client.local_addr().expect("an address").as_socket().expect("an IP socket");
        let seen = seen.as_socket().expect("an IP socket");
        Conversation {
            client: client.into(),
            server: server.into(),
            seen,
            client_at,
            _listener: listener,
        }
    }

    /// `len` octets each way, one after the other.
    pub fn pass_both_ways(&self, len: usize) {
        pass(&self.client, &self.server, len);
        pass(&self.server, &self.client, len);
    }

    /// Both ends close, and both see the other's end of file.
    pub fn close(self) {
        self.client.shutdown(Shutdown::Write).expect("a shutdown");
        assert_ended(&self.server);
        self.server.shutdown(Shutdown::Write).expect("a shutdown");
        assert_ended(&self.client);
    }
}

/// `len` octets go from one socket to the other, and arrive as they were sent.
pub fn pass(mut from: &TcpStream, mut to: &TcpStream, len: usize) {
    let mut state = len as u64;
    let octets: Vec<u8> = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect();
    let mut arrived = vec![0; len];
    thread::scope(|scope| {
        let writing = scope.spawn(|| from.write_all(&octets));
        to.read_exact(&mut arrived).expect("the octets");
        writing.join().expect("no panic").expect("writing");
    });
    assert!(arrived == octets, "{len} octets arrived altered");
}

/// The other end has closed its direction, and nothing was left in it.
pub fn assert_ended(mut stream: &TcpStream) {
    let mut more = [0];
    assert_eq!(stream.read(&mut more).expect("an end of file"), 0, "more than was sent: {more:?}");
}

/// The MPTCP counters of a namespace, and how they have grown since.
pub struct Since<'a>(&'a Namespace, BTreeMap<String, u64>);

impl<'a> Since<'a> {
    pub fn now(namespace: &'a Namespace) -> Since<'a> {
        Since(namespace, peer::counters(namespace).expect("counters"))
    }

    pub fn grown(&self, name: &str) -> u64 {
        let now = peer::counters(self.0).expect("counters");
        let key = format!("MPTcpExt{name}");
        let value = |all: &BTreeMap<String, u64>| all.get(&key).copied().unwrap_or(0);
        value(&now) - value(&self.1)
    }

    /// Waits until it has grown.
    pub fn await_growth(&self, name: &str) {
        await_that(name, || self.grown(name) > 0, String::new);
    }

    /// What a kernel counts when it finds fault with a peer, or gives MPTCP up.
    pub fn assert_content(&self) {
        for bad in [
            "DataCsumErr",
            "DSSNotMatching",
            "DSSNoMatchTCP",
            "InfiniteMapRx",
            "InfiniteMapTx",
            "MPFailTx",
            "MPFailRx",
            "MPJoinSynAckHMacFailure",
            "MPJoinAckHMacFailure",
            "AddAddrDrop",
            "RmAddrDrop",
            "MPCapableFallbackACK",
            "MPCapableFallbackSYNACK",
            "MPCapableDataFallback",
            "DSSCorruptionFallback",
            "DssFallback",
            "FallbackFailed",
        ] {
            assert_eq!(self.grown(bad), 0, "{bad} of {}", self.0.name());
        }
        let now = peer::counters(self.0).expect("counters");
        for bad in ["TcpInCsumErrors", "TcpInErrs"] {
            assert_eq!(now.get(bad), self.1.get(bad), "{bad} of {}", self.0.name());
        }
    }
}

/// Waits for what happens soon; `state` tells what there is instead.
pub fn await_that(what: &str, happened: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !happened() {
        assert!(Instant::now() < deadline, "never: {what}: {}", state());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Octets that have crossed each link so far: from the uMCP, towards it.
pub fn carried(net: &Reference, link: usize) -> [u64; 2] {
    net.links[link].namespace().run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("device counters");
        let line = text.lines().find(|l| l.trim_start().starts_with("a:")).expect("device a");
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
        [fields[0], fields[8]]
    })
}
