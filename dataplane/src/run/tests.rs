use super::*;
use crate::neighbor::Identity;
use crate::port::{MemoryPort, Share};
use crate::steer::Steering;
use crossbeam::channel::unbounded;
use mailbox::{MAX_PACKETS, Mailbox, Note};
use stack::shard::Homes;
use stack::wire::{Endpoint, FlowTuple, Prefix, RxChecksum};
use std::collections::VecDeque;
use std::net::IpAddr;

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Keeps what arrives, sends what it was told to, passes on what is not TCP.
#[derive(Default)]
struct Script {
    seen: Vec<RxPacket>,
    send: VecDeque<TxPacket>,
    unreachable: Vec<(IpAddr, Unreachable)>,
    /// What came from other workers, what is for them, and in which order they were heard.
    crossed: Vec<RxPacket>,
    away: Vec<(u32, Away)>,
    told: Vec<String>,
}

impl Engine for Script {
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, _now: Instant) {
        self.seen.append(rx);
    }
    fn expire(&mut self, _now: Instant) {}
    fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, _now: Instant) {
        tx.extend(self.send.drain(..budget.min(self.send.len())));
    }
    fn on_unreachable(&mut self, packet: &TxPacket, why: Unreachable, _now: Instant) {
        self.unreachable.push((packet.flow.remote.addr, why));
    }
    fn deadline(&self) -> Option<Instant> {
        None
    }
    fn passed(&mut self, out: &mut Vec<RxPacket>) {
        let (tcp, other) =
            self.seen.drain(..).partition(|p| p.octets.parts()[0].bytes().get(9) == Some(&6));
        self.seen = tcp;
        out.extend::<Vec<_>>(other);
    }
    fn ingest_crossed(&mut self, rx: &mut Vec<RxPacket>, _now: Instant) {
        self.told.push(format!("{} packets", rx.len()));
        self.crossed.append(rx);
    }
    fn away(&mut self, out: &mut Vec<(u32, Away)>) {
        out.append(&mut self.away);
    }
    fn on_adopted(&mut self, flow: FlowTuple, by: u32) {
        self.told.push(format!("{} adopted by {by}", flow.remote.port));
    }
    fn on_released(&mut self, flow: FlowTuple, by: u32) {
        self.told.push(format!("{} released by {by}", flow.remote.port));
    }
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn worker(intercepts: bool) -> (Worker<Script>, MemoryPort) {
    let mailboxes = Arc::new([Mailbox::new().unwrap()]);
    worker_of(Crew::new(0, Homes::ALONE, mailboxes), intercepts)
}

/// Workers of one node.
fn workers<const N: usize>(intercepts: bool) -> [(Worker<Script>, MemoryPort); N] {
    let mailboxes: Arc<[Mailbox]> = (0..N).map(|_| Mailbox::new().unwrap()).collect();
    let homes = Homes { shards: N as u32, key: 0 };
    std::array::from_fn(|number| {
        worker_of(Crew::new(number as u32, homes, mailboxes.clone()), intercepts)
    })
}

fn worker_of(crew: Crew, intercepts: bool) -> (Worker<Script>, MemoryPort) {
    let (near, far) = MemoryPort::pair(64, [OURS, PEER]);
    let network = Prefix { addr: ip("10.0.0.1"), len: 24 };
    let slot = PortSlot {
        name: "lan".into(),
        device: "memory".into(),
        io: Io::Pnet,
        why: String::new(),
        capabilities: near.capabilities(),
        port: Box::new(near),
        mac: OURS,
        intercepts,
        pending: Vec::new(),
        watch: lost::Watch {
            config: PortConfig {
                name: "lan".into(),
                device: "memory".into(),
                io: None,
                queues: Vec::new(),
                owned: vec![network],
                gateways: Vec::new(),
                steering: Steering::default(),
            },
            owned: vec![network],
            share: Share::alone(),
            index: None,
            past: PortStats::default(),
            lost: None,
        },
    };
    let route = crate::route::Route { to: network, port: 0, via: None };
    let worker = Worker {
        engine: Script::default(),
        pool: Pool::new(256, 2048),
        ports: vec![slot],
        neighbors: Neighbors::new(vec![Identity { mac: OURS, owned: vec![network] }]),
        routes: Routes::new(vec![(network.addr, 0)], vec![route]),
        kernel_path: None,
        devices: lost::Devices {
            monitor: crate::port::LinkMonitor::new().unwrap(),
            noticed: false,
            look_at: Instant::ZERO,
            umem: None,
            kernel: Vec::new(),
        },
        commands: unbounded().1,
        crew,
        stop: Arc::default(),
        io_mode: IoMode::Interrupt,
        warnings: Vec::new(),
        stats: WorkerStats::default(),
        frames: Vec::new(),
        received: Vec::new(),
        crossed: Vec::new(),
        away: Vec::new(),
        sending: Vec::new(),
    };
    (worker, far)
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0];
    p.extend(from);
    p.extend(to);
    p.resize(40, 0);
    p
}

fn send(far: &mut MemoryPort, pool: &Pool, to: [u8; 6], packet: &[u8]) {
    let mut link: arrayvec::ArrayVec<u8, 14> = to.into_iter().chain(PEER).collect();
    link.extend([8, 0]);
    let body = TxBody::Whole(Chain::copy_from(pool, 0, packet).unwrap());
    far.transmit(&mut vec![TxFrame { link, body }]);
}

fn receive(far: &mut MemoryPort, pool: &Pool) -> Vec<Vec<u8>> {
    let mut rx = Vec::new();
    far.receive(pool, &mut rx);
    rx.iter().map(|frame| frame.octets.to_vec()).collect()
}

fn segment(text: usize, gso_size: u16, to: &str, pool: &Pool) -> TxPacket {
    use stack::wire::{Options, Segment, SegmentOptions, SeqNum, UnscaledWindow};
    let flow = FlowTuple {
        local: Endpoint::new(ip("10.0.0.1"), 1000),
        remote: Endpoint::new(ip(to), 2000),
    };
    let segment = Segment {
        seq: SeqNum(1),
        ack: Some(SeqNum(1)),
        control: Default::default(),
        push: false,
        window: UnscaledWindow(1000),
        options: Options::Segment(SegmentOptions::default()),
        text: Chain::copy_from(pool, 128, &vec![7; text]).unwrap(),
        ..Default::default()
    };
    stack::wire::emit(flow, &segment, gso_size)
}

#[test]
fn packets_for_us_reach_the_engine_without_their_link_layer() {
    let (mut w, mut far) = worker(false);
    let pool = Pool::new(64, 2048);
    send(&mut far, &pool, OURS, &ipv4(6, [10, 0, 0, 2], [10, 0, 0, 1]));
    send(&mut far, &pool, [9; 6], &ipv4(6, [10, 0, 0, 2], [10, 0, 0, 1]));
    send(&mut far, &pool, OURS, &ipv4(17, [10, 0, 0, 2], [10, 0, 0, 1]));
    assert!(w.turn(Instant::ZERO));
    assert_eq!(w.engine.seen.len(), 1);
    assert_eq!(w.engine.seen[0].octets.to_vec(), ipv4(6, [10, 0, 0, 2], [10, 0, 0, 1]));
    assert_eq!((w.stats().ignored, w.stats().unclaimed_dropped), (2, 0), "nobody's, and UDP to us");
    assert!(!w.turn(Instant::ZERO), "idle");
    send(&mut far, &pool, OURS, &ipv4(17, [10, 0, 0, 2], [203, 0, 113, 1]));
    w.turn(Instant::ZERO);
    assert_eq!(w.stats().unclaimed_dropped, 1, "there is no way to the kernel");
}

#[test]
fn a_super_segment_is_cut_for_a_port_that_cannot_and_its_checksums_are_right() {
    let (mut w, mut far) = worker(false);
    let pool = Pool::new(64, 2048);
    w.engine.send.push_back(segment(3000, 1400, "10.0.0.2", &w.pool));
    w.turn(Instant::ZERO);
    let request = receive(&mut far, &pool);
    assert_eq!((request.len(), &request[0][12..14]), (1, &[8, 6][..]), "asks for the neighbour");
    let mut peer = Neighbors::new(vec![Identity {
        mac: PEER,
        owned: vec![Prefix { addr: ip("10.0.0.2"), len: 24 }],
    }]);
    peer.on_frame(0, &request[0], Instant::ZERO);
    let (_, reply) = peer.poll_transmit().unwrap();
    let link = reply[..14].iter().copied().collect();
    let body = TxBody::Whole(Chain::copy_from(&pool, 0, &reply[14..]).unwrap());
    far.transmit(&mut vec![TxFrame { link, body }]);
    w.turn(Instant::ZERO);
    let frames = receive(&mut far, &pool);
    assert_eq!(frames.iter().map(|f| f.len() - 54).collect::<Vec<_>>(), [1400, 1400, 200]);
    for frame in frames {
        assert_eq!((&frame[..6], &frame[6..12]), (&PEER[..], &OURS[..]));
        let octets = Chain::copy_from(&pool, 0, &frame[14..]).unwrap();
        let packet = RxPacket { octets, checksum: Default::default(), port: 0, gso_size: 0 };
        assert!(matches!(stack::wire::parse(packet), Ok(stack::wire::Parsed::Tcp(..))));
    }
    assert_eq!(w.stats().segmented, 1);
    assert_eq!(w.pool.free(), 256, "no frame is kept");
}

#[test]
fn an_intercepted_peer_is_answered_where_it_came_from() {
    let (mut w, mut far) = worker(true);
    let pool = Pool::new(64, 2048);
    send(&mut far, &pool, OURS, &ipv4(6, [172, 16, 0, 9], [203, 0, 113, 1]));
    w.turn(Instant::ZERO);
    w.engine.send.push_back(segment(10, 0, "172.16.0.9", &w.pool));
    w.turn(Instant::ZERO);
    let frames = receive(&mut far, &pool);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][..6], PEER);
    w.engine.send.push_back(segment(10, 0, "172.16.0.10", &w.pool));
    w.turn(Instant::ZERO);
    assert_eq!(w.stats().no_route, 1);
    assert_eq!(w.engine.unreachable, [(ip("172.16.0.10"), Unreachable::Network)]);
}

#[test]
fn the_engine_hears_of_a_next_hop_that_does_not_answer() {
    let (mut w, mut far) = worker(false);
    let pool = Pool::new(64, 2048);
    w.engine.send.push_back(segment(0, 0, "10.0.0.77", &w.pool));
    let mut asked = 0;
    for ms in (0..4000).step_by(50) {
        w.turn(Instant::from_millis(ms));
        asked += receive(&mut far, &pool).len();
        let told = !w.engine.unreachable.is_empty();
        assert_eq!(told, ms >= 3000, "at {ms} ms: as soon and as late as the kernel tells it");
    }
    assert_eq!(w.engine.unreachable, [(ip("10.0.0.77"), Unreachable::Host)]);
    assert!(asked >= 3, "{asked} requests");
}

#[test]
fn a_ready_made_packet_leaves_as_it_is() {
    let (mut w, mut far) = worker(false);
    let pool = Pool::new(64, 2048);
    w.routes.learn(ip("172.16.0.9"), 0, PEER);
    let flow = segment(0, 0, "172.16.0.9", &pool).flow;
    let packet = stack::wire::emit_unreachable(Unreachable::Host, flow, stack::wire::SeqNum(7));
    let octets = packet.to_vec();
    w.engine.send.push_back(packet);
    w.turn(Instant::ZERO);
    let frames = receive(&mut far, &pool);
    assert_eq!(frames.iter().map(|f| f[14..].to_vec()).collect::<Vec<_>>(), [octets]);
}

#[test]
fn a_port_without_room_keeps_a_bounded_queue() {
    let (mut w, _far) = worker(true);
    w.routes.learn(ip("172.16.0.9"), 0, PEER);
    for _ in 0..MAX_PENDING + 64 + 10 {
        w.engine.send.push_back(segment(0, 0, "172.16.0.9", &w.pool));
    }
    w.turn(Instant::ZERO);
    w.turn(Instant::ZERO);
    assert_eq!(w.ports[0].pending.len(), MAX_PENDING);
    assert_eq!(w.stats().tx_overflow, 10);
}

fn flow(port: u16) -> FlowTuple {
    FlowTuple {
        local: Endpoint::new(ip("10.0.0.1"), 80),
        remote: Endpoint::new(ip("10.0.0.2"), port),
    }
}

#[test]
fn a_packet_crosses_to_another_worker_with_all_that_is_known_of_it() {
    let [(mut a, mut far), (mut b, mut beyond)] = workers(true);
    let pool = Pool::new(64, 2048);
    send(&mut far, &pool, OURS, &ipv4(6, [172, 16, 0, 9], [203, 0, 113, 1]));
    a.turn(Instant::ZERO);
    let mut packet = a.engine.seen.pop().unwrap();
    (packet.checksum, packet.gso_size) = (RxChecksum::Valid, 1400);
    a.engine.away.push((1, Away::Packet(packet)));
    a.turn(Instant::ZERO);
    assert_eq!((a.stats().crossed_out, a.pool.free()), (1, 256));
    assert!(b.turn(Instant::ZERO));
    let [crossed] = &b.engine.crossed[..] else { panic!("{:?}", b.engine.crossed) };
    assert_eq!(crossed.octets.to_vec(), ipv4(6, [172, 16, 0, 9], [203, 0, 113, 1]));
    assert_eq!((crossed.checksum, crossed.port, crossed.gso_size), (RxChecksum::Valid, 0, 1400));
    assert_eq!((b.stats().crossed_in, b.stats().crossed_dropped), (1, 0));
    b.engine.send.push_back(segment(10, 0, "172.16.0.9", &b.pool));
    b.turn(Instant::ZERO);
    let frames = receive(&mut beyond, &pool);
    assert_eq!(frames.len(), 1, "the way back came along");
    assert_eq!(frames[0][..6], PEER);
    assert!(!b.turn(Instant::ZERO), "idle");
}

#[test]
fn what_others_say_is_heard_before_their_packets_and_in_order() {
    let [(mut a, mut far), (mut b, _), (mut c, _)] = workers(false);
    let pool = Pool::new(64, 2048);
    send(&mut far, &pool, OURS, &ipv4(6, [10, 0, 0, 2], [10, 0, 0, 1]));
    a.turn(Instant::ZERO);
    let packet = a.engine.seen.pop().unwrap();
    // What needs the note comes first within the drain, and from another worker.
    a.engine.away.extend([(2, Away::Packet(packet)), (2, Away::Adopted(flow(7)))]);
    b.engine.away.extend([(2, Away::Released(flow(8))), (2, Away::Adopted(flow(8)))]);
    a.turn(Instant::ZERO);
    b.turn(Instant::ZERO);
    c.turn(Instant::ZERO);
    let told = ["7 adopted by 0", "8 released by 1", "8 adopted by 1", "1 packets"];
    assert_eq!(c.engine.told, told);
}

/// Receives nothing: looks, when it is to send, whether the other worker has been told.
struct Witness {
    mailboxes: Arc<[Mailbox]>,
    noted: std::rc::Rc<std::cell::Cell<Option<bool>>>,
}

impl Port for Witness {
    fn receive(&mut self, _pool: &Pool, _rx: &mut Vec<RxFrame>) {}
    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        if self.noted.get().is_none() {
            self.noted.set(Some(!self.mailboxes[1].lie_down()));
        }
        tx.clear();
    }
    fn capabilities(&self) -> Capabilities {
        MemoryPort::pair(1, [OURS, PEER]).0.capabilities()
    }
    fn mac(&self) -> [u8; 6] {
        OURS
    }
    fn fds(&self) -> &[RawFd] {
        &[]
    }
    fn stats(&self) -> PortStats {
        PortStats::default()
    }
}

#[test]
fn others_are_told_before_anything_leaves() {
    let [(mut a, _far), _b] = workers(true);
    a.routes.learn(ip("172.16.0.9"), 0, PEER);
    let noted = std::rc::Rc::default();
    let witness =
        Witness { mailboxes: a.crew.mailboxes.clone(), noted: std::rc::Rc::clone(&noted) };
    a.ports[0].port = Box::new(witness);
    // So many that the port is given them before all are routed.
    for _ in 0..MAX_PENDING {
        a.engine.send.push_back(segment(0, 0, "172.16.0.9", &a.pool));
    }
    a.engine.away.push((1, Away::Adopted(flow(7))));
    a.turn(Instant::ZERO);
    assert_eq!(noted.get(), Some(true));
}

#[test]
fn a_full_mailbox_drops_packets_and_counts_them() {
    let [(mut a, mut far), (mut b, _)] = workers(false);
    let pool = Pool::new(64, 2048);
    for i in 0..=MAX_PACKETS {
        send(&mut far, &pool, OURS, &ipv4(6, [10, 0, 0, 2], [10, 0, 0, 1]));
        a.turn(Instant::ZERO);
        let packet = a.engine.seen.pop().unwrap();
        a.engine.away.push((1, Away::Packet(packet)));
        a.turn(Instant::ZERO);
        assert_eq!(a.stats().crossed_dropped, u64::from(i == MAX_PACKETS));
    }
    while b.turn(Instant::ZERO) {}
    assert_eq!(b.stats().crossed_in + b.stats().crossed_dropped, MAX_PACKETS as u64);
    assert_eq!(b.engine.crossed.len(), 256, "as many as there are frames for");
}

#[test]
fn who_is_not_heard_reads_nothing_until_he_is() {
    let [(mut a, mut far), (mut b, _)] = workers(false);
    let pool = Pool::new(64, 2048);
    a.engine.away.extend((0..=u16::MAX).map(|port| (1, Away::Adopted(flow(port)))));
    a.turn(Instant::ZERO);
    send(&mut far, &pool, OURS, &ipv4(6, [10, 0, 0, 2], [10, 0, 0, 1]));
    a.turn(Instant::ZERO);
    assert_eq!(a.engine.seen.len(), 0, "what comes in would make more of it");
    b.turn(Instant::ZERO);
    assert_eq!(b.engine.told.len(), 1 << 16, "nothing is lost");
    a.turn(Instant::ZERO);
    assert_eq!(a.engine.seen.len(), 1);
}

#[test]
fn a_neighbour_that_answers_one_worker_is_known_to_all() {
    let [(mut a, mut near_a), (mut b, mut near_b)] = workers(false);
    let pool = Pool::new(64, 2048);
    b.engine.send.push_back(segment(10, 0, "10.0.0.2", &b.pool));
    b.turn(Instant::ZERO);
    let request = receive(&mut near_b, &pool);
    let owned = vec![Prefix { addr: ip("10.0.0.2"), len: 24 }];
    let mut peer = Neighbors::new(vec![Identity { mac: PEER, owned }]);
    peer.on_frame(0, &request[0], Instant::ZERO);
    let (_, reply) = peer.poll_transmit().unwrap();
    let link = reply[..14].iter().copied().collect();
    let body = TxBody::Whole(Chain::copy_from(&pool, 0, &reply[14..]).unwrap());
    near_a.transmit(&mut vec![TxFrame { link, body }]);
    a.turn(Instant::ZERO);
    b.turn(Instant::ZERO);
    let frames = receive(&mut near_b, &pool);
    assert_eq!(frames.iter().map(|f| f.len() - 54).collect::<Vec<_>>(), [10]);
    a.turn(Instant::ZERO);
    assert!(!a.turn(Instant::ZERO) && !b.turn(Instant::ZERO), "it is not passed on for ever");
    assert!(a.crew.mine().lie_down() && b.crew.mine().lie_down());
    let note = Note::Neighbor { port: 0, addr: ip("10.0.0.2"), mac: PEER };
    b.crew.mine().push_note(note);
    assert!(!b.crew.mine().lie_down());
}
