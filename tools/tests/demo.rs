//! `plait demo` as a user runs it: it judges itself, and these tests hold it to its word.
#![forbid(unsafe_code)]

use serde_json::Value;
use std::process::Command;

fn demo(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["demo", "--json"])
        .args(arguments)
        .output()
        .expect("plait demo");
    let progress = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {progress}"));
    assert!(output.status.success(), "{report:#}\n{progress}");
    report
}

#[test]
fn in_namespaces_with_af_xdp_everything_holds() {
    let report = demo(&["--io", "af-xdp", "--seconds", "5"]);
    assert_eq!(report["io"], "af-xdp");
    assert_eq!(report["alone"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["fall_through"], true);
    assert_eq!(report["transfers"], report["intact"]);
}

#[test]
fn in_memory_everything_holds() {
    let report = demo(&["--io", "memory", "--seconds", "3"]);
    assert_eq!(report["io"], "memory");
    assert_eq!(report["fall_through"], Value::Null);
}

#[test]
fn a_link_that_makes_no_sense_is_refused_with_a_reason() {
    let output = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["demo", "--link", "100furlongs,5ms"])
        .output()
        .expect("plait demo");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("100furlongs"), "{text}");
}
