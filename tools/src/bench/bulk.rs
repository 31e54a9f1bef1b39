//! Bulk transfers over the kernel's TCP sockets at full speed, checked for length and, here and there, for content.
#![forbid(unsafe_code)]

use super::contender::CONGESTION;
use pcap_tests::netns::Namespace;
use pcap_tests::traffic::{Direction, Transport, connect, listen};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// One write and one read at most.
const BLOCK: usize = 256 * 1024;
/// The octets sent repeat after so many: not a multiple of anything that the path counts in.
const PERIOD: usize = 1_000_003;
/// How much of each read is compared with what was sent: a slip, a gap or a repetition shows.
const COMPARED: usize = 64;
/// All connections are there after so long, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(15);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where the client connects to.
    pub target: SocketAddr,
    /// Where the server listens.
    pub server: SocketAddr,
    /// How many at once.
    pub connections: usize,
    /// Who sends.
    pub direction: Direction,
    /// Octets in total; `None`: until told to stop.
    pub octets: Option<u64>,
}

/// A load under way.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    ends: Vec<JoinHandle<io::Result<u64>>>,
    /// Dropping one opens the gate of its sender.
    starters: Vec<SyncSender<()>>,
    /// The senders' congestion control.
    pub congestion: String,
    connections: usize,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    pattern: Vec<u8>,
    received: Vec<AtomicU64>,
    failed: AtomicBool,
    complete: AtomicU64,
}

/// Which end a socket is.
enum Role {
    Sender(Option<u64>),
    Receiver(usize),
}

/// Connects everything; nothing is sent before [`Running::go`].
pub fn start(client: &Namespace, server: &Namespace, load: Load) -> io::Result<Running> {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        pattern: pattern(),
        received: (0..load.connections).map(|_| AtomicU64::new(0)).collect(),
        failed: AtomicBool::new(false),
        complete: AtomicU64::new(0),
    });
    let listener = server.run(|| listen(load.server, Transport::Tcp, Some(CONGESTION)))?;
    let (give, accepted) = mpsc::sync_channel(load.connections);
    let acceptor = server.spawn_thread("acceptor", {
        let connections = load.connections;
        move || -> io::Result<()> {
            for _ in 0..connections {
                let _ = give.send(listener.accept()?.0);
            }
            Ok(())
        }
    })?;
    let near = client.run(|| {
        (0..load.connections)
            .map(|_| connect(load.target, Transport::Tcp, Some(CONGESTION)))
            .collect::<io::Result<Vec<_>>>()
    })?;
    let far = (0..load.connections)
        .map(|_| {
            accepted
                .recv_timeout(PATIENCE)
                .map_err(|_| timed_out("not every connection came through"))
        })
        .collect::<io::Result<Vec<_>>>()?;
    acceptor.join().map_err(|_| io::Error::other("the acceptor died"))??;
    let (senders, receivers) = match load.direction {
        Direction::Up => (near, far),
        Direction::Down => (far, near),
    };
    let name = senders.first().and_then(|s| s.tcp_congestion().ok()).unwrap_or_default();
    let congestion = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
    let mut ends = Vec::new();
    let mut starters: Vec<SyncSender<()>> = Vec::new();
    for (index, receiver) in receivers.into_iter().enumerate() {
        let (_, at_once) = mpsc::sync_channel(1);
        ends.push(spawn(receiver.into(), Role::Receiver(index), at_once, &shared)?);
    }
    for (index, sender) in senders.into_iter().enumerate() {
        let (starter, gate) = mpsc::sync_channel(1);
        starters.push(starter);
        let share = load.octets.map(|all| share(all, load.connections, index));
        ends.push(spawn(sender.into(), Role::Sender(share), gate, &shared)?);
    }
    Ok(Running { shared, ends, starters, congestion, connections: load.connections })
}

impl Running {
    /// Lets every sender go at once.
    pub fn go(&mut self) {
        self.starters.clear();
    }

    /// Octets received so far.
    pub fn received(&self) -> u64 {
        self.shared.received.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Whether every receiver has seen the end, or something has failed.
    pub fn is_over(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
            || self.shared.complete.load(Ordering::Acquire) >= self.connections as u64
    }

    /// Tells the senders to stop, waits for all, checks that what was sent has arrived; how much.
    pub fn finish(self) -> io::Result<u64> {
        self.shared.stop.store(true, Ordering::Release);
        let mut totals = [0; 2];
        for (index, end) in self.ends.into_iter().enumerate() {
            let octets = end.join().map_err(|_| io::Error::other("a thread died"))??;
            totals[index / self.connections] += octets;
        }
        let [received, sent] = totals;
        if sent != received {
            return Err(io::Error::other(format!("{sent} octets sent, {received} received")));
        }
        Ok(received)
    }
}

/// What one of several connections sends of the whole.
fn share(all: u64, connections: usize, index: usize) -> u64 {
    let (connections, index) = (connections as u64, index as u64);
    all / connections + u64::from(index < all % connections)
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

fn spawn(
    stream: TcpStream,
    role: Role,
    gate: Receiver<()>,
    shared: &Arc<Shared>,
) -> io::Result<JoinHandle<io::Result<u64>>> {
    let shared = Arc::clone(shared);
    let name = match role {
        Role::Sender(_) => "sender",
        Role::Receiver(_) => "receiver",
    };
    thread::Builder::new().name(name.into()).spawn(move || {
        // Open once nobody holds the other end; a receiver's is from the beginning.
        let _ = gate.recv();
        let result = match role {
            Role::Sender(octets) => send(stream, octets, &shared),
            Role::Receiver(index) => receive(stream, index, &shared),
        };
        if result.is_err() {
            shared.failed.store(true, Ordering::Release);
        }
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => timed_out(&format!("{name}: nothing moved for 10 s")),
            kind => io::Error::new(kind, format!("{name}: {error}")),
        })
    })
}

fn send(mut stream: TcpStream, octets: Option<u64>, shared: &Shared) -> io::Result<u64> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let (mut sent, mut left) = (0, octets.unwrap_or(u64::MAX));
    while left > 0 && !shared.stop.load(Ordering::Acquire) {
        let at = (sent % PERIOD as u64) as usize;
        let len = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(&shared.pattern[at..at + len])?;
        sent += len as u64;
        left -= len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // The receiver closes after reading everything.
    match stream.read(&mut [0; 1])? {
        0 => Ok(sent),
        _ => Err(io::Error::other("the receiver sent data")),
    }
}

/// A socket on which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(10);

fn receive(mut stream: TcpStream, index: usize, shared: &Shared) -> io::Result<u64> {
    stream.set_read_timeout(Some(STALL))?;
    let mut block = vec![0; BLOCK];
    let mut received = 0u64;
    loop {
        let len = stream.read(&mut block)?;
        if len == 0 {
            shared.complete.fetch_add(1, Ordering::AcqRel);
            return Ok(received);
        }
        let at = (received % PERIOD as u64) as usize;
        let expected = &shared.pattern[at..at + len];
        let edge = len.min(COMPARED);
        if block[..edge] != expected[..edge] || block[len - edge..len] != expected[len - edge..] {
            return Err(io::Error::other(format!("wrong octets after {received}")));
        }
        received += len as u64;
        shared.received[index].store(received, Ordering::Relaxed);
    }
}

/// A period and a block more, so that every read and write is contiguous.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(PERIOD + BLOCK);
    while noise.len() < PERIOD {
        // xorshift64: no run of octets comes twice in a period.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(PERIOD);
    noise.extend_from_within(..BLOCK);
    noise
}

/// Waits until `done` or until `deadline`.
pub fn wait_until(deadline: Instant, mut done: impl FnMut() -> bool) {
    while !done() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_make_up_the_whole() {
        for connections in [1, 3, 100] {
            let sum: u64 = (0..connections).map(|i| share(1_000_001, connections, i)).sum();
            assert_eq!(sum, 1_000_001);
        }
    }

    #[test]
    fn any_block_of_the_pattern_is_contiguous() {
        let pattern = pattern();
        assert_eq!(pattern.len(), PERIOD + BLOCK);
        assert_eq!(pattern[PERIOD..], pattern[..BLOCK]);
    }
}
