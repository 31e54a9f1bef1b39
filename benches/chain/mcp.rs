//! A conversion point without ports, and what it costs.
#![forbid(unsafe_code)]

use super::device::{Device, Octets, pool};
use stack::buf::Pool;
use stack::mcp::{Bridge, McpConfig};
use stack::rng::Rng;
use stack::shard::{Shard, ShardConfig};
use stack::time::Instant;
use stack::wire::{RxPacket, TxPacket};
use std::collections::VecDeque;
use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;

/// Packets that a conversion point hands down at a time.
const BUDGET: usize = 256;

/// Which of the two it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Near the client.
    Umcp,
    /// Near the server.
    Dmcp,
}

/// What a conversion point did so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Time from a burst in frames to packets ready for the device.
    pub spent: Duration,
    /// Packets in.
    pub packets_in: u64,
    /// Packets out.
    pub packets_out: u64,
}

/// A conversion point.
pub struct Mcp {
    place: Place,
    shard: Shard<Bridge>,
    pool: Pool,
    device: Device,
    /// Packets that wait for it.
    pub inbox: VecDeque<Octets>,
    /// What it did.
    pub work: Work,
    received: Vec<RxPacket>,
    sending: Vec<TxPacket>,
    finished: Vec<TxPacket>,
}

impl Mcp {
    /// One with these addresses of its own.
    pub fn new(
        place: Place,
        config: McpConfig,
        owned: Vec<IpAddr>,
        device: Device,
        frames: u32,
    ) -> Mcp {
        let pool = pool(frames);
        let rng = Rng::from_number(owned.len() as u64);
        let shard = ShardConfig { owned, ..ShardConfig::default() };
        Mcp {
            place,
            shard: Shard::new(shard, config, pool.clone(), rng),
            pool,
            device,
            inbox: VecDeque::new(),
            work: Work::default(),
            received: Vec::new(),
            sending: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Connections that it bridges.
    pub fn sessions(&self) -> usize {
        self.shard.occupancy().sessions
    }

    /// Takes all that waits, burst by burst; what it answers goes to `out`.
    pub fn run(&mut self, now: Instant, mut out: impl FnMut(IpAddr, Octets)) {
        loop {
            self.device.receive(&mut self.inbox, &self.pool, &mut self.received);
            self.work.packets_in += self.received.len() as u64;
            let more = self.timed(Step::Burst(now));
            self.work.packets_out += self.finished.len() as u64;
            for packet in &self.finished {
                out(packet.flow.remote.addr, packet.to_vec());
            }
            self.timed(Step::Free);
            if self.inbox.is_empty() && !more {
                return;
            }
        }
    }

    fn timed(&mut self, step: Step) -> bool {
        let begun = std::time::Instant::now();
        let more = match self.place {
            Place::Umcp => umcp_work(self, step),
            Place::Dmcp => dmcp_work(self, step),
        };
        self.work.spent += begun.elapsed();
        more
    }

    /// All that counts as a conversion point's work; whether it has more to send.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Burst(now) => {
                self.shard.ingest(&mut self.received, now);
                self.shard.expire(now);
                self.shard.transmit(&mut self.sending, BUDGET, now);
                let more = self.sending.len() == BUDGET;
                for packet in self.sending.drain(..) {
                    self.device.finish(packet, &mut self.finished);
                }
                more
            }
            Step::Free => {
                self.finished.clear(); // frames go back: a cost of having sent
                false
            }
        }
    }
}

/// The two parts of its work.
#[derive(Clone, Copy)]
enum Step {
    Burst(Instant),
    Free,
}

/// Where a profile finds what the uMCP costs, by this name.
#[inline(never)]
fn umcp_work(mcp: &mut Mcp, step: Step) -> bool {
    black_box("uMCP"); // else the linker would make one of the two functions
    mcp.step(step)
}

/// Where a profile finds what the dMCP costs, by this name.
#[inline(never)]
fn dmcp_work(mcp: &mut Mcp, step: Step) -> bool {
    black_box("dMCP");
    mcp.step(step)
}
