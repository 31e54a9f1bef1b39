//! How many workers there are, where they run, and what each has of the node's memory.
#![forbid(unsafe_code)]

/// Octets of pool that a worker needs at least.
pub const LEAST_POOL: u64 = 4 << 20;
/// Octets of pool that each worker has unless configured otherwise.
pub(super) const DEFAULT_POOL: u64 = 64 << 20;

/// `node.workers` and `node.cores`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CrewConfig {
    /// How many; `None`: as the machine suggests.
    pub workers: Option<u32>,
    /// The cores they are bound to, one each; empty: chosen at the start.
    pub cores: Vec<usize>,
}

/// A worker is to run on a core that this process may not use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "node.cores: this process may not run on core {core}; it may on {allowed:?}: name these, or change the affinity \
     (taskset, CPUAffinity=, the container's cpuset)"
)]
pub struct NoSuchCore {
    /// The core.
    pub core: usize,
    /// Where it may run.
    pub allowed: Vec<usize>,
}

impl CrewConfig {
    /// The core of each worker, for a process that may run on the cores `allowed`; `None`: the kernel's scheduler chooses.
    /// `most`: no more than so many, unless configured.
    ///
    /// Without a number one core is left to the kernel, which does its half of the work there: interrupts, its way to and
    /// from the sockets, and everything that is not converted. So a machine of two cores has one worker, and that is not
    /// bound, as the kernel's half moves too.
    ///
    /// # Errors
    /// If a configured core is not one of `allowed`.
    pub fn places(&self, allowed: &[usize], most: u32) -> Result<Vec<Option<usize>>, NoSuchCore> {
        if let Some(&core) = self.cores.iter().find(|core| !allowed.contains(core)) {
            return Err(NoSuchCore { core, allowed: allowed.to_vec() });
        }
        if !self.cores.is_empty() {
            return Ok(self.cores.iter().copied().map(Some).collect());
        }
        let spare = allowed.len().saturating_sub(1).min(most as usize);
        let workers = self.workers.map_or(spare, |workers| workers as usize).max(1);
        // The first core is where interrupts go that nobody has moved.
        match allowed.len().checked_sub(workers) {
            Some(first) if workers > 1 => {
                Ok(allowed.iter().copied().skip(first).map(Some).collect())
            }
            _ => Ok(vec![None; workers]),
        }
    }
}

/// `limits.pool` and `limits.frame-size`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolConfig {
    /// Octets of all workers' pools together; `None`: each has as much as one would have alone.
    pub octets: Option<u64>,
    /// Octets per frame.
    pub frame_size: usize,
}

impl PoolConfig {
    /// Frames in the pool of each of so many workers.
    pub fn frames(&self, workers: u32) -> u32 {
        let octets = self.octets.map_or(DEFAULT_POOL, |all| all / u64::from(workers.max(1)));
        u32::try_from(octets / self.frame_size as u64).unwrap_or(u32::MAX)
    }

    /// How many workers can have what one needs at least.
    pub fn feeds(&self) -> u32 {
        let fed = self.octets.map_or(u64::MAX, |octets| octets / LEAST_POOL);
        u32::try_from(fed).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(workers: Option<u32>, cores: &[usize], allowed: &[usize]) -> Vec<Option<usize>> {
        CrewConfig { workers, cores: cores.to_vec() }.places(allowed, 8).unwrap()
    }

    #[test]
    fn one_core_is_left_to_the_kernel() {
        assert_eq!(places(None, &[], &[0]), [None]);
        assert_eq!(places(None, &[], &[0, 1]), [None], "the scheduler knows better than we");
        assert_eq!(places(None, &[], &[0, 1, 2, 3]), [Some(1), Some(2), Some(3)]);
        assert_eq!(places(None, &[], &[4, 5, 6]), [Some(5), Some(6)], "taskset");
        let many: Vec<usize> = (0..64).collect();
        assert_eq!(places(None, &[], &many).len(), 8, "as many as there is memory for");
        assert_eq!(places(None, &[], &[]), [None], "nobody knows");
    }

    #[test]
    fn a_number_holds_and_more_workers_than_cores_are_not_bound() {
        assert_eq!(places(Some(1), &[], &[0, 1, 2]), [None]);
        assert_eq!(places(Some(2), &[], &[0, 1]), [Some(0), Some(1)]);
        assert_eq!(places(Some(3), &[], &[0, 1]), [None; 3]);
    }

    #[test]
    fn cores_are_used_as_named_or_refused() {
        assert_eq!(places(None, &[3, 1], &[0, 1, 2, 3]), [Some(3), Some(1)]);
        let refused = CrewConfig { workers: None, cores: vec![7] }.places(&[0, 1], 8).unwrap_err();
        assert!(refused.to_string().contains("core 7; it may on [0, 1]"), "{refused}");
    }

    #[test]
    fn memory_is_divided_where_it_was_given() {
        let pool = |octets| PoolConfig { octets, frame_size: 2048 };
        assert_eq!((pool(None).frames(1), pool(None).frames(4)), (32_768, 32_768));
        assert_eq!(pool(Some(64 << 20)).frames(4), 8192);
        assert_eq!((pool(Some(64 << 20)).feeds(), pool(None).feeds()), (16, u32::MAX));
    }
}
