//! What a connection is told when it is made.
#![forbid(unsafe_code)]

use crate::rng::Rng;
use crate::tcp::{Opening, PathMtus, RightEdge, TcpConfig};
use crate::time::{Duration, Instant};
use crate::wire::{FlowTuple, Prefix};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::hash::{Hash, Hasher};
use core::net::IpAddr;
use siphasher::sip::SipHasher13;

/// Parameters of a connection.
#[derive(Clone, Debug)]
pub struct MptcpConfig {
    /// Every subflow's TCP; `window` is overridden, as the window belongs to the connection.
    pub tcp: TcpConfig,
    /// Ask for DSS checksums (flag A of MP_CAPABLE); they are used if either side asks.
    pub checksum: bool,
    /// Retransmissions of a SYN with MP_CAPABLE before it is sent without.
    pub syn_retrans_before_tcp_fallback: u8,
    /// How long an ADD_ADDR waits for its echo.
    pub add_addr_timeout: Duration,
    /// Retransmissions of an ADD_ADDR.
    pub add_addr_retries: u8,
    /// Further subflows are opened, and addresses announced, only when a connection is this old, so that short ones do
    /// not pay for paths that they never use ...
    pub join_delay: Duration,
    /// ... or when this many octets were sent and received, or its first subflow does not get through.
    pub join_after: u32,
    /// How long a connection lives without any subflow, and how long one that is finished waits for the FIN of a silent
    /// subflow.
    pub close_timeout: Duration,
    /// Subflows at a time.
    pub max_subflows: u8,
    /// Octets kept until the peer's DATA_ACK, sent or not, at most; `tcp.send_buffer_default` in any case.
    pub send_buffer: u32,
    /// Most octets the shared receive window ever offers; it begins with `tcp.receive_buffer_default`.
    pub receive_buffer: u32,
    /// Our addresses. Their address ids are their positions plus one; the first subflow's address has id 0.
    pub addresses: Vec<LocalAddress>,
}

impl Default for MptcpConfig {
    fn default() -> MptcpConfig {
        MptcpConfig {
            tcp: TcpConfig::default(),
            checksum: false,
            syn_retrans_before_tcp_fallback: 2,
            add_addr_timeout: Duration::from_secs(15),
            add_addr_retries: 3,
            join_delay: Duration::from_millis(100),
            join_after: 16 << 10,
            close_timeout: Duration::from_secs(60),
            max_subflows: 8,
            send_buffer: 4 << 20,
            receive_buffer: 4 << 20,
            addresses: Vec::new(),
        }
    }
}

/// Parameters as the connections of a shard share them, with those of their subflows' TCP made once for all.
#[derive(Debug)]
pub struct SharedConfig {
    config: MptcpConfig,
    /// Every subflow's: the window is the connection's.
    pub(super) subflow: Rc<TcpConfig>,
    /// Behind the numbers of subflows; drawn when it is first needed.
    secret: OnceCell<SipHasher13>,
    /// What paths carry.
    paths: PathMtus,
}

impl SharedConfig {
    /// Initial numbers of a subflow.
    pub(super) fn opening(&self, flow: FlowTuple, rng: &mut Rng, now: Instant) -> Opening {
        let secret = || SipHasher13::new_with_keys(rng.u64(), rng.u64());
        let mut hasher = *self.secret.get_or_init(secret);
        flow.hash(&mut hasher);
        let path_mss = self.paths.mss(flow.remote.addr, now);
        Opening { path_mss, ..Opening::new(flow.remote.addr, hasher.finish(), now) }
    }

    /// Every subflow's TCP.
    pub fn subflow_tcp(&self) -> &Rc<TcpConfig> {
        &self.subflow
    }

    /// Other parameters, the same secret: a flow that is opened again goes on from its predecessor's numbers.
    pub fn with(&self, config: MptcpConfig) -> SharedConfig {
        SharedConfig { secret: self.secret.clone(), paths: self.paths.clone(), ..config.into() }
    }

    /// The same, with what somebody knows about paths.
    pub fn knowing(self, paths: &PathMtus) -> SharedConfig {
        SharedConfig { paths: paths.clone(), ..self }
    }
}

impl From<MptcpConfig> for SharedConfig {
    fn from(config: MptcpConfig) -> SharedConfig {
        let subflow = TcpConfig {
            window: RightEdge::Shared,
            receive_buffer: config.receive_buffer,
            send_buffer: config.send_buffer,
            ..config.tcp.clone()
        };
        SharedConfig {
            config,
            subflow: Rc::new(subflow),
            secret: OnceCell::new(),
            paths: PathMtus::default(),
        }
    }
}

impl core::ops::Deref for SharedConfig {
    type Target = MptcpConfig;
    fn deref(&self) -> &MptcpConfig {
        &self.config
    }
}

/// An address of ours that subflows may use.
#[derive(Clone, Debug)]
pub struct LocalAddress {
    /// The address.
    pub addr: IpAddr,
    /// Announce it to the peer by ADD_ADDR.
    pub signal: bool,
    /// Open subflows from it.
    pub subflow: bool,
    /// Subflows from it are backups.
    pub backup: bool,
    /// Open a subflow from it to every address that the peer announces.
    pub fullmesh: bool,
    /// Remote prefixes it can talk to; empty means all.
    pub reach: Vec<Prefix>,
}

impl LocalAddress {
    /// Whether a subflow from here to `remote` makes sense.
    pub fn reaches(&self, remote: IpAddr) -> bool {
        self.addr.is_ipv4() == remote.is_ipv4()
            && (self.reach.is_empty() || self.reach.iter().any(|prefix| prefix.contains(remote)))
    }
}
