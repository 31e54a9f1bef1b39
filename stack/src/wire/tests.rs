//! Properties of whole segments: what is written parses to the same, whatever arrives does no harm.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::{Chain, Pool};
use crate::checksum;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use proptest::collection::vec;
use proptest::prelude::*;

fn address_ids() -> impl Strategy<Value = AddressIds> {
    vec(any::<u8>(), 1..9).prop_map(AddressIds::from_iter)
}

fn mp_capable() -> impl Strategy<Value = MpCapable> {
    (0u8..16, any::<u8>(), any::<(u64, u64)>(), any::<(u16, u16)>(), 0..5).prop_map(
        |(version, flags, (a, b), (len, sum), form)| MpCapable {
            version,
            flags,
            sender_key: (form > 0).then_some(a),
            receiver_key: (form > 1).then_some(b),
            data: (form > 2).then_some((len, (form > 3).then_some(sum))),
        },
    )
}

fn mp_join() -> impl Strategy<Value = MpJoin> {
    prop_oneof![
        any::<(bool, u8, u32, u32)>().prop_map(|(backup, address_id, token, nonce)| {
            MpJoin::Syn { backup, address_id, token, nonce }
        }),
        any::<(bool, u8, u64, u32)>().prop_map(|(backup, address_id, hmac, nonce)| {
            MpJoin::SynAck { backup, address_id, hmac, nonce }
        }),
        any::<[u8; 20]>().prop_map(|hmac| MpJoin::Ack { hmac }),
    ]
}

fn dss() -> impl Strategy<Value = Dss> {
    let ack = prop_oneof![
        any::<u32>().prop_map(DataAck::Short),
        any::<u64>().prop_map(|d| DataAck::Long(Dsn(d))),
    ];
    let dsn = prop_oneof![
        any::<u32>().prop_map(DssDsn::Short),
        any::<u64>().prop_map(|d| DssDsn::Long(Dsn(d))),
    ];
    let mapping = (dsn, any::<(u32, u16, Option<u16>)>())
        .prop_map(|(dsn, (ssn, len, checksum))| DssMapping { dsn, ssn, len, checksum });
    (proptest::option::of(ack), proptest::option::of(mapping), any::<bool>())
        .prop_map(|(data_ack, mapping, data_fin)| Dss { data_ack, mapping, data_fin })
}

fn add_addr() -> impl Strategy<Value = AddAddr> {
    (any::<u8>(), any::<IpAddr>(), any::<Option<u16>>(), any::<Option<u64>>())
        .prop_map(|(address_id, addr, port, hmac)| AddAddr { address_id, addr, port, hmac })
}

fn mptcp_option() -> impl Strategy<Value = MptcpOption> {
    prop_oneof![
        mp_capable().prop_map(MptcpOption::MpCapable),
        mp_join().prop_map(MptcpOption::MpJoin),
        dss().prop_map(MptcpOption::Dss),
        add_addr().prop_map(MptcpOption::AddAddr),
        address_ids().prop_map(MptcpOption::RemoveAddr),
        any::<bool>().prop_map(|backup| MptcpOption::MpPrio { backup }),
        any::<u64>().prop_map(|d| MptcpOption::MpFail(Dsn(d))),
        any::<u64>()
            .prop_map(|receiver_key| MptcpOption::MpFastclose(MpFastclose { receiver_key })),
        (any::<bool>(), 0u8..7).prop_map(|(transient, code)| MptcpOption::MpTcpRst {
            transient,
            reason: ResetReason::from_code(code),
        }),
        (9u8..16, 3u8..20).prop_map(|(subtype, len)| MptcpOption::Unknown { subtype, len }),
    ]
}

fn timestamps() -> impl Strategy<Value = Timestamps> {
    any::<(u32, u32)>().prop_map(|(val, ecr)| Timestamps { val, ecr })
}

fn options() -> impl Strategy<Value = Options> {
    let mptcp = || vec(mptcp_option(), 0..4);
    let sack = vec(any::<(u32, u32)>(), 0..5).prop_map(|blocks| {
        blocks
            .into_iter()
            .map(|(left, right)| SackBlock { left: SeqNum(left), right: SeqNum(right) })
            .collect::<SackBlocks>()
    });
    let syn =
        (any::<(Option<u16>, Option<u8>, bool)>(), proptest::option::of(timestamps()), mptcp())
            .prop_map(|((mss, window_scale, sack_permitted), timestamps, mptcp)| SynOptions {
                mss,
                window_scale,
                sack_permitted,
                timestamps,
                fast_open: None,
                mptcp: mptcp.into_iter().collect(),
            });
    let other = (proptest::option::of(timestamps()), sack, mptcp()).prop_map(
        |(timestamps, sack, mptcp)| SegmentOptions {
            timestamps,
            sack,
            mptcp: mptcp.into_iter().collect(),
        },
    );
    prop_oneof![
        syn.prop_map(|mut o| {
            while o.written_len() > 40 {
                o.mptcp.pop();
            }
            Options::Syn(o)
        }),
        other.prop_map(|mut o| {
            while o.written_len() > 40 && o.mptcp.pop().is_some() {}
            while o.written_len() > 40 {
                o.sack.pop();
            }
            Options::Segment(o)
        }),
    ]
}

fn flow() -> impl Strategy<Value = FlowTuple> {
    (any::<bool>(), 1u8..200, 1u8..200, 1u16.., 1u16..).prop_map(|(v6, a, b, p, q)| {
        let addr = |n: u8| match v6 {
            true => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into())),
            false => IpAddr::from(Ipv4Addr::new(10, 0, n, 1)),
        };
        FlowTuple { local: Endpoint::new(addr(a), p), remote: Endpoint::new(addr(b), q) }
    })
}

/// A segment without its text.
fn head() -> impl Strategy<Value = Segment> {
    (any::<(u32, Option<u32>, bool, u16, u8, u8)>(), options(), 0..3).prop_map(
        |((seq, ack, push, window, ace, class), options, control)| Segment {
            seq: SeqNum(seq),
            ack: ack.map(SeqNum),
            control: match (&options, control) {
                (Options::Syn(_), _) => Control::Syn,
                (_, 0) => Control::None,
                (_, 1) => Control::Fin,
                (_, _) => Control::Rst,
            },
            push,
            ecn: EcnFlags::from_ace(ace),
            traffic_class: TrafficClass(class),
            window: UnscaledWindow(window),
            options,
            text: Chain::new(),
        },
    )
}

fn received(pool: &Pool, octets: &[u8], checksum: RxChecksum) -> RxPacket {
    RxPacket { octets: Chain::copy_from(pool, 0, octets).unwrap(), checksum, port: 0, gso_size: 0 }
}

fn parsed(pool: &Pool, octets: &[u8], checksum: RxChecksum) -> (FlowTuple, Segment) {
    match parse(received(pool, octets, checksum)) {
        Ok(Parsed::Tcp(flow, segment)) => (flow, segment),
        other => panic!("not a segment: {other:?}"),
    }
}

fn assert_same(a: &Segment, b: &Segment) {
    assert_eq!((a.ecn, a.traffic_class), (b.ecn, b.traffic_class));
    assert_eq!(
        (a.seq, a.ack, a.control, a.push, a.window, &a.options, a.text.to_vec()),
        (b.seq, b.ack, b.control, b.push, b.window, &b.options, b.text.to_vec())
    );
}

proptest! {
    #[test]
    fn a_segment_parses_to_what_was_written(
        flow in flow(), mut segment in head(), text in vec(any::<u8>(), 0..300), padding in 0usize..20, chunk in 130usize..200,
    ) {
        let pool = Pool::new(16, chunk);
        segment.text = Chain::copy_from(&pool, 0, &text).unwrap();
        let mut packet = emit(flow, &segment, 0);
        prop_assert_eq!(packet.header.len() - usize::from(packet.ip_len), segment.header_len());
        let partial = packet.to_vec();
        packet.finish_checksum();
        let mut octets = packet.to_vec();
        octets.resize(octets.len() + padding, 0xaa);
        let (got_flow, got) = parsed(&pool, &octets, RxChecksum::Unknown);
        prop_assert_eq!(got_flow, flow.reversed());
        assert_same(&got, &segment);
        drop(got);
        assert_same(&parsed(&pool, &partial, RxChecksum::MaybePartial).1, &segment);
        let got = parse(received(&pool, &partial, RxChecksum::Unknown)).err();
        prop_assert_eq!(got, (partial != packet.to_vec()).then_some(Malformed::BadChecksum));
        drop((packet, segment));
        prop_assert_eq!(pool.free(), 16);
    }

    #[test]
    fn a_flipped_bit_does_not_pass(flow in flow(), mut segment in head(), text in vec(any::<u8>(), 0..100), bit: prop::sample::Index) {
        let pool = Pool::new(8, 400);
        segment.text = Chain::copy_from(&pool, 0, &text).unwrap();
        let mut packet = emit(flow, &segment, 0);
        packet.finish_checksum();
        let (mut octets, from) = (packet.to_vec(), usize::from(packet.ip_len) * 8);
        let bit = from + bit.index(octets.len() * 8 - from);
        octets[bit / 8] ^= 1 << (bit % 8);
        let outcome = parse(received(&pool, &octets, RxChecksum::Unknown));
        prop_assert!(outcome.is_err(), "{:?}", outcome);
    }

    #[test]
    fn arbitrary_octets_do_no_harm(mut octets in vec(any::<u8>(), 0..120), version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()], tcp: bool) {
        let pool = Pool::new(2, 128);
        if let Some(first) = octets.first_mut() {
            *first = version;
        }
        if tcp && version == 0x60 && octets.len() > 6 {
            octets[6] = 6;
        }
        let _ = parse(received(&pool, &octets, RxChecksum::Valid));
        let _ = MptcpOption::parse(&octets);
        let _ = Options::parse(&octets, Control::Syn);
        let _ = Options::parse(&octets, Control::None);
        prop_assert_eq!(pool.free(), 2);
    }

    #[test]
    fn an_mptcp_option_parses_to_what_was_written(option in mptcp_option()) {
        let mut octets = tcp_option::OptionOctets::new();
        option.write(&mut octets);
        prop_assert_eq!(octets.len(), usize::from(option.len_octet()));
        prop_assert_eq!(usize::from(octets[1]), octets.len());
        prop_assert_eq!(MptcpOption::parse(&octets), option);
    }

    #[test]
    fn segments_of_a_super_segment_are_what_a_careful_sender_would_have_sent(
        flow in flow(), mut segment in head(), text in vec(any::<u8>(), 1..3000), gso_size in 1u16..800, chunk in 50usize..700,
    ) {
        prop_assume!(segment.control != Control::Syn);
        let pool = Pool::new(200, chunk.max(130));
        let source = Pool::new(64, chunk);
        segment.text = Chain::copy_from(&source, 0, &text).unwrap();
        segment.text.sum();
        let mut at = 0usize;
        for mut packet in segment_packet(emit(flow, &segment, gso_size)) {
            let partial = packet.to_vec();
            let (_, _) = parsed(&pool, &partial, RxChecksum::MaybePartial);
            packet.finish_checksum();
            let (got_flow, got) = parsed(&pool, &packet.to_vec(), RxChecksum::Unknown);
            let len = got.text.len() as usize;
            let last = at + len == text.len();
            let expected = Segment {
                seq: segment.seq + at as u32,
                push: segment.push && last,
                control: if segment.control == Control::Fin && !last { Control::None } else { segment.control },
                text: segment.text.slice(at as u32, len as u32),
                ..segment.clone()
            };
            prop_assert_eq!(got_flow, flow.reversed());
            // Short ones end where a received one did, before one that is nearly full or nearly as far as one may be.
            let full = usize::from(gso_size);
            let next = chunk.min(text.len() - at - len);
            let whole = (at + len).is_multiple_of(chunk)
                && next <= full
                && (next >= full - full / 8 || full - len <= full / 8);
            prop_assert!(len == full || last || whole);
            prop_assert!(len <= full);
            assert_same(&got, &expected);
            at += len;
        }
        prop_assert_eq!(at, text.len());
        drop(segment);
        prop_assert_eq!(source.free(), 64);
    }
}

fn example() -> (FlowTuple, Segment) {
    let end = |a: &str, port| Endpoint::new(a.parse().unwrap(), port);
    let segment = Segment {
        seq: SeqNum(7),
        ack: Some(SeqNum(9)),
        control: Control::None,
        push: true,
        window: UnscaledWindow(512),
        options: Options::Segment(SegmentOptions::default()),
        text: Chain::new(),
        ..Default::default()
    };
    (FlowTuple { local: end("10.0.0.1", 80), remote: end("10.0.0.2", 4000) }, segment)
}

#[test]
fn headers_become_headroom_and_the_sum_stays_with_the_text() {
    let pool = Pool::new(4, 256);
    let (flow, mut segment) = example();
    segment.text = Chain::copy_from(&pool, 0, b"hello").unwrap();
    let mut packet = emit(flow, &segment, 0);
    packet.finish_checksum();
    let (_, got) = parsed(&pool, &packet.to_vec(), RxChecksum::Unknown);
    let part = &got.text.parts()[0];
    assert_eq!((part.headroom(), part.bytes()), (40, &b"hello"[..]));
    assert!(part.frame().claim_headroom().is_some());
}

#[test]
fn ipv6_extension_headers_are_skipped_and_fragments_refused() {
    let pool = Pool::new(4, 256);
    let (_, segment) = example();
    let end = |a: &str, port| Endpoint::new(a.parse().unwrap(), port);
    let flow = FlowTuple { local: end("2001:db8::1", 80), remote: end("2001:db8::2", 4000) };
    let mut packet = emit(flow, &segment, 0);
    packet.finish_checksum();
    let plain = packet.to_vec();
    let insert = |kind: u8, extension: &[u8]| {
        let mut octets = plain.clone();
        octets[6] = kind;
        let len = u16::from_be_bytes([octets[4], octets[5]]) + extension.len() as u16;
        octets[4..6].copy_from_slice(&len.to_be_bytes());
        octets.splice(40..40, extension.iter().copied());
        octets
    };
    let hop_by_hop =
        insert(0, &[60, 0, 1, 4, 0, 0, 0, 0, 6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let (_, got) = parsed(&pool, &hop_by_hop, RxChecksum::Unknown);
    assert_same(&got, &segment);
    let fragment = insert(44, &[6, 0, 0, 1, 1, 2, 3, 4]);
    assert!(matches!(parse(received(&pool, &fragment, RxChecksum::Unknown)), Ok(Parsed::Fragment)));
    let udp = insert(44, &[17, 0, 0, 1, 1, 2, 3, 4]);
    assert!(matches!(parse(received(&pool, &udp, RxChecksum::Unknown)), Ok(Parsed::Other(17, _))));
    let endless = insert(0, &[0, 255, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        parse(received(&pool, &endless, RxChecksum::Unknown)).err(),
        Some(Malformed::Truncated)
    );
}

#[test]
fn options_look_like_those_of_linux() {
    let timestamps = Some(Timestamps { val: 1, ecr: 2 });
    let syn = Options::Syn(SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps,
        fast_open: None,
        mptcp: [MptcpOption::MpCapable(MpCapable {
            version: 1,
            flags: 1,
            sender_key: None,
            receiver_key: None,
            data: None,
        })]
        .into_iter()
        .collect(),
    });
    assert_eq!(
        syn.write().as_slice(),
        [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7, 30, 4, 1, 1]
    );
    let block = SackBlock { left: SeqNum(3), right: SeqNum(4) };
    let ack = Options::Segment(SegmentOptions {
        timestamps,
        sack: [block].into_iter().collect(),
        mptcp: [MptcpOption::MpPrio { backup: true }].into_iter().collect(),
    });
    assert_eq!(
        ack.write().as_slice(),
        [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 10, 0, 0, 0, 3, 0, 0, 0, 4, 30, 3, 0x51, 1]
    );
}

#[test]
fn a_bad_option_length_drops_a_syn_and_ends_the_list_elsewhere() {
    for bad in [&[30u8, 0][..], &[30, 1], &[8, 10, 1], &[3]] {
        let octets: Vec<u8> = [&[1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6], bad].concat();
        let got = Options::parse(&octets, Control::Syn);
        assert_eq!(got, Err(Malformed::BadOption), "MUST-7");
        let got = Options::parse(&octets, Control::None).unwrap();
        assert_eq!(got.timestamps(), Some(Timestamps { val: 5, ecr: 6 }));
    }
}

#[test]
fn a_malformed_mptcp_option_counts_but_displaces_no_good_one() {
    let mut octets = [30, 3, 0x20].repeat(4);
    octets.extend([30, 3, 0x51]);
    let options = Options::parse(&octets, Control::None).unwrap();
    let (last, others) = options.mptcp().split_last().unwrap();
    assert_eq!(*last, MptcpOption::MpPrio { backup: true });
    assert!(others.len() == 3 && others.iter().all(MptcpOption::is_malformed));
    assert!(MptcpOption::parse(&[30, 2]).is_malformed());
}

#[test]
fn only_mptcp_options_other_than_dss_exempt_from_dupack() {
    let with = |option| {
        let (_, mut segment) = example();
        let mptcp = [option].into_iter().collect();
        segment.options = Options::Segment(SegmentOptions { mptcp, ..SegmentOptions::default() });
        segment.exempt_from_dupack()
    };
    assert!(!example().1.exempt_from_dupack());
    assert!(!with(MptcpOption::Dss(Dss::default())));
    assert!(!with(MptcpOption::Unknown { subtype: 3, len: 5 }), "malformed is absent");
    assert!(with(MptcpOption::MpPrio { backup: false }));
}

#[test]
fn control_bits_that_exclude_each_other_do_not_parse() {
    let pool = Pool::new(4, 256);
    let (flow, segment) = example();
    let with = |flags: u8| {
        let mut octets = emit(flow, &segment, 0).to_vec();
        octets[33] = flags;
        match parse(received(&pool, &octets, RxChecksum::Valid)) {
            Ok(Parsed::Tcp(_, segment)) => Ok(segment.control),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        }
    };
    assert_eq!(with(0x03), Err(Malformed::BadFlags));
    assert_eq!(with(0x06), Err(Malformed::BadFlags));
    assert_eq!(with(0x05), Ok(Control::Rst));
    assert_eq!(with(0x02), Ok(Control::Syn));
}

/// Lengths that a subtype with this low nibble and octet 3 is accepted with.
fn legal_lengths(subtype: u8, low: u8, flags: u8) -> Vec<usize> {
    let octets = |len: usize| {
        let mut octets = alloc::vec![0; len];
        (octets[0], octets[1], octets[2]) = (30, len as u8, subtype << 4 | low);
        octets.iter_mut().skip(3).take(1).for_each(|o| *o = flags);
        octets
    };
    (3..=40).filter(|len| !MptcpOption::parse(&octets(*len)).is_malformed()).collect()
}

#[test]
fn every_subtype_has_the_lengths_of_rfc_8684_and_no_other() {
    assert_eq!(legal_lengths(0, 1, 0x81), [4, 12, 20, 22, 24]);
    assert_eq!(legal_lengths(1, 0, 1), [12, 16, 24]);
    for (flags, lengths) in [
        (0x00, &[4][..]),
        (0x01, &[8]),
        (0x03, &[12]),
        (0x04, &[14, 16]),
        (0x0c, &[18, 20]),
        (0x05, &[18, 20]),
        (0x0d, &[22, 24]),
        (0x07, &[22, 24]),
        (0x0f, &[26, 28]),
        (0x0a, &[4]),
        (0x10, &[4]),
    ] {
        assert_eq!(legal_lengths(2, 0, flags), lengths, "DSS flags {flags:#x}");
    }
    assert_eq!(legal_lengths(3, 0, 1), [16, 18, 28, 30]);
    assert_eq!(legal_lengths(3, 1, 1), [8, 10, 20, 22]);
    assert_eq!(legal_lengths(4, 0, 1), (4..=40).collect::<Vec<_>>());
    assert_eq!(legal_lengths(5, 1, 0), [3]);
    assert_eq!(legal_lengths(6, 0, 0), [12]);
    assert_eq!(legal_lengths(7, 0, 0), [12]);
    assert_eq!(legal_lengths(8, 0, 0), [4]);
}

#[test]
fn the_bits_of_ecn_are_where_rfc_3168_and_rfc_9768_put_them() {
    let (flow, mut segment) = example();
    segment.ecn = EcnFlags::AE.with(EcnFlags::ECE);
    segment.traffic_class = TrafficClass(46 << 2).with_ecn(Ecn::Ect0); // expedited forwarding
    let packet = emit(flow, &segment, 0);
    assert_eq!(packet.header[1], 0xba, "type of service");
    assert_eq!(packet.header[20 + 12..20 + 14], [0x51, 0x58], "AE; ECE, PSH and ACK");
    assert_eq!((segment.traffic_class.dscp(), segment.traffic_class.ecn()), (46, Ecn::Ect0));
    assert_eq!(EcnFlags::from_ace(5), segment.ecn);
    assert!(segment.ecn.contains(EcnFlags::ECE) && !segment.ecn.contains(EcnFlags::CWR));
}

#[test]
fn ip_options_are_skipped() {
    // MUST-50: two octets of no operation, one end of list.
    let pool = Pool::new(4, 2048);
    let (flow, mut segment) = example();
    segment.text = Chain::copy_from(&pool, 0, b"text").unwrap();
    let mut packet = emit(flow, &segment, 0);
    packet.finish_checksum();
    let mut octets = packet.to_vec();
    octets.splice(20..20, [1, 1, 1, 0]);
    octets[0] = 0x46;
    octets[3] += 4;
    octets[10..12].fill(0);
    let sum = !checksum::sum(&octets[..24]);
    octets[10..12].copy_from_slice(&sum.to_be_bytes());
    let (_, got) = parsed(&pool, &octets, RxChecksum::Unknown);
    assert_eq!(got.text.to_vec(), b"text");
}

#[test]
fn no_connection_is_opened_to_a_group() {
    // MUST-46: MP_CONVERT that names 224.0.0.1, and 255.255.255.255.
    for addr in [[224, 0, 0, 1], [255; 4]] {
        let mut octets = [0xfa, 0xa8, 0xfa, 0xa8, 0, 8, 0, 1, 0, 0, 0, 0];
        octets[8..].copy_from_slice(&addr);
        assert_eq!(
            plain_mode::Convert::parse_octets(&octets).unwrap_err(),
            plain_mode::MalformedConvert::BadAddress
        );
    }
}
