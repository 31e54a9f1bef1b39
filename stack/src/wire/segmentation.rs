//! Cutting a super-segment into segments, for ports that cannot.
#![forbid(unsafe_code)]

use super::ip::{self, PROTOCOL_TCP};
use super::tcp::{PSH, field};
use super::{SeqNum, TxPacket};
use crate::buf::{Chain, Parts, Payload};
use arrayvec::ArrayVec;

const FIN: u8 = 0x01;

/// Cuts `packet` into packets of at most `gso_size` octets of text, in one pass: SEG.SEQ advances, PSH and FIN stay with
/// the last, options are repeated, and each checksum field holds its own pseudo-header sum. A packet that is one segment
/// comes out as it is.
///
/// Cuts are made between received segments where possible, as [`cut_before`](crate::buf::cut_before) does.
pub fn segment_packet(mut packet: TxPacket) -> Segments {
    if !packet.is_super_segment() {
        let parts = Chain::new().into_parts();
        return Segments { next: Some(packet), parts, begun: None, left: 0, end: 0 };
    }
    let left = packet.text.len();
    let parts = core::mem::take(&mut packet.text).into_parts();
    let flags = packet.header.get_mut(usize::from(packet.ip_len) + field::FLAGS);
    let end = flags.map_or(0, |flags| {
        let end = *flags & (PSH | FIN);
        *flags &= !end;
        end
    });
    Segments { next: Some(packet), parts, begun: None, left, end }
}

/// The segments of a super-segment, in order.
#[derive(Debug)]
pub struct Segments {
    /// The next segment, its text missing; or the packet that was one segment already.
    next: Option<TxPacket>,
    /// Text that is not out.
    parts: Parts,
    /// What is left of a part that was cut, before the others.
    begun: Option<Payload>,
    /// Octets that are not out.
    left: u32,
    /// Control bits of the last segment.
    end: u8,
}

impl Iterator for Segments {
    type Item = TxPacket;

    fn next(&mut self) -> Option<TxPacket> {
        if self.left == 0 {
            return self.next.take();
        }
        let gso_size = self.next.as_ref()?.gso_size;
        let text = self.take_text(gso_size);
        self.left -= text.len();
        let next = self.next.as_mut()?;
        set_text_len(next, text.len())?;
        if self.left == 0 {
            *next.header.get_mut(usize::from(next.ip_len) + field::FLAGS)? |= self.end;
            return self.next.take().map(|last| TxPacket { text, gso_size: 0, ..last });
        }
        let header = ArrayVec::try_from(next.header.as_slice()).unwrap_or_default(); // no longer than it was
        let tcp = next.header.get_mut(usize::from(next.ip_len)..)?;
        let seq: &mut [u8; 4] = tcp.get_mut(field::SEQ)?.first_chunk_mut()?;
        *seq = (SeqNum(u32::from_be_bytes(*seq)) + text.len()).0.to_be_bytes();
        Some(TxPacket { flow: next.flow, header, ip_len: next.ip_len, text, gso_size: 0 })
    }
}

/// Writes the length of the text into the headers, and with it the sum of the pseudo-header.
fn set_text_len(packet: &mut TxPacket, text: u32) -> Option<()> {
    let (ip_header, tcp) = packet.header.split_at_mut_checked(usize::from(packet.ip_len))?;
    let tcp_len = tcp.len() + text as usize;
    if !ip::set_tcp_len(ip_header, tcp_len) {
        return Some(()); // as long as the one before
    }
    let (local, remote) = (packet.flow.local.addr, packet.flow.remote.addr);
    let pseudo = ip::pseudo_header_sum(local, remote, PROTOCOL_TCP, tcp_len as u32);
    tcp.get_mut(field::CHECKSUM)?.copy_from_slice(&pseudo.to_be_bytes());
    Some(())
}

impl Segments {
    /// The text of the next segment. Whole parts keep their sums.
    fn take_text(&mut self, gso_size: u16) -> Chain {
        let mut text = Chain::new();
        let (mut left, nearly) = (gso_size, gso_size - gso_size / 8);
        while left > 0
            && let Some(part) = self.begun.as_ref().or_else(|| self.parts.as_slice().first())
        {
            let len = part.len() as u16;
            let whole = len <= gso_size && (left <= gso_size / 8 || len >= nearly);
            if len > left && !text.is_empty() && whole {
                break;
            }
            let Some(mut part) = self.begun.take().or_else(|| self.parts.next()) else { break };
            if len > left {
                self.begun = Some(part.split_off(left));
            }
            left -= part.len() as u16;
            text.push(part);
        }
        text
    }
}
