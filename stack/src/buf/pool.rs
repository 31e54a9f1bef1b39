//! The pool of equal-sized frames and the handle to one frame.
//!
//! A pool is one contiguous region cut into `capacity` chunks of `chunk_size` octets: a plain allocation, or an AF_XDP
//! UMEM that the caller mapped. Holder counts live in a dense side table, so counting never touches a packet's cache
//! line. Handles are `!Send` and non-atomic: a pool and everything in it belongs to one shard.

use alloc::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

const NONE: u32 = u32::MAX;
const ALIGN: usize = 4096;

/// One entry of the side table.
struct Slot {
    /// Holders of the frame; 0 while it is on the free list.
    holders: Cell<u32>,
    /// Next free slot while on the free list.
    next: Cell<u32>,
    /// Headers are being sent from this frame's headroom (see [`HeadroomClaim`]).
    claimed: Cell<bool>,
    /// Lowest octet that a [`HeadroomClaim`] must leave alone: where the received payload began.
    data_start: Cell<u16>,
    pool: Cell<*const Inner>,
}

struct Inner {
    base: NonNull<u8>,
    chunk_size: usize,
    slots: Box<[Slot]>,
    free_head: Cell<u32>,
    free: Cell<u32>,
    /// Pool handles alive; the region goes when this and the frames out are both zero.
    handles: Cell<u32>,
    region: Region,
}

enum Region {
    Owned(Layout),
    /// Kept alive for as long as any frame is.
    Foreign(#[allow(dead_code, reason = "held for its Drop")] Box<dyn Any>),
}

/// A pool of frames. Cloning makes a second handle on the same pool.
pub struct Pool {
    inner: NonNull<Inner>,
}

impl Pool {
    /// A pool of `capacity` frames of `chunk_size` octets each in memory of its own.
    ///
    /// # Panics
    /// If either is zero, or `chunk_size` exceeds 65,535 (offsets within a frame are 16 bits).
    pub fn new(capacity: u32, chunk_size: usize) -> Pool {
        assert!(capacity > 0 && chunk_size > 0, "an empty pool serves nobody");
        let layout = Layout::from_size_align(capacity as usize * chunk_size, ALIGN)
            .expect("pool size overflows the address space");
        // SAFETY: the layout has a non-zero size.
        let Some(base) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: fresh memory is initialized here so that `bytes` never shows uninitialized octets.
        unsafe { base.write_bytes(0, layout.size()) };
        Pool::build(base, capacity, chunk_size, Region::Owned(layout))
    }

    /// A pool over memory that somebody else mapped, such as an AF_XDP UMEM. `keep` is dropped after the last frame.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `capacity * chunk_size` initialized octets until `keep` is dropped,
    /// and nobody else may touch octets of a frame while a [`Frame`] for it is held, except a device that was handed
    /// the frame by somebody who keeps a handle on it.
    pub unsafe fn from_region(
        base: NonNull<u8>,
        capacity: u32,
        chunk_size: usize,
        keep: Box<dyn Any>,
    ) -> Pool {
        Pool::build(base, capacity, chunk_size, Region::Foreign(keep))
    }

    fn build(base: NonNull<u8>, capacity: u32, chunk_size: usize, region: Region) -> Pool {
        assert!(chunk_size <= usize::from(u16::MAX), "offsets within a frame are 16 bits");
        let slots: Vec<Slot> = (0..capacity)
            .map(|i| Slot {
                holders: Cell::new(0),
                next: Cell::new(if i + 1 < capacity { i + 1 } else { NONE }),
                claimed: Cell::new(false),
                data_start: Cell::new(0),
                pool: Cell::new(core::ptr::null()),
            })
            .collect();
        let inner = Box::new(Inner {
            base,
            chunk_size,
            slots: slots.into_boxed_slice(),
            free_head: Cell::new(0),
            free: Cell::new(capacity),
            handles: Cell::new(1),
            region,
        });
        let inner = NonNull::from(Box::leak(inner));
        // SAFETY: just created, shared access only from here on.
        for slot in unsafe { inner.as_ref() }.slots.iter() {
            slot.pool.set(inner.as_ptr());
        }
        Pool { inner }
    }

    fn inner(&self) -> &Inner {
        // SAFETY: `Inner` is freed only when no handle and no frame is left, and `self` is a handle.
        unsafe { self.inner.as_ref() }
    }

    /// Takes a frame, or `None` when the pool is empty (a normal outcome). The most recently returned comes first, as
    /// it is the likeliest to be in cache. Its octets are whatever was there before.
    pub fn take(&self) -> Option<Frame> {
        let inner = self.inner();
        let index = inner.free_head.get();
        let slot = inner.slots.get(index as usize)?;
        inner.free_head.set(slot.next.get());
        inner.free.set(inner.free.get() - 1);
        slot.holders.set(1);
        slot.claimed.set(false);
        slot.data_start.set(0);
        Some(Frame { slot: NonNull::from(slot), _not_send: PhantomData })
    }

    /// Frames on the free list.
    pub fn free(&self) -> u32 {
        self.inner().free.get()
    }

    /// Frames in all.
    pub fn capacity(&self) -> u32 {
        self.inner().slots.len() as u32
    }

    /// Octets per frame.
    pub fn chunk_size(&self) -> usize {
        self.inner().chunk_size
    }

    /// Whether `frame` came from this pool.
    pub fn owns(&self, frame: &Frame) -> bool {
        core::ptr::eq(frame.inner(), self.inner.as_ptr())
    }

    /// The region's first octet and length in octets, for registering it with a device.
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.inner().base, self.inner().slots.len() * self.inner().chunk_size)
    }
}

impl Clone for Pool {
    fn clone(&self) -> Pool {
        self.inner().handles.set(self.inner().handles.get() + 1);
        Pool { inner: self.inner }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let inner = self.inner();
        inner.handles.set(inner.handles.get() - 1);
        // SAFETY: this handle is gone; `free_if_unused` checks that nobody else is left.
        unsafe { free_if_unused(self.inner.as_ptr()) };
    }
}

impl core::fmt::Debug for Pool {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "Pool({} of {} free, {} octets each)",
            self.free(),
            self.capacity(),
            self.chunk_size()
        )
    }
}

/// # Safety
/// `inner` must come from `Pool::build` and the caller must not use it afterwards unless it still owns a handle or frame.
unsafe fn free_if_unused(inner: *const Inner) {
    // SAFETY: the caller owned a handle or frame until now, so `inner` is still allocated.
    let this = unsafe { &*inner };
    if this.handles.get() > 0 || this.free.get() < this.slots.len() as u32 {
        return;
    }
    // SAFETY: nobody is left; `inner` came from `Box::leak`.
    let this = unsafe { Box::from_raw(inner.cast_mut()) };
    if let Region::Owned(layout) = this.region {
        // SAFETY: allocated in `Pool::new` with this layout.
        unsafe { dealloc(this.base.as_ptr(), layout) };
    }
}

/// A handle on one frame. Cloning adds a holder; the last one dropped returns the frame to its pool.
pub struct Frame {
    slot: NonNull<Slot>,
    _not_send: PhantomData<*const ()>,
}

const _: () = assert!(size_of::<Frame>() == 8);

impl Frame {
    fn slot(&self) -> &Slot {
        // SAFETY: slots live as long as any frame of their pool, and `self` is one.
        unsafe { self.slot.as_ref() }
    }

    fn inner(&self) -> &Inner {
        // SAFETY: as above.
        unsafe { &*self.slot().pool.get() }
    }

    fn base(&self) -> NonNull<u8> {
        let inner = self.inner();
        // SAFETY: the index is below the capacity, so the offset stays inside the region.
        unsafe { inner.base.add(self.index() as usize * inner.chunk_size) }
    }

    /// The frame's number in its pool; its octets begin at `index * chunk_size` of the region.
    pub fn index(&self) -> u32 {
        // SAFETY: `slot` points into `slots`.
        unsafe { self.slot.as_ptr().offset_from(self.inner().slots.as_ptr()) as u32 }
    }

    /// Octets in the frame.
    pub fn capacity(&self) -> usize {
        self.inner().chunk_size
    }

    /// How many handles hold this frame.
    pub fn holders(&self) -> u32 {
        self.slot().holders.get()
    }

    /// All octets, writable while this is the only handle (as `Rc::get_mut`). `None`: copy into a fresh frame.
    pub fn unique_mut(&mut self) -> Option<&mut [u8]> {
        if self.slot().holders.get() != 1 || self.slot().claimed.get() {
            return None;
        }
        // SAFETY: the only handle is borrowed exclusively, and no claim can write meanwhile.
        Some(unsafe { core::slice::from_raw_parts_mut(self.base().as_ptr(), self.capacity()) })
    }

    /// The octets from `start` on.
    ///
    /// # Panics
    /// If they reach past the end, or begin in the headroom: a claim may be writing there.
    pub fn bytes(&self, start: u16, len: u16) -> &[u8] {
        assert!(start >= self.data_start() || len == 0, "headroom is not for reading");
        let (start, len) = (usize::from(start), usize::from(len));
        assert!(start + len <= self.capacity(), "outside of the frame");
        // SAFETY: inside the frame. Nobody writes it: `unique_mut` needs the only handle, exclusively borrowed; claims
        // only cover octets below `data_start`, which moves only while the only handle is exclusively borrowed.
        unsafe { core::slice::from_raw_parts(self.base().as_ptr().add(start), len) }
    }

    /// Declares octets below `start` headroom: they are not read again. Only grows, and only while this is the only
    /// handle, so that nobody can be reading them.
    pub(super) fn set_data_start(&mut self, start: u16) {
        if self.holders() == 1 {
            self.slot().data_start.set(self.slot().data_start.get().max(start));
        }
    }

    /// Where the headroom ends.
    pub(super) fn data_start(&self) -> u16 {
        self.slot().data_start.get()
    }

    /// Claims the headroom, the octets `0..data_start`, so that headers can be written in front of the payload while
    /// other handles (the send queue, say) go on reading the payload. `None` while another claim is out.
    pub fn claim_headroom(&self) -> Option<HeadroomClaim> {
        if self.slot().claimed.replace(true) {
            return None;
        }
        Some(HeadroomClaim { frame: self.clone() })
    }
}

impl Clone for Frame {
    fn clone(&self) -> Frame {
        self.slot().holders.set(self.slot().holders.get() + 1);
        Frame { slot: self.slot, _not_send: PhantomData }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let slot = self.slot();
        let holders = slot.holders.get() - 1;
        slot.holders.set(holders);
        if holders > 0 {
            return;
        }
        let (inner, index) = (self.inner(), self.index());
        slot.next.set(inner.free_head.replace(index));
        inner.free.set(inner.free.get() + 1);
        if inner.handles.get() == 0 {
            // SAFETY: this frame is back; nothing of the pool is used after this line.
            unsafe { free_if_unused(inner) };
        }
    }
}

impl core::fmt::Debug for Frame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Frame({} x{})", self.index(), self.holders())
    }
}

/// The exclusive right to a frame's headroom, and a holder of the frame: kept until the device has sent it.
#[derive(Debug)]
pub struct HeadroomClaim {
    frame: Frame,
}

impl HeadroomClaim {
    /// The headroom: every octet in front of the payload.
    pub fn headroom(&mut self) -> &mut [u8] {
        let len = usize::from(self.frame.data_start());
        // SAFETY: octets below `data_start` are read by nobody (`Frame::bytes`) and the claim is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.frame.base().as_ptr(), len) }
    }

    /// The frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }
}

impl Drop for HeadroomClaim {
    fn drop(&mut self) {
        self.frame.slot().claimed.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;

    #[test]
    fn frames_return_when_the_last_holder_goes() {
        let pool = Pool::new(2, 64);
        let a = pool.take().unwrap();
        let b = a.clone();
        let c = pool.take().unwrap();
        assert!(pool.take().is_none(), "an empty pool is a normal outcome");
        drop(a);
        assert_eq!(pool.free(), 0);
        drop((b, c));
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn the_most_recently_returned_frame_comes_first() {
        let pool = Pool::new(4, 64);
        let a = pool.take().unwrap();
        let index = a.index();
        drop(a);
        assert_eq!(pool.take().unwrap().index(), index);
    }

    #[test]
    fn writable_only_while_nobody_else_holds_it() {
        let pool = Pool::new(1, 64);
        let mut a = pool.take().unwrap();
        a.unique_mut().unwrap()[0] = 7;
        let b = a.clone();
        assert!(a.unique_mut().is_none());
        drop(b);
        assert_eq!(a.unique_mut().unwrap()[0], 7);
    }

    #[test]
    fn headroom_is_claimed_once_and_leaves_the_payload_readable() {
        let pool = Pool::new(1, 64);
        let mut a = pool.take().unwrap();
        a.unique_mut().unwrap()[10] = 42;
        a.set_data_start(10);
        let mut claim = a.claim_headroom().unwrap();
        assert!(a.claim_headroom().is_none());
        claim.headroom().fill(1);
        assert_eq!(claim.headroom().len(), 10);
        assert_eq!(a.bytes(10, 1), [42]);
        drop(claim);
        assert!(a.claim_headroom().is_some());
    }

    #[test]
    fn the_region_outlives_its_pool_handle_for_as_long_as_a_frame_does() {
        let alive = Rc::new(());
        let region = Box::leak(alloc::vec![0u8; 128].into_boxed_slice());
        // SAFETY: leaked, so valid for ever.
        let pool = unsafe {
            Pool::from_region(NonNull::from(&mut region[0]), 2, 64, Box::new(alive.clone()))
        };
        let frame = pool.take().unwrap();
        drop(pool);
        assert_eq!(Rc::strong_count(&alive), 2);
        assert_eq!(frame.bytes(0, 64).len(), 64);
        drop(frame);
        assert_eq!(Rc::strong_count(&alive), 1);
    }
}
