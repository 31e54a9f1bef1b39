//! A TAP or TUN device as a port: its other end is the kernel of this machine, or a virtual machine on its bridge.
//!
//! Super-segments up to 64 KB cross it both ways, checksums left to whoever needs them.
#![forbid(unsafe_code)]

use super::share::Share;
use super::sys::open_tun;
use super::vnet::{Scatter, is_full, write};
use super::{Capabilities, Device, Medium, Patience, Port, PortError, PortStats, RxFrame, TxFrame};
use crate::steer::Steering;
use stack::buf::Pool;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

/// A TAP device (frames with Ethernet headers) or a TUN device (bare IP packets). It is made if it does not exist, and
/// then vanishes with the port.
#[derive(Debug)]
pub struct TapPort {
    file: File,
    fds: [RawFd; 1],
    device: Device,
    medium: Medium,
    mac: [u8; 6],
    steering: Steering,
    scatter: Scatter,
    stats: PortStats,
}

impl TapPort {
    /// Makes a device, or attaches to one that was made before, and brings it up. [`Medium::Ethernet`] makes it TAP,
    /// [`Medium::Ip`] TUN. Each worker has a queue of it, among which the kernel deals flows out as they were last sent
    /// from. Only what `steering` takes is handed up; the rest of what the kernel sends there is dropped.
    ///
    /// # Errors
    /// If `/dev/net/tun` is missing, there is no CAP_NET_ADMIN, or a device of that name is of another kind or in use.
    pub fn open(
        device: &str,
        medium: Medium,
        steering: &Steering,
        share: &Share,
        patience: Patience,
    ) -> Result<TapPort, PortError> {
        let name = device.to_owned();
        let step = "making or attaching to the TAP or TUN device";
        let file = open_tun(device, medium, share.tun_queues(), patience)
            .map_err(|error| PortError::System { device: name.clone(), step, error })?;
        let device =
            Device::query(device).map_err(|error| PortError::Device { device: name, error })?;
        // The device's own address is the kernel's; ours differs from it and is nobody else's.
        let [a, b, c, d, e, f] = device.mac;
        let mac = match medium {
            Medium::Ethernet => [(a | 2) & !1, b, c, d, e, f ^ 1],
            Medium::Ip => [0; 6],
        };
        Ok(TapPort {
            fds: [file.as_raw_fd()],
            file,
            device,
            medium,
            mac,
            steering: steering.clone(),
            scatter: Scatter::default(),
            stats: PortStats::default(),
        })
    }
}

impl Port for TapPort {
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>) {
        let (steering, medium) = (&self.steering, self.medium);
        let wanted = |head: &[u8]| match medium {
            Medium::Ethernet => steering.takes(head),
            Medium::Ip => steering.takes_packet(head),
        };
        let room = (pool, self.device.mtu as usize + 14);
        // An error: the device is down; it may come back.
        let _ = self.scatter.receive(&self.file, room, wanted, &mut self.stats, rx);
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        let mut done = 0;
        for frame in tx.iter() {
            match write(&self.file, frame) {
                Ok(()) => {
                    self.stats.tx_frames += 1;
                    self.stats.tx_octets += frame.len() as u64;
                    self.stats.tx_uncopied += 1;
                }
                Err(e) if is_full(&e) => {
                    self.stats.tx_full += 1;
                    break;
                }
                Err(_) => self.stats.tx_dropped += 1,
            }
            done += 1;
        }
        tx.drain(..done);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: self.medium,
            mtu: self.device.mtu,
            segmentation: true,
            checksum_offload: true,
            super_frames_in: true,
            zero_copy: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    fn stats(&self) -> PortStats {
        self.stats
    }
}
