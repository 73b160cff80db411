//! Many runs in which all is up to chance, each replayed from its seed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::counts::Counts;
use crate::promise::Outcome;
use crate::run::Simulation;
use crate::workspace::Workspace;

/// Runs seeds, one at a time.
struct Runner(Workspace);

impl Runner {
    fn new() -> Self {
        Self(Workspace::new())
    }

    fn simulate<T>(&self, seed: u64, traced: bool, end: impl FnOnce(&Simulation, Outcome) -> T) -> T {
        self.0.in_folder(|nodes, spare| {
            let mut simulation = Simulation::new(seed, nodes, spare, traced);
            let outcome = simulation.run();
            end(&simulation, outcome)
        })
    }

    fn run(&self, seed: u64) -> (Counts, Outcome) {
        self.simulate(seed, false, |simulation, outcome| (simulation.cluster.world().counts, outcome))
    }

    /// What happened, and why it is wrong.
    fn trace(&self, seed: u64) -> String {
        self.simulate(seed, true, |simulation, outcome| {
            let trace = simulation.cluster.world().trace.take().unwrap_or_default();
            format!(
                "{trace}seed {seed}: {outcome:?}\nreplay it with: SIMULATION_SEED={seed} cargo test -p bitacora-node --test simulation no_seed -- --nocapture"
            )
        })
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let runner = Runner::new();
        println!("{}", runner.trace(seed));
        assert_eq!(runner.run(seed).1, Ok(()));
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(2_000);
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<Counts> = std::thread::scope(|scope| {
        let run = || {
            let (runner, mut sums) = (Runner::new(), Vec::new());
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return sums;
                }
                let (counts, outcome) = runner.run(seed);
                if let Err(violation) = outcome {
                    panic!("{violation:?}\n{}", runner.trace(seed));
                }
                sums.push(counts);
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Counts>>| match thread.join() {
            Ok(counts) => counts,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(join).collect()
    });
    assert_eq!(all.len() as u64, seeds);
    println!("{seeds} seeds in {:.1} s, 0 violations", started.elapsed().as_secs_f64());
    let mut sums = BTreeMap::new();
    for (name, count) in all.iter().flat_map(Counts::each) {
        *sums.entry(name).or_insert(0) += count;
    }
    for (name, _) in Counts::default().each() {
        println!("{:>10} {name}", sums[name]);
        assert!(sums[name] > 0, "no {name} in all these seeds: the simulation does not do what it should");
    }
}

#[test]
fn a_seed_is_a_run() {
    let runner = Runner::new();
    for seed in 0..5 {
        assert_eq!(runner.trace(seed), runner.trace(seed));
    }
}
