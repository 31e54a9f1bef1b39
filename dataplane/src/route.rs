//! Routes: which port and next hop a packet leaves by.
//!
//! The source decides first: a packet from an address that a port owns leaves there, so that every subflow keeps to its
//! link. Then comes the way a peer's own packets took (transparent deployments own no address towards it), then the
//! longest prefix.
#![forbid(unsafe_code)]

use stack::wire::Prefix;
use std::collections::HashMap;
use std::net::IpAddr;

/// Peers remembered; when the table is full it is emptied, and the next packet of each peer brings it back.
const MAX_LEARNED: usize = 65_536;

/// A prefix and how to get there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destinations.
    pub to: Prefix,
    /// Index of the port.
    pub port: u16,
    /// The next hop; `None`: the destination itself.
    pub via: Option<IpAddr>,
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// To a link-layer address that is known.
    Known {
        /// The port.
        port: u16,
        /// The address.
        mac: [u8; 6],
    },
    /// To a neighbour that has to be resolved.
    Neighbor {
        /// The port.
        port: u16,
        /// The neighbour.
        addr: IpAddr,
    },
}

/// The routing table of a worker.
#[derive(Debug, Default)]
pub struct Routes {
    owned: Vec<(IpAddr, u16)>,
    /// Longest prefix first.
    table: Vec<Route>,
    learned: HashMap<IpAddr, (u16, [u8; 6])>,
    /// The last peer learned, so that a burst of its packets costs one look-up.
    last: Option<(IpAddr, u16, [u8; 6])>,
}

impl Routes {
    /// From addresses with the port that owns them, and routes in any order.
    pub fn new(owned: Vec<(IpAddr, u16)>, mut table: Vec<Route>) -> Routes {
        table.sort_by_key(|route| std::cmp::Reverse(route.to.len));
        Routes { owned, table, learned: HashMap::new(), last: None }
    }

    /// A packet from `peer` came in by `port` from `mac`: that is the way back.
    pub fn learn(&mut self, peer: IpAddr, port: u16, mac: [u8; 6]) {
        if self.last == Some((peer, port, mac)) {
            return;
        }
        if self.learned.len() >= MAX_LEARNED {
            self.learned.clear();
        }
        self.learned.insert(peer, (port, mac));
        self.last = Some((peer, port, mac));
    }

    /// The way back to `peer`, if its last packet came in by `port`.
    pub fn learned(&self, peer: IpAddr, port: u16) -> Option<[u8; 6]> {
        self.learned.get(&peer).filter(|way| way.0 == port).map(|way| way.1)
    }

    /// Where a packet from `local` to `remote` goes. `None`: nowhere.
    pub fn route(&self, local: IpAddr, remote: IpAddr) -> Option<Hop> {
        if let Some((_, port)) = self.owned.iter().find(|(addr, _)| *addr == local)
            && let Some(hop) = self.longest(remote, Some(*port))
        {
            return Some(hop);
        }
        if let Some((port, mac)) = self.learned.get(&remote) {
            return Some(Hop::Known { port: *port, mac: *mac });
        }
        self.longest(remote, None)
    }

    fn longest(&self, remote: IpAddr, port: Option<u16>) -> Option<Hop> {
        self.table
            .iter()
            .find(|route| port.is_none_or(|p| p == route.port) && route.to.contains(remote))
            .map(|route| Hop::Neighbor { port: route.port, addr: route.via.unwrap_or(remote) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn route(to: &str, len: u8, port: u16, via: Option<&str>) -> Route {
        Route { to: Prefix { addr: ip(to), len }, port, via: via.map(ip) }
    }

    fn routes() -> Routes {
        Routes::new(
            vec![(ip("10.0.1.1"), 1), (ip("10.0.2.1"), 2)],
            vec![
                route("0.0.0.0", 0, 1, Some("10.0.1.254")),
                route("0.0.0.0", 0, 2, Some("10.0.2.254")),
                route("10.0.1.0", 24, 1, None),
                route("10.0.2.0", 24, 2, None),
                route("192.168.1.0", 24, 0, None),
            ],
        )
    }

    #[test]
    fn a_packet_leaves_by_the_port_that_owns_its_source() {
        let r = routes();
        let via = |port, addr| Some(Hop::Neighbor { port, addr: ip(addr) });
        assert_eq!(r.route(ip("10.0.2.1"), ip("203.0.113.9")), via(2, "10.0.2.254"));
        assert_eq!(r.route(ip("10.0.1.1"), ip("203.0.113.9")), via(1, "10.0.1.254"));
        assert_eq!(r.route(ip("10.0.2.1"), ip("10.0.2.9")), via(2, "10.0.2.9"));
        assert_eq!(r.route(ip("10.0.2.1"), ip("10.0.1.9")), via(2, "10.0.2.254"));
    }

    #[test]
    fn a_peer_is_answered_the_way_it_came() {
        let mut r = routes();
        r.learn(ip("192.168.7.7"), 0, [1; 6]);
        let server = ip("203.0.113.9");
        let known = Some(Hop::Known { port: 0, mac: [1; 6] });
        assert_eq!(r.route(server, ip("192.168.7.7")), known);
        r.learn(ip("192.168.7.7"), 0, [2; 6]);
        let known = Some(Hop::Known { port: 0, mac: [2; 6] });
        assert_eq!(r.route(server, ip("192.168.7.7")), known, "it moved");
    }

    #[test]
    fn else_the_longest_prefix_decides() {
        let r = routes();
        let hop = Some(Hop::Neighbor { port: 0, addr: ip("192.168.1.2") });
        assert_eq!(r.route(ip("203.0.113.9"), ip("192.168.1.2")), hop);
        assert_eq!(r.route(ip("2001:db8::1"), ip("2001:db8::2")), None);
    }
}
