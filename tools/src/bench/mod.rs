//! `plait bench`: Plait against its rivals, interleaved on one machine.
//!
//! [`contender`] is what is compared ([`haproxy`] the rival's set-up), [`rounds`] runs them in turn and sums up, [`machine`]
//! counts processor time, [`plot`] draws. One file per measurement: [`chain`] (throughput; [`bulk`] is its load),
//! [`connections`] (short connections), [`latency`] (requests over a kept one), [`memory`] (what a conversion point costs by
//! itself), [`transfer`] (TCP against the kernel's over links that lose and reorder).
#![forbid(unsafe_code)]

mod bulk;
mod chain;
mod connections;
mod contender;
mod haproxy;
mod latency;
mod machine;
mod memory;
mod plot;
mod rounds;
mod transfer;

use clap::{Args, Subcommand};
use std::process::ExitCode;

/// Measure Plait against HAProxy with the kernel's MPTCP or TCP, and against no proxy at all.
///
/// Every measurement builds client - MCP1 - two links - MCP2 - server in network namespaces of its own, without shaping
/// (`transfer`: one emulated link), and removes them. Contenders run in turn (A B C A B C ...); what counts are the ratios of one run.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Chain(chain::ChainArgs),
    Connections(connections::ConnectionsArgs),
    Latency(latency::LatencyArgs),
    Memory(memory::MemoryArgs),
    Transfer(transfer::TransferArgs),
}

/// Runs the measurement. Call it while the process has a single thread.
pub fn run(args: &BenchArgs) -> ExitCode {
    let result = match &args.what {
        What::Chain(args) => chain::run(args),
        What::Connections(args) => connections::run(args),
        What::Latency(args) => latency::run(args),
        What::Memory(args) => memory::run(args),
        What::Transfer(args) => transfer::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plait bench: {error}");
            ExitCode::FAILURE
        }
    }
}
