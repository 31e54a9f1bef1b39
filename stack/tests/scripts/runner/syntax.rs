//! Scripts: text to events.

use super::packet::{ACK, FLAGS, Icmp, IcmpKind, Ip, Opt, Options, Packet, Tcp};
use std::time::Duration;

/// A parsed script.
#[derive(Debug)]
pub struct Script {
    /// `set key=value` lines.
    pub settings: Vec<(String, String)>,
    pub tolerance: Duration,
    pub events: Vec<Event>,
}

#[derive(Debug)]
pub struct Event {
    pub line: usize,
    pub text: String,
    pub when: When,
    /// Which connection, from 1.
    pub flow: u16,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// This long after the event before.
    After(Duration),
    /// This long after the start.
    At(Duration),
    /// Within these bounds after the event before.
    Between(Duration, Duration),
    /// As soon as it happens.
    Whenever,
}

#[derive(Debug)]
pub enum What {
    In(Packet),
    Out(Packet),
    Verb(Verb),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verb {
    Listen,
    /// SYNs are held until `answer` or `refuse`.
    ListenHold,
    /// With so many octets to send from the first.
    Connect(u32),
    Answer,
    Refuse,
    /// A connection is there that both ends know of.
    Accept,
    Write(u32),
    /// Takes exactly so many octets.
    Read(u32),
    Close,
    Abort,
    ExpectNothing,
    ExpectClosed(String),
    /// All that the peer sent was read, and then its FIN.
    ExpectEnd,
    ExpectCounter(String, u64),
    /// Field, comparison, value.
    ExpectInfo(Vec<(String, String, String)>),
}

type Parsed<T> = Result<T, String>;

/// Parses a script; errors begin with the line's number.
pub fn parse(text: &str) -> Parsed<Script> {
    let mut script =
        Script { settings: Vec::new(), tolerance: Duration::from_millis(1), events: Vec::new() };
    for (index, raw) in text.lines().enumerate() {
        let line = strip_comment(raw).trim();
        if !line.is_empty() {
            take_line(line, index + 1, &mut script).map_err(|e| format!("{}: {e}", index + 1))?;
        }
    }
    Ok(script)
}

fn strip_comment(line: &str) -> &str {
    let end = line.find("//").unwrap_or(line.len());
    line[..end].split('#').next().unwrap_or("")
}

fn take_line(line: &str, number: usize, script: &mut Script) -> Parsed<()> {
    if let Some(value) = line.strip_prefix("--tolerance") {
        script.tolerance = duration(value.trim_start_matches('=').trim())?;
        return Ok(());
    }
    if let Some(settings) = line.strip_prefix("set ") {
        for setting in settings.split_whitespace() {
            let (key, value) = setting.split_once('=').ok_or("a setting is key=value")?;
            script.settings.push((key.to_owned(), value.to_owned()));
        }
        return Ok(());
    }
    let (when, rest) = take_when(line)?;
    let (direction, rest) = match rest.chars().next() {
        Some(c @ ('<' | '>')) => (Some(c), rest[1..].trim()),
        _ => (None, rest),
    };
    let (flow, rest) = take_flow(rest)?;
    let what = match direction {
        Some('<') => What::In(complete(packet(rest)?)?),
        Some(_) => What::Out(packet(rest)?),
        None => What::Verb(verb(rest)?),
    };
    script.events.push(Event { line: number, text: line.to_owned(), when, flow, what });
    Ok(())
}

fn take_when(line: &str) -> Parsed<(When, &str)> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest_of = |when| Ok((when, rest.trim()));
    if word == "*" {
        return rest_of(When::Whenever);
    }
    match word.strip_prefix('+') {
        Some(span) => match span.split_once('~') {
            Some((from, to)) => {
                let to = duration(to.trim_start_matches('+'))?;
                rest_of(When::Between(duration(from)?, to))
            }
            None => rest_of(When::After(duration(span)?)),
        },
        None if word.starts_with(|c: char| c.is_ascii_digit()) => {
            rest_of(When::At(duration(word)?))
        }
        None => Ok((When::After(Duration::ZERO), line)),
    }
}

/// `@2 ...` is about the second connection.
fn take_flow(rest: &str) -> Parsed<(u16, &str)> {
    match rest.strip_prefix('@') {
        Some(tail) => {
            let (number, rest) = tail.split_once(char::is_whitespace).unwrap_or((tail, ""));
            Ok((int(number)?, rest.trim()))
        }
        None => Ok((1, rest)),
    }
}

/// Seconds, or with a unit: `us`, `ms`, `s`, `m`, `h`, `d`.
pub fn duration(text: &str) -> Parsed<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        other => return Err(format!("no unit of time: {other}")),
    };
    let value: f64 = digits.parse().map_err(|_| format!("no time: {text:?}"))?;
    // Whole microseconds, so that sums of decimal fractions are exact.
    Ok(Duration::from_micros((value * unit * 1e6).round() as u64))
}

fn int<T: std::str::FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("no number that fits: {text:?}"))
}

fn int_or_any<T: std::str::FromStr>(text: &str) -> Parsed<Option<T>> {
    if text == "*" { Ok(None) } else { int(text).map(Some) }
}

pub fn hex(text: &str) -> Parsed<Vec<u8>> {
    let digits = text.trim_start_matches("0x");
    let pair = |at| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..digits.len())
        .step_by(2)
        .map(|at| pair(at).ok_or_else(|| format!("no hexadecimal octets: {text}")))
        .collect()
}

fn packet(text: &str) -> Parsed<Packet> {
    let (ip, text) = take_ip(text)?;
    if let Some(rest) = text.strip_prefix("icmp ") {
        return icmp(rest.trim(), ip).map(Packet::Icmp);
    }
    let (head, options) = match text.split_once('<') {
        Some((head, options)) => {
            let list = options.strip_suffix('>').ok_or("options end with >")?;
            (head, Some(options_list(list)?))
        }
        None => (text, None),
    };
    let mut words = head.split_whitespace();
    let flags = flags(words.next().ok_or("flags are missing")?)?;
    let (seq, len) = range(words.next().ok_or("the sequence range is missing")?)?;
    let mut tcp = Tcp { ip, flags, seq, len, options, ..Tcp::default() };
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        match word {
            "ack" => tcp.ack = int_or_any(value)?,
            "win" => tcp.win = int_or_any(value)?,
            "urg" => tcp.urg = int_or_any(value)?,
            _ => return Err(format!("no field of a segment: {word}")),
        }
    }
    if tcp.ack.is_some() && tcp.flags.is_some_and(|flags| flags & ACK == 0) {
        return Err("an ack without the flag . is not sent".to_owned());
    }
    Ok(Packet::Tcp(tcp))
}

/// What the peer sends may leave nothing open.
fn complete(packet: Packet) -> Parsed<Packet> {
    let open = match &packet {
        Packet::Tcp(tcp) => {
            let ack = tcp.ack.is_none() && tcp.has(ACK);
            ack || tcp.flags.is_none() || tcp.seq.is_none() || tcp.len.is_none()
        }
        Packet::Icmp(icmp) => icmp.seq.is_none(),
    };
    if open { Err("a received packet has no open fields".to_owned()) } else { Ok(packet) }
}

fn take_ip(mut text: &str) -> Parsed<(Ip, &str)> {
    let mut ip = Ip::default();
    while let Some(rest) = text.strip_prefix('[') {
        let (field, rest) = rest.split_once(']').ok_or("[ without ]")?;
        match field.split_once(' ').unwrap_or((field, "")) {
            ("noecn", _) => ip.ecn = Some(0),
            ("ect1", _) => ip.ecn = Some(1),
            ("ect0", _) => ip.ecn = Some(2),
            ("ce", _) => ip.ecn = Some(3),
            ("ttl", value) => ip.ttl = Some(int(value)?),
            ("src", value) => ip.source = Some(int(value)?),
            ("badsum", _) => ip.bad_checksum = true,
            ("fragment", _) => ip.fragment = true,
            _ => return Err(format!("no IP field: {field}")),
        }
        text = rest.trim();
    }
    Ok((ip, text))
}

fn flags(word: &str) -> Parsed<Option<u16>> {
    match word {
        "*" => return Ok(None),
        "-" => return Ok(Some(0)),
        _ => {}
    }
    let bit = |c| FLAGS.iter().find(|(letter, _)| *letter == c).map(|(_, bit)| *bit);
    let mut flags = 0;
    for c in word.chars() {
        flags |= bit(c).ok_or_else(|| format!("no flag: {c} in {word:?}"))?;
    }
    Ok(Some(flags))
}

/// `1:1001(1000)`, `*(1000)` or `*`.
fn range(word: &str) -> Parsed<(Option<u32>, Option<u32>)> {
    if word == "*" {
        return Ok((None, None));
    }
    let (ends, len) = word
        .strip_suffix(')')
        .and_then(|word| word.split_once('('))
        .ok_or_else(|| format!("no range seq:end(len): {word:?}"))?;
    let len: u32 = int(len)?;
    if ends == "*" {
        return Ok((None, Some(len)));
    }
    let (seq, end) = ends.split_once(':').ok_or("a range is seq:end(len)")?;
    let (seq, end): (u32, u32) = (int(seq)?, int(end)?);
    if end.wrapping_sub(seq) != len {
        return Err(format!("{seq} to {end} is not {len}"));
    }
    Ok((Some(seq), Some(len)))
}

fn options_list(text: &str) -> Parsed<Options> {
    let mut options = Options::default();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item {
            "..." => options.open = true,
            "nop" | "eol" => {}
            _ => options.list.push(option(item)?),
        }
    }
    Ok(options)
}

fn option(item: &str) -> Parsed<Opt> {
    let words: Vec<&str> = item.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["mss", value] => Opt::Mss(int_or_any(value)?),
        ["wscale", value] => Opt::WindowScale(int_or_any(value)?),
        ["sackOK"] => Opt::SackOk,
        ["sack", blocks @ ..] => {
            let block = |word: &&str| {
                let (left, right) = word.split_once(':').ok_or("a SACK block is left:right")?;
                Ok((int(left)?, int(right)?))
            };
            Opt::Sack(blocks.iter().map(block).collect::<Parsed<_>>()?)
        }
        ["TS", "val", val, "ecr", ecr] => {
            Opt::Timestamps { val: int_or_any(val)?, ecr: int_or_any(ecr)? }
        }
        ["FO"] => Opt::FastOpen(Some(Vec::new())),
        ["FO", "*"] => Opt::FastOpen(None),
        ["FO", cookie] => Opt::FastOpen(Some(hex(cookie)?)),
        ["uto", "*"] => Opt::UserTimeout(None),
        ["uto", value] => Opt::UserTimeout(Some(match value.strip_suffix('m') {
            Some(minutes) => int::<u16>(minutes)? | 0x8000,
            None => int(value.trim_end_matches('s'))?,
        })),
        ["opt", kind] => Opt::Other(int(kind)?, Vec::new()),
        ["opt", kind, body] => Opt::Other(int(kind)?, hex(body)?),
        ["raw", octets] => Opt::Raw(hex(octets)?),
        _ => return Err(format!("no option: {item:?}")),
    })
}

fn icmp(text: &str, ip: Ip) -> Parsed<Icmp> {
    let text =
        text.replace("unreachable frag_needed", "too_big").replace("packet_too_big", "too_big");
    let row = IcmpKind::TABLE.iter().find(|row| text.starts_with(row.0));
    let row = row.ok_or_else(|| format!("no ICMP message: {text}"))?;
    let mut rest = text[row.0.len()..].trim();
    let mut mtu = 0;
    if let Some(tail) = rest.strip_prefix("mtu ") {
        let (value, tail) = tail.split_once(' ').unwrap_or((tail, ""));
        (mtu, rest) = (int(value)?, tail.trim());
    }
    let quoted = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let seq = match quoted {
        None if rest.is_empty() => None,
        None => return Err(format!("no quoted segment: {rest}")),
        Some(quoted) => range(quoted)?.0,
    };
    Ok(Icmp { kind: row.1, mtu, seq, source: ip.source })
}

fn verb(text: &str) -> Parsed<Verb> {
    let words: Vec<&str> = text.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["listen"] => Verb::Listen,
        ["listen", "hold"] => Verb::ListenHold,
        ["connect"] => Verb::Connect(0),
        ["connect", octets] => Verb::Connect(int(octets)?),
        ["answer"] => Verb::Answer,
        ["refuse"] => Verb::Refuse,
        ["accept"] => Verb::Accept,
        ["write", octets] => Verb::Write(int(octets)?),
        ["read", octets] => Verb::Read(int(octets)?),
        ["close" | "shutdown"] => Verb::Close,
        ["abort"] => Verb::Abort,
        ["expect", "nothing"] => Verb::ExpectNothing,
        ["expect", "end"] => Verb::ExpectEnd,
        ["expect", "counter", equation] => {
            let (name, value) = equation.split_once('=').ok_or("a counter is NAME=n")?;
            Verb::ExpectCounter(name.to_owned(), int(value)?)
        }
        ["expect", one] if one.starts_with("closed=") => Verb::ExpectClosed(one[7..].to_owned()),
        ["expect", fields @ ..] if !fields.is_empty() => {
            Verb::ExpectInfo(fields.iter().map(|field| comparison(field)).collect::<Parsed<_>>()?)
        }
        _ => return Err(format!("no verb: {text:?}")),
    })
}

fn comparison(text: &str) -> Parsed<(String, String, String)> {
    for operator in ["<=", ">=", "!=", "=", "<", ">"] {
        if let Some((name, value)) = text.split_once(operator) {
            return Ok((name.to_owned(), operator.to_owned(), value.to_owned()));
        }
    }
    Err(format!("no comparison: {text:?}"))
}
