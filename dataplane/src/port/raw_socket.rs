//! A packet socket bound to one device, with a virtio-net header in front of every frame.
//!
//! The least that the link emulator needs: open, then `read` and `write` whole frames. A frame may be a super-frame of up
//! to 64 KB whose TCP checksum is unfinished; its virtio-net header says so.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Octets of the virtio-net header in front of each frame (`struct virtio_net_hdr`, native byte order here).
pub const VNET_HEADER: usize = 10;

/// Asked for as the receive buffer: a burst of super-frames that waits while we are not running.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// A raw packet socket. Never blocks; frames that the machine itself sends through the device are not seen.
#[derive(Debug)]
pub struct RawSocket {
    file: File,
}

impl RawSocket {
    /// Opens `device` of the calling thread's network namespace; needs CAP_NET_RAW there.
    pub fn open(device: &str) -> io::Result<RawSocket> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Protocol 0: nothing is received before the socket is bound to the device.
        // SAFETY: no pointers; a non-negative result is a fresh descriptor.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by socket(2) and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = index_of(device)?;
        let one: libc::c_int = 1;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &one)?;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &one)?;
        let promiscuous = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
        if set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER).is_err() {
            set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER)?;
        }
        bind(&fd, index)?;
        Ok(RawSocket { file: File::from(fd) })
    }

    /// Takes the next frame: octets of header and frame together, or `WouldBlock`.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(into)
    }

    /// Sends one virtio-net header and frame.
    pub fn send(&self, octets: &[u8]) -> io::Result<()> {
        (&self.file).write(octets).map(drop)
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn index_of(device: &str) -> io::Result<libc::c_int> {
    let name = CString::new(device).map_err(io::Error::other)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => {
            let error = io::Error::last_os_error();
            Err(io::Error::new(error.kind(), format!("device {device}: {error}")))
        }
        index => libc::c_int::try_from(index).map_err(io::Error::other),
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a live plain C value and the length is its own size.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(fd: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a live sockaddr_ll and the length is its own size.
    let rc = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
