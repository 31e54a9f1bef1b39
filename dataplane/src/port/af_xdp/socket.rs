//! One AF_XDP socket: one queue of one device, its rings, and the frames that the device has.

use super::ring::{Consumer, Producer};
use super::{Umem, ZeroCopy};
use crate::port::sys::{bind, kick_rx, kick_tx, read_option, set_option, socket, while_busy};
use stack::buf::{Frame, HeadroomClaim};
use std::io;
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
    pub(super) sg: bool,
    pub(super) zero_copy: bool,
}

/// A step that failed, and why.
pub(super) type StepError = (&'static str, io::Error);

impl Queue {
    /// Opens and binds a socket over `umem`.
    pub(super) fn open(umem: &Umem, index: u32, number: u32) -> Result<Queue, StepError> {
        let fd =
            socket(libc::AF_XDP, libc::SOCK_RAW, 0).map_err(|e| ("opening an AF_XDP socket", e))?;
        let chunk = umem.pool.chunk_size() as u64;
        let others = umem.anchors.borrow().iter().find_map(Weak::upgrade);
        if others.is_none() {
            register(umem, &fd).map_err(|e| ("registering the frames as UMEM", e))?;
        }
        let (rx, tx, mut fill, completion) = rings(&fd).map_err(|e| ("making rings", e))?;
        let held = (0..umem.pool.capacity()).map(|_| None).collect();
        let anchor = Rc::new(Anchor { fd, held: std::cell::RefCell::new(held) });
        let fill_level = RING.min(umem.pool.capacity() / 8).max(1);
        refill(umem, &anchor, &mut fill, fill_level, chunk);
        let _ = set_option(&anchor.fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let sg = bind_queue(umem, &anchor.fd, others.as_deref(), index, number)
            .map_err(|e| ("binding the AF_XDP socket", e))?;
        let options = libc::xdp_options { flags: 0 };
        let options = read_option(&anchor.fd, libc::SOL_XDP, libc::XDP_OPTIONS, options);
        let zero_copy = options.is_ok_and(|o| o.flags & libc::XDP_OPTIONS_ZEROCOPY != 0);
        let mut anchors = umem.anchors.borrow_mut();
        anchors.retain(|other| other.strong_count() > 0);
        anchors.push(Rc::downgrade(&anchor));
        drop(anchors);
        Ok(Queue { anchor, number, rx, tx, fill, completion, fill_level, chunk, sg, zero_copy })
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

/// Binds with the best flags that the device takes; the answer is whether frames may span several chunks.
fn bind_queue(
    umem: &Umem,
    fd: &OwnedFd,
    first: Option<&Anchor>,
    index: u32,
    number: u32,
) -> io::Result<bool> {
    let copy = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP;
    let zero_copy = libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP;
    let sg = libc::XDP_USE_SG;
    let attempts: &[u16] = match (first, umem.zero_copy) {
        // A socket that shares a UMEM takes over how it was bound first.
        (Some(_), _) => &[libc::XDP_SHARED_UMEM],
        (None, ZeroCopy::Never) => &[copy | sg, copy],
        // A driver with zero copy but without frames of several chunks refuses an MTU that needs them.
        (None, ZeroCopy::IfPossible) => &[zero_copy | sg, zero_copy, copy | sg, copy],
    };
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for flags in attempts {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: *flags,
            sxdp_ifindex: index,
            sxdp_queue_id: number,
            sxdp_shared_umem_fd: first.map_or(0, |a| a.fd.as_raw_fd() as u32),
        };
        // A queue stays busy for a moment after its last socket was closed.
        result = while_busy(umem.patience.get(), || bind(fd, &address));
        if result.is_ok() {
            if first.is_none() {
                umem.sg.set(flags & libc::XDP_USE_SG != 0);
            }
            return Ok(umem.sg.get());
        }
    }
    result.map(|()| false)
}
