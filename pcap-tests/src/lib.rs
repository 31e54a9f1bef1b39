//! Tests against real peers, and what they stand on: network namespaces, emulated links, traffic with checksums.
//!
//! # Reading order
//! [`netns`] (namespaces and what runs in them) and [`netlink`] (devices, addresses, routes), [`link`] (a link with rate,
//! delay, loss, reordering and a queue between two devices), [`topology`] (client - uMCP - links - dMCP - server), [`traffic`]
//! (transfers over kernel sockets, hashed at both ends), [`requests`] (short and interactive connections), [`peer`] (the kernel's own MPTCP, counters, captures), [`trial`] (a
//! `main` for such tests).
//!
//! `plait demo` and `plait emulate` are built on this library.
#![forbid(unsafe_code)]

pub mod link;
pub mod netlink;
pub mod netns;
pub mod peer;
pub mod requests;
pub mod topology;
pub mod traffic;
pub mod trial;
