//! What the stack tells about a connection, in the words of `ss` and `struct mptcp_info`.
#![forbid(unsafe_code)]

use super::{ConnectionRow, SocketRow};
use serde_json::{Map, Value, json};
use stack::mcp::{ConnectionInfo, ConnectionState, LegInfo, Mode};
use stack::mptcp::{MptcpInfo, SubflowInfo};
use stack::tcp::{CloseReason, State, TcpInfo, header_len};
use stack::time::Duration;
use stack::wire::FlowTuple;
use std::net::IpAddr;

/// The row of a connection of this worker.
pub fn connection_row(worker: u32, info: &ConnectionInfo) -> ConnectionRow {
    ConnectionRow {
        id: info.id,
        worker,
        rule: info.rule.clone(),
        mode: mode(info.mode).to_owned(),
        state: state(info.state).to_owned(),
        client: info.client.to_string(),
        server: info.server.to_string(),
        age_ms: millis(info.age),
        bytes_up: info.bytes_up,
        bytes_down: info.bytes_down,
        near: leg(&info.near, info.bytes_up),
        far: leg(&info.far, info.bytes_down),
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Convert => "convert",
        Mode::Deconvert => "deconvert",
        Mode::Direct => "direct",
        Mode::Terminate => "terminate",
        Mode::Relay => "relay",
        Mode::Plain => "plain",
    }
}

fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connecting => "connecting",
        ConnectionState::Open => "open",
        ConnectionState::Closing => "closing",
        ConnectionState::Closed(CloseReason::Done) => "closed",
        ConnectionState::Closed(CloseReason::Reset) => "reset",
        ConnectionState::Closed(CloseReason::Refused) => "refused",
        ConnectionState::Closed(CloseReason::TimedOut) => "timed-out",
        ConnectionState::Closed(CloseReason::Unreachable) => "unreachable",
        ConnectionState::Closed(CloseReason::Aborted) => "aborted",
    }
}

/// `passed_on`: octets that arrived on this leg and were given to the other.
fn leg(leg: &LegInfo, passed_on: u64) -> SocketRow {
    match leg {
        LegInfo::Tcp { flow, tcp } => {
            let mut row = socket("tcp", *flow, tcp.as_deref());
            let received = tcp.as_ref().map_or(0, |tcp| tcp.bytes_received);
            row.recv_q = received.saturating_sub(passed_on);
            row
        }
        LegInfo::Mptcp { mptcp, subflows } => mptcp_leg(mptcp, subflows, passed_on),
    }
}

fn mptcp_leg(mptcp: &MptcpInfo, subflows: &[SubflowInfo], passed_on: u64) -> SocketRow {
    let rows: Vec<SocketRow> = subflows.iter().map(|s| subflow(s, mptcp.token)).collect();
    let first = rows.first();
    SocketRow {
        netid: "mptcp".to_owned(),
        state: first.map_or("CLOSE", |row| row.state.as_str()).to_owned(),
        recv_q: mptcp.bytes_received.saturating_sub(passed_on),
        send_q: mptcp.write_seq.wrapping_sub(mptcp.snd_una),
        local: first.map_or_else(String::new, |row| row.local.clone()),
        peer: first.map_or_else(String::new, |row| row.peer.clone()),
        info: mptcp_fields(mptcp),
        subflows: rows,
    }
}

fn subflow(subflow: &SubflowInfo, token: u32) -> SocketRow {
    let mut row = socket("tcp", subflow.flow, subflow.tcp.as_ref());
    row.info.insert("token".to_owned(), json!(format!("{token:08x}")));
    row.info.insert("local_id".to_owned(), json!(subflow.local_id));
    row.info.insert("remote_id".to_owned(), json!(subflow.remote_id));
    for (name, holds) in [("backup", subflow.backup), ("stale", subflow.stale)] {
        if holds {
            row.info.insert(name.to_owned(), json!(true));
        }
    }
    row
}

fn socket(netid: &str, flow: FlowTuple, tcp: Option<&TcpInfo>) -> SocketRow {
    SocketRow {
        netid: netid.to_owned(),
        state: tcp.map_or("SYN-SENT", |tcp| tcp_state(tcp.state)).to_owned(),
        recv_q: 0,
        send_q: tcp.map_or(0, |tcp| u64::from(tcp.unacked) + u64::from(tcp.notsent)),
        local: flow.local.to_string(),
        peer: flow.remote.to_string(),
        info: tcp.map(|tcp| tcp_fields(tcp, flow.remote.addr)).unwrap_or_default(),
        subflows: Vec::new(),
    }
}

fn tcp_state(state: State) -> &'static str {
    match state {
        State::SynSent => "SYN-SENT",
        State::SynReceived => "SYN-RECV",
        State::Established => "ESTAB",
        State::FinWait1 => "FIN-WAIT-1",
        State::FinWait2 => "FIN-WAIT-2",
        State::CloseWait => "CLOSE-WAIT",
        State::Closing => "CLOSING",
        State::LastAck => "LAST-ACK",
        State::TimeWait => "TIME-WAIT",
        State::Closed => "CLOSE",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds with three decimals, as `ss` prints them.
fn fine_millis(duration: Duration) -> f64 {
    (duration.as_micros() as f64) / 1000.0
}

/// As `ss -i`, but `cwnd` and `ssthresh` are in octets here, as is everything that counts data.
fn tcp_fields(tcp: &TcpInfo, peer: IpAddr) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    if let Some(congestion) = tcp.congestion {
        put("congestion", json!(congestion.name()));
    }
    if let Some(rtt) = tcp.rtt {
        put("rtt", json!(fine_millis(rtt)));
        put("rttvar", json!(fine_millis(tcp.rttvar)));
    }
    if let Some(minrtt) = tcp.minrtt {
        put("minrtt", json!(fine_millis(minrtt)));
    }
    put("rto", json!(fine_millis(tcp.rto)));
    put("cwnd", json!(tcp.cwnd));
    if tcp.ssthresh != u32::MAX {
        put("ssthresh", json!(tcp.ssthresh));
    }
    put("mss", json!(tcp.mss));
    if tcp.path_mss > 0 {
        put("pmtu", json!(tcp.path_mss + header_len(peer)));
        put("rcvmss", json!(tcp.rcvmss));
        put("advmss", json!(tcp.advmss));
    }
    if let Some(rate) = tcp.pacing_rate {
        put("pacing_rate", json!(8 * rate)); // bits per second, as `ss` prints it
    }
    if let Some(rate) = tcp.delivery_rate {
        put("delivery_rate", json!(8 * rate));
        put("app_limited", json!(tcp.app_limited));
    }
    put("unacked", json!(tcp.unacked));
    put("notsent", json!(tcp.notsent));
    put("snd_wnd", json!(tcp.snd_wnd));
    put("rcv_wnd", json!(tcp.rcv_wnd));
    put("bytes_sent", json!(tcp.bytes_sent));
    put("bytes_acked", json!(tcp.bytes_acked));
    put("bytes_received", json!(tcp.bytes_received));
    put("bytes_retrans", json!(tcp.bytes_retrans));
    put("lost", json!(tcp.lost));
    put("rto_count", json!(tcp.rto_count));
    put("rcv_ooopack", json!(tcp.rcv_ooopack));
    put("ecn", json!(tcp.ecn));
    put("rcv_ce", json!(tcp.ce_in));
    put("delivered_ce", json!(tcp.delivered_ce));
    map
}

/// As `ss -M`.
fn mptcp_fields(mptcp: &MptcpInfo) -> Map<String, Value> {
    let fields = json!({
        "subflows": mptcp.subflows,
        "subflows_total": mptcp.subflows_total,
        "add_addr_signal": mptcp.add_addr_signal,
        "add_addr_accepted": mptcp.add_addr_accepted,
        "token": format!("{:08x}", mptcp.token),
        "write_seq": format!("{:016x}", mptcp.write_seq),
        "snd_una": format!("{:016x}", mptcp.snd_una),
        "rcv_nxt": format!("{:016x}", mptcp.rcv_nxt),
        "csum_enabled": mptcp.csum_enabled,
        "retransmits": mptcp.retransmits,
        "bytes_sent": mptcp.bytes_sent,
        "bytes_received": mptcp.bytes_received,
        "bytes_acked": mptcp.bytes_acked,
        "bytes_retrans": mptcp.bytes_retrans,
        "fallback": mptcp.fallback,
    });
    match fields {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
