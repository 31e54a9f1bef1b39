//! What is counted. The same in every run: one thread, virtual time, fixed seeds, hashes without secrets.
#![forbid(unsafe_code)]

use plait_benches::chain::{Device, Net, SEGMENT, Setting};
use plait_benches::ends::{self, Pair};
use stack::rng::Rng;
use stack::shard::{FlowTable, Owner};
use stack::wire::{Endpoint, FlowTuple};
use std::hint::black_box;

/// Connections that are opened and closed.
const CONNECTIONS: u32 = 200;
/// Flows in a table.
const FLOWS: u32 = 20_000;
/// Octets of text in a segment between two ends.
const TEXT: u64 = 1_448;

/// Does everything that has `only` in its name; before and after each piece callgrind writes down what it has counted.
pub fn all(only: &str) {
    let mut work = Work { only };
    for (device, name, segments) in
        [(Device::Plain, "segment", 4_000), (Device::Offloads, "super-segment", 20_000)]
    {
        for (subflows, connections) in [(1, 1), (2, 1), (8, 1), (2, 100)] {
            let flows = plural(subflows.into(), "subflow");
            let name = format!("relay/{name}, {}, {flows}", plural(connections, "connection"));
            let setting = Setting { subflows, checksum: false, device, connections };
            work.relay(&name, setting, segments);
        }
    }
    for subflows in [1, 2] {
        work.connections(subflows);
    }
    work.tables();
    for (device, name) in [(Device::Plain, "ends"), (Device::Offloads, "ends, super-segments")] {
        work.ends(&format!("{name}/TCP"), 0, device);
        for subflows in [1, 2, 8] {
            let flows = plural(subflows.into(), "subflow");
            work.ends(&format!("{name}/MPTCP, {flows}"), subflows, device);
        }
    }
}

struct Work<'a> {
    only: &'a str,
}

impl Work<'_> {
    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    /// Counts `act`, which answers how many of whatever it did.
    fn count(&mut self, name: &str, act: impl FnOnce() -> f64) {
        profile_ends_here();
        let done = act();
        profile_ends_here();
        println!("{name}\t{done}");
    }

    fn relay(&mut self, name: &str, setting: Setting, segments: u64) {
        if !self.wants(name) {
            return;
        }
        let mut net = Net::new(setting);
        net.open(|_| {}).expect("connections");
        net.write();
        // Long enough for windows to open and for tables and queues to reach their size.
        net.carry(2 * segments).expect("a transfer");
        let before = net.read();
        self.count(name, || {
            net.carry(segments).expect("a transfer");
            (net.read() - before) as f64 / SEGMENT as f64
        });
    }

    fn connections(&mut self, subflows: u8) {
        let (open, close) = ("connections/open", "connections/close");
        let name = |what: &str| format!("{what}, {}", plural(subflows.into(), "subflow"));
        if !self.wants(&name(open)) && !self.wants(&name(close)) {
            return;
        }
        let (device, connections) = (Device::Plain, CONNECTIONS);
        let mut net = Net::new(Setting { subflows, checksum: false, device, connections });
        net.open(|_| {}).expect("connections");
        net.close().expect("their end");
        self.count(&name(open), || {
            net.open(|_| {}).expect("connections");
            f64::from(CONNECTIONS)
        });
        self.count(&name(close), || {
            net.close().expect("their end");
            f64::from(CONNECTIONS)
        });
    }

    fn tables(&mut self) {
        if !self.wants("table/") {
            return;
        }
        let mut table = FlowTable::new(&mut Rng::from_number(1));
        let owner = Owner::TimeWait(0);
        (0..FLOWS).for_each(|i| table.insert_flow(flow(i), owner));
        let all = f64::from(FLOWS);
        self.count("table/insertion", || {
            (FLOWS..2 * FLOWS).for_each(|i| table.insert_flow(flow(i), owner));
            all
        });
        self.count("table/look-up", || {
            (FLOWS..2 * FLOWS).for_each(|i| assert!(table.flow(&flow(i)).is_some()));
            all
        });
        self.count("table/look-up of none", || {
            (FLOWS..2 * FLOWS).for_each(|i| assert!(table.flow(&flow(i).reversed()).is_none()));
            all
        });
        self.count("table/removal", || {
            (FLOWS..2 * FLOWS).for_each(|i| assert!(table.remove_flow(&flow(i), owner)));
            all
        });
    }

    fn ends(&mut self, name: &str, subflows: u8, device: Device) {
        const WARM_UP: u64 = 6 << 20;
        const COUNTED: u64 = 6 << 20;
        if !self.wants(name) {
            return;
        }
        let mut pair = Pair::new(ends::Setting { connections: 1, subflows, device });
        let mut from = 0;
        while from < WARM_UP {
            from = pair.turn();
        }
        self.count(name, || {
            let mut to = from;
            while to < from + COUNTED {
                to = pair.turn();
            }
            (to - from) as f64 / TEXT as f64
        });
    }
}

/// Clients of 16 ports each.
fn flow(number: u32) -> FlowTuple {
    let client = (10 << 24 | number >> 4).to_be_bytes();
    FlowTuple {
        local: Endpoint::new([192, 0, 2, 1].into(), 443),
        remote: Endpoint::new(client.into(), 40_000 + (number & 15) as u16),
    }
}

fn plural(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Callgrind looks out for this name.
#[inline(never)]
fn profile_ends_here() {
    black_box("callgrind"); // else nothing would be left of it
}
