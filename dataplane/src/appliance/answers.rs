//! What an appliance answers on its control socket, of all its workers.
#![forbid(unsafe_code)]

use super::bridges::Bridges;
use crate::config::Config;
use crate::config::value::show;
use crate::control::server::Source;
use crate::control::{
    MAX_ROWS, Page, PortRow, Reply, Request, RuleRow, Show, WorkerRow, connection_row,
};
use crate::metrics::{self, Metrics};
use crate::port::PortStats;
use crate::run::{PortInfo, Worker, WorkerLink};
use stack::mcp::{Action, McpConfig, SourceMode};
use std::sync::{Arc, PoisonError, RwLock};

/// Answers of running workers.
pub(super) struct Answers {
    pub(super) links: Vec<WorkerLink<Bridges>>,
    /// What each is bound to.
    pub(super) cores: Vec<Option<usize>>,
    pub(super) config: Arc<RwLock<Config>>,
}

/// Place of the worker's number in the offset of a page of connections: what comes and goes at one worker moves nothing
/// at another.
const WORKER: u32 = 40;

impl Source for Answers {
    fn answer(&self, request: Request) -> Reply {
        let reply = match request.show {
            Show::Connections => self.connections(request.offset).map(Reply::Connections),
            Show::Ports => {
                let all = self.ask_all(|worker| worker.port_infos().collect::<Vec<_>>());
                all.map(|all| Reply::Ports(port_rows(all)))
            }
            Show::Counters => self.ask_all(metrics::collect).map(|all| Reply::Counters(sum(all))),
            Show::Rules => {
                let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
                Some(Reply::Rules(rules(&config.mcp)))
            }
            Show::Workers => self.workers().map(Reply::Workers),
        };
        reply.unwrap_or_else(|| Reply::Error("a worker has ended; look at the log".to_owned()))
    }
}

impl Answers {
    /// What every worker answers. `None`: one has ended.
    fn ask_all<T: Send + 'static>(
        &self,
        question: impl Fn(&Worker<Bridges>) -> T + Copy + Send + 'static,
    ) -> Option<Vec<T>> {
        self.links.iter().map(|link| link.ask(move |worker| question(worker))).collect()
    }

    /// A page of connections, of as many workers as it takes.
    fn connections(&self, from: u64) -> Option<Page> {
        let mut page = Page::default();
        let (mut number, mut offset) = ((from >> WORKER) as usize, from & ((1 << WORKER) - 1));
        while let Some(link) = self.links.get(number) {
            // Rows are made here: the worker only gives copies.
            let most = MAX_ROWS - page.rows.len();
            let infos = link.ask(move |worker| worker.engine.connections(offset, most))?;
            page.rows.extend(infos.iter().map(|info| connection_row(number as u32, info)));
            if infos.len() == most {
                page.next = Some(((number as u64) << WORKER) + offset + most as u64);
                break;
            }
            (number, offset) = (number + 1, 0);
        }
        Some(page)
    }

    fn workers(&self) -> Option<Vec<WorkerRow>> {
        let rows = self.ask_all(|worker| {
            let (stats, tables) = (worker.stats(), worker.engine.occupancy());
            WorkerRow {
                worker: worker.number(),
                core: None,
                connections: tables.sessions as u64,
                flows: tables.flows as u64,
                time_wait: tables.time_wait as u64,
                turns: stats.turns,
                sleeps: stats.sleeps,
                crossed_in: stats.crossed_in,
                crossed_out: stats.crossed_out,
                crossed_dropped: stats.crossed_dropped,
                frames: worker.pool().capacity().into(),
                frames_free: worker.pool().free().into(),
            }
        })?;
        Some(
            rows.into_iter()
                .zip(&self.cores)
                .map(|(row, core)| WorkerRow { core: *core, ..row })
                .collect(),
        )
    }
}

fn sum(all: Vec<Metrics>) -> Metrics {
    let mut total = Metrics::new();
    for (name, value) in all.into_iter().flatten() {
        *total.entry(name).or_default() += value;
    }
    total
}

/// A row per port, from what each worker says of its share.
fn port_rows(all: Vec<Vec<PortInfo>>) -> Vec<PortRow> {
    let mut workers = all.into_iter();
    let mut ports = workers.next().unwrap_or_default();
    for (port, more) in workers.flat_map(|infos| infos.into_iter().enumerate()) {
        if let Some(info) = ports.get_mut(port) {
            let (lost, reopened) = (info.stats.lost, info.stats.reopened); // all see the same
            info.stats = PortStats { lost, reopened, ..info.stats.plus(more.stats) };
        }
    }
    ports.into_iter().map(port_row).collect()
}

fn port_row(info: PortInfo) -> PortRow {
    let can = info.capabilities;
    let features = [
        ("tso", can.segmentation),
        ("tx-checksum", can.checksum_offload),
        ("gro", can.super_frames_in),
        ("zero-copy", can.zero_copy),
    ];
    PortRow {
        name: info.name,
        device: info.device,
        io: info.io.as_str().to_owned(),
        why: info.why,
        mtu: can.mtu,
        features: features.iter().filter(|f| f.1).map(|f| f.0.to_owned()).collect(),
        counters: port_counters(&info.stats),
    }
}

fn port_counters(stats: &PortStats) -> Metrics {
    let PortStats {
        rx_frames,
        rx_octets,
        rx_dropped,
        tx_frames,
        tx_octets,
        tx_dropped,
        tx_full,
        tx_uncopied,
        lost,
        reopened,
    } = *stats;
    [
        ("rx_frames", rx_frames),
        ("rx_octets", rx_octets),
        ("rx_dropped", rx_dropped),
        ("tx_frames", tx_frames),
        ("tx_octets", tx_octets),
        ("tx_dropped", tx_dropped),
        ("tx_full", tx_full),
        ("tx_uncopied", tx_uncopied),
        ("lost", lost),
        ("reopened", reopened),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn rules(mcp: &McpConfig) -> Vec<RuleRow> {
    let source = |source: &SourceMode| match source {
        SourceMode::Keep => "source keep",
        SourceMode::Replace => "source replace",
    };
    let row = |rule: &stack::mcp::Rule| {
        let prefix = |p: &Option<_>| p.as_ref().map_or("any".to_owned(), show);
        let (first, last) = (rule.ports.start(), rule.ports.end());
        RuleRow {
            name: rule.name.clone(),
            matches: format!(
                "from {} to {} tcp-ports {first}-{last}",
                prefix(&rule.from),
                prefix(&rule.to)
            ),
            action: match &rule.action {
                Action::Convert { remote, source: s } => {
                    let remote = mcp.remotes.get(*remote).map_or("", |r| r.name.as_str());
                    format!("convert remote {remote} {}", source(s))
                }
                Action::Direct { source: s } => format!("direct {}", source(s)),
                Action::Terminate { source: s } => format!("terminate {}", source(s)),
                Action::Bypass => "bypass".to_owned(),
                Action::Reject => "reject".to_owned(),
            },
        }
    };
    mcp.rules.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Port;
    use crate::run::Io;

    #[test]
    fn rules_are_shown_as_they_apply() {
        let text = "[[port]]\nname = \"lan\"\ndevice = \"lan0\"\naddresses = [\"10.0.0.1/24\"]\n\
                    [[rule]]\nname = \"ssh\"\nport = \"lan\"\ntcp-ports = \"22\"\naction = \"bypass\"\n\
                    [[rule]]\nname = \"all\"\nport = \"lan\"\nfrom = \"10.0.0.0/24\"\naction = \"terminate\"\n";
        let config = Config::parse("plait.toml", text).unwrap();
        let rows = rules(&config.mcp);
        assert_eq!(rows[0].matches, "from any to any tcp-ports 22-22");
        assert_eq!(rows[1].matches, "from 10.0.0.0/24 to any tcp-ports 1-65535");
        assert_eq!(rows[1].action, "terminate source replace");
    }

    #[test]
    fn a_port_of_several_workers_is_one_row() {
        let (near, _) = crate::port::MemoryPort::pair(1, [[0; 6]; 2]);
        let of = |io, rx_frames| PortInfo {
            name: "lan".into(),
            device: "lan0".into(),
            io,
            why: "first".into(),
            capabilities: near.capabilities(),
            stats: PortStats { rx_frames, lost: 1, reopened: 1, ..PortStats::default() },
        };
        let all = vec![vec![of(Io::AfXdp, 5)], vec![of(Io::AfPacket, 0)], vec![of(Io::AfXdp, 7)]];
        let rows = port_rows(all);
        assert_eq!((rows.len(), rows[0].io.as_str()), (1, "af-xdp"));
        let counted = ["rx_frames", "lost", "reopened"].map(|name| rows[0].counters[name]);
        assert_eq!(counted, [12, 1, 1], "each worker has lost the same device once");
    }

    #[test]
    fn counters_of_workers_are_added_up() {
        let of = |value| Metrics::from([("InSegs".to_owned(), value)]);
        assert_eq!(sum(vec![of(3), of(4)]), of(7));
    }
}
