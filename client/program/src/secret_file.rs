//! Secrets that a program finds in files: they are no arguments, as others on the machine see those.

use std::path::Path;
use std::str::FromStr;

/// The secret in a file, which `setting` names.
///
/// # Errors
/// When the file can't be read, or has something else. It is not told what, which may be a secret of another kind: neither may the
/// secret's own errors.
pub fn read<T: FromStr<Err = String>>(setting: &str, path: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("it can't be read: {error}"));
    parse(setting, path, text)
}

/// The secret in a file's text, or why the file can't be read.
///
/// # Errors
/// As [`read`].
pub fn parse<T: FromStr<Err = String>>(
    setting: &str,
    path: &Path,
    text: Result<String, String>,
) -> Result<T, String> {
    let secret = text.and_then(|text| text.parse());
    secret.map_err(|error| format!("{setting} {}: {error}", path.display()))
}
