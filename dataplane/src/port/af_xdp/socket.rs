//! One AF_XDP socket: one queue of one device, its rings, and the frames that the device has.

use super::Umem;
use super::ring::{Consumer, Producer};
use crate::port::Device;
use crate::port::sys::{bind, kick_rx, kick_tx, read_option, set_option, socket, while_busy};
use stack::buf::{Frame, HeadroomClaim};
use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};

/// Entries per ring. 512 overflowed under TCP bursts from a kernel sender, 2048 did not.
const RING: u32 = 2048;
/// Frames per `sendto` in copy mode; the default of 32 costs more system calls.
const TX_BUDGET: i32 = 256;
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// A frame that the device may touch.
#[derive(Debug)]
pub(super) enum Held {
    /// On the fill ring, or being sent: nobody else has it.
    Whole(#[allow(dead_code, reason = "held until the device is done")] Frame),
    /// Being sent with headers in its headroom; others read the payload.
    Headers(#[allow(dead_code, reason = "held until the device is done")] HeadroomClaim),
}

/// The descriptor and what must outlive it. Fields drop in order: the device lets go before its frames return.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) fd: OwnedFd,
    /// By frame number.
    pub(super) held: std::cell::RefCell<Vec<Option<Held>>>,
    /// The device reads and writes the frames itself.
    pub(super) zero_copy: Cell<bool>,
    /// Packets may span several frames.
    pub(super) sg: Cell<bool>,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) anchor: Rc<Anchor>,
    pub(super) number: u32,
    pub(super) rx: Consumer<libc::xdp_desc>,
    pub(super) tx: Producer<libc::xdp_desc>,
    fill: Producer<u64>,
    completion: Consumer<u64>,
    /// Frames to keep on the fill ring.
    fill_level: u32,
    chunk: u64,
}

/// How a socket comes to a UMEM.
enum Registration {
    /// It uses that of another socket, and is bound as that one was.
    Shared(Rc<Anchor>),
    /// It registers the pool itself, and is bound with these flags.
    Own(u16),
}

/// A step that failed, and why.
pub(super) type StepError = (&'static str, io::Error);

impl Queue {
    /// Opens and binds a socket over `umem`, in the best way that the device takes.
    pub(super) fn open(umem: &Umem, device: &Device, number: u32) -> Result<Queue, StepError> {
        let bound: Vec<Rc<Anchor>> =
            umem.anchors.borrow().iter().filter_map(Weak::upgrade).collect();
        let shared = |zero_copy| {
            let like = bound.iter().find(|anchor| anchor.zero_copy.get() == zero_copy);
            like.cloned().map(Registration::Shared)
        };
        let (zero_copy, copy, sg) = (libc::XDP_ZEROCOPY, libc::XDP_COPY, libc::XDP_USE_SG);
        // Without SG: a driver refuses an MTU that frames of several chunks would be needed for.
        let by_device = [
            shared(true),
            Some(Registration::Own(zero_copy | sg)),
            Some(Registration::Own(zero_copy)),
        ];
        let by_kernel =
            [shared(false), Some(Registration::Own(copy | sg)), Some(Registration::Own(copy))];
        let by_device = by_device.into_iter().filter(|_| !device.is_virtual());
        let mut failed = ("binding the AF_XDP socket", ErrorKind::Unsupported.into());
        for way in by_device.chain(by_kernel).flatten() {
            match Queue::open_so(umem, device.index, number, &way) {
                Err(e) if !is_for_this_way(&e.1) => return Err(e),
                Err(e) => failed = e,
                opened => return opened,
            }
        }
        Err(failed)
    }

    fn open_so(
        umem: &Umem,
        index: u32,
        number: u32,
        way: &Registration,
    ) -> Result<Queue, StepError> {
        let fd =
            socket(libc::AF_XDP, libc::SOCK_RAW, 0).map_err(|e| ("opening an AF_XDP socket", e))?;
        let chunk = umem.pool.chunk_size() as u64;
        let (flags, share, sg) = match way {
            Registration::Shared(other) => {
                (libc::XDP_SHARED_UMEM, other.fd.as_raw_fd(), other.sg.get())
            }
            Registration::Own(flags) => {
                register(umem, &fd).map_err(|e| ("registering the frames as UMEM", e))?;
                (flags | libc::XDP_USE_NEED_WAKEUP, 0, flags & libc::XDP_USE_SG != 0)
            }
        };
        let (rx, tx, mut fill, completion) = rings(&fd).map_err(|e| ("making rings", e))?;
        let held = (0..umem.pool.capacity()).map(|_| None).collect();
        let held = std::cell::RefCell::new(held);
        let anchor = Rc::new(Anchor { fd, held, zero_copy: Cell::new(false), sg: Cell::new(sg) });
        let fill_level = RING.min(umem.pool.capacity() / 8).max(1);
        refill(umem, &anchor, &mut fill, fill_level, chunk);
        let _ = set_option(&anchor.fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: index,
            sxdp_queue_id: number,
            sxdp_shared_umem_fd: share as u32,
        };
        // A queue stays busy for a moment after its last socket was closed.
        while_busy(umem.patience.get(), || bind(&anchor.fd, &address))
            .map_err(|e| ("binding the AF_XDP socket", e))?;
        let options = libc::xdp_options { flags: 0 };
        let options = read_option(&anchor.fd, libc::SOL_XDP, libc::XDP_OPTIONS, options);
        anchor.zero_copy.set(options.is_ok_and(|o| o.flags & libc::XDP_OPTIONS_ZEROCOPY != 0));
        let mut anchors = umem.anchors.borrow_mut();
        anchors.retain(|other| other.strong_count() > 0);
        anchors.push(Rc::downgrade(&anchor));
        Ok(Queue { anchor, number, rx, tx, fill, completion, fill_level, chunk })
    }

    /// Which frame an address lies in, and where.
    pub(super) fn locate(&self, addr: u64) -> (usize, u16) {
        ((addr / self.chunk) as usize, (addr % self.chunk) as u16)
    }

    /// The address of octet `start` of frame `index`.
    pub(super) fn address(&self, index: u32, start: usize) -> u64 {
        u64::from(index) * self.chunk + start as u64
    }

    /// Keeps a frame for the device.
    pub(super) fn hold(&self, index: u32, what: Held) {
        if let Some(slot) = self.anchor.held.borrow_mut().get_mut(index as usize) {
            debug_assert!(slot.is_none(), "a device has a frame once");
            *slot = Some(what);
        }
    }

    /// Takes back a frame that the device is done with.
    pub(super) fn unhold(&self, index: usize) -> Option<Held> {
        self.anchor.held.borrow_mut().get_mut(index)?.take()
    }

    /// Lets go of frames that have been sent.
    pub(super) fn reap(&mut self) {
        while let Some(addr) = self.completion.pop() {
            let (index, _) = self.locate(addr);
            drop(self.unhold(index));
        }
        self.completion.release();
    }

    /// Puts frames on the fill ring, up to its level.
    pub(super) fn refill(&mut self, umem: &Umem) {
        refill(umem, &self.anchor, &mut self.fill, self.fill_level, self.chunk);
        if self.fill.needs_wakeup() {
            kick_rx(&self.anchor.fd);
        }
    }

    /// Makes the kernel look at the TX ring. In copy mode `sendto` sends some frames and returns, with one error or
    /// another; only the ring's consumer index tells whether it got on.
    pub(super) fn kick(&mut self) {
        self.tx.publish();
        let mut stuck = 0;
        while stuck < 2 {
            let before = self.tx.pending();
            if before == 0 || !self.tx.needs_wakeup() {
                return;
            }
            let _ = kick_tx(&self.anchor.fd);
            stuck += u32::from(self.tx.pending() == before);
            self.reap(); // a full completion ring stops transmission
        }
    }

    /// Frames that arrived and were lost.
    pub(super) fn dropped(&self) -> u64 {
        // SAFETY: all zeros is a valid value of this integer struct.
        let none: libc::xdp_statistics = unsafe { zeroed() };
        read_option(&self.anchor.fd, libc::SOL_XDP, libc::XDP_STATISTICS, none)
            .map_or(0, |s| s.rx_dropped + s.rx_ring_full + s.rx_fill_ring_empty_descs)
    }
}

fn refill(umem: &Umem, anchor: &Anchor, fill: &mut Producer<u64>, level: u32, chunk: u64) {
    let mut held = anchor.held.borrow_mut();
    while fill.pending() < level {
        let Some(frame) = umem.pool.take() else { break };
        let index = frame.index();
        if !fill.push(u64::from(index) * chunk) {
            break;
        }
        if let Some(slot) = held.get_mut(index as usize) {
            *slot = Some(Held::Whole(frame));
        }
    }
    fill.publish();
}

fn register(umem: &Umem, fd: &OwnedFd) -> io::Result<()> {
    let (base, len) = umem.pool.region();
    let registration = libc::xdp_umem_reg {
        addr: base.as_ptr() as u64,
        len: len as u64,
        chunk_size: umem.pool.chunk_size() as u32,
        headroom: 0, // the kernel's own 256 octets are enough for any headers of ours
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
}

type Rings = (Consumer<libc::xdp_desc>, Producer<libc::xdp_desc>, Producer<u64>, Consumer<u64>);

fn rings(fd: &OwnedFd) -> io::Result<Rings> {
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_RX_RING,
        libc::XDP_TX_RING,
    ] {
        set_option(fd, libc::SOL_XDP, ring, &RING)?;
    }
    // SAFETY: all zeros is a valid value of this integer struct.
    let none: libc::xdp_mmap_offsets = unsafe { zeroed() };
    let at = read_option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, none)?;
    Ok((
        Consumer::map(fd, RING, libc::XDP_PGOFF_RX_RING as u64, &at.rx)?,
        Producer::map(fd, RING, libc::XDP_PGOFF_TX_RING as u64, &at.tx)?,
        Producer::map(fd, RING, libc::XDP_UMEM_PGOFF_FILL_RING, &at.fr)?,
        Consumer::map(fd, RING, libc::XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr)?,
    ))
}

/// Whether an error may be due to the way a socket was bound, so that another one is worth trying.
fn is_for_this_way(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::EACCES | libc::ENODEV))
}
