use super::*;
use crate::replication::progress::MAX_SILENCE;

const QUESTION: Duration = Duration::from_secs(5);

/// A node that serves, and whose reader has failed, so that it opens the log anew: `while_opening` passes the time, and the
/// answer is what readiness was meanwhile, before each answer of the log.
fn readiness_while_opening(questions: u32, answered_after_each: bool) -> Vec<Option<String>> {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "k", "v");
    bench.until_ready();
    let seen = Arc::new(Mutex::new(Vec::new()));
    *bench.log.while_opening.lock() = Some(Box::new({
        let (clock, progress, seen) = (bench.clock.clone(), bench.progress.clone(), seen.clone());
        move |answered| {
            for _ in 0..questions {
                clock.pass(QUESTION);
                seen.lock().push(progress.unready());
                if answered_after_each {
                    answered();
                }
            }
        }
    }));
    bench.feed(Step::Fails(ReadError::Unavailable("cut".to_owned())));
    bench.until("opened", |_| !seen.lock().is_empty());
    seen.lock().clone()
}

#[test]
fn a_log_that_opens_slowly_leaves_a_warm_node_ready() {
    let questions = 10;
    assert!(QUESTION * questions > MAX_SILENCE);
    assert_eq!(readiness_while_opening(questions, true), vec![None; questions as usize]);
}

#[test]
fn a_log_that_never_opens_makes_a_warm_node_unready() {
    let seen = readiness_while_opening(7, false);
    assert_eq!(seen[..5], [const { None }; 5], "it may be silent for a while");
    assert!(seen[6].as_ref().is_some_and(|why| why.contains("no sign of life for 35 s")), "{seen:?}");
}

#[test]
fn a_log_of_which_one_leader_is_away_answers() {
    let dir = folder();
    let mut bench = Bench::start(dir.path(), 0..1);
    bench.set(0, "k", "v");
    bench.until_ready();
    bench.log.silent.store(true, Ordering::Relaxed);
    bench.log.partition_answers.store(true, Ordering::Relaxed);
    for _ in 0..10 {
        bench.watermarks.step();
        bench.clock.pass(Duration::from_secs(1));
    }
    assert!(bench.progress.log_answers() && !bench.progress.caught_up(), "not all is known");
    bench.log.partition_answers.store(false, Ordering::Relaxed);
    for _ in 0..3 {
        bench.watermarks.step();
        bench.clock.pass(Duration::from_secs(1));
    }
    assert!(!bench.progress.log_answers(), "nobody does");
}
