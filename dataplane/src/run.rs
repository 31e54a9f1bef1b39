//! The run loop of one worker: one thread, one shard, its ports. The only place that reads a clock.
#![forbid(unsafe_code)]

mod choose;
mod engine;
mod link;
mod lost;
mod open;
mod start;

pub use open::SetupError;
pub use start::{Running, WorkerLink, start};

use crate::neighbor::Neighbors;
use crate::port::{
    Capabilities, Interest, KernelPath, Medium, Port, PortStats, RxFrame, TxBody, TxFrame, Waker,
    wait,
};
use crate::route::{Hop, Routes};
use crate::steer::Steering;
use crossbeam::channel::Receiver;
use stack::buf::{Chain, Pool};
use stack::time::{Duration, Instant, earliest};
use stack::wire::{Prefix, RxPacket, TxPacket, Unreachable, segment_packet};
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Packets asked of the engine in one turn.
const TX_BUDGET: usize = 256;
/// Frames that wait for one port with no room; more are dropped, as by a full queue of a router.
const MAX_PENDING: usize = 256;
/// Places of the waker and of the device monitor among what the loop sleeps for.
const WAKER: usize = 0;
const MONITOR: usize = 1;
/// How often ports that cannot wake us are looked at.
const BLIND_WAIT: Duration = Duration::from_millis(1);

/// How a port is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// AF_XDP sockets, sharing the worker's pool as their UMEM.
    AfXdp,
    /// An AF_PACKET socket with virtio-net headers: super-segments both ways.
    AfPacket,
    /// `pnet_datalink`: portable and slow.
    Pnet,
    /// A TAP device: the kernel of this machine, or a virtual machine, at the other end.
    Tap,
    /// A TUN device: as TAP, without a link layer.
    Tun,
}

impl Io {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Io::AfXdp => "af-xdp",
            Io::AfPacket => "af-packet",
            Io::Pnet => "pnet",
            Io::Tap => "tap",
            Io::Tun => "tun",
        }
    }
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoMode {
    /// It looks at its ports again, for ever: the least delay, and all of a core.
    BusyPoll,
    /// It sleeps at once, until the kernel wakes it: the least CPU.
    Interrupt,
    /// It looks again for a while, giving way to whoever else can run on its core, then it sleeps: within a burst nobody has
    /// to be woken, and an idle one costs nothing.
    Adaptive {
        /// For how long.
        spin: Duration,
    },
}

impl IoMode {
    /// How long to look in vain before sleeping; `None`: for ever.
    fn spin(self) -> Option<Duration> {
        match self {
            IoMode::BusyPoll => None,
            IoMode::Interrupt => Some(Duration::ZERO),
            IoMode::Adaptive { spin } => Some(spin),
        }
    }
}

/// One port of a worker.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The name that configuration and counters use.
    pub name: String,
    /// The network device.
    pub device: String,
    /// How to drive it; `None`: by whatever suits the device best.
    pub io: Option<Io>,
    /// AF_XDP queues to bind; empty: all.
    pub queues: Vec<u32>,
    /// Addresses that Plait owns there, with the length of their network's prefix.
    pub owned: Vec<Prefix>,
    /// Default gateways (one per family).
    pub gateways: Vec<IpAddr>,
    /// What is taken from the kernel. `Owned` rules for `owned` and exceptions for the kernel's addresses are added.
    pub steering: Steering,
}

/// A static route.
#[derive(Clone, Debug)]
pub struct StaticRoute {
    /// Destinations.
    pub to: Prefix,
    /// Index of the port.
    pub port: usize,
    /// The next hop; `None`: the destination is a neighbour.
    pub via: Option<IpAddr>,
}

/// What a worker is made of.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its ports; their order is the numbering of `RxPacket::port`.
    pub ports: Vec<PortConfig>,
    /// Static routes besides gateways and connected networks.
    pub routes: Vec<StaticRoute>,
    /// Name of the TUN device that gives unclaimed packets back to the kernel; `None`: they are dropped.
    pub tun: Option<String>,
    /// What to do when there is nothing to do.
    pub io_mode: IoMode,
    /// The core to run on.
    pub core: Option<usize>,
    /// Frames in the pool.
    pub frames: u32,
    /// Octets per frame; 2048 or 4096 where a port is AF_XDP.
    pub frame_size: usize,
}

/// The protocol side of a worker: a shard, or something simpler in tests.
pub trait Engine {
    /// Takes all packets of `rx`.
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, now: Instant);
    /// Runs what is due.
    fn expire(&mut self, now: Instant);
    /// Appends at most `budget` packets to send.
    fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, now: Instant);
    /// A packet that `transmit` gave has nowhere to go: its next hop does not answer, or there is no route.
    fn on_unreachable(&mut self, packet: &TxPacket, why: Unreachable, now: Instant);
    /// The MTU in octets of every port's device, by the number of the port: at the start and when one has changed.
    fn on_mtus(&mut self, _mtus: &[u32]) {}
    /// When `expire` has something to do.
    fn deadline(&self) -> Option<Instant>;
    /// Moves packets that nobody claimed into `out`.
    fn passed(&mut self, out: &mut Vec<RxPacket>);
}

/// What a worker counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerStats {
    /// Turns of the loop.
    pub turns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Frames for other hosts, and packets to us of a kind that no one here wants.
    pub ignored: u64,
    /// Packets given back to the kernel.
    pub given_back: u64,
    /// Unclaimed packets dropped: no way back to the kernel.
    pub unclaimed_dropped: u64,
    /// Packets without a route.
    pub no_route: u64,
    /// Packets whose next hop did not answer, or with too many before them waiting for it.
    pub no_neighbor: u64,
    /// Packets dropped because a port had no room for too long.
    pub tx_overflow: u64,
    /// Super-segments cut in software.
    pub segmented: u64,
}

/// Runs on the worker's own thread, between two turns of its loop.
pub type Command<E> = Box<dyn FnOnce(&mut Worker<E>) + Send>;

/// A port as an operator sees it.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Its device.
    pub device: String,
    /// How it is driven.
    pub io: Io,
    /// Why so.
    pub why: String,
    /// What it does by itself.
    pub capabilities: Capabilities,
    /// Its counters.
    pub stats: PortStats,
}

struct PortSlot {
    name: String,
    device: String,
    io: Io,
    why: String,
    port: Box<dyn Port>,
    capabilities: Capabilities,
    mac: [u8; 6],
    /// Takes flows between others: the way back to a peer is the way its packets came.
    intercepts: bool,
    /// Routed, not sent yet.
    pending: Vec<TxFrame>,
    /// What it takes to open the port again, and whether that is due.
    watch: lost::Watch,
}

impl PortSlot {
    /// Counters of all the ports that have been here.
    fn stats(&self) -> PortStats {
        self.watch.past.plus(self.port.stats())
    }
}

/// One thread's worth of Plait. Built and run on that thread (frames are `!Send`).
pub struct Worker<E> {
    /// The protocol side.
    pub engine: E,
    pool: Pool,
    ports: Vec<PortSlot>,
    neighbors: Neighbors,
    routes: Routes,
    kernel_path: Option<KernelPath>,
    devices: lost::Devices,
    commands: Receiver<Command<E>>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    io_mode: IoMode,
    warnings: Vec<String>,
    stats: WorkerStats,
    // Lists that keep their room from turn to turn.
    frames: Vec<RxFrame>,
    received: Vec<RxPacket>,
    sending: Vec<TxPacket>,
}

impl<E: Engine> Worker<E> {
    /// Counters of the loop.
    pub fn stats(&self) -> WorkerStats {
        WorkerStats { no_neighbor: self.neighbors.dropped(), ..self.stats }
    }

    /// Counters of every port, by name.
    pub fn port_stats(&self) -> impl Iterator<Item = (&str, PortStats)> {
        self.ports.iter().map(|slot| (slot.name.as_str(), slot.stats()))
    }

    /// What every port is and has done.
    pub fn port_infos(&self) -> impl Iterator<Item = PortInfo> {
        self.ports.iter().map(|slot| PortInfo {
            name: slot.name.clone(),
            device: slot.device.clone(),
            io: slot.io,
            why: slot.why.clone(),
            capabilities: slot.capabilities,
            stats: slot.stats(),
        })
    }

    /// The worker's frames.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What could not be set up as well as it might be, and what to do about it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Runs until told to stop.
    pub fn run(&mut self) {
        let origin = std::time::Instant::now();
        let clock = || Instant::ZERO + origin.elapsed();
        let mut busy_at = clock();
        while !self.stop.load(Ordering::Relaxed) {
            let now = clock();
            if self.turn(now) {
                busy_at = now;
                continue;
            }
            match self.io_mode.spin() {
                None => {}
                Some(spin) if now.since(busy_at) < spin => {
                    std::thread::yield_now(); // who sends to us may be waiting for this core
                }
                Some(_) => {
                    self.sleep(clock());
                    busy_at = clock();
                }
            }
        }
    }

    /// One turn of the loop. True: there was something to do.
    pub fn turn(&mut self, now: Instant) -> bool {
        self.stats.turns += 1;
        self.watch_devices(now);
        let mut busy = self.receive(now);
        self.engine.ingest(&mut self.received, now);
        self.give_back();
        self.engine.expire(now);
        let mut sending = std::mem::take(&mut self.sending);
        self.engine.transmit(&mut sending, TX_BUDGET, now);
        busy |= !sending.is_empty();
        for packet in sending.drain(..) {
            self.route(packet, now);
        }
        self.sending = sending;
        self.neighbors.on_deadline(now);
        while let Some(packet) = self.neighbors.poll_unresolved() {
            self.engine.on_unreachable(&packet, Unreachable::Host, now);
        }
        self.collect_neighbors();
        self.flush();
        busy | self.run_commands()
    }

    fn receive(&mut self, now: Instant) -> bool {
        let mut frames = std::mem::take(&mut self.frames);
        let mut busy = false;
        for port in 0..self.ports.len() {
            self.ports[port].port.receive(&self.pool, &mut frames);
            busy |= !frames.is_empty();
            for frame in frames.drain(..) {
                self.on_frame(port as u16, frame, now);
            }
        }
        self.frames = frames;
        busy
    }

    fn give_back(&mut self) {
        self.engine.passed(&mut self.received);
        for packet in self.received.drain(..) {
            if link::destination(&packet).is_some_and(|addr| self.neighbors.is_ours(addr)) {
                self.stats.ignored += 1; // the kernel does not know this address, so it has no use for it
                continue;
            }
            let mtu = self.ports.get(usize::from(packet.port)).map_or(0, |s| s.capabilities.mtu);
            let given = self.kernel_path.as_mut().is_some_and(|k| k.give(&packet, mtu));
            let counter = match given {
                true => &mut self.stats.given_back,
                false => &mut self.stats.unclaimed_dropped,
            };
            *counter += 1;
        }
    }

    fn route(&mut self, packet: TxPacket, now: Instant) {
        match self.routes.route(packet.flow.local.addr, packet.flow.remote.addr) {
            Some(Hop::Known { port, mac }) => self.send(port, mac, packet),
            Some(Hop::Neighbor { port, .. }) if self.is_bare(port) => {
                self.send(port, [0; 6], packet)
            }
            Some(Hop::Neighbor { port, addr }) => match self.neighbors.lookup(port, addr, now) {
                Some(mac) => self.send(port, mac, packet),
                None => self.neighbors.push(port, addr, packet, now),
            },
            None => {
                self.stats.no_route += 1;
                self.engine.on_unreachable(&packet, Unreachable::Network, now);
            }
        }
    }

    /// Whether a port has no link layer, so that nobody is there to be resolved.
    fn is_bare(&self, port: u16) -> bool {
        let slot = self.ports.get(usize::from(port));
        slot.is_some_and(|slot| slot.capabilities.medium == Medium::Ip)
    }

    /// Queues a packet for a port, cut to segments where the port cannot do that.
    fn send(&mut self, port: u16, to: [u8; 6], packet: TxPacket) {
        let Some(slot) = self.ports.get_mut(usize::from(port)) else { return };
        let link = link::header(slot.capabilities.medium, to, slot.mac, &packet);
        if packet.is_ready_made() {
            // An empty pool drops it: whoever it is for asks again.
            if let Some(whole) = Chain::copy_from(&self.pool, 128, &packet.header) {
                slot.pending.push(TxFrame { link, body: TxBody::Whole(whole) });
            }
        } else if packet.is_super_segment() && !slot.capabilities.segmentation {
            self.stats.segmented += 1;
            let frames = segment_packet(packet)
                .map(|packet| TxFrame { link: link.clone(), body: TxBody::Tcp(packet) });
            slot.pending.extend(frames);
        } else {
            slot.pending.push(TxFrame { link, body: TxBody::Tcp(packet) });
        }
        if slot.pending.len() >= MAX_PENDING {
            slot.port.transmit(&mut slot.pending);
            self.stats.tx_overflow += slot.pending.len().saturating_sub(MAX_PENDING) as u64;
            slot.pending.truncate(MAX_PENDING);
        }
    }

    /// Requests, answers, and packets that have waited for an answer.
    fn collect_neighbors(&mut self) {
        while let Some((port, frame)) = self.neighbors.poll_transmit() {
            let Some(slot) = self.ports.get_mut(usize::from(port)) else { continue };
            let bare = slot.capabilities.medium == Medium::Ip;
            if bare && frame.get(12..14) == Some(&link::ARP.to_be_bytes()) {
                continue; // nobody is there to be asked or told
            }
            let link = frame.iter().take(if bare { 0 } else { 14 }).copied().collect();
            // An empty pool drops it, as a full queue would: it is asked or answered again.
            if let Some(rest) = frame.get(14..).and_then(|r| Chain::copy_from(&self.pool, 128, r)) {
                slot.pending.push(TxFrame { link, body: TxBody::Whole(rest) });
            }
        }
        while let Some((port, mac, packet)) = self.neighbors.poll_resolved() {
            self.send(port, mac, packet);
        }
    }

    fn flush(&mut self) {
        for slot in &mut self.ports {
            if !slot.pending.is_empty() {
                slot.port.transmit(&mut slot.pending);
            }
        }
    }

    fn run_commands(&mut self) -> bool {
        let mut any = false;
        while let Ok(command) = self.commands.try_recv() {
            command(self);
            any = true;
        }
        any
    }

    /// Waits for a frame, a command, room to send, or the next deadline.
    fn sleep(&mut self, now: Instant) {
        self.stats.sleeps += 1;
        let deadline = earliest(self.engine.deadline(), self.neighbors.deadline());
        let deadline = earliest(deadline, self.next_attempt());
        let mut timeout = deadline.map(|at| at.since(now));
        let blind = |slot: &PortSlot| slot.port.fds().is_empty() && slot.watch.lost.is_none();
        if self.ports.iter().any(blind) {
            timeout = Some(timeout.map_or(BLIND_WAIT, |t| t.min(BLIND_WAIT)));
        }
        let ready = wait(self.interests(), timeout);
        if ready.has(WAKER) {
            self.waker.clear();
        }
        self.devices.noticed |= ready.has(MONITOR);
    }

    fn interests(&self) -> impl Iterator<Item = (RawFd, Interest)> {
        let wake = (self.waker.fd(), Interest::Readable);
        let ports = self.ports.iter().flat_map(|slot| {
            let interest = match slot.pending.is_empty() {
                true => Interest::Readable,
                false => Interest::ReadableOrWritable,
            };
            slot.port.fds().iter().map(move |fd| (*fd, interest))
        });
        let changes = (self.devices.monitor.fd(), Interest::Readable);
        [wake, changes].into_iter().chain(ports)
    }
}

#[cfg(test)]
mod tests;
