//! What a mirror's task does with each page of the watch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::record::{MirroredRecord, Records};
use super::{MirrorChange, Shared, State};
use crate::connection::Changed;
use crate::types::Record;
use crate::watch::Page;

/// Is called with each change, in order.
pub(super) type OnChange = Box<dyn FnMut(&MirrorChange) + Send>;

/// The one who changes what readers see.
pub(super) struct Replica {
    shared: Arc<Shared>,
    /// After a gap: what is there now, until it is all there and takes the place of what readers see.
    rebuilt: Option<Records>,
    on_change: Option<OnChange>,
}

enum Step {
    Set(MirroredRecord),
    Remove(String),
}

impl Replica {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, rebuilt: None, on_change: None }
    }

    pub(super) fn call_on_change(&mut self, on_change: Option<OnChange>) {
        self.on_change = on_change;
    }

    /// What it has taken is what a file held: nobody knows how old that is.
    pub(super) fn was_loaded(&self) {
        let mut state = self.shared.state.write();
        (state.is_told_all, state.asked) = (false, None);
    }

    /// What it has taken is worth nothing.
    pub(super) fn forget(&mut self) {
        self.rebuilt = None;
        *self.shared.state.write() = State::default();
    }

    /// Whether what readers see is about to be replaced.
    pub(super) fn is_rebuilding(&self) -> bool {
        self.rebuilt.is_some()
    }

    /// Applies a page, all at once; returns whether all that was there has been replaced.
    pub(super) fn take(&mut self, page: &Page) -> bool {
        let steps = self.steps(&page.changes);
        let changes = match &mut self.rebuilt {
            Some(rebuilt) => {
                for step in steps {
                    rebuilt.apply(step);
                }
                if !page.current {
                    return false;
                }
                self.replace(page)
            }
            None => self.apply(steps, page),
        };
        let is_replaced = self.rebuilt.take().is_some();
        self.shared.changed.send_replace(());
        if let Some(on_change) = &mut self.on_change {
            for change in &changes {
                if catch_unwind(AssertUnwindSafe(|| on_change(change))).is_err() {
                    tracing::error!(key = change.key(), "what is called on a mirror's change has panicked");
                }
            }
        }
        is_replaced
    }

    /// What a page does, behind its last gap.
    fn steps(&mut self, changes: &[Changed]) -> Vec<Step> {
        let mut steps = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Changed::Set(record) => steps.push(Step::Set(self.held(record))),
                Changed::Deleted(deleted) => steps.push(Step::Remove(deleted.key.clone())),
                Changed::Gap(reason) => {
                    tracing::info!(reason, "a mirror is built anew");
                    steps.clear();
                    self.rebuilt = Some(Records::default());
                    let mut state = self.shared.state.write();
                    (state.is_told_all, state.positions) = (false, Vec::new());
                }
            }
        }
        steps
    }

    /// While all is told anew, most of it is what is there already.
    fn held(&self, record: &Record) -> MirroredRecord {
        if self.rebuilt.is_some() {
            let state = self.shared.state.read();
            let held = state.records.get(&record.key).filter(|held| held.position() == record.position);
            if let Some(held) = held.filter(|held| held.to_record() == *record) {
                return held.clone();
            }
        }
        MirroredRecord::new(record)
    }

    fn apply(&mut self, steps: Vec<Step>, page: &Page) -> Vec<MirrorChange> {
        let mut changes = Vec::with_capacity(steps.len());
        let mut state = self.shared.state.write();
        changes.extend(steps.into_iter().filter_map(|step| state.records.apply(step)));
        state.note(page);
        changes
    }

    /// Puts what was told after a gap in the place of what readers see.
    fn replace(&mut self, page: &Page) -> Vec<MirrorChange> {
        let Some(rebuilt) = &mut self.rebuilt else { return Vec::new() };
        let changes = if self.on_change.is_some() {
            differences(&self.shared.state.read().records, rebuilt)
        } else {
            Vec::new()
        };
        let mut state = self.shared.state.write();
        // What was there is dropped with it, when nobody waits.
        std::mem::swap(&mut state.records, rebuilt);
        state.note(page);
        changes
    }
}

impl Records {
    /// `None`: it changes nothing.
    fn apply(&mut self, step: Step) -> Option<MirrorChange> {
        match step {
            Step::Set(record) => {
                let after = Some(record.clone());
                let before = self.insert(record);
                let is_new = before.as_ref().map(MirroredRecord::position)
                    != after.as_ref().map(MirroredRecord::position);
                is_new.then_some(MirrorChange { before, after })
            }
            Step::Remove(key) => {
                let before = self.remove(&key);
                before.is_some().then_some(MirrorChange { before, after: None })
            }
        }
    }
}

fn differences(before: &Records, after: &Records) -> Vec<MirrorChange> {
    let gone = before.iter().filter(|record| after.get(record.key()).is_none());
    let gone = gone.map(|record| MirrorChange { before: Some(record.clone()), after: None });
    let changed = after.iter().filter_map(|record| {
        let before = before.get(record.key());
        let is_new = before.is_none_or(|before| before.position() != record.position());
        is_new.then(|| MirrorChange { before: before.cloned(), after: Some(record.clone()) })
    });
    gone.chain(changed).collect()
}
