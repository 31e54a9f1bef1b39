//! The TCP Fast Open option (RFC 7413): kind 34, or as before that was assigned, 254 with 0xF989.
#![forbid(unsafe_code)]

use super::tcp_option::OptionOctets;

pub(super) const KIND_FAST_OPEN: u8 = 34;
pub(super) const KIND_EXPERIMENT: u8 = 254;
const EXPERIMENT: [u8; 2] = [0xf9, 0x89];
const KIND_NOP: u8 = 1;

/// A cookie: 4 to 16 octets, an even number of them (RFC 7413 4.1.1(b)).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FastOpenCookie {
    octets: [u8; FastOpenCookie::MAX],
    len: u8,
}

impl FastOpenCookie {
    /// Most octets of a cookie.
    pub const MAX: usize = 16;
    const MIN: usize = 4;

    /// From its octets; `None` if a cookie cannot be that long.
    pub fn new(cookie: &[u8]) -> Option<FastOpenCookie> {
        let len = cookie.len();
        let mut octets = [0; FastOpenCookie::MAX];
        octets.get_mut(..len)?.copy_from_slice(cookie);
        (len >= FastOpenCookie::MIN && len.is_multiple_of(2))
            .then_some(FastOpenCookie { octets, len: len as u8 })
    }

    /// Its octets.
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl core::fmt::Debug for FastOpenCookie {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x?}", self.octets())
    }
}

/// By which number the option goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FastOpenKind {
    /// 34.
    #[default]
    Assigned,
    /// 254, 0xF989 (RFC 7413 7).
    Experimental,
}

/// The option, in a SYN or SYN/ACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FastOpen {
    /// `None`: a cookie is asked for (RFC 7413 4.1.1(a)).
    pub cookie: Option<FastOpenCookie>,
    /// Its number; who answers uses the same.
    pub kind: FastOpenKind,
}

impl FastOpen {
    /// Octets in a segment, padding counted.
    pub fn written_len(&self) -> usize {
        self.len().next_multiple_of(4)
    }

    fn len(&self) -> usize {
        let head = match self.kind {
            FastOpenKind::Assigned => 2,
            FastOpenKind::Experimental => 4,
        };
        head + self.cookie.map_or(0, |cookie| cookie.octets().len())
    }

    /// From kind and body of an option. RFC 7413 4.1.1(b): one with another length is ignored.
    pub(super) fn parse(kind: u8, body: &[u8]) -> Option<FastOpen> {
        let (kind, cookie) = match (kind, body) {
            (KIND_FAST_OPEN, cookie) => (FastOpenKind::Assigned, cookie),
            (KIND_EXPERIMENT, [a, b, cookie @ ..]) if [*a, *b] == EXPERIMENT => {
                (FastOpenKind::Experimental, cookie)
            }
            _ => return None,
        };
        match cookie {
            [] => Some(FastOpen { cookie: None, kind }),
            cookie => Some(FastOpen { cookie: Some(FastOpenCookie::new(cookie)?), kind }),
        }
    }

    pub(super) fn write(&self, out: &mut OptionOctets) {
        if self.written_len() > out.remaining_capacity() {
            return;
        }
        let len = self.len() as u8;
        match self.kind {
            FastOpenKind::Assigned => out.extend([KIND_FAST_OPEN, len]),
            FastOpenKind::Experimental => {
                out.extend([KIND_EXPERIMENT, len, EXPERIMENT[0], EXPERIMENT[1]]);
            }
        }
        out.extend(self.cookie.iter().flat_map(|cookie| cookie.octets().iter().copied()));
        while out.len() % 4 != 0 {
            out.push(KIND_NOP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(option: FastOpen) -> alloc::vec::Vec<u8> {
        let mut out = OptionOctets::new();
        option.write(&mut out);
        assert_eq!(out.len(), option.written_len());
        out.to_vec()
    }

    /// RFC 7413 4.1.1(a).
    #[test]
    fn a_request_has_no_cookie() {
        let request = FastOpen::default();
        assert_eq!(written(request), [34, 2, 1, 1]);
        assert_eq!(FastOpen::parse(34, &[]), Some(request));
        let old = FastOpen { kind: FastOpenKind::Experimental, ..request };
        assert_eq!(written(old), [254, 4, 0xf9, 0x89]);
        assert_eq!(FastOpen::parse(254, &[0xf9, 0x89]), Some(old));
    }

    /// RFC 7413 4.1.1(b): 4 to 16 octets, and an even number.
    #[test]
    fn a_cookie_has_a_length_that_it_may_have() {
        for len in 1..=17 {
            let octets = alloc::vec![7; len];
            let good = (4..=16).contains(&len) && len % 2 == 0;
            assert_eq!(FastOpen::parse(34, &octets).is_some(), good, "{len}");
            let Some(cookie) = FastOpenCookie::new(&octets) else { continue };
            let option = FastOpen { cookie: Some(cookie), ..Default::default() };
            let wire = written(option);
            assert_eq!((wire[1] as usize, wire.len() % 4), (2 + len, 0));
            assert_eq!(FastOpen::parse(34, &wire[2..2 + len]), Some(option));
        }
    }

    #[test]
    fn another_experiment_is_not_ours() {
        assert_eq!(FastOpen::parse(254, &[0xf9, 0x88, 1, 2, 3, 4]), None);
        assert_eq!(FastOpen::parse(254, &[]), None);
    }
}
