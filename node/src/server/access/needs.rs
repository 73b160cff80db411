//! The one table of what a caller needs: for each call of the HTTP API, and for each message of the Avro RPC. Both are matched
//! without a wildcard, so that a call without an entry does not compile.

use bitacora_protocol::rpc::Message;
use bitacora_protocol::token::Scope;

/// A call of the HTTP API. Each is described in `http/openapi/operations.rs`, and has its paths in `http/routes.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Set,
    Delete,
    GetForMember,
    Scan,
    Batch,
    Changes,
    Watch,
    Ready,
    Live,
    Status,
    Members,
    Digests,
    DigestRanges,
    Metrics,
    OpenApi,
    Snapshot,
    Console,
}

/// What a caller needs before a call is looked at. Which keys it may have is asked for each key, in [`crate::service::access`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it says nothing of what the node holds.
    Nothing,
    /// Nothing if `OPEN_METRICS` is set, any scope otherwise.
    Metrics,
    /// One of these scopes.
    OneOf(&'static [Scope]),
}

const READ: Need = Need::OneOf(&[Scope::Read]);
const WRITE: Need = Need::OneOf(&[Scope::Write]);
/// Its operations are looked at one by one.
const READ_OR_WRITE: Need = Need::OneOf(&[Scope::Read, Scope::Write]);
const MEMBER_OR_ADMIN: Need = Need::OneOf(&[Scope::Member, Scope::Admin]);
const ANY: Need = Need::OneOf(&Scope::ALL);

impl Call {
    /// What its caller needs.
    #[must_use]
    pub const fn needs(self) -> Need {
        match self {
            Self::Get | Self::Scan | Self::Changes | Self::Watch => READ,
            Self::Set | Self::Delete => WRITE,
            Self::Batch => READ_OR_WRITE,
            Self::GetForMember => Need::OneOf(&[Scope::Member]),
            // Keys, of whatever prefix.
            Self::Snapshot | Self::DigestRanges => MEMBER_OR_ADMIN,
            // From two of them a guess of a key can be proven.
            Self::Digests => MEMBER_OR_ADMIN,
            Self::Status | Self::Members => ANY,
            Self::Metrics => Need::Metrics,
            Self::Ready | Self::Live | Self::OpenApi | Self::Console => Need::Nothing,
        }
    }

    /// Whether each time that it is made is noted for who audits, also if it is not refused.
    #[must_use]
    pub const fn is_audited(self) -> bool {
        matches!(self, Self::Snapshot | Self::DigestRanges)
    }

    /// As logs have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Delete => "delete",
            Self::GetForMember => "cluster",
            Self::Scan => "scan",
            Self::Batch => "batch",
            Self::Changes => "changes",
            Self::Watch => "watch",
            Self::Ready => "ready",
            Self::Live => "live",
            Self::Status => "status",
            Self::Members => "members",
            Self::Digests => "digests",
            Self::DigestRanges => "digest_ranges",
            Self::Metrics => "metrics",
            Self::OpenApi => "openapi",
            Self::Snapshot => "snapshot",
            Self::Console => "console",
        }
    }
}

/// What the caller of a message needs.
#[must_use]
pub const fn message_needs(message: Message) -> Need {
    match message {
        Message::GetValue
        | Message::GetRecord
        | Message::ReadRecord
        | Message::Scan
        | Message::ScanRecords
        | Message::ReadChanges => READ,
        Message::SetValue
        | Message::SetRecord
        | Message::WriteRecord
        | Message::Delete
        | Message::DeleteRecord
        | Message::RemoveRecord => WRITE,
        Message::Batch | Message::BatchRecords => READ_OR_WRITE,
    }
}
