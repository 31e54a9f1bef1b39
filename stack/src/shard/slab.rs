//! Sessions by number: dense slots, reused, with a generation that makes old numbers harmless.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// A session of a shard. A number is never mistaken for a later session in the same slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId {
    index: u32,
    generation: u32,
}

impl SessionId {
    /// One number, unique for the life of the shard (as long as a slot is reused less than 2^32 times).
    pub fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

struct Slot<T> {
    /// Counted up when a session leaves.
    generation: u32,
    value: Option<T>,
}

/// The slots. Freed slots are used first, the latest before the others.
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub fn new() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The number that the next `insert` will give.
    pub fn next_id(&self) -> SessionId {
        match self.free.last() {
            Some(&index) => {
                let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
                SessionId { index, generation }
            }
            None => SessionId { index: self.slots.len() as u32, generation: 0 },
        }
    }

    pub fn insert(&mut self, value: T) -> SessionId {
        let id = self.next_id();
        if self.free.pop().is_none() {
            self.slots.push(Slot { generation: 0, value: None });
        }
        if let Some(slot) = self.slots.get_mut(id.index as usize) {
            slot.value = Some(value);
        }
        id
    }

    pub fn at(&self, id: SessionId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize)?;
        slot.value.as_ref().filter(|_| slot.generation == id.generation)
    }

    pub fn at_mut(&mut self, id: SessionId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.value.as_mut().filter(|_| slot.generation == id.generation)
    }

    pub fn remove(&mut self, id: SessionId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.value.is_some())
            .map(|(i, slot)| SessionId { index: i as u32, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_number_does_not_find_the_new_session_in_its_slot() {
        let mut slab = Slab::new();
        let expected = slab.next_id();
        let a = slab.insert("a");
        assert_eq!(a, expected);
        assert_eq!(slab.remove(a), Some("a"));
        let expected = slab.next_id();
        let b = slab.insert("b");
        assert_eq!(b, expected);
        assert_ne!(a.number(), b.number());
        assert_eq!((slab.at(a), slab.at(b)), (None, Some(&"b")));
        assert_eq!((slab.remove(a), slab.len()), (None, 1));
        assert_eq!(slab.ids().collect::<Vec<_>>(), [b]);
    }
}
