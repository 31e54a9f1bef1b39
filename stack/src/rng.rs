//! Randomness as an argument: keys, nonces, initial sequence numbers and ports are drawn from here.
#![forbid(unsafe_code)]

use rand_chacha::ChaCha12Rng;
use rand_core::{Rng as _, SeedableRng};

/// A cryptographically strong generator, seeded by the caller: from the operating system in an appliance, from a
/// printed number in a simulation.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha12Rng);

impl Rng {
    /// From 32 octets of entropy.
    pub fn from_seed(seed: [u8; 32]) -> Rng {
        Rng(ChaCha12Rng::from_seed(seed))
    }

    /// From a small number, for reproducible runs only.
    pub fn from_number(seed: u64) -> Rng {
        Rng(ChaCha12Rng::seed_from_u64(seed))
    }

    /// 32 random bits.
    pub fn u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// 64 random bits.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound` (0 for a bound of 0).
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.u32()) * u64::from(bound)) >> 32) as u32
    }

    /// True with probability `p` (for simulated links).
    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && f64::from(self.u32()) < p * 4_294_967_296.0
    }
}
