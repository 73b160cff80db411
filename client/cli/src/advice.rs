//! What to do about a failure, by the names of flags.

use std::error::Error;

use bitacora_protocol::tls::TlsAdvice;

/// What the client library calls a setting, and what its flags are here.
const FLAGS: [(&str, &str); 3] = [
    ("ClientBuilder::tls", "--ca-file (BITACORA_CA_FILE)"),
    ("ClientTls::new", "--ca-file (BITACORA_CA_FILE)"),
    ("ClientTls::with_certificate", "--cert-file and --key-file (BITACORA_CERT_FILE, BITACORA_KEY_FILE)"),
];

/// How what a node says ends where a flag helps, and how to go on with that.
const ENDS: [(&str, &str); 2] = [
    ("this port speaks TLS: use https", ", and give --ca-file (BITACORA_CA_FILE)"),
    (", and the call has none", "; give --token-file (BITACORA_TOKEN_FILE)"),
];

/// How what a node says begins where the call's token is missing or not good for it. Over Avro RPC no code tells that.
const DENIED: [&str; 3] =
    ["this needs a token with the scope ", "the token of the call is not known here", "the token '"];

/// A sentence of the client library, with flags in the place of its settings.
pub fn by_flags(sentence: &str) -> String {
    FLAGS.iter().fold(sentence.to_owned(), |sentence, (setting, flags)| sentence.replace(setting, flags))
}

/// What helps against an error of TLS.
pub fn on_tls(error: &(dyn Error + 'static)) -> Option<String> {
    TlsAdvice::on(error).map(|advice| by_flags(&advice.to_string()))
}

/// What a node says, with the flag that helps.
pub fn with_flag(said: String) -> String {
    match ENDS.iter().find(|(end, _)| said.ends_with(end)) {
        Some((_, flag)) => said + flag,
        None => said,
    }
}

/// Whether a node says that the call's token is missing, or not good for it.
pub fn is_denied(said: &str) -> bool {
    DENIED.iter().any(|begin| said.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_library_are_told_as_flags() {
        let told = by_flags("leave ClientBuilder::tls out, or give ClientTls::with_certificate");
        assert!(
            told.starts_with("leave --ca-file (BITACORA_CA_FILE) out, or give --cert-file and"),
            "{told}"
        );
        for advice in [
            TlsAdvice::Authority,
            TlsAdvice::Name,
            TlsAdvice::NoTls,
            TlsAdvice::PerhapsNoTls,
            TlsAdvice::Certificate,
        ] {
            assert!(!by_flags(&advice.to_string()).contains("::"), "{advice}");
        }
    }

    #[test]
    fn what_nodes_say_of_tokens_is_known() {
        let none = "this needs a token with the scope read, and the call has none";
        assert_eq!(with_flag(none.into()), format!("{none}; give --token-file (BITACORA_TOKEN_FILE)"));
        for denied in [
            none,
            "this needs a token with the scope write, and that of the call, 'web', does not have it",
            "the token of the call is not known here, or no more; a call has 'Bearer TOKEN' in Authorization",
            "the token 'web' is good for keys that begin with 'web/' only",
            "the token 'web' is not known here any more",
        ] {
            assert!(is_denied(denied), "{denied}");
        }
        assert!(!is_denied("this is no token of a watch; give one as it came, or none to begin anew"));
    }
}
