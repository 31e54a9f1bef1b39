//! `plait bench connections`: short connections, each with one request and one answer.
#![forbid(unsafe_code)]

use super::bulk::wait_until;
use super::contender::{CONGESTION, Chain, PORT};
use super::machine::Cpu;
use super::plot::{Content, Panel, Scale};
use super::rounds::{self, Entry, Report, RoundsArgs, percentile};
use clap::{Args, ValueEnum};
use pcap_tests::netns::Namespace;
use pcap_tests::topology::SERVER;
use pcap_tests::traffic::{Transport, connect, listen};
use serde::Serialize;
use socket2::Socket;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const REQUEST: [u8; 64] = [b'?'; 64];
const ANSWER: [u8; 1024] = [b'!'; 1024];
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a server's thread looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);
/// The course of a round has so many points.
const STEPS: usize = 40;
/// After so many failures a round is given up.
const MAX_FAILURES: u64 = 100;

/// Short connections per second: connect, 64 octets up, 1 KiB down, close.
///
/// Who closes first remembers the connection for a minute (TIME-WAIT), and so does each proxy on the same side: where clients
/// close first, proxies that connect from one address to one address can run out of ports.
///
/// Example: plait bench connections --total 200000 --seconds 60 --first-close client
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ConnectionsArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    /// How many connections in each round.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..))]
    total: u64,
    /// How many at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    at_once: u16,
    /// Who closes first.
    #[arg(long, value_enum, default_value = "server")]
    first_close: End,
    /// A round ends after so many seconds at the latest.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// An end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum End {
    Server,
    Client,
}

/// One round of one contender.
#[derive(Clone, Debug, Serialize)]
struct Churn {
    /// Over the whole round.
    connections_per_s: f64,
    /// Over the first tenth of the connections.
    first_tenth_per_s: f64,
    /// Over the last tenth.
    last_tenth_per_s: f64,
    /// How the round went: seconds from its beginning, and connections per second until then, since the one before.
    course: Vec<(f64, f64)>,
    /// Connections that were answered in full.
    complete: u64,
    /// Connections that were not.
    failed: u64,
    /// How they failed, and how many each way.
    errors: BTreeMap<String, u64>,
    /// Milliseconds from connect to the end of the answer.
    p50_ms: f64,
    /// The 99th percentile.
    p99_ms: f64,
    /// Processor time of proxies, client and server for 1000 connections.
    chain_cpu_s_per_1000: f64,
    /// Of the proxies alone.
    proxies_cpu_s_per_1000: Cpu,
}

/// Runs it and prints the table.
pub fn run(args: &ConnectionsArgs) -> io::Result<()> {
    let (total, at_once, seconds) = (args.total, args.at_once, args.seconds);
    let closer = match args.first_close {
        End::Server => "server",
        End::Client => "client",
    };
    let setting = format!(
        "{total} connections, {at_once} at once, at most {seconds} s each; the {closer} closes first"
    );
    let report = rounds::run(
        &args.rounds,
        "connections",
        setting,
        |chain| churn(args, chain),
        |c| format!("{:.0}/s, {} failed", c.connections_per_s, c.failed),
    )?;
    print!("{}", table(&report));
    let panels = [report.bars("connections per second", |c| c.connections_per_s), course(&report)];
    args.rounds.plot(&report, &panels)?;
    report.check()
}

#[derive(Debug, Default)]
struct Shared {
    /// Tickets given out; a connection needs one.
    begun: AtomicU64,
    complete: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    errors: Mutex<BTreeMap<String, u64>>,
}

fn churn(args: &ConnectionsArgs, chain: &Chain) -> io::Result<Churn> {
    let shared = Arc::new(Shared::default());
    // The client's own ports shall not be what runs out.
    chain.net.client.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    chain.net.client.set_sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    let closes = args.first_close;
    let server = Server::start(&chain.net.server, usize::from(args.at_once), closes)?;
    // Proxies may still be starting; the first connection finds them up.
    let first = connect_in(&chain.net.client, chain.target)?;
    one(first, closes, Instant::now())?;
    let used = || Ok::<_, io::Error>((chain.cpu()?, chain.cpu()? + Cpu::of_this_process()?));
    let before = used()?;
    let begun = Instant::now();
    let clients = (0..args.at_once)
        .map(|_| {
            let (shared, target, total) = (Arc::clone(&shared), chain.target, args.total);
            chain.net.client.spawn_thread("client", move || client(target, total, closes, &shared))
        })
        .collect::<io::Result<Vec<_>>>()?;
    wait_until(begun + Duration::from_secs(args.seconds), || {
        let failed = shared.failed.load(Ordering::Relaxed);
        shared.complete.load(Ordering::Relaxed) + failed >= args.total || failed >= MAX_FAILURES
    });
    let after = used()?;
    shared.stop.store(true, Ordering::Release);
    let mut ends = Vec::new();
    let mut times = Vec::new();
    for client in clients {
        for (end, took) in client.join().map_err(|_| io::Error::other("a client died"))? {
            ends.push(end.duration_since(begun).as_secs_f64());
            times.push(took);
        }
    }
    drop(server);
    chain.check_mptcp()?;
    let failed = shared.failed.load(Ordering::Relaxed);
    if ends.is_empty() {
        return Err(io::Error::other(format!("no connection was answered, {failed} failed")));
    }
    ends.sort_by(f64::total_cmp);
    times.sort_unstable();
    let millis = |share| percentile(&times, share).as_secs_f64() * 1e3;
    let all = ends.len();
    let per_1000 = 1000.0 / all as f64;
    Ok(Churn {
        connections_per_s: rate(&ends, 0, all),
        first_tenth_per_s: rate(&ends, 0, all / 10),
        last_tenth_per_s: rate(&ends, all - all / 10, all),
        course: (1..=STEPS)
            .map(|step| (all * (step - 1) / STEPS, all * step / STEPS))
            .filter(|(from, to)| from < to)
            .map(|(from, to)| (ends[to - 1], rate(&ends, from, to)))
            .collect(),
        complete: all as u64,
        failed,
        errors: shared.errors.lock().map(|errors| errors.clone()).unwrap_or_default(),
        p50_ms: millis(0.5),
        p99_ms: millis(0.99),
        chain_cpu_s_per_1000: (after.1 - before.1).total() * per_1000,
        proxies_cpu_s_per_1000: (after.0 - before.0).times(per_1000),
    })
}

/// Per second, from the end of the connection `from` (0: from the beginning) to that of the connection `to`, counted in the
/// order in which they ended, at these seconds.
fn rate(ends: &[f64], from: usize, to: usize) -> f64 {
    let end = |count: usize| count.checked_sub(1).and_then(|i| ends.get(i)).copied().unwrap_or(0.0);
    let seconds = end(to) - end(from);
    if seconds > 0.0 { (to - from) as f64 / seconds } else { 0.0 }
}

fn connect_in(namespace: &Namespace, target: SocketAddr) -> io::Result<Socket> {
    namespace.run(|| connect(target, Transport::Tcp, Some(CONGESTION)))
}

/// Makes connections until there are no more tickets; when each ended and how long it took.
fn client(
    target: SocketAddr,
    total: u64,
    closes: End,
    shared: &Shared,
) -> Vec<(Instant, Duration)> {
    let mut times = Vec::new();
    while !shared.stop.load(Ordering::Acquire)
        && shared.begun.fetch_add(1, Ordering::Relaxed) < total
    {
        let begun = Instant::now();
        let took = connect(target, Transport::Tcp, Some(CONGESTION))
            .and_then(|socket| one(socket, closes, begun));
        match took {
            Ok(took) => {
                times.push((Instant::now(), took));
                shared.complete.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut errors) = shared.errors.lock() {
                    *errors.entry(format!("{:?}: {error}", error.kind())).or_default() += 1;
                }
            }
        }
    }
    times
}

/// One request over a connected socket.
fn one(socket: Socket, closes: End, begun: Instant) -> io::Result<Duration> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&REQUEST)?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer)?;
    if answer != ANSWER || (closes == End::Server && stream.read(&mut answer)? != 0) {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    Ok(begun.elapsed())
}

/// Answers on as many threads as there are connections at once; stops when dropped.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(namespace: &Namespace, at_once: usize, closes: End) -> io::Result<Server> {
        let at = SocketAddr::new(SERVER, PORT);
        let listener = namespace.run(|| listen(at, Transport::Tcp, Some(CONGESTION)))?;
        listener.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for _ in 0..at_once {
            let (listener, stop) = (listener.try_clone()?, Arc::clone(&stop));
            threads.push(namespace.spawn_thread("server", move || {
                while !stop.load(Ordering::Acquire) {
                    if let Ok((socket, _)) = listener.accept() {
                        // A client that went away has counted it.
                        let _ = answer(socket, closes);
                    }
                }
            })?);
        }
        Ok(Server { stop, threads })
    }
}

fn answer(socket: Socket, closes: End) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = TcpStream::from(socket);
    stream.read_exact(&mut [0; REQUEST.len()])?;
    stream.write_all(&ANSWER)?;
    if closes == End::Client {
        stream.read_exact(&mut [0; 1])?;
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How the last round of each contender went.
fn course(report: &Report<Churn>) -> Panel {
    let line = |entry: &Entry<Churn>| {
        entry.rounds.last().map(|churn| (entry.contender.name().to_owned(), churn.course.clone()))
    };
    let series = report.contenders.iter().filter_map(line).collect();
    let content = Content::Lines { along: "seconds", scale: Scale::Linear, series };
    Panel { title: "connections per second, last round".into(), content }
}

fn table(report: &Report<Churn>) -> String {
    let mut out = report.head();
    let rate = |entry: &Entry<Churn>| entry.spread(|c| c.connections_per_s);
    let baseline = report.baseline().and_then(rate);
    let _ = writeln!(
        out,
        "\n{:16} {:>25} {:>8} {:>11} {:>11} {:>8} {:>8} {:>12} {:>12} {:>7}",
        "",
        "connections/s",
        "of none",
        "first 10 %",
        "last 10 %",
        "p50 ms",
        "p99 ms",
        "cpu-s/1000",
        "of proxies",
        "failed"
    );
    for entry in &report.contenders {
        let Some(rate) = rate(entry) else { continue };
        let of_none =
            baseline.map_or("-".into(), |none| format!("{:.2}", rate.median / none.median));
        let median =
            |quantity: fn(&Churn) -> f64| entry.spread(quantity).unwrap_or_default().median;
        let failed: u64 = entry.rounds.iter().map(|c| c.failed).sum();
        let _ = writeln!(
            out,
            "{:16} {:>25} {of_none:>8} {:>11.0} {:>11.0} {:>8.2} {:>8.2} {:>12.3} {:>12.3} {failed:>7}",
            entry.contender.name(),
            rate.show(0),
            median(|c| c.first_tenth_per_s),
            median(|c| c.last_tenth_per_s),
            median(|c| c.p50_ms),
            median(|c| c.p99_ms),
            median(|c| c.chain_cpu_s_per_1000),
            median(|c| c.proxies_cpu_s_per_1000.total()),
        );
    }
    out.push('\n');
    out += &report.notes();
    for entry in &report.contenders {
        for (error, count) in entry.rounds.iter().flat_map(|churn| &churn.errors) {
            let _ = writeln!(out, "{}: {count} failed: {error}", entry.contender.name());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_between_two_ends() {
        let ends = [0.1, 0.2, 0.3, 0.4, 1.4];
        assert_eq!(rate(&ends, 0, 4).round(), 10.0);
        assert_eq!(rate(&ends, 4, 5).round(), 1.0);
        assert_eq!(rate(&ends, 5, 5), 0.0);
    }
}
