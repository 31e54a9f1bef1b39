//! The reference topology: client - uMCP - emulated links - dMCP - server, a namespace each.
//!
//! ```text
//!  client              umcp                     link1                      dmcp               server
//!  eth0 .1.2 -- lan0 192.168.1.1  wan1 10.0.1.11 -- a b -- 10.0.1.12 wan1  192.168.9.1 srv0 -- eth0 .9.2
//!                                 wan2 10.0.2.11 -- a b -- 10.0.2.12 wan2
//!                                               link2
//! ```
//! The addresses shown are the kernels', and through them plain forwarding works without Plait. Addresses .1 (uMCP) and .2
//! (dMCP) of each link's network are left for Plait.
#![forbid(unsafe_code)]

use crate::link::forward::RunningEmulator;
use crate::link::{DirectionStats, Emulator, Profile, Switch};
use crate::netlink::{add_address, replace_route};
use crate::netns::Namespace;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// The client.
pub const CLIENT: IpAddr = v4(192, 168, 1, 2);
/// The uMCP's side of the client's network.
pub const UMCP_LAN: IpAddr = v4(192, 168, 1, 1);
/// The dMCP's side of the server's network.
pub const DMCP_SRV: IpAddr = v4(192, 168, 9, 1);
/// The server.
pub const SERVER: IpAddr = v4(192, 168, 9, 2);
/// Length of every network's prefix.
pub const PREFIX_LEN: u8 = 24;

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// Address `host` in the network of link `link` (from 0): 10.0.(link + 1).host.
pub const fn on_link(link: usize, host: u8) -> IpAddr {
    v4(10, 0, link as u8 + 1, host)
}

/// The kernel's address of the uMCP on a link.
pub const fn umcp_kernel(link: usize) -> IpAddr {
    on_link(link, 11)
}

/// The kernel's address of the dMCP on a link.
pub const fn dmcp_kernel(link: usize) -> IpAddr {
    on_link(link, 12)
}

/// Plait's address of the uMCP on a link.
pub const fn umcp_plait(link: usize) -> IpAddr {
    on_link(link, 1)
}

/// Plait's address of the dMCP on a link.
pub const fn dmcp_plait(link: usize) -> IpAddr {
    on_link(link, 2)
}

/// The name, at uMCP and dMCP, of the device towards a link: `wan1`, `wan2`, ...
pub fn wan_device(link: usize) -> String {
    format!("wan{}", link + 1)
}

/// One emulated link.
#[derive(Debug)]
pub struct Link {
    namespace: Namespace,
    emulator: RunningEmulator,
}

impl Link {
    /// Cuts and restores it.
    pub fn switch(&self) -> &Switch {
        self.emulator.switch()
    }

    /// Where its emulator runs, between devices `a` (uMCP) and `b` (dMCP).
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Ends it; counters uMCP to dMCP, and back.
    pub fn stop(self) -> io::Result<[DirectionStats; 2]> {
        self.emulator.stop()
    }
}

/// The whole topology; gone when dropped.
#[derive(Debug)]
pub struct Reference {
    /// Where the client's programs run.
    pub client: Namespace,
    /// Where the uMCP runs: devices `lan0`, `wan1`, `wan2`, ...
    pub umcp: Namespace,
    /// Where the dMCP runs: devices `wan1`, `wan2`, ..., `srv0`.
    pub dmcp: Namespace,
    /// Where the server's programs run.
    pub server: Namespace,
    /// The emulated links, in the order of their profiles; none where the links are direct.
    pub links: Vec<Link>,
    direct_links: usize,
}

impl Reference {
    /// Builds it with a link per pair of profiles (uMCP to dMCP, and back), the kernels forwarding through the first link.
    pub fn build(profiles: &[[Profile; 2]]) -> io::Result<Reference> {
        Reference::build_seeded(profiles, 0)
    }

    /// The same; `seed` decides which packets the links lose, delay or duplicate. What it decides for one way, its
    /// complement decides for the other.
    pub fn build_seeded(profiles: &[[Profile; 2]], seed: u64) -> io::Result<Reference> {
        let mut reference = Reference::of(ordered_namespace)?;
        for (i, pair) in profiles.iter().enumerate() {
            let link = build_link(i, *pair, &reference.umcp, &reference.dmcp, seed)?;
            reference.links.push(link);
        }
        reference.forward_through_the_first()
    }

    /// Builds it with links that are nothing but a pair of virtual devices each: `wan1` of the uMCP is the other end of
    /// `wan1` of the dMCP. The kernels forward through the first link, and spread packets over processors as they do by
    /// default.
    pub fn direct(links: usize) -> io::Result<Reference> {
        let mut reference = Reference::of(quiet_namespace)?;
        reference.direct_links = links;
        let (umcp, dmcp) = (&reference.umcp, &reference.dmcp);
        for index in 0..links {
            let device = wan_device(index);
            umcp.join(&device, dmcp, &device)?;
            umcp.run(|| add_address(&device, umcp_kernel(index), PREFIX_LEN))?;
            dmcp.run(|| add_address(&device, dmcp_kernel(index), PREFIX_LEN))?;
        }
        reference.forward_through_the_first()
    }

    /// How many links there are, emulated or direct.
    pub fn links(&self) -> usize {
        self.links.len() + self.direct_links
    }

    /// Without links yet.
    fn of(namespace: impl Fn(&str) -> io::Result<Namespace>) -> io::Result<Reference> {
        let (client, umcp) = (namespace("client")?, namespace("umcp")?);
        let (dmcp, server) = (namespace("dmcp")?, namespace("server")?);
        umcp.join("lan0", &client, "eth0")?;
        dmcp.join("srv0", &server, "eth0")?;
        umcp.run(|| add_address("lan0", UMCP_LAN, PREFIX_LEN))?;
        dmcp.run(|| add_address("srv0", DMCP_SRV, PREFIX_LEN))?;
        let nowhere = v4(0, 0, 0, 0);
        for (host, address, gateway) in [(&client, CLIENT, UMCP_LAN), (&server, SERVER, DMCP_SRV)] {
            host.run(|| {
                add_address("eth0", address, PREFIX_LEN)?;
                replace_route(nowhere, 0, gateway)
            })?;
            // A transfer over one link must not teach the next one its congestion window.
            host.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        }
        Ok(Reference { client, umcp, dmcp, server, links: Vec::new(), direct_links: 0 })
    }

    fn forward_through_the_first(self) -> io::Result<Reference> {
        self.set_forwarding(true)?;
        if self.links() > 0 {
            self.route_through(0)?;
        }
        Ok(self)
    }

    /// Makes the kernels of uMCP and dMCP forward between client and server through this link.
    pub fn route_through(&self, link: usize) -> io::Result<()> {
        self.umcp.run(|| replace_route(v4(192, 168, 9, 0), PREFIX_LEN, dmcp_kernel(link)))?;
        self.dmcp.run(|| replace_route(v4(192, 168, 1, 0), PREFIX_LEN, umcp_kernel(link)))
    }

    /// Switches forwarding by the kernels of uMCP and dMCP on or off.
    pub fn set_forwarding(&self, on: bool) -> io::Result<()> {
        let value = if on { "1" } else { "0" };
        self.umcp.set_sysctl("net.ipv4.ip_forward", value)?;
        self.dmcp.set_sysctl("net.ipv4.ip_forward", value)
    }
}

/// A namespace without IPv6's unasked-for packets and without reverse-path checks.
fn quiet_namespace(name: &str) -> io::Result<Namespace> {
    let namespace = Namespace::new(name)?;
    for key in ["net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"] {
        // Without IPv6 in the kernel there is nothing to silence.
        match namespace.set_sysctl(key, "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    for key in ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"] {
        namespace.set_sysctl(key, "0")?;
    }
    Ok(namespace)
}

/// What an emulated link does to packets is its profile, and reordering by the host is not in it.
fn ordered_namespace(name: &str) -> io::Result<Namespace> {
    let namespace = quiet_namespace(name)?;
    namespace.keep_flows_in_order()?;
    Ok(namespace)
}

fn build_link(
    index: usize,
    [there, back]: [Profile; 2],
    umcp: &Namespace,
    dmcp: &Namespace,
    seed: u64,
) -> io::Result<Link> {
    let namespace = ordered_namespace(&format!("link{}", index + 1))?;
    let device = wan_device(index);
    umcp.join(&device, &namespace, "a")?;
    dmcp.join(&device, &namespace, "b")?;
    umcp.run(|| add_address(&device, umcp_kernel(index), PREFIX_LEN))?;
    dmcp.run(|| add_address(&device, dmcp_kernel(index), PREFIX_LEN))?;
    let emulator = Emulator::start(&namespace, ("a", "b"), there, back, seed ^ index as u64)?;
    Ok(Link { namespace, emulator })
}
