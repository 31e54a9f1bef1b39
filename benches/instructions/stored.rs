//! The stored figures, and what differs from them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

/// Where they are stored.
pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
/// A figure may differ by so much, in per cent.
const BAND: f64 = 3.0;
/// What to do about a difference.
pub const HOW: &str = "If that is meant, store them and commit benches/instructions.toml:\n  \
    cargo run --release -p plait-benches --bin instructions -- --bless";

/// Instructions by name.
pub type Figures = BTreeMap<String, f64>;

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stored {
    /// The compiler.
    pub rustc: String,
    /// Per segment of 1,420 octets for `relay`, of 1,448 for `ends`; per connection; per entry of a table.
    pub instructions: Figures,
}

impl Stored {
    /// As stored.
    pub fn load() -> Result<Stored, String> {
        let text = fs::read_to_string(PATH).map_err(|error| format!("{PATH}: {error}"))?;
        toml::from_str(&text).map_err(|error| format!("{PATH}: {error}"))
    }

    /// Stores it.
    pub fn save(&self) -> Result<(), String> {
        let head = "# Counted by `cargo run --release -p plait-benches --bin instructions -- --bless` (docs/PERFORMANCE.md).\n";
        let text = toml::to_string(self).map_err(|error| error.to_string())?;
        fs::write(PATH, format!("{head}{text}")).map_err(|error| format!("{PATH}: {error}"))
    }
}

/// Which compiler there is.
pub fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or("an unknown compiler".into(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

/// Stored figures beside those counted now.
#[derive(Debug)]
pub struct Comparison {
    /// For people.
    pub table: String,
    /// How many are outside the band, or only on one side.
    pub differing: usize,
    /// How many there are.
    pub all: usize,
}

/// Compares.
pub fn compare(stored: &Figures, now: &Figures) -> Comparison {
    let names: BTreeSet<&String> = stored.keys().chain(now.keys()).collect();
    let mut table =
        format!("{:58} {:>10} {:>10} {:>9}\n", "instructions", "stored", "now", "change");
    let mut differing = 0;
    for &name in &names {
        let (before, after) = (stored.get(name).copied(), now.get(name).copied());
        let (change, verdict) = match (before, after) {
            (Some(before), Some(after)) => {
                let change = (after / before - 1.0) * 100.0;
                let verdict = match change {
                    change if change > BAND => "  DEARER",
                    change if change < -BAND => "  CHEAPER",
                    _ => "",
                };
                (format!("{change:+.1} %"), verdict)
            }
            (None, _) => (String::new(), "  NOT STORED"),
            (_, None) => (String::new(), "  NOT COUNTED"),
        };
        differing += usize::from(!verdict.is_empty());
        let show = |count: Option<f64>| count.map_or("-".into(), |count| format!("{count:.1}"));
        let (before, after) = (show(before), show(after));
        let _ = writeln!(table, "{name:58} {before:>10} {after:>10} {change:>9}{verdict}");
    }
    Comparison { table, differing, all: names.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(all: &[(&str, f64)]) -> Figures {
        all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn a_figure_outside_the_band_is_named_with_both_values() {
        let stored = figures(&[("dear", 100.0), ("cheap", 100.0), ("same", 100.0)]);
        let now = figures(&[("dear", 103.5), ("cheap", 96.5), ("same", 102.9)]);
        let comparison = compare(&stored, &now);
        assert_eq!((comparison.differing, comparison.all), (2, 3));
        let line = |name: &str| {
            let found = comparison.table.lines().find(|line| line.starts_with(name));
            found.expect("a line").to_owned()
        };
        assert!(line("dear").ends_with("100.0      103.5    +3.5 %  DEARER"), "{}", line("dear"));
        assert!(line("cheap").ends_with("-3.5 %  CHEAPER"), "{}", line("cheap"));
        assert!(line("same").ends_with("+2.9 %"), "{}", line("same"));
    }

    #[test]
    fn a_figure_on_one_side_only_differs() {
        let comparison = compare(&figures(&[("gone", 1.0)]), &figures(&[("new", 1.0)]));
        assert_eq!(comparison.differing, 2);
        assert!(
            comparison.table.contains("NOT COUNTED") && comparison.table.contains("NOT STORED")
        );
    }

    #[test]
    fn what_is_stored_can_be_read() {
        let stored = Stored::load().expect("the file in the repository");
        assert!(stored.instructions.values().all(|count| *count > 0.0));
        assert!(stored.instructions.len() > 20);
    }
}
