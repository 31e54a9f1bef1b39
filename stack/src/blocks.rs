//! A vector and a queue that grow by one block at a time: no push moves more than half a block, whatever is in them.
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Entries of a block.
pub const BLOCK: usize = 1 << 10;

/// An emptied [`BlockVec`] keeps its first block if that has no more room than this, in entries.
const KEPT: usize = 64;

/// A vector in blocks. What was popped gives its memory back.
#[derive(Clone, Debug)]
pub struct BlockVec<T> {
    /// All but the last are full. Only the first may be empty.
    blocks: Vec<Vec<T>>,
    len: usize,
}

impl<T> BlockVec<T> {
    /// An empty one; allocates nothing.
    pub const fn new() -> BlockVec<T> {
        BlockVec { blocks: Vec::new(), len: 0 }
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends.
    pub fn push(&mut self, value: T) {
        self.len += 1;
        match self.blocks.last_mut() {
            Some(last) if last.len() < BLOCK => last.push(value),
            last => {
                // Small ones stay small: only the first block grows by doubling.
                let mut block = Vec::with_capacity(if last.is_some() { BLOCK } else { 0 });
                block.push(value);
                self.blocks.push(block);
            }
        }
    }

    /// Takes the last.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.blocks.last_mut()?;
        let value = last.pop()?;
        self.len -= 1;
        if last.is_empty() && last.capacity() > KEPT {
            self.blocks.pop();
        }
        Some(value)
    }

    /// The entry at `index`, from 0.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.blocks.get(index / BLOCK)?.get(index % BLOCK)
    }

    /// As [`BlockVec::get`].
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.blocks.get_mut(index / BLOCK)?.get_mut(index % BLOCK)
    }

    /// For how many entries it holds memory.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.blocks.iter().map(Vec::capacity).sum()
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flatten()
    }
}

impl<T> Default for BlockVec<T> {
    fn default() -> BlockVec<T> {
        BlockVec::new()
    }
}

/// A queue in blocks: first in, first out. Blocks that have been used up give their memory back.
#[derive(Clone, Debug)]
pub struct BlockQueue<T> {
    /// Entries leave the first and enter the last. Only a block that is both may be empty.
    blocks: VecDeque<VecDeque<T>>,
}

impl<T> BlockQueue<T> {
    /// An empty one; allocates nothing.
    pub const fn new() -> BlockQueue<T> {
        BlockQueue { blocks: VecDeque::new() }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.blocks.front().is_none_or(VecDeque::is_empty)
    }

    /// Appends.
    pub fn push_back(&mut self, value: T) {
        match self.blocks.back_mut() {
            Some(last) if last.len() < BLOCK => last.push_back(value),
            last => {
                let mut block = VecDeque::with_capacity(if last.is_some() { BLOCK } else { 0 });
                block.push_back(value);
                self.blocks.push_back(block);
            }
        }
    }

    /// Takes the first.
    pub fn pop_front(&mut self) -> Option<T> {
        let first = self.blocks.front_mut()?;
        let value = first.pop_front();
        if first.is_empty() && self.blocks.len() > 1 {
            self.blocks.pop_front();
        }
        value
    }
}

impl<T> Default for BlockQueue<T> {
    fn default() -> BlockQueue<T> {
        BlockQueue::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_push_moves_nothing_but_the_first_block() {
        let mut blocks = BlockVec::new();
        (0..BLOCK + 1).for_each(|i| blocks.push(i));
        let places = |blocks: &BlockVec<usize>| -> Vec<*const usize> {
            blocks.iter().take(BLOCK + 1).map(|entry| entry as *const usize).collect()
        };
        let before = places(&blocks);
        (0..10 * BLOCK).for_each(|i| blocks.push(i));
        assert_eq!(places(&blocks), before);
    }

    #[test]
    fn what_is_emptied_keeps_next_to_no_memory() {
        let mut blocks = BlockVec::new();
        (0..10 * BLOCK).for_each(|i| blocks.push(i));
        while blocks.pop().is_some() {}
        assert!(blocks.capacity() <= KEPT);
        let mut queue = BlockQueue::new();
        (0..10 * BLOCK).for_each(|i| queue.push_back(i));
        while queue.pop_front().is_some() {}
        assert!(queue.blocks.iter().map(VecDeque::capacity).sum::<usize>() <= BLOCK);
    }

    proptest! {
        #[test]
        fn they_equal_the_containers_without_blocks(steps in vec((any::<bool>(), 1..BLOCK), 1..40)) {
            let (mut blocks, mut queue) = (BlockVec::new(), BlockQueue::new());
            let (mut model, mut line) = (Vec::new(), VecDeque::new());
            for (grows, count) in steps {
                for i in 0..count {
                    if grows {
                        blocks.push(i);
                        queue.push_back(i);
                        model.push(i);
                        line.push_back(i);
                    } else {
                        prop_assert_eq!(blocks.pop(), model.pop());
                        prop_assert_eq!(queue.pop_front(), line.pop_front());
                    }
                }
                prop_assert_eq!((blocks.len(), queue.is_empty()), (model.len(), line.is_empty()));
                prop_assert!(blocks.iter().eq(&model));
                for index in [0, count, BLOCK - 1, BLOCK, model.len()] {
                    prop_assert_eq!(blocks.get(index), model.get(index));
                    prop_assert_eq!(blocks.get_mut(index), model.get_mut(index));
                }
            }
        }
    }
}
