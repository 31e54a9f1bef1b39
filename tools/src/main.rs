//! `plait`: one program, one file per subcommand.
#![forbid(unsafe_code)]

/// Bridges come and go in crowds, with a dozen allocations of few sizes each: glibc's malloc then puts neighbours together
/// for milliseconds at a time. No huge pages: making one stalls a worker for longer than it saves.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod appliance;
mod bench;
mod child;
mod demo;
mod emulate;
mod run;
mod show;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// An MPTCP Conversion Point in user space.
///
/// TCP comes in on one side and goes out as Multipath TCP on the other; neither the client, nor the server, nor this
/// machine's kernel needs MPTCP.
///
/// To see it work (as root):        plait demo
/// To run one:                      plait run --config docs/examples/umcp.toml
/// To see what a running one does:  plait show connections
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::RunArgs),
    Show(show::ShowArgs),
    Demo(demo::DemoArgs),
    Emulate(Box<emulate::EmulateArgs>),
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    Child(child::ChildArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Emulate(args) => emulate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Child(args) => child::run(&args),
    }
}
