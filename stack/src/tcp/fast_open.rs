//! TCP Fast Open (RFC 7413): cookies that a server gives, and what a client remembers of servers.
#![forbid(unsafe_code)]

use crate::time::{Duration, Instant};
use crate::wire::{FastOpen, FastOpenCookie, FlowTuple};
use alloc::collections::BTreeMap;
use core::hash::{Hash, Hasher};
use core::net::IpAddr;
use siphasher::sip::SipHasher13;

/// Which ends of Fast Open are played. Neither by default (RFC 7413 4.2(a)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FastOpenRoles {
    /// Text goes with our SYN to servers whose cookie we have.
    pub client: bool,
    /// We give cookies, and take text of SYNs that have one.
    pub server: bool,
}

/// A key is used for this long, and its cookies are good for as long again (RFC 7413 4.1.2: rotation).
const KEY_LIFETIME: Duration = Duration::from_secs(2 * 3600);

/// What a server makes its cookies with: a secret that all shards share, as a client's next flow may be another's.
#[derive(Clone, Copy, Debug)]
pub struct FastOpenSecret(pub [u64; 2]);

/// What a server thinks of a cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CookieVerdict {
    /// Ours.
    Current,
    /// Ours, of the key before: good, and the client gets a new one.
    Aging,
    /// Not ours, or too old.
    Wrong,
}

impl FastOpenSecret {
    /// The cookie of a client (RFC 7413 4.1.2): a MAC of both addresses.
    pub fn cookie(&self, flow: &FlowTuple, now: Instant) -> FastOpenCookie {
        self.cookie_of(flow, epoch(now))
    }

    /// Looks at one that came back.
    pub fn check(&self, flow: &FlowTuple, cookie: FastOpenCookie, now: Instant) -> CookieVerdict {
        let epoch = epoch(now);
        let same = |of: u64| equal(self.cookie_of(flow, of).octets(), cookie.octets());
        match epoch.checked_sub(1) {
            _ if same(epoch) => CookieVerdict::Current,
            Some(before) if same(before) => CookieVerdict::Aging,
            _ => CookieVerdict::Wrong,
        }
    }

    fn cookie_of(&self, flow: &FlowTuple, epoch: u64) -> FastOpenCookie {
        let master = SipHasher13::new_with_keys(self.0[0], self.0[1]);
        let part = |n: u8| {
            let mut hasher = master;
            hasher.write_u64(epoch);
            hasher.write_u8(n);
            hasher.finish()
        };
        let mut mac = SipHasher13::new_with_keys(part(0), part(1));
        (flow.remote.addr, flow.local.addr).hash(&mut mac);
        let octets = mac.finish().to_be_bytes();
        FastOpenCookie::new(&octets).unwrap_or_else(|| unreachable!("8 octets are a cookie"))
    }
}

fn epoch(now: Instant) -> u64 {
    now.as_millis() / KEY_LIFETIME.as_millis() as u64
}

/// Equality without a data-dependent early exit.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// What the SYN/ACK to a SYN with the option says, and how much of its text is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FastOpenGrant {
    /// For the SYN/ACK, when it is sent first.
    pub option: Option<FastOpen>,
    /// Octets of the SYN's text.
    pub text: u32,
}

/// What a SYN to a server may try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FastOpenTry {
    /// Nothing: a SYN as ever.
    Not,
    /// To ask for a cookie.
    Request,
    /// To send text, of at most this many octets.
    Text(FastOpenCookie, u16),
}

/// How the SYN fared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FastOpenFate {
    /// It was to ask for a cookie.
    Asked,
    /// Its text was acknowledged, all or some.
    TextTaken,
    /// It was answered, its text was not taken.
    TextRefused,
    /// Only one without text and cookie was answered, and that answer said nothing of it.
    Lost,
}

/// What a handshake taught about its server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FastOpenLesson {
    /// How the SYN fared.
    pub fate: FastOpenFate,
    /// A cookie that came with the SYN/ACK.
    pub cookie: Option<FastOpenCookie>,
    /// The server's MSS.
    pub mss: u16,
}

/// Servers remembered.
const MAX_SERVERS: usize = 1024;
/// After a SYN with text was lost its server is spared for so long, twice as long after each further one in a row.
const SPARED: Duration = Duration::from_secs(60);
/// After so many losses in a row, of whatever servers, something on our side of the path swallows such SYNs: none is
/// sent for this long, and twice as long every time until one succeeds (the kernel's `tcp_fastopen_blackhole_timeout_sec`).
const BLACK_HOLE_LOSSES: u8 = 3;
const BLACK_HOLE_PAUSE: Duration = Duration::from_secs(3600);
/// Doublings.
const MAX_DOUBLINGS: u8 = 6;

struct Server {
    cookie: Option<FastOpenCookie>,
    mss: u16,
    losses: u8,
    spared_until: Instant,
    /// Its place in the order of use.
    used: u64,
}

/// What a client knows about servers. Bounded: who was not heard of for longest is forgotten first.
#[derive(Default)]
pub struct FastOpenCache {
    servers: BTreeMap<IpAddr, Server>,
    order: BTreeMap<u64, IpAddr>,
    next: u64,
    /// Losses in a row, and pauses in a row.
    losses: u8,
    pauses: u8,
    paused_until: Option<Instant>,
}

impl FastOpenCache {
    /// What a SYN to `server` may try (RFC 7413 4.1.3).
    pub fn ask(&self, server: IpAddr, now: Instant) -> FastOpenTry {
        if self.paused_until.is_some_and(|until| now < until) {
            return FastOpenTry::Not;
        }
        match self.servers.get(&server) {
            Some(known) if now < known.spared_until => FastOpenTry::Not,
            Some(Server { cookie: Some(cookie), mss, .. }) => FastOpenTry::Text(*cookie, *mss),
            _ => FastOpenTry::Request,
        }
    }

    /// Takes in what a handshake with `server` taught. True if it is the one after which none is tried for a while.
    pub fn learn(&mut self, server: IpAddr, lesson: FastOpenLesson, now: Instant) -> bool {
        let FastOpenLesson { fate, cookie, mss } = lesson;
        let lost = fate == FastOpenFate::Lost;
        let known = self.server(server, now);
        known.mss = mss;
        known.cookie = match (cookie, fate) {
            (Some(cookie), _) => Some(cookie),
            // RFC 7413 4.1.3.1: it has no use for its cookie any more.
            (None, FastOpenFate::TextRefused) => None,
            _ => known.cookie,
        };
        match fate {
            FastOpenFate::Lost => {
                known.spared_until = now + SPARED * (1 << known.losses.min(MAX_DOUBLINGS));
                known.losses = known.losses.saturating_add(1);
            }
            // It does not do Fast Open: ask again later.
            _ if known.cookie.is_none() => known.spared_until = now + SPARED * 60,
            _ => known.losses = 0,
        }
        if fate == FastOpenFate::TextTaken {
            (self.losses, self.pauses) = (0, 0);
        }
        self.losses = self.losses.saturating_add(u8::from(lost));
        if !lost || self.losses < BLACK_HOLE_LOSSES {
            return false;
        }
        self.losses = 0;
        self.paused_until = Some(now + BLACK_HOLE_PAUSE * (1 << self.pauses.min(MAX_DOUBLINGS)));
        self.pauses = self.pauses.saturating_add(1);
        true
    }

    /// The place of a server, the latest used.
    fn server(&mut self, addr: IpAddr, now: Instant) -> &mut Server {
        self.next += 1;
        let used = self.next;
        if let Some(known) = self.servers.get(&addr) {
            self.order.remove(&known.used);
        } else if self.servers.len() >= MAX_SERVERS
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.servers.remove(&oldest);
        }
        self.order.insert(used, addr);
        let new = Server { cookie: None, mss: 0, losses: 0, spared_until: now, used };
        let known = self.servers.entry(addr).or_insert(new);
        known.used = used;
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Endpoint;

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1000)
    }

    fn addr(n: u32) -> IpAddr {
        core::net::Ipv4Addr::from_bits(n).into()
    }

    fn flow(client: u32, port: u16) -> FlowTuple {
        FlowTuple { local: Endpoint::new(addr(1), 80), remote: Endpoint::new(addr(client), port) }
    }

    fn cookie(n: u8) -> FastOpenCookie {
        FastOpenCookie::new(&[n; 8]).unwrap()
    }

    fn lesson(fate: FastOpenFate, cookie: Option<FastOpenCookie>) -> FastOpenLesson {
        FastOpenLesson { fate, cookie, mss: 1400 }
    }

    /// RFC 7413 4.1.2.
    #[test]
    fn a_cookie_is_its_clients_and_ages() {
        let secret = FastOpenSecret([1, 2]);
        let given = secret.cookie(&flow(7, 4000), at(7200 * 10));
        let check = |flow, s| secret.check(&flow, given, at(s));
        assert_eq!(check(flow(7, 4001), 7200 * 10), CookieVerdict::Current, "whatever its port");
        assert_eq!(check(flow(8, 4000), 7200 * 10), CookieVerdict::Wrong);
        assert_eq!(check(flow(7, 4000), 7200 * 11), CookieVerdict::Aging);
        assert_eq!(check(flow(7, 4000), 7200 * 12), CookieVerdict::Wrong);
        let other = FastOpenSecret([1, 3]).check(&flow(7, 4000), given, at(7200 * 10));
        assert_eq!(other, CookieVerdict::Wrong);
    }

    /// RFC 7413 4.1.3.
    #[test]
    fn a_cookie_is_asked_for_then_used() {
        let mut cache = FastOpenCache::default();
        assert_eq!(cache.ask(addr(1), at(0)), FastOpenTry::Request);
        cache.learn(addr(1), lesson(FastOpenFate::Asked, Some(cookie(1))), at(0));
        assert_eq!(cache.ask(addr(1), at(0)), FastOpenTry::Text(cookie(1), 1400));
        cache.learn(addr(1), lesson(FastOpenFate::TextRefused, Some(cookie(2))), at(0));
        assert_eq!(cache.ask(addr(1), at(0)), FastOpenTry::Text(cookie(2), 1400), "a new one");
        cache.learn(addr(1), lesson(FastOpenFate::TextRefused, None), at(0));
        assert_eq!(cache.ask(addr(1), at(0)), FastOpenTry::Not, "it does not do that any more");
        assert_eq!(cache.ask(addr(1), at(3600)), FastOpenTry::Request);
        cache.learn(addr(2), lesson(FastOpenFate::Asked, None), at(0));
        assert_eq!(cache.ask(addr(2), at(3599)), FastOpenTry::Not, "it never did");
    }

    /// RFC 7413 4.1.3.1: a path that drops such SYNs costs a timeout each.
    #[test]
    fn a_server_whose_syns_get_lost_is_spared_ever_longer() {
        let mut cache = FastOpenCache::default();
        cache.learn(addr(1), lesson(FastOpenFate::Asked, Some(cookie(1))), at(0));
        cache.learn(addr(1), lesson(FastOpenFate::Lost, None), at(0));
        assert_eq!(cache.ask(addr(1), at(59)), FastOpenTry::Not);
        assert_eq!(cache.ask(addr(1), at(60)), FastOpenTry::Text(cookie(1), 1400));
        cache.learn(addr(1), lesson(FastOpenFate::Lost, None), at(60));
        assert_eq!(cache.ask(addr(1), at(179)), FastOpenTry::Not);
        assert_eq!(cache.ask(addr(1), at(180)), FastOpenTry::Text(cookie(1), 1400));
        assert_eq!(cache.ask(addr(2), at(0)), FastOpenTry::Request, "others are not");
    }

    #[test]
    fn three_losses_in_a_row_are_a_black_hole() {
        let mut cache = FastOpenCache::default();
        let lost = lesson(FastOpenFate::Lost, None);
        let taken = lesson(FastOpenFate::TextTaken, None);
        assert!(!cache.learn(addr(1), lost, at(0)) && !cache.learn(addr(2), lost, at(0)));
        cache.learn(addr(3), taken, at(0));
        assert!(!cache.learn(addr(4), lost, at(0)) && !cache.learn(addr(5), lost, at(0)));
        assert!(cache.learn(addr(6), lost, at(0)));
        assert_eq!(cache.ask(addr(9), at(3599)), FastOpenTry::Not);
        assert_eq!(cache.ask(addr(9), at(3600)), FastOpenTry::Request);
        let pauses = (7..10).map(|n| cache.learn(addr(n), lost, at(4000))).filter(|p| *p).count();
        assert_eq!(pauses, 1);
        assert_eq!(cache.ask(addr(99), at(4000 + 7199)), FastOpenTry::Not, "twice as long");
        assert_eq!(cache.ask(addr(99), at(4000 + 7200)), FastOpenTry::Request);
    }

    #[test]
    fn who_was_not_heard_of_for_longest_is_forgotten() {
        let mut cache = FastOpenCache::default();
        let known = lesson(FastOpenFate::Asked, Some(cookie(1)));
        for n in 0..MAX_SERVERS as u32 {
            cache.learn(addr(n), known, at(0));
        }
        cache.learn(addr(0), known, at(1));
        cache.learn(addr(9999), known, at(1));
        assert_eq!(cache.ask(addr(1), at(1)), FastOpenTry::Request);
        assert!(matches!(cache.ask(addr(0), at(1)), FastOpenTry::Text(..)));
        assert_eq!((cache.servers.len(), cache.order.len()), (MAX_SERVERS, MAX_SERVERS));
    }
}
