//! The HTTP client of all calls within a deployment: to other members, to this node itself, to metadata of the machine, to a
//! collector beside the node.

use bitacora_protocol::token::Token;
use reqwest::ClientBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

/// A client to be built with timeouts. It uses no proxy, whatever `http_proxy` or `all_proxy` say: a proxy leads out of the
/// deployment, and the members are not there.
pub fn builder() -> ClientBuilder {
    ClientBuilder::new().no_proxy()
}

/// The same for a thread without a runtime.
pub fn blocking_builder() -> reqwest::blocking::ClientBuilder {
    reqwest::blocking::ClientBuilder::new().no_proxy()
}

/// Makes the clients by which members are asked: each request shows a token.
#[derive(Clone, Default)]
pub struct MemberClients {
    headers: HeaderMap,
}

impl MemberClients {
    /// `token` is what `MEMBER_TOKEN_FILE` has, or who makes a backup.
    #[must_use]
    pub fn new(token: Option<&Token>) -> Self {
        let authorization = token.and_then(|token| HeaderValue::try_from(token.authorization()).ok());
        let headers = authorization.map(|mut authorization| {
            authorization.set_sensitive(true);
            (AUTHORIZATION, authorization)
        });
        Self { headers: headers.into_iter().collect() }
    }

    /// A client to be built with timeouts. It follows no redirect: a member has no reason to send one, and what it led to would be
    /// shown the token.
    pub fn builder(&self) -> ClientBuilder {
        builder().default_headers(self.headers.clone()).redirect(reqwest::redirect::Policy::none())
    }
}
