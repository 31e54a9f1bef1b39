//! SYN cookies: a SYN is answered and forgotten, and the third segment brings back what has to be known (RFC 4987 3.6).
//!
//! The initial sequence number is the cookie: 5 bits of time slot, 3 bits of MSS, 24 bits of MAC. Window scale and SACK
//! are in the low bits of TSval, which the client returns; without timestamps there is no place for them, and the flow
//! does without.
#![forbid(unsafe_code)]

use super::ecn::{self, EcnState};
use super::pmtu::default_mss;
use super::{EcnMode, Opening, SynReceived, TcpConfig};
use crate::buf::Chain;
use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, EcnFlags, FlowTuple, Options, Segment, SeqNum, SynOptions, Timestamps, WindowScale,
};
use alloc::rc::Rc;
use core::hash::{Hash, Hasher};
use siphasher::sip::SipHasher13;

/// When cookies are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CookiePolicy {
    /// Never: beyond the limit of half-open connections SYNs are dropped.
    Off,
    /// Instead of dropping SYNs.
    #[default]
    Auto,
    /// For every SYN that can be answered so.
    Always,
}

/// How long a slot is; a cookie is good in its own and in the next.
const SLOT: Duration = Duration::from_secs(64);
const LIFETIME_SLOTS: u64 = 2;
/// A secret is used for this many slots, some 34 minutes, and as long as its cookies live.
const SLOTS_PER_SECRET: u64 = 32;
/// The MSS that three bits can name, rounded down to (MUST-16): least sensible, IPv4 and IPv6 default, tunnels,
/// Ethernet with IPv6 and IPv4, jumbo frames.
const MSS: [u16; 8] = [216, 536, 1220, 1360, 1400, 1440, 1460, 8960];
/// The low bits of TSval: shift of the window scale or [`NO_SCALE`], SACK, and ECN of RFC 3168 (for RFC 9768 there is no room).
const STAMP_BITS: u32 = 0x3f;
const NO_SCALE: u32 = 0x0f;
const SACK: u32 = 0x10;
const ECN: u32 = 0x20;

/// The secrets behind the cookies of one shard.
#[derive(Clone, Debug, Default)]
pub struct CookieJar {
    /// The newest, and the one before it, with their epochs.
    secrets: [Option<(u64, SipHasher13)>; 2],
    /// When the last cookie was given.
    given: Option<Instant>,
}

/// What a cookie that came back says.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The SYN, as far as it is known again.
    pub syn: Segment,
    /// Our numbers: the cookie is ISS. What the path carries is for the owner to add.
    pub opening: Opening,
    /// When it was given; see [`CookieJar::number`].
    pub slot: u64,
}

/// What the MAC covers.
#[derive(Clone, Copy)]
struct Covered {
    flow: FlowTuple,
    irs: SeqNum,
    slot: u64,
    mss: u32,
    /// The scale of our own windows: a cookie from before the buffers were configured anew is not good.
    scale: u8,
    /// The owner's.
    note: u8,
}

fn slot(now: Instant) -> u64 {
    now.as_millis() / SLOT.as_millis() as u64
}

fn our_scale(cfg: &TcpConfig) -> u8 {
    WindowScale::for_window(cfg.receive_buffer).shift()
}

impl CookieJar {
    /// Whether a cookie given until now may still come back. If not, no segment is worth a look.
    pub fn is_open(&self, now: Instant) -> bool {
        let lifetime = SLOT.saturating_mul(LIFETIME_SLOTS as u32);
        self.given.is_some_and(|at| now.since(at) <= lifetime)
    }

    /// The SYN/ACK for `syn`, with a cookie. `ts_offset` is that of the flow; `note` has to be the same in
    /// [`CookieJar::check`]. `None`: the SYN's MSS is too small to be named.
    pub fn answer(
        &mut self,
        cfg: &Rc<TcpConfig>,
        flow: FlowTuple,
        syn: &Segment,
        (ts_offset, note): (u32, u8),
        rng: &mut Rng,
        now: Instant,
    ) -> Option<Segment> {
        let Options::Syn(offered) = &syn.options else { return None };
        let default_mss = default_mss(flow.remote.addr);
        let wanted = offered.mss.unwrap_or(default_mss);
        let mss = MSS.iter().rposition(|mss| *mss <= wanted)? as u32;
        let slot = slot(now);
        let covered = Covered { flow, irs: syn.seq, slot, mss, scale: our_scale(cfg), note };
        let mac = mac(self.newest(slot, rng), covered);
        let iss = SeqNum((slot as u32) << 27 | mss << 24 | mac);
        let stamped = cfg.timestamps && offered.timestamps.is_some();
        let offered = match stamped {
            true => offered.clone(),
            // Nothing would bring them back.
            false => SynOptions { mss: offered.mss, ..SynOptions::default() },
        };
        let ecn = match EcnState::accept(cfg.ecn, syn) {
            EcnState::Off => EcnFlags::NONE,
            _ if !stamped => EcnFlags::NONE,
            _ => ecn::request(EcnMode::On),
        };
        let val = (now.as_millis() as u32).wrapping_add(ts_offset);
        let behind = val.wrapping_sub(noted(val, &offered, ecn, cfg));
        let opening = Opening {
            iss,
            ts_offset: ts_offset.wrapping_sub(behind),
            path_mss: u16::MAX,
            default_mss,
        };
        let syn =
            Segment { options: Options::Syn(offered), ecn, text: Chain::new(), ..syn.clone() };
        let mut received = SynReceived::new(cfg, &syn, opening, 0, now);
        received.answer(Chain::new(), now);
        self.given = Some(now);
        received.poll_transmit(now).map(|tx| tx.segment)
    }

    /// What we know again if `ack`, a segment of no flow, returns a cookie of ours.
    pub fn check(
        &self,
        cfg: &TcpConfig,
        flow: FlowTuple,
        ack: &Segment,
        (ts_offset, note): (u32, u8),
        now: Instant,
    ) -> Option<Proven> {
        if matches!(ack.control, Control::Syn | Control::Rst) {
            return None;
        }
        let (irs, cookie) = (ack.seq - 1, ack.ack? - 1);
        let slots = (0..LIFETIME_SLOTS).filter_map(|age| slot(now).checked_sub(age));
        let slot = slots.into_iter().find(|slot| *slot as u32 & 0x1f == cookie.0 >> 27)?;
        let mss = cookie.0 >> 24 & 7;
        let covered = Covered { flow, irs, slot, mss, scale: our_scale(cfg), note };
        if mac(self.of(slot)?, covered) != cookie.0 & 0xff_ffff {
            return None;
        }
        let mut options = SynOptions { mss: MSS.get(mss as usize).copied(), ..Default::default() };
        let mut ecn = EcnFlags::NONE;
        if let Some(ts) = ack.options.timestamps().filter(|_| cfg.timestamps) {
            let scale = ts.ecr & NO_SCALE;
            options.window_scale = (scale != NO_SCALE).then_some(scale as u8);
            options.sack_permitted = ts.ecr & SACK != 0;
            options.timestamps = Some(Timestamps { val: ts.val, ecr: 0 });
            if ts.ecr & ECN != 0 {
                ecn = ecn::request(EcnMode::On);
            }
        }
        let syn = Segment {
            seq: irs,
            control: Control::Syn,
            ecn,
            window: ack.window,
            options: Options::Syn(options),
            ..Default::default()
        };
        let default_mss = default_mss(flow.remote.addr);
        let opening = Opening { iss: cookie, ts_offset, path_mss: u16::MAX, default_mss };
        Some(Proven { syn, opening, slot })
    }

    /// The slot of a cookie that is about to be given.
    pub fn begin(&mut self, rng: &mut Rng, now: Instant) -> u64 {
        let slot = slot(now);
        self.newest(slot, rng);
        slot
    }

    /// 64 bits that belong to a cookie and that only we can compute; others for each `attempt`.
    pub fn number(&self, flow: FlowTuple, irs: SeqNum, slot: u64, attempt: u32) -> Option<u64> {
        let mut hasher = *self.of(slot)?;
        hasher.write_u8(1);
        flow.hash(&mut hasher);
        hasher.write_u32(irs.0);
        hasher.write_u64(slot);
        hasher.write_u32(attempt);
        Some(hasher.finish())
    }

    /// The secret of a slot that is not over, drawn when it is first needed.
    fn newest(&mut self, slot: u64, rng: &mut Rng) -> &SipHasher13 {
        let epoch = slot / SLOTS_PER_SECRET;
        let [newest, before] = &mut self.secrets;
        if newest.as_ref().is_none_or(|(of, _)| *of != epoch) {
            *before = newest.take();
        }
        let draw = || (epoch, SipHasher13::new_with_keys(rng.u64(), rng.u64()));
        &newest.get_or_insert_with(draw).1
    }

    fn of(&self, slot: u64) -> Option<&SipHasher13> {
        let epoch = slot / SLOTS_PER_SECRET;
        self.secrets.iter().flatten().find(|(of, _)| *of == epoch).map(|(_, secret)| secret)
    }
}

/// The latest TSval not after `val` whose low bits say what `offered` and we have in common.
fn noted(val: u32, offered: &SynOptions, ecn: EcnFlags, cfg: &TcpConfig) -> u32 {
    let scale = offered.window_scale.map_or(NO_SCALE, |shift| u32::from(shift.min(14)));
    let sack = if offered.sack_permitted && cfg.sack { SACK } else { 0 };
    let ecn = if ecn == EcnFlags::NONE { 0 } else { ECN };
    let low = scale | sack | ecn;
    let ahead = (val & STAMP_BITS) < low;
    ((val & !STAMP_BITS) | low).wrapping_sub(if ahead { STAMP_BITS + 1 } else { 0 })
}

fn mac(secret: &SipHasher13, covered: Covered) -> u32 {
    let Covered { flow, irs, slot, mss, scale, note } = covered;
    let mut hasher = *secret;
    hasher.write_u8(0);
    flow.hash(&mut hasher);
    hasher.write_u32(irs.0);
    hasher.write_u64(slot);
    hasher.write_u32(mss);
    hasher.write(&[scale, note]);
    hasher.finish() as u32 & 0xff_ffff
}
