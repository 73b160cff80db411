//! Whether operations that overlapped can have happened one after the other: the search of Wing and Gong with Lowe's memory
//! of where it has been.
//!
//! Of the crates for it, none takes writes whose outcome nobody knows, says which operation does not fit, or ends in time on
//! a history of thousands that does not: hence one of our own.

use std::collections::HashSet;
use std::hash::Hash;

use super::Moment;

/// A call that happened at some moment between two others.
#[derive(Debug, Clone)]
pub struct Timed<C> {
    pub began: Moment,
    pub ended: Moment,
    pub call: C,
}

/// What an object does when one call comes after the other.
pub trait Sequential {
    type Call;
    type State: Clone + Eq + Hash;

    fn start(&self) -> Self::State;

    /// The state after a call; `None` if the call can't have been answered so in this state.
    fn apply(&self, state: &Self::State, call: &Self::Call) -> Option<Self::State>;

    /// The calls that have a turn happen in the order of their turns.
    fn turn(&self, call: &Self::Call) -> Option<i64>;

    /// The states into which a write of unclear outcome that began until `moment` may have brought the object.
    fn unclear(&self, state: &Self::State, moment: Moment) -> Vec<Self::State>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<S> {
    Linearizable,
    /// The search's deepest point: how many calls fit, the state after them, and which calls could have come next.
    Impossible {
        fitted: usize,
        state: S,
        next: Vec<usize>,
    },
    /// The search gave up, after so many steps.
    Undecided(usize),
}

/// Which calls have happened: all before `base`, and those behind it whose bits are set.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Happened {
    base: usize,
    beyond: Vec<u64>,
    /// How many of those that have a turn.
    turns: usize,
    count: usize,
}

impl Happened {
    fn has(&self, index: usize) -> bool {
        let beyond = index - self.base;
        self.beyond.get(beyond / 64).is_some_and(|word| word >> (beyond % 64) & 1 == 1)
    }

    fn with(&self, index: usize, has_turn: bool) -> Happened {
        let mut new = self.clone();
        let beyond = index - new.base;
        if beyond / 64 >= new.beyond.len() {
            new.beyond.resize(beyond / 64 + 1, 0);
        }
        new.beyond[beyond / 64] |= 1 << (beyond % 64);
        new.turns += usize::from(has_turn);
        new.count += 1;
        // In whole words, so that what has happened has one form only.
        let whole = new.beyond.iter().take_while(|word| **word == u64::MAX).count();
        new.beyond.drain(..whole);
        new.base += whole * 64;
        new
    }
}

struct Search<'a, M: Sequential> {
    model: &'a M,
    calls: &'a [Timed<M::Call>],
    /// Indexes of the calls that have a turn, in its order.
    turns: Vec<usize>,
}

struct Point<S> {
    happened: Happened,
    state: S,
}

/// Searches for an order; `calls` in the order in which they began. Gives up after `limit` steps.
pub fn search<M: Sequential>(model: &M, calls: &[Timed<M::Call>], limit: usize) -> Verdict<M::State> {
    debug_assert!(calls.is_sorted_by_key(|call| call.began), "in the order in which they began");
    let mut turns: Vec<(i64, usize)> =
        calls.iter().enumerate().filter_map(|(i, call)| Some((model.turn(&call.call)?, i))).collect();
    turns.sort_unstable();
    let search = Search { model, calls, turns: turns.into_iter().map(|(_, i)| i).collect() };
    search.run(limit)
}

impl<M: Sequential> Search<'_, M> {
    fn run(&self, limit: usize) -> Verdict<M::State> {
        let start = Happened { base: 0, beyond: Vec::new(), turns: 0, count: 0 };
        let mut stack = vec![Point { happened: start, state: self.model.start() }];
        let mut seen = HashSet::new();
        let mut deepest: Option<(usize, M::State, Vec<usize>)> = None;
        let mut steps = 0;
        while let Some(point) = stack.pop() {
            if point.happened.count == self.calls.len() {
                return Verdict::Linearizable;
            }
            if !seen.insert((point.happened.clone(), point.state.clone())) {
                continue;
            }
            steps += 1;
            if steps > limit {
                return Verdict::Undecided(limit);
            }
            let (next, moment) = self.possible_next(&point.happened);
            if deepest.as_ref().is_none_or(|(count, ..)| point.happened.count > *count) {
                deepest = Some((point.happened.count, point.state.clone(), next.clone()));
            }
            self.push_followers(&point, &next, moment, &mut stack);
        }
        let (fitted, state, next) = deepest.expect("the start is looked at");
        Verdict::Impossible { fitted, state, next }
    }

    /// The calls that can be next, as no other that is left has ended before they began; and the first end of those.
    fn possible_next(&self, happened: &Happened) -> (Vec<usize>, Moment) {
        let (mut next, mut first_end) = (Vec::new(), Moment::MAX);
        for (index, call) in self.calls.iter().enumerate().skip(happened.base) {
            if call.began > first_end {
                break;
            }
            if !happened.has(index) {
                first_end = first_end.min(call.ended);
                next.push(index);
            }
        }
        (next, first_end)
    }

    /// The most promising last, as it is taken first.
    fn push_followers(
        &self,
        point: &Point<M::State>,
        next: &[usize],
        moment: Moment,
        stack: &mut Vec<Point<M::State>>,
    ) {
        let Point { happened, state } = point;
        let turn = self.turns.get(happened.turns);
        let mut followers = Vec::new();
        for &index in next {
            let call = &self.calls[index].call;
            let has_turn = self.model.turn(call).is_some();
            if has_turn && turn != Some(&index) {
                continue;
            }
            let Some(after) = self.model.apply(state, call) else { continue };
            let happened = happened.with(index, has_turn);
            if !has_turn && after == *state {
                // It fits here and changes nothing: whatever can follow without it can follow it.
                stack.push(Point { happened, state: after });
                return;
            }
            followers.push(Point { happened, state: after });
        }
        for after in self.model.unclear(state, moment) {
            stack.push(Point { happened: happened.clone(), state: after });
        }
        stack.extend(followers.into_iter().rev());
    }
}
