//! Which kind of port drives a device, and why.
#![forbid(unsafe_code)]

use super::{Io, PortConfig, SetupError, WorkerConfig};
use crate::port::{
    AfPacketPort, AfXdpPort, Attach, Device, Medium, Patience, PnetPort, Port, PortError, Share,
    TapPort, Umem, XdpMode,
};
use crate::steer::Steering;
use stack::buf::Pool;
use std::rc::Rc;

/// A port that was opened.
pub(super) struct Opened {
    pub port: Box<dyn Port>,
    /// What it is.
    pub io: Io,
    /// Why this.
    pub why: String,
    /// What could not be set up, and what to do about it.
    pub warnings: Vec<String>,
}

/// The pool as a UMEM, where a port may need one and its frames suit.
pub(super) fn umem(config: &WorkerConfig, pool: &Pool) -> Option<Rc<Umem>> {
    let may_be_xdp = config.ports.iter().any(|port| matches!(port.io, None | Some(Io::AfXdp)));
    if may_be_xdp { Umem::new(pool.clone()).ok() } else { None }
}

/// Opens a port as configured, as another worker chose for its device, or as suits that best.
pub(super) fn choose(
    config: &PortConfig,
    steering: &Steering,
    shared: (Option<&Rc<Umem>>, &Share),
    patience: Patience,
) -> Result<Opened, SetupError> {
    let Some(io) = config.io.or(shared.1.io()) else {
        let opened = best(config, steering, shared, patience)?;
        shared.1.set_io(opened.io);
        return Ok(opened);
    };
    open(config, io, Attach::Any, steering, shared, patience).map_err(|error| match error {
        error @ PortError::Device { .. } => error.into(),
        error => {
            let help = help(io, &error);
            SetupError::Refused { port: config.name.clone(), io, error, help }
        }
    })
}

/// A virtual device carries super-segments, which AF_XDP would cut into MTU-sized frames; a NIC whose driver runs XDP
/// itself saves the kernel's whole way; any other NIC is better off with GRO and TSO than with XDP behind the driver.
fn best(
    config: &PortConfig,
    steering: &Steering,
    shared: (Option<&Rc<Umem>>, &Share),
    patience: Patience,
) -> Result<Opened, SetupError> {
    let device = Device::query(&config.device)
        .map_err(|error| PortError::Device { device: config.device.clone(), error })?;
    let (why, warning) = if device.is_virtual() {
        (format!("{} is a virtual device: super-segments of 64 KB cross it", device.driver), None)
    } else if shared.0.is_none() {
        ("limits.frame-size does not suit AF_XDP, which needs 2048 or 4096".to_owned(), None)
    } else {
        match open(config, Io::AfXdp, Attach::NativeOnly, steering, shared, patience) {
            Ok(opened) => return Ok(opened),
            Err(PortError::NoNativeXdp { .. }) => {
                (format!("the driver {} has no XDP of its own", device.driver), None)
            }
            Err(error) => {
                let help = help(Io::AfXdp, &error);
                let warning = format!(
                    "port {}: driven by af-packet, as af-xdp cannot be had: {error}; {help}, or write \
                     io = \"af-packet\" if this is meant",
                    config.name
                );
                (format!("af-xdp cannot be had: {error}"), Some(warning))
            }
        }
    };
    let mut opened = open(config, Io::AfPacket, Attach::Any, steering, shared, patience)?;
    opened.why = why;
    opened.warnings.extend(warning);
    if !config.queues.is_empty() {
        opened.warnings.push(format!("port {}: `queues` are for af-xdp only", config.name));
    }
    Ok(opened)
}

fn open(
    config: &PortConfig,
    io: Io,
    attach: Attach,
    steering: &Steering,
    (umem, share): (Option<&Rc<Umem>>, &Share),
    patience: Patience,
) -> Result<Opened, PortError> {
    let device = config.device.as_str();
    let (port, why, warnings): (Box<dyn Port>, String, Vec<String>) = match io {
        Io::AfXdp => {
            let umem = umem.ok_or_else(|| PortError::Pool {
                device: device.to_owned(),
                why: "frames must be 2048 or 4096 octets".to_owned(),
            })?;
            match AfXdpPort::open(device, steering, &config.queues, attach, (umem, share))? {
                Some(port) => {
                    let (why, warnings) = xdp_words(config, attach, &port);
                    (Box::new(port), why, warnings)
                }
                // What comes in is the other workers' to read, and to send here.
                None => {
                    let port = AfPacketPort::open_to_send(device)?;
                    (Box::new(port), "fewer queues than workers".to_owned(), Vec::new())
                }
            }
        }
        Io::AfPacket => {
            let port = AfPacketPort::open(device, steering, share)?;
            let warnings = port.warnings().to_vec();
            (Box::new(port), "as configured".to_owned(), warnings)
        }
        Io::Tap | Io::Tun => {
            let medium = if io == Io::Tap { Medium::Ethernet } else { Medium::Ip };
            let port = TapPort::open(device, medium, steering, share, patience)?;
            (Box::new(port), "as configured".to_owned(), Vec::new())
        }
        Io::Pnet => {
            let warning = format!(
                "{device}: pnet does not hide frames from the kernel; set net.ipv4.ip_forward=0"
            );
            let port = PnetPort::open(device, steering.clone(), share)?;
            (Box::new(port), "as configured".to_owned(), vec![warning])
        }
    };
    Ok(Opened { port, io, why, warnings })
}

fn xdp_words(config: &PortConfig, attach: Attach, port: &AfXdpPort) -> (String, Vec<String>) {
    let copy = if port.capabilities().zero_copy { "zero copy" } else { "the kernel copies" };
    let mode = match port.mode() {
        XdpMode::Native => "XDP in the driver",
        XdpMode::Generic => "XDP behind the driver",
    };
    let reason = if attach == Attach::Any { "as configured: " } else { "" };
    let warning = (port.mode() == XdpMode::Generic).then(|| {
        format!(
            "port {}: the driver of {} has no XDP of its own, so that every frame takes the kernel's way first; \
             io = \"af-packet\" is faster here",
            config.name, config.device
        )
    });
    (format!("{reason}{mode}, {copy}"), warning.into_iter().collect())
}

fn errno(error: &PortError) -> Option<i32> {
    match error {
        PortError::Device { error, .. }
        | PortError::System { error, .. }
        | PortError::NoNativeXdp { error, .. } => error.raw_os_error(),
        PortError::Program { error, .. } => error.error.raw_os_error(),
        PortError::TooLong { .. } | PortError::Pool { .. } => None,
    }
}

/// What an operator can do about it.
fn help(io: Io, error: &PortError) -> &'static str {
    match (io, errno(error)) {
        (Io::AfXdp, Some(libc::EPERM | libc::EACCES)) => {
            "give the program CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
        }
        (Io::Tap | Io::Tun, Some(libc::EBUSY | libc::EINVAL)) => {
            "name another device: this one is in use, or of another kind (with several workers it needs `multi_queue`)"
        }
        (Io::Tap | Io::Tun, Some(libc::ENOENT)) => "load the kernel's module tun (/dev/net/tun)",
        (_, Some(libc::EPERM | libc::EACCES)) => {
            "give the program CAP_NET_ADMIN and CAP_NET_RAW (docs/OPERATIONS.md)"
        }
        (Io::AfXdp, Some(libc::EBUSY | libc::EEXIST)) => {
            "stop the other program on this device or queue (`ip link`, `bpftool net` show it), or name \
             other `queues`"
        }
        (Io::AfXdp, Some(libc::ENOBUFS | libc::ENOMEM)) => {
            "raise the limit of locked memory (LimitMEMLOCK, ulimit -l), or lower limits.pool"
        }
        (Io::AfXdp, _) => "use a kernel and a driver that have AF_XDP, or write io = \"auto\"",
        _ => "write io = \"auto\" to let Plait choose",
    }
}
