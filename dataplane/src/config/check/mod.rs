//! Gives a file its meaning and collects every mistake on the way.
#![forbid(unsafe_code)]

mod conversion;
mod crew;
mod network;
mod protocol;

use super::diagnostic::{Diagnostic, nearest};
use super::schema::{File, Text};
use super::value::{self, Fault, Value};
use super::{Config, ConfigErrors};
use crate::run::{PortConfig, StaticRoute, WorkerConfig};
use conversion::Network;
pub use protocol::MssRule;
use stack::mcp::McpConfig;
use stack::mptcp::MptcpConfig;
use stack::wire::Prefix;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;

/// Checks `file`, read from `text`; `name` is what messages call it.
pub(super) fn check(name: &str, text: &str, file: File) -> Result<Config, ConfigErrors> {
    let mut check = Check { errors: Vec::new(), warnings: Vec::new() };
    let node = check.node(&file.node);
    let mut ports = check.ports(&file.ports);
    let pool = check.pool(&file.limits, &file.ports, &node.crew);
    let routes = check.routes(&file.routes, &ports);
    let mcp = check.mcp(&file, &mut ports, &routes);
    if !check.errors.is_empty() {
        return Err(ConfigErrors::new(name, text, check.errors));
    }
    let worker = WorkerConfig {
        ports,
        routes,
        tun: node.tun,
        io_mode: node.io_mode,
        core: None,
        frames: pool.frames(1),
        frame_size: pool.frame_size,
    };
    let warnings = (!check.warnings.is_empty())
        .then(|| ConfigErrors::new(name, text, std::mem::take(&mut check.warnings)));
    let (name, control, log) = (node.name, node.control, node.log);
    let mss = MssRule::new(&file, &mcp, &worker.ports);
    let crew = node.crew;
    Ok(Config { name, control, log, crew, pool, worker, mcp, mss, warnings, file })
}

/// The mistakes found so far.
struct Check {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Check {
    fn mcp(&mut self, file: &File, ports: &mut [PortConfig], routes: &[StaticRoute]) -> McpConfig {
        if file.rules.is_empty() && file.services.is_empty() {
            let fault = Fault::new(
                "neither a rule nor a service is configured: nothing would be converted",
                "at least one [[rule]] or [[service]]",
                "add a [[rule]] for connections that pass through, or a [[service]] for an owned \
                 address",
            );
            self.error(0..0, "rule", fault);
        }
        let paths = self.paths(&file.paths, ports, routes);
        let returns = self.returns(&file.returns, ports);
        let net = Network { ports, routes, paths: &paths };
        let remotes = self.remotes(&file.remotes, &net);
        let services = self.services(&file.services, &net);
        let (source_addresses, preserved_sources) = self.sources(file, &net, &returns);
        let rules = self.rules(file, &remotes, &returns, ports);
        let tcp = self.tcp(&file.tcp);
        let default = McpConfig::default();
        let ttl = &file.convert.negative_cache_ttl;
        let mut mcp = McpConfig {
            mptcp: MptcpConfig { addresses: paths, ..self.mptcp(&file.mptcp, &file.limits, &tcp) },
            tcp,
            remotes,
            services,
            rules,
            source_addresses,
            preserved_sources,
            negative_cache_ttl: self.duration(
                "convert.negative-cache-ttl",
                ttl.as_ref(),
                Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600),
                default.negative_cache_ttl,
            ),
            ..default
        };
        self.limits(&file.limits, &mut mcp);
        mcp
    }

    fn error(&mut self, span: Range<usize>, key: impl Into<String>, fault: Fault) {
        let Fault { found, allowed, help } = fault;
        self.errors.push(Diagnostic { span, key: key.into(), found, allowed, help });
    }

    fn warn(&mut self, span: Range<usize>, key: impl Into<String>, fault: Fault) {
        let Fault { found, allowed, help } = fault;
        self.warnings.push(Diagnostic { span, key: key.into(), found, allowed, help });
    }

    /// The value of `text`, its fault noted.
    fn value<T>(&mut self, key: &str, text: &Text, parse: fn(&str) -> Value<T>) -> Option<T> {
        parse(text.get_ref()).map_err(|fault| self.error(text.span(), key, fault)).ok()
    }

    /// `value`s of a list, with their places.
    fn values<T>(
        &mut self,
        key: &str,
        texts: &[Text],
        parse: fn(&str) -> Value<T>,
    ) -> Vec<(Range<usize>, T)> {
        texts
            .iter()
            .enumerate()
            .filter_map(|(i, t)| {
                self.value(&format!("{key}[{i}]"), t, parse).map(|v| (t.span(), v))
            })
            .collect()
    }

    /// A number within `range`, or `default` where there is none.
    fn number<T>(
        &mut self,
        key: &str,
        number: Option<&Spanned<i64>>,
        range: RangeInclusive<i64>,
        default: T,
    ) -> T
    where
        T: TryFrom<i64>,
    {
        let Some(number) = number else { return default };
        let n = *number.get_ref();
        if range.contains(&n)
            && let Ok(value) = T::try_from(n)
        {
            return value;
        }
        let allowed = format!("{} to {}", range.start(), range.end());
        let help = "choose a value of that range";
        self.error(number.span(), key, Fault::new(format!("{n} is out of range"), allowed, help));
        default
    }

    /// A duration within `range`, or `default` where there is none.
    fn duration(
        &mut self,
        key: &str,
        text: Option<&Text>,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(text) = text else { return default };
        let Some(duration) = self.value(key, text, value::duration) else { return default };
        if !range.contains(&duration) {
            let allowed = format!("{:?} to {:?}", range.start(), range.end());
            let found = format!("{} is out of range", text.get_ref());
            self.error(
                text.span(),
                key,
                Fault::new(found, allowed, "choose a value of that range"),
            );
            return default;
        }
        duration
    }

    /// Octets within `range`, or `default` where there are none.
    fn size(
        &mut self,
        key: &str,
        text: Option<&Text>,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some(text) = text else { return default };
        let Some(octets) = self.value(key, text, value::size) else { return default };
        if !range.contains(&octets) {
            let allowed = format!("{} to {}", show_size(*range.start()), show_size(*range.end()));
            let found = format!("{} is out of range", text.get_ref());
            self.error(
                text.span(),
                key,
                Fault::new(found, allowed, "choose a value of that range"),
            );
            return default;
        }
        octets
    }

    /// The index of the one of `names` that `text` names.
    fn name(&mut self, key: &str, what: &str, text: &Text, names: &[&str]) -> Option<usize> {
        let wanted = text.get_ref().as_str();
        let index = names.iter().position(|name| *name == wanted);
        if index.is_none() {
            let allowed = if names.is_empty() {
                format!("no [[{what}]] is configured")
            } else {
                names.join(", ")
            };
            let help = match nearest(wanted, names.iter().copied()) {
                Some(near) => {
                    format!("write \"{near}\", or add a [[{what}]] with name = \"{wanted}\"")
                }
                None => format!("name one of them, or add a [[{what}]] with name = \"{wanted}\""),
            };
            let found = format!("no {what} is named \"{wanted}\"");
            self.error(text.span(), key, Fault::new(found, allowed, help));
        }
        index
    }

    /// The port that `text` names.
    fn port(&mut self, key: &str, text: &Text, ports: &[PortConfig]) -> Option<usize> {
        let names: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
        self.name(key, "port", text, &names)
    }

    /// Notes names that are empty or appear twice.
    fn unique<'a>(&mut self, what: &str, names: impl Iterator<Item = &'a Text>) {
        let mut seen: Vec<&str> = Vec::new();
        for (i, name) in names.enumerate() {
            let (key, text) = (format!("{what}[{i}].name"), name.get_ref().as_str());
            if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
                let found = format!("{text:?} is not a name");
                let fault = Fault::new(found, "text without blanks", "give it a short name");
                self.error(name.span(), key, fault);
            } else if seen.contains(&text) {
                let found = format!("a second {what} is named \"{text}\"");
                let fault = Fault::new(found, "each name once", "rename one of the two");
                self.error(name.span(), key, fault);
            }
            seen.push(text);
        }
    }
}

fn show_size(octets: u64) -> String {
    match octets {
        n if n >= 1 << 30 && n % (1 << 30) == 0 => format!("{}GiB", n >> 30),
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{}MiB", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!("{}KiB", n >> 10),
        n => format!("{n}B"),
    }
}

/// Whether one of `port`'s networks holds `addr`.
fn connected(port: &PortConfig, addr: IpAddr) -> bool {
    port.owned.iter().any(|network: &Prefix| network.contains(addr))
}

/// The port that owns `addr`.
fn owner(ports: &[PortConfig], addr: IpAddr) -> Option<usize> {
    ports.iter().position(|port| port.owned.iter().any(|p| p.addr == addr))
}
