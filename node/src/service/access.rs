//! What a caller may do: which operations, of which keys. Who a caller is was found out before, in `server/access/`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitacora_protocol::token::Scope;
use bitacora_protocol::{Operation, WriteOptions};
use futures_util::FutureExt as _;
use parking_lot::Mutex;

use super::batch::BegunInBatch;
use super::error::{ErrorKind, OperationError};
use super::{Begun, Done, is_unconditional};
use crate::metrics::Metrics;

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    #[must_use]
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |all, scope| all | 1 << scope as u8))
    }
}

/// What a token is good for, as its line said.
#[derive(Debug)]
pub struct KnownToken {
    pub name: String,
    pub scopes: Scopes,
    /// What the keys begin with; empty for all keys.
    pub prefix: String,
    /// Set once the file no longer has the line.
    pub withdrawn: AtomicBool,
    /// Of the calls that were refused to it.
    pub lines: LineLimit,
}

impl KnownToken {
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }
}

/// Bounds the log lines about refusals: a caller can have as many calls refused as it likes, and the lines of others must not be lost for
/// that.
#[derive(Debug, Default)]
pub struct LineLimit(Mutex<Option<LinesOfWindow>>);

#[derive(Debug)]
struct LinesOfWindow {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl LineLimit {
    /// Lines in [`LineLimit::WINDOW`].
    const MOST: u32 = 100;
    const WINDOW: Duration = Duration::from_mins(1);

    /// Whether one more may be written now; with how many were left out since the last that was.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock();
        let begun = LinesOfWindow { since: now, written: 0, left_out: 0 };
        let window = window.get_or_insert(begun);
        if now.saturating_duration_since(window.since) >= Self::WINDOW {
            (window.since, window.written) = (now, 0);
        }
        if window.written == Self::MOST {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

/// What a caller may do.
#[derive(Clone)]
pub enum Grant {
    /// Everything: this node has no tokens.
    Everything,
    /// What a token is good for, or `ANONYMOUS` is.
    Limited(Arc<Limited>),
}

/// A caller who may not do everything.
pub struct Limited {
    /// `None`: one without a token.
    token: Option<Arc<KnownToken>>,
    scopes: Scopes,
    interface: &'static str,
    address: IpAddr,
    refusals: Arc<Refusals>,
}

/// What is noted of refused calls.
pub struct Refusals {
    pub metrics: Arc<Metrics>,
    /// Of those who show no token.
    pub lines_without_token: LineLimit,
}

/// Why a caller may not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this needs a token with the scope {}, and that of the call, '{token}', does not have it", alternatives(.needed))]
    Scope { token: String, needed: &'static [Scope] },
    #[error("the token '{token}' is good for keys that begin with '{prefix}' only")]
    Prefix { token: String, prefix: String },
    #[error("this needs a token with the scope {}, and the call has none", alternatives(.0))]
    NoToken(&'static [Scope]),
    #[error("the token '{0}' is not known here any more")]
    Withdrawn(String),
}

fn alternatives(needed: &[Scope]) -> String {
    let names: Vec<_> = needed.iter().map(|scope| scope.name()).collect();
    names.join(" or ")
}

impl Denied {
    /// What kind of error it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NoToken(_) | Self::Withdrawn(_) => ErrorKind::Unauthorized,
            Self::Scope { .. } | Self::Prefix { .. } => ErrorKind::Forbidden,
        }
    }

    /// The `reason` label of the metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Scope { .. } => "scope",
            Self::Prefix { .. } => "prefix",
            Self::NoToken(_) => "no_token",
            Self::Withdrawn(_) => "unknown_token",
        }
    }
}

impl Limited {
    #[must_use]
    pub fn new(
        token: Option<Arc<KnownToken>>,
        anonymous: Scopes,
        interface: &'static str,
        address: IpAddr,
        refusals: Arc<Refusals>,
    ) -> Self {
        let scopes = token.as_ref().map_or(anonymous, |token| token.scopes);
        Self { token, scopes, interface, address, refusals }
    }

    /// Whether its token is known no more.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_withdrawn())
    }

    #[must_use]
    pub fn has_any(&self, scopes: &[Scope]) -> bool {
        scopes.iter().any(|scope| self.scopes.has(*scope))
    }

    /// For logs.
    #[must_use]
    pub fn name(&self) -> &str {
        self.token.as_ref().map_or("", |token| &token.name)
    }

    fn prefix(&self) -> &str {
        self.token.as_ref().map_or("", |token| &token.prefix)
    }

    /// That it lacks all of these scopes.
    #[must_use]
    pub fn lacks(&self, needed: &'static [Scope]) -> Denied {
        match &self.token {
            Some(token) => Denied::Scope { token: token.name.clone(), needed },
            None => Denied::NoToken(needed),
        }
    }

    fn scope(&self, needed: &'static [Scope]) -> Result<(), Denied> {
        // A batch may last for as long as its client likes.
        if self.is_withdrawn() {
            return Err(Denied::Withdrawn(self.name().to_owned()));
        }
        if self.has_any(needed) { Ok(()) } else { Err(self.lacks(needed)) }
    }

    fn keys(&self, are_within: bool) -> Result<(), Denied> {
        if are_within {
            return Ok(());
        }
        Err(Denied::Prefix { token: self.name().to_owned(), prefix: self.prefix().to_owned() })
    }

    /// Counts a refusal and notes it for who audits; of many in a minute, the first.
    pub fn note(&self, call: &str, denied: Denied) -> Denied {
        let (interface, address, token) = (self.interface, self.address, self.name());
        self.refusals.metrics.access_refusals.with_label_values(&[denied.reason()]).inc();
        let lines = self.token.as_ref().map_or(&self.refusals.lines_without_token, |token| &token.lines);
        if let Some(left_out) = lines.take(Instant::now()) {
            tracing::warn!(target: AUDIT, %address, interface, call, token, left_out, "refused: {denied}");
        }
        denied
    }
}

/// Of log lines for who audits.
pub const AUDIT: &str = "audit";

const READ: &[Scope] = &[Scope::Read];
const WRITE: &[Scope] = &[Scope::Write];

impl Grant {
    /// That this operation may be done.
    ///
    /// # Errors
    /// When it may not; that is noted.
    pub fn operation(&self, operation: &Operation<'_>) -> Result<(), Denied> {
        match operation {
            Operation::Get { key, .. } => self.read(key),
            Operation::Set { key, write, .. } => self.write("set", key, write),
            Operation::Delete { key, write } => self.write("delete", key, write),
        }
    }

    /// That this key may be read.
    ///
    /// # Errors
    /// As [`Grant::operation`].
    pub fn read(&self, key: &str) -> Result<(), Denied> {
        let Self::Limited(limited) = self else { return Ok(()) };
        let checked = limited.scope(READ).and_then(|()| limited.keys(key.starts_with(limited.prefix())));
        checked.map_err(|denied| limited.note("get", denied))
    }

    /// That this key may be set or deleted.
    ///
    /// # Errors
    /// As [`Grant::operation`].
    pub fn write(&self, call: &str, key: &str, write: &WriteOptions<'_>) -> Result<(), Denied> {
        let Self::Limited(limited) = self else { return Ok(()) };
        // The answer to a condition that does not hold, or to a uuid that was used before, tells what is there.
        let tells = if is_unconditional(write) { Ok(()) } else { limited.scope(READ) };
        let checked =
            limited.scope(WRITE).and(tells).and_then(|()| limited.keys(key.starts_with(limited.prefix())));
        checked.map_err(|denied| limited.note(call, denied))
    }

    /// That keys of this prefix, or this one alone, may be scanned or watched.
    ///
    /// # Errors
    /// As [`Grant::operation`].
    pub fn read_all(&self, call: &str, prefix: &str, one: Option<&str>) -> Result<(), Denied> {
        let Self::Limited(limited) = self else { return Ok(()) };
        let are_within = one.unwrap_or(prefix).starts_with(limited.prefix());
        let checked = limited.scope(READ).and_then(|()| limited.keys(are_within));
        checked.map_err(|denied| limited.note(call, denied))
    }

    /// Whether it may see digests, as who may see all keys does.
    #[must_use]
    pub fn may_see_digests(&self) -> bool {
        match self {
            Self::Everything => true,
            Self::Limited(limited) => limited.has_any(&[Scope::Member, Scope::Admin]),
        }
    }

    /// That it still is good for a read that has waited.
    ///
    /// # Errors
    /// When its token was withdrawn meanwhile; that is noted.
    pub fn still(&self, call: &str) -> Result<(), Denied> {
        match self {
            Self::Limited(limited) if limited.is_withdrawn() => {
                Err(limited.note(call, Denied::Withdrawn(limited.name().to_owned())))
            }
            _ => Ok(()),
        }
    }

    /// An operation that has begun: if it waits, and the token is withdrawn meanwhile, its answer shows no record.
    #[must_use]
    pub fn over(&self, call: &'static str, begun: Begun) -> Begun {
        let outcome = match (self, begun) {
            (Self::Limited(_), Begun::Later(outcome)) => outcome,
            (_, begun) => return begun,
        };
        let grant = self.clone();
        let outcome = outcome.map(move |outcome| {
            let shows = match &outcome {
                Ok(Done::Read(_)) => true,
                Ok(Done::Written(_)) => false,
                Err(error) => error.not_met().is_some(),
            };
            if shows {
                grant.still(call).map_err(OperationError::from)?;
            }
            outcome
        });
        Begun::Later(outcome.boxed())
    }

    /// As [`Grant::over`], of an operation of a batch.
    #[must_use]
    pub fn over_in_batch(&self, call: &'static str, begun: BegunInBatch) -> BegunInBatch {
        match begun {
            BegunInBatch::Other(begun) => BegunInBatch::Other(self.over(call, begun)),
            BegunInBatch::Plain => BegunInBatch::Plain,
        }
    }

    /// Whether what it stands for is withdrawn, so that what lasts has to end.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        matches!(self, Self::Limited(limited) if limited.is_withdrawn())
    }
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::rpc::ServedFrom;
    use bitacora_protocol::{Position, WriteCondition};

    use super::*;
    use crate::service::reads::{Answer, LookupResult};

    fn grant(scopes: &[Scope], prefix: &str) -> Grant {
        let token = KnownToken {
            name: "t".to_owned(),
            scopes: scopes.iter().copied().collect(),
            prefix: prefix.to_owned(),
            withdrawn: false.into(),
            lines: LineLimit::default(),
        };
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let refusals = Arc::new(Refusals { metrics, lines_without_token: LineLimit::default() });
        let address = [127, 0, 0, 1].into();
        let limited = Limited::new(Some(Arc::new(token)), Scopes::default(), "http", address, refusals);
        Grant::Limited(Arc::new(limited))
    }

    #[test]
    fn so_many_lines_are_written_in_a_window() {
        let (limit, start) = (LineLimit::default(), Instant::now());
        let written = (0..1_000).filter(|_| limit.take(start).is_some()).count();
        assert_eq!(written, LineLimit::MOST as usize);
        assert_eq!(limit.take(start + LineLimit::WINDOW / 2), None);
        // The first of the next window tells of them.
        let left_out = 1_000 - u64::from(LineLimit::MOST) + 1;
        assert_eq!(limit.take(start + LineLimit::WINDOW), Some(left_out));
        assert_eq!(limit.take(start + LineLimit::WINDOW), Some(0));
    }

    #[tokio::test]
    async fn who_waits_with_a_token_that_is_withdrawn_is_shown_nothing() {
        let grant = grant(&[Scope::Read], "");
        let waits = || {
            let at = Position { partition: 0, offset: 1 };
            let answer = Answer::new(LookupResult::Missing, at, ServedFrom::Store);
            let Begun::Later(outcome) =
                grant.over("get", Begun::Later(async { Ok(Done::Read(answer)) }.boxed()))
            else {
                panic!("it waits")
            };
            outcome
        };
        let (before, outcome) = (waits(), waits());
        assert!(before.await.is_ok() && grant.still("get").is_ok());
        let Grant::Limited(limited) = &grant else { panic!("it is limited") };
        limited.token.as_ref().expect("a token").withdrawn.store(true, Ordering::Release);
        let Err(OperationError::Denied(Denied::Withdrawn(name))) = outcome.await else {
            panic!("it is shown")
        };
        assert_eq!(name, "t");
        assert!(grant.still("get").is_err());
    }

    #[test]
    fn a_scope_is_good_for_its_own_operations_only() {
        let plain = WriteOptions::default();
        for (scopes, reads, writes) in [
            (&[Scope::Read][..], true, false),
            (&[Scope::Write], false, true),
            (&[Scope::Read, Scope::Write], true, true),
            (&[Scope::Admin, Scope::Member], false, false),
        ] {
            let grant = grant(scopes, "");
            assert_eq!(grant.read("k").is_ok(), reads, "{scopes:?}");
            assert_eq!(grant.operation(&Operation::get("k")).is_ok(), reads, "{scopes:?}");
            assert_eq!(grant.read_all("scan", "", None).is_ok(), reads, "{scopes:?}");
            assert_eq!(grant.write("set", "k", &plain).is_ok(), writes, "{scopes:?}");
            assert_eq!(grant.operation(&Operation::set("k", "v", 0)).is_ok(), writes, "{scopes:?}");
            assert_eq!(grant.operation(&Operation::delete("k")).is_ok(), writes, "{scopes:?}");
        }
    }

    #[test]
    fn who_may_only_write_learns_nothing_by_a_condition() {
        let absent = WriteOptions { condition: WriteCondition::Absent, ..WriteOptions::default() };
        let uuid = WriteOptions { uuid: "9b2c8f1e-5a57-4a0c-8f29-3f4b7d5f8a61", ..WriteOptions::default() };
        for write in [&absent, &uuid] {
            assert!(grant(&[Scope::Write], "").write("set", "k", write).is_err(), "{write:?}");
            assert!(grant(&[Scope::Read, Scope::Write], "").write("set", "k", write).is_ok(), "{write:?}");
        }
    }

    #[test]
    fn a_prefix_bounds_every_key() {
        let grant = grant(&[Scope::Read, Scope::Write], "web/");
        let plain = WriteOptions::default();
        for (key, within) in [
            ("web/a", true),
            ("web/", true),
            ("web", false),
            ("Web/a", false),
            ("web/../a", true),
            ("a/web/", false),
            ("", false),
        ] {
            assert_eq!(grant.read(key).is_ok(), within, "{key}");
            assert_eq!(grant.write("set", key, &plain).is_ok(), within, "{key}");
            assert_eq!(grant.read_all("watch", "", Some(key)).is_ok(), within, "{key}");
            assert_eq!(grant.read_all("scan", key, None).is_ok(), within, "{key}");
        }
    }
}
