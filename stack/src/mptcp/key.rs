//! Keys, tokens, initial data sequence numbers and HMACs (RFC 8684 3.1, 3.2, 3.4.1).
#![forbid(unsafe_code)]

use crate::wire::Dsn;
use core::net::IpAddr;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// A host's 64-bit key for one connection. Everything else is derived from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub u64);

impl Key {
    /// The connection's name at this host: the first 32 bits of the key's SHA-256.
    pub fn token(self) -> u32 {
        let hash = Sha256::digest(self.0.to_be_bytes());
        u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
    }

    /// The initial data sequence number of this host: the last 64 bits of the key's SHA-256. It numbers the SYN; the
    /// first octet of data is the next one.
    pub fn idsn(self) -> Dsn {
        let hash = Sha256::digest(self.0.to_be_bytes());
        Dsn(last_u64(&hash))
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Key(token {:08x})", self.token()) // the key itself is a secret
    }
}

/// HMAC-SHA256 as MP_JOIN wants it: the sender's own key and nonce first, whoever opened the connection.
pub fn join_hmac(own: Key, peer: Key, own_nonce: u32, peer_nonce: u32) -> [u8; 32] {
    let mut message = [0; 8];
    message[..4].copy_from_slice(&own_nonce.to_be_bytes());
    message[4..].copy_from_slice(&peer_nonce.to_be_bytes());
    hmac_of(own, peer, &[&message])
}

/// Left 64 bits of a join HMAC, as in a SYN/ACK.
pub fn left64(hmac: &[u8; 32]) -> u64 {
    hmac[..8].iter().fold(0, |n, octet| n << 8 | u64::from(*octet))
}

/// Left 160 bits of a join HMAC, as in the third ACK.
pub fn left160(hmac: &[u8; 32]) -> [u8; 20] {
    core::array::from_fn(|i| hmac[i])
}

/// The truncated HMAC of an ADD_ADDR sent by the holder of `sender` (rightmost 64 bits; no port hashes as zero).
pub fn add_addr_hmac(sender: Key, receiver: Key, id: u8, addr: IpAddr, port: Option<u16>) -> u64 {
    let port = port.unwrap_or(0).to_be_bytes();
    let full = match addr {
        IpAddr::V4(a) => hmac_of(sender, receiver, &[&[id], &a.octets(), &port]),
        IpAddr::V6(a) => hmac_of(sender, receiver, &[&[id], &a.octets(), &port]),
    };
    last_u64(&full)
}

/// Equality without a data-dependent early exit.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

fn hmac_of(first: Key, second: Key, message: &[&[u8]]) -> [u8; 32] {
    let mut block = [0; 64]; // HMAC pads a short key with zeros to the block
    block[..8].copy_from_slice(&first.0.to_be_bytes());
    block[8..16].copy_from_slice(&second.0.to_be_bytes());
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    for part in message {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn last_u64(hash: &[u8]) -> u64 {
    hash.iter().rev().take(8).rev().fold(0, |n, octet| n << 8 | u64::from(*octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = Key(0x0123_4567_89ab_cdef);
    const B: Key = Key(0xfedc_ba98_7654_3210);
    const NONCE_A: u32 = 0x1122_3344;
    const NONCE_B: u32 = 0x5566_7788;

    #[test]
    fn token_is_the_first_and_idsn_the_last_of_the_hash() {
        assert_eq!((A.token(), A.idsn()), (0x55c5_3f5d, Dsn(0x5707_62cd_38be_9818)));
        assert_eq!((B.token(), B.idsn()), (0x18f9_781b, Dsn(0x2808_18bf_0fa7_e28e)));
    }

    #[test]
    fn join_hmacs_take_the_left_bits_and_the_own_key_first() {
        let b = join_hmac(B, A, NONCE_B, NONCE_A);
        assert_eq!(left64(&b), 0x0d44_dc5f_5551_21b7);
        let a = left160(&join_hmac(A, B, NONCE_A, NONCE_B));
        assert_eq!(a[..4], [0xd8, 0xb5, 0xe4, 0x6b]);
        assert_eq!(a[16..], [0x99, 0x3e, 0x22, 0x2b]);
    }

    #[test]
    fn add_addr_hmacs_take_the_right_bits_and_hash_a_missing_port_as_zero() {
        let v4 = "192.0.2.7".parse().unwrap();
        assert_eq!(add_addr_hmac(A, B, 3, v4, None), 0xde8a_4e12_c464_07fe);
        assert_eq!(add_addr_hmac(A, B, 3, v4, Some(8080)), 0x0c25_ca64_7b59_7987);
        let v6 = "2001:db8::7".parse().unwrap();
        assert_eq!(add_addr_hmac(A, B, 4, v6, None), 0x3404_db90_15c5_74b2);
        assert_eq!(add_addr_hmac(A, B, 4, v6, Some(8080)), 0x53a1_6cc7_096c_5245);
    }

    #[test]
    fn comparison_sees_every_octet() {
        assert!(same(&[1, 2, 3], &[1, 2, 3]));
        assert!(!same(&[1, 2, 3], &[1, 2, 4]));
        assert!(!same(&[1, 2], &[1, 2, 3]));
    }
}
