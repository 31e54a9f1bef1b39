//! Configurations at random: every knob that changes what a flow does.

use super::super::*;
use crate::time::Duration;
use proptest::prelude::*;

fn ecn() -> impl Strategy<Value = EcnMode> {
    prop_oneof![
        Just(EcnMode::Off),
        Just(EcnMode::Accept),
        Just(EcnMode::On),
        Just(EcnMode::Accurate)
    ]
}

fn congestion() -> impl Strategy<Value = (Algorithm, Pacing, EcnMode, bool)> {
    let algorithm =
        prop_oneof![Just(Algorithm::NewReno), Just(Algorithm::Cubic), Just(Algorithm::Bbr)];
    let pacing = prop_oneof![Just(Pacing::Auto), Just(Pacing::On), Just(Pacing::Off)];
    (algorithm, pacing, ecn(), any::<bool>())
}

fn sizes() -> impl Strategy<Value = (u16, MtuProbing, u16, u32, u32, u32)> {
    let probing =
        prop_oneof![Just(MtuProbing::Off), Just(MtuProbing::BlackHole), Just(MtuProbing::Always)];
    (
        prop_oneof![3 => 500u16..1460, 1 => 88u16..200, 1 => Just(8960)],
        probing,
        prop_oneof![Just(1024u16), 88u16..1500],
        prop_oneof![Just(4_000u32), Just(40_000), Just(1 << 20)],
        prop_oneof![Just(3_000u32), Just(100_000)],
        prop_oneof![Just(1u32), Just(5_000), Just(65_000)],
    )
}

/// Any configuration that can be written down; retries are many, as paths are bad.
pub(super) fn config() -> impl Strategy<Value = TcpConfig> {
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let times = (prop_oneof![Just(10u64), Just(200)], 1u64..450, any::<bool>());
    (congestion(), sizes(), options, times).prop_map(|(congestion, sizes, options, times)| {
        let (timestamps, sack, nagle, shared) = options;
        TcpConfig {
            congestion: congestion.0,
            pacing: congestion.1,
            ecn: congestion.2,
            abe: congestion.3,
            mss: sizes.0,
            mtu_probing: sizes.1,
            base_mss: sizes.2,
            receive_buffer: sizes.3,
            send_buffer: sizes.4,
            gso_max: sizes.5,
            timestamps,
            sack,
            nagle,
            window: if shared { RightEdge::Shared } else { RightEdge::NeverRetreats },
            min_rto: Duration::from_millis(times.0.max(times.1 / 4)),
            delayed_ack: Duration::from_millis(times.1),
            keepalive: times.2.then_some(Duration::from_secs(5)),
            min_pmtu: 128,
            syn_retries: 30,
            data_retries: 30,
            ..Default::default()
        }
    })
}
