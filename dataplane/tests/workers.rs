//! Several workers on one device: whose a packet is, who gets it, and how it crosses to whom it is for.
#![forbid(unsafe_code)]

mod veth;

use pcap_tests::netlink;
use plait_dataplane::port::raw_socket::{RawSocket, VNET_HEADER};
use plait_dataplane::port::{
    AfPacketPort, AfXdpPort, Attach, Medium, Patience, PnetPort, Port, Share, TapPort, Umem,
};
use plait_dataplane::run::{Engine, Io, IoMode, PortConfig, Running, WorkerConfig, start_all};
use plait_dataplane::steer::{SteerRule, Steering};
use stack::buf::Pool;
use stack::rng::Rng;
use stack::shard::{Away, Homes};
use stack::time::{Duration, Instant};
use stack::wire::{
    Control, Endpoint, FlowTuple, Options, Prefix, RxPacket, Segment, SeqNum, SynOptions, TxPacket,
    Unreachable, UnscaledWindow, emit,
};
use std::net::IpAddr;
use std::process::Command;
use veth::{Net, ip};

const OWNED: [&str; 2] = ["10.7.0.1", "fd00::1"];
const PEER: &str = "10.7.0.2";

fn net() -> Option<Net> {
    veth::pair(&[], &[PEER])
}

fn steering() -> Steering {
    let mut rules: Vec<SteerRule> = OWNED.iter().map(|addr| SteerRule::Owned(ip(addr))).collect();
    rules.push(SteerRule::TcpTo { from: None, to: None, ports: 0..=65_535 });
    Steering { rules, except: vec![] }
}

/// What a packet is to the one who deals packets out.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Tcp,
    Fragment,
    Udp,
}

/// A frame to `mac` with random addresses and ports (or to an address of ours), and options in IPv4.
fn frame(rng: &mut Rng, mac: [u8; 6], kind: Kind) -> (Vec<u8>, FlowTuple) {
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    let protocol = if kind == Kind::Udp { 17 } else { 6 };
    let ipv6 = kind != Kind::Fragment && rng.u32().is_multiple_of(2);
    let ours = ip(OWNED[usize::from(ipv6)]);
    let ports = [rng.u32() as u16, rng.u32() as u16];
    let (source, destination): (IpAddr, IpAddr) = if ipv6 {
        let mut random = || (0..4).fold(0u128, |all, _| all << 32 | u128::from(rng.u32()));
        let (from, to) = (random() >> 8 | 0x20 << 120, random() >> 8 | 0x20 << 120);
        let to = if kind == Kind::Tcp { IpAddr::from(to.to_be_bytes()) } else { ours };
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
        (IpAddr::from(from.to_be_bytes()), to)
    } else {
        let (from, to) = (rng.u32(), rng.u32());
        let to = if kind == Kind::Tcp { IpAddr::from(to.to_be_bytes()) } else { ours };
        let words = 5 + rng.u32() % 11;
        let total = (words * 4 + 20) as u16;
        frame.extend([8, 0, 0x40 | words as u8, 0]);
        frame.extend(total.to_be_bytes());
        let offset = if kind == Kind::Fragment { 1 } else { 0 };
        frame.extend([0, 0, 0x40 * u8::from(kind != Kind::Fragment), offset, 64, protocol, 0, 0]);
        (IpAddr::from(from.to_be_bytes()), to)
    };
    for addr in [source, destination] {
        match addr {
            IpAddr::V4(addr) => frame.extend(addr.octets()),
            IpAddr::V6(addr) => frame.extend(addr.octets()),
        }
    }
    if !ipv6 {
        let options = (usize::from(frame[14] & 15) - 5) * 4;
        frame.extend((0..options).map(|_| 1));
    }
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend([0; 16]);
    let flow = FlowTuple {
        local: Endpoint::new(destination, ports[1]),
        remote: Endpoint::new(source, ports[0]),
    };
    (frame, flow)
}

/// Sends frames of all kinds to the ports of several workers on v0. Every one arrives once, at its home.
fn assert_dealt_out(net: &Net, ports: &mut [Box<dyn Port>], homes: Homes) {
    let mut rng = Rng::from_number(u64::from(homes.key));
    let mac = ports[0].mac();
    let socket = net.peer.run(|| RawSocket::open("v1").unwrap());
    let pool = Pool::new(4096, 2048);
    let mut counts = vec![0; ports.len()];
    for round in 0..600 {
        let kind = match round % 10 {
            0 => Kind::Fragment,
            1 => Kind::Udp,
            _ => Kind::Tcp,
        };
        let (octets, flow) = frame(&mut rng, mac, kind);
        let home = if kind == Kind::Tcp { homes.home(&flow) } else { 0 };
        let mut message = vec![0; VNET_HEADER];
        message.extend(&octets);
        socket.send(&message).unwrap();
        let mut arrived = Vec::new();
        let give_up = std::time::Instant::now() + Duration::from_secs(5);
        while arrived.is_empty() && std::time::Instant::now() < give_up {
            for (worker, port) in ports.iter_mut().enumerate() {
                let mut rx = Vec::new();
                port.receive(&pool, &mut rx);
                arrived.extend(rx.iter().map(|frame| (worker as u32, frame.octets.to_vec())));
            }
        }
        assert_eq!(arrived, [(home, octets)], "round {round}, {kind:?} {flow:?}");
        counts[home as usize] += 1;
    }
    assert!(counts.iter().all(|count| *count > 600 / (2 * ports.len())), "{counts:?}");
}

#[test]
fn the_kernel_gives_af_packet_sockets_what_homes_says() {
    let Some(net) = net() else { return };
    for homes in [Homes { shards: 3, key: 0xdead_beef }, Homes { shards: 4, key: 6 }] {
        net.ours.run(|| {
            let open = |share: &Share| AfPacketPort::open("v0", &steering(), share).unwrap();
            let shares = Share::among(homes);
            let mut ports: Vec<Box<dyn Port>> =
                shares.iter().map(|share| Box::new(open(share)) as Box<dyn Port>).collect();
            assert_dealt_out(&net, &mut ports, homes);
            // The kernel takes the sockets out of their group, and puts them in again.
            netlink::set_up("v0", false).unwrap();
            netlink::set_up("v0", true).unwrap();
            let give_up = std::time::Instant::now() + Duration::from_secs(5);
            while !netlink::is_operational("v0").unwrap() {
                assert!(std::time::Instant::now() < give_up);
                std::thread::yield_now();
            }
            assert_dealt_out(&net, &mut ports, homes);
        });
    }
}

#[test]
fn pnet_ports_take_what_homes_says() {
    let Some(net) = net() else { return };
    let homes = Homes { shards: 3, key: 0xdead_beef };
    net.ours.run(|| {
        let open = |share: &Share| PnetPort::open("v0", steering(), share).unwrap();
        let shares = Share::among(homes);
        let mut ports: Vec<Box<dyn Port>> =
            shares.iter().map(|share| Box::new(open(share)) as Box<dyn Port>).collect();
        assert_dealt_out(&net, &mut ports, homes);
    });
}

#[test]
fn two_nodes_on_one_device_do_not_share_a_group() {
    let Some(net) = net() else { return };
    let homes = Homes { shards: 2, key: 1 };
    net.ours.run(|| {
        let node = || -> Vec<AfPacketPort> {
            let shares = Share::among(homes);
            shares.iter().map(|s| AfPacketPort::open("v0", &steering(), s).unwrap()).collect()
        };
        let (mut first, mut second) = (node(), node());
        let (octets, _) = frame(&mut Rng::from_number(1), first[0].mac(), Kind::Tcp);
        let mut message = vec![0; VNET_HEADER];
        message.extend(octets);
        net.peer.run(|| RawSocket::open("v1").unwrap().send(&message).unwrap());
        let pool = Pool::new(256, 2048);
        for node in [&mut first, &mut second] {
            let mut rx = Vec::new();
            let give_up = std::time::Instant::now() + Duration::from_secs(5);
            while rx.is_empty() && std::time::Instant::now() < give_up {
                node.iter_mut().for_each(|port| port.receive(&pool, &mut rx));
            }
            assert_eq!(rx.len(), 1, "each node sees it, once");
        }
    });
}

#[test]
fn queues_of_af_xdp_are_dealt_out_under_one_program_that_the_last_takes_along() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let queues = "numrxqueues 2 numtxqueues 2";
        let mut command = Command::new("sh");
        let add = format!("ip link add q0 {queues} type veth peer name q1 {queues}");
        command.args(["-c", &add]);
        assert!(net.ours.output(command).unwrap().status.success());
        let open = |share: &Share| {
            let umem = Umem::new(Pool::new(4096, 2048)).unwrap();
            AfXdpPort::open("q0", &steering(), &[], Attach::Any, (&umem, share)).unwrap()
        };
        let attached = || {
            let mut command = Command::new("ip");
            command.args(["-d", "link", "show", "q0"]);
            let output = net.ours.output(command).unwrap();
            String::from_utf8_lossy(&output.stdout).contains("prog/xdp")
        };
        let shares = Share::among(Homes { shards: 3, key: 0 });
        let [first, second, third] = [0, 1, 2].map(|worker: usize| open(&shares[worker]));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.queues().chain(second.queues()).collect::<Vec<_>>(), [0, 1]);
        assert!(third.is_none(), "no queue is left");
        drop(first);
        assert!(attached(), "the second needs it");
        drop(second);
        assert!(!attached());
    });
}

#[test]
fn a_tap_device_has_a_queue_for_every_worker() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let open = |share: &Share| {
            TapPort::open("tap0", Medium::Ethernet, &steering(), share, Patience::None)
        };
        let ports: Vec<TapPort> =
            Share::among(Homes { shards: 3, key: 0 }).iter().map(|s| open(s).unwrap()).collect();
        assert!(ports.iter().all(|port| port.mac() == ports[0].mac()), "they are one device");
        assert!(open(&Share::alone()).is_err(), "one that has it to itself finds it taken");
    });
}

/// Hands everything that comes in to the last worker, which keeps it; sends what it is told to.
#[derive(Default)]
struct Porter {
    last: u32,
    away: Vec<(u32, Away)>,
    kept: Vec<Vec<u8>>,
    sending: Vec<TxPacket>,
}

impl Engine for Porter {
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, _now: Instant) {
        self.away.extend(rx.drain(..).map(|packet| (self.last, Away::Packet(packet))));
    }
    fn ingest_crossed(&mut self, rx: &mut Vec<RxPacket>, _now: Instant) {
        self.kept.extend(rx.drain(..).map(|packet| packet.octets.to_vec()));
    }
    fn away(&mut self, out: &mut Vec<(u32, Away)>) {
        out.append(&mut self.away);
    }
    fn expire(&mut self, _now: Instant) {}
    fn transmit(&mut self, tx: &mut Vec<TxPacket>, _budget: usize, _now: Instant) {
        tx.append(&mut self.sending);
    }
    fn on_unreachable(&mut self, _packet: &TxPacket, _why: Unreachable, _now: Instant) {}
    fn deadline(&self) -> Option<Instant> {
        None
    }
    fn passed(&mut self, _out: &mut Vec<RxPacket>) {}
}

fn config(io: Io, device: &str) -> WorkerConfig {
    WorkerConfig {
        ports: vec![PortConfig {
            name: "lan".into(),
            device: device.into(),
            io: Some(io),
            queues: vec![],
            owned: vec![Prefix { addr: ip(OWNED[0]), len: 24 }],
            gateways: vec![],
            steering: Steering::default(),
        }],
        routes: vec![],
        tun: None,
        io_mode: IoMode::Interrupt,
        core: None,
        frames: 4096,
        frame_size: 2048,
    }
}

fn begin(net: &Net, io: Io, workers: u32) -> Vec<Running<Porter>> {
    let last = workers - 1;
    let build = move |_: &Pool| Porter { last, ..Porter::default() };
    let members = (0..workers).map(|_| (config(io, "v0"), build)).collect();
    net.ours.run(|| start_all("workers", Homes { shards: workers, key: 3 }, members)).unwrap()
}

fn syn(flow: FlowTuple) -> TxPacket {
    let segment = Segment {
        seq: SeqNum(1),
        ack: None,
        control: Control::Syn,
        push: false,
        window: UnscaledWindow(1000),
        options: Options::Syn(SynOptions::default()),
        text: stack::buf::Chain::new(),
        ..Default::default()
    };
    emit(flow, &segment, 0)
}

/// The last worker connects to where nobody listens: the neighbour's answer and the kernel's RST reach it although both
/// come in elsewhere, and both find it asleep.
fn the_last_of_three_converses(io: Io) {
    let Some(net) = net() else { return };
    let running = begin(&net, io, 3);
    let last = running[2].link.clone();
    for port in 4000..4008 {
        let flow = FlowTuple {
            local: Endpoint::new(ip(OWNED[0]), port),
            remote: Endpoint::new(ip(PEER), 9),
        };
        last.ask(move |worker| worker.engine.sending.push(syn(flow))).unwrap();
        let give_up = std::time::Instant::now() + Duration::from_secs(5);
        let answered = || {
            let ours = move |kept: &Vec<u8>| kept[22..24] == port.to_be_bytes();
            last.ask(move |worker| worker.engine.kept.iter().any(ours)).unwrap()
        };
        while !answered() {
            assert!(std::time::Instant::now() < give_up, "{io:?}: port {port} is not answered");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let stats: Vec<_> =
        running.iter().map(|r| r.link.ask(|worker| worker.stats()).unwrap()).collect();
    assert!(stats[0].crossed_out + stats[1].crossed_out >= 1, "{stats:?}");
    assert_eq!(stats.iter().map(|s| s.crossed_dropped).sum::<u64>(), 0);
    let sleeps = stats[2].sleeps;
    assert!(sleeps > 4, "{sleeps}: who waits for others' mail sleeps meanwhile");
    running[1].link.stop();
    for worker in running {
        worker.thread.join().unwrap(); // one stopped all
    }
}

#[test]
fn a_worker_without_a_queue_sends_by_itself_and_hears_by_mail() {
    the_last_of_three_converses(Io::AfXdp);
}

#[test]
fn what_the_kernel_gives_to_the_home_crosses_to_whom_it_is_for() {
    the_last_of_three_converses(Io::AfPacket);
}

#[test]
fn a_worker_that_fails_takes_the_others_along() {
    let Some(net) = net() else { return };
    let running = begin(&net, Io::AfPacket, 2);
    running[1].link.send(Box::new(|_| panic!("as meant by this test")));
    let ended: Vec<bool> = running.into_iter().map(|w| w.thread.join().is_ok()).collect();
    assert_eq!(ended, [true, false]);
}

#[test]
fn a_worker_that_cannot_start_leaves_nothing_behind() {
    let Some(net) = net() else { return };
    let build = |_: &Pool| Porter::default();
    let members = ["v0", "v7"].map(|device| (config(Io::AfPacket, device), build)).into();
    let homes = Homes { shards: 2, key: 3 };
    let Err(error) = net.ours.run(|| start_all("leftover", homes, members)) else {
        panic!("started")
    };
    assert!(error.to_string().contains("v7"), "{error}");
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let left = threads.filter_map(|task| name(task).ok()).filter(|n| n.starts_with("leftover"));
    assert_eq!(left.count(), 0);
}
