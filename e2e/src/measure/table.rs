//! The table, as text for a terminal and as Markdown for the page.

use super::row::{Better, Row, Target};
use crate::figures::Spread;

const HEAD: [&str; 8] =
    ["work", "figure", "ours", "beside", "theirs", "ratio (least to most)", "target", "CPU s per million"];

/// A number with about three digits that count, thousands apart.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((&text[..], None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut apart = String::from(sign);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    rest.map_or_else(|| apart.clone(), |rest| format!("{apart}.{rest}"))
}

fn ratio(spread: &Spread) -> String {
    let Spread { median, least, most } = spread;
    format!("{median:.2} ({least:.2} to {most:.2})")
}

/// The target in the words of the table, and whether it is reached.
fn target(row: &Row) -> String {
    let sign = if row.better == Better::Higher { "≥" } else { "≤" };
    let text = match row.target {
        None => return "-".to_owned(),
        Some(Target::Ratio(target)) => format!("{sign} {target}"),
        Some(Target::Figure(target)) => format!("{sign} {}", number(target)),
    };
    match row.reached() {
        Some(true) => format!("{text}: yes"),
        Some(false) => format!("{text}: no"),
        None => text,
    }
}

fn cells(row: &Row) -> [String; 8] {
    let theirs = match (&row.peer, &row.theirs) {
        (None, _) => "-".to_owned(),
        (Some(_), None) => "not found".to_owned(),
        (Some(_), Some(theirs)) => number(theirs.median),
    };
    let cpu = row.cpu.map_or("-".to_owned(), |[ours, theirs]| {
        let one = |value: Option<f64>| value.filter(|value| *value > 0.0).map_or("-".to_owned(), number);
        format!("{}, {}", one(ours), one(theirs))
    });
    [
        row.work.clone(),
        row.figure.clone(),
        number(row.ours.median),
        row.peer.clone().unwrap_or_else(|| "-".to_owned()),
        theirs,
        row.ratio.as_ref().map_or("-".to_owned(), ratio),
        target(row),
        cpu,
    ]
}

/// In columns, for a terminal.
pub fn text(rows: &[Row]) -> String {
    let head = HEAD.map(str::to_owned);
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let line = |cells: &[String; 8]| {
        let padded: Vec<_> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// As a table of Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut table = line(&HEAD.map(str::to_owned)) + &line(&HEAD.map(|_| "---".to_owned()));
    for row in rows {
        table += &line(&cells(row));
    }
    table
}
