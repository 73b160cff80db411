//! Questions that many callers share. One is under way at a time; who comes while it is waits for the next, since an answer counts
//! only for those who came before its question was put.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Puts a question, and hands the answer to those who wait for it; when the future is done, the next question may be put.
type Ask<T> = dyn Fn(Reply<T>) -> BoxFuture<'static, ()> + Send + Sync;

/// A question that is put again and again.
pub struct Rounds<T> {
    ask: Box<Ask<T>>,
    state: Mutex<State<T>>,
    this: Weak<Self>,
}

struct State<T> {
    /// Whether a task puts questions, until nobody waits for one.
    asking: bool,
    /// Those who wait for the question after the one under way.
    next: Option<watch::Sender<Option<T>>>,
}

/// Those who wait for an answer.
pub struct Reply<T>(watch::Sender<Option<T>>);

impl<T: Clone + Send + Sync + 'static> Reply<T> {
    /// Tells the answer.
    pub fn tell(self, answer: T) {
        self.0.send_replace(Some(answer));
    }

    /// Completes when nobody waits any more.
    pub async fn nobody_waits(&self) {
        self.0.closed().await;
    }
}

impl<T: Clone + Send + Sync + 'static> Rounds<T> {
    /// `ask` puts a question.
    pub fn new(ask: impl Fn(Reply<T>) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Arc<Self> {
        let state = Mutex::new(State { asking: false, next: None });
        Arc::new_cyclic(|this| Self { ask: Box::new(ask), state, this: Weak::clone(this) })
    }

    /// The answer to a question that is put after this call; `None` if it found none, since whoever put it panicked. It is put
    /// also if this is dropped, unless everybody else who waits for it goes away, too.
    pub fn ask(&self) -> impl Future<Output = Option<T>> + Send + use<T> {
        let mut state = self.state.lock();
        let mut answer = match &state.next {
            Some(next) => next.subscribe(),
            None => {
                let (next, answer) = watch::channel(None);
                state.next = Some(next);
                answer
            }
        };
        if !state.asking
            && let Some(this) = self.this.upgrade()
        {
            state.asking = true;
            tokio::spawn(async move {
                let mut asking = Asking { rounds: this, over: false };
                while let Some(reply) = asking.rounds.next() {
                    (asking.rounds.ask)(reply).await;
                }
                // Another task may put questions by now.
                asking.over = true;
            });
        }
        async move { answer.wait_for(Option::is_some).await.ok()?.clone() }
    }

    /// The next question's askers, if there are any who still wait.
    fn next(&self) -> Option<Reply<T>> {
        let mut state = self.state.lock();
        let next = state.next.take().filter(|next| next.receiver_count() > 0);
        state.asking = next.is_some();
        next.map(Reply)
    }
}

/// The task that puts questions.
struct Asking<T> {
    rounds: Arc<Rounds<T>>,
    /// Whether nobody waited any more.
    over: bool,
}

impl<T> Drop for Asking<T> {
    fn drop(&mut self) {
        if !self.over {
            // After a panic: those who wait are told by the end of the sender, and the next to come begins anew.
            *self.rounds.state.lock() = State { asking: false, next: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// Questions that are answered by hand.
    fn by_hand() -> (Arc<Rounds<u32>>, mpsc::UnboundedReceiver<(Reply<u32>, mpsc::UnboundedSender<()>)>) {
        let (put, questions) = mpsc::unbounded_channel();
        let rounds = Rounds::new(move |reply| {
            let (done, mut is_done) = mpsc::unbounded_channel();
            let _ = put.send((reply, done));
            Box::pin(async move {
                is_done.recv().await;
            })
        });
        (rounds, questions)
    }

    #[tokio::test]
    async fn an_answer_counts_only_for_who_came_before() {
        let (rounds, mut questions) = by_hand();
        let first = rounds.ask();
        let (reply, done) = questions.recv().await.expect("a question");
        let (second, third) = (tokio::spawn(rounds.ask()), tokio::spawn(rounds.ask()));
        reply.tell(1);
        assert_eq!(first.await, Some(1));
        assert!(questions.try_recv().is_err(), "one at a time");
        done.send(()).expect("it waits");
        let (reply, done) = questions.recv().await.expect("the next question");
        reply.tell(2);
        assert_eq!((second.await.expect("told"), third.await.expect("told")), (Some(2), Some(2)));
        done.send(()).expect("it waits");
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_is_not_put() {
        let (rounds, mut questions) = by_hand();
        let _first = rounds.ask();
        let (reply, done) = questions.recv().await.expect("a question");
        drop(rounds.ask());
        reply.tell(1);
        drop(done);
        let later = rounds.ask();
        let (reply, _done) = questions.recv().await.expect("a question");
        reply.tell(3);
        assert_eq!(later.await, Some(3));
        assert!(questions.try_recv().is_err(), "the dropped one was joined or left out");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_comes_when_a_task_ends_is_answered() {
        let rounds = Rounds::new(|reply: Reply<u32>| Box::pin(async move { reply.tell(1) }));
        let askers: Vec<_> = (0..4)
            .map(|_| {
                let rounds = Arc::clone(&rounds);
                tokio::spawn(async move {
                    for _ in 0..20_000 {
                        assert_eq!(rounds.ask().await, Some(1));
                    }
                })
            })
            .collect();
        for asker in askers {
            asker.await.expect("each time");
        }
    }

    #[tokio::test]
    async fn after_a_panic_the_next_begins_anew() {
        let panics = std::sync::atomic::AtomicBool::new(true);
        let rounds = Rounds::new(move |reply: Reply<u32>| {
            let panics = panics.swap(false, std::sync::atomic::Ordering::Relaxed);
            Box::pin(async move {
                assert!(!panics, "as the test wants it");
                reply.tell(7);
            })
        });
        assert_eq!(rounds.ask().await, None);
        assert_eq!(rounds.ask().await, Some(7));
    }
}
