//! `plait emulate`: a link with rate, delay, a queue, and what goes wrong, between two Ethernet devices.
#![forbid(unsafe_code)]

use clap::Args;
use pcap_tests::link::{
    DirectionStats, Emulator, Loss, Profile, QueueLimit, Reorder, Switch, parse,
};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Forward Ethernet frames between two devices through an emulated link.
///
/// Neither device should have an address: this machine's kernel would see the frames too. SIGUSR1 cuts the link, SIGUSR2
/// restores it, SIGINT and SIGTERM end it; then the counters are printed.
#[derive(Args, Debug)]
pub struct EmulateArgs {
    /// One device.
    #[arg(long, value_name = "DEVICE")]
    a: String,
    /// The other device.
    #[arg(long, value_name = "DEVICE")]
    b: String,
    /// Rate of whole Ethernet frames, such as 100mbit; without it there is no limit.
    #[arg(long, value_parser = parse::rate)]
    rate: Option<u64>,
    /// One-way delay, such as 5ms.
    #[arg(long, value_parser = parse::time, default_value = "0")]
    delay: Duration,
    /// Random loss, such as 0.1%; 1%/5: 1 %, in runs of 5 packets on average.
    #[arg(long, value_parser = parse::loss, default_value = "0")]
    loss: Loss,
    /// What may wait for the wire: packets (300), octets (450kB) or time (50ms).
    #[arg(long, value_parser = parse::queue, default_value = "300")]
    queue: QueueLimit,
    /// Up to so much more delay, evenly distributed; packets keep their order.
    #[arg(long, value_parser = parse::time, default_value = "0")]
    jitter: Duration,
    /// Packets that others overtake, such as 1%/5ms: 1 % of them come 5 ms late.
    #[arg(long, value_parser = parse::reorder)]
    reorder: Option<Reorder>,
    /// Packets that arrive twice, such as 0.1%.
    #[arg(long, value_parser = parse::share, default_value = "0")]
    duplicate: f64,
    /// Mark what waits longer in the queue and is ECN-capable: Congestion Experienced.
    #[arg(long, value_parser = parse::time, value_name = "TIME")]
    mark: Option<Duration>,
    /// Rate from B to A, if different.
    #[arg(long, value_parser = parse::rate)]
    rate_ba: Option<u64>,
    /// Delay from B to A, if different.
    #[arg(long, value_parser = parse::time)]
    delay_ba: Option<Duration>,
    /// Loss from B to A, if different.
    #[arg(long, value_parser = parse::loss)]
    loss_ba: Option<Loss>,
    /// Queue from B to A, if different.
    #[arg(long, value_parser = parse::queue)]
    queue_ba: Option<QueueLimit>,
    /// Jitter from B to A, if different.
    #[arg(long, value_parser = parse::time)]
    jitter_ba: Option<Duration>,
    /// Reordering from B to A, if different; 0%/0 for none.
    #[arg(long, value_parser = parse::reorder)]
    reorder_ba: Option<Reorder>,
    /// Duplicates from B to A, if different.
    #[arg(long, value_parser = parse::share)]
    duplicate_ba: Option<f64>,
    /// Marking threshold from B to A, if different.
    #[arg(long, value_parser = parse::time, value_name = "TIME")]
    mark_ba: Option<Duration>,
    /// Cut the link so long after the start.
    #[arg(long, value_parser = parse::time, value_name = "TIME")]
    down_at: Option<Duration>,
    /// Restore the link so long after the start.
    #[arg(long, value_parser = parse::time, value_name = "TIME")]
    up_at: Option<Duration>,
    /// Decides which packets are lost, late or come twice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the counters as JSON.
    #[arg(long)]
    json: bool,
}

impl EmulateArgs {
    fn a_to_b(&self) -> Profile {
        Profile {
            rate: self.rate,
            delay: self.delay,
            loss: self.loss,
            queue: self.queue,
            jitter: self.jitter,
            reorder: self.reorder,
            duplicate: self.duplicate,
            mark: self.mark,
        }
    }

    fn b_to_a(&self) -> Profile {
        Profile {
            rate: self.rate_ba.or(self.rate),
            delay: self.delay_ba.unwrap_or(self.delay),
            loss: self.loss_ba.unwrap_or(self.loss),
            queue: self.queue_ba.unwrap_or(self.queue),
            jitter: self.jitter_ba.unwrap_or(self.jitter),
            reorder: self.reorder_ba.or(self.reorder),
            duplicate: self.duplicate_ba.unwrap_or(self.duplicate),
            mark: self.mark_ba.or(self.mark),
        }
    }
}

#[derive(Serialize)]
struct Counters {
    a_to_b: DirectionStats,
    b_to_a: DirectionStats,
}

/// Runs until a signal ends it.
pub fn run(args: &EmulateArgs) -> ExitCode {
    match emulate(args) {
        Ok(counters) => {
            print(&counters, args.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("plait emulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn emulate(args: &EmulateArgs) -> io::Result<Counters> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2])?;
    let (emulator, switch) =
        Emulator::open((&args.a, &args.b), args.a_to_b(), args.b_to_a(), args.seed)?;
    for (at, up) in [(args.down_at, false), (args.up_at, true)] {
        if let Some(at) = at {
            let switch = switch.clone();
            thread::spawn(move || {
                thread::sleep(at);
                switch.set_up(up);
            });
        }
    }
    thread::spawn(move || obey(&mut signals, &switch));
    eprintln!("forwarding between {} and {}", args.a, args.b);
    let [a_to_b, b_to_a] = emulator.run()?;
    Ok(Counters { a_to_b, b_to_a })
}

fn obey(signals: &mut Signals, switch: &Switch) {
    for signal in signals.forever() {
        match signal {
            SIGUSR1 => switch.set_up(false),
            SIGUSR2 => switch.set_up(true),
            _ => switch.stop(),
        }
    }
}

fn print(counters: &Counters, json: bool) {
    if json {
        println!("{}", serde_json::to_string_pretty(counters).unwrap_or_default());
        return;
    }
    println!("{:14} {:>14} {:>14}", "", "A to B", "B to A");
    let (ab, ba) = (counters.a_to_b, counters.b_to_a);
    for (name, of) in ROWS {
        println!("{name:14} {:>14} {:>14}", of(&ab), of(&ba));
    }
}

type Row = (&'static str, fn(&DirectionStats) -> u64);

const ROWS: [Row; 12] = [
    ("packets", |stats| stats.shaper.packets),
    ("octets", |stats| stats.shaper.octets),
    ("queue drops", |stats| stats.shaper.queue_drops),
    ("lost", |stats| stats.shaper.lost),
    ("delayed", |stats| stats.shaper.delayed),
    ("duplicated", |stats| stats.shaper.duplicated),
    ("marked", |stats| stats.shaper.marked),
    ("dropped down", |stats| stats.shaper.down_drops),
    ("deepest queue", |stats| u64::from(stats.shaper.deepest_queue)),
    ("super-frames", |stats| stats.super_frames),
    ("malformed", |stats| stats.malformed),
    ("send errors", |stats| stats.send_errors),
];

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: EmulateArgs,
    }

    fn parse(line: &str) -> Result<EmulateArgs, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.args)
    }

    #[test]
    fn what_is_not_given_for_the_way_back_is_as_on_the_way_there() {
        let args = parse(
            "emulate --a x --b y --rate 100mbit --delay 5ms --loss 0.1%/4 --jitter 1ms \
             --reorder 1%/5ms --duplicate 1% --mark 2ms --rate-ba 10mbit",
        )
        .unwrap();
        assert_eq!(args.a_to_b().rate, Some(100_000_000));
        assert_eq!(args.b_to_a(), Profile { rate: Some(10_000_000), ..args.a_to_b() });
        assert_eq!(args.a_to_b().queue, QueueLimit::Packets(300));
    }

    #[test]
    fn a_bad_value_names_what_is_allowed() {
        let error = parse("emulate --a x --b y --rate 100").unwrap_err().to_string();
        assert!(error.contains("100mbit"), "{error}");
    }
}
