//! What lies between two ends: packets in order, in buffers that are used again.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// A packet on its way.
pub struct Packet {
    /// From the IP header on.
    pub octets: Vec<u8>,
    /// Octets of text per segment, if it is a super-segment; else 0.
    pub gso_size: u16,
}

/// One direction.
#[derive(Default)]
pub struct Queue {
    packets: VecDeque<Packet>,
    spare: Vec<Vec<u8>>,
}

impl Queue {
    /// A buffer for a packet, with old octets in it.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn reuse(&mut self, buffer: Vec<u8>) {
        self.spare.push(buffer);
    }

    /// Sends.
    pub fn push(&mut self, octets: Vec<u8>, gso_size: u16) {
        self.packets.push_back(Packet { octets, gso_size });
    }

    /// Receives.
    pub fn pop(&mut self) -> Option<Packet> {
        self.packets.pop_front()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Moves all packets to `to`, and its unused buffers here.
    pub fn hand_over(&mut self, to: &mut Queue) {
        to.packets.append(&mut self.packets);
        self.spare.append(&mut to.spare);
    }
}
