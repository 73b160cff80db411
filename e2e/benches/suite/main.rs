//! `cargo bench -p e2e`: one table of what a node does and costs, each figure beside a peer or a bare baseline in the same run.
//! `docs/performance.md` says how each row is measured.
//!
//! - `cargo bench -p e2e --bench suite -- get`: the parts whose names contain a word.
//! - `SUITE_QUICK=1`: smaller and shorter; compared with the quick figures that the repository keeps.
//! - `--write`: the page, its charts and the kept figures are made anew of this run; a quick one keeps its figures only.
//! - `BITACORA_BENCH_KEYS` (5,000,000), `BITACORA_BENCH_ROUNDS` (3): the size of the long parts, and how often each is repeated.

mod bulk;
mod cliffs;
mod curve;
mod filled;
mod http_get;
mod idle;
mod lmdb;
mod memory;
mod restore;
mod rpc_get;
mod set;
mod size;
mod tls;
mod visible;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use e2e::measure::host::Host;
use e2e::measure::results::Results;
use e2e::measure::{child, kept, page, results, table};
use e2e::runner::{self, Ctx, Needs, Outcome, Test};

use crate::size::size;

/// In the order of the table.
const PARTS: [&str; 12] = [
    "http_get", "rpc_get", "tls", "set", "bulk", "visible", "restore", "memory", "lmdb", "curve", "idle",
    "cliffs",
];
/// A part that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(2400);

fn main() -> ExitCode {
    if let Some(code) = child::main_if_asked() {
        return code;
    }
    let write = std::env::args().any(|argument| argument == "--write");
    let arguments = std::env::args().filter(|argument| argument != "--write");
    let test = |name, needs, run: fn(Ctx) -> Outcome| Test::new("suite", name, needs, run).within(PATIENCE);
    let load_before = Host::load();
    let code = runner::bench_with(
        arguments,
        vec![
            test("http_get", Needs::Nothing, |ctx| Box::pin(http_get::run(ctx))),
            test("rpc_get", Needs::Nothing, |ctx| Box::pin(rpc_get::run(ctx))),
            test("tls", Needs::Nothing, |ctx| Box::pin(tls::run(ctx))),
            test("set", Needs::Servers, |ctx| Box::pin(set::run(ctx))),
            test("bulk", Needs::Servers, |ctx| Box::pin(bulk::run(ctx))),
            test("visible", Needs::Servers, |ctx| Box::pin(visible::run(ctx))),
            test("restore", Needs::Servers, |ctx| Box::pin(restore::run(ctx))),
            test("memory", Needs::Nothing, |ctx| Box::pin(memory::run(ctx))),
            test("lmdb", Needs::Nothing, |ctx| Box::pin(lmdb::run(ctx))),
            test("curve", Needs::Servers, |ctx| Box::pin(curve::run(ctx))),
            test("idle", Needs::Servers, |ctx| Box::pin(idle::run(ctx))),
            test("cliffs", Needs::Servers, |ctx| Box::pin(cliffs::run(ctx))),
        ],
    );
    let mut measured = results::take();
    if measured.rows.is_empty() {
        return code;
    }
    measured.sort(&PARTS);
    match conclude(measured, load_before, write) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("suite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the table and what has become worse, and writes what is to be kept.
fn conclude(mut measured: Results, load_before: f64, write: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    measured.host = Host { load_before, ..runtime.block_on(Host::look(size().describe())) };
    println!("\n{}\n\n{}", measured.host.describe(), table::text(&measured.rows));
    let file = kept::file(size().quick);
    match Results::read(&file) {
        Ok(kept) => println!("\n{}", kept::compare(&measured, &kept).join("\n")),
        Err(_) => println!("\nno figures are kept to compare with: {} is not there", file.display()),
    }
    if write {
        page::write(measured, &PARTS, size().quick)?;
        println!("written: {}", file.display());
    }
    Ok(())
}
