//! Who owns a flow, and who owns a token.
#![forbid(unsafe_code)]

use super::linear_hash::{HashKey, Key, LinearHash};
use super::slab::SessionId;
use super::time_wait::Gone;
use crate::rng::Rng;
use crate::wire::{Endpoint, FlowTuple};
use core::hash::Hasher;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use siphasher::sip::SipHasher13;

/// What a flow belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A session.
    Session(SessionId),
    /// A slot of the TIME-WAIT slab.
    TimeWait(u32),
    /// Another shard, by number: this one is the flow's home.
    Shard(u32),
}

/// An [`Owner`] in 8 octets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packed {
    Session(SessionId),
    /// A slot of the TIME-WAIT slab, or [`SHARD`] and the number of a shard.
    Number(u32),
}

const SHARD: u32 = 1 << 31;

impl From<Owner> for Packed {
    #[inline]
    fn from(owner: Owner) -> Packed {
        match owner {
            Owner::Session(id) => Packed::Session(id),
            Owner::TimeWait(slot) => Packed::Number(slot & !SHARD),
            Owner::Shard(shard) => Packed::Number(shard | SHARD),
        }
    }
}

impl From<Packed> for Owner {
    #[inline]
    fn from(packed: Packed) -> Owner {
        match packed {
            Packed::Session(id) => Owner::Session(id),
            Packed::Number(number) if number & SHARD == 0 => Owner::TimeWait(number),
            Packed::Number(number) => Owner::Shard(number & !SHARD),
        }
    }
}

/// A flow whose addresses are `A`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Flow<A> {
    local: A,
    remote: A,
    local_port: u16,
    remote_port: u16,
}

/// A million flows are 20 MB, and a few more for their pages.
const _: () = assert!(size_of::<(Flow<Ipv4Addr>, Packed)>() == 20);
const _: () = assert!(size_of::<(Flow<Ipv6Addr>, Packed)>() == 44);

impl<A> Flow<A> {
    #[inline]
    fn ports(&self) -> u32 {
        u32::from(self.local_port) << 16 | u32::from(self.remote_port)
    }

    fn tuple(self) -> FlowTuple
    where
        IpAddr: From<A>,
    {
        let end = |addr: A, port| Endpoint::new(IpAddr::from(addr).to_canonical(), port);
        let (local, remote) = (self.local, self.remote);
        FlowTuple { local: end(local, self.local_port), remote: end(remote, self.remote_port) }
    }
}

impl Key for Flow<Ipv4Addr> {
    #[inline]
    fn feed(&self, hasher: &mut SipHasher13) {
        let (local, remote) = (self.local.to_bits(), self.remote.to_bits());
        hasher.write_u64(u64::from(local) << 32 | u64::from(remote));
        hasher.write_u32(self.ports());
    }
}

impl Key for Flow<Ipv6Addr> {
    #[inline]
    fn feed(&self, hasher: &mut SipHasher13) {
        for addr in [self.local.to_bits(), self.remote.to_bits()] {
            hasher.write_u64((addr >> 64) as u64);
            hasher.write_u64(addr as u64);
        }
        hasher.write_u32(self.ports());
    }
}

/// A token.
impl Key for u32 {
    #[inline]
    fn feed(&self, hasher: &mut SipHasher13) {
        hasher.write_u32(*self);
    }
}

/// Flows and tokens of one shard. An insertion or a removal never does more than a few pages of work, however many there
/// are.
pub struct FlowTable {
    v4: LinearHash<Flow<Ipv4Addr>, Packed>,
    v6: LinearHash<Flow<Ipv6Addr>, Packed>,
    tokens: LinearHash<u32, SessionId>,
}

/// A flow by its family.
enum Family {
    V4(Flow<Ipv4Addr>),
    V6(Flow<Ipv6Addr>),
}

impl Family {
    #[inline]
    fn of(flow: &FlowTuple) -> Family {
        let (local_port, remote_port) = (flow.local.port, flow.remote.port);
        match (flow.local.addr, flow.remote.addr) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                Family::V4(Flow { local, remote, local_port, remote_port })
            }
            (local, remote) => {
                let (local, remote) = (to_v6(local), to_v6(remote));
                Family::V6(Flow { local, remote, local_port, remote_port })
            }
        }
    }
}

fn to_v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    }
}

impl FlowTable {
    /// An empty one. The key of its hashes is drawn from `rng`.
    pub fn new(rng: &mut Rng) -> FlowTable {
        let key = HashKey::draw(rng);
        FlowTable {
            v4: LinearHash::new(key),
            v6: LinearHash::new(key),
            tokens: LinearHash::new(key),
        }
    }

    /// Whose `flow` is.
    pub fn flow(&self, flow: &FlowTuple) -> Option<Owner> {
        let packed = match Family::of(flow) {
            Family::V4(flow) => self.v4.get(&flow),
            Family::V6(flow) => self.v6.get(&flow),
        };
        packed.map(Owner::from)
    }

    /// Adds, or changes the owner.
    pub fn insert_flow(&mut self, flow: FlowTuple, owner: Owner) {
        match Family::of(&flow) {
            Family::V4(flow) => self.v4.insert(flow, owner.into()),
            Family::V6(flow) => self.v6.insert(flow, owner.into()),
        }
    }

    /// Removes the flow if it belongs to `owner`. Whether it did.
    pub fn remove_flow(&mut self, flow: &FlowTuple, owner: Owner) -> bool {
        match Family::of(flow) {
            Family::V4(flow) => self.v4.remove(&flow, owner.into()),
            Family::V6(flow) => self.v6.remove(&flow, owner.into()),
        }
    }

    /// By which [`FlowTable::remove_time_wait`] finds the flow.
    pub(super) fn hash(&self, flow: &FlowTuple) -> u64 {
        match Family::of(flow) {
            Family::V4(flow) => self.v4.hash(&flow),
            Family::V6(flow) => self.v6.hash(&flow),
        }
    }

    /// Removes and returns the flow whose TIME-WAIT is over.
    pub(super) fn remove_time_wait(&mut self, gone: Gone) -> Option<FlowTuple> {
        let owner = Packed::from(Owner::TimeWait(gone.slot));
        let v4 = self.v4.remove_value(gone.hash, owner).map(Flow::tuple);
        v4.or_else(|| self.v6.remove_value(gone.hash, owner).map(Flow::tuple))
    }

    /// Whose `token` is.
    pub fn token(&self, token: u32) -> Option<SessionId> {
        self.tokens.get(&token)
    }

    /// Adds unless the token is taken. Whether it was free.
    pub fn insert_token(&mut self, token: u32, id: SessionId) -> bool {
        let free = self.token(token).is_none();
        if free {
            self.tokens.insert(token, id);
        }
        free
    }

    /// Removes the token if it belongs to `id`.
    pub fn remove_token(&mut self, token: u32, id: SessionId) {
        self.tokens.remove(&token, id);
    }

    /// Flows, of sessions and in TIME-WAIT.
    pub fn flow_count(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Tokens.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::slab::Slab;
    use crate::wire::Endpoint;

    #[test]
    fn an_entry_goes_only_with_its_owner() {
        let mut table = FlowTable::new(&mut Rng::from_number(1));
        let mut slab = Slab::new();
        let (a, b) = (slab.insert(()), slab.insert(()));
        let end = |text: &str, port| Endpoint::new(text.parse().unwrap(), port);
        let flow = FlowTuple { local: end("10.0.0.1", 80), remote: end("10.0.0.2", 4000) };
        table.insert_flow(flow, Owner::Session(a));
        table.remove_flow(&flow, Owner::Session(b));
        assert_eq!(table.flow(&flow), Some(Owner::Session(a)));
        assert_eq!(table.flow(&flow.reversed()), None, "a flow has a direction");
        table.insert_flow(flow, Owner::TimeWait(3));
        table.remove_flow(&flow, Owner::Session(a));
        assert_eq!((table.flow(&flow), table.flow_count()), (Some(Owner::TimeWait(3)), 1));
        assert!(table.insert_token(7, a) && !table.insert_token(7, b));
        table.remove_token(7, b);
        assert_eq!(table.token(7), Some(a));
        table.remove_token(7, a);
        assert_eq!((table.token(7), table.token_count()), (None, 0));
    }

    #[test]
    fn two_shards_hash_differently() {
        for (a, b) in [("::1", "::2"), ("10.0.0.1", "10.0.0.2")] {
            let flow = FlowTuple {
                local: Endpoint::new(a.parse().unwrap(), 1),
                remote: Endpoint::new(b.parse().unwrap(), 2),
            };
            let hash = |seed| FlowTable::new(&mut Rng::from_number(seed)).hash(&flow);
            assert_ne!(hash(1), hash(2));
        }
    }

    #[test]
    fn time_wait_ends_by_hash_in_both_families() {
        let mut table = FlowTable::new(&mut Rng::from_number(1));
        for (slot, addr) in (0..).zip(["10.0.0.1", "2001:db8::1"]) {
            let end = Endpoint::new(addr.parse().unwrap(), 80);
            let flow = FlowTuple { local: end, remote: end };
            table.insert_flow(flow, Owner::TimeWait(slot));
            let hash = table.hash(&flow);
            table.remove_time_wait(Gone { slot: slot + 1, hash });
            assert_eq!(table.flow(&flow), Some(Owner::TimeWait(slot)));
            table.remove_time_wait(Gone { slot, hash });
            assert_eq!((table.flow(&flow), table.flow_count()), (None, 0));
        }
    }
}
