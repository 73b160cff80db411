//! Where the log ended when somebody began to follow.

use bitacora_protocol::Position;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Changes;
use crate::service::barriers::{Failed, HighWatermarks};

/// What is known of the log's end.
pub enum LogEnds {
    Asked(BoxFuture<'static, Result<HighWatermarks, Failed>>),
    Known(HighWatermarks),
    /// The log did not answer, for this reason.
    Unknown(Failed),
}

impl LogEnds {
    /// Asks for it, from now on.
    #[must_use]
    pub fn ask(changes: &Changes) -> Self {
        Self::Asked(changes.consistent.high_watermarks().boxed())
    }

    /// The last position of each partition then; `None` while that is not known.
    #[must_use]
    pub fn known(&self) -> Option<&[Position]> {
        match self {
            Self::Known(known) => Some(&known.last),
            Self::Asked(_) | Self::Unknown(_) => None,
        }
    }

    /// Completes once there is an answer, be it none; never if nothing is asked.
    pub async fn answered(&mut self) {
        match self {
            Self::Asked(asked) => *self = asked.await.map_or_else(Self::Unknown, Self::Known),
            Self::Known(_) | Self::Unknown(_) => std::future::pending().await,
        }
    }

    #[must_use]
    pub fn is_asked(&self) -> bool {
        matches!(self, Self::Asked(_))
    }
}
