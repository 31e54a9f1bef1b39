use super::*;
use stack::wire::{Endpoint, FlowTuple};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const T0: Instant = Instant::from_millis(1000);

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn pair() -> (Neighbors, Neighbors) {
    let end = |mac, v4: &str, v6: &str| {
        let owned = vec![Prefix { addr: ip(v4), len: 24 }, Prefix { addr: ip(v6), len: 64 }];
        Neighbors::new(vec![Identity { mac, owned }])
    };
    (end(OURS, "10.0.0.1", "2001:db8::1"), end(PEER, "10.0.0.2", "2001:db8::2"))
}

fn packet(to: &str) -> TxPacket {
    let flow = FlowTuple { local: Endpoint::new(ip(to), 1), remote: Endpoint::new(ip(to), 2) };
    TxPacket { flow, header: Default::default(), ip_len: 0, text: Default::default(), gso_size: 0 }
}

fn deliver(from: &mut Neighbors, to: &mut Neighbors) -> usize {
    let frames: Vec<_> = std::iter::from_fn(|| from.poll_transmit()).collect();
    for (_, frame) in &frames {
        assert!(to.on_frame(0, frame, T0));
    }
    frames.len()
}

#[test]
fn a_packet_waits_until_its_neighbor_answers() {
    for addr in ["10.0.0.2", "2001:db8::2"] {
        let (mut us, mut peer) = pair();
        us.push(0, ip(addr), packet(addr), T0);
        us.push(0, ip(addr), packet(addr), T0);
        assert!(us.poll_resolved().is_none());
        assert_eq!(deliver(&mut us, &mut peer), 1, "asked once");
        assert_eq!(deliver(&mut peer, &mut us), 1);
        assert_eq!(us.poll_resolved().map(|(port, mac, _)| (port, mac)), Some((0, PEER)));
        assert!(us.poll_resolved().is_some());
        assert_eq!(us.lookup(0, ip(addr), T0), Some(PEER));
        assert_eq!(us.deadline(), None);
    }
}

#[test]
fn a_port_without_an_address_resolves_by_a_probe() {
    let (_, mut peer) = pair();
    let mut us = Neighbors::new(vec![Identity { mac: OURS, owned: vec![] }]);
    us.push(0, ip("10.0.0.2"), packet("10.0.0.2"), T0);
    deliver(&mut us, &mut peer);
    deliver(&mut peer, &mut us);
    assert!(us.poll_resolved().is_some());
}

#[test]
fn a_silent_neighbor_is_given_up() {
    let (mut us, _) = pair();
    us.push(0, ip("10.0.0.9"), packet("10.0.0.9"), T0);
    let mut asked = 0;
    while let Some(at) = us.deadline() {
        us.on_deadline(at);
        asked += std::iter::from_fn(|| us.poll_transmit()).count();
        assert!(at < T0 + Duration::from_secs(5));
    }
    assert_eq!((asked, us.dropped()), (usize::from(TRIES), 1));
    assert_eq!(us.poll_unresolved().map(|p| p.flow.remote.addr), Some(ip("10.0.0.9")));
    assert!(us.poll_unresolved().is_none());
    us.push(0, ip("10.0.0.9"), packet("10.0.0.9"), T0);
    assert!(us.poll_transmit().is_some(), "the next packet asks again");
}

#[test]
fn an_old_answer_is_used_while_it_is_confirmed() {
    let (mut us, mut peer) = pair();
    us.push(0, ip("10.0.0.2"), packet("10.0.0.2"), T0);
    deliver(&mut us, &mut peer);
    deliver(&mut peer, &mut us);
    let later = T0 + FRESH;
    assert_eq!(us.lookup(0, ip("10.0.0.2"), later), Some(PEER));
    assert!(us.poll_transmit().is_some_and(|(_, frame)| frame[..6] == PEER), "asked it alone");
    let mut at = later;
    for _ in 1..PROBES {
        at += RETRY;
        assert!(us.lookup(0, ip("10.0.0.2"), at).is_some());
    }
    assert_eq!(us.lookup(0, ip("10.0.0.2"), at + RETRY), None, "it has gone");
}

#[test]
fn waiting_packets_are_bounded() {
    let (mut us, _) = pair();
    for _ in 0..MAX_WAITING + 3 {
        us.push(0, ip("10.0.0.9"), packet("10.0.0.9"), T0);
    }
    assert_eq!(us.dropped(), 3);
}

#[test]
fn strangers_create_no_entries_and_group_addresses_are_nobodys() {
    let (mut us, mut peer) = pair();
    peer.announce();
    deliver(&mut peer, &mut us);
    assert!(us.table.is_empty());
    us.push(0, ip("10.0.0.2"), packet("10.0.0.2"), T0);
    us.confirm(0, ip("10.0.0.2"), [0xff; 6], T0);
    assert!(us.poll_resolved().is_none());
}

#[test]
fn echo_requests_to_our_addresses_are_answered() {
    let (mut us, _) = pair();
    let mut ping = vec![0u8; ETHERNET + 28 + 5];
    EthernetRepr {
        src_addr: EthernetAddress(PEER),
        dst_addr: EthernetAddress(OURS),
        ethertype: EthernetProtocol::Ipv4,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut ping));
    ping[14..24].copy_from_slice(&[0x45, 0, 0, 33, 0, 0, 0x40, 0, 9, 1]);
    ping[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    ping[34] = 8;
    ping[42..].copy_from_slice(b"hello");
    Icmpv4Packet::new_unchecked(&mut ping[34..]).fill_checksum();
    assert!(us.on_frame(0, &ping, T0));
    let (_, reply) = us.poll_transmit().unwrap();
    assert_eq!((&reply[..6], &reply[6..12]), (&PEER[..], &OURS[..]));
    let ip = Ipv4Packet::new_checked(&reply[14..]).unwrap();
    assert!(ip.verify_checksum());
    assert_eq!(ip.dst_addr(), Ipv4Addr::new(10, 0, 0, 2));
    let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    assert!(icmp.verify_checksum());
    assert_eq!((icmp.msg_type(), icmp.data()), (Icmpv4Message::EchoReply, &b"hello"[..]));
    ping[33] = 9;
    assert!(!us.on_frame(0, &ping, T0), "not our address");
}

#[test]
fn neighbours_of_long_ago_do_not_keep_new_ones_out() {
    let (mut us, _) = pair();
    let many = (0..MAX_NEIGHBORS as u32).map(|i| IpAddr::from(Ipv4Addr::from(0x0a01_0000 + i)));
    for addr in many {
        us.push(0, addr, packet("10.1.0.0"), T0);
        us.confirm(0, addr, PEER, T0);
    }
    us.push(0, ip("10.0.0.2"), packet("10.0.0.2"), T0);
    assert_eq!(us.dropped(), 1, "full");
    let later = T0 + FRESH;
    us.push(0, ip("10.0.0.2"), packet("10.0.0.2"), later);
    assert_eq!(us.dropped(), 1);
    us.confirm(0, ip("10.0.0.2"), PEER, later);
    assert_eq!(us.lookup(0, ip("10.0.0.2"), later), Some(PEER));
}
