//! Two ports in one process, joined back to back.
#![forbid(unsafe_code)]

use super::{BURST, Capabilities, Medium, Port, PortStats, RxFrame, TxBody, TxFrame};
use crate::port::ethernet::finished_header;
use stack::buf::{Chain, Pool};
use stack::wire::RxChecksum;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::rc::Rc;

/// Octets of headroom in front of a received frame.
const HEADROOM: u16 = 128;

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of a pair. Frames are copied: the two ends may belong to different pools.
#[derive(Debug)]
pub struct MemoryPort {
    inbound: Queue,
    outbound: Queue,
    capacity: usize,
    mac: [u8; 6],
    stats: PortStats,
}

impl MemoryPort {
    /// Two ends with these addresses; each direction holds at most `capacity` frames.
    pub fn pair(capacity: usize, macs: [[u8; 6]; 2]) -> (MemoryPort, MemoryPort) {
        let (ab, ba) = (Queue::default(), Queue::default());
        let end = |inbound: &Queue, outbound: &Queue, mac| MemoryPort {
            inbound: inbound.clone(),
            outbound: outbound.clone(),
            capacity,
            mac,
            stats: PortStats::default(),
        };
        (end(&ba, &ab, macs[0]), end(&ab, &ba, macs[1]))
    }
}

/// A frame as one vector, its checksum finished.
pub(crate) fn linearize(frame: TxFrame) -> Vec<u8> {
    let mut out = frame.link.to_vec();
    match frame.body {
        TxBody::Tcp(mut packet) => {
            out.extend_from_slice(&finished_header(&mut packet));
            packet.text.parts().iter().for_each(|p| out.extend_from_slice(p.bytes()));
        }
        TxBody::Whole(octets) => {
            octets.parts().iter().for_each(|p| out.extend_from_slice(p.bytes()))
        }
    }
    out
}

impl Port for MemoryPort {
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>) {
        let mut queue = self.inbound.borrow_mut();
        for _ in 0..BURST {
            let Some(frame) = queue.front() else { return };
            let Some(octets) = Chain::copy_from(pool, HEADROOM, frame) else { return };
            self.stats.rx_frames += 1;
            self.stats.rx_octets += frame.len() as u64;
            rx.push(RxFrame { octets, checksum: RxChecksum::Unknown, gso_size: 0 });
            queue.pop_front();
        }
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        let mut queue = self.outbound.borrow_mut();
        let room = self.capacity.saturating_sub(queue.len());
        self.stats.tx_full += u64::from(tx.len() > room);
        for frame in tx.drain(..room.min(tx.len())) {
            let octets = linearize(frame);
            self.stats.tx_frames += 1;
            self.stats.tx_octets += octets.len() as u64;
            queue.push_back(octets);
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: Medium::Ethernet,
            mtu: 1500,
            segmentation: false,
            checksum_offload: true,
            super_frames_in: false,
            zero_copy: false,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(pool: &Pool, text: &[u8]) -> TxFrame {
        let body = TxBody::Whole(Chain::copy_from(pool, 0, text).unwrap());
        TxFrame { link: [0; 14].into(), body }
    }

    #[test]
    fn what_does_not_fit_stays_with_the_caller() {
        let pool = Pool::new(8, 64);
        let (mut a, mut b) = MemoryPort::pair(2, [[1; 6], [2; 6]]);
        let mut tx: Vec<_> = (0..3).map(|i| frame(&pool, &[i; 4])).collect();
        a.transmit(&mut tx);
        assert_eq!((tx.len(), a.stats().tx_frames, a.stats().tx_full), (1, 2, 1));
        let mut rx = Vec::new();
        b.receive(&Pool::new(1, 256), &mut rx);
        assert_eq!(rx.len(), 1, "as many as there are frames for; the rest waits");
        assert_eq!(rx[0].octets.to_vec()[14..], [0; 4]);
        a.transmit(&mut tx);
        b.receive(&Pool::new(4, 256), &mut rx);
        assert_eq!((tx.len(), rx.len()), (0, 3));
    }
}
