//! Steering rules as an eBPF program: for XDP, TCX ingress and socket filters.
//!
//! Headers are copied to the program's stack by a helper, so the same code serves all three, linear frames or not.
#![forbid(unsafe_code)]

use super::insn::{Assembler, If, Label, Reg, TooLong, Width};
use super::{SteerRule, Steering};
use crate::port::ProgramKind;
use stack::wire::Prefix;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What the program does with a frame that is ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// Redirects it to the socket of its queue in the XSKMAP behind this descriptor; passes it on if there is none.
    Redirect(i32),
    /// Ends with this verdict.
    Return(i32),
}

/// What is left to the kernel as well even though it is ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// ARP and neighbour solicitations count as ours.
    Take,
    /// They do not.
    Leave,
}

/// A program's flavour.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    /// Where it runs.
    pub kind: ProgramKind,
    /// Frames that are ours.
    pub taken: Taken,
    /// Verdict for all others.
    pub other: i32,
    /// ARP and NDP.
    pub resolution: Resolution,
}

const XDP_PASS: i32 = 2;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

impl Flavour {
    /// XDP: ours to the sockets in the map, all else to the kernel.
    pub fn xdp(map: i32) -> Flavour {
        Flavour {
            kind: ProgramKind::Xdp,
            taken: Taken::Redirect(map),
            other: XDP_PASS,
            resolution: Resolution::Take,
        }
    }

    /// TCX ingress: hides from the kernel what an AF_PACKET port takes.
    pub fn tcx() -> Flavour {
        Flavour {
            kind: ProgramKind::TcxIngress,
            taken: Taken::Return(TCX_DROP),
            other: TCX_NEXT,
            resolution: Resolution::Leave,
        }
    }

    /// Socket filter: only ours, and all of it.
    pub fn socket() -> Flavour {
        Flavour {
            kind: ProgramKind::SocketFilter,
            taken: Taken::Return(-1),
            other: 0,
            resolution: Resolution::Take,
        }
    }
}

// The frame on the stack: Ethernet, then IPv4 without options, IPv6, or ARP; placed so that the IP header is aligned.
const BASE: i16 = -82;
const IP: i16 = BASE + 14;
// The first octets of TCP, or of an ICMPv6 neighbour solicitation.
const L4: i16 = -112;
// The IP header that an ICMP error quotes.
const QUOTED: i16 = -152;

// The local port: of a segment that comes in, and of one that went out and is quoted.
const SEGMENT: i16 = 2;
const QUOTE: i16 = 0;

const HELPER_SKB_LOAD_BYTES: i32 = 26;
const HELPER_REDIRECT_MAP: i32 = 51;
const HELPER_XDP_LOAD_BYTES: i32 = 189;

struct Writer<'a> {
    asm: Assembler,
    steering: &'a Steering,
    flavour: Flavour,
    ours: Label,
    other: Label,
}

/// Compiles `steering`.
///
/// # Errors
/// [`TooLong`].
pub fn compile(steering: &Steering, flavour: Flavour) -> Result<Vec<u64>, TooLong> {
    let mut asm = Assembler::new();
    let (ours, other) = (asm.label(), asm.label());
    let (v4, v6, arp) = (asm.label(), asm.label(), asm.label());
    let mut w = Writer { asm, steering, flavour, ours, other };
    w.asm.copy(Reg::R6, Reg::R1).set(Reg::R7, 0);
    w.tag();
    w.fetch(BASE, 34);
    w.asm
        .load(Width::H, Reg::R7, Reg::R10, BASE + 12)
        .network_to_host_16(Reg::R7)
        .jump_if(If::Eq, Reg::R7, 0x0800, v4)
        .jump_if(If::Eq, Reg::R7, 0x86dd, v6)
        .jump_if(If::Eq, Reg::R7, 0x0806, arp)
        .jump(other);
    w.asm.place(v4);
    w.ipv4();
    w.asm.place(v6);
    w.ipv6();
    w.asm.place(arp);
    w.arp();
    w.verdicts();
    w.asm.finish()
}

impl Writer<'_> {
    /// A frame of a VLAN is that VLAN's device's. The kernel has taken the tag out of it, but for XDP.
    fn tag(&mut self) {
        const VLAN_TCI: i16 = 24; // struct __sk_buff
        const VLAN_ID: u32 = 0xfff;
        if self.flavour.kind != ProgramKind::Xdp {
            self.asm.load(Width::W, Reg::R1, Reg::R6, VLAN_TCI).and(Reg::R1, VLAN_ID).jump_if(
                If::Ne,
                Reg::R1,
                0,
                self.other,
            );
        }
    }

    /// Copies `len` octets at offset R7 of the frame to `to` on the stack; a shorter frame is not ours.
    fn fetch(&mut self, to: i16, len: i32) {
        let helper = match self.flavour.kind {
            ProgramKind::Xdp => HELPER_XDP_LOAD_BYTES,
            _ => HELPER_SKB_LOAD_BYTES,
        };
        self.asm
            .copy(Reg::R1, Reg::R6)
            .copy(Reg::R2, Reg::R7)
            .copy(Reg::R3, Reg::R10)
            .add(Reg::R3, i32::from(to))
            .set(Reg::R4, len)
            .call(helper)
            .jump_if(If::Ne, Reg::R0, 0, self.other);
    }

    /// Jumps to `ours` if the octets on the stack at `at` are an owned address of this family (4 or 16 octets).
    fn owned(&mut self, at: i16, octets: usize) {
        for rule in &self.steering.rules {
            let SteerRule::Owned(addr) = rule else { continue };
            if octets_of(*addr).len() == octets {
                self.address(*addr, at, self.ours);
            }
        }
    }

    /// Jumps to `target` if the octets on the stack at `at` are `addr`.
    fn address(&mut self, addr: IpAddr, at: i16, target: Label) {
        let next = self.asm.label();
        for (i, word) in octets_of(addr).chunks_exact(4).enumerate() {
            let want = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            self.asm.load(Width::W, Reg::R1, Reg::R10, at + 4 * i as i16).jump_if(
                If::Ne,
                Reg::R1,
                want,
                next,
            );
        }
        self.asm.jump(target).place(next);
    }

    /// Jumps to `next` unless the octets on the stack at `at` are inside `prefix`.
    fn inside(&mut self, prefix: Prefix, at: i16, next: Label) {
        for (i, word) in octets_of(prefix.addr).chunks_exact(4).enumerate() {
            let bits = (i32::from(prefix.len) - 32 * i as i32).clamp(0, 32) as u32;
            if bits == 0 {
                break;
            }
            let mask = (u32::MAX << (32 - bits)).to_be();
            let want = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]) & mask;
            self.asm
                .load(Width::W, Reg::R1, Reg::R10, at + 4 * i as i16)
                .and(Reg::R1, mask)
                .jump_if(If::Ne, Reg::R1, want, next);
        }
    }

    fn ipv4(&mut self) {
        self.owned(IP + 16, 4);
        self.asm
            .load(Width::H, Reg::R1, Reg::R10, IP + 6)
            .network_to_host_16(Reg::R1)
            .and(Reg::R1, 0x3fff) // more fragments, fragment offset
            .jump_if(If::Ne, Reg::R1, 0, self.other);
        self.exceptions(IP + 16, 4);
        self.asm.set(Reg::R7, 14);
        self.skip_ipv4_header(IP);
        let icmp = self.asm.label();
        self.asm
            .load(Width::B, Reg::R1, Reg::R10, IP + 9)
            .jump_if(If::Eq, Reg::R1, 1, icmp)
            .jump_if(If::Ne, Reg::R1, 6, self.other);
        self.tcp(SEGMENT, IP + 12, IP + 16, 4);
        self.asm.place(icmp);
        self.fetch(L4, 1);
        self.asm.load(Width::B, Reg::R1, Reg::R10, L4).jump_if(If::Ne, Reg::R1, 3, self.other); // RFC 792
        self.asm.add(Reg::R7, 8);
        self.fetch(QUOTED, 20);
        self.asm.load(Width::B, Reg::R1, Reg::R10, QUOTED + 9).jump_if(
            If::Ne,
            Reg::R1,
            6,
            self.other,
        );
        self.skip_ipv4_header(QUOTED);
        self.tcp(QUOTE, QUOTED + 16, QUOTED + 12, 4);
    }

    /// Adds the length of the IPv4 header on the stack at `at` to R7.
    fn skip_ipv4_header(&mut self, at: i16) {
        self.asm
            .load(Width::B, Reg::R1, Reg::R10, at)
            .and(Reg::R1, 15)
            .shift_left(Reg::R1, 2)
            .add_reg(Reg::R7, Reg::R1);
    }

    fn ipv6(&mut self) {
        self.asm.set(Reg::R7, 0);
        self.fetch(BASE, 54);
        self.owned(IP + 24, 16);
        let icmp = self.asm.label();
        self.asm
            .set(Reg::R7, 54)
            .load(Width::B, Reg::R1, Reg::R10, IP + 6)
            .jump_if(If::Eq, Reg::R1, 58, icmp)
            .jump_if(If::Ne, Reg::R1, 6, self.other);
        self.exceptions(IP + 24, 16);
        self.tcp(SEGMENT, IP + 8, IP + 24, 16);
        self.asm.place(icmp);
        self.icmpv6();
    }

    /// ICMPv6 beginning at offset R7. Ends the path.
    fn icmpv6(&mut self) {
        let error = self.asm.label();
        self.fetch(L4, 1);
        self.asm
            .load(Width::B, Reg::R1, Reg::R10, L4)
            .jump_if(If::Eq, Reg::R1, 1, error) // RFC 4443 3.1
            .jump_if(If::Eq, Reg::R1, 2, error); // RFC 4443 3.2
        if self.flavour.resolution == Resolution::Take {
            self.asm.jump_if(If::Ne, Reg::R1, 135, self.other); // RFC 4861 4.3
            self.fetch(L4, 24);
            self.owned(L4 + 8, 16);
        }
        self.asm.jump(self.other).place(error);
        self.exceptions(IP + 24, 16);
        self.asm.add(Reg::R7, 8);
        self.fetch(QUOTED, 40);
        self.asm.add(Reg::R7, 40).load(Width::B, Reg::R1, Reg::R10, QUOTED + 6).jump_if(
            If::Ne,
            Reg::R1,
            6,
            self.other,
        );
        self.tcp(QUOTE, QUOTED + 24, QUOTED + 8, 16);
    }

    fn arp(&mut self) {
        if self.flavour.resolution == Resolution::Take {
            self.asm.set(Reg::R7, 0);
            self.fetch(BASE, 42);
            self.owned(IP + 24, 4);
            // An answer to a probe that named no sender address (RFC 5227 1.1): sent where we own no address.
            self.asm
                .load(Width::W, Reg::R1, Reg::R10, IP + 24)
                .jump_if(If::Ne, Reg::R1, 0, self.other)
                .load(Width::H, Reg::R1, Reg::R10, IP + 6)
                .network_to_host_16(Reg::R1)
                .jump_if(If::Eq, Reg::R1, 2, self.ours);
        }
        self.asm.jump(self.other);
    }

    fn exceptions(&mut self, destination: i16, octets: usize) {
        for addr in &self.steering.except {
            if octets_of(*addr).len() == octets {
                self.address(*addr, destination, self.other);
            }
        }
    }

    /// The `TcpTo` rules, TCP beginning at offset R7; `port` is where in it the port is that they are about. Ends the path.
    fn tcp(&mut self, port: i16, source: i16, destination: i16, octets: usize) {
        self.fetch(L4, 4);
        self.asm.load(Width::H, Reg::R9, Reg::R10, L4 + port).network_to_host_16(Reg::R9);
        for rule in &self.steering.rules {
            let SteerRule::TcpTo { from, to, ports } = rule else { continue };
            let family = |p: &Option<Prefix>| p.is_none_or(|p| octets_of(p.addr).len() == octets);
            if family(from) && family(to) {
                self.tcp_rule((*from, source), (*to, destination), ports);
            }
        }
        self.asm.jump(self.other);
    }

    fn tcp_rule(
        &mut self,
        (from, source): (Option<Prefix>, i16),
        (to, destination): (Option<Prefix>, i16),
        ports: &RangeInclusive<u16>,
    ) {
        let next = self.asm.label();
        if let Some(prefix) = from {
            self.inside(prefix, source, next);
        }
        if let Some(prefix) = to {
            self.inside(prefix, destination, next);
        }
        self.asm
            .jump_if(If::Lt, Reg::R9, u32::from(*ports.start()), next)
            .jump_if(If::Gt, Reg::R9, u32::from(*ports.end()), next)
            .jump(self.ours)
            .place(next);
    }

    fn verdicts(&mut self) {
        self.asm.place(self.other).set(Reg::R0, self.flavour.other).exit();
        if !self.asm.is_used(self.ours) {
            return; // the verifier refuses code that cannot be reached
        }
        self.asm.place(self.ours);
        match self.flavour.taken {
            Taken::Redirect(map) => {
                const RX_QUEUE_INDEX: i16 = 16; // struct xdp_md
                self.asm
                    .load_map(Reg::R1, map)
                    .load(Width::W, Reg::R2, Reg::R6, RX_QUEUE_INDEX)
                    .set(Reg::R3, XDP_PASS)
                    .call(HELPER_REDIRECT_MAP)
            }
            Taken::Return(verdict) => self.asm.set(Reg::R0, verdict),
        };
        self.asm.exit();
    }
}

fn octets_of(addr: IpAddr) -> arrayvec::ArrayVec<u8, 16> {
    let mut out = arrayvec::ArrayVec::new();
    match addr {
        IpAddr::V4(a) => out.extend(a.octets()),
        IpAddr::V6(a) => out.extend(a.octets()),
    }
    out
}
