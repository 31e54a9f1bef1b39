//! Opening what a worker needs, from its configuration.
#![forbid(unsafe_code)]

use super::choose::{Opened, choose, umem};
use super::cross::Crew;
use super::lost::{Devices, Watch, index};
use super::{Command, Engine, Io, PortConfig, PortSlot, Worker, WorkerConfig, WorkerStats};
use crate::neighbor::{Identity, Neighbors};
use crate::port::{
    Device, KernelPath, LinkMonitor, Patience, PortError, PortStats, Share, Umem, kernel_addresses,
};
use crate::route::{Route, Routes};
use crate::steer::{SteerRule, Steering};
use crossbeam::channel::Receiver;
use stack::buf::Pool;
use stack::time::Instant;
use stack::wire::Prefix;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A port cannot be opened.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A port cannot be driven as configured.
    #[error("port {port}: io = \"{}\": {error}; {help}", io.as_str())]
    Refused {
        /// Its name.
        port: String,
        /// How it was to be driven.
        io: Io,
        /// Why it cannot be.
        #[source]
        error: PortError,
        /// What to do.
        help: &'static str,
    },
    /// Something that is no port failed.
    #[error("{step}: {error}")]
    System {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The worker's thread ended before it was ready.
    #[error("the worker's thread ended while it was starting")]
    Died,
}

/// What a worker is told and asked through.
pub(super) struct Reins<E> {
    pub(super) commands: Receiver<Command<E>>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) crew: Crew,
    /// Of each port.
    pub(super) shares: Vec<Share>,
}

impl<E: Engine> Worker<E> {
    /// Opens the ports of `config`, in its network namespace, and builds the engine over the pool.
    pub(super) fn open(
        config: WorkerConfig,
        reins: Reins<E>,
        build: impl FnOnce(&Pool) -> E,
    ) -> Result<Worker<E>, SetupError> {
        let pool = Pool::new(config.frames, config.frame_size);
        let monitor = LinkMonitor::new().map_err(|error| SetupError::System {
            step: "listening to changes of devices",
            error,
        })?;
        let kernel = kernel_addresses().map_err(|error| SetupError::System {
            step: "listing the kernel's addresses",
            error,
        })?;
        let umem = umem(&config, &pool);
        let mut warnings = Vec::new();
        let mut ports = Vec::new();
        let mut identities = Vec::new();
        let Reins { commands, stop, crew, shares } = reins;
        for ((number, port), share) in config.ports.iter().enumerate().zip(shares) {
            let mut owned = port.owned.clone();
            owned.extend(link_local(&config, number, &kernel)?);
            let identity = owned.clone();
            let wanted = (port.clone(), owned, share);
            let (slot, new) = open_port(wanted, &kernel, umem.as_ref(), Patience::Seconds)?;
            warnings.extend(new);
            identities.push(Identity { mac: slot.mac, owned: identity });
            ports.push(slot);
        }
        if let Some(umem) = &umem {
            umem.set_patience(Patience::None); // from now on there is work to do meanwhile
        }
        let kernel_share = crew.share();
        let kernel_path =
            config.tun.as_deref().and_then(|name| match KernelPath::open(name, &kernel_share) {
                Ok(path) => {
                    warnings.extend(path.warnings());
                    Some(path)
                }
                Err(error) => {
                    warnings.push(format!("{name}: unclaimed packets are dropped: {error}"));
                    None
                }
            });
        let mut neighbors = Neighbors::new(identities);
        if crew.number == 0 {
            neighbors.announce(); // once is enough
        }
        let mut worker = Worker {
            engine: build(&pool),
            pool,
            ports,
            neighbors,
            routes: routes(&config, &kernel),
            kernel_path,
            devices: Devices { monitor, noticed: false, look_at: Instant::ZERO, umem, kernel },
            commands,
            crew,
            stop,
            io_mode: config.io_mode,
            warnings,
            stats: WorkerStats::default(),
            frames: Vec::new(),
            received: Vec::new(),
            crossed: Vec::new(),
            away: Vec::new(),
            sending: Vec::new(),
        };
        worker.tell_mtus();
        Ok(worker)
    }
}

/// The address that a port asks its IPv6 neighbours from, where it owns no other: solicitations need one whose answers
/// come to us. Derived from the MAC as in RFC 4291 2.5.1, but never equal to the kernel's own.
fn link_local(
    config: &WorkerConfig,
    number: usize,
    kernel: &[(String, IpAddr, u8)],
) -> Result<Option<Prefix>, SetupError> {
    let Some(port) = config.ports.get(number) else { return Ok(None) };
    let routed = config.routes.iter().any(|route| route.port == number && route.to.addr.is_ipv6());
    let used = port.owned.iter().any(|prefix| prefix.addr.is_ipv6())
        || port.gateways.iter().any(IpAddr::is_ipv6)
        || routed
        || kernel.iter().any(|(device, addr, _)| {
            *device == port.device && matches!(addr, IpAddr::V6(a) if !a.is_unicast_link_local())
        });
    if !used || port.io == Some(Io::Tun) {
        return Ok(None);
    }
    let device = match Device::query(&port.device) {
        Ok(device) => device,
        Err(_) if port.io == Some(Io::Tap) => return Ok(None), // about to be made: it has no address yet
        Err(error) => return Err(PortError::Device { device: port.device.clone(), error }.into()),
    };
    let [a, b, c, d, e, f] = device.mac;
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfd, d, e, f];
    Ok(Some(Prefix { addr: octets.into(), len: 64 }))
}

/// The steering rules of a port: as configured, its own addresses, and not what the kernel owns.
fn steering(port: &PortConfig, owned: &[Prefix], kernel: &[(String, IpAddr, u8)]) -> Steering {
    let mut steering = port.steering.clone();
    let owned = owned.iter().map(|prefix| SteerRule::Owned(prefix.addr));
    steering.rules.splice(0..0, owned);
    steering.except.extend(kernel.iter().map(|(_, addr, _)| *addr));
    steering.except.sort();
    steering.except.dedup();
    steering
}

/// Opens a worker's share of a port that owns these addresses; with it come warnings.
pub(super) fn open_port(
    (config, owned, share): (PortConfig, Vec<Prefix>, Share),
    kernel: &[(String, IpAddr, u8)],
    umem: Option<&Rc<Umem>>,
    patience: Patience,
) -> Result<(PortSlot, Vec<String>), SetupError> {
    let steering = steering(&config, &owned, kernel);
    let Opened { port, io, why, warnings } = choose(&config, &steering, (umem, &share), patience)?;
    let slot = PortSlot {
        name: config.name.clone(),
        device: config.device.clone(),
        io,
        why,
        mac: port.mac(),
        capabilities: port.capabilities(),
        port,
        intercepts: steering.rules.iter().any(|r| matches!(r, SteerRule::TcpTo { .. })),
        pending: Vec::new(),
        watch: Watch {
            index: index(&config.device),
            config,
            owned,
            share,
            past: PortStats::default(),
            lost: None,
        },
    };
    Ok((slot, warnings))
}

/// Static routes, networks of owned and of the kernel's addresses, default gateways.
fn routes(config: &WorkerConfig, kernel: &[(String, IpAddr, u8)]) -> Routes {
    let mut owned = Vec::new();
    let mut table: Vec<Route> = config
        .routes
        .iter()
        .map(|route| Route { to: route.to, port: route.port as u16, via: route.via })
        .collect();
    for (number, port) in (0u16..).zip(&config.ports) {
        for prefix in &port.owned {
            owned.push((prefix.addr, number));
            table.push(Route { to: *prefix, port: number, via: None });
        }
        for (_, addr, len) in kernel.iter().filter(|(device, ..)| *device == port.device) {
            let to = Prefix { addr: *addr, len: *len };
            table.push(Route { to, port: number, via: None });
        }
        for gateway in &port.gateways {
            let all = match gateway {
                IpAddr::V4(_) => IpAddr::from([0; 4]),
                IpAddr::V6(_) => IpAddr::from([0; 16]),
            };
            let to = Prefix { addr: all, len: 0 };
            table.push(Route { to, port: number, via: Some(*gateway) });
        }
    }
    Routes::new(owned, table)
}
