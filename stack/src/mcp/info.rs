//! What can be told about a connection.
#![forbid(unsafe_code)]

use crate::mptcp::{MptcpInfo, SubflowInfo};
use crate::tcp::{CloseReason, TcpInfo};
use crate::time::Duration;
use crate::wire::{Endpoint, FlowTuple};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// A connection as `plait show` shows it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Unique within the shard.
    pub id: u64,
    /// Who opened it.
    pub client: Endpoint,
    /// Where it goes.
    pub server: Endpoint,
    /// What is done to it.
    pub mode: Mode,
    /// How far it is.
    pub state: ConnectionState,
    /// Octets relayed from client to server.
    pub bytes_up: u64,
    /// Octets relayed from server to client.
    pub bytes_down: u64,
    /// The client's leg.
    pub near: LegInfo,
    /// The server's leg.
    pub far: LegInfo,
    /// Time since its SYN.
    pub age: Duration,
    /// Name of the rule that took it, or of the service.
    pub rule: String,
}

/// What is done to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// TCP to MPTCP with MP_CONVERT.
    Convert,
    /// MPTCP with MP_CONVERT to TCP.
    Deconvert,
    /// TCP to MPTCP straight to the server.
    Direct,
    /// MPTCP to TCP.
    Terminate,
    /// A fixed relay.
    Relay,
    /// Meant for a dMCP, which does not convert: TCP to TCP.
    Plain,
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionState {
    /// The client's SYN is held.
    Connecting,
    /// The client's SYN was answered.
    Open,
    /// At least one direction is finished.
    Closing,
    /// Over, for the reason that ended it first.
    Closed(CloseReason),
}

/// Which part of the configuration a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Number of the rule's name in `Mcp`.
    Rule(u32),
    /// Index into `McpConfig::services`, when it was opened.
    Service(u32),
}

/// One leg.
#[derive(Clone, Debug)]
pub enum LegInfo {
    /// TCP; no `TcpInfo` during the handshake.
    Tcp {
        /// The flow.
        flow: FlowTuple,
        /// TCP's view.
        tcp: Option<Box<TcpInfo>>,
    },
    /// MPTCP, or what fell back from it.
    Mptcp {
        /// The connection's view.
        mptcp: MptcpInfo,
        /// Each subflow's.
        subflows: Vec<SubflowInfo>,
    },
}
