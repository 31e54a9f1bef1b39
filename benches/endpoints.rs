//! Two endpoints in one thread: our TCP and MPTCP, each in a shard, against smoltcp over the same packets of 1,500 octets.
//!
//! Counted is everything from a program's octets to packets with finished checksums, and back to the other program's buffer;
//! what lies between is a queue of octets for all of them.
#![allow(missing_docs, reason = "a program")]
#![forbid(unsafe_code)]

use plait_benches::ends::{BUFFER, Pair, Queue, WRITE, address};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use stack::time::{Duration, Instant};
use std::time::Instant as Clock;

const SEGMENT: f64 = 1_448.0;
const OCTETS: u64 = 400_000_000;
const ROUNDS: usize = 5;

/// Nanoseconds per 1,448 octets from one end of ours to the other.
fn ours(subflows: u8) -> f64 {
    let mut pair = Pair::new(subflows);
    let mut begun = None;
    loop {
        let read = pair.turn();
        match begun {
            None if read > OCTETS / 10 => begun = Some((Clock::now(), read)),
            Some((at, from)) if read > OCTETS => {
                return at.elapsed().as_nanos() as f64 / ((read - from) as f64 / SEGMENT);
            }
            _ => {}
        }
    }
}

#[derive(Default)]
struct Queues {
    rx: Queue,
    tx: Queue,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Queue);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut octets = vec![0; len];
        let result = f(&mut octets);
        self.0.push_back(octets);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

struct Smol {
    device: Queues,
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Smol {
    fn new(side: u8) -> Smol {
        let mut device = Queues::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut iface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::from(address(side, 1)), 24));
        });
        let mut sockets = SocketSet::new(vec![]);
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER as usize]);
        let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Smol { device, iface, sockets, handle }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn poll(&mut self, now: Instant, out: &mut Queue) {
        let now = smoltcp::time::Instant::from_micros(now.as_micros() as i64);
        self.iface.poll(now, &mut self.device, &mut self.sockets);
        out.append(&mut self.device.tx);
    }
}

/// As [`ours`], for smoltcp.
fn smoltcp() -> f64 {
    let (mut a, mut b) = (Smol::new(1), Smol::new(2));
    b.socket().listen(80).expect("a port");
    let handle = a.handle;
    let remote = (IpAddress::from(address(2, 1)), 80);
    let socket = a.sockets.get_mut::<tcp::Socket<'_>>(handle);
    socket.connect(a.iface.context(), remote, 4000).expect("an address");
    let (written, mut buffer) = (vec![7u8; WRITE], vec![0; 1 << 20]);
    let mut now = Instant::ZERO + Duration::from_secs(1);
    let (mut read, mut begun) = (0u64, None);
    loop {
        while a.socket().can_send() && a.socket().send_slice(&written).is_ok_and(|n| n == WRITE) {}
        a.poll(now, &mut b.device.rx);
        b.poll(now, &mut a.device.rx);
        while b.socket().can_recv() {
            read += b.socket().recv_slice(&mut buffer).map_or(0, |n| n as u64);
        }
        b.poll(now, &mut a.device.rx);
        now += Duration::from_micros(50);
        match begun {
            None if read > OCTETS / 10 => begun = Some((Clock::now(), read)),
            Some((at, from)) if read > OCTETS => {
                return at.elapsed().as_nanos() as f64 / ((read - from) as f64 / SEGMENT);
            }
            _ => assert!(now < Instant::ZERO + Duration::from_secs(600), "it stands still"),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    type Contender = (&'static str, fn() -> f64);
    let contenders: [Contender; 5] = [
        ("smoltcp", smoltcp),
        ("plain TCP", || ours(0)),
        ("MPTCP, 1 subflow", || ours(1)),
        ("MPTCP, 2 subflows", || ours(2)),
        ("MPTCP, 8 subflows", || ours(8)),
    ];
    if let Some(name) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) {
        let chosen = contenders.iter().filter(|(contender, _)| contender.contains(&name));
        chosen.for_each(|(name, run)| println!("{name}: {:.0} ns per 1,448 octets", run()));
        return;
    }
    let mut times = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (times, (_, run)) in times.iter_mut().zip(&contenders) {
            times.push(run());
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("both ends, MTU 1500, one connection; median of {ROUNDS} rounds in turn");
    for ((name, _), time) in contenders.iter().zip(&medians) {
        println!(
            "{name:<18} {time:6.0} ns per 1,448 octets, {:5.2} x smoltcp, {:4.2} of plain TCP",
            medians[0] / time,
            medians[1] / time
        );
    }
}
