//! Packets between a script's relative numbers and real octets. Written apart from the stack's own formats, so that it can
//! also say what no stack should.

use super::packet::{ACK, Icmp, IcmpKind, Ip, Opt, Options, Packet, SYN, Tcp};
use stack::checksum;
use stack::wire::FlowTuple;
use std::net::IpAddr;

/// How relative numbers relate to those on the wire, per connection.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Of the peer's first SYN.
    pub peer_isn: u32,
    /// Of our last SYN, once it was seen.
    pub our_isn: u32,
    /// Our TSval less what the script calls it, once known.
    pub ts_base: Option<u32>,
}

/// The octet of either direction's text at a relative sequence number.
pub fn octet(seq: u32) -> u8 {
    (seq.wrapping_mul(167) >> 3) as u8
}

/// `len` octets of text from a relative sequence number.
pub fn text(seq: u32, len: u32) -> Vec<u8> {
    (0..len).map(|n| octet(seq.wrapping_add(n))).collect()
}

/// Where the text of a segment begins: SYN takes the first number.
fn text_at(tcp: &Tcp) -> u32 {
    tcp.seq.unwrap_or(0).wrapping_add(u32::from(tcp.has(SYN)))
}

/// What the peer of `flow` (our end first) sends.
pub fn write(packet: &Packet, flow: FlowTuple, map: Mapping) -> Vec<u8> {
    match packet {
        Packet::Tcp(tcp) => write_tcp(tcp, flow, map),
        Packet::Icmp(icmp) => write_icmp(icmp, flow, map),
    }
}

fn write_tcp(tcp: &Tcp, flow: FlowTuple, map: Mapping) -> Vec<u8> {
    let options = write_options(tcp.options.as_ref(), map);
    let flags = tcp.flags.unwrap_or(0);
    let ack = if flags & ACK == 0 { 0 } else { map.our_isn.wrapping_add(tcp.ack.unwrap_or(0)) };
    let words = (20 + options.len()) as u16 / 4;
    let mut out = Vec::new();
    out.extend(flow.remote.port.to_be_bytes());
    out.extend(flow.local.port.to_be_bytes());
    out.extend(map.peer_isn.wrapping_add(tcp.seq.unwrap_or(0)).to_be_bytes());
    out.extend(ack.to_be_bytes());
    out.extend((words << 12 | flags).to_be_bytes());
    out.extend(tcp.win.unwrap_or(65_535).to_be_bytes());
    out.extend([0, 0]);
    out.extend(tcp.urg.unwrap_or(0).to_be_bytes());
    out.extend(options);
    out.extend(text(text_at(tcp), tcp.len.unwrap_or(0)));
    let source = tcp.ip.source.unwrap_or(flow.remote.addr);
    let mut sum = !transport_sum(source, flow.local.addr, 6, &out);
    if tcp.ip.bad_checksum {
        sum ^= 0x5555;
    }
    out[16..18].copy_from_slice(&sum.to_be_bytes());
    write_ip(&tcp.ip, source, flow.local.addr, 6, &out)
}

fn transport_sum(source: IpAddr, to: IpAddr, protocol: u8, transport: &[u8]) -> u16 {
    let address = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => checksum::sum(&addr.octets()),
        IpAddr::V6(addr) => checksum::sum(&addr.octets()),
    };
    let parts = [address(source), address(to), u16::from(protocol), transport.len() as u16];
    parts.into_iter().fold(checksum::sum(transport), checksum::add)
}

fn write_ip(ip: &Ip, source: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let (ecn, ttl) = (ip.ecn.unwrap_or(0), ip.ttl.unwrap_or(64));
    match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let len = ((20 + body.len()) as u16).to_be_bytes();
            let fragment = if ip.fragment { 0x20 } else { 0x40 };
            let mut out = vec![0x45, ecn, len[0], len[1], 0, 0, fragment, 0, ttl, protocol, 0, 0];
            out.extend(source.octets());
            out.extend(to.octets());
            let sum = !checksum::sum(&out);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend(body);
            out
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let extension: &[u8] = if ip.fragment { &[protocol, 0, 0, 1, 0, 0, 0, 7] } else { &[] };
            let next = if ip.fragment { 44 } else { protocol };
            let len = ((extension.len() + body.len()) as u16).to_be_bytes();
            let mut out = vec![0x60, ecn << 4, 0, 0, len[0], len[1], next, ttl];
            out.extend(source.octets());
            out.extend(to.octets());
            out.extend(extension);
            out.extend(body);
            out
        }
        _ => panic!("a packet has addresses of one family"),
    }
}

fn write_options(options: Option<&Options>, map: Mapping) -> Vec<u8> {
    let mut out = Vec::new();
    for option in options.iter().flat_map(|options| &options.list) {
        write_option(option, map, &mut out);
    }
    while out.len() % 4 != 0 {
        out.push(1);
    }
    assert!(out.len() <= 40, "{} octets of options", out.len());
    out
}

fn write_option(option: &Opt, map: Mapping, out: &mut Vec<u8>) {
    let mut put = |kind: u8, body: &[u8]| {
        out.extend([kind, 2 + body.len() as u8]);
        out.extend(body);
    };
    match option {
        Opt::Mss(mss) => put(2, &mss.unwrap_or(1460).to_be_bytes()),
        Opt::WindowScale(shift) => put(3, &[shift.unwrap_or(0)]),
        Opt::SackOk => put(4, &[]),
        Opt::Sack(blocks) => {
            let edges = blocks.iter().flat_map(|(left, right)| [*left, *right]);
            let edges = edges.flat_map(|edge| map.our_isn.wrapping_add(edge).to_be_bytes());
            put(5, &edges.collect::<Vec<u8>>());
        }
        Opt::Timestamps { val, ecr } => {
            // Zero says that there is nothing to echo.
            let ecr =
                ecr.filter(|ecr| *ecr != 0).map(|ecr| ecr.wrapping_add(map.ts_base.unwrap_or(0)));
            let parts = [val.unwrap_or(0).to_be_bytes(), ecr.unwrap_or(0).to_be_bytes()];
            put(8, &parts.concat());
        }
        Opt::FastOpen(cookie) => put(34, cookie.as_deref().unwrap_or(&[])),
        Opt::UserTimeout(field) => put(28, &field.unwrap_or(0).to_be_bytes()),
        Opt::Other(kind, body) => put(*kind, body),
        Opt::Raw(octets) => out.extend(octets),
    }
}

/// The router that ICMP errors come from.
fn router(v6: bool) -> IpAddr {
    if v6 { [0xfd00, 0, 0, 0, 0, 0, 0, 1].into() } else { [10, 99, 0, 1].into() }
}

fn write_icmp(icmp: &Icmp, flow: FlowTuple, map: Mapping) -> Vec<u8> {
    let v6 = flow.local.addr.is_ipv6();
    let row = IcmpKind::TABLE.iter().find(|row| row.1 == icmp.kind).expect("every kind has a row");
    let mut tcp = Vec::new();
    tcp.extend(flow.local.port.to_be_bytes());
    tcp.extend(flow.remote.port.to_be_bytes());
    tcp.extend(map.our_isn.wrapping_add(icmp.seq.unwrap_or(0)).to_be_bytes());
    let mut body = vec![0; 8];
    body[..2].copy_from_slice(&if v6 { row.3 } else { row.2 });
    body[4..8].copy_from_slice(&icmp.mtu.to_be_bytes()); // IPv4 has its lower half there as well
    body.extend(write_ip(&Ip::default(), flow.local.addr, flow.remote.addr, 6, &tcp));
    let source = icmp.source.unwrap_or(router(v6));
    let sum =
        if v6 { !transport_sum(source, flow.local.addr, 58, &body) } else { !checksum::sum(&body) };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    write_ip(&Ip::default(), source, flow.local.addr, if v6 { 58 } else { 1 }, &body)
}

/// A packet of ours: whose remote port it is for, and what it says. `Err`: no stack should send this.
pub fn read(octets: &[u8]) -> Result<(u16, Wire), String> {
    let (protocol, ip, body) = read_ip(octets)?;
    if protocol != 6 {
        return read_icmp(body, octets[0] >> 4 == 6);
    }
    let head = body.get(..20).ok_or("a TCP header is cut off")?;
    let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
    let (source, to) = addresses(octets);
    if transport_sum(source, to, 6, body) != 0xffff {
        return Err("the TCP checksum is wrong".to_owned());
    }
    let len = usize::from(head[12] >> 4) * 4;
    let list = body.get(20..len).ok_or("the data offset is wrong")?;
    let wire = WireTcp {
        ip,
        flags: half(12) & 0x1ff,
        seq: word(4),
        ack: word(8),
        win: half(14),
        urg: half(18),
        options: read_options(list)?,
        text: body[len..].to_vec(),
    };
    Ok((half(2), Wire::Tcp(wire)))
}

/// A packet as it stands on the wire.
#[derive(Debug)]
pub enum Wire {
    Tcp(WireTcp),
    Icmp(Icmp),
}

#[derive(Debug)]
pub struct WireTcp {
    ip: Ip,
    pub flags: u16,
    pub seq: u32,
    ack: u32,
    win: u16,
    urg: u16,
    options: Vec<Opt>,
    pub text: Vec<u8>,
}

impl WireTcp {
    /// TSval.
    pub fn timestamp(&self) -> Option<u32> {
        self.options.iter().find_map(|option| match option {
            Opt::Timestamps { val, .. } => *val,
            _ => None,
        })
    }

    /// With the script's numbers. `Err`: its text is not what was written.
    pub fn relative(&self, map: Mapping) -> Result<Tcp, String> {
        // A RST for a segment without ACK has no number of ours (RFC 9293 3.10.7.1).
        let foreign = self.flags & super::packet::RST != 0 && self.seq == 0;
        let seq = if foreign { 0 } else { self.seq.wrapping_sub(map.our_isn) };
        let list = self.options.iter().map(|option| relative_option(option, map)).collect();
        let tcp = Tcp {
            ip: self.ip.clone(),
            flags: Some(self.flags),
            seq: Some(seq),
            len: Some(self.text.len() as u32),
            ack: (self.flags & ACK != 0).then(|| self.ack.wrapping_sub(map.peer_isn)),
            win: Some(self.win),
            urg: Some(self.urg),
            options: Some(Options { list, open: false }),
        };
        if self.text != text(text_at(&tcp), self.text.len() as u32) {
            return Err(format!("these octets were never written: {tcp}"));
        }
        Ok(tcp)
    }
}

fn relative_option(option: &Opt, map: Mapping) -> Opt {
    match option {
        Opt::Sack(blocks) => {
            let relative = |edge: u32| edge.wrapping_sub(map.peer_isn);
            Opt::Sack(blocks.iter().map(|(l, r)| (relative(*l), relative(*r))).collect())
        }
        Opt::Timestamps { val, ecr } => {
            let val = val.map(|val| val.wrapping_sub(map.ts_base.unwrap_or(0)));
            Opt::Timestamps { val, ecr: *ecr }
        }
        other => other.clone(),
    }
}

fn addresses(octets: &[u8]) -> (IpAddr, IpAddr) {
    stack::testkit::packet::addresses(octets).expect("the header was read")
}

fn read_ip(octets: &[u8]) -> Result<(u8, Ip, &[u8]), String> {
    let v6 = octets[0] >> 4 == 6;
    let (header, body) = octets.split_at_checked(if v6 { 40 } else { 20 }).ok_or("no IP header")?;
    if !v6 && checksum::sum(header) != 0xffff {
        return Err("the IP checksum is wrong".to_owned());
    }
    let ip = Ip {
        ecn: Some(if v6 { header[1] >> 4 & 3 } else { header[1] & 3 }),
        ttl: Some(header[if v6 { 7 } else { 8 }]),
        ..Ip::default()
    };
    Ok((header[if v6 { 6 } else { 9 }], ip, body))
}

fn read_icmp(body: &[u8], v6: bool) -> Result<(u16, Wire), String> {
    let row =
        |row: &&(&str, IcmpKind, [u8; 2], [u8; 2])| body[..2] == if v6 { row.3 } else { row.2 };
    let row = IcmpKind::TABLE.iter().find(row).ok_or("an ICMP message that scripts do not know")?;
    let inner = if v6 { 48 } else { 28 };
    let quoted = body.get(inner..inner + 8).ok_or("an ICMP error that quotes too little")?;
    let port = u16::from_be_bytes([quoted[0], quoted[1]]);
    let seq = Some(u32::from_be_bytes([quoted[4], quoted[5], quoted[6], quoted[7]]));
    Ok((port, Wire::Icmp(Icmp { kind: row.1, mtu: 0, seq, source: None })))
}

fn read_options(mut octets: &[u8]) -> Result<Vec<Opt>, String> {
    let mut list = Vec::new();
    loop {
        match *octets {
            [] | [0, ..] => return Ok(list),
            [1, ref rest @ ..] => octets = rest,
            [kind, len, ..] if len >= 2 && usize::from(len) <= octets.len() => {
                let (option, rest) = octets.split_at(usize::from(len));
                list.push(read_option(kind, &option[2..]));
                octets = rest;
            }
            _ => return Err("options that do not parse".to_owned()),
        }
    }
}

fn read_option(kind: u8, body: &[u8]) -> Opt {
    let word = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    match (kind, body) {
        (2, &[a, b]) => Opt::Mss(Some(u16::from_be_bytes([a, b]))),
        (3, &[shift]) => Opt::WindowScale(Some(shift)),
        (4, []) => Opt::SackOk,
        (5, _) if body.len().is_multiple_of(8) => {
            Opt::Sack((0..body.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect())
        }
        (8, _) if body.len() == 8 => Opt::Timestamps { val: Some(word(0)), ecr: Some(word(4)) },
        (28, &[a, b]) => Opt::UserTimeout(Some(u16::from_be_bytes([a, b]))),
        (34, _) => Opt::FastOpen(Some(body.to_vec())),
        _ => Opt::Other(kind, body.to_vec()),
    }
}
