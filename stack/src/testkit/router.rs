//! A router with static routes.
#![forbid(unsafe_code)]

use super::packet;
use super::{Node, Outbox};
use crate::time::Instant;
use crate::wire::Prefix;
use alloc::vec::Vec;
use core::net::IpAddr;

/// Which interface leads to which prefix; the longest match wins.
#[derive(Clone, Debug, Default)]
pub struct Routes(Vec<(Prefix, usize)>);

impl Routes {
    /// No routes.
    pub fn new() -> Routes {
        Routes::default()
    }

    /// `prefix`, such as "10.0.1.0/24", lies behind `iface`.
    ///
    /// # Panics
    /// If it is not a prefix.
    pub fn add(mut self, prefix: &str, iface: usize) -> Routes {
        let (addr, len) = prefix.split_once('/').expect("address/length");
        let addr = addr.parse().expect("an address");
        self.0.push((Prefix { addr, len: len.parse().expect("a length") }, iface));
        self
    }

    /// The interface towards `to`.
    pub fn lookup(&self, to: IpAddr) -> Option<usize> {
        let matching = self.0.iter().filter(|(prefix, _)| prefix.contains(to));
        matching.max_by_key(|(prefix, _)| prefix.len).map(|(_, iface)| *iface)
    }
}

/// Forwards at once; what it has no route for comes back as ICMP "unreachable" if it has an address to say so from.
#[derive(Debug)]
pub struct Router {
    routes: Routes,
    report: Option<(IpAddr, u8)>,
    out: Outbox,
}

impl Router {
    /// A router that is silent about what it cannot forward.
    pub fn new(routes: Routes) -> Router {
        Router { routes, report: None, out: Vec::new() }
    }

    /// A router that reports what it cannot forward, from `address` with `code`: 1 is "host unreachable", a soft error;
    /// 13 is "prohibited", a hard one.
    pub fn reporting(routes: Routes, address: IpAddr, code: u8) -> Router {
        Router { routes, report: Some((address, code)), out: Vec::new() }
    }
}

impl Node for Router {
    fn receive(&mut self, iface: usize, octets: Vec<u8>, _now: Instant) {
        let Some((_, dst)) = packet::addresses(&octets) else { return };
        match self.routes.lookup(dst) {
            Some(to) if to != iface => self.out.push((to, octets)),
            Some(_) => {}
            None => {
                let report =
                    self.report.and_then(|(own, code)| packet::unreachable(own, &octets, code));
                self.out.extend(report.map(|report| (iface, report)));
            }
        }
    }

    fn poll(&mut self, _now: Instant, out: &mut Outbox) {
        out.append(&mut self.out);
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}
