//! Every kind of port against a kernel, over a veth pair between two namespaces made here: `peer` is the kernel's,
//! `ours` has Plait's end.

mod veth;

use pcap_tests::netlink;
use pcap_tests::netns::Namespace;
use plait_dataplane::port::raw_socket::RawSocket;
use plait_dataplane::port::{
    AfPacketPort, AfXdpPort, Attach, KernelPath, Medium, Patience, PnetPort, Port, PortError,
    RxFrame, Share, TapPort, TxBody, TxFrame, Umem, XdpMode,
};
use plait_dataplane::steer::{SteerRule, Steering};
use stack::buf::{Chain, Pool};
use stack::wire::{
    Control, Options, Parsed, Prefix, RxChecksum, RxPacket, Segment, SegmentOptions, SeqNum,
    SynOptions, UnscaledWindow, emit, parse, segment_packet,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use veth::{Net, ip};

const PEER: &str = "10.7.0.2";
const KERNEL: &str = "10.7.0.9";
const OWNED: &str = "10.7.0.1";

fn net() -> Option<Net> {
    let net = veth::pair(&[KERNEL], &[PEER])?;
    if without_bpf() {
        println!("not run: a user namespace's root may not load programs");
        return None;
    }
    Some(net)
}

/// Whether we are root of a user namespace only, and that was declared.
fn without_bpf() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    !whole && std::env::var_os("PLAIT_TESTS_WITHOUT_ROOT").is_some()
}

fn owned() -> Steering {
    Steering { rules: vec![SteerRule::Owned(ip(OWNED))], except: vec![ip(KERNEL)] }
}

fn sh(namespace: &Namespace, line: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    namespace.output(command).unwrap().status.success()
}

/// Whether a datagram from the peer reaches a kernel socket at `to`.
fn datagram_arrives(net: &Net, to: &str) -> bool {
    let socket = net.ours.run(|| UdpSocket::bind((to, 7)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    net.peer.run(|| UdpSocket::bind((PEER, 0)).unwrap().send_to(b"x", (to, 7)).unwrap());
    socket.recv(&mut [0; 8]).is_ok_and(|n| n == 1)
}

/// Plays a host with address OWNED: answers ARP and every SYN (no options), collects text, acknowledges it.
struct Host<'a> {
    port: &'a mut dyn Port,
    pool: Pool,
    text: Vec<u8>,
    largest: u32,
    nxt: SeqNum,
    checksums: Vec<RxChecksum>,
    others: usize,
    /// Sends all text back, as segments of this size.
    echo: Option<u16>,
    sent: u32,
    mss: u16,
}

impl Host<'_> {
    fn new(port: &mut dyn Port, pool: Pool) -> Host<'_> {
        let (text, checksums) = (Vec::new(), Vec::new());
        Host {
            port,
            pool,
            text,
            largest: 0,
            nxt: SeqNum(0),
            checksums,
            others: 0,
            echo: None,
            sent: 0,
            mss: 1460,
        }
    }

    /// Runs until `text` octets came or time is up.
    fn run(&mut self, text: usize) {
        let end = Instant::now() + Duration::from_secs(10);
        let mut rx = Vec::new();
        let mut tx = Vec::new();
        while self.text.len() < text && Instant::now() < end {
            self.port.receive(&self.pool, &mut rx);
            if rx.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            for frame in rx.drain(..) {
                self.on_frame(frame, &mut tx);
            }
            self.port.transmit(&mut tx);
        }
    }

    fn on_frame(&mut self, frame: RxFrame, tx: &mut Vec<TxFrame>) {
        let mut octets = frame.octets;
        if self.port.capabilities().medium == Medium::Ip {
            return self.on_packet(octets, frame.checksum, Default::default(), tx);
        }
        let head = octets.parts()[0].bytes()[..14].to_vec();
        let mut link: arrayvec::ArrayVec<u8, 14> = head[6..12].iter().copied().collect();
        link.extend(self.port.mac());
        link.extend(head[12..14].iter().copied());
        octets.trim_front(14);
        if head[12..14] == [8, 6] {
            let request = octets.to_vec();
            let mut reply = request.clone();
            reply[7] = 2;
            reply[8..14].copy_from_slice(&self.port.mac());
            reply[14..18].copy_from_slice(&request[24..28]);
            reply[18..28].copy_from_slice(&request[8..18]);
            let body = TxBody::Whole(Chain::copy_from(&self.pool, 0, &reply).unwrap());
            return tx.push(TxFrame { link, body });
        }
        self.on_packet(octets, frame.checksum, link, tx);
    }

    fn on_packet(
        &mut self,
        octets: Chain,
        checksum: RxChecksum,
        link: arrayvec::ArrayVec<u8, 14>,
        tx: &mut Vec<TxFrame>,
    ) {
        let packet = RxPacket { octets, checksum, port: 0, gso_size: 0 };
        let Ok(Parsed::Tcp(flow, segment)) = parse(packet) else {
            self.others += 1;
            return;
        };
        self.checksums.push(checksum);
        let mut reply = Segment {
            seq: SeqNum(1000),
            ack: None,
            control: Control::None,
            push: false,
            window: UnscaledWindow(u16::MAX),
            options: Options::Segment(SegmentOptions::default()),
            text: Chain::new(),
            ..Default::default()
        };
        if segment.control == Control::Syn {
            reply.control = Control::Syn;
            reply.options = Options::Syn(SynOptions { mss: Some(self.mss), ..Default::default() });
            self.nxt = segment.seq + 1;
        } else {
            reply.seq = SeqNum(1001);
            if segment.seq == self.nxt {
                self.largest = self.largest.max(segment.text.len());
                self.nxt += segment.text.len();
                self.text.extend(segment.text.to_vec());
            }
            if segment.text.is_empty() {
                return;
            }
            if self.echo.is_some() {
                reply.seq += self.sent;
                self.sent += segment.text.len();
                reply.text = segment.text;
            }
        }
        reply.ack = Some(self.nxt);
        let packet = emit(flow, &reply, self.echo.unwrap_or(0));
        if packet.is_super_segment() && !self.port.capabilities().segmentation {
            let frames = segment_packet(packet)
                .map(|packet| TxFrame { link: link.clone(), body: TxBody::Tcp(packet) });
            tx.extend(frames);
        } else {
            tx.push(TxFrame { link, body: TxBody::Tcp(packet) });
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A kernel sender delivers `len` octets to the host that `port` plays; the largest segment and what the port said of
/// checksums.
fn transfer(net: &Net, port: &mut dyn Port, pool: &Pool, len: usize) -> (u32, Vec<RxChecksum>) {
    let (sent, to) = (pattern(len), SocketAddr::new(ip(OWNED), 80));
    let text = sent.clone();
    let sender = net.peer.spawn_thread("sender", move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        stream.write_all(&text).unwrap();
    });
    let mut host = Host::new(port, pool.clone());
    host.run(len);
    assert!(host.text == sent, "{} octets of {len} arrived", host.text.len());
    let seen = (host.largest, host.checksums.clone());
    sender.unwrap().join().unwrap();
    seen
}

/// A kernel client gets its own octets back, sent from the frames that they came in.
fn echo(net: &Net, port: &mut dyn Port, pool: &Pool, mss: u16) -> u32 {
    const LEN: usize = 60_000; // less than the window: nobody retransmits here
    let (sent, to) = (pattern(LEN), SocketAddr::new(ip(OWNED), 81));
    let text = sent.clone();
    let client = net.peer.spawn_thread("client", move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(&text).unwrap();
        let mut back = vec![0; LEN];
        stream.read_exact(&mut back).unwrap();
        back
    });
    let mut host = Host::new(port, pool.clone());
    (host.echo, host.mss) = (Some(mss), mss);
    host.run(LEN);
    assert!(client.unwrap().join().unwrap() == sent);
    host.largest
}

/// The kernel beside us goes on as before.
fn assert_kernel_undisturbed(net: &Net) {
    assert!(
        datagram_arrives(net, KERNEL),
        "datagrams to the kernel's own address are the kernel's"
    );
    let listener = net.ours.run(|| TcpListener::bind((KERNEL, 80)).unwrap());
    connect(net, KERNEL, 80, 5000).expect("TCP to the kernel's own address is the kernel's");
    drop(listener);
}

fn connect(net: &Net, to: &str, port: u16, patience: u64) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(ip(to), port);
    net.peer.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(patience)))
}

/// Takes TCP to one port of the kernel's own address, to see that the kernel does not.
fn taking(port: u16) -> Steering {
    let to = Some(Prefix { addr: ip(KERNEL), len: 32 });
    Steering {
        rules: vec![SteerRule::TcpTo { from: None, to, ports: port..=port }],
        except: vec![],
    }
}

/// The kernel answers a SYN to a closed port; hidden from it, the SYN goes unanswered.
fn assert_hidden_while_open<P>(net: &Net, open: impl FnOnce(&Steering) -> P) {
    let outcome = |port, patience| connect(net, KERNEL, port, patience).unwrap_err().kind();
    let refused = |port| outcome(port, 5000);
    assert_eq!(refused(83), ErrorKind::ConnectionRefused);
    let port = open(&taking(83));
    assert_eq!(outcome(83, 500), ErrorKind::TimedOut, "the kernel does not see it");
    assert_eq!(refused(84), ErrorKind::ConnectionRefused, "it sees all else");
    drop(port);
    assert_eq!(refused(83), ErrorKind::ConnectionRefused, "the program has gone with its port");
}

#[test]
fn af_packet_receives_a_kernels_super_segments_whole() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        assert_eq!(port.warnings(), &[] as &[String]);
        let (largest, checksums) = transfer(&net, &mut port, &pool, 1 << 20);
        assert!(largest > 10_000, "largest segment {largest}");
        assert!(checksums.iter().all(|c| *c == RxChecksum::Valid));
        assert_kernel_undisturbed(&net);
        drop(port);
        assert_eq!(pool.free(), 512, "every frame is back");
    });
}

#[test]
fn af_packet_sends_super_segments_from_the_frames_they_came_in() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        echo(&net, &mut port, &pool, 1400);
        let stats = port.stats();
        assert!(stats.tx_frames < 60_000 / 1400, "{stats:?}");
    });
}

#[test]
fn frames_that_af_packet_had_no_room_for_are_counted() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        let mac = port.mac().map(|b| format!("{b:02x}")).join(":");
        assert!(sh(&net.peer, &format!("ip neigh replace {OWNED} lladdr {mac} dev v1")));
        net.peer.run(|| {
            let socket = UdpSocket::bind((PEER, 0)).unwrap();
            for _ in 0..20_000 {
                socket.send_to(&[0; 1400], (OWNED, 7)).unwrap();
            }
        });
        let dropped = port.stats().rx_dropped;
        assert!((1..20_000).contains(&dropped), "{dropped}");
        assert_eq!(port.stats().rx_dropped, dropped, "not counted twice, not forgotten");
    });
}

/// What a raw socket writes: virtio-net header and frame. TCP text of `len` octets that begin with `number`, for `to` and
/// (unless it is empty) behind a tag.
fn numbered(number: u32, len: usize, to: [u8; 6], tag: &[u8]) -> Vec<u8> {
    const MSS: u16 = 1448;
    let mut vnet = [0; 10];
    let gso = len > usize::from(MSS);
    vnet[0] = 1; // the checksum is to be finished
    vnet[1] = u8::from(gso);
    vnet[2..4].copy_from_slice(&54u16.to_ne_bytes());
    vnet[4..6].copy_from_slice(&if gso { MSS } else { 0 }.to_ne_bytes());
    vnet[6..8].copy_from_slice(&34u16.to_ne_bytes());
    vnet[8..10].copy_from_slice(&16u16.to_ne_bytes());
    let mut frame = [vnet.as_slice(), &to, &[2, 0, 0, 0, 0, 9], tag, &[8, 0]].concat();
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 7, 0, 2, 10, 7, 0, 1];
    ip[2..4].copy_from_slice(&(40 + len as u16).to_be_bytes());
    frame.extend(ip);
    frame.extend([0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    let mut text = pattern(len);
    text[..4].copy_from_slice(&number.to_be_bytes());
    frame.extend(text);
    frame
}

/// The numbers of frames as [`numbered`] makes them, each of which must have come whole.
fn numbers(rx: &mut Vec<RxFrame>, to: [u8; 6]) -> Vec<u32> {
    let number = |frame: RxFrame| {
        let octets = frame.octets.to_vec();
        let number = u32::from_be_bytes(octets[54..58].try_into().unwrap());
        let sent = numbered(number, octets.len() - 54, to, &[]);
        assert!(octets == sent[10..], "frame {number} of {} octets", octets.len());
        assert_eq!(frame.checksum, RxChecksum::Valid);
        assert_eq!(frame.gso_size, u16::from_ne_bytes([sent[4], sent[5]]), "frame {number}");
        number
    };
    rx.drain(..).map(number).collect()
}

/// All that waits in a port, also behind frames that are lost.
fn drain(port: &mut dyn Port, pool: &Pool) -> Vec<u32> {
    let (mut out, mut rx) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        port.receive(pool, &mut rx);
        out.extend(numbers(&mut rx, port.mac()));
    }
    out
}

#[test]
fn af_packet_keeps_the_order_of_frames_of_all_sizes() {
    let Some(net) = net() else { return };
    let wire = net.peer.run(|| RawSocket::open("v1")).unwrap();
    net.ours.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        let mut next = 0;
        // The last that fit into a slot of the ring and the first that do not; the shortest and the longest there are.
        let edges = (1900..1990).chain([6, 1448, 1449, 65_481]);
        let mixed = (0..2000).map(|i| [10, 1448, 60_000, 200, 3000][i * i % 5]);
        let sizes: Vec<usize> = edges.chain(mixed).collect();
        for some in sizes.chunks(50) {
            for len in some {
                wire.send(&numbered(next, *len, port.mac(), &[])).unwrap();
                next += 1;
            }
            let sent: Vec<u32> = (next - some.len() as u32..next).collect();
            assert_eq!(drain(&mut port, &pool), sent);
        }
        assert_eq!(port.stats().rx_frames, u64::from(next));
        assert_eq!(port.stats().rx_dropped, 0);
        drop(port);
        assert_eq!(pool.free(), 512, "every frame is back");
    });
}

#[test]
fn af_packet_counts_what_it_had_no_room_for_and_goes_on_in_order() {
    let Some(net) = net() else { return };
    let wire = net.peer.run(|| RawSocket::open("v1")).unwrap();
    net.ours.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        // Too many for the socket's queue, then for the ring; then both again, one in the other's way.
        for size in [|_| 60_000, |_| 100, |i| if i % 2 == 0 { 60_000 } else { 100 }] {
            let before = port.stats();
            let (many, mac) = (8000, port.mac());
            for number in 0..many {
                wire.send(&numbered(number, size(number), mac, &[])).unwrap();
            }
            let arrived = drain(&mut port, &pool);
            assert!(arrived.is_sorted() && !arrived.is_empty(), "{arrived:?}");
            let dropped = port.stats().rx_dropped - before.rx_dropped;
            assert_eq!(arrived.len() as u64 + dropped, u64::from(many));
            assert!(dropped > 0);
            let after: Vec<u32> = (0..20).collect();
            for number in &after {
                wire.send(&numbered(*number, size(*number), mac, &[])).unwrap();
            }
            assert_eq!(drain(&mut port, &pool), after);
        }
    });
}

#[test]
fn frames_wait_in_af_packet_while_the_pool_is_empty() {
    let Some(net) = net() else { return };
    let wire = net.peer.run(|| RawSocket::open("v1")).unwrap();
    net.ours.run(|| {
        let pool = Pool::new(64, 2048);
        let mut port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        for number in 0..100 {
            wire.send(&numbered(number, if number % 9 == 0 { 3000 } else { 500 }, port.mac(), &[]))
                .unwrap();
        }
        let mut taken = Vec::new();
        for _ in 0..4 {
            port.receive(&pool, &mut taken);
        }
        assert!((1..64).contains(&taken.len()), "{}", taken.len());
        let mut all = numbers(&mut taken, port.mac());
        all.extend(drain(&mut port, &pool));
        assert!(all.into_iter().eq(0..100));
        assert_eq!(port.stats().rx_dropped, 0);
    });
}

#[test]
fn frames_of_vlans_are_left_to_the_kernel() {
    let Some(net) = net() else { return };
    let wire = net.peer.run(|| RawSocket::open("v1")).unwrap();
    net.ours.run(|| {
        let pool = Pool::new(64, 2048);
        let mut port = AfPacketPort::open("v0", &owned(), &Share::alone()).unwrap();
        // Behind the program that hides frames, in front of the kernel's IP.
        let ip = socket2::Protocol::from(i32::from(0x0800u16.to_be()));
        let kernel =
            socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::DGRAM, Some(ip)).unwrap();
        kernel.set_nonblocking(true).unwrap();
        for (number, tag) in [&[0x81, 0, 0, 5][..], &[0x81, 0, 0xe0, 0], &[]].iter().enumerate() {
            wire.send(&numbered(number as u32, 100, port.mac(), tag)).unwrap();
        }
        assert_eq!(drain(&mut port, &pool), [1, 2], "a tag with a priority only is no VLAN");
        let mut packet = [0; 2048];
        let seen: Vec<u8> =
            std::iter::from_fn(|| (&kernel).read(&mut packet).ok().map(|_| packet[43])).collect();
        assert_eq!(seen, [0]);
    });
}

#[test]
fn what_af_packet_takes_is_hidden_from_the_kernel_as_long_as_the_port_is_open() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        assert_hidden_while_open(&net, |s| AfPacketPort::open("v0", s, &Share::alone()).unwrap())
    });
}

/// A port that is nobody else's.
fn open_xdp(
    device: &str,
    steering: &Steering,
    queues: &[u32],
    attach: Attach,
    umem: &Rc<Umem>,
) -> Result<AfXdpPort, PortError> {
    let port = AfXdpPort::open(device, steering, queues, attach, (umem, &Share::alone()))?;
    Ok(port.expect("all queues are one worker's"))
}

fn xdp(pool: &Pool, steering: &Steering) -> AfXdpPort {
    let umem = Umem::new(pool.clone()).unwrap();
    open_xdp("v0", steering, &[], Attach::Any, &umem).unwrap()
}

#[test]
fn af_xdp_receives_from_a_kernel_and_passes_what_is_not_ours() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let pool = Pool::new(4096, 2048);
        let mut port = xdp(&pool, &owned());
        let (largest, checksums) = transfer(&net, &mut port, &pool, 1 << 20);
        assert!(largest <= 1460, "largest segment {largest}");
        assert!(checksums.iter().all(|c| *c == RxChecksum::MaybePartial));
        assert_kernel_undisturbed(&net);
        drop(port);
        assert_eq!(pool.free(), 4096, "every frame is back");
    });
}

#[test]
fn af_xdp_sends_from_the_frames_that_the_octets_came_in() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let pool = Pool::new(4096, 2048);
        let mut port = xdp(&pool, &owned());
        echo(&net, &mut port, &pool, 1400);
        let stats = port.stats();
        assert!(stats.tx_uncopied >= 60_000 / 1400, "{stats:?}");
    });
}

#[test]
fn what_af_xdp_takes_is_hidden_from_the_kernel_as_long_as_the_port_is_open() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let pool = Pool::new(4096, 2048);
        assert_hidden_while_open(&net, |s| xdp(&pool, s));
    });
}

#[test]
fn af_xdp_takes_and_sends_frames_longer_than_a_chunk() {
    let Some(net) = net() else { return };
    net.ours.run(|| netlink::set_mtu("v0", 9000)).unwrap();
    net.peer.run(|| netlink::set_mtu("v1", 9000)).unwrap();
    net.ours.run(|| {
        let pool = Pool::new(4096, 2048);
        let mut port = xdp(&pool, &owned());
        let largest = echo(&net, &mut port, &pool, 8900);
        assert!(largest > 8000, "largest segment {largest}");
        assert_eq!(port.stats().tx_dropped, 0);
        drop(port);
        assert_eq!(pool.free(), 4096);
    });
}

/// A bridge runs no XDP of its own: the program runs behind it, where the kernel's super-segments arrive whole.
#[test]
fn af_xdp_takes_the_generic_mode_where_the_driver_has_no_xdp() {
    let Some(net) = net() else { return };
    let bridge = "ip link add br0 type bridge; ip link set v0 master br0; ip link set br0 up";
    let moved = format!("ip addr del {KERNEL}/24 dev v0; ip addr add {KERNEL}/24 dev br0");
    assert!(sh(&net.ours, bridge) && sh(&net.ours, &moved));
    net.ours.run(|| {
        let pool = Pool::new(4096, 2048);
        let umem = Umem::new(pool.clone()).unwrap();
        let open = |attach| open_xdp("br0", &owned(), &[], attach, &umem);
        let refused = open(Attach::NativeOnly).unwrap_err();
        assert!(matches!(refused, PortError::NoNativeXdp { .. }), "{refused}");
        let mut port = open(Attach::Any).unwrap();
        assert_eq!(port.mode(), XdpMode::Generic);
        let (largest, _) = transfer(&net, &mut port, &pool, 1 << 20);
        assert!(largest > 10_000, "largest segment {largest}");
        echo(&net, &mut port, &pool, 1400);
        assert_eq!(port.stats().rx_dropped, 0);
        assert_kernel_undisturbed(&net);
        drop((port, umem));
        assert_eq!(pool.free(), 4096);
    });
}

#[test]
fn af_xdp_runs_in_the_driver_of_a_veth_device_unless_told_otherwise() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        for (attach, mode) in
            [(Attach::NativeOnly, XdpMode::Native), (Attach::GenericOnly, XdpMode::Generic)]
        {
            let pool = Pool::new(4096, 2048);
            let umem = Umem::new(pool.clone()).unwrap();
            let mut port = open_xdp("v0", &owned(), &[], attach, &umem).unwrap();
            assert_eq!(port.mode(), mode);
            transfer(&net, &mut port, &pool, 100_000);
        }
    });
}

/// One pool is the UMEM of every queue of every port, whichever of them come and go.
#[test]
fn af_xdp_ports_share_a_umem_as_long_as_any_is_open() {
    let Some(net) = net() else { return };
    let queues = "numrxqueues 2 numtxqueues 2";
    let add = format!("ip link add q0 up {queues} type veth peer name q1 {queues}");
    assert!(sh(&net.ours, &add) && sh(&net.ours, "ip link set q1 up"));
    net.ours.run(|| {
        let pool = Pool::new(4096, 2048);
        let umem = Umem::new(pool.clone()).unwrap();
        let open = |device| open_xdp(device, &owned(), &[], Attach::Any, &umem).unwrap();
        let (first, second) = (open("q0"), open("q1"));
        assert_eq!((first.fds().len(), second.fds().len()), (2, 2));
        drop(first);
        let mut third = open("v0"); // shares with the second: the one that registered the UMEM is gone
        transfer(&net, &mut third, &pool, 100_000);
        drop((second, third));
        assert_eq!(pool.free(), 4096, "every frame is back");
        let mut last = open("v0"); // registers it again
        transfer(&net, &mut last, &pool, 100_000);
    });
}

#[test]
fn af_xdp_binds_all_queues_of_a_device() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        let queues = "numrxqueues 2 numtxqueues 2";
        let add = format!("ip link add q0 {queues} type veth peer name q1 {queues}");
        assert!(sh(&net.ours, &add));
        let pool = Pool::new(4096, 2048);
        let umem = Umem::new(pool.clone()).unwrap();
        let port = open_xdp("q0", &owned(), &[], Attach::Any, &umem).unwrap();
        assert_eq!(port.queues().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(port.fds().len(), 2);
        let taken = open_xdp("q0", &owned(), &[1], Attach::Any, &umem).unwrap_err().to_string();
        assert!(taken.starts_with("q0: "), "{taken}");
    });
}

#[test]
fn an_af_xdp_port_can_be_opened_again_at_once() {
    let Some(net) = net() else { return };
    net.ours.run(|| {
        for _ in 0..3 {
            let pool = Pool::new(4096, 2048);
            let mut port = xdp(&pool, &owned());
            transfer(&net, &mut port, &pool, 1000);
        }
    });
}

#[test]
fn a_frame_received_on_one_af_xdp_port_leaves_by_another_without_a_copy() {
    let Some(net) = net() else { return };
    net.ours.join("w0", &net.peer, "w1").unwrap();
    net.ours.run(|| {
        let pool = Pool::new(4096, 4096);
        let umem = Umem::new(pool.clone()).unwrap();
        let mut a = open_xdp("v0", &owned(), &[], Attach::Any, &umem).unwrap();
        let mut b = open_xdp("w0", &Steering::default(), &[0], Attach::Any, &umem).unwrap();
        assert_eq!(b.queues().collect::<Vec<_>>(), [0]);
        let far = net.peer.run(|| RawSocket::open("w1")).unwrap();
        let mac = a.mac().map(|b| format!("{b:02x}")).join(":");
        assert!(sh(&net.peer, &format!("ip neigh replace {OWNED} lladdr {mac} dev v1")));
        let _ = connect(&net, OWNED, 80, 100);
        let mut rx = Vec::new();
        a.receive(&pool, &mut rx);
        let frame = rx.into_iter().next().expect("the SYN arrived");
        let mut octets = frame.octets;
        let link = octets.parts()[0].bytes()[..14].iter().copied().collect();
        octets.trim_front(14);
        let copy = Chain::copy_from(&pool, 0, &octets.to_vec()).unwrap();
        let copy = RxPacket { octets: copy, checksum: frame.checksum, port: 0, gso_size: 0 };
        let Ok(Parsed::Tcp(flow, mut segment)) = parse(copy) else {
            panic!("not TCP");
        };
        // The whole packet travels as text, in its frame.
        let mut part = octets.into_parts().next().unwrap();
        part.release_headers();
        segment.text = part.into();
        segment.control = Control::None;
        segment.options = Options::Segment(SegmentOptions::default());
        let text = segment.text.to_vec();
        let packet = emit(flow.reversed(), &segment, 0);
        drop(segment);
        b.transmit(&mut vec![TxFrame { link, body: TxBody::Tcp(packet) }]);
        assert_eq!(b.stats().tx_uncopied, 1, "{:?}", b.stats());
        let mut seen = vec![0; 4096];
        let tcp = std::iter::from_fn(|| far.receive(&mut seen).ok().map(|n| seen[10..n].to_vec()))
            .find(|frame| frame.get(12..14) == Some(&[8, 0]))
            .expect("it arrived");
        assert_eq!(tcp[54..], text);
        drop((a, b));
        drop(umem);
        assert_eq!(pool.free(), 4096);
    });
}

/// The kernel at the other end of a TAP or TUN device is that of its own namespace.
fn crosses_whole(medium: Medium, device: &str) {
    let Some(net) = net() else { return };
    assert!(sh(&net.peer, "ip addr flush dev v1"));
    net.peer.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port =
            TapPort::open(device, medium, &owned(), &Share::alone(), Patience::None).unwrap();
        netlink::add_address(device, ip(PEER), 24).unwrap();
        assert_eq!(port.capabilities().medium, medium);
        let (largest, checksums) = transfer(&net, &mut port, &pool, 1 << 20);
        assert!(largest > 10_000, "largest segment {largest}");
        assert!(checksums.iter().all(|c| *c == RxChecksum::Valid));
        let before = port.stats().tx_frames;
        echo(&net, &mut port, &pool, 1400);
        let sent = port.stats().tx_frames - before;
        assert!(sent < 60_000 / 1400, "{sent} frames for 60,000 octets");
        let taken = TapPort::open(device, medium, &owned(), &Share::alone(), Patience::None)
            .unwrap_err()
            .to_string();
        assert!(taken.contains("in use") || taken.contains("busy"), "{taken}");
        drop(port);
        assert_eq!(pool.free(), 512, "every frame is back");
    });
    assert!(!sh(&net.peer, &format!("ip link show {device}")), "it has gone with its port");
}

#[test]
fn super_segments_cross_a_tap_device_both_ways() {
    crosses_whole(Medium::Ethernet, "tap0");
}

#[test]
fn super_segments_cross_a_tun_device_both_ways() {
    crosses_whole(Medium::Ip, "tun0");
}

#[test]
fn a_tap_device_that_was_made_before_is_used_and_left_there() {
    let Some(net) = net() else { return };
    assert!(sh(&net.peer, "ip addr flush dev v1; ip tuntap add dev tap0 mode tap"));
    assert!(sh(&net.peer, &format!("ip link set tap0 mtu 9000; ip addr add {PEER}/24 dev tap0")));
    net.peer.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port =
            TapPort::open("tap0", Medium::Ethernet, &owned(), &Share::alone(), Patience::None)
                .unwrap();
        assert_eq!(port.capabilities().mtu, 9000);
        transfer(&net, &mut port, &pool, 100_000);
    });
    assert!(sh(&net.peer, "ip link show tap0"));
}

#[test]
fn pnet_receives_and_sends() {
    let Some(net) = net() else { return };
    assert!(sh(&net.peer, "ethtool -K v1 tso off gso off tx off"));
    net.ours.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port = PnetPort::open("v0", owned(), &Share::alone()).unwrap();
        transfer(&net, &mut port, &pool, 100_000);
        echo(&net, &mut port, &pool, 1400);
    });
}

#[test]
fn packets_given_back_reach_the_kernel_as_if_nothing_had_been() {
    let Some(net) = net() else { return };
    const LEN: usize = 1 << 20;
    net.ours.run(|| {
        let pool = Pool::new(512, 2048);
        let mut port = AfPacketPort::open("v0", &taking(85), &Share::alone()).unwrap();
        let mut kernel = KernelPath::open("plait0", &Share::alone()).unwrap();
        // Not what 1500 octets would hold: 1000 less 12 octets of timestamps.
        let (narrow, mss) = ("ip route replace 10.7.0.0/24 dev v0 src 10.7.0.9 advmss 1000", 988);
        assert!(sh(&net.ours, narrow));
        let listener = TcpListener::bind((KERNEL, 85)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let sender = net.peer.spawn_thread("sender", || {
            let to = SocketAddr::new(ip(KERNEL), 85);
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            stream.write_all(&pattern(LEN)).unwrap();
        });
        let (mut stream, mut text, mut largest) = (None, Vec::new(), 0);
        let (mut rx, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        let end = Instant::now() + Duration::from_secs(10);
        while text.len() < LEN && Instant::now() < end {
            port.receive(&pool, &mut rx);
            for mut frame in rx.drain(..) {
                frame.octets.trim_front(14);
                largest = largest.max(frame.octets.len());
                if frame.octets.len() > 1500 {
                    assert_eq!(frame.gso_size, mss, "as the sender's kernel would have cut it");
                }
                let RxFrame { octets, checksum, gso_size } = frame;
                assert!(kernel.give(&RxPacket { octets, checksum, gso_size, port: 0 }, 1500));
            }
            if let Ok((accepted, _)) = listener.accept() {
                accepted.set_nonblocking(true).unwrap();
                stream = Some(accepted);
            }
            if let Some(Ok(n)) = stream.as_mut().map(|s| s.read(&mut buffer)) {
                text.extend_from_slice(&buffer[..n]);
            }
        }
        assert!(text == pattern(LEN), "{} octets arrived", text.len());
        assert!(largest > 10_000, "super-segments took this way: {largest}");
        sender.unwrap().join().unwrap();
    });
    assert!(!sh(&net.ours, "ip link show plait0"), "the device has gone with its owner");
}
