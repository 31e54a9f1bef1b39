//! What a network device would do, without one.
#![forbid(unsafe_code)]

use stack::buf::{Chain, Pool};
use stack::wire::{RxChecksum, RxPacket, TxPacket, segment_packet};
use std::collections::VecDeque;

/// Packets that a device hands up at a time.
const BURST: usize = 64;
/// Octets per frame, and what of them is left in front of a received packet.
const CHUNK: usize = 2048;
pub(super) const HEADROOM: u16 = 128;

/// What devices do by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// Nothing: packets of 1,500 octets, checksums in software.
    Plain,
    /// 64 KB super-segments both ways, checksums not looked at.
    Offloads,
}

/// A packet between two nodes.
pub type Octets = Vec<u8>;

/// Frames for a node.
pub(super) fn pool(frames: u32) -> Pool {
    Pool::new(frames, CHUNK)
}

impl Device {
    /// Up to a burst of packets in frames, as a device writes them.
    pub(super) fn receive(self, inbox: &mut VecDeque<Octets>, pool: &Pool, rx: &mut Vec<RxPacket>) {
        let checksum = match self {
            Device::Plain => RxChecksum::Unknown,
            Device::Offloads => RxChecksum::Valid,
        };
        while rx.len() < BURST
            && let Some(packet) = inbox.front()
            && let Some(octets) = Chain::copy_from(pool, HEADROOM, packet)
        {
            inbox.pop_front();
            rx.push(RxPacket { octets, checksum, gso_size: 0, port: 0 });
        }
    }

    /// What a driver without offloads does with a packet before it leaves.
    pub(super) fn finish(self, packet: TxPacket, out: &mut Vec<TxPacket>) {
        match self {
            Device::Plain => {
                let begun = out.len();
                out.extend(segment_packet(packet));
                out.iter_mut().skip(begun).for_each(TxPacket::finish_checksum);
            }
            Device::Offloads => out.push(packet),
        }
    }
}
