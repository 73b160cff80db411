//! What a caller may do: which operations, of which keys. Who a caller is was found out before, in `server/access/`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitacora_protocol::token::Scope;
use bitacora_protocol::{Operation, WriteOptions};

use super::error::ErrorKind;
use super::is_unconditional;
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
}

impl KnownToken {
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
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
    metrics: Arc<Metrics>,
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
        metrics: Arc<Metrics>,
    ) -> Self {
        let scopes = token.as_ref().map_or(anonymous, |token| token.scopes);
        Self { token, scopes, interface, address, metrics }
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

    /// Counts a refusal and notes it for who audits.
    pub fn note(&self, call: &str, denied: Denied) -> Denied {
        let (interface, address, token) = (self.interface, self.address, self.name());
        self.metrics.access_refusals.with_label_values(&[denied.reason()]).inc();
        tracing::warn!(target: AUDIT, %address, interface, call, token, "refused: {denied}");
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

    /// Whether what it stands for is withdrawn, so that what lasts has to end.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        matches!(self, Self::Limited(limited) if limited.is_withdrawn())
    }
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::WriteCondition;

    use super::*;

    fn grant(scopes: &[Scope], prefix: &str) -> Grant {
        let token = KnownToken {
            name: "t".to_owned(),
            scopes: scopes.iter().copied().collect(),
            prefix: prefix.to_owned(),
            withdrawn: false.into(),
        };
        let (address, metrics) = ([127, 0, 0, 1].into(), Arc::new(Metrics::new().expect("metrics")));
        let limited = Limited::new(Some(Arc::new(token)), Scopes::default(), "http", address, metrics);
        Grant::Limited(Arc::new(limited))
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
