//! A conversion point: shards of bridges, and a kernel that forwards what they pass.
#![forbid(unsafe_code)]

use super::host::{CHUNK, received, send};
use super::packet::{TcpPacket, addresses};
use super::{Node, Outbox, Routes};
use crate::buf::Pool;
use crate::mcp::{Bridge, McpConfig};
use crate::rng::Rng;
use crate::shard::{Away, Homes, Occupancy, SessionId, Shard, ShardConfig};
use crate::tcp::CloseReason;
use crate::time::Instant;
use crate::wire::{RxPacket, TxPacket};
use alloc::vec::Vec;
use core::net::IpAddr;

/// Packets that one round of transmitting may yield.
const BUDGET: usize = 256;

/// Shards with interfaces. What is not their own goes where the routes say.
pub struct McpNode {
    shards: Vec<Shard<Bridge>>,
    /// Which shard a flow's packets arrive at: with several, mostly not at their home.
    front: Homes,
    pool: Pool,
    routes: Routes,
    rx: Vec<Vec<RxPacket>>,
    tx: Vec<TxPacket>,
    /// The fewest frames that were ever free.
    pub least_free: u32,
    /// Packets that found the pool empty.
    pub no_frame: u64,
    /// Packets that were passed on as they came.
    pub passed: u64,
    /// Packets that one shard handed to another.
    pub crossed: u64,
}

impl McpNode {
    /// A conversion point of so many shards, whose own addresses are `owned`, with a pool of `frames`.
    pub fn new(
        (shards, config): (u32, McpConfig),
        owned: Vec<IpAddr>,
        routes: Routes,
        frames: u32,
        mut rng: Rng,
    ) -> McpNode {
        let pool = Pool::new(frames, CHUNK);
        let one = |index, homes, rng| {
            let shard =
                ShardConfig { homes, index, owned: owned.clone(), ..ShardConfig::default() };
            Shard::new(shard, config.clone(), pool.clone(), rng)
        };
        let (all, front) = if shards > 1 {
            let homes = Homes { shards, key: rng.u32() };
            let all =
                (0..shards).map(|index| one(index, homes, Rng::from_number(rng.u64()))).collect();
            (all, Homes { shards, key: rng.u32() })
        } else {
            (Vec::from([one(0, Homes::ALONE, rng)]), Homes::ALONE)
        };
        McpNode {
            rx: all.iter().map(|_| Vec::new()).collect(),
            shards: all,
            front,
            pool,
            routes,
            tx: Vec::new(),
            least_free: frames,
            no_frame: 0,
            passed: 0,
            crossed: 0,
        }
    }

    /// The first shard.
    pub fn shard(&self) -> &Shard<Bridge> {
        &self.shards[0]
    }

    /// All shards.
    pub fn shards(&self) -> &[Shard<Bridge>] {
        &self.shards
    }

    /// Orders the end of every connection.
    pub fn abort_all(&mut self, now: Instant) {
        for shard in &mut self.shards {
            let ids: Vec<SessionId> = shard.ids().collect();
            for id in ids {
                shard.run(id, now, |bridge, _, _| bridge.abort(CloseReason::Aborted));
            }
        }
    }

    /// What keeps it from being as it was before the first packet; `None` if nothing does.
    pub fn leftovers(&self) -> Option<alloc::string::String> {
        let held = self.pool.capacity() - self.pool.free();
        let all: Vec<Occupancy> = self.shards.iter().map(Shard::occupancy).collect();
        let clean = all.iter().all(|o| o.sessions + o.flows + o.tokens + o.half_open == 0);
        (!clean || held > 0).then(|| alloc::format!("{held} frames held, {all:?}"))
    }

    /// Lets shards tell and hand each other what is theirs.
    fn exchange(&mut self, now: Instant) {
        let mut mail: Vec<(u32, u32, Away)> = Vec::new();
        for (by, shard) in (0..).zip(&mut self.shards) {
            mail.extend(shard.away().map(|(to, what)| (by, to, what)));
        }
        for (by, to, what) in mail {
            let shard = &mut self.shards[to as usize];
            match what {
                Away::Adopted(flow) => shard.on_adopted(flow, by),
                Away::Released(flow) => shard.on_released(flow, by),
                Away::Packet(packet) => {
                    self.crossed += 1;
                    shard.ingest_crossed(&mut Vec::from([packet]), now);
                }
            }
        }
    }
}

impl Node for McpNode {
    fn receive(&mut self, iface: usize, packet: Vec<u8>, _now: Instant) {
        let flow = (self.shards.len() > 1).then(|| TcpPacket::parse(packet.clone()).ok()).flatten();
        let at = flow.map_or(0, |tcp| self.front.home(&tcp.flow()) as usize);
        match received(&self.pool, &packet, iface as u16) {
            Some(packet) => self.rx[at].push(packet),
            None => self.no_frame += 1,
        }
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        for (shard, rx) in self.shards.iter_mut().zip(&mut self.rx) {
            shard.ingest(rx, now);
        }
        // A packet crosses twice at most: to its home, and from there to the shard that adopted its flow.
        self.exchange(now);
        self.exchange(now);
        for at in 0..self.shards.len() {
            self.shards[at].expire(now);
            loop {
                self.shards[at].transmit(&mut self.tx, BUDGET, now);
                self.exchange(now);
                let more = self.tx.len() >= BUDGET;
                for packet in self.tx.drain(..) {
                    send(packet, &self.routes, out);
                }
                if !more {
                    break;
                }
            }
            for packet in self.shards[at].passed() {
                let octets = packet.octets.to_vec();
                let to = addresses(&octets).and_then(|(_, dst)| self.routes.lookup(dst));
                if let Some(iface) = to.filter(|iface| *iface != usize::from(packet.port)) {
                    self.passed += 1;
                    out.push((iface, octets));
                }
            }
        }
        self.least_free = self.least_free.min(self.pool.free());
    }

    fn deadline(&self) -> Option<Instant> {
        self.shards.iter().filter_map(Shard::deadline).min()
    }
}
