//! `plait show`: what a running Plait does, in the words of `ss` and `nstat`.
#![forbid(unsafe_code)]

use clap::{Args, ValueEnum};
use dataplane::control::{
    self, AskError, ConnectionRow, PortRow, Reply, Request, RuleRow, Show, SocketRow, WorkerRow,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where `plait run` puts control sockets unless configured otherwise.
const CONTROL_DIRECTORY: &str = "/run/plait";

/// Show connections, subflows, ports, counters, rules or workers of a running Plait.
///
/// Columns and fields are named as `ss -i`, `ss -M` and `nstat` name them; cwnd and ssthresh are in octets.
///
/// Example: plait show subflows --control /run/plait/umcp.sock
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ShowArgs {
    /// What to show.
    #[arg(value_enum)]
    what: What,
    /// Print JSON, as the control socket gives it.
    #[arg(long, short)]
    json: bool,
    /// The node's control socket (`node.control`). Without it: the only one in /run/plait.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    /// Connections, a line for either leg.
    Connections,
    /// Subflows of MPTCP legs.
    Subflows,
    /// Ports and their counters.
    Ports,
    /// Counters that are not zero.
    Counters,
    /// Rules, in the order in which they are tried.
    Rules,
    /// Workers: where they run, what each has, and what crosses between them.
    Workers,
}

/// Asks and prints.
pub fn run(args: &ShowArgs) -> ExitCode {
    let shown = socket(args).and_then(|path| {
        let text = show(args.what, args.json, &path).map_err(|error| error.to_string())?;
        match io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
            _ => Ok(()),
        }
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("plait show: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The socket that is meant.
fn socket(args: &ShowArgs) -> Result<PathBuf, String> {
    if let Some(path) = &args.control {
        return Ok(path.clone());
    }
    only_socket(Path::new(CONTROL_DIRECTORY))
}

fn only_socket(directory: &Path) -> Result<PathBuf, String> {
    let mut sockets: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "sock"))
        .collect();
    sockets.sort();
    let place = directory.display();
    match (sockets.pop(), sockets.is_empty()) {
        (None, _) => Err(format!(
            "no control socket in {place}: is `plait run` up? Otherwise give its node.control with --control"
        )),
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            let names: Vec<String> =
                sockets.iter().chain([&last]).map(|p| p.display().to_string()).collect();
            Err(format!("several nodes run; choose one with --control: {}", names.join(", ")))
        }
    }
}

fn show(what: What, json: bool, path: &Path) -> Result<String, AskError> {
    let ask = |show| control::ask(path, Request { show, offset: 0 });
    if matches!(what, What::Connections | What::Subflows) {
        let rows = control::ask_connections(path)?;
        return Ok(match (what, json) {
            (_, true) => pretty(&rows),
            (What::Subflows, false) => subflows_table(&rows),
            _ => connections_table(&rows),
        });
    }
    let reply = match what {
        What::Ports => ask(Show::Ports)?,
        What::Rules => ask(Show::Rules)?,
        What::Workers => ask(Show::Workers)?,
        _ => ask(Show::Counters)?,
    };
    Ok(match (reply, json) {
        (Reply::Ports(rows), true) => pretty(&rows),
        (Reply::Ports(rows), false) => ports_table(&rows),
        (Reply::Rules(rows), true) => pretty(&rows),
        (Reply::Rules(rows), false) => rules_table(&rows),
        (Reply::Workers(rows), true) => pretty(&rows),
        (Reply::Workers(rows), false) => workers_table(&rows),
        (Reply::Counters(counters), true) => pretty(&counters),
        (Reply::Counters(counters), false) => counters_table(&counters),
        (other, _) => pretty(&other),
    })
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| e.to_string(), |json| json + "\n")
}

/// A table whose last column is not padded; `right` says which columns are numbers.
fn table(head: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for ((cell, width), right) in cells.zip(&widths).zip(right) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            out += &if *right { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") };
        }
        text += out.trim_end();
        text.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

const SOCKET_HEAD: [&str; 10] = [
    "Netid",
    "State",
    "Recv-Q",
    "Send-Q",
    "Local",
    "Peer",
    "rtt",
    "cwnd",
    "bytes_sent",
    "bytes_received",
];
const SOCKET_RIGHT: [bool; 10] = [false, false, true, true, false, false, true, true, true, true];

fn socket_cells(row: &SocketRow) -> Vec<String> {
    let mut cells = vec![
        row.netid.clone(),
        row.state.clone(),
        row.recv_q.to_string(),
        row.send_q.to_string(),
        row.local.clone(),
        row.peer.clone(),
    ];
    for name in ["rtt", "cwnd", "bytes_sent", "bytes_received"] {
        cells.push(field(row, name));
    }
    cells
}

fn field(row: &SocketRow, name: &str) -> String {
    match row.info.get(name) {
        None => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

fn connections_table(rows: &[ConnectionRow]) -> String {
    let own = ["Worker", "Id", "Rule", "Mode", "Phase"];
    let head: Vec<&str> = own.into_iter().chain(SOCKET_HEAD).collect();
    let right: Vec<bool> =
        [true, true, false, false, false].into_iter().chain(SOCKET_RIGHT).collect();
    let mut lines = Vec::new();
    for row in rows {
        let numbers = [row.worker.to_string(), row.id.to_string()];
        let words = [row.rule.clone(), row.mode.clone(), row.state.clone()];
        let first = numbers.into_iter().chain(words);
        lines.push(first.chain(socket_cells(&row.near)).collect());
        let rest = std::iter::repeat_n(String::new(), 5);
        lines.push(rest.chain(socket_cells(&row.far)).collect());
    }
    table(&head, &right, &lines)
}

fn subflows_table(rows: &[ConnectionRow]) -> String {
    let own = ["token", "local_id", "remote_id", "flags"];
    let head: Vec<&str> = own.into_iter().chain(SOCKET_HEAD.into_iter().skip(1)).collect();
    let right: Vec<bool> =
        [false, true, true, false].into_iter().chain(SOCKET_RIGHT.into_iter().skip(1)).collect();
    let mut lines = Vec::new();
    for subflow in rows.iter().flat_map(|row| row.near.subflows.iter().chain(&row.far.subflows)) {
        let flags: Vec<&str> =
            ["backup", "stale"].into_iter().filter(|f| subflow.info.contains_key(*f)).collect();
        let flags = if flags.is_empty() { "-".to_owned() } else { flags.join(",") };
        let first = [
            field(subflow, "token"),
            field(subflow, "local_id"),
            field(subflow, "remote_id"),
            flags,
        ];
        lines.push(first.into_iter().chain(socket_cells(subflow).into_iter().skip(1)).collect());
    }
    table(&head, &right, &lines)
}

fn ports_table(rows: &[PortRow]) -> String {
    let counters =
        ["rx_frames", "rx_octets", "rx_dropped", "tx_frames", "tx_octets", "tx_dropped", "tx_full"];
    let head: Vec<&str> = ["Port", "Device", "Io", "mtu"]
        .into_iter()
        .chain(counters)
        .chain(["features", "why"])
        .collect();
    let right: Vec<bool> = (0..head.len()).map(|i| (3..head.len() - 2).contains(&i)).collect();
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let count = |name| row.counters.get(name).copied().unwrap_or(0).to_string();
            let mut line =
                vec![row.name.clone(), row.device.clone(), row.io.clone(), row.mtu.to_string()];
            line.extend(counters.into_iter().map(count));
            line.extend([row.features.join(","), row.why.clone()]);
            line
        })
        .collect();
    table(&head, &right, &lines)
}

fn rules_table(rows: &[RuleRow]) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| vec![row.name.clone(), row.matches.clone(), row.action.clone()])
        .collect();
    table(&["Rule", "Matches", "Action"], &[false; 3], &lines)
}

fn workers_table(rows: &[WorkerRow]) -> String {
    let head = [
        "Worker",
        "core",
        "connections",
        "flows",
        "time_wait",
        "turns",
        "sleeps",
        "crossed_in",
        "crossed_out",
        "crossed_dropped",
        "frames_free",
        "frames",
    ];
    let line = |row: &WorkerRow| {
        let core = row.core.map_or("-".to_owned(), |core| core.to_string());
        let numbers = [
            row.connections,
            row.flows,
            row.time_wait,
            row.turns,
            row.sleeps,
            row.crossed_in,
            row.crossed_out,
            row.crossed_dropped,
            row.frames_free,
            row.frames,
        ];
        let numbers = numbers.iter().map(u64::to_string);
        [row.worker.to_string(), core].into_iter().chain(numbers).collect()
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    table(&head, &[true; 12], &lines)
}

fn counters_table(counters: &BTreeMap<String, u64>) -> String {
    let lines: Vec<Vec<String>> = counters
        .iter()
        .filter(|(_, value)| **value > 0)
        .map(|(name, value)| vec![name.clone(), value.to_string()])
        .collect();
    table(&["Counter", "Value"], &[false, true], &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tcp(local: &str, peer: &str, info: Value) -> SocketRow {
        let info = info.as_object().cloned().unwrap();
        SocketRow {
            netid: "tcp".to_owned(),
            state: "ESTAB".to_owned(),
            send_q: 2896,
            local: local.to_owned(),
            peer: peer.to_owned(),
            info,
            ..SocketRow::default()
        }
    }

    fn connection() -> ConnectionRow {
        let subflow = |local, peer, id, backup: bool| {
            let mut info = json!({
                "token": "a239f00d", "local_id": id, "remote_id": id, "rtt": 20.125,
                "cwnd": 28_800, "bytes_sent": 1_000_000, "bytes_received": 0,
            });
            if backup {
                info["backup"] = json!(true);
            }
            tcp(local, peer, info)
        };
        let subflows = vec![
            subflow("10.0.1.1:40000", "10.0.1.2:5123", 0, false),
            subflow("10.0.2.1:40000", "10.0.2.2:5123", 2, true),
        ];
        let far = SocketRow {
            netid: "mptcp".to_owned(),
            info: json!({"bytes_sent": 2_000_000, "bytes_received": 0})
                .as_object()
                .cloned()
                .unwrap(),
            subflows,
            ..tcp("10.0.1.1:40000", "10.0.1.2:5123", json!({}))
        };
        ConnectionRow {
            id: 4_294_967_296,
            worker: 2,
            rule: "lan-tcp".to_owned(),
            mode: "convert".to_owned(),
            state: "open".to_owned(),
            client: "192.168.1.2:51234".to_owned(),
            server: "192.168.9.2:80".to_owned(),
            age_ms: 1500,
            bytes_up: 2_000_000,
            bytes_down: 0,
            near: tcp("192.168.9.2:80", "192.168.1.2:51234", json!({"rtt": 0.1, "cwnd": 14_600})),
            far,
        }
    }

    #[test]
    fn tables() {
        let port = PortRow {
            name: "wan1".to_owned(),
            device: "eth1".to_owned(),
            io: "af-xdp".to_owned(),
            why: "XDP in the driver, zero copy".to_owned(),
            mtu: 1500,
            features: vec!["tso".to_owned(), "zero-copy".to_owned()],
            counters: BTreeMap::from([("rx_frames".to_owned(), 12), ("tx_octets".to_owned(), 9)]),
        };
        let rule = RuleRow {
            name: "lan-tcp".to_owned(),
            matches: "from 192.168.1.0/24 to 0.0.0.0/0 tcp-ports 1-65535".to_owned(),
            action: "convert dmcp".to_owned(),
        };
        let worker = WorkerRow {
            worker: 1,
            core: Some(3),
            connections: 12,
            crossed_in: 7,
            frames: 32_768,
            ..WorkerRow::default()
        };
        let counters = BTreeMap::from([("InSegs".to_owned(), 7), ("InErrs".to_owned(), 0)]);
        let shown = [
            connections_table(&[connection()]),
            subflows_table(&[connection()]),
            ports_table(&[port]),
            rules_table(&[rule]),
            workers_table(&[WorkerRow::default(), worker]),
            counters_table(&counters),
            connections_table(&[]),
        ];
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn the_only_socket_is_meant_and_several_need_a_choice() {
        let directory = std::env::temp_dir().join(format!("plait-show-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        let missing = only_socket(&directory).unwrap_err();
        assert!(missing.contains("is `plait run` up?"), "{missing}");
        fs::write(directory.join("a.sock"), "").unwrap();
        fs::write(directory.join("a.toml"), "").unwrap();
        assert_eq!(only_socket(&directory), Ok(directory.join("a.sock")));
        fs::write(directory.join("b.sock"), "").unwrap();
        let several = only_socket(&directory).unwrap_err();
        assert!(several.contains("a.sock, ") && several.contains("--control"), "{several}");
        fs::remove_dir_all(directory).unwrap();
    }
}
