//! The four rings of an AF_XDP socket: single producer, single consumer, one side in the kernel.

use crate::port::sys::Mapping;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A mapped ring of `T`; `T` is `u64` (a frame's address) or `xdp_desc`.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    /// Owns what the pointers point into.
    _mapping: Mapping,
    _type: PhantomData<T>,
}

impl<T: Copy> Shared<T> {
    fn map(
        fd: &OwnedFd,
        size: u32,
        page_offset: u64,
        at: &libc::xdp_ring_offset,
    ) -> io::Result<Shared<T>> {
        assert!(size.is_power_of_two(), "ring sizes are powers of two");
        let len = at.desc as usize + size as usize * size_of::<T>();
        let mapping = Mapping::new(fd, len, page_offset)?;
        debug_assert!(mapping.len() >= len);
        Ok(Shared {
            producer: mapping.at(at.producer as usize).cast(),
            consumer: mapping.at(at.consumer as usize).cast(),
            flags: mapping.at(at.flags as usize).cast(),
            entries: mapping.at(at.desc as usize).cast(),
            size,
            _mapping: mapping,
            _type: PhantomData,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping that `self` owns, aligned by the kernel, and only accessed atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as `producer`.
        let flags = unsafe { self.flags.as_ref() }.load(Ordering::Relaxed);
        flags & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, at: u32) -> NonNull<T> {
        // SAFETY: the index is below `size`, and the mapping holds `size` entries.
        unsafe { self.entries.add((at & (self.size - 1)) as usize) }
    }
}

/// A ring that we fill: FILL and TX.
#[derive(Debug)]
pub(super) struct Producer<T> {
    shared: Shared<T>,
    /// Next entry to write; ahead of the published producer index between `push` and `publish`.
    next: u32,
}

impl<T: Copy> Producer<T> {
    pub(super) fn map(
        fd: &OwnedFd,
        size: u32,
        page_offset: u64,
        at: &libc::xdp_ring_offset,
    ) -> io::Result<Producer<T>> {
        Ok(Producer { shared: Shared::map(fd, size, page_offset, at)?, next: 0 })
    }

    /// Entries that can be pushed.
    pub(super) fn room(&self) -> u32 {
        self.shared.size - self.pending()
    }

    /// Entries that the kernel has not consumed.
    pub(super) fn pending(&self) -> u32 {
        self.next.wrapping_sub(self.shared.consumer().load(Ordering::Acquire))
    }

    /// Writes one entry. False: no room.
    pub(super) fn push(&mut self, value: T) -> bool {
        if self.room() == 0 {
            return false;
        }
        // SAFETY: this entry is between consumer and producer + size: the kernel does not look at it before `publish`.
        unsafe { self.shared.entry(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the kernel what was pushed.
    pub(super) fn publish(&mut self) {
        self.shared.producer().store(self.next, Ordering::Release);
    }

    /// Whether the kernel must be woken to look.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }
}

/// A ring that the kernel fills: RX and COMPLETION.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    shared: Shared<T>,
    /// Next entry to read; ahead of the published consumer index between `pop` and `release`.
    next: u32,
}

impl<T: Copy> Consumer<T> {
    pub(super) fn map(
        fd: &OwnedFd,
        size: u32,
        page_offset: u64,
        at: &libc::xdp_ring_offset,
    ) -> io::Result<Consumer<T>> {
        Ok(Consumer { shared: Shared::map(fd, size, page_offset, at)?, next: 0 })
    }

    /// The next entry.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.shared.producer().load(Ordering::Acquire) == self.next {
            return None;
        }
        // SAFETY: below the producer index: the kernel has written it and leaves it alone until `release`.
        let value = unsafe { self.shared.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives entries read back to the kernel.
    pub(super) fn release(&mut self) {
        self.shared.consumer().store(self.next, Ordering::Release);
    }
}
