//! The state machine driven by hand: what it says to whom.

mod claims;
mod digests;
mod driver;
mod graph;
mod invariants;
mod layers;
mod lease;
mod rubbish;
mod sessions;
mod sim;
