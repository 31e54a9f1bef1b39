//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
#![forbid(unsafe_code)]

/// Folds a 32-bit accumulator into a 16-bit ones-complement sum.
pub const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// So few words, as of headers, are quicker without vectors.
const FEW_WORDS: usize = 24;
/// So many words at a time: the sum of their upper halves fits in 32 bits.
const MAX_WORDS: usize = 1 << 16;

/// Folded ones-complement sum (not complemented) of `bytes`, an odd last octet padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    // In native byte order, which only swaps the result (RFC 1071 2 B).
    let (words, rest) = bytes.as_chunks();
    let mut total = match words.len() {
        ..FEW_WORDS => sum_few(words),
        _ => words.chunks(MAX_WORDS).map(sum_many).sum(),
    };
    let (halves, rest) = rest.as_chunks();
    for half in halves {
        total += u64::from(u16::from_ne_bytes(*half));
    }
    if let [last] = rest {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total = (total & 0xffff_ffff) + (total >> 32);
    u16::from_be(fold((total & 0xffff) as u32 + (total >> 16) as u32))
}

fn sum_few(words: &[[u8; 4]]) -> u64 {
    words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Sum of the 16-bit halves of at most [`MAX_WORDS`] words, in a shape that the compiler turns into vector adds without
/// unpacking: words are added modulo 2^32, and their upper halves by themselves, which gives the sum of the lower ones.
fn sum_many(words: &[[u8; 4]]) -> u64 {
    let (mut both, mut upper) = (0u32, 0u32);
    for word in words {
        let word = u32::from_ne_bytes(*word);
        both = both.wrapping_add(word);
        upper += word >> 16;
    }
    let lower = both.wrapping_sub(upper << 16);
    u64::from(upper) + u64::from(lower)
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

    #[test]
    fn the_greatest_sums_do_not_overflow() {
        for (len, expected) in [(4 * MAX_WORDS, 0xffff), (12 * MAX_WORDS + 3, 0xff00)] {
            assert_eq!(sum(&alloc::vec![0xff; len]), expected);
        }
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
