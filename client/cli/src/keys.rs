//! `get`, `set`, `del` and `scan`.

use std::io::{IsTerminal as _, Read as _};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bitacora_client::{Record, Scan, Written};
use futures_util::{StreamExt as _, stream};

use crate::api::{Api, Failure, Kind};
use crate::cli::{Del, Get, Output, Range, ScanArguments, Set};
use crate::output::{self, KeyWritten, json_line, print, raw_line};

/// Calls for several keys under way at a time.
const UNDER_WAY: usize = 32;

pub async fn get(api: &Api, arguments: &Get, output: Option<Output>) -> Result<()> {
    let output = output.unwrap_or(Output::Raw);
    let (mut missing, mut rows) = (Vec::new(), Vec::new());
    let mut answers = stream::iter(&arguments.keys).map(|key| api.get(key)).buffered(UNDER_WAY);
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
    let written = api.set(&arguments.key, &value, arguments.ttl).await?;
    print_written([(arguments.key.as_str(), &written)], output)
}

fn value_from_stdin() -> Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("bitacora: reading the value from the terminal; Ctrl-D ends it");
    }
    let mut value = Vec::new();
    stdin.lock().read_to_end(&mut value).context("stdin can't be read")?;
    String::from_utf8(value)
        .context("stdin is not UTF-8, and a value is text; encode bytes, for example with base64")
}

pub async fn del(api: &Api, arguments: &Del, output: Option<Output>) -> Result<()> {
    let mut answers = stream::iter(&arguments.keys).map(|key| api.delete(key)).buffered(UNDER_WAY);
    let mut deleted = Vec::new();
    let mut failed = None;
    for key in &arguments.keys {
        match answers.next().await {
            Some(Ok(written)) => deleted.push((key, written)),
            Some(Err(failure)) => failed = Some(Failure { sentence: format!("{key}: {failure}"), ..failure }),
            None => {}
        }
    }
    print_written(deleted.iter().map(|(key, written)| (key.as_str(), written)), output)?;
    failed.map_or(Ok(()), |failure| Err(failure.into()))
}

fn print_written<'a>(
    writes: impl IntoIterator<Item = (&'a str, &'a Written)>,
    output: Option<Output>,
) -> Result<()> {
    let mut writes = writes.into_iter();
    match output.unwrap_or(Output::Raw) {
        Output::Json => {
            writes.try_for_each(|(key, written)| Ok(print(json_line(&KeyWritten { key, written })?)?))
        }
        Output::Table => {
            let rows = writes.map(|(key, written)| [output::shown(key), written.position.to_string()]);
            Ok(print(output::table(Some(["KEY", "POSITION"]), rows))?)
        }
        Output::Raw => writes.try_for_each(|(_, written)| Ok(print(format!("OK {}\n", written.position))?)),
    }
}

pub async fn scan(api: &Arc<Api>, arguments: &ScanArguments, output: Option<Output>) -> Result<()> {
    let output = Output::of_list(output);
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let page = left.min(u64::from(Scan::DEFAULT_PAGE)) as u32;
    let mut pages = api.pages(arguments.range.scan(page), None);
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
