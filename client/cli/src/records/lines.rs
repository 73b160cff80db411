//! Reads lines of NDJSON and records of CSV, in blocks of bounded size.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

use super::csv::{self, Columns};
use super::ends::{Ends, LineCount, line_ends, unclosed};
use super::{Line, Place, SHOWN_CHARACTERS, ndjson, start};

/// Read at a time. Long enough that a block fills several requests.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Whole lines that follow each other, or one that is too long to be kept.
enum Piece {
    Lines(Bytes),
    TooLong(TooLong),
}

struct TooLong {
    head: Bytes,
    length: u64,
    line_ends: u64,
    /// Of CSV, if it got too long inside of quotes: ends of lines that are before them.
    before_quotes: Option<u64>,
    /// Those quotes are open at the end of the input.
    is_unclosed: bool,
}

/// Splits an input into lines and parses them.
pub struct Lines<R> {
    input: R,
    format: Form,
    max_line: usize,
    place: Place,
    /// Read and not given out.
    buffer: BytesMut,
    ended: bool,
}

enum Form {
    Ndjson,
    Csv(Columns),
}

impl<R: Read> Lines<R> {
    /// Begins at the start of `input`: passes a byte order mark, and of CSV reads the header.
    ///
    /// The outer error is about reading, the inner one says why it is no input of this format, or what is wrong with the header.
    pub fn new(input: R, is_csv: bool, max_line: usize) -> io::Result<Result<Self, String>> {
        let (format, place) = (Form::Ndjson, Place::START);
        let mut lines = Self { input, format, max_line, place, buffer: BytesMut::new(), ended: false };
        while !lines.ended && start::is_short(&lines.buffer) {
            lines.read()?;
        }
        match start::check(&lines.buffer, is_csv) {
            Ok(mark) => {
                let mark = lines.buffer.split_to(mark);
                lines.place.offset += mark.len() as u64;
            }
            Err(other) => return Ok(Err(other)),
        }
        if is_csv {
            lines.format = Form::Csv(Columns::default());
            let header = match lines.piece(true)? {
                Some(Piece::Lines(header)) => header,
                Some(Piece::TooLong(_)) => return Ok(Err("the header line is too long".to_owned())),
                None => Bytes::new(),
            };
            match Columns::of(&header) {
                Ok(columns) => lines.format = Form::Csv(columns),
                Err(wrong) => return Ok(Err(wrong)),
            }
            lines.advance(&header);
        }
        Ok(Ok(lines))
    }

    /// Goes on elsewhere in the same file; `input` stands there already.
    pub fn go_on(self, input: R, place: Place) -> Self {
        Self { input, place, buffer: BytesMut::new(), ended: false, ..self }
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The next lines, a few hundred KiB of them; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Vec<Line>>> {
        match self.piece(false)? {
            None => Ok(None),
            Some(Piece::Lines(block)) => {
                let lines = match &self.format {
                    Form::Ndjson => ndjson::lines(self.place, &block, self.max_line),
                    Form::Csv(columns) => csv::lines(self.place, &block, columns, self.max_line)?,
                };
                self.advance(&block);
                Ok(Some(lines))
            }
            Some(Piece::TooLong(too_long)) => Ok(Some(vec![self.reject(too_long)])),
        }
    }

    fn reject(&mut self, too_long: TooLong) -> Line {
        let TooLong { head, length, line_ends, before_quotes, is_unclosed } = too_long;
        let number = self.place.line;
        self.place = Place { offset: self.place.offset + length, line: number + line_ends, ..self.place };
        let reason = format!("it has {length} bytes; a line has at most {} (--max-line)", self.max_line);
        let reason = match before_quotes.map(|before| number + before) {
            Some(line) if is_unclosed => format!("{}; {reason}", unclosed(line)),
            Some(line) => {
                format!(
                    "{reason}; perhaps the quotes that begin in line {line} are not closed where they should be"
                )
            }
            None if head.contains(&b'\r') && !self.is_csv() => reason + ndjson::RETURNS,
            None => reason,
        };
        Line { number, next: self.place, text: head, entry: Err(reason) }
    }

    fn is_csv(&self) -> bool {
        matches!(self.format, Form::Csv(_))
    }

    fn advance(&mut self, block: &[u8]) {
        self.place.offset += block.len() as u64;
        self.place.line += line_ends(block, self.is_csv());
    }

    /// Whole lines, as many as are at hand, or the first alone.
    fn piece(&mut self, one: bool) -> io::Result<Option<Piece>> {
        let (mut ends, mut scanned) = (Ends::new(self.is_csv()), 0);
        loop {
            let whole = ends.pass_all(&self.buffer, scanned, one);
            scanned = self.buffer.len();
            if let Some(whole) = whole {
                return Ok(Some(Piece::Lines(self.buffer.split_to(whole).freeze())));
            }
            if self.ended {
                let last = self.buffer.split().freeze();
                return Ok((!last.is_empty()).then_some(Piece::Lines(last)));
            }
            if scanned > self.max_line {
                return self.skip(ends).map(Piece::TooLong).map(Some);
            }
            self.read()?;
        }
    }

    /// Passes a line that is too long, of which all that was read is in the buffer.
    fn skip(&mut self, mut ends: Ends) -> io::Result<TooLong> {
        let head = Bytes::copy_from_slice(&self.buffer[..self.buffer.len().min(4 * SHOWN_CHARACTERS)]);
        let before_quotes = ends.open_quotes();
        let (mut length, mut count) = (0, LineCount::new(self.is_csv()));
        let mut pass = |bytes: &[u8]| {
            length += bytes.len() as u64;
            count.pass_all(bytes);
        };
        let is_unclosed = loop {
            pass(&self.buffer.split());
            self.read()?;
            if let Some(end) = ends.pass_all(&self.buffer, 0, true) {
                pass(&self.buffer.split_to(end));
                break false;
            }
            if self.ended {
                break ends.open_quotes().is_some();
            }
        };
        let before_quotes = if is_unclosed { ends.open_quotes() } else { before_quotes };
        Ok(TooLong { head, length, line_ends: count.lines, before_quotes, is_unclosed })
    }

    fn read(&mut self) -> io::Result<()> {
        let before = self.buffer.len();
        self.buffer.resize(before + READ_BYTES, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(before + read.as_ref().copied().unwrap_or(0));
        self.ended = read? == 0;
        Ok(())
    }
}

/// Refuses a line that is longer than `--max-line`.
pub(super) fn check_length(length: usize, max_line: usize) -> Result<(), String> {
    if length <= max_line {
        return Ok(());
    }
    Err(format!("it has {length} bytes; a line has at most {max_line} (--max-line)"))
}
