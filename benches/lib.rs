//! What the benches share: a segment, a chain in memory, and a way to print how two ways of doing one thing compare.
#![forbid(unsafe_code)]

pub mod chain;
pub mod ends;
pub mod queue;

use stack::buf::{Chain, Pool};
use stack::wire::{
    Control, Endpoint, FlowTuple, Options, Segment, SegmentOptions, SeqNum, Timestamps,
    UnscaledWindow, emit,
};
use std::hint::black_box;
use std::time::Instant;

/// Octets of text of a full segment with timestamps.
pub const TEXT: usize = 1_448;

/// 10.0.0.1:40000 to 10.0.0.2:80, the sender's view.
pub fn flow() -> FlowTuple {
    FlowTuple {
        local: Endpoint::new([10, 0, 0, 1].into(), 40_000),
        remote: Endpoint::new([10, 0, 0, 2].into(), 80),
    }
}

/// A data segment with timestamps, `text` octets long.
///
/// # Panics
/// If `pool` is empty.
pub fn data_segment(pool: &Pool, text: usize) -> Segment {
    let octets: Vec<u8> = (0..text).map(|i| (i * 7) as u8).collect();
    let timestamps = Some(Timestamps { val: 1_000, ecr: 2_000 });
    Segment {
        seq: SeqNum(1),
        ack: Some(SeqNum(1)),
        control: Control::None,
        push: true,
        window: UnscaledWindow(60_000),
        options: Options::Segment(SegmentOptions { timestamps, ..Default::default() }),
        text: Chain::copy_from(pool, 128, &octets).expect("a frame"),
        ..Default::default()
    }
}

/// The same as a whole IP packet with correct checksums.
pub fn data_packet(pool: &Pool, text: usize) -> Vec<u8> {
    let mut packet = emit(flow(), &data_segment(pool, text), 0);
    packet.finish_checksum();
    packet.to_vec()
}

/// Nanoseconds per call, the best of five runs.
pub fn time<R>(mut act: impl FnMut() -> R) -> f64 {
    const CALLS: u32 = 20_000;
    let run = |act: &mut dyn FnMut() -> R| {
        let begin = Instant::now();
        for _ in 0..CALLS {
            black_box(act());
        }
        begin.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..5).map(|_| run(&mut act)).fold(f64::INFINITY, f64::min)
}

/// Prints how long both take and by how much `ours` is faster.
pub fn compare<A, B>(what: &str, ours: impl FnMut() -> A, theirs: impl FnMut() -> B) {
    let (ours, theirs) = (time(ours), time(theirs));
    println!("{what}: {ours:.0} ns against {theirs:.0} ns, ratio {:.2}", theirs / ours);
}
