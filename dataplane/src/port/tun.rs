//! The way back to the kernel: packets that nobody claimed enter its routing through a TUN device.
//!
//! The kernel checks where they come from as for any packet: with `rp_filter=1` it drops those whose source it would
//! not reach through this device, so the device's `rp_filter` must be 0 or 2 (and that of `all` not 1).
#![forbid(unsafe_code)]

use super::ethernet::{Offload, VNET_LEN};
use super::share::Share;
use super::sys::open_tun;
use super::{Medium, Patience};
use arrayvec::ArrayVec;
use stack::wire::{RxChecksum, RxPacket, checksum};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};

/// A TUN device that leads into the kernel's own stack.
#[derive(Debug)]
pub struct KernelPath {
    tun: File,
    name: String,
}

impl KernelPath {
    /// Creates the device, or a queue of it for each worker, and brings it up. It vanishes when this (the last of them) is
    /// dropped.
    ///
    /// # Errors
    /// If `/dev/net/tun` is missing, or there is no CAP_NET_ADMIN in this namespace.
    pub fn open(name: &str, share: &Share) -> io::Result<KernelPath> {
        let tun = open_tun(name, Medium::Ip, share.tun_queues(), Patience::Seconds)?;
        // Only this namespace's own view of /proc/sys/net is written; where it is read-only the administrator decides.
        for (key, value) in [("ipv4", "rp_filter"), ("ipv6", "accept_ra")] {
            let _ = std::fs::write(format!("/proc/sys/net/{key}/conf/{name}/{value}"), "0");
        }
        Ok(KernelPath { tun, name: name.to_owned() })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands in the way of packets that take this path: settings of the kernel, and what to change.
    pub fn warnings(&self) -> Vec<String> {
        let read =
            |key: &str| std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap_or_default();
        let mut out = Vec::new();
        if read("ipv4/conf/all/rp_filter").trim() == "1" {
            out.push(format!(
                "{}: net.ipv4.conf.all.rp_filter=1 drops packets given back to the kernel; set it to 0 or 2",
                self.name
            ));
        }
        if read("ipv4/ip_forward").trim() == "0" {
            out.push(format!(
                "{}: net.ipv4.ip_forward=0: packets that Plait does not convert go nowhere",
                self.name
            ));
        }
        out
    }

    /// Writes one IP packet, possibly a super-segment, to be cut as it was before or, where that is not known, as fits the
    /// `mtu` of the port it came by. False: it was dropped.
    pub fn give(&mut self, packet: &RxPacket, mtu: u32) -> bool {
        let mut head: ArrayVec<u8, 256> = ArrayVec::new();
        for part in packet.octets.parts() {
            let room = head.remaining_capacity().min(part.len());
            head.extend(part.bytes().iter().take(room).copied());
        }
        let Some(vnet) = prepare(&mut head, packet, mtu) else { return false };
        let mut slices = vec![IoSlice::new(&vnet), IoSlice::new(&head)];
        let mut skip = head.len();
        for part in packet.octets.parts() {
            let from = skip.min(part.len());
            skip -= from;
            slices.push(IoSlice::new(part.bytes().get(from..).unwrap_or_default()));
        }
        slices.truncate(1024);
        self.tun.write_vectored(&slices).is_ok()
    }

    /// Throws away what the kernel sent to the device (nothing is routed there, but IPv6 announces itself).
    pub fn discard_input(&mut self) {
        let mut buffer = [0; 2048];
        for _ in 0..64 {
            if self.tun.read(&mut buffer).is_err() {
                return;
            }
        }
    }
}

/// The virtio-net header for a packet that begins with `head`. A checksum that was left to hardware becomes a
/// pseudo-header sum that the kernel completes.
fn prepare(head: &mut [u8], packet: &RxPacket, mtu: u32) -> Option<[u8; VNET_LEN]> {
    let (len, known) = (packet.octets.len(), packet.checksum);
    let ipv6 = head.first()? >> 4 == 6;
    let (protocol, start) = if ipv6 {
        (*head.get(6)?, 40)
    } else {
        (*head.get(9)?, usize::from(head.first()? & 15) * 4)
    };
    let (offset, headers) = match protocol {
        6 => (16, start + usize::from(head.get(start + 12)? >> 4) * 4),
        17 => (6, start + 8),
        _ => return Some([0; VNET_LEN]),
    };
    let fragment = !ipv6 && u16::from_be_bytes([*head.get(6)?, *head.get(7)?]) & 0x3fff != 0;
    if known == RxChecksum::Unknown || fragment {
        return Some([0; VNET_LEN]);
    }
    let addresses = if ipv6 { head.get(8..40)? } else { head.get(12..20)? };
    let l4 = len.checked_sub(start as u32)?;
    let numbers = u32::from(protocol) + (l4 >> 16) + (l4 & 0xffff);
    let pseudo = checksum::fold(u32::from(checksum::sum(addresses)) + numbers);
    let field = head.get_mut(start + offset..start + offset + 2)?;
    if known == RxChecksum::MaybePartial && field != pseudo.to_be_bytes().as_slice() {
        return Some([0; VNET_LEN]);
    }
    field.copy_from_slice(&pseudo.to_be_bytes());
    let gso_size = match packet.gso_size {
        0 if protocol == 6 && len > mtu => mtu.saturating_sub(headers as u32) as u16,
        told => told,
    };
    let offload = Offload {
        csum_start: start as u16,
        csum_offset: offset as u16,
        headers: headers as u16,
        gso_size,
        ipv6,
    };
    Some(offload.vnet())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stack::buf::{Chain, Pool};

    /// What the virtio-net header of a TCP packet over IPv4 of `len` octets says of segments.
    fn segments(len: usize, gso_size: u16, mtu: u32) -> (u8, u16) {
        let mut octets = vec![0; len];
        octets[0] = 0x45;
        octets[9] = 6;
        octets[32] = 0x50;
        let chain = Chain::copy_from(&Pool::new(64, 2048), 0, &octets).unwrap();
        let packet = RxPacket { octets: chain, checksum: RxChecksum::Valid, port: 0, gso_size };
        let header = prepare(&mut octets, &packet, mtu).unwrap();
        (header[1], u16::from_ne_bytes([header[4], header[5]]))
    }

    #[test]
    fn a_super_segment_is_cut_as_it_was_before() {
        assert_eq!(segments(60_000, 988, 1500), (1, 988));
        assert_eq!(segments(60_000, 0, 1500), (1, 1460), "nobody knows how that was");
        assert_eq!(segments(9000, 0, 9000), (0, 0), "one long packet stays one");
        assert_eq!(segments(1500, 0, 1500), (0, 0));
    }
}
