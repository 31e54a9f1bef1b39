//! What stands for a port while its device is away.
#![forbid(unsafe_code)]

use super::{Capabilities, Port, PortStats, RxFrame, TxFrame};
use stack::buf::Pool;
use std::os::fd::RawFd;

/// Receives nothing and drops what is to be sent, as a cable that is not plugged in.
#[derive(Debug)]
pub struct GonePort {
    capabilities: Capabilities,
    mac: [u8; 6],
    stats: PortStats,
}

impl GonePort {
    /// In place of `port`.
    pub fn instead_of(port: &dyn Port) -> GonePort {
        GonePort { capabilities: port.capabilities(), mac: port.mac(), stats: PortStats::default() }
    }
}

impl Port for GonePort {
    fn receive(&mut self, _pool: &Pool, _rx: &mut Vec<RxFrame>) {}

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        self.stats.tx_dropped += tx.len() as u64;
        tx.clear();
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn fds(&self) -> &[RawFd] {
        &[]
    }

    fn stats(&self) -> PortStats {
        self.stats
    }
}
