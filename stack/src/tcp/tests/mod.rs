//! Conversations named by RFC rule, and two endpoints over a simulated path.
#![forbid(unsafe_code)]

mod conversations;
mod hostile;
mod simulation;
