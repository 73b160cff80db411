//! Why a conditional write was not made, or may not have been.

use bitacora_protocol::Position;

use crate::log::AppendError;
use crate::service::error::ErrorKind;
use crate::service::reads::Answer;
use crate::store::StoreError;

/// Why a conditional write failed. But for [`ConditionalError::Undecided`] and
/// [`ConditionalError::Unclear`], it has not taken effect and will not.
#[derive(Debug, thiserror::Error)]
pub enum ConditionalError {
    /// The condition did not hold when the write came, or when its turn came.
    #[error(transparent)]
    NotMet(Box<NotMet>),
    #[error(
        "the key has a record in another partition as well, where it was before the topic was given more; write it on no condition, \
         and once the other record is trimmed (half of DELETE_RETENTION later), conditional writes of it are possible"
    )]
    Elsewhere,
    /// The cluster as it is can't have conditional writes.
    #[error("there are no conditional writes here: {0}")]
    NotPossible(String),
    /// The node can't tell what the key is.
    #[error(
        "this node can't decide a conditional write yet: {0}; it was not made, ask another node or try again"
    )]
    NotReady(String),
    #[error("the conditional write was not made: {0}; it can be sent again")]
    NotMade(String),
    #[error("the log has not told within the time what became of the write; it may still take effect")]
    Undecided,
    /// What the log has told does not say what became of the write.
    #[error(
        "{0}; the write may have taken effect, or still may: the same one again, with its Idempotency-Key, tells"
    )]
    Unclear(&'static str),
    #[error(transparent)]
    Log(AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a key is whose condition was not met.
#[derive(Debug)]
pub struct NotMet {
    /// What a read would have answered.
    pub current: Answer,
    /// The version of the key's live record.
    pub version: Option<Position>,
}

impl std::fmt::Display for NotMet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            Some(version) => write!(
                out,
                "the condition does not hold: the version of the key is {version}; nothing was written"
            ),
            None => out.write_str("the condition does not hold: there is no such key; nothing was written"),
        }
    }
}

impl std::error::Error for NotMet {}

impl ConditionalError {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotMet(_) => ErrorKind::ConditionFailed,
            Self::Elsewhere => ErrorKind::Conflict,
            Self::NotPossible(_) => ErrorKind::NotImplemented,
            Self::NotReady(_) => ErrorKind::NotReady,
            Self::NotMade(_) | Self::Log(AppendError::NotTaken(_)) => ErrorKind::NotTaken,
            Self::Undecided | Self::Unclear(_) | Self::Log(AppendError::Unknown(_)) => {
                ErrorKind::MayTakeEffect
            }
            Self::Log(AppendError::TooLarge(_)) => ErrorKind::TooLarge,
            Self::Store(_) => ErrorKind::Internal,
        }
    }
}
