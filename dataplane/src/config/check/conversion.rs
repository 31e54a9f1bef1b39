//! Paths, remotes, services, rules and returns: what is converted, and from and to where.
#![forbid(unsafe_code)]

use super::{Check, connected, owner};
use crate::config::schema::{self, RuleAction, Source, Text};
use crate::config::value::{self, Fault, covers};
use crate::run::{PortConfig, StaticRoute};
use crate::steer::SteerRule;
use stack::mcp::{Action, RemoteMcp, Rule, Service, SourceMode};
use stack::mptcp::LocalAddress;
use stack::wire::{Endpoint, Prefix};
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;

/// Where dMCPs listen unless configured otherwise.
const DEFAULT_CONVERT_PORT: u16 = 5123;

/// What the network side says, for looking things up.
pub(super) struct Network<'a> {
    pub ports: &'a [PortConfig],
    pub routes: &'a [StaticRoute],
    pub paths: &'a [LocalAddress],
}

/// Where packets from `addr` can go: what its port has as neighbours and routes, or anywhere if it has a gateway.
fn beyond(addr: IpAddr, ports: &[PortConfig], routes: &[StaticRoute]) -> Vec<Prefix> {
    let family = |prefix: &&Prefix| prefix.addr.is_ipv4() == addr.is_ipv4();
    let owner = owner(ports, addr).and_then(|i| ports.get(i).map(|port| (i, port)));
    let Some((index, port)) = owner else { return Vec::new() };
    if port.gateways.iter().any(|gateway| gateway.is_ipv4() == addr.is_ipv4()) {
        return Vec::new();
    }
    let routes = routes.iter().filter(|route| route.port == index).map(|route| &route.to);
    port.owned.iter().chain(routes).filter(family).copied().collect()
}

impl Network<'_> {
    /// Whether a packet from one of the paths gets to `addr`.
    fn reaches(&self, addr: IpAddr) -> bool {
        self.paths.iter().any(|path| {
            path.addr.is_ipv4() == addr.is_ipv4()
                && (path.reach.is_empty() || path.reach.iter().any(|p| p.contains(addr)))
                && self.leads(path.addr, addr)
        })
    }

    /// Whether the port that owns `from` has a neighbour, gateway or route for `to`.
    fn leads(&self, from: IpAddr, to: IpAddr) -> bool {
        let Some((index, port)) =
            owner(self.ports, from).and_then(|i| self.ports.get(i).map(|port| (i, port)))
        else {
            return false;
        };
        connected(port, to)
            || port.gateways.iter().any(|g| g.is_ipv4() == to.is_ipv4())
            || self.routes.iter().any(|r| r.port == index && r.to.contains(to))
    }

    fn owned(&self) -> impl Iterator<Item = IpAddr> {
        self.ports.iter().flat_map(|port| port.owned.iter().map(|p| p.addr))
    }
}

impl Check {
    /// `addr` unless no port owns it.
    fn owned(
        &mut self,
        key: &str,
        text: &Text,
        addr: IpAddr,
        ports: &[PortConfig],
    ) -> Option<IpAddr> {
        if owner(ports, addr).is_some() {
            return Some(addr);
        }
        let owned: Vec<String> =
            ports.iter().flat_map(|p| p.owned.iter().map(|o| o.addr.to_string())).collect();
        let allowed = match owned.is_empty() {
            true => "one of a port's `addresses`, of which there are none".to_owned(),
            false => format!("one of {}", owned.join(", ")),
        };
        let help = "add it to the `addresses` of the [[port]] where it is reached";
        let fault = Fault::new(format!("no port owns {addr}"), allowed, help);
        self.error(text.span(), key, fault);
        None
    }

    pub(super) fn paths(
        &mut self,
        paths: &[Spanned<schema::Path>],
        ports: &[PortConfig],
        routes: &[StaticRoute],
    ) -> Vec<LocalAddress> {
        let mut checked: Vec<LocalAddress> = Vec::new();
        for (i, path) in paths.iter().enumerate() {
            let (path, key) = (path.get_ref(), format!("path[{i}].address"));
            let addr = self
                .value(&key, &path.address, value::address)
                .and_then(|addr| self.owned(&key, &path.address, addr, ports));
            let reach = self.values(&format!("path[{i}].reach"), &path.reach.0, value::prefix);
            let Some(addr) = addr else { continue };
            if checked.iter().any(|p| p.addr == addr) {
                let found = format!("a second path from {addr}");
                let fault = Fault::new(found, "one [[path]] per address", "merge the two");
                self.error(path.address.span(), key, fault);
            }
            for (span, prefix) in &reach {
                if prefix.addr.is_ipv4() != addr.is_ipv4() {
                    let fault = Fault::new(
                        format!("{} is of another family than {addr}", value::show(prefix)),
                        "prefixes of the path's family",
                        "remove it; a path talks to its own family only",
                    );
                    self.error(span.clone(), format!("path[{i}].reach"), fault);
                }
            }
            let has = |flag| path.flags.contains(&flag);
            checked.push(LocalAddress {
                addr,
                signal: has(schema::PathFlag::Signal),
                subflow: has(schema::PathFlag::Subflow),
                backup: has(schema::PathFlag::Backup),
                fullmesh: has(schema::PathFlag::Fullmesh),
                reach: match reach.is_empty() {
                    true => beyond(addr, ports, routes),
                    false => reach.into_iter().map(|(_, prefix)| prefix).collect(),
                },
            });
        }
        checked
    }

    pub(super) fn remotes(
        &mut self,
        remotes: &[Spanned<schema::Remote>],
        net: &Network<'_>,
    ) -> Vec<RemoteMcp> {
        self.unique("remote", remotes.iter().map(|r| &r.get_ref().name));
        let mut checked = Vec::new();
        for (i, spanned) in remotes.iter().enumerate() {
            let remote = spanned.get_ref();
            let key = format!("remote[{i}].port");
            let port = self.number(&key, remote.port.as_ref(), 1..=65_535, DEFAULT_CONVERT_PORT);
            let key = format!("remote[{i}].addresses");
            let addresses = self.values(&key, &remote.addresses, value::address);
            for (span, addr) in &addresses {
                if owner(net.ports, *addr).is_some() {
                    let fault = Fault::new(
                        format!("{addr} is one of this node's own addresses"),
                        "addresses of another node",
                        "write the other conversion point's address",
                    );
                    self.error(span.clone(), &key, fault);
                }
            }
            if remote.addresses.is_empty() {
                let found = format!("remote {} has no address", remote.name.get_ref());
                let fault = Fault::new(found, "at least one address", "write its addresses");
                self.error(remote.name.span(), &key, fault);
            } else if !addresses.is_empty() && !addresses.iter().any(|(_, a)| net.reaches(*a)) {
                self.unreachable(remote, &key, net);
            }
            checked.push(RemoteMcp {
                name: remote.name.get_ref().clone(),
                endpoints: addresses.iter().map(|(_, a)| Endpoint::new(*a, port)).collect(),
            });
        }
        checked
    }

    fn unreachable(&mut self, remote: &schema::Remote, key: &str, net: &Network<'_>) {
        let span = remote.addresses.first().map_or(remote.name.span(), Spanned::span);
        let allowed = match net.paths {
            [] => "no [[path]] is configured".to_owned(),
            paths => {
                let paths: Vec<String> = paths.iter().map(|p| p.addr.to_string()).collect();
                format!("what the paths {} reach", paths.join(", "))
            }
        };
        let found = format!("no path reaches remote {}", remote.name.get_ref());
        let help = "add a [[path]] of this family whose `reach` holds the address and whose port \
                    has it as neighbour, a `gateway`, or a [[route]] to it";
        self.error(span, key, Fault::new(found, allowed, help));
    }

    pub(super) fn services(
        &mut self,
        services: &[Spanned<schema::Service>],
        net: &Network<'_>,
    ) -> Vec<Service> {
        let mut checked: Vec<Service> = Vec::new();
        for (i, spanned) in services.iter().enumerate() {
            let (key, service) = (format!("service[{i}]"), spanned.get_ref());
            self.service_keys(&key, service);
            let one = match service.mode.get_ref() {
                schema::ServiceMode::Explicit => self.explicit(&key, service, net),
                schema::ServiceMode::Relay => self.relay(&key, service, net),
            };
            let Some(one) = one else { continue };
            if checked.iter().any(|other| listens(other) == listens(&one)) {
                let place = service.address.as_ref().or(service.listen.as_ref());
                let span = place.map_or(service.mode.span(), Spanned::span);
                let found = "another service listens there";
                let fault = Fault::new(found, "address and port once", "choose another port");
                let word = if service.address.is_some() { "address" } else { "listen" };
                self.error(span, format!("{key}.{word}"), fault);
            }
            checked.push(one);
        }
        checked
    }

    /// Notes keys of the other mode and missing ones.
    fn service_keys(&mut self, key: &str, service: &schema::Service) {
        use schema::ServiceMode::{Explicit, Relay};
        let mode = *service.mode.get_ref();
        let keys = [
            ("address", Explicit, true, service.address.as_ref().map(Spanned::span)),
            ("port", Explicit, false, service.port.as_ref().map(Spanned::span)),
            ("source", Explicit, false, service.source.as_ref().map(Spanned::span)),
            ("listen", Relay, true, service.listen.as_ref().map(Spanned::span)),
            ("server", Relay, true, service.server.as_ref().map(Spanned::span)),
            ("connect", Relay, false, service.connect.as_ref().map(Spanned::span)),
        ];
        let (name, allowed) = match mode {
            Explicit => ("explicit", "address, port, source"),
            Relay => ("relay", "listen, server, connect"),
        };
        for (word, of, required, place) in keys {
            let fault = match place {
                Some(_) if of != mode => Fault::new(
                    format!("`{word}` does not belong to mode = \"{name}\""),
                    allowed,
                    "remove the line, or change `mode`",
                ),
                None if of == mode && required => Fault::new(
                    format!("mode = \"{name}\" without `{word}`"),
                    allowed,
                    format!("add the line: {word} = ..."),
                ),
                _ => continue,
            };
            self.error(place.unwrap_or(service.mode.span()), format!("{key}.{word}"), fault);
        }
    }

    fn explicit(
        &mut self,
        key: &str,
        service: &schema::Service,
        net: &Network<'_>,
    ) -> Option<Service> {
        let key_port = format!("{key}.port");
        let port = service.port.as_ref().map(|p| self.number(&key_port, Some(p), 1..=65_535, 1));
        let text = service.address.as_ref()?;
        let key = format!("{key}.address");
        let addr = self.value(&key, text, value::address)?;
        let addr = self.owned(&key, text, addr, net.ports)?;
        Some(Service::Explicit { addr, port, source: mode(service.source.as_ref()) })
    }

    fn relay(
        &mut self,
        key: &str,
        service: &schema::Service,
        net: &Network<'_>,
    ) -> Option<Service> {
        let (key_listen, key_server) = (format!("{key}.listen"), format!("{key}.server"));
        let listen = service.listen.as_ref().and_then(|text| {
            let listen = self.value(&key_listen, text, value::endpoint)?;
            self.owned(&key_listen, text, listen.addr, net.ports).map(|_| listen)
        });
        let text = service.server.as_ref()?;
        let server = self.value(&key_server, text, value::endpoint)?;
        let connect = service.connect.as_ref().map(|c| *c.get_ref());
        let mptcp = connect == Some(schema::Transport::Mptcp);
        if owner(net.ports, server.addr).is_some() {
            let fault = Fault::new(
                format!("{} is one of this node's own addresses", server.addr),
                "the address of a server behind this node",
                "write the server's own address",
            );
            self.error(text.span(), key_server, fault);
        } else if mptcp && !net.reaches(server.addr) {
            let fault = Fault::new(
                format!("no path reaches {}", server.addr),
                "a server that a [[path]] reaches",
                "add a [[path]] of this family, or write connect = \"tcp\"",
            );
            self.error(text.span(), key_server, fault);
        }
        let connect = if mptcp { stack::mcp::Transport::Mptcp } else { stack::mcp::Transport::Tcp };
        Some(Service::Relay { listen: listen?, server, connect })
    }

    /// The rules, one per range of ports; what they take is added to their port's steering.
    pub(super) fn rules(
        &mut self,
        file: &schema::File,
        remotes: &[RemoteMcp],
        returns: &[(usize, Prefix)],
        ports: &mut [PortConfig],
    ) -> Vec<Rule> {
        self.unique("rule", file.rules.iter().map(|r| &r.get_ref().name));
        let mut checked = Vec::new();
        for (i, spanned) in file.rules.iter().enumerate() {
            let (key, rule) = (format!("rule[{i}]"), spanned.get_ref());
            let port = self.port(&format!("{key}.port"), &rule.port, ports);
            let action = self.action(&key, rule, remotes, !file.paths.is_empty());
            let Some((from, to, ranges)) = self.matches(&key, rule) else { continue };
            self.kept(&key, rule, from.as_ref(), returns);
            let (Some(port), Some(action)) = (port.and_then(|p| ports.get_mut(p)), action) else {
                continue;
            };
            for range in ranges {
                self.shadowed(&key, rule, &checked, (&from, &to, &range));
                if action != Action::Bypass {
                    let ports = range.clone();
                    port.steering.rules.push(SteerRule::TcpTo { from, to, ports });
                }
                let name = rule.name.get_ref().clone();
                checked.push(Rule { name, from, to, ports: range, action });
            }
        }
        checked
    }

    #[allow(clippy::type_complexity, reason = "three parts of one match, taken apart at once")]
    fn matches(
        &mut self,
        key: &str,
        rule: &schema::Rule,
    ) -> Option<(Option<Prefix>, Option<Prefix>, Vec<RangeInclusive<u16>>)> {
        let mut prefix = |word: &str, text: &Option<Text>| match text {
            Some(text) => self.value(&format!("{key}.{word}"), text, value::prefix).map(Some),
            None => Some(None),
        };
        let (from, to) = (prefix("from", &rule.from), prefix("to", &rule.to));
        let ranges = match &rule.tcp_ports {
            Some(text) => self.value(&format!("{key}.tcp-ports"), text, value::ports),
            None => Some(vec![1..=u16::MAX]),
        };
        let (from, to) = (from?, to?);
        if let (Some(from), Some(to), Some(text)) = (&from, &to, &rule.to)
            && from.addr.is_ipv4() != to.addr.is_ipv4()
        {
            let fault = Fault::new(
                format!("{} is of another family than {}", value::show(to), value::show(from)),
                "`from` and `to` of one family",
                "make it two rules, one per family",
            );
            self.error(text.span(), format!("{key}.to"), fault);
        }
        Some((from, to, ranges?))
    }

    fn action(
        &mut self,
        key: &str,
        rule: &schema::Rule,
        remotes: &[RemoteMcp],
        any_path: bool,
    ) -> Option<Action> {
        let action = *rule.action.get_ref();
        let name = action.as_str();
        let source = mode(rule.source.as_ref());
        let stray = |word: &str, of: &str| {
            let found = format!("`{word}` does not belong to action = \"{name}\"");
            Fault::new(found, format!("only with {of}"), "remove the line, or change `action`")
        };
        if let (Some(text), true) = (&rule.remote, action != RuleAction::Convert) {
            self.error(text.span(), format!("{key}.remote"), stray("remote", "convert"));
        }
        if let Some(text) = &rule.source
            && matches!(action, RuleAction::Bypass | RuleAction::Reject)
        {
            let of = "convert, direct, terminate";
            self.error(text.span(), format!("{key}.source"), stray("source", of));
        }
        if matches!(action, RuleAction::Convert | RuleAction::Direct) && !any_path {
            let fault = Fault::new(
                format!("action = \"{name}\" without any [[path]]"),
                "at least one [[path]]",
                "add a [[path]] for every address that MPTCP shall use",
            );
            self.error(rule.action.span(), format!("{key}.action"), fault);
        }
        Some(match action {
            RuleAction::Convert => {
                Action::Convert { remote: self.remote(key, rule, remotes)?, source }
            }
            RuleAction::Direct => Action::Direct { source },
            RuleAction::Terminate => Action::Terminate { source },
            RuleAction::Bypass => Action::Bypass,
            RuleAction::Reject => Action::Reject,
        })
    }

    fn remote(&mut self, key: &str, rule: &schema::Rule, remotes: &[RemoteMcp]) -> Option<usize> {
        let names: Vec<&str> = remotes.iter().map(|r| r.name.as_str()).collect();
        let key = format!("{key}.remote");
        match &rule.remote {
            Some(text) => self.name(&key, "remote", text, &names),
            None => {
                let fault = Fault::new(
                    "action = \"convert\" without `remote`",
                    if names.is_empty() {
                        "no [[remote]] is configured".to_owned()
                    } else {
                        names.join(", ")
                    },
                    "add the line: remote = \"...\"",
                );
                self.error(rule.action.span(), key, fault);
                None
            }
        }
    }

    /// Notes a kept source without a way back for the servers' replies.
    fn kept(
        &mut self,
        key: &str,
        rule: &schema::Rule,
        from: Option<&Prefix>,
        returns: &[(usize, Prefix)],
    ) {
        let Some(source) = rule.source.as_ref().filter(|s| *s.get_ref() == Source::Keep) else {
            return;
        };
        let back = from.is_some_and(|from| returns.iter().any(|(_, to)| covers(to, from)));
        if back {
            return;
        }
        let clients = from.map_or("any client".to_owned(), value::show);
        let allowed = "a [[return]] whose `to` holds the rule's `from`";
        let help =
            "add a [[return]] with the port towards the servers, or write source = \"replace\"";
        let key = format!("{key}.source");
        if matches!(rule.action.get_ref(), RuleAction::Direct | RuleAction::Terminate) {
            let found = format!("nothing takes back replies to {clients}");
            self.error(source.span(), key, Fault::new(found, allowed, help));
        } else if *rule.action.get_ref() == RuleAction::Convert {
            let found = format!(
                "nothing takes back replies to {clients} when the remote does not convert and \
                 plain TCP is used"
            );
            self.warn(source.span(), key, Fault::new(found, allowed, help));
        }
    }

    /// Notes a rule that an earlier one hides.
    fn shadowed(
        &mut self,
        key: &str,
        rule: &schema::Rule,
        earlier: &[Rule],
        (from, to, ports): (&Option<Prefix>, &Option<Prefix>, &RangeInclusive<u16>),
    ) {
        let wider = |outer: &Option<Prefix>, inner: &Option<Prefix>| match (outer, inner) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(outer), Some(inner)) => covers(outer, inner),
        };
        let hides = |other: &&Rule| {
            wider(&other.from, from)
                && wider(&other.to, to)
                && other.ports.start() <= ports.start()
                && other.ports.end() >= ports.end()
        };
        if let Some(other) = earlier.iter().find(hides) {
            let fault = Fault::new(
                format!(
                    "rule {} never sees ports {}-{}: rule {} is first",
                    rule.name.get_ref(),
                    ports.start(),
                    ports.end(),
                    other.name
                ),
                "the first rule that matches decides",
                "put the narrower rule first, or remove this one",
            );
            self.warn(rule.name.span(), key, fault);
        }
    }

    /// Replies to take: index of the port and clients. They are added to the port's steering.
    pub(super) fn returns(
        &mut self,
        returns: &[Spanned<schema::Return>],
        ports: &mut [PortConfig],
    ) -> Vec<(usize, Prefix)> {
        let mut checked = Vec::new();
        for (i, spanned) in returns.iter().enumerate() {
            let port = self.port(&format!("return[{i}].port"), &spanned.get_ref().port, ports);
            let to =
                self.values(&format!("return[{i}].to"), &spanned.get_ref().to.0, value::prefix);
            let Some((index, port)) = port.and_then(|i| ports.get_mut(i).map(|p| (i, p))) else {
                continue;
            };
            for (_, to) in to {
                let ports = 1..=u16::MAX;
                port.steering.rules.push(SteerRule::TcpTo { from: None, to: Some(to), ports });
                checked.push((index, to));
            }
        }
        checked
    }

    /// Addresses that servers see, and prefixes in which a peer may name a source.
    pub(super) fn sources(
        &mut self,
        file: &schema::File,
        net: &Network<'_>,
        returns: &[(usize, Prefix)],
    ) -> (Vec<IpAddr>, Vec<Prefix>) {
        let key = "convert.source-addresses";
        let mut replaced = Vec::new();
        for (i, text) in file.convert.source_addresses.iter().enumerate() {
            let key = format!("{key}[{i}]");
            let addr = self.value(&key, text, value::address);
            replaced.extend(addr.and_then(|addr| self.owned(&key, text, addr, net.ports)));
        }
        if file.convert.source_addresses.is_empty() {
            replaced = default_sources(file, net);
        }
        let replaces = source_places(file).find(|(_, source)| *source == Source::Replace);
        if let Some((span, _)) = replaces.filter(|_| net.owned().next().is_none()) {
            let fault = Fault::new(
                "sources are replaced, but no port owns an address to replace them with",
                "at least one address in some port's `addresses`",
                "add `addresses` to the [[port]] towards the servers",
            );
            self.error(span, key, fault);
        }
        let key = "convert.preserved-sources";
        let preserved = self.values(key, &file.convert.preserved_sources, value::prefix);
        self.preserved(file, key, &preserved, returns);
        (replaced, preserved.into_iter().map(|(_, prefix)| prefix).collect())
    }

    fn preserved(
        &mut self,
        file: &schema::File,
        key: &str,
        preserved: &[(Range<usize>, Prefix)],
        returns: &[(usize, Prefix)],
    ) {
        let keeps = file.services.iter().find_map(|s| {
            s.get_ref().source.as_ref().filter(|source| *source.get_ref() == Source::Keep)
        });
        if let (Some(source), true) = (keeps, file.convert.preserved_sources.is_empty()) {
            let fault = Fault::new(
                "a service keeps sources, but no source may be kept",
                "at least one prefix of clients",
                "add [convert] preserved-sources = [\"...\"], or write source = \"replace\"",
            );
            self.error(source.span(), key, fault);
        }
        for (span, prefix) in preserved {
            if !returns.iter().any(|(_, to)| covers(to, prefix)) {
                let fault = Fault::new(
                    format!("nothing takes back replies to {}", value::show(prefix)),
                    "prefixes that a [[return]] holds",
                    "add a [[return]] with the port towards the servers",
                );
                self.error(span.clone(), key, fault);
            }
        }
    }
}

/// Owned addresses of ports with neither a path nor a rule, which is the servers' side; if there are none, of all that
/// have no rule; if there are none, all.
fn default_sources(file: &schema::File, net: &Network<'_>) -> Vec<IpAddr> {
    let ruled = |p: &PortConfig| file.rules.iter().any(|r| *r.get_ref().port.get_ref() == p.name);
    let path = |p: &PortConfig| net.paths.iter().any(|l| p.owned.iter().any(|o| o.addr == l.addr));
    let addresses = |wanted: &dyn Fn(&PortConfig) -> bool| -> Vec<IpAddr> {
        net.ports
            .iter()
            .filter(|p| wanted(p))
            .flat_map(|p| p.owned.iter().map(|o| o.addr))
            .collect()
    };
    let servers = addresses(&|p| !ruled(p) && !path(p));
    let unruled = if servers.is_empty() { addresses(&|p| !ruled(p)) } else { servers };
    if unruled.is_empty() { addresses(&|_| true) } else { unruled }
}

/// Every place that decides about a source, with what it decides.
fn source_places(file: &schema::File) -> impl Iterator<Item = (Range<usize>, Source)> {
    let rules = file.rules.iter().map(Spanned::get_ref).filter_map(|rule| {
        let decides = !matches!(rule.action.get_ref(), RuleAction::Bypass | RuleAction::Reject);
        let default = (rule.action.span(), Source::Replace);
        decides.then(|| rule.source.as_ref().map_or(default, |s| (s.span(), *s.get_ref())))
    });
    let services = file.services.iter().map(Spanned::get_ref).map(|service| {
        let default = (service.mode.span(), Source::Replace);
        service.source.as_ref().map_or(default, |s| (s.span(), *s.get_ref()))
    });
    rules.chain(services)
}

fn mode(source: Option<&Spanned<Source>>) -> SourceMode {
    match source.map(|s| *s.get_ref()).unwrap_or_default() {
        Source::Keep => SourceMode::Keep,
        Source::Replace => SourceMode::Replace,
    }
}

/// Where a service listens; port `None`: everywhere.
fn listens(service: &Service) -> (IpAddr, Option<u16>) {
    match service {
        Service::Explicit { addr, port, .. } => (*addr, *port),
        Service::Relay { listen, .. } => (listen.addr, Some(listen.port)),
    }
}
