//! TCP Fast Open at a server (RFC 7413): who gets a cookie, and whose text is taken at once.
#![forbid(unsafe_code)]

use super::session::Cx;
use super::slab::SessionId;
use crate::rng::Rng;
use crate::tcp::{CookieVerdict, FastOpenGrant, FastOpenSecret, TcpConfig};
use crate::wire::{FastOpen, FlowTuple, Options, Segment};
use alloc::collections::BTreeSet;

/// What the sessions of a shard share for it.
#[derive(Default)]
pub(super) struct FastOpenServer {
    /// Drawn when it is first needed, unless all shards share one.
    secret: Option<FastOpenSecret>,
    /// Sessions that have taken the text of a SYN and whose client has not proven anything but its cookie
    /// (RFC 7413 4.2(b): PendingFastOpenRequests). Half-open all, so as many at most.
    pending: BTreeSet<SessionId>,
}

impl FastOpenServer {
    pub fn new(secret: Option<FastOpenSecret>) -> FastOpenServer {
        FastOpenServer { secret, pending: BTreeSet::new() }
    }

    /// It is not pending any more, if it was.
    pub fn settled(&mut self, id: SessionId) {
        if !self.pending.is_empty() {
            self.pending.remove(&id);
        }
    }

    fn secret(&mut self, rng: &mut Rng) -> FastOpenSecret {
        *self.secret.get_or_insert_with(|| FastOpenSecret([rng.u64(), rng.u64()]))
    }
}

impl Cx<'_> {
    /// How a SYN of no known flow is answered where Fast Open is on. If its text is taken, this session is pending until it
    /// is not half-open any more.
    pub fn fast_open(&mut self, cfg: &TcpConfig, flow: FlowTuple, syn: &Segment) -> FastOpenGrant {
        let none = FastOpenGrant::default();
        let Options::Syn(options) = &syn.options else { return none };
        let Some(asked) = options.fast_open.filter(|_| cfg.fast_open.server) else { return none };
        let secret = self.registry.fast_open.secret(self.rng);
        let ours = FastOpen { cookie: Some(secret.cookie(&flow, self.now)), ..asked };
        let fresh = FastOpenGrant { option: Some(ours), text: 0 };
        let Some(cookie) = asked.cookie else {
            self.counters.TCPFastOpenCookieReqd += 1;
            return fresh;
        };
        let option = match secret.check(&flow, cookie, self.now) {
            CookieVerdict::Current => None,
            CookieVerdict::Aging => Some(ours),
            CookieVerdict::Wrong => {
                self.counters.TCPFastOpenPassiveFail += 1;
                return fresh; // RFC 7413 4.2.2(b): an ordinary handshake, and a cookie for the next time
            }
        };
        if syn.text.is_empty() {
            return FastOpenGrant { option, text: 0 };
        }
        if self.registry.fast_open.pending.len() >= cfg.fast_open_pending as usize {
            self.counters.TCPFastOpenListenOverflow += 1;
            return FastOpenGrant { option, text: 0 };
        }
        self.counters.TCPFastOpenPassive += 1;
        self.registry.fast_open.pending.insert(self.session);
        FastOpenGrant { option, text: syn.text.len() }
    }
}
