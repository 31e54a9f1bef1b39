//! `plait run` under test.
#![forbid(unsafe_code)]

use pcap_tests::netns::{Namespace, Process};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A directory of the test's own; gone when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("plait-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A running appliance; killed when dropped.
pub struct Appliance {
    process: Process,
    toml: PathBuf,
    /// The `[node]` table of its configuration.
    node: String,
    log: PathBuf,
    control: PathBuf,
}

impl Appliance {
    /// Starts `plait run` in `namespace` with `config`, to which the `[node]` table is added, and waits until it answers.
    pub fn start(namespace: &Namespace, name: &str, config: &str, scratch: &Scratch) -> Appliance {
        let file = |extension: &str| scratch.path().join(format!("{name}.{extension}"));
        let (toml, log, control) = (file("toml"), file("log"), file("sock"));
        let node = format!("[node]\nname = \"{name}\"\ncontrol = \"{}\"\n", control.display());
        fs::write(&toml, node.clone() + config).expect("writing the configuration");
        let output = File::create(&log).expect("creating the log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
        command.arg("run").arg("--config").arg(&toml).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("a second handle")).stderr(output);
        let process = namespace.spawn(command).expect("starting plait run");
        let mut appliance = Appliance { process, toml, node, log, control };
        let deadline = Instant::now() + Duration::from_secs(15);
        while UnixStream::connect(&appliance.control).is_err() {
            appliance.check_alive();
            assert!(Instant::now() < deadline, "no answer: {}", appliance.log());
            thread::sleep(Duration::from_millis(20));
        }
        appliance
    }

    pub fn check_alive(&mut self) {
        let ended = self.process.poll_exit().expect("its status");
        assert!(ended.is_none(), "plait ended ({ended:?}): {}", self.log());
    }

    /// Writes another configuration, tells the appliance, and waits until it says `answer`.
    pub fn reload(&self, config: &str, answer: &str) {
        let before = self.log().len();
        fs::write(&self.toml, self.node.clone() + config).expect("writing the configuration");
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-HUP", &pid]).status().expect("kill");
        assert!(sent.success(), "{sent}");
        let said = || self.log().get(before..).is_some_and(|new| new.contains(answer));
        let deadline = Instant::now() + Duration::from_secs(5);
        while !said() {
            assert!(Instant::now() < deadline, "never: {answer}: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What `plait show WHAT --json` prints.
    pub fn show(&self, what: &str) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
        command.args(["show", what, "--json", "--control"]).arg(&self.control);
        let output = command.output().expect("plait show");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}
