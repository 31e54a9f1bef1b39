//! Which of several shards a packet is for.
//!
//! Every flow has a home that anybody computes without state: another core, a filter in the kernel, another machine. A
//! shard draws its keys and its source ports such that answers come home; a flow for which it could not choose (an
//! MP_JOIN from a port of the peer's choice) it adopts, and tells that flow's home, which hands on what comes for it.
#![forbid(unsafe_code)]

use super::flow_table::Owner;
use super::session::Registry;
use super::time_wait::Gone;
use crate::wire::{FlowTuple, RxPacket};
use core::net::IpAddr;

/// How flows and tokens are spread over shards; the same in all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Homes {
    /// How many there are; 0 counts as 1.
    pub shards: u32,
    /// Drawn at start: from outside nobody can tell which flows share a shard.
    pub key: u32,
}

impl Homes {
    /// One shard, home to everything.
    pub const ALONE: Homes = Homes { shards: 1, key: 0 };

    /// The shard that `flow` and `flow.reversed()` call home. Simple enough for a classic BPF program.
    pub fn home(&self, flow: &FlowTuple) -> u32 {
        if self.shards <= 1 {
            return 0;
        }
        let ports = u32::from(flow.local.port ^ flow.remote.port);
        let ends = folded(flow.local.addr) ^ folded(flow.remote.addr) ^ (ports << 16 | ports);
        (ends.wrapping_mul(self.key | 1) >> 16) % self.shards
    }

    /// The shard whose connection has this token.
    pub fn of_token(&self, token: u32) -> u32 {
        token % self.shards.max(1)
    }
}

/// An address as the XOR of its 32-bit words.
fn folded(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits(),
        IpAddr::V6(addr) => {
            let bits = addr.to_bits();
            (0..4).fold(0, |folded, word| folded ^ (bits >> (32 * word)) as u32)
        }
    }
}

/// What is for another shard.
#[derive(Debug)]
pub enum Away {
    /// A packet, as it came.
    Packet(RxPacket),
    /// We have a flow whose home you are: what comes for it is for us.
    Adopted(FlowTuple),
    /// Not any more.
    Released(FlowTuple),
}

impl Registry {
    /// The shard that a packet of `flow`, which nobody here has, is for: `None` for this one.
    pub fn elsewhere(&self, flow: &FlowTuple) -> Option<u32> {
        let home = self.config.homes.home(flow);
        (home != self.config.index).then_some(home)
    }

    /// Gives `flow` an owner, and lets its home know.
    pub fn insert_flow(&mut self, flow: FlowTuple, owner: Owner) {
        self.table.insert_flow(flow, owner);
        if let Some(home) = self.elsewhere(&flow) {
            self.away.push((home, Away::Adopted(flow)));
        }
    }

    /// Removes `flow` if it belongs to `owner`, and lets its home know.
    pub fn remove_flow(&mut self, flow: FlowTuple, owner: Owner) {
        if self.table.remove_flow(&flow, owner) {
            self.released(flow);
        }
    }

    /// Forgets a flow whose TIME-WAIT is over, and lets its home know.
    pub fn forget_time_wait(&mut self, gone: Gone) {
        if let Some(flow) = self.table.remove_time_wait(gone) {
            self.released(flow);
        }
    }

    fn released(&mut self, flow: FlowTuple) {
        if let Some(home) = self.elsewhere(&flow) {
            self.away.push((home, Away::Released(flow)));
        }
    }

    /// Another shard has `flow`, whose home this one is. If this one has it as well, it keeps it.
    pub fn on_adopted(&mut self, flow: FlowTuple, by: u32) {
        let ours = matches!(self.table.flow(&flow), Some(Owner::Session(_) | Owner::TimeWait(_)));
        if !ours {
            self.table.insert_flow(flow, Owner::Shard(by));
        }
    }

    /// Another shard has `flow` no more.
    pub fn on_released(&mut self, flow: FlowTuple, by: u32) {
        self.table.remove_flow(&flow, Owner::Shard(by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::wire::Endpoint;

    fn flow(local: &str, remote: &str) -> FlowTuple {
        let end = |text: &str| {
            let at: core::net::SocketAddr = text.parse().unwrap();
            Endpoint::new(at.ip(), at.port())
        };
        FlowTuple { local: end(local), remote: end(remote) }
    }

    /// Computed by hand: 10.0.0.1 ^ 192.168.1.2 = 0xcaa80103; 4000 ^ 80 = 0x0ff0; together 0xc5580ef3; times 5 =
    /// 0x3_dab84abf; its upper half 0xdab8 = 55992; modulo 7 that is 6.
    #[test]
    fn a_home_is_as_documented() {
        let homes = Homes { shards: 7, key: 4 };
        let v4 = flow("10.0.0.1:4000", "192.168.1.2:80");
        assert_eq!(homes.home(&v4), 6);
        let v6 = flow("[a00:1::]:4000", "[c0a8:102::]:80");
        assert_eq!(homes.home(&v6), 6, "all other words are zero");
    }

    #[test]
    fn both_directions_have_one_home_and_homes_fill_evenly() {
        let homes = Homes { shards: 4, key: Rng::from_number(5).u32() };
        let mut counts = [0u32; 4];
        for port in 1024..9024 {
            let flow = FlowTuple {
                local: Endpoint::new(IpAddr::from([10, 0, 0, 1]), 80),
                remote: Endpoint::new(IpAddr::from([192, 168, 1, 2]), port),
            };
            assert_eq!(homes.home(&flow), homes.home(&flow.reversed()));
            counts[homes.home(&flow) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (1500..2500).contains(count)), "{counts:?}");
    }

    #[test]
    fn alone_is_home() {
        for shards in [0, 1] {
            let homes = Homes { shards, key: 99 };
            assert_eq!(homes.home(&flow("10.0.0.1:1", "10.0.0.2:2")), 0);
            assert_eq!(homes.of_token(0xffff_ffff), 0);
        }
    }
}
