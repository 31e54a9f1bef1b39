//! `plait child`: another program, which the kernel kills when the one that started it goes.
#![forbid(unsafe_code)]

use clap::Args;
use pcap_tests::netns::die_with_parent;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Run a program that is killed when the thread that started it ends.
#[derive(Args, Debug)]
pub struct ChildArgs {
    /// The program and its arguments.
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// A command for `program` that ends with the thread that starts it, in whatever way that ends.
pub fn command(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("child").arg("--").arg(program);
    Ok(command)
}

/// Becomes the program.
pub fn run(args: &ChildArgs) -> ExitCode {
    let Some((program, arguments)) = args.program.split_first() else {
        return ExitCode::FAILURE;
    };
    let error = match die_with_parent() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    };
    eprintln!("plait: starting {}: {error}", program.display());
    ExitCode::FAILURE
}
