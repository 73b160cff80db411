//! The harness of the end-to-end suites: a real Kafka and a real ZooKeeper (in Docker, or as local processes),
//! real `bitacora-node` processes on them, faults, and waits that say what they last saw.

pub mod aws;
pub mod backends;
pub mod balancer;
pub mod bare_kafka;
pub mod browser;
pub mod certificates;
pub mod cluster;
pub mod command_line;
pub mod consistency;
pub mod curl;
pub mod deployment;
pub mod digests;
pub mod figures;
pub mod history;
pub mod http;
pub mod java;
pub mod kubernetes;
pub mod machine;
pub mod measure;
pub mod memory_limit;
mod needs;
pub mod nemesis;
pub mod npm;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod python;
pub mod rpc;
pub mod runner;
pub mod secured_kafka;
pub mod topic;
pub mod versions;
pub mod wait;
pub mod watches;
pub mod zookeeper;
