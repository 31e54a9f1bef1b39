//! A `main` for tests in network namespaces (`harness = false`).
//!
//! Entering a user namespace needs a process with a single thread, which Rust's own test harness is not.
#![forbid(unsafe_code)]

use crate::netns::Privilege;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

/// A test: its name and what it does; it fails by panicking.
pub type Trial = (&'static str, fn());

/// Runs, one after another, the trials whose names contain one of the command line's words (all if there is none), once
/// namespaces can be had; says why not otherwise. Fails if a trial does.
pub fn run(trials: &[Trial]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| {
        words.is_empty()
            || words
                .iter()
                .any(|word| if has("--exact") { name == *word } else { name.contains(*word) })
    };
    let chosen: Vec<_> = trials.iter().filter(|(name, _)| wanted(name)).collect();
    if has("--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    match Privilege::acquire() {
        Ok(Privilege::Root) => {}
        Ok(Privilege::UserNamespace) => println!("without root, in a user namespace"),
        Err(error) => {
            println!("{} tests skipped: {error}", chosen.len());
            return ExitCode::SUCCESS;
        }
    }
    let mut failed = 0;
    for (name, trial) in chosen {
        let begun = Instant::now();
        let held = catch_unwind(trial).is_ok();
        failed += u32::from(!held);
        let verdict = if held { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:.1?})", begun.elapsed());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
