//! A transfer from client through uMCP and dMCP to the server, all in one thread in virtual time: every segment is
//! built, checksummed, parsed and relayed, with the simulator's own copies on top.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stack::testkit::Link;
use stack::testkit::TcpHost;
use stack::testkit::reference::{Network, Topology, Transfer};
use stack::time::Duration;

const OCTETS: u64 = 4 << 20;

fn topology(paths: usize) -> Topology {
    Topology::new(
        1,
        &vec![Link::new(1_000_000_000, Duration::from_micros(500)).queue(4 << 20); paths],
    )
}

fn relay(c: &mut Criterion) {
    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Bytes(OCTETS)).sample_size(10);
    let mut bench = |name: &str, build: &dyn Fn() -> Network<TcpHost, TcpHost>| {
        group.bench_function(name, |b| {
            b.iter_with_setup(build, |mut network| {
                let outcome = network.run(&Transfer::new(0, OCTETS));
                assert!(outcome.is_exact());
                network
            });
        });
    };
    bench("plain, no conversion", &|| topology(1).build_plain(0));
    bench("one path", &|| topology(1).build());
    bench("two paths", &|| topology(2).build());
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
