//! Replication under everything that may happen to it, in simulated time: the real replica, store, reads and trimmer of each
//! node, over a simulated log that is compacted whenever Kafka might, simulated clocks, and members that take copies of
//! each other's stores.
//!
//! What is promised is in [`promise`], and held against what was written by [`oracle`]: trims and repairs change no answer.
//!
//! - [`seeds`]: what happens is up to a seed, and no seed breaks a promise. `SIMULATION_SEEDS=100000 cargo test -p
//!   bitacora-node --test simulation` runs more seeds, `SIMULATION_SEED=42` one, with all that happened.
//! - [`histories`]: for each [`mistake`] that could be made, a history that ends well, and breaks a promise if it is made.

mod accidents;
mod clients;
mod cluster;
mod counts;
mod histories;
mod member;
mod misreading;
mod mistake;
mod observation;
mod oracle;
mod outcomes;
mod promise;
mod random;
mod run;
mod seeds;
mod simulated_log;
mod truth;
mod workspace;
mod world;
mod writers;
