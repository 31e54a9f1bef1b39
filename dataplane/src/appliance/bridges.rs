//! The protocol side of a worker: its bridges, in a shard.
#![forbid(unsafe_code)]

use crate::config::{Config, MssRule};
use crate::metrics::{Counted, Metrics};
use crate::run::Engine;
use stack::buf::Pool;
use stack::mcp::{Bridge, ConnectionInfo, McpConfig};
use stack::rng::Rng;
use stack::shard::{Away, Homes, Occupancy, Shard, ShardConfig};
use stack::tcp::FastOpenSecret;
use stack::time::Instant;
use stack::wire::{FlowTuple, RxPacket, TxPacket, Unreachable};
use std::net::IpAddr;

/// The protocol side of a worker.
pub struct Bridges {
    shard: Shard<Bridge>,
    mss: MssRule,
    /// Of the devices, as they are.
    mtus: Vec<u32>,
    /// The last instant the shard was told, for ages of connections.
    now: Instant,
}

impl Engine for Bridges {
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        self.now = now;
        self.shard.ingest(rx, now);
    }

    fn expire(&mut self, now: Instant) {
        self.shard.expire(now);
    }

    fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, now: Instant) {
        self.shard.transmit(tx, budget, now);
    }

    fn on_unreachable(&mut self, packet: &TxPacket, why: Unreachable, now: Instant) {
        self.shard.on_unreachable(packet, why, now);
    }

    fn on_mtus(&mut self, mtus: &[u32]) {
        mtus.clone_into(&mut self.mtus);
        self.shard.config_mut().set_mss(self.mss.mss(mtus));
    }

    fn deadline(&self) -> Option<Instant> {
        self.shard.deadline()
    }

    fn passed(&mut self, out: &mut Vec<RxPacket>) {
        out.extend(self.shard.passed());
    }

    fn ingest_crossed(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        self.shard.ingest_crossed(rx, now);
    }

    fn away(&mut self, out: &mut Vec<(u32, Away)>) {
        out.extend(self.shard.away());
    }

    fn on_adopted(&mut self, flow: FlowTuple, by: u32) {
        self.shard.on_adopted(flow, by);
    }

    fn on_released(&mut self, flow: FlowTuple, by: u32) {
        self.shard.on_released(flow, by);
    }
}

/// What each of so many workers has of what is configured for the node.
pub(super) fn share_of(mcp: &McpConfig, workers: u32) -> McpConfig {
    let mut mcp = mcp.clone();
    mcp.max_connections = mcp.max_connections.div_ceil(workers.max(1));
    mcp.max_half_open = mcp.max_half_open.div_ceil(workers.max(1));
    mcp.max_half_open_per_source = mcp.max_half_open_per_source.div_ceil(workers.max(1));
    mcp
}

/// What a node's workers have in common.
#[derive(Clone)]
pub(super) struct Plan {
    mcp: McpConfig,
    mss: MssRule,
    owned: Vec<IpAddr>,
    homes: Homes,
    fast_open_secret: FastOpenSecret,
}

impl Plan {
    /// For as many workers as `homes` says.
    pub(super) fn new(config: &Config, homes: Homes, rng: &mut Rng) -> Plan {
        let ports = config.worker.ports.iter();
        Plan {
            mcp: share_of(&config.mcp, homes.shards),
            mss: config.mss.clone(),
            owned: ports.flat_map(|p| p.owned.iter().map(|o| o.addr)).collect(),
            homes,
            fast_open_secret: FastOpenSecret([rng.u64(), rng.u64()]),
        }
    }
}

impl Bridges {
    /// Those of worker `index`, over `pool`.
    pub(super) fn new(plan: Plan, index: u32, pool: &Pool, rng: Rng) -> Bridges {
        let Plan { mcp, mss, owned, homes, fast_open_secret } = plan;
        let default = ShardConfig::default();
        let max_time_wait = default.max_time_wait.div_ceil(homes.shards.max(1));
        let fast_open_secret = Some(fast_open_secret);
        let config =
            ShardConfig { homes, index, owned, max_time_wait, fast_open_secret, ..default };
        let shard = Shard::new(config, mcp, pool.clone(), rng);
        Bridges { shard, mss, mtus: Vec::new(), now: Instant::ZERO }
    }

    /// Opens connections by these from now on.
    pub(super) fn reconfigure(&mut self, mcp: McpConfig, mss: MssRule) {
        self.mss = mss;
        let shared = self.shard.config_mut();
        shared.reconfigure(mcp);
        shared.set_mss(self.mss.mss(&self.mtus));
    }

    /// At most `most` connections from the one numbered `offset` on.
    pub(super) fn connections(&self, offset: u64, most: usize) -> Vec<ConnectionInfo> {
        let config = self.shard.config();
        let sessions = self.shard.sessions().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        sessions.take(most).map(|bridge| bridge.info(config, self.now)).collect()
    }

    /// How full its tables are.
    pub(super) fn occupancy(&self) -> Occupancy {
        self.shard.occupancy()
    }
}

impl Counted for Bridges {
    fn metrics(&self) -> Metrics {
        let mut metrics: Metrics =
            self.shard.counters().entries().map(|(n, v)| (n.to_owned(), v)).collect();
        // What MPTCP and the shard both count is added up under MPTCP's name.
        for (name, value) in self.shard.config().mptcp_counters().entries() {
            let both = metrics.remove(name).unwrap_or(0) + value;
            metrics.insert(format!("MPTcpExt{name}"), both);
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_node_are_divided_so_that_none_is_lost() {
        let all = McpConfig {
            max_connections: 10,
            max_half_open: 2,
            max_half_open_per_source: 5,
            ..McpConfig::default()
        };
        let of = |workers| {
            let share = share_of(&all, workers);
            (share.max_connections, share.max_half_open, share.max_half_open_per_source)
        };
        assert_eq!((of(1), of(3), of(0)), ((10, 2, 5), (4, 1, 2), (10, 2, 5)));
    }
}
