//! `plait run`: an appliance from its configuration file, until a signal ends it.
#![forbid(unsafe_code)]

use clap::Args;
use dataplane::appliance::{Appliance, Reloader};
use dataplane::config::Config;
use dataplane::config::schema::LogLevel;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// The configuration is wrong: another attempt with the same file ends the same way (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;

/// Run a conversion point.
///
/// Runs until SIGINT or SIGTERM. SIGHUP reads the file again: rules, remotes, services, paths, timers, limits and node.log
/// take effect for new connections; where anything else differs nothing changes, and the log says so. Logs go to
/// standard error; RUST_LOG overrides node.log. Exit status: 0 stopped by a signal, 1 could not start or failed,
/// 78 the configuration is wrong.
///
/// Examples:
///   plait run --config /etc/plait/umcp.toml --check
///   plait run --config /etc/plait/umcp.toml
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    /// The configuration file (docs/CONFIGURATION.md, docs/examples).
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Check the file, say what is wrong with it, and stop.
    #[arg(long)]
    check: bool,
}

/// Checks, starts and waits.
pub fn run(args: &RunArgs) -> ExitCode {
    let config = match load(&args.config) {
        Ok(config) => config,
        Err(complaints) => {
            eprintln!("{complaints}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if args.check {
        println!("{}: OK", args.config.display());
        return ExitCode::SUCCESS;
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(config.log))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    let set_level = |level| drop(handle.reload(filter(level)));
    match serve(config, &args.config, set_level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// What is logged: RUST_LOG, or else from `level` on.
fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level.as_str()))
}

/// The checked file; what is allowed but probably not meant goes to standard error.
fn load(path: &Path) -> Result<Config, String> {
    let config = Config::load(path).map_err(|error| error.to_string())?;
    if let Some(warnings) = &config.warnings {
        for line in warnings.to_string().lines() {
            eprintln!("warning: {line}");
        }
    }
    Ok(config)
}

fn serve(config: Config, path: &Path, set_level: impl Fn(LogLevel)) -> Result<(), String> {
    // Before anything starts, so that no signal finds us unprepared.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(|e| e.to_string())?;
    let appliance = Appliance::start(config).map_err(|error| error.to_string())?;
    let (stopper, reloader) = (appliance.stopper(), appliance.reloader());
    let handle = signals.handle();
    let ended = thread::spawn(move || {
        let ended = appliance.join();
        handle.close();
        ended
    });
    for signal in &mut signals {
        if signal == SIGHUP {
            on_hangup(&reloader, path, &set_level);
            continue;
        }
        info!(signal, "stopping; connections are cut, traffic goes on through the kernel");
        stopper.stop();
    }
    match ended.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("waiting for the workers failed".to_owned()),
    }
}

/// Reads the file again.
fn on_hangup(reloader: &Reloader, path: &Path, set_level: impl Fn(LogLevel)) {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return error!("SIGHUP: nothing changes; the file is wrong:\n{error}"),
    };
    let level = config.log;
    match reloader.reload(config) {
        Ok(tables) if tables.is_empty() => info!("SIGHUP: the file is what runs"),
        Ok(tables) => {
            set_level(level);
            info!(tables = tables.join(", "), "SIGHUP: changed for new connections");
        }
        Err(error) => warn!("SIGHUP: nothing changes: {error}"),
    }
}
