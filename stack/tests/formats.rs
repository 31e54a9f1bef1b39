//! Reference vectors and recorded conversations: every packet parses, and what is canonical is written back octet by octet.

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use stack::buf::{Chain, Pool};
use stack::wire::plain_mode::{Convert, Target};
use stack::wire::*;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/");
/// The recorded conversations that lie beside the repository where it is developed; they are not part of it.
fn captures() -> Option<PathBuf> {
    let ancestors = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    ancestors.map(|a| a.join("shared/captures")).find(|dir| dir.is_dir())
}

/// IP packets of a capture, with the link-layer header off, and whether they are whole.
fn packets(path: &Path) -> Vec<(Vec<u8>, bool)> {
    let octets = std::fs::read(path).unwrap();
    let mut out = Vec::new();
    if octets.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
        let mut reader = PcapNgReader::new(&octets[..]).unwrap();
        while let Some(block) = reader.next_block() {
            let block = block.unwrap().into_owned();
            if let Block::EnhancedPacket(p) = block {
                let link = u32::from(reader.interfaces()[p.interface_id as usize].linktype);
                let whole = p.data.len() == p.original_len as usize;
                out.extend(ip_packet(link, &p.data).map(|ip| (ip.to_vec(), whole)));
            }
        }
        return out;
    }
    let mut reader = PcapReader::new(&octets[..]).unwrap();
    let link = u32::from(reader.header().datalink);
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet.unwrap();
        let whole = packet.data.len() == packet.orig_len as usize;
        out.extend(ip_packet(link, &packet.data).map(|ip| (ip.to_vec(), whole)));
    }
    out
}

fn ip_packet(link: u32, frame: &[u8]) -> Option<&[u8]> {
    let (protocol_at, ip_at) = match link {
        1 => (Some(12), 14),
        9 => (Some(0), 2),
        113 => (Some(14), 16),
        276 => (Some(0), 20),
        101 => (None, 0),
        other => panic!("link type {other}"),
    };
    let mut packet = &frame[ip_at..];
    let mut protocol = protocol_at.map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
    while protocol == Some(0x8100) {
        protocol = Some(u16::from_be_bytes([packet[2], packet[3]]));
        packet = &packet[4..];
    }
    // GTP-U, as mobile networks have it: IPv4, UDP, 8 octets, and the packet.
    if packet[0] >> 4 == 4 && packet[9] == 17 && packet.len() > 56 && packet[22..24] == [8, 0x68] {
        packet = &packet[36..];
    }
    matches!(protocol, None | Some(0x0800 | 0x86dd | 0x0021 | 0x0057)).then_some(packet)
}

fn received(pool: &Pool, octets: &[u8], checksum: RxChecksum) -> RxPacket {
    RxPacket { octets: Chain::copy_from(pool, 0, octets).unwrap(), checksum, port: 0, gso_size: 0 }
}

fn is_tcp(ip: &[u8]) -> bool {
    (ip[0] >> 4 == 4 && ip[9] == 6) || (ip[0] >> 4 == 6 && ip[6] == 6)
}

fn option_octets(ip: &[u8]) -> &[u8] {
    let tcp = if ip[0] >> 4 == 4 { &ip[usize::from(ip[0] & 15) * 4..] } else { &ip[40..] };
    &tcp[20..usize::from(tcp[12] >> 4) * 4]
}

/// The octets of each MPTCP option in a packet, found without the code under test.
fn mptcp_octets(ip: &[u8]) -> Vec<&[u8]> {
    let mut options = option_octets(ip);
    let mut out = Vec::new();
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => options = rest,
            _ if rest.is_empty() || rest[0] < 2 || usize::from(rest[0]) > options.len() => break,
            _ => {
                let (option, rest) = options.split_at(usize::from(rest[0]));
                if *kind == 30 {
                    out.push(option);
                }
                options = rest;
            }
        }
    }
    out
}

/// Packets whose author changed addresses, options or length in an editor, and left header lengths or checksums as they
/// were (the "attacks" of DPI-MPTCP).
const DAMAGED: &[(&str, usize)] = &[
    ("bbaugnies_DPI-MPTCP__mod_tok.pcap", 2),
    ("bbaugnies_DPI-MPTCP__mod_tok.pcap", 3),
    ("bbaugnies_DPI-MPTCP__mod_tok.pcap", 4),
    ("bbaugnies_DPI-MPTCP__mp_rejected.pcap", 2),
    ("bbaugnies_DPI-MPTCP__mp_rejected.pcap", 3),
    ("bbaugnies_DPI-MPTCP__mp_rejected2.pcap", 2),
    ("bbaugnies_DPI-MPTCP__mp_rejected2.pcap", 3),
    ("bbaugnies_DPI-MPTCP__mp_rejected2.pcap", 4),
];

/// Counts of what was seen, by name.
type Seen = BTreeMap<String, usize>;

/// The name under which segments count whose options we write exactly as the sender did, order and padding included.
const IDENTICAL: &str = "identical option octets";

/// Parses a packet as strictly as its completeness allows and writes its options back.
fn replay(pool: &Pool, ip: &[u8], whole: bool, seen: &mut Seen) -> Result<(), Malformed> {
    let checksum = if whole { RxChecksum::MaybePartial } else { RxChecksum::Valid };
    let mut ip = ip.to_vec();
    if !whole {
        let len = if ip[0] >> 4 == 4 { [ip[2], ip[3]] } else { [ip[4], ip[5]] };
        let header = if ip[0] >> 4 == 4 { 0 } else { 40 };
        ip.resize(header + usize::from(u16::from_be_bytes(len)), 0);
    }
    let mut count = |what: &str| *seen.entry(what.into()).or_default() += 1;
    let (flow, segment) = match parse(received(pool, &ip, checksum))? {
        Parsed::Tcp(flow, segment) => (flow, segment),
        other => panic!("not TCP: {other:?}"),
    };
    count("segments");
    let options = segment.options.mptcp();
    let octets = mptcp_octets(&ip);
    assert_eq!(options.len(), octets.len());
    for (option, octets) in options.iter().zip(octets) {
        let name = format!("{option:?}");
        count(name.split(['(', ' ']).next().unwrap_or(""));
        if option.is_malformed() {
            count("malformed");
        } else if !matches!(option, MptcpOption::Unknown { .. }) {
            assert_eq!(usize::from(option.len_octet()), octets.len());
            assert_eq!(written(flow, *option), canonical(octets), "{option:?}");
        }
    }
    // Written anew, the segment means the same.
    let mut again = emit(flow.reversed(), &segment, 0);
    again.finish_checksum();
    let ours = &again.header[usize::from(again.ip_len) + 20..];
    if ours == option_octets(&ip) {
        count(IDENTICAL);
    }
    let again = received(pool, &again.to_vec(), RxChecksum::Unknown);
    let Ok(Parsed::Tcp(flow_again, segment_again)) = parse(again) else { panic!("unreadable") };
    assert_eq!(flow_again, flow);
    assert_eq!(format!("{:?}", segment_again.options), format!("{:?}", segment.options));
    assert_eq!(segment_again.text.to_vec(), segment.text.to_vec());
    Ok(())
}

/// One option as we write it, without padding.
fn written(flow: FlowTuple, option: MptcpOption) -> Vec<u8> {
    let segment = Segment {
        seq: SeqNum(0),
        ack: None,
        control: Control::None,
        push: false,
        window: UnscaledWindow(0),
        options: Options::Segment(SegmentOptions {
            mptcp: [option].into_iter().collect(),
            ..SegmentOptions::default()
        }),
        text: Chain::new(),
        ..Default::default()
    };
    let packet = emit(flow, &segment, 0);
    let start = usize::from(packet.ip_len) + 20;
    packet.header[start..start + usize::from(option.len_octet())].to_vec()
}

/// Reserved bits cleared, and DSS flags that say nothing.
fn canonical(option: &[u8]) -> Vec<u8> {
    let mut out = option.to_vec();
    match option[2] >> 4 {
        1 if option.len() == 24 => (out[2], out[3]) = (0x10, 0),
        1 | 3 | 5 | 8 => out[2] &= 0xf1,
        2 => {
            out[2] &= 0xf0;
            let ignored =
                if option[3] & 1 == 0 { 2 } else { 0 } | if option[3] & 4 == 0 { 8 } else { 0 };
            out[3] &= 0x1f & !ignored;
        }
        6 | 7 => (out[2], out[3]) = (option[2] & 0xf0, 0),
        _ => {}
    }
    out
}

fn hex(s: &str) -> Vec<u8> {
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

fn vectors() -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{VECTORS}vectors.json")).unwrap())
        .unwrap()
}

#[test]
fn convert_elements_are_those_of_the_vectors() {
    let vectors = vectors();
    let target = |addr: &str, port| Some(Target { addr: addr.parse().unwrap(), port });
    let v4 = "198.51.100.9";
    let v6 = "2001:db8::9";
    let cases = [
        ("v4_dst_noport_last", target(v4, None), None),
        ("v4_dst_443_last", target(v4, Some(443)), None),
        ("v6_dst_443_last", target(v6, Some(443)), None),
        (
            "pair: v6 src:5000 (more) + v6 dst:443 (last)",
            target(v6, Some(443)),
            target("2001:db8:1::5", Some(5000)),
        ),
    ];
    assert_eq!(vectors["mp_convert"].as_object().unwrap().len(), cases.len());
    for (name, destination, source) in cases {
        let octets = hex(vectors["mp_convert"][name].as_str().unwrap());
        let convert = Convert { destination, source };
        assert_eq!(convert.write().as_slice(), octets, "{name}");
        let got = Convert::parse_octets(&octets).unwrap().unwrap();
        assert_eq!((got.convert, got.octets as usize), (convert, octets.len()), "{name}");
    }
}

/// The segments of `vectors.pcap`, their checksums fully verified.
fn vector_segments() -> Vec<(FlowTuple, Segment)> {
    let pool = Pool::new(64, 2048);
    packets(Path::new(&format!("{VECTORS}vectors.pcap")))
        .into_iter()
        .map(|(ip, _)| match parse(received(&pool, &ip, RxChecksum::Unknown)) {
            Ok(Parsed::Tcp(flow, segment)) => (flow, segment),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn options_of_the_vectors_have_their_values() {
    let v = vectors();
    let number =
        |text: &serde_json::Value| u64::from_str_radix(text.as_str().unwrap(), 16).unwrap();
    let (key_a, key_b) = (number(&v["key_a"]), number(&v["key_b"]));
    let idsn_a = number(&v["v1"]["idsn_a"]);
    let checksum = |name: &str| number(&v[name]["checksum"]) as u16;
    let capable = |version, a, b, data| {
        MptcpOption::MpCapable(MpCapable {
            version,
            flags: 0x81,
            sender_key: a,
            receiver_key: b,
            data,
        })
    };
    let hmac_b = number(&v["v1"]["synack_trunc64(left)"]);
    let hmac_a = hex(v["v1"]["ack_trunc160(left)"].as_str().unwrap()).try_into().unwrap();
    let add_addr = |hmac| {
        MptcpOption::AddAddr(AddAddr {
            address_id: 3,
            addr: IpAddr::from([10, 0, 1, 1]),
            port: None,
            hmac,
        })
    };
    let fin = DssMapping {
        dsn: DssDsn::Long(Dsn(idsn_a + 22)),
        ssn: 0,
        len: 1,
        checksum: Some(checksum("dss_checksum_datafin_alone")),
    };
    let expected = [
        capable(1, None, None, None),
        capable(1, Some(key_b), None, None),
        capable(1, Some(key_a), Some(key_b), None),
        capable(1, Some(key_a), Some(key_b), Some((21, Some(checksum("dss_checksum"))))),
        MptcpOption::Dss(Dss { data_ack: Some(DataAck::Long(Dsn(idsn_a + 22))), ..Dss::default() }),
        MptcpOption::MpJoin(MpJoin::Syn {
            backup: false,
            address_id: 1,
            token: number(&v["v1"]["token_b"]) as u32,
            nonce: number(&v["nonce_a"]) as u32,
        }),
        MptcpOption::MpJoin(MpJoin::SynAck {
            backup: false,
            address_id: 0,
            hmac: hmac_b,
            nonce: number(&v["nonce_b"]) as u32,
        }),
        MptcpOption::MpJoin(MpJoin::Ack { hmac: hmac_a }),
        add_addr(Some(number(
            &v["add_addr_v1(sender=A)"]["id3_192.0.2.7_noport(hmac msg port=0)"],
        ))),
        add_addr(None),
        MptcpOption::RemoveAddr([3, 4].into_iter().collect()),
        MptcpOption::MpPrio { backup: true },
        MptcpOption::Dss(Dss { mapping: Some(fin), data_ack: None, data_fin: true }),
        MptcpOption::MpFastclose(MpFastclose { receiver_key: key_b }),
        MptcpOption::MpTcpRst { transient: true, reason: ResetReason::Middlebox },
        MptcpOption::MpFail(Dsn(number(&v["v1"]["idsn_b"]) + 1)),
        capable(0, Some(key_a), None, None),
        capable(0, Some(key_b), None, None),
        capable(0, Some(key_a), Some(key_b), None),
        capable(1, None, None, None),
    ];
    let segments = vector_segments();
    assert_eq!(segments.len(), expected.len());
    for (n, ((_, segment), mut expected)) in segments.iter().zip(expected).enumerate() {
        let got = segment.options.mptcp()[0];
        if let (MptcpOption::AddAddr(got), MptcpOption::AddAddr(expected)) = (got, &mut expected) {
            expected.addr = got.addr; // the vector's own address, checked below
            assert_eq!(got.addr, IpAddr::from([192, 0, 2, 7]));
        }
        assert_eq!(got, expected, "packet {}", n + 1);
    }
    let (_, last) = segments.last().unwrap();
    assert_eq!(last.options.mptcp()[1], MptcpOption::Unknown { subtype: 0xe, len: 4 });
    let convert = Convert::parse(&last.text).unwrap().unwrap();
    assert_eq!(
        (convert.octets, convert.convert.destination.map(|t| t.port)),
        (16, Some(Some(443)))
    );
}

#[test]
fn vector_packets_are_written_as_they_were_read() {
    let pool = Pool::new(64, 2048);
    let mut seen = Seen::new();
    for (ip, whole) in packets(Path::new(&format!("{VECTORS}vectors.pcap"))) {
        replay(&pool, &ip, whole, &mut seen).unwrap();
    }
    assert_eq!((seen["segments"], seen.get("malformed")), (20, None));
}

#[test]
fn every_recorded_packet_parses_and_its_mptcp_options_are_written_back() {
    let Some(captures) = captures() else {
        eprintln!("no captures beside the repository: nothing replayed");
        return;
    };
    let pool = Pool::new(64, 16_384);
    let mut seen = Seen::new();
    let dirs = ["linux-6.18", "public"].map(|d| std::fs::read_dir(captures.join(d)).unwrap());
    let mut files: Vec<PathBuf> = dirs.into_iter().flatten().map(|f| f.unwrap().path()).collect();
    files.sort();
    for file in &files {
        let name = file.file_name().unwrap().to_string_lossy();
        let mut here = Seen::new();
        for (n, (ip, whole)) in packets(file).into_iter().enumerate() {
            if is_tcp(&ip) {
                let outcome = replay(&pool, &ip, whole, &mut here);
                let damaged = DAMAGED.contains(&(&*name, n + 1));
                assert_eq!(outcome.is_err(), damaged, "{name}, IP packet {}: {outcome:?}", n + 1);
            }
        }
        let numbered = name.starts_with(|c: char| c.is_ascii_digit()); // recorded from Linux 6.18
        if numbered {
            assert_eq!(here.get("malformed"), None, "{name}");
            assert_eq!(here.get(IDENTICAL), here.get("segments"), "{name}: as Linux writes it");
        }
        here.into_iter().for_each(|(what, n)| *seen.entry(what).or_default() += n);
    }
    eprintln!("{} files: {seen:?}", files.len());
    assert_eq!(pool.free(), 64);
}
