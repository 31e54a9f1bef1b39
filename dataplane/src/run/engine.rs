//! The protocol side of a worker: what the run loop asks of it, and a shard as one.
#![forbid(unsafe_code)]

use stack::shard::{Away, Session, Shard};
use stack::time::Instant;
use stack::wire::{FlowTuple, RxPacket, TxPacket, Unreachable};

/// The protocol side of a worker: a shard, or something simpler in tests. What the last four are for is left to one that
/// works alone.
pub trait Engine {
    /// Takes all packets of `rx`.
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, now: Instant);
    /// Runs what is due.
    fn expire(&mut self, now: Instant);
    /// Appends at most `budget` packets to send.
    fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, now: Instant);
    /// A packet that `transmit` gave has nowhere to go: its next hop does not answer, or there is no route.
    fn on_unreachable(&mut self, packet: &TxPacket, why: Unreachable, now: Instant);
    /// The MTU in octets of every port's device, by the number of the port: at the start and when one has changed.
    fn on_mtus(&mut self, _mtus: &[u32]) {}
    /// When `expire` has something to do.
    fn deadline(&self) -> Option<Instant>;
    /// Moves packets that nobody claimed into `out`.
    fn passed(&mut self, out: &mut Vec<RxPacket>);

    /// Takes packets that other workers sent here: none is sent on to its flow's home again.
    fn ingest_crossed(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        self.ingest(rx, now);
    }

    /// Appends what is for other workers, with their numbers. Notes have to be there before the packets of the last
    /// [`Engine::transmit`] leave.
    fn away(&mut self, _out: &mut Vec<(u32, Away)>) {}

    /// Worker `by` has `flow`, whose home this one is.
    fn on_adopted(&mut self, _flow: FlowTuple, _by: u32) {}

    /// Worker `by` has it no more.
    fn on_released(&mut self, _flow: FlowTuple, _by: u32) {}
}

impl<S: Session> Engine for Shard<S> {
    fn ingest(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        Shard::ingest(self, rx, now);
    }

    fn expire(&mut self, now: Instant) {
        Shard::expire(self, now);
    }

    fn transmit(&mut self, tx: &mut Vec<TxPacket>, budget: usize, now: Instant) {
        Shard::transmit(self, tx, budget, now);
    }

    fn on_unreachable(&mut self, packet: &TxPacket, why: Unreachable, now: Instant) {
        Shard::on_unreachable(self, packet, why, now);
    }

    fn deadline(&self) -> Option<Instant> {
        Shard::deadline(self)
    }

    fn passed(&mut self, out: &mut Vec<RxPacket>) {
        out.extend(Shard::passed(self));
    }

    fn ingest_crossed(&mut self, rx: &mut Vec<RxPacket>, now: Instant) {
        Shard::ingest_crossed(self, rx, now);
    }

    fn away(&mut self, out: &mut Vec<(u32, Away)>) {
        out.extend(Shard::away(self));
    }

    fn on_adopted(&mut self, flow: FlowTuple, by: u32) {
        Shard::on_adopted(self, flow, by);
    }

    fn on_released(&mut self, flow: FlowTuple, by: u32) {
        Shard::on_released(self, flow, by);
    }
}
