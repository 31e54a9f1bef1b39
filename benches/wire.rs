//! Parsing and writing segments, ours against smoltcp's, on the same frames.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use plait_benches::{TEXT, compare, data_packet, flow};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv4Repr, TcpPacket, TcpRepr};
use stack::buf::{Payload, Pool};
use stack::wire::{Parsed, RxChecksum, RxPacket, Segment, emit, parse};
use std::hint::black_box;

/// Parses and verifies. The octets stay where they are, as they do on a device.
fn ours_parse(frame: &Payload) -> Segment {
    let octets = frame.clone().into();
    match parse(RxPacket { octets, checksum: RxChecksum::Unknown, port: 0, gso_size: 0 }) {
        Ok(Parsed::Tcp(_, segment)) => segment,
        other => panic!("{other:?}"),
    }
}

/// Writes the header; the text goes by reference, its sum known since it was parsed.
fn ours_emit(segment: &Segment) -> stack::wire::TxPacket {
    let mut packet = emit(flow(), segment, 0);
    packet.finish_checksum();
    packet
}

fn smoltcp_parse(octets: &[u8]) -> (Ipv4Repr, TcpRepr<'_>) {
    let caps = ChecksumCapabilities::default();
    let ip = Ipv4Packet::new_checked(octets).expect("whole");
    let ip_repr = Ipv4Repr::parse(&ip, &caps).expect("valid");
    let tcp = TcpPacket::new_checked(&octets[20..]).expect("whole");
    let (src, dst) = (IpAddress::Ipv4(ip_repr.src_addr), IpAddress::Ipv4(ip_repr.dst_addr));
    let repr = TcpRepr::parse(&tcp, &src, &dst, &caps).expect("valid");
    // The repr borrows from `octets`, not from the view.
    let repr = TcpRepr { payload: &octets[octets.len() - repr.payload.len()..], ..repr };
    (ip_repr, repr)
}

fn smoltcp_emit((ip_repr, tcp_repr): &(Ipv4Repr, TcpRepr<'_>), out: &mut [u8]) {
    let caps = ChecksumCapabilities::default();
    ip_repr.emit(&mut Ipv4Packet::new_unchecked(&mut *out), &caps);
    let (src, dst) = (IpAddress::Ipv4(ip_repr.src_addr), IpAddress::Ipv4(ip_repr.dst_addr));
    tcp_repr.emit(&mut TcpPacket::new_unchecked(&mut out[20..]), &src, &dst, &caps);
}

fn wire(c: &mut Criterion) {
    let pool = Pool::new(16, 2_048);
    for text in [0, TEXT] {
        let octets = data_packet(&pool, text);
        let frame = Payload::copy_from(&pool, 0, &octets).expect("a frame");
        let mut out = vec![0; octets.len()];
        compare(
            &format!("parse and write {text} octets of text, ours against smoltcp's"),
            || ours_emit(&ours_parse(&frame)),
            || smoltcp_emit(&smoltcp_parse(black_box(&octets)), &mut out),
        );
        let mut group = c.benchmark_group(format!("wire/{text}"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("parse", |b| b.iter(|| ours_parse(black_box(&frame))));
        group.bench_function("parse smoltcp", |b| {
            b.iter(|| smoltcp_parse(black_box(&octets)).1.payload.len())
        });
        group.bench_function("emit", |b| {
            b.iter_batched_ref(|| ours_parse(&frame), |s| ours_emit(s), BatchSize::SmallInput)
        });
        let reprs = smoltcp_parse(&octets);
        group.bench_function("emit smoltcp", |b| {
            b.iter(|| smoltcp_emit(black_box(&reprs), &mut out))
        });
        group.finish();
    }
}

criterion_group!(benches, wire);
criterion_main!(benches);
