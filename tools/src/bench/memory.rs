//! `plait bench memory`: what a conversion point costs per segment, without any system call.
#![forbid(unsafe_code)]

mod nodes;

use super::rounds::Spread;
use clap::Args;
use nodes::{Device, Host, Mcp, Work};
use serde::Serialize;
use stack::testkit::Link;
use stack::testkit::reference::{CLIENT, DMCP, SERVER, Topology, dmcp, umcp};
use stack::time::{Duration, Instant};
use stack::wire::Endpoint;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// What passes between two turns of every node, in virtual time.
const TURN: Duration = Duration::from_micros(50);
/// Octets of text in a segment that was clamped so that DSS and timestamps fit beside it.
const SEGMENT: u64 = 1_420;
/// A transfer is measured in so many parts: their median is less shaken by whatever else the machine does.
const PARTS: u64 = 20;
/// Octets that a connection may have under way, shared by all where there are many.
const BUFFERS: u32 = 256 << 20;

/// Nanoseconds per relayed segment: client - uMCP - dMCP - server in one thread, in memory.
///
/// Counted is everything that a conversion point does from a burst in frames to packets ready for a device: both legs, ACKs,
/// timers, checksums, segmentation; not what the device and the hosts do.
///
/// Example: plait bench memory --subflows 1,2,8 --connections 1,100 --json memory.json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct MemoryArgs {
    /// Paths, hence subflows of each connection.
    #[arg(long, value_delimiter = ',', default_values = ["1", "2", "4", "8"])]
    subflows: Vec<u8>,
    /// Connections at once.
    #[arg(long, value_delimiter = ',', default_values = ["1", "100"])]
    connections: Vec<u32>,
    /// Segments of a transfer.
    #[arg(long, default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    segments: u64,
    /// Only devices without offloads.
    #[arg(long)]
    no_offloads: bool,
    /// Write everything measured to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Setting {
    subflows: u8,
    checksum: bool,
    offloads: bool,
    connections: u32,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Result {
    setting: Setting,
    /// Nanoseconds per segment.
    umcp: Spread,
    dmcp: Spread,
    /// Packets in and out per segment.
    umcp_packets: (f64, f64),
    dmcp_packets: (f64, f64),
}

/// Runs it and prints the table.
pub fn run(args: &MemoryArgs) -> io::Result<()> {
    if args.subflows.iter().any(|n| !(1..=8).contains(n)) {
        return Err(io::Error::other("a connection has 1 to 8 subflows here"));
    }
    println!(
        "client - uMCP - dMCP - server in memory, one thread, {} segments each",
        args.segments
    );
    println!("ns per segment: median of {PARTS} parts (least to greatest)\n");
    println!(
        "{:>8} {:>8} {:>8} {:>11}   {:<24} {:<24} packets in + out",
        "subflows", "checksum", "offloads", "connections", "uMCP", "dMCP"
    );
    let mut results = Vec::new();
    for offloads in [false, true].into_iter().filter(|offloads| !(*offloads && args.no_offloads)) {
        for &connections in &args.connections {
            for &subflows in &args.subflows {
                for checksum in [false, true] {
                    let setting = Setting { subflows, checksum, offloads, connections };
                    let result = measure(setting, args.segments)?;
                    println!(
                        "{subflows:>8} {:>8} {:>8} {connections:>11}   {:<24} {:<24} {:.2} + {:.2}",
                        if checksum { "on" } else { "off" },
                        if offloads { "on" } else { "off" },
                        result.umcp.show(0),
                        result.dmcp.show(0),
                        result.umcp_packets.0,
                        result.umcp_packets.1,
                    );
                    results.push(result);
                }
            }
        }
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

fn measure(setting: Setting, segments: u64) -> io::Result<Result> {
    let mut net = Net::new(setting);
    let mut idle = 0;
    while net.client.open() < setting.connections as usize || net.server.read == 0 {
        let before = net.client.open();
        net.turn();
        idle = if net.client.open() > before { 0 } else { idle + 1 };
        if idle > 100_000 {
            let up = net.client.open();
            return Err(io::Error::other(format!("only {up} of {setting:?} came up")));
        }
    }
    net.carry(segments / 4)?;
    let (begun, read) = (net.work(), net.server.read);
    let mut parts = Vec::new();
    for _ in 0..PARTS {
        let (before, read) = (net.work(), net.server.read);
        net.carry(segments / PARTS)?;
        let segments = (net.server.read - read) as f64 / SEGMENT as f64;
        let per_segment = |a: Work, b: Work| (a.spent - b.spent).as_nanos() as f64 / segments;
        let after = net.work();
        parts.push((per_segment(after[0], before[0]), per_segment(after[1], before[1])));
    }
    let segments = (net.server.read - read) as f64 / SEGMENT as f64;
    let ended = net.work();
    let packets = |i: usize| {
        let (a, b): (Work, Work) = (ended[i], begun[i]);
        (
            (a.packets_in - b.packets_in) as f64 / segments,
            (a.packets_out - b.packets_out) as f64 / segments,
        )
    };
    Ok(Result {
        setting,
        umcp: Spread::of(parts.iter().map(|part| part.0)).unwrap_or_default(),
        dmcp: Spread::of(parts.iter().map(|part| part.1)).unwrap_or_default(),
        umcp_packets: packets(0),
        dmcp_packets: packets(1),
    })
}

/// The chain, and its clock.
struct Net {
    client: Host,
    umcp: Mcp,
    dmcp: Mcp,
    server: Host,
    now: Instant,
}

impl Net {
    fn new(setting: Setting) -> Net {
        let paths = usize::from(setting.subflows);
        // Links only count here: nothing limits them.
        let mut topology = Topology::new(1, &vec![Link::new(1_000_000_000, TURN); paths]);
        let buffer = (BUFFERS / setting.connections.max(1)).clamp(16 << 10, 1 << 20);
        for config in [&mut topology.umcp, &mut topology.dmcp] {
            config.mptcp.checksum = setting.checksum;
            config.mptcp.max_subflows = setting.subflows;
            config.buffer = buffer;
            config.max_connections = setting.connections + 1;
            config.max_half_open = setting.connections + 1;
            for tcp in [&mut config.tcp, &mut config.mptcp.tcp] {
                (tcp.receive_buffer, tcp.send_buffer) = (buffer, buffer);
            }
            (config.mptcp.receive_buffer, config.mptcp.send_buffer) = (buffer, buffer);
        }
        (topology.tcp.receive_buffer, topology.tcp.send_buffer) = (buffer, buffer);
        let device = if setting.offloads { Device::Offloads } else { Device::Plain };
        let frames =
            ((u64::from(buffer) * u64::from(setting.connections)) >> 8).clamp(1 << 16, 1 << 21);
        let frames = frames as u32;
        let owned = |own: fn(usize) -> IpAddr| (0..paths).map(own);
        let mut net = Net {
            client: Host::new(topology.tcp.clone(), device, frames),
            umcp: Mcp::new(topology.umcp, owned(umcp).collect(), device, frames),
            dmcp: Mcp::new(topology.dmcp, owned(dmcp).chain([DMCP]).collect(), device, frames),
            server: Host::new(topology.tcp, device, frames),
            now: Instant::ZERO + Duration::from_secs(1),
        };
        for i in 0..setting.connections {
            let port = |n: u32| 1_024 + (n % 60_000) as u16;
            let server = Endpoint::new(SERVER, port(i / 60_000));
            net.client.connect(Endpoint::new(CLIENT, port(i)), server, net.now);
        }
        net
    }

    fn work(&self) -> [Work; 2] {
        [self.umcp.work, self.dmcp.work]
    }

    /// Turns until so many more segments were read.
    fn carry(&mut self, segments: u64) -> io::Result<()> {
        let goal = self.server.read + segments * SEGMENT;
        let mut idle = 0;
        while self.server.read < goal {
            let before = self.server.read;
            self.turn();
            idle = if self.server.read > before { 0 } else { idle + 1 };
            if idle > 100_000 {
                return Err(io::Error::other("the transfer stands still"));
            }
        }
        Ok(())
    }

    /// Every node once.
    fn turn(&mut self) {
        let Net { client, umcp, dmcp, server, now } = self;
        client.run(*now, true, |_, packet| umcp.inbox.push_back(packet));
        umcp.run(*now, |to, packet| match to {
            CLIENT => client.inbox.push_back(packet),
            _ => dmcp.inbox.push_back(packet),
        });
        dmcp.run(*now, |to, packet| match to {
            SERVER => server.inbox.push_back(packet),
            _ => umcp.inbox.push_back(packet),
        });
        server.run(*now, false, |_, packet| dmcp.inbox.push_back(packet));
        *now += TURN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_carries_what_it_should_and_nothing_twice() {
        for (offloads, checksum, subflows, connections) in
            [(false, false, 1, 1), (false, true, 8, 3), (true, true, 2, 1)]
        {
            let setting = Setting { subflows, checksum, offloads, connections };
            let result = measure(setting, 10_000).expect("it runs");
            let (packets_in, packets_out) = result.umcp_packets;
            let most = if offloads { 0.2 } else { 1.2 };
            assert!(packets_in < most && packets_out < most, "{result:?}");
            assert!(result.umcp.median > 0.0 && result.dmcp.median > 0.0, "{result:?}");
        }
    }
}
