//! Chains on pinned threads that share nothing.
#![forbid(unsafe_code)]

use super::{Progress, round};
use benches::chain::{Net, SEGMENT, Setting, Work};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// A transfer is measured in so many parts: their median is less shaken by whatever else the machine does.
pub const PARTS: u64 = 20;
/// Until all have finished, a worker that has goes on in steps of so many segments.
const FURTHER: u64 = 1_000;

/// What one worker measured.
#[derive(Debug)]
pub struct Share {
    /// Nanoseconds per segment of uMCP and dMCP, for each part.
    pub parts: Vec<[f64; 2]>,
    /// Packets in and out per segment, of uMCP and dMCP.
    pub packets: [(f64, f64); 2],
    /// Payload through the chain, 10^9 bits per second.
    pub gbit_per_s: f64,
}

/// So many chains at once; all carry from the beginning of the first measurement to the end of the last.
pub fn run(
    setting: Setting,
    segments: u64,
    workers: u16,
    progress: &Progress,
) -> io::Result<Vec<Share>> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if workers > 1 && usize::from(workers) > cores.len() {
        let few = format!("{workers} workers need as many cores, there are {}", cores.len());
        return Err(io::Error::other(few));
    }
    let ready = Arc::new(Barrier::new(workers.into()));
    let busy = Arc::new(AtomicUsize::new(workers.into()));
    let threads: Vec<_> = (0..usize::from(workers))
        .map(|number| {
            let (ready, busy, core) = (ready.clone(), busy.clone(), cores.get(number).copied());
            let progress = (number == 0).then(|| progress.clone());
            thread::Builder::new().name(format!("worker {number}")).spawn(move || {
                core.map(core_affinity::set_for_current);
                let prepared = prepare(setting, segments, progress);
                ready.wait();
                let measured = prepared
                    .and_then(|mut net| measure(&mut net, segments).map(|share| (net, share)));
                busy.fetch_sub(1, Ordering::AcqRel);
                let (mut net, share) = measured?;
                while busy.load(Ordering::Acquire) > 0 {
                    net.carry(FURTHER).map_err(io::Error::other)?;
                }
                Ok(share)
            })
        })
        .collect::<io::Result<_>>()?;
    let join = |thread: thread::JoinHandle<_>| {
        thread.join().map_err(|_| io::Error::other("a worker died"))?
    };
    threads.into_iter().map(join).collect()
}

/// A chain that is up and warm.
fn prepare(setting: Setting, segments: u64, progress: Option<Progress>) -> io::Result<Net> {
    let mut net = Net::new(setting);
    let say = |words: &str| progress.iter().for_each(|progress| progress.say(words));
    let opened = net.open(|up| say(&format!("{up} of {} are up", setting.connections)));
    say("bulk");
    opened.map_err(io::Error::other)?;
    net.write();
    // What a connection needs while it writes is there from its first turn on.
    net.carry((segments / 4).max(round(setting.connections))).map_err(io::Error::other)?;
    Ok(net)
}

fn measure(net: &mut Net, segments: u64) -> io::Result<Share> {
    let (begun, work, read) = (Instant::now(), net.work(), net.read());
    let mut parts = Vec::new();
    for _ in 0..PARTS {
        let (before, read) = (net.work(), net.read());
        net.carry(segments / PARTS).map_err(io::Error::other)?;
        let (after, segments) = (net.work(), relayed(read, net));
        let nanos = |spent: Duration| spent.as_nanos() as f64 / segments;
        parts.push([0, 1].map(|i| nanos(after[i].spent - before[i].spent)));
    }
    let (ended, segments) = (net.work(), relayed(read, net));
    let packets = |i: usize| {
        let (a, b): (Work, Work) = (ended[i], work[i]);
        (
            (a.packets_in - b.packets_in) as f64 / segments,
            (a.packets_out - b.packets_out) as f64 / segments,
        )
    };
    let bits = (net.read() - read) as f64 * 8.0;
    Ok(Share {
        parts,
        packets: [packets(0), packets(1)],
        gbit_per_s: bits / 1e9 / begun.elapsed().as_secs_f64(),
    })
}

/// Segments since so many octets had been read.
fn relayed(read: u64, net: &Net) -> f64 {
    (net.read() - read) as f64 / SEGMENT as f64
}
