//! What comes with a SYN at a dMCP goes on with its own, to servers that take it (RFC 7413 4.1.3, SPEC 3.3).
#![forbid(unsafe_code)]

use super::*;
use crate::buf::{Chain, Pool};
use crate::mptcp::{Connection, Key, MptcpConfig};
use crate::rng::Rng;
use crate::shard::{Shard, ShardConfig};
use crate::tcp::{FastOpenRoles, TcpConfig};
use crate::time::Instant;
use crate::wire::plain_mode::{Convert, Target};
use crate::wire::{
    Control, Endpoint, FastOpen, FastOpenCookie, FlowTuple, Options, Parsed, RxChecksum, RxPacket,
    Segment, SeqNum, SynOptions, TxPacket, UnscaledWindow, emit, parse,
};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::IpAddr;

fn end(text: &str) -> Endpoint {
    let at: core::net::SocketAddr = text.parse().unwrap();
    Endpoint::new(at.ip(), at.port())
}

/// A dMCP, and everybody else by hand.
struct Bench {
    shard: Shard<Bridge>,
    pool: Pool,
    rng: Rng,
    now: Instant,
    port: u16,
}

impl Bench {
    fn new(fast_open: FastOpenRoles) -> Bench {
        let dmcp: IpAddr = "10.0.1.2".parse().unwrap();
        let config = McpConfig {
            tcp: TcpConfig { fast_open, ..TcpConfig::default() },
            services: Vec::from([Service::Explicit {
                addr: dmcp,
                port: Some(5123),
                source: SourceMode::Replace,
            }]),
            source_addresses: Vec::from([dmcp]),
            ..McpConfig::default()
        };
        let pool = Pool::new(256, 2048);
        let owned = ShardConfig { owned: Vec::from([dmcp]), ..ShardConfig::default() };
        let shard = Shard::new(owned, config, pool.clone(), Rng::from_number(1));
        let (rng, now) = (Rng::from_number(2), Instant::from_millis(1000));
        Bench { shard, pool, rng, now, port: 4000 }
    }

    fn receive(&mut self, packet: &TxPacket) {
        let octets = Chain::copy_from(&self.pool, 0, &packet.to_vec()).unwrap();
        let packet = RxPacket { octets, checksum: RxChecksum::Valid, port: 0, gso_size: 0 };
        self.shard.ingest(&mut Vec::from([packet]), self.now);
    }

    /// What leaves for the server.
    fn transmit(&mut self) -> Vec<(FlowTuple, Segment)> {
        let mut tx = Vec::new();
        self.shard.transmit(&mut tx, 100, self.now);
        let read = |packet: TxPacket| {
            let octets = Chain::copy_from(&self.pool, 0, &packet.to_vec()).unwrap();
            let rx = RxPacket { octets, checksum: RxChecksum::Valid, port: 0, gso_size: 0 };
            match parse(rx) {
                Ok(Parsed::Tcp(flow, segment)) => (flow, segment),
                other => panic!("{other:?}"),
            }
        };
        tx.into_iter().map(read).filter(|(flow, _)| flow.local.port == 80).collect()
    }

    /// A client asks for the server, and says `text` with that; our SYN.
    fn ask(&mut self, text: &[u8]) -> (FlowTuple, Segment) {
        let server = end("192.0.2.1:80");
        let target = Target { addr: server.addr, port: Some(server.port) };
        let mut said = Convert { destination: Some(target), source: None }.write().to_vec();
        said.extend(text);
        self.port += 1;
        let flow = FlowTuple {
            local: Endpoint::new(end("10.0.1.1:1").addr, self.port),
            remote: end("10.0.1.2:5123"),
        };
        let chain = Chain::copy_from(&self.pool, 128, &said).unwrap();
        let (cfg, key) = (Rc::new(MptcpConfig::default().into()), Key(self.rng.u64()));
        let mut client = Connection::connect(cfg, key, flow, chain, &mut self.rng, self.now);
        let (flow, syn) = client.poll_transmit(&mut self.rng, self.now).unwrap();
        self.receive(&emit(flow, &syn.segment, 0));
        let mut sent = self.transmit();
        assert_eq!(sent.len(), 1);
        sent.pop().unwrap()
    }

    /// The server's SYN/ACK, and what follows it.
    fn answer(&mut self, flow: FlowTuple, ack: SeqNum, cookie: Option<FastOpenCookie>) -> Segment {
        let fast_open =
            cookie.map(|cookie| FastOpen { cookie: Some(cookie), ..Default::default() });
        let syn_ack = Segment {
            seq: SeqNum(9),
            ack: Some(ack),
            control: Control::Syn,
            window: UnscaledWindow(60_000),
            options: Options::Syn(SynOptions { mss: Some(1400), fast_open, ..Default::default() }),
            ..Default::default()
        };
        self.receive(&emit(flow, &syn_ack, 0));
        self.transmit().remove(0).1
    }
}

fn option(segment: &Segment) -> Option<FastOpen> {
    match &segment.options {
        Options::Syn(options) => options.fast_open,
        Options::Segment(_) => None,
    }
}

#[test]
fn the_octets_behind_the_elements_go_with_the_syn_once_the_server_gave_a_cookie() {
    let cookie = FastOpenCookie::new(&[5; 8]).unwrap();
    let mut b = Bench::new(FastOpenRoles { client: true, server: false });
    let (flow, syn) = b.ask(b"GET /1");
    assert_eq!((option(&syn), syn.text.len()), (Some(FastOpen::default()), 0), "it asks for one");
    let next = b.answer(flow, syn.seq + 1, Some(cookie));
    assert_eq!(next.text.to_vec(), b"GET /1", "as soon as there is somebody to hear it");
    let (flow, syn) = b.ask(b"GET /2");
    assert_eq!(option(&syn).and_then(|option| option.cookie), Some(cookie));
    assert_eq!(syn.text.to_vec(), b"GET /2");
    let next = b.answer(flow, syn.seq + 7, None);
    assert!(next.text.is_empty(), "it has all of it");
    // The third time it takes half of it.
    let (flow, syn) = b.ask(b"GET /3");
    let next = b.answer(flow, syn.seq + 4, None);
    assert_eq!((next.seq, next.text.to_vec()), (syn.seq + 4, b" /3".to_vec()));
    assert_eq!((b.shard.counters().TCPFastOpenActive, b.shard.counters().RelayedUp), (2, 18));
}

#[test]
fn without_fast_open_they_follow_the_handshake() {
    let mut b = Bench::new(FastOpenRoles::default());
    for _ in 0..2 {
        let (flow, syn) = b.ask(b"GET /");
        assert_eq!((option(&syn), syn.text.len()), (None, 0));
        let next = b.answer(flow, syn.seq + 1, None);
        assert_eq!(next.text.to_vec(), b"GET /");
    }
}
