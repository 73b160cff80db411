//! `cargo bench -p e2e --bench watch`: how much watchers of Server-Sent Events are told and how soon, and what they cost a node, on
//! real nodes and one Kafka. `WATCH_RECORDS` is for a quick look.
//!
//! Clients that only read are a process of their own, with one thread. What is printed of several rounds is their median, and in
//! brackets the least and the most of them.

mod applier;
mod clients;
mod delay;
mod events;
mod stalled;

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use e2e::runner::{self, Ctx, Needs, Test};

/// As `TOPIC_PARTITIONS` of the suites' nodes.
const PARTITIONS: i32 = 4;
const VALUE_BYTES: usize = 100;
/// Records that are written without waiting for each.
const UNDER_WAY: usize = 20_000;
/// For one step, on a slow machine and in a debug build.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, mode, rest @ ..] = &arguments[..]
        && mode == clients::MODE
    {
        return clients::main(rest);
    }
    let test = |name, run: fn(Ctx) -> _| Test::new("watch", name, Needs::Servers, run).within(PATIENCE * 8);
    runner::bench(vec![
        test("delay", |ctx| Box::pin(delay::run(ctx)) as runner::Outcome),
        test("events", |ctx| Box::pin(events::run(ctx)) as runner::Outcome),
        test("applier", |ctx| Box::pin(applier::run(ctx)) as runner::Outcome),
        test("stalled", |ctx| Box::pin(stalled::run(ctx)) as runner::Outcome),
    ])
}

/// What all sizes come from.
fn records() -> usize {
    static RECORDS: OnceLock<usize> = OnceLock::new();
    *RECORDS.get_or_init(|| match std::env::var("WATCH_RECORDS") {
        Ok(text) => text.parse().expect("WATCH_RECORDS is a number"),
        Err(_) => 200_000,
    })
}

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}
