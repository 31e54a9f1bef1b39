//! dMCPs that turned out not to convert, for a while (SPEC 3.3: the negative cache of explicit mode).
#![forbid(unsafe_code)]

use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// Why a dMCP is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhyAvoided {
    /// It did not answer at all. That says nothing about what it can do, so it counts for a short time only.
    Silent,
    /// It answered, but ignored, ate or changed the Information Elements, or does not speak MPTCP.
    DoesNotConvert,
}

/// A dMCP that was silent is tried again after this long.
const SILENT_TTL: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Default)]
struct Remote {
    avoided: Option<(Instant, WhyAvoided)>,
    /// The last time anything came from it.
    heard: Option<Instant>,
}

/// One entry per configured dMCP, so its size has a bound that no peer can move.
pub struct NegativeCache {
    remotes: Vec<Remote>,
    ttl: Duration,
}

impl NegativeCache {
    /// For `remotes` dMCPs, none of them avoided.
    pub fn new(remotes: usize, ttl: Duration) -> NegativeCache {
        NegativeCache { remotes: alloc::vec![Remote::default(); remotes], ttl }
    }

    /// For `remotes` dMCPs, of which the first are those that there were; `ttl` is for what is learnt from now on.
    pub fn resize(&mut self, remotes: usize, ttl: Duration) {
        self.remotes.resize(remotes, Remote::default());
        self.ttl = ttl;
    }

    /// Leaves `remote` alone for as long as `why` demands.
    pub fn avoid(&mut self, remote: usize, why: WhyAvoided, now: Instant) {
        let ttl = match why {
            WhyAvoided::Silent => self.ttl.min(SILENT_TTL),
            WhyAvoided::DoesNotConvert => self.ttl,
        };
        if let Some(r) = self.remotes.get_mut(remote) {
            r.avoided = Some((now + ttl, why));
        }
    }

    /// Why `remote` is not to be used, if so.
    pub fn avoided(&self, remote: usize, now: Instant) -> Option<WhyAvoided> {
        let (until, why) = self.remotes.get(remote)?.avoided?;
        (now < until).then_some(why)
    }

    /// Something came from `remote`: whatever it is, it is not silent.
    pub fn on_heard(&mut self, remote: usize, now: Instant) {
        if let Some(r) = self.remotes.get_mut(remote) {
            r.heard = Some(now);
            if matches!(r.avoided, Some((_, WhyAvoided::Silent))) {
                r.avoided = None;
            }
        }
    }

    /// Whether anything came from `remote` since `then`.
    pub fn heard_since(&self, remote: usize, then: Instant) -> bool {
        self.remotes.get(remote).and_then(|r| r.heard).is_some_and(|at| then <= at)
    }

    /// Forgets everything: on a new network attachment, a new dMCP, address or prefix (SPEC 3.3).
    pub fn flush(&mut self) {
        self.remotes.fill(Remote::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_ends_with_its_time_or_with_a_flush() {
        let mut cache = NegativeCache::new(2, Duration::from_secs(100));
        let at = |s: u64| Instant::from_millis(s * 1000);
        cache.avoid(0, WhyAvoided::DoesNotConvert, at(0));
        assert_eq!(cache.avoided(0, at(99)), Some(WhyAvoided::DoesNotConvert));
        assert_eq!(cache.avoided(1, at(99)), None);
        assert_eq!(cache.avoided(0, at(100)), None);
        cache.avoid(0, WhyAvoided::DoesNotConvert, at(100));
        cache.flush();
        assert_eq!(cache.avoided(0, at(100)), None);
        cache.avoid(7, WhyAvoided::Silent, at(0)); // no such dMCP: nothing happens
        assert_eq!(cache.avoided(7, at(0)), None);
    }

    #[test]
    fn silence_is_short_and_ends_with_a_word() {
        let mut cache = NegativeCache::new(1, Duration::from_secs(100));
        let at = |s: u64| Instant::from_millis(s * 1000);
        cache.avoid(0, WhyAvoided::Silent, at(0));
        assert_eq!(cache.avoided(0, at(29)), Some(WhyAvoided::Silent));
        assert_eq!(cache.avoided(0, at(30)), None);
        cache.avoid(0, WhyAvoided::Silent, at(40));
        assert!(!cache.heard_since(0, at(40)));
        cache.on_heard(0, at(41));
        assert!(cache.heard_since(0, at(41)) && !cache.heard_since(0, at(42)));
        assert_eq!(cache.avoided(0, at(41)), None);
        cache.avoid(0, WhyAvoided::DoesNotConvert, at(50));
        cache.on_heard(0, at(51));
        assert_eq!(
            cache.avoided(0, at(51)),
            Some(WhyAvoided::DoesNotConvert),
            "words alone do not help"
        );
    }
}
