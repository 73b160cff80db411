//! Properties for librdkafka, which come from a flag and from a file, and whose values may be secrets.

use std::path::Path;

use crate::log::kafka::RESERVED_PROPERTIES;

/// The properties of the file, then those of the flag: of a name that is in both, librdkafka takes the last.
///
/// # Errors
/// What is wrong in which file and line.
pub fn read(file: Option<&Path>, flags: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut properties = Vec::new();
    if let Some(path) = file {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("KAFKA_PROPERTIES_FILE {shown} can't be read: {error}"))?;
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if !line.is_empty() && !line.starts_with('#') {
                properties.push(property(line).map_err(|error| format!("{shown}, line {number}: {error}"))?);
            }
        }
    }
    // Not by clap, whose errors show the whole value, which may be a secret.
    for text in flags.iter().filter(|text| !text.trim().is_empty()) {
        properties.push(property(text).map_err(|error| format!("KAFKA_PROPERTIES: {error}"))?);
    }
    Ok(properties)
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("'{}' is not name=value", name_only(text)))?;
    let name = name.trim();
    if RESERVED_PROPERTIES.contains(&name) {
        return Err(format!("'{name}' is the node's own business and can't be set"));
    }
    let value = value.trim();
    let value = if let Some(path) = value.strip_prefix('@') {
        std::fs::read_to_string(path)
            .map_err(|error| format!("the file of '{name}', {path}, can't be read: {error}"))?
            .trim_end_matches(['\n', '\r'])
            .to_owned()
    } else if let Some(variable) = value.strip_prefix('$') {
        // Unnamed in the error: a secret that happens to begin with '$' looks the same.
        // An empty one counts as unset, as for the settings.
        std::env::var(variable).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
            format!("the variable of '{name}' is not set (a value that begins with '$' has to come from a file: @FILE)")
        })?
    } else {
        value.to_owned()
    };
    Ok((name.to_owned(), value))
}

/// The start of a text that may hold a secret.
fn name_only(text: &str) -> String {
    text.chars().take(12).collect::<String>() + "…"
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn properties_of_text_and_files_never_touch_correctness() {
        assert_eq!(property("ssl.ca.location = /a=b"), Ok(("ssl.ca.location".into(), "/a=b".into())));
        assert!(property("acks=0").expect_err("reserved").contains("'acks'"));
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "s3cret\n").expect("written");
        let path = file.path().display();
        assert_eq!(
            property(&format!("sasl.password=@{path}")),
            Ok(("sasl.password".into(), "s3cret".into()))
        );
        let path = std::env::var("PATH").expect("tests run with a path");
        assert_eq!(property("sasl.password = $PATH"), Ok(("sasl.password".into(), path)));
        let error = property("sasl.password=$ecret").expect_err("no such variable");
        assert!(error.contains("'sasl.password'") && !error.contains("ecret"), "{error}");
        let error = property("averylongsecretwithoutname").expect_err("no name");
        assert!(!error.contains("without"), "{error}");
        let cli = Cli::try_parse_from(["bitacora-node", "serve", "--kafka-properties", "a=b;acks=0"])
            .expect("not by clap");
        let Command::Serve(settings) = cli.command else { panic!("serve was asked for") };
        assert!(settings.properties().expect_err("reserved").starts_with("KAFKA_PROPERTIES: 'acks'"));
    }
}
