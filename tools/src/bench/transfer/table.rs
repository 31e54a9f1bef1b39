//! What came of the transfers, for people.
#![forbid(unsafe_code)]

use super::round::{Contender, Round};
use super::{CellReport, Entry, Report};
use std::fmt::Write as _;

/// Plait is to be at least here.
const WANTED: f64 = 0.95;
/// Marks what is below.
const BELOW: &str = "<";

/// A line for each contender in each cell.
pub(super) fn table(report: &Report) -> String {
    let mut out = format!(
        "plait bench transfer: one connection over an emulated link, {}, Linux {}, {} rounds in turn\n\
         Mbit/s of payload from the handshake's end to the last octet: median (least to greatest)\n\n",
        report.congestion, report.kernel, report.rounds
    );
    let _ = writeln!(
        out,
        "{:30} {:15} {:>28} {:>9} {:>10} {:>9} {:>11} {:>9} {:>8}",
        "cell", "", "Mbit/s", "of linux", "steady", "of linux", "sent again", "timeouts", "machine"
    );
    for CellReport { cell, contenders, .. } in &report.cells {
        for (index, entry) in contenders.iter().enumerate() {
            let name = if index == 0 { cell.name.as_str() } else { "" };
            line(&mut out, name, entry);
        }
    }
    out.push('\n');
    out + &summary(report)
}

fn line(out: &mut String, cell: &str, entry: &Entry) {
    let median = |of: fn(&Round) -> f64| entry.spread(of).unwrap_or_default().median;
    let goodput = entry.spread(|round| round.goodput).map_or("NO RESULT".into(), |s| s.show(2));
    let _ = writeln!(
        out,
        "{cell:30} {:15} {goodput:>28} {:>9} {:>10.2} {:>9} {:>11.0} {:>9.0} {:>6.0} %",
        entry.contender.name(),
        ratio(entry, entry.of_linux),
        median(|round| round.steady),
        ratio(entry, entry.steady_of_linux),
        median(|round| round.retransmitted as f64),
        median(|round| round.timeouts as f64),
        median(|round| round.machine) * 100.0,
    );
}

fn ratio(entry: &Entry, ratio: Option<f64>) -> String {
    match ratio {
        None => "-".into(),
        Some(_) if entry.contender == Contender::Linux => String::new(),
        Some(ratio) if ratio < WANTED => format!("{BELOW} {ratio:.2}"),
        Some(ratio) => format!("{ratio:.2}"),
    }
}

/// Who is at or above what is wanted in how many cells, and who failed.
fn summary(report: &Report) -> String {
    let mut out = String::new();
    let entries = |who: Contender| {
        report.cells.iter().filter_map(move |cell| {
            cell.contenders
                .iter()
                .find(|entry| entry.contender == who)
                .map(|e| (&cell.cell.name, e))
        })
    };
    for who in [Contender::PlaitSends, Contender::PlaitReceives] {
        let ratios: Vec<_> =
            entries(who).filter_map(|(name, entry)| Some((name, entry.of_linux?))).collect();
        let below: Vec<String> = ratios
            .iter()
            .filter(|(_, ratio)| *ratio < WANTED)
            .map(|(name, ratio)| format!("{name} {ratio:.2}"))
            .collect();
        if !ratios.is_empty() {
            let (good, all) = (ratios.len() - below.len(), ratios.len());
            let _ = writeln!(
                out,
                "{}: at least {WANTED} of linux in {good} of {all} cells; below: {}",
                who.name(),
                if below.is_empty() { "none".into() } else { below.join(", ") }
            );
        }
    }
    for CellReport { cell, contenders, .. } in &report.cells {
        for entry in contenders {
            for failure in &entry.failures {
                let words = failure.lines().next().unwrap_or_default();
                let _ = writeln!(out, "{} {}: FAILED: {words}", cell.name, entry.contender.name());
            }
        }
    }
    out
}
