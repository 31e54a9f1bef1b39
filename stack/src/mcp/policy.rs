//! What the bridges of a shard share: configuration made ready for use, and what was learnt about dMCPs.
#![forbid(unsafe_code)]

use super::config::{Action, McpConfig, SourceMode, Transport};
use super::info::Origin;
use super::negative_cache::NegativeCache;
use crate::mptcp::{MptcpConfig, MptcpCounters, SharedConfig};
use crate::shard::Cx;
use crate::tcp::{FastOpenCache, FastOpenLesson, Opening, PathMtus, TcpConfig};
use crate::wire::{Endpoint, FlowTuple};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

/// Shared by all bridges of a shard.
pub struct Mcp {
    pub(super) config: Rc<McpConfig>,
    /// TCP legs: MSS clamped, buffers limited.
    pub(super) tcp: Rc<TcpConfig>,
    /// MPTCP legs.
    pub(super) mptcp: Rc<SharedConfig>,
    /// MPTCP legs towards a dMCP: without MP_CAPABLE there is no conversion, so a SYN never goes without.
    pub(super) explicit: Rc<SharedConfig>,
    pub(super) avoided: NegativeCache,
    /// What servers of TCP legs do with text in a SYN.
    pub(super) fast_open: FastOpenCache,
    /// What paths carry: what one leg learns, others begin with.
    pub(super) paths: PathMtus,
    pub(super) counters: MptcpCounters,
    /// Names of rules, those of former configurations included: [`Origin::Rule`] is a place in this list.
    names: Vec<String>,
    /// Of each rule, the place of its name.
    places: Vec<u32>,
}

/// What TCP legs, MPTCP legs and MPTCP legs towards a dMCP are told.
fn legs(config: &McpConfig) -> (TcpConfig, MptcpConfig, MptcpConfig) {
    let buffer = config.buffer;
    let tcp = TcpConfig {
        mss: config.leg_mss(),
        receive_buffer: config.tcp.receive_buffer.min(buffer),
        send_buffer: buffer,
        ..config.tcp.clone()
    };
    let mptcp = MptcpConfig {
        receive_buffer: config.mptcp.receive_buffer.min(buffer),
        send_buffer: buffer,
        ..config.mptcp.clone()
    };
    let explicit = MptcpConfig { syn_retrans_before_tcp_fallback: u8::MAX, ..mptcp.clone() };
    (tcp, mptcp, explicit)
}

/// Where `new` is in the list; at its end if it was not there.
fn place<T: PartialEq>(list: &mut Vec<T>, new: T) -> usize {
    list.iter().position(|known| *known == new).unwrap_or_else(|| {
        list.push(new);
        list.len() - 1
    })
}

/// Where the names of the rules are in the list; new ones are added.
fn places(names: &mut Vec<String>, config: &McpConfig) -> Vec<u32> {
    config.rules.iter().map(|rule| place(names, rule.name.clone()) as u32).collect()
}

impl From<McpConfig> for Mcp {
    fn from(config: McpConfig) -> Mcp {
        let (tcp, mptcp, explicit) = legs(&config);
        let mut names = Vec::new();
        let paths = PathMtus::default();
        Mcp {
            places: places(&mut names, &config),
            names,
            tcp: Rc::new(tcp),
            mptcp: Rc::new(SharedConfig::from(mptcp).knowing(&paths)),
            explicit: Rc::new(SharedConfig::from(explicit).knowing(&paths)),
            paths,
            fast_open: FastOpenCache::default(),
            avoided: NegativeCache::new(config.remotes.len(), config.negative_cache_ttl),
            counters: MptcpCounters::default(),
            config: Rc::new(config),
        }
    }
}

impl Mcp {
    /// The configuration as it was given.
    pub fn config(&self) -> &McpConfig {
        &self.config
    }

    /// The greatest segment, in octets, that connections opened from now on announce and send.
    pub fn set_mss(&mut self, mss: u16) {
        let mut config = McpConfig::clone(&self.config);
        config.tcp.mss = mss;
        config.mptcp.tcp.mss = mss;
        self.set(config);
    }

    /// Another configuration, for connections opened from now on: those that exist keep what they were opened with. The
    /// MSS stays. dMCPs keep their numbers, and what was learnt about them; one that is not configured any more takes up
    /// its place, as do the names of former rules, for the connections that came by them.
    pub fn reconfigure(&mut self, mut config: McpConfig) {
        config.tcp.mss = self.config.tcp.mss;
        config.mptcp.tcp.mss = self.config.mptcp.tcp.mss;
        let mut remotes = self.config.remotes.clone();
        let numbers: Vec<usize> =
            config.remotes.drain(..).map(|r| place(&mut remotes, r)).collect();
        for rule in &mut config.rules {
            if let Action::Convert { remote, .. } = &mut rule.action
                && let Some(number) = numbers.get(*remote)
            {
                *remote = *number;
            }
        }
        config.remotes = remotes;
        self.avoided.resize(config.remotes.len(), config.negative_cache_ttl);
        self.places = places(&mut self.names, &config);
        self.set(config);
    }

    fn set(&mut self, config: McpConfig) {
        let (tcp, mptcp, explicit) = legs(&config);
        self.tcp = Rc::new(tcp);
        self.mptcp = Rc::new(self.mptcp.with(mptcp));
        self.explicit = Rc::new(self.explicit.with(explicit));
        self.config = Rc::new(config);
    }

    /// Initial numbers of a TCP leg, and what its path is known to carry.
    pub(super) fn opening(&self, flow: FlowTuple, cx: &Cx<'_>) -> Opening {
        let path_mss = self.paths.mss(flow.remote.addr, cx.now);
        Opening { path_mss, ..cx.opening(flow) }
    }

    /// Takes in how a SYN to `server` fared.
    pub(super) fn learn_fast_open(
        &mut self,
        server: IpAddr,
        lesson: FastOpenLesson,
        cx: &mut Cx<'_>,
    ) {
        cx.counters.on_fast_open(lesson.fate);
        let paused = self.fast_open.learn(server, lesson, cx.now);
        cx.counters.TCPFastOpenBlackhole += u64::from(paused);
    }

    /// What a connection says that it came by, of rule `i`.
    pub(super) fn origin(&self, i: usize) -> Origin {
        Origin::Rule(self.places.get(i).copied().unwrap_or(u32::MAX))
    }

    /// The name of a rule that connections came by.
    pub(super) fn rule_name(&self, place: u32) -> String {
        self.names.get(place as usize).cloned().unwrap_or_default()
    }

    /// dMCPs that are left alone.
    pub fn negative_cache(&self) -> &NegativeCache {
        &self.avoided
    }

    /// As [`Mcp::negative_cache`], to flush it.
    pub fn negative_cache_mut(&mut self) -> &mut NegativeCache {
        &mut self.avoided
    }

    /// MPTCP events of all connections, those of ended ones included.
    pub fn mptcp_counters(&self) -> &MptcpCounters {
        &self.counters
    }

    /// The flow of a leg to `server`, free to use. `client` is who it is for.
    pub(super) fn far_flow(
        &self,
        wanted: Source,
        transport: Transport,
        client: Endpoint,
        server: Endpoint,
        cx: &mut Cx<'_>,
    ) -> Option<FlowTuple> {
        let local = match wanted {
            Source::Of(end) => end,
            Source::Ours => {
                let addr = self.source_address(transport, client.addr, server.addr)?;
                Endpoint::new(addr, cx.ephemeral_port(addr, server)?)
            }
        };
        let flow = FlowTuple { local, remote: server };
        let one_family = local.addr.is_ipv4() == server.addr.is_ipv4();
        (one_family && cx.is_free(flow)).then_some(flow)
    }

    /// One of our addresses. A client is always shown as the same one (RFC 4787 REQ-2: paired).
    fn source_address(
        &self,
        transport: Transport,
        client: IpAddr,
        server: IpAddr,
    ) -> Option<IpAddr> {
        let paths = || {
            let usable = |a: &&crate::mptcp::LocalAddress| a.subflow || a.signal;
            let all = self.config.mptcp.addresses.iter();
            all.filter(usable).filter(|a| a.reaches(server)).map(|a| a.addr)
        };
        let sources = || {
            let all = self.config.source_addresses.iter().copied();
            all.filter(|a| a.is_ipv4() == server.is_ipv4())
        };
        match transport {
            Transport::Mptcp => {
                paths().find(|a| !a.is_unspecified()).or_else(|| pick(client, sources))
            }
            Transport::Tcp => pick(client, sources).or_else(|| paths().next()),
        }
    }

    /// The endpoint of dMCP `remote` that one of our paths reaches, and that path's address.
    pub(super) fn path_to_remote(&self, remote: usize) -> Option<(IpAddr, Endpoint)> {
        let endpoints = &self.config.remotes.get(remote)?.endpoints;
        endpoints.iter().find_map(|&to| {
            let addr = self.source_address(Transport::Mptcp, to.addr, to.addr)?;
            Some((addr, to))
        })
    }
}

/// Whose address a far leg shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// Somebody's.
    Of(Endpoint),
    /// One of ours.
    Ours,
}

impl Source {
    pub(super) fn new(mode: SourceMode, client: Endpoint) -> Source {
        match mode {
            SourceMode::Keep => Source::Of(client),
            SourceMode::Replace => Source::Ours,
        }
    }
}

/// Always the same one for the same client.
fn pick<I: Iterator<Item = IpAddr>>(client: IpAddr, all: impl Fn() -> I) -> Option<IpAddr> {
    let count = all().count();
    let octets = match client {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    };
    all().nth((octets % count.max(1) as u128) as usize)
}
