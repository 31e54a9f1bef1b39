//! Counters of a worker, by name.
//!
//! MPTCP's events are named as `nstat` prints them (`MPTcpExt...`), TCP's as in the kernel's MIBs; what the kernel has no
//! name for begins with `Plait`.
#![forbid(unsafe_code)]

use crate::run::{Engine, Worker, WorkerStats};
use std::collections::BTreeMap;

/// Counters by name.
pub type Metrics = BTreeMap<String, u64>;

/// What an engine counts.
pub trait Counted {
    /// Names and values.
    fn metrics(&self) -> Metrics;
}

/// All that `worker` and its engine counted.
pub fn collect<E: Engine + Counted>(worker: &Worker<E>) -> Metrics {
    let mut metrics = worker.engine.metrics();
    let loops = worker_stats(worker.stats());
    metrics.extend(loops.map(|(name, value)| (format!("Plait{name}"), value)));
    metrics.insert("PlaitFrames".to_owned(), worker.pool().capacity().into());
    metrics.insert("PlaitFramesFree".to_owned(), worker.pool().free().into());
    metrics
}

fn worker_stats(stats: WorkerStats) -> impl Iterator<Item = (&'static str, u64)> {
    // Taken apart, so that a new counter cannot be forgotten here.
    let WorkerStats {
        turns,
        sleeps,
        ignored,
        given_back,
        unclaimed_dropped,
        no_route,
        no_neighbor,
        tx_overflow,
        segmented,
        crossed_out,
        crossed_in,
        crossed_dropped,
    } = stats;
    [
        ("Turns", turns),
        ("Sleeps", sleeps),
        ("Ignored", ignored),
        ("GivenBack", given_back),
        ("UnclaimedDropped", unclaimed_dropped),
        ("OutNoRoutes", no_route),
        ("OutNoNeighbors", no_neighbor),
        ("OutOverflows", tx_overflow),
        ("Segmented", segmented),
        ("CrossedOut", crossed_out),
        ("CrossedIn", crossed_in),
        ("CrossedDropped", crossed_dropped),
    ]
    .into_iter()
}
