//! What workers give each other: packets that came in at the wrong one, and notes about flows and neighbours.
//!
//! A mailbox has many senders and one receiver, and no lock. Packets have a bounded ring, where one that finds no room is
//! dropped as by the full queue of a router. Notes are never dropped: they have a queue of their own, and who finds it
//! crowded reads nothing from its ports until it is not, so that it makes no new ones.
#![forbid(unsafe_code)]

use crate::port::Waker;
use crossbeam::queue::{ArrayQueue, SegQueue};
use stack::buf::{Chain, Pool};
use stack::wire::{FlowTuple, RxChecksum, RxPacket};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// Packets in a mailbox: what a busy link brings while the receiver waits for its turn on a core.
pub(super) const MAX_PACKETS: usize = 4096;
/// Octets of these packets.
const MAX_OCTETS: usize = 8 << 20;
/// Notes that a mailbox holds before its senders hold back: some megabytes. What a turn of each of them makes comes on top.
const MANY_NOTES: usize = 1 << 14;
/// Emptied buffers that are kept for the next packets.
const MAX_EMPTY: usize = 256;
/// In front of a packet in the receiver's pool: room for any headers of ours.
const HEADROOM: u16 = 128;

/// What one worker lets another know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Note {
    /// Worker `by` has a flow whose home is the receiver.
    Adopted { flow: FlowTuple, by: u32 },
    /// It has it no more.
    Released { flow: FlowTuple, by: u32 },
    /// A neighbour said where it is: answers come to one worker, whoever has asked.
    Neighbor { port: u16, addr: IpAddr, mac: [u8; 6] },
}

/// A packet between two pools.
#[derive(Debug)]
pub(super) struct Crossed {
    octets: Vec<u8>,
    checksum: RxChecksum,
    port: u16,
    gso_size: u16,
    /// The link-layer address that it came from, where that is the way back to its sender.
    pub(super) from: Option<[u8; 6]>,
}

impl Crossed {
    /// The packet in frames of `pool`. `None`: it has too few.
    pub(super) fn arrive(&self, pool: &Pool) -> Option<RxPacket> {
        let octets = Chain::copy_from(pool, HEADROOM, &self.octets)?;
        let Crossed { checksum, port, gso_size, .. } = *self;
        Some(RxPacket { octets, checksum, port, gso_size })
    }
}

/// What other workers have for one worker.
#[derive(Debug)]
pub(super) struct Mailbox {
    packets: ArrayQueue<Crossed>,
    /// Octets of `packets`.
    octets: AtomicUsize,
    notes: SegQueue<Note>,
    empty: ArrayQueue<Vec<u8>>,
    /// The receiver sleeps, or is about to: it has to be woken.
    asleep: AtomicBool,
    waker: Arc<Waker>,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub(super) fn new() -> io::Result<Mailbox> {
        Ok(Mailbox {
            packets: ArrayQueue::new(MAX_PACKETS),
            octets: AtomicUsize::new(0),
            notes: SegQueue::new(),
            empty: ArrayQueue::new(MAX_EMPTY),
            asleep: AtomicBool::new(false),
            waker: Arc::new(Waker::new()?),
        })
    }

    /// Puts a copy of `packet` in. False: there is no room.
    pub(super) fn push_packet(&self, packet: &RxPacket, from: Option<[u8; 6]>) -> bool {
        let len = packet.octets.len() as usize;
        if self.octets.fetch_add(len, Ordering::Relaxed) + len > MAX_OCTETS {
            self.octets.fetch_sub(len, Ordering::Relaxed);
            return false;
        }
        let mut octets = self.empty.pop().unwrap_or_default();
        octets.reserve_exact(len);
        packet.octets.parts().iter().for_each(|part| octets.extend_from_slice(part.bytes()));
        let RxPacket { checksum, port, gso_size, .. } = *packet;
        let crossed = Crossed { octets, checksum, port, gso_size, from };
        match self.packets.push(crossed) {
            Ok(()) => true,
            Err(crossed) => {
                self.clear(crossed);
                false
            }
        }
    }

    /// The next packet; back to [`Mailbox::clear`] with it.
    pub(super) fn pop_packet(&self) -> Option<Crossed> {
        self.packets.pop()
    }

    /// A packet is taken: its room is free, its buffer may be used again.
    pub(super) fn clear(&self, crossed: Crossed) {
        let mut octets = crossed.octets;
        self.octets.fetch_sub(octets.len(), Ordering::Relaxed);
        octets.clear();
        let _ = self.empty.push(octets); // one too many is freed
    }

    /// Puts a note in.
    pub(super) fn push_note(&self, note: Note) {
        self.notes.push(note);
    }

    /// The notes that are there now, at least.
    pub(super) fn notes(&self) -> impl Iterator<Item = Note> {
        (0..self.notes.len()).map_while(|_| self.notes.pop())
    }

    /// So many notes wait that nobody should make more.
    pub(super) fn is_crowded(&self) -> bool {
        self.notes.len() > MANY_NOTES
    }

    /// The receiver is about to sleep; [`Mailbox::rise`] ends it. False: there is something in here, so it must not.
    pub(super) fn lie_down(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Either the senders see that we sleep, or we see what they have put in.
        fence(Ordering::SeqCst);
        let empty = self.packets.is_empty() && self.notes.is_empty();
        if !empty {
            self.rise();
        }
        empty
    }

    /// The receiver sleeps no more.
    pub(super) fn rise(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the receiver if it sleeps, to be called once something was put in.
    pub(super) fn knock(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    /// What wakes the receiver in any case.
    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::{Interest, wait};
    use stack::time::Duration;
    use stack::wire::Endpoint;
    use std::thread;

    fn packet(pool: &Pool, len: usize) -> RxPacket {
        let octets: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let octets = Chain::copy_from(pool, 0, &octets).unwrap();
        RxPacket { octets, checksum: RxChecksum::Valid, port: 3, gso_size: 1400 }
    }

    fn note(port: u16) -> Note {
        let end = Endpoint::new([10, 0, 0, 1].into(), port);
        Note::Adopted { flow: FlowTuple { local: end, remote: end }, by: 1 }
    }

    #[test]
    fn a_packet_arrives_in_the_other_pool_as_it_left() {
        let (ours, theirs) = (Pool::new(64, 2048), Pool::new(64, 2048));
        let mailbox = Mailbox::new().unwrap();
        assert!(mailbox.push_packet(&packet(&ours, 60_000), Some([7; 6])));
        assert_eq!(ours.free(), 64, "nothing of it stays behind");
        let crossed = mailbox.pop_packet().unwrap();
        let arrived = crossed.arrive(&theirs).unwrap();
        assert_eq!(arrived.octets.to_vec(), packet(&ours, 60_000).octets.to_vec());
        assert!(arrived.octets.parts()[0].headroom() >= usize::from(HEADROOM));
        assert_eq!((arrived.checksum, arrived.port), (RxChecksum::Valid, 3));
        assert_eq!((arrived.gso_size, crossed.from), (1400, Some([7; 6])));
        assert!(crossed.arrive(&Pool::new(8, 2048)).is_none(), "a pool with too few frames");
        assert!(mailbox.pop_packet().is_none());
    }

    #[test]
    fn room_is_bounded_in_packets_and_in_octets_and_comes_back() {
        let pool = Pool::new(64, 2048);
        let mailbox = Mailbox::new().unwrap();
        for (len, most) in [(40, MAX_PACKETS), (60_000, MAX_OCTETS / 60_000)] {
            for _ in 0..2 {
                let packet = packet(&pool, len);
                let pushed = (0..5000).take_while(|_| mailbox.push_packet(&packet, None)).count();
                assert_eq!(pushed, most);
                while let Some(crossed) = mailbox.pop_packet() {
                    mailbox.clear(crossed);
                }
            }
        }
        assert_eq!(mailbox.octets.load(Ordering::Relaxed), 0);
        assert_eq!(mailbox.empty.len(), MAX_EMPTY, "no more than these are kept");
    }

    #[test]
    fn notes_come_in_order_and_many_of_them_are_a_crowd() {
        let mailbox = Mailbox::new().unwrap();
        let ports = 0..=MANY_NOTES as u16;
        ports.clone().for_each(|port| mailbox.push_note(note(port)));
        assert!(mailbox.is_crowded());
        assert!(mailbox.notes().eq(ports.map(note)));
        assert!(!mailbox.is_crowded());
    }

    #[test]
    fn a_sleeper_is_woken_and_one_that_has_mail_does_not_sleep() {
        let mailbox = Mailbox::new().unwrap();
        let woken = || {
            let fd = (mailbox.waker().fd(), Interest::Readable);
            wait([fd], Some(Duration::ZERO)).has(0)
        };
        mailbox.push_note(note(1));
        mailbox.knock();
        assert!(!woken(), "nobody sleeps: no system call");
        assert!(!mailbox.lie_down());
        assert_eq!(mailbox.notes().count(), 1);
        assert!(mailbox.lie_down());
        mailbox.push_note(note(2));
        mailbox.knock();
        assert!(woken());
    }

    #[test]
    fn nothing_is_lost_between_many_senders_and_a_receiver_that_sleeps_whenever_it_can() {
        const SENDERS: u16 = 3;
        const EACH: u16 = 5000;
        let mailbox = Mailbox::new().unwrap();
        let mut last = [0; SENDERS as usize];
        thread::scope(|scope| {
            for sender in 0..SENDERS {
                let mailbox = &mailbox;
                scope.spawn(move || {
                    for number in 1..=EACH {
                        let addr = [10, 0, 0, sender as u8].into();
                        mailbox.push_note(Note::Neighbor { port: number, addr, mac: [0; 6] });
                        mailbox.knock();
                    }
                });
            }
            while last != [EACH; SENDERS as usize] {
                for note in mailbox.notes() {
                    let Note::Neighbor { port, addr: IpAddr::V4(addr), .. } = note else {
                        panic!()
                    };
                    let last = &mut last[usize::from(addr.octets()[3])];
                    assert_eq!(port, *last + 1, "each sender's in order");
                    *last = port;
                }
                if last != [EACH; SENDERS as usize] && mailbox.lie_down() {
                    // A wake-up that was missed would leave us here for ever.
                    wait([(mailbox.waker().fd(), Interest::Readable)], None);
                    mailbox.waker().clear();
                    mailbox.rise();
                }
            }
        });
    }
}
