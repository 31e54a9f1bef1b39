//! Mappings between data and subflow sequence space (RFC 8684 3.3): what we send as labels, what the peer declared.
#![forbid(unsafe_code)]

use crate::buf::Chain;
use crate::tcp::Label;
use crate::wire::{Dsn, SeqNum, checksum};
use alloc::vec::Vec;
use smallvec::SmallVec;

/// A mapping that we sent. It travels through TCP as the label of its octets, so that every retransmission declares
/// exactly the same again: a peer may reset a subflow over a mapping that differs (RFC 8684 3.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First octet.
    pub dsn: Dsn,
    /// First octet, relative to the subflow's SYN.
    pub ssn: u32,
    /// Octets, at least one.
    pub len: u16,
    /// Checksum field, 0 where none is in use.
    pub checksum: u16,
}

impl Mapping {
    /// As a label.
    pub fn label(self) -> Label {
        let low = u64::from(self.ssn) << 32 | u64::from(self.len) << 16 | u64::from(self.checksum);
        Label(u128::from(self.dsn.0) << 64 | u128::from(low))
    }

    /// From a label; `None` for text outside of the data space.
    pub fn from_label(label: Label) -> Option<Mapping> {
        let low = label.0 as u64;
        let len = (low >> 16) as u16;
        let dsn = Dsn((label.0 >> 64) as u64);
        (label != Label::PLAIN && len > 0).then_some(Mapping {
            dsn,
            ssn: (low >> 32) as u32,
            len,
            checksum: low as u16,
        })
    }
}

/// The checksum field of a mapping over octets with the folded sum `text` (RFC 8684 3.3.1: always the full DSN, and
/// `len` counts a DATA_FIN).
pub fn dss_checksum(dsn: Dsn, ssn: u32, len: u16, text: u16) -> u16 {
    let d = dsn.0;
    let words = [d >> 48, d >> 32 & 0xffff, d >> 16 & 0xffff, d & 0xffff];
    let sum: u32 = words.iter().map(|w| *w as u32).sum();
    !checksum::fold(sum + (ssn >> 16) + (ssn & 0xffff) + u32::from(len) + u32::from(text))
}

/// A mapping that the peer declared, in absolute subflow sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declared {
    /// First octet's sequence number.
    pub seq: SeqNum,
    /// First octet's DSN.
    pub dsn: Dsn,
    /// Octets of text, a DATA_FIN not counted.
    pub text: u16,
    /// SSN as on the wire, for the checksum.
    pub ssn: u32,
    /// Length as on the wire, for the checksum.
    pub len: u16,
    /// Checksum field.
    pub checksum: Option<u16>,
}

impl Declared {
    fn end(&self) -> SeqNum {
        self.seq + u32::from(self.text)
    }
}

/// What declaring a mapping led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declaration {
    /// It is new.
    Added,
    /// It was known, or lies behind.
    Known,
    /// It contradicts an earlier one, or there are too many.
    Broken,
}

/// A peer may announce many small mappings ahead of a hole; more than this is abuse.
const MAX_DECLARED: usize = 8192;

/// The peer's mappings on one subflow whose text has not all arrived, in order of sequence number.
///
/// In order there is one at a time, which has its place here; only what waits behind a hole takes heap.
#[derive(Debug, Default)]
pub struct PeerMappings {
    list: SmallVec<[Declared; 1]>,
}

impl PeerMappings {
    /// Takes a mapping in; `floor` is the subflow's `rcv.nxt`, below which nothing matters any more.
    pub fn declare(&mut self, new: Declared, floor: SeqNum) -> Declaration {
        if new.text == 0 || new.end().at_or_before(floor) {
            return Declaration::Known;
        }
        let at = self.list.partition_point(|m| m.seq.before(new.seq));
        let neighbours = self.list.iter().skip(at.saturating_sub(1)).take(3);
        for old in neighbours {
            if old.end().at_or_before(new.seq) || new.end().at_or_before(old.seq) {
                continue;
            }
            // A DATA_FIN may join a mapping late, so that `len` may differ where the text does not.
            let same_text = old.seq == new.seq && old.text == new.text && old.dsn == new.dsn;
            let same_sum = old.checksum == new.checksum || old.len != new.len;
            return if same_text && same_sum { Declaration::Known } else { Declaration::Broken };
        }
        if self.list.len() >= MAX_DECLARED {
            return Declaration::Broken;
        }
        self.list.insert(at, new);
        Declaration::Added
    }

    /// The mapping that covers `seq`.
    pub fn covering(&self, seq: SeqNum) -> Option<&Declared> {
        let at = self.list.partition_point(|m| m.seq.at_or_before(seq));
        self.list.get(at.checked_sub(1)?).filter(|m| seq.before(m.end()))
    }

    /// Forgets mappings that end at or before `floor`.
    pub fn forget_before(&mut self, floor: SeqNum) {
        let gone = self.list.iter().take_while(|m| m.end().at_or_before(floor)).count();
        if gone == self.list.len() {
            self.list = SmallVec::new();
        } else {
            self.list.drain(..gone);
        }
    }

    /// Where the first mapping after `seq` begins.
    fn next_after(&self, seq: SeqNum) -> Option<SeqNum> {
        let at = self.list.partition_point(|m| m.seq.at_or_before(seq));
        self.list.get(at).map(|m| m.seq)
    }

    /// Cuts text along mappings: pieces with their DSN, and what no mapping covers.
    pub fn map(&self, seq: SeqNum, text: Chain) -> Mapped {
        let mut mapped = Mapped::default();
        let (mut seq, mut text) = (seq, text);
        while !text.is_empty() {
            let (take, dsn) = match self.covering(seq) {
                Some(m) => (m.end().since(seq), Some(m.dsn + u64::from(seq.since(m.seq)))),
                None => (self.next_after(seq).map_or(u32::MAX, |next| next.since(seq)), None),
            };
            let rest = if take < text.len() { text.split_off(take) } else { Chain::new() };
            let len = text.len();
            match dsn {
                Some(dsn) => mapped.pieces.push((dsn, text)),
                None => mapped.unmapped.push((seq, text)),
            }
            seq += len;
            text = rest;
        }
        mapped
    }
}

/// Text cut along mappings.
#[derive(Debug, Default)]
pub struct Mapped {
    /// Pieces with a mapping.
    pub pieces: SmallVec<[(Dsn, Chain); 2]>,
    /// Pieces without.
    pub unmapped: Vec<(SeqNum, Chain)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;

    const IDSN: Dsn = Dsn(0x5707_62cd_38be_9818);

    #[test]
    fn checksums_match_the_vectors() {
        let sum = checksum::sum(b"GET / HTTP/1.1\r\nxxxxx");
        assert_eq!(dss_checksum(IDSN + 1, 1, 21, sum), 0x3ab5);
        assert_eq!(dss_checksum(IDSN + 1, 1, 22, sum), 0x3ab4, "with DATA_FIN");
        assert_eq!(dss_checksum(IDSN + 22, 0, 1, 0), 0x753d, "DATA_FIN alone");
    }

    #[test]
    fn a_label_gives_its_mapping_back() {
        let m = Mapping { dsn: Dsn(u64::MAX - 3), ssn: 0x8000_0001, len: 65_535, checksum: 0xabcd };
        assert_eq!(Mapping::from_label(m.label()), Some(m));
        assert_eq!(Mapping::from_label(Label::PLAIN), None);
    }

    fn declared(seq: u32, dsn: u64, text: u32) -> Declared {
        Declared {
            seq: SeqNum(seq),
            dsn: Dsn(dsn),
            text: text as u16,
            ssn: seq,
            len: text as u16,
            checksum: None,
        }
    }

    #[test]
    fn duplicates_that_agree_are_known_and_others_break() {
        let mut maps = PeerMappings::default();
        let floor = SeqNum(u32::MAX - 10);
        assert_eq!(maps.declare(declared(u32::MAX - 5, 1, 10), floor), Declaration::Added);
        assert_eq!(maps.declare(declared(u32::MAX - 5, 1, 10), floor), Declaration::Known);
        assert_eq!(maps.declare(declared(u32::MAX - 5, 2, 10), floor), Declaration::Broken);
        assert_eq!(maps.declare(declared(0, 7, 10), floor), Declaration::Broken);
        assert_eq!(maps.declare(declared(4, 11, 6), floor), Declaration::Added);
        maps.forget_before(SeqNum(4));
        assert_eq!(maps.declare(declared(u32::MAX - 5, 9, 10), SeqNum(4)), Declaration::Known);
    }

    #[test]
    fn text_is_cut_along_mappings() {
        let pool = Pool::new(4, 64);
        let mut maps = PeerMappings::default();
        maps.declare(declared(10, 1000, 5), SeqNum(10));
        maps.declare(declared(20, 500, 5), SeqNum(10));
        let text = Chain::copy_from(&pool, 0, b"0123456789abcdef").unwrap();
        let mapped = maps.map(SeqNum(12), text);
        let pieces: Vec<_> = mapped.pieces.iter().map(|(d, c)| (d.0, c.to_vec())).collect();
        assert_eq!(pieces, [(1002, b"012".to_vec()), (500, b"89abc".to_vec())]);
        let unmapped: Vec<_> = mapped.unmapped.iter().map(|(s, c)| (s.0, c.to_vec())).collect();
        assert_eq!(unmapped, [(15, b"34567".to_vec()), (25, b"def".to_vec())]);
    }
}
