//! An emulated link between two Ethernet devices: rate, one-way delay, random loss, a drop-tail queue, each per direction.
//!
//! [`shaper`] decides when a packet leaves (pure logic), [`segment`] cuts super-frames to what a wire would carry,
//! [`forward`] moves the frames, [`parse`] reads `100mbit` and `5ms`.
#![forbid(unsafe_code)]

pub mod forward;
pub mod parse;
pub mod segment;
pub mod shaper;

pub use forward::{DirectionStats, Emulator, Switch};
pub use shaper::{QueueLimit, Shaper};

use serde::Serialize;
use std::time::Duration;

/// What one direction of a link does to packets.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Profile {
    /// Bits per second of whole Ethernet frames (without preamble and check sequence); `None`: as fast as it goes.
    pub rate: Option<u64>,
    /// From the last bit sent to the last bit received.
    pub delay: Duration,
    /// Probability that a packet is lost on the way, 0 to 1.
    pub loss: f64,
    /// What may wait for the wire.
    pub queue: QueueLimit,
}

impl Default for Profile {
    /// No rate limit, no delay, no loss, 1000 packets of queue.
    fn default() -> Self {
        Profile { rate: None, delay: Duration::ZERO, loss: 0.0, queue: QueueLimit::Packets(1000) }
    }
}
