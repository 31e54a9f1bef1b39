//! The run loop of one worker: one thread, one shard, its ports. The only place that reads a clock.
#![forbid(unsafe_code)]

mod choose;
mod config;
mod cross;
mod engine;
mod link;
mod lost;
mod mailbox;
mod open;
mod start;
mod stats;

pub use config::{Io, IoMode, PortConfig, StaticRoute, WorkerConfig};
pub use cross::MAX_WORKERS;
pub use engine::Engine;
pub use open::SetupError;
pub use start::{Running, WorkerLink, start, start_all};
pub use stats::{PortInfo, WorkerStats};

use crate::neighbor::Neighbors;
use crate::port::{
    Capabilities, Interest, KernelPath, Medium, Port, PortStats, RxFrame, TxBody, TxFrame, wait,
};
use crate::route::{Hop, Routes};
use cross::Crew;
use crossbeam::channel::Receiver;
use stack::buf::{Chain, Pool};
use stack::shard::Away;
use stack::time::{Duration, Instant, earliest};
use stack::wire::{RxPacket, TxPacket, Unreachable, segment_packet};
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

/// Runs on the worker's own thread, between two turns of its loop.
pub type Command<E> = Box<dyn FnOnce(&mut Worker<E>) + Send>;

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
    crew: Crew,
    stop: Arc<AtomicBool>,
    io_mode: IoMode,
    warnings: Vec<String>,
    stats: WorkerStats,
    // Lists that keep their room from turn to turn.
    frames: Vec<RxFrame>,
    received: Vec<RxPacket>,
    crossed: Vec<RxPacket>,
    away: Vec<(u32, Away)>,
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

    /// Which of its node's workers it is, from 0.
    pub fn number(&self) -> u32 {
        self.crew.number
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
        busy |= self.take_mail(now);
        self.engine.ingest(&mut self.received, now);
        self.give_back();
        self.engine.expire(now);
        let mut sending = std::mem::take(&mut self.sending);
        self.engine.transmit(&mut sending, TX_BUDGET, now);
        busy |= !sending.is_empty();
        self.hand_over();
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
        if self.crew.is_held_back() {
            return false;
        }
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

    /// Waits for a frame, mail, a command, room to send, or the next deadline.
    fn sleep(&mut self, now: Instant) {
        if !self.crew.mine().lie_down() {
            return;
        }
        self.stats.sleeps += 1;
        let deadline = earliest(self.engine.deadline(), self.neighbors.deadline());
        let deadline = earliest(deadline, self.next_attempt());
        let mut timeout = deadline.map(|at| at.since(now));
        let blind = |slot: &PortSlot| slot.port.fds().is_empty() && slot.watch.lost.is_none();
        if self.ports.iter().any(blind) {
            timeout = Some(timeout.map_or(BLIND_WAIT, |t| t.min(BLIND_WAIT)));
        }
        let ready = wait(self.interests(), timeout);
        self.crew.mine().rise();
        if ready.has(WAKER) {
            self.crew.mine().waker().clear();
        }
        self.devices.noticed |= ready.has(MONITOR);
    }

    fn interests(&self) -> impl Iterator<Item = (RawFd, Interest)> {
        let wake = (self.crew.mine().waker().fd(), Interest::Readable);
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
