//! Half-open sessions: how many each source has, and which of those that nobody has vouched for is the oldest.
#![forbid(unsafe_code)]

use super::slab::SessionId;
use alloc::collections::BTreeMap;
use core::net::{IpAddr, Ipv6Addr};

/// Whether the client is known to be where its SYN said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Client {
    /// Only a SYN came: anybody may have sent it.
    Unproven,
    /// It returned a cookie.
    Proven,
}

/// Whom a limit per source is about: a subscriber of IPv6 has at least a /64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Source(IpAddr);

impl Source {
    fn of(addr: IpAddr) -> Source {
        match addr {
            IpAddr::V4(_) => Source(addr),
            IpAddr::V6(addr) => Source(Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64).into()),
        }
    }
}

struct Entry {
    source: Source,
    /// Its place among the unproven ones.
    age: Option<u64>,
}

/// All of them. As large as they are many, so that the limits on those are its bound too.
#[derive(Default)]
pub(super) struct HalfOpen {
    entries: BTreeMap<SessionId, Entry>,
    unproven: BTreeMap<u64, SessionId>,
    sources: BTreeMap<Source, u32>,
    next_age: u64,
}

impl HalfOpen {
    pub fn insert(&mut self, id: SessionId, addr: IpAddr, client: Client) {
        let source = Source::of(addr);
        let age = (client == Client::Unproven).then(|| {
            self.next_age += 1;
            self.unproven.insert(self.next_age, id);
            self.next_age
        });
        *self.sources.entry(source).or_insert(0) += 1;
        self.entries.insert(id, Entry { source, age });
    }

    /// Nothing happens if it is not here.
    pub fn remove(&mut self, id: SessionId) {
        let Some(Entry { source, age }) = self.entries.remove(&id) else { return };
        if let Some(age) = age {
            self.unproven.remove(&age);
        }
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// The oldest unproven one: the least likely to become anything.
    pub fn oldest(&self) -> Option<SessionId> {
        self.unproven.first_key_value().map(|(_, id)| *id)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn unproven(&self) -> usize {
        self.unproven.len()
    }

    /// How many the source of `addr` has.
    pub fn of_source(&self, addr: IpAddr) -> u32 {
        self.sources.get(&Source::of(addr)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::slab::Slab;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_oldest_unproven_one_goes_first_and_sources_are_counted() {
        let mut slab = Slab::new();
        let ids = [(); 4].map(|()| slab.insert(()));
        let mut table = HalfOpen::default();
        table.insert(ids[0], v4(1), Client::Proven);
        table.insert(ids[1], v4(2), Client::Unproven);
        table.insert(ids[2], v4(2), Client::Unproven);
        assert_eq!((table.len(), table.unproven(), table.oldest()), (3, 2, Some(ids[1])));
        assert_eq!((table.of_source(v4(1)), table.of_source(v4(2))), (1, 2));
        table.remove(ids[1]);
        table.remove(ids[1]);
        table.remove(ids[3]);
        assert_eq!((table.len(), table.oldest(), table.of_source(v4(2))), (2, Some(ids[2]), 1));
        table.remove(ids[2]);
        table.remove(ids[0]);
        assert_eq!((table.len(), table.oldest()), (0, None));
        assert!(table.sources.is_empty(), "nothing is kept of who has left");
    }

    #[test]
    fn a_source_of_ipv6_is_a_network_of_64_bits() {
        let id = Slab::new().insert(());
        let mut table = HalfOpen::default();
        table.insert(id, "2001:db8:0:1::7".parse().unwrap(), Client::Unproven);
        assert_eq!(table.of_source("2001:db8:0:1:ffff::8".parse().unwrap()), 1);
        assert_eq!(table.of_source("2001:db8:0:2::7".parse().unwrap()), 0);
    }
}
