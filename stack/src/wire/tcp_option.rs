//! TCP options as values: one type for SYNs, one for all other segments.
#![forbid(unsafe_code)]

use super::fast_open::{FastOpen, KIND_EXPERIMENT, KIND_FAST_OPEN};
use super::octets::Octets;
use super::{Malformed, MptcpOption, MptcpOptions, SeqNum};
use arrayvec::ArrayVec;

/// Octets of options in a header: data offset 15 leaves 40.
pub(super) const MAX_OPTION_OCTETS: usize = 40;
/// Options as written.
pub(super) type OptionOctets = ArrayVec<u8, MAX_OPTION_OCTETS>;

const KIND_END: u8 = 0;
const KIND_NOP: u8 = 1;
const KIND_MSS: u8 = 2;
const KIND_WINDOW_SCALE: u8 = 3;
const KIND_SACK_PERMITTED: u8 = 4;
const KIND_SACK: u8 = 5;
const KIND_TIMESTAMPS: u8 = 8;
pub(super) const KIND_MPTCP: u8 = 30;

/// The Timestamps option (RFC 7323 3): kind 8, length 10.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timestamps {
    /// TSval.
    pub val: u32,
    /// TSecr; meaningful only when ACK is set.
    pub ecr: u32,
}

/// One SACK block (RFC 2018 3): octets `left..right` were received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SackBlock {
    /// First octet.
    pub left: SeqNum,
    /// First octet after.
    pub right: SeqNum,
}

/// SACK blocks in the order of the option, most recent first.
pub type SackBlocks = ArrayVec<SackBlock, 4>;

/// Options that may stand in a SYN or SYN/ACK.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SynOptions {
    /// Maximum segment size (RFC 9293 3.7.1).
    pub mss: Option<u16>,
    /// Window scale shift as offered, unclamped (RFC 7323 2).
    pub window_scale: Option<u8>,
    /// SACK permitted (RFC 2018 2).
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// TCP Fast Open.
    pub fast_open: Option<FastOpen>,
    /// Options of kind 30 in order.
    pub mptcp: MptcpOptions,
}

/// Options that may stand in any other segment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentOptions {
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// SACK blocks.
    pub sack: SackBlocks,
    /// Options of kind 30 in order.
    pub mptcp: MptcpOptions,
}

/// The options of one segment: which kinds are possible depends on SYN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Options {
    /// The segment has SYN set.
    Syn(SynOptions),
    /// It has not.
    Segment(SegmentOptions),
}

impl Default for Options {
    /// None, of a segment without SYN.
    fn default() -> Options {
        Options::Segment(SegmentOptions::default())
    }
}

impl Timestamps {
    /// Octets in a segment: NOP, NOP and the option.
    pub const WRITTEN_LEN: usize = 12;

    fn put(self, out: &mut OptionOctets, lead: [u8; 2]) {
        let (v, e) = (self.val.to_be_bytes(), self.ecr.to_be_bytes());
        put(
            out,
            &[
                lead[0],
                lead[1],
                KIND_TIMESTAMPS,
                10,
                v[0],
                v[1],
                v[2],
                v[3],
                e[0],
                e[1],
                e[2],
                e[3],
            ],
        );
    }
}

impl SynOptions {
    /// Octets that these options take in a segment, padding counted; at most 40 fit.
    pub fn written_len(&self) -> usize {
        let sack_alone = self.sack_permitted && self.timestamps.is_none();
        4 * usize::from(self.mss.is_some())
            + Timestamps::WRITTEN_LEN * usize::from(self.timestamps.is_some())
            + 4 * usize::from(sack_alone)
            + 4 * usize::from(self.window_scale.is_some())
            + self.fast_open.map_or(0, |option| option.written_len())
            + mptcp_len(&self.mptcp)
    }

    /// In the order of Linux, so that we look like everybody else: MSS, SACK permitted and timestamps in one word group,
    /// window scale, Fast Open, MPTCP.
    fn write(&self, out: &mut OptionOctets) {
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            put(out, &[KIND_MSS, 4, a, b]);
        }
        match (self.timestamps, self.sack_permitted) {
            (Some(ts), true) => ts.put(out, [KIND_SACK_PERMITTED, 2]),
            (Some(ts), false) => ts.put(out, [KIND_NOP, KIND_NOP]),
            (None, true) => put(out, &[KIND_NOP, KIND_NOP, KIND_SACK_PERMITTED, 2]),
            (None, false) => {}
        }
        if let Some(shift) = self.window_scale {
            put(out, &[KIND_NOP, KIND_WINDOW_SCALE, 3, shift]);
        }
        if let Some(option) = self.fast_open {
            option.write(out);
        }
        write_mptcp(&self.mptcp, out);
    }
}

impl SegmentOptions {
    /// Octets that these options take in a segment, padding counted; at most 40 fit.
    pub fn written_len(&self) -> usize {
        Timestamps::WRITTEN_LEN * usize::from(self.timestamps.is_some())
            + SackBlock::written_len(self.sack.len())
            + mptcp_len(&self.mptcp)
    }

    fn write(&self, out: &mut OptionOctets) {
        if let Some(ts) = self.timestamps {
            ts.put(out, [KIND_NOP, KIND_NOP]);
        }
        if !self.sack.is_empty() {
            let mut option: ArrayVec<u8, 36> = ArrayVec::new();
            let head = [KIND_NOP, KIND_NOP, KIND_SACK, 2 + 8 * self.sack.len() as u8];
            option.extend(head);
            for block in &self.sack {
                option.extend(block.left.0.to_be_bytes());
                option.extend(block.right.0.to_be_bytes());
            }
            put(out, &option);
        }
        write_mptcp(&self.mptcp, out);
    }
}

impl SackBlock {
    /// Octets that a SACK option of `blocks` blocks takes in a segment, its NOPs counted.
    pub const fn written_len(blocks: usize) -> usize {
        if blocks == 0 { 0 } else { 4 + 8 * blocks }
    }
}

impl Options {
    /// Octets that these options take in a segment, padding counted: always a multiple of 4; at most 40 fit.
    pub fn written_len(&self) -> usize {
        match self {
            Options::Syn(o) => o.written_len(),
            Options::Segment(o) => o.written_len(),
        }
    }

    /// The option octets of a header. What does not fit whole is left out.
    pub(super) fn write(&self) -> OptionOctets {
        let mut out = OptionOctets::new();
        match self {
            Options::Syn(o) => o.write(&mut out),
            Options::Segment(o) => o.write(&mut out),
        }
        out
    }

    /// Parses the option octets of a header. Unknown kinds are skipped (MUST-6), as are known ones with a length they
    /// cannot have.
    ///
    /// # Errors
    /// [`Malformed::BadOption`] for a length of 0, 1 or past the end in a SYN. MUST-7: such a length must not disturb
    /// us; in other segments it only ends the list.
    pub(super) fn parse(octets: &[u8], control: super::Control) -> Result<Options, Malformed> {
        if control == super::Control::Syn {
            let mut o = SynOptions::default();
            let whole = each_option(octets, |kind, body, option| o.take(kind, body, option));
            whole.map(|()| Options::Syn(o))
        } else {
            let mut o = SegmentOptions::default();
            let _ = each_option(octets, |kind, body, option| o.take(kind, body, option));
            Ok(Options::Segment(o))
        }
    }

    /// The timestamps, whichever kind of segment this is.
    pub fn timestamps(&self) -> Option<Timestamps> {
        match self {
            Options::Syn(o) => o.timestamps,
            Options::Segment(o) => o.timestamps,
        }
    }

    /// The MPTCP options, whichever kind of segment this is.
    pub fn mptcp(&self) -> &MptcpOptions {
        match self {
            Options::Syn(o) => &o.mptcp,
            Options::Segment(o) => &o.mptcp,
        }
    }
}

impl SynOptions {
    fn take(&mut self, kind: u8, body: &[u8], option: &[u8]) {
        match (kind, body) {
            (KIND_MSS, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
            (KIND_WINDOW_SCALE, &[shift]) => self.window_scale = Some(shift),
            (KIND_SACK_PERMITTED, []) => self.sack_permitted = true,
            (KIND_TIMESTAMPS, _) => self.timestamps = parse_timestamps(body).or(self.timestamps),
            (KIND_MPTCP, _) => take_mptcp(&mut self.mptcp, option),
            (KIND_FAST_OPEN | KIND_EXPERIMENT, _) => {
                self.fast_open = self.fast_open.or(FastOpen::parse(kind, body));
            }
            _ => {}
        }
    }
}

impl SegmentOptions {
    fn take(&mut self, kind: u8, body: &[u8], option: &[u8]) {
        match kind {
            KIND_TIMESTAMPS => self.timestamps = parse_timestamps(body).or(self.timestamps),
            KIND_SACK => self.sack = parse_sack(body).unwrap_or_default(),
            KIND_MPTCP => take_mptcp(&mut self.mptcp, option),
            _ => {}
        }
    }
}

/// Calls `take` with kind, body and whole of each option.
fn each_option(mut octets: &[u8], mut take: impl FnMut(u8, &[u8], &[u8])) -> Result<(), Malformed> {
    loop {
        match *octets {
            [] | [KIND_END, ..] => return Ok(()),
            [KIND_NOP, ref rest @ ..] => octets = rest,
            [_] => return Err(Malformed::BadOption),
            [kind, len, ..] => {
                let len = usize::from(len);
                let Some((option, rest)) = octets.split_at_checked(len).filter(|_| len >= 2) else {
                    return Err(Malformed::BadOption); // MUST-7
                };
                take(kind, &option[2..], option);
                octets = rest;
            }
        }
    }
}

fn parse_timestamps(body: &[u8]) -> Option<Timestamps> {
    let mut r = Octets(body);
    let ts = Timestamps { val: r.u32()?, ecr: r.u32()? };
    r.0.is_empty().then_some(ts)
}

fn parse_sack(body: &[u8]) -> Option<SackBlocks> {
    let mut blocks = SackBlocks::new();
    let mut r = Octets(body);
    while !r.0.is_empty() {
        let block = SackBlock { left: SeqNum(r.u32()?), right: SeqNum(r.u32()?) };
        blocks.try_push(block).ok()?;
    }
    Some(blocks)
}

/// Keeps what we know rather than what we do not when there is more than fits.
fn take_mptcp(options: &mut MptcpOptions, option: &[u8]) {
    let unknown = |o: &MptcpOption| matches!(o, MptcpOption::Unknown { .. });
    let parsed = MptcpOption::parse(option);
    if let Err(full) = options.try_push(parsed)
        && let (false, Some(at)) = (unknown(&full.element()), options.iter().rposition(unknown))
    {
        options.remove(at);
        options.push(parsed);
    }
}

fn mptcp_len(options: &MptcpOptions) -> usize {
    options.iter().map(MptcpOption::written_len).sum()
}

fn write_mptcp(options: &MptcpOptions, out: &mut OptionOctets) {
    for option in options {
        if option.written_len() <= out.remaining_capacity() {
            option.write(out);
            while out.len() % 4 != 0 {
                out.push(KIND_NOP);
            }
        }
    }
}

fn put(out: &mut OptionOctets, octets: &[u8]) {
    let _ = out.try_extend_from_slice(octets); // takes all or nothing
}
