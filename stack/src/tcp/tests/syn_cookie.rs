//! SYN cookies (RFC 4987 3.6): a client that runs our own TCP, and a server that keeps nothing of its SYN.

use super::super::ecn::EcnState;
use super::super::*;
use crate::buf::{Chain, Pool};
use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, Endpoint, FlowTuple, Options, Segment, SeqNum, SynOptions, UnscaledWindow,
};
use alloc::rc::Rc;

const SLOT: u64 = 64_000;
const OFFSET: u32 = 0x1234_5678;
const NOTE: u8 = 0;

fn flow(port: u16) -> FlowTuple {
    FlowTuple {
        local: Endpoint::new("10.0.0.1".parse().unwrap(), 80),
        remote: Endpoint::new("192.168.1.2".parse().unwrap(), port),
    }
}

/// A server, and what its client is told of the time.
struct Server {
    cfg: Rc<TcpConfig>,
    jar: CookieJar,
    rng: Rng,
    now: Instant,
}

impl Server {
    fn new() -> Server {
        Server {
            cfg: Rc::new(TcpConfig::default()),
            jar: CookieJar::default(),
            rng: Rng::from_number(1),
            now: Instant::from_millis(1_000_000),
        }
    }

    fn answer(&mut self, flow: FlowTuple, syn: &Segment) -> Option<Segment> {
        self.jar.answer(&self.cfg, flow, syn, (OFFSET, NOTE), &mut self.rng, self.now)
    }

    fn check(&self, flow: FlowTuple, ack: &Segment) -> Option<Proven> {
        self.jar.check(&self.cfg, flow, ack, (OFFSET, NOTE), self.now)
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// A client with this configuration connects; its third segment.
    fn third_ack(&mut self, cfg: TcpConfig) -> (Stream, Segment) {
        let mut client = Stream::connect(
            &Rc::new(cfg),
            Opening { iss: SeqNum(77), ts_offset: 5, path_mss: u16::MAX, default_mss: 536 },
            self.now,
        );
        let syn = client.poll_transmit(self.now).unwrap().segment;
        let syn_ack = self.answer(flow(4000), &syn).expect("a cookie");
        assert_eq!((syn_ack.control, syn_ack.ack), (Control::Syn, Some(SeqNum(78))));
        client.on_segment(syn_ack, self.now);
        assert_eq!(client.phase(), Phase::Open);
        let ack = client.poll_transmit(self.now).unwrap().segment;
        (client, ack)
    }

    /// The flow that this segment brings back, fed with it.
    fn establish(&self, ack: &Segment) -> Stream {
        let proven = self.check(flow(4000), ack).expect("one of ours");
        let mut stream = Stream::proven(&self.cfg, &proven, self.now);
        assert_eq!(stream.deadline(), None, "no SYN/ACK is sent again");
        stream.on_segment(ack.clone(), self.now);
        assert_eq!(stream.phase(), Phase::Open);
        stream
    }
}

fn syn(options: SynOptions) -> Segment {
    Segment {
        seq: SeqNum(100),
        control: Control::Syn,
        window: UnscaledWindow(1000),
        options: Options::Syn(options),
        ..Default::default()
    }
}

/// What a client would answer to that.
fn ack_of(syn_ack: &Segment) -> Segment {
    Segment {
        seq: syn_ack.ack.unwrap(),
        ack: Some(syn_ack.seq + 1),
        window: UnscaledWindow(1000),
        ..Default::default()
    }
}

fn text(octets: &[u8]) -> Chain {
    Chain::copy_from(&Pool::new(4, 256), 0, octets).unwrap()
}

#[test]
fn scale_sack_and_timestamps_survive_in_the_timestamp() {
    let mut server = Server::new();
    let cfg = TcpConfig { receive_buffer: 8 << 20, ..TcpConfig::default() };
    let (mut client, ack) = server.third_ack(cfg);
    assert!(ack.options.timestamps().is_some());
    let mut stream = server.establish(&ack);
    let tcb = stream.tcb().unwrap();
    assert!(tcb.agreed.sack && tcb.agreed.timestamps.is_some());
    assert_eq!(tcb.agreed.snd_scale.shift(), 8, "what 8 MiB need");
    assert_eq!(tcb.agreed.rcv_scale, client.tcb().unwrap().agreed.snd_scale);
    assert_eq!(tcb.agreed.peer_mss, 1460);
    // RFC 7323 5.3: what the flow sends next is not older than the SYN/ACK.
    stream.send(text(b"hello"));
    let data = stream.poll_transmit(server.now).unwrap().segment;
    assert_eq!(client.on_segment(data, server.now), None);
    assert_eq!(client.recv().unwrap().to_vec(), b"hello");
}

#[test]
fn without_timestamps_there_is_no_scale_and_no_sack() {
    let mut server = Server::new();
    let (client, ack) = server.third_ack(TcpConfig { timestamps: false, ..Default::default() });
    let stream = server.establish(&ack);
    for end in [&client, &stream] {
        let agreed = &end.tcb().unwrap().agreed;
        assert!(!agreed.sack && agreed.timestamps.is_none());
        assert_eq!((agreed.snd_scale.shift(), agreed.rcv_scale.shift()), (0, 0));
    }
}

/// RFC 3168 6.1.1: both ends know whether they agreed, whatever the client asked for.
#[test]
fn ecn_survives_as_that_of_rfc_3168() {
    for (mode, timestamps, kept) in [
        (EcnMode::On, true, true),
        (EcnMode::Accurate, true, true),
        (EcnMode::Accept, true, false),
        (EcnMode::On, false, false),
    ] {
        let mut server = Server::new();
        let cfg = TcpConfig { ecn: mode, timestamps, ..Default::default() };
        let (client, ack) = server.third_ack(cfg);
        let stream = server.establish(&ack);
        for end in [&client, &stream] {
            let ecn = end.tcb().unwrap().agreed.ecn;
            assert_eq!(ecn != EcnState::Off, kept, "{mode:?}");
            assert!(!matches!(ecn, EcnState::Accurate(..)), "there is no room for its counters");
        }
    }
}

/// MUST-16: never more than the peer announced.
#[test]
fn the_mss_is_rounded_down() {
    let mut server = Server::new();
    for (announced, known) in
        [(Some(1459), 1440), (Some(9000), 8960), (Some(1380), 1360), (None, 536), (Some(300), 216)]
    {
        let options = SynOptions { mss: announced, ..Default::default() };
        let syn_ack = server.answer(flow(4000), &syn(options)).unwrap();
        let proven = server.check(flow(4000), &ack_of(&syn_ack)).unwrap();
        let Options::Syn(options) = proven.syn.options else { panic!("a SYN") };
        assert_eq!(options.mss, Some(known), "{announced:?}");
    }
    let tiny = SynOptions { mss: Some(100), ..Default::default() };
    assert!(server.answer(flow(4000), &syn(tiny)).is_none());
}

#[test]
fn a_cookie_is_good_for_two_slots() {
    let mut server = Server::new();
    server.now = Instant::from_millis(SLOT * 1000 + 10);
    let syn_ack = server.answer(flow(4000), &syn(SynOptions::default())).unwrap();
    server.later(2 * SLOT - 11);
    assert!(server.jar.is_open(server.now));
    assert!(server.check(flow(4000), &ack_of(&syn_ack)).is_some());
    server.later(1);
    assert!(server.check(flow(4000), &ack_of(&syn_ack)).is_none());
    server.later(SLOT);
    assert!(!server.jar.is_open(server.now), "no segment is worth a look any more");
    // The five bits come round.
    server.later(29 * SLOT);
    assert!(server.check(flow(4000), &ack_of(&syn_ack)).is_none());
}

#[test]
fn a_secret_that_has_been_replaced_still_checks_the_last_slot_of_its_own() {
    let mut server = Server::new();
    server.now = Instant::from_millis(SLOT * 32 * 9 - 1);
    let old = server.answer(flow(4000), &syn(SynOptions::default())).unwrap();
    server.later(1);
    let new = server.answer(flow(4001), &syn(SynOptions::default())).unwrap();
    assert!(server.check(flow(4000), &ack_of(&old)).is_some());
    assert!(server.check(flow(4001), &ack_of(&new)).is_some());
}

#[test]
fn what_is_not_ours_is_not_taken() {
    let mut server = Server::new();
    let syn_ack = server.answer(flow(4000), &syn(SynOptions::default())).unwrap();
    let ack = ack_of(&syn_ack);
    assert!(server.check(flow(4000), &ack).is_some());
    assert!(server.check(flow(4001), &ack).is_none(), "another client's");
    let forged = |change: u32| Segment { ack: ack.ack.map(|ack| ack + change), ..ack.clone() };
    let good = (1..1000).filter(|change| server.check(flow(4000), &forged(*change)).is_some());
    assert_eq!(good.count(), 0, "the MAC has 24 bits");
    let later = Segment { seq: ack.seq + 1, ..ack.clone() };
    assert!(server.check(flow(4000), &later).is_none(), "not the first segment after the SYN");
    for control in [Control::Syn, Control::Rst] {
        assert!(server.check(flow(4000), &Segment { control, ..ack.clone() }).is_none());
    }
    server.cfg = Rc::new(TcpConfig { receive_buffer: 64 << 20, ..TcpConfig::default() });
    assert!(server.check(flow(4000), &ack).is_none(), "given with another window scale");
    let fresh = CookieJar::default();
    assert!(!fresh.is_open(server.now));
    assert!(fresh.check(&server.cfg, flow(4000), &ack, (OFFSET, NOTE), server.now).is_none());
}

/// The third segment is lost: the next has the same numbers, and text.
#[test]
fn the_first_text_brings_the_cookie_as_well() {
    let mut server = Server::new();
    let (mut client, _lost) = server.third_ack(TcpConfig::default());
    client.send(text(b"GET /"));
    let data = client.poll_transmit(server.now).unwrap().segment;
    let mut stream = server.establish(&data);
    assert_eq!(stream.recv().unwrap().to_vec(), b"GET /");
    client.close();
    let fin = client.poll_transmit(server.now).unwrap().segment;
    stream.on_segment(fin, server.now);
    assert!(stream.recv_finished());
}

/// RFC 6298 2.1: nothing was measured, and nothing was lost either.
#[test]
fn the_first_timeout_is_the_initial_one() {
    let mut server = Server::new();
    let (_, ack) = server.third_ack(TcpConfig::default());
    let stream = server.establish(&ack);
    assert_eq!(stream.tcb().unwrap().rto(), Duration::from_secs(1));
}
