//! The topology of the demo and of most scenarios, and transfers over it.
//!
//! ```text
//!                        +-- path 0: 10.0.1.1 - 10.0.1.2 --+
//! client --lan-- uMCP ---+-- path 1: 10.0.2.1 - 10.0.2.2 --+--- dMCP --srv-- server
//! 192.168.1.2            +-- ...                           +                 192.168.9.2
//! ```
#![forbid(unsafe_code)]

use super::{
    Close, Host, Link, LinkId, McpNode, Middlebox, NodeId, Pass, Plan, Progress, Router, Routes,
    Sim, TcpHost,
};
use crate::mcp::{Action, McpConfig, RemoteMcp, Rule, Service, SourceMode};
use crate::mptcp::LocalAddress;
use crate::tcp::TcpConfig;
use crate::time::{Duration, Instant};
use crate::wire::{Endpoint, Prefix};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

/// The client's address.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2));
/// The server's address.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 9, 2));
/// The dMCP's address towards the server.
pub const DMCP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 9, 1));
/// Where the dMCP listens.
pub const CONVERT_PORT: u16 = 5_123;
/// Where servers of [`Network::run`] listen.
pub const SERVER_PORT: u16 = 80;

/// uMCP's address on a path, counted from 0.
pub fn umcp(path: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 1 + path as u8, 1).into()
}

/// dMCP's address on a path, counted from 0.
pub fn dmcp(path: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 1 + path as u8, 2).into()
}

/// What to build.
pub struct Topology {
    /// For everything that is left to chance.
    pub seed: u64,
    /// The links between the conversion points: towards the dMCP, and back.
    pub paths: Vec<(Link, Link)>,
    /// Between client and uMCP.
    pub lan: Link,
    /// Between dMCP and server.
    pub server_link: Link,
    /// The uMCP's configuration.
    pub umcp: McpConfig,
    /// The dMCP's.
    pub dmcp: McpConfig,
    /// The hosts' own TCP.
    pub tcp: TcpConfig,
    /// Frames in each conversion point's pool.
    pub frames: u32,
    /// Shards of each conversion point.
    pub shards: u32,
    /// On the dMCP's end of a path.
    middle: Vec<(usize, Box<dyn Pass>)>,
}

impl Topology {
    /// Two conversion points joined by these links, each the same both ways.
    pub fn new(seed: u64, paths: &[Link]) -> Topology {
        let tcp =
            TcpConfig { receive_buffer: 1 << 20, send_buffer: 1 << 20, ..TcpConfig::default() };
        let mut base = McpConfig { buffer: 2 << 20, ..McpConfig::default() };
        for leg in [&mut base.tcp, &mut base.mptcp.tcp] {
            (leg.receive_buffer, leg.send_buffer) = (1 << 20, 1 << 20);
        }
        let mut umcp_config = base.clone();
        let mut dmcp_config = base;
        for path in 0..paths.len() {
            let reach = vec![prefix(dmcp(path), 24)];
            let address = |addr: IpAddr, subflow: bool| LocalAddress {
                addr,
                signal: !subflow,
                subflow,
                backup: false,
                fullmesh: false,
                reach: reach.clone(),
            };
            umcp_config.mptcp.addresses.push(address(umcp(path), true));
            dmcp_config.mptcp.addresses.push(address(dmcp(path), false));
        }
        let endpoints = vec![Endpoint::new(dmcp(0), CONVERT_PORT)];
        umcp_config.remotes.push(RemoteMcp { name: "dmcp".into(), endpoints });
        umcp_config.source_addresses.push(umcp(0));
        umcp_config.rules.push(Rule {
            name: "lan".into(),
            from: Some(prefix(CLIENT, 24)),
            to: None,
            ports: 1..=65_535,
            action: Action::Convert { remote: 0, source: SourceMode::Replace },
        });
        dmcp_config.source_addresses.push(DMCP);
        dmcp_config.services.push(Service::Explicit {
            addr: dmcp(0),
            port: Some(CONVERT_PORT),
            source: SourceMode::Replace,
        });
        let near = || Link::new(1_000_000_000, Duration::from_micros(100)).queue(4 << 20);
        Topology {
            seed,
            paths: paths.iter().map(|link| (link.clone(), link.clone())).collect(),
            lan: near(),
            server_link: near(),
            umcp: umcp_config,
            dmcp: dmcp_config,
            tcp,
            frames: 16_384,
            shards: 1,
            middle: Vec::new(),
        }
    }

    /// Puts a middlebox on a path; its interface 0 faces the uMCP.
    pub fn middlebox(mut self, path: usize, pass: impl Pass) -> Topology {
        self.middle.push((path, Box::new(pass)));
        self
    }

    /// Builds it, with our own TCP on both hosts.
    pub fn build(self) -> Network<TcpHost, TcpHost> {
        let tcp = self.tcp.clone();
        let host = |address| {
            let tcp = tcp.clone();
            move |rng| TcpHost::new(address, tcp, rng)
        };
        self.build_with(host(CLIENT), host(SERVER))
    }

    /// Builds it, with these hosts.
    pub fn build_with<C: Host, S: Host>(
        mut self,
        client: impl FnOnce(crate::rng::Rng) -> C,
        server: impl FnOnce(crate::rng::Rng) -> S,
    ) -> Network<C, S> {
        let mut sim = Sim::new(self.seed);
        let (client, server) = (client(sim.fork_rng()), server(sim.fork_rng()));
        let (client, server) = (sim.add(client), sim.add(server));
        let paths = self.paths.len();
        let owned = |own: fn(usize) -> IpAddr, extra: Option<IpAddr>| {
            (0..paths).map(own).chain(extra).collect::<Vec<_>>()
        };
        let mut rng = || sim.fork_rng();
        let (a, b) = (rng(), rng());
        let umcp_node = McpNode::new(
            (self.shards, self.umcp),
            owned(umcp, None),
            routes(paths, 0),
            self.frames,
            a,
        );
        let dmcp_node = McpNode::new(
            (self.shards, self.dmcp),
            owned(dmcp, Some(DMCP)),
            routes(paths, 1),
            self.frames,
            b,
        );
        let (umcp, dmcp) = (sim.add(umcp_node), sim.add(dmcp_node));
        sim.link((client, 0), (umcp, 0), self.lan);
        sim.link((dmcp, 0), (server, 0), self.server_link);
        let mut links = Vec::new();
        for (path, (there, back)) in self.paths.into_iter().enumerate() {
            let middle = self.middle.iter().position(|(at, _)| *at == path);
            match middle.map(|at| self.middle.swap_remove(at).1) {
                Some(pass) => {
                    let middle = sim.add(Middlebox::new(pass));
                    links.push(sim.link_both((umcp, 1 + path), (middle, 0), there, back));
                    sim.link((middle, 1), (dmcp, 1 + path), Link::default());
                }
                None => {
                    links.push(sim.link_both((umcp, 1 + path), (dmcp, 1 + path), there, back));
                }
            }
        }
        Network { sim, client, server, mcps: Some((umcp, dmcp)), links }
    }

    /// The same hosts over one of the paths, with routers instead of conversion points.
    pub fn build_plain(self, path: usize) -> Network<TcpHost, TcpHost> {
        let mut sim = Sim::new(self.seed);
        let client = TcpHost::new(CLIENT, self.tcp.clone(), sim.fork_rng());
        let server = TcpHost::new(SERVER, self.tcp.clone(), sim.fork_rng());
        let (client, server) = (sim.add(client), sim.add(server));
        let left = sim.add(Router::new(Routes::new().add("192.168.1.0/24", 0).add("0.0.0.0/0", 1)));
        let right =
            sim.add(Router::new(Routes::new().add("192.168.9.0/24", 0).add("0.0.0.0/0", 1)));
        sim.link((client, 0), (left, 0), self.lan);
        sim.link((right, 0), (server, 0), self.server_link);
        let (there, back) = self.paths[path].clone();
        let links = vec![sim.link_both((left, 1), (right, 1), there, back)];
        Network { sim, client, server, mcps: None, links }
    }
}

fn prefix(addr: IpAddr, len: u8) -> Prefix {
    Prefix { addr, len }
}

/// Interface 0 is the hosts' side, 1 + path the others. `side` is 0 for the uMCP.
fn routes(paths: usize, side: usize) -> Routes {
    let (own, far) =
        [("192.168.1.0/24", "192.168.9.0/24"), ("192.168.9.0/24", "192.168.1.0/24")][side];
    let routes = Routes::new().add(own, 0).add(far, 1);
    (0..paths).fold(routes, |routes, path| routes.add(&format!("10.0.{}.0/24", 1 + path), 1 + path))
}

/// A topology that was built.
pub struct Network<C, S> {
    /// The network and its clock.
    pub sim: Sim,
    /// The client.
    pub client: NodeId<C>,
    /// The server.
    pub server: NodeId<S>,
    /// uMCP and dMCP, unless they are routers.
    pub mcps: Option<(NodeId<McpNode>, NodeId<McpNode>)>,
    /// The paths.
    pub links: Vec<LinkId>,
}

/// One connection from client to server, each sending, and what happens to the links meanwhile.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Octets from client to server.
    pub up: u64,
    /// Octets from server to client.
    pub down: u64,
    /// Links cut, each by its number, and when after the start.
    pub cuts: Vec<(usize, Duration)>,
    /// Links restored, likewise.
    pub restores: Vec<(usize, Duration)>,
    /// When to give up.
    pub limit: Duration,
}

impl Transfer {
    /// So many octets each way over links that stay up; ten minutes at most.
    pub fn new(up: u64, down: u64) -> Transfer {
        Transfer { up, down, cuts: vec![], restores: vec![], limit: Duration::from_secs(600) }
    }

    /// Cuts a link `after` the start.
    pub fn cut(mut self, link: usize, after: Duration) -> Transfer {
        self.cuts.push((link, after));
        self
    }

    /// Restores it `after` the start.
    pub fn restore(mut self, link: usize, after: Duration) -> Transfer {
        self.restores.push((link, after));
        self
    }
}

/// What became of one direction of a transfer.
#[derive(Clone, Debug)]
pub struct Way {
    /// Octets that arrived.
    pub octets: u64,
    /// Whether exactly what was to be sent arrived, by length and hash.
    pub intact: bool,
    /// When they came.
    pub progress: Progress,
}

impl Way {
    /// Bits per second after the first second.
    pub fn goodput(&self) -> f64 {
        self.progress.goodput(Duration::from_secs(1))
    }

    /// The longest time without an octet.
    pub fn stall(&self) -> Duration {
        self.progress.longest_gap().0
    }
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Both programs saw the other's end, in time.
    pub finished: bool,
    /// From client to server.
    pub up: Way,
    /// From server to client.
    pub down: Way,
    /// From the SYN until both ends were done.
    pub took: Duration,
}

impl Outcome {
    /// Finished, and every octet is there.
    pub fn is_exact(&self) -> bool {
        self.finished && self.up.intact && self.down.intact
    }
}

impl<C: Host, S: Host> Network<C, S> {
    /// Runs one transfer to its end.
    pub fn run(&mut self, transfer: &Transfer) -> Outcome {
        let begin = self.sim.now();
        let (client, server) = (self.client, self.server);
        let plan = |send, seed| {
            let close = if send > 0 { Close::AfterSending } else { Close::AfterPeer };
            Plan { send, seed, close, ..Plan::default() }
        };
        let served = self.sim[server].apps().len();
        let (mut up, mut down) = (plan(transfer.up, 11), plan(transfer.down, 12));
        if transfer.up + transfer.down == 0 {
            up.close = Close::AfterSending;
        }
        down.close = Close::AfterPeer;
        if transfer.down > 0 {
            up.close = Close::AfterReceiving(transfer.down);
        }
        self.sim[server].listen(SERVER_PORT, down, 1);
        let asked = self.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), up, begin);
        self.follow_links(transfer, begin, |sim| {
            let over = |app: Option<&&super::App>| app.is_some_and(|app| app.end.is_some());
            let last = sim[server].apps().len().saturating_sub(1).max(served);
            over(sim[client].apps().get(asked)) && over(sim[server].apps().get(last))
                || sim[client].apps()[asked].end.is_some_and(|end| end != super::End::Done)
        });
        self.outcome(asked, served, transfer, begin)
    }

    /// Lets time run until `over`, changing links as ordered.
    fn follow_links(&mut self, transfer: &Transfer, begin: Instant, over: impl Fn(&Sim) -> bool) {
        let cuts = transfer.cuts.iter().map(|(link, at)| (*at, *link, false));
        let restores = transfer.restores.iter().map(|(link, at)| (*at, *link, true));
        let mut orders: Vec<_> = cuts.chain(restores).collect();
        orders.sort();
        for (at, link, up) in orders {
            let left = (begin + at).since(self.sim.now());
            if self.sim.run_while(left, |sim| !over(sim)) {
                return;
            }
            match up {
                true => self.sim.restore(self.links[link]),
                false => self.sim.cut(self.links[link]),
            }
        }
        let left = (begin + transfer.limit).since(self.sim.now());
        self.sim.run_while(left, |sim| !over(sim));
    }

    fn outcome(&self, asked: usize, served: usize, transfer: &Transfer, begin: Instant) -> Outcome {
        let (clients, servers) = (self.sim[self.client].apps(), self.sim[self.server].apps());
        let client = clients[asked];
        // An attempt that was given up may have reached the server before.
        let server = servers.get(servers.len().saturating_sub(1).max(served));
        let way = |receiver: Option<&&super::App>, sender: Option<&&super::App>, wanted| Way {
            octets: receiver.map_or(0, |app| app.received.len),
            intact: receiver.is_some_and(|receiver| {
                receiver.received.len == wanted
                    && sender.is_some_and(|sender| sender.sent == receiver.received)
            }),
            progress: receiver.map_or_else(Progress::default, |app| app.progress.clone()),
        };
        let done = |app: &super::App| app.end == Some(super::End::Done) && app.saw_end;
        Outcome {
            finished: done(client) && server.is_some_and(|server| done(server)),
            up: way(server, Some(&client), transfer.up),
            down: way(Some(&client), server, transfer.down),
            took: self.sim.now().since(begin),
        }
    }

    /// Lets three minutes pass, then says what is left where nothing should be.
    pub fn leftovers(&mut self) -> Option<String> {
        self.sim.run_for(Duration::from_secs(180));
        let (umcp, dmcp) = self.mcps?;
        let named = |name: &str, left: Option<String>| left.map(|left| format!("{name}: {left}"));
        named("umcp", self.sim[umcp].leftovers()).or(named("dmcp", self.sim[dmcp].leftovers()))
    }
}
