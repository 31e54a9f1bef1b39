//! Two namespaces joined by a veth pair: `v0` is ours, `v1` the peer's.
#![forbid(unsafe_code)]

use pcap_tests::netlink;
use pcap_tests::netns::Namespace;
use std::io;
use std::net::IpAddr;

pub struct Net {
    pub ours: Namespace,
    pub peer: Namespace,
}

pub fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// With these addresses of the kernels. `None`, with the reason printed, only where the absence of root was declared.
pub fn pair(ours: &[&str], peer: &[&str]) -> Option<Net> {
    match build(ours, peer) {
        Ok(net) => Some(net),
        Err(error) if std::env::var_os("PLAIT_TESTS_WITHOUT_ROOT").is_some() => {
            println!("not run: no namespaces without root ({error})");
            None
        }
        Err(error) => panic!(
            "needs root to make namespaces ({error}); set PLAIT_TESTS_WITHOUT_ROOT to do without"
        ),
    }
}

fn build(ours: &[&str], peer: &[&str]) -> io::Result<Net> {
    let net = Net { ours: Namespace::new("ours")?, peer: Namespace::new("peer")? };
    net.ours.join("v0", &net.peer, "v1")?;
    for (namespace, device, addresses) in [(&net.ours, "v0", ours), (&net.peer, "v1", peer)] {
        for addr in addresses.iter().map(|addr| ip(addr)) {
            let len = if addr.is_ipv6() { 64 } else { 24 };
            namespace.run(|| netlink::add_address(device, addr, len))?;
        }
    }
    Ok(net)
}
