//! The link layer of the run loop: what a frame is, and headers for packets that leave.
#![forbid(unsafe_code)]

use super::{Engine, Worker};
use crate::port::{Medium, RxFrame};
use arrayvec::ArrayVec;
use stack::time::Instant;
use stack::wire::{RxPacket, TxPacket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: u32 = 14;
pub(super) const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// The link-layer header of a packet.
pub(super) fn header(
    medium: Medium,
    to: [u8; 6],
    from: [u8; 6],
    packet: &TxPacket,
) -> ArrayVec<u8, 14> {
    let mut link = ArrayVec::new();
    if medium == Medium::Ethernet {
        let ethertype: u16 = if packet.flow.local.addr.is_ipv4() { IPV4 } else { IPV6 };
        link.extend(to);
        link.extend(from);
        link.extend(ethertype.to_be_bytes());
    }
    link
}

/// The destination of an IP packet.
pub(super) fn destination(packet: &RxPacket) -> Option<IpAddr> {
    addresses(packet.octets.parts().first()?.bytes()).map(|(_, _, to)| to)
}

/// The source of an IP packet.
pub(super) fn source(packet: &RxPacket) -> Option<IpAddr> {
    addresses(packet.octets.parts().first()?.bytes()).map(|(_, from, _)| from)
}

/// What the first octets of an Ethernet frame say.
struct Head {
    to: [u8; 6],
    from: [u8; 6],
    ethertype: u16,
    /// IP protocol, source, destination.
    ip: Option<(u8, IpAddr, IpAddr)>,
}

/// IP protocol, source and destination of a packet.
fn addresses(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let at = |i: usize| Some(Ipv4Addr::from(*packet.get(i..)?.first_chunk::<4>()?));
            Some((*packet.get(9)?, at(12)?.into(), at(16)?.into()))
        }
        6 => {
            let at = |i: usize| Some(Ipv6Addr::from(*packet.get(i..)?.first_chunk::<16>()?));
            Some((*packet.get(6)?, at(8)?.into(), at(24)?.into()))
        }
        _ => None,
    }
}

impl Head {
    fn parse(frame: &[u8]) -> Option<Head> {
        let to = *frame.first_chunk()?;
        let from = *frame.get(6..)?.first_chunk()?;
        let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
        let ip = match ethertype {
            IPV4 | IPV6 => addresses(frame.get(ETHERNET as usize..)?),
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
            let intercepts = slot.intercepts;
            return self.on_bare(RxPacket { octets, checksum, port, gso_size }, intercepts, now);
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
                let resolution = head.ethertype == ARP || head.ip.is_some();
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

    /// A packet that came without a link layer: TCP for the engine, or an echo request to answer here.
    fn on_bare(&mut self, packet: RxPacket, intercepts: bool, now: Instant) {
        let start = packet.octets.parts().first().map_or(&[][..], |part| part.bytes());
        match addresses(start) {
            Some((TCP, source, _)) => {
                if intercepts {
                    self.routes.learn(source, packet.port, [0; 6]);
                }
            }
            Some((_, source, _)) => {
                let mut frame = vec![0; 12];
                let ethertype = if source.is_ipv6() { IPV6 } else { IPV4 };
                frame.extend(ethertype.to_be_bytes());
                frame.extend(packet.octets.to_vec());
                if self.neighbors.on_frame(packet.port, &frame, now) {
                    return;
                }
            }
            None => {
                self.stats.ignored += 1;
                return;
            }
        }
        self.received.push(packet);
    }
}
