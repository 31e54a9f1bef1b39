//! AF_PACKET with virtio-net headers: super-segments up to 64 KB both ways, checksums left to whoever needs them.
//!
//! A small frame is copied out of a ring that the kernel shares with us; a super-segment is read by scatter into pool
//! frames. Frames are written by gather from headers and payloads. The kernel sees the same frames: a TCX program hides
//! from it what the steering rules take.
#![forbid(unsafe_code)]

use super::ethernet::{vnet_checksum, vnet_gso_size};
use super::fanout;
use super::packet_ring::{PacketRing, Place};
use super::share::{Share, held};
use super::sys::{
    MAX_MESSAGES, bind_packet, bind_packet_to_send, read_option, receive_multicast, send_messages,
    set_option, socket,
};
use super::vnet::{BURST_OCTETS, HEADROOM, Head, Scatter, head, is_full, write};
use super::{
    BURST, Capabilities, Device, Medium, Port, PortError, PortStats, Program, RxFrame, TxFrame,
};
use crate::steer::{Flavour, Steering, compile};
use arrayvec::ArrayVec;
use smallvec::SmallVec;
use stack::buf::{Chain, Pool};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Socket buffers, in octets as the kernel counts them (doubled by it): tens of super-segments.
const SOCKET_BUFFER: i32 = 4 << 20;
/// Slices of one batch of messages, unless one message has more: a system call is saved for frames of few slices, for
/// super-segments it is nothing beside the copy.
const BATCH_SLICES: usize = 128;

/// A device driven by an AF_PACKET socket.
#[derive(Debug)]
pub struct AfPacketPort {
    socket: File,
    fds: [RawFd; 1],
    device: Device,
    /// Hides our frames from the kernel for as long as a worker has it.
    _tcx: Option<Arc<OwnedFd>>,
    /// Set where the socket has no filter of its own.
    steering: Option<Steering>,
    /// None: it only sends.
    ring: Option<PacketRing>,
    scatter: Scatter,
    warnings: Vec<String>,
    /// Frames that the ring had no room for, as far as the kernel was asked: it forgets what it has said.
    overflow: Cell<u64>,
    stats: PortStats,
}

/// A raw socket for a device, not receiving yet.
pub(crate) fn raw_socket(device: &Device) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
    for (force, plain) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        set_option(&fd, libc::SOL_SOCKET, force, &SOCKET_BUFFER)
            .or_else(|_| set_option(&fd, libc::SOL_SOCKET, plain, &SOCKET_BUFFER))?;
    }
    receive_multicast(&fd, device.index)?;
    Ok(fd)
}

/// A socket with virtio-net headers for the device of this name, not bound yet.
fn prepare(device: &str) -> Result<(Device, OwnedFd), PortError> {
    let name = device.to_owned();
    let device =
        Device::query(device).map_err(|error| PortError::Device { device: name.clone(), error })?;
    let failed = |step| {
        let device = name.clone();
        move |error| PortError::System { device, step, error }
    };
    let fd = raw_socket(&device).map_err(failed("opening an AF_PACKET socket"))?;
    set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)
        .map_err(failed("turning virtio-net headers on"))?;
    Ok((device, fd))
}

/// The program that hides from the kernel what `steering` takes: that of another worker, where there is one. `None`, and
/// a warning: it cannot be had.
fn hide(
    device: &Device,
    steering: &Steering,
    share: &Share,
    warnings: &mut Vec<String>,
) -> Result<Option<Arc<OwnedFd>>, PortError> {
    let mut common = share.common();
    if let Some(tcx) = held(&common.tcx, device.index) {
        return Ok(Some(tcx));
    }
    let insns = compile(steering, Flavour::tcx())
        .map_err(|error| PortError::TooLong { device: device.name.clone(), error })?;
    let attached = Program::load(Flavour::tcx().kind, &insns)
        .map_err(|e| e.to_string())
        .and_then(|program| program.attach(device.index).map_err(|e| e.to_string()));
    match attached {
        Ok(tcx) => {
            let tcx = Arc::new(tcx);
            common.tcx = Some((device.index, Arc::downgrade(&tcx)));
            Ok(Some(tcx))
        }
        Err(why) => {
            warnings.push(format!(
                "{}: the kernel goes on seeing frames that Plait takes and may answer or forward them; \
                 set net.ipv4.ip_forward=0 and keep Plait's addresses off the device ({why})",
                device.name
            ));
            Ok(None)
        }
    }
}

impl AfPacketPort {
    /// Opens a device; only frames that `steering` takes are handed up, of these those whose home is the worker of
    /// `share`. Where programs may not be loaded the port works without, and [`AfPacketPort::warnings`] says what that
    /// means.
    ///
    /// # Errors
    /// If there is no such device, or no CAP_NET_RAW in its namespace.
    pub fn open(
        device: &str,
        steering: &Steering,
        share: &Share,
    ) -> Result<AfPacketPort, PortError> {
        let (device, fd) = prepare(device)?;
        let failed = |step| {
            let device = device.name.clone();
            move |error| PortError::System { device, step, error }
        };
        let too_long = |error| PortError::TooLong { device: device.name.clone(), error };
        let ring = Some(PacketRing::new(&fd).map_err(failed("making a receive ring"))?);
        let mut warnings = Vec::new();
        let filter = compile(steering, Flavour::socket()).map_err(too_long)?;
        let tcx = hide(&device, steering, share, &mut warnings)?;
        if share.is_shared() {
            // Until it is in its group it would receive what is for the others.
            fanout::mute(&fd).map_err(failed("muting an AF_PACKET socket"))?;
        }
        let bind = || bind_packet(&fd, device.index).map_err(failed("binding an AF_PACKET socket"));
        if share.is_shared() {
            bind()?;
            fanout::join(&fd, &device, share).map_err(failed("joining a fan-out group"))?;
        }
        let filtered = Program::load(Flavour::socket().kind, &filter)
            .map_err(|e| e.to_string())
            .and_then(|program| program.attach_socket(&fd).map_err(|e| e.to_string()));
        if let Err(why) = &filtered {
            warnings.push(format!("{}: frames are filtered in user space: {why}", device.name));
        }
        match (share.is_shared(), &filtered) {
            (true, Err(_)) => {
                fanout::unmute(&fd).map_err(failed("unmuting an AF_PACKET socket"))?
            }
            (true, Ok(())) => {}
            (false, _) => bind()?,
        }
        let steering = filtered.is_err().then(|| steering.clone());
        Ok(AfPacketPort { steering, ring, warnings, _tcx: tcx, ..AfPacketPort::over(device, fd) })
    }

    /// Opens a device only to send.
    ///
    /// # Errors
    /// As [`AfPacketPort::open`].
    pub fn open_to_send(device: &str) -> Result<AfPacketPort, PortError> {
        let (device, fd) = prepare(device)?;
        let failed = |error| PortError::System {
            device: device.name.clone(),
            step: "binding an AF_PACKET socket",
            error,
        };
        bind_packet_to_send(&fd, device.index).map_err(failed)?;
        Ok(AfPacketPort::over(device, fd))
    }

    fn over(device: Device, socket: OwnedFd) -> AfPacketPort {
        AfPacketPort {
            fds: [socket.as_raw_fd()],
            socket: socket.into(),
            device,
            _tcx: None,
            steering: None,
            ring: None,
            scatter: Scatter::default(),
            warnings: Vec::new(),
            overflow: Cell::new(0),
            stats: PortStats::default(),
        }
    }

    /// What could not be set up, and what to do about it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// What the next slot of the ring led to.
enum Next {
    Frame(RxFrame),
    /// It is lost, or not ours.
    Skipped,
    /// It is empty, or the pool is, and the frame has to wait.
    None,
}

impl AfPacketPort {
    /// Takes the frame that the next slot holds or stands for.
    fn next(&mut self, pool: &Pool) -> Next {
        let arrived = self.ring.as_ref().and_then(PacketRing::peek);
        let Some(arrived) = arrived else { return Next::None };
        let steering = self.steering.as_ref();
        let wanted =
            |head: &[u8]| arrived.vlan == 0 && steering.is_none_or(|steering| steering.takes(head));
        match arrived.place {
            Place::Slot(octets) if wanted(octets) => {
                let copied = Chain::copy_from(pool, HEADROOM as u16, octets);
                let Some(octets) = copied else { return Next::None };
                self.stats.rx_frames += 1;
                self.stats.rx_octets += u64::from(octets.len());
                let (checksum, gso_size) =
                    (vnet_checksum(&arrived.vnet), vnet_gso_size(&arrived.vnet));
                Next::Frame(RxFrame { octets, checksum, gso_size })
            }
            Place::Slot(_) => Next::Skipped,
            Place::Queue => {
                if !self.scatter.refill(pool, self.device.mtu as usize + 14) {
                    return Next::None;
                }
                // An error of the device (it went down, say) is told once, in place of the frame.
                let read = (0..2).find_map(|_| {
                    self.scatter.receive_one(&self.socket, wanted, &mut self.stats).ok()
                });
                self.stats.rx_dropped += u64::from(read.is_none());
                read.flatten().map_or(Next::Skipped, Next::Frame)
            }
            Place::Lost => {
                self.stats.rx_dropped += 1;
                Next::Skipped
            }
        }
    }
}

impl Port for AfPacketPort {
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>) {
        let mut octets = 0;
        for _ in 0..BURST {
            if octets >= BURST_OCTETS {
                break;
            }
            match self.next(pool) {
                Next::Frame(frame) => {
                    octets += frame.octets.len() as usize;
                    rx.push(frame);
                }
                Next::Skipped => {}
                Next::None => break,
            }
            if let Some(ring) = &mut self.ring {
                ring.release();
            }
        }
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        let mut done = 0;
        while let Some(rest) = tx.get(done..).filter(|rest| !rest.is_empty()) {
            match write_batch(&self.socket, rest) {
                Ok(sent) => {
                    for frame in rest.iter().take(sent) {
                        self.stats.tx_frames += 1;
                        self.stats.tx_octets += frame.len() as u64;
                        self.stats.tx_uncopied += 1;
                    }
                    done += sent.max(1);
                }
                Err(e) if is_full(&e) => {
                    self.stats.tx_full += 1;
                    break;
                }
                Err(_) => {
                    self.stats.tx_dropped += 1;
                    done += 1;
                }
            }
        }
        tx.drain(..done);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: Medium::Ethernet,
            mtu: self.device.mtu,
            segmentation: true,
            checksum_offload: true,
            super_frames_in: true,
            zero_copy: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.device.mac
    }

    fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    fn stats(&self) -> PortStats {
        let none = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let read = read_option(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, none);
        let new = read.map_or(0, |stats| u64::from(stats.tp_drops));
        self.overflow.set(self.overflow.get() + new);
        PortStats { rx_dropped: self.stats.rx_dropped + self.overflow.get(), ..self.stats }
    }
}

/// Writes frames from the front of `frames`, as many as one system call takes: each gathered from its head and the rest
/// by reference. How many went.
fn write_batch(socket: &File, frames: &[TxFrame]) -> io::Result<usize> {
    let parts = |frame: &TxFrame| frame.body.octets().parts().len();
    if let Some(first) = frames.first()
        && parts(first) >= BATCH_SLICES
    {
        return write(socket, first).map(|()| 1);
    }
    let mut slices_left = BATCH_SLICES;
    let fits = |frame: &&TxFrame| {
        let fits = slices_left > parts(frame);
        slices_left = slices_left.saturating_sub(parts(frame) + 1);
        fits
    };
    let count = frames.iter().take(MAX_MESSAGES).take_while(fits).count();
    let frames = frames.get(..count).unwrap_or(frames);
    let heads: ArrayVec<Head, MAX_MESSAGES> = frames.iter().map(head).collect();
    let mut slices: SmallVec<[IoSlice<'_>; BATCH_SLICES]> = SmallVec::new();
    for (frame, head) in frames.iter().zip(&heads) {
        slices.push(IoSlice::new(head));
        slices.extend(frame.body.octets().parts().iter().map(|p| IoSlice::new(p.bytes())));
    }
    let mut rest = slices.as_slice();
    let messages: ArrayVec<&[IoSlice<'_>], MAX_MESSAGES> = frames
        .iter()
        .map(|frame| {
            let (message, others) = rest.split_at((parts(frame) + 1).min(rest.len()));
            rest = others;
            message
        })
        .collect();
    send_messages(socket, &messages)
}
