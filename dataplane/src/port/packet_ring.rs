//! The receive ring of an AF_PACKET socket (TPACKET_V2): a frame that fits costs no system call, and to see that none has
//! come costs a look at memory.
//!
//! The kernel copies each frame into the next slot. One that is longer than a slot is cut short there; with
//! PACKET_COPY_THRESH the whole of it also waits in the socket's queue, whose order is that of the slots.

use super::ethernet::VNET_LEN;
use super::sys::{Mapping, set_option};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// Octets of a slot: a frame of 1,500 octets of IP packet behind what the kernel puts in front of it.
const SLOT: usize = 2048;
/// Slots: 8 MiB in all. As many frames of 1,500 octets as the largest window of a kernel's TCP (4 MiB) and then some; one
/// that stays in a processor's cache was no faster.
const SLOTS: usize = 4096;
/// What the kernel allocates at a time.
const BLOCK: usize = 64 << 10;

const _: () = assert!((SLOTS * SLOT).is_multiple_of(BLOCK) && BLOCK.is_multiple_of(SLOT));

/// The ring, from our side.
#[derive(Debug)]
pub(super) struct PacketRing {
    mapping: Mapping,
    next: usize,
}

/// A frame that has arrived.
#[derive(Debug)]
pub(super) struct Arrived<'a> {
    /// Its virtio-net header.
    pub(super) vnet: [u8; VNET_LEN],
    /// Where it is.
    pub(super) place: Place<'a>,
    /// The VLAN that it was tagged for, 0: none. The tag itself is no longer in the frame.
    pub(super) vlan: u16,
}

/// Where a frame is.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// In the slot.
    Slot(&'a [u8]),
    /// First in the socket's queue.
    Queue,
    /// Nowhere: it was too long for the slot, and the queue was full.
    Lost,
}

impl PacketRing {
    /// Gives a socket a ring. To be done before the socket is bound to a device, so that no frame is in its queue
    /// without a slot.
    pub(super) fn new(fd: &OwnedFd) -> io::Result<PacketRing> {
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        set_option(fd, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        set_option(fd, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1i32)?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: (SLOTS * SLOT / BLOCK) as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: SLOTS as u32,
        };
        set_option(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        Ok(PacketRing { mapping: Mapping::new(fd, SLOTS * SLOT, 0)?, next: 0 })
    }

    /// The next frame, if it has come. It stays until it is given back by [`PacketRing::release`].
    pub(super) fn peek(&self) -> Option<Arrived<'_>> {
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.mapping.at(self.next * SLOT);
        // SAFETY: a whole slot inside the mapping that `self` owns. Its status says that it is ours: the kernel leaves it
        // alone until `release`, which the borrow of `self` keeps away.
        let octets = unsafe { std::slice::from_raw_parts(slot.as_ptr(), SLOT) };
        // SAFETY: a slot begins with this header, aligned, and any bits are valid for it.
        let header = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        let start = usize::from(header.tp_mac);
        let (len, kept) = (header.tp_len as usize, header.tp_snaplen as usize);
        let place = match octets.get(start..start + kept) {
            _ if status & libc::TP_STATUS_COPY != 0 => Place::Queue,
            Some(frame) if kept == len => Place::Slot(frame),
            _ => Place::Lost,
        };
        let vnet = start.checked_sub(VNET_LEN).and_then(|at| octets.get(at..)?.first_chunk());
        let tagged = status & libc::TP_STATUS_VLAN_VALID != 0;
        let vlan = if tagged { header.tp_vlan_tci & 0xfff } else { 0 };
        Some(Arrived { vnet: vnet.copied().unwrap_or_default(), place, vlan })
    }

    /// Gives the slot of the frame that [`PacketRing::peek`] showed back to the kernel.
    pub(super) fn release(&mut self) {
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % SLOTS;
    }

    /// Whose the next slot is.
    fn status(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping that `self` owns, aligned, and of the header only this word changes hands while the
        // other side may look.
        unsafe { self.mapping.at(self.next * SLOT).cast().as_ref() }
    }
}
