//! An emulated link between two Ethernet devices: rate, one-way delay, a drop-tail queue, and what goes wrong, each per
//! direction.
//!
//! [`shaper`] decides when a packet leaves (pure logic), [`impair`] which ones are lost or late, [`ecn`] marks,
//! [`segment`] cuts super-frames to what a wire would carry, [`forward`] moves the frames, [`parse`] reads `100mbit` and
//! `5ms`.
#![forbid(unsafe_code)]

pub mod ecn;
pub mod forward;
pub mod impair;
pub mod parse;
pub mod segment;
pub mod shaper;

pub use forward::{DirectionStats, Emulator, Switch};
pub use impair::{Loss, Reorder};
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
    /// What is lost on the way.
    pub loss: Loss,
    /// What may wait for the wire.
    pub queue: QueueLimit,
    /// Packets take up to this much longer, evenly distributed, and keep their order.
    pub jitter: Duration,
    /// What others overtake.
    pub reorder: Option<Reorder>,
    /// Probability that a packet arrives twice, 0 to 1.
    pub duplicate: f64,
    /// Packets that wait longer for the wire say so if they can (Congestion Experienced, RFC 3168).
    pub mark: Option<Duration>,
}

impl Default for Profile {
    /// No rate limit, no delay, 1000 packets of queue, and nothing goes wrong.
    fn default() -> Self {
        Profile {
            rate: None,
            delay: Duration::ZERO,
            loss: Loss::NONE,
            queue: QueueLimit::Packets(1000),
            jitter: Duration::ZERO,
            reorder: None,
            duplicate: 0.0,
            mark: None,
        }
    }
}
