//! AF_PACKET sockets of several workers on one device: the kernel gives each the flows whose home it is.
//!
//! The sockets form a PACKET_FANOUT group whose classic BPF program computes what `Homes::home` does, and says 0 for
//! whatever is no whole TCP packet. It counts members in the order in which they joined. Workers that open a device again
//! may do so in another order: then packets arrive at another worker, which sends them home.
#![forbid(unsafe_code)]

use super::share::Share;
use super::sys::{read_option, set_option};
use crate::port::Device;
use stack::shard::Homes;
use std::io;
use std::os::fd::OwnedFd;

/// Offsets are from the IP header on (`linux/filter.h`): where the data begins differs between the kernel's hooks.
const NET: u32 = -0x10_0000_i32 as u32;
/// Loads the EtherType in host order: SKF_AD_OFF + SKF_AD_PROTOCOL.
const PROTOCOL: u32 = -0x1000_i32 as u32;

/// Makes a bound socket a member of the group of `share`'s device. The first one makes the group, with a number that no
/// other program has.
pub(super) fn join(socket: &OwnedFd, device: &Device, share: &Share) -> io::Result<()> {
    let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    let mut common = share.common();
    if let Some((index, number)) = common.group
        && index == device.index
    {
        let known = u32::from(number) | kind << 16;
        return set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &known);
    }
    let fresh = (kind | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &fresh)?;
    let group = read_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, 0u32)?;
    attach(socket, share.homes())?;
    common.group = Some((device.index, group as u16));
    Ok(())
}

/// Gives a group its program.
fn attach(socket: &OwnedFd, homes: Homes) -> io::Result<()> {
    let mut program = program(homes);
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, &fprog)
}

/// Keeps a socket from receiving anything until it has another filter.
pub(super) fn mute(socket: &OwnedFd) -> io::Result<()> {
    let mut program = [op(libc::BPF_RET | libc::BPF_K, 0)];
    let fprog = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &fprog)
}

/// Takes the filter away.
pub(super) fn unmute(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)
}

fn op(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// A jump over so many instructions if the accumulator compares so with `k`, else over so many.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_K | code) as u16, jt, jf, k }
}

/// Computes the home of a TCP packet that is no fragment and has no IPv6 extension header; 0 for all else.
fn program(homes: Homes) -> Vec<libc::sock_filter> {
    let load = |width, at| op(libc::BPF_LD | width | libc::BPF_ABS, at);
    let indirect = |width, at| op(libc::BPF_LD | width | libc::BPF_IND, at);
    let alu = |operation, k| op(libc::BPF_ALU | operation | libc::BPF_K, k);
    let (word, half, byte) = (libc::BPF_W, libc::BPF_H, libc::BPF_B);
    let to_x = || op(libc::BPF_MISC | libc::BPF_TAX, 0);
    let xor_x = || op(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0);
    let nobody = || op(libc::BPF_RET | libc::BPF_K, 0);

    let mut v4 = vec![
        load(byte, NET + 9),
        jump(libc::BPF_JEQ, 6, 1, 0),
        nobody(),
        load(half, NET + 6),
        jump(libc::BPF_JSET, 0x3fff, 0, 1), // more fragments, fragment offset
        nobody(),
        load(word, NET + 12),
        to_x(),
        load(word, NET + 16),
        xor_x(),
        op(libc::BPF_ST, 0),
        load(byte, NET),
        alu(libc::BPF_AND, 15),
        alu(libc::BPF_LSH, 2),
        to_x(), // where TCP begins
    ];
    let mut v6 =
        vec![load(byte, NET + 6), jump(libc::BPF_JEQ, 6, 1, 0), nobody(), load(word, NET + 8)];
    for at in (12..40).step_by(4) {
        v6.extend([to_x(), load(word, NET + at), xor_x()]);
    }
    v6.extend([op(libc::BPF_ST, 0), op(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 40)]);
    v4.push(op(libc::BPF_JMP | libc::BPF_JA, v6.len() as u32));

    let mut program = vec![
        load(word, PROTOCOL),
        jump(libc::BPF_JEQ, 0x0800, 2, 0),
        jump(libc::BPF_JEQ, 0x86dd, 1 + v4.len() as u8, 0),
        nobody(),
    ];
    program.extend(v4);
    program.extend(v6);
    program.extend([
        indirect(half, NET),
        op(libc::BPF_ST, 1),
        indirect(half, NET + 2),
        op(libc::BPF_LDX | libc::BPF_W | libc::BPF_MEM, 1),
        xor_x(),
        to_x(),
        alu(libc::BPF_LSH, 16),
        op(libc::BPF_ALU | libc::BPF_OR | libc::BPF_X, 0),
        op(libc::BPF_LDX | libc::BPF_W | libc::BPF_MEM, 0),
        xor_x(),
        alu(libc::BPF_MUL, homes.key | 1),
        alu(libc::BPF_RSH, 16),
        alu(libc::BPF_MOD, homes.shards.max(1)),
        op(libc::BPF_RET | libc::BPF_A, 0),
    ]);
    program
}
