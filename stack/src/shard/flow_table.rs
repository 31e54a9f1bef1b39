//! Who owns a flow, and who owns a token: keyed hash tables that a peer cannot aim at.
#![forbid(unsafe_code)]

use super::slab::SessionId;
use crate::rng::Rng;
use crate::wire::FlowTuple;
use arrayvec::ArrayVec;
use core::hash::Hasher;
use core::net::IpAddr;
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

/// What a flow belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// A session.
    Session(SessionId),
    /// A slot of the TIME-WAIT slab.
    TimeWait(u32),
}

/// The key of a table's hash: drawn once, known to nobody outside.
#[derive(Clone)]
struct HashKey(SipHasher13);

impl HashKey {
    fn draw(rng: &mut Rng) -> HashKey {
        HashKey(SipHasher13::new_with_keys(rng.u64(), rng.u64()))
    }

    fn flow(&self, flow: &FlowTuple) -> u64 {
        self.0.hash(&flow_octets(flow))
    }

    fn token(&self, token: u32) -> u64 {
        let mut hasher = self.0;
        hasher.write_u32(token);
        hasher.finish()
    }
}

/// A flow as octets: 12 or 36.
pub(super) fn flow_octets(flow: &FlowTuple) -> ArrayVec<u8, 36> {
    let mut out = ArrayVec::new();
    for end in [flow.local, flow.remote] {
        match end.addr {
            IpAddr::V4(addr) => out.extend(addr.octets()),
            IpAddr::V6(addr) => out.extend(addr.octets()),
        }
        out.extend(end.port.to_be_bytes());
    }
    out
}

/// Flows and tokens of one shard.
pub(super) struct FlowTable {
    key: HashKey,
    flows: HashTable<(FlowTuple, Owner)>,
    tokens: HashTable<(u32, SessionId)>,
}

impl FlowTable {
    pub fn new(rng: &mut Rng) -> FlowTable {
        FlowTable { key: HashKey::draw(rng), flows: HashTable::new(), tokens: HashTable::new() }
    }

    pub fn flow(&self, flow: &FlowTuple) -> Option<Owner> {
        self.flows.find(self.key.flow(flow), |(f, _)| f == flow).map(|(_, owner)| *owner)
    }

    /// Adds, or changes the owner.
    pub fn insert_flow(&mut self, flow: FlowTuple, owner: Owner) {
        let hash = self.key.flow(&flow);
        if let Some(entry) = self.flows.find_mut(hash, |(f, _)| *f == flow) {
            entry.1 = owner;
            return;
        }
        let key = &self.key;
        self.flows.insert_unique(hash, (flow, owner), |(f, _)| key.flow(f));
    }

    /// Removes the flow if it belongs to `owner`.
    pub fn remove_flow(&mut self, flow: &FlowTuple, owner: Owner) {
        let hash = self.key.flow(flow);
        if let Ok(entry) = self.flows.find_entry(hash, |(f, o)| f == flow && *o == owner) {
            entry.remove();
        }
    }

    pub fn token(&self, token: u32) -> Option<SessionId> {
        self.tokens.find(self.key.token(token), |(t, _)| *t == token).map(|(_, id)| *id)
    }

    /// Adds unless the token is taken.
    pub fn insert_token(&mut self, token: u32, id: SessionId) -> bool {
        if self.token(token).is_some() {
            return false;
        }
        let key = &self.key;
        self.tokens.insert_unique(key.token(token), (token, id), |(t, _)| key.token(*t));
        true
    }

    pub fn remove_token(&mut self, token: u32, id: SessionId) {
        let hash = self.key.token(token);
        if let Ok(entry) = self.tokens.find_entry(hash, |(t, i)| *t == token && *i == id) {
            entry.remove();
        }
    }

    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

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
        let flow = FlowTuple {
            local: Endpoint::new("::1".parse().unwrap(), 1),
            remote: Endpoint::new("::2".parse().unwrap(), 2),
        };
        let hash = |seed| HashKey::draw(&mut Rng::from_number(seed)).flow(&flow);
        assert_ne!(hash(1), hash(2));
        assert_eq!(flow_octets(&flow).len(), 36);
    }
}
