//! Marking packets instead of dropping them (RFC 3168 5).
#![forbid(unsafe_code)]

use stack::wire::checksum;

const ETHERNET: usize = 14;
const CE: u8 = 0b11;

/// What came of marking a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// It says Congestion Experienced now.
    Set,
    /// Its ends do not understand the mark (Not-ECT), or it is no IP packet: it stays as it is.
    NotCapable,
}

/// What travels over a link.
pub trait Packet: Clone {
    /// Marks it: Congestion Experienced.
    fn mark(&mut self) -> Mark;
}

/// Marks the IP packet in an Ethernet frame.
pub fn mark_frame(frame: &mut [u8]) -> Mark {
    let Some((ethernet, ip)) = frame.split_at_mut_checked(ETHERNET) else {
        return Mark::NotCapable;
    };
    match (&ethernet[12..], ip) {
        ([0x08, 0x00], ip) if ip.len() >= 20 => mark_v4(ip),
        ([0x86, 0xdd], [_, low, ..]) if *low >> 4 & CE != 0 => {
            *low |= CE << 4;
            Mark::Set
        }
        _ => Mark::NotCapable,
    }
}

fn mark_v4(ip: &mut [u8]) -> Mark {
    let old = ip[1];
    if old & CE == 0 {
        return Mark::NotCapable;
    }
    ip[1] = old | CE;
    // RFC 1624: the sum of what was there goes, the sum of what is there comes.
    let sum = !u16::from_be_bytes([ip[10], ip[11]]);
    let sum = checksum::add(checksum::add(sum, !u16::from(old)), u16::from(old | CE));
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    Mark::Set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(tos: u8) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 40];
        frame[12..14].copy_from_slice(&[8, 0]);
        let ip = &mut frame[ETHERNET..];
        ip[..2].copy_from_slice(&[0x45, tos]);
        ip[2..4].copy_from_slice(&40u16.to_be_bytes());
        ip[8..10].copy_from_slice(&[64, 6]);
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !checksum::sum(&ip[..20]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn an_ecn_capable_packet_is_marked_and_its_checksum_holds() {
        for tos in [0x01, 0x02, 0x03, 0xb9, 0xfe] {
            let mut frame = v4(tos);
            assert_eq!(mark_frame(&mut frame), Mark::Set, "{tos:#x}");
            assert_eq!(frame[ETHERNET + 1], tos | CE, "the DSCP stays");
            assert_eq!(checksum::sum(&frame[ETHERNET..ETHERNET + 20]), 0xffff, "{tos:#x}");
        }
        let mut v6 = vec![0; ETHERNET + 40];
        v6[12..14].copy_from_slice(&[0x86, 0xdd]);
        v6[14..16].copy_from_slice(&[0x6b, 0xa5]); // traffic class 0xba: ECT(0)
        assert_eq!(mark_frame(&mut v6), Mark::Set);
        assert_eq!(v6[14..16], [0x6b, 0xb5]);
    }

    #[test]
    fn what_is_not_ecn_capable_stays_as_it_is() {
        let arp = {
            let mut frame = v4(0xff);
            frame[13] = 6;
            frame
        };
        for frame in [v4(0), v4(0xfc), arp, vec![0; 13], vec![8; ETHERNET]] {
            let mut marked = frame.clone();
            assert_eq!(mark_frame(&mut marked), Mark::NotCapable);
            assert_eq!(marked, frame);
        }
    }
}
