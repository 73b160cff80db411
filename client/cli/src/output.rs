//! What goes to stdout.

use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitacora_client::{Record, Written};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::Output;

/// Characters of a text in a table.
const SHOWN: usize = 60;

impl Output {
    /// For lists and reports: for the eye on a terminal, else for a program.
    pub fn of_list(chosen: Option<Self>) -> Self {
        chosen.unwrap_or(if std::io::stdout().is_terminal() { Self::Table } else { Self::Json })
    }
}

pub fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|line| line + "\n")
}

pub fn table<const N: usize>(
    header: Option<[&str; N]>,
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if let Some(header) = header {
        table.set_header(header);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

/// A text on one line of limited length, for the eye.
pub fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(printable).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let is_escaped = c.is_control() || is_unseen(c);
    let escaped = is_escaped.then(|| c.escape_default());
    let plain = (!is_escaped).then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

/// Whether a character is not seen itself: it has no width, ends a line, or turns the text behind it around. One text could look
/// like another by it, or a value like the cell beside it.
fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// A field of raw output: tabs and ends of lines can't be mistaken.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\\' => escaped.push_str("\\\\"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The fields of raw output, escaped, and a newline.
pub fn raw_line<const N: usize>(fields: [&str; N]) -> String {
    fields.map(escaped).join("\t") + "\n"
}

pub const RECORD_COLUMNS: [&str; 5] = ["KEY", "VALUE", "AGE", "TTL", "POSITION"];

pub fn record_row(record: &Record) -> [String; 5] {
    let now = now_ms();
    let ttl = if record.ttl == 0 { "-".to_owned() } else { rough(record.ttl - now) };
    [
        shown(&record.key),
        shown(&record.value),
        rough(now - record.timestamp),
        ttl,
        record.position.to_string(),
    ]
}

/// A write, with the key that it is about.
#[derive(Serialize)]
pub struct KeyWritten<'a> {
    pub key: &'a str,
    #[serde(flatten)]
    pub written: &'a Written,
}

pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Whether what goes to stdout may have colours: on a terminal that has them, unless `NO_COLOR` says otherwise.
pub fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// A number of ms in its largest unit, as kubectl tells ages.
pub fn rough(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How many a second; of a time too short to say, of a millisecond.
pub fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_fields_can_not_be_mistaken() {
        assert_eq!(raw_line(["a\tb", "c\\t\nd\r", ""]), "a\\tb\tc\\\\t\\nd\\r\t\n");
    }

    #[test]
    fn tables_are_for_the_eye() {
        let rows = [["a".into(), shown("x\ny\u{1b}[31m")], ["bcd".into(), String::new()]];
        let table = table(Some(["KEY", "VALUE"]), rows);
        assert_eq!(table, "KEY   VALUE\na     x\\ny\\u{1b}[31m\nbcd\n");
        assert_eq!(shown(&"ü".repeat(61)), "ü".repeat(60) + "…");
        for unseen in ["\u{200b}\u{200f}", "\u{202a}\u{202e}", "\u{2066}\u{2069}", "\u{feff}"] {
            assert_eq!(shown(unseen), unseen.escape_unicode().to_string());
        }
        assert_eq!(shown("שלום \u{202e}a"), "שלום \\u{202e}a", "letters that run from right to left stay");
        assert_eq!(
            [-1, 119_999, 120_000, 7_200_000, 999_999_999].map(rough),
            ["0s", "119s", "2m", "2h", "11d"]
        );
    }
}
