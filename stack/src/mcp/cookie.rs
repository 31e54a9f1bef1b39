//! SYN cookies at a conversion point (RFC 4987 3.6): the client's SYN is answered before the server was asked.
//!
//! Without a cookie a SYN is held until the far leg is up, so that the client sees what it would have seen without us.
//! With one it is established first, and a server that refuses shows as a reset. That is the price under a flood, or of
//! `tcp.syn-cookies = "always"`. Explicit mode never pays it: the payload of its SYN says where to go, and has to be kept
//! (SPEC 3.10, T18).
#![forbid(unsafe_code)]

use super::bridge::Bridge;
use super::config::{Action, Explanation, McpConfig, Service, Transport, explain};
use super::open::{self, Asked, Proof};
use super::policy::Mcp;
use crate::mptcp::{Key, MpCapableAck, cookie_option};
use crate::shard::{Cx, Opened};
use crate::tcp::TcpConfig;
use crate::wire::{FlowTuple, MptcpOption, Options, Segment};
use alloc::rc::Rc;

/// Whether the accept leg of such a SYN can be made later, from a cookie.
fn is_deferrable(config: &McpConfig, flow: FlowTuple, transport: Transport, cx: &Cx<'_>) -> bool {
    if flow.local == flow.remote {
        return false;
    }
    match explain(config, flow) {
        Explanation::Service(_, Service::Relay { .. }) => true,
        Explanation::Service(_, Service::Explicit { .. }) | Explanation::NoMatch => false,
        Explanation::Rule(_, rule) => {
            let converts = matches!(
                (rule.action, transport),
                (Action::Convert { .. } | Action::Direct { .. }, Transport::Tcp)
                    | (Action::Terminate { .. }, Transport::Mptcp)
            );
            converts && !cx.owns(flow.local.addr)
        }
    }
}

/// What distinguishes the cookies of SYN/ACKs with MP_CAPABLE from those without.
const fn note(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 0,
        Transport::Mptcp => 1,
    }
}

fn tcp_of(config: &Mcp, transport: Transport) -> Rc<TcpConfig> {
    match transport {
        Transport::Tcp => Rc::clone(&config.tcp),
        Transport::Mptcp => Rc::clone(config.mptcp.subflow_tcp()),
    }
}

/// The SYN/ACK for a SYN of which nothing is kept.
pub(super) fn answer(
    config: &mut Mcp,
    flow: FlowTuple,
    syn: &Segment,
    cx: &mut Cx<'_>,
) -> Option<Segment> {
    let asked = open::transport_of(syn);
    if !is_deferrable(&config.config, flow, asked, cx) {
        return None;
    }
    if asked == Transport::Mptcp
        && let Some(key) = cx.cookie_key(flow, syn.seq, None, |key| Key(key).token())
        && let Some(option) = cookie_option(&config.mptcp, syn, Key(key))
    {
        let mut answer = cx.cookie(&tcp_of(config, asked), flow, syn, note(asked))?;
        if let Options::Syn(options) = &mut answer.options {
            let _ = options.mptcp.try_push(option);
        }
        config.counters.MPCapableSYNRX += 1;
        return Some(answer);
    }
    // An MP_CAPABLE that we cannot answer: TCP will do, unless the rule is about MPTCP.
    let plain = is_deferrable(&config.config, flow, Transport::Tcp, cx);
    if plain { cx.cookie(&config.tcp, flow, syn, note(Transport::Tcp)) } else { None }
}

/// The bridge of a client that returned a cookie.
pub(super) fn open_proven(
    config: &mut Mcp,
    flow: FlowTuple,
    ack: &Segment,
    cx: &mut Cx<'_>,
) -> Option<Opened<Bridge>> {
    // A path that lets MP_CAPABLE through in the SYN may still lose it in the third segment.
    let both: &[Transport] = match open::transport_of(ack) {
        Transport::Mptcp => &[Transport::Mptcp],
        Transport::Tcp => &[Transport::Tcp, Transport::Mptcp],
    };
    let (transport, mut proven) = both.iter().find_map(|transport| {
        let transport = *transport;
        if !is_deferrable(&config.config, flow, transport, cx) {
            return None;
        }
        let proven = cx.returned_cookie(&tcp_of(config, transport), flow, ack, note(transport))?;
        Some((transport, proven))
    })?;
    let key = match transport {
        Transport::Tcp => None,
        Transport::Mptcp => {
            let token_of = |key| Key(key).token();
            let key = cx.cookie_key(flow, proven.syn.seq, Some(proven.slot), token_of);
            let key = Key(key?); // taken meanwhile: without our key there is no connection
            let capable = MpCapableAck::read(ack, key);
            let dss = |o: &MptcpOption| matches!(o, MptcpOption::Dss(_));
            if capable == MpCapableAck::Absent && ack.options.mptcp().iter().any(dss) {
                // The peer's key is under way in another segment; this one comes again.
                return Some(Opened::Ignore);
            }
            if capable == MpCapableAck::OfAnother {
                return None;
            }
            Some(key)
        }
    };
    proven.opening.path_mss = config.opening(flow, cx).path_mss;
    let proof = Proof { proven: &proven, ack, key };
    let asked = Asked { flow, syn: &proven.syn, transport, proof: Some(proof) };
    Some(open::open(config, asked, cx))
}
