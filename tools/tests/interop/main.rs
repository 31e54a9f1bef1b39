//! Plait between real peers, in network namespaces: the Linux kernel's TCP and MPTCP as client and as server, its
//! counters and tshark as judges, and ordinary programs through a running pair.
//!
//! These tests need root. Each builds namespaces of its own and leaves nothing behind.
#![forbid(unsafe_code)]

mod appliance;
mod conversation;
mod cores;
mod ecn;
mod ipv6;
mod mtu;
mod opening;
mod pair;
mod pmtu;
mod recovery;
mod reload;
mod signals;
mod single;
mod transparent;
mod unreachable;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Two cores serve one topology at a time: tests that measure or wait take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
