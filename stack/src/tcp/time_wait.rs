//! TIME-WAIT and segments that belong to no connection (RFC 9293 3.10.7.1, 3.10.7.4).
#![forbid(unsafe_code)]

use super::{State, Tcb};
use crate::time::{Duration, Instant};
use crate::wire::{Control, Options, Segment, SegmentOptions, SeqNum, Timestamps, UnscaledWindow};

/// What is left of a connection for 2 MSL: enough to acknowledge a retransmitted FIN.
#[derive(Clone, Debug)]
pub struct TimeWait {
    snd_nxt: SeqNum,
    rcv_nxt: SeqNum,
    window: UnscaledWindow,
    /// Our TSval's offset and TS.Recent, if timestamps are in use.
    timestamps: Option<(u32, u32)>,
    /// 2 MSL in milliseconds.
    linger: u32,
    until: Instant,
}

/// There are many of them.
const _: () = assert!(size_of::<TimeWait>() <= 40);

impl TimeWait {
    /// From a connection that has reached TIME-WAIT.
    pub fn new(tcb: &Tcb, now: Instant) -> TimeWait {
        debug_assert_eq!(tcb.state(), State::TimeWait);
        let (snd_nxt, rcv_nxt, window, timestamps, linger) = tcb.remains();
        let until = now + linger;
        let linger = u32::try_from(linger.as_millis()).unwrap_or(u32::MAX);
        TimeWait { snd_nxt, rcv_nxt, window, timestamps, linger, until }
    }

    /// As if a FIN before `rcv_nxt` had just come.
    #[cfg(test)]
    pub(crate) fn for_test(rcv_nxt: SeqNum, linger: Duration, now: Instant) -> TimeWait {
        let (snd_nxt, window) = (SeqNum(0), UnscaledWindow(0));
        let (until, linger) = (now + linger, linger.as_millis() as u32);
        TimeWait { snd_nxt, rcv_nxt, window, timestamps: None, linger, until }
    }

    /// The ACK that `seg` calls for, if any. A retransmitted FIN starts 2 MSL again.
    pub fn on_segment(&mut self, seg: &Segment, now: Instant) -> Option<Segment> {
        // RFC 1337: a RST does not shorten TIME-WAIT.
        if seg.control == Control::Rst || seg.is_empty() {
            return None;
        }
        if seg.control == Control::Fin && seg.seq + seg.len() == self.rcv_nxt {
            self.until = now + Duration::from_millis(u64::from(self.linger));
        }
        let options = SegmentOptions {
            timestamps: self.timestamps.map(|(offset, recent)| Timestamps {
                val: (now.as_millis() as u32).wrapping_add(offset),
                ecr: recent,
            }),
            ..Default::default()
        };
        Some(Segment {
            seq: self.snd_nxt,
            ack: Some(self.rcv_nxt),
            control: Control::None,
            push: false,
            window: self.window,
            options: Options::Segment(options),
            text: Default::default(),
            ..Default::default()
        })
    }

    /// Whether a SYN may open a new incarnation already: its sequence number, or its timestamp, is beyond all that the
    /// old one used (RFC 9293 MAY-2, RFC 6191).
    pub fn admits(&self, syn: &Segment) -> bool {
        let beyond = self.rcv_nxt.before(syn.seq);
        let newer = match (self.timestamps, syn.options.timestamps()) {
            (Some((_, recent)), Some(ts)) => match ts.val.wrapping_sub(recent) as i32 {
                0 => beyond,
                ahead => ahead > 0, // RFC 6191 2: an older timestamp is an old SYN, whatever its number
            },
            _ => beyond,
        };
        syn.control == Control::Syn && newer
    }

    /// Whether 2 MSL have passed.
    pub fn expired(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// When they will have.
    pub fn deadline(&self) -> Instant {
        self.until
    }
}

/// The RST for a segment of no connection; `None` if that is a RST itself.
pub fn reset_reply(seg: &Segment) -> Option<Segment> {
    if seg.control == Control::Rst {
        return None;
    }
    let (seq, ack) = match seg.ack {
        Some(ack) => (ack, None),
        None => (SeqNum(0), Some(seg.seq + seg.len())),
    };
    Some(Segment {
        seq,
        ack,
        control: Control::Rst,
        push: false,
        window: UnscaledWindow(0),
        options: Options::Segment(SegmentOptions::default()),
        text: Default::default(),
        ..Default::default()
    })
}
