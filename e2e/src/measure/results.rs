//! What a run of the suite has measured so far, and where it is kept.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::host::Host;
use super::row::{Row, Series};
use super::table;

/// Rows, curves, and the machine that they are of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub host: Host,
    pub rows: Vec<Row>,
    pub series: Vec<Series>,
}

static SO_FAR: Mutex<Option<Results>> = Mutex::new(None);

/// The checkout's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where each run leaves what it has measured, also one that is interrupted.
fn file() -> PathBuf {
    root().join("target/suite.json")
}

fn change(change: impl FnOnce(&mut Results)) {
    let mut so_far = SO_FAR.lock().unwrap_or_else(PoisonError::into_inner);
    let results = so_far.get_or_insert_default();
    change(results);
    if let Err(error) = results.write(&file()) {
        eprintln!("suite: {error:#}");
    }
}

/// Prints rows and keeps them.
pub fn add(rows: impl IntoIterator<Item = Row>) {
    let rows: Vec<_> = rows.into_iter().filter(|row| row.ours.median.is_finite()).collect();
    println!("\n{}", table::text(&rows));
    change(|results| results.rows.extend(rows));
}

pub fn add_series(series: Series) {
    change(|results| results.series.push(series));
}

/// What all parts have added.
pub fn take() -> Results {
    SO_FAR.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
}

impl Results {
    /// # Errors
    /// When the file can't be read, or is none of these.
    pub fn read(file: &Path) -> Result<Results> {
        let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is of another suite", file.display()))
    }

    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    /// With what a run of some parts, or of all, has measured anew in the place of the same parts'.
    #[must_use]
    pub fn replaced_by(mut self, newer: Results) -> Results {
        let is_newer = |part: &str| newer.rows.iter().any(|row| row.part == part);
        self.rows.retain(|row| !is_newer(&row.part));
        self.series.retain(|series| !is_newer(&series.part));
        self.rows.extend(newer.rows.iter().cloned());
        self.series.extend(newer.series.iter().cloned());
        self.host = newer.host;
        self
    }

    /// In this order of parts, whatever order they ran in.
    pub fn sort(&mut self, parts: &[&str]) {
        self.rows.sort_by_key(|row| parts.iter().position(|part| *part == row.part));
    }
}
