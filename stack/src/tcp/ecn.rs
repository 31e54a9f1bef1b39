//! Explicit congestion notification: RFC 3168, and the more accurate feedback of RFC 9768 without its option.
#![forbid(unsafe_code)]

use super::recovery::Recovery;
use super::{EcnMode, Tcb};
use crate::wire::{Ecn, EcnFlags, Segment, SeqNum};

/// Where the counters of packets with CE begin (RFC 9768 3.2.1(a)): not at a value that a zeroed field would show.
const FIRST_CEP: u8 = 5;

/// What the two ends agreed on in the SYNs, and what is still to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum EcnState {
    /// Not used.
    #[default]
    Off,
    /// RFC 3168.
    Classic {
        /// A packet with CE came, and no CWR since (6.1.3).
        echo: Pending,
        /// Our window was reduced, and the peer does not know yet (6.1.2).
        reduced: Pending,
    },
    /// RFC 9768.
    Accurate(Handshake, Counters),
}

const _: () = assert!(size_of::<EcnState>() <= 3); // three octets that every flow would pad with

/// What the ACE field has to tell about the SYN/ACK before it counts (RFC 9768 3.2.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Handshake {
    /// We are the client: our first ACK tells what the SYN/ACK was marked with.
    Tell(Ecn),
    /// We are the server: the first ACK will tell us.
    Await,
    Over,
}

/// Packets with CE, modulo 8: those that came (r.cep) in the low three bits, those the peer told of (s.cep) in the next;
/// then whether ECT may not be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counters(u8);

impl Counters {
    fn new(received: u8, capable: Capable) -> Counters {
        let incapable = if capable == Capable::Yes { 0 } else { 1 << 6 };
        Counters(received & 7 | FIRST_CEP << 3 | incapable)
    }

    fn received(self) -> EcnFlags {
        EcnFlags::from_ace(self.0)
    }

    fn add_received(&mut self, packets: u32) {
        self.0 = self.0 & !7 | self.0.wrapping_add(packets as u8) & 7;
    }

    /// Takes the peer's counter; how much it went up.
    fn told(&mut self, ace: u8) -> u8 {
        let more = ace.wrapping_sub(self.0 >> 3) & 7;
        self.0 = self.0 & !(7 << 3) | (ace & 7) << 3;
        more
    }

    /// The path changes the field of packets that nobody marked, or clears the bits that would tell (RFC 9768 3.2.2.3,
    /// 3.2.2.4): what we send may not be marked.
    fn capable(self) -> Capable {
        if self.0 & 1 << 6 == 0 { Capable::Yes } else { Capable::No }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    No,
    Yes,
}

/// Whether we send ECN-capable packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Capable {
    Yes,
    No,
}

/// A code point as the ACE field of a SYN/ACK, and of the ACK that answers one, tells it (RFC 9768 3.1.1, 3.2.2.1).
fn handshake_code(ecn: Ecn) -> EcnFlags {
    EcnFlags::from_ace(match ecn {
        Ecn::NotEct => 0b010,
        Ecn::Ect1 => 0b011,
        Ecn::Ect0 => 0b100,
        Ecn::Ce => 0b110,
    })
}

fn handshake_ecn(flags: EcnFlags) -> Option<Ecn> {
    match flags.ace() {
        0b010 => Some(Ecn::NotEct),
        0b011 => Some(Ecn::Ect1),
        0b100 => Some(Ecn::Ect0),
        0b110 => Some(Ecn::Ce),
        _ => None,
    }
}

/// What our SYN asks for.
pub(super) fn request(mode: EcnMode) -> EcnFlags {
    match mode {
        EcnMode::Off | EcnMode::Accept => EcnFlags::NONE,
        EcnMode::On => EcnFlags::CWR.with(EcnFlags::ECE), // RFC 3168 6.1.1(a)
        EcnMode::Accurate => EcnFlags::AE.with(EcnFlags::CWR).with(EcnFlags::ECE), // RFC 9768 3.1.1(a)
    }
}

impl EcnState {
    /// As the server, from the client's SYN.
    pub(super) fn accept(mode: EcnMode, syn: &Segment) -> EcnState {
        match syn.ecn.ace() {
            _ if mode == EcnMode::Off => EcnState::Off,
            // RFC 9768 3.1.1(b)
            0b111 => EcnState::Accurate(Handshake::Await, Counters::new(FIRST_CEP, Capable::Yes)),
            0b011 => EcnState::CLASSIC, // RFC 3168 6.1.1(b)
            _ => EcnState::Off, // RFC 9768 3.1.3: who asks for something else will understand no answer
        }
    }

    /// As the client that asked, from the SYN/ACK.
    pub(super) fn answered(mode: EcnMode, syn_ack: &Segment) -> EcnState {
        let asked = request(mode);
        match (asked.ace(), syn_ack.ecn.ace()) {
            (0b111, 0b010 | 0b011 | 0b100 | 0b110) => {
                let marked = syn_ack.traffic_class.ecn();
                // Our SYN was not marked: who says otherwise shows that the path rewrites the field.
                let unchanged = handshake_ecn(syn_ack.ecn) == Some(Ecn::NotEct);
                let capable = if unchanged { Capable::Yes } else { Capable::No };
                let received = FIRST_CEP + u8::from(marked == Ecn::Ce);
                EcnState::Accurate(Handshake::Tell(marked), Counters::new(received, capable))
            }
            // The nonce sum of RFC 3540 stands where AE is now.
            (0b111 | 0b011, 0b001 | 0b101) => EcnState::CLASSIC,
            _ => EcnState::Off, // RFC 3168 6.1.1(c): reflected bits are no answer
        }
    }

    const CLASSIC: EcnState = EcnState::Classic { echo: Pending::No, reduced: Pending::No };

    /// Bits of the SYN/ACK that answers `syn`.
    pub(super) fn syn_ack_flags(self, syn: Ecn) -> EcnFlags {
        match self {
            EcnState::Off => EcnFlags::NONE,
            EcnState::Classic { .. } => EcnFlags::ECE,
            EcnState::Accurate(..) => handshake_code(syn),
        }
    }

    /// Whether new text goes out as ECT(0).
    pub(super) fn marks(self) -> bool {
        match self {
            EcnState::Off => false,
            EcnState::Classic { .. } => true,
            EcnState::Accurate(_, counters) => counters.capable() == Capable::Yes,
        }
    }

    /// Bits of a segment without SYN. CWR of RFC 3168 goes with new text only.
    pub(super) fn flags(&mut self, text: NewText) -> EcnFlags {
        match self {
            EcnState::Off => EcnFlags::NONE,
            EcnState::Classic { echo, reduced } => {
                let ece = if *echo == Pending::Yes { EcnFlags::ECE } else { EcnFlags::NONE };
                if text == NewText::Yes && *reduced == Pending::Yes {
                    *reduced = Pending::No;
                    return ece.with(EcnFlags::CWR);
                }
                ece
            }
            EcnState::Accurate(handshake, counters) => {
                let code = match (*handshake, text) {
                    (Handshake::Tell(ecn), NewText::No) => handshake_code(ecn),
                    _ => counters.received(),
                };
                if matches!(handshake, Handshake::Tell(_)) {
                    *handshake = Handshake::Over;
                }
                code
            }
        }
    }

    /// Whether the next text has to leave as one packet: what cuts super-segments may keep CWR for the first of them.
    pub(super) fn forbids_super_segments(self) -> bool {
        match self {
            EcnState::Off => false,
            EcnState::Classic { reduced, .. } => reduced == Pending::Yes,
            EcnState::Accurate(_, counters) => counters.received().contains(EcnFlags::CWR),
        }
    }

    /// A segment of `packets` packets passed the checks. Whether the peer should hear of it at once.
    pub(super) fn on_received(&mut self, seg: &Segment, packets: u32) -> Hurry {
        let ce = seg.traffic_class.ecn() == Ecn::Ce;
        match self {
            EcnState::Off => Hurry::No,
            EcnState::Classic { echo, .. } => {
                // RFC 3168 6.1.3(b): CWR first, as the packet that brings it may be marked again.
                let told = seg.ecn.contains(EcnFlags::CWR);
                if told {
                    *echo = Pending::No;
                }
                if ce {
                    *echo = Pending::Yes;
                }
                // Its window may be so small that it waits for us.
                if told && !seg.text.is_empty() { Hurry::Yes } else { Hurry::No }
            }
            EcnState::Accurate(_, counters) if ce => {
                counters.add_received(packets);
                Hurry::Yes // RFC 9768 3.2.2.5.1(a)
            }
            EcnState::Accurate(..) => Hurry::No,
        }
    }

    /// Packets of ours that the peer says met congestion; with RFC 3168 one stands for any number.
    pub(super) fn on_ack(&mut self, seg: &Segment, news: News) -> u8 {
        match self {
            EcnState::Off => 0,
            EcnState::Classic { .. } => u8::from(seg.ecn.contains(EcnFlags::ECE)),
            EcnState::Accurate(handshake @ Handshake::Await, counters) if seg.text.is_empty() => {
                // The answer to our SYN/ACK. It was not marked: who says that it was, or whose bits are all gone, shows what
                // the path does to the field (RFC 9768 3.2.2.3(a), 3.2.2.4(a)).
                let changed = handshake_ecn(seg.ecn).is_some_and(|ecn| ecn != Ecn::NotEct);
                if changed || seg.ecn == EcnFlags::NONE {
                    let received = counters.received().ace();
                    *counters = Counters::new(received, Capable::No);
                }
                *handshake = Handshake::Over;
                0
            }
            // A counter that was overtaken would seem to have run backwards, that is nearly once around.
            EcnState::Accurate(..) if news == News::No => 0,
            EcnState::Accurate(handshake, counters) => {
                if *handshake == Handshake::Await {
                    *handshake = Handshake::Over;
                }
                counters.told(seg.ecn.ace())
            }
        }
    }

    /// Our window was reduced, for whatever reason.
    pub(super) fn on_reduced(&mut self) {
        if let EcnState::Classic { reduced, .. } = self {
            *reduced = Pending::Yes; // RFC 3168 6.1.2(c)
        }
    }

    /// The name for `plait show`.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            EcnState::Off => None,
            EcnState::Classic { .. } => Some("ecn"),
            EcnState::Accurate(..) => Some("accecn"),
        }
    }
}

/// Whether a segment carries text for the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NewText {
    No,
    Yes,
}

/// Whether an ACK is owed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hurry {
    No,
    Yes,
}

/// Whether an ACK acknowledges more than those before it, or is younger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum News {
    No,
    Yes,
}

impl Tcb {
    /// What the ECN bits of an acceptable segment say about our packets, and what the IP header says about its own.
    /// `ack` is not older than any before; called before the scoreboard hears of it.
    pub(super) fn take_ecn(&mut self, seg: &Segment, ack: SeqNum, news: News) {
        if self.agreed.ecn == EcnState::Off {
            return;
        }
        let packets = seg.text.len().div_ceil(u32::from(self.rcv.mss)).max(1);
        if self.agreed.ecn.on_received(seg, packets) == Hurry::Yes {
            self.owe_ack_now();
        }
        if seg.traffic_class.ecn() == Ecn::Ce {
            self.trouble().ce_in += packets;
        }
        let marked = self.agreed.ecn.on_ack(seg, news);
        if marked > 0 {
            self.trouble().delivered_ce += u32::from(marked);
            self.trouble().undo = None; // RFC 4015 3.2 step 6: congested, whatever became of the loss
            self.answer_congestion(ack);
        }
    }

    /// As a loss, but there is nothing to send again: once per window, and not when a loss was answered in it already
    /// (RFC 3168 6.1.2(a)(b), RFC 8511 3).
    fn answer_congestion(&mut self, ack: SeqNum) {
        let nxt = self.queue.nxt();
        let Some(spell) = self.queue.spell_mut() else { return };
        let answered = spell.reduced_until.is_some_and(|until| ack.at_or_before(until));
        if answered || !matches!(spell.recovery, Recovery::Open) {
            return;
        }
        spell.reduced_until = Some(nxt);
        let mss = self.mss(self.room);
        self.congestion.on_congestion_experienced(self.flight_let_out(), mss, self.cfg.abe);
        self.agreed.ecn.on_reduced();
    }
}
