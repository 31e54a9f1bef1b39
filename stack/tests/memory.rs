//! What an idle connection costs: live heap of one conversion point, per bridged connection with two subflows.
//!
//! `IDLE_CONNECTIONS=200000 cargo test --release -p plait-stack --test memory -- --nocapture` measures the real crowd.

use stack::mcp::{Action, Bridge, McpConfig, RemoteMcp, Rule, Service, SourceMode};
use stack::mptcp::Connection;
use stack::rng::Rng;
use stack::tcp::{Stream, Tcb, TcpConfig};
use stack::testkit::reference::{CONVERT_PORT, Topology, dmcp, umcp};
use stack::testkit::{Close, Host, Link, McpNode, Node, Outbox, Plan, Routes, TcpHost};
use stack::time::{Duration, Instant, earliest};
use stack::wire::Endpoint;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Octets of heap, as they are asked for, that an idle bridged connection with two subflows may cost.
const BUDGET: i64 = 2_048;
/// Octets of heap that a connection may cost whose server does not answer. With the frame that holds MP_CONVERT it is what
/// a flood of SYNs takes, `limits.half-open` times.
const HALF_OPEN_BUDGET: i64 = 2_560;
/// Connections that are opened at a time.
const BATCH: usize = 200;
/// Octets that each carries in either direction.
const OCTETS: u64 = 20_000;
/// Connections between two conversion points and one port of the dMCP: fewer than there are ports.
const PER_REMOTE: usize = 50_000;

/// Who allocates: the harness, or one of the conversion points.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Account {
    Other,
    Umcp,
    Dmcp,
    HalfOpenUmcp,
    HalfOpenDmcp,
}

thread_local! {
    static ACCOUNT: Cell<Account> = const { Cell::new(Account::Other) };
}

/// Sizes are told apart up to here, in steps of [`STEP`].
const SIZES: usize = 512;
const STEP: usize = 8;

/// Live heap of an account.
struct Live {
    /// Octets as they were asked for.
    asked: AtomicI64,
    /// Octets as malloc takes them: 8 in front, a multiple of 16, at least 32.
    taken: AtomicI64,
    /// Allocations by size.
    sizes: [AtomicI64; SIZES],
}

impl Live {
    const fn new() -> Live {
        let sizes = [const { AtomicI64::new(0) }; SIZES];
        Live { asked: AtomicI64::new(0), taken: AtomicI64::new(0), sizes }
    }

    fn count(&self, size: usize, sign: i64) {
        let taken = (size + 8).next_multiple_of(16).max(32);
        self.asked.fetch_add(sign * size as i64, Relaxed);
        self.taken.fetch_add(sign * taken as i64, Relaxed);
        if let Some(n) = self.sizes.get(size / STEP) {
            n.fetch_add(sign, Relaxed);
        }
    }
}

static LIVE: [Live; 5] = [const { Live::new() }; 5];

/// The system's allocator, with the account of each allocation in front of it: who frees does not matter.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

impl Counting {
    /// The layout with room for the account, and how much room that is.
    fn whole(layout: Layout) -> Option<(Layout, usize)> {
        let front = layout.align().max(align_of::<usize>());
        let whole = Layout::from_size_align(layout.size().checked_add(front)?, front).ok()?;
        Some((whole, front))
    }

    /// # Safety
    /// `start` is null or the begin of an allocation with `front` octets of room.
    unsafe fn open(start: *mut u8, front: usize, size: usize) -> *mut u8 {
        if start.is_null() {
            return start;
        }
        let account = ACCOUNT.with(Cell::get) as usize;
        LIVE[account].count(size, 1);
        // SAFETY: the room is at least as long and aligned as a usize, and what follows it is inside the allocation.
        unsafe {
            start.cast::<usize>().write(account);
            start.add(front)
        }
    }
}

// SAFETY: every call is handed on to the system's allocator with a layout that differs only by the room in front.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, front)) = Counting::whole(layout) else { return std::ptr::null_mut() };
        // SAFETY: `whole` is not empty.
        unsafe { Counting::open(System.alloc(whole), front, layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((whole, front)) = Counting::whole(layout) else { return std::ptr::null_mut() };
        // SAFETY: `whole` is not empty.
        unsafe { Counting::open(System.alloc_zeroed(whole), front, layout.size()) }
    }

    unsafe fn dealloc(&self, octets: *mut u8, layout: Layout) {
        let Some((whole, front)) = Counting::whole(layout) else { return };
        // SAFETY: `octets` came from `open` with the same layout, so the account stands `front` in front of it.
        unsafe {
            let start = octets.sub(front);
            LIVE[start.cast::<usize>().read()].count(layout.size(), -1);
            System.dealloc(start, whole);
        }
    }
}

/// client, uMCP, dMCP, server: each packet takes a millisecond, nothing is lost.
struct Chain {
    now: Instant,
    umcp: McpNode,
    dmcp: McpNode,
    /// Receiver, interface, octets.
    under_way: Vec<(usize, usize, Vec<u8>)>,
    outbox: Outbox,
}

impl Chain {
    /// Lets time run until nothing happens before `until`.
    fn run_until(&mut self, until: Instant, client: &mut TcpHost, server: &mut TcpHost) {
        loop {
            let now = self.now;
            let nodes: [(&mut dyn Node, Account); 4] = [
                (client, Account::Other),
                (&mut self.umcp, Account::Umcp),
                (&mut self.dmcp, Account::Dmcp),
                (server, Account::Other),
            ];
            let mut next = None;
            let mut arriving = std::mem::take(&mut self.under_way);
            for (at, (node, account)) in nodes.into_iter().enumerate() {
                ACCOUNT.set(account);
                for (_, iface, packet) in arriving.extract_if(.., |(to, ..)| *to == at) {
                    node.receive(iface, packet, now);
                }
                node.poll(now, &mut self.outbox);
                ACCOUNT.set(Account::Other);
                next = earliest(next, node.deadline());
                let sent = self.outbox.drain(..);
                self.under_way.extend(sent.map(|(iface, packet)| route(at, iface, packet)));
            }
            self.now = match next {
                _ if !self.under_way.is_empty() => now + Duration::from_millis(1),
                Some(at) if at <= until => at.max(now + Duration::from_nanos(1)),
                _ => break,
            };
        }
        self.now = self.now.max(until);
    }

    /// Opens a batch, lets it carry its octets, and leaves it to itself: nobody ends it.
    fn open(&mut self, batch: usize, n: usize) {
        let own = |net: u8| IpAddr::V4(Ipv4Addr::new(172, net, (batch >> 8) as u8, batch as u8));
        let host = |addr| TcpHost::new(addr, TcpConfig::default(), Rng::from_number(batch as u64));
        let (mut client, mut server) = (host(own(16)), host(own(17)));
        let port = 80 + (batch * BATCH / PER_REMOTE) as u16;
        server.listen(port, Plan::echo().close(Close::Never), n);
        for i in 0..n {
            let plan = Plan::send(OCTETS, i as u64).close(Close::Never);
            client.connect(Endpoint::new(own(17), port), plan, self.now);
        }
        self.run_until(self.now + Duration::from_secs(5), &mut client, &mut server);
        assert!(client.apps().iter().all(|app| app.sent == app.received && app.sent.len == OCTETS));
    }
}

/// Where a packet comes out that `node` sends on `iface`.
fn route(node: usize, iface: usize, packet: Vec<u8>) -> (usize, usize, Vec<u8>) {
    match (node, iface) {
        (0, _) => (1, 0, packet),
        (1, 0) => (0, 0, packet),
        (1, path) => (2, path, packet),
        (2, 0) => (3, 0, packet),
        (2, path) => (1, path, packet),
        _ => (2, 0, packet),
    }
}

fn conversion_point(
    account: Account,
    config: McpConfig,
    owned: Vec<IpAddr>,
    near: &str,
    far: &str,
) -> McpNode {
    let routes = Routes::new().add(near, 0).add(far, 1).add("10.0.1.0/24", 1).add("10.0.2.0/24", 2);
    ACCOUNT.set(account);
    let node =
        McpNode::new((1, config), owned, routes, 16_384, Rng::from_number(1 + account as u64));
    ACCOUNT.set(Account::Other);
    node
}

/// For so many connections, of which so many may be half-open.
fn chain(accounts: [Account; 2], connections: usize, half_open: usize) -> Chain {
    let link = || Link::new(1_000_000_000, Duration::from_millis(1));
    let Topology { umcp: mut near, dmcp: mut far, .. } = Topology::new(1, &[link(), link()]);
    (near.rules, near.remotes, far.services) = Default::default();
    for remote in 0..connections.div_ceil(PER_REMOTE) {
        let (port, server_port) = (CONVERT_PORT + remote as u16, 80 + remote as u16);
        let endpoints = vec![Endpoint::new(dmcp(0), port)];
        near.remotes.push(RemoteMcp { name: format!("dmcp {remote}"), endpoints });
        let action = Action::Convert { remote, source: SourceMode::Replace };
        let (name, ports) = (format!("to {remote}"), server_port..=server_port);
        near.rules.push(Rule { name, from: None, to: None, ports, action });
        let (addr, source) = (dmcp(0), SourceMode::Replace);
        far.services.push(Service::Explicit { addr, port: Some(port), source });
    }
    for config in [&mut near, &mut far] {
        (config.max_connections, config.max_half_open) = (connections as u32, half_open as u32);
    }
    let side = IpAddr::V4(Ipv4Addr::new(172, 17, 255, 254));
    far.source_addresses = vec![side];
    let (clients, servers) = ("172.16.0.0/16", "172.17.0.0/16");
    let (near_own, far_own) = (vec![umcp(0), umcp(1)], vec![dmcp(0), dmcp(1), side]);
    Chain {
        now: Instant::from_millis(1_000),
        umcp: conversion_point(accounts[0], near, near_own, clients, servers),
        dmcp: conversion_point(accounts[1], far, far_own, servers, clients),
        under_way: Vec::new(),
        outbox: Vec::new(),
    }
}

/// Resident octets of this process.
fn resident() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).unwrap_or(0) * 4_096
}

#[test]
fn an_idle_bridged_connection_with_two_subflows_stays_within_its_budget() {
    let connections: usize = std::env::var("IDLE_CONNECTIONS")
        .map_or(2_000, |n| n.parse().expect("IDLE_CONNECTIONS is a number"));
    println!(
        "octets: Bridge {}, Connection {}, Stream {}, Tcb {}",
        size_of::<Bridge>(),
        size_of::<Connection>(),
        size_of::<Stream>(),
        size_of::<Tcb>()
    );
    let mut chain = chain([Account::Umcp, Account::Dmcp], connections + BATCH, BATCH);
    // What a shard keeps for its turns, however many sessions it has, grows with the first of them.
    chain.open(0, BATCH);
    let before = [Account::Umcp, Account::Dmcp].map(|account| {
        let live = &LIVE[account as usize];
        (live.asked.load(Relaxed), live.taken.load(Relaxed))
    });
    let resident_before = resident();
    for batch in 0..connections.div_ceil(BATCH) {
        chain.open(1 + batch, BATCH.min(connections - batch * BATCH));
    }
    // Two minutes later even the laziest deadline has passed.
    let nobody =
        || TcpHost::new(IpAddr::from([127, 0, 0, 1]), TcpConfig::default(), Rng::from_number(1));
    chain.run_until(chain.now + Duration::from_secs(120), &mut nobody(), &mut nobody());
    println!(
        "{connections} connections; resident {} octets each, for both conversion points",
        (resident() - resident_before) / connections as i64
    );
    let nodes = [("uMCP", Account::Umcp, &chain.umcp), ("dMCP", Account::Dmcp, &chain.dmcp)];
    for ((name, account, node), before) in nodes.into_iter().zip(before) {
        let live = &LIVE[account as usize];
        let each = |now: &AtomicI64, before| (now.load(Relaxed) - before) / connections as i64;
        let (asked, taken) = (each(&live.asked, before.0), each(&live.taken, before.1));
        println!("{name}: {asked} octets each, {taken} as malloc takes them; of which");
        for (i, n) in live.sizes.iter().enumerate() {
            let n = n.load(Relaxed) as f64 / (connections + BATCH) as f64;
            if n > 0.05 {
                println!("    {n:.2} of {} octets", i * STEP);
            }
        }
        let occupancy = node.shard().occupancy();
        let sessions = connections + BATCH;
        assert_eq!((occupancy.sessions, occupancy.flows), (sessions, 3 * sessions));
        assert_eq!(node.shard().pool().free(), node.shard().pool().capacity(), "frames are held");
        assert!(asked <= BUDGET, "{name}: {asked} octets each, {BUDGET} allowed");
    }
}

/// A server that takes SYNs and says nothing, behind both conversion points.
struct Silence {
    chain: Chain,
    client: TcpHost,
}

impl Silence {
    fn poll(&mut self, account: Account) -> Vec<(usize, Vec<u8>)> {
        let node: &mut dyn Node = match account {
            Account::HalfOpenUmcp => &mut self.chain.umcp,
            Account::HalfOpenDmcp => &mut self.chain.dmcp,
            _ => &mut self.client,
        };
        ACCOUNT.set(account);
        node.poll(self.chain.now, &mut self.chain.outbox);
        ACCOUNT.set(Account::Other);
        self.chain.outbox.drain(..).collect()
    }

    /// `n` more clients ask.
    fn ask(&mut self, n: usize) {
        for i in 0..n {
            let plan = Plan::send(OCTETS, i as u64).close(Close::Never);
            self.client.connect(
                Endpoint::new(IpAddr::from([172, 17, 0, 1]), 80),
                plan,
                self.chain.now,
            );
        }
        for (_, syn) in self.poll(Account::Other) {
            self.chain.umcp.receive(0, syn, self.chain.now);
        }
        for (iface, syn) in self.poll(Account::HalfOpenUmcp) {
            self.chain.dmcp.receive(iface, syn, self.chain.now);
        }
        self.poll(Account::HalfOpenDmcp);
    }

    /// Octets and frames, of each conversion point.
    fn held(&self) -> [(i64, i64); 2] {
        let of = |account: Account, node: &McpNode| {
            let pool = node.shard().pool();
            let frames = i64::from(pool.capacity() - pool.free());
            (LIVE[account as usize].asked.load(Relaxed), frames)
        };
        let Chain { umcp, dmcp, .. } = &self.chain;
        [of(Account::HalfOpenUmcp, umcp), of(Account::HalfOpenDmcp, dmcp)]
    }
}

#[test]
fn a_half_open_connection_stays_within_its_budget_and_holds_one_frame() {
    const ASKED: usize = 2_000;
    let all = BATCH + ASKED;
    let address = IpAddr::from([172, 16, 0, 1]);
    let mut silence = Silence {
        chain: chain([Account::HalfOpenUmcp, Account::HalfOpenDmcp], 2 * all, all),
        client: TcpHost::new(address, TcpConfig::default(), Rng::from_number(7)),
    };
    silence.ask(BATCH);
    let before = silence.held();
    silence.ask(ASKED);
    let now = silence.held();
    silence.ask(BATCH); // beyond the limit: refused, and nothing is kept
    let beyond = silence.held();
    for (i, name) in ["uMCP", "dMCP"].into_iter().enumerate() {
        let each = (now[i].0 - before[i].0) / ASKED as i64;
        println!("{name}: {each} octets each of {ASKED} half-open ones");
        assert!(each <= HALF_OPEN_BUDGET, "{name}: {each} octets each");
        assert!(now[i].1 - before[i].1 <= ASKED as i64, "{name}: {} frames", now[i].1);
        assert_eq!(beyond[i].1, now[i].1, "{name}: frames");
    }
    for node in [&silence.chain.umcp, &silence.chain.dmcp] {
        assert_eq!(node.shard().occupancy().half_open, all);
    }
}
