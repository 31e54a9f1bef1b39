//! Endpoints and flows.
#![forbid(unsafe_code)]

use core::net::IpAddr;

/// An IP address and a TCP port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// `addr`:`port`.
    pub const fn new(addr: IpAddr, port: u16) -> Endpoint {
        Endpoint { addr, port }
    }
}

impl core::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

impl core::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// A flow as this host sees it: `local` is the end we play, whether the address is ours or somebody's we stand in for.
/// Both ends are of one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowTuple {
    /// Our end: the destination of what arrives, the source of what we send.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
}

impl FlowTuple {
    /// The same flow seen from the other end.
    pub const fn reversed(self) -> FlowTuple {
        FlowTuple { local: self.remote, remote: self.local }
    }
}

impl core::fmt::Debug for FlowTuple {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}-{}", self.local, self.remote)
    }
}

/// An address prefix, such as 10.0.0.0/8 or 2001:db8::/32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    /// Any address inside it.
    pub addr: IpAddr,
    /// Leading bits that count, at most 32 or 128.
    pub len: u8,
}

impl Prefix {
    /// Whether `addr` lies inside; never for the other family.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(p), IpAddr::V4(a)) => {
                let shift = 32u32.saturating_sub(u32::from(self.len));
                shift == 32 || (p.to_bits() ^ a.to_bits()) >> shift == 0
            }
            (IpAddr::V6(p), IpAddr::V6(a)) => {
                let shift = 128u32.saturating_sub(u32::from(self.len));
                shift == 128 || (p.to_bits() ^ a.to_bits()) >> shift == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_contains_its_own_family_only() {
        let p = Prefix { addr: "10.1.2.3".parse().unwrap(), len: 16 };
        assert!(p.contains("10.1.255.255".parse().unwrap()));
        assert!(!p.contains("10.2.0.0".parse().unwrap()));
        assert!(!p.contains("::1".parse().unwrap()));
        let all = Prefix { addr: "::".parse().unwrap(), len: 0 };
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        assert!(!all.contains("10.0.0.1".parse().unwrap()));
    }
}
