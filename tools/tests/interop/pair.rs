//! Ordinary programs through a running pair in the set-up of `docs/examples`.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::turn;
use pcap_tests::link::parse;
use pcap_tests::netns::{Namespace, Process};
use pcap_tests::requests::{self, Server};
use pcap_tests::topology::{Reference, SERVER};
use pcap_tests::traffic::{self, Amount, Direction, Transfer};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub const LINKS: [&str; 2] = ["100mbit,5ms,0,300", "100mbit,15ms,0,300"];

/// The reference topology with a pair started from the example files.
pub struct Pair {
    pub net: Reference,
    umcp: Appliance,
    dmcp: Appliance,
    scratch: Scratch,
}

impl Pair {
    /// The examples as they are.
    pub fn start(name: &str) -> Pair {
        Pair::start_with(name, &example("umcp"), &example("dmcp"))
    }

    /// With other configurations than the examples'.
    pub fn start_with(name: &str, umcp: &str, dmcp: &str) -> Pair {
        let profiles = LINKS.map(|link| [parse::profile(link).expect("a link"); 2]);
        let net = Reference::build(&profiles).expect("namespaces (these tests need root)");
        Pair::start_in(net, name, umcp, dmcp)
    }

    /// In a topology made already.
    pub fn start_in(net: Reference, name: &str, umcp: &str, dmcp: &str) -> Pair {
        let scratch = Scratch::new(name);
        let dmcp = Appliance::start(&net.dmcp, "dmcp", dmcp, &scratch);
        let umcp = Appliance::start(&net.umcp, "umcp", umcp, &scratch);
        Pair { net, umcp, dmcp, scratch }
    }

    /// A number that `plait show ports` of the uMCP tells of its second link.
    fn second_link(&self, counter: &str) -> u64 {
        let ports = self.umcp.show("ports");
        let row = ports.as_array().into_iter().flatten().find(|row| row["device"] == "wan2");
        let count = row.and_then(|row| row["counters"][counter].as_u64());
        count.unwrap_or_else(|| panic!("no {counter} of wan2: {ports}"))
    }

    /// Both appliances.
    pub fn appliances(&self) -> [&Appliance; 2] {
        [&self.umcp, &self.dmcp]
    }

    /// How many connections the uMCP holds.
    pub fn connections(&self) -> usize {
        self.umcp.show("connections").as_array().map_or(0, Vec::len)
    }

    /// Both are alive, no connection is left over, and connections were indeed converted.
    pub fn settle(mut self, converted: u64) {
        self.umcp.check_alive();
        self.dmcp.check_alive();
        let mibs = self.umcp.show("counters");
        let seen = find_number(&mibs, "ConvertEstab").expect("a counter of that name");
        assert!(seen >= converted, "{seen} converted of {converted}: {mibs}\n{}", self.umcp.log());
        let deadline = Instant::now() + Duration::from_secs(20);
        for appliance in [&self.umcp, &self.dmcp] {
            loop {
                let left = appliance.show("connections");
                if left.as_array().is_some_and(Vec::is_empty)
                    || left.get("connections").and_then(|c| c.as_array()).is_some_and(Vec::is_empty)
                {
                    break;
                }
                assert!(Instant::now() < deadline, "left over: {left}");
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

/// An example without its `[node]` table (names and paths are the test's).
pub fn example(name: &str) -> String {
    let path = format!("{}/../docs/examples/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut keep = true;
    let lines = text.lines().filter(|line| {
        if line.trim_start().starts_with('[') {
            keep = line.trim() != "[node]";
        }
        keep
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn find_number(json: &serde_json::Value, name: &str) -> Option<u64> {
    match json {
        serde_json::Value::Object(map) => map.iter().find_map(|(key, value)| {
            if key.ends_with(name) { value.as_u64() } else { find_number(value, name) }
        }),
        serde_json::Value::Array(all) => all.iter().find_map(|value| find_number(value, name)),
        _ => None,
    }
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = namespace.output(command).unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// nginx serving `root` on port 80 of the server.
fn nginx(pair: &Pair) -> Process {
    let dir = pair.scratch.path();
    let config = dir.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; server {{ listen 80; root {0}/www; }} }}\n",
        dir.display()
    );
    fs::create_dir_all(dir.join("www")).expect("a directory");
    fs::write(&config, text).expect("a file");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(&config).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let process = pair.net.server.spawn(command).expect("nginx");
    await_listener(&pair.net.server, 80);
    process
}

/// Waits until somebody listens on `port`, without troubling him with a connection.
fn await_listener(server: &Namespace, port: u16) {
    let wanted = format!(":{port:04X} ");
    let listens = |table: &str| {
        let text = fs::read_to_string(table).unwrap_or_default();
        text.lines().any(|line| line.contains(&wanted) && line.contains(" 0A "))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    while !server.run(|| tables.iter().any(|table| listens(table))) {
        assert!(Instant::now() < deadline, "nobody listens on port {port}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn curl_gets_and_puts_files_unchanged() {
    let _turn = turn();
    let pair = Pair::start("curl");
    let _nginx = nginx(&pair);
    let mut content = vec![0u8; 20_000_000];
    let mut state = 1u64;
    for octet in &mut content {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *octet = (state >> 56) as u8;
    }
    fs::File::create(pair.scratch.path().join("www/file"))
        .and_then(|mut f| f.write_all(&content))
        .expect("a file");
    let output = run(&pair.net.client, "curl", &["-sS", "--fail", "http://192.168.9.2/file"]);
    assert_eq!(Sha256::digest(&output.stdout), Sha256::digest(&content));
    // What is not there is refused by the server's HTTP, not by us.
    let mut missing = Command::new("curl");
    missing.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://192.168.9.2/none"]);
    let code = pair.net.client.output(missing).expect("curl");
    assert_eq!(code.stdout, b"404");
    pair.settle(2);
}

#[test]
fn a_thousand_short_http_requests_all_succeed() {
    let _turn = turn();
    let pair = Pair::start("http");
    let _nginx = nginx(&pair);
    fs::write(pair.scratch.path().join("www/small"), "0123456789".repeat(100)).expect("a file");
    // `--no-keepalive` is about probes; a fresh connection each comes from closing after each.
    let script = "for i in $(seq 10); do curl -sS --fail --parallel --parallel-max 20 -H 'Connection: close' \
                  -o /dev/null -w '%{http_code} %{size_download}\\n' $(printf 'http://192.168.9.2/small?%s -o /dev/null ' \
                  $(seq 100)) || exit 1; done";
    let output = run(&pair.net.client, "bash", &["-c", script]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().filter(|line| *line == "200 1000").count(), 1000, "{text}");
    pair.settle(1000);
}

/// With `node` in the `[node]` tables.
fn iperf3_runs_both_ways(node: &str) {
    let _turn = turn();
    let [umcp, dmcp] = ["umcp", "dmcp"].map(|name| format!("{node}\n{}", example(name)));
    let pair = Pair::start_with("iperf3", &umcp, &dmcp);
    for extra in [&["-P", "4"][..], &["-P", "4", "-R"]] {
        // One server a run: a client is done before its server is, which answers "busy" for that moment.
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1", "-p", "5201"]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = pair.net.server.spawn(command).expect("iperf3 -s");
        await_listener(&pair.net.server, 5201);
        let mut arguments = vec!["-c", "192.168.9.2", "-t", "3", "-J"];
        arguments.extend(extra);
        let output = run(&pair.net.client, "iperf3", &arguments);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        // With -J a failed run is told by this member alone: the exit status is 0.
        assert!(report["error"].is_null(), "{extra:?}: {}", report["error"]);
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate");
        assert!(rate > 120e6, "{extra:?}: {rate} bit/s: more than one link can carry");
        let status = server.await_exit(Duration::from_secs(10)).expect("the server's exit");
        assert!(status.success(), "{extra:?}: {status}");
    }
    pair.settle(10);
}

#[test]
fn iperf3_runs_both_ways_with_several_streams() {
    iperf3_runs_both_ways("");
}

#[test]
fn iperf3_runs_both_ways_with_several_streams_and_workers() {
    iperf3_runs_both_ways("workers = 2");
}

#[test]
fn keystrokes_are_answered_in_one_round_trip() {
    let _turn = turn();
    let pair = Pair::start("keys");
    let at = SocketAddr::new(SERVER, 2222);
    let _server = Server::echo(&pair.net.server, at).expect("a server");
    let pause = Duration::from_millis(20);
    let mut sorted = requests::type_keys(&pair.net.client, at, 100, pause).expect("echoes");
    sorted.sort();
    let median = sorted[sorted.len() / 2];
    // 10 ms on the faster link; the slower one has 30 ms.
    assert!(median < Duration::from_millis(18), "median {median:?}");
    assert!(sorted[sorted.len() - 1] < Duration::from_millis(150), "worst {:?}", sorted.last());
    pair.settle(1);
}

#[test]
fn a_refused_connection_is_refused_at_the_client() {
    let _turn = turn();
    let pair = Pair::start("refused");
    let begun = Instant::now();
    let result = pair.net.client.run(|| TcpStream::connect((SERVER, 9)));
    let error = result.map(drop).expect_err("nobody listens there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "at once, not after {:?}",
        begun.elapsed()
    );
    pair.settle(0);
}

#[test]
fn a_connection_has_one_subflow_on_each_link() {
    let _turn = turn();
    let pair = Pair::start("subflows");
    let at = SocketAddr::new(SERVER, 2222);
    let _server = Server::echo(&pair.net.server, at).expect("a server");
    let open = pair.net.client.run(|| TcpStream::connect(at)).expect("a connection");
    let links = || -> Vec<[String; 2]> {
        let all = pair.umcp.show("connections");
        let subflows = all[0]["far"]["subflows"].as_array().cloned().unwrap_or_default();
        let address = |end: &serde_json::Value| {
            end.as_str().and_then(|end| end.split(':').next()).unwrap_or_default().to_owned()
        };
        subflows.iter().map(|row| [address(&row["local"]), address(&row["peer"])]).collect()
    };
    let wanted = [["10.0.1.1", "10.0.1.2"], ["10.0.2.1", "10.0.2.2"]];
    let deadline = Instant::now() + Duration::from_secs(5);
    while links() != wanted {
        assert!(Instant::now() < deadline, "{:?}", links());
        (&open).write_all(b"x").expect("a write");
        thread::sleep(Duration::from_millis(50));
    }
    // More would be opened at once.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(links(), wanted);
    drop(open);
    pair.settle(1);
}

#[test]
fn a_link_cut_and_restored_costs_no_octet_and_is_used_again() {
    let _turn = turn();
    let pair = Pair::start("cut");
    let amount = Amount::For(Duration::from_secs(9));
    let transfer = Transfer::tcp(SocketAddr::new(SERVER, 8001), Direction::Up, amount);
    let running = traffic::start(&pair.net.client, &pair.net.server, transfer).expect("a transfer");
    let cut = pair.net.links[0].switch().clone();
    thread::sleep(Duration::from_secs(2));
    cut.set_up(false);
    thread::sleep(Duration::from_secs(2));
    cut.set_up(true);
    let outcome = running.finish().expect("both ends finish");
    assert!(outcome.intact(), "{outcome:?}");
    assert!(outcome.longest_gap < Duration::from_secs(1), "stall {:?}", outcome.longest_gap);
    let late = outcome.steady_rate(Duration::from_secs(7));
    assert!(late > 130e6, "after the link is back: {late} bit/s");
    pair.settle(1);
}

/// The second link's device is removed under both appliances, and made again with other link-layer addresses.
fn a_connection_outlives_a_device(io: &str, workers: u32) {
    let _turn = turn();
    let net = Reference::direct(2).expect("namespaces (these tests need root)");
    let [umcp, dmcp] = ["umcp", "dmcp"].map(|name| {
        let config = example(name).replace("io = \"af-packet\"", &format!("io = \"{io}\""));
        format!("workers = {workers}\n{config}")
    });
    let pair = Pair::start_in(net, "device", &umcp, &dmcp);
    let amount = Amount::For(Duration::from_secs(6));
    let transfer = Transfer::tcp(SocketAddr::new(SERVER, 8001), Direction::Up, amount);
    let running = traffic::start(&pair.net.client, &pair.net.server, transfer).expect("a transfer");
    thread::sleep(Duration::from_secs(1));
    assert!(pair.second_link("tx_frames") > 10, "it is used");
    run(&pair.net.umcp, "ip", &["link", "del", "wan2"]);
    thread::sleep(Duration::from_secs(1));
    assert_eq!((pair.second_link("lost"), pair.second_link("reopened")), (1, 0));
    let gone = pair.second_link("tx_octets");
    pair.net.umcp.join("wan2", &pair.net.dmcp, "wan2").expect("a new device");
    let outcome = running.finish().expect("both ends finish");
    assert!(outcome.intact(), "{outcome:?}");
    assert!(outcome.longest_gap < Duration::from_secs(1), "stall {:?}", outcome.longest_gap);
    assert_eq!((pair.second_link("lost"), pair.second_link("reopened")), (1, 1));
    let back = pair.second_link("tx_octets") - gone;
    assert!(back > 1 << 20, "it is used again: {back} octets");
    pair.settle(1);
}

#[test]
fn a_connection_outlives_a_device_of_af_packet() {
    a_connection_outlives_a_device("af-packet", 1);
}

#[test]
fn a_connection_outlives_a_device_of_af_xdp() {
    a_connection_outlives_a_device("af-xdp", 1);
}

#[test]
fn a_connection_outlives_a_device_of_several_workers_with_af_packet() {
    a_connection_outlives_a_device("af-packet", 3);
}

#[test]
fn a_connection_outlives_a_device_of_several_workers_with_af_xdp() {
    a_connection_outlives_a_device("af-xdp", 3);
}
