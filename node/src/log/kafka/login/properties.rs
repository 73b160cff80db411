//! Which properties say where the tokens come from. The names are librdkafka's, but librdkafka is not told them: it was built without
//! libcurl, by which it would ask for the tokens itself, and refuses them.

use std::ffi::CString;

use reqwest::Url;

use super::endpoint::{Authorities, TokenEndpoint, is_loopback};

const METHOD: &str = "sasl.oauthbearer.method";
const URL: &str = "sasl.oauthbearer.token.endpoint.url";
const ID: &str = "sasl.oauthbearer.client.id";
const SECRET: &str = "sasl.oauthbearer.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const EXTENSIONS: &str = "sasl.oauthbearer.extensions";
const GRANT_TYPE: &str = "sasl.oauthbearer.grant.type";
const CA_FILE: &str = "https.ca.location";
const CA_TEXT: &str = "https.ca.pem";
/// librdkafka's own tokens, which nobody has signed.
const UNSIGNED: &str = "enable.sasl.oauthbearer.unsecure.jwt";
const UNSIGNED_CLAIMS: &str = "sasl.oauthbearer.config";

const MECHANISMS: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];
/// Other names that librdkafka has for some of these.
const ALIASES: [(&str, &str); 2] = [
    ("sasl.oauthbearer.client.credentials.client.id", ID),
    ("sasl.oauthbearer.client.credentials.client.secret", SECRET),
];

impl TokenEndpoint {
    /// Takes the properties that are about tokens out of those for librdkafka. `None` if a node does not log in by tokens of an
    /// endpoint (`sasl.oauthbearer.method=oidc`); then none is taken out.
    ///
    /// # Errors
    /// Which property is missing, wrong or of no use, and how to mend it. No value that may be secret is in it. Reads the file of
    /// `https.ca.location`, so that what is wrong with it is told, too.
    pub fn take_from(properties: &mut Vec<(String, String)>) -> Result<Option<Self>, String> {
        let by_tokens =
            last(properties, &MECHANISMS).is_some_and(|it| it.eq_ignore_ascii_case("OAUTHBEARER"));
        let unsigned = last(properties, &[UNSIGNED]).is_some_and(|it| it == "true" || it == "1");
        if !last(properties, &[METHOD]).is_some_and(|method| method.eq_ignore_ascii_case("oidc")) {
            let about_tokens = |name: &str| name.starts_with("sasl.oauthbearer.") && name != UNSIGNED_CLAIMS;
            let without_use =
                properties.iter().find(|(name, value)| about_tokens(name) && value != "default");
            return match without_use {
                Some((name, _)) => Err(format!(
                    "'{name}' is of use only with {METHOD}=oidc, which makes the node get tokens: set that, too"
                )),
                None if by_tokens && !unsigned => Err(format!(
                    "sasl.mechanism=OAUTHBEARER needs to know where tokens come from: set {METHOD}=oidc, {URL}, {ID} and {SECRET}"
                )),
                None => Ok(None),
            };
        }
        if !by_tokens {
            return Err(format!(
                "{METHOD}=oidc is for sasl.mechanism=OAUTHBEARER: set that, or take the first away"
            ));
        }
        if !last(properties, &["security.protocol"])
            .is_some_and(|it| it.to_ascii_uppercase().starts_with("SASL_"))
        {
            return Err(format!(
                "with {METHOD}=oidc the node logs in by SASL: set security.protocol=SASL_SSL (or SASL_PLAINTEXT, where the network is private)"
            ));
        }
        if unsigned {
            return Err(format!(
                "'{UNSIGNED}' makes tokens that nobody signed, and {METHOD}=oidc gets signed ones: set one of them"
            ));
        }
        Taken::from(properties)?.endpoint().map(Some)
    }
}

/// The values, as they were written; what is empty counts as not set, as it does for librdkafka.
#[derive(Default)]
struct Taken {
    url: Option<String>,
    id: Option<String>,
    secret: Option<String>,
    scope: Option<String>,
    extensions: Option<String>,
    ca_file: Option<String>,
    ca_text: Option<String>,
}

impl Taken {
    /// Of a name that is there twice, the last one counts.
    fn from(properties: &mut Vec<(String, String)>) -> Result<Self, String> {
        let mut taken = Self::default();
        let mut others = Vec::new();
        for (name, value) in properties.drain(..) {
            let known =
                ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, known)| known);
            let place = match known {
                URL => &mut taken.url,
                ID => &mut taken.id,
                SECRET => &mut taken.secret,
                SCOPE => &mut taken.scope,
                EXTENSIONS => &mut taken.extensions,
                CA_FILE => &mut taken.ca_file,
                CA_TEXT => &mut taken.ca_text,
                METHOD => continue,
                GRANT_TYPE if value == "client_credentials" => continue,
                _ if name.starts_with("sasl.oauthbearer.") => {
                    return Err(format!(
                        "the node has no use for '{name}': it gets tokens by client credentials alone ({URL}, {ID}, {SECRET}, and perhaps \
                         {SCOPE}, {EXTENSIONS} and {CA_FILE}); take it away"
                    ));
                }
                _ => {
                    others.push((name, value));
                    continue;
                }
            };
            *place = Some(value).filter(|value| !value.is_empty());
        }
        *properties = others;
        Ok(taken)
    }

    fn endpoint(self) -> Result<TokenEndpoint, String> {
        let missing = |name: &str, what: &str| {
            format!("'{name}' is missing, which {METHOD}=oidc needs: set it to {what}")
        };
        let url = self.url.ok_or_else(|| missing(URL, "where the tokens come from, an https://… address"))?;
        let client_id =
            self.id.ok_or_else(|| missing(ID, "the name by which the token endpoint knows the nodes"))?;
        let secret = "what the token endpoint knows them by, best from a file: @FILE";
        let client_secret = self.secret.ok_or_else(|| missing(SECRET, secret))?.into();
        let principal = CString::new(client_id.as_str()).map_err(|_| format!("'{ID}' has a zero byte"))?;
        let authorities = match (self.ca_file, self.ca_text) {
            (Some(_), Some(_)) => {
                return Err(format!("'{CA_FILE}' and '{CA_TEXT}' say both whom to trust: set one of them"));
            }
            (Some(file), None) if file != "probe" => Authorities::File(file.into()),
            (None, Some(text)) => Authorities::Text(text),
            _ => Authorities::System,
        };
        let endpoint = TokenEndpoint {
            url: address(&url)?,
            client_id,
            principal,
            client_secret,
            scope: self.scope,
            extensions: extensions(self.extensions.as_deref().unwrap_or_default())?,
            authorities,
        };
        endpoint.check()?;
        Ok(endpoint)
    }
}

fn last<'a>(properties: &'a [(String, String)], names: &[&str]) -> Option<&'a str> {
    properties.iter().rev().find(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.as_str())
}

/// The text is not in the errors: somebody may have written a secret into it.
fn address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("'{URL}' is no address ({error}): write https://HOST/PATH"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("'{URL}' has a user or a password in it: they belong into {ID} and {SECRET}"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(format!(
            "'{URL}' begins with http://, by which the client's secret and the tokens would pass through the network in the clear: write \
             https://. http:// is for an endpoint on this machine (localhost, 127.0.0.1, [::1]) only"
        )),
        _ => Err(format!("'{URL}' begins with neither https:// nor http://: write https://HOST/PATH")),
    }
}

/// `key=value,key=value`: a key and its value one after the other.
fn extensions(text: &str) -> Result<Vec<CString>, String> {
    let mut found = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let wrong = || {
            format!(
                "'{EXTENSIONS}' is not a list of NAME=VALUE, separated by commas, with names of the letters a to z and A to Z but for 'auth'"
            )
        };
        let (key, value) = pair.trim().split_once('=').ok_or_else(wrong)?;
        let is_key = !key.is_empty() && key != "auth" && key.bytes().all(|byte| byte.is_ascii_alphabetic());
        if !is_key || !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(wrong());
        }
        for text in [key, value] {
            found.push(CString::new(text).map_err(|_| wrong())?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 6] = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "OAUTHBEARER"),
        (METHOD, "oidc"),
        (URL, "http://127.0.0.1:1/token"),
        (ID, "nodes"),
        (SECRET, "s3cret"),
    ];

    fn properties(changed: &[(&str, &str)]) -> Vec<(String, String)> {
        GOOD.iter().chain(changed).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn refused(changed: &[(&str, &str)]) -> String {
        let error = TokenEndpoint::take_from(&mut properties(changed)).expect_err("it is refused");
        assert!(!error.contains("s3cret"), "{error}");
        error
    }

    #[test]
    fn librdkafka_is_told_nothing_of_where_tokens_come_from() {
        let mut properties = properties(&[
            ("ssl.ca.location", "ca.pem"),
            (SCOPE, "kafka"),
            (EXTENSIONS, "logicalCluster=lkc-1, identityPoolId=pool-2"),
            (GRANT_TYPE, "client_credentials"),
            // The last one counts, by any of its names.
            ("sasl.oauthbearer.client.credentials.client.id", "other"),
        ]);
        let endpoint =
            TokenEndpoint::take_from(&mut properties).expect("they are good").expect("an endpoint");
        let left: Vec<_> = properties.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(left, ["security.protocol", "sasl.mechanism", "ssl.ca.location"]);
        assert_eq!(
            (endpoint.url.as_str(), endpoint.client_id.as_str()),
            ("http://127.0.0.1:1/token", "other")
        );
        assert_eq!(endpoint.scope.as_deref(), Some("kafka"));
        assert_eq!(
            endpoint.extensions,
            [c"logicalCluster", c"lkc-1", c"identityPoolId", c"pool-2"].map(CString::from)
        );
        assert!(!format!("{endpoint:?}").contains("s3cret"), "{endpoint:?}");
    }

    #[test]
    fn a_node_without_tokens_keeps_its_properties() {
        for kept in [
            &[("sasl.mechanism", "SCRAM-SHA-512"), ("sasl.password", "p")][..],
            &[("sasl.mechanisms", "OAUTHBEARER"), (UNSIGNED, "true"), (UNSIGNED_CLAIMS, "principal=me")],
            &[("sasl.mechanism", "PLAIN"), (METHOD, "default")],
        ] {
            let mut properties: Vec<(String, String)> =
                kept.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            let before = properties.clone();
            assert!(TokenEndpoint::take_from(&mut properties).expect("they are good").is_none());
            assert_eq!(properties, before);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in [URL, ID, SECRET] {
            let error = refused(&[(name, "")]);
            assert!(error.starts_with(&format!("'{name}' is missing")), "{error}");
        }
        let mut without: Vec<(String, String)> = properties(&[]);
        without.retain(|(name, _)| !name.starts_with("sasl.oauthbearer."));
        let error = TokenEndpoint::take_from(&mut without).expect_err("no method");
        assert!([METHOD, URL, ID, SECRET].iter().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_write_instead() {
        for (changed, says) in [
            ((METHOD, "default"), METHOD),
            (("sasl.mechanism", "PLAIN"), "sasl.mechanism=OAUTHBEARER"),
            (("security.protocol", "SSL"), "security.protocol=SASL_SSL"),
            ((UNSIGNED, "true"), UNSIGNED),
            (("sasl.oauthbearer.assertion.file", "s3cret"), "'sasl.oauthbearer.assertion.file'"),
            ((GRANT_TYPE, "urn:ietf:params:oauth:grant-type:jwt-bearer"), GRANT_TYPE),
            ((URL, "http://idp.example/s3cret"), "write https://"),
            ((URL, "http://127.0.0.1.example/"), "write https://"),
            ((URL, "https://me:s3cret@idp.example/"), SECRET),
            ((URL, "s3cret"), "no address"),
            ((URL, "ftp://idp.example/"), "neither"),
            ((EXTENSIONS, "auth=s3cret"), "NAME=VALUE"),
            ((EXTENSIONS, "s3cret"), "NAME=VALUE"),
            ((EXTENSIONS, "a=s3cret\u{1}auth=x"), "NAME=VALUE"),
            ((CA_FILE, "/nowhere.pem"), "https.ca.location /nowhere.pem"),
        ] {
            let mut changes = vec![changed];
            if changed.0 == CA_FILE {
                changes.push((URL, "https://idp.example/token"));
            }
            let error = refused(&changes);
            assert!(error.contains(says), "{changed:?}: {error}");
        }
        let error = refused(&[(CA_TEXT, "s3cret"), (URL, "https://idp.example/token")]);
        assert!(error.contains(CA_TEXT), "{error}");
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for url in ["http://localhost:1/", "http://127.0.0.2/", "http://[::1]:1/token"] {
            assert!(address(url).is_ok(), "{url}");
        }
        for url in ["http://10.0.0.1/", "http://[::2]/", "http://localhost.example/"] {
            assert!(address(url).is_err(), "{url}");
        }
    }
}
