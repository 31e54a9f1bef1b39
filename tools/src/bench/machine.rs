//! Processor time of the machine and of processes, from /proc.
#![forbid(unsafe_code)]

use serde::Serialize;
use std::fs;
use std::io;
use std::iter::Sum;
use std::ops::{Add, Sub};

/// /proc counts in ticks of 10 ms on every architecture that we run on (proc(5): `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Cpu {
    /// In the program.
    pub user: f64,
    /// In the kernel on its behalf, soft interrupts that came meanwhile included.
    pub system: f64,
}

impl Cpu {
    /// Both.
    pub fn total(self) -> f64 {
        self.user + self.system
    }

    /// Scaled.
    pub fn times(self, factor: f64) -> Cpu {
        Cpu { user: self.user * factor, system: self.system * factor }
    }

    /// All threads of a process so far.
    pub fn of_process(id: u32) -> io::Result<Cpu> {
        process(&fs::read_to_string(format!("/proc/{id}/stat"))?)
    }

    /// All threads of this process so far.
    pub fn of_this_process() -> io::Result<Cpu> {
        Cpu::of_process(std::process::id())
    }

    /// Everything that ran on this machine so far: what was not idle.
    pub fn of_machine() -> io::Result<Cpu> {
        machine(&fs::read_to_string("/proc/stat")?)
    }
}

impl Add for Cpu {
    type Output = Cpu;
    fn add(self, other: Cpu) -> Cpu {
        Cpu { user: self.user + other.user, system: self.system + other.system }
    }
}

impl Sub for Cpu {
    type Output = Cpu;
    fn sub(self, other: Cpu) -> Cpu {
        Cpu { user: self.user - other.user, system: self.system - other.system }
    }
}

impl Sum for Cpu {
    fn sum<I: Iterator<Item = Cpu>>(all: I) -> Cpu {
        all.fold(Cpu::default(), Add::add)
    }
}

/// How many processors there are.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc: not as proc(5) describes it")
}

/// `pid (name, which may hold anything) state ppid ... utime stime ...`.
fn process(stat: &str) -> io::Result<Cpu> {
    let (_, fields) = stat.rsplit_once(')').ok_or_else(unreadable)?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    match (times.next(), times.next()) {
        (Some(Ok(user)), Some(Ok(system))) => {
            Ok(Cpu { user: user / TICKS_PER_SECOND, system: system / TICKS_PER_SECOND })
        }
        _ => Err(unreadable()),
    }
}

/// `cpu user nice system idle iowait irq softirq steal ...`.
fn machine(stat: &str) -> io::Result<Cpu> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).ok_or_else(unreadable)?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let &[user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks.as_slice() else {
        return Err(unreadable());
    };
    Ok(Cpu {
        user: (user + nice) / TICKS_PER_SECOND,
        system: (system + irq + softirq) / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 9";
        assert_eq!(process(stat).unwrap(), Cpu { user: 2.5, system: 0.5 });
        assert!(process("7").is_err());
    }

    #[test]
    fn the_machine_is_busy_with_all_but_idling_and_waiting() {
        let stat = "cpu  100 20 300 5000 70 5 15 9 0 0\ncpu0 1 2 3\n";
        let busy = machine(stat).unwrap();
        assert!((busy.user - 1.2).abs() < 1e-9 && (busy.system - 3.2).abs() < 1e-9, "{busy:?}");
    }
}
