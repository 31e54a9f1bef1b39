//! The last packets of a simulation, as a pcap file.
#![forbid(unsafe_code)]

use crate::time::Instant;
use alloc::vec::Vec;
use std::io;
use std::path::Path;

/// Octets kept of each packet: all headers, and some text.
const SNAP: usize = 160;
/// Octets per half; when one is full, the other is forgotten.
const HALF: usize = 16 << 20;

/// Records in two halves, so that the newest are always there and memory is bounded.
#[derive(Debug, Default)]
pub struct Capture {
    older: Vec<u8>,
    newer: Vec<u8>,
}

impl Capture {
    /// Adds an IP packet.
    pub fn record(&mut self, packet: &[u8], now: Instant) {
        if self.newer.len() > HALF {
            self.older = core::mem::take(&mut self.newer);
        }
        let kept = &packet[..packet.len().min(SNAP)];
        let ns = now.as_nanos();
        let words =
            [ns / 1_000_000_000, ns % 1_000_000_000, kept.len() as u64, packet.len() as u64];
        for word in words {
            self.newer.extend_from_slice(&(word as u32).to_le_bytes());
        }
        self.newer.extend_from_slice(kept);
    }

    /// Writes a pcap file (nanoseconds, LINKTYPE_RAW), with the folders it needs.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = Vec::new();
        for word in [0xa1b2_3c4d_u32, 2 | 4 << 16, 0, 0, SNAP as u32, 101] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&self.older);
        file.extend_from_slice(&self.newer);
        std::fs::write(path, file)
    }
}
