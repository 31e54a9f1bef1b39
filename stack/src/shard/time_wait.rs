//! Flows in TIME-WAIT: a small, bounded slab of their own.
#![forbid(unsafe_code)]

use crate::tcp::TimeWait;
use crate::time::Instant;
use crate::wire::FlowTuple;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

struct Slot {
    /// Tells the entries of `order` apart that were made for earlier users of the slot.
    generation: u32,
    value: Option<(FlowTuple, TimeWait)>,
}

/// The slab. When it is full the oldest makes room: TIME-WAIT protects, but is not owed to anybody.
pub(super) struct TimeWaitSlab {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slot, generation and when to look, in order of arrival: nearly the order of expiry, and late is harmless.
    order: VecDeque<(u32, u32, Instant)>,
    max: u32,
}

impl TimeWaitSlab {
    pub fn new(max: u32) -> TimeWaitSlab {
        TimeWaitSlab {
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            max: max.max(1),
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds; returns the slot, and who had to go for it.
    pub fn insert(&mut self, flow: FlowTuple, state: TimeWait) -> (u32, Option<(u32, FlowTuple)>) {
        let evicted = if self.len() >= self.max as usize { self.pop_oldest() } else { None };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        if let Some(slot) = self.slots.get_mut(index as usize) {
            self.order.push_back((index, slot.generation, state.deadline()));
            slot.value = Some((flow, state));
        }
        (index, evicted)
    }

    pub fn at_mut(&mut self, index: u32) -> Option<&mut (FlowTuple, TimeWait)> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    pub fn remove(&mut self, index: u32) -> Option<(FlowTuple, TimeWait)> {
        let slot = self.slots.get_mut(index as usize)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        if self.free.len() == self.slots.len() {
            self.order = VecDeque::new(); // nobody is left: give the memory back
        }
        Some(value)
    }

    /// Removes one whose time has come.
    pub fn pop_expired(&mut self, now: Instant) -> Option<(u32, FlowTuple)> {
        while let Some(&(index, generation, check_at)) = self.order.front() {
            if now < check_at {
                return None;
            }
            self.order.pop_front();
            let Some(slot) = self.slots.get(index as usize) else { continue };
            let Some((flow, state)) = slot.value.as_ref().filter(|_| slot.generation == generation)
            else {
                continue;
            };
            if state.expired(now) {
                let flow = *flow;
                self.remove(index);
                return Some((index, flow));
            }
            self.order.push_back((index, generation, state.deadline())); // a FIN came again and restarted it
        }
        None
    }

    /// When `pop_expired` should be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.order.front().map(|(_, _, at)| *at)
    }

    fn pop_oldest(&mut self) -> Option<(u32, FlowTuple)> {
        while let Some((index, generation, _)) = self.order.pop_front() {
            if self.slots.get(index as usize).is_some_and(|s| s.generation == generation)
                && let Some((flow, _)) = self.remove(index)
            {
                return Some((index, flow));
            }
        }
        None
    }
}
