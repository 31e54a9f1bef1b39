//! A temporary directory for configurations, control sockets and logs of the appliances that a subcommand starts.
#![forbid(unsafe_code)]

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

/// The directory: gone when dropped, at a signal and at a panic, unless it is to be kept.
#[derive(Debug)]
pub struct Workspace(Directory);

#[derive(Clone, Debug)]
struct Directory {
    path: PathBuf,
    keep: bool,
}

/// What becomes of the directory at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtTheEnd {
    /// It is removed.
    Remove,
    /// It stays, and its place is printed.
    Keep,
}

impl Workspace {
    /// Makes it for the subcommand `what`. Starts a thread: call it after all that needs a process with a single one.
    pub fn new(what: &str, at_the_end: AtTheEnd) -> io::Result<Workspace> {
        let path = std::env::temp_dir().join(format!("plait-{what}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        let directory = Directory { path, keep: at_the_end == AtTheEnd::Keep };
        clean_up_on_signals(directory.clone())?;
        Ok(Workspace(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Directory {
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

/// Namespaces and devices go with the process, its children with the threads that started them; the directory is left.
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
