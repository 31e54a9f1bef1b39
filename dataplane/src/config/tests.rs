//! Every mistake with its message, and what a valid file means.

use super::schema::File;
use super::*;
use crate::run::{Io, IoMode};
use crate::steer::SteerRule;
use stack::mcp::{Action, Service, SourceMode};

/// A uMCP with everything in it.
const UMCP: &str = r#"[node]
name = "umcp"

[[port]]
name = "lan"
device = "lan0"
io = "af-packet"

[[port]]
name = "wan1"
device = "wan1"
queues = [0]
addresses = ["10.0.1.1/24"]
gateway = "10.0.1.254"
mtu = 1400

[[port]]
name = "wan2"
device = "wan2"
io = "af-xdp"
addresses = ["10.0.2.1/24", "2001:db8:2::1/64"]

[[route]]
to = "10.9.0.0/16"
port = "wan1"
via = "10.0.1.254"

[[path]]
address = "10.0.1.1"
flags = ["subflow"]

[[path]]
address = "10.0.2.1"
flags = ["signal", "backup"]
reach = ["10.0.2.0/24"]

[[remote]]
name = "dmcp"
addresses = ["10.0.1.2", "10.0.2.2"]
port = 5123

[[service]]
mode = "relay"
listen = "10.0.1.1:80"
server = "10.9.0.2:80"
connect = "mptcp"

[[rule]]
name = "ssh"
port = "lan"
tcp-ports = "22"
action = "bypass"

[[rule]]
name = "lan-tcp"
port = "lan"
from = "192.168.1.0/24"
to = "0.0.0.0/0"
tcp-ports = "80, 8000-8100"
action = "convert"
remote = "dmcp"
source = "replace"

[convert]
negative-cache-ttl = "1h"

[tcp]
congestion-control = "reno"
min-rto = "100ms"
rmem-default = "128KiB"

[mptcp]
checksum-enabled = true

[limits]
buffer = "1MiB"
pool = "16MiB"
"#;

/// A dMCP that keeps its clients' addresses.
const DMCP: &str = r#"[[port]]
name = "wan"
device = "wan0"
addresses = ["10.0.1.2/24"]

[[port]]
name = "srv"
device = "srv0"
addresses = ["192.168.9.3/24"]

[[path]]
address = "10.0.1.2"

[[service]]
mode = "explicit"
address = "10.0.1.2"
port = 5123
source = "keep"

[[return]]
port = "srv"
to = "192.168.1.0/24"

[convert]
preserved-sources = ["192.168.1.0/24"]
"#;

fn parse(text: &str) -> Config {
    Config::parse("plait.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is said about `base` with `old` replaced by `new`, for each pair alone.
fn complaints(base: &str, edits: &[(&str, &str)]) -> String {
    let mut all = String::new();
    for (old, new) in edits {
        assert_eq!(base.matches(old).count(), 1, "{old:?} must say which place is meant");
        let text = base.replace(old, new);
        let errors = match Config::parse("plait.toml", &text) {
            Err(errors) => errors,
            Ok(config) => config.warnings.unwrap_or_else(|| panic!("accepted: {new}")),
        };
        all += &format!("{errors}\n");
    }
    all
}

#[test]
fn a_file_means_what_it_says() {
    let config = parse(UMCP);
    assert_eq!(config.control, Path::new("/run/plait/umcp.sock"));
    assert_eq!(config.warnings, None);
    let lan = &config.worker.ports[0].steering.rules;
    assert_eq!(lan.len(), 2, "one per range, none for what is bypassed: {lan:?}");
    assert!(lan.iter().all(|r| matches!(r, SteerRule::TcpTo { from: Some(_), .. })));
    let actions: Vec<Action> = config.mcp.rules.iter().map(|r| r.action).collect();
    let convert = Action::Convert { remote: 0, source: SourceMode::Replace };
    assert_eq!(actions, [Action::Bypass, convert, convert]);
    assert_eq!(config.mcp.remotes[0].endpoints.len(), 2);
    assert!(matches!(config.mcp.services[..], [Service::Relay { .. }]));
    assert_eq!(config.mcp.source_addresses.len(), 3, "the lan port owns none");
    assert_eq!(config.mcp.tcp.min_rto.as_millis(), 100);
    assert!(config.mcp.mptcp.checksum && config.mcp.mptcp.tcp.min_rto.as_millis() == 100);
    assert_eq!(config.mcp.mptcp.receive_buffer, 1 << 20);
    for tcp in [&config.mcp.tcp, &config.mcp.mptcp.tcp] {
        let begin = (tcp.receive_buffer_default, tcp.send_buffer_default);
        assert_eq!(begin, (128 << 10, 16 << 10), "buffers begin small and grow");
    }
    assert_eq!(config.worker.frames, 8192);
    let [first, second] = &config.mcp.mptcp.addresses[..] else { panic!("two paths") };
    assert!(first.subflow && !first.signal && !first.backup && first.reach.is_empty());
    assert!(!second.subflow && second.signal && second.backup && second.reach.len() == 1);
}

#[test]
fn kept_sources_come_back_through_the_return_port() {
    let config = parse(DMCP);
    assert_eq!(config.mcp.preserved_sources.len(), 1);
    assert!(config.worker.ports[0].steering.rules.is_empty());
    assert!(matches!(
        config.worker.ports[1].steering.rules[..],
        [SteerRule::TcpTo { from: None, to: Some(_), .. }]
    ));
    assert_eq!(config.mcp.source_addresses, ["192.168.9.3".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn a_path_reaches_what_its_port_leads_to() {
    let show = |text: &str| -> Vec<Vec<String>> {
        let paths = parse(text).mcp.mptcp.addresses;
        paths.iter().map(|path| path.reach.iter().map(value::show).collect()).collect()
    };
    let example = include_str!("../../../docs/examples/umcp.toml");
    assert_eq!(show(example), [["10.0.1.1/24"], ["10.0.2.1/24"]]);
    let route = "[[route]]\nto = \"10.9.0.0/16\"\nport = \"wan2\"\nvia = \"10.0.2.254\"\n";
    assert_eq!(
        show(&format!("{example}\n{route}")),
        [vec!["10.0.1.1/24"], vec!["10.0.2.1/24", "10.9.0.0/16"]]
    );
    let addresses = "addresses = [\"10.0.2.1/24\"]";
    let gateway = format!("{addresses}\ngateway = \"10.0.2.254\"");
    let everywhere: [Vec<&str>; 2] = [vec!["10.0.1.1/24"], vec![]];
    assert_eq!(show(&example.replace(addresses, &gateway)), everywhere);
    assert_eq!(show(UMCP), [Vec::new(), vec!["10.0.2.0/24"]]);
}

/// MUST-25, MUST-27.
#[test]
fn keepalive_is_off_until_it_is_given_an_interval() {
    let of = |tcp: &str| {
        parse(&DMCP.replacen("[convert]", &format!("[tcp]\n{tcp}\n[convert]"), 1)).mcp.tcp.keepalive
    };
    assert_eq!(of(""), None);
    assert_eq!(of("keepalive-time = \"90s\""), Some(std::time::Duration::from_secs(90)));
}

#[test]
fn the_mss_fits_the_narrowest_port() {
    let rule = parse(UMCP).mss;
    assert_eq!(rule.mss(&[1500; 3]), 1340, "1400 octets as configured, IPv6 is possible");
    assert_eq!(rule.mss(&[1500, 1500, 1280]), 1220);
    assert_eq!(rule.mss(&[9000; 3]), 1340, "what is configured stays");
    let rule = parse(DMCP).mss;
    assert_eq!(rule.mss(&[]), 1460);
    assert_eq!(rule.mss(&[9000; 3]), 8960);
    let rule = parse(&format!("{DMCP}\n[tcp]\nmss = 1300\n")).mss;
    assert_eq!(rule.mss(&[9000; 3]), 1300);
    assert_eq!(rule.mss(&[1000; 3]), 960);
}

#[test]
fn a_file_survives_writing_and_reading() {
    for text in [UMCP, DMCP] {
        let file: File = toml::from_str(text).unwrap();
        let written = toml::to_string(&file).unwrap();
        assert_eq!(toml::from_str::<File>(&written).unwrap(), file, "{written}");
    }
}

#[test]
fn a_port_without_io_is_driven_by_what_suits_it() {
    let io: Vec<_> = parse(UMCP).worker.ports.iter().map(|port| port.io).collect();
    assert_eq!(io, [Some(Io::AfPacket), None, Some(Io::AfXdp)]);
    assert_eq!(parse(&UMCP.replace("\"af-packet\"", "\"auto\"")).worker.ports[0].io, None);
}

#[test]
fn a_worker_sleeps_as_its_mode_says() {
    let mode = |lines: &str| {
        parse(&UMCP.replace("[node]\n", &format!("[node]\n{lines}\n"))).worker.io_mode
    };
    let spin = |micros| IoMode::Adaptive { spin: std::time::Duration::from_micros(micros) };
    assert_eq!([mode(""), mode("io-mode = \"adaptive\"")], [spin(50); 2]);
    assert_eq!(mode("spin = \"7us\""), spin(7));
    assert_eq!(mode("io-mode = \"interrupt\""), IoMode::Interrupt);
    assert_eq!(mode("io-mode = \"busy-poll\""), IoMode::BusyPoll);
    let both = UMCP.replace("[node]\n", "[node]\nio-mode = \"interrupt\"\nspin = \"7us\"\n");
    let errors = Config::parse("plait.toml", &both).unwrap_err().to_string();
    assert!(errors.contains("node.spin: `spin` is given for"), "{errors}");
}

#[test]
fn mistakes_against_the_schema() {
    insta::assert_snapshot!(complaints(
        UMCP,
        &[
            ("queues = [0]", "queue = [0]"),
            ("gateway = ", "metric = "),
            ("io = \"af-packet\"", "io = \"afpacket\""),
            ("io = \"af-packet\"", "io = \"dpdk\""),
            ("device = \"lan0\"\n", ""),
            ("mtu = 1400", "mtu = \"1400\""),
            ("checksum-enabled = true", "checksum_enabled = true"),
            ("gateway = \"10.0.1.254\"", "gateway = 10"),
            ("gateway = \"10.0.1.254\"", "gateway = 10.0.1.254"),
            ("[[route]]", "[[routes]]"),
            ("[[route]]", "[[route]"),
            ("name = \"umcp\"", "name = \"umcp\"\nname = \"umcp\""),
        ],
    ));
}

#[test]
fn mistakes_about_node_and_limits() {
    insta::assert_snapshot!(complaints(
        UMCP,
        &[
            ("name = \"umcp\"", "name = \"../umcp\""),
            ("name = \"umcp\"", "control = \"umcp.sock\""),
            ("name = \"umcp\"", "cores = [-1]"),
            ("name = \"umcp\"", "cores = [1, 1]"),
            ("name = \"umcp\"", "core = 1"),
            ("name = \"umcp\"", "workers = 3\ncores = [1, 2]"),
            ("name = \"umcp\"", "workers = 0"),
            ("name = \"umcp\"", "workers = \"all\""),
            ("name = \"umcp\"", "workers = 8"),
            ("name = \"umcp\"", "spin = \"10\""),
            ("congestion-control = \"reno\"", "congestion-control = \"bbr\"\npacing = \"off\""),
            ("name = \"umcp\"", "spin = \"2s\""),
            ("name = \"umcp\"", "tun = \"a-name-that-is-too-long\""),
            ("buffer = \"1MiB\"", "buffer = \"1M\""),
            ("buffer = \"1MiB\"", "buffer = \"1GiB\""),
            ("pool = \"16MiB\"", "frame-size = 3000"),
            ("pool = \"16MiB\"", "connections = 0"),
            ("pool = \"16MiB\"", "subflows = 300"),
            ("min-rto = \"100ms\"", "min-rto = \"0ms\""),
            ("min-rto = \"100ms\"", "min-rto = \"5s\"\nmax-rto = \"2s\""),
            ("min-rto = \"100ms\"", "user-timeout = \"500ms\""),
            ("min-rto = \"100ms\"", "mss = 80"),
            ("min-rto = \"100ms\"", "mtu-probing = \"sometimes\""),
            ("min-rto = \"100ms\"", "base-mss = 1400"),
            ("min-rto = \"100ms\"", "min-pmtu = 68"),
            ("checksum-enabled = true", "add-addr-timeout = \"0s\""),
            ("negative-cache-ttl = \"1h\"", "negative-cache-ttl = \"forever\""),
        ],
    ));
}

#[test]
fn mistakes_about_ports_and_routes() {
    insta::assert_snapshot!(complaints(
        UMCP,
        &[
            ("name = \"wan2\"", "name = \"wan1\""),
            ("name = \"lan\"\n", "name = \"\"\n"),
            ("device = \"wan2\"", "device = \"wan1\""),
            ("device = \"wan2\"", "device = \"wan 2\""),
            ("io = \"af-packet\"", "io = \"af-packet\"\nqueues = [1]"),
            ("queues = [0]", "queues = [1, 1]"),
            ("10.0.2.1/24", "10.0.1.1/24"),
            ("10.0.2.1/24", "10.0.2.1"),
            ("10.0.2.1/24", "10.0.2.0/24"),
            ("10.0.2.1/24", "127.0.0.1/8"),
            ("10.0.2.1/24", "10.0.2.1/40"),
            ("gateway = \"10.0.1.254\"", "gateway = \"10.0.7.254\""),
            ("gateway = \"10.0.1.254\"", "gateway = [\"10.0.1.254\", \"10.0.1.253\"]"),
            ("gateway = \"10.0.1.254\"", "gateway = \"10.0.1.1\""),
            ("mtu = 1400", "mtu = 200"),
            ("to = \"10.9.0.0/16\"", "to = \"10.9.0.1/16\""),
            ("to = \"10.9.0.0/16\"", "to = \"2001:db8::/32\""),
            ("via = \"10.0.1.254\"", "via = \"10.0.3.254\""),
            ("port = \"wan1\"", "port = \"wan3\""),
        ],
    ));
}

#[test]
fn mistakes_about_paths_remotes_and_services() {
    insta::assert_snapshot!(complaints(
        UMCP,
        &[
            ("address = \"10.0.2.1\"", "address = \"10.0.2.9\""),
            ("address = \"10.0.2.1\"", "address = \"10.0.1.1\""),
            ("address = \"10.0.2.1\"", "address = \"10.0.2.1/24\""),
            ("reach = [\"10.0.2.0/24\"]", "reach = \"2001:db8::/32\""),
            ("flags = [\"subflow\"]", "flags = [\"implicit\"]"),
            ("[\"10.0.1.2\", \"10.0.2.2\"]", "[\"2001:db8::2\"]"),
            ("[\"10.0.1.2\", \"10.0.2.2\"]", "[]"),
            ("[\"10.0.1.2\", \"10.0.2.2\"]", "[\"10.0.1.1\"]"),
            ("port = 5123", "port = 70000"),
            ("listen = \"10.0.1.1:80\"", "listen = \"10.0.1.1\""),
            ("listen = \"10.0.1.1:80\"", "listen = \"10.0.9.1:80\""),
            ("listen = \"10.0.1.1:80\"\n", ""),
            ("server = \"10.9.0.2:80\"", "server = \"10.0.1.1:81\""),
            ("server = \"10.9.0.2:80\"", "server = \"[2001:db8:7::1]:80\""),
            ("connect = \"mptcp\"", "source = \"keep\""),
            (
                "connect = \"mptcp\"",
                "[[service]]\nmode = \"explicit\"\naddress = \"10.0.1.1\"\nport = 80",
            ),
        ],
    ));
}

#[test]
fn mistakes_about_rules() {
    insta::assert_snapshot!(complaints(
        UMCP,
        &[
            ("name = \"ssh\"\nport = \"lan\"", "name = \"ssh\"\nport = \"lam\""),
            ("remote = \"dmcp\"", "remote = \"dmpc\""),
            ("remote = \"dmcp\"\n", ""),
            ("name = \"lan-tcp\"", "name = \"ssh\""),
            ("action = \"bypass\"", "action = \"bypass\"\nremote = \"dmcp\"\nsource = \"keep\""),
            ("to = \"0.0.0.0/0\"", "to = \"::/0\""),
            ("from = \"192.168.1.0/24\"", "from = \"192.168.1.2/24\""),
            ("80, 8000-8100", "80, 8100-8000"),
            ("80, 8000-8100", "http"),
            ("80, 8000-8100", "22"),
            ("source = \"replace\"", "source = \"keep\""),
            (
                "action = \"convert\"\nremote = \"dmcp\"\nsource = \"replace\"",
                "action = \"terminate\"\nsource = \"keep\""
            ),
        ],
    ));
}

#[test]
fn mistakes_about_kept_sources() {
    insta::assert_snapshot!(complaints(
        DMCP,
        &[
            ("preserved-sources = [\"192.168.1.0/24\"]", ""),
            ("to = \"192.168.1.0/24\"", "to = \"192.168.1.0/25\""),
            ("port = \"srv\"", "port = \"server\""),
            ("preserved-sources = ", "source-addresses = [\"10.7.7.7\"]\npreserved-sources = "),
        ],
    ));
}

#[test]
fn a_file_without_anything_to_do_is_refused() {
    let port = "[[port]]\nname = \"lan\"\ndevice = \"lan0\"\n";
    let rule = "[[rule]]\nname = \"all\"\nport = \"lan\"\naction = \"terminate\"\n";
    let direct = rule.replace("terminate", "direct");
    let mut all = String::new();
    for text in ["", port, &format!("{port}{rule}"), &format!("{port}{direct}")] {
        all += &format!("{}\n", Config::parse("plait.toml", text).unwrap_err());
    }
    insta::assert_snapshot!(all);
}

#[test]
fn every_mistake_is_reported_in_the_order_of_the_file() {
    let text = UMCP
        .replace("gateway = \"10.0.1.254\"", "gateway = \"10.0.7.254\"")
        .replace("remote = \"dmcp\"", "remote = \"nobody\"")
        .replace("device = \"lan0\"", "device = \"wan1\"")
        .replace("buffer = \"1MiB\"", "buffer = \"1\"");
    let errors = Config::parse("plait.toml", &text).unwrap_err().errors;
    let keys: Vec<&str> = errors.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["port[1].device", "port[1].gateway", "rule[1].remote", "limits.buffer"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nonexistent/plait.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/plait.toml: No such file"), "{error}");
}

const PAGE: &str = include_str!("../../../docs/CONFIGURATION.md");

/// What serde knows: the keys of a table, from its complaint about one that does not exist.
fn keys(table: &str, header: &str) -> Vec<String> {
    let error = toml::from_str::<File>(&format!("{header}\nxyzzy = 1\n")).unwrap_err();
    let (_, expected) = error.message().split_once("expected one of ").unwrap_or_else(|| {
        // A table of two keys is worded otherwise.
        error.message().split_once("expected ").unwrap_or_else(|| panic!("{table}: {error}"))
    });
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The page's section about a table.
fn section(table: &str) -> &'static str {
    let start = PAGE
        .find(&format!("\n## `[{table}]`"))
        .or_else(|| PAGE.find(&format!("\n## `[[{table}]]`")))
        .unwrap_or_else(|| panic!("docs/CONFIGURATION.md has no section about {table}"));
    let rest = &PAGE[start + 1..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

fn rows(table: &str) -> impl Iterator<Item = Vec<&'static str>> {
    section(table)
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim()).collect())
}

#[test]
fn the_page_has_every_key_of_the_schema_and_no_other() {
    for table in keys("file", "") {
        let header = match section(&table).starts_with("## `[[") {
            true => format!("[[{table}]]"),
            false => format!("[{table}]"),
        };
        let mut schema = keys(&table, &header);
        let mut page: Vec<String> = rows(&table)
            .filter(|cells| cells.len() == 4)
            .map(|cells| cells[0].trim_matches('`').to_owned())
            .collect();
        schema.sort();
        page.sort();
        assert_eq!(page, schema, "docs/CONFIGURATION.md, section {header}");
    }
}

#[test]
fn the_page_gives_the_defaults_that_hold() {
    let mut written = String::new();
    for table in ["node", "convert", "tcp", "mptcp", "limits"] {
        written += &format!("[{table}]\n");
        for cells in rows(table).filter(|cells| cells[2].starts_with('`')) {
            let value = cells[2].trim_matches('`').replace("NAME", "plait");
            written += &format!("{} = {value}\n", cells[0].trim_matches('`'));
        }
    }
    assert!(written.lines().count() > 20, "{written}");
    let body = "[[port]]\nname = \"p\"\ndevice = \"d\"\n[[rule]]\nname = \"r\"\nport = \"p\"\naction = \"bypass\"\n";
    let (without, with) = (parse(body), parse(&format!("{written}{body}")));
    assert_eq!(format!("{:?}", with.mcp), format!("{:?}", without.mcp));
    assert_eq!(format!("{:?}", with.worker), format!("{:?}", without.worker));
    assert_eq!((with.crew, with.pool), (without.crew, without.pool));
    assert_eq!((with.name, with.control, with.log), (without.name, without.control, without.log));
}

#[test]
fn workers_follow_from_cores_and_divide_the_pool() {
    let with = |line: &str| parse(&UMCP.replace("[node]\n", &format!("[node]\n{line}\n")));
    let config = with("cores = [2, 3]");
    assert_eq!((config.crew.workers, config.crew.cores), (Some(2), vec![2, 3]));
    assert_eq!(config.pool.frames(2), (8 << 20) / 2048, "16 MiB for two");
    assert_eq!(with("workers = 4").crew.workers, Some(4));
    assert_eq!(with("workers = \"auto\"").crew, parse(UMCP).crew);
}

#[test]
fn the_examples_are_right() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.warnings, None, "{}", path.display());
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["dmcp.toml", "reverse-proxy.toml", "single-proxy.toml", "umcp.toml"]);
    for name in names {
        assert!(PAGE.contains(&format!("(examples/{name})")), "{name} is not on the page");
    }
    let example = PAGE.split("```toml\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
    assert_eq!(parse(example).warnings, None);
}

#[test]
fn joins_wait_as_told() {
    let told = "[mptcp]\njoin-delay = \"0ms\"\njoin-after = \"64KiB\"";
    let config = Config::parse("plait.toml", &UMCP.replace("[mptcp]", told)).unwrap();
    let mptcp = &config.mcp.mptcp;
    assert_eq!((mptcp.join_delay, mptcp.join_after), (std::time::Duration::ZERO, 64 << 10));
    assert!(
        Config::parse("plait.toml", &UMCP.replace("[mptcp]", "[mptcp]\njoin-delay = \"2min\""))
            .is_err()
    );
}
