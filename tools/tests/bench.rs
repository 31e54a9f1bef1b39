//! `plait bench` as a user runs it, short: that it measures, not what.
#![forbid(unsafe_code)]

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Runs it with Plait and without a proxy; the file that it writes.
fn bench(what: &str, arguments: &[&str]) -> Value {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{what}.json"));
    let picture = file.with_extension("svg");
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["bench", what, "--contenders", "plait,none", "--rounds", "1", "--json"])
        .arg(&file)
        .arg("--svg")
        .arg(&picture)
        .args(arguments)
        .output()
        .expect("plait bench");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let text = std::fs::read_to_string(&file).expect("the JSON file");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["bench"], what);
    let drawn = std::fs::read_to_string(&picture).expect("the SVG file");
    let drawn = roxmltree::Document::parse(&drawn).expect("XML");
    let is_drawn =
        |name: &str| drawn.descendants().any(|node| node.text().map(str::trim) == Some(name));
    let contenders = report["contenders"].as_array().expect("contenders");
    assert_eq!(contenders.len(), 2);
    for entry in contenders {
        let name = entry["contender"].as_str().expect("a name");
        assert!(out.contains(name), "{out}");
        assert!(is_drawn(name), "{name} is not in the picture");
        assert_eq!(entry["rounds"].as_array().map(Vec::len), Some(1), "{entry:#}\n{err}");
        assert_eq!(entry["failures"], Value::Array(vec![]));
    }
    report
}

fn number(entry: &Value, name: &str) -> f64 {
    entry["rounds"][0][name].as_f64().unwrap_or_else(|| panic!("{name} in {entry:#}"))
}

#[test]
fn chain_moves_octets_and_counts_what_it_costs() {
    let report = bench("chain", &["--octets", "20000000", "--seconds", "5", "--connections", "2"]);
    for entry in report["contenders"].as_array().into_iter().flatten() {
        assert!(number(entry, "gbit_per_s") > 0.0);
        assert_eq!(number(entry, "octets"), 20e6, "all of it arrives");
        assert!(number(entry, "chain_cpu_s_per_gb") >= 0.0);
        let links = &entry["rounds"][0]["links"];
        let shares: f64 = links.as_array().into_iter().flatten().filter_map(Value::as_f64).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{links}");
    }
}

#[test]
fn connections_are_counted_and_none_fails() {
    for closer in ["server", "client"] {
        let arguments = ["--total", "400", "--at-once", "4", "--first-close", closer];
        let report = bench("connections", &arguments);
        for entry in report["contenders"].as_array().into_iter().flatten() {
            assert!(number(entry, "connections_per_s") > 0.0);
            assert!(number(entry, "last_tenth_per_s") > 0.0);
            assert_eq!((number(entry, "complete"), number(entry, "failed")), (400.0, 0.0));
        }
    }
}

#[test]
fn latency_has_its_percentiles_in_order() {
    let report = bench("latency", &["--seconds", "1", "--rate", "200"]);
    for entry in report["contenders"].as_array().into_iter().flatten() {
        let [p50, p99, p999] = ["p50_us", "p99_us", "p999_us"].map(|name| number(entry, name));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= p999);
    }
}

#[test]
fn a_contender_that_does_not_exist_is_refused_with_the_names_of_those_that_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["bench", "chain", "--contenders", "squid"])
        .output()
        .expect("plait bench");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("haproxy-tcp"), "{text}");
}

#[test]
fn memory_has_a_line_for_every_setting_and_draws_both_kinds_of_devices() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-memory.json");
    let picture = file.with_extension("svg");
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["bench", "memory", "--segments", "10000", "--subflows", "1,2"])
        .args(["--connections", "1", "--checksum", "off", "--json"])
        .arg(&file)
        .arg("--svg")
        .arg(&picture)
        .output()
        .expect("plait bench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&file).expect("the JSON file");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let results = report["results"].as_array().expect("results");
    assert_eq!(results.len(), 4);
    for result in results {
        assert!(result["umcp"]["median"].as_f64().is_some_and(|ns| ns > 0.0), "{result:#}");
        assert!(result["gbit_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{result:#}");
    }
    let drawn = std::fs::read_to_string(&picture).expect("the SVG file");
    let drawn = roxmltree::Document::parse(&drawn).expect("XML");
    for title in ["offloads off", "offloads on"] {
        let mut words = drawn.descendants().filter_map(|node| node.text());
        assert!(words.any(|word| word.contains(title)), "{title}");
    }
}

#[test]
fn transfer_compares_both_ways_with_linux_over_the_same_losses() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-transfer.json");
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["bench", "transfer", "--cells", "10mbit-20ms-loss1", "--rounds", "1"])
        .args(["--contenders", "linux,plait-sends,plait-receives,relay-sends,relay-receives"])
        .args(["--seconds", "1", "--json"])
        .arg(&file)
        .output()
        .expect("plait bench");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let text = std::fs::read_to_string(&file).expect("the JSON file");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let [cell] = report["cells"].as_array().expect("cells").as_slice() else {
        panic!("one cell: {report:#}");
    };
    let contenders = cell["contenders"].as_array().expect("contenders");
    assert_eq!(contenders.len(), 5);
    for entry in contenders {
        let name = entry["contender"].as_str().expect("a name");
        assert!(out.contains(name), "{out}");
        assert!(number(entry, "goodput") > 0.0 && number(entry, "steady") > 0.0, "{entry:#}");
        assert!(entry["of_linux"].as_f64().is_some(), "{entry:#}");
        let lost = entry["rounds"][0]["link"][0]["lost"].as_u64();
        assert!(lost > Some(0), "the link loses data: {entry:#}");
        assert!(number(entry, "retransmitted") > 0.0, "{name} sent again what was lost: {entry:#}");
    }
}
