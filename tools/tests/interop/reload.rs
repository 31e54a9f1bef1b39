//! SIGHUP: another configuration for connections opened from then on.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::conversation::Conversation;
use crate::pair::example;
use crate::turn;
use pcap_tests::topology::{Reference, SERVER};
use pcap_tests::traffic::{Transport, connect};
use std::io::ErrorKind;
use std::net::SocketAddr;

const CHANGED: &str = "changed for new connections";

#[test]
fn a_running_pair_takes_other_rules_and_keeps_its_connections() {
    let _turn = turn();
    let net = Reference::direct(2).expect("namespaces (these tests need root)");
    let scratch = Scratch::new("reload");
    let (umcp_file, dmcp_file) = (example("umcp"), example("dmcp"));
    let dmcp = Appliance::start(&net.dmcp, "dmcp", &dmcp_file, &scratch);
    let umcp = Appliance::start(&net.umcp, "umcp", &umcp_file, &scratch);
    let ends = ((&net.client, Transport::Tcp), (&net.server, Transport::Tcp));
    let open = |port| {
        let at = SocketAddr::new(SERVER, port);
        Conversation::open(ends.0, at, ends.1, at)
    };
    let modes = || -> Vec<String> {
        let rows = umcp.show("connections");
        let rows = rows.as_array().into_iter().flatten();
        rows.map(|row| format!("{} {}", row["rule"], row["mode"]).replace('"', "")).collect()
    };
    let first = open(8001);
    first.pass_both_ways(100_000);
    assert_eq!(modes(), ["lan-tcp convert"]);

    // New connections are refused, and the old one does not notice.
    let (convert, source) = ("action = \"convert\"\nremote = \"dmcp\"", "\nsource = \"replace\"");
    let whole = format!("{convert}{source}");
    let refusing = umcp_file.replace("name = \"lan-tcp\"", "name = \"closed\"");
    let refusing = refusing.replace(&whole, "action = \"reject\"");
    assert_ne!(refusing, umcp_file);
    umcp.reload(&refusing, CHANGED);
    let refused = net.client.run(|| connect(SocketAddr::new(SERVER, 8002), Transport::Tcp, None));
    assert_eq!(refused.map(drop).expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    first.pass_both_ways(100_000);
    assert_eq!(modes(), ["lan-tcp convert"], "under the name it came by");
    let rules = umcp.show("rules").to_string();
    assert!(rules.contains("closed") && rules.contains("reject"), "{rules}");

    // They are the kernel's now: nothing converts them.
    let bypassing = refusing.replace("action = \"reject\"", "action = \"bypass\"");
    umcp.reload(&bypassing, CHANGED);
    let plain = open(8003);
    plain.pass_both_ways(100_000);
    assert_eq!(modes(), ["lan-tcp convert"]);
    first.pass_both_ways(100_000);

    // Both sides move to another port of the service, one after the other.
    umcp.reload(&umcp_file.replace("port = 5123", "port = 5124"), CHANGED);
    dmcp.reload(&dmcp_file.replace("port = 5123", "port = 5124"), CHANGED);
    let moved = open(8004);
    moved.pass_both_ways(100_000);
    first.pass_both_ways(100_000);
    assert_eq!(modes(), ["lan-tcp convert"; 2]);

    // What needs a restart changes nothing, and a broken file neither.
    let other_port = umcp_file.replace("device = \"wan2\"", "device = \"wan9\"");
    umcp.reload(&other_port, "SIGHUP: nothing changes: [[port]]: cannot change");
    umcp.reload("[[rule]]", "SIGHUP: nothing changes; the file is wrong");
    first.pass_both_ways(100_000);
    first.close();
    moved.close();
    plain.close();
}
