//! Appliances in the namespaces of the reference topology: their configuration, their processes. A uMCP and a dMCP, or one
//! that relays.
#![forbid(unsafe_code)]

use crate::child;
use dataplane::control::{self, Request, Show};
use pcap_tests::netns::{Namespace, Process};
use pcap_tests::topology::{DMCP_SRV, Reference, dmcp_plait, umcp_plait, wan_device};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// An appliance that is not up after so long will not be.
const START: Duration = Duration::from_secs(10);
/// The dMCP's address on the server's network, from which it connects to servers.
const DMCP_SOURCE: &str = "192.168.9.3";
const SERVICE_PORT: u16 = 5123;

/// `plait run` in a namespace; killed when dropped.
#[derive(Debug)]
pub struct Appliance {
    process: Process,
    log: PathBuf,
    /// Its control socket: there once it is up.
    control: PathBuf,
}

/// How the appliances are to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// What kind their ports are (`port.io`).
    pub io: &'a str,
    /// How long they look at their ports before they sleep (`node.spin`); `None`: the default.
    pub spin: Option<&'a str>,
    /// Where their files go.
    pub directory: &'a Path,
}

/// Both appliances.
#[derive(Debug)]
pub struct Pair {
    umcp: Appliance,
    dmcp: Appliance,
    io: String,
}

impl Pair {
    /// Starts both and waits until they answer on their control sockets.
    pub fn start(net: &Reference, settings: Settings<'_>) -> io::Result<Pair> {
        let links = net.links();
        let dmcp = Appliance::spawn(&net.dmcp, &dmcp_config(links, settings), settings.directory)?;
        let umcp = Appliance::spawn(&net.umcp, &umcp_config(links, settings), settings.directory)?;
        let mut pair = Pair { umcp, dmcp, io: settings.io.into() };
        pair.dmcp.wait_until_up()?;
        pair.umcp.wait_until_up()?;
        Ok(pair)
    }

    /// Kills both at once, as a crash would.
    pub fn kill(mut self) {
        self.umcp.process.kill();
        self.dmcp.process.kill();
    }

    /// Their processes: uMCP, dMCP.
    pub fn ids(&self) -> [u32; 2] {
        [self.umcp.process.id(), self.dmcp.process.id()]
    }

    /// What they are.
    pub fn describe(&self) -> String {
        format!("one thread each, {} ports, cubic", self.io)
    }

    /// What they say of themselves: connections, ports, counters and workers.
    pub fn counters(&self) -> Value {
        json!({ "umcp": self.umcp.counters(), "dmcp": self.dmcp.counters() })
    }

    /// Adds to an error what the appliances know of it: that one has ended, or else the end of their logs.
    pub fn explain(&mut self, error: &io::Error) -> io::Error {
        let ended = self.umcp.check_alive().and_then(|()| self.dmcp.check_alive());
        match ended {
            Err(ended) => io::Error::other(format!("{error}; {ended}")),
            Ok(()) => {
                let (umcp, dmcp) = (self.umcp.last_words(), self.dmcp.last_words());
                io::Error::other(format!("{error}\numcp:\n  {umcp}\ndmcp:\n  {dmcp}"))
            }
        }
    }
}

impl Appliance {
    /// Starts one with this configuration and waits until it answers on its control socket, which is to be
    /// `NAMESPACE.sock` in the directory.
    pub fn start(namespace: &Namespace, config: &str, directory: &Path) -> io::Result<Appliance> {
        let mut appliance = Appliance::spawn(namespace, config, directory)?;
        appliance.wait_until_up()?;
        Ok(appliance)
    }

    /// Where it answers.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// What it says of itself: connections, ports, counters and workers.
    pub fn counters(&self) -> Value {
        let ask = |show| match control::ask(&self.control, Request { show, offset: 0 }) {
            Ok(reply) => serde_json::to_value(reply).unwrap_or_default(),
            Err(error) => Value::String(error.to_string()),
        };
        Value::Array(
            [Show::Connections, Show::Ports, Show::Counters, Show::Workers].map(ask).into(),
        )
    }

    fn spawn(namespace: &Namespace, config: &str, directory: &Path) -> io::Result<Appliance> {
        let file = |extension: &str| directory.join(format!("{}.{extension}", namespace.name()));
        let (toml, log, control) = (file("toml"), file("log"), file("sock"));
        let _ = fs::remove_file(&control);
        fs::write(&toml, config)?;
        let output = File::create(&log)?;
        let mut command = child::command(std::env::current_exe()?)?;
        command.args(["run", "--config"]).arg(&toml);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = namespace.spawn(command)?;
        Ok(Appliance { process, log, control })
    }

    fn name(&self) -> Cow<'_, str> {
        self.log.file_stem().unwrap_or_default().to_string_lossy()
    }

    fn wait_until_up(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START;
        while UnixStream::connect(&self.control).is_err() {
            self.check_alive()?;
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "no answer after {START:?}: {}",
                    self.last_words()
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Fails if it has ended.
    pub fn check_alive(&mut self) -> io::Result<()> {
        match self.process.poll_exit()? {
            None => Ok(()),
            Some(status) => {
                let name = self.name();
                let words = self.last_words();
                Err(io::Error::other(format!("the {name} appliance ended ({status}): {words}")))
            }
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(6)..].join("\n  ")
    }
}

fn node(name: &str, settings: Settings<'_>) -> String {
    let control = settings.directory.join(format!("{name}.sock"));
    let spin = settings.spin.map_or(String::new(), |spin| format!("spin = \"{spin}\"\n"));
    // One each: what is measured must not depend on how many cores the machine has.
    format!("[node]\nname = \"{name}\"\ncontrol = \"{}\"\nworkers = 1\n{spin}", control.display())
}

fn port(config: &mut String, name: &str, device: &str, io: &str, address: Option<String>) {
    let _ = write!(config, "\n[[port]]\nname = \"{name}\"\ndevice = \"{device}\"\nio = \"{io}\"\n");
    if let Some(address) = address {
        let _ = writeln!(config, "addresses = [\"{address}/24\"]");
    }
}

fn path(config: &mut String, address: impl std::fmt::Display, flag: &str) {
    let _ = write!(config, "\n[[path]]\naddress = \"{address}\"\nflags = [\"{flag}\"]\n");
}

fn umcp_config(links: usize, settings: Settings<'_>) -> String {
    let mut config = node("umcp", settings);
    let io = settings.io;
    port(&mut config, "lan", "lan0", io, None);
    for link in 0..links {
        let device = wan_device(link);
        port(&mut config, &device, &device, io, Some(umcp_plait(link).to_string()));
    }
    for link in 0..links {
        path(&mut config, umcp_plait(link), "subflow");
    }
    let dmcp = dmcp_plait(0);
    let _ = write!(
        config,
        "\n[[remote]]\nname = \"dmcp\"\naddresses = [\"{dmcp}\"]\nport = {SERVICE_PORT}\n\
         \n[[rule]]\nname = \"lan-tcp\"\nport = \"lan\"\nfrom = \"192.168.1.0/24\"\nto = \"192.168.9.0/24\"\n\
         tcp-ports = \"1-65535\"\naction = \"convert\"\nremote = \"dmcp\"\nsource = \"replace\"\n",
    );
    config
}

fn dmcp_config(links: usize, settings: Settings<'_>) -> String {
    let mut config = node("dmcp", settings);
    let io = settings.io;
    for link in 0..links {
        let device = wan_device(link);
        port(&mut config, &device, &device, io, Some(dmcp_plait(link).to_string()));
    }
    port(&mut config, "server", "srv0", io, Some(DMCP_SOURCE.into()));
    for link in 1..links {
        path(&mut config, dmcp_plait(link), "signal");
    }
    let address = dmcp_plait(0);
    let _ = write!(
        config,
        "\n[[service]]\nmode = \"explicit\"\naddress = \"{address}\"\nport = {SERVICE_PORT}\n\
         source = \"replace\"\n\n[convert]\nsource-addresses = [\"{DMCP_SOURCE}\"]\n",
    );
    debug_assert_ne!(DMCP_SOURCE, DMCP_SRV.to_string(), "the kernel's address is not ours");
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::config::Config;

    #[test]
    fn the_configuration_of_both_appliances_is_valid() {
        for links in [1, 2, 8] {
            for io in ["af-xdp", "af-packet", "pnet"] {
                let directory = Path::new("/tmp/demo");
                let settings = Settings { io, spin: Some("10us"), directory };
                for text in [umcp_config(links, settings), dmcp_config(links, settings)] {
                    let config = Config::parse("demo.toml", &text).unwrap_or_else(|errors| {
                        panic!("{errors}\n{text}");
                    });
                    assert!(config.warnings.is_none(), "{}\n{text}", config.warnings.unwrap());
                }
            }
        }
    }
}
