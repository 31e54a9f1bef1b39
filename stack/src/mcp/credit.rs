//! How much a leg may take in: what the other leg has room for, less when the pool runs low.
#![forbid(unsafe_code)]

use crate::buf::Pool;

/// Octets that one direction of one connection may keep: `buffer`, but never more than its share of the free frames.
///
/// The share is a fixed fraction of what is free now, not of the pool (the dynamic threshold of shared-memory switches):
/// however many connections want more, some frames stay free for those that come later, and a connection alone can use
/// nearly all its buffer.
pub(super) fn limit(buffer: u32, pool: &Pool) -> u32 {
    let frames = u64::from(pool.free()) / SHARE;
    let octets = frames * (pool.chunk_size() as u64 / FILL);
    buffer.min(octets.min(u64::from(u32::MAX)) as u32)
}

/// One over the fraction of free frames that one direction may fill.
const SHARE: u64 = 2;
/// Credit is in octets but memory is in frames, and a frame is rarely full: one over the fill that is counted on.
const FILL: u64 = 2;

/// The window to grant the sender into a queue that holds `queued` octets.
pub(super) fn grant(limit: u32, queued: u32) -> u32 {
    limit.saturating_sub(queued)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_shrinks_with_the_pool_and_comes_back() {
        let pool = Pool::new(64, 2048);
        assert_eq!(limit(10_000, &pool), 10_000);
        assert_eq!(limit(1 << 20, &pool), 32 * 1024);
        let held: alloc::vec::Vec<_> = (0..62).map(|_| pool.take().unwrap()).collect();
        assert_eq!(limit(1 << 20, &pool), 1024);
        drop(held);
        assert_eq!(limit(1 << 20, &pool), 32 * 1024);
        assert_eq!((grant(100, 40), grant(100, 140)), (60, 0));
    }
}
