//! Packet scripts: one conversation each, packet by packet, in virtual time. `scripts/README.md` has the language.
//!
//! `SCRIPT=persist cargo test -p plait-stack --test scripts` plays those with `persist` in their path.

use std::path::{Path, PathBuf};

#[path = "scripts/runner/mod.rs"]
mod runner;
#[path = "scripts/runner_tests.rs"]
mod runner_tests;

use runner::{Family, run};

/// All `.pkt` files below `dir`, in order.
fn scripts(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the scripts' directory is readable") {
        let path = entry.expect("the scripts' directory is readable").path();
        if path.is_dir() {
            found.extend(scripts(&path));
        } else if path.extension().is_some_and(|extension| extension == "pkt") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_script_is_kept_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let filter = std::env::var("SCRIPT").unwrap_or_default();
    let mut failures = Vec::new();
    let mut played = 0;
    for path in scripts(&root) {
        let name = path.strip_prefix(&root).expect("it is below").display().to_string();
        if !name.contains(&filter) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a script is text");
        played += 1;
        for family in [Family::V4, Family::V6] {
            if let Err(why) = run(&text, family) {
                failures.push(format!("{name} ({family:?}):{why}"));
            }
        }
    }
    assert!(played > 0, "no script has {filter:?} in its path");
    assert!(failures.is_empty(), "\n{} failures:\n{}", failures.len(), failures.join("\n"));
}
