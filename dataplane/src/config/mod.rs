//! Configuration: a TOML file, checked as a whole before anything starts.
//!
//! [`schema`] is the file as written, [`value`] its texts, [`check`] gives it meaning and collects every mistake,
//! [`diagnostic`] says them. `docs/CONFIGURATION.md` is the operator's page; a test compares it with the schema.
#![forbid(unsafe_code)]

pub mod check;
pub mod crew;
pub mod diagnostic;
pub mod schema;
mod syntax;
#[cfg(test)]
mod tests;
pub mod value;

pub use check::MssRule;
pub use diagnostic::{ConfigErrors, Diagnostic};

use crate::run::WorkerConfig;
use crew::{CrewConfig, PoolConfig};
use schema::{File, LogLevel};
use stack::mcp::McpConfig;
use std::path::{Path, PathBuf};

/// A checked configuration: every name resolves, every address is owned once, every remote can be reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the node is called.
    pub name: String,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Least severe level that is logged.
    pub log: LogLevel,
    /// How many workers there are, and where.
    pub crew: CrewConfig,
    /// Memory for packets.
    pub pool: PoolConfig,
    /// Ports, steering and routes: a worker that is alone.
    pub worker: WorkerConfig,
    /// What is converted, and how.
    pub mcp: McpConfig,
    /// What the MSS that is announced follows from; `mcp` does not know the devices.
    pub mss: MssRule,
    /// What is allowed but probably not meant.
    pub warnings: Option<ConfigErrors>,
    /// The file as written.
    pub file: File,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}: name a file that exists and that this user can read", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It does not say what Plait understands.
    #[error(transparent)]
    Invalid(#[from] ConfigErrors),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, or with all that is wrong in it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Ok(Config::parse(&path.display().to_string(), &text)?)
    }

    /// Checks `text`; `file` is what messages call it.
    ///
    /// # Errors
    /// The first mistake against TOML or the schema, or else every mistake in what the file says.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigErrors> {
        let parsed = toml::from_str::<File>(text)
            .map_err(|error| ConfigErrors::new(file, text, vec![syntax::explain(text, &error)]))?;
        check::check(file, text, parsed)
    }
}
