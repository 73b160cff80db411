//! Who a caller is: what is asked of every call before anything else is done for it. What the caller may do with which keys
//! follows from it, in [`crate::service::access`].
//!
//! A caller shows a token; the node knows the tokens' hashes from `TOKENS_FILE`. A node without that file asks nobody.

mod failures;
pub mod needs;
mod tokens;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bitacora_program::secret_file;
use bitacora_protocol::token::{Scope, Token};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

use self::failures::Failures;
use self::needs::Need;
use self::tokens::{Tokens, read_file};
use crate::http_client::MemberClients;
use crate::metrics::Metrics;
use crate::server::files;
use crate::service::access::{AUDIT, Denied, Grant, KnownToken, Limited, LineLimit, Refusals, Scopes};
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
    /// What this node shows to other members.
    shown: Mutex<Option<Token>>,
    failures: Mutex<Failures>,
    refusals: Arc<Refusals>,
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

    /// `member_token` is what this node shows to other members.
    ///
    /// # Errors
    /// When the file can't be read or makes no sense, or other members would not answer to this node: what is wrong, and where.
    pub fn new(
        settings: AccessSettings,
        member_token: Option<&Token>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let tokens = read_file(&settings.tokens_file)
            .and_then(|text| Tokens::parse(&text, &Tokens::default()))
            .map_err(|error| format!("TOKENS_FILE {}: {error}", settings.tokens_file.display()))?;
        settings.check_member(&tokens, member_token)?;
        metrics.tokens.set(tokens.len() as i64);
        let (tokens, failures) = (ArcSwap::from_pointee(tokens), Mutex::default());
        let shown = Mutex::new(member_token.cloned());
        let refusals = Arc::new(Refusals { metrics, lines_without_token: LineLimit::default() });
        Ok(Self(Some(Asking { settings, tokens, shown, failures, refusals })))
    }

    /// Takes over the tokens of `TOKENS_FILE`, and shows other members that of `MEMBER_TOKEN_FILE` through `clients`, whenever one of the
    /// files has changed, for ever. While a file makes no sense, or other members would not answer to this node, what was there before stays.
    pub async fn follow_files(
        access: Arc<Self>,
        member_token_file: Option<PathBuf>,
        clients: MemberClients,
        metrics: Arc<Metrics>,
        hangups: watch::Receiver<()>,
    ) {
        let tokens_file = access.0.as_ref().map(|asking| asking.settings.tokens_file.clone());
        if tokens_file.is_none() && member_token_file.is_none() {
            return std::future::pending().await;
        }
        let read = move || {
            let tokens = tokens_file.as_deref().map(read_file);
            Ok(Files { tokens, member: member_token_file.as_deref().map(read_member_token) })
        };
        let take = |files: &Result<Files, String>| {
            let Ok(Files { tokens, member }) = files else { return };
            let readable = member.as_ref().and_then(|member| member.as_ref().ok());
            let tokens = match (&access.0, tokens) {
                (Some(asking), Some(read)) => asking.take_over(read, readable),
                _ => Ok(()),
            };
            let member = member.as_ref().map_or(Ok(()), |member| {
                let member = member.as_ref().map_err(String::clone)?;
                if let Some(asking) = &access.0 {
                    asking.settings.check_member(&asking.tokens.load(), Some(member))?;
                    *asking.shown.lock() = Some(member.clone());
                }
                if clients.show(member) {
                    tracing::info!(target: AUDIT, "shows other members the new token of MEMBER_TOKEN_FILE");
                }
                Ok(())
            });
            for (file, taken, stays) in [
                ("tokens", tokens, "the tokens of before stay"),
                ("member_token", member, "the token of before is shown"),
            ] {
                metrics.file_taken(file, taken.is_ok());
                if let Err(error) = taken {
                    metrics.tokens_file_failures.inc();
                    tracing::error!("{error}; {stays}");
                }
            }
        };
        files::follow(read, take, hangups).await;
    }

    /// For a connection from this address.
    #[must_use]
    pub fn caller(access: &Arc<Self>, interface: &'static str, address: IpAddr) -> Caller {
        Caller { access: Arc::clone(access), interface, address, last: Mutex::default() }
    }
}

/// The files of tokens as they are, or why they can't be read.
#[derive(PartialEq)]
struct Files {
    tokens: Option<Result<String, String>>,
    member: Option<Result<Token, String>>,
}

fn read_member_token(path: &Path) -> Result<Token, String> {
    secret_file::parse("MEMBER_TOKEN_FILE", path, read_file(path))
}

impl AccessSettings {
    /// That other members would answer to who shows this, as far as this node's own tokens tell: all nodes have the same.
    fn check_member(&self, tokens: &Tokens, member: Option<&Token>) -> Result<(), String> {
        let file = self.tokens_file.display();
        match member {
            None if self.anonymous.has(Scope::Member) => Ok(()),
            None => Err(format!(
                "TOKENS_FILE {file} is set without MEMBER_TOKEN_FILE, so that other members would refuse this one; make a token \
                 with the scope member, or give that scope to ANONYMOUS"
            )),
            Some(token)
                if tokens.find(&token.hash()).is_some_and(|known| known.scopes.has(Scope::Member)) =>
            {
                Ok(())
            }
            Some(_) => Err(format!(
                "the token of MEMBER_TOKEN_FILE is not in TOKENS_FILE {file} with the scope member, so that other members would \
                 refuse this one"
            )),
        }
    }
}

impl Asking {
    /// Takes over what `TOKENS_FILE` has, if it has the token that `MEMBER_TOKEN_FILE` has, as far as that can be read, or the one that
    /// other members are shown now.
    fn take_over(&self, read: &Result<String, String>, member: Option<&Token>) -> Result<(), String> {
        let before = self.tokens.load_full();
        let parsed = read.as_ref().map_err(String::clone).and_then(|text| Tokens::parse(text, &before));
        let tokens = parsed
            .map_err(|error| format!("TOKENS_FILE {}: {error}", self.settings.tokens_file.display()))?;
        let of = |member: Option<&Token>| self.settings.check_member(&tokens, member);
        of(member).or_else(|error| of(self.shown.lock().as_ref()).map_err(|_| error))?;
        let (had, has, tokens) = (before.len(), tokens.len(), Arc::new(tokens));
        self.tokens.store(Arc::clone(&tokens));
        // After that, so that whoever finds its token withdrawn finds the new ones.
        let changed = before.withdraw_all_but(&tokens) || had != has;
        self.refusals.metrics.tokens.set(has as i64);
        if changed {
            tracing::info!(target: AUDIT, tokens = has, "took over the tokens of TOKENS_FILE");
        }
        Ok(())
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
        let (anonymous, refusals) = (asking.settings.anonymous, Arc::clone(&asking.refusals));
        Arc::new(Limited::new(token.cloned(), anonymous, self.interface, self.address, refusals))
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
        let refusals = &asking.refusals.metrics.access_refusals;
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
