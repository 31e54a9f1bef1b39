//! The rival: HAProxy twice, with the kernel's TCP or its MPTCP between the two.
//!
//! HAProxy gets its listening socket from us (`bind fd@0`): so it is an MPTCP one where one is wanted, and what it accepts
//! has the congestion control of our choice. It connects by sockets of its own making, which `mptcpize` turns to MPTCP, with
//! the namespace's congestion control. With [`HaproxyCongestion::Machine`] nothing is chosen for either.
#![forbid(unsafe_code)]

use super::contender::{CONGESTION, HaproxyCongestion, PORT};
use crate::child;
use pcap_tests::netns::{Namespace, Process};
use pcap_tests::peer::{EndpointRole, add_mptcp_endpoint, set_mptcp_limits, speaks_mptcp};
use pcap_tests::topology::{Reference, SERVER, UMCP_LAN, dmcp_kernel};
use pcap_tests::traffic::{Transport, listen};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the second HAProxy listens.
const WAN_PORT: u16 = 5123;
/// As many connections as the machine may be asked to keep.
const MAX_CONNECTIONS: u32 = 6000;

/// What is spoken between the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wan {
    /// The kernel's TCP over the first link.
    Tcp,
    /// The kernel's MPTCP over all links.
    Mptcp,
    /// The same; towards client and server sockets of MPTCP too, which fall back to TCP.
    MptcpOnAllSockets,
}

/// One HAProxy; killed when dropped.
#[derive(Debug)]
pub struct Haproxy {
    process: Process,
    log: PathBuf,
    accepts_with: String,
    connects_with: String,
}

/// Starts both: the client's first, then the server's.
pub fn start(
    net: &Reference,
    wan: Wan,
    congestion: HaproxyCongestion,
    directory: &Path,
) -> io::Result<[Haproxy; 2]> {
    let (transport, outside) = match wan {
        Wan::Tcp => (Transport::Tcp, Transport::Tcp),
        Wan::Mptcp => (Transport::Mptcp, Transport::Tcp),
        Wan::MptcpOnAllSockets => (Transport::Mptcp, Transport::Mptcp),
    };
    if transport == Transport::Mptcp {
        set_up_path_manager(net)?;
    }
    let middle = SocketAddr::new(dmcp_kernel(0), WAN_PORT);
    let far = Relay {
        at: middle,
        accepts: transport,
        to: SocketAddr::new(SERVER, PORT),
        connects: outside,
        congestion,
    };
    let near = Relay {
        at: SocketAddr::new(UMCP_LAN, PORT),
        accepts: outside,
        to: middle,
        connects: transport,
        congestion,
    };
    let far = far.start(&net.dmcp, directory)?;
    Ok([near.start(&net.umcp, directory)?, far])
}

/// The dMCP's side announces its further addresses, the other one joins them.
fn set_up_path_manager(net: &Reference) -> io::Result<()> {
    if !speaks_mptcp(&net.umcp) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no MPTCP"));
    }
    let further = u32::try_from(net.links().saturating_sub(1)).unwrap_or(u32::MAX);
    set_mptcp_limits(&net.umcp, further, further)?;
    set_mptcp_limits(&net.dmcp, further, further)?;
    for link in 1..net.links() {
        add_mptcp_endpoint(&net.dmcp, dmcp_kernel(link), EndpointRole::Signal)?;
    }
    Ok(())
}

/// What one HAProxy shall do.
struct Relay {
    at: SocketAddr,
    accepts: Transport,
    to: SocketAddr,
    connects: Transport,
    congestion: HaproxyCongestion,
}

impl Relay {
    fn start(self, namespace: &Namespace, directory: &Path) -> io::Result<Haproxy> {
        let file =
            |extension: &str| directory.join(format!("haproxy-{}.{extension}", namespace.name()));
        let (path, log) = (file("cfg"), file("log"));
        fs::write(&path, self.config())?;
        let output = File::create(&log)?;
        let chosen = (self.congestion == HaproxyCongestion::Cubic).then_some(CONGESTION);
        if chosen.is_some() {
            pin_default_congestion(namespace)?;
        }
        let connects_with = namespace.sysctl(DEFAULT_CONGESTION)?;
        let listener = namespace.run(|| listen(self.at, self.accepts, chosen))?;
        let accepts_with = chosen.map_or(connects_with.clone(), str::to_owned);
        let mut command: Command = match self.connects {
            Transport::Tcp => child::command("haproxy")?,
            Transport::Mptcp => {
                let mut command = child::command("mptcpize")?;
                command.args(["run", "haproxy"]);
                command
            }
        };
        command.args(["-db", "-f"]).arg(&path);
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        command.stdout(output.try_clone()?).stderr(output);
        Ok(Haproxy { process: namespace.spawn(command)?, log, accepts_with, connects_with })
    }

    fn config(&self) -> String {
        format!(
            "global\n  nbthread 1\n  maxconn {MAX_CONNECTIONS}\n\
             defaults\n  mode tcp\n  option splice-auto\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
             listen relay\n  bind fd@0\n  server next {}\n",
            self.to
        )
    }
}

impl Haproxy {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it is and which congestion control its sockets use.
    pub fn describe(&self) -> String {
        let Haproxy { accepts_with, connects_with, .. } = self;
        format!(
            "one thread each; accepting sockets {accepts_with}, connecting ones {connects_with}"
        )
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(6)..].join("\n  ")
    }
}

/// The congestion control of sockets whose program does not ask for one.
const DEFAULT_CONGESTION: &str = "net.ipv4.tcp_congestion_control";

/// A namespace may take only what the machine allows everybody; anything is better than one that paces.
fn pin_default_congestion(namespace: &Namespace) -> io::Result<()> {
    if namespace.set_sysctl(DEFAULT_CONGESTION, CONGESTION).is_err() {
        namespace.set_sysctl(DEFAULT_CONGESTION, "reno")?;
    }
    Ok(())
}
