//! `plait bench chain`: how much goes through two proxies, and what it costs.
#![forbid(unsafe_code)]

use super::bulk::{self, Load, wait_until};
use super::contender::{CONGESTION, Chain, PORT};
use super::machine::{Cpu, processors};
use super::rounds::{self, Entry, Report, RoundsArgs};
use clap::{Args, ValueEnum};
use pcap_tests::topology::SERVER;
use pcap_tests::traffic::Direction;
use serde::Serialize;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The steady part starts after so long, or a quarter of the time if that is less.
const WARM_UP: Duration = Duration::from_millis(700);
/// Work of others that is worth a warning: share of the machine.
const DISTURBANCE: f64 = 0.10;

/// Throughput and processor time of bulk transfers through the chain.
///
/// Example: plait bench chain --connections 100 --offloads off --json chain.json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ChainArgs {
    #[command(flatten)]
    rounds: RoundsArgs,
    /// How many connections at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Seconds of each transfer.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Octets of each transfer, over all connections; it still ends after --seconds. All of it counts as steady.
    #[arg(long)]
    octets: Option<u64>,
    /// Who sends: the server (down) or the client (up).
    #[arg(long, value_enum, default_value = "down")]
    direction: Way,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Way {
    Down,
    Up,
}

/// One transfer of one contender. Rates and times are those of its steady part.
#[derive(Clone, Debug, Serialize)]
struct Transfer {
    /// Payload, 10^9 bits per second.
    gbit_per_s: f64,
    /// Octets of the whole transfer, all of them checked.
    octets: u64,
    /// Seconds of the steady part.
    steady_seconds: f64,
    /// Of the proxies, the client and the server together, per 10^9 octets: right whatever else the machine does.
    chain_cpu_s_per_gb: f64,
    /// Of the whole machine: right on a machine that does nothing else.
    machine_cpu_s_per_gb: f64,
    /// Of both proxies.
    proxies_cpu_s_per_gb: Cpu,
    /// Of client and server.
    ends_cpu_s_per_gb: Cpu,
    /// What each link carried, as shares of the whole transfer.
    links: Vec<f64>,
    /// What neither proxies nor ends did, as a share of the machine.
    others: f64,
    /// Of the sending kernel socket.
    congestion_control: String,
}

/// Runs it and prints the table.
pub fn run(args: &ChainArgs) -> io::Result<()> {
    let way = match args.direction {
        Way::Down => "server to client",
        Way::Up => "client to server",
    };
    let (connections, seconds) = (args.connections, args.seconds);
    let amount = args.octets.map_or(String::new(), |octets| format!(" or {octets} octets"));
    let setting = format!(
        "{connections} connection(s), {way}, {seconds} s{amount} each; kernel ends on {CONGESTION}"
    );
    let report = rounds::run(
        &args.rounds,
        "chain",
        setting,
        |chain| transfer(args, chain),
        |t| format!("{:.2} Gbit/s, {:.3} cpu-s/GB", t.gbit_per_s, t.chain_cpu_s_per_gb),
    )?;
    print!("{}", table(&report));
    let panels = [
        report.bars("Gbit/s", |t| t.gbit_per_s),
        report.bars("processor time of proxies and ends, s per GB", |t| t.chain_cpu_s_per_gb),
    ];
    args.rounds.plot(&report, &panels)?;
    report.check()
}

/// Counters at one moment.
struct Sample {
    at: Instant,
    received: u64,
    machine: Cpu,
    proxies: Cpu,
    ends: Cpu,
}

fn transfer(args: &ChainArgs, chain: &Chain) -> io::Result<Transfer> {
    let load = Load {
        target: chain.target,
        server: SocketAddr::new(SERVER, PORT),
        connections: usize::from(args.connections),
        direction: match args.direction {
            Way::Down => Direction::Down,
            Way::Up => Direction::Up,
        },
        octets: args.octets,
    };
    let links_before = chain.link_octets()?;
    let mut running = bulk::start(&chain.net.client, &chain.net.server, load)?;
    running.go();
    let begun = Instant::now();
    let sample = || -> io::Result<Sample> {
        Ok(Sample {
            at: Instant::now(),
            received: running.received(),
            machine: Cpu::of_machine()?,
            proxies: chain.cpu()?,
            ends: Cpu::of_this_process()?,
        })
    };
    let seconds = Duration::from_secs(args.seconds);
    if args.octets.is_none() {
        wait_until(begun + WARM_UP.min(seconds / 4), || running.is_over());
    }
    let from = sample()?;
    wait_until(begun + seconds, || running.is_over());
    let to = sample()?;
    let congestion_control = running.congestion.clone();
    let octets = running.finish()?;
    chain.check_mptcp()?;
    let links = shares(&links_before, &chain.link_octets()?);
    let steady_seconds = (to.at - from.at).as_secs_f64();
    let steady = (to.received - from.received) as f64;
    if steady == 0.0 {
        let error = format!("nothing arrived for {steady_seconds:.1} s, {octets} octets in all");
        return Err(io::Error::new(io::ErrorKind::TimedOut, error));
    }
    let per_gb = 1e9 / steady;
    let machine = to.machine - from.machine;
    let (proxies, ends) = (to.proxies - from.proxies, to.ends - from.ends);
    let others = machine.total() - proxies.total() - ends.total();
    Ok(Transfer {
        gbit_per_s: steady * 8.0 / 1e9 / steady_seconds,
        octets,
        steady_seconds,
        chain_cpu_s_per_gb: (proxies + ends).total() * per_gb,
        machine_cpu_s_per_gb: machine.total() * per_gb,
        proxies_cpu_s_per_gb: proxies.times(per_gb),
        ends_cpu_s_per_gb: ends.times(per_gb),
        links,
        others: others.max(0.0) / (steady_seconds * processors() as f64),
        congestion_control,
    })
}

/// What each link carried between two readings, as shares.
fn shares(before: &[u64], after: &[u64]) -> Vec<f64> {
    let carried: Vec<u64> =
        after.iter().zip(before).map(|(after, before)| after - before).collect();
    let all = carried.iter().sum::<u64>().max(1);
    carried.iter().map(|octets| *octets as f64 / all as f64).collect()
}

fn table(report: &Report<Transfer>) -> String {
    let mut out = report.head();
    let rate = |entry: &Entry<Transfer>| entry.spread(|t| t.gbit_per_s);
    let baseline = report.baseline().and_then(rate);
    let _ = writeln!(
        out,
        "\n{:16} {:>22} {:>8} {:>22} {:>15} {:>7} {:>8} {:>7} {:>8}",
        "",
        "Gbit/s",
        "of none",
        "chain cpu-s/GB",
        "proxies us + sy",
        "ends",
        "machine",
        "others",
        "links %"
    );
    for entry in &report.contenders {
        let Some(rate) = rate(entry) else { continue };
        let of_none =
            baseline.map_or("-".into(), |none| format!("{:.2}", rate.median / none.median));
        let spread = |quantity: fn(&Transfer) -> f64| entry.spread(quantity).unwrap_or_default();
        let median = |quantity: fn(&Transfer) -> f64| spread(quantity).median;
        let proxies = format!(
            "{:.3} + {:.3}",
            median(|t| t.proxies_cpu_s_per_gb.user),
            median(|t| t.proxies_cpu_s_per_gb.system)
        );
        let links: Vec<String> = (0..report.links)
            .filter_map(|link| entry.spread(|t| t.links.get(link).copied().unwrap_or_default()))
            .map(|share| format!("{:.0}", share.median * 100.0))
            .collect();
        let _ = writeln!(
            out,
            "{:16} {:>22} {of_none:>8} {:>22} {proxies:>15} {:>7.3} {:>8.3} {:>5.0} % {:>8}",
            entry.contender.name(),
            rate.show(2),
            spread(|t| t.chain_cpu_s_per_gb).show(3),
            median(|t| t.ends_cpu_s_per_gb.total()),
            median(|t| t.machine_cpu_s_per_gb),
            median(|t| t.others) * 100.0,
            links.join(" : "),
        );
    }
    out.push('\n');
    out += &report.notes();
    if report.contenders.iter().any(|entry| entry.rounds.iter().any(|t| t.others > DISTURBANCE)) {
        out += "Something else kept this machine busy meanwhile: believe ratios only.\n";
    }
    out
}
