mod attacks;
mod avro_files;
mod back_ends;
mod bad_input;
mod bad_members;
mod bad_start;
mod batch_scan;
mod broker_outage;
mod changed_store;
mod client;
mod client_failover;
mod command_line;
mod compose;
mod compose_tls;
mod consistency;
mod consistency_brokers;
mod consistency_checks;
mod consistency_deposed;
mod consistency_search;
mod console;
mod crash;
mod dev;
mod ecs;
mod faults;
mod foreign_records;
mod full_disk;
mod grown_topic;
mod import_export;
mod kafka_logins;
mod kubernetes;
mod lost_topic;
mod machine;
mod membership;
mod metrics;
mod monitoring;
mod monitoring_live;
mod openapi;
mod peers;
mod performance_checks;
mod real_data;
mod replication;
mod request_memory;
mod restart;
mod resync;
mod rolling;
mod rpc;
mod rpc_java;
mod shutdown;
mod snapshot;
mod topic_records;
mod tracing;
mod trimming;
mod truncated_log;
mod unusual_records;
mod watches;
mod watches_checks;
mod watches_clients;
mod zookeeper_servers;

use e2e::runner::Test;

pub fn all() -> Vec<Test> {
    [
        // The longest first, so that no thread is left alone with one at the end.
        faults::tests(),
        consistency_brokers::tests(),
        consistency_deposed::tests(),
        monitoring_live::tests(),
        watches::tests(),
        consistency::tests(),
        watches_clients::tests(),
        openapi::tests(),
        compose_tls::tests(),
        compose::tests(),
        rolling::tests(),
        console::tests(),
        ecs::tests(),
        kafka_logins::tests(),
        kubernetes::tests(),
        zookeeper_servers::tests(),
        attacks::tests(),
        full_disk::tests(),
        machine::tests(),
        real_data::tests(),
        resync::tests(),
        lost_topic::tests(),
        grown_topic::tests(),
        request_memory::tests(),
        snapshot::tests(),
        crash::tests(),
        client_failover::tests(),
        client::tests(),
        import_export::tests(),
        avro_files::tests(),
        command_line::tests(),
        trimming::tests(),
        broker_outage::tests(),
        truncated_log::tests(),
        unusual_records::tests(),
        bad_members::tests(),
        changed_store::tests(),
        tracing::tests(),
        peers::tests(),
        performance_checks::tests(),
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
        monitoring::tests(),
        shutdown::tests(),
        dev::tests(),
        back_ends::tests(),
        consistency_checks::tests(),
        consistency_search::tests(),
        watches_checks::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
