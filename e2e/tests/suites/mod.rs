mod back_ends;
mod bad_input;
mod bad_neighbours;
mod bad_start;
mod batch_scan;
mod broker_outage;
mod client;
mod command_line;
mod compose;
mod crash;
mod dev;
mod disk_and_clock;
mod ecs;
mod faults;
mod foreign_records;
mod membership;
mod metrics;
mod monitoring;
mod peers;
mod real_data;
mod replication;
mod restart;
mod resync;
mod rpc;
mod rpc_java;
mod shutdown;
mod snapshot;
mod topic_records;
mod trimming;

use e2e::runner::Test;

pub fn all() -> Vec<Test> {
    [
        // The longest first, so that no thread is left alone with one at the end.
        faults::tests(),
        monitoring::tests(),
        compose::tests(),
        ecs::tests(),
        disk_and_clock::tests(),
        real_data::tests(),
        resync::tests(),
        snapshot::tests(),
        crash::tests(),
        client::tests(),
        command_line::tests(),
        trimming::tests(),
        broker_outage::tests(),
        bad_neighbours::tests(),
        peers::tests(),
        membership::tests(),
        bad_start::tests(),
        rpc_java::tests(),
        restart::tests(),
        replication::tests(),
        topic_records::tests(),
        foreign_records::tests(),
        bad_input::tests(),
        rpc::tests(),
        batch_scan::tests(),
        metrics::tests(),
        shutdown::tests(),
        dev::tests(),
        back_ends::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
