//! A hash table that grows and shrinks by one small page at a time (W. Litwin, "Linear hashing", VLDB 1980), so that
//! nobody's packet waits for a rehash of all flows. Its hash is keyed: a peer cannot aim at a page.
#![forbid(unsafe_code)]

use crate::blocks::BlockVec;
use crate::rng::Rng;
use alloc::vec::Vec;
use core::hash::Hasher;
use siphasher::sip::SipHasher13;

/// Entries of a page when the table grows, in the mean: while a page waits for its turn to be split it has up to twice as
/// many.
const PAGE: usize = 16;

/// Entries for which a full page gets room: there is as much unused room in a page, at most twice that.
const ROOM: usize = 4;

/// Entries of a page that are found by their tag: what fits into a cache line with the rest of a [`Page`]. Few pages ever
/// have more; what is beyond is compared one by one.
const TAGS: usize = 40;

/// The secret of a table's hash: drawn once, known to nobody outside.
#[derive(Clone, Copy)]
pub(super) struct HashKey(u64, u64);

impl HashKey {
    pub fn draw(rng: &mut Rng) -> HashKey {
        HashKey(rng.u64(), rng.u64())
    }

    /// SipHash-1-3.
    #[inline]
    fn hash(self, key: &impl Key) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        key.feed(&mut hasher);
        hasher.finish()
    }
}

/// What an entry is found by.
pub(super) trait Key: Copy + Eq {
    /// Feeds all of it to `hasher`, in whole words: putting octets together takes longer than to hash them.
    fn feed(&self, hasher: &mut SipHasher13);
}

/// Entries whose hashes end alike.
#[repr(align(64))]
struct Page<K, V> {
    /// The first 8 bits of each entry's hash.
    tags: [[u8; 8]; TAGS / 8],
    entries: Vec<(K, V)>,
}

const _: () = assert!(size_of::<Page<u32, u32>>() == 64);

fn tag_of(hash: u64) -> u8 {
    (hash >> 56) as u8
}

impl<K, V> Page<K, V> {
    const fn new() -> Page<K, V> {
        Page { tags: [[0; 8]; TAGS / 8], entries: Vec::new() }
    }

    /// Where the entry is that has this hash and for which `is_it` holds.
    fn position(&self, hash: u64, is_it: impl Fn(&(K, V)) -> bool) -> Option<usize> {
        let mut candidates = self.candidates(tag_of(hash));
        while candidates != 0 {
            let bit = candidates.trailing_zeros() as usize;
            let index = bit % 8 * 8 + bit / 8;
            if self.entries.get(index).is_some_and(&is_it) {
                return Some(index);
            }
            candidates &= candidates - 1;
        }
        let beyond = self.entries.get(TAGS..)?;
        beyond.iter().position(is_it).map(|index| TAGS + index)
    }

    /// Bit `8 * i + j` is set if octet `i` of word `j` of the tags is `tag`, and rarely if it is not. All octets of a word
    /// are compared at once, and no branch depends on them.
    fn candidates(&self, tag: u8) -> u64 {
        const LOWEST: u64 = u64::from_le_bytes([0x01; 8]);
        const HIGHEST: u64 = u64::from_le_bytes([0x80; 8]);
        self.tags.iter().zip(0..).fold(0, |found, (word, j)| {
            let zero_if_equal = u64::from_le_bytes(*word) ^ (LOWEST * u64::from(tag));
            let zeros = zero_if_equal.wrapping_sub(LOWEST) & !zero_if_equal & HIGHEST;
            found | zeros >> (7 - j)
        })
    }
}

/// The table.
pub(super) struct LinearHash<K, V> {
    secret: HashKey,
    /// Never none. Those before the highest power of two below their number may have a younger sibling, that power
    /// further on; who has none yet holds the sibling's entries too.
    pages: BlockVec<Page<K, V>>,
    len: usize,
    /// Entries that were copied from one place to another.
    #[cfg(test)]
    moved: usize,
}

impl<K: Key, V: Copy + Eq> LinearHash<K, V> {
    pub fn new(secret: HashKey) -> LinearHash<K, V> {
        let mut pages = BlockVec::new();
        pages.push(Page::new());
        LinearHash {
            secret,
            pages,
            len: 0,
            #[cfg(test)]
            moved: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn hash(&self, key: &K) -> u64 {
        self.secret.hash(key)
    }

    pub fn get(&self, key: &K) -> Option<V> {
        let hash = self.hash(key);
        let page = self.pages.get(self.page_of(hash))?;
        let index = page.position(hash, |(k, _)| k == key)?;
        page.entries.get(index).map(|(_, value)| *value)
    }

    /// Adds, or changes the value.
    pub fn insert(&mut self, key: K, value: V) {
        let hash = self.hash(&key);
        let at = self.page_of(hash);
        let Some(page) = self.pages.get_mut(at) else { return };
        if let Some(index) = page.position(hash, |(k, _)| *k == key) {
            page.entries[index].1 = value;
            return;
        }
        self.push(at, hash, (key, value));
        self.len += 1;
        if self.len > PAGE * self.pages.len() {
            self.split();
        }
    }

    /// Removes `key` if it has this value. Whether it had.
    pub fn remove(&mut self, key: &K, value: V) -> bool {
        self.remove_where(self.hash(key), |entry| *entry == (*key, value)).is_some()
    }

    /// Removes the entry with this value, which no other has, and with a key of this hash; returns the key.
    pub fn remove_value(&mut self, hash: u64, value: V) -> Option<K> {
        self.remove_where(hash, |(_, v)| *v == value)
    }

    fn remove_where(&mut self, hash: u64, is_it: impl Fn(&(K, V)) -> bool) -> Option<K> {
        let at = self.page_of(hash);
        let (secret, page) = (self.secret, self.pages.get_mut(at));
        let page = page?;
        let index = page.position(hash, is_it)?;
        let (removed, _) = page.entries.swap_remove(index);
        // The last entry is in its place now.
        if let Some((key, _)) = page.entries.get(index)
            && let Some(tag) = page.tags.as_flattened_mut().get_mut(index)
        {
            *tag = tag_of(secret.hash(key));
        }
        self.len -= 1;
        self.trim(at);
        if self.pages.len() > 1 && self.len < PAGE / 2 * self.pages.len() {
            self.merge();
        }
        Some(removed)
    }

    fn page_of(&self, hash: u64) -> usize {
        let pages = self.pages.len();
        let mask = pages.next_power_of_two() - 1;
        let page = hash as usize & mask;
        if page < pages { page } else { page & mask >> 1 }
    }

    /// One page more: it gets its entries from its elder sibling.
    fn split(&mut self) {
        let new = self.pages.len();
        let old = elder_of(new);
        let Some(page) = self.pages.get_mut(old) else { return };
        let entries = core::mem::take(&mut page.entries);
        page.entries.reserve_exact(entries.len() / 2);
        let mut page = Page::new();
        page.entries.reserve_exact(entries.len() / 2);
        self.pages.push(page);
        self.spread(entries);
        self.trim(old);
        self.trim(new);
    }

    /// One page less.
    fn merge(&mut self) {
        if let Some(younger) = self.pages.pop() {
            self.spread(younger.entries);
        }
    }

    /// Puts entries where they belong now.
    fn spread(&mut self, entries: Vec<(K, V)>) {
        for entry in entries {
            let hash = self.hash(&entry.0);
            self.push(self.page_of(hash), hash, entry);
        }
    }

    fn push(&mut self, at: usize, hash: u64, entry: (K, V)) {
        let Some(page) = self.pages.get_mut(at) else { return };
        #[cfg(test)]
        {
            self.moved += 1;
        }
        if page.entries.len() == page.entries.capacity() {
            page.entries.reserve_exact(ROOM);
            #[cfg(test)]
            {
                self.moved += page.entries.len();
            }
        }
        if let Some(tag) = page.tags.as_flattened_mut().get_mut(page.entries.len()) {
            *tag = tag_of(hash);
        }
        page.entries.push(entry);
    }

    /// Gives back room that a page has too much of.
    fn trim(&mut self, at: usize) {
        let Some(page) = self.pages.get_mut(at) else { return };
        let entries = &mut page.entries;
        if entries.capacity() - entries.len() >= 2 * ROOM {
            entries.shrink_to(entries.len() + ROOM);
            #[cfg(test)]
            {
                self.moved += entries.len();
            }
        }
    }
}

/// The page whose entries were split between it and `page`, which is not the first.
fn elder_of(page: usize) -> usize {
    page ^ 1 << page.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BLOCK;
    use crate::rng::Rng;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Entries that one call may copy: all of two pages, and neither is often three times as full as the mean.
    const MOST_MOVED: usize = 2 * 6 * PAGE;

    fn table(seed: u64) -> LinearHash<u32, u64> {
        LinearHash::new(HashKey::draw(&mut Rng::from_number(seed)))
    }

    impl LinearHash<u32, u64> {
        /// What `act` returns, and that it did little.
        fn watch<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
            let before = self.moved;
            let result = act(self);
            assert!(self.moved - before <= MOST_MOVED, "{} moved at once", self.moved - before);
            result
        }

        /// Entries for which there is memory.
        fn room(&self) -> usize {
            self.pages.iter().map(|page| page.entries.capacity()).sum()
        }

        fn assert_invariants(&self) {
            assert_eq!(self.pages.iter().map(|page| page.entries.len()).sum::<usize>(), self.len);
            for (at, page) in self.pages.iter().enumerate() {
                assert!(page.entries.capacity() - page.entries.len() < 2 * ROOM);
                for (index, (key, _)) in page.entries.iter().enumerate() {
                    let hash = self.hash(key);
                    assert_eq!(self.page_of(hash), at);
                    assert!(index >= TAGS || page.tags.as_flattened()[index] == tag_of(hash));
                }
            }
            let (pages, len) = (self.pages.len(), self.len);
            assert!(
                len <= PAGE * pages && (pages == 1 || len >= PAGE / 2 * pages),
                "{len} in {pages}"
            );
        }
    }

    #[test]
    fn growing_and_shrinking_copies_a_few_entries_at_a_time() {
        const MANY: u32 = 300_000;
        let mut table = table(1);
        for key in 0..MANY {
            table.watch(|t| t.insert(key, 1));
        }
        table.assert_invariants();
        assert!(table.moved < 8 * MANY as usize, "{} copied to grow", table.moved);
        assert!(table.room() < MANY as usize * 13 / 10, "room for {}", table.room());
        let longest = table.pages.iter().map(|page| page.entries.len()).max();
        assert!(longest < Some(6 * PAGE), "{longest:?}");
        table.moved = 0;
        for key in 0..MANY {
            assert!(table.watch(|t| t.remove(&key, 1)));
        }
        table.assert_invariants();
        assert!(table.moved < 8 * MANY as usize, "{} copied to shrink", table.moved);
        assert!(table.room() < 2 * ROOM && table.pages.capacity() <= BLOCK, "memory came back");
    }

    #[test]
    fn coming_and_going_for_long_leaves_no_trace() {
        const MANY: u32 = 10_000;
        let mut table = table(2);
        (0..MANY).for_each(|key| table.insert(key, 0));
        let (pages, room) = (table.pages.len(), table.room());
        for key in MANY..50 * MANY {
            table.watch(|t| t.insert(key, 0));
            assert!(table.watch(|t| t.remove(&(key - MANY), 0)));
        }
        table.assert_invariants();
        assert!(table.pages.len() <= pages + 1);
        assert!(table.room() < room * 12 / 10, "{} after {room}", table.room());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u64),
        Get(u32),
        Remove(u32, u64),
        /// Of consecutive keys, so that pages split and merge.
        Grow(u32, u32),
        Shrink(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0..600u32;
        prop_oneof![
            2 => (key(), 0..2u64).prop_map(|(k, v)| Step::Insert(k, v)),
            1 => key().prop_map(Step::Get),
            2 => (key(), 0..2u64).prop_map(|(k, v)| Step::Remove(k, v)),
            1 => (key(), 0..300u32).prop_map(|(k, n)| Step::Grow(k, n)),
            1 => (key(), 0..300u32).prop_map(|(k, n)| Step::Shrink(k, n)),
        ]
    }

    proptest! {
        #[test]
        fn it_equals_a_map(seed in any::<u64>(), steps in vec(step(), 1..60)) {
            let mut table = table(seed);
            let mut model = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        table.watch(|t| t.insert(key, value));
                        model.insert(key, value);
                    }
                    Step::Get(key) => prop_assert_eq!(table.get(&key), model.get(&key).copied()),
                    Step::Remove(key, value) => {
                        let had = model.get(&key) == Some(&value);
                        prop_assert_eq!(table.watch(|t| t.remove(&key, value)), had);
                        if had {
                            model.remove(&key);
                        }
                    }
                    Step::Grow(from, count) => for key in from..from + count {
                        table.watch(|t| t.insert(key, u64::from(key) + 2));
                        model.insert(key, u64::from(key) + 2);
                    },
                    Step::Shrink(from, count) => for key in from..from + count {
                        let value = u64::from(key) + 2;
                        let had = model.get(&key) == Some(&value);
                        let hash = table.hash(&key);
                        prop_assert_eq!(table.watch(|t| t.remove_value(hash, value)), had.then_some(key));
                        if had {
                            model.remove(&key);
                        }
                    },
                }
                table.assert_invariants();
                prop_assert_eq!(table.len(), model.len());
            }
            prop_assert!((0..900).all(|key| table.get(&key) == model.get(&key).copied()));
        }
    }
}
