//! Goodput of TCP in virtual time: against the models of the RFCs, and as a table that must not get worse.

#[path = "goodput/experiment.rs"]
mod experiment;
#[path = "goodput/model.rs"]
mod model;
#[path = "goodput/table.rs"]
mod table;
