//! Relays, aborts, half-closes, and addresses that change while a connection is open: one conversion point and the
//! Linux kernel.
#![forbid(unsafe_code)]

use crate::appliance::{Appliance, Scratch};
use crate::conversation::{Conversation, Since, assert_ended, await_that, carried, pass};
use crate::single::{DIRECT, TERMINATE, topology};
use crate::turn;
use pcap_tests::peer::{self, EndpointRole};
use pcap_tests::topology::{Reference, SERVER, dmcp_kernel, dmcp_plait, umcp_kernel, umcp_plait};
use pcap_tests::traffic::Transport;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

const SIZE: usize = 2_000_000;
const PORT: u16 = 8001;

/// Where the Linux kernel's MPTCP is: at the client with Plait beyond it, or at the server with Plait before it.
struct Setup {
    net: Reference,
    plait: Appliance,
    _scratch: Scratch,
}

/// Plait ends the MPTCP of a Linux client, which has a second address. Three subflows: the client connects from there to
/// both addresses of the other side, to the server's by way of the first link.
fn linux_client(name: &str, config: &str) -> Setup {
    let net = topology();
    let scratch = Scratch::new(name);
    assert!(peer::speaks_mptcp(&net.umcp), "this kernel has no MPTCP to test against");
    peer::set_mptcp_limits(&net.umcp, 2, 2).expect("limits");
    peer::add_mptcp_endpoint(&net.umcp, umcp_kernel(1), EndpointRole::Subflow).expect("endpoint");
    let plait = Appliance::start(&net.dmcp, name, config, &scratch);
    Setup { net, plait, _scratch: scratch }
}

/// Plait opens MPTCP to a Linux server, which announces a second address.
fn linux_server(name: &str, config: &str) -> Setup {
    let net = topology();
    let scratch = Scratch::new(name);
    assert!(peer::speaks_mptcp(&net.dmcp), "this kernel has no MPTCP to test against");
    peer::set_mptcp_limits(&net.dmcp, 2, 2).expect("limits");
    peer::add_mptcp_endpoint(&net.dmcp, dmcp_kernel(1), EndpointRole::Signal).expect("endpoint");
    let plait = Appliance::start(&net.umcp, name, config, &scratch);
    Setup { net, plait, _scratch: scratch }
}

impl Setup {
    /// From the Linux MPTCP client through Plait to the plain server.
    fn client_linux(&self) -> Conversation {
        let at = SocketAddr::new(SERVER, PORT);
        let client = (&self.net.umcp, Transport::Mptcp);
        Conversation::open(client, at, (&self.net.server, Transport::Tcp), at)
    }

    /// From the plain client through Plait to the Linux MPTCP server.
    fn server_linux(&self) -> Conversation {
        let at = SocketAddr::new(dmcp_kernel(0), PORT);
        let client = (&self.net.client, Transport::Tcp);
        Conversation::open(client, at, (&self.net.dmcp, Transport::Mptcp), at)
    }

    /// The subflows of the only connection there is, on either leg, as `plait show` has them.
    fn subflows(&self) -> usize {
        let all = self.plait.show("connections");
        let rows = all.as_array().expect("a list");
        assert_eq!(rows.len(), 1, "{all}");
        let of = |leg: &str| rows[0][leg]["subflows"].as_array().map_or(0, Vec::len);
        of("near") + of("far")
    }

    fn await_subflows(&self, count: usize) {
        await_that(
            &format!("{count} subflows"),
            || self.subflows() == count,
            || self.plait.show("connections").to_string(),
        );
    }

    /// Nothing is left of any connection.
    fn await_none(&self) {
        let left = || self.plait.show("connections");
        await_that(
            "no connection left",
            || left().as_array().is_some_and(Vec::is_empty),
            || left().to_string(),
        );
    }
}

/// The next read or write of a socket whose peer has aborted.
fn await_reset(mut stream: &TcpStream, who: &str) {
    let mut block = vec![0; 65_536];
    loop {
        match stream.read(&mut block) {
            Ok(0) => panic!("{who}: an orderly end instead of a reset"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{who}: {error}");
                return;
            }
        }
    }
}

/// Closes without lingering and with something unread: the kernel's TCP resets, its MPTCP sends MP_FASTCLOSE.
fn abort(stream: TcpStream, mut other: &TcpStream) {
    other.write_all(b"never read").expect("a write");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    let mut first = [0];
    assert_eq!(stream.peek(&mut first).expect("a peek"), 1);
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(stream);
}

#[test]
fn a_relay_serves_a_linux_mptcp_client_from_a_plain_server() {
    let _turn = turn();
    let config = r#"
[[port]]
name = "wan1"
device = "wan1"
addresses = ["10.0.1.2/24"]
[[port]]
name = "wan2"
device = "wan2"
addresses = ["10.0.2.2/24"]
[[port]]
name = "server"
device = "srv0"
io = "af-packet"
addresses = ["192.168.9.3/24"]
[[path]]
address = "10.0.2.2"
flags = ["signal"]
[[service]]
mode = "relay"
listen = "10.0.1.2:80"
server = "192.168.9.2:8001"
connect = "tcp"
"#;
    let setup = linux_client("relay-tcp", config);
    let since = Since::now(&setup.net.umcp);
    let relay = SocketAddr::new(dmcp_plait(0), 80);
    for client in [Transport::Mptcp, Transport::Tcp] {
        let open = Conversation::open(
            (&setup.net.umcp, client),
            relay,
            (&setup.net.server, Transport::Tcp),
            SocketAddr::new(SERVER, PORT),
        );
        assert_eq!(open.seen.ip().to_string(), "192.168.9.3");
        open.pass_both_ways(SIZE);
        open.close();
        setup.await_none();
    }
    assert_eq!(since.grown("MPCapableSYNACKRX"), 1);
    assert!(since.grown("MPJoinSynAckRx") >= 1, "no second subflow");
    since.assert_content();
}

#[test]
fn a_relay_serves_a_plain_client_from_a_linux_mptcp_server() {
    let _turn = turn();
    let config = r#"
[[port]]
name = "lan"
device = "lan0"
io = "af-packet"
addresses = ["192.168.1.3/24"]
[[port]]
name = "wan1"
device = "wan1"
addresses = ["10.0.1.1/24"]
[[port]]
name = "wan2"
device = "wan2"
addresses = ["10.0.2.1/24"]
[[path]]
address = "10.0.1.1"
flags = ["subflow"]
[[path]]
address = "10.0.2.1"
flags = ["subflow"]
reach = "10.0.2.0/24"
[[service]]
mode = "relay"
listen = "192.168.1.3:80"
server = "10.0.1.12:8001"
connect = "mptcp"
[convert]
source-addresses = ["10.0.1.1"]
"#;
    let setup = linux_server("relay-mptcp", config);
    let since = Since::now(&setup.net.dmcp);
    let relay = SocketAddr::new([192, 168, 1, 3].into(), 80);
    let open = Conversation::open(
        (&setup.net.client, Transport::Tcp),
        relay,
        (&setup.net.dmcp, Transport::Mptcp),
        SocketAddr::new(dmcp_kernel(0), PORT),
    );
    assert_eq!(open.seen.ip(), umcp_plait(0));
    open.pass_both_ways(SIZE);
    setup.await_subflows(2);
    open.close();
    setup.await_none();
    assert_eq!(since.grown("MPCapableACKRX"), 1);
    assert_eq!(since.grown("MPJoinAckRx"), 1);
    since.assert_content();
}

#[test]
fn an_abort_by_a_linux_mptcp_client_resets_the_plain_server() {
    let _turn = turn();
    let setup = linux_client("abort-linux-client", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    open.pass_both_ways(SIZE / 10);
    setup.await_subflows(3);
    abort(open.client, &open.server);
    await_reset(&open.server, "server");
    assert!(since.grown("MPFastcloseTx") > 0, "the kernel sent no MP_FASTCLOSE to test with");
    setup.await_none();
    since.assert_content();
}

#[test]
fn an_abort_by_a_plain_server_reaches_the_linux_mptcp_client_as_a_fast_close() {
    let _turn = turn();
    let setup = linux_client("abort-plain-server", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    open.pass_both_ways(SIZE / 10);
    setup.await_subflows(3);
    abort(open.server, &open.client);
    await_reset(&open.client, "client");
    since.await_growth("MPFastcloseRx");
    setup.await_none();
    since.assert_content();
}

#[test]
fn an_abort_by_a_plain_client_reaches_the_linux_mptcp_server_as_a_fast_close() {
    let _turn = turn();
    let setup = linux_server("abort-plain-client", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    let open = setup.server_linux();
    open.pass_both_ways(SIZE / 10);
    setup.await_subflows(2);
    abort(open.client, &open.server);
    await_reset(&open.server, "server");
    since.await_growth("MPFastcloseRx");
    setup.await_none();
    since.assert_content();
}

#[test]
fn an_abort_by_a_linux_mptcp_server_resets_the_plain_client() {
    let _turn = turn();
    let setup = linux_server("abort-linux-server", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    let open = setup.server_linux();
    open.pass_both_ways(SIZE / 10);
    setup.await_subflows(2);
    abort(open.server, &open.client);
    await_reset(&open.client, "client");
    assert!(since.grown("MPFastcloseTx") > 0, "the kernel sent no MP_FASTCLOSE to test with");
    setup.await_none();
    since.assert_content();
}

/// `leaver` aborts while the other writes as fast as it can, and has itself written what nobody reads: every window on the
/// way is full. The other learns of it.
fn abort_when_full(leaver: TcpStream, mut other: &TcpStream) {
    let block = vec![1; 65_536];
    let fill = |mut stream: &TcpStream| {
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("an option");
        while stream.write_all(&block).is_ok() {}
    };
    fill(other);
    fill(&leaver);
    SockRef::from(&leaver).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(leaver);
    // The kernel's sockets tell of a reset before what is left to read, or after.
    await_reset(other, "other");
    let error = other.write_all(&block).expect_err("writing after a reset");
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
}

#[test]
fn an_abort_passes_full_windows_of_a_linux_mptcp_client() {
    let _turn = turn();
    let setup = linux_client("full-client", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    {
        let open = setup.client_linux();
        setup.await_subflows(3);
        abort_when_full(open.client, &open.server);
    }
    setup.await_none();
    assert!(since.grown("MPFastcloseTx") > 0, "the kernel sent no MP_FASTCLOSE to test with");
    {
        let open = setup.client_linux();
        setup.await_subflows(3);
        abort_when_full(open.server, &open.client);
    }
    since.await_growth("MPFastcloseRx");
    setup.await_none();
    since.assert_content();
}

#[test]
fn an_abort_passes_full_windows_of_a_linux_mptcp_server() {
    let _turn = turn();
    let setup = linux_server("full-server", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    {
        let open = setup.server_linux();
        setup.await_subflows(2);
        abort_when_full(open.server, &open.client);
    }
    setup.await_none();
    assert!(since.grown("MPFastcloseTx") > 0, "the kernel sent no MP_FASTCLOSE to test with");
    {
        let open = setup.server_linux();
        setup.await_subflows(2);
        abort_when_full(open.client, &open.server);
    }
    since.await_growth("MPFastcloseRx");
    setup.await_none();
    since.assert_content();
}

/// One direction ends; the other goes on for a while, then carries `SIZE`, then ends as well.
fn half_close(first: &TcpStream, second: &TcpStream) {
    pass(first, second, SIZE / 10);
    first.shutdown(Shutdown::Write).expect("a shutdown");
    assert_ended(second);
    std::thread::sleep(Duration::from_millis(500));
    pass(second, first, SIZE);
    second.shutdown(Shutdown::Write).expect("a shutdown");
    assert_ended(first);
}

#[test]
fn half_closes_of_a_linux_mptcp_client_and_its_plain_server_keep_the_other_direction_open() {
    let _turn = turn();
    let setup = linux_client("half-linux-client", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    half_close(&open.client, &open.server);
    drop(open);
    setup.await_none();
    let open = setup.client_linux();
    half_close(&open.server, &open.client);
    drop(open);
    setup.await_none();
    assert_eq!(since.grown("MPCapableSYNACKRX"), 2);
    assert_eq!(since.grown("MPFastcloseRx") + since.grown("MPRstRx"), 0);
    since.assert_content();
}

#[test]
fn half_closes_of_a_plain_client_and_its_linux_mptcp_server_keep_the_other_direction_open() {
    let _turn = turn();
    let setup = linux_server("half-linux-server", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    let open = setup.server_linux();
    half_close(&open.client, &open.server);
    drop(open);
    setup.await_none();
    let open = setup.server_linux();
    half_close(&open.server, &open.client);
    drop(open);
    setup.await_none();
    assert_eq!(since.grown("MPCapableACKRX"), 2);
    assert_eq!(since.grown("MPFastcloseRx") + since.grown("MPRstRx"), 0);
    since.assert_content();
}

#[test]
fn an_address_that_a_linux_mptcp_client_removes_takes_only_its_subflow_along() {
    let _turn = turn();
    let setup = linux_client("remove-client", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    open.pass_both_ways(SIZE);
    setup.await_subflows(3);
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| pass(&open.client, &open.server, 2 * SIZE));
        std::thread::sleep(Duration::from_millis(20));
        peer::remove_mptcp_endpoint(&setup.net.umcp, umcp_kernel(1), 1).expect("a removal");
        moving.join().expect("the transfer");
    });
    setup.await_subflows(1);
    let before = carried(&setup.net, 1);
    open.pass_both_ways(SIZE);
    let after = carried(&setup.net, 1);
    assert!(after[0] - before[0] + after[1] - before[1] < 5_000, "{before:?} {after:?}");
    open.close();
    setup.await_none();
    assert!(since.grown("RmAddrTx") >= 1, "the kernel sent no REMOVE_ADDR to test with");
    since.assert_content();
}

#[test]
fn an_address_that_a_linux_mptcp_server_withdraws_takes_only_its_subflow_along() {
    let _turn = turn();
    let setup = linux_server("remove-server", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    let open = setup.server_linux();
    open.pass_both_ways(SIZE);
    setup.await_subflows(2);
    let joins = || since.grown("MPJoinAckRx");
    await_that("the kernel has the join", || joins() == 1, || joins().to_string());
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| pass(&open.server, &open.client, 2 * SIZE));
        std::thread::sleep(Duration::from_millis(20));
        peer::remove_mptcp_endpoint(&setup.net.dmcp, dmcp_kernel(1), 1).expect("a removal");
        moving.join().expect("the transfer");
    });
    setup.await_subflows(1);
    let before = carried(&setup.net, 1);
    open.pass_both_ways(SIZE);
    let after = carried(&setup.net, 1);
    assert!(after[0] - before[0] + after[1] - before[1] < 5_000, "{before:?} {after:?}");
    open.close();
    setup.await_none();
    assert!(since.grown("RmAddrTx") >= 1, "the kernel sent no REMOVE_ADDR to test with");
    since.assert_content();
}

#[test]
fn an_address_that_a_linux_mptcp_client_adds_again_gets_subflows_again() {
    let _turn = turn();
    let setup = linux_client("again-client", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    // To an address that was announced before the removal the kernel does not connect again.
    for subflows in [3, 2, 2] {
        open.pass_both_ways(SIZE);
        setup.await_subflows(subflows);
        peer::remove_mptcp_endpoint(&setup.net.umcp, umcp_kernel(1), 1).expect("a removal");
        setup.await_subflows(1);
        peer::add_mptcp_endpoint(&setup.net.umcp, umcp_kernel(1), EndpointRole::Subflow)
            .expect("an endpoint");
    }
    open.close();
    setup.await_none();
    since.assert_content();
}

#[test]
fn an_address_that_a_linux_mptcp_server_announces_again_is_joined_again() {
    let _turn = turn();
    let setup = linux_server("again-server", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    let open = setup.server_linux();
    for round in 1..=3 {
        open.pass_both_ways(SIZE);
        setup.await_subflows(2);
        // A join that is still on its way when the address goes would stay (RFC 8684 3.4.2).
        let joins = || since.grown("MPJoinAckRx");
        await_that("the kernel has the join", || joins() == round, || joins().to_string());
        peer::remove_mptcp_endpoint(&setup.net.dmcp, dmcp_kernel(1), 1).expect("a removal");
        setup.await_subflows(1);
        peer::add_mptcp_endpoint(&setup.net.dmcp, dmcp_kernel(1), EndpointRole::Signal)
            .expect("an endpoint");
    }
    setup.await_subflows(2);
    open.pass_both_ways(SIZE);
    open.close();
    setup.await_none();
    assert_eq!(since.grown("MPJoinAckRx"), 4);
    since.assert_content();
}

#[test]
fn the_first_address_may_go_while_a_second_one_carries_on() {
    let _turn = turn();
    let setup = linux_client("remove-first", TERMINATE);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    open.pass_both_ways(SIZE);
    setup.await_subflows(3);
    // Identifier 0 stands for the address of the first subflow.
    peer::remove_mptcp_endpoint(&setup.net.umcp, umcp_kernel(0), 0).expect("a removal");
    setup.await_subflows(2);
    open.pass_both_ways(SIZE);
    open.close();
    setup.await_none();
    assert!(since.grown("RmAddrTx") >= 1, "the kernel sent no REMOVE_ADDR to test with");
    since.assert_content();
}

#[test]
fn a_server_that_removes_its_first_address_is_reached_at_the_second() {
    let _turn = turn();
    let setup = linux_server("remove-first-server", DIRECT);
    let since = Since::now(&setup.net.dmcp);
    let open = setup.server_linux();
    open.pass_both_ways(SIZE);
    setup.await_subflows(2);
    let joins = || since.grown("MPJoinAckRx");
    await_that("the kernel has the join", || joins() == 1, || joins().to_string());
    peer::remove_mptcp_endpoint(&setup.net.dmcp, dmcp_kernel(0), 0).expect("a removal");
    setup.await_subflows(1);
    open.pass_both_ways(SIZE);
    open.close();
    setup.await_none();
    assert!(since.grown("RmAddrTx") >= 1, "the kernel sent no REMOVE_ADDR to test with");
    since.assert_content();
}

#[test]
fn a_subflow_that_a_linux_mptcp_client_makes_backup_carries_no_data_and_returns() {
    let _turn = turn();
    // The kernel tells its first subflow from that address only: the one to the address announced has to be the first.
    let config = format!("{TERMINATE}\n[mptcp]\njoin-delay = \"0ms\"\n");
    let setup = linux_client("prio", &config);
    let since = Since::now(&setup.net.umcp);
    let open = setup.client_linux();
    open.pass_both_ways(SIZE);
    setup.await_subflows(3);
    peer::set_mptcp_backup(&setup.net.umcp, umcp_kernel(1), true).expect("new flags");
    since.await_growth("MPPrioTx");
    std::thread::sleep(Duration::from_millis(100));
    let before = carried(&setup.net, 1);
    open.pass_both_ways(SIZE);
    let after = carried(&setup.net, 1);
    assert!(after[1] - before[1] < SIZE as u64 / 50, "Plait sent: {before:?} {after:?}");
    peer::set_mptcp_backup(&setup.net.umcp, umcp_kernel(1), false).expect("new flags");
    std::thread::sleep(Duration::from_millis(100));
    let before = carried(&setup.net, 1);
    open.pass_both_ways(2 * SIZE);
    let after = carried(&setup.net, 1);
    assert!(after[1] - before[1] > SIZE as u64 / 2, "not used again: {before:?} {after:?}");
    open.close();
    setup.await_none();
    since.assert_content();
}

#[test]
fn a_server_without_mptcp_is_reached_by_plain_tcp() {
    let _turn = turn();
    let setup = linux_server("fallback", DIRECT);
    setup.net.dmcp.set_sysctl("net.mptcp.enabled", "0").expect("the sysctl");
    let since = Since::now(&setup.net.dmcp);
    let at = SocketAddr::new(dmcp_kernel(0), PORT);
    // The second connection may be made with what the first has taught.
    for _ in 0..2 {
        let (client, server) = (&setup.net.client, &setup.net.dmcp);
        let open = Conversation::open((client, Transport::Tcp), at, (server, Transport::Tcp), at);
        open.pass_both_ways(SIZE);
        open.close();
        setup.await_none();
    }
    assert_eq!(since.grown("MPCapableSYNRX"), 0);
}
