//! Neighbours: ARP (RFC 826), Neighbor Discovery (RFC 4861), echo replies for our addresses.
#![forbid(unsafe_code)]

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol,
    Ipv4Packet, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};
use stack::time::{Duration, Instant, earliest};
use stack::wire::{Prefix, TxPacket};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Between two requests for one neighbour.
const RETRY: Duration = Duration::from_millis(250);
/// Requests before a neighbour that never answered is given up: 3 s, as long as the kernel asks (RFC 4861 10), so that its
/// clients hear as late and as surely as without us.
const TRIES: u8 = 12;
/// Requests to one that has answered before, before it counts as unknown.
const PROBES: u8 = 4;
/// How long an answer is trusted without asking again (RFC 4861 10: REACHABLE_TIME).
const FRESH: Duration = Duration::from_secs(30);
/// Packets that wait for one neighbour (RFC 4861 7.2.2 allows a small queue).
const MAX_WAITING: usize = 32;
/// Neighbours in all.
const MAX_NEIGHBORS: usize = 4096;
const ETHERNET: usize = 14;
const HOP_LIMIT: u8 = 255; // RFC 4861 7.1: anything less came through a router

/// What a port is to its neighbours.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Addresses that we answer for, with their networks.
    pub owned: Vec<Prefix>,
}

#[derive(Debug)]
enum Entry {
    /// Asked, not answered.
    Incomplete {
        tries: u8,
        retry_at: Instant,
        waiting: VecDeque<TxPacket>,
    },
    Known {
        mac: [u8; 6],
        fresh_until: Instant,
        tries: u8,
    },
}

/// The neighbours of all ports of a worker.
#[derive(Debug)]
pub struct Neighbors {
    ports: Vec<Identity>,
    table: HashMap<(u16, IpAddr), Entry>,
    /// Keys of the incomplete entries.
    asking: Vec<(u16, IpAddr)>,
    frames: VecDeque<(u16, Vec<u8>)>,
    resolved: VecDeque<(u16, [u8; 6], TxPacket)>,
    unresolved: VecDeque<TxPacket>,
    /// What neighbours said of themselves.
    heard: VecDeque<(u16, IpAddr, [u8; 6])>,
    dropped: u64,
}

impl Neighbors {
    /// No neighbours yet; the index of an identity is the port's number.
    pub fn new(ports: Vec<Identity>) -> Neighbors {
        Neighbors {
            ports,
            table: HashMap::new(),
            asking: Vec::new(),
            frames: VecDeque::new(),
            resolved: VecDeque::new(),
            unresolved: VecDeque::new(),
            heard: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Tells all neighbours that our addresses are here now (RFC 5227 3, RFC 4861 7.2.6).
    pub fn announce(&mut self) {
        for port in 0..self.ports.len() {
            self.announce_port(port as u16);
        }
    }

    /// A port has another device: neighbours are asked for their addresses.
    pub fn rejoin(&mut self, port: u16, mac: [u8; 6]) {
        if let Some(identity) = self.ports.get_mut(usize::from(port)) {
            identity.mac = mac;
        }
        self.table.retain(|key, entry| key.0 != port || matches!(entry, Entry::Incomplete { .. }));
    }

    /// As [`Neighbors::announce`], at one port.
    pub fn announce_port(&mut self, port: u16) {
        let Some(identity) = self.identity(port).cloned() else { return };
        for owned in identity.owned {
            match owned.addr {
                IpAddr::V4(addr) => {
                    let repr = arp(ArpOperation::Request, identity.mac, addr, [0; 6], addr);
                    self.push_arp(port, &repr, [0xff; 6]);
                }
                IpAddr::V6(addr) => {
                    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                    let flags = NdiscNeighborFlags::OVERRIDE;
                    let repr = advertisement(addr, identity.mac, flags);
                    self.push_ndisc(port, addr, all, multicast_mac(all), repr);
                }
            }
        }
    }

    /// Whether a port owns this address.
    pub fn is_ours(&self, addr: IpAddr) -> bool {
        self.ports.iter().any(|port| port.owned.iter().any(|owned| owned.addr == addr))
    }

    /// Packets dropped because nobody answered, or too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The next frame to send by a port: requests and answers.
    pub fn poll_transmit(&mut self) -> Option<(u16, Vec<u8>)> {
        self.frames.pop_front()
    }

    /// The next packet whose neighbour has answered.
    pub fn poll_resolved(&mut self) -> Option<(u16, [u8; 6], TxPacket)> {
        self.resolved.pop_front()
    }

    /// What a neighbour said of itself, for those who share the port with us: its answers come to one of us.
    pub fn poll_heard(&mut self) -> Option<(u16, IpAddr, [u8; 6])> {
        self.heard.pop_front()
    }

    /// Somebody who shares the port with us has heard from a neighbour.
    pub fn on_told(&mut self, port: u16, addr: IpAddr, mac: [u8; 6], now: Instant) {
        let Some(entry) = self.table.get_mut(&(port, addr)) else { return };
        let known = Entry::Known { mac, fresh_until: now + FRESH, tries: 0 };
        if let Entry::Incomplete { waiting, .. } = std::mem::replace(entry, known) {
            self.asking.retain(|key| *key != (port, addr));
            self.resolved.extend(waiting.into_iter().map(|packet| (port, mac, packet)));
        }
    }

    /// The next packet whose neighbour was given up.
    pub fn poll_unresolved(&mut self) -> Option<TxPacket> {
        self.unresolved.pop_front()
    }

    /// A packet for a neighbour: comes out of [`Neighbors::poll_resolved`], at once or when it is known.
    pub fn push(&mut self, port: u16, addr: IpAddr, packet: TxPacket, now: Instant) {
        if let Some(mac) = self.lookup(port, addr, now) {
            self.resolved.push_back((port, mac, packet));
            return;
        }
        if self.table.len() >= MAX_NEIGHBORS {
            // Who answered once and is not talked to any more must not keep others out.
            self.table.retain(|_, entry| match entry {
                Entry::Incomplete { .. } => true,
                Entry::Known { fresh_until, .. } => now < *fresh_until,
            });
        }
        let full = self.table.len() >= MAX_NEIGHBORS;
        match self.table.get_mut(&(port, addr)) {
            Some(Entry::Incomplete { waiting, .. }) if waiting.len() < MAX_WAITING => {
                waiting.push_back(packet);
            }
            None if !full => {
                let waiting = VecDeque::from([packet]);
                let entry = Entry::Incomplete { tries: 1, retry_at: now + RETRY, waiting };
                self.table.insert((port, addr), entry);
                self.asking.push((port, addr));
                self.ask(port, addr, None);
            }
            _ => self.dropped += 1,
        }
    }

    /// The link-layer address of a neighbour that has answered. One that has not for long is asked again meanwhile.
    pub fn lookup(&mut self, port: u16, addr: IpAddr, now: Instant) -> Option<[u8; 6]> {
        let Some(Entry::Known { mac, fresh_until, tries }) = self.table.get_mut(&(port, addr))
        else {
            return None;
        };
        let mac = *mac;
        if now < *fresh_until {
            return Some(mac);
        }
        if *tries >= PROBES {
            self.table.remove(&(port, addr));
            return None;
        }
        *tries += 1;
        *fresh_until = now + RETRY;
        self.ask(port, addr, Some(mac));
        Some(mac)
    }

    /// When [`Neighbors::on_deadline`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.asking.iter().fold(None, |at, key| match self.table.get(key) {
            Some(Entry::Incomplete { retry_at, .. }) => earliest(at, Some(*retry_at)),
            _ => at,
        })
    }

    /// Asks again, or gives up.
    pub fn on_deadline(&mut self, now: Instant) {
        let asking = std::mem::take(&mut self.asking);
        for key in asking {
            let Some(Entry::Incomplete { tries, retry_at, waiting }) = self.table.get_mut(&key)
            else {
                continue;
            };
            if *retry_at <= now {
                if *tries >= TRIES {
                    self.dropped += waiting.len() as u64;
                    self.unresolved.append(waiting);
                    self.table.remove(&key);
                    continue;
                }
                *tries += 1;
                *retry_at = now + RETRY;
                self.ask(key.0, key.1, None);
            }
            self.asking.push(key);
        }
    }

    /// Takes ARP, Neighbor Discovery, and echo requests to our addresses. False: it is none of these.
    pub fn on_frame(&mut self, port: u16, frame: &[u8], now: Instant) -> bool {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return false };
        let from = ethernet.src_addr().0;
        match ethernet.ethertype() {
            EthernetProtocol::Arp => {
                self.on_arp(port, ethernet.payload(), now);
                true
            }
            EthernetProtocol::Ipv4 => self.on_ipv4(port, from, ethernet.payload()).unwrap_or(false),
            EthernetProtocol::Ipv6 => {
                self.on_ipv6(port, from, ethernet.payload(), now).unwrap_or(false)
            }
            _ => false,
        }
    }

    fn identity(&self, port: u16) -> Option<&Identity> {
        self.ports.get(usize::from(port))
    }

    fn owns(&self, port: u16, addr: IpAddr) -> bool {
        self.identity(port).is_some_and(|i| i.owned.iter().any(|p| p.addr == addr))
    }

    /// A neighbour said where it is. Creates no entry: strangers cannot fill the table.
    fn confirm(&mut self, port: u16, addr: IpAddr, mac: [u8; 6], now: Instant) {
        if mac[0] & 1 != 0 {
            return; // RFC 1812 3.3.2: a group address is nobody's
        }
        self.heard.push_back((port, addr, mac));
        self.on_told(port, addr, mac, now);
    }

    fn on_arp(&mut self, port: u16, octets: &[u8], now: Instant) {
        let Ok(packet) = ArpPacket::new_checked(octets) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: from,
            source_protocol_addr: sender,
            target_protocol_addr: target,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        self.confirm(port, sender.into(), from.0, now);
        if operation == ArpOperation::Request && self.owns(port, target.into()) && sender != target
        {
            let Some(mac) = self.identity(port).map(|i| i.mac) else { return };
            let reply = arp(ArpOperation::Reply, mac, target, from.0, sender);
            self.push_arp(port, &reply, from.0);
        }
    }

    fn on_ipv4(&mut self, port: u16, from: [u8; 6], octets: &[u8]) -> Option<bool> {
        let packet = Ipv4Packet::new_checked(octets).ok()?;
        let fragment = packet.more_frags() || packet.frag_offset() != 0;
        if packet.next_header() != IpProtocol::Icmp
            || fragment
            || !self.owns(port, packet.dst_addr().into())
        {
            return None;
        }
        let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
        if icmp.msg_type() != Icmpv4Message::EchoRequest || !icmp.verify_checksum() {
            return None;
        }
        let total = usize::from(packet.total_len());
        let mut frame = self.ethernet(port, from, EthernetProtocol::Ipv4, total)?;
        let reply = frame.get_mut(ETHERNET..)?;
        reply.copy_from_slice(octets.get(..total)?);
        let mut ip = Ipv4Packet::new_unchecked(reply);
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        ip.set_src_addr(destination);
        ip.set_dst_addr(source);
        ip.set_hop_limit(64);
        ip.fill_checksum();
        let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
        icmp.set_msg_type(Icmpv4Message::EchoReply);
        icmp.fill_checksum();
        self.frames.push_back((port, frame));
        Some(true)
    }

    fn on_ipv6(&mut self, port: u16, from: [u8; 6], octets: &[u8], now: Instant) -> Option<bool> {
        let packet = Ipv6Packet::new_checked(octets).ok()?;
        if packet.next_header() != IpProtocol::Icmpv6 {
            return None;
        }
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
        match icmp.msg_type() {
            Icmpv6Message::EchoRequest if self.owns(port, destination.into()) => {
                if icmp.verify_checksum(&source, &destination) {
                    self.echo_v6(port, from, &packet)?;
                }
                Some(true)
            }
            Icmpv6Message::NeighborSolicit | Icmpv6Message::NeighborAdvert => {
                if packet.hop_limit() == HOP_LIMIT && icmp.verify_checksum(&source, &destination) {
                    self.on_ndisc(port, from, source, &icmp, now);
                }
                Some(true)
            }
            _ => None,
        }
    }

    fn echo_v6(&mut self, port: u16, from: [u8; 6], packet: &Ipv6Packet<&[u8]>) -> Option<()> {
        let total = 40 + packet.payload().len();
        let mut frame = self.ethernet(port, from, EthernetProtocol::Ipv6, total)?;
        let reply = frame.get_mut(ETHERNET..)?;
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        let repr = Ipv6Repr {
            src_addr: destination,
            dst_addr: source,
            next_header: IpProtocol::Icmpv6,
            payload_len: packet.payload().len(),
            hop_limit: 64,
        };
        let mut ip = Ipv6Packet::new_unchecked(reply);
        repr.emit(&mut ip);
        ip.payload_mut().copy_from_slice(packet.payload());
        let mut icmp = Icmpv6Packet::new_unchecked(ip.payload_mut());
        icmp.set_msg_type(Icmpv6Message::EchoReply);
        icmp.fill_checksum(&destination, &source);
        self.frames.push_back((port, frame));
        Some(())
    }

    fn on_ndisc(
        &mut self,
        port: u16,
        from: [u8; 6],
        source: Ipv6Addr,
        icmp: &Icmpv6Packet<&[u8]>,
        now: Instant,
    ) {
        match NdiscRepr::parse(icmp) {
            Ok(NdiscRepr::NeighborSolicit { target_addr, .. })
                if self.owns(port, target_addr.into()) =>
            {
                let Some(mac) = self.identity(port).map(|i| i.mac) else { return };
                self.confirm(port, source.into(), from, now);
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                // RFC 4861 7.2.4: one who has no address yet is answered at all nodes, unsolicited.
                let (to, to_mac, flags) = if source.is_unspecified() {
                    (all, multicast_mac(all), NdiscNeighborFlags::OVERRIDE)
                } else {
                    let flags = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
                    (source, from, flags)
                };
                self.push_ndisc(
                    port,
                    target_addr,
                    to,
                    to_mac,
                    advertisement(target_addr, mac, flags),
                );
            }
            Ok(NdiscRepr::NeighborAdvert { target_addr, .. }) => {
                self.confirm(port, target_addr.into(), from, now);
            }
            _ => {}
        }
    }

    /// Sends a request; to `known` alone where that is only to be confirmed.
    fn ask(&mut self, port: u16, addr: IpAddr, known: Option<[u8; 6]>) {
        let Some(identity) = self.identity(port) else { return };
        let mac = identity.mac;
        let ours = identity.owned.iter().filter(|p| p.addr.is_ipv4() == addr.is_ipv4());
        let ours = ours.clone().find(|p| p.contains(addr)).or_else(|| ours.clone().next());
        match addr {
            IpAddr::V4(target) => {
                // Without an address of ours: a probe, which is answered to our MAC all the same (RFC 5227 2.1.1).
                let sender = match ours.map(|p| p.addr) {
                    Some(IpAddr::V4(sender)) => sender,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                let request = arp(ArpOperation::Request, mac, sender, [0; 6], target);
                self.push_arp(port, &request, known.unwrap_or([0xff; 6]));
            }
            IpAddr::V6(target) => {
                let Some(IpAddr::V6(sender)) = ours.map(|p| p.addr) else { return };
                let group = solicited_node(target);
                let (to, to_mac) = match known {
                    Some(mac) => (target, mac),
                    None => (group, multicast_mac(group)),
                };
                let lladdr = Some(EthernetAddress(mac).into());
                let repr = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
                self.push_ndisc(port, sender, to, to_mac, repr);
            }
        }
    }

    /// A frame with its Ethernet header written and `len` octets of payload.
    fn ethernet(
        &self,
        port: u16,
        to: [u8; 6],
        ethertype: EthernetProtocol,
        len: usize,
    ) -> Option<Vec<u8>> {
        let mut frame = vec![0; ETHERNET + len];
        EthernetRepr {
            src_addr: EthernetAddress(self.identity(port)?.mac),
            dst_addr: EthernetAddress(to),
            ethertype,
        }
        .emit(&mut EthernetFrame::new_unchecked(&mut frame));
        Some(frame)
    }

    fn push_arp(&mut self, port: u16, repr: &ArpRepr, to: [u8; 6]) {
        let len = repr.buffer_len();
        let Some(mut frame) = self.ethernet(port, to, EthernetProtocol::Arp, len) else { return };
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET..]));
        self.frames.push_back((port, frame));
    }

    fn push_ndisc(
        &mut self,
        port: u16,
        from: Ipv6Addr,
        to: Ipv6Addr,
        to_mac: [u8; 6],
        repr: NdiscRepr<'_>,
    ) {
        let icmp = Icmpv6Repr::Ndisc(repr);
        let len = 40 + icmp.buffer_len();
        let Some(mut frame) = self.ethernet(port, to_mac, EthernetProtocol::Ipv6, len) else {
            return;
        };
        let header = Ipv6Repr {
            src_addr: from,
            dst_addr: to,
            next_header: IpProtocol::Icmpv6,
            payload_len: icmp.buffer_len(),
            hop_limit: HOP_LIMIT,
        };
        let mut ip = Ipv6Packet::new_unchecked(&mut frame[ETHERNET..]);
        header.emit(&mut ip);
        let mut packet = Icmpv6Packet::new_unchecked(ip.payload_mut());
        icmp.emit(&from, &to, &mut packet, &ChecksumCapabilities::default());
        self.frames.push_back((port, frame));
    }
}

fn arp(
    operation: ArpOperation,
    mac: [u8; 6],
    sender: Ipv4Addr,
    target_mac: [u8; 6],
    target: Ipv4Addr,
) -> ArpRepr {
    ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: sender,
        target_hardware_addr: EthernetAddress(target_mac),
        target_protocol_addr: target,
    }
}

fn advertisement(target: Ipv6Addr, mac: [u8; 6], flags: NdiscNeighborFlags) -> NdiscRepr<'static> {
    let lladdr = Some(EthernetAddress(mac).into());
    NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr }
}

/// RFC 4291 2.7.1.
fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(&[a, b, c]);
    group.into()
}

/// RFC 2464 7.
fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod tests;
