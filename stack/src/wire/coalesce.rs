//! Receive coalescing (GRO): packets that carry on where the last one of their flow ended become one super-segment.
#![forbid(unsafe_code)]

use super::ip::{self, PROTOCOL_TCP};
use super::tcp::{ACK, HeaderSum, PSH, field};
use super::{Malformed, RxPacket, SeqNum};
use crate::buf::Chain;
use crate::checksum;
use arrayvec::ArrayVec;

/// Longest super-segment that is put together: as long as an IP packet can be.
const MAX_TEXT: u32 = 65_535 - 120;

/// Longest headers of a plain packet: of IPv6, and 60 octets of TCP.
const MAX_HEADERS: usize = 100;

/// Where the headers of a plain packet lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    ip_len: usize,
    header_len: usize,
}

impl Shape {
    /// Only what GRO of the kernel takes as well: no IP options or extension headers, no padding, text, and no control bit
    /// but ACK and PSH.
    fn of(packet: &RxPacket) -> Option<Shape> {
        let octets = packet.octets.parts().first()?.bytes();
        let half = |at: usize| Some(u16::from_be_bytes(*octets.get(at..)?.first_chunk()?));
        let (ip_len, total_len) = match octets.first()? {
            0x45 if *octets.get(9)? == PROTOCOL_TCP && half(6)? & 0x3fff == 0 => {
                (ip::IPV4_LEN, u32::from(half(2)?))
            }
            first if first >> 4 == 6 && *octets.get(6)? == PROTOCOL_TCP => {
                (ip::IPV6_LEN, u32::from(half(4)?) + ip::IPV6_LEN as u32)
            }
            _ => return None,
        };
        let tcp = octets.get(ip_len..)?;
        let header_len = ip_len + usize::from(tcp.get(12)? >> 4) * 4;
        let plain = tcp.get(field::FLAGS)? & !PSH == ACK;
        let whole = total_len == packet.octets.len() && header_len <= octets.len();
        let text = header_len >= ip_len + 20 && (header_len as u32) < total_len;
        (plain && whole && text).then_some(Shape { ip_len, header_len })
    }
}

/// The headers of the first packet of a super-segment, and where it ends so far.
#[derive(Clone, Debug)]
pub struct Run {
    headers: ArrayVec<u8, MAX_HEADERS>,
    shape: Shape,
    /// Sum of the pseudo-header's addresses and protocol.
    pseudo: u16,
    next: SeqNum,
    len: u32,
}

impl Run {
    /// The run that `packet` begins; `None` if nothing can carry it on.
    pub fn of(packet: &RxPacket) -> Option<Run> {
        let shape = Shape::of(packet)?;
        let first = packet.octets.parts().first()?.bytes();
        let headers: ArrayVec<u8, MAX_HEADERS> =
            ArrayVec::try_from(first.get(..shape.header_len)?).ok()?;
        let len = packet.octets.len() - shape.header_len as u32;
        let addresses = match shape.ip_len {
            ip::IPV4_LEN => headers.get(12..20)?,
            _ => headers.get(8..40)?,
        };
        let pseudo = checksum::add(checksum::sum(addresses), u16::from(PROTOCOL_TCP));
        let next = seq(&headers, shape)? + len;
        Some(Run { headers, shape, pseudo, next, len })
    }

    /// Whether `packet` carries the run on: the same flow and header but for what has to differ, the next octets.
    pub fn continues_with(&self, packet: &RxPacket) -> bool {
        self.is_next(packet).unwrap_or(false)
    }

    fn is_next(&self, packet: &RxPacket) -> Option<bool> {
        let octets = packet.octets.parts().first()?.bytes();
        let Shape { ip_len, header_len } = self.shape;
        let headers = octets.get(..header_len)?;
        if seq(headers, self.shape)? != self.next {
            return Some(false); // most of what does not belong ends here
        }
        let (mask, len_field) = match ip_len {
            ip::IPV4_LEN => (&MASK_V4, headers.get(2..4)?),
            _ => (&MASK_V6, headers.get(4..6)?),
        };
        let len = u32::from(u16::from_be_bytes(*len_field.first_chunk()?));
        let total_len = if ip_len == ip::IPV4_LEN { len } else { len + ip::IPV6_LEN as u32 };
        let text = total_len.saturating_sub(header_len as u32);
        let fits = total_len == packet.octets.len() && text > 0 && self.len + text <= MAX_TEXT;
        Some(fits && differ(&self.headers, headers, mask) == 0)
    }

    /// Takes the text of a packet that continues the run, and whether it was pushed.
    ///
    /// # Errors
    /// [`Malformed::BadChecksum`]; the run is as it was.
    pub fn take(&mut self, packet: RxPacket) -> Result<(Chain, bool), Malformed> {
        let RxPacket { mut octets, checksum, .. } = packet;
        let Shape { ip_len, header_len } = self.shape;
        let first = octets.parts().first().ok_or(Malformed::Truncated)?.bytes();
        let (ip_header, tcp) = first
            .get(..header_len)
            .and_then(|headers| headers.split_at_checked(ip_len))
            .ok_or(Malformed::Truncated)?;
        if ip_len == ip::IPV4_LEN && checksum::sum(ip_header) != 0xffff {
            return Err(Malformed::BadChecksum);
        }
        let tcp_len = octets.len() - ip_len as u32;
        let pseudo = checksum::fold(u32::from(self.pseudo) + tcp_len); // at most 65,535
        let check = HeaderSum::new(pseudo, tcp, checksum);
        let push = tcp.get(field::FLAGS).is_some_and(|flags| flags & PSH != 0);
        octets.trim_front(header_len as u32);
        octets.release_headers();
        check.verify(&mut octets)?;
        self.next += octets.len();
        self.len += octets.len();
        Ok((octets, push))
    }
}

/// What of the headers has to be the same in all packets of a run: in [`MASK_V4`] and [`MASK_V6`]; options always have to.
type Mask = [[u8; 4]; MAX_HEADERS / 4];

/// Version, length, TOS (with ECN) | fragment, but DF | protocol | addresses; TCP as [`MASK_TCP`].
const MASK_V4: Mask = {
    let [a, b, c, d, e] = MASK_TCP;
    let mut mask = [[0xff; 4]; MAX_HEADERS / 4];
    mask[0] = [0xff, 0xff, 0, 0];
    mask[1] = [0, 0, 0x3f, 0xff];
    mask[2] = [0, 0xff, 0, 0];
    [mask[5], mask[6], mask[7], mask[8], mask[9]] = [a, b, c, d, e];
    mask
};

/// Version, traffic class, flow label | next header | addresses; TCP as [`MASK_TCP`].
const MASK_V6: Mask = {
    let [a, b, c, d, e] = MASK_TCP;
    let mut mask = [[0xff; 4]; MAX_HEADERS / 4];
    mask[1] = [0, 0, 0xff, 0];
    [mask[10], mask[11], mask[12], mask[13], mask[14]] = [a, b, c, d, e];
    mask
};

/// Ports | ACK | offset, control bits but PSH, window.
const MASK_TCP: [[u8; 4]; 5] = [[0xff; 4], [0; 4], [0xff; 4], [0xff, !PSH, 0xff, 0xff], [0; 4]];

/// The bits of `mask` in which two headers differ.
fn differ(a: &[u8], b: &[u8], mask: &Mask) -> u32 {
    let words = a.as_chunks().0.iter().zip(b.as_chunks().0).zip(mask);
    words.fold(0, |all, ((a, b), mask)| {
        let [a, b, mask] = [a, b, mask].map(|word| u32::from_ne_bytes(*word));
        all | (a ^ b) & mask
    })
}

fn seq(headers: &[u8], shape: Shape) -> Option<SeqNum> {
    let field = headers.get(shape.ip_len..)?.get(field::SEQ)?.first_chunk()?;
    Some(SeqNum(u32::from_be_bytes(*field)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;
    use crate::wire::{
        Control, Endpoint, FlowTuple, Options, Parsed, RxChecksum, Segment, SegmentOptions,
        Timestamps, TxPacket, UnscaledWindow, emit, parse, segment_packet,
    };
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn flow(v6: bool) -> FlowTuple {
        let addr = |n: u16| match v6 {
            false => core::net::IpAddr::from([10, 0, 0, n as u8]),
            true => core::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]),
        };
        FlowTuple { local: Endpoint::new(addr(1), 4000), remote: Endpoint::new(addr(2), 80) }
    }

    fn segment(pool: &Pool, seq: u32, text: &[u8]) -> Segment {
        let timestamps = Some(Timestamps { val: 7, ecr: 9 });
        Segment {
            seq: SeqNum(seq),
            ack: Some(SeqNum(77)),
            control: Control::None,
            push: false,
            window: UnscaledWindow(500),
            options: Options::Segment(SegmentOptions { timestamps, ..Default::default() }),
            text: Chain::copy_from(pool, 0, text).unwrap(),
            ..Default::default()
        }
    }

    fn received(pool: &Pool, mut packet: TxPacket, checksum: RxChecksum) -> RxPacket {
        packet.finish_checksum();
        RxPacket {
            octets: Chain::copy_from(pool, 0, &packet.to_vec()).unwrap(),
            checksum,
            gso_size: 0,
            port: 0,
        }
    }

    fn one(pool: &Pool, segment: &Segment) -> RxPacket {
        received(pool, emit(flow(false), segment, 0), RxChecksum::Unknown)
    }

    proptest! {
        #[test]
        fn what_was_cut_is_put_together_again(
            text in proptest::collection::vec(any::<u8>(), 2..9000),
            gso in 1u16..1400,
            v6: bool,
            vouched: bool,
        ) {
            prop_assume!(text.len() / usize::from(gso) < 200);
            let pool = Pool::new(600, 2048);
            let mut whole = segment(&pool, u32::MAX - 50, &text);
            whole.push = true;
            let checksum = if vouched { RxChecksum::Valid } else { RxChecksum::Unknown };
            let mut packets: Vec<_> = segment_packet(emit(flow(v6), &whole, gso))
                .map(|packet| received(&pool, packet, checksum))
                .collect();
            let rest = packets.split_off(1);
            let first = packets.pop().unwrap();
            let mut run = Run::of(&first).expect("text");
            let Ok(Parsed::Tcp(_, mut segment)) = parse(first) else { panic!("not TCP") };
            let mut pushed = segment.push;
            for packet in rest {
                prop_assert!(run.continues_with(&packet));
                let (text, push) = run.take(packet).unwrap();
                segment.text.append(text);
                pushed = push;
            }
            prop_assert!(pushed);
            prop_assert_eq!(segment.text.to_vec(), text);
        }
    }

    #[test]
    fn only_the_next_octets_under_the_same_header_carry_on() {
        let pool = Pool::new(64, 2048);
        let run = Run::of(&one(&pool, &segment(&pool, 100, b"0123456789"))).unwrap();
        let next = segment(&pool, 110, b"abc");
        let carries = |packet: &RxPacket| run.continues_with(packet);
        assert!(carries(&one(&pool, &next)));
        assert!(carries(&one(&pool, &Segment { push: true, ..next.clone() })));
        let ack = Some(SeqNum(78));
        let (seq, window) = (SeqNum(111), UnscaledWindow(501));
        let stamped = SegmentOptions {
            timestamps: Some(Timestamps { val: 8, ecr: 9 }),
            ..Default::default()
        };
        for other in [
            Segment { seq, ..next.clone() },
            Segment { ack, ..next.clone() },
            Segment { window, ..next.clone() },
            Segment { control: Control::Fin, ..next.clone() },
            Segment { options: Options::Segment(SegmentOptions::default()), ..next.clone() },
            Segment { options: Options::Segment(stamped), ..next.clone() },
            Segment { text: Chain::new(), ..next.clone() },
        ] {
            assert!(!carries(&one(&pool, &other)), "{other:?}");
        }
        let elsewhere = emit(flow(true), &next, 0);
        assert!(!carries(&received(&pool, elsewhere, RxChecksum::Unknown)), "another family");
        let mut marked = emit(flow(false), &next, 0);
        marked.header[1] = 3;
        assert!(!carries(&received(&pool, marked, RxChecksum::Unknown)), "congestion experienced");
    }

    #[test]
    fn a_wrong_checksum_is_found_and_the_run_goes_on() {
        let pool = Pool::new(64, 2048);
        let mut run = Run::of(&one(&pool, &segment(&pool, 100, b"0123456789"))).unwrap();
        let mut bytes = one(&pool, &segment(&pool, 110, b"abc")).octets.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let damaged = Chain::copy_from(&pool, 0, &bytes).unwrap();
        let damaged =
            RxPacket { octets: damaged, checksum: RxChecksum::Unknown, gso_size: 0, port: 0 };
        assert!(run.continues_with(&damaged));
        assert_eq!(run.take(damaged).unwrap_err(), Malformed::BadChecksum);
        let (text, _) = run.take(one(&pool, &segment(&pool, 110, b"abc"))).unwrap();
        assert_eq!(text.to_vec(), b"abc");
    }

    #[test]
    fn control_segments_padding_and_fragments_begin_nothing() {
        let pool = Pool::new(64, 2048);
        let plain = segment(&pool, 1, b"x");
        assert!(Run::of(&one(&pool, &plain)).is_some());
        for control in [Control::Fin, Control::Rst] {
            assert!(Run::of(&one(&pool, &Segment { control, ..plain.clone() })).is_none());
        }
        assert!(Run::of(&one(&pool, &Segment { text: Chain::new(), ..plain.clone() })).is_none());
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = one(&pool, &plain).octets.to_vec();
            change(&mut bytes);
            let octets = Chain::copy_from(&pool, 0, &bytes).unwrap();
            Run::of(&RxPacket { octets, checksum: RxChecksum::Unknown, gso_size: 0, port: 0 })
        };
        assert!(with(&|b| b.push(0)).is_none(), "padding");
        assert!(with(&|b| b[6] = 0x20).is_none(), "a fragment");
        assert!(with(&|b| b.truncate(30)).is_none(), "cut short");
        assert!(with(&|b| b[32] = 0xf0).is_none(), "a header beyond the end");
    }
}
