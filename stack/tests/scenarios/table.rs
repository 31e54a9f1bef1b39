//! Goodput by loss and number of paths, kept as a table: a regression is a diff of numbers.

use crate::common::*;
use stack::testkit::reference::Transfer;
use std::fmt::Write;

#[test]
fn goodput_by_loss_and_paths() {
    let mut table = String::from(
        "links of 10 Mbit/s, 15 ms one way, download, Mbit/s\nloss %   1 path  2 paths  3 paths\n",
    );
    for loss in [0.0, 0.1, 1.0, 3.0] {
        write!(table, "{loss:<6}").unwrap();
        for paths in 1..=3 {
            let links = vec![link(10, 15).loss(loss / 100.0); paths];
            let octets = paths as u64 * if loss > 0.5 { 1_000_000 } else { 3_000_000 };
            let outcome = exact(&mut over(30, &links), &Transfer::new(0, octets));
            write!(table, "{:9.1}", outcome.down.goodput() / 1e6).unwrap();
        }
        table.push('\n');
    }
    if std::env::var("SIM_SEED").is_err() {
        insta::assert_snapshot!(table);
    }
}
