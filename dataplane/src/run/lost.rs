//! Ports whose device goes away and comes back, or changes its MTU.
//!
//! A link that only goes down keeps its port: the sockets live on. A device that is removed takes them along; the port is
//! opened again when there is a device of that name, and everything that goes through the other ports goes on meanwhile.
#![forbid(unsafe_code)]

use super::open::open_port;
use super::{Engine, PortConfig, Worker};
use crate::port::{Device, GonePort, LinkMonitor, Patience, PortStats, Share, Umem};
use stack::time::{Duration, Instant, earliest};
use stack::wire::Prefix;
use std::net::IpAddr;
use std::rc::Rc;
use tracing::{info, warn};

/// How often a worker that never sleeps asks for changes of devices.
const LOOK: Duration = Duration::from_millis(100);
/// Between the first two attempts to open a port again; then twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest time between two attempts, a change of any device apart.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// What all ports need to be opened again.
pub(super) struct Devices {
    pub(super) monitor: LinkMonitor,
    /// The monitor has something to say.
    pub(super) noticed: bool,
    pub(super) look_at: Instant,
    pub(super) umem: Option<Rc<Umem>>,
    /// The kernel's addresses at the start: what has none yet when it comes back will have them again.
    pub(super) kernel: Vec<(String, IpAddr, u8)>,
}

/// What one port needs to be opened again.
pub(super) struct Watch {
    pub(super) config: PortConfig,
    /// Addresses that Plait owns there.
    pub(super) owned: Vec<Prefix>,
    /// What it has in common with other workers' ports on the device.
    pub(super) share: Share,
    /// The device's index: another one is another device.
    pub(super) index: Option<u32>,
    /// Counters of those that are gone.
    pub(super) past: PortStats,
    /// Its device is away.
    pub(super) lost: Option<Lost>,
}

pub(super) struct Lost {
    retry_at: Instant,
    wait: Duration,
    /// Why it cannot be opened though its device is there was logged.
    told: bool,
}

/// The index of a device of this name, if there is one.
pub(super) fn index(device: &str) -> Option<u32> {
    Device::query(device).ok().map(|device| device.index)
}

impl<E: Engine> Worker<E> {
    /// Looks after devices that have gone or come back.
    pub(super) fn watch_devices(&mut self, now: Instant) {
        if self.devices.noticed || now >= self.devices.look_at {
            self.devices.noticed = false;
            self.devices.look_at = now + LOOK;
            if self.devices.monitor.changed() {
                self.look(now);
            }
            if let Some(kernel_path) = &mut self.kernel_path {
                kernel_path.discard_input();
            }
        }
        for port in 0..self.ports.len() {
            let due = |lost: &Lost| lost.retry_at <= now;
            if self.ports[port].watch.lost.as_ref().is_some_and(due) {
                self.reopen(port, now);
            }
        }
    }

    /// When the next port is tried again.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        let lost = self.ports.iter().filter_map(|slot| slot.watch.lost.as_ref());
        lost.fold(None, |at, lost| earliest(at, Some(lost.retry_at)))
    }

    /// What connections opened from now on have to fit in.
    pub(super) fn tell_mtus(&mut self) {
        let mtus: Vec<u32> = self.ports.iter().map(|slot| slot.capabilities.mtu).collect();
        self.engine.on_mtus(&mtus);
    }

    /// Some device has changed.
    fn look(&mut self, now: Instant) {
        let mut resized = false;
        let tells = self.crew.number == 0; // the others see the same
        for slot in &mut self.ports {
            let device = Device::query(&slot.device).ok();
            match (&mut slot.watch.lost, device) {
                (Some(lost), _) => lost.retry_at = now,
                (None, Some(device)) if Some(device.index) == slot.watch.index => {
                    let before = std::mem::replace(&mut slot.capabilities.mtu, device.mtu);
                    if before != device.mtu && tells {
                        info!(
                            "port {}: the MTU of device {} is {}; new connections fit in it",
                            slot.name, slot.device, device.mtu
                        );
                    }
                    resized |= before != device.mtu;
                }
                _ => {
                    if tells {
                        warn!(
                            "port {}: device {} is gone; the port is opened again when it is back",
                            slot.name, slot.device
                        );
                    }
                    slot.watch.past = slot.stats();
                    slot.watch.past.lost += 1;
                    slot.port = Box::new(GonePort::instead_of(slot.port.as_ref()));
                    slot.pending.clear();
                    slot.watch.lost = Some(Lost { retry_at: now, wait: FIRST_WAIT, told: false });
                }
            }
        }
        if resized {
            self.tell_mtus();
        }
    }

    fn reopen(&mut self, port: usize, now: Instant) {
        let Some(slot) = self.ports.get_mut(port) else { return };
        let Some(lost) = &mut slot.watch.lost else { return };
        let watch = (slot.watch.config.clone(), slot.watch.owned.clone(), slot.watch.share.clone());
        let umem = self.devices.umem.as_ref();
        let opened = open_port(watch, &self.devices.kernel, umem, Patience::None);
        let (fresh, warnings) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if !lost.told && index(&slot.device).is_some() {
                    warn!("port {}: device {} is back, but: {error}", slot.name, slot.device);
                    lost.told = true;
                }
                lost.retry_at = now + lost.wait;
                lost.wait = (lost.wait * 2).min(MAX_WAIT);
                return;
            }
        };
        for warning in warnings {
            warn!("{warning}");
        }
        let mut past = slot.stats();
        past.reopened += 1;
        *slot = fresh;
        slot.watch.past = past;
        self.neighbors.rejoin(port as u16, slot.mac);
        if self.crew.number == 0 {
            info!("port {}: device {} is back: {}", slot.name, slot.device, slot.why);
            self.neighbors.announce_port(port as u16);
        }
        self.tell_mtus();
    }
}
