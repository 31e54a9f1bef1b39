//! MPTCP v1 options (RFC 8684 3, TCP option kind 30) as values.
#![forbid(unsafe_code)]

use super::Dsn;
use super::octets::Octets;
use super::tcp_option::{KIND_MPTCP, OptionOctets};
use arrayvec::ArrayVec;
use core::net::IpAddr;

/// MP_CAPABLE flag A: checksums required.
pub const MP_CAPABLE_CHECKSUM: u8 = 0x80;
/// MP_CAPABLE flag C: do not open subflows to the source address and port of this segment.
pub const MP_CAPABLE_NO_JOIN_HERE: u8 = 0x20;

/// MPTCP options of one segment, in order. More than fit in 40 octets cannot occur.
pub type MptcpOptions = ArrayVec<MptcpOption, 4>;

/// One MPTCP option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MptcpOption {
    /// 0x0.
    MpCapable(MpCapable),
    /// 0x1.
    MpJoin(MpJoin),
    /// 0x2.
    Dss(Dss),
    /// 0x3.
    AddAddr(AddAddr),
    /// 0x4; ids beyond eight are ignored.
    RemoveAddr(AddressIds),
    /// 0x5: `backup` is what the peer asks for the subflow that carries it.
    MpPrio {
        /// The B flag.
        backup: bool,
    },
    /// 0x6.
    MpFail(Dsn),
    /// 0x7.
    MpFastclose(MpFastclose),
    /// 0x8.
    MpTcpRst {
        /// T: the peer may retry the path.
        transient: bool,
        /// Why.
        reason: ResetReason,
    },
    /// A subtype we do not know, or one we know with a length that it cannot have ([`MptcpOption::is_malformed`]). To be
    /// treated as absent; kept so that it can be counted. Written with a body of zeros, which makes `1e 04 e0 00` (the
    /// MP_PREFER_PROXY of implicit mode) out of subtype 0xe and length 4.
    Unknown {
        /// Subtype.
        subtype: u8,
        /// Length octet.
        len: u8,
    },
}

impl MptcpOption {
    /// Parses one option, from its kind octet to its end. RFC 8684 3: what a length does not fit is read as
    /// [`MptcpOption::Unknown`].
    pub fn parse(option: &[u8]) -> MptcpOption {
        let len = option.len().min(255) as u8;
        let Some(([_kind, _len, head], body)) = option.split_first_chunk() else {
            return MptcpOption::Unknown { subtype: 0, len };
        };
        let (subtype, low) = (head >> 4, head & 0xf);
        let known = match subtype {
            0x0 => parse_mp_capable(low, body),
            0x1 => parse_mp_join(low, body),
            0x2 => parse_dss(body),
            0x3 => parse_add_addr(low, body),
            0x4 => parse_remove_addr(body),
            0x5 if body.is_empty() => Some(MptcpOption::MpPrio { backup: low & 1 == 1 }),
            0x6 => parse_reserved_and_u64(body).map(|dsn| MptcpOption::MpFail(Dsn(dsn))),
            0x7 => parse_reserved_and_u64(body)
                .map(|receiver_key| MptcpOption::MpFastclose(MpFastclose { receiver_key })),
            0x8 => parse_mp_tcprst(low, body),
            _ => None,
        };
        known.unwrap_or(MptcpOption::Unknown { subtype, len })
    }

    /// Whether this is an option that RFC 8684 defines, with a length that it does not allow.
    pub fn is_malformed(&self) -> bool {
        matches!(self, MptcpOption::Unknown { subtype, .. } if *subtype <= 8)
    }

    /// The option's length octet.
    pub fn len_octet(&self) -> u8 {
        match self {
            MptcpOption::MpCapable(c) => match (c.sender_key, c.receiver_key, c.data) {
                (None, ..) => 4,
                (_, None, _) => 12,
                (.., None) => 20,
                (.., Some((_, None))) => 22,
                (.., Some((_, Some(_)))) => 24,
            },
            MptcpOption::MpJoin(MpJoin::Syn { .. }) => 12,
            MptcpOption::MpJoin(MpJoin::SynAck { .. }) => 16,
            MptcpOption::MpJoin(MpJoin::Ack { .. }) => 24,
            MptcpOption::Dss(dss) => dss.len_octet(),
            MptcpOption::AddAddr(a) => {
                4 + if a.addr.is_ipv4() { 4 } else { 16 }
                    + if a.port.is_some() { 2 } else { 0 }
                    + if a.hmac.is_some() { 8 } else { 0 }
            }
            MptcpOption::RemoveAddr(ids) => 3 + ids.as_slice().len() as u8,
            MptcpOption::MpPrio { .. } => 3,
            MptcpOption::MpFail(_) | MptcpOption::MpFastclose(_) => 12,
            MptcpOption::MpTcpRst { .. } => 4,
            MptcpOption::Unknown { len, .. } => (*len).clamp(3, 40),
        }
    }

    /// Octets that the option takes in a segment, the NOPs that fill it up to a multiple of 4 counted.
    pub fn written_len(&self) -> usize {
        usize::from(self.len_octet()).next_multiple_of(4)
    }

    /// Appends the option without padding. The caller has checked that [`MptcpOption::written_len`] octets are free.
    pub(super) fn write(&self, out: &mut OptionOctets) {
        let mut w = Writer(out);
        let len = self.len_octet();
        let mut head = |subtype: u8, low: u8| w.put([KIND_MPTCP, len, subtype << 4 | low & 0xf]);
        match *self {
            MptcpOption::MpCapable(c) => {
                head(0x0, c.version);
                c.write_body(&mut w);
            }
            MptcpOption::MpJoin(j) => {
                head(0x1, j.backup_bit());
                j.write_body(&mut w);
            }
            MptcpOption::Dss(d) => {
                head(0x2, 0);
                d.write_body(&mut w);
            }
            MptcpOption::AddAddr(a) => {
                head(0x3, u8::from(a.hmac.is_none()));
                a.write_body(&mut w);
            }
            MptcpOption::RemoveAddr(ids) => {
                head(0x4, 0);
                ids.as_slice().iter().for_each(|id| w.put([*id]));
            }
            MptcpOption::MpPrio { backup } => head(0x5, u8::from(backup)),
            MptcpOption::MpFail(dsn) => {
                head(0x6, 0);
                w.put([0]);
                w.put(dsn.0.to_be_bytes());
            }
            MptcpOption::MpFastclose(f) => {
                head(0x7, 0);
                w.put([0]);
                w.put(f.receiver_key.to_be_bytes());
            }
            MptcpOption::MpTcpRst { transient, reason } => {
                head(0x8, u8::from(transient));
                w.put([reason as u8]);
            }
            MptcpOption::Unknown { subtype, .. } => {
                head(subtype, 0);
                (3..len).for_each(|_| w.put([0]));
            }
        }
    }
}

/// Appends as long as there is room; callers have made sure that there is.
struct Writer<'a>(&'a mut OptionOctets);

impl Writer<'_> {
    fn put<const N: usize>(&mut self, octets: [u8; N]) {
        let fits = self.0.try_extend_from_slice(&octets);
        debug_assert!(fits.is_ok(), "the caller reserves room for the whole option");
    }
}

fn parse_mp_capable(version: u8, body: &[u8]) -> Option<MptcpOption> {
    let mut r = Octets(body);
    let flags = r.u8()?;
    let mut c = MpCapable { version, flags, sender_key: None, receiver_key: None, data: None };
    // Which form it is follows from the length alone; whether the form fits the segment is for the handshake to say.
    match body.len() {
        1 => {}
        9 => c.sender_key = r.u64(),
        17 | 19 | 21 => {
            c.sender_key = r.u64();
            c.receiver_key = r.u64();
            c.data = r.u16().map(|len| (len, r.u16()));
        }
        _ => return None,
    }
    Some(MptcpOption::MpCapable(c))
}

fn parse_mp_join(low: u8, body: &[u8]) -> Option<MptcpOption> {
    let (backup, len) = (low & 1 == 1, body.len());
    let mut r = Octets(body);
    let address_id = r.u8()?;
    Some(MptcpOption::MpJoin(match len {
        9 => MpJoin::Syn { backup, address_id, token: r.u32()?, nonce: r.u32()? },
        13 => MpJoin::SynAck { backup, address_id, hmac: r.u64()?, nonce: r.u32()? },
        21 => MpJoin::Ack { hmac: r.array()? },
        _ => return None,
    }))
}

const DSS_DATA_ACK: u8 = 0x01;
const DSS_DATA_ACK_LONG: u8 = 0x02;
const DSS_MAPPING: u8 = 0x04;
const DSS_DSN_LONG: u8 = 0x08;
const DSS_DATA_FIN: u8 = 0x10;

fn parse_dss(body: &[u8]) -> Option<MptcpOption> {
    let mut r = Octets(body);
    let flags = r.u8()?;
    let mut dss = Dss { data_fin: flags & DSS_DATA_FIN != 0, ..Dss::default() };
    if flags & DSS_DATA_ACK != 0 {
        dss.data_ack = Some(match flags & DSS_DATA_ACK_LONG {
            0 => DataAck::Short(r.u32()?),
            _ => DataAck::Long(Dsn(r.u64()?)),
        });
    }
    if flags & DSS_MAPPING != 0 {
        let dsn = match flags & DSS_DSN_LONG {
            0 => DssDsn::Short(r.u32()?),
            _ => DssDsn::Long(Dsn(r.u64()?)),
        };
        // RFC 8684 3.3: whether there is a checksum shows in the length only.
        dss.mapping = Some(DssMapping { dsn, ssn: r.u32()?, len: r.u16()?, checksum: r.u16() });
    }
    r.0.is_empty().then_some(MptcpOption::Dss(dss))
}

fn parse_add_addr(low: u8, body: &[u8]) -> Option<MptcpOption> {
    let echo = low & 1 == 1;
    let mut r = Octets(body);
    let address_id = r.u8()?;
    // Family and port follow from the length; v0's form (nibble 4 or 6, no HMAC) has lengths that an E=0 cannot have.
    let hmac_len = if echo { 0 } else { 8 };
    let addr = match body.len().checked_sub(1 + hmac_len)? {
        4 | 6 => IpAddr::from(r.array::<4>()?),
        16 | 18 => IpAddr::from(r.array::<16>()?),
        _ => return None,
    };
    let port = if r.0.len() > hmac_len { r.u16() } else { None };
    let hmac = if echo { None } else { Some(r.u64()?) };
    Some(MptcpOption::AddAddr(AddAddr { address_id, addr, port, hmac }))
}

fn parse_remove_addr(body: &[u8]) -> Option<MptcpOption> {
    if body.is_empty() {
        return None;
    }
    let mut ids = AddressIds::default();
    for (slot, id) in ids.ids.iter_mut().zip(body) {
        *slot = *id;
        ids.len += 1;
    }
    Some(MptcpOption::RemoveAddr(ids))
}

/// MP_FAIL and MP_FASTCLOSE: a reserved octet and a number.
fn parse_reserved_and_u64(body: &[u8]) -> Option<u64> {
    let mut r = Octets(body);
    r.u8()?;
    let number = r.u64()?;
    r.0.is_empty().then_some(number)
}

fn parse_mp_tcprst(low: u8, body: &[u8]) -> Option<MptcpOption> {
    let [reason] = *body else { return None };
    Some(MptcpOption::MpTcpRst { transient: low & 1 == 1, reason: ResetReason::from_code(reason) })
}

/// Address ids of one REMOVE_ADDR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AddressIds {
    /// The ids, `..len` valid.
    pub ids: [u8; 8],
    /// How many.
    pub len: u8,
}

impl AddressIds {
    /// The ids.
    pub fn as_slice(&self) -> &[u8] {
        self.ids.get(..usize::from(self.len)).unwrap_or(&self.ids)
    }
}

impl FromIterator<u8> for AddressIds {
    /// The first eight.
    fn from_iter<I: IntoIterator<Item = u8>>(iter: I) -> AddressIds {
        let mut ids = AddressIds::default();
        for (slot, id) in ids.ids.iter_mut().zip(iter) {
            *slot = id;
            ids.len += 1;
        }
        ids
    }
}

/// MP_CAPABLE in its four forms; the version nibble and flags octet stand in each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MpCapable {
    /// Low nibble of octet 2: 1 for RFC 8684.
    pub version: u8,
    /// Octet 3: flags A..H as on the wire.
    pub flags: u8,
    /// Form 2: the sender's key. Forms 3 and 4: the initiator's.
    pub sender_key: Option<u64>,
    /// Forms 3 and 4: the responder's key.
    pub receiver_key: Option<u64>,
    /// Form 4: data-level length, and the checksum if there is one.
    pub data: Option<(u16, Option<u16>)>,
}

impl MpCapable {
    fn write_body(&self, w: &mut Writer<'_>) {
        w.put([self.flags]);
        let Some(sender) = self.sender_key else { return };
        w.put(sender.to_be_bytes());
        let Some(receiver) = self.receiver_key else { return };
        w.put(receiver.to_be_bytes());
        let Some((len, checksum)) = self.data else { return };
        w.put(len.to_be_bytes());
        if let Some(checksum) = checksum {
            w.put(checksum.to_be_bytes());
        }
    }
}

/// MP_JOIN in its three forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MpJoin {
    /// 12 octets.
    Syn {
        /// B.
        backup: bool,
        /// Of the sender's address.
        address_id: u8,
        /// The receiver's token.
        token: u32,
        /// R-A.
        nonce: u32,
    },
    /// 16 octets.
    SynAck {
        /// B.
        backup: bool,
        /// Of the sender's address.
        address_id: u8,
        /// Left 64 bits of HMAC-B.
        hmac: u64,
        /// R-B.
        nonce: u32,
    },
    /// 24 octets.
    Ack {
        /// Left 160 bits of HMAC-A.
        hmac: [u8; 20],
    },
}

impl MpJoin {
    fn backup_bit(&self) -> u8 {
        match self {
            MpJoin::Syn { backup, .. } | MpJoin::SynAck { backup, .. } => u8::from(*backup),
            MpJoin::Ack { .. } => 0,
        }
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        match *self {
            MpJoin::Syn { address_id, token, nonce, .. } => {
                w.put([address_id]);
                w.put(token.to_be_bytes());
                w.put(nonce.to_be_bytes());
            }
            MpJoin::SynAck { address_id, hmac, nonce, .. } => {
                w.put([address_id]);
                w.put(hmac.to_be_bytes());
                w.put(nonce.to_be_bytes());
            }
            MpJoin::Ack { hmac } => {
                w.put([0]);
                w.put(hmac);
            }
        }
    }
}

/// DATA_ACK as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataAck {
    /// 4 octets, to be promoted.
    Short(u32),
    /// 8 octets.
    Long(Dsn),
}

/// A DSN as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DssDsn {
    /// 4 octets, to be promoted.
    Short(u32),
    /// 8 octets.
    Long(Dsn),
}

/// The mapping part of a DSS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DssMapping {
    /// First octet's DSN.
    pub dsn: DssDsn,
    /// First octet's subflow sequence number, relative to the subflow's SYN.
    pub ssn: u32,
    /// Data-level length in octets, counting a DATA_FIN; 0 = infinite mapping.
    pub len: u16,
    /// As on the wire; present iff checksums are in use.
    pub checksum: Option<u16>,
}

/// DSS (RFC 8684 3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dss {
    /// A, a.
    pub data_ack: Option<DataAck>,
    /// M, m.
    pub mapping: Option<DssMapping>,
    /// F.
    pub data_fin: bool,
}

impl Dss {
    fn flags(&self) -> u8 {
        let ack = match self.data_ack {
            None => 0,
            Some(DataAck::Short(_)) => DSS_DATA_ACK,
            Some(DataAck::Long(_)) => DSS_DATA_ACK | DSS_DATA_ACK_LONG,
        };
        let mapping = match self.mapping.map(|m| m.dsn) {
            None => 0,
            Some(DssDsn::Short(_)) => DSS_MAPPING,
            Some(DssDsn::Long(_)) => DSS_MAPPING | DSS_DSN_LONG,
        };
        ack | mapping | if self.data_fin { DSS_DATA_FIN } else { 0 }
    }

    fn len_octet(&self) -> u8 {
        let ack = match self.data_ack {
            None => 0,
            Some(DataAck::Short(_)) => 4,
            Some(DataAck::Long(_)) => 8,
        };
        let mapping = self.mapping.map_or(0, |m| {
            let dsn = if matches!(m.dsn, DssDsn::Short(_)) { 4 } else { 8 };
            dsn + 6 + if m.checksum.is_some() { 2 } else { 0 }
        });
        4 + ack + mapping
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.put([self.flags()]);
        match self.data_ack {
            None => {}
            Some(DataAck::Short(ack)) => w.put(ack.to_be_bytes()),
            Some(DataAck::Long(ack)) => w.put(ack.0.to_be_bytes()),
        }
        let Some(m) = self.mapping else { return };
        match m.dsn {
            DssDsn::Short(dsn) => w.put(dsn.to_be_bytes()),
            DssDsn::Long(dsn) => w.put(dsn.0.to_be_bytes()),
        }
        w.put(m.ssn.to_be_bytes());
        w.put(m.len.to_be_bytes());
        if let Some(checksum) = m.checksum {
            w.put(checksum.to_be_bytes());
        }
    }
}

/// ADD_ADDR (RFC 8684 3.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddAddr {
    /// Address ID.
    pub address_id: u8,
    /// The address.
    pub addr: IpAddr,
    /// The port, if it differs from that of the subflow.
    pub port: Option<u16>,
    /// Truncated HMAC; `None` is an echo (E=1).
    pub hmac: Option<u64>,
}

impl AddAddr {
    fn write_body(&self, w: &mut Writer<'_>) {
        w.put([self.address_id]);
        match self.addr {
            IpAddr::V4(a) => w.put(a.octets()),
            IpAddr::V6(a) => w.put(a.octets()),
        }
        if let Some(port) = self.port {
            w.put(port.to_be_bytes());
        }
        if let Some(hmac) = self.hmac {
            w.put(hmac.to_be_bytes());
        }
    }
}

/// MP_FASTCLOSE (RFC 8684 3.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MpFastclose {
    /// The receiver's key.
    pub receiver_key: u64,
}

/// Why a subflow was reset (RFC 8684 3.6); unknown codes are read as `Unspecified`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ResetReason {
    /// 0.
    Unspecified = 0,
    /// 1.
    MptcpSpecific = 1,
    /// 2.
    LackOfResources = 2,
    /// 3.
    Prohibited = 3,
    /// 4.
    TooMuchOutstanding = 4,
    /// 5.
    Unacceptable = 5,
    /// 6.
    Middlebox = 6,
}

impl ResetReason {
    /// RFC 8684 3.6; codes that are not assigned mean 0.
    pub fn from_code(code: u8) -> ResetReason {
        match code {
            1 => ResetReason::MptcpSpecific,
            2 => ResetReason::LackOfResources,
            3 => ResetReason::Prohibited,
            4 => ResetReason::TooMuchOutstanding,
            5 => ResetReason::Unacceptable,
            6 => ResetReason::Middlebox,
            _ => ResetReason::Unspecified,
        }
    }
}
