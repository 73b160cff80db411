//! An OAuth token endpoint (client credentials, RFC 6749 section 4.4) whose tokens a broker checks by their signature.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certified;

/// The only client. The name has what has to be encoded.
pub const CLIENT_ID: &str = "bitacora:nodes";
/// What it shows. It is no secret: the endpoint lives as long as a test.
pub const CLIENT_SECRET: &str = "a secret+of/a:test%";
/// As both appear in the credentials (RFC 6749, section 2.3.1).
const ENCODED: &str = "bitacora%3Anodes:a%20secret%2Bof%2Fa%3Atest%25";
/// What is asked for.
pub const SCOPE: &str = "kafka log";
const FORM: &str = "grant_type=client_credentials&scope=kafka%20log";
/// What the broker expects of a token.
pub const ISSUER: &str = "https://issuer.test";
/// The same.
pub const AUDIENCE: &str = "kafka-of-a-test";

/// What signs tokens.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// A new key.
    ///
    /// # Errors
    /// When none can be made.
    pub fn new() -> Result<Arc<Signer>> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| anyhow!("no key"))?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)
            .map_err(|error| anyhow!("the key: {error}"))?;
        Ok(Arc::new(Signer { key, random }))
    }

    /// The public key, as brokers read it (RFC 7517).
    pub fn key_set(&self) -> String {
        // A byte that says that both coordinates follow, and they.
        let point = &self.key.public_key().as_ref()[1..];
        let [x, y] = [&point[..32], &point[32..]].map(|half| URL_SAFE_NO_PAD.encode(half));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": x, "y": y }] })
            .to_string()
    }

    fn sign(&self, claims: &serde_json::Value) -> Result<String> {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "1" });
        let [header, claims] = [&header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature =
            self.key.sign(&self.random, signed.as_bytes()).map_err(|_| anyhow!("no signature"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The endpoint, on 127.0.0.1; gone with its connections when dropped.
pub struct TokenServer {
    pub url: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    signer: Arc<Signer>,
    /// Of a token, in seconds.
    life: u64,
    audience: Mutex<String>,
    given: Mutex<Vec<String>>,
}

impl TokenServer {
    /// Gives out tokens that are good for `life` seconds. Over https if it has a certificate.
    ///
    /// # Errors
    /// When the port is taken or the certificate can't be used.
    pub async fn start(
        port: u16,
        signer: &Arc<Signer>,
        life: u64,
        certified: Option<&Certified>,
    ) -> Result<TokenServer> {
        let acceptor = certified.map(Certified::acceptor).transpose()?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("listening")?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let audience = Mutex::new(AUDIENCE.to_owned());
        let state = State { signer: Arc::clone(signer), life, audience, given: Mutex::default() };
        let state = Arc::new(state);
        let task = tokio::spawn(serve(listener, acceptor, Arc::clone(&state)));
        Ok(TokenServer { url: format!("{scheme}://127.0.0.1:{port}/oauth/token"), state, task })
    }

    /// For whom tokens are from now on.
    pub fn set_audience(&self, audience: &str) {
        audience.clone_into(&mut self.state.audience.lock());
    }

    /// All tokens that were given out.
    pub fn given(&self) -> Vec<String> {
        self.state.given.lock().clone()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&state)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What a client did wrong, or that it went, is its own business.
async fn connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    let service = service_fn(|request| answer(request, &state));
    match acceptor {
        None => {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
        Some(acceptor) => {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    }
}

async fn answer(request: Request<Incoming>, state: &State) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_client = request
        .headers()
        .get(AUTHORIZATION)
        .is_some_and(|shown| shown.as_bytes() == format!("Basic {}", STANDARD.encode(ENCODED)).as_bytes());
    let path = request.uri().path().to_owned();
    let form = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (status, body) = match () {
        () if path != "/oauth/token" => (StatusCode::NOT_FOUND, json!({})),
        () if !is_client => {
            let description = "who is that";
            (StatusCode::UNAUTHORIZED, json!({ "error": "invalid_client", "error_description": description }))
        }
        () if form != FORM => (StatusCode::BAD_REQUEST, json!({ "error": "invalid_request" })),
        () => match token(state) {
            Ok(token) => {
                let body = json!({ "access_token": token, "token_type": "Bearer", "expires_in": state.life });
                (StatusCode::OK, body)
            }
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, json!({})),
        },
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    Ok(response)
}

fn token(state: &State) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut given = state.given.lock();
    // The second that has begun is no part of its life. The number makes each another one.
    let token = state.signer.sign(&json!({
        "iss": ISSUER, "sub": "bitacora", "aud": *state.audience.lock(), "scope": "kafka",
        "iat": now, "exp": now + 1 + state.life, "jti": given.len().to_string(),
    }))?;
    given.push(token.clone());
    Ok(token)
}
