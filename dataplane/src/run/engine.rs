//! A shard as the engine of a worker.
#![forbid(unsafe_code)]

use super::Engine;
use stack::shard::{Session, Shard};
use stack::time::Instant;
use stack::wire::{RxPacket, TxPacket, Unreachable};

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
}
