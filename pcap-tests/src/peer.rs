//! The kernel as a peer and as a witness: its Multipath TCP, its counters, and captures by tcpdump.
#![forbid(unsafe_code)]

use crate::netns::{Namespace, Process};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Every counter of a namespace that `nstat` would print, zeros included, by its name there (`MPTcpExtMPJoinSynRx`).
pub fn counters(namespace: &Namespace) -> io::Result<BTreeMap<String, u64>> {
    namespace.run(|| {
        let mut all = BTreeMap::new();
        // /proc/net is the main thread's; this thread is elsewhere.
        for file in ["/proc/thread-self/net/netstat", "/proc/thread-self/net/snmp"] {
            parse_counters(&fs::read_to_string(file)?, &mut all);
        }
        Ok(all)
    })
}

/// Pairs of lines: `Group: name name ...`, `Group: value value ...`.
fn parse_counters(text: &str, into: &mut BTreeMap<String, u64>) {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (Some((group, names)), Some((_, values))) =
            (names.split_once(':'), values.split_once(':'))
        else {
            continue;
        };
        let values = values.split_whitespace().map(|value| value.parse().unwrap_or(0));
        for (name, value) in names.split_whitespace().zip(values) {
            into.insert(format!("{group}{name}"), value);
        }
    }
}

/// Whether this kernel speaks Multipath TCP.
pub fn speaks_mptcp(namespace: &Namespace) -> bool {
    namespace.sysctl("net.mptcp.enabled").is_ok_and(|value| value == "1")
}

/// What the kernel's path manager does with an address (`ip mptcp endpoint add ... signal subflow backup`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndpointRole {
    /// Announced to the peer.
    Signal,
    /// New subflows start from it.
    Subflow,
    /// As `Subflow`, used only when others fail.
    SubflowBackup,
}

/// Gives the kernel's path manager an address.
pub fn add_mptcp_endpoint(
    namespace: &Namespace,
    address: IpAddr,
    role: EndpointRole,
) -> io::Result<()> {
    const ADD_ADDR: u8 = 1;
    let flags: u32 = match role {
        EndpointRole::Signal => 1,
        EndpointRole::Subflow => 2,
        EndpointRole::SubflowBackup => 2 | 4,
    };
    path_manager(namespace, ADD_ADDR, &endpoint(address, &[(ADDR_FLAGS, &flags.to_ne_bytes())]))
}

/// Takes an address from the kernel's path manager, which withdraws it from every peer and ends its subflows
/// (`ip mptcp endpoint delete id ID`). The kernel gives the lowest free
/// number from 1; 0 is the address of a connection's first subflow.
pub fn remove_mptcp_endpoint(namespace: &Namespace, address: IpAddr, id: u8) -> io::Result<()> {
    const DEL_ADDR: u8 = 2;
    path_manager(namespace, DEL_ADDR, &endpoint(address, &[(ADDR_ID, &[id])]))
}

/// Makes the subflows from an address backup ones or no longer so (`ip mptcp endpoint change ADDRESS backup`).
pub fn set_mptcp_backup(namespace: &Namespace, address: IpAddr, backup: bool) -> io::Result<()> {
    const SET_FLAGS: u8 = 7;
    let flags: u32 = if backup { 4 } else { 0 };
    path_manager(namespace, SET_FLAGS, &endpoint(address, &[(ADDR_FLAGS, &flags.to_ne_bytes())]))
}

const ADDR_ID: u16 = 2;
const ADDR_FLAGS: u16 = 6;

/// The attribute that names an endpoint, with `more` about it.
fn endpoint(address: IpAddr, more: &[(u16, &[u8])]) -> Vec<u8> {
    const ATTR_ADDR: u16 = 1;
    const ADDR_FAMILY: u16 = 1;
    const ADDR_V4: u16 = 3;
    const ADDR_V6: u16 = 4;
    let (family, octets) = match address {
        IpAddr::V4(v4) => (2u16, attribute(ADDR_V4, &v4.octets())),
        IpAddr::V6(v6) => (10u16, attribute(ADDR_V6, &v6.octets())),
    };
    let mut nested = attribute(ADDR_FAMILY, &family.to_ne_bytes());
    nested.extend(octets);
    for (kind, value) in more {
        nested.extend(attribute(*kind, value));
    }
    attribute(ATTR_ADDR | NESTED, &nested)
}

/// How many further subflows, and how many addresses announced by the peer, the kernel's path manager accepts.
pub fn set_mptcp_limits(namespace: &Namespace, subflows: u32, addresses: u32) -> io::Result<()> {
    const SET_LIMITS: u8 = 5;
    const ATTR_RCV_ADD_ADDRS: u16 = 2;
    const ATTR_SUBFLOWS: u16 = 3;
    let mut limits = attribute(ATTR_RCV_ADD_ADDRS, &addresses.to_ne_bytes());
    limits.extend(attribute(ATTR_SUBFLOWS, &subflows.to_ne_bytes()));
    path_manager(namespace, SET_LIMITS, &limits)
}

fn path_manager(namespace: &Namespace, command: u8, attributes: &[u8]) -> io::Result<()> {
    namespace.run(|| generic_request(mptcp_family()?, command, attributes).map(drop))
}

const NESTED: u16 = 0x8000;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + value.len());
    out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The number under which generic netlink knows the MPTCP path manager.
fn mptcp_family() -> io::Result<u16> {
    const CONTROLLER: u16 = 16;
    const GET_FAMILY: u8 = 3;
    const ATTR_FAMILY_ID: u16 = 1;
    const ATTR_FAMILY_NAME: u16 = 2;
    let reply =
        generic_request(CONTROLLER, GET_FAMILY, &attribute(ATTR_FAMILY_NAME, b"mptcp_pm\0"))?;
    let mut rest = reply.get(20..).unwrap_or_default();
    while let &[l0, l1, k0, k1, v0, v1, ..] = rest {
        if u16::from_ne_bytes([k0, k1]) == ATTR_FAMILY_ID {
            return Ok(u16::from_ne_bytes([v0, v1]));
        }
        let len = usize::from(u16::from_ne_bytes([l0, l1])).next_multiple_of(4).max(4);
        rest = rest.get(len..).unwrap_or_default();
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no MPTCP path manager"))
}

/// One generic netlink request; the first reply whole.
fn generic_request(family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const ERROR: u16 = 2;
    let mut message = Vec::new();
    message.extend_from_slice(&(20 + attributes.len() as u32).to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(attributes);
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message, 0)?;
    let mut reply = Vec::with_capacity(8192);
    socket.recv(&mut reply, 0)?;
    let short = || io::Error::new(io::ErrorKind::InvalidData, "short netlink reply");
    let head = reply.get(..20).ok_or_else(short)?;
    if u16::from_ne_bytes([head[4], head[5]]) == ERROR {
        let code = i32::from_ne_bytes([head[16], head[17], head[18], head[19]]);
        if code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
    }
    Ok(reply)
}

/// A capture by tcpdump; ends when dropped.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Captures what passes `device` (`any`: all of them) of a namespace into `file`, whole packets of up to 256 octets.
    /// `None` if there is no tcpdump here, or if it cannot run (it wants
    /// to change its groups, which a user namespace forbids).
    pub fn start(namespace: &Namespace, device: &str, file: &Path) -> io::Result<Option<Capture>> {
        let mut command = Command::new("tcpdump");
        command
            .args([
                "-i",
                device,
                "-s",
                "256",
                "-U",
                "-Z",
                "root",
                "-B",
                "16384",
                "--immediate-mode",
                "-w",
            ])
            .arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = match namespace.spawn(command) {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // It says "listening on" once the socket is open.
        let stderr = process.child().stderr.take();
        let mut lines = stderr.map(BufReader::new).into_iter().flat_map(BufRead::lines);
        let listening = lines.find_map(|line| line.ok().filter(|l| l.contains("listening on")));
        if listening.is_none() {
            return Ok(None);
        }
        Ok(Some(Capture { process, file: file.into() }))
    }

    /// Ends it and gives the file.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        std::thread::sleep(Duration::from_millis(100)); // what is in its ring would be lost
        self.process.terminate(Duration::from_secs(3))?;
        Ok(std::mem::take(&mut self.file))
    }
}

/// The lines that `tshark -r FILE -Y FILTER` prints, with MPTCP checksums verified. `None` if there is no tshark here.
pub fn tshark(file: &Path, filter: &str) -> io::Result<Option<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-Y", filter, "-o", "mptcp.analyze_mappings:TRUE"]);
    // Random payload must not be taken for some protocol by its port or its looks.
    command.args(["-d", "tcp.port==1-65535,data"]);
    match command.stderr(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(Some(text.lines().map(str::to_owned).collect()))
        }
        Ok(output) => Err(io::Error::other(format!("tshark: {}", output.status))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_as_nstat_does() {
        let mut all = BTreeMap::new();
        let text =
            "TcpExt: SyncookiesSent TW\nTcpExt: 0 12\nMPTcpExt: MPCapableSYNRX\nMPTcpExt: 3\n";
        parse_counters(text, &mut all);
        assert_eq!(all.get("TcpExtTW"), Some(&12));
        assert_eq!(all.get("MPTcpExtMPCapableSYNRX"), Some(&3));
    }
}
