//! TCP segments over IPv4 and IPv6: parsed once to a value, written as one header (RFC 9293 3.1).
#![forbid(unsafe_code)]

use super::ip::{self, IpHeader, PROTOCOL_TCP};
use super::octets::Octets;
use super::{Endpoint, FlowTuple, MptcpOption, Options, SeqNum, TrafficClass, UnscaledWindow};
use crate::buf::Chain;
use crate::checksum;
use arrayvec::ArrayVec;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
/// Bits of octet 13, and the one of octet 12 that AccECN calls AE.
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
const AE: u8 = 0x01;
/// Octets of a header without options.
const MIN_HEADER: usize = 20;
/// Where the fields of a TCP header lie.
pub(super) mod field {
    use core::ops::Range;
    pub(in super::super) const SEQ: Range<usize> = 4..8;
    pub(in super::super) const FLAGS: usize = 13;
    pub(in super::super) const CHECKSUM: Range<usize> = 16..18;
}

/// What a port knows about the TCP checksum of a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RxChecksum {
    /// Nothing: verify all of it.
    #[default]
    Unknown,
    /// The port vouches for it, or the sender left it for hardware that was never met (the field holds only the
    /// pseudo-header sum): do not look at it.
    Valid,
    /// As `Unknown`, but a field that holds only the pseudo-header sum is right as well: an AF_XDP port on a virtual
    /// interface (docs: IO gotchas of veth).
    MaybePartial,
}

/// A received IP packet (the link-layer header already trimmed), possibly a super-segment.
#[derive(Debug)]
pub struct RxPacket {
    /// From the IP header on.
    pub octets: Chain,
    /// What is known of its checksum.
    pub checksum: RxChecksum,
    /// Which port it came in by; the caller's numbering.
    pub port: u16,
    /// Octets of text per segment, where it is a super-segment and the port knows; else 0.
    pub gso_size: u16,
}

/// A TCP packet to send: IP and TCP header in one piece, then the text by reference.
///
/// The TCP checksum field holds the folded pseudo-header sum (not complemented), TCP length being that of the whole
/// super-segment, as `VIRTIO_NET_HDR_F_NEEDS_CSUM` wants it; a port without checksum offload finishes it.
///
/// It may also be another IP packet about the flow, ready made (see [`TxPacket::is_ready_made`]).
#[derive(Debug)]
pub struct TxPacket {
    /// The flow, local end first.
    pub flow: FlowTuple,
    /// IP and TCP header.
    pub header: ArrayVec<u8, 120>,
    /// Octets of `header` that are IP, or all of them if the packet is ready made.
    pub ip_len: u8,
    /// The text.
    pub text: Chain,
    /// Octets of text per segment when a port has to cut a super-segment; 0 = `text` is one segment already.
    pub gso_size: u16,
}

/// SYN, FIN and RST exclude each other. SYN with one of the others does not parse; in RST with FIN only RST is seen
/// (RFC 9293 3.10.7.4 ends at RST).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Control {
    /// None of the three.
    #[default]
    None,
    /// SYN.
    Syn,
    /// FIN.
    Fin,
    /// RST.
    Rst,
}

/// A TCP segment, received or to be sent. Options, control bits and text in one value; no octet of text is copied.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// SEG.SEQ.
    pub seq: SeqNum,
    /// SEG.ACK, if ACK is set.
    pub ack: Option<SeqNum>,
    /// SYN, FIN or RST.
    pub control: Control,
    /// PSH.
    pub push: bool,
    /// AE, CWR and ECE.
    pub ecn: EcnFlags,
    /// What the IP header says of it: DSCP and ECN.
    pub traffic_class: TrafficClass,
    /// SEG.WND as it stands in the header.
    pub window: UnscaledWindow,
    /// Options.
    pub options: Options,
    /// The text.
    pub text: Chain,
}

/// The control bits AE, CWR and ECE (RFC 3168 6.1, RFC 9768 3.1.1), from high to low: as one number, the ACE field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct EcnFlags(u8);

impl EcnFlags {
    /// None of them.
    pub const NONE: EcnFlags = EcnFlags(0);
    /// ECE alone.
    pub const ECE: EcnFlags = EcnFlags(1);
    /// CWR alone.
    pub const CWR: EcnFlags = EcnFlags(2);
    /// AE alone.
    pub const AE: EcnFlags = EcnFlags(4);

    /// From the ACE field; three bits count.
    pub const fn from_ace(ace: u8) -> EcnFlags {
        EcnFlags(ace & 7)
    }

    /// As the ACE field: 0 to 7.
    pub const fn ace(self) -> u8 {
        self.0
    }

    /// These and `other`.
    pub const fn with(self, other: EcnFlags) -> EcnFlags {
        EcnFlags(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: EcnFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// From octets 12 and 13 of the header.
    fn parse(offset: u8, flags: u8) -> EcnFlags {
        EcnFlags((offset & AE) << 2 | (flags & (CWR | ECE)) >> 6)
    }

    /// Bits of octets 12 and 13.
    fn write(self) -> (u8, u8) {
        (self.0 >> 2, (self.0 & 3) << 6)
    }
}

impl Segment {
    /// SEG.LEN: octets of sequence space, SYN and FIN counted.
    pub fn len(&self) -> u32 {
        self.text.len() + u32::from(matches!(self.control, Control::Syn | Control::Fin))
    }

    /// Whether it takes no sequence space.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this may be signalling rather than a sign of loss when it looks like a duplicate ACK.
    /// RFC 8684 3.3.2, 3.4: any MPTCP option exempts it except DSS, which every duplicate ACK carries.
    pub fn exempt_from_dupack(&self) -> bool {
        let signals = |o: &MptcpOption| !matches!(o, MptcpOption::Dss(_)) && !o.is_malformed();
        self.options.mptcp().iter().any(signals)
    }

    /// Octets of TCP header this segment is written with: options and padding included, text not.
    pub fn header_len(&self) -> usize {
        MIN_HEADER + self.options.written_len()
    }
}

/// Why octets are not a packet we can use. Counted, never logged one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Malformed {
    /// A header or the length it claims reaches past the end.
    Truncated,
    /// IP or TCP checksum wrong.
    BadChecksum,
    /// A header length below the minimum or beyond the packet.
    BadLength,
    /// An IP version that is neither 4 nor 6.
    BadVersion,
    /// Control bits that exclude each other, or a port of zero.
    BadFlags,
    /// An option length of 0, 1 or past the end, in a SYN (RFC 9293 MUST-7).
    BadOption,
    /// A multicast, broadcast or unspecified address where a host's is needed.
    BadAddress,
}

/// What an IP packet is.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every packet is TCP, and is moved once")]
pub enum Parsed {
    /// A whole TCP segment.
    Tcp(FlowTuple, Segment),
    /// An IPv4 fragment or IPv6 fragment header: refused with a counter.
    Fragment,
    /// Some other protocol (its number), left as it was.
    Other(u8, Chain),
}

/// Parses one IP packet. The headers must lie in the first part of `octets`; they are released as headroom. Sums of the
/// text that verification found stay with it.
///
/// # Errors
/// [`Malformed`], with the frames back in their pool.
pub fn parse(packet: RxPacket) -> Result<Parsed, Malformed> {
    let RxPacket { mut octets, checksum, .. } = packet;
    let first = octets.parts().first().ok_or(Malformed::Truncated)?.bytes();
    let ip = IpHeader::parse(first)?;
    if ip.protocol != PROTOCOL_TCP {
        return Ok(Parsed::Other(ip.protocol, octets));
    }
    if ip.fragment {
        return Ok(Parsed::Fragment);
    }
    ip.check_addresses()?;
    if octets.len() < ip.total_len as u32 {
        return Err(Malformed::Truncated);
    }
    let head = TcpHeader::parse(first.get(ip.len..).ok_or(Malformed::Truncated)?)?;
    let header_len = ip.len + head.octets.len();
    if header_len > ip.total_len {
        return Err(Malformed::BadLength);
    }
    let options = Options::parse(head.octets.get(MIN_HEADER..).unwrap_or(&[]), head.control)?;
    let flow = FlowTuple {
        local: Endpoint::new(ip.dst, head.ports.1),
        remote: Endpoint::new(ip.src, head.ports.0),
    };
    let tcp_len = (ip.total_len - ip.len) as u32;
    let pseudo = ip::pseudo_header_sum(ip.src, ip.dst, PROTOCOL_TCP, tcp_len);
    let check = HeaderSum::new(pseudo, head.octets, checksum);
    let TcpHeader { seq, ack, control, push, ecn, window, .. } = head;
    let traffic_class = ip.traffic_class;
    octets.truncate(ip.total_len as u32); // what follows is padding of the link
    octets.trim_front(header_len as u32);
    octets.release_headers();
    check.verify(&mut octets)?;
    let text = octets;
    Ok(Parsed::Tcp(
        flow,
        Segment { seq, ack, control, push, ecn, traffic_class, window, options, text },
    ))
}

/// The fields of a TCP header.
struct TcpHeader<'a> {
    /// All of it, options included.
    octets: &'a [u8],
    /// Source, destination.
    ports: (u16, u16),
    seq: SeqNum,
    ack: Option<SeqNum>,
    control: Control,
    push: bool,
    ecn: EcnFlags,
    window: UnscaledWindow,
}

impl TcpHeader<'_> {
    fn parse(octets: &[u8]) -> Result<TcpHeader<'_>, Malformed> {
        let fixed = octets.first_chunk::<MIN_HEADER>().ok_or(Malformed::Truncated)?;
        let len = usize::from(fixed[12] >> 4) * 4;
        if len < MIN_HEADER {
            return Err(Malformed::BadLength);
        }
        let octets = octets.get(..len).ok_or(Malformed::Truncated)?;
        let flags = fixed[field::FLAGS];
        let mut r = Octets(fixed);
        let mut half = || r.u16().unwrap_or_default();
        let ports = (half(), half());
        let mut word = || u32::from(half()) << 16 | u32::from(half());
        let (seq, ack) = (SeqNum(word()), SeqNum(word()));
        let (_, window) = (half(), half());
        if ports.0 == 0 || ports.1 == 0 {
            return Err(Malformed::BadFlags);
        }
        Ok(TcpHeader {
            octets,
            ports,
            seq,
            ack: (flags & ACK != 0).then_some(ack),
            control: control(flags)?,
            push: flags & PSH != 0,
            ecn: EcnFlags::parse(fixed[12], flags),
            window: UnscaledWindow(window),
        })
    }
}

fn control(flags: u8) -> Result<Control, Malformed> {
    match flags & (SYN | FIN | RST) {
        0 => Ok(Control::None),
        SYN => Ok(Control::Syn),
        FIN => Ok(Control::Fin),
        f if f & SYN == 0 => Ok(Control::Rst),
        _ => Err(Malformed::BadFlags),
    }
}

/// What the text's sum has to complete.
pub(super) enum HeaderSum {
    /// Nothing to verify.
    Trusted,
    /// Sum of pseudo-header and TCP header.
    Known(u16),
}

impl HeaderSum {
    /// From the sum of the pseudo-header and the octets of the TCP header.
    pub(super) fn new(pseudo: u16, tcp: &[u8], checksum: RxChecksum) -> HeaderSum {
        if checksum == RxChecksum::Valid {
            return HeaderSum::Trusted;
        }
        let field = tcp.get(field::CHECKSUM).and_then(|f| f.first_chunk());
        let field = field.map_or(0, |f| u16::from_be_bytes(*f));
        // Zero has two names in ones complement; offloads may write either.
        let partial = field == pseudo || (field == 0 && pseudo == 0xffff);
        if checksum == RxChecksum::MaybePartial && partial {
            return HeaderSum::Trusted;
        }
        HeaderSum::Known(checksum::add(pseudo, checksum::sum(tcp)))
    }

    pub(super) fn verify(self, text: &mut Chain) -> Result<(), Malformed> {
        match self {
            HeaderSum::Trusted => Ok(()),
            HeaderSum::Known(sum) if checksum::add(sum, text.sum()) == 0xffff => Ok(()),
            HeaderSum::Known(_) => Err(Malformed::BadChecksum),
        }
    }
}

/// Writes `segment` of `flow` as a packet. `gso_size` as in [`TxPacket`]. Options that do not fit in 40 octets are a
/// bug of the caller: a debug assertion, and in release the last ones are left out.
pub fn emit(flow: FlowTuple, segment: &Segment, gso_size: u16) -> TxPacket {
    let options = segment.options.write();
    debug_assert_eq!(options.len(), segment.options.written_len(), "more options than fit");
    let text_len = segment.text.len() as usize;
    let tcp_len = MIN_HEADER + options.len() + text_len;
    debug_assert!(tcp_len + 40 <= 0xffff, "the IP length field has 16 bits");
    let mut header = ArrayVec::new();
    ip::write(
        &mut header,
        (flow.local.addr, flow.remote.addr),
        segment.traffic_class,
        PROTOCOL_TCP,
        tcp_len,
    );
    let ip_len = header.len() as u8;
    let pseudo =
        ip::pseudo_header_sum(flow.local.addr, flow.remote.addr, PROTOCOL_TCP, tcp_len as u32);
    let data_offset = ((MIN_HEADER + options.len()) / 4) as u8;
    header.extend(flow.local.port.to_be_bytes());
    header.extend(flow.remote.port.to_be_bytes());
    header.extend(segment.seq.0.to_be_bytes());
    header.extend(segment.ack.unwrap_or_default().0.to_be_bytes());
    let (ae, ecn) = segment.ecn.write();
    header.extend([data_offset << 4 | ae, flags(segment) | ecn]);
    header.extend(segment.window.0.to_be_bytes());
    header.extend(pseudo.to_be_bytes());
    header.extend([0, 0]);
    header.extend(options);
    TxPacket { flow, header, ip_len, text: segment.text.clone(), gso_size }
}

fn flags(segment: &Segment) -> u8 {
    let control = match segment.control {
        Control::None => 0,
        Control::Syn => SYN,
        Control::Fin => FIN,
        Control::Rst => RST,
    };
    let ack = if segment.ack.is_some() { ACK } else { 0 };
    control | ack | if segment.push { PSH } else { 0 }
}

impl TxPacket {
    /// Completes the TCP checksum, for a port that cannot. Once only, and on a packet that is one segment (see
    /// [`segment_packet`](super::segment_packet)). Sums that the payloads know are used.
    pub fn finish_checksum(&mut self) {
        debug_assert!(!self.is_super_segment(), "each segment has its own checksum");
        let text = self.text.sum();
        let Some(tcp) = self.header.get_mut(usize::from(self.ip_len)..) else { return };
        let sum = checksum::add(checksum::sum(tcp), text); // the field holds the pseudo-header
        if let Some(field) = tcp.get_mut(field::CHECKSUM) {
            field.copy_from_slice(&(!sum).to_be_bytes());
        }
    }

    /// Whether it is no TCP segment but a whole IP packet in `header`, such as an ICMP error: to be sent as it is.
    pub fn is_ready_made(&self) -> bool {
        usize::from(self.ip_len) >= self.header.len()
    }

    /// SEG.SEQ, unless it is ready made.
    pub fn seq(&self) -> Option<SeqNum> {
        let field = self.header.get(usize::from(self.ip_len) + 4..)?.first_chunk()?;
        Some(SeqNum(u32::from_be_bytes(*field)))
    }

    /// Whether a port has to cut it.
    pub fn is_super_segment(&self) -> bool {
        self.gso_size > 0 && self.text.len() > u32::from(self.gso_size)
    }

    /// Octets of the packet, IP header included.
    pub fn len(&self) -> usize {
        self.header.len() + self.text.len() as usize
    }

    /// Never: there is a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packet in one vector, the checksum as it stands.
    pub fn to_vec(&self) -> alloc::vec::Vec<u8> {
        let mut out = alloc::vec![0; self.len()];
        let (header, text) = out.split_at_mut(self.header.len());
        header.copy_from_slice(&self.header);
        self.text.copy_to(text);
        out
    }
}
