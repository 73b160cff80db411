//! Keys that a file lists, read a block at a time on a thread of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bitacora_protocol::WriteCondition;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::cli::KeyFormat;
use crate::records::condition;

/// Keys in a block.
const BLOCK: usize = 500;
/// Bytes of a line: a value may be in it too, of which each character may take six.
const LONGEST_LINE: u64 = 64 << 20;

/// A key, and the condition on which it is deleted, if its line has one.
#[derive(Debug, PartialEq, Eq)]
pub struct ListedKey {
    pub key: String,
    pub condition: WriteCondition,
}

impl From<String> for ListedKey {
    fn from(key: String) -> Self {
        Self { key, condition: WriteCondition::None }
    }
}

/// The keys of a file or, for `-`, of stdin; after an error nothing more comes.
///
/// # Errors
/// When the file can't be opened.
pub fn read(path: &Path, format: KeyFormat) -> Result<mpsc::Receiver<Result<Vec<ListedKey>>>> {
    let (name, input): (_, Box<dyn io::Read + Send>) = if path == Path::new("-") {
        ("stdin".to_owned(), Box::new(io::stdin()))
    } else {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{name} can't be opened"))?;
        (name, Box::new(file))
    };
    let (send, blocks) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut keys = Keys { input: BufReader::new(input), name, format, line: 0 };
        loop {
            let (block, error) = keys.block();
            let ends = block.len() < BLOCK;
            let sent = block.is_empty() || send.blocking_send(Ok(block)).is_ok();
            match error {
                Some(error) => drop(send.blocking_send(Err(error))),
                None if sent && !ends => continue,
                None => {}
            }
            return;
        }
    });
    Ok(blocks)
}

struct Keys<R> {
    input: R,
    /// Of the input, for errors.
    name: String,
    format: KeyFormat,
    /// The number of the last that was read.
    line: u64,
}

impl<R: BufRead> Keys<R> {
    /// The next keys, fewer than [`BLOCK`] at the end, and why it is the end, if it is not that of the input.
    fn block(&mut self) -> (Vec<ListedKey>, Option<anyhow::Error>) {
        let mut keys = Vec::new();
        while keys.len() < BLOCK {
            match self.next() {
                Ok(Some(key)) => keys.push(key),
                Ok(None) => break,
                Err(error) => return (keys, Some(error)),
            }
        }
        (keys, None)
    }

    fn next(&mut self) -> Result<Option<ListedKey>> {
        let end = match self.format {
            KeyFormat::Ndjson => b'\n',
            KeyFormat::Nul => 0,
        };
        loop {
            let mut text = Vec::new();
            let read = self.input.by_ref().take(LONGEST_LINE).read_until(end, &mut text);
            let read = read.with_context(|| format!("{} can't be read", self.name))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let ended = text.last() == Some(&end);
            if ended {
                text.pop();
            } else if read as u64 == LONGEST_LINE {
                bail!("{}, line {}: it has more than {LONGEST_LINE} bytes", self.name, self.line);
            }
            let key = match self.format {
                KeyFormat::Nul if ended => {
                    let key = String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned());
                    key.map(|key| Some(key.into()))
                }
                KeyFormat::Nul => Err("no zero byte ends it; was it cut off?".to_owned()),
                KeyFormat::Ndjson => key_of_json(&text, self.line == 1),
            };
            match key {
                Ok(Some(key)) => return Ok(Some(key)),
                // An empty line.
                Ok(None) => {}
                Err(wrong) => bail!("{}, line {}: {wrong}", self.name, self.line),
            }
        }
    }
}

/// The key of a line, `None` of an empty one.
fn key_of_json(line: &[u8], first: bool) -> Result<Option<ListedKey>, String> {
    #[derive(Deserialize)]
    struct Object {
        key: String,
        #[serde(rename = "ifMatch")]
        if_match: Option<String>,
    }
    // A byte order mark.
    let line = if first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
    let key = match line.trim_ascii() {
        b"" => return Ok(None),
        line @ [b'{', ..] => serde_json::from_slice(line),
        line @ [b'"', ..] => serde_json::from_slice(line).map(|key| Object { key, if_match: None }),
        _ => return Err("it is neither a JSON object with a field \"key\" nor a JSON string".to_owned()),
    };
    let Object { key, if_match } = key.map_err(|error| {
        let told = error.to_string();
        // It counts lines of its own.
        told.rsplit_once(" at line ").map_or(told.clone(), |(what, _)| what.to_owned())
    })?;
    Ok(Some(ListedKey { key, condition: condition(if_match.as_deref(), false)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(format: KeyFormat, input: &[u8]) -> (Vec<String>, String) {
        let mut keys = Keys { input, name: "stdin".into(), format, line: 0 };
        let (block, error) = keys.block();
        let keys = block.into_iter().map(|listed| listed.key).collect();
        (keys, error.map(|error| error.to_string()).unwrap_or_default())
    }

    #[test]
    fn a_line_is_an_object_or_a_string() {
        let input = b"\xef\xbb\xbf{\"key\":\"a\\nb\",\"value\":{}}\r\n\n \"c\" \n{\"value\":1,\"key\":\"\"}";
        let (keys, error) = keys(KeyFormat::Ndjson, input);
        assert_eq!((keys, error.as_str()), (vec!["a\nb".to_owned(), "c".into(), String::new()], ""));
    }

    #[test]
    fn what_is_neither_is_told_with_its_line() {
        for (line, says) in [
            ("k", "neither a JSON object"),
            ("{\"kee\":1}", "missing field `key`"),
            ("{\"key\":1}", "invalid type"),
            ("\"cut o", "EOF"),
            ("{\"key\":\"a\"} x", "trailing characters"),
            ("[\"a\"]", "neither"),
        ] {
            let (keys, error) = keys(KeyFormat::Ndjson, format!("\"a\"\n{line}\n\"b\"\n").as_bytes());
            assert_eq!(keys, ["a"]);
            assert!(error.starts_with("stdin, line 2: ") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_zero_byte_ends_a_key() {
        assert_eq!(
            keys(KeyFormat::Nul, b"a\nb\0\0c\0"),
            (vec!["a\nb".into(), String::new(), "c".into()], String::new())
        );
        let (whole, error) = keys(KeyFormat::Nul, b"a\0cut o");
        assert!(whole == ["a"] && error.contains("line 2: no zero byte"), "{error}");
        assert!(keys(KeyFormat::Nul, b"\xff\0").1.contains("not UTF-8"));
    }

    #[test]
    fn a_block_is_bounded() {
        assert_eq!(keys(KeyFormat::Nul, &b"a\0".repeat(BLOCK + 1)).0.len(), BLOCK);
    }
}
