//! Another configuration for a running appliance: what can change without harm does, all else asks for a restart.
#![forbid(unsafe_code)]

use super::bridges::{Bridges, share_of};
use crate::config::Config;
use crate::config::schema::{Limits, Node};
use crate::config::value::covers;
use crate::run::{PortConfig, WorkerLink};
use crate::steer::SteerRule;
use std::sync::{Arc, PoisonError, RwLock};

/// Why an appliance goes on as it was. Each says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file differs in what is set up at the start.
    #[error("{}: cannot change while Plait runs; restart to apply the file", .0.join(", "))]
    Fixed(Vec<&'static str>),
    /// A port would have to take more from the kernel than it does.
    #[error(
        "port {0}: a rule or return takes connections that no rule or return took at the start; restart to apply the file"
    )]
    Wider(String),
    /// Connections that a port took would have to go to the kernel now.
    #[error(
        "port {0}: what a rule or return does not take any more cannot be given back to the kernel without node.tun; \
         restart to apply the file"
    )]
    NoWayBack(String),
    /// There is nobody to tell.
    #[error("a worker has ended; look at the log")]
    Ended,
}

/// Gives a running appliance another configuration.
#[derive(Clone)]
pub struct Reloader {
    pub(super) links: Vec<WorkerLink<Bridges>>,
    /// What connections are opened by.
    pub(super) config: Arc<RwLock<Config>>,
    /// What ports took at the start, and go on taking.
    pub(super) taken: Arc<Vec<PortConfig>>,
}

impl Reloader {
    /// Opens connections by `new` from now on: its rules, remotes, services, paths, timers and limits. Those that exist
    /// keep what they were opened with. The tables that differ.
    ///
    /// # Errors
    /// If something differs that only a start can change; then nothing changes.
    pub fn reload(&self, new: Config) -> Result<Vec<&'static str>, ReloadError> {
        let mut running = self.config.write().unwrap_or_else(PoisonError::into_inner);
        let fixed = fixed(&running, &new);
        if !fixed.is_empty() {
            return Err(ReloadError::Fixed(fixed));
        }
        for (taken, wanted) in self.taken.iter().zip(&new.worker.ports) {
            check_steering(taken, wanted, new.worker.tun.is_some())?;
        }
        let differs = new.file.differs(&running.file);
        let share = share_of(&new.mcp, self.links.len() as u32);
        for link in &self.links {
            let (mcp, mss) = (share.clone(), new.mss.clone());
            link.ask(move |worker| worker.engine.reconfigure(mcp, mss))
                .ok_or(ReloadError::Ended)?;
        }
        *running = new;
        Ok(differs)
    }
}

/// What differs of what is set up at the start.
fn fixed(running: &Config, new: &Config) -> Vec<&'static str> {
    let (old, new) = (&running.file, &new.file);
    let node = |node: &Node| Node { log: None, ..node.clone() };
    let pool = |limits: &Limits| Limits {
        connections: None,
        half_open: None,
        half_open_per_source: None,
        subflows: None,
        buffer: None,
        ..limits.clone()
    };
    let differ = [
        ("[node], all but log", node(&old.node) != node(&new.node)),
        ("[[port]]", old.ports != new.ports),
        ("[[route]]", old.routes != new.routes),
        ("limits.pool, limits.frame-size", pool(&old.limits) != pool(&new.limits)),
    ];
    differ.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// Whether a port that takes what it took at the start serves other rules too: what it takes too much goes back to the
/// kernel.
fn check_steering(
    taken: &PortConfig,
    wanted: &PortConfig,
    way_back: bool,
) -> Result<(), ReloadError> {
    let (taken, name) = (&taken.steering.rules, &wanted.name);
    let wanted = &wanted.steering.rules;
    if !wanted.iter().all(|rule| taken.iter().any(|of| within(of, rule))) {
        return Err(ReloadError::Wider(name.clone()));
    }
    if !way_back && !taken.iter().all(|rule| wanted.iter().any(|of| within(of, rule))) {
        return Err(ReloadError::NoWayBack(name.clone()));
    }
    Ok(())
}

/// Whether all that `inner` takes, `outer` takes.
fn within(outer: &SteerRule, inner: &SteerRule) -> bool {
    match (outer, inner) {
        (
            SteerRule::TcpTo { from, to, ports },
            SteerRule::TcpTo { from: from_in, to: to_in, ports: ports_in },
        ) => {
            let covers = |outer: &Option<_>, inner: &Option<_>| match (outer, inner) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(outer), Some(inner)) => covers(outer, inner),
            };
            covers(from, from_in)
                && covers(to, to_in)
                && ports.start() <= ports_in.start()
                && ports_in.end() <= ports.end()
        }
        (outer, inner) => outer == inner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = include_str!("../../../docs/examples/umcp.toml");

    fn config(text: &str) -> Config {
        Config::parse("plait.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// What becomes of the example with `old` replaced.
    fn reload(old: &str, new: &str) -> Result<Vec<&'static str>, ReloadError> {
        assert!(RUNNING.contains(old), "{old}");
        let running = config(RUNNING);
        let taken = Arc::new(running.worker.ports.clone());
        let config_of = Arc::new(RwLock::new(running));
        let reloader = Reloader { links: Vec::new(), config: config_of, taken };
        reloader.reload(config(&RUNNING.replace(old, new)))
    }

    #[test]
    fn rules_remotes_paths_limits_and_the_log_may_change() {
        assert_eq!(reload("name = \"umcp\"", "name = \"umcp\""), Ok(vec![]));
        assert_eq!(reload("[node]", "[node]\nlog = \"debug\""), Ok(vec!["node"]));
        assert_eq!(reload("port = 5123", "port = 5124"), Ok(vec!["remote"]));
        let backup =
            reload("\"10.0.2.1\"\nflags = [\"subflow\"]", "\"10.0.2.1\"\nflags = [\"backup\"]");
        assert_eq!(backup, Ok(vec!["path"]));
        assert_eq!(
            reload("[[remote]]", "[limits]\nconnections = 7\n[[remote]]"),
            Ok(vec!["limits"])
        );
        assert_eq!(reload("[[remote]]", "[tcp]\nmss = 1000\n[[remote]]"), Ok(vec!["tcp"]));
        // Less than was taken: the rest goes back to the kernel.
        assert_eq!(reload("to = \"0.0.0.0/0\"", "to = \"192.0.2.0/24\""), Ok(vec!["rule"]));
        assert_eq!(reload("tcp-ports = \"22\"", "tcp-ports = \"22, 25\""), Ok(vec!["rule"]));
    }

    #[test]
    fn ports_routes_node_and_pool_need_a_restart() {
        let fixed = |name| Err(ReloadError::Fixed(vec![name]));
        assert_eq!(reload("name = \"umcp\"", "name = \"other\""), fixed("[node], all but log"));
        assert_eq!(reload("device = \"wan2\"", "device = \"wan3\""), fixed("[[port]]"));
        let route =
            "[[route]]\nto = \"10.9.0.0/16\"\nport = \"wan2\"\nvia = \"10.0.2.9\"\n[[remote]]";
        assert_eq!(reload("[[remote]]", route), fixed("[[route]]"));
        let pool = reload("[[remote]]", "[limits]\npool = \"32MiB\"\n[[remote]]");
        assert_eq!(pool, fixed("limits.pool, limits.frame-size"));
    }

    #[test]
    fn what_a_port_does_not_take_yet_needs_a_restart() {
        // The first rule that matches is "ssh", which takes nothing.
        let wider = RUNNING.matches("from = \"192.168.1.0/24\"").count();
        assert_eq!(wider, 2);
        let error = reload("from = \"192.168.1.0/24\"", "from = \"192.168.0.0/16\"").unwrap_err();
        assert_eq!(error, ReloadError::Wider("lan".into()));
        assert!(error.to_string().ends_with("restart to apply the file"));
    }

    #[test]
    fn without_a_way_to_the_kernel_no_port_takes_less() {
        let running = RUNNING.replace("[node]", "[node]\ntun = \"\"");
        let less = running.replace("to = \"0.0.0.0/0\"", "to = \"192.0.2.0/24\"");
        let ports = config(&running).worker.ports;
        let reloader = Reloader {
            links: Vec::new(),
            config: Arc::new(RwLock::new(config(&running))),
            taken: Arc::new(ports),
        };
        assert_eq!(reloader.reload(config(&less)), Err(ReloadError::NoWayBack("lan".into())));
        let same = running.replace("port = 5123", "port = 5124");
        assert_eq!(reloader.reload(config(&same)), Ok(vec!["remote"]));
    }
}
