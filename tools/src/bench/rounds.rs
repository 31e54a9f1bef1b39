//! Contenders in turn, several rounds, and what came of them.
#![forbid(unsafe_code)]

use super::contender::{Chain, Contender, HaproxyCongestion, LINKS, Offloads, is_installed};
use super::machine::processors;
use super::plot::{self, Content, Panel};
use crate::appliance::Settings;
use crate::workspace::{AtTheEnd, Workspace};
use clap::{Args, ValueEnum};
use pcap_tests::netns::Privilege;
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How Plait drives its devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BenchIo {
    /// AF_PACKET sockets with virtio-net headers.
    AfPacket,
    /// AF_XDP sockets (needs root).
    AfXdp,
}

impl BenchIo {
    fn name(self) -> &'static str {
        match self {
            BenchIo::AfPacket => "af-packet",
            BenchIo::AfXdp => "af-xdp",
        }
    }
}

/// What all measurements have in common.
#[derive(Args, Debug)]
pub struct RoundsArgs {
    /// Who takes part.
    #[arg(long, value_enum, value_delimiter = ',',
          default_values = ["plait", "haproxy-mptcp", "haproxy-tcp", "none"])]
    contenders: Vec<Contender>,
    /// How often each is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How Plait drives its devices.
    #[arg(long, value_enum, default_value = "af-packet")]
    io: BenchIo,
    /// How long Plait looks at its ports before it sleeps, such as 20us; otherwise its default.
    #[arg(long, value_name = "TIME")]
    spin: Option<String>,
    /// Whether devices move 64 KB super-segments (off needs ethtool).
    #[arg(long, value_enum, default_value = "on")]
    offloads: Offloads,
    /// Congestion control of HAProxy's sockets; client and server have CUBIC either way.
    #[arg(long, value_enum, default_value = "cubic")]
    haproxy_congestion: HaproxyCongestion,
    /// Write everything measured to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw it to this file, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Keep the directory with the proxies' configuration and logs.
    #[arg(long)]
    keep: bool,
}

impl RoundsArgs {
    /// Draws what was measured if that is wanted.
    pub fn plot<R>(&self, report: &Report<R>, panels: &[Panel]) -> io::Result<()> {
        let Some(file) = &self.svg else { return Ok(()) };
        plot::write(file, &format!("plait bench {}: {}", report.bench, report.setting), panels)
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report<R> {
    /// Which measurement.
    pub bench: &'static str,
    /// What it did, in words.
    pub setting: String,
    /// Of this machine.
    pub kernel: String,
    /// Of this machine.
    pub processors: usize,
    /// Between the proxies.
    pub links: usize,
    /// Of the devices.
    pub offloads: Offloads,
    /// Of Plait's ports.
    pub io: &'static str,
    /// Of Plait, where it is not the default.
    pub spin: Option<String>,
    /// How often each was to be measured.
    pub rounds: u32,
    /// In the order of the command line.
    pub contenders: Vec<Entry<R>>,
}

/// One contender.
#[derive(Debug, Serialize)]
pub struct Entry<R> {
    /// Who.
    pub contender: Contender,
    /// What it is made of.
    pub about: String,
    /// What each round gave.
    pub rounds: Vec<R>,
    /// Plait: what each appliance counted, a reading after each round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<Value>,
    /// Why it did not take part.
    pub left_out: Option<String>,
    /// Why a round gave nothing.
    pub failures: Vec<String>,
}

/// Least, middle and greatest of several values.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Spread {
    /// Least.
    pub min: f64,
    /// Median.
    pub median: f64,
    /// Greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Spread { min, median, max })
    }

    /// For people, with so many digits.
    pub fn show(self, digits: usize) -> String {
        let Spread { min, median, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// The value below which this share of the sorted `times` lies; zero if there are none.
pub fn percentile(times: &[Duration], share: f64) -> Duration {
    let rank = (times.len() as f64 * share).ceil() as usize;
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl<R> Entry<R> {
    /// Of one quantity over the rounds.
    pub fn spread(&self, quantity: impl Fn(&R) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(quantity))
    }
}

/// Runs all contenders in turn, each time in a new chain; writes the file if one is wanted.
pub fn run<R: Serialize>(
    args: &RoundsArgs,
    bench: &'static str,
    setting: String,
    measure: impl Fn(&Chain) -> io::Result<R>,
    line: impl Fn(&R) -> String,
) -> io::Result<Report<R>> {
    if args.offloads == Offloads::Off && !is_installed("ethtool") {
        return Err(io::Error::other("--offloads off needs ethtool (Debian package: ethtool)"));
    }
    Privilege::acquire().map_err(io::Error::other)?;
    let at_the_end = if args.keep { AtTheEnd::Keep } else { AtTheEnd::Remove };
    let workspace = Workspace::new("bench", at_the_end)?;
    let mut report = Report {
        bench,
        setting,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        processors: processors(),
        links: LINKS,
        offloads: args.offloads,
        io: args.io.name(),
        spin: args.spin.clone(),
        rounds: args.rounds,
        contenders: args.contenders.iter().map(|contender| Entry::new(*contender)).collect(),
    };
    let settings =
        Settings { io: args.io.name(), spin: args.spin.as_deref(), directory: workspace.path() };
    for round in 1..=args.rounds {
        for entry in &mut report.contenders {
            if entry.gives_up() {
                continue;
            }
            let name = entry.contender.name();
            let started =
                Chain::start(entry.contender, args.offloads, args.haproxy_congestion, settings);
            let result = started.and_then(|mut chain| {
                entry.about = chain.describe();
                let result = measure(&chain).map_err(|error| chain.explain(&error));
                entry.counters.extend(chain.counters());
                result
            });
            match result {
                Ok(result) => {
                    eprintln!("round {round}: {name}: {}", line(&result));
                    entry.rounds.push(result);
                }
                Err(error) => {
                    eprintln!("round {round}: {name}: FAILED: {error}");
                    entry.failures.push(error.to_string());
                }
            }
        }
    }
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report).map_err(io::Error::other)?;
        fs::write(file, json + "\n").map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", file.display()))
        })?;
    }
    Ok(report)
}

impl<R> Entry<R> {
    fn new(contender: Contender) -> Entry<R> {
        let left_out = contender.missing();
        if let Some(why) = &left_out {
            eprintln!("{} is left out: {why}", contender.name());
        }
        Entry {
            contender,
            about: String::new(),
            rounds: Vec::new(),
            counters: Vec::new(),
            left_out,
            failures: Vec::new(),
        }
    }

    /// What cannot start and what has failed twice without ever having worked is not tried again.
    fn gives_up(&self) -> bool {
        self.left_out.is_some() || (self.rounds.is_empty() && self.failures.len() >= 2)
    }
}

impl<R> Report<R> {
    /// The entry that others are compared with: no proxy.
    pub fn baseline(&self) -> Option<&Entry<R>> {
        self.contenders.iter().find(|entry| entry.contender == Contender::None)
    }

    /// A bar for each contender that gave a result.
    pub fn bars(&self, title: &str, quantity: fn(&R) -> f64) -> Panel {
        let bar = |entry: &Entry<R>| {
            entry.spread(quantity).map(|spread| (entry.contender.name().to_owned(), spread))
        };
        let bars = self.contenders.iter().filter_map(bar).collect();
        Panel { title: title.into(), content: Content::Bars(bars) }
    }

    /// Fails if somebody took part and never gave a result.
    pub fn check(&self) -> io::Result<()> {
        let silent = |entry: &&Entry<R>| entry.left_out.is_none() && entry.rounds.is_empty();
        let names: Vec<_> =
            self.contenders.iter().filter(silent).map(|entry| entry.contender.name()).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(format!("no result from {}", names.join(", "))))
    }

    /// The head of the table for people.
    pub fn head(&self) -> String {
        let offloads = match self.offloads {
            Offloads::On => "on",
            Offloads::Off => "off (no TSO, GSO, GRO)",
        };
        format!(
            "plait bench {}: {}\nclient - MCP1 - {} links - MCP2 - server, unshaped; offloads {offloads}; Plait on {}\n\
             Linux {}, {} processors; {} rounds, contenders in turn; median (least to greatest)\n",
            self.bench,
            self.setting,
            self.links,
            self.io,
            self.kernel,
            self.processors,
            self.rounds
        )
    }

    /// What each contender is, and what went wrong.
    pub fn notes(&self) -> String {
        let mut out = String::new();
        for entry in &self.contenders {
            let name = entry.contender.name();
            if !entry.about.is_empty() {
                out += &format!("{name}: {}\n", entry.about);
            }
            if let Some(why) = &entry.left_out {
                out += &format!("{name}: left out: {why}\n");
            }
            for failure in &entry.failures {
                out +=
                    &format!("{name}: NO RESULT: {}\n", failure.lines().next().unwrap_or_default());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let times: Vec<Duration> = (1..=1000).map(Duration::from_micros).collect();
        let micros = |share| percentile(&times, share).as_micros();
        assert_eq!([micros(0.5), micros(0.99), micros(0.999), micros(1.0)], [500, 990, 999, 1000]);
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(
            Spread::of([3.0, 1.0, 2.0, 10.0]),
            Some(Spread { min: 1.0, median: 2.5, max: 10.0 })
        );
        assert_eq!(Spread::of([7.0]), Some(Spread { min: 7.0, median: 7.0, max: 7.0 }));
        assert_eq!(Spread::of([]), None);
    }
}
