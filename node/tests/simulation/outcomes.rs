//! What nodes say became of attempts, held against the truth.

use std::sync::Arc;

use bitacora_node::replication::decisions::{Decisions, Waiting};
use bitacora_node::store::{Decided, Decision};
use bitacora_protocol::Position;

use crate::clients::Request;
use crate::member::{Member, Running};
use crate::note;
use crate::promise::{Outcome, Promise, Violation};
use crate::world::World;

/// So many attempts are watched at a time; what becomes of earlier ones is not looked at.
const MAX_WATCHED: usize = 200;

/// A node that waits for what becomes of an attempt.
struct Watch {
    who: usize,
    request: Arc<Request>,
    /// To which it was sent: an outcome says nothing of the next.
    topic: u64,
    /// Of the node's life in which this began.
    decisions: Arc<Decisions>,
    waiting: Waiting,
    /// So many decisions were looked at.
    seen: usize,
}

#[derive(Default)]
pub struct Watches(Vec<Watch>);

impl Watches {
    /// Waits for an attempt on all nodes that run; only the one that accepted it answers a client.
    pub fn begin(&mut self, members: &[Member], request: Request) {
        let request = Arc::new(request);
        for member in members {
            let Some(Running { decisions, store, .. }) = &member.running else { continue };
            // One that has not noticed that the topic was replaced says nothing of this one.
            if store.log() != member.view.world().identity().tag() {
                continue;
            }
            self.0.push(Watch {
                who: member.who,
                request: Arc::clone(&request),
                topic: member.view.world().topic,
                waiting: decisions.wait_for(request.key.as_bytes(), &request.uuid),
                decisions: Arc::clone(decisions),
                seen: 0,
            });
        }
        let surplus = self.0.len().saturating_sub(MAX_WATCHED);
        self.0.drain(..surplus);
    }

    /// Looks at what was told since. Returns the nodes that have answered a client that its attempt was void.
    pub fn look(&mut self, members: &[Member]) -> Result<Vec<usize>, Violation> {
        let mut void = Vec::new();
        let mut violation = None;
        self.0.retain_mut(|watch| {
            let member = &members[watch.who];
            let lives = member.running.as_ref().is_some_and(|r| Arc::ptr_eq(&r.decisions, &watch.decisions));
            if !lives || member.view.world().topic != watch.topic {
                return false;
            }
            let told = watch.waiting.told();
            let mut answered = false;
            for decided in told.iter().skip(watch.seen) {
                // The same once more, void, is not what its client hears of.
                if answered {
                    break;
                }
                let checked = watch.check(&mut member.view.world(), member, decided);
                answered |= watch.who == watch.request.who;
                match checked {
                    Ok(is_void) if is_void && watch.who == watch.request.who => void.push(watch.who),
                    Ok(_) => {}
                    Err(why) => violation = violation.take().or(Some(why)),
                }
            }
            watch.seen = told.len();
            !answered
        });
        violation.map_or(Ok(void), Err)
    }
}

impl Watch {
    /// Whether a node told the truth about an attempt. Returns whether it was void.
    fn check(&self, world: &mut World, member: &Member, decided: &Decided) -> Result<bool, Violation> {
        let Position { partition, offset } = decided.entry.position();
        let Request { key, uuid, asked, .. } = &*self.request;
        let in_effect = match decided.decision {
            Decision::InEffect => true,
            Decision::Void => false,
            Decision::Unknown => {
                world.counts.undecided += u64::from(self.who == self.request.who);
                return Ok(false);
            }
        };
        // The log that it has read lost records since, or is another's, and it has not heard of that yet.
        let store = member.running.as_ref().map(|running| running.store.log());
        if member.may_be_stale || store != Some(world.identity().tag()) {
            return Ok(false);
        }
        note!(world, "replica {} says that {uuid} at {offset} took effect: {in_effect}", self.who);
        world.counts.outcomes += 1;
        let truth = &world.log[partition as usize].truth;
        if truth.took_effect(offset) != Some(in_effect) {
            return Err(Promise::OutcomesAgree.broken(format!(
                "replica {} says that the attempt {uuid} of {key} at {partition}:{offset} took effect: {in_effect}",
                self.who
            )));
        }
        let (_, times) = truth.appearances(uuid);
        if self.who == self.request.who {
            world.counts.successes += u64::from(in_effect);
            if in_effect && times != 1 {
                return Err(Promise::SuccessesTookEffect.broken(format!("{uuid} took effect {times} times")));
            }
            if !in_effect && !truth.is_first(offset, uuid) {
                // What became of the first, it has not read.
                world.counts.undecided += 1;
                return Ok(true);
            }
            world.counts.lost += u64::from(!in_effect);
            if !in_effect && times != 0 {
                return Err(Promise::RefusalsWereTrue
                    .broken(format!("{asked:?} of {key} was refused, but {uuid} took effect")));
            }
        }
        Ok(!in_effect)
    }
}

/// No attempt has taken effect more than once.
pub fn each_took_effect_once(world: &World) -> Outcome {
    for log in &world.log {
        if let Some(uuid) = log.truth.twice() {
            return Err(Promise::SuccessesTookEffect.broken(format!("{uuid} took effect more than once")));
        }
    }
    Ok(())
}
