//! The table: every variation at every rate and round-trip time, for every congestion control.
//!
//! `GOODPUT=write cargo test -p plait-stack --test goodput` measures it anew into `goodput/table.txt` and
//! `docs/CONGESTION.md`. Without it the test fails if a cell has left its band.

use crate::experiment::*;
use stack::testkit::bottleneck::Loss;
use stack::time::Duration;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

/// What is compared. A new congestion control is one line.
const ALGORITHMS: &[(&str, Sender)] =
    &[("NewReno", NEWRENO), ("CUBIC", CUBIC), ("CUBIC, paced", PACED_CUBIC), ("BBR", BBR)];

/// Bits per second.
const RATES: [(&str, u64); 4] = [
    ("10 Mbit/s", 10_000_000),
    ("100 Mbit/s", 100_000_000),
    ("1 Gbit/s", 1_000_000_000),
    ("10 Gbit/s", 10_000_000_000),
];

/// Milliseconds.
const RTTS: [u64; 4] = [1, 20, 100, 300];

/// A name, and what differs from a clean path with a queue of one bandwidth-delay product and one flow.
type Variation = (&'static str, fn(&mut Cell));

const VARIATIONS: &[Variation] = &[
    ("clean", |_| {}),
    ("queue 0.1 BDP", |cell| cell.queue = 0.1),
    ("queue 4 BDP", |cell| cell.queue = 4.0),
    ("loss 0.1 %", |cell| cell.loss = Loss::Random(0.001)),
    ("loss 1 %", |cell| cell.loss = Loss::Random(0.01)),
    ("loss 3 %", |cell| cell.loss = Loss::Random(0.03)),
    ("bursts", |cell| cell.loss = Loss::Bursts(0.001, 10, Duration::from_millis(10))),
    ("reordering 5 ms", |cell| cell.late = Duration::from_millis(5)),
    ("reordering 50 ms", |cell| cell.late = Duration::from_millis(50)),
    ("reordering 5 ms, loss 1 %", |cell| {
        (cell.late, cell.loss) = (Duration::from_millis(5), Loss::Random(0.01));
    }),
    ("4 flows", |cell| cell.flows = 4),
    ("4 flows, queue 0.1 BDP", |cell| (cell.flows, cell.queue) = (4, 0.1)),
    ("4 flows, loss 1 %", |cell| (cell.flows, cell.loss) = (4, Loss::Random(0.01))),
];

/// How far a cell may move before somebody has to look: so much, and such a share of what it was. Where chance
/// decides, any change of the code is a new throw of the dice.
struct Band(f64, f64);

const GOODPUT: Band = Band(2.0, 0.12);
const RETRANSMITTED: Band = Band(0.2, 0.3);
const WAIT: Band = Band(2.0, 0.3);
const JAIN: Band = Band(0.08, 0.0);

/// Per cent of what the link carries, per cent of what was sent, milliseconds, index of Jain.
type Row = [f64; 4];

/// Congestion control, variation, rate, round-trip time: what a line begins with.
fn key(algorithm: &str, variation: &str, rate: &str, rtt: u64) -> String {
    format!("{algorithm}; {variation}; {rate}; {rtt} ms")
}

fn cell(rate: u64, rtt: u64, vary: fn(&mut Cell)) -> Cell {
    let rtt = Duration::from_millis(rtt);
    let mut cell = Cell {
        rate,
        rtt,
        queue: 1.0,
        loss: Loss::Random(0.0),
        late: Duration::ZERO,
        flows: 1,
        warm: (rtt * 40).max(Duration::from_secs(2)),
        steady: (rtt * 100).max(Duration::from_secs(5)),
    };
    vary(&mut cell);
    cell
}

/// Every fiftieth segment of 10 Gbit/s by itself, with thousands of holes at a time, would take longer than all the rest.
fn is_measured(cell: &Cell) -> bool {
    cell.late.is_zero() || cell.rate < 10_000_000_000
}

/// Where chance decides the mean of three runs counts.
fn mean(cell: &Cell, sender: Sender) -> Row {
    let seeds = if cell.loss == Loss::Random(0.0) && cell.late.is_zero() { 1..=1 } else { 1..=3 };
    let runs: Vec<Outcome> = seeds.map(|seed| cell.run(sender, seed)).collect();
    let over = |f: fn(&Outcome) -> f64| runs.iter().map(f).sum::<f64>() / runs.len() as f64;
    [
        over(|o| o.goodput * 100.0),
        over(|o| o.retransmitted * 100.0),
        over(|o| o.wait.as_secs_f64() * 1e3),
        over(|o| o.jain),
    ]
}

/// All cells, on as many threads as there are cores.
fn measure() -> BTreeMap<String, Row> {
    let jobs: Vec<_> = (ALGORITHMS.iter())
        .flat_map(|algorithm| VARIATIONS.iter().map(move |variation| (algorithm, variation)))
        .flat_map(|(a, v)| RATES.iter().rev().map(move |rate| (a, v, rate)))
        .flat_map(|(a, v, rate)| RTTS.iter().map(move |rtt| (a, v, rate, *rtt)))
        .filter(|(_, (_, vary), (_, rate), rtt)| is_measured(&cell(*rate, *rtt, *vary)))
        .collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ((name, algorithm), (variation, vary), (speed, rate), rtt) = *job;
                    let row = mean(&cell(*rate, rtt, *vary), *algorithm);
                    found.lock().unwrap().insert(key(name, variation, speed, rtt), row);
                }
            });
        }
    });
    found.into_inner().unwrap()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

const TABLE: &str = "tests/goodput/table.txt";
const PAGE: &str = "../docs/CONGESTION.md";
const BEGIN: &str = "<!-- goodput: generated -->\n";
const END: &str = "<!-- goodput: end -->";

/// A line a cell, in the order of the lists above.
fn print(cells: &BTreeMap<String, Row>) -> String {
    let mut out = String::from(
        "# congestion control; variation; rate; RTT; goodput %; sent again %; p95 wait ms; Jain\n",
    );
    for (name, _) in ALGORITHMS {
        for (variation, _) in VARIATIONS {
            for (rate, _) in RATES {
                for rtt in RTTS {
                    let key = key(name, variation, rate, rtt);
                    let Some([goodput, again, wait, jain]) = cells.get(&key) else { continue };
                    writeln!(out, "{key}; {goodput:.1}; {again:.2}; {wait:.2}; {jain:.2}").unwrap();
                }
            }
        }
    }
    out
}

fn parse(table: &str) -> BTreeMap<String, Row> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let fields: Vec<&str> = line.split("; ").collect();
        let numbers: Vec<f64> = fields[4..].iter().map(|n| n.parse().unwrap()).collect();
        (fields[..4].join("; "), numbers.try_into().unwrap())
    });
    parsed.collect()
}

/// The table as the documentation shows it.
fn markdown(cells: &BTreeMap<String, Row>) -> String {
    let mut out = String::new();
    for (variation, vary) in VARIATIONS {
        let many = cell(RATES[0].1, 1, *vary).flows > 1;
        write!(out, "\n### {variation}\n| | |").unwrap();
        RTTS.iter().for_each(|rtt| write!(out, " {rtt} ms |").unwrap());
        out.push_str("\n|---|---|---|---|---|---|\n");
        for (rate, _) in RATES {
            for (name, _) in ALGORITHMS {
                write!(out, "| {rate} | {name} |").unwrap();
                for rtt in RTTS {
                    let row = cells.get(&key(name, variation, rate, rtt));
                    let Some([goodput, again, wait, jain]) = row else {
                        out.push_str(" |");
                        continue;
                    };
                    write!(out, " **{goodput:.1}** / {again:.2} / {wait:.1}").unwrap();
                    let jain = if many { format!(" / {jain:.2} |") } else { " |".into() };
                    out.push_str(&jain);
                }
                out.push('\n');
            }
        }
    }
    out.push('\n');
    out
}

/// The page with the table in its place.
fn page(text: &str, table: &str) -> String {
    let begin = text.find(BEGIN).expect("a place for the table") + BEGIN.len();
    let end = text.find(END).expect("its end");
    format!("{}{table}{}", &text[..begin], &text[end..])
}

fn moved(was: &Row, is: &Row) -> bool {
    let bands = [GOODPUT, RETRANSMITTED, WAIT, JAIN];
    let apart = |((was, is), Band(much, share)): ((&f64, &f64), Band)| {
        (was - is).abs() > much + share * was.abs()
    };
    was.iter().zip(is).zip(bands).any(apart)
}

#[test]
fn no_cell_of_the_table_leaves_its_band() {
    let cells = measure();
    let (table, docs) = (path(TABLE), path(PAGE));
    let text = fs::read_to_string(&docs).unwrap();
    if std::env::var("GOODPUT").is_ok_and(|what| what == "write") {
        fs::write(&table, print(&cells)).unwrap();
        let cells = parse(&print(&cells));
        fs::write(&docs, page(&text, &markdown(&cells))).unwrap();
        return;
    }
    let known = parse(&fs::read_to_string(&table).unwrap());
    let mut wrong = String::new();
    for (key, is) in &cells {
        match known.get(key) {
            Some(was) if moved(was, is) => writeln!(wrong, "{key}: {was:.2?} -> {is:.2?}").unwrap(),
            Some(_) => {}
            None => writeln!(wrong, "{key}: new").unwrap(),
        }
    }
    assert!(wrong.is_empty() && known.len() == cells.len(), "GOODPUT=write accepts:\n{wrong}");
    assert!(page(&text, &markdown(&known)) == text, "docs/CONGESTION.md is not the table's");
}
