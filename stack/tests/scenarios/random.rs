//! Whatever the links are like, what comes out is what went in.

use crate::common::*;
use stack::rng::Rng;
use stack::testkit::reference::{SERVER, SERVER_PORT, Transfer};
use stack::testkit::{Burst, Close, End, Host, Link, Plan, seed};
use stack::wire::Endpoint;

const SEEDS: u64 = 10;

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

/// Whoever closes or resets when, over whatever links: nothing is made up, and in the end nothing is left.
#[test]
fn any_way_to_close_leaves_nothing() {
    let first = seed(200);
    let last = if std::env::var("SIM_SEED").is_ok() { first + 1 } else { first + SEEDS };
    for seed in first..last {
        println!("SIM_SEED={seed}");
        let mut rng = Rng::from_number(seed);
        let links: Vec<Link> = (0..1 + rng.below(3)).map(|_| random_link(&mut rng)).collect();
        let mut network = over(seed, &links);
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
}

#[test]
fn any_topology_is_exact() {
    let first = seed(100);
    let last = if std::env::var("SIM_SEED").is_ok() { first + 1 } else { first + SEEDS };
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
        exact(&mut over(seed, &links), &transfer);
    }
}
