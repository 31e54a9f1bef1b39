//! Bulk transfers over one bottleneck: what is varied, and what is measured.

use stack::buf::{Chain, Pool};
use stack::tcp::{Algorithm, Pacing, Stream, TcpConfig, TcpInfo};
use stack::testkit::bottleneck::{Bottleneck, HEADERS, Loss, Path};
use stack::time::Duration;
use std::rc::Rc;

/// Octets of text in a full segment.
pub const MSS: u32 = 1448;

/// Configures the ends.
pub type Sender = fn(&mut TcpConfig);

pub const NEWRENO: Sender = |cfg| cfg.congestion = Algorithm::NewReno;
pub const CUBIC: Sender = |cfg| cfg.congestion = Algorithm::Cubic;
pub const BBR: Sender = |cfg| cfg.congestion = Algorithm::Bbr;
pub const PACED_CUBIC: Sender = |cfg| {
    (cfg.congestion, cfg.pacing) = (Algorithm::Cubic, Pacing::On);
};

/// A path, and how many flows share it.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Bits per second.
    pub rate: u64,
    pub rtt: Duration,
    /// Bandwidth-delay products.
    pub queue: f64,
    pub loss: Loss,
    /// One segment in fifty comes late by up to this.
    pub late: Duration,
    pub flows: usize,
    /// Not measured, and measured.
    pub warm: Duration,
    pub steady: Duration,
}

/// What came out of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Share of what the link can carry.
    pub goodput: f64,
    /// Octets of text sent again, as a share of those sent.
    pub retransmitted: f64,
    /// 95 of 100 segments waited no longer in the queue.
    pub wait: Duration,
    /// Jain's fairness index of the flows' goodput.
    pub jain: f64,
    /// Retransmission timeouts.
    pub rtos: u32,
}

impl Cell {
    /// Octets.
    pub fn bdp(&self) -> u64 {
        (self.rate as f64 / 8.0 * self.rtt.as_secs_f64()) as u64
    }

    /// The path in segments: what a window has to be to fill it.
    pub fn pipe(&self) -> f64 {
        self.bdp() as f64 / f64::from(MSS + HEADERS)
    }

    fn queue_octets(&self) -> u64 {
        let least = 10 * u64::from(MSS + HEADERS);
        ((self.bdp() as f64 * self.queue) as u64).max(least)
    }

    /// Text of a super-segment: half a millisecond of the link and a quarter of its queue at most.
    fn burst(&self) -> u32 {
        let octets = (self.rate / 16_000).min(self.queue_octets() / 4).min(self.bdp() / 8);
        (octets as u32 / (MSS + HEADERS)).clamp(1, 44) * MSS
    }

    fn forward(&self) -> Path {
        Path {
            rate: self.rate / 8,
            delay: self.rtt / 2,
            queue: self.queue_octets(),
            loss: self.loss,
            reorder: if self.late.is_zero() { (0.0, self.late) } else { (0.02, self.late) },
            gro: self.burst(),
            ..Path::default()
        }
    }

    /// Runs it with what `sender` configures.
    pub fn run(&self, sender: Sender, seed: u64) -> Outcome {
        let burst = self.burst();
        let buffer = (2 * (self.bdp() + self.queue_octets())).clamp(1 << 20, 1 << 30) as u32;
        let mut cfg = TcpConfig {
            gso_max: burst,
            receive_buffer: buffer,
            send_buffer: buffer,
            ..TcpConfig::default()
        };
        sender(&mut cfg);
        let cfg = Rc::new(cfg);
        let back = Path { delay: self.rtt / 2, ..Path::default() };
        let mut net = Bottleneck::new(self.forward(), back, seed);
        for i in 0..self.flows as u32 {
            net.add([cfg.clone(), cfg.clone()], self.rtt * i / 3);
        }
        let pool = Pool::new(1, (1 << 16) - 1);
        let text = Chain::copy_from(&pool, 0, &vec![7; burst as usize]).unwrap();
        // Whatever an ACK opens is filled.
        let ahead = (self.bdp() / 8).clamp(1 << 20, 64 << 20) as u32;
        let mut run = Run { net, text, ahead };
        run.until(self.warm, self.flows);
        let before = run.told(self.flows);
        run.net.wires[0].reset();
        run.until(self.steady, self.flows);
        Outcome::new(self, &before, &run.told(self.flows), run.net.wires[0].wait(0.95))
    }
}

struct Run {
    net: Bottleneck,
    text: Chain,
    /// Octets that the application is ahead of the window.
    ahead: u32,
}

impl Run {
    fn until(&mut self, time: Duration, flows: usize) {
        let end = self.net.now + time;
        loop {
            for i in 0..flows {
                self.feed(i);
            }
            if !self.net.step(end) {
                break;
            }
        }
    }

    fn feed(&mut self, i: usize) {
        if !self.net.peek(i).touched() {
            return;
        }
        let [client, server] = &mut self.net.pair(i).ends;
        if let Some(unsent) = client.tcb().map(|tcb| tcb.unsent())
            && unsent < self.ahead
        {
            let n = (2 * self.ahead - unsent) / self.text.len();
            (0..n).for_each(|_| client.send(self.text.clone()));
        }
        server.recv();
    }

    /// What clients and servers say.
    fn told(&self, flows: usize) -> Vec<[TcpInfo; 2]> {
        (0..flows).map(|i| self.net.peek(i).ends.each_ref().map(Stream::info)).collect()
    }
}

impl Outcome {
    fn new(
        cell: &Cell,
        before: &[[TcpInfo; 2]],
        after: &[[TcpInfo; 2]],
        wait: Duration,
    ) -> Outcome {
        // Text counts when it arrives, in order or not.
        let got: Vec<f64> = (before.iter().zip(after))
            .map(|([_, b], [_, a])| (a.bytes_received - b.bytes_received) as f64)
            .collect();
        let grown = |f: fn(&TcpInfo) -> u64| -> f64 {
            before.iter().zip(after).map(|([b, _], [a, _])| (f(a) - f(b)) as f64).sum()
        };
        let sum: f64 = got.iter().sum();
        let squares: f64 = got.iter().map(|g| g * g).sum();
        let link = cell.rate as f64 / 8.0 * f64::from(MSS) / f64::from(MSS + HEADERS);
        Outcome {
            goodput: sum / (link * cell.steady.as_secs_f64()),
            retransmitted: grown(|i| i.bytes_retrans) / grown(|i| i.bytes_sent).max(1.0),
            wait,
            jain: sum * sum / (got.len() as f64 * squares).max(1.0),
            rtos: grown(|i| i.rto_count.into()) as u32,
        }
    }
}
