//! `get`, `set`, `del` and `scan`.

use std::io::{IsTerminal as _, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bitacora_client::{Operation, Outcome, Record, Scan, Visible, WriteCondition, WriteOperation, Written};
use bitacora_program::console::{print, report, tell};
use bitacora_program::files::same_file;
use bitacora_protocol::record::LARGEST_VALUE_BYTES;
use futures_util::{StreamExt as _, stream};

use crate::api::{Api, Failure, Kind};
use crate::cli::{Del, Get, KeyFormat, Output, Range, ScanArguments, Set, WriteFlags};
use crate::key_list::{self, ListedKey};
use crate::output::{self, KeyWritten, json_line, raw_line};

/// Calls for several keys under way at a time.
const UNDER_WAY: usize = 32;

pub async fn get(api: &Api, arguments: &Get, output: Option<Output>) -> Result<()> {
    let output = output.unwrap_or(Output::Raw);
    let (mut missing, mut rows) = (Vec::new(), Vec::new());
    let mut answers =
        stream::iter(&arguments.keys).map(|key| api.get(key, &arguments.read)).buffered(UNDER_WAY);
    while let Some(answer) = answers.next().await {
        let record = match answer {
            Err(failure) if failure.kind == Kind::NotFound => {
                missing.push(failure.sentence);
                continue;
            }
            answer => answer?,
        };
        match output {
            Output::Json => print(json_line(&record)?)?,
            Output::Table => rows.push(output::record_row(&record)),
            Output::Raw if arguments.no_newline => print(record.value)?,
            Output::Raw => print(record.value + "\n")?,
        }
    }
    if !rows.is_empty() {
        print(output::table(Some(output::RECORD_COLUMNS), rows))?;
    }
    if missing.is_empty() { Ok(()) } else { Err(Failure::new(Kind::NotFound, missing.join("; ")).into()) }
}

pub async fn set(api: &Api, arguments: &Set, output: Option<Output>) -> Result<()> {
    let value = match arguments.value.as_deref() {
        Some(value) if value != "-" => value.to_owned(),
        _ => tokio::task::spawn_blocking(value_from_stdin).await??,
    };
    if value.is_empty() && arguments.value.as_deref().is_none_or(|value| value == "-") && !arguments.empty {
        let sentence =
            "stdin is empty, so nothing is set; give --empty if an empty value is meant, or '' as the value";
        return Err(Failure::new(Kind::Usage, sentence).into());
    }
    let condition = arguments.condition();
    let written = api.set(&arguments.key, &value, arguments.ttl, condition, &arguments.write).await?;
    report_written([(arguments.key.as_str(), &written)], output)?;
    Ok(())
}

fn value_from_stdin() -> Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        tell("bitacora: reading the value from the terminal; Ctrl-D ends it");
    }
    value_from(stdin.lock(), LARGEST_VALUE_BYTES)
}

/// Reads a value of at most so many bytes, and no more than one byte beyond them.
fn value_from(input: impl Read, most: u64) -> Result<String> {
    let mut value = Vec::new();
    input.take(most + 1).read_to_end(&mut value).context("stdin can't be read")?;
    if value.len() as u64 > most {
        let sentence =
            format!("stdin has more than {most} bytes, which no node takes as a value (MAX_VALUE_BYTES)");
        return Err(Failure::new(Kind::Refused, sentence).into());
    }
    String::from_utf8(value)
        .context("stdin is not UTF-8, and a value is text; encode bytes, for example with base64")
}

pub async fn del(api: &Api, arguments: &Del, output: Option<Output>) -> Result<()> {
    match (&arguments.from_file, arguments.format) {
        (Some(file), format) => {
            let format = format.unwrap_or(KeyFormat::Ndjson);
            return del_listed(api, file, format, &arguments.write, output).await;
        }
        (None, Some(_)) => {
            return Err(Failure::new(
                Kind::Usage,
                "--format is how the file of --from-file lists keys; give both",
            )
            .into());
        }
        (None, None) => {}
    }
    let mut answers =
        stream::iter(&arguments.keys).map(|key| api.delete(key, &arguments.write)).buffered(UNDER_WAY);
    let mut deleted = Vec::new();
    let mut failed = None;
    for key in &arguments.keys {
        match answers.next().await {
            Some(Ok(written)) => deleted.push((key, written)),
            Some(Err(failure)) => failed = Some(of_key(key, &failure)),
            None => {}
        }
    }
    report_written(deleted.iter().map(|(key, written)| (key.as_str(), written)), output)?;
    failed.map_or(Ok(()), |failure| Err(failure.into()))
}

fn of_key(key: &str, failure: &Failure) -> Failure {
    Failure::new(failure.kind, format!("{}: {failure}", output::shown(key)))
}

/// Deletes the keys that a file lists, in its order, so many at a time; ends at the first that could not be deleted, unless it is no
/// key that a node takes, or its condition does not hold.
async fn del_listed(
    api: &Api,
    file: &Path,
    format: KeyFormat,
    asked: &WriteFlags,
    output: Option<Output>,
) -> Result<()> {
    let input = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    // A socket or a pipe may be both, and gives other bytes than it takes.
    let grows = std::fs::metadata(input).is_ok_and(|input| input.is_file());
    if grows && same_file(input, Path::new("/dev/stdout")) {
        let sentence =
            "stdout is the file of --from-file, which would grow while it is read; redirect it elsewhere";
        return Err(Failure::new(Kind::Usage, sentence).into());
    }
    let mut blocks = key_list::read(file, format)?;
    let (mut deleted, mut refused, mut not_met, mut is_read) =
        (0, Refused::default(), Refused::default(), true);
    while let Some(block) = blocks.recv().await {
        let ended = |error: anyhow::Error| {
            error.context(format!("ended early; {deleted} keys before it are deleted"))
        };
        let keys = block.map_err(ended)?;
        let operations: Vec<_> = keys.into_iter().map(|listed| deletion(listed, asked)).collect();
        let results = api.batch(&operations.iter().collect::<Vec<_>>()).await;
        let results = results.map_err(|failure| stopped(deleted, &failure))?;
        let mut written = Vec::new();
        let mut failed = None;
        for (operation, result) in operations.iter().zip(results) {
            match result {
                Ok(Outcome::Written(position)) => written.push((operation.key(), position)),
                Ok(Outcome::Read(_)) => {}
                Err(failure) if failure.is_refusal() => {
                    refused.add(of_key(operation.key(), &failure));
                }
                Err(failure) if failure.kind == Kind::NotMet => {
                    not_met.add(of_key(operation.key(), &failure));
                }
                Err(failure) => failed = Some(of_key(operation.key(), &failure)),
            }
        }
        deleted += written.len();
        is_read = is_read && report_written(written.iter().map(|(key, written)| (*key, written)), output)?;
        if let Some(failure) = failed {
            return Err(stopped(deleted, &failure).into());
        }
    }
    refused.tell("keys are refused", deleted)?;
    not_met.tell("keys are not deleted", deleted)
}

fn deletion(listed: ListedKey, asked: &WriteFlags) -> Operation {
    let ListedKey { key, condition } = listed;
    let condition =
        if condition == WriteCondition::None { asked.if_match.unwrap_or_default() } else { condition };
    let visible = asked.visible.unwrap_or_default();
    if condition == WriteCondition::None && visible == Visible::Acknowledged {
        return Operation::Delete { key };
    }
    Operation::Write(WriteOperation { condition, visible, ..Operation::remove(key) })
}

/// Listed keys that are not deleted: no node takes them, or their conditions do not hold.
#[derive(Default)]
struct Refused {
    count: usize,
    first: Option<Failure>,
}

impl Refused {
    fn add(&mut self, failure: Failure) {
        self.count += 1;
        self.first.get_or_insert(failure);
    }

    fn tell(self, what: &str, deleted: usize) -> Result<()> {
        let Self { count, first } = self;
        match first {
            None => Ok(()),
            Some(first) if count == 1 => Err(first.into()),
            Some(first) => {
                let sentence = format!("{count} {what}, the first: {first}; {deleted} keys are deleted");
                Err(Failure::new(first.kind, sentence).into())
            }
        }
    }
}

fn stopped(deleted: usize, failure: &Failure) -> Failure {
    Failure::new(failure.kind, format!("{failure}; {deleted} keys are deleted: run it again for the rest"))
}

/// Tells of writes. They are done, so a stdout that can't be written is no failure of the command; the answer is whether it can.
fn report_written<'a>(
    writes: impl IntoIterator<Item = (&'a str, &'a Written)>,
    output: Option<Output>,
) -> Result<bool> {
    let writes: Vec<_> = writes.into_iter().collect();
    for (key, written) in &writes {
        if !written.not_visible.is_empty() {
            let members = written.not_visible.join(", ");
            tell(format_args!("bitacora: {} is not shown yet by {members}; it will be", output::shown(key)));
        }
    }
    let mut writes = writes.into_iter();
    let text = match output.unwrap_or(Output::Raw) {
        Output::Json => {
            writes.map(|(key, written)| json_line(&KeyWritten { key, written })).collect::<Result<_, _>>()?
        }
        Output::Table => {
            let rows =
                writes.by_ref().map(|(key, written)| [output::shown(key), written.position.to_string()]);
            output::table(Some(["KEY", "POSITION"]), rows)
        }
        Output::Raw => writes.map(|(_, written)| format!("OK {}\n", written.position)).collect::<String>(),
    };
    Ok(report("bitacora", text))
}

pub async fn scan(api: &Arc<Api>, arguments: &ScanArguments, output: Option<Output>) -> Result<()> {
    let output = Output::of_list(output);
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let page = left.min(u64::from(Scan::DEFAULT_PAGE)) as u32;
    let mut pages = api.pages(arguments.range.scan(page), arguments.read.clone(), None);
    let mut first = true;
    while left > 0
        && let Some(page) = pages.recv().await
    {
        let mut records = page?.records;
        records.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= records.len() as u64;
        let mut text = String::new();
        match output {
            Output::Table if records.is_empty() => continue,
            Output::Table => print_table(&records, first)?,
            Output::Json => {
                for record in &records {
                    text += &json_line(record)?;
                }
            }
            Output::Raw => text.extend(records.iter().map(|record| raw_line([&record.key, &record.value]))),
        }
        print(text)?;
        first = false;
    }
    Ok(())
}

fn print_table(records: &[Record], first: bool) -> Result<()> {
    let header = first.then_some(output::RECORD_COLUMNS);
    Ok(print(output::table(header, records.iter().map(output::record_row)))?)
}

impl Range {
    pub fn scan(&self, page: u32) -> Scan {
        Scan::prefix(&self.prefix).start(&self.start).end(&self.end).page(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the same byte for ever, and counts.
    struct Endless(u64);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b'x');
            self.0 += buffer.len() as u64;
            Ok(buffer.len())
        }
    }

    #[test]
    fn stdin_is_read_no_further_than_a_value_may_be() {
        let mut endless = Endless(0);
        // Reading on would be stopped by nothing but the memory's end.
        let error = value_from(endless.by_ref().take(1 << 20), 1_000).expect_err("too much").to_string();
        assert!(error.contains("more than 1000 bytes") && endless.0 == 1_001, "{error} {}", endless.0);
        assert_eq!(value_from(&b"1234"[..], 4).expect("a value"), "1234");
        assert!(value_from(&b"12345"[..], 4).is_err());
    }
}
