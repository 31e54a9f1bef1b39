//! Which worker a frame is for, found out in user space.
#![forbid(unsafe_code)]

use super::{u16_at, v4_at, v6_at};
use stack::shard::Homes;
use stack::wire::{Endpoint, FlowTuple};

const TCP: u8 = 6;

/// The home of an Ethernet frame: as `Homes::home` says for TCP that is no fragment and has no IPv6 extension header, 0
/// for all else.
pub fn home_of_frame(frame: &[u8], homes: Homes) -> u32 {
    flow(frame).map_or(0, |flow| homes.home(&flow))
}

fn flow(frame: &[u8]) -> Option<FlowTuple> {
    let packet = frame.get(14..)?;
    let (source, destination, tcp) = match u16_at(frame, 12)? {
        0x0800 => {
            let fragment = u16_at(packet, 6)? & 0x3fff != 0;
            if *packet.get(9)? != TCP || fragment {
                return None;
            }
            (v4_at(packet, 12)?, v4_at(packet, 16)?, usize::from(packet.first()? & 15) * 4)
        }
        0x86dd if *packet.get(6)? == TCP => (v6_at(packet, 8)?, v6_at(packet, 24)?, 40),
        _ => return None,
    };
    Some(FlowTuple {
        local: Endpoint::new(destination, u16_at(packet, tcp + 2)?),
        remote: Endpoint::new(source, u16_at(packet, tcp)?),
    })
}
