//! The greatest value of a window that moves on (Kathleen Nichols' algorithm, as Linux has it in `win_minmax`).
#![forbid(unsafe_code)]

/// A value and when it was seen; time is whatever the owner counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    at: u32,
    value: u32,
}

/// The best value of the window, the best since that one, and the best since the second.
#[derive(Clone, Debug, Default)]
pub(super) struct MaxFilter {
    best: [Seen; 3],
}

impl MaxFilter {
    /// Takes a value in and returns the greatest of the last `window`.
    pub(super) fn update(&mut self, window: u32, at: u32, value: u32) -> u32 {
        let seen = Seen { at, value };
        let age = |seen: Seen| at.wrapping_sub(seen.at);
        if value >= self.best[0].value || age(self.best[2]) > window {
            self.best = [seen; 3];
            return value;
        }
        if value >= self.best[1].value {
            (self.best[1], self.best[2]) = (seen, seen);
        } else if value >= self.best[2].value {
            self.best[2] = seen;
        }
        if age(self.best[0]) > window {
            self.best = [self.best[1], self.best[2], seen];
            if age(self.best[0]) > window {
                self.best = [self.best[1], seen, seen];
            }
        } else if self.best[1].at == self.best[0].at && age(self.best[0]) > window / 4 {
            // A quarter has passed without a second best: what comes now is it.
            (self.best[1], self.best[2]) = (seen, seen);
        } else if self.best[2].at == self.best[1].at && age(self.best[0]) > window / 2 {
            self.best[2] = seen;
        }
        self.best[0].value
    }

    /// The greatest value when it was last updated.
    pub(super) fn get(&self) -> u32 {
        self.best[0].value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use alloc::vec::Vec;

    #[test]
    fn a_greater_value_replaces_all_and_an_old_one_goes() {
        let mut filter = MaxFilter::default();
        assert_eq!(filter.update(10, 1, 50), 50);
        assert_eq!(filter.update(10, 5, 30), 50);
        assert_eq!(filter.update(10, 9, 20), 50);
        assert_eq!(filter.update(10, 12, 10), 30, "50 is eleven old");
        assert_eq!(filter.update(10, 13, 60), 60);
        assert_eq!((filter.update(10, 30, 5), filter.get()), (5, 5), "all of them are old");
    }

    /// It may lose a value that is neither the best nor recent, never one in the window that is greater than all since,
    /// and it never makes one up.
    #[test]
    fn it_agrees_with_a_naive_window_within_a_quarter() {
        let mut rng = Rng::from_number(7);
        let (mut filter, mut all) = (MaxFilter::default(), Vec::new());
        for at in 0..2_000u32 {
            let value = 1_000 + rng.below(1_000);
            all.push(value);
            let got = filter.update(10, at, value);
            let window = &all[all.len().saturating_sub(11)..];
            assert!(window.contains(&got), "at {at}");
            assert!(got >= *all[all.len().saturating_sub(3)..].iter().max().unwrap());
        }
    }
}
