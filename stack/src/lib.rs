//! Plait's stack: TCP, Multipath TCP and the MPTCP Conversion Point, without a single system call.
//!
//! Everything here is sans-IO: time and randomness are arguments, frames are handed in and out. The crate is `no_std`
//! so that a clock, a socket or a thread cannot even be named in it.
//!
//! # Floors, top to bottom
//! - [`mcp`]: a bridge of two legs, roles, explicit mode, policy
//! - [`shard`]: one core's flow table, timers, admission
//! - [`mptcp`]: one connection over N subflows (RFC 8684)
//! - [`tcp`]: one flow (RFC 9293 and friends)
//! - [`wire`]: formats and checksums
//! - [`buf`], [`time`] and [`blocks`]: frames and pools, instants and the timing wheel, containers that grow evenly
//!
//! A floor uses only floors below it; `tests/layers.rs` holds the table.
//!
//! # Reading order
//! `wire/tcp`, `tcp/state`, `tcp/tcb`, `tcp/input`, `tcp/output`, `mptcp/mapping`, `mcp/bridge`, `shard/mod`.
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "testkit"))]
extern crate std;

pub mod blocks;
pub mod buf;
pub mod checksum;
pub mod mcp;
pub mod mptcp;
pub mod rng;
pub mod shard;
pub mod tcp;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod time;
pub mod wheel;
pub mod wire;
