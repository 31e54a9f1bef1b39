//! What paths are known to carry, by destination (RFC 1191 6.2, RFC 8201 5.2(a)): new flows begin with it.
#![forbid(unsafe_code)]

use super::pmtu::RAISE;
use crate::time::Instant;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use core::cell::RefCell;
use core::net::IpAddr;

/// Destinations remembered at a time; the one learnt first makes room.
const MOST: usize = 4_096;

/// Destinations whose path carries less than the devices. A handle: clones know the same.
#[derive(Clone, Debug, Default)]
pub struct PathMtus(Rc<RefCell<Known>>);

#[derive(Debug, Default)]
struct Known {
    paths: BTreeMap<IpAddr, (u16, Instant)>,
    /// In the order in which they were learnt; what was learnt again since is stale.
    order: VecDeque<(IpAddr, Instant)>,
}

impl PathMtus {
    /// Segments to `to` carry at most `mss` octets of text and options.
    pub fn learn(&self, to: IpAddr, mss: u16, now: Instant) {
        let mut known = self.0.borrow_mut();
        let until = now + RAISE;
        known.paths.insert(to, (mss, until));
        known.order.push_back((to, until));
        // Twice as many, as long as there are stale ones among them.
        while known.paths.len() > MOST || known.order.len() > 2 * MOST {
            let Some((oldest, until)) = known.order.pop_front() else { break };
            known.forget(oldest, until);
        }
    }

    /// What segments to `to` may carry; `u16::MAX` if nothing is known.
    pub fn mss(&self, to: IpAddr, now: Instant) -> u16 {
        let mut known = self.0.borrow_mut();
        while let Some((oldest, until)) = known.order.front().copied()
            && until <= now
        {
            known.order.pop_front();
            known.forget(oldest, until);
        }
        known.paths.get(&to).map_or(u16::MAX, |(mss, _)| *mss)
    }

    /// Destinations that are known.
    pub fn len(&self) -> usize {
        self.0.borrow().paths.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Known {
    fn forget(&mut self, to: IpAddr, until: Instant) {
        if self.paths.get(&to).is_some_and(|(_, at)| *at == until) {
            self.paths.remove(&to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    fn addr(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    /// RFC 1191 6.3, RFC 8201 4(c): what was learnt is forgotten after 10 minutes.
    #[test]
    fn a_path_is_forgotten_after_ten_minutes() {
        let paths = PathMtus::default();
        paths.learn(addr(1), 1_360, at(0));
        paths.learn(addr(2), 1_200, at(10));
        paths.learn(addr(1), 1_300, at(20));
        assert_eq!((paths.mss(addr(1), at(609)), paths.mss(addr(2), at(609))), (1_300, 1_200));
        assert_eq!((paths.mss(addr(1), at(619)), paths.mss(addr(2), at(619))), (1_300, u16::MAX));
        assert_eq!(paths.mss(addr(1), at(620)), u16::MAX);
        assert!(paths.is_empty());
    }

    /// RFC 8201 5.2(a), RFC 1191 6.2: a bound on what is kept.
    #[test]
    fn the_first_makes_room() {
        let paths = PathMtus::default();
        for n in 0..3 * MOST as u32 {
            paths.learn(addr(n), 1_000, at(1));
            paths.learn(addr(7), 1_000, at(1));
        }
        assert!(paths.len() <= MOST && paths.0.borrow().order.len() <= 2 * MOST);
        assert_eq!(paths.mss(addr(3 * MOST as u32 - 1), at(2)), 1_000);
        assert_eq!(paths.mss(addr(0), at(2)), u16::MAX);
    }
}
