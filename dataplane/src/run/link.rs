//! The link layer of the run loop: what a frame is, and headers for packets that leave.
#![forbid(unsafe_code)]

use super::{Engine, Worker};
use crate::port::{Medium, RxFrame};
use arrayvec::ArrayVec;
use stack::time::Instant;
use stack::wire::{RxPacket, TxPacket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: u32 = 14;

/// The link-layer header of a packet.
pub(super) fn header(
    medium: Medium,
    to: [u8; 6],
    from: [u8; 6],
    packet: &TxPacket,
) -> ArrayVec<u8, 14> {
    let mut link = ArrayVec::new();
    if medium == Medium::Ethernet {
        let ethertype: u16 = if packet.flow.local.addr.is_ipv4() { 0x0800 } else { 0x86dd };
        link.extend(to);
        link.extend(from);
        link.extend(ethertype.to_be_bytes());
    }
    link
}

/// The destination of an IP packet.
pub(super) fn destination(packet: &RxPacket) -> Option<IpAddr> {
    let octets = packet.octets.parts().first()?.bytes();
    match octets.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*octets.get(16..)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*octets.get(24..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// What the first octets of an Ethernet frame say.
struct Head {
    to: [u8; 6],
    from: [u8; 6],
    ethertype: u16,
    /// IP protocol, source, destination.
    ip: Option<(u8, IpAddr, IpAddr)>,
}

impl Head {
    fn parse(frame: &[u8]) -> Option<Head> {
        let to = *frame.first_chunk()?;
        let from = *frame.get(6..)?.first_chunk()?;
        let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
        let ip = match ethertype {
            0x0800 => {
                let at = |i: usize| Some(Ipv4Addr::from(*frame.get(i..)?.first_chunk::<4>()?));
                Some((*frame.get(23)?, at(26)?.into(), at(30)?.into()))
            }
            0x86dd => {
                let at = |i: usize| Some(Ipv6Addr::from(*frame.get(i..)?.first_chunk::<16>()?));
                Some((*frame.get(20)?, at(22)?.into(), at(38)?.into()))
            }
            _ => None,
        };
        Some(Head { to, from, ethertype, ip })
    }
}

const TCP: u8 = 6;

impl<E: Engine> Worker<E> {
    /// Sorts a frame: ours to answer here, a packet for the engine, or nothing to us.
    pub(super) fn on_frame(&mut self, port: u16, frame: RxFrame, now: Instant) {
        let RxFrame { mut octets, checksum, gso_size } = frame;
        let Some(slot) = self.ports.get(usize::from(port)) else { return };
        if slot.capabilities.medium == Medium::Ip {
            self.received.push(RxPacket { octets, checksum, port, gso_size });
            return;
        }
        let head = octets.parts().first().and_then(|part| Head::parse(part.bytes()));
        let Some(head) = head else {
            self.stats.ignored += 1;
            return;
        };
        let group = head.to[0] & 1 != 0;
        if !group && head.to != slot.mac {
            self.stats.ignored += 1;
            return;
        }
        match head.ip {
            Some((TCP, source, _)) if !group => {
                if slot.intercepts && head.from[0] & 1 == 0 {
                    self.routes.learn(source, port, head.from);
                }
            }
            _ => {
                let resolution = head.ethertype == 0x0806 || head.ip.is_some();
                if resolution && self.neighbors.on_frame(port, &octets.to_vec(), now) {
                    return;
                }
                if group || head.ip.is_none() {
                    self.stats.ignored += 1;
                    return;
                }
            }
        }
        octets.trim_front(ETHERNET);
        self.received.push(RxPacket { octets, checksum, port, gso_size });
    }
}
