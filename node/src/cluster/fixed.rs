//! Members that are known beforehand: `dev` and tests.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Membership, MembershipState};

pub struct FixedMembership {
    members: Arc<[String]>,
    first: bool,
}

impl FixedMembership {
    /// `members`: `host:API_PORT` each; `own` is this node's, and the first of them trims the log.
    #[must_use]
    pub fn new(mut members: Vec<String>, own: &str) -> Self {
        members.sort();
        let first = members.first().is_some_and(|first| first == own);
        Self { members: members.into(), first }
    }
}

impl Membership for FixedMembership {
    fn members(&self) -> Arc<[String]> {
        Arc::clone(&self.members)
    }

    fn state(&self) -> MembershipState {
        MembershipState::Fixed
    }

    fn registered(&self) -> bool {
        true
    }

    fn sessions(&self) -> u64 {
        0
    }

    fn announce(&self) {}

    fn is_elected_trimmer(&self) -> bool {
        self.first
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
