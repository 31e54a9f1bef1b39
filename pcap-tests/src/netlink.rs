//! Devices, addresses and routes of the calling thread's network namespace, by rtnetlink.
//!
//! No `ip` binary is needed, so this works in a bare container. Every function acts on the namespace that the calling
//! thread is in: call them within [`crate::netns::Namespace::run`].
#![forbid(unsafe_code)]

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

/// Room for one acknowledgement with the kernel's error text.
const REPLY_OCTETS: usize = 8192;

/// Sends one request and waits for the kernel's acknowledgement.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    ask(message, NLM_F_ACK | flags).map(drop)
}

/// Sends one request; the kernel's first reply.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    socket.send(&octets, 0)?;
    let mut reply = Vec::with_capacity(REPLY_OCTETS);
    socket.recv(&mut reply, 0)?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match reply.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::InnerMessage(reply) => Ok(Some(reply)),
        _ => Ok(None),
    }
}

/// Whether a device that was switched on can carry packets already; until then they are lost without a trace.
pub fn is_operational(device: &str) -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.header.index = device_index(device)?;
    let reply = ask(RouteNetlinkMessage::GetLink(link), 0)?;
    Ok(matches!(reply, Some(RouteNetlinkMessage::NewLink(link))
        if link.attributes.contains(&LinkAttribute::OperState(State::Up))))
}

/// The index of a device of this namespace.
pub fn device_index(device: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(device).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("{device}: {error}"))
    })
}

/// Creates a pair of virtual Ethernet devices: `here` in this namespace, `there` in the namespace `peer`.
pub fn add_veth(here: &str, there: &str, peer: &impl AsFd) -> io::Result<()> {
    let mut far = LinkMessage::default();
    far.attributes.push(LinkAttribute::IfName(there.into()));
    far.attributes.push(LinkAttribute::NetNsFd(peer.as_fd().as_raw_fd()));
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(here.into()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
    ]));
    request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Switches a device on or off.
pub fn set_up(device: &str, up: bool) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = device_index(device)?;
    link.header.change_mask = LinkFlags::Up;
    if up {
        link.header.flags = LinkFlags::Up;
    }
    request(RouteNetlinkMessage::SetLink(link), 0)
}

/// Sets a device's largest IP packet.
pub fn set_mtu(device: &str, mtu: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = device_index(device)?;
    link.attributes.push(LinkAttribute::Mtu(mtu));
    request(RouteNetlinkMessage::SetLink(link), 0)
}

/// Gives a device an address; the connected route of the prefix comes with it.
pub fn add_address(device: &str, address: IpAddr, prefix_len: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix_len;
    message.header.index = device_index(device)?;
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Local(address));
    request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds or replaces the route to `to/prefix_len` (length 0: the default route) via `gateway`.
pub fn replace_route(to: IpAddr, prefix_len: u8, gateway: IpAddr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to),
        destination_prefix_length: prefix_len,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if prefix_len > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(to)));
    }
    message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}
