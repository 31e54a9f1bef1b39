//! Instructions that the hot paths take, counted by callgrind and compared with those stored in `instructions.toml`.
//!
//! [`work`] runs under callgrind, [`callgrind`] reads what it counted, [`stored`] compares.
#![forbid(unsafe_code)]

mod callgrind;
mod stored;
mod work;

use clap::Parser;
use std::process::ExitCode;
use stored::{Figures, Stored};

/// Count instructions per segment, per connection and per table entry, and compare with what is stored.
///
/// Fails if a figure differs from the stored one by more than 3 %, upwards or downwards. Run it as
/// `cargo run --release -p plait-benches --bin instructions`; it needs valgrind and takes half a minute.
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Store what was counted.
    #[arg(long)]
    bless: bool,
    /// Only what has this in its name; nothing is missing then.
    #[arg(long, conflicts_with = "bless", default_value = "", hide_default_value = true)]
    only: String,
    /// Only do the work that is counted.
    #[arg(long, hide = true)]
    work: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.work {
        work::all(&arguments.only);
        return ExitCode::SUCCESS;
    }
    match compare(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<ExitCode, String> {
    comparable()?;
    let now = Stored { rustc: stored::rustc(), instructions: callgrind::count(&arguments.only)? };
    if arguments.bless {
        now.save()?;
        println!("{} figures stored in {}", now.instructions.len(), stored::PATH);
        return Ok(ExitCode::SUCCESS);
    }
    let before = Stored::load()?;
    let expected: Figures = before
        .instructions
        .iter()
        .filter(|(name, _)| name.contains(&arguments.only))
        .map(|(name, count)| (name.clone(), *count))
        .collect();
    let comparison = stored::compare(&expected, &now.instructions);
    print!("{}", comparison.table);
    if comparison.differing == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{} of {} figures differ. {}", comparison.differing, comparison.all, stored::HOW);
    if before.rustc != now.rustc {
        println!("Stored with {}, built with {}: that may be all.", before.rustc, now.rustc);
    }
    Ok(ExitCode::FAILURE)
}

/// Fails where the figures would be other ones.
fn comparable() -> Result<(), String> {
    if cfg!(debug_assertions) {
        return Err("counts a release build only: cargo run --release".into());
    }
    if !cfg!(target_arch = "x86_64") || cfg!(target_feature = "sse3") {
        return Err("the figures are those of x86-64 without extensions: no -C target-cpu".into());
    }
    Ok(())
}
