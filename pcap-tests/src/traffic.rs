//! Transfers over the kernel's own sockets, hashed at both ends and timed at the receiver.
#![forbid(unsafe_code)]

use crate::netns::Namespace;
use serde::Serialize;
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The receiver counts octets per so much time.
pub const BIN: Duration = Duration::from_millis(50);
/// A socket that neither moves data nor ends for so long has failed, unless a transfer says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(10);

const BLOCK: usize = 64 * 1024;

/// Who sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Client to server.
    Up,
    /// Server to client.
    Down,
}

/// How much to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// Exactly so many octets.
    Octets(u64),
    /// As many as go for so long.
    For(Duration),
}

/// Which protocol the kernel's sockets speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// Multipath TCP (protocol 262).
    Mptcp,
}

/// A transfer to make.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Where the server listens and the client connects to.
    pub server: SocketAddr,
    /// The relay that the client connects to instead.
    pub through: Option<SocketAddr>,
    /// What the client's socket speaks.
    pub client_speaks: Transport,
    /// What the server's socket speaks.
    pub server_speaks: Transport,
    /// Who sends.
    pub direction: Direction,
    /// How much.
    pub amount: Amount,
    /// Congestion control of both sockets; `None`: the kernel's default.
    pub congestion: Option<&'static str>,
    /// How long neither end minds that nothing moves. A sender waits for as long until the receiver has everything.
    pub patience: Duration,
}

impl Transfer {
    /// Plain TCP with CUBIC.
    pub fn tcp(server: SocketAddr, direction: Direction, amount: Amount) -> Transfer {
        let speaks = Transport::Tcp;
        let congestion = Some("cubic");
        Transfer {
            server,
            through: None,
            client_speaks: speaks,
            server_speaks: speaks,
            direction,
            amount,
            congestion,
            patience: PATIENCE,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Octets sent.
    pub sent: u64,
    /// Octets received.
    pub received: u64,
    /// SHA-256 of the octets sent.
    pub sent_sha256: String,
    /// SHA-256 of the octets received.
    pub received_sha256: String,
    /// Octets received in each [`BIN`] since the first.
    pub bins: Vec<u64>,
    /// Bins that had passed when the sender stopped writing.
    pub full_bins: usize,
    /// Longest time in which nothing arrived, between the first octet and the last.
    pub longest_gap: Duration,
    /// When that began, since the first octet.
    pub longest_gap_at: Duration,
    /// From the client's connect to the receiver's end of file.
    pub elapsed: Duration,
    /// From the end of the handshake, as the sender sees it, to the receiver's end of file.
    pub transferring: Duration,
    /// How long the client's connect took.
    pub connect: Duration,
    /// The sender's congestion control.
    pub congestion: String,
}

impl Outcome {
    /// Whether every octet arrived as it was sent.
    pub fn intact(&self) -> bool {
        self.sent == self.received && self.sent_sha256 == self.received_sha256
    }

    /// Bits of payload per second after the first `skip`, while the sender was writing.
    pub fn steady_rate(&self, skip: Duration) -> f64 {
        let first = (skip.as_millis() / BIN.as_millis()) as usize;
        let steady = self.bins.get(first..self.full_bins.min(self.bins.len())).unwrap_or_default();
        let octets: u64 = steady.iter().sum();
        if steady.is_empty() {
            return 0.0;
        }
        octets as f64 * 8.0 / (steady.len() as f64 * BIN.as_secs_f64())
    }
}

/// Makes the transfer between two namespaces.
pub fn run(client: &Namespace, server: &Namespace, transfer: Transfer) -> io::Result<Outcome> {
    start(client, server, transfer)?.finish()
}

/// A transfer under way.
#[derive(Debug)]
pub struct Running {
    client: JoinHandle<io::Result<End>>,
    server: JoinHandle<io::Result<End>>,
    direction: Direction,
}

/// Starts the transfer and returns at once.
pub fn start(client: &Namespace, server: &Namespace, transfer: Transfer) -> io::Result<Running> {
    let Transfer { server: address, direction, congestion, .. } = transfer;
    let listener = server.run(|| listen(address, transfer.server_speaks, congestion))?;
    let server = server.spawn_thread("server", move || {
        let begun = Instant::now();
        let (stream, _) = listener.accept()?;
        let connect = begun.elapsed();
        run_end(stream, direction == Direction::Down, transfer, begun, connect)
    })?;
    let client = client.spawn_thread("client", move || {
        let begun = Instant::now();
        let target = transfer.through.unwrap_or(address);
        let stream = connect(target, transfer.client_speaks, congestion)?;
        let took = begun.elapsed();
        run_end(stream, direction == Direction::Up, transfer, begun, took)
    })?;
    Ok(Running { client, server, direction })
}

impl Running {
    /// Waits for both ends.
    pub fn finish(self) -> io::Result<Outcome> {
        let join = |end: JoinHandle<io::Result<End>>, name: &str| match end.join() {
            Ok(result) => result.map_err(|error| explain(&error, name)),
            Err(_) => Err(io::Error::other(format!("the {name}'s thread died"))),
        };
        let client = join(self.client, "client");
        // A server that was never reached gives up by itself.
        let (client, server) = (client?, join(self.server, "server")?);
        let (connect, begun) = (client.connect, client.begun);
        let (sender, receiver) = match self.direction {
            Direction::Up => (client, server),
            Direction::Down => (server, client),
        };
        let since_first = |at: Instant| at.saturating_duration_since(receiver.first.unwrap_or(at));
        Ok(Outcome {
            sent: sender.octets,
            received: receiver.octets,
            sent_sha256: sender.sha256,
            received_sha256: receiver.sha256,
            full_bins: (since_first(sender.ended).as_nanos() / BIN.as_nanos()) as usize,
            bins: receiver.bins,
            longest_gap: receiver.longest_gap,
            longest_gap_at: receiver.longest_gap_at,
            elapsed: receiver.ended - begun,
            transferring: receiver.ended - (sender.begun + sender.connect),
            connect,
            congestion: sender.congestion,
        })
    }
}

fn explain(error: &io::Error, name: &str) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, format!("{name}: nothing moved for too long"))
        }
        kind => io::Error::new(kind, format!("{name}: {error}")),
    }
}

/// What one end of a transfer saw.
#[derive(Debug)]
struct End {
    octets: u64,
    sha256: String,
    begun: Instant,
    connect: Duration,
    first: Option<Instant>,
    /// The sender's last write, the receiver's end of file.
    ended: Instant,
    bins: Vec<u64>,
    longest_gap: Duration,
    longest_gap_at: Duration,
    congestion: String,
}

/// A listening socket of the calling thread's namespace; its `accept` gives up after [`PATIENCE`]. With Multipath TCP it
/// listens on every address: the kernel gives further subflows to a listener of the address that they arrive at.
pub fn listen(at: SocketAddr, speaks: Transport, congestion: Option<&str>) -> io::Result<Socket> {
    let at = match (speaks, at) {
        (Transport::Tcp, at) => at,
        (Transport::Mptcp, SocketAddr::V4(at)) => (Ipv4Addr::UNSPECIFIED, at.port()).into(),
        (Transport::Mptcp, SocketAddr::V6(at)) => (Ipv6Addr::UNSPECIFIED, at.port()).into(),
    };
    let socket = socket(at, speaks, congestion)?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.bind(&at.into())?;
    socket.listen(128)?;
    Ok(socket)
}

/// A connected socket of the calling thread's namespace; its calls give up after [`PATIENCE`].
pub fn connect(to: SocketAddr, speaks: Transport, congestion: Option<&str>) -> io::Result<Socket> {
    let socket = socket(to, speaks, congestion)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket)
}

fn socket(for_address: SocketAddr, speaks: Transport, cc: Option<&str>) -> io::Result<Socket> {
    let protocol = match speaks {
        Transport::Tcp => Protocol::TCP,
        Transport::Mptcp => Protocol::MPTCP,
    };
    let socket = Socket::new(Domain::for_address(for_address), Type::STREAM, Some(protocol))?;
    if let Some(cc) = cc {
        // Not permitted or not there: the default stays, and the outcome names what was in use.
        let _ = socket.set_tcp_congestion(cc.as_bytes());
    }
    Ok(socket)
}

fn run_end(
    socket: Socket,
    sends: bool,
    transfer: Transfer,
    begun: Instant,
    connect: Duration,
) -> io::Result<End> {
    socket.set_read_timeout(Some(transfer.patience))?;
    socket.set_write_timeout(Some(transfer.patience))?;
    let name = socket.tcp_congestion().unwrap_or_default();
    let congestion = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
    let stream = TcpStream::from(socket);
    let end = if sends { send(stream, transfer.amount)? } else { receive(stream)? };
    Ok(End { begun, connect, congestion, ..end })
}

fn send(mut stream: TcpStream, amount: Amount) -> io::Result<End> {
    let mut hash = Sha256::new();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut block = vec![0; BLOCK];
    let (begun, mut octets) = (Instant::now(), 0);
    loop {
        let len = match amount {
            Amount::Octets(all) => (all - octets).min(BLOCK as u64) as usize,
            Amount::For(time) if begun.elapsed() < time => BLOCK,
            Amount::For(_) => 0,
        };
        if len == 0 {
            break;
        }
        noise.fill(&mut block[..len]);
        stream.write_all(&block[..len])?;
        hash.update(&block[..len]);
        octets += len as u64;
    }
    let ended = Instant::now();
    stream.shutdown(Shutdown::Write)?;
    // The receiver closes after reading everything: only then is nothing left that could be lost.
    if stream.read(&mut block)? != 0 {
        return Err(io::Error::other("the receiver sent data"));
    }
    Ok(End::new(octets, hash, ended))
}

fn receive(mut stream: TcpStream) -> io::Result<End> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 4 * BLOCK];
    let (mut octets, mut bins) = (0, Vec::new());
    let (mut first, mut last) = (None, None);
    let (mut longest_gap, mut longest_gap_at) = (Duration::ZERO, Duration::ZERO);
    loop {
        let len = stream.read(&mut block)?;
        let now = Instant::now();
        if len == 0 {
            break;
        }
        let first = *first.get_or_insert(now);
        let gap = now - last.replace(now).unwrap_or(now);
        if gap > longest_gap {
            (longest_gap, longest_gap_at) = (gap, now - first - gap);
        }
        let bin = ((now - first).as_nanos() / BIN.as_nanos()) as usize;
        if bins.len() <= bin {
            bins.resize(bin + 1, 0);
        }
        bins[bin] += len as u64;
        octets += len as u64;
        hash.update(&block[..len]);
    }
    let end = End::new(octets, hash, Instant::now());
    Ok(End { first, bins, longest_gap, longest_gap_at, ..end })
}

impl End {
    fn new(octets: u64, hash: Sha256, ended: Instant) -> End {
        let sha256 = hash.finalize().iter().map(|octet| format!("{octet:02x}")).collect();
        End {
            octets,
            sha256,
            begun: ended,
            connect: Duration::ZERO,
            first: None,
            ended,
            bins: Vec::new(),
            longest_gap: Duration::ZERO,
            longest_gap_at: Duration::ZERO,
            congestion: String::new(),
        }
    }
}

/// Octets that do not repeat: splitmix64.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, block: &mut [u8]) {
        for part in block.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        }
    }
}
