//! Who a caller is: what is asked of every call before anything else is done for it. What the caller may do with which keys
//! follows from it, in [`crate::service::access`].
//!
//! A caller shows a token; the node knows the tokens' hashes from `TOKENS_FILE`. A node without that file asks nobody.

mod failures;
pub mod needs;
mod tokens;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bitacora_protocol::token::{Scope, Token};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

use self::failures::Failures;
use self::needs::Need;
use self::tokens::{Tokens, read_file};
use crate::metrics::Metrics;
use crate::server::files;
use crate::service::access::{AUDIT, Denied, Grant, KnownToken, Limited, Scopes};
use crate::service::error::ErrorKind;

/// What callers are asked for.
pub struct AccessSettings {
    /// `TOKENS_FILE`
    pub tokens_file: PathBuf,
    /// `ANONYMOUS`: what those may do who show no token.
    pub anonymous: Scopes,
    /// `OPEN_METRICS`
    pub open_metrics: bool,
}

/// Asks callers who they are.
pub struct Access(Option<Asking>);

/// The access of a node that has tokens.
struct Asking {
    settings: AccessSettings,
    tokens: ArcSwap<Tokens>,
    failures: Mutex<Failures>,
    metrics: Arc<Metrics>,
}

/// Why a call is not looked at.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(
        "the token of the call is not known here, or no more; a call has 'Bearer TOKEN' in Authorization, once, with a token as 'bitacora token' makes it"
    )]
    UnknownToken,
    #[error("too many calls from this address had no good token; wait a minute")]
    TooManyFailures,
}

impl Refused {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(denied) => denied.kind(),
            Self::UnknownToken => ErrorKind::Unauthorized,
            Self::TooManyFailures => ErrorKind::TooManyFailures,
        }
    }
}

impl Access {
    /// Everybody may do everything.
    #[must_use]
    pub const fn open() -> Self {
        Self(None)
    }

    /// # Errors
    /// When the file can't be read or makes no sense: what is wrong, and where.
    pub fn new(settings: AccessSettings, metrics: Arc<Metrics>) -> Result<Self, String> {
        let tokens = read_file(&settings.tokens_file)
            .and_then(|text| Tokens::parse(&text, &Tokens::default()))
            .map_err(|error| format!("TOKENS_FILE {}: {error}", settings.tokens_file.display()))?;
        metrics.tokens.set(tokens.len() as i64);
        let (tokens, failures) = (ArcSwap::from_pointee(tokens), Mutex::default());
        Ok(Self(Some(Asking { settings, tokens, failures, metrics })))
    }

    /// Whether other members would answer to who shows this, as far as this node's own tokens tell.
    #[must_use]
    pub fn is_member(&self, token: Option<&Token>) -> bool {
        let Some(asking) = &self.0 else { return true };
        match token {
            None => asking.settings.anonymous.has(Scope::Member),
            Some(token) => {
                let tokens = asking.tokens.load();
                tokens.find(&token.hash()).is_some_and(|known| known.scopes.has(Scope::Member))
            }
        }
    }

    /// Takes over the file's tokens whenever it has changed, for ever. While it makes no sense, those of before stay.
    pub async fn follow_file(access: Arc<Self>, hangups: watch::Receiver<()>) {
        let Some(asking) = &access.0 else { return std::future::pending().await };
        let path = asking.settings.tokens_file.clone();
        files::follow(move || read_file(&path), |read| asking.take_over(read), hangups).await;
    }

    /// For a connection from this address.
    #[must_use]
    pub fn caller(access: &Arc<Self>, interface: &'static str, address: IpAddr) -> Caller {
        Caller { access: Arc::clone(access), interface, address, last: Mutex::default() }
    }
}

impl Asking {
    fn take_over(&self, read: &Result<String, String>) {
        let before = self.tokens.load_full();
        let parsed = read.as_ref().map_err(String::clone).and_then(|text| Tokens::parse(text, &before));
        match parsed {
            Ok(tokens) => {
                let (had, has, tokens) = (before.len(), tokens.len(), Arc::new(tokens));
                self.tokens.store(Arc::clone(&tokens));
                // After that, so that whoever finds its token withdrawn finds the new ones.
                let changed = before.withdraw_all_but(&tokens) || had != has;
                self.metrics.tokens.set(has as i64);
                if changed {
                    tracing::info!(target: AUDIT, tokens = has, "took over the tokens of TOKENS_FILE");
                }
            }
            Err(error) => {
                self.metrics.tokens_file_failures.inc();
                let path = self.settings.tokens_file.display();
                tracing::error!("TOKENS_FILE {path}: {error}; the tokens of before stay");
            }
        }
    }
}

/// Who calls by one connection.
pub struct Caller {
    access: Arc<Access>,
    interface: &'static str,
    address: IpAddr,
    /// What the connection's last call had in `Authorization`, if its token was good. Most connections are of one caller, and then
    /// nothing is hashed.
    last: Mutex<Option<(Box<[u8]>, Arc<Limited>)>>,
}

impl Caller {
    /// What the caller may do who shows this, if that is enough for `call`.
    ///
    /// `authorization` gives every value that the call has of it. It is asked for those only if that matters.
    ///
    /// # Errors
    /// When it is not enough. That is noted, and counts as a failure of the address if no token of this node was shown.
    pub fn admit<'a, V: IntoIterator<Item = &'a [u8]>>(
        &self,
        call: &str,
        need: Need,
        authorization: impl FnOnce() -> V,
    ) -> Result<Grant, Refused> {
        let Some(asking) = &self.access.0 else { return Ok(Grant::Everything) };
        let needed = match need {
            Need::OneOf(scopes) => scopes,
            Need::Metrics if !asking.settings.open_metrics => &Scope::ALL,
            // Not the caller's own: nothing is to be had by it.
            Need::Nothing | Need::Metrics => return Ok(Grant::Limited(self.limited(asking, None))),
        };
        let mut values = authorization().into_iter();
        let limited = match (values.next(), values.next()) {
            (None, _) => self.limited(asking, None),
            (Some(value), None) => match self.known(asking, value) {
                Some(limited) => limited,
                None => return Err(self.fail(asking, call, Refused::UnknownToken)),
            },
            (Some(_), Some(_)) => return Err(self.fail(asking, call, Refused::UnknownToken)),
        };
        if limited.has_any(needed) {
            return Ok(Grant::Limited(limited));
        }
        match limited.lacks(needed) {
            denied @ Denied::NoToken(_) => Err(self.fail(asking, call, denied.into())),
            denied => Err(limited.note(call, denied).into()),
        }
    }

    /// Notes a call that was admitted.
    pub fn note(&self, call: &str, grant: &Grant) {
        let Grant::Limited(limited) = grant else { return };
        let (address, interface, token) = (self.address, self.interface, limited.name());
        tracing::info!(target: AUDIT, %address, interface, call, token, "admitted");
    }

    fn limited(&self, asking: &Asking, token: Option<&Arc<KnownToken>>) -> Arc<Limited> {
        let (anonymous, metrics) = (asking.settings.anonymous, Arc::clone(&asking.metrics));
        Arc::new(Limited::new(token.cloned(), anonymous, self.interface, self.address, metrics))
    }

    /// Whoever shows a token that is known.
    fn known(&self, asking: &Asking, value: &[u8]) -> Option<Arc<Limited>> {
        let mut last = self.last.lock();
        // A proxy may send calls of several callers by one connection, so that this is a comparison with a secret, too.
        if let Some((shown, limited)) = &*last
            && bool::from(shown.ct_eq(value))
            && !limited.is_withdrawn()
        {
            return Some(Arc::clone(limited));
        }
        let token = Token::of_authorization(value)?;
        let limited = self.limited(asking, Some(asking.tokens.load().find(&token.hash())?));
        *last = Some((value.into(), Arc::clone(&limited)));
        Some(limited)
    }

    /// A call without a good token. The first of an address are noted one by one.
    fn fail(&self, asking: &Asking, call: &str, refused: Refused) -> Refused {
        let refusals = &asking.metrics.access_refusals;
        if asking.failures.lock().count(self.address, Instant::now()) {
            refusals.with_label_values(&["too_many"]).inc();
            return Refused::TooManyFailures;
        }
        let reason = match &refused {
            Refused::Denied(denied) => denied.reason(),
            Refused::UnknownToken | Refused::TooManyFailures => "unknown_token",
        };
        refusals.with_label_values(&[reason]).inc();
        let (address, interface) = (self.address, self.interface);
        tracing::warn!(target: AUDIT, %address, interface, call, "refused: {refused}");
        refused
    }
}
