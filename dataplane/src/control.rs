//! The control socket: what can be asked of a running Plait, and how it is asked.
//!
//! A Unix stream socket; one JSON [`Request`] per line, one JSON [`Reply`] per line. Rows use the names of `ss`,
//! `struct mptcp_info` and `nstat`, so that scripts for the kernel's MPTCP carry over. [`server`] answers.
#![forbid(unsafe_code)]

mod rows;
pub mod server;

pub use rows::connection_row;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most connections in one reply; the next request goes on where it ended.
pub const MAX_ROWS: usize = 512;
/// Most octets of a request, newline included.
pub const MAX_REQUEST: u64 = 4096;
/// Most octets of a reply that [`ask`] accepts: [`MAX_ROWS`] connections with eight subflows, with room to spare.
const MAX_REPLY: u64 = 64 << 20;
/// A node that does not answer for so long has something wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Request {
    /// What about.
    pub show: Show,
    /// Connections: where to begin; 0, or what the page before gave as `next`.
    #[serde(default)]
    pub offset: u64,
}

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Show {
    /// Connections with their legs and subflows.
    Connections,
    /// Ports.
    Ports,
    /// Counters.
    Counters,
    /// Rules.
    Rules,
    /// Workers.
    Workers,
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Show::Connections`].
    Connections(Page),
    /// To [`Show::Ports`].
    Ports(Vec<PortRow>),
    /// To [`Show::Counters`]: by name.
    Counters(BTreeMap<String, u64>),
    /// To [`Show::Rules`].
    Rules(Vec<RuleRow>),
    /// To [`Show::Workers`].
    Workers(Vec<WorkerRow>),
    /// The question cannot be answered; why not.
    Error(String),
}

/// Some of the connections.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// At most [`MAX_ROWS`].
    pub rows: Vec<ConnectionRow>,
    /// The offset of the next page; `None`: this was the last.
    pub next: Option<u64>,
}

/// A connection: two legs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// Unique within its worker.
    pub id: u64,
    /// The worker's number.
    #[serde(default)]
    pub worker: u32,
    /// The rule or service it came in by.
    pub rule: String,
    /// What is done to it, such as `convert`.
    pub mode: String,
    /// Where it is in its life, such as `open`.
    pub state: String,
    /// Who opened it.
    pub client: String,
    /// Where it goes.
    pub server: String,
    /// Milliseconds since its SYN.
    pub age_ms: u64,
    /// Octets relayed from client to server.
    pub bytes_up: u64,
    /// Octets relayed from server to client.
    pub bytes_down: u64,
    /// The leg towards the client.
    pub near: SocketRow,
    /// The leg towards the server.
    pub far: SocketRow,
}

/// A leg or a subflow, as a line of `ss`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SocketRow {
    /// `tcp` or `mptcp`.
    pub netid: String,
    /// As `ss` writes it, such as `ESTAB`.
    pub state: String,
    /// Octets received and not given to the other leg.
    pub recv_q: u64,
    /// Octets to send or to be acknowledged.
    pub send_q: u64,
    /// Our end.
    pub local: String,
    /// The peer's end.
    pub peer: String,
    /// What `ss -i` or `ss -M` prints, by name.
    #[serde(default)]
    pub info: Map<String, Value>,
    /// MPTCP: its subflows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subflows: Vec<SocketRow>,
}

/// A port.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PortRow {
    /// Its name.
    pub name: String,
    /// Its device.
    pub device: String,
    /// How it is driven.
    pub io: String,
    /// Why so.
    #[serde(default)]
    pub why: String,
    /// Octets of the largest IP packet.
    pub mtu: u32,
    /// What the device does by itself, such as `tso` and `zero-copy`.
    pub features: Vec<String>,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// A rule.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RuleRow {
    /// Its name.
    pub name: String,
    /// What it matches.
    pub matches: String,
    /// What it does.
    pub action: String,
}

/// A worker.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Its number, from 0.
    pub worker: u32,
    /// The core that it is bound to, if it is.
    pub core: Option<usize>,
    /// Connections.
    pub connections: u64,
    /// Flows: TCP connections and subflows, those in TIME-WAIT included, and those of other workers that it is home to.
    pub flows: u64,
    /// Flows in TIME-WAIT.
    pub time_wait: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Packets taken from other workers.
    pub crossed_in: u64,
    /// Packets sent to other workers.
    pub crossed_out: u64,
    /// Packets that were dropped between workers.
    pub crossed_dropped: u64,
    /// Frames in its pool.
    pub frames: u64,
    /// Frames that are free.
    pub frames_free: u64,
}

/// Why a node did not answer. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "{}: {error}: is `plait run` up? Give its socket with --control, or run as the user that started it",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The conversation broke off.
    #[error("{}: {error}: the node did not answer; look at its log", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The node refused.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its words.
        reason: String,
    },
}

/// Asks the node behind the socket at `path`.
///
/// # Errors
/// If nobody answers within five seconds, or the node refuses.
pub fn ask(path: &Path, request: Request) -> Result<Reply, AskError> {
    let unreachable = |error| AskError::Unreachable { path: path.to_owned(), error };
    let stream = UnixStream::connect(path).map_err(unreachable)?;
    match exchange(stream, request) {
        Ok(Reply::Error(reason)) => Err(AskError::Refused { path: path.to_owned(), reason }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(AskError::Broken { path: path.to_owned(), error }),
    }
}

/// Asks for connections until there are no more pages. Those that come or go meanwhile may be missed or seen twice.
///
/// # Errors
/// As [`ask`].
pub fn ask_connections(path: &Path) -> Result<Vec<ConnectionRow>, AskError> {
    let (mut all, mut offset) = (Vec::new(), Some(0));
    while let Some(from) = offset {
        let Reply::Connections(page) =
            ask(path, Request { show: Show::Connections, offset: from })?
        else {
            let reason = "an answer to another question came".to_owned();
            return Err(AskError::Refused { path: path.to_owned(), reason });
        };
        all.extend(page.rows);
        offset = page.next.filter(|next| *next > from);
    }
    Ok(all)
}

fn exchange(mut stream: UnixStream, request: Request) -> io::Result<Reply> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_REPLY)).read_line(&mut reply)?;
    if !reply.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&reply)?)
}
