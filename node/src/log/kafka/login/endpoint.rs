//! The token endpoint: it is asked by client credentials (RFC 6749, section 4.4).

use std::error::Error;
use std::ffi::CString;
use std::fmt;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bitacora_protocol::tls::{self, ClientTls, TlsError};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};

use super::token::{self, Token};
use crate::http_client;

/// How long one question may take, with the connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A longer answer is refused. Tokens have some hundred bytes, and with many groups in them some thousand.
const MAX_ANSWER_BYTES: u64 = 1 << 17;

/// Where a node gets its tokens, and what it shows for them.
#[derive(Clone, Debug)]
pub struct TokenEndpoint {
    /// `https`, or `http` on this machine.
    pub(super) url: Url,
    pub(super) client_id: String,
    /// The same, for librdkafka, which has it in its log lines.
    pub(super) principal: CString,
    pub(super) client_secret: Secret,
    /// What the token should be good for, separated by spaces.
    pub(super) scope: Option<String>,
    /// What brokers are shown beside the token: a name and its value one after the other.
    pub(super) extensions: Vec<CString>,
    pub(super) authorities: Authorities,
}

/// A text that is never printed.
#[derive(Clone)]
pub(super) struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("…")
    }
}

/// Whose certificates an endpoint over https may have.
#[derive(Clone, Debug)]
pub(super) enum Authorities {
    /// What the system trusts, for public services.
    System,
    /// In PEM; read again each time.
    File(PathBuf),
    /// In PEM.
    Text(String),
}

impl TokenEndpoint {
    /// Checks what can be checked without asking.
    ///
    /// # Errors
    /// When the authorities can't be read; names the property.
    pub(super) fn check(&self) -> Result<(), String> {
        self.tls().map(|_| ())
    }

    /// Without a query, in which there may be something secret.
    pub(super) fn shown(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.to_string()
    }

    /// Asks for a token. Blocks, for [`REQUEST_TIMEOUT`] at the most.
    ///
    /// # Errors
    /// Why there is none, and how to mend it. Neither the secret nor a token is in it.
    pub(super) fn fetch(&self) -> Result<Token, String> {
        self.ask().map_err(|reason| {
            format!("the token endpoint {} (sasl.oauthbearer.token.endpoint.url) {reason}", self.shown())
        })
    }

    fn ask(&self) -> Result<Token, String> {
        let mut builder = http_client::blocking_builder();
        if let Some(tls) = self.tls()? {
            builder = builder.tls_backend_preconfigured(tls).https_only(true);
        }
        // What a redirect led to would be shown the secret.
        let builder = builder.redirect(reqwest::redirect::Policy::none()).timeout(REQUEST_TIMEOUT);
        let client = builder.build().map_err(|error| format!("can't be asked: {}", cause(&error)))?;
        let request = client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, self.authorization()?)
            .body(self.form());
        let answer = request.send().map_err(|error| not_answered(&error))?;
        let status = answer.status();
        let mut body = Vec::new();
        answer
            .take(MAX_ANSWER_BYTES + 1)
            .read_to_end(&mut body)
            .map_err(|error| format!("broke off its answer: {error}"))?;
        if status.is_success() {
            if u64::try_from(body.len()).is_ok_and(|length| length > MAX_ANSWER_BYTES) {
                return Err(format!("answers with more than {MAX_ANSWER_BYTES} bytes, which is no token"));
            }
            return token::read(&body);
        }
        Err(self.refusal(status, &body))
    }

    /// Both parts encoded, as RFC 6749 wants it (section 2.3.1), so that a ':' in the name does no harm.
    fn authorization(&self) -> Result<HeaderValue, String> {
        let mut value = HeaderValue::try_from(format!("Basic {}", self.credentials()))
            .map_err(|_| "can't be asked: the client's name and secret are no header".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn credentials(&self) -> String {
        STANDARD.encode(format!("{}:{}", encoded(&self.client_id), encoded(&self.client_secret.0)))
    }

    fn form(&self) -> String {
        let scope = self.scope.as_deref().map(|scope| format!("&scope={}", encoded(scope)));
        format!("grant_type=client_credentials{}", scope.unwrap_or_default())
    }

    /// `None` for plain http.
    fn tls(&self) -> Result<Option<ClientConfig>, String> {
        if self.url.scheme() != "https" {
            return Ok(None);
        }
        let (name, roots) = match &self.authorities {
            Authorities::System => ("the system's authorities".to_owned(), system_authorities()),
            Authorities::Text(pem) => ("https.ca.pem".to_owned(), tls::authorities(pem.as_bytes())),
            Authorities::File(path) => {
                let name = format!("https.ca.location {}", path.display());
                let pem = std::fs::read(path).map_err(|error| {
                    format!("{name} can't be read: {error}; it has to be a file with the authorities of the token endpoint, in PEM")
                })?;
                (name, tls::authorities(&pem))
            }
        };
        let tls = roots.and_then(ClientTls::trusting);
        tls.map(|tls| Some(tls.http_config())).map_err(|error| match (&self.authorities, error) {
            (Authorities::System, TlsError::NoCertificate) => {
                "this system knows no authorities, so the token endpoint can't be trusted: name a file of them in https.ca.location"
                    .to_owned()
            }
            (_, error) => format!("{name}: {error}"),
        })
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> String {
        if status.is_redirection() {
            return format!(
                "answers {status}, which leads elsewhere, and the node does not follow: set the address that it leads to"
            );
        }
        // RFC 6749, section 5.2.
        let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        // Who wrote it may have put in what it was sent.
        let is_harmless =
            |text: &&str| !self.secret_forms().iter().any(|secret| text.contains(secret.as_str()));
        let text = |name: &str| answer.get(name).and_then(serde_json::Value::as_str).filter(is_harmless);
        let Some(code) = text("error") else {
            return format!(
                "answers {status} instead of a token; its own log says why, or the address is another's"
            );
        };
        let mend = match code {
            "invalid_scope" => "look at sasl.oauthbearer.scope",
            "invalid_client" | "unauthorized_client" | "access_denied" => {
                "look at sasl.oauthbearer.client.id and sasl.oauthbearer.client.secret, and at what it lets this client do"
            }
            _ => "look at its log, and at the properties sasl.oauthbearer.…",
        };
        let description = text("error_description").map(|text| format!(", '{}'", token::shown(text)));
        let description = description.unwrap_or_default();
        format!("gives no token: {status}, {}{description}; {mend}", token::shown(code))
    }

    /// The secret as it may come back: itself, and as it is sent.
    fn secret_forms(&self) -> [String; 3] {
        [self.client_secret.0.clone(), encoded(&self.client_secret.0), self.credentials()]
    }
}

/// Whether this machine itself is meant.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn system_authorities() -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    // One that is of no use here does not make the others worse.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoCertificate) } else { Ok(Arc::new(roots)) }
}

fn not_answered(error: &reqwest::Error) -> String {
    if let Some(reason) = http_client::tls_reason(error) {
        return format!(
            "is not trusted: {reason}; https.ca.location names a file with the authorities of its certificate, which must be valid for the \
             host in the address"
        );
    }
    if error.is_timeout() {
        return format!(
            "did not answer within {} s; look whether it is up, and reached from here",
            REQUEST_TIMEOUT.as_secs()
        );
    }
    format!("does not answer: {}; look whether it is up, and reached from here", cause(error))
}

/// What is at the bottom of it; what is above names the address again, with all that is in it.
fn cause(error: &reqwest::Error) -> String {
    let mut last: Option<&(dyn Error + 'static)> = error.source();
    while let Some(deeper) = last.and_then(Error::source) {
        last = Some(deeper);
    }
    last.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

/// For forms and for the two parts of RFC 6749's credentials. '~' stays, as in addresses: some endpoints don't decode what they compare.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// An endpoint on this machine, at a port.
    pub(in super::super) fn endpoint(port: u16) -> TokenEndpoint {
        TokenEndpoint {
            url: Url::parse(&format!("http://127.0.0.1:{port}/token?tenant=hidden")).expect("an address"),
            client_id: "nodes:1".into(),
            principal: c"nodes".into(),
            client_secret: "s3cret +~".to_owned().into(),
            scope: Some("read write".into()),
            extensions: Vec::new(),
            authorities: Authorities::System,
        }
    }

    /// Answers one request, and returns what it was.
    fn answering(answer: String) -> (u16, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(stream.try_clone().expect("the same connection"));
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let begin = head.len();
                reader.read_line(&mut head).expect("a line");
                if let Some((name, value)) = head[begin..].split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the body");
            let _ = stream.write_all(answer.as_bytes());
            head + &String::from_utf8_lossy(&body)
        });
        (port, server)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    #[test]
    fn it_is_asked_as_the_rfc_wants() {
        let (port, server) = answering(answer("200 OK", r#"{"access_token":"t0ken","expires_in":60}"#));
        let token = endpoint(port).fetch().expect("a token");
        assert_eq!(token.value.as_c_str(), c"t0ken");
        let request = server.join().expect("it was asked");
        assert!(request.starts_with("POST /token?tenant=hidden HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\ngrant_type=client_credentials&scope=read%20write"), "{request}");
        let basic = format!("Basic {}\r\n", STANDARD.encode("nodes%3A1:s3cret%20%2B~"));
        assert!(request.contains(&basic), "{request}");
    }

    #[test]
    fn why_there_is_no_token_is_told_in_a_sentence_without_secrets() {
        let long = "x".repeat(1 << 18);
        for (status, body, says) in [
            (
                "401 Unauthorized",
                r#"{"error":"invalid_client"}"#,
                "401 Unauthorized, invalid_client; look at sasl.oauthbearer.client.id",
            ),
            (
                "400 Bad Request",
                r#"{"error":"invalid_scope","error_description":"no\nsuch"}"#,
                "invalid_scope, 'no?such'; look at sasl.oauthbearer.scope",
            ),
            (
                "400 Bad Request",
                r#"{"error":"odd","error_description":"you sent s3cret +~"}"#,
                "400 Bad Request, odd; look at its log",
            ),
            (
                "400 Bad Request",
                r#"{"error":"odd","error_description":"you sent bm9kZXMlM0ExOnMzY3JldCUyMCUyQn4="}"#,
                "400 Bad Request, odd; look at its log",
            ),
            ("400 Bad Request", r#"{"error":"s3cret%20%2B~"}"#, "answers 400 Bad Request instead of a token"),
            ("404 Not Found", "<html>s3cret +~</html>", "answers 404 Not Found instead of a token"),
            ("302 Found", "", "leads elsewhere"),
            ("200 OK", "s3cret +~", "no JSON"),
            ("200 OK", long.as_str(), "more than 131072 bytes"),
        ] {
            let (port, server) = answering(answer(status, body));
            let error = endpoint(port).fetch().expect_err(says);
            assert!(error.contains(says), "{error}");
            assert!(
                error.starts_with(&format!("the token endpoint http://127.0.0.1:{port}/token (sasl.")),
                "{error}"
            );
            assert!(
                !error.contains("s3cret") && !error.contains("hidden") && !error.contains('\n'),
                "{error}"
            );
            server.join().expect("it was asked");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let error = endpoint(nobody).fetch().expect_err("nobody is there");
        assert!(
            error.contains("does not answer: ") && error.contains("refused") && !error.contains("hidden"),
            "{error}"
        );
    }
}
