//! A packet as a script writes it: numbers relative to the first SYN of either end; `None` says that a field does not matter.

use std::fmt;

pub const FIN: u16 = 0x01;
pub const SYN: u16 = 0x02;
pub const RST: u16 = 0x04;
pub const PSH: u16 = 0x08;
pub const ACK: u16 = 0x10;
pub const URG: u16 = 0x20;
pub const ECE: u16 = 0x40;
pub const CWR: u16 = 0x80;
pub const AE: u16 = 0x100;

/// Letters as packetdrill has them, in the order in which they are printed.
pub const FLAGS: [(char, u16); 9] = [
    ('S', SYN),
    ('F', FIN),
    ('R', RST),
    ('P', PSH),
    ('U', URG),
    ('E', ECE),
    ('W', CWR),
    ('A', AE),
    ('.', ACK),
];

/// Fields of the IP header that a script may name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ip {
    /// The two ECN bits.
    pub ecn: Option<u8>,
    /// Time to live, or hop limit.
    pub ttl: Option<u8>,
    /// Another source than the peer's.
    pub source: Option<std::net::IpAddr>,
    /// The TCP checksum is wrong.
    pub bad_checksum: bool,
    /// The packet is a fragment.
    pub fragment: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opt {
    Mss(Option<u16>),
    WindowScale(Option<u8>),
    SackOk,
    /// Relative to the other end's first SYN.
    Sack(Vec<(u32, u32)>),
    Timestamps {
        val: Option<u32>,
        ecr: Option<u32>,
    },
    /// TCP Fast Open: the cookie, empty to ask for one; `None`: any cookie.
    FastOpen(Option<Vec<u8>>),
    /// User timeout as in the header: granularity bit and 15 bits.
    UserTimeout(Option<u16>),
    Other(u8, Vec<u8>),
    /// Octets as they are; received packets only.
    Raw(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    pub list: Vec<Opt>,
    /// Others may be there as well.
    pub open: bool,
}

/// A TCP packet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tcp {
    pub ip: Ip,
    pub flags: Option<u16>,
    pub seq: Option<u32>,
    pub len: Option<u32>,
    pub ack: Option<u32>,
    /// As in the header, not scaled.
    pub win: Option<u16>,
    pub urg: Option<u16>,
    pub options: Option<Options>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpKind {
    TooBig,
    Network,
    Host,
    Prohibited,
    Port,
    TimeExceeded,
    SourceQuench,
    ParameterProblem,
}

impl IcmpKind {
    /// Type and code of IPv4 and of IPv6.
    pub const TABLE: [(&str, IcmpKind, [u8; 2], [u8; 2]); 8] = [
        ("unreachable net", IcmpKind::Network, [3, 0], [1, 0]),
        ("unreachable host", IcmpKind::Host, [3, 1], [1, 3]),
        ("unreachable prohibited", IcmpKind::Prohibited, [3, 13], [1, 1]),
        ("unreachable port", IcmpKind::Port, [3, 3], [1, 4]),
        ("too_big", IcmpKind::TooBig, [3, 4], [2, 0]),
        ("time_exceeded", IcmpKind::TimeExceeded, [11, 0], [3, 0]),
        ("source_quench", IcmpKind::SourceQuench, [4, 0], [200, 0]),
        ("parameter_problem", IcmpKind::ParameterProblem, [12, 0], [4, 0]),
    ];

    pub fn name(self) -> &'static str {
        Self::TABLE.iter().find(|row| row.1 == self).map_or("?", |row| row.0)
    }
}

/// An ICMP error about a segment of the other side's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Icmp {
    pub kind: IcmpKind,
    pub mtu: u32,
    /// SEG.SEQ of the quoted segment.
    pub seq: Option<u32>,
    pub source: Option<std::net::IpAddr>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet {
    Tcp(Tcp),
    Icmp(Icmp),
}

impl Packet {
    /// Whether `self`, which left, is what `wanted` describes.
    pub fn fits(&self, wanted: &Packet) -> bool {
        match (self, wanted) {
            (Packet::Tcp(seen), Packet::Tcp(wanted)) => seen.fits(wanted),
            (Packet::Icmp(seen), Packet::Icmp(wanted)) => {
                seen.kind == wanted.kind && either(&seen.seq, &wanted.seq)
            }
            _ => false,
        }
    }
}

fn either<T: PartialEq>(seen: &Option<T>, wanted: &Option<T>) -> bool {
    wanted.is_none() || seen == wanted
}

impl Tcp {
    fn fits(&self, wanted: &Tcp) -> bool {
        let options = match (&self.options, &wanted.options) {
            (Some(seen), Some(wanted)) => seen.fits(wanted),
            _ => true,
        };
        options
            && either(&self.ip.ecn, &wanted.ip.ecn)
            && either(&self.ip.ttl, &wanted.ip.ttl)
            && either(&self.flags, &wanted.flags)
            && either(&self.seq, &wanted.seq)
            && either(&self.len, &wanted.len)
            && either(&self.ack, &wanted.ack)
            && either(&self.win, &wanted.win)
            && either(&self.urg, &wanted.urg)
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags.is_some_and(|flags| flags & flag != 0)
    }
}

impl Options {
    /// Whatever their order.
    fn fits(&self, wanted: &Options) -> bool {
        let mut left = self.list.clone();
        for option in &wanted.list {
            let Some(at) = left.iter().position(|seen| seen.fits(option)) else { return false };
            left.remove(at);
        }
        wanted.open || left.is_empty()
    }
}

impl Opt {
    fn fits(&self, wanted: &Opt) -> bool {
        match (self, wanted) {
            (Opt::Mss(seen), Opt::Mss(wanted)) => either(seen, wanted),
            (Opt::WindowScale(seen), Opt::WindowScale(wanted)) => either(seen, wanted),
            (Opt::FastOpen(seen), Opt::FastOpen(wanted)) => either(seen, wanted),
            (Opt::UserTimeout(seen), Opt::UserTimeout(wanted)) => either(seen, wanted),
            (
                Opt::Timestamps { val, ecr },
                Opt::Timestamps { val: val_wanted, ecr: ecr_wanted },
            ) => either(val, val_wanted) && either(ecr, ecr_wanted),
            _ => self == wanted,
        }
    }
}

struct OrAny<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrAny<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("*"),
        }
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

impl fmt::Display for Opt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opt::Mss(mss) => write!(f, "mss {}", OrAny(*mss)),
            Opt::WindowScale(shift) => write!(f, "wscale {}", OrAny(*shift)),
            Opt::SackOk => write!(f, "sackOK"),
            Opt::Sack(blocks) => {
                write!(f, "sack")?;
                blocks.iter().try_for_each(|(left, right)| write!(f, " {left}:{right}"))
            }
            Opt::Timestamps { val, ecr } => {
                write!(f, "TS val {} ecr {}", OrAny(*val), OrAny(*ecr))
            }
            Opt::FastOpen(None) => write!(f, "FO *"),
            Opt::FastOpen(Some(cookie)) if cookie.is_empty() => write!(f, "FO"),
            Opt::FastOpen(Some(cookie)) => write!(f, "FO {}", hex(cookie)),
            Opt::UserTimeout(None) => write!(f, "uto *"),
            Opt::UserTimeout(Some(field)) if field >> 15 == 1 => {
                write!(f, "uto {}m", field & 0x7fff)
            }
            Opt::UserTimeout(Some(field)) => write!(f, "uto {field}s"),
            Opt::Other(kind, body) => write!(f, "opt {kind} 0x{}", hex(body)),
            Opt::Raw(octets) => write!(f, "raw 0x{}", hex(octets)),
        }
    }
}

impl fmt::Display for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip.ecn {
            Some(1) => write!(f, "[ect1] ")?,
            Some(2) => write!(f, "[ect0] ")?,
            Some(3) => write!(f, "[ce] ")?,
            _ => {}
        }
        match self.flags {
            None => write!(f, "*")?,
            Some(0) => write!(f, "-")?,
            Some(flags) => {
                for (letter, _) in FLAGS.iter().filter(|(_, bit)| flags & bit != 0) {
                    write!(f, "{letter}")?;
                }
            }
        }
        match (self.seq, self.len) {
            (Some(seq), Some(len)) => write!(f, " {seq}:{}({len})", seq.wrapping_add(len))?,
            (seq, None) => write!(f, " {}", OrAny(seq))?,
            (None, Some(len)) => write!(f, " *({len})")?,
        }
        if self.flags.is_none_or(|flags| flags & ACK != 0) {
            write!(f, " ack {}", OrAny(self.ack))?;
        }
        if let Some(win) = self.win {
            write!(f, " win {win}")?;
        }
        if let Some(urg) = self.urg.filter(|urg| *urg != 0) {
            write!(f, " urg {urg}")?;
        }
        if let Some(options) = &self.options {
            let mut parts: Vec<String> = options.list.iter().map(ToString::to_string).collect();
            if options.open {
                parts.push("...".to_owned());
            }
            write!(f, " <{}>", parts.join(","))?;
        }
        Ok(())
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Packet::Tcp(tcp) => tcp.fmt(f),
            Packet::Icmp(icmp) => {
                write!(f, "icmp {}", icmp.kind.name())?;
                if icmp.mtu > 0 {
                    write!(f, " mtu {}", icmp.mtu)?;
                }
                write!(f, " [{}]", OrAny(icmp.seq))
            }
        }
    }
}
