//! Ports: frames from a device and to it.
//!
//! A port hands up whole link-layer frames in pool frames (law 3: octets stay where the device or the kernel put them)
//! and takes headers and payloads by reference. What a device can do itself is in its [`Capabilities`]; the run loop
//! does the rest in software.

mod af_packet;
mod af_xdp;
mod bpf;
mod ethernet;
mod fanout;
mod gone;
mod memory;
mod packet_ring;
mod pcap;
mod pnet;
pub mod raw_socket;
mod share;
mod sys;
mod tap;
mod tun;
mod vnet;

pub use af_packet::AfPacketPort;
pub use af_xdp::{AfXdpPort, Umem};
pub use bpf::{Attach, LoadError, Program, ProgramKind, XdpMode, XskMap};
pub use gone::GonePort;
pub use memory::MemoryPort;
pub use pcap::PcapPort;
pub use pnet::PnetPort;
pub use share::Share;
pub use sys::{Device, Interest, LinkMonitor, Ready, Waker, kernel_addresses, wait};
pub use tap::TapPort;
pub use tun::KernelPath;

use crate::steer::TooLong;
use arrayvec::ArrayVec;
use stack::buf::{Chain, Pool};
use stack::wire::{RxChecksum, TxPacket};
use std::os::fd::RawFd;

/// Most frames that one [`Port::receive`] hands up.
pub const BURST: usize = 64;

/// What lies in front of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Medium {
    /// A 14-octet Ethernet header.
    Ethernet,
    /// Nothing.
    Ip,
}

/// What a port does by itself.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Framing.
    pub medium: Medium,
    /// Octets of the largest IP packet on the wire.
    pub mtu: u32,
    /// Takes TCP super-segments up to 64 KB (`TxPacket::gso_size`) and cuts them itself.
    pub segmentation: bool,
    /// Takes packets with only the pseudo-header sum in the TCP checksum field.
    pub checksum_offload: bool,
    /// May hand up super-segments.
    pub super_frames_in: bool,
    /// The device reads and writes the pool's frames itself.
    pub zero_copy: bool,
}

/// A received frame.
#[derive(Debug)]
pub struct RxFrame {
    /// From the link-layer header on (from the IP header on where the medium is [`Medium::Ip`]). The headers lie in the
    /// first part.
    pub octets: Chain,
    /// What is known of its TCP checksum.
    pub checksum: RxChecksum,
    /// Octets of text per segment, where it is a super-segment and the device says; else 0.
    pub gso_size: u16,
}

/// A frame to send.
#[derive(Debug)]
pub struct TxFrame {
    /// The link-layer header, empty where the medium has none.
    pub link: ArrayVec<u8, 14>,
    /// What follows it.
    pub body: TxBody,
}

/// The part of a frame after its link-layer header.
#[derive(Debug)]
pub enum TxBody {
    /// A TCP packet, its checksum unfinished.
    Tcp(TxPacket),
    /// Any other packet, complete.
    Whole(Chain),
}

impl TxBody {
    /// What is given by reference: the text of a TCP packet, or all of another.
    pub(crate) fn octets(&self) -> &Chain {
        match self {
            TxBody::Tcp(packet) => &packet.text,
            TxBody::Whole(octets) => octets,
        }
    }
}

impl TxFrame {
    /// Octets in all.
    pub fn len(&self) -> usize {
        self.link.len()
            + match &self.body {
                TxBody::Tcp(packet) => packet.header.len() + packet.text.len() as usize,
                TxBody::Whole(octets) => octets.len() as usize,
            }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a port counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStats {
    /// Frames handed up.
    pub rx_frames: u64,
    /// Octets handed up.
    pub rx_octets: u64,
    /// Frames that arrived and were lost: no room in a ring or socket buffer, no free frame in the pool, cut short.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Octets sent.
    pub tx_octets: u64,
    /// Frames that the device refused for good (too long, link down).
    pub tx_dropped: u64,
    /// Times the device had no room and frames were left with the caller.
    pub tx_full: u64,
    /// Frames sent without copying their payload in user space.
    pub tx_uncopied: u64,
    /// Times the device went away.
    pub lost: u64,
    /// Times it was opened again.
    pub reopened: u64,
}

impl PortStats {
    /// The sum of both.
    pub fn plus(self, other: PortStats) -> PortStats {
        let PortStats {
            rx_frames,
            rx_octets,
            rx_dropped,
            tx_frames,
            tx_octets,
            tx_dropped,
            tx_full,
            tx_uncopied,
            lost,
            reopened,
        } = other;
        PortStats {
            rx_frames: self.rx_frames + rx_frames,
            rx_octets: self.rx_octets + rx_octets,
            rx_dropped: self.rx_dropped + rx_dropped,
            tx_frames: self.tx_frames + tx_frames,
            tx_octets: self.tx_octets + tx_octets,
            tx_dropped: self.tx_dropped + tx_dropped,
            tx_full: self.tx_full + tx_full,
            tx_uncopied: self.tx_uncopied + tx_uncopied,
            lost: self.lost + lost,
            reopened: self.reopened + reopened,
        }
    }
}

/// How long opening a port waits for a queue or device that a program which has just ended may still hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Some seconds: at the start.
    Seconds,
    /// Not at all: while other ports are served.
    None,
}

impl Patience {
    /// Attempts, 50 ms apart, that may fail before the last one.
    fn retries(self) -> u32 {
        match self {
            Patience::Seconds => 40,
            Patience::None => 0,
        }
    }
}

/// A device, or something that behaves like one. Never blocks.
pub trait Port {
    /// Appends what has arrived, at most [`BURST`] frames.
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>);

    /// Sends from the front of `tx`; what does not fit now stays there.
    fn transmit(&mut self, tx: &mut Vec<TxFrame>);

    /// What it does by itself.
    fn capabilities(&self) -> Capabilities;

    /// Its link-layer address (zeros where the medium has none).
    fn mac(&self) -> [u8; 6];

    /// Descriptors that become readable when frames arrive; empty: must be polled.
    fn fds(&self) -> &[RawFd];

    /// Its counters.
    fn stats(&self) -> PortStats;
}

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The device does not exist or cannot be queried.
    #[error(
        "{device}: no such network device here ({error}); check the name and the network namespace"
    )]
    Device {
        /// Its name.
        device: String,
        /// What the kernel said.
        #[source]
        error: std::io::Error,
    },
    /// A system call failed.
    #[error("{device}: {step}: {error}")]
    System {
        /// The device.
        device: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        error: std::io::Error,
    },
    /// The steering program was refused.
    #[error("{device}: steering program: {error}")]
    Program {
        /// The device.
        device: String,
        /// Why.
        #[source]
        error: LoadError,
    },
    /// The device's driver runs no XDP programs.
    #[error("{device}: the driver has no XDP of its own: {error}")]
    NoNativeXdp {
        /// The device.
        device: String,
        /// What the kernel said.
        #[source]
        error: std::io::Error,
    },
    /// The steering rules do not fit in a program.
    #[error("{device}: {error}")]
    TooLong {
        /// The device.
        device: String,
        /// How far they do not.
        #[source]
        error: TooLong,
    },
    /// The frames of the pool do not suit the device.
    #[error("{device}: {why}")]
    Pool {
        /// The device.
        device: String,
        /// What is wrong and what to change.
        why: String,
    },
}
