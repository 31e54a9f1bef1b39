//! Rules that hold for any flow: initial numbers, and when to acknowledge.

use super::super::*;
use crate::buf::{Chain, Pool};
use crate::time::{Duration, Instant};
use crate::wire::{Control, Options, Segment, SeqNum, SynOptions, UnscaledWindow};
use alloc::rc::Rc;
use core::net::IpAddr;

/// MUST-8, MUST-9, SHLD-1, RFC 6528 3: the number follows a clock of 4 microseconds, from where a keyed hash of the flow
/// puts it, and the clock of timestamps begins somewhere else for every flow (RFC 7323 5.4).
#[test]
fn initial_numbers_follow_the_clock_from_a_place_of_the_flows_own() {
    let peer = IpAddr::from([192, 0, 2, 1]);
    let at = |hash: u64, us: u64| Opening::new(peer, hash, Instant::from_micros(us));
    let (one, other) = (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321);
    assert_eq!(at(one, 400).iss.since(at(one, 0).iss), 100);
    assert_eq!(at(one, 3).iss, at(one, 0).iss);
    assert_eq!(at(other, 0).iss.since(at(one, 0).iss), (other as u32).wrapping_sub(one as u32));
    assert_ne!(at(one, 0).ts_offset, at(other, 0).ts_offset);
    let again = Duration::from_secs(600).as_micros() as u64;
    assert!(at(one, 0).iss.before(at(one, again).iss), "beyond those of the flow before it");
}

/// MUST-58, MUST-59: segments that were processed together are acknowledged together.
#[test]
fn one_ack_answers_all_that_was_processed() {
    let pool = Pool::new(64, 2048);
    let cfg = Rc::new(TcpConfig { timestamps: false, ..TcpConfig::default() });
    let opening = Opening::new(IpAddr::from([192, 0, 2, 1]), 7, Instant::ZERO);
    let mut syn = SynSent::new(&cfg, opening, Chain::new(), Instant::ZERO);
    let now = Instant::from_millis(10);
    assert!(syn.poll_transmit(Instant::ZERO).is_some());
    let answer = Segment {
        seq: SeqNum(4999),
        ack: Some(opening.iss + 1),
        control: Control::Syn,
        window: UnscaledWindow(50_000),
        options: Options::Syn(SynOptions { mss: Some(1460), ..Default::default() }),
        ..Default::default()
    };
    let SynSentOutcome::Established { mut tcb, .. } = syn.on_segment(answer, now) else {
        panic!("a SYN/ACK establishes");
    };
    while tcb.poll_transmit(now, OptionRoom::default()).is_some() {}
    for i in 0..9 {
        let text = Chain::copy_from(&pool, 0, &[7; 1000]).unwrap();
        let (seq, ack) = (SeqNum(5000) + i * 1000, Some(opening.iss + 1));
        let window = UnscaledWindow(50_000);
        let arrival = tcb.on_segment(Segment { seq, ack, window, text, ..Default::default() }, now);
        assert!(arrival.accepted && arrival.text.is_some());
    }
    let ack = tcb.poll_transmit(now, OptionRoom::default()).expect("an ACK");
    assert_eq!(ack.segment.ack, Some(SeqNum(14_000)));
    assert!(tcb.poll_transmit(now, OptionRoom::default()).is_none(), "and no other");
}
