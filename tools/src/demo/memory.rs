//! The demonstration without namespaces: hosts, links and both appliances simulated in virtual time in this process.
#![forbid(unsafe_code)]

use super::DemoArgs;
use super::report::{Rates, Report, megabits};
use pcap_tests::link::{Profile, QueueLimit};
use pcap_tests::traffic::Direction;
use stack::testkit::reference::{Outcome, Topology, Transfer};
use stack::testkit::{Burst, Link};
use std::io;
use std::time::Duration;

/// When the first link is cut, after the start of the transfer.
const CUT_AT: Duration = Duration::from_secs(2);
/// Of the connections' buffers, octets: more than the links' bandwidth times their longest round trip.
const BUFFER: u32 = 4 << 20;
/// A full packet, for queues that are given in packets.
const PACKET: u64 = 1500;
/// A simulated transfer that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs all steps; `why` there is nothing but memory.
pub fn run(args: &DemoArgs, why: &str) -> io::Result<Report> {
    eprintln!("wholly in memory, in virtual time: {why}");
    let links = args.links.iter().map(link).collect::<io::Result<Vec<_>>>()?;
    let mut demo = Demo {
        seconds: args.seconds,
        links,
        report: Report {
            privilege: "none".into(),
            io: "memory".into(),
            io_reason: why.into(),
            congestion: "cubic".into(),
            digest: "length and 64-bit hash".into(),
            fall_through: None,
            ..Report::default()
        },
    };
    for i in 0..demo.links.len() {
        let rates = demo.measure(Some(i))?;
        demo.report.alone.push(rates);
    }
    demo.report.together = demo.measure(None)?;
    demo.cut()?;
    Ok(demo.report)
}

/// A link of the simulator like the profile.
fn link(profile: &Profile) -> io::Result<Link> {
    let rate = profile.rate.ok_or_else(|| io::Error::other("a link in memory needs a rate"))?;
    let queue = match profile.queue {
        QueueLimit::Packets(packets) => u64::from(packets) * PACKET,
        QueueLimit::Octets(octets) => octets,
        QueueLimit::Time(time) => (rate as f64 / 8.0 * time.as_secs_f64()) as u64,
    };
    let queue = usize::try_from(queue).map_err(io::Error::other)?;
    let link = Link::new(rate, profile.delay).queue(queue);
    Ok(match profile.loss.turns() {
        Some([begin, end]) => link.burst(Burst { begin, end }),
        None => link.loss(profile.loss.share),
    })
}

struct Demo {
    seconds: u64,
    links: Vec<Link>,
    report: Report,
}

impl Demo {
    fn topology(&self) -> Topology {
        let mut topology = Topology::new(1, &self.links);
        for mcp in [&mut topology.umcp, &mut topology.dmcp] {
            mcp.buffer = BUFFER;
            for tcp in [&mut mcp.tcp, &mut mcp.mptcp.tcp] {
                (tcp.receive_buffer, tcp.send_buffer) = (BUFFER, BUFFER);
            }
            (mcp.mptcp.receive_buffer, mcp.mptcp.send_buffer) = (BUFFER, BUFFER);
        }
        (topology.tcp.receive_buffer, topology.tcp.send_buffer) = (BUFFER, BUFFER);
        topology
    }

    /// Octets that keep these links busy for the seconds asked for.
    fn amount(&self, only: Option<usize>) -> u64 {
        let chosen = self.links.iter().enumerate().filter(|(i, _)| only.is_none_or(|o| o == *i));
        chosen.filter_map(|(_, link)| link.rate()).sum::<u64>() / 8 * self.seconds
    }

    /// One transfer each way over one link with routers, or over all with Plait; the steady rates.
    fn measure(&mut self, only: Option<usize>) -> io::Result<Rates> {
        let amount = self.amount(only);
        let mut rates = [0.0; 2];
        for (rate, direction) in rates.iter_mut().zip([Direction::Up, Direction::Down]) {
            let transfer = match direction {
                Direction::Up => Transfer::new(amount, 0),
                Direction::Down => Transfer::new(0, amount),
            };
            let transfer = Transfer { limit: LIMIT, ..transfer };
            let topology = self.topology();
            let outcome = match only {
                Some(link) => topology.build_plain(link).run(&transfer),
                None => topology.build().run(&transfer),
            };
            self.count(&outcome);
            let (way, name) = match direction {
                Direction::Up => (outcome.up, "client to server"),
                Direction::Down => (outcome.down, "server to client"),
            };
            *rate = way.goodput();
            let what =
                only.map_or("all links together".into(), |i| format!("link {} alone", i + 1));
            eprintln!("  {what}, {name}: {}", megabits(*rate));
        }
        let [up, down] = rates;
        Ok(Rates { up, down })
    }

    fn cut(&mut self) -> io::Result<()> {
        let transfer = Transfer::new(0, self.amount(None)).cut(0, CUT_AT);
        let transfer = Transfer { limit: LIMIT, ..transfer };
        let outcome = self.topology().build().run(&transfer);
        self.count(&outcome);
        self.report.stall = outcome.down.stall().as_secs_f64();
        eprintln!("  link 1 cut after {CUT_AT:?}: {:.0?} without data", outcome.down.stall());
        Ok(())
    }

    fn count(&mut self, outcome: &Outcome) {
        self.report.transfers += 1;
        self.report.intact += u32::from(outcome.is_exact());
    }
}
