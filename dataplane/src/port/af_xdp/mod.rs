//! AF_XDP: the device (or, in copy mode, the kernel) writes frames straight into the worker's pool.
//!
//! One pool is the UMEM of all AF_XDP ports of a worker, so a payload received on one leaves by another without a copy:
//! headers go into the headroom in front of it where that is free, else everything goes into a fresh frame.

mod ring;
mod socket;

use self::socket::{Anchor, Held, Queue, StepError};
use super::af_packet::raw_socket;
use super::ethernet::finished_header;
use super::share::{Share, held};
use super::{
    Attach, BURST, Capabilities, Device, Medium, Patience, Port, PortError, PortStats, Program,
    RxFrame, TxBody, TxFrame, XdpMode, XskMap,
};
use crate::steer::{Flavour, Steering, compile};
use arrayvec::ArrayVec;
use stack::buf::{Chain, Frame, Payload, Pool};
use stack::wire::RxChecksum;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Most frames that one packet spans.
const MAX_PARTS: usize = 17;

/// A pool as the UMEM of several sockets.
#[derive(Debug)]
pub struct Umem {
    pool: Pool,
    /// The sockets bound over it. A new one shares the registration of one that is bound as it wants to be; where there
    /// is none (any more), the pool is registered again, which changes no address.
    anchors: RefCell<Vec<Weak<Anchor>>>,
    patience: Cell<Patience>,
}

impl Umem {
    /// Over `pool`, whose frames must be 2048 or 4096 octets.
    ///
    /// # Errors
    /// If they are not.
    pub fn new(pool: Pool) -> Result<Rc<Umem>, PortError> {
        if !matches!(pool.chunk_size(), 2048 | 4096) {
            return Err(PortError::Pool {
                device: "af-xdp".into(),
                why: format!("frames must be 2048 or 4096 octets, not {}", pool.chunk_size()),
            });
        }
        let patience = Cell::new(Patience::Seconds);
        Ok(Rc::new(Umem { pool, anchors: RefCell::default(), patience }))
    }

    /// From now on, opening a port waits so long for a queue in use.
    pub fn set_patience(&self, patience: Patience) {
        self.patience.set(patience);
    }
}

/// A device driven by AF_XDP sockets, one per queue.
#[derive(Debug)]
pub struct AfXdpPort {
    /// Gone first, so that frames pass to the kernel before the sockets close.
    attached: Arc<Attached>,
    /// Makes the device receive neighbour solicitations.
    _multicast: OwnedFd,
    queues: Vec<Queue>,
    fds: Vec<RawFd>,
    umem: Rc<Umem>,
    device: Device,
    checksum: RxChecksum,
    /// The parts so far of a packet in several frames, by queue.
    partial: Vec<Chain>,
    stats: PortStats,
}

/// The program on a device, which gives frames to the sockets of all workers.
#[derive(Debug)]
pub(super) struct Attached {
    /// The program's link.
    _link: OwnedFd,
    mode: XdpMode,
    map: XskMap,
}

impl Attached {
    /// Loads the program that takes what `steering` does and attaches it.
    fn new(
        device: &Device,
        steering: &Steering,
        queues: u32,
        attach: Attach,
    ) -> Result<Attached, PortError> {
        let name = &device.name;
        let failed = |(step, error)| PortError::System { device: name.clone(), step, error };
        let map = XskMap::new(queues).map_err(|e| failed(("creating an XSKMAP", e)))?;
        let flavour = Flavour::xdp(map.fd());
        let insns = compile(steering, flavour)
            .map_err(|error| PortError::TooLong { device: name.clone(), error })?;
        let program = Program::load(flavour.kind, &insns)
            .map_err(|error| PortError::Program { device: name.clone(), error })?;
        let attached = program.attach_xdp(device.index, attach);
        let (link, mode) = attached.map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => PortError::NoNativeXdp { device: name.clone(), error },
            _ => failed(("attaching the XDP program", error)),
        })?;
        Ok(Attached { _link: link, mode, map })
    }
}

enum Sent {
    InPlace,
    Copied,
    Full,
    Refused,
}

impl AfXdpPort {
    /// Opens a device; frames that `steering` takes come here, the kernel gets all others. `queues` empty: all. Of them
    /// the worker of `share` has one in so many; `None` where that is none.
    ///
    /// # Errors
    /// If there is no such device, no CAP_BPF, CAP_NET_ADMIN or CAP_NET_RAW, another XDP program on it, a queue in use,
    /// or locked memory is short.
    pub fn open(
        device: &str,
        steering: &Steering,
        queues: &[u32],
        attach: Attach,
        (umem, share): (&Rc<Umem>, &Share),
    ) -> Result<Option<AfXdpPort>, PortError> {
        let name = device.to_owned();
        let device = Device::query(device)
            .map_err(|error| PortError::Device { device: name.clone(), error })?;
        let failed =
            |(step, error): StepError| PortError::System { device: name.clone(), step, error };
        let numbers: Vec<u32> =
            if queues.is_empty() { (0..device.queues).collect() } else { queues.to_vec() };
        let size = numbers.iter().max().map_or(1, |n| n + 1);
        let numbers = share.of_queues(numbers);
        if numbers.is_empty() {
            return Ok(None);
        }
        // Before the sockets: a device that refuses it is left as it was. What it takes passes until they are there.
        let attached = attached(&device, share, || Attached::new(&device, steering, size, attach))?;
        let mut queues = Vec::new();
        for number in numbers {
            let queue = Queue::open(umem, &device, number).map_err(failed)?;
            let inserted = attached.map.insert(number, &queue.anchor.fd);
            inserted.map_err(|e| failed(("filling the XSKMAP", e)))?;
            queues.push(queue);
        }
        // Behind the driver come the kernel's own packets, merged by GRO: their checksum field holds the pseudo-header sum.
        let after_kernel = device.is_virtual() || attached.mode == XdpMode::Generic;
        let checksum = if after_kernel { RxChecksum::MaybePartial } else { RxChecksum::Unknown };
        let multicast = raw_socket(&device).map_err(|e| failed(("listening to multicast", e)))?;
        Ok(Some(AfXdpPort {
            _multicast: multicast,
            attached,
            fds: queues.iter().map(|q| q.anchor.fd.as_raw_fd()).collect(),
            partial: queues.iter().map(|_| Chain::new()).collect(),
            queues,
            umem: umem.clone(),
            device,
            checksum,
            stats: PortStats::default(),
        }))
    }

    /// Where its program runs.
    pub fn mode(&self) -> XdpMode {
        self.attached.mode
    }

    /// The queues it drives.
    pub fn queues(&self) -> impl Iterator<Item = u32> {
        self.queues.iter().map(|q| q.number)
    }
}

/// What another worker has attached to the device, or else what `attach` makes.
fn attached(
    device: &Device,
    share: &Share,
    attach: impl FnOnce() -> Result<Attached, PortError>,
) -> Result<Arc<Attached>, PortError> {
    let mut common = share.common();
    if let Some(attached) = held(&common.xdp, device.index) {
        return Ok(attached);
    }
    let fresh = Arc::new(attach()?);
    common.xdp = Some((device.index, Arc::downgrade(&fresh)));
    Ok(fresh)
}

impl Port for AfXdpPort {
    fn receive(&mut self, _pool: &Pool, rx: &mut Vec<RxFrame>) {
        let mut budget = BURST;
        for (queue, partial) in self.queues.iter_mut().zip(&mut self.partial) {
            queue.reap();
            queue.kick(); // frames that got stuck before
            while budget > 0 {
                let Some(desc) = queue.rx.pop() else { break };
                let (index, start) = queue.locate(desc.addr);
                if let Some(Held::Whole(frame)) = queue.unhold(index)
                    && usize::from(start) + desc.len as usize <= frame.capacity()
                {
                    partial.push(Payload::new(frame, start, desc.len as u16));
                }
                if desc.options & libc::XDP_PKT_CONTD != 0 {
                    continue;
                }
                let octets = std::mem::take(partial);
                self.stats.rx_frames += 1;
                self.stats.rx_octets += u64::from(octets.len());
                rx.push(RxFrame { octets, checksum: self.checksum, gso_size: 0 });
                budget -= 1;
            }
            queue.rx.release();
            queue.refill(&self.umem);
        }
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        let Some(queue) = self.queues.first_mut() else { return };
        queue.reap();
        let mut done = 0;
        for frame in tx.iter_mut() {
            match send(queue, &self.umem.pool, frame) {
                Sent::Full => {
                    self.stats.tx_full += 1;
                    break;
                }
                Sent::Refused => self.stats.tx_dropped += 1,
                sent => {
                    self.stats.tx_frames += 1;
                    self.stats.tx_octets += frame.len() as u64;
                    self.stats.tx_uncopied += u64::from(matches!(sent, Sent::InPlace));
                }
            }
            done += 1;
        }
        tx.drain(..done);
        queue.kick();
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: Medium::Ethernet,
            mtu: self.device.mtu,
            segmentation: false,
            checksum_offload: true, // finished here, from sums found on receipt
            super_frames_in: self.mode() == XdpMode::Generic || self.device.is_virtual(),
            zero_copy: self.queues.first().is_some_and(|q| q.anchor.zero_copy.get()),
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.device.mac
    }

    fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    fn stats(&self) -> PortStats {
        let dropped: u64 = self.queues.iter().map(Queue::dropped).sum();
        PortStats { rx_dropped: self.stats.rx_dropped + dropped, ..self.stats }
    }
}

fn send(queue: &mut Queue, pool: &Pool, frame: &mut TxFrame) -> Sent {
    if queue.tx.room() < MAX_PARTS as u32 {
        queue.kick();
        if queue.tx.room() < MAX_PARTS as u32 {
            return Sent::Full;
        }
    }
    let mut headers: ArrayVec<u8, 134> = frame.link.iter().copied().collect();
    if let TxBody::Tcp(packet) = &mut frame.body {
        headers.extend(finished_header(packet));
    }
    let octets = frame.body.octets();
    match send_in_place(queue, pool, &headers, octets) {
        Some(()) => Sent::InPlace,
        None => copy(queue, pool, &headers, octets),
    }
}

/// Writes the headers in front of the payload where it lies. `None` if it is in several pieces, in a frame of another
/// pool, or behind headroom that is too small or taken.
fn send_in_place(queue: &mut Queue, pool: &Pool, headers: &[u8], octets: &Chain) -> Option<()> {
    let [part] = octets.parts() else { return None };
    if part.headroom() < headers.len() || !pool.owns(part.frame()) {
        return None;
    }
    let mut claim = part.frame().claim_headroom()?;
    let end = usize::from(part.start());
    let start = end.checked_sub(headers.len())?;
    claim.headroom().get_mut(start..end)?.copy_from_slice(headers);
    let index = part.frame().index();
    let len = (headers.len() + part.len()) as u32;
    queue.tx.push(libc::xdp_desc { addr: queue.address(index, start), len, options: 0 });
    queue.hold(index, Held::Headers(claim));
    Some(())
}

/// Copies a packet into fresh frames, several where it is longer than one and the device takes that.
fn copy(queue: &mut Queue, pool: &Pool, headers: &[u8], octets: &Chain) -> Sent {
    let chunk = pool.chunk_size();
    let total = headers.len() + octets.len() as usize;
    let parts = total.div_ceil(chunk);
    if total == 0 || parts > MAX_PARTS || (parts > 1 && !queue.anchor.sg.get()) {
        return Sent::Refused;
    }
    let mut fresh: ArrayVec<Frame, MAX_PARTS> = ArrayVec::new();
    for _ in 0..parts {
        let Some(frame) = pool.take() else { return Sent::Full };
        fresh.push(frame);
    }
    let mut at = 0;
    let mut put = |mut octets: &[u8]| {
        while !octets.is_empty() {
            let (index, offset) = (at / chunk, at % chunk);
            let Some(room) = fresh.get_mut(index).and_then(Frame::unique_mut) else { return };
            let n = octets.len().min(chunk - offset);
            room[offset..offset + n].copy_from_slice(&octets[..n]);
            octets = &octets[n..];
            at += n;
        }
    };
    put(headers);
    octets.parts().iter().for_each(|part| put(part.bytes()));
    let mut left = total;
    for frame in fresh {
        let len = left.min(chunk);
        left -= len;
        let options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
        let addr = queue.address(frame.index(), 0);
        queue.tx.push(libc::xdp_desc { addr, len: len as u32, options });
        queue.hold(frame.index(), Held::Whole(frame));
    }
    Sent::Copied
}
