//! Counted frames: one pool per shard, handles that free themselves, payloads that share octets (law 3).
//!
//! `pool` and `frame` hold all `unsafe` of this crate; `payload` and `chain` are safe code on top.

mod chain;
mod payload;
mod pool;

pub use chain::{Chain, Parts, SMALL, cut_before};
pub use payload::Payload;
pub use pool::{Frame, HeadroomClaim, Pool};
