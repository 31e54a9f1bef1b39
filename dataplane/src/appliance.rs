//! An appliance: a configuration made into running workers with a control socket.
#![forbid(unsafe_code)]

mod answers;
mod bridges;
mod reload;

pub use bridges::Bridges;
pub use reload::{ReloadError, Reloader};

use crate::config::Config;
use crate::config::crew::NoSuchCore;
use crate::config::schema::PortIo;
use crate::control::server::{ControlError, ControlServer};
use crate::port::Device;
use crate::run::{Io, Running, SetupError, WorkerConfig, WorkerLink, start_all};
use answers::Answers;
use bridges::Plan;
use stack::rng::Rng;
use stack::shard::Homes;
use std::fs;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::{Arc, RwLock};
use std::thread::{self, JoinHandle};
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
    /// A worker cannot run where it is to.
    #[error(transparent)]
    Core(#[from] NoSuchCore),
    /// A worker cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The control socket cannot be served.
    #[error("control socket: {0}")]
    Control(#[from] ControlError),
    /// A worker's thread ended on its own.
    #[error("a worker failed; this is a fault of Plait: please report the message above")]
    Died,
}

/// Plait, running.
pub struct Appliance {
    /// Of the first worker: what stops one stops all.
    link: WorkerLink<Bridges>,
    threads: Vec<JoinHandle<()>>,
    control: ControlServer,
    reloader: Reloader,
}

/// Stops an appliance from another thread.
#[derive(Clone)]
pub struct Stopper(WorkerLink<Bridges>);

impl Stopper {
    /// Makes the workers end after their current turn.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Appliance {
    /// Starts the workers and the control socket of `config`, in the calling thread's network namespace.
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
        let cores = places(&config)?;
        let running = start_workers(&config, &cores)?;
        let mut told: Vec<&String> = Vec::new();
        for warning in running.iter().flat_map(|worker| &worker.warnings) {
            if !told.contains(&warning) {
                warn!("{warning}");
                told.push(warning);
            }
        }
        let (links, threads): (Vec<_>, Vec<_>) =
            running.into_iter().map(|worker| (worker.link, worker.thread)).unzip();
        let Some(link) = links.first().cloned() else { return Err(ApplianceError::Died) };
        let workers = links.len();
        let (name, path) = (config.name.clone(), config.control.clone());
        let taken = Arc::new(config.worker.ports.clone());
        let config = Arc::new(RwLock::new(config));
        let answers = Arc::new(Answers { links: links.clone(), cores, config: config.clone() });
        let reloader = Reloader { links, config, taken };
        let control = match ControlServer::start(&path, answers) {
            Ok(control) => control,
            Err(error) => {
                link.stop();
                threads.into_iter().for_each(|thread| drop(thread.join()));
                return Err(error.into());
            }
        };
        info!(node = name, workers, control = %path.display(), "running");
        Ok(Appliance { link, threads, control, reloader })
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
    /// If a worker had failed before.
    pub fn stop(self) -> Result<(), ApplianceError> {
        self.link.stop();
        self.join()
    }

    /// Waits until it has been stopped; then the control socket is gone.
    ///
    /// # Errors
    /// If a worker failed.
    pub fn join(self) -> Result<(), ApplianceError> {
        let failed = self.threads.into_iter().filter_map(|thread| thread.join().err()).count();
        drop(self.control);
        if failed > 0 { Err(ApplianceError::Died) } else { Ok(()) }
    }
}

/// The core of each worker.
fn places(config: &Config) -> Result<Vec<Option<usize>>, NoSuchCore> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let allowed: Vec<usize> = cores.into_iter().map(|core| core.id).collect();
    // Where CPU time is rationed (a container's quota), fewer are of use than there are cores.
    let paid = thread::available_parallelism().map_or(1, NonZero::get) as u32;
    config.crew.places(&allowed, config.pool.feeds().min(paid.saturating_sub(1)))
}

fn start_workers(
    config: &Config,
    cores: &[Option<usize>],
) -> Result<Vec<Running<Bridges>>, ApplianceError> {
    let rng = || seed().map(Rng::from_seed).map_err(ApplianceError::Entropy);
    let workers = cores.len() as u32;
    let mut common = rng()?;
    let homes = Homes { shards: workers, key: common.u32() };
    let plan = Plan::new(config, homes, &mut common);
    let frames = config.pool.frames(workers);
    let mut members = Vec::new();
    for (index, core) in (0..).zip(cores) {
        let (plan, rng) = (plan.clone(), rng()?);
        let worker = WorkerConfig { core: *core, frames, ..config.worker.clone() };
        members.push((worker, move |pool: &_| Bridges::new(plan, index, pool, rng)));
    }
    Ok(start_all(&config.name, homes, members)?)
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
}
