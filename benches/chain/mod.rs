//! Client - uMCP - dMCP - server in one thread, in memory and in virtual time: the same packets in every run.
#![forbid(unsafe_code)]

mod device;
mod host;
mod mcp;

pub use device::Device;
pub use mcp::Work;

use host::Host;
use mcp::{Mcp, Place};
use stack::mcp::{Action, McpConfig, RemoteMcp, Rule, Service, SourceMode};
use stack::testkit::Link;
use stack::testkit::reference::{CLIENT, CONVERT_PORT, DMCP, SERVER, Topology, dmcp, umcp};
use stack::time::{Duration, Instant};
use stack::wire::{Endpoint, FlowTuple};
use std::fmt;
use std::net::IpAddr;

/// Octets of text in a segment that was clamped so that DSS and timestamps fit beside it.
pub const SEGMENT: u64 = 1_420;
/// What passes between two turns of every node, in virtual time.
const TURN: Duration = Duration::from_micros(50);
/// Octets that may be under way on each leg of a connection.
const BUFFER: u32 = 1 << 20;
/// Connections that write at a time; the others wait until their turn comes.
pub const WRITERS: u32 = 100;
/// Octets that one of many connections has under way, and writes in its turn.
pub const WRITTEN: u32 = 64 << 10;
/// Frames of each node: several times what can be under way.
const FRAMES: u32 = 1 << 16;
/// Connections between two addresses and one port of the dMCP: fewer than there are ports.
const PER_REMOTE: u32 = 50_000;
/// SYNs at a time.
const SYNS: u32 = 500;
/// What passes after a turn without a packet while connections come and go, in virtual time.
const PAUSE: Duration = Duration::from_millis(10);
/// After so many such turns nobody has anything more to say, and no subflow waits for its time to come.
const QUIET: u32 = 50;
/// So many turns without progress are a standstill.
const PATIENCE: u32 = 100_000;

/// What the chain is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Paths, hence subflows of each connection: 1 to 8.
    pub subflows: u8,
    /// Whether data sequence signals carry a checksum.
    pub checksum: bool,
    /// Of all nodes.
    pub device: Device,
    /// Most connections at a time.
    pub connections: u32,
}

/// Nothing moves any more.
#[derive(Debug)]
pub struct Standstill(String);

impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Standstill {}

/// The chain, and its clock.
pub struct Net {
    client: Host,
    umcp: Mcp,
    dmcp: Mcp,
    server: Host,
    now: Instant,
    setting: Setting,
}

impl Net {
    /// One without connections.
    pub fn new(setting: Setting) -> Net {
        let paths = usize::from(setting.subflows);
        // Links only count here: nothing limits them.
        let mut topology = Topology::new(1, &vec![Link::new(1_000_000_000, TURN); paths]);
        for config in [&mut topology.umcp, &mut topology.dmcp] {
            config.mptcp.checksum = setting.checksum;
            config.mptcp.max_subflows = setting.subflows;
            config.buffer = BUFFER;
            config.max_connections = setting.connections + 1;
            config.max_half_open = setting.connections + 1;
            for tcp in [&mut config.tcp, &mut config.mptcp.tcp] {
                (tcp.receive_buffer, tcp.send_buffer) = (BUFFER, BUFFER);
            }
            (config.mptcp.receive_buffer, config.mptcp.send_buffer) = (BUFFER, BUFFER);
        }
        let remotes = setting.connections.div_ceil(PER_REMOTE);
        widen(&mut topology.umcp, &mut topology.dmcp, remotes as u16);
        topology.tcp.receive_buffer = BUFFER;
        topology.tcp.send_buffer = if setting.connections > 1 { WRITTEN } else { BUFFER };
        let device = setting.device;
        let owned = |own: fn(usize) -> IpAddr| (0..paths).map(own);
        let (near, far) = (owned(umcp).collect(), owned(dmcp).chain([DMCP]).collect());
        Net {
            client: Host::new(topology.tcp.clone(), device, FRAMES),
            umcp: Mcp::new(Place::Umcp, topology.umcp, near, device, FRAMES),
            dmcp: Mcp::new(Place::Dmcp, topology.dmcp, far, device, FRAMES),
            server: Host::new(topology.tcp, device, FRAMES),
            now: Instant::ZERO + Duration::from_secs(1),
            setting,
        }
    }

    /// What each conversion point did so far: uMCP, dMCP.
    pub fn work(&self) -> [Work; 2] {
        [self.umcp.work, self.dmcp.work]
    }

    /// Octets that arrived at the server.
    pub fn read(&self) -> u64 {
        self.server.read
    }

    /// Opens all connections, `SYNS` at a time, with all their subflows; `progress` is told how many are up.
    pub fn open(&mut self, mut progress: impl FnMut(u32)) -> Result<(), Standstill> {
        for first in (0..self.setting.connections).step_by(SYNS as usize) {
            let last = (first + SYNS).min(self.setting.connections);
            for i in first..last {
                let FlowTuple { local, remote } = flow(i);
                self.client.connect(local, remote, self.now);
            }
            let goal = self.client.opened + u64::from(last - first);
            self.until("connecting", |net| net.client.opened, goal)?;
            progress(last);
        }
        self.settle();
        Ok(())
    }

    /// Closes all connections, the client first, and waits until the conversion points have let go of them.
    pub fn close(&mut self) -> Result<(), Standstill> {
        (0..self.setting.connections).for_each(|i| self.client.close(flow(i)));
        let bridges = |net: &Net| net.umcp.sessions() + net.dmcp.sessions();
        let (mut left, mut idle) = (bridges(self), 0);
        while left > 0 {
            self.turn_or_pause();
            let now = bridges(self);
            idle = if now < left { 0 } else { idle + 1 };
            left = now;
            if idle > PATIENCE {
                return Err(Standstill(format!("closing stands still, {left} bridges are left")));
            }
        }
        Ok(())
    }

    /// Lets the client write on all connections, [`WRITERS`] at a time.
    pub fn write(&mut self) {
        let count = self.setting.connections;
        let turn = if count > 1 { WRITTEN } else { BUFFER };
        self.client.write((0..count).map(flow), WRITERS as usize, turn as usize);
    }

    /// Turns until so many more segments were read.
    pub fn carry(&mut self, segments: u64) -> Result<(), Standstill> {
        let goal = self.server.read + segments * SEGMENT;
        self.until("the transfer", |net| net.server.read, goal)
    }

    fn until(
        &mut self,
        what: &str,
        count: impl Fn(&Net) -> u64,
        goal: u64,
    ) -> Result<(), Standstill> {
        let mut idle = 0;
        while count(self) < goal {
            let before = count(self);
            self.turn();
            idle = if count(self) > before { 0 } else { idle + 1 };
            if idle > PATIENCE {
                let count = count(self);
                return Err(Standstill(format!("{what} stands still at {count} of {goal}")));
            }
        }
        Ok(())
    }

    /// Turns until nobody has anything more to say.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < QUIET {
            quiet = if self.turn_or_pause() { 0 } else { quiet + 1 };
        }
    }

    /// Every node once; whether a packet was on its way. Time runs if none was.
    fn turn_or_pause(&mut self) -> bool {
        let packets = |net: &Net| -> u64 {
            net.work().iter().map(|work| work.packets_in + work.packets_out).sum()
        };
        let before = packets(self);
        self.turn();
        let some = packets(self) > before;
        if !some {
            self.now += PAUSE;
        }
        some
    }

    /// Every node once.
    fn turn(&mut self) {
        let Net { client, umcp, dmcp, server, now, .. } = self;
        client.run(*now, |_, packet| umcp.inbox.push_back(packet));
        umcp.run(*now, |to, packet| match to {
            CLIENT => client.inbox.push_back(packet),
            _ => dmcp.inbox.push_back(packet),
        });
        dmcp.run(*now, |to, packet| match to {
            SERVER => server.inbox.push_back(packet),
            _ => umcp.inbox.push_back(packet),
        });
        server.run(*now, |_, packet| dmcp.inbox.push_back(packet));
        *now += TURN;
    }
}

/// A connection of the client.
fn flow(number: u32) -> FlowTuple {
    let port = |n: u32| 1_024 + n as u16;
    FlowTuple {
        local: Endpoint::new(CLIENT, port(number % PER_REMOTE)),
        remote: Endpoint::new(SERVER, port(number / PER_REMOTE)),
    }
}

/// A port of the dMCP for every port of the server: more connections than a port has room for.
fn widen(near: &mut McpConfig, far: &mut McpConfig, remotes: u16) {
    (near.rules, near.remotes, far.services) = Default::default();
    for remote in 0..remotes {
        let at = Endpoint::new(dmcp(0), CONVERT_PORT + remote);
        let (name, port) = (format!("{remote}"), 1_024 + remote);
        near.remotes.push(RemoteMcp { name: name.clone(), endpoints: vec![at] });
        near.rules.push(Rule {
            name,
            from: None,
            to: None,
            ports: port..=port,
            action: Action::Convert { remote: remote.into(), source: SourceMode::Replace },
        });
        far.services.push(Service::Explicit {
            addr: at.addr,
            port: Some(at.port),
            source: SourceMode::Replace,
        });
    }
}
