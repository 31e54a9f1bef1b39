//! The flow table of a shard against a hash map that grows all at once, both with a keyed hash.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{Criterion, criterion_group, criterion_main};
use hashbrown::HashMap;
use plait_benches::compare;
use siphasher::sip::SipHasher13;
use stack::rng::Rng;
use stack::shard::{FlowTable, Owner};
use stack::wire::{Endpoint, FlowTuple};
use std::hash::BuildHasher;
use std::hint::black_box;
use std::time::Instant;

/// SipHash-1-3 with a key: what a peer cannot aim at.
#[derive(Clone)]
struct Keyed(SipHasher13);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}

type Map = HashMap<FlowTuple, u64, Keyed>;

fn rng() -> Rng {
    Rng::from_number(1)
}

fn map() -> Map {
    HashMap::with_hasher(Keyed(SipHasher13::new_with_keys(1, 2)))
}

/// Clients of 16 ports each.
fn flow(number: u32) -> FlowTuple {
    let client = (10 << 24 | number >> 4).to_be_bytes();
    FlowTuple {
        local: Endpoint::new([192, 0, 2, 1].into(), 443),
        remote: Endpoint::new(client.into(), 40_000 + (number & 15) as u16),
    }
}

/// `count` flows in an order that caches do not foresee.
fn flows(count: u32) -> Vec<FlowTuple> {
    let mut rng = rng();
    let mut out: Vec<FlowTuple> = (0..count).map(flow).collect();
    (1..count).rev().for_each(|i| out.swap(i as usize, rng.below(i + 1) as usize));
    out
}

/// Calls `act` with one flow after the other, again and again.
fn in_turn<R>(
    flows: &[FlowTuple],
    mut act: impl FnMut(FlowTuple, FlowTuple) -> R,
) -> impl FnMut() -> R {
    let mut at = 0;
    let (first, second) = flows.split_at(flows.len() / 2);
    move || {
        at = if at + 1 < 2 * first.len() { at + 1 } else { 0 };
        match at.checked_sub(first.len()) {
            Some(at) => act(second[at], first[at]),
            None => act(first[at], second[at]),
        }
    }
}

fn steady(c: &mut Criterion) {
    for count in [1_000, 100_000, 1_000_000] {
        let flows = flows(count);
        let (mut table, mut map) = (FlowTable::new(&mut rng()), map());
        for (flow, number) in flows.iter().zip(0..) {
            table.insert_flow(*flow, Owner::TimeWait(number));
            map.insert(*flow, u64::from(number));
        }
        let mut group = c.benchmark_group(format!("{count} flows"));
        group.bench_function("look-up", |b| b.iter(in_turn(&flows, |flow, _| table.flow(&flow))));
        group.finish();
        compare(
            &format!("look-up among {count} flows, ours against a map"),
            in_turn(&flows, |flow, _| table.flow(&flow).is_some()),
            in_turn(&flows, |flow, _| map.get(&flow).is_some()),
        );
        compare(
            &format!("look-up of no flow among {count}, ours against a map"),
            in_turn(&flows, |flow, _| table.flow(&flow.reversed()).is_some()),
            in_turn(&flows, |flow, _| map.get(&flow.reversed()).is_some()),
        );
        // One leaves, and the one that left half a turn ago comes back.
        for flow in &flows[..flows.len() / 2] {
            let owner = table.flow(flow).expect("it is there");
            table.remove_flow(flow, owner);
            map.remove(flow);
        }
        let owner = Owner::TimeWait(0);
        for flow in &flows[flows.len() / 2..] {
            table.insert_flow(*flow, owner);
        }
        compare(
            &format!("insertion and removal at {} flows, ours against a map", count / 2),
            in_turn(&flows, |come, go| {
                table.insert_flow(come, owner);
                table.remove_flow(&go, owner);
            }),
            in_turn(&flows, |come, go| {
                map.insert(come, 0);
                map.remove(&go)
            }),
        );
    }
}

/// What each insertion took at least, of three times growing from nothing, in nanoseconds: what the kernel did to this
/// thread meanwhile does not count.
fn growth<T>(
    flows: &[FlowTuple],
    new: impl Fn() -> T,
    insert: impl Fn(&mut T, FlowTuple),
) -> Vec<u32> {
    let mut least = vec![u32::MAX; flows.len()];
    for _ in 0..3 {
        let mut table = new();
        for (flow, least) in flows.iter().zip(&mut least) {
            let begin = Instant::now();
            insert(&mut table, black_box(*flow));
            *least = (*least).min(begin.elapsed().as_nanos() as u32);
        }
    }
    least
}

fn grow(_: &mut Criterion) {
    for count in [1_000_000, 4_000_000] {
        let flows = flows(count);
        let ours = growth(
            &flows,
            || FlowTable::new(&mut rng()),
            |table, flow| {
                table.insert_flow(flow, Owner::TimeWait(0));
            },
        );
        let theirs = growth(&flows, map, |map, flow| _ = map.insert(flow, 0));
        let worst = |all: &[u32]| f64::from(*all.iter().max().expect("some")) / 1e3;
        let mean =
            |all: &[u32]| all.iter().map(|ns| f64::from(*ns)).sum::<f64>() / all.len() as f64;
        println!(
            "worst insertion of {count}, ours against a map: {:.1} us against {:.1} us (mean {:.0} ns against {:.0} ns)",
            worst(&ours),
            worst(&theirs),
            mean(&ours),
            mean(&theirs),
        );
    }
}

criterion_group!(benches, steady, grow);
criterion_main!(benches);
