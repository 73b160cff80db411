//! An export: what the store of a data folder holds, as lines that `bitacora import` reads, with no node and no log. It is what is left when the
//! topic is lost: no node goes on from a store of another topic.

use std::ops::Bound;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bitacora_program::console::{print, tell};
use serde::Serialize;

use super::STORE;
use crate::clock::WallTime;
use crate::data_dir::DataDir;
use crate::now_ms;
use crate::store::{Entry, State, Store};

/// A line, as `bitacora export` writes it.
#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    value: &'a str,
    /// Ms since the epoch; a record that is for ever has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
}

/// Prints every record that has neither been deleted nor expired, in key order.
///
/// # Errors
/// When there is no whole store in the folder, a node uses it, or stdout can't be written. Nothing of the store is changed.
pub fn export(data_dir: &Path) -> Result<()> {
    let root = data_dir.join(STORE);
    if !root.is_dir() {
        bail!("{} holds no store of a node; name its data folder with --data-dir", data_dir.display());
    }
    let _locked = DataDir::open(data_dir)?;
    let store = Store::open_existing(&root, 0)?;
    let checkpoint = store.checkpoint()?;
    let Some(identity) = checkpoint.identity.filter(|_| checkpoint.restored) else {
        bail!("the store in {} never was complete: it holds only a part of the log", root.display());
    };
    let (records, in_doubt) = print_all(&store).context("the export is not whole")?;
    tell(format_args!("bitacora-node: {records} records of {identity}"));
    if in_doubt {
        tell(
            "bitacora-node: some keys are in doubt: a conditional write of them could not be judged, and may be missing or printed in vain",
        );
    }
    Ok(())
}

/// The number of records, and whether a key is in doubt.
fn print_all(store: &Store) -> Result<(u64, bool)> {
    let now = WallTime::from_ms(now_ms());
    let (mut from, mut records, mut in_doubt) = (Bound::Unbounded, 0, false);
    loop {
        let page = store.scan(&from, &[], &[], usize::MAX, |entry| entry.state(now) == State::Live)?;
        let mut lines = Vec::new();
        for entry in &page.entries {
            put_line(entry, &mut lines)?;
        }
        records += page.entries.len() as u64;
        in_doubt |= page.in_doubt.is_some();
        print(lines)?;
        let Some(last) = page.last else { return Ok((records, in_doubt)) };
        from = Bound::Excluded(last);
    }
}

fn put_line(entry: &Entry, lines: &mut Vec<u8>) -> Result<()> {
    let key = str::from_utf8(entry.key()).context("a key of the store is not UTF-8")?;
    let value = entry.value().with_context(|| format!("the value of {key:?} is not UTF-8"))?;
    let expires = (entry.ttl() > 0).then(|| entry.ttl());
    serde_json::to_writer(&mut *lines, &Line { key, value, expires })?;
    lines.push(b'\n');
    Ok(())
}
