//! What a worker is made of.
#![forbid(unsafe_code)]

use crate::steer::Steering;
use stack::time::Duration;
use stack::wire::Prefix;
use std::net::IpAddr;

/// How a port is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// AF_XDP sockets, sharing the worker's pool as their UMEM.
    AfXdp,
    /// An AF_PACKET socket with virtio-net headers: super-segments both ways.
    AfPacket,
    /// `pnet_datalink`: portable and slow.
    Pnet,
    /// A TAP device: the kernel of this machine, or a virtual machine, at the other end.
    Tap,
    /// A TUN device: as TAP, without a link layer.
    Tun,
}

impl Io {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Io::AfXdp => "af-xdp",
            Io::AfPacket => "af-packet",
            Io::Pnet => "pnet",
            Io::Tap => "tap",
            Io::Tun => "tun",
        }
    }
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoMode {
    /// It looks at its ports again, for ever: the least delay, and all of a core.
    BusyPoll,
    /// It sleeps at once, until the kernel wakes it: the least CPU.
    Interrupt,
    /// It looks again for a while, giving way to whoever else can run on its core, then it sleeps: within a burst nobody has
    /// to be woken, and an idle one costs nothing.
    Adaptive {
        /// For how long.
        spin: Duration,
    },
}

impl IoMode {
    /// How long to look in vain before sleeping; `None`: for ever.
    pub(super) fn spin(self) -> Option<Duration> {
        match self {
            IoMode::BusyPoll => None,
            IoMode::Interrupt => Some(Duration::ZERO),
            IoMode::Adaptive { spin } => Some(spin),
        }
    }
}

/// One port of a worker.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The name that configuration and counters use.
    pub name: String,
    /// The network device.
    pub device: String,
    /// How to drive it; `None`: by whatever suits the device best.
    pub io: Option<Io>,
    /// AF_XDP queues to bind; empty: all.
    pub queues: Vec<u32>,
    /// Addresses that Plait owns there, with the length of their network's prefix.
    pub owned: Vec<Prefix>,
    /// Default gateways (one per family).
    pub gateways: Vec<IpAddr>,
    /// What is taken from the kernel. `Owned` rules for `owned` and exceptions for the kernel's addresses are added.
    pub steering: Steering,
}

/// A static route.
#[derive(Clone, Debug)]
pub struct StaticRoute {
    /// Destinations.
    pub to: Prefix,
    /// Index of the port.
    pub port: usize,
    /// The next hop; `None`: the destination is a neighbour.
    pub via: Option<IpAddr>,
}

/// What a worker is made of.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its ports; their order is the numbering of `RxPacket::port`.
    pub ports: Vec<PortConfig>,
    /// Static routes besides gateways and connected networks.
    pub routes: Vec<StaticRoute>,
    /// Name of the TUN device that gives unclaimed packets back to the kernel; `None`: they are dropped.
    pub tun: Option<String>,
    /// What to do when there is nothing to do.
    pub io_mode: IoMode,
    /// The core to run on.
    pub core: Option<usize>,
    /// Frames in the pool.
    pub frames: u32,
    /// Octets per frame; 2048 or 4096 where a port is AF_XDP.
    pub frame_size: usize,
}
