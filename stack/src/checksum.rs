//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
#![forbid(unsafe_code)]

/// Folds a 32-bit accumulator into a 16-bit ones-complement sum.
pub const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Folded ones-complement sum (not complemented) of `bytes`, an odd last octet padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    // Native-endian 32-bit words into eight 64-bit lanes (the compiler turns them into vector adds); byte order only
    // swaps the result (RFC 1071 2 B).
    let mut lanes = [0u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = blocks.remainder().chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut pairs = words.remainder().chunks_exact(2);
    for pair in &mut pairs {
        total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff_ffff) + (total >> 32);
    u16::from_be(fold(total as u32))
}

/// Ones-complement addition of two folded sums.
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u32 + b as u32)
}

/// The checksum field after a 16-bit word of the covered data changed from `old` to `new` (RFC 1624 eqn. 3).
pub const fn update(field: u16, old: u16, new: u16) -> u16 {
    !fold((!field) as u32 + (!old) as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        fold(
            bytes
                .chunks(2)
                .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
                .sum(),
        )
    }

    proptest! {
        #[test]
        fn wide_sum_equals_the_naive_one(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum(&bytes), naive(&bytes));
        }

        #[test]
        fn incremental_update_equals_recomputation(mut bytes in proptest::collection::vec(any::<u8>(), 2..64), at in 0usize..31, new: u16) {
            bytes.truncate(bytes.len() & !1);
            let at = (at * 2) % bytes.len();
            let field = !sum(&bytes);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let mut changed: Vec<u8> = bytes.clone();
            changed[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let updated = update(field, old, new);
            // 0 and 0xffff are the same number in ones complement.
            // A receiver accepts it: data and field together sum to all ones (zero has two names).
            prop_assert!([0, 0xffff].contains(&add(sum(&changed), updated)));
        }
    }
}
