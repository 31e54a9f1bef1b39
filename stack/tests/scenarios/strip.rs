//! Middleboxes that take MPTCP away, or only make it harder.

use crate::common::*;
use stack::testkit::reference::{Topology, Transfer};
use stack::testkit::{Coalesce, Nat, Pass, RewriteSequence, Split, Strip, StripFrom};

fn through(path: usize, pass: impl Pass) {
    let topology = Topology::new(22, &two_links()).middlebox(path, pass);
    exact(&mut topology.build(), &Transfer::new(400_000, 400_000));
}

#[test]
fn options_stripped_from_the_first_path() {
    through(0, Strip::new(StripFrom::All));
    through(0, Strip::new(StripFrom::Syn));
    through(0, Strip::new(StripFrom::SynAck));
}

#[test]
fn options_stripped_after_the_handshake() {
    through(0, Strip::new(StripFrom::Rest));
}

#[test]
fn options_stripped_from_the_second_path() {
    for from in [StripFrom::All, StripFrom::Syn, StripFrom::SynAck, StripFrom::Rest] {
        through(1, Strip::new(from));
    }
}

#[test]
fn segments_split() {
    through(0, Split { size: 500 });
    through(1, Split { size: 700 });
}

#[test]
fn segments_coalesced() {
    through(0, Coalesce::default());
}

#[test]
fn addresses_translated() {
    through(1, Nat::new("10.0.2.77".parse().unwrap()));
}

#[test]
fn sequence_numbers_rewritten() {
    through(0, RewriteSequence { by: 0x7fff_0000 });
    through(1, RewriteSequence { by: 0xffff_0000 });
}
