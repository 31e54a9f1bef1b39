//! What the ports that write whole frames share: finishing checksums, virtio-net headers.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use stack::wire::{TxPacket, checksum};

/// Where TCP keeps its checksum, in octets from the start of its header.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// `struct virtio_net_hdr`, host order (which is little-endian's on every machine with AF_PACKET ports of ours).
pub(crate) const VNET_LEN: usize = 10;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// What a virtio-net header says of a received frame.
pub(crate) fn vnet_checksum(header: &[u8; VNET_LEN]) -> stack::wire::RxChecksum {
    match header[0] & (NEEDS_CSUM | DATA_VALID) {
        0 => stack::wire::RxChecksum::Unknown,
        _ => stack::wire::RxChecksum::Valid,
    }
}

/// Octets of text per segment of a received super-segment; 0: it is none.
pub(crate) fn vnet_gso_size(header: &[u8; VNET_LEN]) -> u16 {
    match header[1] & !GSO_ECN {
        GSO_TCPV4 | GSO_TCPV6 => u16::from_ne_bytes([header[4], header[5]]),
        _ => 0,
    }
}

/// What a frame asks of the one who completes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offload {
    /// Octets in front of the TCP (or UDP) header.
    pub csum_start: u16,
    /// The checksum's offset from there.
    pub csum_offset: u16,
    /// Octets of all headers.
    pub headers: u16,
    /// Octets of text per segment; 0: the frame is one segment.
    pub gso_size: u16,
    /// The IP version is 6.
    pub ipv6: bool,
}

impl Offload {
    /// For a packet behind `link` octets of link-layer header.
    pub(crate) fn of(packet: &TxPacket, link: usize) -> Offload {
        let gso = packet.text.len() > u32::from(packet.gso_size);
        Offload {
            csum_start: (link + usize::from(packet.ip_len)) as u16,
            csum_offset: TCP_CHECKSUM as u16,
            headers: (link + packet.header.len()) as u16,
            gso_size: if gso { packet.gso_size } else { 0 },
            ipv6: packet.flow.local.addr.is_ipv6(),
        }
    }

    /// As a virtio-net header.
    pub(crate) fn vnet(&self) -> [u8; VNET_LEN] {
        let gso_type = match (self.gso_size, self.ipv6) {
            (0, _) => 0,
            (_, false) => GSO_TCPV4,
            (_, true) => GSO_TCPV6,
        };
        let mut header = [0; VNET_LEN];
        header[0] = NEEDS_CSUM;
        header[1] = gso_type;
        header[2..4].copy_from_slice(&self.headers.to_ne_bytes());
        header[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        header[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        header[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        header
    }
}

/// The packet's header with the whole TCP checksum in place of the pseudo-header sum. Octets of text whose sum somebody
/// found already are not read again.
pub(crate) fn finished_header(packet: &mut TxPacket) -> ArrayVec<u8, 120> {
    let text = packet.text.sum();
    let mut header = packet.header.clone();
    let start = usize::from(packet.ip_len).min(header.len());
    let value = !checksum::add(checksum::sum(&header[start..]), text);
    if let Some(field) = header.get_mut(start + TCP_CHECKSUM..start + TCP_CHECKSUM + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
    header
}
