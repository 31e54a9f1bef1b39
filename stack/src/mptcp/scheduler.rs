//! Which subflow the next run of octets goes to: lowest round-trip time first.
#![forbid(unsafe_code)]

use crate::time::Duration;

/// What the scheduler sees of a subflow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathView {
    /// The caller's number for the subflow.
    pub index: usize,
    /// Smoothed round-trip time; `None` before the first sample, which counts as slowest.
    pub srtt: Option<Duration>,
    /// Octets that would leave at once.
    pub room: u32,
    /// Text of a full segment.
    pub mss: u32,
    /// Nothing is in flight or waiting there.
    pub idle: bool,
    /// Only to be used when no other is usable (RFC 8684 3.3.8).
    pub backup: bool,
}

/// The lowest-RTT path that can take a piece of `backlog` octets now. A backup is considered only when all are backups.
/// A path with less room than a segment waits for more, so that runs are not cut into crumbs.
pub fn schedule(paths: &[PathView], backlog: u32) -> Option<PathView> {
    let all_backup = paths.iter().all(|p| p.backup);
    paths
        .iter()
        .filter(|p| p.backup == all_backup)
        .filter(|p| p.room > 0 && (p.room >= p.mss.min(backlog) || p.idle))
        .min_by_key(|p| p.srtt.unwrap_or(Duration::MAX))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(index: usize, srtt_ms: u64, room: u32) -> PathView {
        let srtt = Some(Duration::from_millis(srtt_ms));
        PathView { index, srtt, room, mss: 1400, idle: false, backup: false }
    }

    fn picked(paths: &[PathView], backlog: u32) -> Option<usize> {
        schedule(paths, backlog).map(|p| p.index)
    }

    #[test]
    fn the_fastest_with_room_wins() {
        assert_eq!(picked(&[path(0, 30, 9000), path(1, 10, 9000)], 5000), Some(1));
        assert_eq!(picked(&[path(0, 30, 9000), path(1, 10, 0)], 5000), Some(0));
        assert_eq!(picked(&[path(0, 30, 0), path(1, 10, 0)], 5000), None);
    }

    #[test]
    fn crumbs_wait_unless_nothing_else_would_move() {
        assert_eq!(picked(&[path(0, 10, 100)], 5000), None);
        assert_eq!(picked(&[path(0, 10, 100)], 80), Some(0));
        assert_eq!(picked(&[PathView { idle: true, ..path(0, 10, 100) }], 5000), Some(0));
    }

    #[test]
    fn a_backup_serves_only_alone() {
        let backup = PathView { backup: true, ..path(0, 1, 9000) };
        assert_eq!(picked(&[backup, path(1, 99, 9000)], 5000), Some(1));
        assert_eq!(picked(&[backup, path(1, 99, 0)], 5000), None, "full is not unusable");
        assert_eq!(picked(&[backup], 5000), Some(0));
    }
}
