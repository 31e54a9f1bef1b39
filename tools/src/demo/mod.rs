//! `plait demo`: real traffic through a pair of appliances and two emulated links, measured and judged.
//!
//! [`steps`] is the demonstration, [`memory`] what is left of it without namespaces, [`appliance`] starts `plait run` in
//! a namespace, [`report`] holds the numbers, the criteria and the table.
#![forbid(unsafe_code)]

mod appliance;
mod memory;
mod report;
mod steps;

use clap::{Args, ValueEnum};
use pcap_tests::link::{Profile, parse};
use pcap_tests::netns::{Privilege, die_with_parent};
use report::Report;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

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
    /// Run `plait` with these arguments, killed when the process that started it goes.
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    child: Option<Vec<OsString>>,
}

/// Runs the demonstration; fails if anything did not hold. Call it while the process has a single thread.
pub fn run(args: &DemoArgs) -> ExitCode {
    if let Some(child) = &args.child {
        return become_child(child);
    }
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
            let workspace = Workspace::new(args.keep)?;
            clean_up_on_signals(workspace.0.clone())?;
            steps::run(args, privilege, &workspace.0)
        }
        (Err(impossible), None) => memory::run(args, &impossible.to_string()),
        (Err(impossible), Some(_)) => Err(io::Error::other(impossible)),
    }
}

/// Becomes another `plait` process, which the kernel kills when the demonstration ends in whatever way.
fn become_child(arguments: &[OsString]) -> ExitCode {
    let replaced = die_with_parent().and_then(|()| {
        let program = std::env::current_exe()?;
        Err::<(), _>(Command::new(program).args(arguments).exec())
    });
    if let Err(error) = replaced {
        eprintln!("plait demo: starting an appliance: {error}");
    }
    ExitCode::FAILURE
}

/// A temporary directory, gone when dropped unless it is to be kept.
struct Workspace(Directory);

#[derive(Clone)]
struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Workspace {
    fn new(keep: bool) -> io::Result<Workspace> {
        let path = std::env::temp_dir().join(format!("plait-demo-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Workspace(Directory { path, keep }))
    }
}

impl Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn remove(&self) {
        if self.keep {
            eprintln!("kept: {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// Namespaces and devices go with the process, the appliances with the threads that started them; the directory is left.
fn clean_up_on_signals(directory: Directory) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    if cfg!(panic = "abort") {
        // Nothing will be dropped then.
        let (report, directory) = (std::panic::take_hook(), directory.clone());
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            directory.remove();
        }));
    }
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\ninterrupted");
            directory.remove();
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}
