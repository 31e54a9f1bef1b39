//! An appliance: a configuration made into a running worker with a control socket.
#![forbid(unsafe_code)]

mod reload;

pub use reload::{ReloadError, Reloader};

use crate::config::schema::PortIo;
use crate::config::value::show;
use crate::config::{Config, MssRule};
use crate::control::server::{ControlError, ControlServer, Source};
use crate::control::{MAX_ROWS, Page, PortRow, Reply, Request, RuleRow, Show, connection_row};
use crate::metrics::{self, Counted, Metrics};
use crate::port::{Device, PortStats};
use crate::run::{Engine, Io, PortInfo, SetupError, WorkerLink, start};
use stack::buf::Pool;
use stack::mcp::{Action, Bridge, ConnectionInfo, McpConfig, SourceMode};
use stack::rng::Rng;
use stack::shard::{Shard, ShardConfig};
use stack::time::Instant;
use stack::wire::{RxPacket, TxPacket, Unreachable};
use std::fs;
use std::io::{self, Read};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use tracing::{info, warn};

/// Linux's numbers for the capabilities that ports need (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Why an appliance does not start, or ended. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// A device cannot be found.
    #[error(
        "port {port}: device {device}: {error}; `ip link` lists the devices, port.device names one"
    )]
    Device {
        /// The port's name.
        port: String,
        /// The device's name.
        device: String,
        /// What the system said.
        error: io::Error,
    },
    /// The process may not do what it must.
    #[error(
        "{missing} missing: run as root, or give the program these capabilities (docs/OPERATIONS.md)"
    )]
    Privilege {
        /// The capabilities, such as `CAP_NET_RAW`.
        missing: String,
    },
    /// There is no randomness to draw keys from.
    #[error("/dev/urandom: {0}; Plait draws keys and sequence numbers from it")]
    Entropy(io::Error),
    /// A worker cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The control socket cannot be served.
    #[error("control socket: {0}")]
    Control(#[from] ControlError),
    /// The worker's thread ended on its own.
    #[error("the worker failed; this is a fault of Plait: please report the message above")]
    Died,
}

/// The protocol side of a worker.
pub struct Bridges {
    shard: Shard<Bridge>,
    mss: MssRule,
    /// Of the devices, as they are.
    mtus: Vec<u32>,
    /// The last instant the shard was told, for ages of connections.
    now: Instant,
}

impl Engine for Bridges {
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        self.now = now;
        self.shard.ingest(rx, now);
    }

    fn expire(&mut self, now: Instant) {
        self.shard.expire(now);
    }

    fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, now: Instant) {
        self.shard.transmit(tx, budget, now);
    }

    fn on_unreachable(&mut self, packet: &TxPacket, why: Unreachable, now: Instant) {
        self.shard.on_unreachable(packet, why, now);
    }

    fn on_mtus(&mut self, mtus: &[u32]) {
        mtus.clone_into(&mut self.mtus);
        self.shard.config_mut().set_mss(self.mss.mss(mtus));
    }

    fn deadline(&self) -> Option<Instant> {
        self.shard.deadline()
    }

    fn passed(&mut self, out: &mut Vec<RxPacket>) {
        out.extend(self.shard.passed());
    }
}

impl Bridges {
    /// A shard alone over `pool`, which owns what `owned` lists.
    fn new(
        (mcp, mss): (McpConfig, MssRule),
        owned: Vec<std::net::IpAddr>,
        pool: &Pool,
        rng: Rng,
    ) -> Bridges {
        let config = ShardConfig { owned, ..ShardConfig::default() };
        Bridges {
            shard: Shard::new(config, mcp, pool.clone(), rng),
            mss,
            mtus: Vec::new(),
            now: Instant::ZERO,
        }
    }

    /// Opens connections by these from now on.
    fn reconfigure(&mut self, mcp: McpConfig, mss: MssRule) {
        self.mss = mss;
        let shared = self.shard.config_mut();
        shared.reconfigure(mcp);
        shared.set_mss(self.mss.mss(&self.mtus));
    }

    /// Connections `offset` and following, at most [`MAX_ROWS`], and where to go on.
    fn connections(&self, offset: usize) -> (Vec<ConnectionInfo>, Option<usize>) {
        let config = self.shard.config();
        let rows: Vec<ConnectionInfo> = self
            .shard
            .sessions()
            .skip(offset)
            .take(MAX_ROWS)
            .map(|bridge| bridge.info(config, self.now))
            .collect();
        let next = (rows.len() == MAX_ROWS).then_some(offset + MAX_ROWS);
        (rows, next)
    }
}

impl Counted for Bridges {
    fn metrics(&self) -> Metrics {
        let mut metrics: Metrics =
            self.shard.counters().entries().map(|(n, v)| (n.to_owned(), v)).collect();
        // What MPTCP and the shard both count is added up under MPTCP's name.
        for (name, value) in self.shard.config().mptcp_counters().entries() {
            let both = metrics.remove(name).unwrap_or(0) + value;
            metrics.insert(format!("MPTcpExt{name}"), both);
        }
        metrics
    }
}

/// Plait, running.
pub struct Appliance {
    link: WorkerLink<Bridges>,
    thread: JoinHandle<()>,
    control: ControlServer,
    reloader: Reloader,
}

/// Stops an appliance from another thread.
#[derive(Clone)]
pub struct Stopper(WorkerLink<Bridges>);

impl Stopper {
    /// Makes the worker end after its current turn.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Appliance {
    /// Starts the worker and the control socket of `config`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// If a device is missing, a capability, or anything cannot be set up; nothing is left behind then.
    pub fn start(config: Config) -> Result<Appliance, ApplianceError> {
        check_capabilities(&config)?;
        for port in &config.worker.ports {
            let made_when_opened = matches!(port.io, Some(Io::Tap | Io::Tun));
            if let (false, Err(error)) = (made_when_opened, Device::query(&port.device)) {
                let (port, device) = (port.name.clone(), port.device.clone());
                return Err(ApplianceError::Device { port, device, error });
            }
        }
        let rng = Rng::from_seed(seed().map_err(ApplianceError::Entropy)?);
        let owned =
            config.worker.ports.iter().flat_map(|p| p.owned.iter().map(|o| o.addr)).collect();
        let told = (config.mcp.clone(), config.mss.clone());
        let running = start(&config.name, config.worker.clone(), move |pool| {
            Bridges::new(told, owned, pool, rng)
        })?;
        for warning in &running.warnings {
            warn!("{warning}");
        }
        let (name, path) = (config.name.clone(), config.control.clone());
        let taken = Arc::new(config.worker.ports.clone());
        let config = Arc::new(RwLock::new(config));
        let answers = Arc::new(Answers { link: running.link.clone(), config: config.clone() });
        let reloader = Reloader { links: vec![running.link.clone()], config, taken };
        let control = match ControlServer::start(&path, answers) {
            Ok(control) => control,
            Err(error) => {
                running.link.stop();
                let _ = running.thread.join();
                return Err(error.into());
            }
        };
        info!(node = name, control = %path.display(), "running");
        Ok(Appliance { link: running.link, thread: running.thread, control, reloader })
    }

    /// What stops it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.link.clone())
    }

    /// What gives it another configuration.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Stops it and waits until it is gone. Connections are cut; traffic goes on through the kernel.
    ///
    /// # Errors
    /// If the worker had failed before.
    pub fn stop(self) -> Result<(), ApplianceError> {
        self.link.stop();
        self.join()
    }

    /// Waits until it has been stopped; then the control socket is gone.
    ///
    /// # Errors
    /// If the worker failed.
    pub fn join(self) -> Result<(), ApplianceError> {
        let ended = self.thread.join();
        drop(self.control);
        ended.map_err(|_| ApplianceError::Died)
    }
}

/// Answers of a running worker.
struct Answers {
    link: WorkerLink<Bridges>,
    config: Arc<RwLock<Config>>,
}

impl Source for Answers {
    fn answer(&self, request: Request) -> Reply {
        let reply = match request.show {
            Show::Connections => {
                // Rows are made here: the worker only gives copies.
                let page = self.link.ask(move |worker| worker.engine.connections(request.offset));
                page.map(|(infos, next)| {
                    let rows = infos.iter().map(connection_row).collect();
                    Reply::Connections(Page { rows, next })
                })
            }
            Show::Ports => {
                let infos = self.link.ask(|worker| worker.port_infos().collect::<Vec<_>>());
                infos.map(|infos| Reply::Ports(infos.into_iter().map(port_row).collect()))
            }
            Show::Counters => self.link.ask(|worker| metrics::collect(worker)).map(Reply::Counters),
            Show::Rules => {
                let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
                Some(Reply::Rules(rules(&config.mcp)))
            }
        };
        reply.unwrap_or_else(|| Reply::Error("the worker has ended; look at the log".to_owned()))
    }
}

fn port_row(info: PortInfo) -> PortRow {
    let can = info.capabilities;
    let features = [
        ("tso", can.segmentation),
        ("tx-checksum", can.checksum_offload),
        ("gro", can.super_frames_in),
        ("zero-copy", can.zero_copy),
    ];
    PortRow {
        name: info.name,
        device: info.device,
        io: info.io.as_str().to_owned(),
        why: info.why,
        mtu: can.mtu,
        features: features.iter().filter(|f| f.1).map(|f| f.0.to_owned()).collect(),
        counters: port_counters(&info.stats),
    }
}

fn port_counters(stats: &PortStats) -> Metrics {
    let PortStats {
        rx_frames,
        rx_octets,
        rx_dropped,
        tx_frames,
        tx_octets,
        tx_dropped,
        tx_full,
        tx_uncopied,
        lost,
        reopened,
    } = *stats;
    [
        ("rx_frames", rx_frames),
        ("rx_octets", rx_octets),
        ("rx_dropped", rx_dropped),
        ("tx_frames", tx_frames),
        ("tx_octets", tx_octets),
        ("tx_dropped", tx_dropped),
        ("tx_full", tx_full),
        ("tx_uncopied", tx_uncopied),
        ("lost", lost),
        ("reopened", reopened),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn rules(mcp: &McpConfig) -> Vec<RuleRow> {
    let source = |source: &SourceMode| match source {
        SourceMode::Keep => "source keep",
        SourceMode::Replace => "source replace",
    };
    let row = |rule: &stack::mcp::Rule| {
        let prefix = |p: &Option<_>| p.as_ref().map_or("any".to_owned(), show);
        let (first, last) = (rule.ports.start(), rule.ports.end());
        RuleRow {
            name: rule.name.clone(),
            matches: format!(
                "from {} to {} tcp-ports {first}-{last}",
                prefix(&rule.from),
                prefix(&rule.to)
            ),
            action: match &rule.action {
                Action::Convert { remote, source: s } => {
                    let remote = mcp.remotes.get(*remote).map_or("", |r| r.name.as_str());
                    format!("convert remote {remote} {}", source(s))
                }
                Action::Direct { source: s } => format!("direct {}", source(s)),
                Action::Terminate { source: s } => format!("terminate {}", source(s)),
                Action::Bypass => "bypass".to_owned(),
                Action::Reject => "reject".to_owned(),
            },
        }
    };
    mcp.rules.iter().map(row).collect()
}

/// 32 octets that nobody can guess.
fn seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Says before anything is touched which capability the ports will miss.
fn check_capabilities(config: &Config) -> Result<(), ApplianceError> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&status) else { return Ok(()) };
    let xdp = config.file.ports.iter().any(|p| p.get_ref().io == PortIo::AfXdp);
    let missing = missing_capabilities(effective, xdp);
    if missing.is_empty() {
        return Ok(());
    }
    Err(ApplianceError::Privilege { missing: missing.join(", ") })
}

/// The `CapEff` line of a `/proc/.../status`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing_capabilities(effective: u64, xdp: bool) -> Vec<&'static str> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    let mut missing = Vec::new();
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if !has(CAP_NET_RAW) {
        missing.push("CAP_NET_RAW");
    }
    if xdp && !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF (for io = \"af-xdp\")");
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_proc() {
        let status = "Name:\tplait\nCapInh:\t0000000000000000\nCapEff:\t0000000000003000\n";
        assert_eq!(effective_capabilities(status), Some(0x3000));
        assert_eq!(effective_capabilities("Name:\tplait\n"), None);
        assert!(missing_capabilities(0x3000, false).is_empty());
        assert_eq!(missing_capabilities(0x3000, true), ["CAP_BPF (for io = \"af-xdp\")"]);
        assert!(missing_capabilities(0x3000 | 1 << CAP_SYS_ADMIN, true).is_empty());
        assert_eq!(missing_capabilities(0, false), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }

    #[test]
    fn a_missing_device_is_named_with_what_to_do() {
        let text = "[[port]]\nname = \"lan\"\ndevice = \"nosuchdev0\"\nio = \"af-packet\"\n\
                    [[rule]]\nname = \"all\"\nport = \"lan\"\naction = \"reject\"\n";
        let config = Config::parse("plait.toml", text).unwrap();
        let Err(error) = Appliance::start(config) else { panic!("started without a device") };
        let error = error.to_string();
        let without_root = error.contains("run as root");
        assert!(without_root || error.contains("port lan: device nosuchdev0"), "{error}");
    }

    #[test]
    fn rules_are_shown_as_they_apply() {
        let text = "[[port]]\nname = \"lan\"\ndevice = \"lan0\"\naddresses = [\"10.0.0.1/24\"]\n\
                    [[rule]]\nname = \"ssh\"\nport = \"lan\"\ntcp-ports = \"22\"\naction = \"bypass\"\n\
                    [[rule]]\nname = \"all\"\nport = \"lan\"\nfrom = \"10.0.0.0/24\"\naction = \"terminate\"\n";
        let config = Config::parse("plait.toml", text).unwrap();
        let rows = rules(&config.mcp);
        assert_eq!(rows[0].matches, "from any to any tcp-ports 22-22");
        assert_eq!(rows[1].matches, "from 10.0.0.0/24 to any tcp-ports 1-65535");
        assert_eq!(rows[1].action, "terminate source replace");
    }
}
