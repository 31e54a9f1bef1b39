//! Conversations named by RFC rule, and two endpoints over a simulated path.
#![forbid(unsafe_code)]

mod bbr;
mod bottleneck;
mod conversations;
mod hostile;
mod knobs;
mod pacing;
mod properties;
mod recovery;
mod rules;
mod simulation;
mod syn_cookie;
