//! Plays a script: packets in at their time, packets out compared with what is expected and when.

use super::host::{Family, Host, Listening};
use super::octets::{self, Mapping, Wire};
use super::packet::{Packet, SYN};
use super::syntax::{Event, Script, Verb, What, When, duration};
use stack::shard::Counters;
use stack::tcp::{CloseReason, Phase};
use stack::time::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

/// When a script begins: clocks have run for a while.
const START: Instant = Instant::from_millis(1_000_000);
/// What the peer's sequence numbers begin with: they wrap early.
const PEER_ISN: u32 = u32::MAX - 4_999;
/// Longest wait for a packet that may come whenever it likes.
const PATIENCE: Duration = Duration::from_secs(30 * 86_400);
/// Turns after which a host that never rests is broken.
const MAX_TURNS: u32 = 1_000_000;

/// A packet that left.
struct Sent {
    at: Instant,
    flow: u16,
    packet: Packet,
}

struct Player<'a> {
    script: &'a Script,
    host: Host,
    now: Instant,
    /// Nominal time of the last event.
    last: Instant,
    sent: VecDeque<Sent>,
    maps: BTreeMap<u16, Mapping>,
    /// The latest window of the peer.
    windows: BTreeMap<u16, u16>,
    /// Orders to connect are no packets.
    baseline: Counters,
    trace: String,
}

/// Plays `script`; a failure says where, what was expected and what happened until then.
pub fn play(script: &Script, family: Family) -> Result<(), String> {
    let host = Host::new(family, &script.settings)?;
    let mut player = Player {
        script,
        host,
        now: START,
        last: START,
        sent: VecDeque::new(),
        maps: BTreeMap::new(),
        windows: BTreeMap::new(),
        baseline: Counters::default(),
        trace: String::new(),
    };
    for event in &script.events {
        let result = player.event(event);
        result.map_err(|why| player.failure(event.line, &event.text, &why))?;
    }
    let last = script.events.last().map_or(0, |event| event.line);
    let result = player.expect_nothing();
    result.map_err(|why| player.failure(last, "end of the script", &why))?;
    match player.host.frames_left() {
        0 => Ok(()),
        held => Err(format!("{last}: {held} frames are not back in the pool")),
    }
}

impl Player<'_> {
    fn failure(&self, line: usize, text: &str, why: &str) -> String {
        format!("{line}: {text}\n    {why}\n  so far:\n{}", self.trace)
    }

    fn note(&mut self, at: Instant, what: &str) {
        let _ = writeln!(self.trace, "    {:>12.6} {what}", at.since(START).as_secs_f64());
    }

    fn map(&mut self, flow: u16) -> &mut Mapping {
        let new = Mapping { peer_isn: PEER_ISN, our_isn: 0, ts_base: None };
        self.maps.entry(flow).or_insert(new)
    }

    fn event(&mut self, event: &Event) -> Result<(), String> {
        let (earliest, latest) = match event.when {
            When::After(d) => (self.last + d, self.last + d),
            When::At(d) => (START + d, START + d),
            When::Between(from, to) => (self.last + from, self.last + to),
            When::Whenever => (self.now, self.now + PATIENCE),
        };
        match &event.what {
            What::Out(wanted) => self.expect(event, wanted, earliest, latest),
            What::In(packet) => {
                self.run_until(earliest)?;
                self.expect_nothing()?;
                self.receive(event.flow, packet)
            }
            What::Verb(verb) => {
                self.run_until(earliest)?;
                self.note(self.now, &event.text);
                self.verb(event.flow, verb)
            }
        }
    }

    /// Lets time pass, and the host act in it.
    fn run_until(&mut self, until: Instant) -> Result<(), String> {
        for _ in 0..MAX_TURNS {
            match self.host.shard.deadline() {
                Some(at) if at <= until => self.turn(at)?,
                _ => {
                    self.now = self.now.max(until);
                    self.last = until;
                    return Ok(());
                }
            }
        }
        Err("the host never rests".to_owned())
    }

    fn turn(&mut self, at: Instant) -> Result<(), String> {
        self.now = self.now.max(at);
        self.host.shard.expire(self.now);
        self.flush()
    }

    /// Takes what the host sends now.
    fn flush(&mut self) -> Result<(), String> {
        loop {
            let packets = self.host.transmit(self.now);
            if packets.is_empty() {
                return Ok(());
            }
            for octets in packets {
                self.leave(&octets)?;
            }
        }
    }

    fn leave(&mut self, octets: &[u8]) -> Result<(), String> {
        let (now, (port, wire)) = (self.now, octets::read(octets)?);
        let number = match &wire {
            Wire::Tcp(_) => self.host.number(octets),
            Wire::Icmp(_) => port.checked_sub(39_999),
        };
        let flow = number.ok_or_else(|| format!("a packet to port {port}"))?;
        let packet = match wire {
            Wire::Icmp(mut icmp) => {
                icmp.seq = icmp.seq.map(|seq| seq.wrapping_sub(PEER_ISN));
                Packet::Icmp(icmp)
            }
            Wire::Tcp(tcp) => {
                let map = self.map(flow);
                if tcp.flags & SYN != 0 {
                    map.our_isn = tcp.seq;
                }
                self.learn_clock(flow, tcp.timestamp());
                Packet::Tcp(tcp.relative(self.maps[&flow])?)
            }
        };
        let prefix = if flow == 1 { String::new() } else { format!("@{flow} ") };
        self.note(now, &format!("> {prefix}{packet}"));
        self.sent.push_back(Sent { at: now, flow, packet });
        Ok(())
    }

    /// A script counts our TSval in milliseconds from its start, unless its first one says otherwise.
    fn learn_clock(&mut self, flow: u16, val: Option<u32>) {
        let elapsed = self.now.since(START).as_millis() as u32;
        let map = self.map(flow);
        if let (None, Some(val)) = (map.ts_base, val) {
            map.ts_base = Some(val.wrapping_sub(elapsed));
        }
    }

    fn receive(&mut self, flow: u16, packet: &Packet) -> Result<(), String> {
        let mut packet = packet.clone();
        if let Packet::Tcp(tcp) = &mut packet {
            let window = self.windows.entry(flow).or_insert(65_535);
            *window = tcp.win.unwrap_or(*window);
            tcp.win = Some(*window);
        }
        let prefix = if flow == 1 { String::new() } else { format!("@{flow} ") };
        self.note(self.now, &format!("< {prefix}{packet}"));
        let map = *self.map(flow);
        let octets = octets::write(&packet, self.host.flow(flow), map);
        self.host.receive(&octets, self.now);
        self.flush()
    }

    fn expect(
        &mut self,
        event: &Event,
        wanted: &Packet,
        earliest: Instant,
        latest: Instant,
    ) -> Result<(), String> {
        let tolerance = self.script.tolerance;
        self.wait_for_packet(latest + tolerance)?;
        let Some(sent) = self.sent.pop_front() else {
            return Err(format!("expected {wanted}\n    actual   nothing was sent"));
        };
        if sent.flow != event.flow || !sent.packet.fits(wanted) {
            let which = if sent.flow == event.flow { "" } else { " of another connection" };
            return Err(format!("expected {wanted}\n    actual   {}{which}", sent.packet));
        }
        if sent.at + tolerance < earliest || latest + tolerance < sent.at {
            let at = |t: Instant| t.since(START).as_secs_f64();
            return Err(format!(
                "expected at {:.6}\n    actual   at {:.6}",
                at(latest),
                at(sent.at)
            ));
        }
        self.last = if event.when == When::Whenever { sent.at } else { sent.at.max(earliest) };
        Ok(())
    }

    fn wait_for_packet(&mut self, latest: Instant) -> Result<(), String> {
        self.flush()?;
        for _ in 0..MAX_TURNS {
            match self.host.shard.deadline() {
                _ if !self.sent.is_empty() => return Ok(()),
                Some(at) if at <= latest => self.turn(at)?,
                _ => return Ok(()),
            }
        }
        Err("the host never rests".to_owned())
    }

    fn expect_nothing(&mut self) -> Result<(), String> {
        self.flush()?;
        match self.sent.front() {
            None => Ok(()),
            Some(sent) => Err(format!("expected nothing\n    actual   {}", sent.packet)),
        }
    }

    fn verb(&mut self, flow: u16, verb: &Verb) -> Result<(), String> {
        let now = self.now;
        match verb {
            Verb::Listen => self.host.shard.config_mut().listening = Listening::Yes,
            Verb::ListenHold => self.host.shard.config_mut().listening = Listening::Hold,
            Verb::Connect(octets) => {
                self.host.connect(flow, *octets, now);
                self.baseline = *self.host.counters();
            }
            Verb::Answer => self.host.with(flow, now, |stream, now| stream.answer(now))?,
            Verb::Refuse => self.host.with(flow, now, |stream, _| stream.refuse())?,
            Verb::Accept => {
                let phase = self.host.with(flow, now, |stream, _| stream.phase())?;
                if phase != Phase::Open {
                    return Err(format!("expected an open connection\n    actual   {phase:?}"));
                }
            }
            Verb::Write(octets) => self.host.write(flow, *octets, now)?,
            Verb::Read(octets) => self.host.read(flow, *octets, now)?,
            Verb::Close => self.host.with(flow, now, |stream, _| stream.close())?,
            Verb::Abort => {
                self.host.with(flow, now, |stream, _| stream.abort(CloseReason::Aborted))?;
            }
            Verb::ExpectNothing => return self.expect_nothing(),
            Verb::ExpectEnd if self.host.at_end(flow) => {}
            Verb::ExpectEnd => return Err("the peer has not finished, or there is text".to_owned()),
            Verb::ExpectClosed(wanted) => {
                let actual = format!("{:?}", self.host.closed(flow));
                return compare("closed", "=", &format!("Some({wanted})"), &actual);
            }
            Verb::ExpectCounter(name, wanted) => return self.expect_counter(name, *wanted),
            Verb::ExpectInfo(fields) => return self.expect_info(flow, fields),
        }
        self.flush()
    }

    fn expect_counter(&mut self, name: &str, wanted: u64) -> Result<(), String> {
        let value = |counters: &Counters| {
            counters.entries().find(|(known, _)| *known == name).map(|(_, value)| value)
        };
        let now = value(self.host.counters()).ok_or_else(|| format!("no counter {name}"))?;
        let before = value(&self.baseline).unwrap_or(0);
        compare(name, "=", &wanted.to_string(), &(now - before).to_string())
    }

    fn expect_info(
        &mut self,
        flow: u16,
        fields: &[(String, String, String)],
    ) -> Result<(), String> {
        let info = self.host.info(flow);
        let waiting = self.host.shard.occupancy().time_wait > 0
            && self.host.closed(flow) == Some(CloseReason::Done);
        for (name, operator, wanted) in fields {
            let actual = match &info {
                Some(info) => field(&format!("{info:?}"), info.mss, name)?,
                None if name == "state" && waiting => "TimeWait".to_owned(),
                None if name == "state" => "Closed".to_owned(),
                None => return Err("there is no such connection".to_owned()),
            };
            compare(name, operator, wanted, &actual)?;
        }
        Ok(())
    }
}

/// A field of a value as `Debug` prints it; `cwnd` and `ssthresh` in segments, with `_octets` in octets.
fn field(debug: &str, mss: u32, name: &str) -> Result<String, String> {
    let (key, segments) = match name {
        "cwnd" | "ssthresh" => (name, true),
        _ => (name.trim_end_matches("_octets"), false),
    };
    let mark = format!(" {key}: ");
    let at = debug.find(&mark).ok_or_else(|| format!("no field {name}"))? + mark.len();
    let end = debug[at..].find([',', ' ', '}']).map_or(debug.len(), |end| at + end);
    let value = debug[at..end].trim_start_matches("Some(").trim_end_matches(')');
    match value.parse::<u32>() {
        Ok(u32::MAX) if segments => Ok("none".to_owned()),
        Ok(octets) if segments => Ok((octets / mss.max(1)).to_string()),
        _ => Ok(value.to_owned()),
    }
}

fn compare(name: &str, operator: &str, wanted: &str, actual: &str) -> Result<(), String> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let number = |text: &str| -> Option<f64> {
        let seconds = || duration(&text.replace('µ', "u").replace("ns", "us")).ok();
        text.parse().ok().or_else(|| seconds().map(|d| d.as_secs_f64()))
    };
    let (equal, order) = match (number(actual), number(wanted)) {
        (Some(actual), Some(wanted)) => (actual == wanted, actual.partial_cmp(&wanted)),
        _ => (plain(actual) == plain(wanted), None),
    };
    let holds = match operator {
        "=" => equal,
        "!=" => !equal,
        "<" => order.is_some_and(|order| order.is_lt()),
        "<=" => order.is_some_and(|order| order.is_le()),
        ">" => order.is_some_and(|order| order.is_gt()),
        _ => order.is_some_and(|order| order.is_ge()),
    };
    if holds {
        Ok(())
    } else {
        Err(format!("expected {name}{operator}{wanted}\n    actual   {name}={actual}"))
    }
}
