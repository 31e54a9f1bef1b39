//! A worker among others: what it sends them, what it takes from them, and when.
//!
//! The order of a turn makes it safe: what is in the ports is read first, then the mailbox; and what others need to know
//! is in their mailboxes before a packet leaves that could cause one they have to know it for.
#![forbid(unsafe_code)]

use super::mailbox::{Mailbox, Note};
use super::{Engine, Worker, link};
use crate::port::Share;
use stack::shard::{Away, Homes};
use stack::time::Instant;
use stack::wire::RxPacket;
use std::sync::Arc;

/// Most workers of a node.
pub const MAX_WORKERS: u32 = 128;
/// Packets taken from the mailbox in one turn.
const BURST: usize = 256;

/// A worker's place among all of its node.
pub(super) struct Crew {
    /// Which one it is.
    pub(super) number: u32,
    pub(super) homes: Homes,
    /// Everybody's, its own among them.
    pub(super) mailboxes: Arc<[Mailbox]>,
    /// Whose mailbox has something new in it, a bit each.
    touched: u128,
    /// Whose mailbox was found crowded: until it is not, ports are not read.
    crowded: Option<u32>,
}

impl Crew {
    /// Worker `number` of those who have these mailboxes.
    pub(super) fn new(number: u32, homes: Homes, mailboxes: Arc<[Mailbox]>) -> Crew {
        Crew { number, homes, mailboxes, touched: 0, crowded: None }
    }

    /// Its own mailbox.
    ///
    /// # Panics
    /// If there is none, which whoever made it rules out.
    pub(super) fn mine(&self) -> &Mailbox {
        &self.mailboxes[self.number as usize]
    }

    /// What it has of a device that nobody but its node uses.
    pub(super) fn share(&self) -> Share {
        Share::of(self.number, self.homes)
    }

    fn note(&mut self, to: u32, note: Note) {
        let Some(mailbox) = self.mailboxes.get(to as usize) else { return };
        mailbox.push_note(note);
        self.touched |= 1 << to;
        if mailbox.is_crowded() {
            self.crowded = Some(to);
        }
    }

    /// Tells all others.
    fn tell(&mut self, note: Note) {
        let me = self.number;
        (0..self.homes.shards).filter(|to| *to != me).for_each(|to| self.note(to, note));
    }

    /// Wakes those who sleep and have something new.
    fn knock(&mut self) {
        if self.touched == 0 {
            return;
        }
        for (to, mailbox) in self.mailboxes.iter().enumerate() {
            if self.touched >> to & 1 == 1 {
                mailbox.knock();
            }
        }
        self.touched = 0;
    }

    /// Whether so much of ours waits elsewhere that there should not be more.
    pub(super) fn is_held_back(&mut self) -> bool {
        let crowded = self.crowded.and_then(|who| self.mailboxes.get(who as usize));
        if crowded.is_some_and(Mailbox::is_crowded) {
            return true;
        }
        self.crowded = None;
        false
    }
}

impl<E: Engine> Worker<E> {
    /// Takes what others sent: what they have to say first, then their packets. True: there was something.
    pub(super) fn take_mail(&mut self, now: Instant) -> bool {
        let budget = if self.crew.is_held_back() { 0 } else { BURST };
        let Worker { engine, pool, neighbors, routes, crew, stats, crossed, .. } = self;
        let mailbox = crew.mine();
        let mut busy = false;
        // Packets are taken out before notes: what a packet needs to be known for was put in before it.
        for _ in 0..budget {
            let Some(parcel) = mailbox.pop_packet() else { break };
            busy = true;
            match parcel.arrive(pool) {
                Some(packet) => {
                    if let (Some(mac), Some(source)) = (parcel.from, link::source(&packet)) {
                        routes.learn(source, packet.port, mac);
                    }
                    stats.crossed_in += 1;
                    crossed.push(packet);
                }
                None => stats.crossed_dropped += 1,
            }
            mailbox.clear(parcel);
        }
        for note in mailbox.notes() {
            busy = true;
            match note {
                Note::Adopted { flow, by } => engine.on_adopted(flow, by),
                Note::Released { flow, by } => engine.on_released(flow, by),
                Note::Neighbor { port, addr, mac } => neighbors.on_told(port, addr, mac, now),
            }
        }
        if !crossed.is_empty() {
            engine.ingest_crossed(crossed, now);
        }
        busy
    }

    /// Gives others what is theirs. Before anything is sent.
    pub(super) fn hand_over(&mut self) {
        while let Some((port, addr, mac)) = self.neighbors.poll_heard() {
            self.crew.tell(Note::Neighbor { port, addr, mac });
        }
        let mut away = std::mem::take(&mut self.away);
        self.engine.away(&mut away);
        let by = self.crew.number;
        for (to, what) in away.drain(..) {
            match what {
                Away::Packet(packet) => self.send_across(to, &packet),
                Away::Adopted(flow) => self.crew.note(to, Note::Adopted { flow, by }),
                Away::Released(flow) => self.crew.note(to, Note::Released { flow, by }),
            }
        }
        self.away = away;
        self.crew.knock();
    }

    fn send_across(&mut self, to: u32, packet: &RxPacket) {
        let intercepts = self.ports.get(usize::from(packet.port)).is_some_and(|p| p.intercepts);
        let source = if intercepts { link::source(packet) } else { None };
        let from = source.and_then(|source| self.routes.learned(source, packet.port));
        let mailbox = self.crew.mailboxes.get(to as usize);
        if mailbox.is_some_and(|mailbox| mailbox.push_packet(packet, from)) {
            self.stats.crossed_out += 1;
            self.crew.touched |= 1 << to;
        } else {
            self.stats.crossed_dropped += 1;
        }
    }
}
