use super::*;
use crate::port::{Program, ProgramKind};
use proptest::prelude::*;

fn v4(a: [u8; 4]) -> IpAddr {
    IpAddr::from(a)
}

fn steering() -> Steering {
    let prefix = |s: &str, len| Prefix { addr: s.parse().unwrap(), len };
    Steering {
        rules: vec![
            SteerRule::Owned(v4([10, 0, 1, 1])),
            SteerRule::Owned("2001:db8::1".parse().unwrap()),
            SteerRule::TcpTo { from: Some(prefix("192.168.0.0", 20)), to: None, ports: 80..=443 },
            SteerRule::TcpTo { from: None, to: Some(prefix("2001:db8:5::", 47)), ports: 1..=65535 },
        ],
        except: vec![v4([192, 168, 1, 1]), "2001:db8:5::9".parse().unwrap()],
    }
}

fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

fn ipv4(protocol: u8, fragment: u16, words: u8, from: [u8; 4], to: [u8; 4], l4: &[u8]) -> Vec<u8> {
    let mut p = vec![0x40 | words, 0, 0, 0, 0, 0];
    p.extend(fragment.to_be_bytes());
    p.extend([64, protocol, 0, 0]);
    p.extend(from);
    p.extend(to);
    p.resize(usize::from(words.max(5)) * 4, 1);
    p.extend(l4);
    ethernet(0x0800, &p)
}

fn ipv6(protocol: u8, from: &str, to: &str, l4: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
    p.extend(from.parse::<Ipv6Addr>().unwrap().octets());
    p.extend(to.parse::<Ipv6Addr>().unwrap().octets());
    p.extend(l4);
    ethernet(0x86dd, &p)
}

fn arp(operation: u8, target: [u8; 4]) -> Vec<u8> {
    let mut p = vec![0, 1, 8, 0, 6, 4, 0, operation];
    p.extend([2, 0, 0, 0, 0, 1, 10, 0, 1, 9, 0, 0, 0, 0, 0, 0]);
    p.extend(target);
    ethernet(0x0806, &p)
}

/// An ICMP error about a segment that we sent from `port`.
fn error_v4(kind: u8, protocol: u8, sent: ([u8; 4], [u8; 4]), port: u16, to: [u8; 4]) -> Vec<u8> {
    let segment = [&port.to_be_bytes()[..], &[0x30, 0x39, 0, 0, 0, 1]].concat();
    let mut icmp = vec![kind, 4, 0, 0, 0, 0, 5, 20];
    icmp.extend(&ipv4(protocol, 0x4000, 6, sent.0, sent.1, &segment)[14..]);
    ipv4(1, 0, 5, [10, 9, 9, 9], to, &icmp)
}

fn error_v6(kind: u8, protocol: u8, sent: (&str, &str), port: u16) -> Vec<u8> {
    let segment = [&port.to_be_bytes()[..], &[0x30, 0x39, 0, 0, 0, 1]].concat();
    let mut icmp = vec![kind, 0, 0, 0, 0, 0, 5, 20];
    icmp.extend(&ipv6(protocol, sent.0, sent.1, &segment)[14..]);
    ipv6(58, "2001:db8:9::9", sent.0, &icmp)
}

fn tcp(port: u16) -> Vec<u8> {
    let mut t = vec![0x30, 0x39];
    t.extend(port.to_be_bytes());
    t.resize(20, 0);
    t
}

fn solicitation(target: &str) -> Vec<u8> {
    let mut t = vec![135, 0, 0, 0, 0, 0, 0, 0];
    t.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    ipv6(58, "fe80::2", "ff02::1:ff00:1", &t)
}

fn samples() -> Vec<(&'static str, Vec<u8>, bool)> {
    let client = [192, 168, 1, 2];
    let far = [203, 0, 113, 9];
    vec![
        ("udp to owned", ipv4(17, 0, 5, client, [10, 0, 1, 1], &[0; 8]), true),
        ("fragment to owned", ipv4(17, 0x2000, 5, client, [10, 0, 1, 1], &[0; 8]), true),
        ("tcp in rule", ipv4(6, 0, 5, client, far, &tcp(80)), true),
        ("tcp in rule, DF", ipv4(6, 0x4000, 5, client, far, &tcp(443)), true),
        ("tcp with ip options", ipv4(6, 0, 8, client, far, &tcp(100)), true),
        ("port below", ipv4(6, 0, 5, client, far, &tcp(79)), false),
        ("port above", ipv4(6, 0, 5, client, far, &tcp(444)), false),
        ("source outside", ipv4(6, 0, 5, [192, 168, 16, 2], far, &tcp(80)), false),
        ("kernel's address", ipv4(6, 0, 5, client, [192, 168, 1, 1], &tcp(80)), false),
        ("udp", ipv4(17, 0, 5, client, far, &tcp(80)), false),
        ("first fragment", ipv4(6, 0x2000, 5, client, far, &tcp(80)), false),
        ("later fragment", ipv4(6, 0x0001, 5, client, far, &tcp(80)), false),
        ("cut short", ipv4(6, 0, 5, client, far, &tcp(80)[..3]), false),
        ("arp for owned", arp(1, [10, 0, 1, 1]), true),
        ("arp for another", arp(1, [10, 0, 1, 2]), false),
        ("answer to a probe", arp(2, [0; 4]), true),
        ("a probe", arp(1, [0; 4]), false),
        ("v6 to owned", ipv6(58, "fe80::1", "2001:db8::1", &[128, 0, 0, 0]), true),
        ("v6 tcp in rule", ipv6(6, "2001:db8::7", "2001:db8:4::1", &tcp(9)), true),
        ("v6 tcp, kernel's address", ipv6(6, "2001:db8::7", "2001:db8:5::9", &tcp(9)), false),
        ("v6 tcp, outside", ipv6(6, "2001:db8::7", "2001:db8:6::1", &tcp(9)), false),
        ("error about tcp in rule", error_v4(3, 6, (far, client), 80, far), true),
        ("error about tcp, port above", error_v4(3, 6, (far, client), 444, far), false),
        ("error about tcp the other way", error_v4(3, 6, (client, far), 80, client), false),
        ("error about udp", error_v4(3, 17, (far, client), 80, far), false),
        ("redirect about tcp in rule", error_v4(5, 6, (far, client), 80, far), false),
        ("error to the kernel", error_v4(3, 6, (far, client), 80, [192, 168, 1, 1]), false),
        ("echo", ipv4(1, 0, 5, client, far, &[8; 40]), false),
        ("v6 unreachable", error_v6(1, 6, ("2001:db8:4::1", "2001:db8::7"), 9), true),
        ("v6 too big", error_v6(2, 6, ("2001:db8:4::1", "2001:db8::7"), 9), true),
        ("v6 too big, outside", error_v6(2, 6, ("2001:db8:6::1", "2001:db8::7"), 9), false),
        ("v6 too big, the other way", error_v6(2, 6, ("2001:db8::7", "2001:db8:4::1"), 9), false),
        ("v6 too big, udp", error_v6(2, 17, ("2001:db8:4::1", "2001:db8::7"), 9), false),
        ("v6 too big, kernel's", error_v6(2, 6, ("2001:db8:5::9", "2001:db8::7"), 9), false),
        ("v6 time exceeded", error_v6(3, 6, ("2001:db8:4::1", "2001:db8::7"), 9), false),
        ("solicitation for owned", solicitation("2001:db8::1"), true),
        ("solicitation for another", solicitation("2001:db8::2"), false),
        ("vlan", ethernet(0x8100, &[0; 60]), false),
    ]
}

#[test]
fn rules_match_as_written() {
    for (name, frame, ours) in samples() {
        assert_eq!(steering().takes(&frame), ours, "{name}");
    }
}

/// Loading programs needs CAP_BPF and CAP_NET_ADMIN.
fn without_root() -> bool {
    // Root of the initial namespace, as tests of this crate need it.
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let waived = std::env::var_os("PLAIT_TESTS_WITHOUT_ROOT").is_some();
    assert!(
        root || waived,
        "needs root to load programs; set PLAIT_TESTS_WITHOUT_ROOT to do without"
    );
    if !root {
        eprintln!("not run: needs root to load programs");
    }
    !root
}

fn load(steering: &Steering, kind: ProgramKind) -> Program {
    let flavour = Flavour { kind, taken: Taken::Return(1), other: 2, resolution: Resolution::Take };
    let insns = compile(steering, flavour).unwrap();
    Program::load(kind, &insns).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn compiled_rules_match_as_written() {
    if without_root() {
        return;
    }
    for kind in [ProgramKind::Xdp, ProgramKind::TcxIngress] {
        let program = load(&steering(), kind);
        for (name, frame, ours) in samples() {
            let want = if ours { 1 } else { 2 };
            assert_eq!(program.test_run(&frame).unwrap(), want, "{kind:?}: {name}");
        }
    }
}

#[test]
fn tcx_leaves_address_resolution_to_the_kernel_too() {
    if without_root() {
        return;
    }
    let insns = compile(&steering(), Flavour::tcx()).unwrap();
    let program = Program::load(ProgramKind::TcxIngress, &insns).unwrap();
    let next = -1i32 as u32;
    assert_eq!(program.test_run(&arp(1, [10, 0, 1, 1])).unwrap(), next);
    assert_eq!(program.test_run(&solicitation("2001:db8::1")).unwrap(), next);
    let owned = ipv4(6, 0, 5, [10, 0, 1, 9], [10, 0, 1, 1], &tcp(80));
    assert_eq!(program.test_run(&owned).unwrap(), 2, "dropped");
}

#[test]
fn the_kernel_takes_every_flavour() {
    if without_root() {
        return;
    }
    let map = crate::port::XskMap::new(4).unwrap();
    for flavour in [Flavour::xdp(map.fd()), Flavour::tcx(), Flavour::socket()] {
        for rules in [steering(), Steering::default()] {
            let insns = compile(&rules, flavour).unwrap();
            Program::load(flavour.kind, &insns).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

fn any_addr() -> impl Strategy<Value = IpAddr> {
    // Few distinct addresses, so that rules and frames meet.
    prop_oneof![
        (0u8..4, 0u8..4).prop_map(|(a, b)| IpAddr::from([10, 0, a, b])),
        (0u16..4, 0u16..4).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b])),
    ]
}

fn any_prefix() -> impl Strategy<Value = Option<Prefix>> {
    proptest::option::of(
        (any_addr(), 0u8..=128).prop_map(|(addr, len)| Prefix {
            addr,
            len: if addr.is_ipv4() { len % 33 } else { len },
        }),
    )
}

fn any_rule() -> impl Strategy<Value = SteerRule> {
    prop_oneof![
        any_addr().prop_map(SteerRule::Owned),
        (any_prefix(), any_prefix(), 0u16..4, 0u16..4).prop_map(|(from, to, low, more)| {
            SteerRule::TcpTo { from, to, ports: low..=low + more }
        }),
    ]
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let addrs =
        (any_addr(), any_addr()).prop_filter("one family", |(a, b)| a.is_ipv4() == b.is_ipv4());
    (addrs, 0u16..8, prop_oneof![Just(6u8), Just(17), Just(58)], 0u8..12, 14usize..120).prop_map(
        |((from, to), port, protocol, odd, cut)| {
            let mut frame = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) if odd == 0 => {
                    let mut frame = arp(port as u8, b.octets());
                    frame[28..32].copy_from_slice(&a.octets());
                    frame
                }
                (IpAddr::V4(a), IpAddr::V4(b)) if odd > 8 => {
                    error_v4(odd % 8 + 1, protocol, (b.octets(), a.octets()), port, b.octets())
                }
                _ if odd > 8 => {
                    error_v6(odd - 8, protocol, (&to.to_string(), &from.to_string()), port)
                }
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    let fragment = if odd == 1 { port } else { 0 };
                    ipv4(protocol, fragment, 5 + odd, a.octets(), b.octets(), &tcp(port))
                }
                _ if odd == 0 => solicitation(&to.to_string()),
                _ => ipv6(protocol, &from.to_string(), &to.to_string(), &tcp(port)),
            };
            frame.truncate(cut.max(14));
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn program_and_user_space_agree(
        rules in proptest::collection::vec(any_rule(), 0..5),
        except in proptest::collection::vec(any_addr(), 0..2),
        frames in proptest::collection::vec(any_frame(), 30),
    ) {
        if without_root() {
            return Ok(());
        }
        let steering = Steering { rules, except };
        let program = load(&steering, ProgramKind::Xdp);
        for frame in frames {
            let verdict = program.test_run(&frame).unwrap();
            prop_assert_eq!(verdict == 1, steering.takes(&frame), "{:02x?}", frame);
        }
    }
}
