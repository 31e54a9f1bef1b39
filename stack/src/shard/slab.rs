//! Sessions by number: dense slots, reused, with a generation that makes old numbers harmless.
#![forbid(unsafe_code)]

use crate::blocks::BlockVec;
use core::num::NonZeroU32;

/// A session of a shard. A number is never mistaken for a later session in the same slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId {
    index: u32,
    /// Never 0, so that what owns a flow fits into 8 octets.
    generation: NonZeroU32,
}

impl SessionId {
    /// One number, unique for the life of the shard (as long as a slot is reused less than 2^32 times).
    pub fn number(self) -> u64 {
        u64::from(self.generation.get() - 1) << 32 | u64::from(self.index)
    }
}

struct Slot<T> {
    /// Counted up when a session leaves.
    generation: NonZeroU32,
    content: Content<T>,
}

enum Content<T> {
    Taken(T),
    /// And the slot freed before it that is free still.
    Free(Option<u32>),
}

impl<T> Slot<T> {
    fn value(&self) -> Option<&T> {
        match &self.content {
            Content::Taken(value) => Some(value),
            Content::Free(_) => None,
        }
    }
}

/// The slots. Freed slots are used first, the latest before the others.
pub(super) struct Slab<T> {
    slots: BlockVec<Slot<T>>,
    /// The slot freed last.
    free: Option<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub fn new() -> Slab<T> {
        Slab { slots: BlockVec::new(), free: None, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The number that the next `insert` will give.
    pub fn next_id(&self) -> SessionId {
        let index = self.free.unwrap_or(self.slots.len() as u32);
        let slot = self.slots.get(index as usize);
        SessionId { index, generation: slot.map_or(NonZeroU32::MIN, |slot| slot.generation) }
    }

    pub fn insert(&mut self, value: T) -> SessionId {
        let id = self.next_id();
        self.len += 1;
        match self.slots.get_mut(id.index as usize) {
            Some(slot) => {
                if let Content::Free(next) = slot.content {
                    self.free = next;
                }
                slot.content = Content::Taken(value);
            }
            None => {
                let content = Content::Taken(value);
                self.slots.push(Slot { generation: id.generation, content });
            }
        }
        id
    }

    pub fn at(&self, id: SessionId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize)?;
        slot.value().filter(|_| slot.generation == id.generation)
    }

    pub fn at_mut(&mut self, id: SessionId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        match &mut slot.content {
            Content::Taken(value) if slot.generation == id.generation => Some(value),
            _ => None,
        }
    }

    pub fn remove(&mut self, id: SessionId) -> Option<T> {
        self.at(id)?;
        let slot = self.slots.get_mut(id.index as usize)?;
        let freed = core::mem::replace(&mut slot.content, Content::Free(self.free));
        slot.generation = slot.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free = Some(id.index);
        self.len -= 1;
        match freed {
            Content::Taken(value) => Some(value),
            Content::Free(_) => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(Slot::value)
    }

    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.value().is_some())
            .map(|(i, slot)| SessionId { index: i as u32, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

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
    #[test]
    fn a_slot_is_hardly_larger_than_what_is_in_it() {
        type Content = (Box<u8>, u64, u64, bool);
        assert!(size_of::<Slot<Content>>() <= size_of::<Content>() + 8);
    }

    proptest! {
        #[test]
        fn it_equals_a_map_of_numbers(steps in vec((0..3u8, any::<u32>()), 1..300)) {
            let mut slab = Slab::new();
            let (mut model, mut ids) = (HashMap::new(), Vec::<SessionId>::new());
            let mut peak = 0;
            for (step, pick) in steps {
                if step < 2 {
                    let id = slab.insert(pick);
                    prop_assert_eq!(model.insert(id.number(), pick), None);
                    ids.push(id);
                } else if let Some(&id) = ids.get(pick as usize % ids.len().max(1)) {
                    prop_assert_eq!(slab.remove(id), model.remove(&id.number()));
                }
                peak = peak.max(model.len());
                prop_assert_eq!((slab.len(), slab.ids().count()), (model.len(), model.len()));
                for id in &ids {
                    prop_assert_eq!(slab.at(*id), model.get(&id.number()));
                    prop_assert_eq!(slab.at_mut(*id).map(|v| *v), model.get(&id.number()).copied());
                }
            }
            prop_assert_eq!(slab.slots.len(), peak);
        }
    }
}
