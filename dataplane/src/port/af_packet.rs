//! AF_PACKET with virtio-net headers: super-segments up to 64 KB both ways, checksums left to whoever needs them.
//!
//! A frame is read by scatter into pool frames and written by gather from headers and payloads. The kernel sees the
//! same frames: a TCX program hides from it what the steering rules take.
#![forbid(unsafe_code)]

use super::ethernet::{Offload, VNET_LEN, vnet_checksum, vnet_gso_size};
use super::sys::{
    MAX_MESSAGES, bind_packet, read_option, receive_multicast, send_messages, set_option, socket,
};
use super::{
    BURST, Capabilities, Device, Medium, Port, PortError, PortStats, Program, RxFrame, TxBody,
    TxFrame,
};
use crate::steer::{Flavour, Steering, compile};
use arrayvec::ArrayVec;
use smallvec::SmallVec;
use stack::buf::{Chain, Frame, Payload, Pool};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// In front of a received Ethernet header: with the headers behind it, enough for any headers of ours.
const HEADROOM: usize = 128;
/// Largest frame: 65,535 octets of IP packet behind an Ethernet header.
const MAX_FRAME: usize = 65_535 + 14;
/// Most pool frames that one frame is scattered over.
const MAX_PARTS: usize = 128;
/// Octets handed up by one `receive`, roughly: more would fall out of the cache before they are sent.
const BURST_OCTETS: usize = 512 << 10;
/// Socket buffers, in octets as the kernel counts them (doubled by it): tens of super-segments.
const SOCKET_BUFFER: i32 = 4 << 20;
/// Most slices that one message takes.
const MAX_SLICES: usize = 1024;
/// Slices of one batch of messages, unless one message has more: a system call is saved for frames of few slices, for
/// super-segments it is nothing beside the copy.
const BATCH_SLICES: usize = 128;

/// A device driven by an AF_PACKET socket.
#[derive(Debug)]
pub struct AfPacketPort {
    socket: File,
    fds: [RawFd; 1],
    device: Device,
    /// Hides our frames from the kernel for as long as it is open.
    _tcx: Option<OwnedFd>,
    /// Set where the socket has no filter of its own.
    steering: Option<Steering>,
    /// Taken from the pool for the next read.
    spare: Vec<Frame>,
    warnings: Vec<String>,
    /// Frames that the socket buffer had no room for, as far as the kernel was asked: it forgets what it has said.
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

impl AfPacketPort {
    /// Opens a device; only frames that `steering` takes are handed up. Where programs may not be loaded the port works
    /// without, and [`AfPacketPort::warnings`] says what that means.
    ///
    /// # Errors
    /// If there is no such device, or no CAP_NET_RAW in its namespace.
    pub fn open(device: &str, steering: &Steering) -> Result<AfPacketPort, PortError> {
        let name = device.to_owned();
        let device = Device::query(device)
            .map_err(|error| PortError::Device { device: name.clone(), error })?;
        let failed = |step| move |error| PortError::System { device: name.clone(), step, error };
        let fd = raw_socket(&device).map_err(failed.clone()("opening an AF_PACKET socket"))?;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)
            .map_err(failed.clone()("turning virtio-net headers on"))?;
        let too_long = |error| PortError::TooLong { device: device.name.clone(), error };
        let mut warnings = Vec::new();
        let filter = compile(steering, Flavour::socket()).map_err(too_long)?;
        let filtered = Program::load(Flavour::socket().kind, &filter)
            .map_err(|e| e.to_string())
            .and_then(|program| program.attach_socket(&fd).map_err(|e| e.to_string()));
        if let Err(why) = &filtered {
            warnings.push(format!("{}: frames are filtered in user space: {why}", device.name));
        }
        let program = compile(steering, Flavour::tcx()).map_err(too_long)?;
        let tcx = Program::load(Flavour::tcx().kind, &program)
            .map_err(|e| e.to_string())
            .and_then(|program| program.attach(device.index).map_err(|e| e.to_string()));
        if let Err(why) = &tcx {
            warnings.push(format!(
                "{}: the kernel goes on seeing frames that Plait takes and may answer or forward them; \
                 set net.ipv4.ip_forward=0 and keep Plait's addresses off the device ({why})",
                device.name
            ));
        }
        bind_packet(&fd, device.index).map_err(failed("binding an AF_PACKET socket"))?;
        Ok(AfPacketPort {
            fds: [fd.as_raw_fd()],
            socket: fd.into(),
            device,
            _tcx: tcx.ok(),
            steering: filtered.is_err().then(|| steering.clone()),
            spare: Vec::new(),
            warnings,
            overflow: Cell::new(0),
            stats: PortStats::default(),
        })
    }

    /// What could not be set up, and what to do about it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Takes frames for the largest frame there is. False: the pool has too few.
    fn refill(&mut self, pool: &Pool) -> bool {
        let chunk = pool.chunk_size();
        let want = (MAX_FRAME + HEADROOM).div_ceil(chunk).min(MAX_PARTS);
        while self.spare.len() < want {
            match pool.take() {
                Some(frame) => self.spare.push(frame),
                None => break,
            }
        }
        // An ordinary frame fits; a super-segment then may not, and is dropped.
        self.spare.len() * chunk >= HEADROOM + self.device.mtu as usize + 14
            || self.spare.len() == want
    }

    /// Reads one frame into the spare pool frames.
    fn read(&mut self) -> io::Result<(usize, [u8; VNET_LEN])> {
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
        let n = self.socket.read_vectored(&mut slices)?;
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

impl Port for AfPacketPort {
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>) {
        let mut octets = 0;
        for _ in 0..BURST {
            if octets >= BURST_OCTETS || !self.refill(pool) {
                return;
            }
            let room = self.spare.len() * pool.chunk_size() - HEADROOM;
            let (len, vnet) = match self.read() {
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return, // nothing more, or the link is down: it may come back
            };
            if len < 14 || len >= room {
                self.stats.rx_dropped += 1;
                continue;
            }
            if let Some(steering) = &self.steering {
                let head = self
                    .spare
                    .last()
                    .map(|f| f.bytes(HEADROOM as u16, len.min(f.capacity() - HEADROOM) as u16));
                if !head.is_some_and(|head| steering.takes(head)) {
                    continue;
                }
            }
            octets += len;
            self.stats.rx_frames += 1;
            self.stats.rx_octets += len as u64;
            rx.push(RxFrame {
                octets: self.take(len),
                checksum: vnet_checksum(&vnet),
                gso_size: vnet_gso_size(&vnet),
            });
        }
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        let mut done = 0;
        while let Some(rest) = tx.get(done..).filter(|rest| !rest.is_empty()) {
            match write(&self.socket, rest) {
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

fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Virtio-net header, link-layer header and packet header of a frame.
type Head = ArrayVec<u8, { VNET_LEN + 14 + 120 }>;

fn head(frame: &TxFrame) -> Head {
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

/// Writes frames from the front of `frames`, as many as one system call takes: each gathered from its head and the rest
/// by reference. How many went.
fn write(socket: &File, frames: &[TxFrame]) -> io::Result<usize> {
    let parts = |frame: &TxFrame| frame.body.octets().parts().len();
    let mut slices_left = BATCH_SLICES;
    let fits = |frame: &&TxFrame| {
        let fits = slices_left > parts(frame);
        slices_left = slices_left.saturating_sub(parts(frame) + 1);
        fits
    };
    let count = frames.iter().take(MAX_MESSAGES).take_while(fits).count().max(1);
    let frames = frames.get(..count).unwrap_or(frames);
    let heads: ArrayVec<Head, MAX_MESSAGES> = frames.iter().map(head).collect();
    let copied;
    let mut slices: SmallVec<[IoSlice<'_>; BATCH_SLICES]> = SmallVec::new();
    match frames {
        // The kernel takes no more slices for one message.
        [frame] if parts(frame) >= MAX_SLICES => {
            copied = frame.body.octets().to_vec();
            slices.extend(heads.iter().map(|head| IoSlice::new(head)));
            slices.push(IoSlice::new(&copied));
            return send_messages(socket, &[&slices]);
        }
        _ => {
            for (frame, head) in frames.iter().zip(&heads) {
                slices.push(IoSlice::new(head));
                slices.extend(frame.body.octets().parts().iter().map(|p| IoSlice::new(p.bytes())));
            }
        }
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
