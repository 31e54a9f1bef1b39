//! The Internet checksum against the textbook's loop.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use plait_benches::compare;
use stack::checksum;
use std::hint::black_box;

/// RFC 1071 4.1.
fn naive(octets: &[u8]) -> u16 {
    let pairs = octets.chunks(2);
    checksum::fold(
        pairs.map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum(),
    )
}

fn sums(c: &mut Criterion) {
    for len in [64, 1_460, 16_384] {
        let octets: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
        assert_eq!(checksum::sum(&octets), naive(&octets));
        let ours = || checksum::sum(black_box(&octets));
        compare(&format!("sum of {len} octets, ours against naive"), ours, || {
            naive(black_box(&octets))
        });
        let mut group = c.benchmark_group("checksum");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |b| b.iter(ours));
        group.finish();
    }
}

criterion_group!(benches, sums);
criterion_main!(benches);
