//! Whatever arrives, in whatever order: a flow keeps its invariants, its windows and its frames.

use super::super::*;
use crate::buf::{Chain, Pool};
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, Options, SackBlock, Segment, SegmentOptions, SeqNum, SynOptions, Timestamps,
    UnscaledWindow,
};
use alloc::rc::Rc;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Segment { seq: i32, ack: i32, control: u8, window: u16, len: u16, sack: (i32, i32), val: i32 },
    Push(u16, u8),
    Window(u32),
    Poll(u8),
    Deadline,
    Sleep(u16),
    RequestAck,
    Close,
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![4 => -3000i32..3000, 2 => Just(0), 1 => any::<i32>(), 2 => 0i32..40_000]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (near(), near(), 0u8..20, any::<u16>(), 0u16..1500, (near(), near()), near()).prop_map(
            |(seq, ack, control, window, len, sack, val)| Step::Segment {
                seq, ack, control, window, len, sack, val: val / 1000,
            }
        ),
        4 => (1u16..3000, 0u8..4).prop_map(|(n, label)| Step::Push(n, label)),
        1 => (0u32..70_000).prop_map(Step::Window),
        6 => (0u8..12).prop_map(Step::Poll),
        2 => Just(Step::Deadline),
        3 => (0u16..500).prop_map(Step::Sleep),
        1 => Just(Step::RequestAck),
        1 => (0u8..10).prop_map(|n| if n == 0 { Step::Close } else { Step::RequestAck }),
    ]
}

fn establish(cfg: &Rc<TcpConfig>, iss: SeqNum) -> alloc::boxed::Box<Tcb> {
    let mut syn = SynSent::new(
        cfg,
        Opening { iss, ts_offset: 9, path_mss: u16::MAX, default_mss: 536 },
        Chain::new(),
        Instant::ZERO,
    );
    syn.poll_transmit(Instant::ZERO);
    let answer = Segment {
        seq: SeqNum(u32::MAX - 5000),
        ack: Some(iss + 1),
        control: Control::Syn,
        push: false,
        window: UnscaledWindow(50_000),
        options: Options::Syn(SynOptions {
            mss: Some(1000),
            sack_permitted: true,
            window_scale: Some(1),
            timestamps: Some(Timestamps { val: 1, ecr: 0 }),
            ..Default::default()
        }),
        text: Chain::new(),
        ..Default::default()
    };
    match syn.on_segment(answer, Instant::from_millis(30)) {
        SynSentOutcome::Established { tcb, .. } => tcb,
        other => panic!("{other:?}"),
    }
}

fn offset(base: SeqNum, by: i32) -> SeqNum {
    SeqNum(base.0.wrapping_add(by as u32))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_segments_leave_the_flow_whole(
        steps in proptest::collection::vec(step(), 1..80), iss: u32, sack: bool, timestamps: bool,
        gso in prop_oneof![Just(1u32), Just(5000), Just(65_000)], shared: bool,
    ) {
        let pool = Pool::new(1000, 1600);
        let window = if shared { RightEdge::Shared } else { RightEdge::NeverRetreats };
        let cfg = TcpConfig { mss: 1000, sack, timestamps, gso_max: gso, window, receive_buffer: 60_000, ..Default::default() };
        let cfg = Rc::new(cfg);
        let mut now = Instant::from_millis(30);
        let mut tcb = establish(&cfg, SeqNum(iss));
        let mut edge = None;
        for step in steps {
            match step {
                Step::Segment { seq, ack, control, window, len, sack, val } => {
                    let left = offset(tcb.snd_una(), sack.0);
                    let block = SackBlock { left, right: offset(left, sack.1) };
                    let options = SegmentOptions {
                        timestamps: Some(Timestamps { val: offset(SeqNum(1), val).0, ecr: now.as_millis() as u32 }),
                        sack: [block].into_iter().collect(),
                        ..Default::default()
                    };
                    let bytes = alloc::vec![0; usize::from(len)];
                    let Some(text) = Chain::copy_from(&pool, 0, &bytes) else { continue };
                    let control = match control { 0 => Control::Rst, 1 => Control::Syn, 2 => Control::Fin, _ => Control::None };
                    let (una, nxt) = (tcb.snd_una(), tcb.rcv_nxt());
                    let arrival = tcb.on_segment(Segment {
                        seq: offset(nxt, seq),
                        ack: Some(offset(una, ack)),
                        control,
                        push: false,
                        window: UnscaledWindow(window),
                        options: Options::Segment(options),
                        text,
                        ..Default::default()
                    }, now);
                    prop_assert!(una.at_or_before(tcb.snd_una()), "una went back");
                    prop_assert!(nxt.at_or_before(tcb.rcv_nxt()), "rcv.nxt went back");
                    prop_assert!(arrival.acked <= tcb.snd_una().since(una));
                    if let Some((at, text)) = arrival.text {
                        prop_assert!(nxt.at_or_before(at) && !text.is_empty());
                    }
                }
                Step::Push(n, label) => {
                    if let Some(text) = Chain::copy_from(&pool, 0, &alloc::vec![0; usize::from(n)]) {
                        tcb.push(text, Label(u128::from(label)));
                    }
                }
                Step::Window(octets) => tcb.set_window(octets),
                Step::Poll(n) => for _ in 0..n {
                    let Some(tx) = tcb.poll_transmit(now, OptionRoom { text: 20, ack: 8 }) else { break };
                    let len = tx.segment.text.len();
                    let room = OptionRoom { text: 20, ack: 8 };
                    let most = tcb.mss(room).max(gso);
                    prop_assert!(len <= most, "text longer than gso_max");
                    let asked = if len > 0 { 20 } else { 8 };
                    let kept = tx.option_room >= asked;
                    prop_assert!(kept, "the owner's option room is taken");
                    if !shared && let Some(ack) = tx.segment.ack && tx.segment.control != Control::Rst {
                        let scale = if let Options::Segment(_) = tx.segment.options { 0 } else { 1 };
                        let right = ack + (u32::from(tx.segment.window.0) << scale);
                        if let Some(edge) = edge {
                            prop_assert!(!right.before(edge), "the right edge went back");
                        }
                        edge = Some(right);
                    }
                },
                Step::Deadline => if let Some(at) = tcb.deadline() {
                    now = now.max(at);
                    tcb.on_deadline(now);
                },
                Step::Sleep(ms) => now += Duration::from_millis(u64::from(ms)),
                Step::RequestAck => tcb.request_ack(),
                Step::Close => tcb.close(),
            }
            tcb.assert_invariants();
            let _ = (tcb.send_room(now), tcb.info());
        }
        let mut budget = 5000;
        while tcb.poll_transmit(now, OptionRoom::default()).is_some() {
            budget -= 1;
            prop_assert!(budget > 0, "poll_transmit never ends");
        }
        drop(tcb);
        prop_assert_eq!(pool.free(), 1000);
    }
}
