//! `bitacora token`: makes a token. It goes into a file that only its owner may read, and the line by which nodes know it to stdout.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use bitacora_program::console::print;
use bitacora_protocol::token::{Token, TokenLine};

use crate::cli;
use crate::output::json_line;

pub fn make(arguments: &cli::Token) -> Result<()> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| anyhow!("the system gives no random bytes: {error}"))?;
    let token = Token::of(random);
    let cli::Token { name, scopes, prefix, out } = arguments;
    let line = TokenLine::of(&token, name.clone(), scopes.clone(), prefix.clone());
    line.check().map_err(|error| anyhow!(error))?;
    write_secret(out, &token).with_context(|| {
        format!("the token can't be written to {}; choose another file with --out", out.display())
    })?;
    Ok(print(json_line(&line)?)?)
}

/// Into a new file: a token that is there already is not overwritten.
fn write_secret(path: &Path, token: &Token) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{}\n", token.secret()).as_bytes())?;
    file.sync_all()
}
