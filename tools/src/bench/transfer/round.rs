//! One transfer of one contender over one link, in a topology of its own.
//!
//! ```text
//!  client         umcp                           link              dmcp
//!  eth0 -- lan0 192.168.1.3  wan1 10.0.1.1  -- a  b -- wan1 10.0.1.12   Plait and the kernel
//!                 192.168.1.1       10.0.1.11                           the kernel in Plait's place
//!                            wan1 10.0.1.11                             kernel and kernel: no relay, no client
//! ```
#![forbid(unsafe_code)]

use super::cells::Cell;
use super::relay::KernelRelay;
use crate::appliance::Appliance;
use crate::bench::machine::{Cpu, processors};
use clap::ValueEnum;
use dataplane::control::ask_connections;
use pcap_tests::link::DirectionStats;
use pcap_tests::netns::Namespace;
use pcap_tests::peer::{Capture, counters};
use pcap_tests::topology::{Reference, UMCP_LAN, dmcp_kernel};
use pcap_tests::traffic::{self, Amount, BIN, Direction, Outcome, Transfer};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;
/// Plait's address for the client.
const PLAIT_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 3);
/// More than twice what any cell has under way and queued: no buffer is ever what limits.
const BUFFER: &str = "67108864";
/// A transfer in which nothing arrives for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often Plait is asked for the state of its connection.
const SAMPLE: Duration = Duration::from_millis(100);
/// The steady part of a transfer: from this share of its octets to that.
const STEADY: (f64, f64) = (0.33, 0.95);

/// Whose TCP is at either end of the emulated link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Kernel to kernel.
    Linux,
    /// Plait sends to the kernel; it gets its data from a kernel, over a wire without limits.
    PlaitSends,
    /// The kernel sends to Plait, which passes on what it gets over a wire without limits.
    PlaitReceives,
    /// As `plait-sends` with a relay over kernel sockets in Plait's place.
    RelaySends,
    /// As `plait-receives` with a relay over kernel sockets in Plait's place.
    RelayReceives,
}

impl Contender {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Linux => "linux",
            Contender::PlaitSends => "plait-sends",
            Contender::PlaitReceives => "plait-receives",
            Contender::RelaySends => "relay-sends",
            Contender::RelayReceives => "relay-receives",
        }
    }

    fn direction(self) -> Direction {
        match self {
            Contender::Linux | Contender::PlaitSends | Contender::RelaySends => Direction::Up,
            Contender::PlaitReceives | Contender::RelayReceives => Direction::Down,
        }
    }
}

/// What all transfers have in common.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Of all sockets, and of Plait.
    pub congestion: &'static str,
    /// Where Plait's files go.
    pub directory: &'a Path,
    /// Where captures go, if they are wanted.
    pub captures: Option<&'a Path>,
}

/// What came of a transfer.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Payload over the time from the handshake's end to the last octet, 10^6 bits per second.
    pub goodput: f64,
    /// The same between a third of the octets and 95 %.
    pub steady: f64,
    /// From the handshake's end to the last octet.
    pub seconds: f64,
    /// Longest time in which the receiver's program got nothing.
    pub longest_gap: f64,
    /// Segments that the sender sent again.
    pub retransmitted: u64,
    /// Its timeouts.
    pub timeouts: u64,
    /// What the link did to data and to ACKs.
    pub link: [DirectionStats; 2],
    /// What the sending kernel counted, zeros left out.
    pub sending_kernel: BTreeMap<String, u64>,
    /// What the receiving kernel counted, zeros left out.
    pub receiving_kernel: BTreeMap<String, u64>,
    /// What Plait last said of its connection over the link.
    pub plait: Map<String, Value>,
    /// How busy the machine was.
    pub machine: f64,
}

/// Makes the transfer; `seed` decides what the link does to which packet with data.
pub fn run(
    who: Contender,
    cell: &Cell,
    octets: u64,
    seed: u64,
    setting: Setting<'_>,
) -> io::Result<Round> {
    let [data, acks] = cell.profiles();
    let (profiles, seed) = match who.direction() {
        Direction::Up => ([data, acks], seed),
        Direction::Down => ([acks, data], !seed), // the same numbers for the data
    };
    let mut net = Reference::build_seeded(&[profiles], seed)?;
    prepare(&net)?;
    let capture = capture(&net, who, &cell.name, setting)?;
    let server = SocketAddr::new(dmcp_kernel(0), PORT);
    let before = (Cpu::of_machine()?, Instant::now());
    let transfer = Transfer {
        congestion: Some(setting.congestion),
        patience: PATIENCE,
        ..Transfer::tcp(server, who.direction(), Amount::Octets(octets))
    };
    let (outcome, plait) = match who {
        Contender::Linux => (traffic::run(&net.umcp, &net.dmcp, transfer)?, Map::new()),
        Contender::PlaitSends | Contender::PlaitReceives => through_plait(&net, transfer, setting)?,
        Contender::RelaySends | Contender::RelayReceives => {
            (through_kernel(&net, transfer, setting)?, Map::new())
        }
    };
    let busy = (Cpu::of_machine()? - before.0).total() / before.1.elapsed().as_secs_f64();
    capture.map(Capture::finish).transpose()?;
    check(&outcome, octets, setting.congestion)?;
    let [there, back] = net.links.remove(0).stop()?;
    let (sender, receiver, link) = match who.direction() {
        Direction::Up => (&net.umcp, &net.dmcp, [there, back]),
        Direction::Down => (&net.dmcp, &net.umcp, [back, there]),
    };
    let (sending, receiving) = (counted(sender)?, counted(receiver)?);
    let (retransmitted, timeouts) = match who {
        Contender::PlaitSends => plait_recovery(&plait),
        _ => kernel_recovery(&sending),
    };
    let seconds = outcome.transferring.as_secs_f64();
    Ok(Round {
        goodput: octets as f64 * 8.0 / 1e6 / seconds,
        steady: steady(&outcome),
        seconds,
        longest_gap: outcome.longest_gap.as_secs_f64(),
        retransmitted,
        timeouts,
        link,
        sending_kernel: sending,
        receiving_kernel: receiving,
        plait,
        machine: busy / processors() as f64,
    })
}

/// No buffer limits, and nothing is known of earlier connections.
fn prepare(net: &Reference) -> io::Result<()> {
    for host in [&net.client, &net.umcp, &net.dmcp] {
        let sizes = format!("4096 131072 {BUFFER}");
        host.set_sysctl("net.ipv4.tcp_rmem", &sizes)?;
        host.set_sysctl("net.ipv4.tcp_wmem", &sizes)?;
        host.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
    }
    net.set_forwarding(false)
}

/// On the device of the link's near end.
fn capture(
    net: &Reference,
    who: Contender,
    cell: &str,
    setting: Setting<'_>,
) -> io::Result<Option<Capture>> {
    let Some(directory) = setting.captures else { return Ok(None) };
    let start = |namespace: &Namespace, side: &str| {
        let file: PathBuf = directory.join(format!("{cell}-{}-{side}.pcap", who.name()));
        Capture::start(namespace, "wan1", &file)
    };
    match who.direction() {
        Direction::Up => start(&net.umcp, "sender"),
        Direction::Down => start(&net.dmcp, "sender"),
    }
}

fn through_plait(
    net: &Reference,
    transfer: Transfer,
    setting: Setting<'_>,
) -> io::Result<(Outcome, Map<String, Value>)> {
    let config = config(setting, transfer.server);
    let mut plait = Appliance::start(&net.umcp, &config, setting.directory)?;
    let sampler = Sampler::start(plait.control())?;
    let through = Some(SocketAddr::new(PLAIT_LAN.into(), PORT));
    let outcome = traffic::run(&net.client, &net.dmcp, Transfer { through, ..transfer });
    plait.check_alive()?;
    let explain = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{error}\n{}\n{}", plait.last_words(), plait.counters()),
        )
    };
    Ok((outcome.map_err(explain)?, sampler.finish()))
}

fn through_kernel(
    net: &Reference,
    transfer: Transfer,
    setting: Setting<'_>,
) -> io::Result<Outcome> {
    let at = SocketAddr::new(UMCP_LAN, PORT);
    let relay = KernelRelay::start(&net.umcp, at, transfer.server, setting.congestion)?;
    let through = Some(at);
    let outcome = traffic::run(&net.client, &net.dmcp, Transfer { through, ..transfer })?;
    let connecting = relay.finish()?;
    // It accepts before it connects: a client that sends has been told too early.
    let early = if transfer.direction == Direction::Up { connecting } else { Duration::ZERO };
    Ok(Outcome { transferring: outcome.transferring.saturating_sub(early), ..outcome })
}

fn config(setting: Setting<'_>, server: SocketAddr) -> String {
    format!(
        "[node]\nname = \"umcp\"\ncontrol = \"{}\"\nworkers = 1\n\
         [[port]]\nname = \"lan\"\ndevice = \"lan0\"\nio = \"af-packet\"\naddresses = [\"{PLAIT_LAN}/24\"]\n\
         [[port]]\nname = \"wan\"\ndevice = \"wan1\"\nio = \"af-packet\"\naddresses = [\"10.0.1.1/24\"]\n\
         [[service]]\nmode = \"relay\"\nlisten = \"{PLAIT_LAN}:{PORT}\"\nserver = \"{server}\"\nconnect = \"tcp\"\n\
         [convert]\nsource-addresses = [\"10.0.1.1\"]\n\
         [tcp]\ncongestion-control = \"{}\"\n\
         [limits]\nbuffer = \"64MiB\"\npool = \"1GiB\"\n",
        setting.directory.join("umcp.sock").display(),
        setting.congestion,
    )
}

fn check(outcome: &Outcome, octets: u64, congestion: &str) -> io::Result<()> {
    if outcome.congestion != congestion {
        let error = format!("the kernel sent with {}, not {congestion}", outcome.congestion);
        return Err(io::Error::other(error));
    }
    if !outcome.intact() || outcome.received != octets {
        return Err(io::Error::other(format!("wrong octets: {outcome:?}")));
    }
    Ok(())
}

/// 10^6 bits per second between the two shares of [`STEADY`], by whole bins of the receiver.
fn steady(outcome: &Outcome) -> f64 {
    let mut so_far = 0;
    let sums: Vec<u64> = outcome
        .bins
        .iter()
        .map(|octets| {
            so_far += octets;
            so_far
        })
        .collect();
    let bin_of = |share: f64| sums.partition_point(|sum| (*sum as f64) < so_far as f64 * share);
    let (from, to) = (bin_of(STEADY.0), bin_of(STEADY.1));
    let octets = sums.get(to).unwrap_or(&so_far) - sums.get(from).unwrap_or(&0);
    octets as f64 * 8.0 / 1e6 / ((to - from).max(1) as f64 * BIN.as_secs_f64())
}

/// What `nstat` would show of TCP.
fn counted(namespace: &Namespace) -> io::Result<BTreeMap<String, u64>> {
    let all = counters(namespace)?;
    let of_tcp = |name: &str| {
        name.starts_with("TcpExt") || ["TcpRetransSegs", "TcpInSegs", "TcpOutSegs"].contains(&name)
    };
    Ok(all.into_iter().filter(|(name, count)| *count > 0 && of_tcp(name)).collect())
}

fn kernel_recovery(counters: &BTreeMap<String, u64>) -> (u64, u64) {
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    (count("TcpRetransSegs"), count("TcpExtTCPTimeouts"))
}

fn plait_recovery(info: &Map<String, Value>) -> (u64, u64) {
    let count = |name: &str| info.get(name).and_then(Value::as_u64).unwrap_or(0);
    (count("bytes_retrans").div_ceil(count("mss").max(1)), count("rto_count"))
}

/// Asks Plait for its connection until told to stop; the last answer counts.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Map<String, Value>>,
}

impl Sampler {
    fn start(control: &Path) -> io::Result<Sampler> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, control) = (Arc::clone(&stop), control.to_owned());
        let thread = thread::Builder::new().name("sampler".into()).spawn(move || {
            let mut last = Map::new();
            while !stopped.load(Ordering::Acquire) {
                if let Ok(Some(row)) = ask_connections(&control).map(|mut rows| rows.pop()) {
                    last = row.far.info;
                }
                thread::sleep(SAMPLE);
            }
            last
        })?;
        Ok(Sampler { stop, thread })
    }

    fn finish(self) -> Map<String, Value> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::config::Config;

    #[test]
    fn the_relays_configuration_is_valid() {
        let directory = Path::new("/tmp/bench");
        let setting = Setting { congestion: "cubic", directory, captures: None };
        let text = config(setting, SocketAddr::new(dmcp_kernel(0), PORT));
        let config = Config::parse("relay.toml", &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert!(config.warnings.is_none(), "{:?}", config.warnings);
    }
}
