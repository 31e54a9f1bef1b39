//! What is compared: chains of two proxies between a client and a server, each in a topology of its own.
#![forbid(unsafe_code)]

use super::haproxy::{self, Haproxy, Wan};
use super::machine::Cpu;
use crate::appliance::{Pair, Settings};
use clap::ValueEnum;
use pcap_tests::peer::counters;
use pcap_tests::topology::{Reference, SERVER, UMCP_LAN, wan_device};
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::Command;

/// Links between the proxies.
pub const LINKS: usize = 2;
/// Where the server listens.
pub const PORT: u16 = 7000;
/// Congestion control of every kernel socket that can be told.
pub const CONGESTION: &str = "cubic";

/// Whose proxies stand between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Plait at both ends: MPTCP over both links.
    Plait,
    /// HAProxy at both ends: the kernel's MPTCP over both links.
    HaproxyMptcp,
    /// The same, and sockets of MPTCP towards client and server too, as `mptcpize run haproxy` alone makes them.
    HaproxyMptcpize,
    /// HAProxy at both ends: the kernel's TCP over one link, moved by splice(2).
    HaproxyTcp,
    /// No proxy: the kernels forward over one link.
    None,
}

impl Contender {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Plait => "plait",
            Contender::HaproxyMptcp => "haproxy-mptcp",
            Contender::HaproxyMptcpize => "haproxy-mptcpize",
            Contender::HaproxyTcp => "haproxy-tcp",
            Contender::None => "none",
        }
    }

    /// Why this machine cannot run it.
    pub fn missing(self) -> Option<String> {
        let needs: &[&str] = match self {
            Contender::Plait | Contender::None => &[],
            Contender::HaproxyTcp => &["haproxy"],
            Contender::HaproxyMptcp | Contender::HaproxyMptcpize => &["haproxy", "mptcpize"],
        };
        let missing = needs.iter().find(|program| !is_installed(program))?;
        Some(format!("there is no {missing} here (Debian package: {missing})"))
    }
}

/// Whether a program can be started.
pub fn is_installed(program: &str) -> bool {
    let result = Command::new(program).arg("--version").output();
    !matches!(result, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Whether devices move 64 KB super-segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Offloads {
    /// As the kernel makes virtual devices.
    On,
    /// No TSO, GSO and GRO on any device: every packet is one that a wire could carry.
    Off,
}

/// What paces the sockets of HAProxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HaproxyCongestion {
    /// CUBIC for what it accepts; for what it connects, too, if a namespace may, else Reno.
    Cubic,
    /// Whatever this machine gives to programs that do not ask.
    Machine,
}

/// A chain that is up. Gone, with its namespaces, when dropped.
#[derive(Debug)]
pub struct Chain {
    contender: Contender,
    proxies: Proxies,
    /// Where it runs.
    pub net: Reference,
    /// Where clients connect to.
    pub target: SocketAddr,
}

#[derive(Debug)]
enum Proxies {
    Plait(Box<Pair>),
    Haproxy([Haproxy; 2]),
    Kernel,
}

impl Chain {
    /// Builds the topology and starts the proxies.
    pub fn start(
        contender: Contender,
        offloads: Offloads,
        congestion: HaproxyCongestion,
        settings: Settings<'_>,
    ) -> io::Result<Chain> {
        let net = Reference::direct(LINKS)?;
        if offloads == Offloads::Off {
            switch_offloads_off(&net)?;
        }
        // What a proxy has to move shall not go past it.
        net.set_forwarding(contender == Contender::None)?;
        let (server, lan) = (SocketAddr::new(SERVER, PORT), SocketAddr::new(UMCP_LAN, PORT));
        let haproxies = |wan: Wan| -> io::Result<Proxies> {
            haproxy::start(&net, wan, congestion, settings.directory).map(Proxies::Haproxy)
        };
        let (target, proxies) = match contender {
            Contender::Plait => (server, Proxies::Plait(Box::new(Pair::start(&net, settings)?))),
            Contender::HaproxyMptcp => (lan, haproxies(Wan::Mptcp)?),
            Contender::HaproxyMptcpize => (lan, haproxies(Wan::MptcpOnAllSockets)?),
            Contender::HaproxyTcp => (lan, haproxies(Wan::Tcp)?),
            Contender::None => (server, Proxies::Kernel),
        };
        Ok(Chain { contender, proxies, net, target })
    }

    /// Processor time of both proxies so far.
    pub fn cpu(&self) -> io::Result<Cpu> {
        let ids = match &self.proxies {
            Proxies::Plait(pair) => pair.ids(),
            Proxies::Haproxy([near, far]) => [near.id(), far.id()],
            Proxies::Kernel => return Ok(Cpu::default()),
        };
        ids.into_iter().map(Cpu::of_process).sum()
    }

    /// Octets that each link has carried so far, both ways.
    pub fn link_octets(&self) -> io::Result<Vec<u64>> {
        // /proc/net is the main thread's; this thread is elsewhere.
        let text = self.net.umcp.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        Ok((0..LINKS).map(|link| device_octets(&text, &wan_device(link))).collect())
    }

    /// Fails where MPTCP was to be measured and none was spoken.
    pub fn check_mptcp(&self) -> io::Result<()> {
        const JOINED: &str = "MPTcpExtMPJoinSynAckRx";
        if matches!(self.contender, Contender::HaproxyMptcp | Contender::HaproxyMptcpize)
            && counters(&self.net.umcp)?.get(JOINED).is_none_or(|joined| *joined == 0)
        {
            return Err(io::Error::other("the kernel joined no further subflow"));
        }
        Ok(())
    }

    /// What the proxies are and which congestion control their sockets use.
    pub fn describe(&self) -> String {
        match &self.proxies {
            Proxies::Plait(pair) => pair.describe(),
            Proxies::Haproxy([near, _]) => near.describe(),
            Proxies::Kernel => "the kernels forward over one link".into(),
        }
    }

    /// Plait: counters and ports of both appliances.
    pub fn counters(&self) -> Option<Value> {
        match &self.proxies {
            Proxies::Plait(pair) => Some(pair.counters()),
            _ => None,
        }
    }

    /// Adds to an error what the proxies know of it.
    pub fn explain(&mut self, error: &io::Error) -> io::Error {
        match &mut self.proxies {
            Proxies::Plait(pair) => {
                let explained = pair.explain(error);
                io::Error::new(error.kind(), format!("{explained}\n{}", pair.counters()))
            }
            Proxies::Haproxy(pair) => {
                let words: Vec<String> = pair.iter().map(Haproxy::last_words).collect();
                io::Error::new(error.kind(), format!("{error}\n{}", words.join("\n")))
            }
            Proxies::Kernel => io::Error::new(error.kind(), error.to_string()),
        }
    }
}

fn switch_offloads_off(net: &Reference) -> io::Result<()> {
    let mut devices = vec![
        (&net.client, "eth0".to_owned()),
        (&net.umcp, "lan0".to_owned()),
        (&net.dmcp, "srv0".to_owned()),
        (&net.server, "eth0".to_owned()),
    ];
    for link in 0..LINKS {
        devices.push((&net.umcp, wan_device(link)));
        devices.push((&net.dmcp, wan_device(link)));
    }
    for (namespace, device) in devices {
        let mut command = Command::new("ethtool");
        command.args(["-K", &device, "tso", "off", "gso", "off", "gro", "off"]);
        let output = namespace.output(command)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("ethtool -K {device}: {}", words.trim())));
        }
    }
    Ok(())
}

/// `device: octets-in packets errs drop fifo frame compressed multicast octets-out ...` (proc(5)).
fn device_octets(text: &str, device: &str) -> u64 {
    let line =
        text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    let numbers = line.unwrap_or_default().split_whitespace();
    numbers
        .enumerate()
        .filter(|(i, _)| [0, 8].contains(i))
        .filter_map(|(_, n)| n.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_of_a_device_are_those_in_and_out() {
        let text = "Inter-| Receive\n face |bytes\n wan1: 10 1 0 0 0 0 0 0 30 2 0 0 0 0 0 0\n wan12: 5 1 0 0 0 0 0 0 6\n";
        assert_eq!(device_octets(text, "wan1"), 40);
        assert_eq!(device_octets(text, "wan12"), 11);
        assert_eq!(device_octets(text, "wan2"), 0);
    }
}
