//! Where lines of NDJSON and records of CSV end, byte by byte, so that an input may come in parts of any size.
//!
//! A line of NDJSON ends with LF. A record of CSV ends with LF, CR or both, outside of quotes; and so do the lines that it is
//! counted in, inside of quotes too.

/// Where a CSV reader is with respect to quotes, in which an end of line is none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote in a quoted field: its end, or the first of two that stand for one.
    QuoteSeen,
}

impl Quoting {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::QuoteSeen,
            (Self::Quoted, _) => Self::Quoted,
            (Self::FieldStart | Self::QuoteSeen, b'"') => Self::Quoted,
            (_, b',' | b'\r' | b'\n') => Self::FieldStart,
            _ => Self::Plain,
        }
    }
}

/// Counts ends of lines.
#[derive(Clone, Copy)]
pub(super) struct LineCount {
    is_csv: bool,
    pub lines: u64,
    after_return: bool,
}

impl LineCount {
    pub fn new(is_csv: bool) -> Self {
        Self { is_csv, lines: 0, after_return: false }
    }

    pub fn pass(&mut self, byte: u8) {
        let is_return = self.is_csv && byte == b'\r';
        let after_return = std::mem::replace(&mut self.after_return, is_return);
        self.lines += u64::from(is_return || byte == b'\n' && !after_return);
    }

    pub fn pass_all(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.pass(*byte);
        }
    }
}

/// How many ends of lines there are in bytes that do not begin between a CR and its LF.
pub(super) fn line_ends(bytes: &[u8], is_csv: bool) -> u64 {
    if !is_csv {
        return memchr::memchr_iter(b'\n', bytes).count() as u64;
    }
    let mut count = LineCount::new(is_csv);
    count.pass_all(bytes);
    count.lines
}

/// Finds the ends of lines, or of CSV's records.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    is_csv: bool,
    quoting: Quoting,
    /// The last byte is a CR outside of quotes: whether the record ends there is told by the next, which may be its LF.
    after_return: bool,
    /// Of a CSV record so far.
    count: LineCount,
    /// Ends of lines of the record that are before the quotes of its last quoted field.
    before_quotes: u64,
}

impl Ends {
    pub fn new(is_csv: bool) -> Self {
        Self {
            is_csv,
            quoting: Quoting::FieldStart,
            after_return: false,
            count: LineCount::new(is_csv),
            before_quotes: 0,
        }
    }

    /// Takes the bytes from `from` on; the answer is the last end of a line or a record that is told by them, or the first one if `one` is
    /// all that is asked for. What follows it is not taken then.
    pub fn pass_all(&mut self, bytes: &[u8], from: usize, one: bool) -> Option<usize> {
        if !self.is_csv {
            let find = if one { memchr::memchr } else { memchr::memrchr };
            return find(b'\n', &bytes[from..]).map(|at| from + at + 1);
        }
        let mut last = None;
        for (at, &byte) in bytes.iter().enumerate().skip(from) {
            if let Some(end) = self.pass(at, byte) {
                last = Some(end);
                if one {
                    break;
                }
            }
        }
        last
    }

    /// Takes the byte of CSV at `at`; the answer is where the record that it belongs to, or that is before it, ends.
    fn pass(&mut self, at: usize, byte: u8) -> Option<usize> {
        if self.after_return && byte != b'\n' {
            *self = Self::new(true);
            let _ = self.pass(at, byte);
            return Some(at);
        }
        let before = self.quoting;
        self.quoting = before.after(byte);
        if before == Quoting::FieldStart && self.quoting == Quoting::Quoted {
            self.before_quotes = self.count.lines;
        }
        self.count.pass(byte);
        if self.quoting == Quoting::Quoted {
            return None;
        }
        self.after_return = byte == b'\r';
        if byte == b'\n' {
            *self = Self::new(true);
            return Some(at + 1);
        }
        None
    }

    /// Inside of quotes: ends of lines of the record that are before them.
    pub fn open_quotes(&self) -> Option<u64> {
        (self.quoting == Quoting::Quoted).then_some(self.before_quotes)
    }
}

/// What is wrong with the quotes of a whole record that begins in line `first`.
pub(super) fn check_quotes(record: &[u8], first: u64) -> Result<(), String> {
    if !record.contains(&b'"') {
        return Ok(());
    }
    let (mut quoting, mut count, mut begun) = (Quoting::FieldStart, LineCount::new(true), 0);
    for &byte in record {
        let before = quoting;
        quoting = before.after(byte);
        if before == Quoting::FieldStart && quoting == Quoting::Quoted {
            begun = count.lines;
        }
        if before == Quoting::QuoteSeen && quoting == Quoting::Plain {
            return Err(format!(
                "text follows in line {} on the quotes that end a field, which begins in line {}: either a quote in a \
                 text is not doubled, or quotes are not closed where they should be",
                first + count.lines,
                first + begun
            ));
        }
        count.pass(byte);
    }
    if quoting == Quoting::Quoted { Err(unclosed(first + begun)) } else { Ok(()) }
}

pub(super) fn unclosed(line: u64) -> String {
    format!(
        "the quotes that begin in line {line} are not closed: all that follows, up to the end of the file, would be one field"
    )
}
