//! How much of the pool one direction of one connection may fill.
#![forbid(unsafe_code)]

use crate::buf::Pool;

/// Octets that one direction of one connection may keep at most: its share of the free frames that text may have.
///
/// The share is a fixed fraction of what is free now, not of the pool (the dynamic threshold of shared-memory switches):
/// however many connections want more, some frames stay free for those that come later, and a connection alone can use
/// a large part of them.
pub(super) fn share(pool: &Pool) -> u32 {
    let frames = u64::from(pool.free().saturating_sub(pool.capacity() / KEPT)) / SHARE;
    let octets = frames * (pool.chunk_size() as u64 / FILL);
    octets.min(u64::from(u32::MAX)) as u32
}

/// What is offered of `window` octets: less of it, in proportion, the fewer frames are free. So who consumes much goes on
/// with more than who consumes little, and what merely waits is let go first.
pub(super) fn limit(window: u32, pool: &Pool) -> u32 {
    let (free, plenty) = (pool.free(), pool.capacity() / PLENTY);
    if free >= plenty {
        return window;
    }
    let kept = pool.capacity() / KEPT;
    let part = u64::from(window) * u64::from(free.saturating_sub(kept));
    (part / u64::from(plenty.saturating_sub(kept).max(1))) as u32
}

/// One over the fraction of the pool that is free when there is no need to save.
const PLENTY: u32 = 2;
/// One over the fraction of the pool that windows never promise: the shard keeps it for new connections and for ACKs.
const KEPT: u32 = 8;
/// One over the fraction of free frames that one direction may fill.
const SHARE: u64 = 2;
/// Credit is in octets but memory is in frames, and a frame is rarely full: one over the fill that is counted on.
const FILL: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_share_shrinks_with_the_pool_and_comes_back() {
        let pool = Pool::new(64, 2048);
        assert_eq!(share(&pool), 28 * 1024);
        let held: Vec<_> = (0..54).map(|_| pool.take().unwrap()).collect();
        assert_eq!(share(&pool), 1024);
        drop(held);
        assert_eq!(share(&pool), 28 * 1024);
    }

    #[test]
    fn windows_shrink_in_proportion_while_frames_run_low() {
        let pool = Pool::new(64, 2048);
        let held: Vec<_> = (0..32).map(|_| pool.take().unwrap()).collect();
        assert_eq!((limit(1 << 20, &pool), limit(1 << 16, &pool)), (1 << 20, 1 << 16), "plenty");
        let more: Vec<_> = (0..12).map(|_| pool.take().unwrap()).collect();
        assert_eq!((limit(1 << 20, &pool), limit(1 << 16, &pool)), (1 << 19, 1 << 15));
        let all: Vec<_> = (0..12).map(|_| pool.take().unwrap()).collect();
        assert_eq!(limit(1 << 20, &pool), 0, "an eighth is not for text");
        drop((held, more, all));
        assert_eq!(limit(1 << 20, &pool), 1 << 20, "relief");
    }
}
