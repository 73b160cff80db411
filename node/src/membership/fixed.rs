//! Members that are known beforehand: `dev` and tests.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Membership, MembershipState};

pub struct FixedMembership(Arc<[String]>);

impl FixedMembership {
    /// `members`: `host:API_PORT` each.
    #[must_use]
    pub fn new(mut members: Vec<String>) -> Self {
        members.sort();
        Self(members.into())
    }
}

impl Membership for FixedMembership {
    fn members(&self) -> Arc<[String]> {
        Arc::clone(&self.0)
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

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
