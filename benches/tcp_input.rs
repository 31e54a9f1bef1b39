//! A flow that receives: full segments in order, and the ACKs that it owes for them.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use plait_benches::{TEXT, data_segment};
use stack::buf::{Chain, Pool};
use stack::tcp::{Opening, OptionRoom, SynReceived, SynReceivedOutcome, Tcb, TcpConfig};
use stack::time::Instant;
use stack::wire::{Control, Options, Segment, SegmentOptions, SeqNum, SynOptions, Timestamps};
use std::rc::Rc;

/// An established flow that expects `template` next.
fn established(template: &Segment, now: Instant) -> Box<Tcb> {
    let timestamps = Some(Timestamps { val: 1, ecr: 0 });
    let syn = Segment {
        seq: template.seq - 1,
        ack: None,
        control: Control::Syn,
        push: false,
        options: Options::Syn(SynOptions {
            mss: Some(1_460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps,
            ..SynOptions::default()
        }),
        text: Chain::new(),
        ..template.clone()
    };
    let opening = Opening { iss: SeqNum(0), ts_offset: 0, path_mss: u16::MAX, default_mss: 536 };
    let mut half_open = SynReceived::new(&Rc::new(TcpConfig::default()), &syn, opening, 0, now);
    half_open.answer(Chain::new(), now);
    while half_open.poll_transmit(now).is_some() {}
    let ack = Segment { text: Chain::new(), push: false, ..template.clone() };
    let SynReceivedOutcome::Established(mut tcb) = half_open.on_segment(&ack, now) else {
        panic!("the third segment establishes")
    };
    tcb.on_segment(ack, now);
    tcb
}

fn input(c: &mut Criterion) {
    let pool = Pool::new(16, 2_048);
    let now = Instant::from_millis(5_000);
    let mut template = data_segment(&pool, TEXT);
    let timestamps = Some(Timestamps { val: 1, ecr: 5_000 });
    template.options = Options::Segment(SegmentOptions { timestamps, ..Default::default() });
    template.push = false;
    let mut group = c.benchmark_group("tcp");
    group.throughput(Throughput::Elements(1));
    group.bench_function("input in order", |b| {
        let mut tcb = established(&template, now);
        b.iter(|| {
            let seg = Segment { seq: tcb.rcv_nxt(), ..template.clone() };
            let arrival = tcb.on_segment(seg, now);
            debug_assert!(arrival.text.is_some());
            tcb.set_window(1 << 20);
            while tcb.poll_transmit(now, OptionRoom::default()).is_some() {}
            arrival
        });
    });
    group.finish();
}

criterion_group!(benches, input);
criterion_main!(benches);
