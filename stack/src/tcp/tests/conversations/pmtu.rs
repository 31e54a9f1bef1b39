//! The path MTU: who is believed, what is sent again, and how larger segments are tried.

use super::*;
use crate::wire::{Endpoint, FlowTuple, IcmpError, IcmpErrorKind};
use core::net::IpAddr;

const V4: &str = "192.0.2.1";
const V6: &str = "2001:db8::1";

/// Both ends allow 1,460 octets; the window opens to 100 segments and nothing waits to be acknowledged.
fn wide(cfg: TcpConfig) -> Host {
    let cfg = TcpConfig { mss: 1460, ..cfg };
    established_with(cfg, SynOptions { mss: Some(1460), ..full_options() })
}

fn blackhole() -> TcpConfig {
    TcpConfig { mtu_probing: MtuProbing::BlackHole, ..config() }
}

/// "Packet too big" about the octet at `at`.
fn too_big(host: &mut Host, peer: &str, at: u32, mtu: u32) -> TooBig {
    let remote: IpAddr = peer.parse().unwrap();
    let local = Endpoint::new(remote, 4000);
    let flow = FlowTuple { local, remote: Endpoint::new(remote, 80) };
    let kind = IcmpErrorKind::PacketTooBig { mtu };
    let error = IcmpError { flow, seq: US + at, from: remote, kind };
    let verdict = host.tcb.on_too_big(&error, host.now);
    host.tcb.assert_invariants();
    verdict
}

/// All it sends now, cut as the device cuts it.
fn segments(host: &mut Host) -> Vec<(u32, u32)> {
    let mut all = Vec::new();
    while let Some(tx) = host.poll() {
        let (at, len) = (tx.segment.seq.since(US), tx.segment.text.len());
        let step = if tx.gso_size > 0 { u32::from(tx.gso_size) } else { len.max(1) };
        all.extend((0..len).step_by(step as usize).map(|i| (at + i, step.min(len - i))));
    }
    all
}

fn ack_all(host: &mut Host) {
    let nxt = host.tcb.snd_nxt();
    host.sleep(100);
    send!(host, ack = Some(nxt));
}

/// RFC 1191 6.4(a), RFC 8201 5.4(a): what was too large goes again at once, and the congestion window stays.
#[test]
fn a_packet_too_big_is_cut_and_sent_again_without_a_congestion_response() {
    for (peer, mtu, mss) in [(V4, 1400, 1360), (V6, 1400, 1340)] {
        let mut host = wide(config());
        host.push(4 * 1460 + 100);
        assert_eq!(segments(&mut host).len(), 5);
        let (cwnd, ssthresh) = (host.tcb.cwnd(), host.tcb.info().ssthresh);
        host.sleep(20);
        assert_eq!(too_big(&mut host, peer, 1460, mtu), TooBig::Believed(mss));
        let again = segments(&mut host);
        assert_eq!(again[0], (0, u32::from(mss)), "all of the super-segment");
        assert!(again.iter().all(|(_, len)| *len <= u32::from(mss)));
        assert_eq!(again.iter().map(|(_, len)| len).sum::<u32>(), 4 * 1460 + 100);
        assert_eq!((host.tcb.cwnd(), host.tcb.info().ssthresh), (cwnd, ssthresh));
        assert_eq!(host.tcb.mss(OptionRoom::default()), u32::from(mss));
        ack_all(&mut host);
        assert_eq!(host.tcb.queued(), 0);
        assert!(host.tcb.cwnd() >= cwnd, "and it goes on as before");
        assert_eq!((host.tcb.info().rto_count, host.tcb.info().recoveries), (0, 0));
    }
}

/// RFC 5927 4.1: it has to quote a segment in flight.
#[test]
fn a_forged_packet_too_big_out_of_the_window_is_ignored() {
    let mut host = wide(config());
    host.push(2 * 1460);
    segments(&mut host);
    ack_all(&mut host);
    host.push(1460);
    segments(&mut host);
    for at in [0, 2 * 1460 - 1, 3 * 1460, 1 << 30, u32::MAX] {
        assert_eq!(too_big(&mut host, V4, at, 1000), TooBig::OutOfWindow, "{at}");
    }
    assert_eq!(host.tcb.mss(OptionRoom::default()), 1460);
    recv!(host, nothing);
}

/// RFC 8201 4(a): below 1280 it is discarded. RFC 5927 7.2, RFC 1191 3(b): IPv4 has a floor, too.
#[test]
fn a_forged_packet_too_big_below_the_floor_is_ignored() {
    let mut host = wide(config());
    host.push(1460);
    segments(&mut host);
    for (peer, mtu) in [(V4, 0), (V4, 68), (V4, 551), (V6, 0), (V6, 1279)] {
        assert_eq!(too_big(&mut host, peer, 0, mtu), TooBig::TooSmall, "{mtu}");
    }
    recv!(host, nothing);
    assert_eq!(too_big(&mut host, V6, 0, 1280), TooBig::Believed(1220));
    assert_eq!(segments(&mut host), [(0, 1220), (1220, 240)]);
}

/// RFC 1191 3(c), RFC 8201 4(b): it never makes the estimate larger, and a second one about the same changes nothing.
#[test]
fn a_packet_too_big_does_not_raise_the_mtu() {
    let mut host = wide(config());
    host.push(3 * 1460);
    segments(&mut host);
    assert_eq!(too_big(&mut host, V4, 0, 1500), TooBig::NoNews);
    assert_eq!(too_big(&mut host, V4, 0, 9000), TooBig::NoNews);
    assert_eq!(too_big(&mut host, V4, 0, 1400), TooBig::Believed(1360));
    assert_eq!(segments(&mut host).len(), 4);
    for at in [1460, 2920] {
        assert_eq!(too_big(&mut host, V4, at, 1400), TooBig::NoNews);
    }
    recv!(host, nothing);
    assert_eq!(host.tcb.mss(OptionRoom::default()), 1360);
}

/// RFC 5927 7.2: what contradicts delivered segments waits; if the segment arrives, it was a forgery.
#[test]
fn a_claim_that_progress_refutes_is_dropped() {
    let mut host = wide(config());
    host.push(2 * 1460);
    segments(&mut host);
    ack_all(&mut host);
    host.push(2 * 1460);
    segments(&mut host);
    assert_eq!(too_big(&mut host, V4, 2920, 600), TooBig::Delayed);
    recv!(host, nothing);
    ack_all(&mut host);
    host.push(1460);
    assert_eq!(segments(&mut host), [(4 * 1460, 1460)]);
    host.wait();
    assert_eq!(host.tcb.mss(OptionRoom::default()), 1460);
}

/// RFC 5927 7.2: without progress the claim is believed, instead of a timeout and its response.
#[test]
fn a_claim_is_believed_when_nothing_comes_back() {
    let mut host = wide(config());
    host.push(2 * 1460);
    segments(&mut host);
    ack_all(&mut host);
    host.push(2 * 1460);
    segments(&mut host);
    let cwnd = host.tcb.cwnd();
    assert_eq!(too_big(&mut host, V4, 2920, 1000), TooBig::Delayed);
    host.wait();
    assert_eq!(segments(&mut host), [(2920, 960), (3880, 960), (4840, 960), (5800, 40)]);
    assert_eq!((host.tcb.cwnd(), host.tcb.drain_mtu_tally().believed), (cwnd, 1));
    assert_eq!(host.tcb.info().rto_count, 0);
}

/// RFC 5927 7.2: as soon as the quoted segment is lost, though smaller ones pass.
#[test]
fn a_claim_is_believed_when_the_segment_is_lost() {
    let mut host = wide(config());
    host.push(1460);
    segments(&mut host);
    ack_all(&mut host);
    host.push(1460);
    segments(&mut host);
    for _ in 0..4 {
        host.push(100);
        segments(&mut host);
    }
    assert_eq!(too_big(&mut host, V4, 1460, 1000), TooBig::Delayed);
    let cwnd = host.tcb.cwnd();
    host.sleep(100);
    send!(host, ack = Some(US + 1460), options = sack(&[(2920, 3320)]));
    assert_eq!(segments(&mut host), [(1460, 960), (2420, 500)]);
    assert_eq!((host.tcb.info().recoveries, host.tcb.cwnd()), (0, cwnd));
}

/// RFC 5927 7.2: a flood of ever smaller claims is believed a few times only.
#[test]
fn not_every_claim_is_believed() {
    let mut host = wide(config());
    host.push(1460);
    segments(&mut host);
    let mut verdicts = Vec::new();
    for mtu in (600..1400).rev().step_by(10) {
        verdicts.push(too_big(&mut host, V4, 0, mtu));
        segments(&mut host);
    }
    let believed = verdicts.iter().filter(|v| matches!(v, TooBig::Believed(_))).count();
    assert!((5..10).contains(&believed), "{believed}");
    assert_eq!(verdicts.last(), Some(&TooBig::Limited));
}

/// A flow that others found a small path for begins with it; RFC 1191 6.2.
#[test]
fn a_flow_begins_with_what_is_known_of_its_path() {
    let cfg = Rc::new(TcpConfig { mss: 1460, ..config() });
    let opening = Opening { path_mss: 1200, ..OPENING };
    let mut syn = SynSent::new(&cfg, opening, Chain::new(), Instant::ZERO);
    let tx = syn.poll_transmit(Instant::ZERO).unwrap();
    let Options::Syn(options) = &tx.segment.options else { panic!("a SYN") };
    assert_eq!(options.mss, Some(1460), "what we receive has nothing to do with it (MUST-67)");
    let answer = syn_ack(SynOptions { mss: Some(1460), ..full_options() });
    let SynSentOutcome::Established { tcb, .. } = syn.on_segment(answer, Instant::from_millis(1))
    else {
        panic!("established")
    };
    assert_eq!(tcb.mss(OptionRoom::default()), 1200);
    assert_eq!((tcb.info().path_mss, tcb.info().advmss), (1200, 1460));
}

/// MUST-16: Eff.snd.MSS counts the options; a peer that asks for one octet gets segments of a sensible size all the same.
#[test]
fn options_come_out_of_the_mss_and_a_tiny_one_is_not_believed() {
    let cfg = || TcpConfig { mss: 1460, timestamps: true, ..config() };
    let room = |text| OptionRoom { text, ack: 0 };
    let host = established_with(cfg(), SynOptions { mss: Some(1400), ..full_options() });
    assert_eq!(host.tcb.mss(room(0)), 1388);
    assert_eq!(host.tcb.mss(room(20)), 1368);
    assert_eq!(host.tcb.mss(room(28)), 1360);
    let host = established_with(cfg(), SynOptions { mss: Some(1), ..full_options() });
    assert_eq!(host.tcb.mss(room(28)), 48);
}

/// Three timeouts of a full segment: RFC 4821 7.7, RFC 8899 5.1.2.
#[test]
fn full_segments_that_vanish_become_smaller() {
    let mut host = wide(blackhole());
    host.push(3 * 1460);
    segments(&mut host);
    let mut first = Vec::new();
    while first.len() < 4 {
        host.wait();
        first.extend(segments(&mut host).first().map(|(_, len)| *len));
    }
    // A tail loss probe and two timeouts at full size.
    assert_eq!(first, [1460, 1460, 1460, 1024]);
    assert_eq!(host.tcb.drain_mtu_tally().black_holes, 1);
}

#[test]
fn small_segments_that_vanish_are_no_black_hole() {
    let mut host = wide(blackhole());
    host.push(500);
    segments(&mut host);
    (0..5).for_each(|_| {
        host.wait();
        assert_eq!(segments(&mut host), [(0, 500)]);
    });
    assert_eq!(host.tcb.mss(OptionRoom::default()), 1460);
}

#[test]
fn without_probing_segments_stay_as_large_as_they_are() {
    let mut host = wide(TcpConfig { mtu_probing: MtuProbing::Off, ..config() });
    host.push(3 * 1460);
    segments(&mut host);
    (0..5).for_each(|_| {
        host.wait();
        assert_eq!(segments(&mut host).first().map(|(_, len)| *len), Some(1460));
    });
}

/// A flow that begins at 1024 and has a window of a hundred segments.
fn searching() -> Host {
    let cfg = TcpConfig { mtu_probing: MtuProbing::Always, ..config() };
    let mut host = wide(cfg);
    for _ in 0..3 {
        host.push(1024);
        segments(&mut host);
        ack_all(&mut host);
    }
    host
}

/// RFC 4821 7.5, 7.6.1: a probe is one larger segment of new text; when it arrives, segments are that large.
#[test]
fn a_probe_that_arrives_raises_the_mss() {
    let mut host = searching();
    let at = 3 * 1024;
    assert_eq!(host.tcb.mss(OptionRoom::default()), 1024);
    host.push(5000);
    let sent = segments(&mut host);
    assert_eq!(sent[..2], [(at, 1460), (at + 1460, 1024)]);
    ack_all(&mut host);
    assert_eq!(host.tcb.mss(OptionRoom::default()), 1460);
    assert_eq!(host.tcb.drain_mtu_tally(), MtuTally { success: 1, ..MtuTally::NONE });
}

/// RFC 4821 7.6.2(a), 7.6.2(b): the isolated loss of a probe is no congestion; the search goes on below.
#[test]
fn a_probe_that_is_lost_lowers_the_search_and_not_the_window() {
    let mut host = searching();
    let at = 3 * 1024;
    host.push(1460 + 4 * 1024);
    segments(&mut host);
    let cwnd = host.tcb.cwnd();
    host.sleep(100);
    let end = at + 1460 + 4 * 1024;
    send!(host, ack = Some(US + at), options = sack(&[(at + 1460, end)]));
    assert_eq!(segments(&mut host), [(at, 1024), (at + 1024, 436)]);
    assert!(host.tcb.cwnd() >= cwnd);
    assert_eq!((host.tcb.info().recoveries, host.tcb.info().ssthresh), (0, u32::MAX));
    assert_eq!(host.tcb.drain_mtu_tally(), MtuTally { fail: 1, ..MtuTally::NONE });
    ack_all(&mut host);
    host.push(5000);
    assert_eq!(
        segments(&mut host)[0],
        (end, 1024 + 218),
        "the middle of 1024 and 1459 (RFC 4821 7.3)"
    );
}

/// RFC 4821 7.6.4: lost together with others, a probe says nothing, and congestion is answered.
#[test]
fn a_probe_lost_with_others_is_inconclusive() {
    let mut host = searching();
    let at = 3 * 1024;
    host.push(1460 + 5 * 1024);
    segments(&mut host);
    host.sleep(100);
    let (left, end) = (at + 1460 + 1024, at + 1460 + 5 * 1024);
    send!(host, ack = Some(US + at), options = sack(&[(left, end)]));
    assert_eq!(host.tcb.info().recoveries, 1);
    assert!(host.tcb.info().ssthresh < u32::MAX);
    segments(&mut host);
    assert_eq!(host.tcb.drain_mtu_tally(), MtuTally::NONE);
}

/// RFC 4821 7.6.3: if only a timeout shows that a probe is lost, it has failed, and the timeout is answered as any.
#[test]
fn a_probe_that_times_out_has_failed() {
    let cfg = TcpConfig { mtu_probing: MtuProbing::Always, sack: false, ..config() };
    let mut host = wide(cfg);
    for _ in 0..3 {
        host.push(1024);
        segments(&mut host);
        ack_all(&mut host);
    }
    host.push(1460);
    assert_eq!(segments(&mut host), [(3 * 1024, 1460)]);
    host.wait();
    assert_eq!(host.tcb.drain_mtu_tally(), MtuTally { fail: 1, ..MtuTally::NONE });
    assert_eq!(segments(&mut host)[0], (3 * 1024, 1024));
    assert_eq!((host.tcb.info().rto_count, host.tcb.cwnd()), (1, 1024));
}

/// RFC 4821 7.6.2(c): a router that refuses the probe says what passes.
#[test]
fn a_packet_too_big_about_a_probe_ends_the_search_there() {
    let mut host = searching();
    host.push(5000);
    segments(&mut host);
    assert_eq!(too_big(&mut host, V4, 3 * 1024, 1400), TooBig::Believed(1024));
    assert_eq!(segments(&mut host), [(3 * 1024, 1024), (3 * 1024 + 1024, 436)]);
    ack_all(&mut host);
    host.push(5000);
    let size = segments(&mut host)[0].1;
    assert!(size > 1024 && size <= 1360, "{size}");
}

/// The whole search (RFC 4821 7.3): it ends within 8 octets of what passes, and begins again after 10 minutes
/// (RFC 1191 6.3, RFC 8899 5.1.1).
#[test]
fn the_search_ends_close_to_what_passes_and_is_repeated_after_ten_minutes() {
    for passes in [1030, 1100, 1300, 1452, 1459] {
        let mut host = searching();
        let probes = search(&mut host, passes);
        let mss = host.tcb.mss(OptionRoom::default());
        assert!(mss <= passes && mss + 8 > passes, "{mss} for {passes}");
        assert!(probes < 12, "{probes}");
        host.sleep(600_000);
        search(&mut host, 1460);
        assert_eq!(host.tcb.mss(OptionRoom::default()), 1460);
    }
}

/// Sends in bulk over a path that carries segments of `passes` octets, until there is no probe for a while. Returns how
/// many there were.
fn search(host: &mut Host, passes: u32) -> u32 {
    let (mut probes, mut quiet) = (0, 0);
    while quiet < 5 {
        let from = host.tcb.snd_nxt();
        host.push(12_000); // within cwnd, so that a probe leaves at once
        let mss = host.tcb.mss(OptionRoom::default());
        let sent = segments(host);
        let probe = sent.iter().find(|(_, len)| *len > mss).copied();
        (probes, quiet) = if probe.is_some() { (probes + 1, 0) } else { (probes, quiet + 1) };
        host.sleep(50);
        let end = host.tcb.snd_nxt();
        if let Some((at, len)) = probe.filter(|(_, len)| *len > passes) {
            assert_eq!(US + at, from, "the first of the round");
            let rest = sack(&[(at + len, end.since(US))]);
            send!(host, ack = Some(from), options = rest);
            segments(host);
        }
        host.sleep(50);
        let end = host.tcb.snd_nxt();
        send!(host, ack = Some(end));
        segments(host);
        ack_all(host);
    }
    probes
}

/// A path that was reduced by a router is tried again after 10 minutes (RFC 1191 6.3), with a probe; without probing all
/// at once.
#[test]
fn what_a_router_said_is_forgotten_after_ten_minutes() {
    for probing in [MtuProbing::BlackHole, MtuProbing::Off] {
        let mut host = wide(TcpConfig { mtu_probing: probing, ..config() });
        host.push(1460);
        segments(&mut host);
        assert_eq!(too_big(&mut host, V4, 0, 1240), TooBig::Believed(1200));
        segments(&mut host);
        ack_all(&mut host);
        host.sleep(599_000);
        search(&mut host, 1200);
        assert_eq!(host.tcb.mss(OptionRoom::default()), 1200);
        host.sleep(1_000);
        search(&mut host, 1460);
        assert_eq!(host.tcb.mss(OptionRoom::default()), 1460);
        let probes = host.tcb.drain_mtu_tally().success;
        assert_eq!(probes, u32::from(probing == MtuProbing::BlackHole));
    }
}

/// A probe never mixes text of two labels: a mapping must be named by each of its segments (RFC 8684 3.3).
#[test]
fn a_probe_carries_one_label() {
    let mut host = searching();
    for label in 1..6 {
        let text = host.text(1200);
        host.tcb.push(text, Label(label));
    }
    let mut lens = Vec::new();
    while let Some(tx) = host.poll() {
        let len = tx.segment.text.len();
        assert!(u32::from(tx.gso_size).max(len.min(1024)) <= 1024, "no probe fits in one label");
        lens.push(len);
    }
    assert_eq!(lens, [1200; 5]);
    ack_all(&mut host);
    let text = host.text(6000);
    host.tcb.push(text, Label(9));
    let tx = host.poll().unwrap();
    assert_eq!((tx.segment.text.len(), tx.gso_size, tx.label), (1460, 0, Label(9)));
    let tx = host.poll().unwrap();
    assert_eq!((tx.offset, tx.gso_size, tx.label), (1460, 1024, Label(9)));
}
