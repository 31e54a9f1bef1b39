//! `pnet_datalink` as a port: portable, copies every frame, knows no offloads.
//!
//! The peer's offloads should be off (`ethtool -K ... tso off gso off tx off` on virtual devices): frames longer than
//! the buffer are cut short and dropped.
#![forbid(unsafe_code)]

use super::memory::linearize;
use super::share::Share;
use super::{BURST, Capabilities, Device, Medium, Port, PortError, PortStats, RxFrame, TxFrame};
use crate::steer::{Steering, home_of_frame};
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};
use stack::buf::{Chain, Pool};
use stack::wire::RxChecksum;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

const HEADROOM: u16 = 128;
/// A super-segment and its headers.
const BUFFER: usize = 65_536 + 256;

/// A device driven by `pnet_datalink`.
pub struct PnetPort {
    device: Device,
    steering: Steering,
    share: Share,
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
    fds: [RawFd; 1],
    /// Keeps the descriptor in `fds` open.
    _poll: OwnedFd,
    stats: PortStats,
}

impl PnetPort {
    /// Opens a device; only frames that `steering` takes and whose home is the worker of `share` are handed up, the kernel
    /// sees all of them as well.
    ///
    /// # Errors
    /// If there is no such device or no permission.
    pub fn open(device: &str, steering: Steering, share: &Share) -> Result<PnetPort, PortError> {
        let name = device.to_owned();
        let device = Device::query(device)
            .map_err(|error| PortError::Device { device: name.clone(), error })?;
        let failed =
            |error| PortError::System { device: name.clone(), step: "opening pnet", error };
        let interface = pnet_datalink::interfaces()
            .into_iter()
            .find(|i| i.name == name)
            .ok_or_else(|| failed(ErrorKind::NotFound.into()))?;
        let socket = super::af_packet::raw_socket(&device).map_err(failed)?;
        let poll = socket.try_clone().map_err(failed)?;
        let config = Config {
            socket_fd: Some(socket.into_raw_fd()),
            promiscuous: false,
            read_buffer_size: BUFFER,
            write_buffer_size: BUFFER,
            // It cannot be told not to wait; this is as near as it gets.
            read_timeout: Some(Duration::ZERO),
            write_timeout: Some(Duration::ZERO),
            ..Config::default()
        };
        match pnet_datalink::channel(&interface, config).map_err(failed)? {
            Channel::Ethernet(sender, receiver) => {
                let fds = [poll.as_raw_fd()];
                let stats = PortStats::default();
                let share = share.clone();
                Ok(PnetPort { device, steering, share, sender, receiver, fds, _poll: poll, stats })
            }
            _ => Err(failed(ErrorKind::Unsupported.into())),
        }
    }
}

impl Port for PnetPort {
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>) {
        for _ in 0..BURST {
            let Ok(frame) = self.receiver.next() else { return };
            let elsewhere = self.share.is_shared()
                && home_of_frame(frame, self.share.homes()) != self.share.worker();
            if elsewhere || !self.steering.takes(frame) {
                continue;
            }
            let Some(octets) = Chain::copy_from(pool, HEADROOM, frame) else {
                self.stats.rx_dropped += 1;
                return;
            };
            self.stats.rx_frames += 1;
            self.stats.rx_octets += frame.len() as u64;
            // What GRO has merged, or a virtual device's peer left to hardware, has the pseudo-header sum there.
            let checksum = RxChecksum::MaybePartial;
            rx.push(RxFrame { octets, checksum, gso_size: 0 });
        }
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        let mut sent = 0;
        for frame in tx.iter_mut() {
            let empty =
                TxFrame { link: Default::default(), body: super::TxBody::Whole(Chain::new()) };
            let octets = linearize(std::mem::replace(frame, empty));
            sent += 1;
            match self.sender.send_to(&octets, None) {
                Some(Ok(())) => {
                    self.stats.tx_frames += 1;
                    self.stats.tx_octets += octets.len() as u64;
                }
                _ => self.stats.tx_dropped += 1,
            }
        }
        tx.drain(..sent);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: Medium::Ethernet,
            mtu: self.device.mtu,
            segmentation: false,
            checksum_offload: true,
            super_frames_in: true,
            zero_copy: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.device.mac
    }

    fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    fn stats(&self) -> PortStats {
        self.stats
    }
}
