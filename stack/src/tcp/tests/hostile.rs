//! Whatever arrives, in whatever order: a flow keeps its invariants, its windows and its frames.

use super::super::*;
use super::knobs::config;
use crate::buf::{Chain, Pool};
use crate::time::{Duration, Instant};
use crate::wire::{
    Control, EcnFlags, Endpoint, FlowTuple, IcmpError, IcmpErrorKind, Options, SackBlock, Segment,
    SegmentOptions, SeqNum, SynOptions, Timestamps, TrafficClass, UnscaledWindow, WindowScale,
};
use alloc::rc::Rc;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Segment {
        seq: i32,
        ack: i32,
        control: u8,
        window: u16,
        len: u16,
        sack: [(i32, i32); 3],
        val: i32,
        ecn: (u8, u8),
    },
    TooBig {
        seq: i32,
        mtu: u32,
    },
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

fn segment() -> impl Strategy<Value = Step> {
    let sack = [(near(), near()), (near(), near()), (near(), near())];
    let ecn = (any::<u8>(), any::<u8>());
    let window = prop_oneof![Just(0u16), 0u16..200, any::<u16>()];
    (near(), near(), 0u8..20, window, 0u16..1500, sack, near(), ecn).prop_map(
        |(seq, ack, control, window, len, sack, val, ecn)| Step::Segment {
            seq,
            ack,
            control,
            window,
            len,
            sack,
            val: val / 1000,
            ecn,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => segment(),
        1 => (near(), prop_oneof![40u32..1600, any::<u32>()])
            .prop_map(|(seq, mtu)| Step::TooBig { seq, mtu }),
        4 => (1u16..3000, 0u8..4).prop_map(|(n, label)| Step::Push(n, label)),
        1 => (0u32..70_000).prop_map(Step::Window),
        6 => (0u8..12).prop_map(Step::Poll),
        2 => Just(Step::Deadline),
        3 => (0u16..500).prop_map(Step::Sleep),
        1 => Just(Step::RequestAck),
        1 => (0u8..10).prop_map(|n| if n == 0 { Step::Close } else { Step::RequestAck }),
    ]
}

fn establish(cfg: &Rc<TcpConfig>, iss: SeqNum, hello: &Hello) -> alloc::boxed::Box<Tcb> {
    let mut syn = SynSent::new(
        cfg,
        Opening { iss, ts_offset: hello.ts_offset, path_mss: hello.path_mss, default_mss: 536 },
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
            mss: hello.mss,
            sack_permitted: true,
            window_scale: hello.scale,
            timestamps: Some(Timestamps { val: hello.val, ecr: hello.ts_offset }),
            ..Default::default()
        }),
        text: Chain::new(),
        ecn: EcnFlags::from_ace(hello.ace),
        ..Default::default()
    };
    match syn.on_segment(answer, Instant::from_millis(30)) {
        SynSentOutcome::Established { tcb, .. } => tcb,
        other => panic!("{other:?}"),
    }
}

/// Polls until nothing more comes.
fn run_out(tcb: &mut Tcb, now: Instant) {
    let mut budget = 5000;
    while tcb.poll_transmit(now, OptionRoom::default()).is_some() {
        budget -= 1;
        assert!(budget > 0, "poll_transmit never ends");
    }
}

/// Lets everything run that is due: it must not be due again at once.
fn rest(tcb: &mut Tcb, now: Instant) {
    let mut rounds = 0;
    while tcb.deadline().is_some_and(|at| at <= now) {
        tcb.on_deadline(now);
        run_out(tcb, now);
        rounds += 1;
        assert!(rounds < 6, "a deadline that stays in the past: {:?}", tcb.info());
    }
}

fn offset(base: SeqNum, by: i32) -> SeqNum {
    SeqNum(base.0.wrapping_add(by as u32))
}

/// What the SYN/ACK says, and what the path is believed to carry.
#[derive(Clone, Debug)]
struct Hello {
    mss: Option<u16>,
    scale: Option<u8>,
    ace: u8,
    val: u32,
    ts_offset: u32,
    path_mss: u16,
}

fn hello() -> impl Strategy<Value = Hello> {
    let mss = prop_oneof![2 => Just(Some(1000)), 1 => any::<u16>().prop_map(Some), 1 => (0u16..100).prop_map(Some), 1 => Just(None)];
    let scale = prop_oneof![2 => Just(Some(1)), 1 => any::<u8>().prop_map(Some), 1 => Just(None)];
    let val = prop_oneof![Just(1), Just(u32::MAX), Just(1 << 31), any::<u32>()];
    let path_mss = prop_oneof![2 => Just(u16::MAX), 1 => any::<u16>(), 1 => 0u16..1500];
    (mss, scale, 0u8..8, val, any::<u32>(), path_mss).prop_map(
        |(mss, scale, ace, val, ts_offset, path_mss)| Hello {
            mss,
            scale,
            ace,
            val,
            ts_offset,
            path_mss,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_segments_leave_the_flow_whole(
        steps in proptest::collection::vec(step(), 1..80), iss: u32,
        cfg in config(), hello in hello(), late: bool,
    ) {
        let pool = Pool::new(1000, 1600);
        let shared = cfg.window == RightEdge::Shared;
        let gso = cfg.gso_max;
        let cfg = Rc::new(cfg);
        let mut now = Instant::from_millis(30);
        let mut tcb = establish(&cfg, SeqNum(iss), &hello);
        if late {
            now += Duration::from_secs(700);
        }
        let mut edge = None;
        for step in steps {
            match step {
                Step::Segment { seq, ack, control, window, len, sack, val, ecn } => {
                    let una = tcb.snd_una();
                    let blocks = sack.iter().map(|(at, len)| {
                        let left = offset(una, *at);
                        SackBlock { left, right: offset(left, *len) }
                    });
                    let ecr = (now.as_millis() as u32).wrapping_add(hello.ts_offset);
                    let options = SegmentOptions {
                        timestamps: Some(Timestamps { val: offset(SeqNum(hello.val), val).0, ecr: offset(SeqNum(ecr), val).0 }),
                        sack: blocks.take(usize::from(ecn.1 / 64)).collect(),
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
                        ecn: EcnFlags::from_ace(ecn.0),
                        traffic_class: TrafficClass(ecn.1),
                    }, now);
                    prop_assert!(una.at_or_before(tcb.snd_una()), "una went back");
                    prop_assert!(nxt.at_or_before(tcb.rcv_nxt()), "rcv.nxt went back");
                    prop_assert!(arrival.acked <= tcb.snd_una().since(una));
                    if let Some((at, text)) = arrival.text {
                        prop_assert!(nxt.at_or_before(at) && !text.is_empty());
                    }
                }
                Step::TooBig { seq, mtu } => {
                    let before = tcb.info().path_mss;
                    tcb.on_too_big(&too_big(offset(tcb.snd_una(), seq), mtu), now);
                    // RFC 1191 3(c): never to a larger one.
                    prop_assert!(tcb.info().path_mss <= before, "a router makes segments longer");
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
                    let most = u32::from(cfg.mss).max(gso);
                    prop_assert!(len <= most, "text longer than gso_max");
                    let asked = if len > 0 { 20 } else { 8 };
                    let kept = tx.option_room >= asked;
                    prop_assert!(kept, "the owner's option room is taken");
                    if !shared && let Some(ack) = tx.segment.ack && tx.segment.control != Control::Rst {
                        let scale = if hello.scale.is_some() { WindowScale::for_window(cfg.receive_buffer).shift() } else { 0 };
                        let right = ack + (u32::from(tx.segment.window.0) << scale);
                        if let Some(edge) = edge {
                            prop_assert!(!right.before(edge), "the right edge went back");
                        }
                        edge = Some(right);
                    }
                },
                Step::Deadline => if let Some(at) = tcb.deadline() {
                    now = now.max(at);
                    rest(&mut tcb, now);
                },
                Step::Sleep(ms) => now += Duration::from_millis(u64::from(ms)),
                Step::RequestAck => tcb.request_ack(),
                Step::Close => tcb.close(),
            }
            tcb.assert_invariants();
            let _ = (tcb.send_room(now), tcb.info());
        }
        run_out(&mut tcb, now);
        drop(tcb);
        prop_assert_eq!(pool.free(), 1000);
    }
}

fn too_big(seq: SeqNum, mtu: u32) -> IcmpError {
    let peer = Endpoint::new([10, 0, 0, 1].into(), 1);
    let flow = FlowTuple { local: peer, remote: peer };
    IcmpError { flow, seq, from: peer.addr, kind: IcmpErrorKind::PacketTooBig { mtu } }
}

/// RFC 1191 3(c): a router never makes segments longer, not even by what it says about those that a black hole took.
#[test]
fn after_a_black_hole_no_router_makes_segments_longer() {
    let cfg = Rc::new(TcpConfig { base_mss: 500, ..Default::default() });
    let hello =
        Hello { mss: Some(1000), scale: None, ace: 0, val: 1, ts_offset: 0, path_mss: u16::MAX };
    let pool = Pool::new(10, 1600);
    let mut tcb = establish(&cfg, SeqNum(1), &hello);
    for _ in 0..3 {
        tcb.push(Chain::copy_from(&pool, 0, &[0; 1500]).unwrap(), Label::PLAIN);
    }
    let mut now = Instant::from_millis(30);
    run_out(&mut tcb, now);
    while tcb.info().path_mss == 1000 {
        now = tcb.deadline().unwrap();
        rest(&mut tcb, now);
    }
    assert_eq!(tcb.info().path_mss, 500);
    assert_eq!(tcb.on_too_big(&too_big(tcb.snd_una() + 2500, 940), now), TooBig::NoNews);
    assert_eq!(tcb.info().path_mss, 500);
}
