//! The MPTCP Conversion Point: bridges of two legs, who gets one, and how they end.
//!
//! Reading order: [`config`], `open` (which SYN becomes which bridge), `bridge` (the relay loop), `close` (how an end on
//! one leg shows on the other), `convert` (explicit mode).
#![forbid(unsafe_code)]

mod bridge;
mod close;
pub mod config;
mod convert;
mod cookie;
mod credit;
mod direction;
#[cfg(test)]
mod fast_open_tests;
mod info;
mod leg;
mod negative_cache;
mod open;
mod policy;
mod space;
#[cfg(test)]
mod tests;

pub use bridge::Bridge;
pub use close::{End, Follow, Progress, Side, follow};
pub use config::{
    Action, Explanation, McpConfig, RemoteMcp, Rule, Service, SourceMode, Transport, explain,
};
pub use info::{ConnectionInfo, ConnectionState, LegInfo, Mode, Origin};
pub use leg::{Leg, TcpLeg};
pub use negative_cache::{NegativeCache, WhyAvoided};
pub use policy::Mcp;
