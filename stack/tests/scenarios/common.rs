//! What the stories share.

use stack::testkit::Host;
use stack::testkit::Link;
use stack::testkit::reference::{Network, Outcome, Topology, Transfer};
use stack::time::Duration;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A link of `mbit` Mbit/s and `delay` ms one way.
pub fn link(mbit: u64, delay: u64) -> Link {
    Link::new(mbit * 1_000_000, ms(delay))
}

/// Two links of 20 and 10 Mbit/s, 10 and 20 ms one way.
pub fn two_links() -> [Link; 2] {
    [link(20, 10), link(10, 20)]
}

/// Runs a transfer that has to be exact and to leave nothing behind.
pub fn exact<C: Host, S: Host>(network: &mut Network<C, S>, transfer: &Transfer) -> Outcome {
    let outcome = network.run(transfer);
    assert!(
        outcome.is_exact(),
        "finished {}, up {} of {} {}, down {} of {} {}, after {:?}",
        outcome.finished,
        outcome.up.octets,
        transfer.up,
        if outcome.up.intact { "intact" } else { "damaged" },
        outcome.down.octets,
        transfer.down,
        if outcome.down.intact { "intact" } else { "damaged" },
        outcome.took,
    );
    nothing_left(network);
    outcome
}

/// Three minutes later, nobody remembers a thing.
pub fn nothing_left<C: Host, S: Host>(network: &mut Network<C, S>) {
    let left = network.leftovers();
    assert_eq!(left, None);
    let (client, server) = (network.client, network.server);
    let (client, server) = (&network.sim[client], &network.sim[server]);
    assert_eq!((client.open(), server.open()), (0, 0));
    assert_eq!((client.frames_held(), server.frames_held()), (0, 0));
}

pub fn over(
    seed: u64,
    links: &[Link],
) -> Network<stack::testkit::TcpHost, stack::testkit::TcpHost> {
    Topology::new(seed, links).build()
}
