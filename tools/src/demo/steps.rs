//! The demonstration, step by step.
#![forbid(unsafe_code)]

use super::report::{Rates, Report, megabits};
use super::{DemoArgs, DemoIo};
use crate::appliance::{Pair, Settings};
use crate::workspace::Workspace;
use pcap_tests::netns::Privilege;
use pcap_tests::topology::{Reference, SERVER};
use pcap_tests::traffic::{self, Amount, Direction, Outcome, Transfer};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The steady part of a transfer starts after so long.
const SETTLE: Duration = Duration::from_secs(1);
/// When the first link is cut, after the start of the transfer.
const CUT_AT: Duration = Duration::from_secs(2);
/// The transfer of the last step.
const SMALL_TRANSFER: u64 = 1_000_000;
const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];

struct Demo<'a> {
    args: &'a DemoArgs,
    net: Reference,
    report: Report,
    begun: Instant,
    /// The kernel forwards what the appliances take, too, unless told not to: no eBPF to keep it from doing so.
    kernel_must_not_forward: bool,
    next_port: u16,
}

/// Runs all steps.
pub fn run(args: &DemoArgs, privilege: Privilege, workspace: &Workspace) -> io::Result<Report> {
    let profiles: Vec<_> = args.links.iter().map(|link| [*link; 2]).collect();
    let net = Reference::build(&profiles)?;
    let mut demo = Demo {
        args,
        net,
        report: Report {
            privilege: format!("{privilege:?}"),
            digest: "SHA-256".into(),
            fall_through: Some(false),
            ..Report::default()
        },
        begun: Instant::now(),
        kernel_must_not_forward: privilege == Privilege::UserNamespace
            || args.io == Some(DemoIo::Pnet),
        next_port: 7000,
    };
    demo.say_what_is_built(privilege);
    for link in 0..args.links.len() {
        demo.measure_alone(link)?;
    }
    demo.net.route_through(0)?;
    let mut pair = demo.start_appliances(privilege, workspace)?;
    demo.measure_together(&mut pair)?;
    demo.cut_a_link(&mut pair)?;
    demo.kill_appliances(pair)?;
    Ok(demo.report)
}

impl Demo<'_> {
    fn say(&self, text: impl std::fmt::Display) {
        eprintln!("[{:5.1} s] {text}", self.begun.elapsed().as_secs_f64());
    }

    fn say_what_is_built(&self, privilege: Privilege) {
        let how = match privilege {
            Privilege::Root => "as root",
            Privilege::UserNamespace => "without root, in a user namespace",
        };
        self.say(format_args!(
            "client - uMCP - {} link(s) - dMCP - server: network namespaces, {how}",
            self.args.links.len()
        ));
        for (i, link) in self.args.links.iter().enumerate() {
            let rate = link.rate.map_or("unlimited".into(), |rate| megabits(rate as f64));
            let rtt = link.delay * 2;
            self.say(format_args!(
                "  link {}: {rate}, RTT {rtt:?}, loss {} %, queue {:?}",
                i + 1,
                link.loss.share * 100.0,
                link.queue
            ));
        }
    }

    /// Every transfer has a port of its own: none meets another's TIME-WAIT.
    fn transfer(&mut self, direction: Direction, amount: Amount) -> Transfer {
        self.next_port += 1;
        Transfer::tcp(SocketAddr::new(SERVER, self.next_port), direction, amount)
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs(self.args.seconds)
    }

    fn count(&mut self, outcome: &Outcome) {
        self.report.transfers += 1;
        self.report.intact += u32::from(outcome.intact());
        self.report.congestion.clone_from(&outcome.congestion);
        if !outcome.intact() {
            self.say(format_args!(
                "  NOT INTACT: {} octets sent, {} received",
                outcome.sent, outcome.received
            ));
        }
    }

    /// One transfer each way; the steady rates.
    fn measure(&mut self) -> io::Result<Rates> {
        let mut rates = [0.0; 2];
        for (rate, direction) in rates.iter_mut().zip(DIRECTIONS) {
            let transfer = self.transfer(direction, Amount::For(self.seconds()));
            let outcome = traffic::run(&self.net.client, &self.net.server, transfer)?;
            self.count(&outcome);
            *rate = outcome.steady_rate(SETTLE);
            let way = match direction {
                Direction::Up => "client to server",
                Direction::Down => "server to client",
            };
            self.say(format_args!(
                "  {way}: {}, connected in {:.1?}",
                megabits(*rate),
                outcome.connect
            ));
        }
        let [up, down] = rates;
        Ok(Rates { up, down })
    }

    fn measure_alone(&mut self, link: usize) -> io::Result<()> {
        self.say(format_args!("link {} alone: plain TCP, forwarded by the kernels", link + 1));
        self.net.route_through(link)?;
        let rates = self.measure()?;
        self.report.alone.push(rates);
        Ok(())
    }

    fn start_appliances(
        &mut self,
        privilege: Privilege,
        workspace: &Workspace,
    ) -> io::Result<Pair> {
        if self.kernel_must_not_forward {
            self.net.set_forwarding(false)?;
        }
        let (io, why) = match (self.args.io, privilege) {
            (Some(io), _) => (io, "as asked".to_owned()),
            (None, Privilege::Root) => (DemoIo::AfXdp, "it can be loaded".to_owned()),
            (None, Privilege::UserNamespace) => (
                DemoIo::AfPacket,
                "AF_XDP needs eBPF, which a user namespace may not load".to_owned(),
            ),
        };
        let start = |io: DemoIo| {
            let settings = Settings { io: io.name(), spin: None, directory: workspace.path() };
            Pair::start(&self.net, settings)
        };
        let started = start(io);
        let (pair, io, why) = match started {
            Err(error) if self.args.io.is_none() && io == DemoIo::AfXdp => {
                let why = format!("AF_XDP did not start: {error}");
                (start(DemoIo::AfPacket)?, DemoIo::AfPacket, why)
            }
            result => (result?, io, why),
        };
        self.say(format_args!("uMCP and dMCP are up with {} ({why})", io.name()));
        (self.report.io, self.report.io_reason) = (io.name().into(), why);
        Ok(pair)
    }

    fn measure_together(&mut self, pair: &mut Pair) -> io::Result<()> {
        self.say(
            "all links together: plain TCP at both ends, Multipath TCP between the appliances",
        );
        self.report.together = self.measure().map_err(|error| pair.explain(&error))?;
        Ok(())
    }

    fn cut_a_link(&mut self, pair: &mut Pair) -> io::Result<()> {
        self.say(format_args!("a transfer, link 1 cut after {CUT_AT:?}"));
        let amount = Amount::For(CUT_AT + self.seconds().min(Duration::from_secs(4)));
        let transfer = self.transfer(Direction::Down, amount);
        let running = traffic::start(&self.net.client, &self.net.server, transfer)?;
        std::thread::sleep(CUT_AT);
        let switch = self.net.links.first().map(|link| link.switch().clone());
        if let Some(switch) = &switch {
            switch.set_up(false);
        }
        let outcome = running.finish().map_err(|error| pair.explain(&error))?;
        self.count(&outcome);
        self.report.stall = outcome.longest_gap.as_secs_f64();
        let (gap, at) = (outcome.longest_gap, outcome.longest_gap_at);
        self.say(format_args!("  longest time without data: {gap:.1?}, at {at:.1?}"));
        if let Some(switch) = &switch {
            switch.set_up(true);
        }
        Ok(())
    }

    fn kill_appliances(&mut self, pair: Pair) -> io::Result<()> {
        self.say("both appliances killed; a new connection");
        pair.kill();
        if self.kernel_must_not_forward {
            self.net.set_forwarding(true)?;
            self.report.fall_through_note =
                " (forwarding switched on again by the demo: without eBPF it was off)".into();
        }
        let transfer = self.transfer(Direction::Up, Amount::Octets(SMALL_TRANSFER));
        match traffic::run(&self.net.client, &self.net.server, transfer) {
            Ok(outcome) => {
                self.count(&outcome);
                self.report.fall_through = Some(outcome.intact());
                self.say(format_args!("  {SMALL_TRANSFER} octets in {:.1?}", outcome.elapsed));
            }
            Err(error) => self.say(format_args!("  failed: {error}")),
        }
        Ok(())
    }
}
