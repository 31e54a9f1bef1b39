//! Everything that touches the operating system: ports, steering, per-core run loops, configuration, control.
//!
//! # Reading order
//! [`port`] (frames in and out), [`steer`] (which frames are ours), [`neighbor`] and [`route`] (where packets go),
//! [`run`] (the loop), [`config`] and [`control`], [`appliance`] (all of it together).

pub mod appliance;
pub mod config;
pub mod control;
pub mod metrics;
pub mod neighbor;
pub mod port;
pub mod route;
pub mod run;
pub mod steer;
