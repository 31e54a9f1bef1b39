//! Cutting a super-segment into segments, for ports that cannot.
#![forbid(unsafe_code)]

use super::ip::{self, PROTOCOL_TCP};
use super::tcp::{PSH, field};
use super::{SeqNum, TxPacket};
use crate::buf::Chain;
use arrayvec::ArrayVec;

const FIN: u8 = 0x01;

/// Cuts `packet` into packets of at most `gso_size` octets of text, in one pass: SEG.SEQ advances, PSH and FIN stay with
/// the last, options are repeated, and each checksum field holds its own pseudo-header sum. A packet that is one segment
/// comes out as it is.
///
/// Cuts are made between received segments where possible, as [`cut_before`](crate::buf::cut_before) does.
pub fn segment_packet(packet: TxPacket) -> Segments {
    Segments { packet: Some(packet), part: 0, at: 0, sent: 0 }
}

/// The segments of a super-segment, in order.
#[derive(Debug)]
pub struct Segments {
    /// The super-segment, until its last segment is out.
    packet: Option<TxPacket>,
    /// The part that the next segment begins in.
    part: usize,
    /// Where in that part.
    at: u16,
    /// Octets of text that are out.
    sent: u32,
}

impl Iterator for Segments {
    type Item = TxPacket;

    fn next(&mut self) -> Option<TxPacket> {
        let packet = self.packet.as_ref()?;
        if !packet.is_super_segment() {
            return self.packet.take();
        }
        let (len, gso_size) = (packet.text.len(), packet.gso_size);
        let (flow, ip_len) = (packet.flow, packet.ip_len);
        let mut header = ArrayVec::try_from(packet.header.as_slice()).unwrap_or_default(); // no longer than it was
        let text = self.take_text(gso_size);
        let last = self.sent + text.len() == len;
        let (ip_header, tcp) = header.split_at_mut_checked(usize::from(ip_len))?;
        let tcp_len = tcp.len() + text.len() as usize;
        ip::set_tcp_len(ip_header, tcp_len);
        let (local, remote) = (flow.local.addr, flow.remote.addr);
        let pseudo = ip::pseudo_header_sum(local, remote, PROTOCOL_TCP, tcp_len as u32);
        tcp.get_mut(field::CHECKSUM)?.copy_from_slice(&pseudo.to_be_bytes());
        let seq: &mut [u8; 4] = tcp.get_mut(field::SEQ)?.first_chunk_mut()?;
        *seq = (SeqNum(u32::from_be_bytes(*seq)) + self.sent).0.to_be_bytes();
        if !last {
            *tcp.get_mut(field::FLAGS)? &= !(PSH | FIN);
        }
        self.sent += text.len();
        if last {
            self.packet = None;
        }
        Some(TxPacket { flow, header, ip_len, text, gso_size: 0 })
    }
}

impl Segments {
    /// The text of the next segment. Whole parts keep their sums.
    fn take_text(&mut self, gso_size: u16) -> Chain {
        let mut text = Chain::new();
        let parts = self.packet.as_ref().map_or(&[][..], |p| p.text.parts());
        let (mut left, nearly) = (gso_size, gso_size - gso_size / 8);
        while left > 0
            && let Some(part) = parts.get(self.part)
        {
            let rest = part.len() as u16 - self.at;
            let whole = rest <= gso_size && (left <= gso_size / 8 || rest >= nearly);
            if rest > left && !text.is_empty() && whole {
                break;
            }
            let mut piece = part.clone();
            piece.trim_front(self.at);
            if rest > left {
                piece.truncate(left);
                self.at += left;
                left = 0;
            } else {
                (self.part, self.at) = (self.part + 1, 0);
                left -= rest;
            }
            text.push(piece);
        }
        text
    }
}
