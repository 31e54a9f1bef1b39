//! What the programs on simulated hosts do: send, count and hash, echo, read slowly, close in some order.
#![forbid(unsafe_code)]

use crate::time::{Duration, Instant, earliest};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A stream socket as a program sees it.
pub trait Socket {
    /// Whether text may be queued now: the handshake is done and we have not closed.
    fn may_send(&self) -> bool;
    /// Octets that [`Socket::send`] would take now.
    fn room(&self) -> usize;
    /// Queues text, at most [`Socket::room`] octets.
    fn send(&mut self, text: &[u8]) -> usize;
    /// Hands at most `limit` received octets to `sink`. Returns how many.
    fn recv(&mut self, limit: usize, sink: &mut dyn FnMut(&[u8])) -> usize;
    /// The peer's FIN is here and everything before it was taken.
    fn recv_finished(&self) -> bool;
    /// Closes our direction.
    fn close(&mut self);
    /// Resets.
    fn abort(&mut self);
}

/// When a program closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// As soon as everything is sent.
    AfterSending,
    /// When the peer has closed and everything is sent.
    AfterPeer,
    /// When this many octets are received and everything is sent.
    AfterReceiving(u64),
    /// Never.
    Never,
    /// With a RST, when this many octets are received or the peer has closed.
    ResetAfterReceiving(u64),
}

/// What a program is to do. The default sends nothing, reads everything and closes after its peer.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Octets to send.
    pub send: u64,
    /// What they are made from.
    pub seed: u64,
    /// Sends back what it receives, besides.
    pub echo: bool,
    /// Octets per second that it reads; `None` is all at once.
    pub read_rate: Option<u64>,
    /// When it closes.
    pub close: Close,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { send: 0, seed: 1, echo: false, read_rate: None, close: Close::AfterPeer }
    }
}

impl Plan {
    /// Sends `octets`, then closes.
    pub fn send(octets: u64, seed: u64) -> Plan {
        Plan { send: octets, seed, close: Close::AfterSending, ..Plan::default() }
    }

    /// Receives, closes after its peer.
    pub fn sink() -> Plan {
        Plan::default()
    }

    /// Sends back what it receives, closes after its peer.
    pub fn echo() -> Plan {
        Plan { echo: true, ..Plan::default() }
    }

    /// Closes then.
    pub fn close(mut self, close: Close) -> Plan {
        self.close = close;
        self
    }

    /// Reads so many octets per second.
    pub fn read_rate(mut self, rate: u64) -> Plan {
        self.read_rate = Some(rate);
        self
    }
}

/// Length and rolling hash of a stream: equal for equal streams, however they were cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Octets.
    pub len: u64,
    /// A polynomial of them.
    pub hash: u64,
}

impl Default for Digest {
    fn default() -> Digest {
        Digest { len: 0, hash: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Digest {
    /// Of these octets.
    pub fn of(octets: &[u8]) -> Digest {
        let mut digest = Digest::default();
        digest.update(octets);
        digest
    }

    /// Appends.
    pub fn update(&mut self, octets: &[u8]) {
        self.len += octets.len() as u64;
        for octet in octets {
            self.hash = (self.hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Fills `out` with octets `at..` of the stream that `seed` makes: the same at any cut.
pub fn octets(seed: u64, at: u64, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let position = at + done as u64;
        let mut word = seed ^ (position / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (word ^ word >> 31).to_le_bytes();
        let from = (position % 8) as usize;
        let n = (8 - from).min(out.len() - done);
        out[done..done + n].copy_from_slice(&bytes[from..from + n]);
        done += n;
    }
}

/// How a connection ended, as its program saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Both directions closed in order.
    Done,
    /// The SYN was answered with RST.
    Refused,
    /// The peer reset it.
    Reset,
    /// Nobody answered.
    TimedOut,
    /// The network said so.
    Unreachable,
    /// The program reset it.
    Aborted,
}

/// When octets came.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    first: Option<Instant>,
    last: Option<Instant>,
    longest_gap: Duration,
    gap_at: Option<Instant>,
    /// Octets per 10 ms since `first`.
    bins: Vec<u32>,
}

impl Progress {
    const BIN: Duration = Duration::from_millis(10);

    fn on_octets(&mut self, n: usize, now: Instant) {
        let first = *self.first.get_or_insert(now);
        if let Some(last) = self.last
            && now.since(last) > self.longest_gap
        {
            self.longest_gap = now.since(last);
            self.gap_at = Some(last);
        }
        self.last = Some(now);
        let bin = (now.since(first).as_nanos() / Progress::BIN.as_nanos()) as usize;
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += n as u32;
    }

    /// When the first octet came.
    pub fn first(&self) -> Option<Instant> {
        self.first
    }

    /// When the last one came.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// The longest time between two arrivals, and when it began.
    pub fn longest_gap(&self) -> (Duration, Option<Instant>) {
        (self.longest_gap, self.gap_at)
    }

    /// Bits per second from `skip` after the first octet until the last one; all of it if it was over by then.
    pub fn goodput(&self, skip: Duration) -> f64 {
        let skip = (skip.as_nanos() / Progress::BIN.as_nanos()) as usize;
        let skip = if skip + 10 >= self.bins.len() { 0 } else { skip };
        let octets: u64 =
            self.bins[skip.min(self.bins.len())..].iter().map(|n| u64::from(*n)).sum();
        let (Some(first), Some(last)) = (self.first, self.last) else { return 0.0 };
        let time = last.since(first + Progress::BIN * skip as u32).as_secs_f64();
        octets as f64 * 8.0 / time.max(Progress::BIN.as_secs_f64())
    }
}

/// A program at work on one connection.
#[derive(Clone, Debug)]
pub struct App {
    /// What it is to do.
    pub plan: Plan,
    /// What it has queued so far.
    pub sent: Digest,
    /// What it has received so far.
    pub received: Digest,
    /// When that came.
    pub progress: Progress,
    /// The peer has closed and everything was read.
    pub saw_end: bool,
    /// How it ended, once it has.
    pub end: Option<End>,
    produced: u64,
    echo: VecDeque<u8>,
    closed: bool,
    /// Since when reading has been paced, and octets read since.
    paced: Option<(Instant, u64)>,
    wake: Option<Instant>,
}

impl App {
    /// A program that has done nothing yet.
    pub fn new(plan: Plan) -> App {
        App {
            plan,
            sent: Digest::default(),
            received: Digest::default(),
            progress: Progress::default(),
            saw_end: false,
            end: None,
            produced: 0,
            echo: VecDeque::new(),
            closed: false,
            paced: None,
            wake: None,
        }
    }

    /// Whether everything it had to send is in the socket.
    pub fn has_sent(&self) -> bool {
        self.produced == self.plan.send && self.echo.is_empty()
    }

    /// When it wants to run again even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        if self.end.is_some() { None } else { earliest(self.wake, None) }
    }

    /// Reads, writes and closes as far as the socket allows.
    pub fn run(&mut self, socket: &mut dyn Socket, now: Instant) {
        self.read(socket, now);
        self.write(socket);
        if socket.recv_finished() {
            self.saw_end = true;
        }
        let close = match self.plan.close {
            Close::AfterSending => self.has_sent(),
            Close::AfterPeer => self.saw_end && self.has_sent(),
            Close::AfterReceiving(n) => self.received.len >= n && self.has_sent(),
            Close::Never => false,
            Close::ResetAfterReceiving(n) => {
                if (self.saw_end || self.received.len >= n) && !self.closed && socket.may_send() {
                    self.closed = true;
                    socket.abort();
                }
                false
            }
        };
        if close && !self.closed && socket.may_send() {
            self.closed = true;
            socket.close();
        }
    }

    fn read(&mut self, socket: &mut dyn Socket, now: Instant) {
        let allowed = self.allowance(now);
        let (received, echo) = (&mut self.received, &mut self.echo);
        let echoes = self.plan.echo;
        let n = socket.recv(allowed, &mut |octets| {
            received.update(octets);
            if echoes {
                echo.extend(octets);
            }
        });
        if n > 0 {
            self.progress.on_octets(n, now);
        }
        if let Some((_, read)) = &mut self.paced {
            *read += n as u64;
        }
    }

    /// Octets that a paced reader may take now; it comes back every 10 ms.
    fn allowance(&mut self, now: Instant) -> usize {
        let Some(rate) = self.plan.read_rate else { return usize::MAX };
        let (since, read) = *self.paced.get_or_insert((now, 0));
        let due = now.since(since).as_nanos() * u128::from(rate) / 1_000_000_000;
        if self.wake.is_none_or(|at| at <= now) {
            self.wake = (!self.saw_end).then_some(now + Duration::from_millis(10));
        }
        (due as u64).saturating_sub(read) as usize
    }

    fn write(&mut self, socket: &mut dyn Socket) {
        let mut buffer = [0; 4_096];
        while socket.may_send() && !self.closed {
            let room = socket.room().min(buffer.len());
            let left = (self.plan.send - self.produced).min(room as u64) as usize;
            let n = if left > 0 {
                octets(self.plan.seed, self.produced, &mut buffer[..left]);
                left
            } else {
                let n = room.min(self.echo.len());
                for (slot, octet) in buffer.iter_mut().zip(self.echo.iter().take(n)) {
                    *slot = *octet;
                }
                n
            };
            let n = if n == 0 { 0 } else { socket.send(&buffer[..n]) };
            if n == 0 {
                break;
            }
            self.sent.update(&buffer[..n]);
            if left > 0 {
                self.produced += n as u64;
            } else {
                self.echo.drain(..n);
            }
        }
    }
}
