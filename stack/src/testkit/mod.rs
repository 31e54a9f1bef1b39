//! A simulated network in virtual time: hosts, links, routers, middleboxes, conversion points.
//!
//! Everything in it runs in one thread, from one seed, without a clock: [`Sim`] jumps from event to event. Tests build a
//! topology of [`Node`]s and [`Link`]s; [`mod@reference`] has the one that the demo and the documentation use. A failing
//! test prints its seed and leaves a capture in `target/sim`; `SIM_SEED=` replays it.
#![forbid(unsafe_code)]

mod app;
pub mod bottleneck;
mod capture;
mod host;
mod link;
mod mcp_node;
mod middlebox;
pub mod packet;
pub mod reference;
mod router;
mod sim;
mod smoltcp_host;
#[cfg(test)]
mod tests;

pub use app::{App, Close, Digest, End, Plan, Progress, Socket, octets};
pub use capture::Capture;
pub use host::{Host, TcpHost};
pub use link::{Burst, Link, LinkStats};
pub use mcp_node::McpNode;
pub use middlebox::{
    Coalesce, EatSynPayload, Fit, Middlebox, Narrow, Nat, Pass, RewriteSequence, Split, Strip,
    StripFrom,
};
pub use router::{Router, Routes};
pub use sim::{LinkId, Node, NodeId, Outbox, Sim, seed};
pub use smoltcp_host::SmoltcpHost;
