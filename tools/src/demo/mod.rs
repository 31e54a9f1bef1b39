//! `plait demo`: real traffic through a pair of appliances and two emulated links, measured and judged.
//!
//! [`steps`] is the demonstration, [`memory`] what is left of it without namespaces, [`report`] holds the numbers, the
//! criteria and the table.
#![forbid(unsafe_code)]

mod memory;
mod report;
mod steps;

use crate::workspace::{AtTheEnd, Workspace};
use clap::{Args, ValueEnum};
use pcap_tests::link::{Profile, parse};
use pcap_tests::netns::Privilege;
use report::Report;
use std::io;
use std::process::ExitCode;

/// How the appliances drive their devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DemoIo {
    /// AF_XDP sockets (needs root).
    AfXdp,
    /// AF_PACKET sockets with virtio-net headers.
    AfPacket,
    /// The portable `pnet_datalink`.
    Pnet,
    /// No devices and no kernel: everything simulated in this process.
    Memory,
}

impl DemoIo {
    fn name(self) -> &'static str {
        match self {
            DemoIo::AfXdp => "af-xdp",
            DemoIo::AfPacket => "af-packet",
            DemoIo::Pnet => "pnet",
            DemoIo::Memory => "memory",
        }
    }
}

/// Build client - uMCP - two links - dMCP - server in network namespaces, move real traffic, and judge it.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// How the appliances drive their devices; without it AF_XDP if it can be had, else AF_PACKET, and everything in
    /// memory where there can be no namespaces.
    #[arg(long, value_enum)]
    io: Option<DemoIo>,
    /// A link: `RATE,DELAY[,LOSS[,QUEUE]]`, delay one way; give it once per link.
    #[arg(long = "link", value_name = "LINK", value_parser = parse::profile,
          default_values = ["100mbit,5ms,0,300", "100mbit,15ms,0,300"])]
    links: Vec<Profile>,
    /// Seconds per transfer.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(3..=600))]
    seconds: u64,
    /// Print the result as JSON (progress goes to standard error).
    #[arg(long)]
    json: bool,
    /// Keep the directory with the appliances' configuration and logs.
    #[arg(long)]
    keep: bool,
}

/// Runs the demonstration; fails if anything did not hold. Call it while the process has a single thread.
pub fn run(args: &DemoArgs) -> ExitCode {
    let result = measure(args).and_then(|report| {
        if args.json {
            println!("{}", serde_json::to_string_pretty(&report).map_err(io::Error::other)?);
        } else {
            print!("{}", report.table());
        }
        Ok(report.passed())
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("plait demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In namespaces where there can be some, else in memory.
fn measure(args: &DemoArgs) -> io::Result<Report> {
    if args.links.len() > 8 {
        return Err(io::Error::other("at most 8 links"));
    }
    if args.io == Some(DemoIo::Memory) {
        return memory::run(args, "as asked");
    }
    match (Privilege::acquire(), args.io) {
        (Ok(privilege), _) => {
            let at_the_end = if args.keep { AtTheEnd::Keep } else { AtTheEnd::Remove };
            let workspace = Workspace::new("demo", at_the_end)?;
            steps::run(args, privilege, &workspace)
        }
        (Err(impossible), None) => memory::run(args, &impossible.to_string()),
        (Err(impossible), Some(_)) => Err(io::Error::other(impossible)),
    }
}
