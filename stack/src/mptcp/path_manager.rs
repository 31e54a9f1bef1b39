//! Which subflows there should be: joins from our addresses, addresses announced both ways (RFC 8684 3.2, 3.4).
#![forbid(unsafe_code)]

use super::connection::{Connection, Event, Mode, Role};
use super::key::{add_addr_hmac, same};
use super::subflow::{Handshake, Stage, Subflow};
use crate::buf::Chain;
use crate::rng::Rng;
use crate::tcp::{Phase, SynSent};
use crate::time::{Duration, Instant, earliest};
use crate::wire::{AddAddr, AddressIds, Endpoint, FlowTuple, MptcpOption};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

/// First wait before a lost subflow is opened again; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Addresses a peer may announce to one connection; more are ignored.
const MAX_REMOTE_ADDRESSES: usize = 16;
/// Subflows wanted at a time, open or to be opened; a peer that announces ever more is not followed.
const MAX_PATHS: usize = 64;
/// Address id for a local address that is neither the first subflow's nor configured.
const UNKNOWN_ID: u8 = 255;

/// A subflow that should exist.
#[derive(Debug)]
struct Path {
    local: IpAddr,
    remote: Endpoint,
    remote_id: u8,
    tries: u8,
    /// When to open it; `None` while it is open or given up.
    next: Option<Instant>,
}

/// An address of ours that waits to be announced, or for its echo.
#[derive(Debug)]
struct Announcement {
    id: u8,
    addr: IpAddr,
    tries: u8,
    retry_at: Instant,
    echoed: bool,
}

/// Paths and addresses of one connection.
#[derive(Debug)]
pub(super) struct PathManager {
    /// Flag C of the peer: no joins to the address and port it was sent from.
    pub initial_remote_forbidden: bool,
    /// The first subflow is to be opened again when it is lost; only then it gets its path.
    reopens_first: bool,
    paths: Vec<Path>,
    announcements: Vec<Announcement>,
    remotes: Vec<(u8, Endpoint)>,
    begun: Begun,
}

/// Whether there should be more than the first subflow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begun {
    No,
    /// What is wanted has been noted; the connection has to prove that it is worth it.
    Waiting,
    Yes,
}

impl PathManager {
    pub(super) fn new() -> PathManager {
        PathManager {
            initial_remote_forbidden: false,
            reopens_first: false,
            paths: Vec::new(),
            announcements: Vec::new(),
            remotes: Vec::new(),
            begun: Begun::No,
        }
    }

    pub(super) fn announced(&self) -> u8 {
        self.announcements.iter().filter(|a| a.tries > 0).count() as u8
    }

    pub(super) fn accepted(&self) -> u8 {
        self.remotes.len() as u8
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let joins = self.paths.iter().filter_map(|p| p.next);
        let waiting = self.announcements.iter().find(|a| !a.echoed).map(|a| a.retry_at);
        earliest(joins.min(), waiting)
    }

    fn want(&mut self, local: IpAddr, remote: Endpoint, remote_id: u8, now: Instant) {
        let full = self.paths.len() >= MAX_PATHS;
        match self.paths.iter_mut().find(|p| p.local == local && p.remote == remote) {
            Some(path) => {
                path.next = path.next.map(|_| now).or(Some(now));
                path.tries = 0;
            }
            None if full => {}
            None => {
                self.paths.reserve_exact(1); // there are few, for as long as the connection lasts
                self.paths.push(Path { local, remote, remote_id, tries: 0, next: Some(now) });
            }
        }
    }

    /// What was put off is due.
    fn hurry(&mut self, now: Instant) {
        self.begun = Begun::Yes;
        for path in self.paths.iter_mut().filter(|path| path.tries == 0) {
            path.next = path.next.map(|_| now);
        }
        for announcement in self.announcements.iter_mut().filter(|a| a.tries == 0) {
            announcement.retry_at = now;
        }
    }

    /// Lets the first path be opened again at once.
    pub(super) fn retry_now(&mut self, now: Instant) {
        for path in &mut self.paths {
            if path.tries <= 1 && path.next.is_some() {
                path.next = Some(now);
            }
        }
    }

    /// The peer refused this path for good.
    pub(super) fn give_up(&mut self, flow: FlowTuple) {
        self.paths.retain(|p| p.local != flow.local.addr || p.remote != flow.remote);
    }

    pub(super) fn on_joined(&mut self, flow: FlowTuple) {
        for p in &mut self.paths {
            if p.local == flow.local.addr && p.remote == flow.remote {
                p.tries = 0;
            }
        }
    }

    pub(super) fn on_subflow_gone(&mut self, flow: FlowTuple, first: FlowTuple, now: Instant) {
        if flow == first && core::mem::take(&mut self.reopens_first) {
            let (local, remote) = (flow.local.addr, flow.remote);
            self.paths.push(Path { local, remote, remote_id: 0, tries: 0, next: None });
        }
        for p in &mut self.paths {
            if p.local == flow.local.addr && p.remote == flow.remote && p.next.is_none() {
                let wait = (MIN_BACKOFF * (1 << p.tries.min(6))).min(MAX_BACKOFF);
                p.tries = p.tries.saturating_add(1);
                p.next = Some(now + wait);
            }
        }
    }
}

impl Connection {
    /// Whether subflows may come and addresses may be announced: also while we close, for what is still to be sent.
    pub(super) fn manages_paths(&self) -> bool {
        let alive = matches!(self.phase, Phase::Open | Phase::Closing);
        let multipath = matches!(self.mode, Mode::Mptcp) && self.confirmed;
        alive && multipath && !self.state.is_over() && self.abort_wanted.is_none()
    }

    /// Id of a local address, the same for the life of the connection.
    pub(super) fn local_id(&self, addr: IpAddr) -> u8 {
        if addr == self.first.local.addr {
            return 0;
        }
        let position = self.cfg.addresses.iter().position(|a| a.addr == addr);
        position.and_then(|p| u8::try_from(p + 1).ok()).unwrap_or(UNKNOWN_ID)
    }

    pub(super) fn is_backup(&self, addr: IpAddr) -> bool {
        self.cfg.addresses.iter().any(|a| a.addr == addr && a.backup)
    }

    /// Our address for a subflow to an announced one: one that no path uses. Where every one has its subflow already, a
    /// peer with more addresses than we have gets another, so that each of its links is used.
    fn local_for(&self, remote: IpAddr) -> Option<IpAddr> {
        let in_use = |addr: IpAddr| {
            self.subflows.iter().any(|sf| sf.flow.local.addr == addr)
                || self.paths.paths.iter().any(|p| p.local == addr && p.next.is_some())
        };
        let mut fitting = self
            .cfg
            .addresses
            .iter()
            .filter(|a| (a.subflow || a.addr == self.first.local.addr) && a.reaches(remote))
            .map(|a| a.addr);
        let (first, ours) = (fitting.clone().next(), fitting.clone().count());
        let theirs = 1 + self.paths.remotes.len();
        fitting.find(|addr| !in_use(*addr)).or(first.filter(|_| ours < theirs))
    }

    /// Opens what should be open and announces what should be announced.
    pub(super) fn manage_paths(&mut self, rng: &mut Rng, now: Instant) {
        if !self.manages_paths() {
            return;
        }
        if self.paths.begun == Begun::No {
            self.paths.begun = Begun::Waiting;
            self.start_paths(self.join_at(now));
        }
        if self.paths.begun == Begun::Waiting && self.is_worth_joining() {
            self.paths.hurry(now);
        }
        self.announce_addresses(now);
        while let Some(due) =
            self.paths.paths.iter().position(|p| p.next.is_some_and(|next| next <= now))
        {
            self.open_path(due, rng, now);
        }
    }

    /// When to open a subflow that is wanted from now on.
    fn join_at(&self, now: Instant) -> Instant {
        match self.paths.begun {
            Begun::Yes => now,
            Begun::No | Begun::Waiting => now + self.cfg.join_delay,
        }
    }

    /// It moves data, or cannot.
    fn is_worth_joining(&self) -> bool {
        let received: u64 = self.subflows.iter().map(Subflow::bytes_received).sum();
        let moved = self.bytes_sent + received;
        let stuck = |sf: &Subflow| sf.tcb().is_none_or(|tcb| tcb.consecutive_rtos() > 0);
        moved >= u64::from(self.cfg.join_after) || self.subflows.iter().all(stuck)
    }

    fn start_paths(&mut self, at: Instant) {
        let (cfg, first) = (self.cfg.clone(), self.first);
        if self.role == Role::Initiator && !self.paths.initial_remote_forbidden {
            self.paths.reopens_first = true;
            for a in cfg.addresses.iter().filter(|a| a.subflow && a.addr != first.local.addr) {
                // The peer's announcement may have come first.
                let served = self.paths.paths.iter().any(|p| p.local == a.addr);
                if a.reaches(first.remote.addr) && (a.fullmesh || !served) {
                    self.paths.want(a.addr, first.remote, 0, at);
                }
            }
        }
        for (i, a) in cfg.addresses.iter().enumerate() {
            if let (true, Ok(id)) = (a.signal && a.addr != first.local.addr, u8::try_from(i + 1)) {
                let (addr, retry_at) = (a.addr, at);
                let new = Announcement { id, addr, tries: 0, retry_at, echoed: false };
                self.paths.announcements.reserve_exact(1);
                self.paths.announcements.push(new);
            }
        }
    }

    fn open_path(&mut self, p: usize, rng: &mut Rng, now: Instant) {
        let full = self.subflows.len() >= usize::from(self.cfg.max_subflows);
        let local_port = self.first.local.port;
        let Some(path) = self.paths.paths.get_mut(p) else { return };
        if full {
            path.next = Some(now + MIN_BACKOFF);
            return;
        }
        path.next = None;
        let flow = FlowTuple { local: Endpoint::new(path.local, local_port), remote: path.remote };
        let remote_id = path.remote_id;
        if self.index_of(flow).is_some() {
            return;
        }
        let opening = self.cfg.opening(flow, rng, now);
        let syn = SynSent::new(&self.cfg.subflow, opening, Chain::new(), now);
        let handshake = Handshake::JoinSent { nonce: rng.u32() };
        let ids = (self.local_id(flow.local.addr), remote_id);
        let mut subflow = Subflow::new(flow, Stage::SynSent(Box::new(syn)), handshake, ids);
        subflow.backup = self.is_backup(flow.local.addr);
        self.add_subflow(subflow);
        self.tell(Event::FlowOpened(flow));
    }

    /// One announcement is out at a time.
    fn announce_addresses(&mut self, now: Instant) {
        let (timeout, retries) = (self.cfg.add_addr_timeout, self.cfg.add_addr_retries);
        let Some(peer) = self.peer else { return };
        let Some(a) = self.paths.announcements.iter_mut().find(|a| !a.echoed) else { return };
        if now < a.retry_at {
            return;
        }
        if a.tries > retries {
            a.echoed = true; // never mind: the peer does not answer
            self.dirty = true;
            return;
        }
        a.tries += 1;
        a.retry_at = now + timeout;
        let hmac = add_addr_hmac(self.key, peer, a.id, a.addr, None);
        let option = AddAddr { address_id: a.id, addr: a.addr, port: None, hmac: Some(hmac) };
        if let Some(sf) = self.subflows.iter_mut().find(|sf| sf.is_usable())
            && sf.signals.push(MptcpOption::AddAddr(option))
        {
            self.counters.AddAddrTx += 1;
            sf.request_ack();
        }
    }

    /// An ADD_ADDR or its echo, received on subflow `i`.
    pub(super) fn on_add_addr(&mut self, i: usize, add: &AddAddr, now: Instant) {
        let Some(hmac) = add.hmac else {
            let echoed = |a: &&mut Announcement| a.id == add.address_id && a.addr == add.addr;
            if let Some(a) = self.paths.announcements.iter_mut().find(echoed) {
                if !core::mem::replace(&mut a.echoed, true) {
                    self.counters.EchoAdd += 1;
                }
                self.dirty = true;
            }
            return;
        };
        let Some(peer) = self.peer else { return };
        let expected = add_addr_hmac(peer, self.key, add.address_id, add.addr, add.port);
        if !same(&expected.to_be_bytes(), &hmac.to_be_bytes()) {
            self.counters.AddAddrDrop += 1;
            return;
        }
        self.confirmed = true; // only a holder of our key can have made that HMAC
        self.counters.AddAddr += 1;
        let Some(sf) = self.subflows.get_mut(i) else { return };
        if sf.signals.push(MptcpOption::AddAddr(AddAddr { hmac: None, ..*add })) {
            self.counters.EchoAddTx += 1;
            sf.request_ack();
        }
        let remote = Endpoint::new(add.addr, add.port.unwrap_or(sf.flow.remote.port));
        self.take_remote(add.address_id, remote, now);
        self.dirty = true;
    }

    fn take_remote(&mut self, id: u8, remote: Endpoint, now: Instant) {
        let remotes = &mut self.paths.remotes;
        let full = remotes.len() >= MAX_REMOTE_ADDRESSES;
        match remotes.iter_mut().find(|(known, _)| *known == id) {
            // RFC 8684 3.4.1: an id keeps its address until it is removed; the port may differ.
            Some((_, known)) if known.addr != remote.addr => return,
            Some((_, known)) => {
                let old = core::mem::replace(known, remote);
                if old != remote {
                    self.paths.paths.retain(|p| p.remote_id != id || p.remote != old);
                }
            }
            None if full => return,
            None => {
                remotes.reserve_exact(1);
                remotes.push((id, remote));
            }
        }
        if self.subflows.iter().any(|sf| sf.flow.remote == remote) {
            return;
        }
        let at = self.join_at(now);
        if let Some(local) = self.local_for(remote.addr) {
            self.paths.want(local, remote, id, at);
        }
        let cfg = self.cfg.clone();
        for a in cfg.addresses.iter().filter(|a| a.fullmesh && a.reaches(remote.addr)) {
            self.paths.want(a.addr, remote, id, at);
        }
    }

    /// REMOVE_ADDR: no new subflows to those addresses. Existing ones end by the peer's RST or their own timers (RFC
    /// 8684 3.4.2: a subflow that still works is kept).
    pub(super) fn on_remove_addr(&mut self, removed: &AddressIds) {
        self.counters.RmAddr += 1;
        let ids = removed.ids.iter().take(usize::from(removed.len));
        for id in ids {
            self.paths.remotes.retain(|(known, _)| known != id);
            self.paths.paths.retain(|p| p.remote_id != *id);
            self.paths.reopens_first &= *id != 0;
            for i in 0..self.subflows.len() {
                let others =
                    self.subflows.iter().enumerate().any(|(j, sf)| j != i && sf.is_usable());
                let hit = self.subflows.get_mut(i).filter(|sf| sf.remote_id == *id && others);
                if let Some(sf) = hit {
                    sf.stale = true;
                    sf.request_ack();
                    self.rescue(i);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_make_us_want_ever_more_paths() {
        let end = |port| Endpoint::new(IpAddr::from([10, 0, 1, 1]), port);
        let first = FlowTuple { local: end(1), remote: end(2) };
        let mut paths = PathManager::new();
        for port in 1..1000 {
            paths.want(first.local.addr, end(port), 7, Instant::ZERO);
        }
        assert_eq!(paths.paths.len(), MAX_PATHS);
    }
}
