//! Loss recovery over simulated paths: nothing is sent again for nothing, and reordering costs little.

use super::super::*;
use super::bottleneck::{Link, Net, Supply};
use crate::time::Duration;
use std::eprintln;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn config(receive_buffer: u32, gso_max: u32) -> TcpConfig {
    TcpConfig { receive_buffer, send_buffer: receive_buffer, gso_max, ..TcpConfig::default() }
}

/// A queue that grows to seconds makes every RTT longer than any before; still nobody takes that for a loss
/// (RFC 6298 5.3, RFC 8985 7.2).
#[test]
fn a_path_without_loss_shows_no_retransmission() {
    for flows in [1, 12] {
        for (mbits, rtt) in [(10, 20), (10, 200), (100, 2), (2, 40)] {
            let mut net = Net::new(Link::new(mbits, rtt, 1e6), 3);
            for i in 0..flows {
                net.open(&config(1 << 20, 1), Supply::Endless);
                net.run(MS(if i % 3 == 0 { 100 } else { 0 }));
            }
            net.run(MS(10_000));
            for flow in &net.flows {
                let info = flow.sender.info();
                let again = (info.bytes_retrans, info.rto_count, info.recoveries);
                let wait = net.longest_wait;
                assert_eq!(again, (0, 0, 0), "{flows} at {mbits} Mbit/s, {rtt} ms, {wait:?}");
            }
        }
    }
}

/// One segment in a hundred comes 5 or 50 ms late on a path of 20 ms. The reordering window adapts, and what was taken for
/// lost meanwhile is undone (RFC 8985 6.2, RFC 3708 2).
#[test]
fn reordering_costs_little() {
    for (mbits, ms, share, least) in [
        (10, 5, 0.01, 0.95),
        (10, 50, 0.01, 0.95),
        (100, 5, 0.01, 0.95),
        (100, 50, 0.001, 0.9),
        (100, 50, 0.01, 0.75),
        (100, 5, 0.1, 0.75),
        (100, 50, 0.1, 0.5),
    ] {
        let mut net = Net::new(Link::new(mbits, 20, 1.0), 5);
        net.link.late = (share, MS(ms));
        net.open(&config(16 << 20, 65_000), Supply::Endless);
        net.run(MS(2_000));
        let rate = net.goodput(MS(4_000))[0] / net.capacity();
        let info = net.flows[0].sender.info();
        let again = (info.bytes_retrans, info.rto_count, info.recoveries, info.cwnd);
        eprintln!("{mbits} Mbit/s, {share} {ms} ms late: {rate:.3} {again:?} {}", net.dropped);
        assert!(rate > least, "{mbits} Mbit/s, {share} {ms} ms late: {rate:.3} {again:?}");
        assert_eq!(info.rto_count, 0);
    }
}
