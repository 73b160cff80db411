//! The token that a program shows, from a file or a variable: it is no argument, as others on the machine see those.

use std::path::Path;

use bitacora_protocol::token::Token;

use crate::secret_file;

/// The variable that may have the token itself.
pub const VARIABLE: &str = "BITACORA_TOKEN";

/// The token of `file`, which `--token-file` names, or else of the [`VARIABLE`].
///
/// # Errors
/// When there is something else than a token. It is not told what, which may be a secret of another kind.
pub fn read(file: Option<&Path>) -> Result<Option<Token>, String> {
    read_from(file, std::env::var(VARIABLE).ok())
}

fn read_from(file: Option<&Path>, variable: Option<String>) -> Result<Option<Token>, String> {
    let Some(path) = file else {
        let text = variable.filter(|text| !text.is_empty());
        let token = text.map(|text| text.parse().map_err(|error| format!("{VARIABLE}: {error}")));
        return token.transpose();
    };
    secret_file::read("--token-file", path).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_from_a_file_or_a_variable_and_is_never_told() {
        let token = Token::of([7; 32]);
        assert_eq!(read_from(None, None), Ok(None));
        assert_eq!(read_from(None, Some(String::new())), Ok(None));
        assert_eq!(read_from(None, Some(token.secret().to_owned())), Ok(Some(token.clone())));
        let error = read_from(None, Some("s3cret".to_owned())).expect_err("no token");
        assert!(error.starts_with("BITACORA_TOKEN: ") && !error.contains("s3cret"), "{error}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "s3cret\n").expect("written");
        let error = read_from(Some(file.path()), None).expect_err("no token");
        assert!(error.starts_with("--token-file ") && !error.contains("s3cret"), "{error}");
        std::fs::write(file.path(), format!("{}\n", token.secret())).expect("written");
        assert_eq!(read_from(Some(file.path()), Some("s3cret".to_owned())), Ok(Some(token)));
        let error = read_from(Some(Path::new("/nowhere/token")), None).expect_err("no file");
        assert!(error.contains("can't be read"), "{error}");
    }
}
