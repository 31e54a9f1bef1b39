//! What the workers of a node have in common of one device: who opens it first decides, the others join.
#![forbid(unsafe_code)]

use super::af_xdp::Attached;
use super::sys::Queues;
use crate::run::Io;
use stack::shard::Homes;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// One worker's share in a device. Nothing of it is used while packets flow.
#[derive(Clone, Debug)]
pub struct Share {
    worker: u32,
    homes: Homes,
    common: Arc<Mutex<Common>>,
}

/// Made by the first of the workers, for as long as one of them holds it.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// How the first one decided to drive it.
    io: Option<Io>,
    /// The device's index, and the number of the fan-out group of the AF_PACKET sockets on it.
    pub(super) group: Option<(u32, u16)>,
    /// The program that hides our frames from the kernel, by the device's index.
    pub(super) tcx: Option<(u32, Weak<OwnedFd>)>,
    /// The program that gives frames to AF_XDP sockets, by the device's index.
    pub(super) xdp: Option<(u32, Weak<Attached>)>,
}

impl Share {
    /// All of it, for the only worker.
    pub fn alone() -> Share {
        Share::of(0, Homes::ALONE)
    }

    /// A worker's, of something that needs nothing in common.
    pub fn of(worker: u32, homes: Homes) -> Share {
        Share { worker, homes, common: Arc::default() }
    }

    /// As many as there are shards, in their order.
    pub fn among(homes: Homes) -> Vec<Share> {
        let common = Arc::<Mutex<Common>>::default();
        let share = |worker| Share { worker, homes, common: common.clone() };
        (0..homes.shards.max(1)).map(share).collect()
    }

    /// Whether there are others.
    pub fn is_shared(&self) -> bool {
        self.homes.shards > 1
    }

    /// Which worker it belongs to.
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// How flows are spread over the workers.
    pub fn homes(&self) -> Homes {
        self.homes
    }

    /// Those of a device's queues that are this worker's: one in so many.
    pub fn of_queues(&self, queues: Vec<u32>) -> Vec<u32> {
        let every = self.homes.shards.max(1) as usize;
        queues.into_iter().skip(self.worker as usize).step_by(every).collect()
    }

    /// What a TAP or TUN device needs to have.
    pub(super) fn tun_queues(&self) -> Queues {
        if self.is_shared() { Queues::Many } else { Queues::One }
    }

    /// How the device is to be driven, if another worker has decided that.
    pub fn io(&self) -> Option<Io> {
        self.common().io.filter(|_| self.is_shared())
    }

    /// The device is driven so.
    pub fn set_io(&self, io: Io) {
        self.common().io = Some(io);
    }

    pub(super) fn common(&self) -> MutexGuard<'_, Common> {
        self.common.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was made for the device with this index, if somebody still holds it.
pub(super) fn held<T>(made: &Option<(u32, Weak<T>)>, index: u32) -> Option<Arc<T>> {
    let (device, held) = made.as_ref()?;
    if *device == index { held.upgrade() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_dealt_out_and_a_worker_may_go_without() {
        let shares = Share::among(Homes { shards: 3, key: 0 });
        let of = |worker: usize, queues: &[u32]| shares[worker].of_queues(queues.to_vec());
        assert_eq!(
            [of(0, &[0, 1, 2, 3]), of(1, &[0, 1, 2, 3]), of(2, &[0, 1, 2, 3])],
            [vec![0, 3], vec![1], vec![2]]
        );
        assert_eq!((of(0, &[5]), of(2, &[5])), (vec![5], vec![]));
        assert_eq!(Share::alone().of_queues(vec![0, 1]), [0, 1]);
    }

    #[test]
    fn what_the_first_decides_the_others_hear() {
        let shares = Share::among(Homes { shards: 2, key: 0 });
        assert_eq!(shares[1].io(), None);
        shares[0].set_io(Io::AfXdp);
        assert_eq!(shares[1].io(), Some(Io::AfXdp));
        let alone = Share::alone();
        alone.set_io(Io::AfXdp);
        assert_eq!(alone.io(), None, "a device that comes back may be of another kind");
    }
}
