//! Writes what a run has measured into the repository: the page's table, the charts, and the figures to compare with.

use anyhow::{Context, Result};

use super::results::{Results, root};
use super::{charts, kept, table};

const BEGIN: &str = "<!-- table: written by the suite, `--write` -->";
const END: &str = "<!-- end of the table -->";

/// A whole run goes into the page; of a quick one, the figures alone are kept. Parts that did not run stay as they are.
///
/// # Errors
/// When a file can't be read or written.
pub fn write(results: Results, parts: &[&str], quick: bool) -> Result<()> {
    let file = kept::file(quick);
    let before = Results::read(&file).unwrap_or_default();
    let mut results = before.replaced_by(results);
    results.sort(parts);
    results.write(&file)?;
    if quick {
        return Ok(());
    }
    let path = root().join("docs/performance.md");
    let page = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let charts = charts::all(&results);
    let pictures: String =
        charts.iter().map(|(name, title, _)| format!("![{title}](performance/{name})\n\n")).collect();
    let table = format!("{}\n\n{}\n{pictures}", results.host.describe(), table::markdown(&results.rows));
    std::fs::write(&path, with_table(&page, &table)?)?;
    for (name, _, chart) in charts {
        let path = root().join("docs/performance").join(name);
        std::fs::write(&path, chart).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The page with another table in the place that it has for it.
///
/// # Errors
/// When it has none.
pub fn with_table(page: &str, table: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("the page has no place for the table")?;
    let (_, tail) = rest.split_once(END).context("the page's table has no end")?;
    Ok(format!("{head}{BEGIN}\n\n{table}{END}{tail}"))
}
