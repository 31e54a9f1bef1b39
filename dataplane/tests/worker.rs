//! A worker on its own thread over real devices: neighbours, echo, commands, sleeping, the way back to the kernel.
#![forbid(unsafe_code)]

mod veth;

use pcap_tests::netlink;
use pcap_tests::netns::Namespace;
use plait_dataplane::appliance::Appliance;
use plait_dataplane::config::Config;
use plait_dataplane::run::{
    Engine, Io, IoMode, PortConfig, PortInfo, Running, WorkerConfig, start,
};
use plait_dataplane::steer::{SteerRule, Steering};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use stack::time::{Duration, Instant};
use stack::wire::{
    Control, Endpoint, FlowTuple, Options, Prefix, RxPacket, Segment, SeqNum, SynOptions, TxPacket,
    Unreachable, UnscaledWindow, emit,
};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command as Program;
use veth::{Net, ip};

/// Claims nothing, sends what it is told to.
#[derive(Default)]
struct Nobody {
    packets: Vec<RxPacket>,
    seen: Vec<Vec<u8>>,
    sending: Vec<TxPacket>,
    due: Option<Instant>,
    expired: u32,
    /// Sends a packet in every turn, to where there is no route.
    busy: bool,
}

impl Engine for Nobody {
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, _now: Instant) {
        self.seen.extend(rx.iter().map(|packet| packet.octets.to_vec()));
        self.packets.append(rx);
    }
    fn expire(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.expired += 1;
        }
    }
    fn transmit(&mut self, tx: &mut Vec<TxPacket>, _budget: usize, _now: Instant) {
        tx.append(&mut self.sending);
        if self.busy {
            let (local, remote) = (ip("172.16.5.5"), ip("203.0.113.1"));
            tx.push(syn(FlowTuple {
                local: Endpoint::new(local, 4000),
                remote: Endpoint::new(remote, 99),
            }));
        }
    }
    fn on_unreachable(&mut self, _packet: &TxPacket, _why: Unreachable, _now: Instant) {}
    fn deadline(&self) -> Option<Instant> {
        self.due
    }
    fn passed(&mut self, out: &mut Vec<RxPacket>) {
        out.append(&mut self.packets);
    }
}

/// Kernel addresses .9 and .2 on a veth pair.
fn net() -> Option<Net> {
    veth::pair(&["10.7.0.9"], &["10.7.0.2", "fd00::2"])
}

fn config(io: Io, rules: Vec<SteerRule>) -> WorkerConfig {
    WorkerConfig {
        ports: vec![PortConfig {
            name: "lan".into(),
            device: "v0".into(),
            io: Some(io),
            queues: vec![],
            owned: vec![
                Prefix { addr: ip("10.7.0.1"), len: 24 },
                Prefix { addr: ip("fd00::1"), len: 64 },
            ],
            gateways: vec![],
            steering: Steering { rules, except: vec![] },
        }],
        routes: vec![],
        tun: Some("plait0".into()),
        io_mode: IoMode::Adaptive { spin: Duration::from_micros(20) },
        core: None,
        frames: 4096,
        frame_size: 2048,
    }
}

fn begin(net: &Net, io: Io, rules: Vec<SteerRule>) -> Running<Nobody> {
    net.ours.run(|| start("worker", config(io, rules), |_| Nobody::default())).unwrap()
}

fn end(running: Running<Nobody>) {
    running.link.stop();
    running.thread.join().unwrap();
    assert!(!running.link.send(Box::new(|_| ())), "nobody is there any more");
}

/// One echo request from the peer's kernel; whether an answer comes within two seconds.
fn pings(net: &Net, to: &str) -> bool {
    let to = ip(to);
    net.peer.run(|| {
        let (domain, protocol, kind, reply) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8u8, 0u8),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut request = [kind, 0, 0, 0, 0x12, 0x34, 0, 1, b'p', b'l', b'a', b'i'];
        if to.is_ipv4() {
            let sum = stack::wire::checksum::sum(&request);
            request[2..4].copy_from_slice(&(!sum).to_be_bytes()); // ICMPv6 sockets do it themselves
        }
        let give_up = std::time::Instant::now() + Duration::from_secs(4);
        while std::time::Instant::now() < give_up {
            // A new IPv6 address is not usable for a while: the error, if any, passes.
            let _ = socket.send_to(&request, &SockAddr::from(SocketAddr::new(to, 0)));
            let mut answer = [0; 256];
            while let Ok(n) = socket.read(&mut answer) {
                let icmp = if to.is_ipv4() { &answer[20..n] } else { &answer[..n] };
                if icmp[0] == reply && icmp[4..] == request[4..] {
                    return true;
                }
            }
        }
        false
    })
}

#[test]
fn owned_addresses_resolve_and_answer_echo_on_every_kind_of_port() {
    let Some(net) = net() else { return };
    for io in [Io::AfPacket, Io::AfXdp, Io::Pnet] {
        let running = begin(&net, io, vec![]);
        assert!(pings(&net, "10.7.0.1"), "{io:?}");
        assert!(pings(&net, "fd00::1"), "{io:?}");
        assert!(pings(&net, "10.7.0.9"), "{io:?}: the kernel's own");
        end(running);
        assert!(net.peer.run(|| netlink::set_up("v1", false)).is_ok()); // forgets its neighbours
        net.peer.run(|| netlink::set_up("v1", true)).unwrap();
        net.peer.run(|| netlink::add_address("v1", ip("fd00::2"), 64)).ok();
    }
}

fn info(running: &Running<Nobody>) -> PortInfo {
    running.link.ask(|worker| worker.port_infos().next()).flatten().unwrap()
}

/// The kernel pings what Plait owns at the other end of a TAP and of a TUN device.
#[test]
fn the_kernel_at_the_other_end_of_a_tap_or_tun_device_gets_answers() {
    let Some(net) = net() else { return };
    for io in [Io::Tap, Io::Tun] {
        let mut config = WorkerConfig { tun: None, ..config(io, vec![]) };
        config.ports[0].device = "t0".into();
        for addr in ["10.7.0.2/24", "fd00::2/64"] {
            let mut command = Program::new("ip");
            command.args(["addr", "del", addr, "dev", "v1"]);
            let _ = net.peer.output(command);
        }
        let running = net.peer.run(|| start("worker", config, |_| Nobody::default())).unwrap();
        net.peer.run(|| netlink::add_address("t0", ip("10.7.0.2"), 24)).unwrap();
        net.peer.run(|| netlink::add_address("t0", ip("fd00::2"), 64)).unwrap();
        assert_eq!(info(&running).io, io);
        assert!(pings(&net, "10.7.0.1"), "{io:?}");
        assert!(pings(&net, "fd00::1"), "{io:?}");
        end(running);
    }
}

#[test]
fn what_suits_a_device_best_drives_it_and_says_why() {
    let Some(net) = net() else { return };
    let open = |device: &str, io| {
        let mut config = WorkerConfig { tun: None, ..config(Io::AfPacket, vec![]) };
        (config.ports[0].device, config.ports[0].io) = (device.into(), io);
        net.ours.run(|| start("worker", config, |_| Nobody::default()))
    };
    let veth = open("v0", None).unwrap();
    let chosen = info(&veth);
    assert_eq!((chosen.io, chosen.capabilities.segmentation), (Io::AfPacket, true));
    assert!(chosen.why.contains("virtual device"), "{}", chosen.why);
    assert!(pings(&net, "10.7.0.1"));
    end(veth);

    let mut command = Program::new("ip");
    command.args(["link", "add", "i0", "up", "type", "ifb"]);
    assert!(net.ours.output(command).unwrap().status.success());
    let ifb = open("i0", None).unwrap();
    assert_eq!(info(&ifb).io, Io::AfPacket);
    assert_eq!(info(&ifb).why, "the driver ifb has no XDP of its own");
    assert_eq!(ifb.warnings, [""; 0], "nothing is wrong with that");
    end(ifb);

    let first = open("i0", Some(Io::AfXdp)).unwrap();
    assert_eq!(info(&first).io, Io::AfXdp);
    let second = open("i0", None).unwrap();
    assert_eq!(info(&second).io, Io::AfPacket);
    assert!(second.warnings[0].contains("stop the other program"), "{:?}", second.warnings);
    end(second);
    end(first);
}

#[test]
fn an_io_that_cannot_be_had_is_refused_with_what_to_do() {
    let Some(net) = net() else { return };
    let first = begin(&net, Io::AfXdp, vec![]);
    let config = config(Io::AfXdp, vec![]);
    let second = net.ours.run(|| start("worker", config, |_| Nobody::default()));
    let Err(error) = second else { panic!("two programs drive one queue") };
    let error = error.to_string();
    assert!(error.starts_with("port lan: io = \"af-xdp\": v0: "), "{error}");
    assert!(error.contains("stop the other program"), "{error}");
    assert!(pings(&net, "10.7.0.1"), "the first one goes on");
    end(first);
}

#[test]
fn an_idle_worker_sleeps_until_its_deadline_or_a_command() {
    let Some(net) = net() else { return };
    let running = begin(&net, Io::AfPacket, vec![]);
    std::thread::sleep(Duration::from_millis(100));
    let before = running.link.ask(|w| w.stats().turns).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let turns = running.link.ask(|w| w.stats().turns).unwrap() - before;
    assert!(turns < 2000, "{turns} turns in 300 ms without anything to do");
    running.link.ask(|w| w.engine.due = Some(Instant::from_millis(1))).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(running.link.ask(|w| w.engine.expired), Some(1));
    end(running);
}

/// Nanoseconds that a thread of this process has been on a core.
fn cpu_time(thread: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// CPU time of the worker over two seconds without traffic.
fn idle_cpu_time(running: &Running<Nobody>) -> Duration {
    std::thread::sleep(Duration::from_millis(500)); // what IPv6 announces of itself
    let before = running.link.ask(|_| cpu_time("thread-self")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    Duration::from_nanos(running.link.ask(|_| cpu_time("thread-self")).unwrap() - before)
}

#[test]
fn an_idle_worker_costs_nothing_unless_it_polls() {
    let Some(net) = net() else { return };
    let adaptive = IoMode::Adaptive { spin: Duration::from_micros(50) };
    for io in [Io::AfPacket, Io::AfXdp] {
        for io_mode in [adaptive, IoMode::Interrupt, IoMode::BusyPoll] {
            let config = WorkerConfig { io_mode, ..config(io, vec![]) };
            let running = net.ours.run(|| start("worker", config, |_| Nobody::default())).unwrap();
            assert!(pings(&net, "10.7.0.1"), "{io:?} {io_mode:?}");
            let used = idle_cpu_time(&running);
            println!("{io:?} {io_mode:?}: {used:?} of 2 s");
            let sleeps = running.link.ask(|w| w.stats().sleeps).unwrap();
            if io_mode == IoMode::BusyPoll {
                assert_eq!(sleeps, 0, "{io:?}");
                // Not more: it may have to share its core with all that runs beside this test.
                assert!(used > Duration::from_millis(20), "{io:?}: {used:?}");
            } else {
                assert!(sleeps > 0, "{io:?} {io_mode:?}");
                assert!(used < Duration::from_millis(20), "{io:?} {io_mode:?}: {used:?}");
            }
            end(running);
        }
    }
}

#[test]
fn a_worker_with_something_to_do_in_every_turn_never_sleeps() {
    let Some(net) = net() else { return };
    for io_mode in [IoMode::Interrupt, IoMode::Adaptive { spin: Duration::from_micros(50) }] {
        let config = WorkerConfig { io_mode, ..config(Io::AfPacket, vec![]) };
        let running = net.ours.run(|| start("worker", config, |_| Nobody::default())).unwrap();
        running.link.ask(|w| w.engine.busy = true).unwrap();
        let before = running.link.ask(|w| (w.stats().sleeps, w.stats().turns)).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let after = running.link.ask(|w| (w.stats().sleeps, w.stats().turns)).unwrap();
        assert_eq!(after.0, before.0, "{io_mode:?}");
        assert!(after.1 > before.1 + 100, "{io_mode:?}: {} turns", after.1 - before.1);
        end(running);
    }
}

/// All of it: the worker with its shard, on two devices.
#[test]
fn an_idle_appliance_uses_less_than_a_hundredth_of_a_core() {
    let Some(net) = net() else { return };
    net.ours.join("w0", &net.peer, "w1").unwrap();
    let directory = std::env::temp_dir().join(format!("plait-idle-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!(
        "[node]\nname = \"idle-node\"\ncontrol = \"{}/s\"\n\
         [[port]]\nname = \"lan\"\ndevice = \"v0\"\naddresses = [\"10.7.0.1/24\"]\n\
         [[port]]\nname = \"wan\"\ndevice = \"w0\"\naddresses = [\"10.8.0.1/24\"]\n\
         [[path]]\naddress = \"10.8.0.1\"\nflags = [\"subflow\"]\n\
         [[rule]]\nname = \"all\"\nport = \"lan\"\naction = \"direct\"\n",
        directory.display()
    );
    let config = Config::parse("plait.toml", &text).unwrap();
    let appliance = net.ours.run(|| Appliance::start(config)).unwrap();
    assert!(pings(&net, "10.7.0.1"));
    std::thread::sleep(Duration::from_millis(500));
    let named = |task: &std::path::Path| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "idle-node\n")
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let task = tasks.into_iter().find(|task| named(task)).expect("the worker's thread");
    let thread = task.strip_prefix("/proc").unwrap().to_str().unwrap();
    let before = cpu_time(thread);
    std::thread::sleep(Duration::from_secs(2));
    let used = Duration::from_nanos(cpu_time(thread) - before);
    println!("appliance: {used:?} of 2 s");
    assert!(used < Duration::from_millis(20), "{used:?} of 2 s");
    appliance.stop().unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_link_that_goes_down_and_comes_back_goes_on() {
    let Some(net) = net() else { return };
    for io in [Io::AfPacket, Io::AfXdp] {
        let running = begin(&net, io, vec![]);
        assert!(pings(&net, "10.7.0.1"), "{io:?}");
        net.ours.run(|| netlink::set_up("v0", false)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let before = running.link.ask(|w| w.stats().turns).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let turns = running.link.ask(|w| w.stats().turns).unwrap() - before;
        assert!(turns < 2000, "{io:?}: {turns} turns in 200 ms on a dead link");
        net.ours.run(|| netlink::set_up("v0", true)).unwrap();
        assert!(pings(&net, "10.7.0.1"), "{io:?}: after the link came back");
        end(running);
    }
}

#[test]
fn a_device_that_is_taken_away_does_not_take_the_worker_along() {
    for io in [Io::AfPacket, Io::AfXdp] {
        let Some(net) = net() else { return };
        let running = begin(&net, io, vec![]);
        assert!(pings(&net, "10.7.0.1"), "{io:?}");
        let mut command = Program::new("ip");
        command.args(["link", "del", "v0"]);
        assert!(net.ours.output(command).unwrap().status.success());
        std::thread::sleep(Duration::from_millis(100));
        let before = running.link.ask(|w| w.stats().turns).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let turns = running.link.ask(|w| w.stats().turns).unwrap() - before;
        assert!(turns < 2000, "{io:?}: {turns} turns in 200 ms without a device");
        end(running);
    }
}

fn ip_link(namespace: &Namespace, args: &[&str]) {
    let mut command = Program::new("ip");
    command.arg("link").args(args);
    assert!(namespace.output(command).unwrap().status.success(), "ip link {args:?}");
}

/// Waits until the first port was opened `times` times again.
fn wait_until_reopened(running: &Running<Nobody>, times: u64) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while info(running).stats.reopened < times {
        assert!(std::time::Instant::now() < end, "{:?}", info(running));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_device_that_is_removed_and_made_again_is_driven_again_while_other_ports_go_on() {
    for io in [Io::AfPacket, Io::AfXdp, Io::Pnet] {
        let Some(net) = net() else { return };
        net.ours.join("w0", &net.peer, "w1").unwrap();
        net.peer.run(|| netlink::add_address("w1", ip("10.8.0.2"), 24)).unwrap();
        let mut config = config(io, vec![]);
        let mut other = config.ports[0].clone();
        (other.name, other.device) = ("wan".into(), "w0".into());
        other.owned = vec![Prefix { addr: ip("10.8.0.1"), len: 24 }];
        config.ports.push(other);
        let running = net.ours.run(|| start("worker", config, |_| Nobody::default())).unwrap();
        assert!(pings(&net, "10.7.0.1") && pings(&net, "10.8.0.1"), "{io:?}");
        let before = info(&running).stats;
        for times in 1..=2 {
            ip_link(&net.ours, &["del", "v0"]);
            assert!(pings(&net, "10.8.0.1"), "{io:?}: the other port goes on");
            assert_eq!(info(&running).stats.lost, times, "{io:?}");
            net.ours.join("v0", &net.peer, "v1").unwrap();
            net.peer.run(|| netlink::add_address("v1", ip("10.7.0.2"), 24)).unwrap();
            net.ours.run(|| netlink::add_address("v0", ip("10.7.0.9"), 24)).unwrap();
            wait_until_reopened(&running, times);
            assert!(pings(&net, "10.7.0.1"), "{io:?}: {:?}", info(&running));
            assert!(pings(&net, "10.8.0.1"), "{io:?}");
        }
        let after = info(&running);
        assert_eq!((after.io, after.stats.lost, after.stats.reopened), (io, 2, 2));
        assert!(after.stats.rx_frames > before.rx_frames, "counters go on: {after:?}");
        end(running);
    }
}

#[test]
fn a_tap_device_that_is_deleted_is_made_again() {
    let Some(net) = net() else { return };
    for io in [Io::Tap, Io::Tun] {
        let mut config = WorkerConfig { tun: None, ..config(io, vec![]) };
        config.ports[0].device = "t0".into();
        config.ports[0].owned = vec![Prefix { addr: ip("10.9.0.1"), len: 24 }];
        let running = net.peer.run(|| start("worker", config, |_| Nobody::default())).unwrap();
        ip_link(&net.peer, &["del", "t0"]);
        wait_until_reopened(&running, 1);
        net.peer.run(|| netlink::add_address("t0", ip("10.9.0.2"), 24)).unwrap();
        assert!(pings(&net, "10.9.0.1"), "{io:?}");
        end(running);
    }
}

/// A flow to the far side that the worker takes and nobody claims: the kernel forwards it as if Plait were not there.
#[test]
fn unclaimed_flows_are_forwarded_by_the_kernel() {
    const LEN: usize = 300_000;
    for io in [Io::AfPacket, Io::AfXdp] {
        let Some(net) = net() else { return };
        let far = Namespace::new("far").unwrap();
        net.ours.join("w0", &far, "w1").unwrap();
        net.ours.run(|| netlink::add_address("w0", ip("10.8.0.9"), 24)).unwrap();
        far.run(|| netlink::add_address("w1", ip("10.8.0.2"), 24)).unwrap();
        far.run(|| netlink::replace_route(ip("0.0.0.0"), 0, ip("10.8.0.9"))).unwrap();
        net.peer.run(|| netlink::replace_route(ip("0.0.0.0"), 0, ip("10.7.0.9"))).unwrap();
        net.ours.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
        net.ours.set_sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
        let running =
            begin(&net, io, vec![SteerRule::TcpTo { from: None, to: None, ports: 1..=u16::MAX }]);
        let listener = far.run(|| TcpListener::bind("10.8.0.2:90").unwrap());
        let server = std::thread::spawn(move || {
            let mut text = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut text).unwrap();
            text
        });
        net.peer.run(|| {
            let to = "10.8.0.2:90".parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            stream.write_all(&vec![7; LEN]).unwrap();
        });
        assert!(server.join().unwrap() == vec![7; LEN], "{io:?}");
        let stats = running.link.ask(|w| w.stats()).unwrap();
        assert!(stats.given_back > 5, "{io:?}: {stats:?}");
        assert_eq!(stats.unclaimed_dropped, 0, "{io:?}");
        end(running);
    }
}

/// A SYN from an address that is not ours: its next hop is resolved all the same, and the answer comes to us.
#[test]
fn a_port_that_owns_no_address_resolves_its_neighbors() {
    let Some(net) = net() else { return };
    net.ours.run(|| netlink::add_address("v0", ip("fd00::9"), 64)).unwrap();
    net.peer.run(|| netlink::replace_route(ip("0.0.0.0"), 0, ip("10.7.0.9"))).unwrap();
    net.peer.run(|| netlink::replace_route(ip("::"), 0, ip("fd00::9"))).unwrap();
    std::thread::sleep(Duration::from_millis(2500)); // duplicate address detection of both ends
    for io in [Io::AfPacket, Io::AfXdp] {
        let rule = SteerRule::TcpTo { from: None, to: None, ports: 4000..=4000 };
        let mut config = config(io, vec![rule]);
        config.ports[0].owned.clear();
        let running = net.ours.run(|| start("worker", config, |_| Nobody::default())).unwrap();
        for (from, to) in [("172.16.5.5", "10.7.0.2"), ("fd99::5", "fd00::2")] {
            let flow = FlowTuple {
                local: Endpoint::new(ip(from), 4000),
                remote: Endpoint::new(ip(to), 99),
            };
            running.link.ask(move |w| w.engine.sending.push(syn(flow))).unwrap();
            let answered = (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                running.link.ask(|w| std::mem::take(&mut w.engine.seen)).unwrap().len() == 1
            });
            let stats = running.link.ask(|w| (w.stats(), w.port_stats().next().map(|p| p.1)));
            assert!(answered, "{io:?}: {to} refuses: {stats:?}");
        }
        end(running);
    }
}

fn syn(flow: FlowTuple) -> TxPacket {
    let segment = Segment {
        seq: SeqNum(7),
        ack: None,
        control: Control::Syn,
        push: false,
        window: UnscaledWindow(1000),
        options: Options::Syn(SynOptions::default()),
        text: Default::default(),
        ..Default::default()
    };
    emit(flow, &segment, 0)
}
