//! The event loop of a simulation: nodes, links between them, and a clock that jumps.
#![forbid(unsafe_code)]

use super::link::Direction;
use super::{Capture, Link, LinkStats};
use crate::rng::Rng;
use crate::time::{Duration, Instant, earliest};
use alloc::boxed::Box;
use alloc::collections::BinaryHeap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::any::Any;
use core::cmp::Reverse;
use core::marker::PhantomData;
use core::ops::{Index, IndexMut};
use std::eprintln;
use std::path::{Path, PathBuf};

/// Packets a node sends: interface and octets from the IP header on.
pub type Outbox = Vec<(usize, Vec<u8>)>;

/// Something with interfaces. Like everything in this crate it sees time as an argument.
pub trait Node: Any {
    /// A packet arrives.
    fn receive(&mut self, iface: usize, packet: Vec<u8>, now: Instant);
    /// Does what is due at `now` and appends what is to be sent. Called after every [`Node::receive`], when
    /// [`Node::deadline`] has come, and after a test touched the node.
    fn poll(&mut self, now: Instant, out: &mut Outbox);
    /// When [`Node::poll`] wants to be called even if nothing arrives.
    fn deadline(&self) -> Option<Instant>;
    /// Panics if the node is in a state that cannot be.
    fn assert_invariants(&self) {}
}

/// A node of a simulation, and its type.
pub struct NodeId<T>(usize, PhantomData<fn() -> T>);

impl<T> Clone for NodeId<T> {
    fn clone(&self) -> NodeId<T> {
        *self
    }
}

impl<T> Copy for NodeId<T> {}

impl<T> core::fmt::Debug for NodeId<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A link of a simulation. Its first direction leads from the first end to the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkId(usize);

#[cfg(test)]
impl LinkId {
    pub(super) fn first() -> LinkId {
        LinkId(0)
    }
}

struct Slot {
    node: Box<dyn Node>,
    /// Link and direction behind each interface.
    ports: Vec<Option<(usize, usize)>>,
    deadline: Option<Instant>,
    /// To be polled at the next step.
    due: bool,
    /// Deadlines at one instant without time moving on.
    spins: u32,
}

struct Wire {
    ends: [(usize, usize); 2],
    directions: [Direction; 2],
    up: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Instant,
    /// Events of one instant keep their order.
    serial: u64,
    link: usize,
    to: (usize, usize),
    packet: Vec<u8>,
}

/// A node may ask to be woken this often without time moving on.
const MAX_SPINS: u32 = 64;

/// The seed to use: `SIM_SEED` if the environment has it, else `default`.
pub fn seed(default: u64) -> u64 {
    std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// A network in virtual time. Everything that happens in it follows from its seed.
pub struct Sim {
    seed: u64,
    now: Instant,
    rng: Rng,
    nodes: Vec<Slot>,
    links: Vec<Wire>,
    events: BinaryHeap<Reverse<Event>>,
    serial: u64,
    outbox: Outbox,
    capture: Capture,
}

impl Sim {
    /// An empty network. `SIM_SEED` in the environment overrides the seed.
    pub fn new(default_seed: u64) -> Sim {
        let seed = seed(default_seed);
        Sim {
            seed,
            now: Instant::from_millis(1_000), // nothing may take the origin for "long ago"
            rng: Rng::from_number(seed),
            nodes: Vec::new(),
            links: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            outbox: Vec::new(),
            capture: Capture::default(),
        }
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Randomness for whoever is built into the network, each from its own generator.
    pub fn fork_rng(&mut self) -> Rng {
        Rng::from_number(self.rng.u64())
    }

    /// Adds a node.
    pub fn add<T: Node>(&mut self, node: T) -> NodeId<T> {
        self.nodes.push(Slot {
            node: Box::new(node),
            ports: Vec::new(),
            deadline: None,
            due: true,
            spins: 0,
        });
        NodeId(self.nodes.len() - 1, PhantomData)
    }

    /// Joins two interfaces by a link that is the same both ways.
    pub fn link<A, B>(
        &mut self,
        a: (NodeId<A>, usize),
        b: (NodeId<B>, usize),
        link: Link,
    ) -> LinkId {
        self.link_both(a, b, link.clone(), link)
    }

    /// Joins two interfaces by a link with two different directions.
    pub fn link_both<A, B>(
        &mut self,
        (a, a_iface): (NodeId<A>, usize),
        (b, b_iface): (NodeId<B>, usize),
        there: Link,
        back: Link,
    ) -> LinkId {
        let id = self.links.len();
        for (direction, (node, iface)) in [(a.0, a_iface), (b.0, b_iface)].into_iter().enumerate() {
            let ports = &mut self.nodes[node].ports;
            if ports.len() <= iface {
                ports.resize(iface + 1, None);
            }
            assert!(ports[iface].is_none(), "interface {iface} of node {node} has a link already");
            ports[iface] = Some((id, direction));
        }
        let directions = [there, back].map(|link| Direction::new(link, self.fork_rng()));
        self.links.push(Wire { ends: [(b.0, b_iface), (a.0, a_iface)], directions, up: true });
        LinkId(id)
    }

    /// Cuts a link: what is under way is lost.
    pub fn cut(&mut self, link: LinkId) {
        self.links[link.0].up = false;
        self.events.retain(|Reverse(event)| event.link != link.0);
    }

    /// Restores a link.
    pub fn restore(&mut self, link: LinkId) {
        self.links[link.0].up = true;
    }

    /// What passed, in the link's first and second direction.
    pub fn stats(&self, link: LinkId) -> [LinkStats; 2] {
        let [there, back] = &self.links[link.0].directions;
        [there.stats, back.stats]
    }

    /// Lets time run up to `until`.
    pub fn run_until(&mut self, until: Instant) {
        while self.step(until) {}
    }

    /// Lets time run on for `time`.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Lets time run until `done`, at most for `limit`. Returns whether it was done.
    pub fn run_while(&mut self, limit: Duration, mut going: impl FnMut(&Sim) -> bool) -> bool {
        let until = self.now + limit;
        while going(self) {
            if !self.step(until) {
                return !going(self);
            }
        }
        true
    }

    /// One instant: everything that arrives or is due then. `false`: nothing is left before `until`, and it is `until`.
    fn step(&mut self, until: Instant) -> bool {
        let mut next = self.events.peek().map(|Reverse(event)| event.at);
        for slot in &self.nodes {
            next = earliest(next, if slot.due { Some(self.now) } else { slot.deadline });
        }
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        if next > self.now {
            self.now = next;
            self.nodes.iter_mut().for_each(|slot| slot.spins = 0);
        }
        self.deliver();
        for index in 0..self.nodes.len() {
            self.poll(index);
        }
        true
    }

    fn deliver(&mut self) {
        while let Some(Reverse(event)) = self.events.peek()
            && event.at <= self.now
        {
            let Some(Reverse(event)) = self.events.pop() else { break };
            let slot = &mut self.nodes[event.to.0];
            slot.node.receive(event.to.1, event.packet, self.now);
            slot.due = true;
        }
    }

    fn poll(&mut self, index: usize) {
        let slot = &mut self.nodes[index];
        let deadline = slot.deadline.is_some_and(|at| at <= self.now);
        if !slot.due && !deadline {
            return;
        }
        if !slot.due {
            slot.spins += 1;
            assert!(slot.spins < MAX_SPINS, "node {index} is busy with nothing at {:?}", self.now);
        }
        slot.due = false;
        let mut outbox = core::mem::take(&mut self.outbox);
        slot.node.poll(self.now, &mut outbox);
        slot.node.assert_invariants();
        slot.deadline = slot.node.deadline();
        for (iface, packet) in outbox.drain(..) {
            self.send(index, iface, packet);
        }
        self.outbox = outbox;
    }

    fn send(&mut self, node: usize, iface: usize, mut packet: Vec<u8>) {
        let Some(Some((link, direction))) = self.nodes[node].ports.get(iface).copied() else {
            return;
        };
        self.capture.record(&packet, self.now);
        let wire = &mut self.links[link];
        if !wire.up {
            return;
        }
        let to = wire.ends[direction];
        for at in wire.directions[direction].send(&mut packet, self.now).into_iter().flatten() {
            self.serial += 1;
            let packet = packet.clone();
            self.events.push(Reverse(Event { at, serial: self.serial, link, to, packet }));
        }
    }

    /// Writes the newest packets as pcap to `target/sim/<name>-<seed>.pcap` and returns where.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_capture(&self, name: &str) -> std::io::Result<PathBuf> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/sim"));
        let path = folder.join(format!("{name}-{}.pcap", self.seed));
        self.capture.write(&path)?;
        Ok(path)
    }
}

impl<T: Node> Index<NodeId<T>> for Sim {
    type Output = T;
    fn index(&self, id: NodeId<T>) -> &T {
        let node: &dyn Any = self.nodes[id.0].node.as_ref();
        node.downcast_ref().expect("a NodeId knows its type")
    }
}

impl<T: Node> IndexMut<NodeId<T>> for Sim {
    /// The node will be polled at the next step.
    fn index_mut(&mut self, id: NodeId<T>) -> &mut T {
        self.nodes[id.0].due = true;
        let node: &mut dyn Any = self.nodes[id.0].node.as_mut();
        node.downcast_mut().expect("a NodeId knows its type")
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let thread = std::thread::current();
        let name: String = thread.name().unwrap_or("sim").replace("::", "-");
        match self.write_capture(&name) {
            Ok(path) => {
                eprintln!(
                    "SIM_SEED={} at {:?}; packets in {}",
                    self.seed,
                    self.now,
                    path.display()
                );
            }
            Err(error) => {
                eprintln!("SIM_SEED={} at {:?}; no capture: {error}", self.seed, self.now)
            }
        }
    }
}
