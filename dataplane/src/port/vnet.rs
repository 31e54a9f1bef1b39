//! Frames behind a virtio-net header: read by scatter into pool frames, written by gather from headers and payloads.
#![forbid(unsafe_code)]

use super::ethernet::{Offload, VNET_LEN, vnet_checksum, vnet_gso_size};
use super::{BURST, PortStats, RxFrame, TxBody, TxFrame};
use arrayvec::ArrayVec;
use smallvec::SmallVec;
use stack::buf::{Chain, Frame, Payload, Pool};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};

/// In front of a received frame: with the headers behind it, enough for any headers of ours.
pub(super) const HEADROOM: usize = 128;
/// Largest frame: 65,535 octets of IP packet behind an Ethernet header.
const MAX_FRAME: usize = 65_535 + 14;
/// Most pool frames that one frame is scattered over.
const MAX_PARTS: usize = 128;
/// Octets handed up by one `receive`, roughly: more would fall out of the cache before they are sent.
pub(super) const BURST_OCTETS: usize = 512 << 10;
/// Most slices that one message takes.
pub(super) const MAX_SLICES: usize = 1024;

/// Pool frames for what comes next.
#[derive(Debug, Default)]
pub(super) struct Scatter {
    spare: Vec<Frame>,
}

impl Scatter {
    /// Reads until nothing is there, [`BURST`] frames or [`BURST_OCTETS`] octets; hands up what is `wanted`, to judge by
    /// its first octets. `least`: octets of the largest frame that is no super-segment. The error, if one ended it.
    pub(super) fn receive(
        &mut self,
        source: &File,
        (pool, least): (&Pool, usize),
        wanted: impl Fn(&[u8]) -> bool,
        stats: &mut PortStats,
        rx: &mut Vec<RxFrame>,
    ) -> io::Result<()> {
        let mut octets = 0;
        for _ in 0..BURST {
            if octets >= BURST_OCTETS || !self.refill(pool, least) {
                return Ok(());
            }
            match self.receive_one(source, &wanted, stats) {
                Ok(Some(frame)) => {
                    octets += frame.octets.len() as usize;
                    rx.push(frame);
                }
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads one frame, after [`Scatter::refill`]. `None`: it was longer than the room, or is not `wanted`.
    pub(super) fn receive_one(
        &mut self,
        source: &File,
        wanted: impl Fn(&[u8]) -> bool,
        stats: &mut PortStats,
    ) -> io::Result<Option<RxFrame>> {
        let (len, vnet) = self.read(source)?;
        let room = |first: &&Frame| self.spare.len() * first.capacity() - HEADROOM;
        let Some(first) = self.spare.last().filter(|f| (1..room(f)).contains(&len)) else {
            stats.rx_dropped += 1;
            return Ok(None);
        };
        let head = len.min(first.capacity() - HEADROOM);
        if !wanted(first.bytes(HEADROOM as u16, head as u16)) {
            return Ok(None);
        }
        stats.rx_frames += 1;
        stats.rx_octets += len as u64;
        let (checksum, gso_size) = (vnet_checksum(&vnet), vnet_gso_size(&vnet));
        Ok(Some(RxFrame { octets: self.take(len), checksum, gso_size }))
    }

    /// Takes frames for the largest frame there is. False: the pool has too few for `least` octets.
    pub(super) fn refill(&mut self, pool: &Pool, least: usize) -> bool {
        let chunk = pool.chunk_size();
        let want = (MAX_FRAME + HEADROOM).div_ceil(chunk).min(MAX_PARTS);
        while self.spare.len() < want {
            match pool.take() {
                Some(frame) => self.spare.push(frame),
                None => break,
            }
        }
        // An ordinary frame fits; a super-segment then may not, and is dropped.
        self.spare.len() * chunk >= HEADROOM + least || self.spare.len() == want
    }

    /// Reads one frame into the spare pool frames.
    fn read(&mut self, mut source: &File) -> io::Result<(usize, [u8; VNET_LEN])> {
        let mut vnet = [0; VNET_LEN];
        let mut slices: ArrayVec<IoSliceMut<'_>, { MAX_PARTS + 1 }> = ArrayVec::new();
        slices.push(IoSliceMut::new(&mut vnet));
        let mut start = HEADROOM;
        // The last in the list first, so that what is used can be taken off its end.
        for frame in self.spare.iter_mut().rev() {
            let Some(octets) = frame.unique_mut().and_then(|o| o.get_mut(start..)) else { break };
            slices.push(IoSliceMut::new(octets));
            start = 0;
        }
        let n = source.read_vectored(&mut slices)?;
        drop(slices);
        Ok((n.saturating_sub(VNET_LEN), vnet))
    }

    /// The frame just read, `len` octets long.
    fn take(&mut self, mut len: usize) -> Chain {
        let mut octets = Chain::new();
        let mut start = HEADROOM;
        while len > 0 {
            let Some(frame) = self.spare.pop() else { break };
            let part = len.min(frame.capacity() - start);
            octets.push(Payload::new(frame, start as u16, part as u16));
            len -= part;
            start = 0;
        }
        octets
    }
}

/// Virtio-net header, link-layer header and packet header of a frame.
pub(super) type Head = ArrayVec<u8, { VNET_LEN + 14 + 120 }>;

/// What is written in front of the octets that go by reference.
pub(super) fn head(frame: &TxFrame) -> Head {
    let mut head = Head::new();
    let (vnet, packet_header): (_, &[u8]) = match &frame.body {
        TxBody::Tcp(packet) => (Offload::of(packet, frame.link.len()).vnet(), &packet.header),
        TxBody::Whole(_) => ([0; VNET_LEN], &[]),
    };
    head.extend(vnet);
    head.extend(frame.link.iter().copied());
    head.extend(packet_header.iter().copied());
    head
}

/// Writes one frame.
pub(super) fn write(mut sink: &File, frame: &TxFrame) -> io::Result<()> {
    let head = head(frame);
    let copied;
    let mut slices: SmallVec<[IoSlice<'_>; 64]> = SmallVec::new();
    slices.push(IoSlice::new(&head));
    let octets = frame.body.octets();
    if octets.parts().len() < MAX_SLICES {
        slices.extend(octets.parts().iter().map(|part| IoSlice::new(part.bytes())));
    } else {
        copied = octets.to_vec();
        slices.push(IoSlice::new(&copied));
    }
    sink.write_vectored(&slices).map(drop)
}

/// Whether a device has no room now.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}
