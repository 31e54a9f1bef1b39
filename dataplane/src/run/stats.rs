//! What a worker counts, and how an operator sees its ports.
#![forbid(unsafe_code)]

use super::Io;
use crate::port::{Capabilities, PortStats};

/// What a worker counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerStats {
    /// Turns of the loop.
    pub turns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Frames for other hosts, and packets to us of a kind that no one here wants.
    pub ignored: u64,
    /// Packets given back to the kernel.
    pub given_back: u64,
    /// Unclaimed packets dropped: no way back to the kernel.
    pub unclaimed_dropped: u64,
    /// Packets without a route.
    pub no_route: u64,
    /// Packets whose next hop did not answer, or with too many before them waiting for it.
    pub no_neighbor: u64,
    /// Packets dropped because a port had no room for too long.
    pub tx_overflow: u64,
    /// Super-segments cut in software.
    pub segmented: u64,
    /// Packets sent to other workers.
    pub crossed_out: u64,
    /// Packets taken from other workers.
    pub crossed_in: u64,
    /// Packets for other workers that were dropped: the mailbox was full, or the pool behind it empty.
    pub crossed_dropped: u64,
}

/// A port as an operator sees it.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Its device.
    pub device: String,
    /// How it is driven.
    pub io: Io,
    /// Why so.
    pub why: String,
    /// What it does by itself.
    pub capabilities: Capabilities,
    /// Its counters.
    pub stats: PortStats,
}
