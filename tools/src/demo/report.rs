//! What the demonstration measured, what had to hold, and the table.
#![forbid(unsafe_code)]

use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// Least share of the links' sum that both together must reach, in each direction.
pub const LEAST_SHARE: f64 = 0.95;
/// Longest time without data when a link is cut.
pub const LONGEST_STALL: Duration = Duration::from_secs(1);

/// One number per direction, bits of payload per second.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Rates {
    /// Client to server.
    pub up: f64,
    /// Server to client.
    pub down: f64,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How the namespaces were made.
    pub privilege: String,
    /// How the appliances drove their devices.
    pub io: String,
    /// Why so.
    pub io_reason: String,
    /// Congestion control of the kernel's sockets.
    pub congestion: String,
    /// Plain TCP over each link by itself.
    pub alone: Vec<Rates>,
    /// All links through Plait.
    pub together: Rates,
    /// Longest time without data in the transfer in which the first link was cut, in seconds.
    pub stall: f64,
    /// Transfers made, those of the steps above included.
    pub transfers: u32,
    /// Transfers whose octets were the same at both ends, by `digest`.
    pub intact: u32,
    /// What the octets at both ends are compared by.
    pub digest: String,
    /// Whether a new connection went through the kernel after the appliances were killed; `None`: there is no kernel in
    /// it.
    pub fall_through: Option<bool>,
    /// What a reader should know about `fall_through`.
    pub fall_through_note: String,
}

impl Report {
    fn sum(&self) -> Rates {
        self.alone.iter().fold(Rates::default(), |sum, link| Rates {
            up: sum.up + link.up,
            down: sum.down + link.down,
        })
    }

    /// Both together as a share of the sum of the links.
    pub fn share(&self) -> Rates {
        let sum = self.sum();
        let of = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Rates { up: of(self.together.up, sum.up), down: of(self.together.down, sum.down) }
    }

    fn share_holds(&self) -> [bool; 2] {
        [self.share().up >= LEAST_SHARE, self.share().down >= LEAST_SHARE]
    }

    fn stall_holds(&self) -> bool {
        self.stall <= LONGEST_STALL.as_secs_f64()
    }

    fn all_intact(&self) -> bool {
        self.transfers > 0 && self.intact == self.transfers
    }

    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.share_holds() == [true, true]
            && self.stall_holds()
            && self.all_intact()
            && self.fall_through != Some(false)
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "\n{:34}{:>18}{:>18}", "", "client to server", "server to client");
        let rates = |out: &mut String, name: &str, rates: Rates| {
            let (up, down) = (megabits(rates.up), megabits(rates.down));
            let _ = writeln!(out, "{name:34}{up:>18}{down:>18}");
        };
        for (i, link) in self.alone.iter().enumerate() {
            rates(&mut out, &format!("link {} alone, plain TCP", i + 1), *link);
        }
        rates(&mut out, "all links together, through Plait", self.together);
        let share = self.share();
        let (up, down) = (share.up * 100.0, share.down * 100.0);
        let _ = writeln!(out, "{:34}{up:>16.1} %{down:>16.1} %", "share of the sum");
        out.push('\n');
        let least = LEAST_SHARE * 100.0;
        let [up_holds, down_holds] = self.share_holds();
        let mut line = |holds: bool, text: String| {
            let _ = writeln!(out, "{}  {text}", if holds { "PASS" } else { "FAIL" });
        };
        line(up_holds, format!("client to server: {up:.1} % of the sum (at least {least:.0} %)"));
        line(
            down_holds,
            format!("server to client: {down:.1} % of the sum (at least {least:.0} %)"),
        );
        line(
            self.stall_holds(),
            format!("link 1 cut in mid-transfer: {:.2} s of stall (at most 1 s)", self.stall),
        );
        line(
            self.all_intact(),
            format!(
                "{} equal at both ends: {} of {} transfers",
                self.digest, self.intact, self.transfers
            ),
        );
        if let Some(fell_through) = self.fall_through {
            let note = &self.fall_through_note;
            line(
                fell_through,
                format!("Plait killed: a new connection goes through the kernel{note}"),
            );
        }
        out
    }
}

/// Bits per second for people.
pub fn megabits(rate: f64) -> String {
    format!("{:.1} Mbit/s", rate / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report {
            alone: vec![Rates { up: 95e6, down: 95e6 }; 2],
            together: Rates { up: 188e6, down: 185e6 },
            stall: 0.4,
            transfers: 8,
            intact: 8,
            digest: "SHA-256".into(),
            fall_through: Some(true),
            ..Report::default()
        }
    }

    #[test]
    fn it_passes_only_if_every_criterion_holds() {
        assert!(good().passed());
        let slow = Rates { up: 188e6, down: 170e6 };
        for (report, failed) in [
            (Report { together: slow, ..good() }, "FAIL  server to client"),
            (Report { stall: 1.2, ..good() }, "FAIL  link 1 cut"),
            (Report { intact: 7, ..good() }, "FAIL  SHA-256"),
            (Report { fall_through: Some(false), ..good() }, "FAIL  Plait killed"),
        ] {
            assert!(!report.passed());
            assert!(report.table().contains(failed), "{}", report.table());
            assert_eq!(report.table().matches("FAIL").count(), 1);
        }
        assert!(!Report { transfers: 0, intact: 0, ..good() }.passed());
        let in_memory = Report { fall_through: None, ..good() };
        assert!(in_memory.passed() && !in_memory.table().contains("killed"));
    }
}
