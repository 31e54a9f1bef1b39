//! Stories in a simulated network: two conversion points, hosts, bad links and meddling middleboxes, in virtual time.
//!
//! A story that fails prints its seed and leaves a capture in `target/sim`; `SIM_SEED=<seed>` replays it.

#[path = "scenarios/aggregate.rs"]
mod aggregate;
#[path = "scenarios/buffers.rs"]
mod buffers;
#[path = "scenarios/closing.rs"]
mod closing;
#[path = "scenarios/common.rs"]
mod common;
#[path = "scenarios/faults.rs"]
mod faults;
#[path = "scenarios/flood.rs"]
mod flood;
#[path = "scenarios/joins.rs"]
mod joins;
#[path = "scenarios/many.rs"]
mod many;
#[path = "scenarios/no_converter.rs"]
mod no_converter;
#[path = "scenarios/path_cut.rs"]
mod path_cut;
#[path = "scenarios/peers.rs"]
mod peers;
#[path = "scenarios/pmtu.rs"]
mod pmtu;
#[path = "scenarios/random.rs"]
mod random;
#[path = "scenarios/scarce.rs"]
mod scarce;
#[path = "scenarios/shards.rs"]
mod shards;
#[path = "scenarios/slow_reader.rs"]
mod slow_reader;
#[path = "scenarios/strip.rs"]
mod strip;
#[path = "scenarios/table.rs"]
mod table;
#[path = "scenarios/unreachable.rs"]
mod unreachable;
