//! One direction of relaying: octets from one leg to the other, and credit the other way.
#![forbid(unsafe_code)]

use super::close::{End, Follow, Progress, Side, follow};
use super::credit;
use super::leg::Leg;
use super::space::Space;
use crate::buf::Chain;
use crate::shard::Cx;
use crate::time::Duration;
use alloc::boxed::Box;

/// One direction of relaying.
#[derive(Debug)]
pub(super) struct Direction {
    /// Goes before anything that is received.
    pub(super) ahead: Option<Box<Chain>>,
    /// Octets relayed.
    pub(super) octets: u64,
    /// The window that its sender is offered.
    pub(super) space: Space,
    /// The sender's end was passed on.
    pub(super) finished: bool,
}

/// The round trip of a leg that could not measure it yet: too long rather than too short, for what is consumed meanwhile counts.
const UNKNOWN_RTT: Duration = Duration::from_millis(200);

/// What one call of [`Direction::carry`] did.
pub(super) struct Carried {
    pub(super) octets: u64,
    finished: bool,
}

impl Carried {
    pub(super) fn moved(&self) -> bool {
        self.octets > 0 || self.finished
    }
}

impl Direction {
    /// From `from` on.
    pub(super) fn of(from: &Leg) -> Direction {
        let space = Space::new(from.first_window());
        Direction { ahead: None, octets: 0, space, finished: false }
    }

    /// Opens the window of `from`. What `to` has more of than its paths have a use for stands in its queue instead of ours,
    /// and takes from the window.
    pub(super) fn grant(&mut self, from: &mut Leg, to: &Leg, cx: &mut Cx<'_>) {
        let queued = to.queued();
        let consumed = self.octets.saturating_sub(u64::from(queued));
        let span = from.span().unwrap_or(UNKNOWN_RTT);
        let bounds = from.first_window()..=from.receive_buffer();
        self.space.on_consumed(consumed, span, bounds, cx.now);
        let window = credit::limit(self.space.window(), cx.pool);
        cx.counters.WindowShrunk += u64::from(window < self.space.window());
        let excess = queued.saturating_sub(to.send_limit());
        let scarce = credit::share(cx.pool).saturating_sub(queued);
        from.grant(window.saturating_sub(excess).min(scarce));
    }

    /// Takes what `from` received, and passes the end on behind the last octet.
    pub(super) fn carry(&mut self, side: Side, from: &mut Leg, to: &mut Leg) -> Carried {
        let mut carried = Carried { octets: 0, finished: false };
        if !to.is_up() || self.finished {
            return carried;
        }
        let mut next = self.ahead.take().map(|ahead| *ahead);
        loop {
            let Some(text) = next.take().or_else(|| from.recv()) else { break };
            carried.octets += u64::from(text.len());
            to.send(text);
        }
        if from.recv_finished() && follow(Progress::Answered, side, End::Finished) == Follow::Finish
        {
            to.close();
            self.finished = true;
            carried.finished = true;
        }
        self.octets += carried.octets;
        carried
    }
}
