//! The process, its ports, memory and routes.
#![forbid(unsafe_code)]

use super::{Check, connected, owner};
use crate::config::crew::CrewConfig;
use crate::config::schema::{self, LogLevel, NodeIoMode, PortIo};
use crate::config::value::{self, Fault};
use crate::run::{Io, IoMode, PortConfig, StaticRoute};
use crate::steer::Steering;
use stack::wire::Prefix;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// Longest name of a network device: IFNAMSIZ less the final zero.
const MAX_DEVICE_NAME: usize = 15;
/// Longest path of a Unix socket: `sun_path` less the final zero.
const MAX_SOCKET_PATH: usize = 107;
/// Where a control socket is unless configured otherwise.
const CONTROL_DIRECTORY: &str = "/run/plait";

/// `[node]`, checked.
pub(super) struct Node {
    pub name: String,
    pub control: PathBuf,
    pub log: LogLevel,
    pub crew: CrewConfig,
    pub io_mode: IoMode,
    pub tun: Option<String>,
}

impl Check {
    pub(super) fn node(&mut self, node: &schema::Node) -> Node {
        let name = node.name.as_ref().map_or("plait", |n| n.get_ref().as_str());
        let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if let Some(text) = &node.name
            && (name.is_empty() || name.starts_with('.') || !name.chars().all(fit))
        {
            let found = format!("{name:?} is not a name");
            let fault = Fault::new(found, "letters, digits, - _ .", "give the node a short name");
            self.error(text.span(), "node.name", fault);
        }
        let control = match &node.control {
            Some(path) => PathBuf::from(path.get_ref()),
            None => PathBuf::from(format!("{CONTROL_DIRECTORY}/{name}.sock")),
        };
        if control.is_relative() || control.as_os_str().len() > MAX_SOCKET_PATH {
            let span = node.control.as_ref().or(node.name.as_ref()).map_or(0..0, Spanned::span);
            let fault = Fault::new(
                format!("\"{}\" cannot be the path of a socket", control.display()),
                format!("an absolute path of at most {MAX_SOCKET_PATH} octets"),
                "write a path such as \"/run/plait/umcp.sock\"",
            );
            self.error(span, "node.control", fault);
        }
        Node {
            name: name.to_owned(),
            control,
            log: node.log.unwrap_or_default(),
            crew: self.crew(node),
            io_mode: self.io_mode(node),
            tun: self.tun(node.tun.as_ref()),
        }
    }

    fn io_mode(&mut self, node: &schema::Node) -> IoMode {
        let range = Duration::ZERO..=Duration::from_secs(1);
        let spin = self.duration("node.spin", node.spin.as_ref(), range, DEFAULT_SPIN);
        let mode = node.io_mode.unwrap_or_default();
        if let (Some(text), true) = (&node.spin, mode != NodeIoMode::Adaptive) {
            let fault = Fault::new(
                "`spin` is given for a worker that is not adaptive",
                "spin only with io-mode = \"adaptive\"",
                "remove one of the two lines",
            );
            self.error(text.span(), "node.spin", fault);
        }
        match mode {
            NodeIoMode::BusyPoll => IoMode::BusyPoll,
            NodeIoMode::Interrupt => IoMode::Interrupt,
            NodeIoMode::Adaptive => IoMode::Adaptive { spin },
        }
    }

    fn tun(&mut self, tun: Option<&schema::Text>) -> Option<String> {
        let Some(tun) = tun else { return Some(DEFAULT_TUN.to_owned()) };
        if tun.get_ref().is_empty() {
            return None;
        }
        self.device("node.tun", tun);
        Some(tun.get_ref().clone())
    }

    fn device(&mut self, key: &str, device: &schema::Text) {
        let name = device.get_ref();
        let bad = |c: char| c.is_whitespace() || c == '/' || c == ':';
        if name.is_empty() || name.len() > MAX_DEVICE_NAME || name.contains(bad) {
            let fault = Fault::new(
                format!("{name:?} cannot be the name of a network device"),
                format!("1 to {MAX_DEVICE_NAME} octets without blanks, / and :"),
                "write a name that `ip link` shows",
            );
            self.error(device.span(), key, fault);
        }
    }

    pub(super) fn ports(&mut self, ports: &[Spanned<schema::Port>]) -> Vec<PortConfig> {
        if ports.is_empty() {
            let fault = Fault::new(
                "no port is configured",
                "at least one [[port]]",
                "add a [[port]] with name and device",
            );
            self.error(0..0, "port", fault);
        }
        self.unique("port", ports.iter().map(|p| &p.get_ref().name));
        let mut checked: Vec<PortConfig> = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            let port = self.one_port(&format!("port[{i}]"), port.get_ref(), &checked);
            checked.push(port);
        }
        checked
    }

    fn one_port(&mut self, key: &str, port: &schema::Port, earlier: &[PortConfig]) -> PortConfig {
        self.device(&format!("{key}.device"), &port.device);
        if let Some(other) = earlier.iter().find(|p| p.device == *port.device.get_ref()) {
            let fault = Fault::new(
                format!("port {} already drives {}", other.name, other.device),
                "each device once",
                "name another device, or merge the two ports",
            );
            self.error(port.device.span(), format!("{key}.device"), fault);
        }
        let mut checked = PortConfig {
            name: port.name.get_ref().clone(),
            device: port.device.get_ref().clone(),
            io: match port.io {
                PortIo::Auto => None,
                PortIo::AfXdp => Some(Io::AfXdp),
                PortIo::AfPacket => Some(Io::AfPacket),
                PortIo::Pnet => Some(Io::Pnet),
                PortIo::Tap => Some(Io::Tap),
                PortIo::Tun => Some(Io::Tun),
            },
            queues: self.queues(key, port),
            owned: Vec::new(),
            gateways: Vec::new(),
            steering: Steering::default(),
        };
        let addresses = format!("{key}.addresses");
        for (span, prefix) in self.values(&addresses, &port.addresses, value::interface_address) {
            let elsewhere = owner(earlier, prefix.addr).and_then(|i| earlier.get(i));
            let here = checked.owned.iter().any(|p| p.addr == prefix.addr).then_some(&checked);
            if let Some(other) = elsewhere.or(here) {
                let fault = Fault::new(
                    format!("{} belongs to port {} already", prefix.addr, other.name),
                    "each address once",
                    "remove one of the two",
                );
                self.error(span, addresses.clone(), fault);
            } else {
                checked.owned.push(prefix);
            }
        }
        checked.gateways = self.gateways(&format!("{key}.gateway"), port, &checked);
        let least_mtu = if checked.owned.iter().any(|p| p.addr.is_ipv6()) { 1280 } else { 576 };
        self.number(&format!("{key}.mtu"), port.mtu.as_ref(), least_mtu..=65_535, 0_i64);
        checked
    }

    fn queues(&mut self, key: &str, port: &schema::Port) -> Vec<u32> {
        let key = format!("{key}.queues");
        let may_be_xdp = matches!(port.io, PortIo::Auto | PortIo::AfXdp);
        if let (Some(first), false) = (port.queues.first(), may_be_xdp) {
            let fault = Fault::new(
                "queues are given for a port that is not AF_XDP",
                "queues only with io = \"af-xdp\" or \"auto\"",
                "remove the line",
            );
            self.error(first.span(), key.clone(), fault);
        }
        let mut queues: Vec<u32> = Vec::new();
        for (i, queue) in port.queues.iter().enumerate() {
            let number = self.number(&format!("{key}[{i}]"), Some(queue), 0..=4095, 0);
            if queues.contains(&number) {
                let fault = Fault::new(
                    format!("queue {number} is given twice"),
                    "each queue once",
                    "remove one",
                );
                self.error(queue.span(), format!("{key}[{i}]"), fault);
            }
            queues.push(number);
        }
        queues
    }

    fn gateways(&mut self, key: &str, port: &schema::Port, checked: &PortConfig) -> Vec<IpAddr> {
        let mut gateways: Vec<IpAddr> = Vec::new();
        for text in &port.gateway.0 {
            let Some(gateway) = self.value(key, text, value::address) else { continue };
            let family = |a: &IpAddr| a.is_ipv4() == gateway.is_ipv4();
            let fault = if gateways.iter().any(family) {
                Some(Fault::new(
                    "two gateways of one family",
                    "one IPv4 and one IPv6 gateway",
                    "keep one, and add a [[route]] for the other",
                ))
            } else if !connected(checked, gateway) && !link_local(gateway) {
                let networks: Vec<String> = checked.owned.iter().map(value::show).collect();
                Some(Fault::new(
                    format!("{gateway} is in no network of this port"),
                    format!(
                        "a neighbour of {}",
                        if networks.is_empty() {
                            "an address in `addresses`, of which there is none".to_owned()
                        } else {
                            networks.join(", ")
                        }
                    ),
                    "correct the gateway, or the prefix length in `addresses`",
                ))
            } else if checked.owned.iter().any(|p| p.addr == gateway) {
                Some(Fault::new(
                    format!("{gateway} is this port's own address"),
                    "the address of a router",
                    "write the router's address",
                ))
            } else {
                None
            };
            match fault {
                Some(fault) => self.error(text.span(), key, fault),
                None => gateways.push(gateway),
            }
        }
        gateways
    }

    pub(super) fn routes(
        &mut self,
        routes: &[Spanned<schema::Route>],
        ports: &[PortConfig],
    ) -> Vec<StaticRoute> {
        let mut checked: Vec<StaticRoute> = Vec::new();
        for (i, spanned) in routes.iter().enumerate() {
            let route = spanned.get_ref();
            let to = self.value(&format!("route[{i}].to"), &route.to, value::prefix);
            let port = self.port(&format!("route[{i}].port"), &route.port, ports);
            let key = format!("route[{i}].via");
            let via = route.via.as_ref().map(|t| (t.span(), self.value(&key, t, value::address)));
            let (Some(to), Some(port)) = (to, port) else { continue };
            if let Some((span, Some(via))) = &via {
                self.next_hop(span.clone(), &key, *via, &to, &ports[port]);
            }
            if checked.iter().any(|r| r.to == to) {
                let fault = Fault::new(
                    format!("a second route to {}", value::show(&to)),
                    "each destination once",
                    "remove one of the two",
                );
                self.error(route.to.span(), format!("route[{i}].to"), fault);
            }
            checked.push(StaticRoute { to, port, via: via.and_then(|(_, via)| via) });
        }
        checked
    }

    fn next_hop(
        &mut self,
        span: std::ops::Range<usize>,
        key: &str,
        via: IpAddr,
        to: &Prefix,
        port: &PortConfig,
    ) {
        if via.is_ipv4() != to.addr.is_ipv4() {
            let fault = Fault::new(
                format!("{via} is of another family than {}", value::show(to)),
                "a next hop of the destinations' family",
                "write the router's address of that family",
            );
            self.error(span, key, fault);
        } else if !port.owned.is_empty() && !connected(port, via) && !link_local(via) {
            let networks: Vec<String> = port.owned.iter().map(value::show).collect();
            let fault = Fault::new(
                format!("{via} is in no network of port {}", port.name),
                format!("a neighbour of {}", networks.join(", ")),
                "correct the next hop or the port",
            );
            self.error(span, key, fault);
        }
    }
}

fn link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Long enough to stay awake within a burst, short enough not to matter on an idle machine.
const DEFAULT_SPIN: Duration = Duration::from_micros(50);
const DEFAULT_TUN: &str = "plait0";
