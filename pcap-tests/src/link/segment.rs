//! Cutting super-frames into the packets a wire carries, checksums finished.
//!
//! Kernels hand each other TCP and UDP super-frames of up to 64 KB and leave checksums unfinished; the virtio-net header
//! says how to cut and where to sum. An emulated link shapes real packets, so both are done here, in software.
#![forbid(unsafe_code)]

use dataplane::port::raw_socket::VNET_HEADER;
use stack::wire::checksum;

const ETHERNET: usize = 14;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Why a frame could not be cut: its headers contradict the virtio-net header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

#[derive(Clone, Copy)]
struct VnetHeader {
    flags: u8,
    gso_type: u8,
    gso_size: usize,
    csum_start: usize,
    csum_offset: usize,
}

impl VnetHeader {
    fn parse(octets: &[u8]) -> Option<(VnetHeader, &[u8])> {
        let (head, frame) = octets.split_at_checked(VNET_HEADER)?;
        let word = |at: usize| usize::from(u16::from_ne_bytes([head[at], head[at + 1]]));
        let header = VnetHeader {
            flags: head[0],
            gso_type: head[1] & !GSO_ECN,
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        };
        Some((header, frame))
    }
}

/// Takes a virtio-net header with its frame; `yield_frame` gets each packet-sized frame behind an empty virtio-net header,
/// ready to send. Frames that are no super-frames come out as they are, with their checksum finished.
pub fn cut(octets: &[u8], mut yield_frame: impl FnMut(Vec<u8>)) -> Result<(), Malformed> {
    let (vnet, frame) = VnetHeader::parse(octets).ok_or(Malformed)?;
    if frame.len() < ETHERNET {
        return Err(Malformed);
    }
    match vnet.gso_type {
        0 => {
            let mut whole = with_empty_header(frame);
            if vnet.flags & NEEDS_CHECKSUM != 0 {
                finish_checksum(&mut whole[VNET_HEADER..], &vnet).ok_or(Malformed)?;
            }
            yield_frame(whole);
            Ok(())
        }
        GSO_TCPV4 | GSO_TCPV6 | GSO_UDP => {
            cut_super_frame(&vnet, frame, &mut yield_frame).ok_or(Malformed)
        }
        _ => Err(Malformed),
    }
}

fn with_empty_header(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(VNET_HEADER + frame.len());
    out.resize(VNET_HEADER, 0);
    out.extend_from_slice(frame);
    out
}

/// The field holds the pseudo-header's sum already; what lies behind `csum_start` is added.
fn finish_checksum(frame: &mut [u8], vnet: &VnetHeader) -> Option<()> {
    let sum = checksum::sum(frame.get(vnet.csum_start..)?);
    let at = vnet.csum_start + vnet.csum_offset;
    let field = frame.get_mut(at..at + 2)?;
    // RFC 768: a UDP sum of zero is sent as all ones, so that it does not mean "none". For TCP both are equal.
    let sum = if sum == 0xffff { 0xffff } else { !sum };
    field.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

fn cut_super_frame(vnet: &VnetHeader, frame: &[u8], out: &mut impl FnMut(Vec<u8>)) -> Option<()> {
    let transport = vnet.csum_start;
    let udp = vnet.gso_type == GSO_UDP;
    let header_len = if udp { 8 } else { usize::from(frame.get(transport + 12)? >> 4) * 4 };
    let text_at = transport + header_len;
    if vnet.gso_size == 0 || transport < ETHERNET + 20 || text_at > frame.len() {
        return None;
    }
    let (headers, text) = frame.split_at(text_at);
    let last = text.len().div_ceil(vnet.gso_size).saturating_sub(1);
    for (i, part) in text.chunks(vnet.gso_size).enumerate() {
        let mut packet = Vec::with_capacity(VNET_HEADER + text_at + part.len());
        packet.resize(VNET_HEADER, 0);
        packet.extend_from_slice(headers);
        packet.extend_from_slice(part);
        let piece = packet.get_mut(VNET_HEADER..)?;
        if udp {
            let len = (piece.len() - transport) as u16;
            piece.get_mut(transport + 4..transport + 6)?.copy_from_slice(&len.to_be_bytes());
        } else {
            place_tcp(piece, transport, (i * vnet.gso_size) as u32, i == 0, i == last)?;
        }
        finish_ip(piece, transport, i as u16, if udp { UDP } else { TCP })?;
        out(packet);
    }
    Some(())
}

fn place_tcp(piece: &mut [u8], tcp: usize, offset: u32, first: bool, last: bool) -> Option<()> {
    let seq = piece.get_mut(tcp + 4..tcp + 8)?;
    let moved = u32::from_be_bytes(seq.try_into().ok()?).wrapping_add(offset);
    seq.copy_from_slice(&moved.to_be_bytes());
    let flags = piece.get_mut(tcp + 13)?;
    if !last {
        *flags &= !FIN_PSH;
    }
    if !first {
        *flags &= !CWR; // RFC 3168 6.1.2: CWR belongs to the first packet after the reduction
    }
    Some(())
}

/// Lengths, identification and checksums of one piece.
fn finish_ip(piece: &mut [u8], transport: usize, index: u16, protocol: u8) -> Option<()> {
    let total = piece.len() - ETHERNET;
    let field = transport + if protocol == TCP { 16 } else { 6 };
    let ip = ETHERNET;
    let addresses = match *piece.get(ip)? >> 4 {
        4 => {
            piece
                .get_mut(ip + 2..ip + 4)?
                .copy_from_slice(&u16::try_from(total).ok()?.to_be_bytes());
            let id = piece.get_mut(ip + 4..ip + 6)?;
            let next = u16::from_be_bytes([id[0], id[1]]).wrapping_add(index);
            id.copy_from_slice(&next.to_be_bytes());
            piece.get_mut(ip + 10..ip + 12)?.fill(0);
            let sum = !checksum::sum(piece.get(ip..transport)?);
            piece.get_mut(ip + 10..ip + 12)?.copy_from_slice(&sum.to_be_bytes());
            ip + 12..ip + 20
        }
        6 => {
            let payload = u16::try_from(total.checked_sub(40)?).ok()?;
            piece.get_mut(ip + 4..ip + 6)?.copy_from_slice(&payload.to_be_bytes());
            ip + 8..ip + 40
        }
        _ => return None,
    };
    piece.get_mut(field..field + 2)?.fill(0);
    let segment_len = u16::try_from(piece.len() - transport).ok()?;
    let pseudo = checksum::add(
        checksum::sum(piece.get(addresses)?),
        checksum::add(u16::from(protocol), segment_len),
    );
    let sum = !checksum::add(pseudo, checksum::sum(piece.get(transport..)?));
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    piece.get_mut(field..field + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet + IPv4 + TCP with `text` octets, FIN, PSH and CWR set, pseudo-header sum in the checksum field.
    fn super_frame(text: usize, gso_size: u16) -> Vec<u8> {
        let mut octets = vec![0; VNET_HEADER + 54 + text];
        octets[0] = NEEDS_CHECKSUM;
        octets[1] = if gso_size > 0 { GSO_TCPV4 } else { 0 };
        octets[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        octets[6..8].copy_from_slice(&34u16.to_ne_bytes());
        octets[8..10].copy_from_slice(&16u16.to_ne_bytes());
        let frame = &mut octets[VNET_HEADER..];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&(40 + text as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&0xfffeu16.to_be_bytes());
        frame[22..24].copy_from_slice(&[64, TCP]);
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[38..42].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
        frame[46] = 0x50;
        frame[47] = FIN_PSH | CWR | 0x10;
        let pseudo = checksum::add(
            checksum::sum(&frame[26..34]),
            checksum::add(u16::from(TCP), 20 + text as u16),
        );
        frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
        for (i, octet) in frame[54..].iter_mut().enumerate() {
            *octet = (i * 7) as u8;
        }
        octets
    }

    fn pieces(octets: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        cut(octets, |piece| out.push(piece)).unwrap();
        out.into_iter().map(|piece| piece[VNET_HEADER..].to_vec()).collect()
    }

    fn assert_sums(frame: &[u8]) {
        assert_eq!(checksum::sum(&frame[14..34]), 0xffff, "IPv4 header");
        let pseudo = checksum::add(
            checksum::sum(&frame[26..34]),
            checksum::add(u16::from(TCP), (frame.len() - 34) as u16),
        );
        assert_eq!(checksum::add(pseudo, checksum::sum(&frame[34..])), 0xffff, "TCP");
    }

    #[test]
    fn a_super_frame_becomes_packets_that_add_up_to_it() {
        let whole = super_frame(3000, 1448);
        let cut = pieces(&whole);
        assert_eq!(cut.iter().map(|p| p.len() - 54).collect::<Vec<_>>(), [1448, 1448, 104]);
        let text: Vec<u8> = cut.iter().flat_map(|p| p[54..].to_vec()).collect();
        assert_eq!(text, whole[VNET_HEADER + 54..]);
        for (i, piece) in cut.iter().enumerate() {
            assert_sums(piece);
            let seq = u32::from_be_bytes(piece[38..42].try_into().unwrap());
            assert_eq!(seq, 0xffff_ff00u32.wrapping_add(1448 * i as u32));
            assert_eq!(piece[18..20], 0xfffeu16.wrapping_add(i as u16).to_be_bytes());
        }
    }

    #[test]
    fn fin_and_push_stay_on_the_last_piece_and_cwr_on_the_first() {
        let flags: Vec<u8> = pieces(&super_frame(3000, 1448)).iter().map(|p| p[47]).collect();
        assert_eq!(flags, [CWR | 0x10, 0x10, FIN_PSH | 0x10]);
    }

    #[test]
    fn an_unfinished_checksum_is_finished() {
        let mut octets = super_frame(100, 0);
        // Its IPv4 header is complete, as the kernel leaves it.
        let sum = !checksum::sum(&octets[VNET_HEADER + 14..VNET_HEADER + 34]);
        octets[VNET_HEADER + 24..VNET_HEADER + 26].copy_from_slice(&sum.to_be_bytes());
        let out = pieces(&octets);
        assert_eq!(out.len(), 1);
        assert_sums(&out[0]);
    }

    #[test]
    fn contradictory_headers_are_refused() {
        for len in 0..VNET_HEADER + 54 {
            let octets = &super_frame(3000, 1448)[..len];
            assert_eq!(cut(octets, |_| ()), Err(Malformed), "{len}");
        }
        let mut zero = super_frame(3000, 1448);
        zero[4..6].fill(0);
        assert_eq!(cut(&zero, |_| ()), Err(Malformed));
        let mut far = super_frame(100, 0);
        far[6..8].copy_from_slice(&60_000u16.to_ne_bytes());
        assert_eq!(cut(&far, |_| ()), Err(Malformed));
    }
}
