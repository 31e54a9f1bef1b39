//! One rule of an RFC each: segments in, segments out.

use super::super::*;
use crate::buf::{Chain, Pool};
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, Options, SackBlock, Segment, SegmentOptions, SeqNum, SynOptions, Timestamps,
    UnscaledWindow,
};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

const MS: fn(u64) -> Duration = Duration::from_millis;
const ISS: SeqNum = SeqNum(999);
const IRS: SeqNum = SeqNum(4999);
/// First octets of text, ours and theirs.
const US: SeqNum = SeqNum(1000);
const THEM: SeqNum = SeqNum(5000);
/// Peer's MSS; no timestamps unless a test wants them, so that a segment is 1000 octets.
const MSS: u32 = 1000;
const OPENING: Opening = Opening { iss: ISS, ts_offset: 77, path_mss: u16::MAX, default_mss: 536 };

struct Host {
    tcb: Box<Tcb>,
    now: Instant,
    pool: Pool,
}

fn config() -> TcpConfig {
    TcpConfig { mss: MSS as u16, timestamps: false, receive_buffer: 60_000, ..Default::default() }
}

fn syn_ack(options: SynOptions) -> Segment {
    Segment {
        seq: IRS,
        ack: Some(US),
        control: Control::Syn,
        push: false,
        window: UnscaledWindow(50_000),
        options: Options::Syn(options),
        text: Chain::new(),
        ..Default::default()
    }
}

fn full_options() -> SynOptions {
    SynOptions {
        mss: Some(MSS as u16),
        window_scale: Some(0),
        sack_permitted: true,
        timestamps: Some(Timestamps { val: 100, ecr: 0 }),
        ..Default::default()
    }
}

/// Connected with an RTT of 100 ms at time 1.1 s; the ACK of the handshake is out.
fn established_with(cfg: TcpConfig, options: SynOptions) -> Host {
    let pool = Pool::new(2000, 1600);
    let mut syn = SynSent::new(&Rc::new(cfg), OPENING, Chain::new(), Instant::from_millis(1000));
    assert!(syn.poll_transmit(Instant::from_millis(1000)).is_some());
    let now = Instant::from_millis(1100);
    let SynSentOutcome::Established { mut tcb, .. } = syn.on_segment(syn_ack(options), now) else {
        panic!("a SYN/ACK establishes");
    };
    assert!(tcb.poll_transmit(now, OptionRoom::default()).is_some());
    assert!(tcb.poll_transmit(now, OptionRoom::default()).is_none());
    Host { tcb, now, pool }
}

fn established() -> Host {
    established_with(config(), full_options())
}

impl Host {
    fn push(&mut self, n: u32) {
        let text = self.text(n);
        self.tcb.push(text, Label::PLAIN);
    }

    fn text(&self, n: u32) -> Chain {
        Chain::copy_from(&self.pool, 0, &alloc::vec![7; n as usize]).unwrap()
    }

    fn poll(&mut self) -> Option<TxSegment> {
        let tx = self.tcb.poll_transmit(self.now, OptionRoom::default());
        self.tcb.assert_invariants();
        tx
    }

    fn sleep(&mut self, ms: u64) {
        self.now += MS(ms);
    }

    /// Waits for the next deadline and runs it; how many ms that took.
    fn wait(&mut self) -> u64 {
        let at = self.tcb.deadline().expect("a deadline");
        let ms = at.since(self.now).as_millis() as u64;
        self.now = self.now.max(at);
        assert_eq!(self.tcb.on_deadline(self.now), None);
        ms
    }

    /// Everything it sends now, as (offset from the first octet, length).
    fn drain(&mut self) -> Vec<(u32, u32)> {
        core::iter::from_fn(|| self.poll())
            .map(|tx| (tx.segment.seq.since(US), tx.segment.text.len()))
            .collect()
    }
}

/// A segment from the peer: by default a pure ACK of nothing new.
fn seg() -> Segment {
    Segment {
        seq: THEM,
        ack: Some(US),
        control: Control::None,
        push: false,
        window: UnscaledWindow(50_000),
        options: Options::Segment(SegmentOptions::default()),
        text: Chain::new(),
        ..Default::default()
    }
}

fn sack(blocks: &[(u32, u32)]) -> Options {
    let sack = blocks.iter().map(|(l, r)| SackBlock { left: US + *l, right: US + *r }).collect();
    Options::Segment(SegmentOptions { sack, ..Default::default() })
}

fn stamps(val: u32, ecr: u32) -> Options {
    let timestamps = Some(Timestamps { val, ecr });
    Options::Segment(SegmentOptions { timestamps, ..Default::default() })
}

/// `send!(host, field = value, ..)`: the peer sends this segment; yields the arrival.
macro_rules! send {
    ($host:expr $(, $field:ident = $value:expr)* $(,)?) => {{
        #[allow(clippy::needless_update, reason = "some tests name every field")]
        let segment = Segment { $($field: $value,)* ..seg() };
        let arrival = $host.tcb.on_segment(segment, $host.now);
        $host.tcb.assert_invariants();
        arrival
    }};
}

/// `recv!(host, nothing)`, or `recv!(host, field = value, ..)`: the next segment has these fields; yields it.
macro_rules! recv {
    ($host:expr, nothing) => {
        assert!($host.poll().is_none(), "nothing was to be sent")
    };
    ($host:expr $(, $field:ident = $value:expr)* $(,)?) => {{
        let tx = $host.poll().expect("a segment");
        $(assert_eq!(tx.segment.$field, $value, stringify!($field));)*
        tx
    }};
}

mod pmtu;

fn blocks(tx: &TxSegment) -> Vec<(u32, u32)> {
    match &tx.segment.options {
        Options::Segment(o) => {
            o.sack.iter().map(|b| (b.left.since(THEM), b.right.since(THEM))).collect()
        }
        Options::Syn(_) => panic!("no SYN"),
    }
}

// Resets and challenges (RFC 5961).

#[test]
fn out_of_window_rst_is_ignored() {
    let mut host = established();
    let arrival = send!(host, seq = THEM + 70_000, control = Control::Rst);
    assert_eq!(arrival.stop, Some(Stop::Silent(Why::ResetOutsideWindow)));
    recv!(host, nothing);
    assert_eq!(host.tcb.state(), State::Established);
}

#[test]
fn in_window_rst_is_challenged_and_the_exact_one_believed() {
    let mut host = established();
    let arrival = send!(host, seq = THEM + 1, control = Control::Rst);
    assert_eq!(arrival.stop, Some(Stop::Ack(Why::ResetOutOfOrder)));
    recv!(host, seq = US, ack = Some(THEM), control = Control::None);
    recv!(host, nothing);
    let arrival = send!(host, control = Control::Rst);
    assert_eq!(arrival.closed, Some(CloseReason::Reset));
    assert_eq!(host.tcb.state(), State::Closed);
    recv!(host, nothing);
}

#[test]
fn syn_in_a_synchronized_state_is_challenged_ten_times_in_five_seconds() {
    let mut host = established();
    for i in 0..12 {
        let arrival = send!(host, control = Control::Syn, ack = None);
        if i < 10 {
            assert_eq!(arrival.stop, Some(Stop::Ack(Why::Syn)));
            recv!(host, ack = Some(THEM));
        } else {
            assert_eq!(arrival.stop, Some(Stop::Silent(Why::ChallengeLimit)));
        }
        recv!(host, nothing);
    }
    host.sleep(5_001);
    send!(host, control = Control::Syn, ack = None);
    recv!(host, ack = Some(THEM));
}

#[test]
fn ack_of_what_was_never_sent_is_challenged() {
    let mut host = established();
    let arrival = send!(host, ack = Some(US + 1));
    assert_eq!(arrival.stop, Some(Stop::Ack(Why::AckOfUnsent)));
    assert!(!arrival.accepted);
    recv!(host, seq = US, ack = Some(THEM));
}

#[test]
fn ack_older_than_any_window_is_challenged() {
    let mut host = established();
    let arrival = send!(host, ack = Some(US - 50_001));
    assert_eq!(arrival.stop, Some(Stop::Ack(Why::AckTooOld)));
    recv!(host, ack = Some(THEM));
    let arrival = send!(host, ack = Some(US - 1));
    assert!(arrival.accepted);
}

#[test]
fn segment_without_ack_is_dropped() {
    let mut host = established();
    assert_eq!(send!(host, ack = None).stop, Some(Stop::Silent(Why::NoAck)));
}

#[test]
fn old_timestamps_are_dropped_and_acknowledged() {
    let cfg = TcpConfig { timestamps: true, ..config() };
    let mut host = established_with(cfg, full_options());
    let text = host.text(10);
    let arrival = send!(host, options = stamps(99, 0), text = text);
    assert_eq!(arrival.stop, Some(Stop::Ack(Why::Paws)));
    recv!(host, ack = Some(THEM));
    let text = host.text(10);
    assert!(send!(host, options = stamps(100, 0), text = text).text.is_some());
}

// Receiving.

#[test]
fn every_second_full_segment_is_acknowledged_and_a_single_one_within_40_ms() {
    let mut host = established();
    let mut at = THEM;
    for _ in 0..8 {
        let text = host.text(MSS); // quick ACKs first
        send!(host, seq = at, text = text);
        at += MSS;
        recv!(host, ack = Some(at));
    }
    let text = host.text(MSS);
    send!(host, seq = at, text = text);
    recv!(host, nothing);
    let text = host.text(MSS);
    send!(host, seq = at + MSS, text = text);
    recv!(host, ack = Some(at + 2 * MSS)); // SHLD-19
    let text = host.text(MSS);
    send!(host, seq = at + 2 * MSS, text = text);
    recv!(host, nothing);
    assert_eq!(host.wait(), 40);
    recv!(host, ack = Some(at + 3 * MSS));
}

#[test]
fn a_push_is_acknowledged_at_once_unless_an_answer_is_likely() {
    let mut host = established();
    for n in 0..8 {
        let text = host.text(MSS); // quick ACKs first
        send!(host, seq = THEM + n * MSS, text = text);
        recv!(host, ack = Some(THEM + (n + 1) * MSS));
    }
    host.sleep(200); // five times the delay of an ACK
    let text = host.text(10);
    send!(host, seq = THEM + 8 * MSS, push = true, text = text);
    recv!(host, ack = Some(THEM + 8 * MSS + 10)); // RFC 5681 4.2: no second segment is on its way
    host.push(100);
    recv!(host, seq = US);
    host.sleep(150);
    let text = host.text(10);
    send!(host, seq = THEM + 8 * MSS + 10, ack = Some(US + 100), push = true, text = text);
    recv!(host, nothing);
    host.push(100);
    recv!(host, seq = US + 100, ack = Some(THEM + 8 * MSS + 20));
    recv!(host, nothing);
}

#[test]
fn a_sender_that_has_used_up_the_window_is_not_kept_waiting() {
    let buffer = 9 * MSS + MSS / 2;
    let mut host =
        established_with(TcpConfig { receive_buffer: buffer, ..config() }, full_options());
    for n in 0..9 {
        let text = host.text(MSS);
        send!(host, seq = THEM + n * MSS, text = text);
        host.tcb.set_window(buffer - (n + 1) * MSS);
        // The ninth is a single segment after the quick ACKs, but there is no room for a tenth.
        recv!(host, ack = Some(THEM + (n + 1) * MSS));
    }
}

#[test]
fn out_of_order_text_is_acknowledged_at_once_with_sack_newest_block_first() {
    let mut host = established();
    for (at, want) in [
        (2000, alloc::vec![(2000, 3000)]),
        (6000, alloc::vec![(6000, 7000), (2000, 3000)]),
        (4000, alloc::vec![(4000, 5000), (6000, 7000), (2000, 3000)]),
        (3000, alloc::vec![(2000, 5000), (6000, 7000)]),
    ] {
        let text = host.text(1000);
        let arrival = send!(host, seq = THEM + at, text = text);
        assert_eq!(arrival.text.unwrap().0, THEM + at);
        let tx = recv!(host, ack = Some(THEM));
        assert_eq!(blocks(&tx), want);
        recv!(host, nothing);
    }
    let text = host.text(2000);
    send!(host, text = text);
    assert_eq!(blocks(&recv!(host, ack = Some(THEM + 5000))), [(6000, 7000)]);
}

/// An overflowing queue leaves thousands of holes. The memory for them is bounded, but what makes no hole is taken.
#[test]
fn only_text_that_would_make_a_hole_too_many_is_refused() {
    for (most, len) in [(8192, 513), (64, 512), (64, 1)] {
        let mut host =
            established_with(TcpConfig { receive_buffer: 16 << 20, ..config() }, full_options());
        let mut put = |at: u32| {
            let text = host.text(len);
            let text = Segment { seq: THEM + at * len, text, ..seg() };
            host.tcb.on_segment(text, host.now).stop
        };
        for n in 1..=most {
            assert_eq!(put(2 * n), None, "hole {n}");
        }
        assert_eq!(put(2 * most + 2), Some(Stop::Ack(Why::TooManyHoles)), "{len} octets");
        assert_eq!(put(2 * most + 1), None, "it extends what is there");
        assert_eq!(put(most + 1), None, "it fills a hole");
        assert_eq!(put(2 * most + 4), None, "there is room again");
    }
}

#[test]
fn duplicate_text_is_reported_by_dsack() {
    let mut host = established();
    let text = host.text(1000);
    send!(host, text = text);
    recv!(host, ack = Some(THEM + 1000));
    let text = host.text(1000);
    let arrival = send!(host, text = text);
    assert_eq!(arrival.stop, Some(Stop::Ack(Why::OutsideWindow)));
    let tx = recv!(host, ack = Some(THEM + 1000));
    assert_eq!(blocks(&tx), [(0, 1000)]); // RFC 2883 4
}

#[test]
fn sack_gives_way_to_the_options_of_the_owner() {
    let mut host = established();
    for at in [2000, 4000, 6000] {
        let text = host.text(1000);
        send!(host, seq = THEM + at, text = text);
    }
    let room = OptionRoom { text: 20, ack: 20 };
    let tx = host.tcb.poll_transmit(host.now, room).unwrap();
    assert_eq!(blocks(&tx).len(), 2);
    assert_eq!(tx.option_room, 20);
}

#[test]
fn text_beyond_the_window_is_trimmed() {
    let mut host = established();
    host.tcb.set_window(1000);
    let text = host.text(1000);
    // The handshake offered 60,000 already: that is still good.
    let arrival = send!(host, seq = THEM + 59_500, text = text);
    assert_eq!(arrival.text.unwrap().1.len(), 500);
}

#[test]
fn the_right_edge_never_retreats_and_small_openings_are_not_told() {
    let mut host = established();
    let text = host.text(1000);
    send!(host, text = text);
    host.tcb.set_window(0);
    recv!(host, window = UnscaledWindow(59_000));
    recv!(host, nothing);
}

#[test]
fn a_shared_window_is_advertised_exactly_and_the_largest_edge_accepted() {
    let cfg = TcpConfig { window: RightEdge::Shared, ..config() };
    let mut host = established_with(cfg, full_options());
    host.tcb.set_window(500);
    host.tcb.request_ack();
    recv!(host, window = UnscaledWindow(500));
    recv!(host, nothing);
    let text = host.text(1000);
    assert_eq!(send!(host, text = text).text.unwrap().1.len(), 1000);
}

#[test]
fn a_closed_window_is_reopened_by_an_update() {
    let cfg = TcpConfig { receive_buffer: 4000, ..config() };
    let mut host = established_with(cfg, full_options());
    let text = host.text(4000);
    send!(host, text = text);
    host.tcb.set_window(0);
    recv!(host, window = UnscaledWindow(0));
    host.tcb.set_window(900);
    recv!(host, nothing); // RFC 9293 3.8.6.2.2
    host.tcb.set_window(4000);
    recv!(host, window = UnscaledWindow(4000));
    recv!(host, nothing);
}

// Sending.

#[test]
fn plain_chunks_merge_and_only_the_last_segment_is_short() {
    let cfg = TcpConfig { gso_max: 1, ..config() };
    let mut host = established_with(cfg, full_options());
    (0..25).for_each(|_| host.push(100));
    assert_eq!(host.drain(), [(0, 1000), (1000, 1000), (2000, 500)]);
}

#[test]
fn a_super_segment_is_cut_to_whole_segments_by_the_windows() {
    let mut host = established();
    host.push(30_700);
    // IW 10 (RFC 6928).
    let tx = recv!(host, seq = US);
    assert_eq!((tx.segment.text.len(), tx.gso_size), (10_000, 1000));
    recv!(host, nothing);
    host.sleep(100);
    send!(host, ack = Some(US + 10_000));
    let tx = recv!(host, seq = US + 10_000);
    assert_eq!(tx.segment.text.len(), 20_000);
    host.sleep(100);
    send!(host, ack = Some(US + 30_000));
    let tx = recv!(host, seq = US + 30_000, push = true);
    assert_eq!((tx.segment.text.len(), tx.gso_size), (700, 0));
}

#[test]
fn labels_never_share_a_segment_and_come_back_with_it() {
    let cfg = TcpConfig { gso_max: 1, ..config() };
    let mut host = established_with(cfg, full_options());
    for (n, label) in [(1500, Label(1)), (300, Label(2)), (300, Label(3))] {
        let text = host.text(n);
        host.tcb.push(text, label);
    }
    let sent: Vec<_> = core::iter::from_fn(|| host.poll())
        .map(|tx| (tx.label, tx.offset, tx.segment.text.len()))
        .collect();
    let want = [(Label(1), 0, 1000), (Label(1), 1000, 500), (Label(2), 0, 300), (Label(3), 0, 300)];
    assert_eq!(sent, want);
    host.sleep(100);
    send!(host, options = sack(&[(1500, 2100)]));
    host.wait(); // RACK's reordering window
    let tx = recv!(host, seq = US);
    assert!(tx.retransmission);
    assert_eq!((tx.label, tx.offset), (Label(1), 0));
    // An ACK in the middle of a segment moves the offset.
    send!(host, ack = Some(US + 1200), options = sack(&[(1500, 2100)]));
    let tx = recv!(host, seq = US + 1200);
    assert_eq!((tx.label, tx.offset, tx.segment.text.len()), (Label(1), 1200, 300));
}

#[test]
fn nagle_holds_a_small_segment_while_another_is_in_flight() {
    let cfg = TcpConfig { nagle: true, ..config() };
    let mut host = established_with(cfg, full_options());
    host.push(10);
    recv!(host, seq = US);
    host.push(10);
    recv!(host, nothing);
    host.push(990);
    recv!(host, seq = US + 10);
}

#[test]
fn silly_windows_are_not_filled() {
    let mut host = established();
    send!(host, window = UnscaledWindow(400));
    host.push(3000);
    recv!(host, nothing);
    send!(host, window = UnscaledWindow(1400));
    let tx = recv!(host, seq = US);
    assert_eq!(tx.segment.text.len(), 1000);
    recv!(host, nothing);
}

#[test]
fn a_zero_window_is_probed_for_ever() {
    let mut host = established();
    send!(host, window = UnscaledWindow(0));
    host.push(3000);
    recv!(host, nothing);
    let mut gaps = Vec::new();
    for _ in 0..40 {
        gaps.push(host.wait());
        recv!(host, seq = US - 1, ack = Some(THEM)); // MUST-36
        recv!(host, nothing);
        send!(host, window = UnscaledWindow(0));
    }
    assert!(gaps.windows(2).all(|w| w[1] >= w[0]), "{gaps:?}");
    assert_eq!(gaps[39], 60_000);
    send!(host, window = UnscaledWindow(50_000));
    recv!(host, seq = US);
}

#[test]
fn an_unanswered_zero_window_ends_the_connection() {
    let mut host = established();
    send!(host, window = UnscaledWindow(0));
    host.push(3000);
    recv!(host, nothing);
    for _ in 0..15 {
        host.wait();
        recv!(host, seq = US - 1);
        recv!(host, nothing);
    }
    let at = host.tcb.deadline().unwrap();
    assert_eq!(host.tcb.on_deadline(at), Some(CloseReason::TimedOut));
    assert_eq!(host.pool.free(), 2000);
}

#[test]
fn an_idle_connection_restarts_with_the_initial_window() {
    let mut host = established();
    let mut at = 0;
    for _ in 0..3 {
        let n = host.tcb.cwnd();
        host.push(n);
        host.drain();
        host.sleep(100);
        at += n;
        send!(host, ack = Some(US + at), window = UnscaledWindow(60_000));
    }
    assert!(host.tcb.cwnd() > 40_000);
    host.sleep(10_000);
    host.push(60_000);
    host.drain();
    assert_eq!(host.tcb.flight_size(), 10_000); // RFC 5681 4.1
}

// Loss.

/// Ten segments in flight, one segment per transmission.
fn ten_in_flight() -> Host {
    let cfg = TcpConfig { gso_max: 1, ..config() };
    let mut host = established_with(cfg, full_options());
    for _ in 0..10 {
        host.push(1000);
        host.drain();
        host.sleep(1);
    }
    host.sleep(90);
    host
}

#[test]
fn three_sacked_segments_prove_a_loss_and_only_the_hole_is_sent_again() {
    let mut host = ten_in_flight();
    send!(host, options = sack(&[(1000, 2000)]));
    recv!(host, nothing);
    send!(host, options = sack(&[(1000, 3000)]));
    recv!(host, nothing);
    send!(host, options = sack(&[(1000, 4000)]));
    assert_eq!(host.drain(), [(0, 1000)]);
    assert_eq!(host.tcb.info().recoveries, 1);
    host.sleep(100);
    send!(host, ack = Some(US + 10_000));
    assert!(matches!(host.tcb.info().cwnd, 7000), "{}", host.tcb.cwnd());
}

#[test]
fn a_sack_block_of_what_was_never_sent_is_ignored() {
    let mut host = ten_in_flight();
    for block in [(5000, 10_001), (3000, 3000), (4000, 3000), (202_892_653, 2_147_483_648)] {
        send!(host, options = sack(&[block]));
        assert_eq!(host.tcb.info().unacked, 10_000, "{block:?}");
    }
}

#[test]
fn one_round_reduces_once_however_much_is_lost() {
    let mut host = ten_in_flight();
    send!(host, options = sack(&[(4000, 10_000)]));
    let ssthresh = host.tcb.info().ssthresh;
    let again = host.drain();
    assert_eq!(again[0], (0, 1000));
    host.sleep(50);
    send!(host, ack = Some(US + 1000), options = sack(&[(4000, 10_000)]));
    host.drain();
    assert_eq!((host.tcb.info().ssthresh, host.tcb.info().recoveries), (ssthresh, 1));
}

#[test]
fn a_lost_retransmission_is_found_without_a_timeout() {
    let mut host = ten_in_flight();
    host.push(20_000);
    send!(host, options = sack(&[(1000, 4000)]));
    let first = host.drain();
    assert_eq!(first[0], (0, 1000));
    host.sleep(100);
    // What was sent after the retransmission arrives, the retransmission does not.
    send!(host, options = sack(&[(1000, 10_000)]));
    let more = host.drain();
    assert!(more.iter().all(|(at, _)| *at >= 10_000), "{more:?}");
    host.sleep(100);
    send!(host, options = sack(&[(1000, 12_000)]));
    let again = host.drain();
    assert_eq!(again[0], (0, 1000), "{again:?}");
    assert_eq!(host.tcb.info().rto_count, 0);
}

#[test]
fn a_lost_tail_is_probed_after_two_round_trips() {
    let mut host = established();
    host.push(3000);
    host.drain();
    // RFC 8985 7.2: SRTT is 100 ms, and the peer acknowledges every second segment at once.
    assert_eq!(host.wait(), 202);
    let tx = recv!(host, seq = US + 2000);
    assert!(tx.retransmission);
    recv!(host, nothing);
    host.sleep(100);
    send!(host, options = sack(&[(2000, 3000)]));
    if host.tcb.info().lost == 0 {
        host.wait();
    }
    assert_eq!(host.drain(), [(0, 1000)]); // one delivered, one sent (RFC 9937)
    host.sleep(100);
    send!(host, ack = Some(US + 1000), options = sack(&[(2000, 3000)]));
    assert_eq!(host.drain(), [(1000, 1000)]);
    assert_eq!((host.tcb.info().rto_count, host.tcb.info().tlp_count), (0, 1));
}

#[test]
fn timeouts_double_and_end_the_connection() {
    let cfg = TcpConfig { data_retries: 3, sack: false, ..config() };
    let mut host = established_with(cfg, full_options());
    host.push(1000);
    host.drain();
    // SRTT 100 ms, RTTVAR 50 ms.
    assert_eq!(host.wait(), 300);
    assert_eq!(host.drain(), [(0, 1000)]);
    assert_eq!(host.tcb.consecutive_rtos(), 1);
    assert_eq!(host.tcb.cwnd(), 1000);
    assert_eq!(host.wait(), 600);
    assert_eq!(host.drain(), [(0, 1000)]);
    assert_eq!(host.wait(), 1200);
    assert_eq!(host.drain(), [(0, 1000)]);
    let at = host.tcb.deadline().unwrap();
    assert_eq!(host.tcb.on_deadline(at), Some(CloseReason::TimedOut));
    assert_eq!(host.pool.free(), 2000);
}

#[test]
fn a_spurious_timeout_is_undone() {
    let cfg = TcpConfig { timestamps: true, sack: false, ..config() };
    let mut host = established_with(cfg, full_options());
    host.push(3 * 988);
    host.drain();
    let cwnd = host.tcb.cwnd();
    let before = (host.now.as_millis() as u32).wrapping_add(77);
    host.wait();
    assert_eq!(host.drain(), [(0, 988)]);
    assert_eq!(host.tcb.cwnd(), 988);
    // The ACK echoes the first transmission (RFC 4015).
    send!(host, ack = Some(US + 988), options = stamps(200, before));
    assert!(host.tcb.cwnd() >= cwnd);
    recv!(host, nothing);
}

#[test]
fn without_sack_three_duplicates_retransmit_and_partial_acks_go_on() {
    let cfg = TcpConfig { sack: false, gso_max: 1, ..config() };
    let mut host = established_with(cfg, full_options());
    host.push(10_000);
    host.drain();
    host.sleep(100);
    send!(host);
    send!(host);
    recv!(host, nothing);
    send!(host);
    assert_eq!(host.drain(), [(0, 1000)]);
    host.sleep(100);
    send!(host, ack = Some(US + 4000));
    assert_eq!(host.drain(), [(4000, 1000)]); // RFC 6582 3.2 step 3
    assert_eq!(host.tcb.info().recoveries, 1);
}

// Closing (RFC 9293 3.6).

#[test]
fn active_close_goes_through_fin_wait_to_time_wait() {
    let mut host = established();
    host.push(10);
    host.tcb.close();
    assert_eq!(host.tcb.state(), State::FinWait1);
    recv!(host, seq = US, control = Control::Fin);
    send!(host, ack = Some(US + 11));
    assert_eq!(host.tcb.state(), State::FinWait2);
    // Half-close: the peer's direction is open.
    let text = host.text(10);
    assert!(send!(host, ack = Some(US + 11), text = text).text.is_some());
    recv!(host, ack = Some(THEM + 10));
    let arrival = send!(host, seq = THEM + 10, ack = Some(US + 11), control = Control::Fin);
    assert!(arrival.fin);
    assert_eq!(arrival.closed, Some(CloseReason::Done));
    assert_eq!(host.tcb.state(), State::TimeWait);
    recv!(host, ack = Some(THEM + 11));
    let mut wait = TimeWait::new(&host.tcb, host.now);
    let fin = Segment { seq: THEM + 10, ack: Some(US + 11), control: Control::Fin, ..seg() };
    assert!(!wait.expired(host.now + MS(59_999)));
    assert_eq!(wait.on_segment(&fin, host.now + MS(1000)).unwrap().ack, Some(THEM + 11));
    assert!(!wait.expired(host.now + MS(60_500)));
    assert!(wait.expired(host.now + MS(61_000)));
}

#[test]
fn passive_close_goes_through_close_wait_and_last_ack() {
    let mut host = established();
    assert!(send!(host, control = Control::Fin).fin);
    assert_eq!(host.tcb.state(), State::CloseWait);
    recv!(host, ack = Some(THEM + 1));
    host.push(10);
    recv!(host, seq = US);
    host.tcb.close();
    assert_eq!(host.tcb.state(), State::LastAck);
    recv!(host, seq = US + 10, control = Control::Fin);
    let arrival = send!(host, seq = THEM + 1, ack = Some(US + 11));
    assert_eq!(arrival.closed, Some(CloseReason::Done));
    recv!(host, nothing);
}

#[test]
fn simultaneous_close_goes_through_closing() {
    let mut host = established();
    host.tcb.close();
    recv!(host, seq = US, control = Control::Fin);
    send!(host, control = Control::Fin);
    assert_eq!(host.tcb.state(), State::Closing);
    recv!(host, seq = US + 1, ack = Some(THEM + 1));
    let arrival = send!(host, seq = THEM + 1, ack = Some(US + 1));
    assert_eq!(arrival.closed, Some(CloseReason::Done));
    assert_eq!(host.tcb.state(), State::TimeWait);
}

#[test]
fn a_fin_waits_for_the_text_before_it() {
    let mut host = established();
    let text = host.text(10);
    let arrival = send!(host, seq = THEM + 10, text = text, control = Control::Fin);
    assert!(!arrival.fin);
    let text = host.text(10);
    assert!(send!(host, text = text).fin);
    recv!(host, ack = Some(THEM + 21));
    let text = host.text(10);
    let arrival = send!(host, seq = THEM + 21, text = text);
    assert_eq!(arrival.stop, Some(Stop::Ack(Why::TextAfterFin)));
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut host = established();
    host.tcb.close();
    recv!(host, control = Control::Fin);
    host.wait();
    let tx = recv!(host, seq = US, control = Control::Fin);
    assert!(tx.retransmission);
}

#[test]
fn abort_sends_one_rst_and_frees_everything() {
    let mut host = established();
    host.push(5000);
    host.drain();
    host.tcb.abort(CloseReason::Aborted);
    assert_eq!(host.pool.free(), 2000);
    recv!(host, seq = US + 5000, ack = Some(THEM), control = Control::Rst);
    recv!(host, nothing);
    assert_eq!(host.tcb.deadline(), None);
}

#[test]
fn keepalive_probes_an_idle_peer_and_does_not_decide_on_one() {
    let cfg = TcpConfig { keepalive: Some(Duration::from_secs(7200)), ..config() };
    let mut host = established_with(cfg, full_options());
    recv!(host, nothing);
    assert!(host.wait() >= 7_199_000);
    recv!(host, seq = US - 1); // RFC 9293 3.8.4: SND.NXT - 1
    recv!(host, nothing);
    send!(host);
    recv!(host, nothing);
    assert!(host.wait() >= 7_199_000);
    for _ in 0..8 {
        recv!(host, seq = US - 1);
        recv!(host, nothing);
        assert_eq!(host.wait(), 75_000);
    }
    let at = host.tcb.deadline().unwrap_or(host.now);
    recv!(host, seq = US - 1);
    recv!(host, nothing);
    let at = host.tcb.deadline().unwrap_or(at);
    assert_eq!(host.tcb.on_deadline(at), Some(CloseReason::TimedOut));
}

// Handshake.

fn open(cfg: &TcpConfig, text: Chain) -> SynSent {
    SynSent::new(&Rc::new(cfg.clone()), OPENING, text, Instant::ZERO)
}

#[test]
fn syn_is_repeated_with_its_text_and_given_up() {
    let pool = Pool::new(4, 100);
    let text = Chain::copy_from(&pool, 0, b"convert").unwrap();
    let mut syn = open(&TcpConfig { syn_retries: 2, ..config() }, text);
    let mut now = Instant::ZERO;
    for wait in [1000, 2000, 4000] {
        let tx = syn.poll_transmit(now).unwrap();
        assert_eq!((tx.segment.seq, tx.segment.text.to_vec()), (ISS, b"convert".to_vec()));
        assert!(syn.poll_transmit(now).is_none());
        assert_eq!(syn.deadline(), Some(now + MS(wait)));
        now += MS(wait);
        let closed = syn.on_deadline(now);
        assert_eq!(closed, (wait == 4000).then_some(CloseReason::TimedOut));
    }
}

#[test]
fn after_a_syn_timeout_the_first_rto_is_three_seconds() {
    let mut syn = open(&config(), Chain::new());
    syn.poll_transmit(Instant::ZERO);
    let now = Instant::from_millis(1000);
    syn.on_deadline(now);
    syn.poll_transmit(now);
    let out = syn.on_segment(syn_ack(full_options()), now + MS(10));
    let SynSentOutcome::Established { tcb, .. } = out else { panic!() };
    assert_eq!(tcb.info().rto, Duration::from_secs(3)); // RFC 6298 5.7
}

#[test]
fn syn_text_may_be_acknowledged_in_part_and_syn_ack_text_counts() {
    let pool = Pool::new(4, 100);
    let mut syn = open(&config(), Chain::copy_from(&pool, 0, b"0123456789").unwrap());
    let answer = Segment {
        ack: Some(US + 4),
        text: Chain::copy_from(&pool, 0, b"hello").unwrap(),
        ..syn_ack(full_options())
    };
    let out = syn.on_segment(answer, Instant::from_millis(10));
    let SynSentOutcome::Established { mut tcb, acked_text, text, .. } = out else { panic!() };
    assert_eq!((acked_text, text.to_vec()), (4, b"hello".to_vec()));
    assert_eq!((tcb.snd_una(), tcb.rcv_nxt()), (US + 4, THEM + 5));
    let tx = tcb.poll_transmit(Instant::from_millis(10), OptionRoom::default()).unwrap();
    assert_eq!((tx.segment.seq, tx.segment.ack), (US + 4, Some(THEM + 5)));
}

#[test]
fn wrong_ack_of_a_syn_is_reset_and_a_rst_needs_the_right_one() {
    let mut syn = open(&config(), Chain::new());
    syn.poll_transmit(Instant::ZERO);
    syn.on_segment(Segment { ack: Some(US + 1), ..syn_ack(full_options()) }, Instant::ZERO);
    let tx = syn.poll_transmit(Instant::ZERO).unwrap();
    assert_eq!((tx.segment.control, tx.segment.seq), (Control::Rst, US + 1));
    let rst = Segment { control: Control::Rst, ack: Some(US + 1), ..seg() };
    assert!(matches!(syn.on_segment(rst, Instant::ZERO), SynSentOutcome::Nothing));
    let rst = Segment { control: Control::Rst, ..seg() };
    let out = syn.on_segment(rst, Instant::ZERO);
    assert!(matches!(out, SynSentOutcome::Refused(CloseReason::Refused)));
}

fn their_syn(text: Chain) -> Segment {
    Segment { ack: None, text, ..syn_ack(full_options()) }
}

#[test]
fn a_held_syn_is_silent_until_answered() {
    let now = Instant::ZERO;
    let mut held = SynReceived::new(&Rc::new(config()), &their_syn(Chain::new()), OPENING, 0, now);
    assert!(held.poll_transmit(now).is_none());
    held.on_segment(&their_syn(Chain::new()), now);
    assert!(held.poll_transmit(now).is_none());
    assert_eq!(held.deadline(), None);
    held.answer(Chain::new(), now);
    let tx = held.poll_transmit(now).unwrap();
    assert_eq!((tx.segment.control, tx.segment.ack), (Control::Syn, Some(THEM)));
    held.on_segment(&their_syn(Chain::new()), now);
    assert!(held.poll_transmit(now).is_some(), "once answered, a SYN is answered again");
    let ack = seg();
    let out = held.on_segment(&ack, now + MS(20));
    let SynReceivedOutcome::Established(mut tcb) = out else { panic!() };
    assert!(tcb.on_segment(ack, now + MS(20)).accepted);
    assert_eq!(tcb.srtt(), None, "which of two SYN/ACKs was it? (MUST-18)");
}

#[test]
fn a_refused_syn_gets_rst_and_ack() {
    let pool = Pool::new(1, 100);
    let syn = their_syn(Chain::copy_from(&pool, 0, b"abc").unwrap());
    let mut held = SynReceived::new(&Rc::new(config()), &syn, OPENING, 3, Instant::ZERO);
    held.refuse();
    let tx = held.poll_transmit(Instant::ZERO).unwrap();
    assert_eq!((tx.segment.control, tx.segment.ack), (Control::Rst, Some(THEM + 3)));
    assert!(held.poll_transmit(Instant::ZERO).is_none());
}

#[test]
fn unacknowledged_syn_ack_text_is_sent_again() {
    let pool = Pool::new(2, 100);
    let now = Instant::ZERO;
    let mut held = SynReceived::new(&Rc::new(config()), &their_syn(Chain::new()), OPENING, 0, now);
    held.answer(Chain::copy_from(&pool, 0, b"hello").unwrap(), now);
    assert_eq!(held.poll_transmit(now).unwrap().segment.text.len(), 5);
    // Linux discards it and acknowledges the SYN alone (SPEC T15).
    let SynReceivedOutcome::Established(tcb) = held.on_segment(&seg(), now + MS(50)) else {
        panic!()
    };
    let mut host = Host { tcb, now: now + MS(50), pool };
    send!(host);
    host.wait();
    assert_eq!(host.drain(), [(0, 5)]);
}

#[test]
fn simultaneous_open_establishes_both() {
    let now = Instant::ZERO;
    let other = Opening { iss: IRS, ts_offset: 5, path_mss: u16::MAX, default_mss: 536 };
    let mut a = open(&config(), Chain::new());
    let mut b = SynSent::new(&Rc::new(config()), other, Chain::new(), now);
    let (syn_a, syn_b) = (a.poll_transmit(now).unwrap(), b.poll_transmit(now).unwrap());
    let SynSentOutcome::Simultaneous(mut a) = a.on_segment(syn_b.segment, now) else { panic!() };
    let SynSentOutcome::Simultaneous(mut b) = b.on_segment(syn_a.segment, now) else { panic!() };
    let (a2, b2) = (a.poll_transmit(now).unwrap(), b.poll_transmit(now).unwrap());
    assert_eq!((a2.segment.control, a2.segment.ack), (Control::Syn, Some(THEM)));
    assert!(matches!(a.on_segment(&b2.segment, now), SynReceivedOutcome::Established(_)));
    assert!(matches!(b.on_segment(&a2.segment, now), SynReceivedOutcome::Established(_)));
}

#[test]
fn window_scale_needs_both_sides_and_a_syn_window_is_not_scaled() {
    let cfg = TcpConfig { receive_buffer: 1 << 20, ..config() };
    let options = SynOptions { window_scale: Some(7), ..full_options() };
    let mut host = established_with(cfg.clone(), options.clone());
    assert_eq!(host.tcb.snd_wnd(), 50_000);
    send!(host, window = UnscaledWindow(1000));
    assert_eq!(host.tcb.snd_wnd(), 128_000);
    let options = SynOptions { window_scale: None, ..options };
    let mut host = established_with(cfg, options);
    send!(host, window = UnscaledWindow(1000));
    assert_eq!(host.tcb.snd_wnd(), 1000);
}

#[test]
fn a_segment_of_no_connection_is_reset_and_a_rst_is_not() {
    let tx = reset_reply(&Segment { ack: Some(SeqNum(77)), ..seg() }).unwrap();
    assert_eq!((tx.seq, tx.ack, tx.control), (SeqNum(77), None, Control::Rst));
    let tx = reset_reply(&their_syn(Chain::new())).unwrap();
    assert_eq!((tx.seq, tx.ack), (SeqNum(0), Some(THEM)));
    assert!(reset_reply(&Segment { control: Control::Rst, ..seg() }).is_none());
}

#[test]
fn state_table() {
    use {Event as E, State as S};
    let states = [
        S::SynSent,
        S::SynReceived,
        S::Established,
        S::FinWait1,
        S::FinWait2,
        S::CloseWait,
        S::Closing,
        S::LastAck,
        S::TimeWait,
        S::Closed,
    ];
    let events = [E::SynAck, E::Syn, E::AckOfSyn, E::Close, E::AckOfFin, E::Fin, E::End];
    let mut table = String::new();
    for state in states {
        table += &format!("{state:?}:");
        for event in events {
            if let Some(next) = transition(state, event) {
                table += &format!(" {event:?}->{next:?}");
            }
        }
        table += "\n";
    }
    insta::assert_snapshot!(table, @r"
    SynSent: SynAck->Established Syn->SynReceived Close->Closed End->Closed
    SynReceived: AckOfSyn->Established Close->FinWait1 Fin->CloseWait End->Closed
    Established: Close->FinWait1 Fin->CloseWait End->Closed
    FinWait1: AckOfFin->FinWait2 Fin->Closing End->Closed
    FinWait2: Fin->TimeWait End->Closed
    CloseWait: Close->LastAck End->Closed
    Closing: AckOfFin->TimeWait End->Closed
    LastAck: AckOfFin->Closed End->Closed
    TimeWait: End->Closed
    Closed:
    ");
}
