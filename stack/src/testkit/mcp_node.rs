//! A conversion point: one shard of bridges, and a kernel that forwards what it passes.
#![forbid(unsafe_code)]

use super::host::{CHUNK, received, send};
use super::{Node, Outbox, Routes};
use crate::buf::Pool;
use crate::mcp::{Bridge, McpConfig};
use crate::rng::Rng;
use crate::shard::{Shard, ShardConfig};
use crate::tcp::CloseReason;
use crate::time::Instant;
use crate::wire::{RxPacket, TxPacket};
use alloc::vec::Vec;
use core::net::IpAddr;

/// Packets that one round of transmitting may yield.
const BUDGET: usize = 256;

/// A shard with interfaces. What is not its own goes where the routes say.
pub struct McpNode {
    shard: Shard<Bridge>,
    pool: Pool,
    routes: Routes,
    rx: Vec<RxPacket>,
    tx: Vec<TxPacket>,
    /// The fewest frames that were ever free.
    pub least_free: u32,
    /// Packets that found the pool empty.
    pub no_frame: u64,
    /// Packets that were passed on as they came.
    pub passed: u64,
}

impl McpNode {
    /// A conversion point whose own addresses are `owned`, with a pool of `frames`.
    pub fn new(
        config: McpConfig,
        owned: Vec<IpAddr>,
        routes: Routes,
        frames: u32,
        rng: Rng,
    ) -> McpNode {
        let pool = Pool::new(frames, CHUNK);
        let shard = ShardConfig { owned, ..ShardConfig::default() };
        McpNode {
            shard: Shard::new(shard, config, pool.clone(), rng),
            pool,
            routes,
            rx: Vec::new(),
            tx: Vec::new(),
            least_free: frames,
            no_frame: 0,
            passed: 0,
        }
    }

    /// The shard.
    pub fn shard(&self) -> &Shard<Bridge> {
        &self.shard
    }

    /// Orders the end of every connection.
    pub fn abort_all(&mut self, now: Instant) {
        self.shard.for_each(now, |bridge, _, _| bridge.abort(CloseReason::Aborted));
    }

    /// What keeps it from being as it was before the first packet; `None` if nothing does.
    pub fn leftovers(&self) -> Option<alloc::string::String> {
        let occupancy = self.shard.occupancy();
        let held = self.pool.capacity() - self.pool.free();
        let clean =
            occupancy.sessions + occupancy.flows + occupancy.tokens + occupancy.half_open == 0;
        (!clean || held > 0).then(|| alloc::format!("{held} frames held, {occupancy:?}"))
    }
}

impl Node for McpNode {
    fn receive(&mut self, iface: usize, packet: Vec<u8>, _now: Instant) {
        match received(&self.pool, &packet, iface as u16) {
            Some(packet) => self.rx.push(packet),
            None => self.no_frame += 1,
        }
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        self.shard.ingest(&mut self.rx, now);
        self.shard.expire(now);
        loop {
            self.shard.transmit(&mut self.tx, BUDGET, now);
            let more = self.tx.len() >= BUDGET;
            for packet in self.tx.drain(..) {
                send(packet, &self.routes, out);
            }
            if !more {
                break;
            }
        }
        for packet in self.shard.passed() {
            let octets = packet.octets.to_vec();
            let to = super::packet::addresses(&octets).and_then(|(_, dst)| self.routes.lookup(dst));
            if let Some(iface) = to.filter(|iface| *iface != usize::from(packet.port)) {
                self.passed += 1;
                out.push((iface, octets));
            }
        }
        self.least_free = self.least_free.min(self.pool.free());
    }

    fn deadline(&self) -> Option<Instant> {
        self.shard.deadline()
    }
}
