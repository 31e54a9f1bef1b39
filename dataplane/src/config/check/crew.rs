//! Workers, their cores and their memory.
#![forbid(unsafe_code)]

use super::Check;
use crate::config::crew::{CrewConfig, DEFAULT_POOL, LEAST_POOL, PoolConfig};
use crate::config::schema::{self, PortIo, Workers};
use crate::config::value::Fault;
use crate::run::MAX_WORKERS;
use toml::Spanned;

/// An Ethernet frame of 1,518 octets with room for headers in front; AF_XDP takes 2048 and 4096.
const DEFAULT_FRAME_SIZE: usize = 2048;

impl Check {
    pub(super) fn crew(&mut self, node: &schema::Node) -> CrewConfig {
        let cores = self.cores(node);
        let workers = match node.workers.as_ref().map(|w| (w.span(), *w.get_ref())) {
            Some((span, Workers::Number(number))) => {
                let number = Spanned::new(span.clone(), number);
                let range = 1..=i64::from(MAX_WORKERS);
                let workers: u32 = self.number("node.workers", Some(&number), range, 1);
                if !cores.is_empty() && cores.len() != workers as usize {
                    let fault = Fault::new(
                        format!("{workers} workers and {} cores", cores.len()),
                        "a core for each worker",
                        "name as many `cores` as there are workers, or remove one of the two lines",
                    );
                    self.error(span, "node.workers", fault);
                }
                Some(workers)
            }
            _ => u32::try_from(cores.len()).ok().filter(|named| *named > 0),
        };
        CrewConfig { workers, cores }
    }

    fn cores(&mut self, node: &schema::Node) -> Vec<usize> {
        let mut cores: Vec<usize> = Vec::new();
        for (i, core) in node.cores.iter().enumerate() {
            let key = format!("node.cores[{i}]");
            let number = self.number(&key, Some(core), 0..=1023, 0);
            if cores.contains(&number) {
                let found = format!("core {number} is given twice");
                let fault = Fault::new(found, "each core once", "name another one");
                self.error(core.span(), key, fault);
            }
            cores.push(number);
        }
        if let (Some(too_many), true) = (node.cores.last(), cores.len() > MAX_WORKERS as usize) {
            let fault = Fault::new(
                format!("{} cores", cores.len()),
                format!("at most {MAX_WORKERS}"),
                "name fewer",
            );
            self.error(too_many.span(), "node.cores", fault);
        }
        cores
    }

    pub(super) fn pool(
        &mut self,
        limits: &schema::Limits,
        ports: &[Spanned<schema::Port>],
        crew: &CrewConfig,
    ) -> PoolConfig {
        let xdp = ports.iter().any(|p| p.get_ref().io == PortIo::AfXdp);
        let key = "limits.frame-size";
        let size = limits.frame_size.as_ref();
        let frame_size = self.number(key, size, 2048..=32_768, DEFAULT_FRAME_SIZE);
        if let Some(text) = size
            && xdp
            && ![2048, 4096].contains(text.get_ref())
        {
            let fault = Fault::new(
                format!("{} octets per frame with an AF_XDP port", text.get_ref()),
                "2048 or 4096",
                "write 4096, or drive every port by af-packet or auto",
            );
            self.error(text.span(), key, fault);
        }
        let Some(text) = &limits.pool else { return PoolConfig { octets: None, frame_size } };
        let octets = self.size("limits.pool", Some(text), LEAST_POOL..=64 << 30, DEFAULT_POOL);
        let pool = PoolConfig { octets: Some(octets), frame_size };
        if let Some(workers) = crew.workers
            && workers > pool.feeds()
        {
            let fault = Fault::new(
                format!("{} for {workers} workers", text.get_ref()),
                format!("at least {} MiB for each", LEAST_POOL >> 20),
                "raise `pool`, or lower node.workers",
            );
            self.error(text.span(), "limits.pool", fault);
        }
        pool
    }
}
