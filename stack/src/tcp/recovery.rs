//! Loss detection and recovery: RACK-TLP (RFC 8985), proportional rate reduction (RFC 9937).
#![forbid(unsafe_code)]

use super::pacing::Pacer;
use super::rtt::Rtt;
use super::send_queue::{OnDelivered, Transmission};
use crate::time::{Duration, Instant, Span};
use crate::wire::SeqNum;

/// Rounds that a widened reordering window lasts (RFC 8985 6.2 step 4).
const REO_WND_PERSIST: u8 = 16;
/// RFC 8985 6.2 bounds the reordering window by SRTT, and with it a path that delays some segments by more than a round
/// trip loses its window again and again. Where DSACKs ask for it we wait as long as this, still less than the RTO.
const MAX_REO_WND: Duration = Duration::from_millis(100);
/// Segments beyond a hole that count as proof without waiting (RFC 8985 6.2 step 4).
pub(super) const DUP_THRESH: u32 = 3;
/// What a receiver may delay an ACK by (RFC 8985 7.2: max_ack_delay; at Linux 40 ms or its SRTT), and some.
const TLP_ACK_DELAY: Duration = Duration::from_millis(50);
/// What two round trips may vary by when the clock ticks in milliseconds.
const TLP_SLACK: Duration = Duration::from_millis(2);
/// PTO before any measurement (RFC 8985 7.2).
const TLP_INITIAL: Duration = Duration::from_secs(1);

/// How much reordering the path shows.
#[derive(Clone, Debug)]
pub(super) struct Rack {
    /// RTT of the newest delivered transmission.
    rtt: Span,
    reordering_seen: bool,
    reo_wnd_mult: u8,
    reo_wnd_persist: u8,
}

/// What is known about the octets of one spell, from the first that is queued until all are acknowledged.
#[derive(Debug)]
pub(super) struct Spell {
    /// The newest delivered transmission, up to where.
    newest: Option<(Transmission, SeqNum)>,
    fack: SeqNum,
    /// A round in which a DSACK was answered already ends here.
    dsack_round: Option<SeqNum>,
    /// When a segment that waits only for the reordering window will be lost.
    pub(super) reorder_timer: Option<Instant>,
    pub(super) recovery: Recovery,
    /// Recovery ended here without SACK: duplicates of this ACK prove nothing (RFC 6582 3.2 step 2).
    pub(super) recover: Option<SeqNum>,
    /// When the peer will be taken to have thrown away what it had SACKed.
    pub(super) reneged: Option<Instant>,
    /// PTO counts from here.
    pub(super) pto_base: Instant,
    /// With a user timeout: since when nothing was acknowledged of what waits.
    pub(super) waits_since: Option<Instant>,
    /// cwnd held us back for all text up to here.
    pub(super) limited_until: SeqNum,
    pub(super) pacer: Pacer,
    /// Duplicate ACKs in a row, where the peer has no SACK.
    pub(super) dup_acks: u32,
    /// Marks on what was sent up to here are answered already.
    pub(super) reduced_until: Option<SeqNum>,
}

impl Spell {
    pub(super) fn new(una: SeqNum) -> Spell {
        Spell {
            newest: None,
            fack: una,
            dsack_round: None,
            reorder_timer: None,
            recovery: Recovery::Open,
            recover: None,
            reneged: None,
            pto_base: Instant::ZERO,
            waits_since: None,
            limited_until: una,
            pacer: Pacer::new(),
            dup_acks: 0,
            reduced_until: None,
        }
    }

    /// What to compare with: the newest delivered transmission and where it ended.
    pub(super) fn newest(&self) -> Option<(u64, SeqNum)> {
        self.newest.map(|(sent, end)| (sent.number, end))
    }

    /// Nothing is compared until something is delivered again.
    pub(super) fn forget_newest(&mut self) {
        (self.newest, self.reorder_timer) = (None, None);
    }

    /// Whether a DSACK is the first of its round.
    pub(super) fn begins_dsack_round(&mut self, una: SeqNum, nxt: SeqNum) -> bool {
        if self.dsack_round.is_some_and(|end| una.before(end)) {
            return false;
        }
        self.dsack_round = Some(nxt);
        true
    }
}

impl Rack {
    pub(super) fn new() -> Rack {
        Rack {
            rtt: Duration::ZERO.into(),
            reordering_seen: false,
            reo_wnd_mult: 1,
            reo_wnd_persist: REO_WND_PERSIST,
        }
    }

    /// RACK.reo_wnd.
    pub(super) fn reo_wnd(&self, rtt: &Rtt, recovering: bool, sacked_segments: u32) -> Duration {
        if !self.reordering_seen && (recovering || sacked_segments >= DUP_THRESH) {
            return Duration::ZERO;
        }
        let quarter = rtt.min().unwrap_or_default() / 4;
        let most = rtt.srtt().unwrap_or_default().max(MAX_REO_WND);
        (quarter * u32::from(self.reo_wnd_mult)).min(most)
    }

    /// RTT of the newest delivered transmission.
    pub(super) fn rtt(&self) -> Duration {
        self.rtt.into()
    }

    /// The receiver reports a duplicate: something was sent again for nothing, so wait longer (once per round).
    pub(super) fn on_dsack(&mut self) {
        self.reo_wnd_mult = self.reo_wnd_mult.saturating_add(1);
        self.reo_wnd_persist = REO_WND_PERSIST;
    }

    pub(super) fn reordering_seen(&self) -> bool {
        self.reordering_seen
    }

    /// What was taken for lost had been overtaken.
    pub(super) fn on_reordering(&mut self) {
        self.reordering_seen = true;
    }

    /// A timeout though the peer held enough to prove a loss: we waited for reordering that was none.
    pub(super) fn on_timeout_while_waiting(&mut self) {
        self.reordering_seen = false;
    }

    /// Fast recovery or the repair of a timeout is over, and it was not for nothing (RFC 8985 6.2 step 4).
    pub(super) fn on_recovery_exit(&mut self) {
        self.reo_wnd_persist = self.reo_wnd_persist.saturating_sub(1);
        if self.reo_wnd_persist == 0 {
            self.reo_wnd_mult = 1;
        }
    }
}

/// Collects what one ACK delivered.
pub(super) struct Delivered<'a> {
    pub(super) rack: &'a mut Rack,
    pub(super) now: Instant,
    pub(super) min_rtt: Duration,
    /// TSecr and the offset between the clock in ms and TSval.
    pub(super) echo: Option<(u32, u32)>,
    /// Earliest and latest time at which octets were sent that were sent once and are delivered now.
    pub(super) clean: Option<(Instant, Instant)>,
    /// The longest segment delivered now.
    pub(super) largest: u16,
    /// The latest transmission that was delivered, by its number; 0: none.
    pub(super) newest: u64,
    /// Up to where octets were in flight when the timeout came, while it is being repaired.
    pub(super) point: Option<SeqNum>,
    /// Whether any of them arrived that were not sent again.
    pub(super) original: Original,
}

/// Whether an ACK delivered what was in flight at a timeout and was not sent again since (RFC 5682).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Original {
    None,
    Delivered,
}

impl OnDelivered for Delivered<'_> {
    fn on_delivered(&mut self, spell: &mut Spell, sent: Transmission, end: SeqNum) {
        self.largest = self.largest.max(sent.size);
        self.newest = self.newest.max(sent.number);
        let rtt = self.now.since(sent.at);
        // RFC 8985 6.2 step 2: which transmission was it that arrived?
        if sent.again {
            let older = self.echo.is_some_and(|(tsecr, offset)| {
                let stamp = (sent.at.as_millis() as u32).wrapping_add(offset);
                (tsecr.wrapping_sub(stamp) as i32) < 0
            });
            if older || rtt < self.min_rtt {
                return;
            }
        } else {
            let (first, last) = self.clean.unwrap_or((sent.at, sent.at));
            self.clean = Some((first.min(sent.at), last.max(sent.at)));
            if self.point.is_some_and(|point| end.at_or_before(point)) {
                self.original = Original::Delivered;
            }
        }
        let newer = spell.newest.is_none_or(|(known, known_end)| {
            (known.number < sent.number) || (known.number == sent.number && known_end.before(end))
        });
        if newer {
            spell.newest = Some((sent, end));
            self.rack.rtt = rtt.into();
        }
        // Step 3.
        if spell.fack.before(end) {
            spell.fack = end;
        } else if end.before(spell.fack) && !sent.again {
            self.rack.reordering_seen = true;
        }
    }
}

/// Proportional rate reduction (RFC 9937), octets.
#[derive(Clone, Debug)]
pub(super) struct Prr {
    delivered: u64,
    out: u64,
    recover_fs: u64,
}

impl Prr {
    pub(super) fn new(recover_fs: u32) -> Prr {
        Prr { delivered: 0, out: 0, recover_fs: u64::from(recover_fs.max(1)) }
    }

    pub(super) fn on_sent(&mut self, octets: u32) {
        self.out += u64::from(octets);
    }

    /// The window after an ACK that delivered `delivered` octets.
    pub(super) fn on_ack(
        &mut self,
        delivered: u32,
        pipe: u32,
        ssthresh: u32,
        mss: u32,
        safety: Safety,
    ) -> u32 {
        self.delivered += u64::from(delivered);
        let (pipe, ssthresh, mss) = (u64::from(pipe), u64::from(ssthresh), u64::from(mss));
        let conserved = self.delivered.saturating_sub(self.out);
        let quota = if pipe > ssthresh {
            (self.delivered * ssthresh).div_ceil(self.recover_fs).saturating_sub(self.out)
        } else {
            // RFC 9937 6.2: what was delivered may leave; slow start besides while all goes well.
            let more = if safety == Safety::Safe { mss } else { 0 };
            (conserved.max(u64::from(delivered)) + more).min(ssthresh - pipe)
        };
        // The first retransmission goes out whatever the numbers say.
        let quota = if self.out == 0 { quota.max(mss) } else { quota };
        u32::try_from(pipe + quota).unwrap_or(u32::MAX)
    }
}

/// SafeACK of RFC 9937: una advanced and no further loss was indicated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Safety {
    Safe,
    Unsafe,
}

/// Where loss recovery is; `point`: recovered when una reaches it.
#[derive(Clone, Debug)]
pub(super) enum Recovery {
    /// Nothing is lost.
    Open,
    /// Fast recovery.
    Fast { point: SeqNum, prr: Prr },
    /// After a timeout.
    Loss { point: SeqNum, frto: Frto },
    /// What was too large for the path is sent again; not a sign of congestion.
    Refit { point: SeqNum },
}

/// Whether it is still open that the timeout was spurious (RFC 5682).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Frto {
    /// Decided: what was lost is sent again.
    Off,
    /// One segment was sent again; the next ACK tells whether to go on (step 2).
    FirstAck,
    /// Then two new segments leave; the ACK after that decides (step 3).
    NewText,
}

/// A tail loss probe on its way (RFC 8985 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Probe {
    pub(super) end: SeqNum,
    /// It was a retransmission (else new text).
    pub(super) again: bool,
    pub(super) at: Instant,
    /// FlightSize when it was sent.
    pub(super) flight: u32,
}

/// PTO with `outstanding` octets in the network (RFC 8985 7.2). For a single segment the peer's delay of ACKs is added. For
/// more it should not matter, as every second segment is acknowledged at once; but a Linux receiver delays, by at most
/// 40 ms or its SRTT, also after two that are short and while its reader lags. Two round trips cover that only from
/// 50 ms on, so that on short paths a probe would be sent for nothing nearly every time.
pub(super) fn probe_timeout(rtt: &Rtt, outstanding: u32, mss: u32) -> Duration {
    match rtt.srtt() {
        None => TLP_INITIAL,
        Some(srtt) if outstanding <= mss => srtt * 2 + TLP_ACK_DELAY,
        Some(srtt) => srtt + (srtt + TLP_SLACK).max(TLP_ACK_DELAY),
    }
}
