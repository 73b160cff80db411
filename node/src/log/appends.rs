//! Records that are handed to a log together, and what becomes of each of them.
//!
//! All records of a request share one piece of memory and one waker: what an append costs beside its record is a place in a list. Each
//! has an outcome of its own all the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::{AppendError, Appended};
use crate::metrics::{APPEND_OUTCOMES, Metrics};

/// What became of a record that was handed to a log.
pub type AppendOutcome = Result<Appended, AppendError>;

/// The append of one record, for the log to settle. One that is dropped is settled by that: nobody knows what became of the record.
pub struct Unsettled {
    /// `None` once it is settled.
    shared: Option<Arc<Shared>>,
    index: u32,
}

/// Appends that are waited for together. They take their course, and are counted, also if this is dropped.
pub struct Appends {
    shared: Arc<Shared>,
    handed_over: u32,
}

/// One append, which a log has been told to make. It takes its course also if this is dropped.
pub struct Appending(Appends);

struct Shared {
    state: Mutex<State>,
    /// Where the appends are counted, and since when their time is.
    counted: Option<(Arc<Metrics>, Instant)>,
}

struct State {
    /// One for each append: `None` while it is not settled, and once it was taken.
    outcomes: SmallVec<[Option<AppendOutcome>; 1]>,
    unsettled: u32,
    /// There may be more.
    is_open: bool,
    counts: [(&'static str, u64); APPEND_OUTCOMES.len()],
    waker: Option<Waker>,
}

impl Shared {
    fn settle(&self, index: u32, outcome: AppendOutcome) {
        let label = AppendError::label(&outcome);
        let mut state = self.state.lock();
        if let Some((_, count)) = state.counts.iter_mut().find(|(known, _)| *known == label) {
            *count += 1;
        }
        state.unsettled -= 1;
        state.outcomes[index as usize] = Some(outcome);
        if state.unsettled == 0 && !state.is_open {
            self.end(state);
        }
    }

    /// No more come.
    fn close(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.is_open) && state.unsettled == 0 {
            self.end(state);
        }
    }

    /// All are settled.
    fn end(&self, mut state: MutexGuard<'_, State>) {
        let (counts, waker) = (state.counts, state.waker.take());
        drop(state);
        self.count(&counts);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// All at once, and as late as the last of them: metrics are too dear to be moved for each record by itself.
    fn count(&self, counts: &[(&'static str, u64)]) {
        let Some((metrics, since)) = &self.counted else { return };
        for (label, count) in counts.iter().filter(|(_, count)| *count > 0) {
            metrics.appended(label, *count, since.elapsed());
        }
    }
}

impl Unsettled {
    /// Tells what became of the append.
    pub fn settle(mut self, outcome: AppendOutcome) {
        if let Some(shared) = self.shared.take() {
            shared.settle(self.index, outcome);
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.settle(self.index, Err(AppendError::Unknown("the log's client was closed".to_owned())));
        }
    }
}

impl Appends {
    /// None yet. Each is counted in `metrics` when all of them are settled, with the time from now on.
    #[must_use]
    pub fn new(metrics: Option<Arc<Metrics>>) -> Self {
        let state = State {
            outcomes: SmallVec::new(),
            unsettled: 0,
            is_open: true,
            counts: APPEND_OUTCOMES.map(|label| (label, 0)),
            waker: None,
        };
        let counted = metrics.map(|metrics| (metrics, Instant::now()));
        Self { shared: Arc::new(Shared { state: Mutex::new(state), counted }), handed_over: 0 }
    }

    /// One more; its index is the number of those before.
    pub fn begin(&mut self) -> Unsettled {
        let index = self.handed_over;
        self.handed_over += 1;
        let mut state = self.shared.state.lock();
        state.outcomes.push(None);
        state.unsettled += 1;
        drop(state);
        Unsettled { shared: Some(Arc::clone(&self.shared)), index }
    }

    /// There will be no more. To be told before they are waited for.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Takes what became of one of them; `None` while it is not settled, and once it was taken.
    pub fn take(&self, index: usize) -> Option<AppendOutcome> {
        self.shared.state.lock().outcomes.get_mut(index)?.take()
    }

    /// Waits until all are settled.
    pub fn poll_settled(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.state.lock();
        if state.unsettled == 0 {
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.close();
    }
}

impl Appending {
    /// One append: for the log to settle, and for its caller to wait for.
    #[must_use]
    pub fn new(metrics: Option<Arc<Metrics>>) -> (Unsettled, Self) {
        let mut appends = Appends::new(metrics);
        let append = appends.begin();
        appends.close();
        (append, Self(appends))
    }
}

impl Future for Appending {
    type Output = AppendOutcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<AppendOutcome> {
        self.0.poll_settled(context).map(|()| self.0.take(0).expect("not polled after its end"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::clock::LogTime;
    use bitacora_protocol::Position;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn at(offset: i64) -> Appended {
        Appended { position: Position { partition: 0, offset }, timestamp: LogTime::default() }
    }

    fn offset(outcome: Option<AppendOutcome>) -> Option<i64> {
        outcome.map(|outcome| outcome.expect("acknowledged").position.offset)
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new().expect("names differ"))
    }

    #[test]
    fn each_has_its_own_outcome_and_all_wake_once() {
        let metrics = metrics();
        let mut appends = Appends::new(Some(Arc::clone(&metrics)));
        let [first, second, third, fourth] = std::array::from_fn(|_| appends.begin());
        appends.close();
        let woken = Arc::<Woken>::default();
        let waker = Arc::clone(&woken).into();
        let mut context = Context::from_waker(&waker);
        assert!(appends.poll_settled(&mut context).is_pending());
        third.settle(Ok(at(7)));
        second.settle(Err(AppendError::NotTaken("refused".to_owned())));
        assert_eq!((offset(appends.take(2)), offset(appends.take(2))), (Some(7), None), "taken once");
        assert!(appends.take(0).is_none() && appends.poll_settled(&mut context).is_pending());
        fourth.settle(Err(AppendError::TooLarge("large".to_owned())));
        assert_eq!((woken.0.load(Ordering::SeqCst), metrics.appends("acknowledged")), (0, 0));
        first.settle(Err(AppendError::Unknown("late".to_owned())));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(appends.poll_settled(&mut context).is_ready());
        assert!(matches!(appends.take(0), Some(Err(AppendError::Unknown(_)))));
        assert!(matches!(appends.take(1), Some(Err(AppendError::NotTaken(_)))));
        assert!(matches!(appends.take(3), Some(Err(AppendError::TooLarge(_)))));
        assert!(appends.take(4).is_none());
        assert_eq!(APPEND_OUTCOMES.map(|label| metrics.appends(label)), [1; 4]);
    }

    #[test]
    fn those_of_a_caller_that_has_gone_are_counted_once() {
        let metrics = metrics();
        let mut appends = Appends::new(Some(Arc::clone(&metrics)));
        let (first, second, third) = (appends.begin(), appends.begin(), appends.begin());
        first.settle(Ok(at(1)));
        // In the middle of handing over.
        drop(appends);
        second.settle(Ok(at(2)));
        assert_eq!(metrics.appends("acknowledged"), 0);
        // By a log that has ended.
        drop(third);
        assert_eq!((metrics.appends("acknowledged"), metrics.appends("unknown")), (2, 1));

        let mut settled_before = Appends::new(Some(Arc::clone(&metrics)));
        settled_before.begin().settle(Ok(at(3)));
        assert_eq!(metrics.appends("acknowledged"), 2, "there may be more");
        settled_before.close();
        drop(settled_before);
        assert_eq!(metrics.appends("acknowledged"), 3);
    }

    #[test]
    fn one_append_is_a_future() {
        let (append, mut appending) = Appending::new(None);
        let woken = Arc::<Woken>::default();
        let waker = Arc::clone(&woken).into();
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut appending).poll(&mut context).is_pending());
        append.settle(Ok(at(5)));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        let Poll::Ready(Ok(appended)) = Pin::new(&mut appending).poll(&mut context) else {
            panic!("it is acknowledged")
        };
        assert_eq!(appended.position.offset, 5);
        let (append, appending) = Appending::new(None);
        drop(append);
        let lost = futures_executor::block_on(appending);
        assert!(matches!(lost, Err(AppendError::Unknown(_))), "{lost:?}");
    }
}
