//! Loading and attaching programs with `bpf(2)`. Everything is held by descriptors: it vanishes with the process.

use super::sys::check;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgramKind {
    /// On a socket, deciding which frames it receives.
    SocketFilter,
    /// In the driver or right behind it (XDP).
    Xdp,
    /// In the ingress path of the kernel's stack (TCX).
    TcxIngress,
}

impl ProgramKind {
    /// `(prog_type, attach_type)` of `linux/bpf.h`.
    fn numbers(self) -> (u32, u32) {
        match self {
            ProgramKind::SocketFilter => (1, 0),
            ProgramKind::Xdp => (6, 37),
            ProgramKind::TcxIngress => (3, 46),
        }
    }
}

/// Which of the two places an XDP program may run in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attach {
    /// In the driver, or behind it where the driver cannot.
    Any,
    /// In the driver.
    NativeOnly,
    /// Behind the driver.
    GenericOnly,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver, before the kernel makes a packet of the frame.
    Native,
    /// Behind the driver, on the kernel's packets.
    Generic,
}

/// Whether somebody else has an XDP program there.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// Why the kernel did not take a program.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused the program: {error}{}{log}", if log.is_empty() { "" } else { "\nverifier log:\n" })]
pub struct LoadError {
    /// The error of `bpf(2)`.
    #[source]
    pub error: io::Error,
    /// What the verifier said, if it came to that.
    pub log: String,
}

/// Calls `bpf(2)`.
///
/// # Safety
/// `attr` must be the attribute structure of `command`, with every pointer in it valid as the command needs it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: by this function's contract.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    check(rc as libc::c_int)
}

/// Calls `bpf(2)` for a command that makes a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: by this function's contract; the descriptor is fresh.
    Ok(unsafe { OwnedFd::from_raw_fd(bpf(command, attr)?) })
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// An XSKMAP: queue number to AF_XDP socket.
#[derive(Debug)]
pub struct XskMap(OwnedFd);

impl XskMap {
    /// With room for queues `0..queues`.
    ///
    /// # Errors
    /// Those of `bpf(2)`; EPERM without CAP_BPF.
    pub fn new(queues: u32) -> io::Result<XskMap> {
        let mut attr = MapCreate {
            map_type: BPF_MAP_TYPE_XSKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: queues,
            map_flags: 0,
        };
        // SAFETY: the attributes of this command; no pointers.
        unsafe { bpf_fd(BPF_MAP_CREATE, &mut attr) }.map(XskMap)
    }

    /// Sends frames of `queue` that the program redirects to `socket`. The entry goes when the socket closes.
    ///
    /// # Errors
    /// Those of `bpf(2)`.
    pub fn insert(&self, queue: u32, socket: &OwnedFd) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let mut attr = MapUpdate {
            map_fd: self.0.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const queue) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        // SAFETY: key and value are 4 octets each and live during the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// The descriptor, for the program's instructions.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    kind: ProgramKind,
}

impl Program {
    /// Loads encoded instructions.
    ///
    /// # Errors
    /// [`LoadError`] with the verifier's log.
    pub fn load(kind: ProgramKind, insns: &[u64]) -> Result<Program, LoadError> {
        let quiet = Program::try_load(kind, insns, &mut []);
        let Err(error) = quiet else {
            return quiet.map_err(|error| LoadError { error, log: String::new() });
        };
        if error.raw_os_error() == Some(libc::EPERM) {
            return Err(LoadError { error, log: String::new() });
        }
        let mut log = vec![0u8; 256 << 10];
        Program::try_load(kind, insns, &mut log).map_err(|error| {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            LoadError { error, log: String::from_utf8_lossy(&log[..end]).into_owned() }
        })
    }

    fn try_load(kind: ProgramKind, insns: &[u64], log: &mut [u8]) -> io::Result<Program> {
        let (prog_type, expected_attach_type) = kind.numbers();
        let mut attr = ProgLoad {
            prog_type,
            insn_cnt: insns.len() as u32,
            insns: insns.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kern_version: 0,
            // Without it no program can be attached where the peer's MTU exceeds a page.
            prog_flags: if kind == ProgramKind::Xdp { BPF_F_XDP_HAS_FRAGS } else { 0 },
            prog_name: *b"plait_steer\0\0\0\0\0",
            prog_ifindex: 0,
            expected_attach_type,
        };
        // SAFETY: all pointers are to slices that live during the call, with their lengths beside them.
        let fd = unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) }?;
        Ok(Program { fd, kind })
    }

    /// Attaches to a device until the returned descriptor closes.
    ///
    /// # Errors
    /// Those of `bpf(2)`; EINVAL on kernels without TCX (before 6.6).
    pub fn attach(&self, index: u32) -> io::Result<OwnedFd> {
        self.try_attach(index, 0)
    }

    /// Attaches an XDP program to a device until the returned descriptor closes.
    ///
    /// # Errors
    /// Those of `bpf(2)` in the driver's own mode; EBUSY where another XDP program is attached.
    pub fn attach_xdp(&self, index: u32, attach: Attach) -> io::Result<(OwnedFd, XdpMode)> {
        let generic = || Ok((self.try_attach(index, XDP_FLAGS_SKB_MODE)?, XdpMode::Generic));
        if attach == Attach::GenericOnly {
            return generic();
        }
        match self.try_attach(index, XDP_FLAGS_DRV_MODE) {
            Ok(link) => Ok((link, XdpMode::Native)),
            Err(e) if attach == Attach::NativeOnly || is_taken(&e) => Err(e),
            Err(e) => generic().map_err(|_: io::Error| e),
        }
    }

    fn try_attach(&self, index: u32, flags: u32) -> io::Result<OwnedFd> {
        let mut attr = LinkCreate {
            prog_fd: self.fd.as_raw_fd() as u32,
            target_ifindex: index,
            attach_type: self.kind.numbers().1,
            flags,
            relative_fd: 0,
            pad: 0,
            expected_revision: 0,
        };
        // SAFETY: the attributes of this command; no pointers.
        unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
    }

    /// Runs the program on one frame without any device and returns its verdict.
    ///
    /// # Errors
    /// Those of `bpf(2)`; EINVAL for frames shorter than an Ethernet header.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<u32> {
        // SAFETY: all zeros is a valid value of this integer struct.
        let mut attr: TestRun = unsafe { zeroed() };
        attr.prog_fd = self.fd.as_raw_fd() as u32;
        attr.data_in = frame.as_ptr() as u64;
        attr.data_size_in = frame.len() as u32;
        attr.repeat = 1;
        // SAFETY: `data_in` points to `data_size_in` octets that live during the call; no output is asked for.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
        Ok(attr.retval)
    }

    /// Attaches to a socket as its filter; the socket keeps the program.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn attach_socket(&self, socket: &OwnedFd) -> io::Result<()> {
        super::sys::set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &self.fd.as_raw_fd())
    }
}
