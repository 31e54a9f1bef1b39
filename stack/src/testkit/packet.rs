//! IP packets as plain octets: what a middlebox reads and changes.
#![forbid(unsafe_code)]

use crate::checksum;
use crate::wire::{Endpoint, FlowTuple};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// FIN in the flags octet.
pub const FIN: u8 = 0x01;
/// SYN in the flags octet.
pub const SYN: u8 = 0x02;
/// RST in the flags octet.
pub const RST: u8 = 0x04;
/// PSH in the flags octet.
pub const PSH: u8 = 0x08;
/// ACK in the flags octet.
pub const ACK: u8 = 0x10;
/// TCP's protocol number.
pub const TCP: u8 = 6;
/// Option kind of MPTCP.
pub const MPTCP: u8 = 30;

/// Source and destination address of an IP packet.
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let src: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let dst: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some((Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()))
        }
        6 => {
            let src: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let dst: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some((Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into()))
        }
        _ => None,
    }
}

/// One option of a TCP header: where it begins in the packet, its kind and its length in octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpOption {
    /// Offset from the start of the packet.
    pub at: usize,
    /// Kind.
    pub kind: u8,
    /// Length, kind and length octets included; 1 for NOP.
    pub len: usize,
}

/// A whole and intact TCP packet. Setters leave lengths and checksums alone; [`TcpPacket::finish`] repairs them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpPacket {
    octets: Vec<u8>,
    ip_len: usize,
    tcp_len: usize,
}

impl TcpPacket {
    /// Looks at a packet.
    ///
    /// # Errors
    /// The packet itself if it is not TCP, or is damaged: whoever repairs checksums must not bless wrong octets.
    pub fn parse(octets: Vec<u8>) -> Result<TcpPacket, Vec<u8>> {
        let Some((ip_len, tcp_len)) = lengths(&octets) else { return Err(octets) };
        let packet = TcpPacket { octets, ip_len, tcp_len };
        if packet.tcp_checksum() != 0 || packet.ip_checksum() != 0 {
            return Err(packet.octets);
        }
        Ok(packet)
    }

    /// The flow, `local` being the sender.
    pub fn flow(&self) -> FlowTuple {
        let (src, dst) = addresses(&self.octets)
            .unwrap_or((IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        FlowTuple {
            local: Endpoint::new(src, self.u16(0)),
            remote: Endpoint::new(dst, self.u16(2)),
        }
    }

    /// Changes addresses and ports; `flow.local` is the sender. The family stays.
    pub fn set_flow(&mut self, flow: FlowTuple) {
        match (flow.local.addr, flow.remote.addr) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.octets[12..16].copy_from_slice(&src.octets());
                self.octets[16..20].copy_from_slice(&dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.octets[8..24].copy_from_slice(&src.octets());
                self.octets[24..40].copy_from_slice(&dst.octets());
            }
            _ => return,
        }
        self.set(0, &flow.local.port.to_be_bytes());
        self.set(2, &flow.remote.port.to_be_bytes());
    }

    /// SEG.SEQ.
    pub fn seq(&self) -> u32 {
        self.u32(4)
    }

    /// SEG.ACK, whether or not ACK is set.
    pub fn ack(&self) -> u32 {
        self.u32(8)
    }

    /// Sets SEG.SEQ.
    pub fn set_seq(&mut self, seq: u32) {
        self.set(4, &seq.to_be_bytes());
    }

    /// Sets SEG.ACK.
    pub fn set_ack(&mut self, ack: u32) {
        self.set(8, &ack.to_be_bytes());
    }

    /// The flags octet.
    pub fn flags(&self) -> u8 {
        self.octets[self.ip_len + 13]
    }

    /// Sets the flags octet.
    pub fn set_flags(&mut self, flags: u8) {
        self.octets[self.ip_len + 13] = flags;
    }

    /// The window field, unscaled.
    pub fn window(&self) -> u16 {
        self.u16(14)
    }

    /// The text.
    pub fn text(&self) -> &[u8] {
        &self.octets[self.ip_len + self.tcp_len..]
    }

    /// Replaces the text.
    pub fn set_text(&mut self, text: &[u8]) {
        self.octets.truncate(self.ip_len + self.tcp_len);
        self.octets.extend_from_slice(text);
    }

    /// The header octets of TCP.
    pub fn header(&self) -> &[u8] {
        &self.octets[self.ip_len..self.ip_len + self.tcp_len]
    }

    /// The options up to the end of the list or the first one that makes no sense.
    pub fn options(&self) -> Vec<TcpOption> {
        let (mut at, end) = (self.ip_len + 20, self.ip_len + self.tcp_len);
        let mut out = Vec::new();
        while at < end {
            let kind = self.octets[at];
            let len = match kind {
                0 => break,
                1 => 1,
                _ if at + 1 < end => usize::from(self.octets[at + 1]),
                _ => break,
            };
            if len == 0 || at + len > end || (kind > 1 && len < 2) {
                break;
            }
            out.push(TcpOption { at, kind, len });
            at += len;
        }
        out
    }

    /// The octets of one option.
    pub fn option(&self, option: TcpOption) -> &[u8] {
        &self.octets[option.at..option.at + option.len]
    }

    /// The octets of one option, to be changed.
    pub fn option_mut(&mut self, option: TcpOption) -> &mut [u8] {
        &mut self.octets[option.at..option.at + option.len]
    }

    /// Whether an option of this kind is there.
    pub fn has_option(&self, kind: u8) -> bool {
        self.options().iter().any(|o| o.kind == kind)
    }

    /// The subtypes of its MPTCP options.
    pub fn mptcp_subtypes(&self) -> Vec<u8> {
        let options = self.options();
        options
            .iter()
            .filter(|o| o.kind == MPTCP && o.len > 2)
            .map(|o| self.octets[o.at + 2] >> 4)
            .collect()
    }

    /// Overwrites every option of `kind` with NOPs. Returns whether there was one.
    pub fn erase_options(&mut self, kind: u8) -> bool {
        let doomed: Vec<TcpOption> =
            self.options().into_iter().filter(|o| o.kind == kind).collect();
        for option in &doomed {
            self.option_mut(*option).fill(1);
        }
        !doomed.is_empty()
    }

    /// The packet with lengths and checksums right again.
    pub fn finish(mut self) -> Vec<u8> {
        let len = self.octets.len();
        if self.ip_len == 40 {
            self.octets[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        } else {
            self.octets[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            self.octets[10..12].fill(0);
            let sum = self.ip_checksum();
            self.octets[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        self.set(16, &[0, 0]);
        let sum = self.tcp_checksum();
        self.set(16, &sum.to_be_bytes());
        self.octets
    }

    fn ip_checksum(&self) -> u16 {
        if self.ip_len == 40 { 0 } else { !checksum::sum(&self.octets[..self.ip_len]) }
    }

    fn tcp_checksum(&self) -> u16 {
        let addresses = if self.ip_len == 40 { 8..40 } else { 12..20 };
        let len = (self.octets.len() - self.ip_len) as u16;
        let pseudo = checksum::add(checksum::sum(&self.octets[addresses]), u16::from(TCP));
        let pseudo = checksum::add(pseudo, len);
        !checksum::add(pseudo, checksum::sum(&self.octets[self.ip_len..]))
    }

    fn u16(&self, at: usize) -> u16 {
        let at = self.ip_len + at;
        u16::from_be_bytes([self.octets[at], self.octets[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        let at = self.ip_len + at;
        self.octets[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// `octets` with lengths and checksums made right, if it is a whole TCP packet at all.
pub fn repaired(octets: Vec<u8>) -> Option<Vec<u8>> {
    let (ip_len, tcp_len) = lengths(&octets)?;
    Some(TcpPacket { octets, ip_len, tcp_len }.finish())
}

/// Octets of IP and of TCP header, if this is an unfragmented TCP packet that is all there.
fn lengths(packet: &[u8]) -> Option<(usize, usize)> {
    let ip_len = match packet.first()? >> 4 {
        4 => {
            let ip_len = usize::from(packet[0] & 15) * 4;
            let header = packet.get(..20)?;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
            (ip_len >= 20 && total == packet.len() && fragment == 0 && header[9] == TCP)
                .then_some(ip_len)?
        }
        6 => {
            let header = packet.get(..40)?;
            let total = usize::from(u16::from_be_bytes([header[4], header[5]])) + 40;
            (total == packet.len() && header[6] == TCP).then_some(40)?
        }
        _ => return None,
    };
    let tcp_len = usize::from(packet.get(ip_len + 12)? >> 4) * 4;
    (tcp_len >= 20 && ip_len + tcp_len <= packet.len()).then_some((ip_len, tcp_len))
}

/// An ICMP error about `packet` from `router`: IPv4 type 3 or IPv6 type 1, with `code`. `None` if the families differ
/// or the packet must not be answered.
pub fn unreachable(router: IpAddr, packet: &[u8], code: u8) -> Option<Vec<u8>> {
    icmp_error(router, packet, ([3, code], [1, code]), 0)
}

/// As [`unreachable()`]: the packet is too big for the next link's `mtu`.
pub fn too_big(router: IpAddr, packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    icmp_error(router, packet, ([3, 4], [2, 0]), mtu)
}

/// `v4` and `v6` are type and code; `rest` the second word of the header.
fn icmp_error(
    router: IpAddr,
    packet: &[u8],
    (v4, v6): ([u8; 2], [u8; 2]),
    rest: u32,
) -> Option<Vec<u8>> {
    let header = |kind: [u8; 2]| [[kind[0], kind[1], 0, 0], rest.to_be_bytes()].concat();
    let (src, _) = addresses(packet)?;
    match (router, src) {
        (IpAddr::V4(router), IpAddr::V4(src)) if packet[9] != 1 => {
            let quoted = &packet[..packet.len().min(548)];
            let mut out = alloc::vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
            out.extend_from_slice(&router.octets());
            out.extend_from_slice(&src.octets());
            out.extend(header(v4));
            out.extend_from_slice(quoted);
            let len = (out.len() as u16).to_be_bytes();
            out[2..4].copy_from_slice(&len);
            let sum = (!checksum::sum(&out[..20])).to_be_bytes();
            out[10..12].copy_from_slice(&sum);
            let sum = (!checksum::sum(&out[20..])).to_be_bytes();
            out[22..24].copy_from_slice(&sum);
            Some(out)
        }
        (IpAddr::V6(router), IpAddr::V6(src)) if packet[6] != 58 => {
            let quoted = &packet[..packet.len().min(1_232)];
            let len = (quoted.len() + 8) as u16;
            let mut out = alloc::vec![0x60, 0, 0, 0, 0, 0, 58, 64];
            out[4..6].copy_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&router.octets());
            out.extend_from_slice(&src.octets());
            out.extend(header(v6));
            out.extend_from_slice(quoted);
            let pseudo = checksum::add(checksum::add(checksum::sum(&out[8..40]), 58), len);
            let sum = !checksum::add(pseudo, checksum::sum(&out[40..]));
            out[42..44].copy_from_slice(&sum.to_be_bytes());
            Some(out)
        }
        _ => None,
    }
}
