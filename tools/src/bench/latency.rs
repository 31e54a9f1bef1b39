//! `plait bench latency`: what two proxies add to a request and its answer over a kept connection.
#![forbid(unsafe_code)]

use super::contender::{CONGESTION, Chain, PORT};
use super::rounds::{self, Report, RoundsArgs, percentile};
use clap::Args;
use pcap_tests::topology::SERVER;
use pcap_tests::traffic::{Transport, connect, listen};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Octets of a request, and of an answer.
const MESSAGE: usize = 64;
/// Requests that come before the first that counts.
const WARM_UP: u32 = 100;
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// Proxies between client and server.
const PROXIES: f64 = 2.0;

/// Latency of 64-octet requests and answers over one kept connection, at a steady rate.
///
/// Each request is sent at its time, whether or not the processors have gone to sleep meanwhile, and waits for the answer to
/// the one before.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct LatencyArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    /// Requests per second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Seconds of each round.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// One round of one contender; times from before the request is written until its answer is read, microseconds.
#[derive(Clone, Debug, Serialize)]
struct Latency {
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// Requests that counted.
    requests: u64,
    /// Share of the time in which a request was under way.
    load: f64,
}

/// Runs it and prints the table.
pub fn run(args: &LatencyArgs) -> io::Result<()> {
    let (rate, seconds) = (args.rate, args.seconds);
    let setting = format!(
        "{rate} requests per second of {MESSAGE} octets and as much back, {seconds} s each"
    );
    let report = rounds::run(
        &args.rounds,
        "latency",
        setting,
        |chain| requests(args, chain),
        |l| format!("p50 {:.0} us, p99 {:.0} us", l.p50_us, l.p99_us),
    )?;
    print!("{}", table(&report));
    let panels = [
        report.bars("median, us", |l| l.p50_us),
        report.bars("99th percentile, us", |l| l.p99_us),
        report.bars("99.9th percentile, us", |l| l.p999_us),
    ];
    args.rounds.plot(&report, &panels)?;
    report.check()
}

fn requests(args: &LatencyArgs, chain: &Chain) -> io::Result<Latency> {
    let server = &chain.net.server;
    let at = SocketAddr::new(SERVER, PORT);
    let listener = server.run(|| listen(at, Transport::Tcp, Some(CONGESTION)))?;
    let echo = server.spawn_thread("echo", move || -> io::Result<()> {
        let (socket, _) = listener.accept()?;
        let mut stream = ready(socket.into())?;
        let mut message = [0; MESSAGE];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        Ok(())
    })?;
    let socket =
        chain.net.client.run(|| connect(chain.target, Transport::Tcp, Some(CONGESTION)))?;
    let mut stream = ready(socket.into())?;
    for number in 0..WARM_UP {
        ask(&mut stream, u64::from(number))?;
        thread::sleep(Duration::from_millis(1));
    }
    let interval = Duration::from_secs(1) / args.rate;
    let (begun, seconds) = (Instant::now(), Duration::from_secs(args.seconds));
    let (mut times, mut due) = (Vec::new(), begun);
    while due < begun + seconds {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        times.push(ask(&mut stream, times.len() as u64)?);
        due = (due + interval).max(Instant::now());
    }
    let elapsed = begun.elapsed();
    drop(stream);
    echo.join().map_err(|_| io::Error::other("the server died"))??;
    chain.check_mptcp()?;
    let load = times.iter().sum::<Duration>().as_secs_f64() / elapsed.as_secs_f64();
    times.sort_unstable();
    let micros = |share| percentile(&times, share).as_secs_f64() * 1e6;
    Ok(Latency {
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
        max_us: micros(1.0),
        requests: times.len() as u64,
        load,
    })
}

fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request and the answer to it.
fn ask(stream: &mut TcpStream, number: u64) -> io::Result<Duration> {
    let mut request = [0; MESSAGE];
    request[..8].copy_from_slice(&number.to_ne_bytes());
    let mut answer = [0; MESSAGE];
    let begun = Instant::now();
    stream.write_all(&request)?;
    stream.read_exact(&mut answer)?;
    let took = begun.elapsed();
    if answer != request {
        return Err(io::Error::other("the answer to another request"));
    }
    Ok(took)
}

fn table(report: &Report<Latency>) -> String {
    let mut out = report.head();
    let p50 = |latency: &Latency| latency.p50_us;
    let baseline = report.baseline().and_then(|none| none.spread(p50));
    let _ = writeln!(
        out,
        "\n{:16} {:>22} {:>24} {:>27} {:>9} {:>17} {:>6}",
        "", "p50 us", "p99 us", "p99.9 us", "max us", "p50 per proxy us", "load"
    );
    for entry in &report.contenders {
        let Some(middle) = entry.spread(p50) else { continue };
        let spread = |quantity: fn(&Latency) -> f64| entry.spread(quantity).unwrap_or_default();
        let added = baseline
            .map_or("-".into(), |none| format!("+{:.1}", (middle.median - none.median) / PROXIES));
        let _ = writeln!(
            out,
            "{:16} {:>22} {:>24} {:>27} {:>9.0} {added:>17} {:>4.0} %",
            entry.contender.name(),
            middle.show(1),
            spread(|l| l.p99_us).show(1),
            spread(|l| l.p999_us).show(1),
            spread(|l| l.max_us).max,
            spread(|l| l.load).median * 100.0,
        );
    }
    out.push('\n');
    out += &report.notes();
    out
}
