//! Moving frames between two devices through a [`Shaper`] per direction, on one thread.
#![forbid(unsafe_code)]

use super::Profile;
use super::ecn::{Mark, Packet, mark_frame};
use super::segment;
use super::shaper::{Shaper, ShaperStats};
use crate::netns::Namespace;
use dataplane::port::raw_socket::{RawSocket, VNET_HEADER};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::Serialize;
use stack::rng::Rng;
use stack::time::{Instant, earliest};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A virtio-net header and the longest super-frame with room to spare.
const LARGEST_FRAME: usize = VNET_HEADER + 65_536 + 256;
/// Frames taken from a device before the other side has its turn.
const BURST: usize = 64;
/// Sleeps are not shorter than this: a packet may come this much late, and nearly as many wake-ups are saved.
const GRANULARITY: Duration = Duration::from_micros(40);

const UP: u8 = 0;
const DOWN: u8 = 1;
const STOP: u8 = 2;

/// Switches a link on and off, and stops its emulator, from any thread.
#[derive(Clone, Debug)]
pub struct Switch {
    state: Arc<AtomicU8>,
    bell: Arc<UnixStream>,
}

impl Switch {
    /// Restores (`true`) or cuts (`false`) the link in both directions.
    pub fn set_up(&self, up: bool) {
        self.set(if up { UP } else { DOWN });
    }

    /// Ends the emulator.
    pub fn stop(&self) {
        self.set(STOP);
    }

    fn set(&self, state: u8) {
        // A stop is final.
        let keep = |old| (old != STOP).then_some(state);
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep);
        let _ = (&*self.bell).write(&[0]); // full: it rings already
    }
}

/// What one direction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct DirectionStats {
    /// What the link did to packets.
    #[serde(flatten)]
    pub shaper: ShaperStats,
    /// Super-frames that were cut.
    pub super_frames: u64,
    /// Frames whose headers contradict each other.
    pub malformed: u64,
    /// Packets that the far device did not take.
    pub send_errors: u64,
}

/// A virtio-net header and the frame behind it.
#[derive(Clone, Debug)]
struct Frame(Vec<u8>);

impl Packet for Frame {
    fn mark(&mut self) -> Mark {
        self.0.get_mut(VNET_HEADER..).map_or(Mark::NotCapable, mark_frame)
    }
}

struct Direction {
    shaper: Shaper<Frame>,
    stats: DirectionStats,
}

/// Both directions between two devices; [`Emulator::run`] it on a thread of the devices' namespace.
pub struct Emulator {
    sockets: [RawSocket; 2],
    /// From the first device to the second, and back.
    directions: [Direction; 2],
    state: Arc<AtomicU8>,
    bell: UnixStream,
    origin: std::time::Instant,
    up: bool,
}

impl Emulator {
    /// Opens devices `a` and `b` of the calling thread's network namespace. `seed` decides which packets are
    /// lost, late or come twice.
    pub fn open(
        (a, b): (&str, &str),
        a_to_b: Profile,
        b_to_a: Profile,
        seed: u64,
    ) -> io::Result<(Emulator, Switch)> {
        let (bell, rope) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        rope.set_nonblocking(true)?;
        let direction = |profile, seed| Direction {
            shaper: Shaper::new(profile, Rng::from_number(seed)),
            stats: DirectionStats::default(),
        };
        let state = Arc::new(AtomicU8::new(UP));
        let emulator = Emulator {
            sockets: [RawSocket::open(a)?, RawSocket::open(b)?],
            directions: [direction(a_to_b, seed), direction(b_to_a, !seed)],
            state: Arc::clone(&state),
            bell,
            origin: std::time::Instant::now(),
            up: true,
        };
        Ok((emulator, Switch { state, bell: Arc::new(rope) }))
    }

    /// Opens the devices in `namespace` and runs there on a thread of its own.
    pub fn start(
        namespace: &Namespace,
        devices: (&str, &str),
        a_to_b: Profile,
        b_to_a: Profile,
        seed: u64,
    ) -> io::Result<RunningEmulator> {
        let (emulator, switch) = namespace.run(|| Emulator::open(devices, a_to_b, b_to_a, seed))?;
        let name = format!("link-{}", namespace.name());
        let thread = namespace.spawn_thread(&name, move || emulator.run())?;
        Ok(RunningEmulator { switch, thread: Some(thread) })
    }

    /// Forwards until stopped by its [`Switch`]; then the counters, first device to second first.
    pub fn run(mut self) -> io::Result<[DirectionStats; 2]> {
        // Timers of this thread fire when asked, not up to 50 us later.
        nix::sys::prctl::set_timerslack(1)?;
        let mut buffer = vec![0; LARGEST_FRAME];
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state == STOP {
                return Ok(self.stats());
            }
            let now = self.now();
            self.switch_to(state == UP, now);
            let more = self.take(0, &mut buffer)? | self.take(1, &mut buffer)?;
            self.deliver(0);
            self.deliver(1);
            if !more {
                self.wait()?;
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    fn stats(&self) -> [DirectionStats; 2] {
        let stats = |d: &Direction| DirectionStats { shaper: d.shaper.stats(), ..d.stats };
        let [there, back] = &self.directions;
        [stats(there), stats(back)]
    }

    fn switch_to(&mut self, up: bool, now: Instant) {
        if up != self.up {
            self.up = up;
            for direction in &mut self.directions {
                direction.shaper.set_up(up, now);
            }
        }
    }

    /// Takes a burst from a device into its direction; whether there may be more.
    fn take(&mut self, side: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let now = self.now();
        let Direction { shaper, stats } = &mut self.directions[side];
        for _ in 0..BURST {
            let len = match self.sockets[side].receive(buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => return Err(error),
                // The device went down, or a frame that virtio-net cannot describe: both are over with this call.
                Err(_) => {
                    stats.malformed += 1;
                    return Ok(false);
                }
            };
            let mut pieces = 0u32;
            let cut = segment::cut(&buffer[..len], |frame| {
                pieces += 1;
                let on_wire = (frame.len() - VNET_HEADER) as u32;
                shaper.enqueue(Frame(frame), on_wire, now);
            });
            stats.super_frames += u64::from(pieces > 1);
            stats.malformed += u64::from(cut.is_err());
        }
        Ok(true)
    }

    fn deliver(&mut self, side: usize) {
        let now = self.now();
        let far = &self.sockets[1 - side];
        let Direction { shaper, stats } = &mut self.directions[side];
        while let Some(Frame(frame)) = shaper.poll_departure(now) {
            stats.send_errors += u64::from(far.send(&frame).is_err());
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let [there, back] = &self.directions;
        let deadline = earliest(there.shaper.next_departure(), back.shaper.next_departure());
        let sleep = deadline.map(|at| at.since(self.now()).max(GRANULARITY));
        let [a, b] = &self.sockets;
        let mut fds = [
            PollFd::new(a.as_fd(), PollFlags::POLLIN),
            PollFd::new(b.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, sleep.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut rings = [0; 16];
        let _ = self.bell.read(&mut rings);
        Ok(())
    }
}

/// An emulator on its own thread; stopped when dropped.
#[derive(Debug)]
pub struct RunningEmulator {
    switch: Switch,
    thread: Option<JoinHandle<io::Result<[DirectionStats; 2]>>>,
}

impl RunningEmulator {
    /// Its switch.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Stops it; its counters, first device to second first.
    pub fn stop(mut self) -> io::Result<[DirectionStats; 2]> {
        self.switch.stop();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(io::Error::other("the link emulator's thread died")),
        }
    }
}

impl Drop for RunningEmulator {
    fn drop(&mut self) {
        self.switch.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
