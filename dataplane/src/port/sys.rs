//! The system calls that `std` does not have: sockets' options, device queries, memory maps, eventfd, ppoll, TUN.

use super::{Medium, Patience};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

/// The error of the last call if it returned a negative number.
pub(crate) fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// A non-blocking socket.
pub(crate) fn socket(domain: libc::c_int, kind: libc::c_int, protocol: u16) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(domain, kind, i32::from(protocol.to_be())) })?;
    // SAFETY: fresh, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option whose value is the plain-data `value`.
pub(crate) fn set_option<T: Copy>(
    fd: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for `len` octets during the call.
    let rc =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (value as *const T).cast(), len) };
    check(rc).map(drop)
}

/// Reads an option into a plain-data value. The kernel may know a shorter version of it; the rest stays as it was.
pub(crate) fn read_option<T: Copy>(
    fd: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    mut value: T,
) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `len` octets; callers use integer structs, for which any bits are valid.
    let rc =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len) };
    check(rc).map(|_| value)
}

/// `bind(2)` with one of the C address structures.
pub(crate) fn bind<T: Copy>(fd: &OwnedFd, address: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `address` is valid for `len` octets during the call.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), (address as *const T).cast(), len) };
    check(rc).map(drop)
}

/// Binds an AF_PACKET socket to all protocols of a device.
pub(crate) fn bind_packet(fd: &OwnedFd, index: u32) -> io::Result<()> {
    bind_packet_for(fd, index, libc::ETH_P_ALL as u16)
}

/// Binds an AF_PACKET socket to a device, of which it receives nothing.
pub(crate) fn bind_packet_to_send(fd: &OwnedFd, index: u32) -> io::Result<()> {
    bind_packet_for(fd, index, 0)
}

fn bind_packet_for(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as i32;
    bind(fd, &address)
}

/// Makes an AF_PACKET socket's device receive all multicast, as neighbour solicitations are, while the socket lives.
pub(crate) fn receive_multicast(fd: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: all zeros is a valid packet_mreq.
    let mut request: libc::packet_mreq = unsafe { zeroed() };
    request.mr_ifindex = index as i32;
    request.mr_type = libc::PACKET_MR_ALLMULTI as u16;
    set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Most messages that [`send_messages`] takes at a time.
pub(crate) const MAX_MESSAGES: usize = 32;

/// Sends messages, each gathered from its slices, with one system call. How many the kernel took: at least one, or the
/// first one's error.
pub(crate) fn send_messages(fd: &impl AsRawFd, messages: &[&[IoSlice<'_>]]) -> io::Result<usize> {
    let mut headers: arrayvec::ArrayVec<libc::mmsghdr, MAX_MESSAGES> = messages
        .iter()
        .take(MAX_MESSAGES)
        .map(|slices| {
            // SAFETY: all zeros is a valid mmsghdr: no address, no slices.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            // `IoSlice` has the layout of `iovec`; the kernel only reads what it points to.
            header.msg_hdr.msg_iov = slices.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_iovlen = slices.len() as _;
            header
        })
        .collect();
    let (first, count) = (headers.as_mut_ptr(), headers.len() as libc::c_uint);
    // SAFETY: `count` headers, whose slices are borrowed during the call.
    let rc = unsafe { libc::sendmmsg(fd.as_raw_fd(), first, count, libc::MSG_DONTWAIT) };
    check(rc).map(|sent| sent as usize)
}

/// Starts transmission on an AF_XDP socket (`sendto` without data).
pub(crate) fn kick_tx(fd: &OwnedFd) -> io::Result<()> {
    let (null, none) = (std::ptr::null(), std::ptr::null());
    // SAFETY: a length of zero; nothing is dereferenced.
    let rc = unsafe { libc::sendto(fd.as_raw_fd(), null, 0, libc::MSG_DONTWAIT, none, 0) };
    check(rc as libc::c_int).map(drop)
}

/// Wakes the driver of an AF_XDP socket to look at the fill ring (`recvfrom` without room).
pub(crate) fn kick_rx(fd: &OwnedFd) {
    let null = std::ptr::null_mut();
    // SAFETY: a length of zero; nothing is dereferenced.
    unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            null,
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// What the kernel says about a network device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its MTU in octets.
    pub mtu: u32,
    /// Its driver ("veth", "ixgbe", ...), empty if unknown.
    pub driver: String,
    /// Receive queues, at least 1.
    pub queues: u32,
}

impl Device {
    /// Looks the device up in the current network namespace.
    ///
    /// # Errors
    /// If there is no such device, or it cannot be queried.
    pub fn query(name: &str) -> io::Result<Device> {
        let probe = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mut request = named_request(name)?;
        ifreq_ioctl(&probe, libc::SIOCGIFINDEX as _, &mut request)?;
        // SAFETY: SIOCGIFINDEX filled this member.
        let index = unsafe { request.ifr_ifru.ifru_ifindex } as u32;
        ifreq_ioctl(&probe, libc::SIOCGIFMTU as _, &mut request)?;
        // SAFETY: SIOCGIFMTU filled this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu } as u32;
        ifreq_ioctl(&probe, libc::SIOCGIFHWADDR as _, &mut request)?;
        // SAFETY: SIOCGIFHWADDR filled this member.
        let hw = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        let mac = std::array::from_fn(|i| hw[i] as u8);
        let driver = ethtool_driver(&probe, name).unwrap_or_default();
        let queues = ethtool_rx_queues(&probe, name).unwrap_or(1).max(1);
        Ok(Device { name: name.to_owned(), index, mac, mtu, driver, queues })
    }

    /// Whether frames come from software on the same machine, so that checksums may be unfinished.
    pub fn is_virtual(&self) -> bool {
        matches!(self.driver.as_str(), "veth" | "tun" | "bridge" | "dummy")
    }
}

fn named_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() || name.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device name"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ifreq_ioctl(fd: &OwnedFd, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every call used here takes an ifreq that is valid for reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), call, std::ptr::from_mut(request)) }).map(drop)
}

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Runs an ethtool query whose structure is `words`, command first.
fn ethtool(fd: &OwnedFd, name: &str, words: &mut [u32]) -> io::Result<()> {
    let mut request = named_request(name)?;
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    ifreq_ioctl(fd, SIOCETHTOOL, &mut request)
}

fn ethtool_driver(fd: &OwnedFd, name: &str) -> io::Result<String> {
    let mut words = [0u32; 49]; // struct ethtool_drvinfo: 196 octets, the driver's name at 4..36
    words[0] = ETHTOOL_GDRVINFO;
    ethtool(fd, name, &mut words)?;
    let name: Vec<u8> = words[1..9].iter().flat_map(|w| w.to_ne_bytes()).collect();
    Ok(CStr::from_bytes_until_nul(&name).map(|s| s.to_string_lossy().into()).unwrap_or_default())
}

fn ethtool_rx_queues(fd: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut words = [0u32; 9]; // cmd, max rx tx other combined, rx tx other combined
    words[0] = ETHTOOL_GCHANNELS;
    ethtool(fd, name, &mut words)?;
    Ok(words[5] + words[8])
}

/// The kernel's own addresses: device, address, length of the network's prefix.
///
/// # Errors
/// If the list cannot be read.
pub fn kernel_addresses() -> io::Result<Vec<(String, IpAddr, u8)>> {
    let mut head = std::ptr::null_mut();
    // SAFETY: `head` receives a list that is freed below.
    check(unsafe { libc::getifaddrs(&mut head) })?;
    let mut out = Vec::new();
    let mut at = head;
    while let Some(entry) = NonNull::new(at) {
        // SAFETY: an element of the list, alive until freeifaddrs.
        let entry = unsafe { entry.as_ref() };
        // SAFETY: name is a C string; addresses are null or valid for their family.
        let found = unsafe { (socket_addr(entry.ifa_addr), socket_addr(entry.ifa_netmask)) };
        if let (Some(addr), Some(mask)) = found {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
            let ones = match mask {
                IpAddr::V4(m) => m.to_bits().count_ones(),
                IpAddr::V6(m) => m.to_bits().count_ones(),
            };
            out.push((name, addr, ones as u8));
        }
        at = entry.ifa_next;
    }
    // SAFETY: came from getifaddrs, freed once.
    unsafe { libc::freeifaddrs(head) };
    Ok(out)
}

/// # Safety
/// `addr` must be null or point to a socket address that is as long as its family says.
unsafe fn socket_addr(addr: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by this function's contract.
    match i32::from(unsafe { addr.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is this type.
            let v4 = unsafe { &*addr.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is this type.
            let v6 = unsafe { &*addr.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// A shared mapping of (part of) a descriptor.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` octets at `offset` of `fd`, readable and writable.
    pub(crate) fn new(fd: &OwnedFd, len: usize, offset: u64) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping of the kernel's choice of address.
        let base = unsafe {
            libc::mmap(null, len, protection, flags, fd.as_raw_fd(), offset as libc::off_t)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }

    /// The octet at `offset`.
    ///
    /// # Panics
    /// If that is outside.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "outside of the mapping");
        // SAFETY: inside the mapping.
        unsafe { self.base.add(offset) }
    }

    /// Octets mapped.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; whoever holds pointers into it holds the mapping.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Wakes a thread that sleeps in [`wait`].
#[derive(Debug)]
pub struct Waker(File);

impl Waker {
    /// A fresh one.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<Waker> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: fresh, and owned by nobody else.
        Ok(Waker(unsafe { File::from_raw_fd(fd) }))
    }

    /// Wakes. Never blocks; many wakes before the sleeper looks are one.
    pub fn wake(&self) {
        let _ = io::Write::write(&mut &self.0, &1u64.to_ne_bytes());
    }

    /// Forgets wakes so far.
    pub fn clear(&self) {
        let _ = io::Read::read(&mut &self.0, &mut [0; 8]);
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Tells when a network device of this namespace appears, goes, or changes.
#[derive(Debug)]
pub struct LinkMonitor(File);

impl LinkMonitor {
    /// From now on.
    ///
    /// # Errors
    /// If the kernel has no rtnetlink.
    pub fn new() -> io::Result<LinkMonitor> {
        let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE as u16)?;
        // SAFETY: all zeros is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        bind(&fd, &address)?;
        Ok(LinkMonitor(fd.into()))
    }

    /// Whether something has changed since this was asked last.
    pub fn changed(&self) -> bool {
        let (mut any, mut message) = (false, [0; 8192]);
        loop {
            match io::Read::read(&mut &self.0, &mut message) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return any,
                // ENOBUFS: more than was kept for us.
                _ => any = true,
            }
        }
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Something to read.
    Readable,
    /// Something to read, or room to write.
    ReadableOrWritable,
}

/// Which of the descriptors given to [`wait`] are ready, or have an error to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready(u128);

impl Ready {
    /// Whether the one at this place of the list is.
    pub fn has(self, place: usize) -> bool {
        place < 128 && self.0 >> place & 1 == 1
    }
}

/// Sleeps until one of the descriptors is ready or `timeout` (`None`: for ever) has passed. The error that a socket has to
/// tell (its device went down, say) is taken from it, so that it ends one wait and not all that follow.
pub fn wait(fds: impl IntoIterator<Item = (RawFd, Interest)>, timeout: Option<Duration>) -> Ready {
    let mut polled: arrayvec::ArrayVec<libc::pollfd, 128> = fds
        .into_iter()
        .take(128)
        .map(|(fd, interest)| libc::pollfd {
            fd,
            events: match interest {
                Interest::Readable => libc::POLLIN,
                Interest::ReadableOrWritable => libc::POLLIN | libc::POLLOUT,
            },
            revents: 0,
        })
        .collect();
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let limit = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the timeout live during the call.
    unsafe {
        libc::ppoll(polled.as_mut_ptr(), polled.len() as _, limit, std::ptr::null());
    }
    for polled in polled.iter().filter(|polled| polled.revents & libc::POLLERR != 0) {
        let _ = read_option(&polled.fd, libc::SOL_SOCKET, libc::SO_ERROR, 0i32);
    }
    let ready = polled.iter().enumerate().filter(|(_, polled)| polled.revents != 0);
    Ready(ready.fold(0, |mask, (place, _)| mask | 1 << place))
}

/// How many files a TAP or TUN device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Queues {
    /// One.
    One,
    /// One for each worker. Of a device that exists all or none are of this kind.
    Many,
}

/// Creates a TAP (Ethernet) or TUN (IP) device with virtio-net headers or attaches to one that exists, lets the kernel
/// send super-segments and unfinished checksums to it, and brings it up. One made here vanishes when the file (the last of
/// [`Queues::Many`]) closes.
pub(crate) fn open_tun(
    name: &str,
    medium: Medium,
    queues: Queues,
    patience: Patience,
) -> io::Result<File> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(tun.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    let tun = OwnedFd::from(tun);
    let kind = match medium {
        Medium::Ethernet => libc::IFF_TAP,
        Medium::Ip => libc::IFF_TUN,
    };
    let multi = if queues == Queues::Many { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = named_request(name)?;
    request.ifr_ifru.ifru_flags = (kind | multi | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // That of a process that has just ended may be on its way out.
    while_busy(patience, || ifreq_ioctl(&tun, libc::TUNSETIFF as _, &mut request))?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: the argument is a number.
    check(unsafe {
        libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads as libc::c_ulong)
    })?;
    let probe = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = named_request(name)?;
    ifreq_ioctl(&probe, libc::SIOCGIFFLAGS as _, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    ifreq_ioctl(&probe, libc::SIOCSIFFLAGS as _, &mut request)?;
    Ok(tun.into())
}

/// Tries again what fails with EBUSY: the kernel lets go of what a descriptor held some time after it was closed.
pub(crate) fn while_busy<T>(
    patience: Patience,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    for _ in 0..patience.retries() {
        match attempt() {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_can_be_queried() {
        let lo = Device::query("lo").unwrap();
        assert_eq!(lo.mac, [0; 6]);
        assert!(lo.mtu >= 1280 && lo.index > 0 && lo.queues >= 1);
        assert!(Device::query("no-such-device").is_err());
    }

    #[test]
    fn a_waker_ends_a_wait_that_would_last_for_ever() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        assert!(wait([(waker.fd(), Interest::Readable)], None).has(0));
        waker.clear();
        let ready = wait([(waker.fd(), Interest::Readable)], Some(Duration::from_millis(1)));
        assert!(!ready.has(0) && !ready.has(128));
    }
}
