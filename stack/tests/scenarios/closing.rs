//! Closing in every order: what one end does is what the other end sees.

use crate::common::*;
use stack::testkit::reference::{Network, SERVER, SERVER_PORT};
use stack::testkit::{Close, End, Host, Plan, TcpHost};
use stack::wire::Endpoint;

type Net = Network<TcpHost, TcpHost>;

/// Runs client and server to their ends over two links.
fn ends(client_plan: Plan, server_plan: Plan) -> (Net, [End; 2]) {
    let mut network = over(11, &two_links());
    let (client, server) = (network.client, network.server);
    network.sim[server].listen(SERVER_PORT, server_plan, 1);
    let now = network.sim.now();
    network.sim[client].connect(Endpoint::new(SERVER, SERVER_PORT), client_plan, now);
    network.sim.run_while(ms(30_000), |sim| {
        sim[client].app(0).end.is_none()
            || sim[server].apps().first().is_none_or(|a| a.end.is_none())
    });
    let ends = [network.sim[client].app(0).end, network.sim[server].app(0).end];
    let ends = ends.map(|end| end.unwrap_or_else(|| panic!("both ended: {ends:?}")));
    nothing_left(&mut network);
    (network, ends)
}

fn in_order(client: Plan, server: Plan) {
    let (network, ends) = ends(client, server);
    assert_eq!(ends, [End::Done, End::Done]);
    let (client, server) = (network.sim[network.client].app(0), network.sim[network.server].app(0));
    assert!(client.saw_end && server.saw_end);
    assert_eq!(client.sent, server.received);
    assert_eq!(server.sent, client.received);
}

fn sends(octets: u64, close: Close) -> Plan {
    Plan::send(octets, 5).close(close)
}

#[test]
fn client_first() {
    in_order(sends(50_000, Close::AfterSending), sends(0, Close::AfterPeer));
}

#[test]
fn server_first() {
    in_order(sends(0, Close::AfterPeer), sends(50_000, Close::AfterSending));
}

#[test]
fn both_at_once() {
    in_order(sends(50_000, Close::AfterSending), sends(50_000, Close::AfterSending));
    in_order(sends(0, Close::AfterSending), sends(0, Close::AfterSending));
}

#[test]
fn half_closed_by_the_client_data_flows_down() {
    in_order(sends(1_000, Close::AfterSending), sends(1_000_000, Close::AfterPeer));
}

#[test]
fn half_closed_by_the_server_data_flows_up() {
    in_order(sends(1_000_000, Close::AfterPeer), sends(1_000, Close::AfterSending));
}

#[test]
fn an_echo_after_the_half_close() {
    let mut plan = Plan::echo();
    plan.close = Close::AfterPeer;
    in_order(sends(300_000, Close::AfterSending), plan);
}

#[test]
fn a_reset_by_the_client_resets_the_server() {
    let client = Plan::sink().close(Close::ResetAfterReceiving(100_000));
    let (_, ends) = ends(client, sends(1_000_000, Close::AfterSending));
    assert_eq!(ends, [End::Aborted, End::Reset]);
}

#[test]
fn a_reset_by_the_server_resets_the_client() {
    let server = Plan::sink().close(Close::ResetAfterReceiving(100_000));
    let (_, ends) = ends(sends(1_000_000, Close::AfterSending), server);
    assert_eq!(ends, [End::Reset, End::Aborted]);
}

#[test]
fn a_reset_of_an_idle_connection() {
    let (_, ends) =
        ends(Plan::sink().close(Close::Never), Plan::sink().close(Close::ResetAfterReceiving(0)));
    assert_eq!(ends, [End::Reset, End::Aborted]);
}
