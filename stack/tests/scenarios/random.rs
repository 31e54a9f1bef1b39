//! Whatever the links are like, what comes out is what went in.

use crate::common::*;
use stack::rng::Rng;
use stack::tcp::{Algorithm, CookiePolicy, EcnMode, FastOpenRoles, MtuProbing, Pacing, TcpConfig};
use stack::testkit::packet::TcpPacket;
use stack::testkit::reference::{Network, SERVER, SERVER_PORT, Topology, Transfer};
use stack::testkit::{Burst, Close, End, Host, Link, Narrow, Pass, Plan, TcpHost, seed};
use stack::time::Instant;
use stack::wire::Endpoint;

/// Seeds to try; `RANDOM_SEEDS` in the environment asks for more.
fn seeds() -> u64 {
    std::env::var("RANDOM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

fn random_link(rng: &mut Rng) -> Link {
    let delay = ms(1 + u64::from(rng.below(60)));
    let mut link = Link::new(u64::from(1 + rng.below(50)) * 1_000_000, delay);
    let mut up_to = |percent: f64| f64::from(rng.below(1_000)) / 100_000.0 * percent;
    link = link.loss(up_to(2.0)).duplicate(up_to(2.0)).corrupt(up_to(0.5));
    link = link.reorder(up_to(2.0), delay / 2);
    if rng.chance(0.3) {
        link = link.burst(Burst { begin: 0.001, end: 0.3 });
    }
    if rng.chance(0.2) {
        link = link.queue(10_000 + rng.below(30_000) as usize);
    }
    link
}

fn random_plan(rng: &mut Rng) -> Plan {
    let octets = u64::from(rng.below(100_000));
    let close = match rng.below(6) {
        0 => Close::AfterSending,
        1 => Close::ResetAfterReceiving(u64::from(rng.below(50_000))),
        _ => Close::AfterPeer,
    };
    Plan::send(octets, rng.u64()).close(close)
}

/// A configuration at random, that every end may have its own of.
fn random_tcp(rng: &mut Rng, base: &TcpConfig) -> TcpConfig {
    let mut pick = |n: u32| rng.below(n) as usize;
    TcpConfig {
        congestion: [Algorithm::NewReno, Algorithm::Cubic, Algorithm::Bbr][pick(3)],
        pacing: [Pacing::Auto, Pacing::On, Pacing::Off][pick(3)],
        ecn: [EcnMode::Off, EcnMode::Accept, EcnMode::On, EcnMode::Accurate][pick(4)],
        abe: pick(2) == 0,
        timestamps: pick(4) > 0,
        sack: pick(4) > 0,
        nagle: pick(4) == 0,
        mtu_probing: [MtuProbing::BlackHole, MtuProbing::Always][pick(2)],
        base_mss: [536, 1024, 1460][pick(3)],
        fast_open: FastOpenRoles { client: pick(2) == 0, server: pick(2) == 0 },
        syn_cookies: [CookiePolicy::Auto, CookiePolicy::Always][usize::from(pick(4) == 0)],
        ..base.clone()
    }
}

/// Changes the flags of ECN in the TCP header now and then.
struct Meddle(Rng);

impl Pass for Meddle {
    fn pass(&mut self, _: usize, mut packet: TcpPacket, _: Instant, out: &mut Vec<TcpPacket>) {
        if self.0.below(20) == 0 {
            packet.set_flags(packet.flags() ^ (self.0.below(4) as u8) << 6);
        }
        out.push(packet);
    }
}

/// As [`over`], with everything that can be configured drawn, and paths that may be narrow or meddle.
fn drawn(seed: u64, links: &[Link], rng: &mut Rng) -> Network<TcpHost, TcpHost> {
    let mut topology = Topology::new(seed, links);
    for mcp in [&mut topology.umcp, &mut topology.dmcp] {
        mcp.tcp = random_tcp(rng, &mcp.tcp);
        mcp.mptcp.tcp = random_tcp(rng, &mcp.mptcp.tcp);
    }
    topology.tcp = random_tcp(rng, &topology.tcp);
    for path in 0..links.len() {
        topology = match rng.below(4) {
            0 => topology.middlebox(path, Meddle(Rng::from_number(seed))),
            1 => {
                let routers = vec!["10.9.9.9".parse().unwrap()];
                let routers = if rng.chance(0.5) { routers } else { vec![] };
                topology.middlebox(path, Narrow { mtu: 700 + rng.below(800) as usize, routers })
            }
            _ => topology,
        };
    }
    topology.build()
}

/// Whoever closes or resets when, over whatever links: nothing is made up, and in the end nothing is left.
#[test]
fn any_way_to_close_leaves_nothing() {
    let first = seed(200);
    let last = if std::env::var("SIM_SEED").is_ok() { first + 1 } else { first + seeds() };
    for seed in first..last {
        println!("SIM_SEED={seed}");
        close_in_some_way(seed);
    }
}

/// RFC 8684 3.3.3: over a path that became a black hole a peer gives up with a RST that is out of order; it is challenged, and
/// the answer is lost.
#[test]
fn a_peer_that_gave_up_unheard_is_not_awaited_for_ever() {
    close_in_some_way(235);
}

fn close_in_some_way(seed: u64) {
    let mut rng = Rng::from_number(seed);
    let links: Vec<Link> = (0..1 + rng.below(3)).map(|_| random_link(&mut rng)).collect();
    let mut network = drawn(seed, &links, &mut rng);
    let (client, server) = (network.client, network.server);
    for i in 0..8 {
        // One of the two has to begin.
        let served = random_plan(&mut rng);
        let plan = match (random_plan(&mut rng), served.close) {
            (plan, Close::AfterSending) => plan,
            (plan, _) => plan.close(Close::AfterSending),
        };
        let port = SERVER_PORT + i;
        network.sim[server].listen(port, served, 1);
        let now = network.sim.now();
        network.sim[client].connect(Endpoint::new(SERVER, port), plan, now);
        network.sim.run_for(ms(u64::from(rng.below(400))));
    }
    network.sim.run_while(ms(200_000), |sim| sim[client].open() + sim[server].open() > 0);
    for app in network.sim[client].apps().into_iter().chain(network.sim[server].apps()) {
        assert!(app.end.is_some(), "{app:?}");
    }
    for app in network.sim[client].apps().into_iter().filter(|a| a.end == Some(End::Done)) {
        let mut servers = network.sim[server].apps().into_iter();
        assert!(servers.any(|s| s.received == app.sent), "what was sent arrived somewhere");
    }
    nothing_left(&mut network);
}

#[test]
fn any_topology_is_exact() {
    let first = seed(100);
    let last = if std::env::var("SIM_SEED").is_ok() { first + 1 } else { first + seeds() };
    for seed in first..last {
        println!("SIM_SEED={seed}");
        let mut rng = Rng::from_number(seed);
        let links: Vec<Link> = (0..1 + rng.below(3)).map(|_| random_link(&mut rng)).collect();
        let mut transfer = Transfer::new(rng.below(600_000).into(), rng.below(600_000).into());
        if links.len() > 1 && rng.chance(0.5) {
            let cut = rng.below(links.len() as u32) as usize;
            let at = ms(u64::from(rng.below(1_000)));
            transfer = transfer.cut(cut, at).restore(cut, at + ms(u64::from(rng.below(3_000))));
        }
        exact(&mut drawn(seed, &links, &mut rng), &transfer);
    }
}
