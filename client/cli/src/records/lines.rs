//! Reads lines of NDJSON and records of CSV, in blocks of bounded size.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

use super::csv::{self, Columns};
use super::{Line, Place, SHOWN_CHARACTERS, ndjson};

/// Read at a time. Long enough that a block fills several requests.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Whole lines that follow each other, or one that is too long to be kept.
enum Piece {
    Lines(Bytes),
    TooLong { head: Bytes, length: u64, newlines: u64 },
}

/// Splits an input into lines and parses them.
pub struct Lines<R> {
    input: R,
    format: Form,
    max_line: usize,
    place: Place,
    /// Read and not given out; of it `scanned` bytes, with `quoting` after them, are no end of a line.
    buffer: BytesMut,
    ended: bool,
}

enum Form {
    Ndjson,
    Csv(Columns),
}

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

impl<R: Read> Lines<R> {
    /// Begins at the start of `input`; of CSV it reads the header.
    ///
    /// The outer error is about reading, the inner one says what is wrong with the header.
    pub fn new(input: R, is_csv: bool, max_line: usize) -> io::Result<Result<Self, String>> {
        let (format, place) = (Form::Ndjson, Place::START);
        let mut lines = Self { input, format, max_line, place, buffer: BytesMut::new(), ended: false };
        if is_csv {
            lines.format = Form::Csv(Columns::default());
            let header = match lines.piece(true)? {
                Some(Piece::Lines(header)) => header,
                Some(Piece::TooLong { .. }) => return Ok(Err("the header line is too long".to_owned())),
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
            Some(Piece::TooLong { head, length, newlines }) => {
                let number = self.place.line;
                self.place =
                    Place { offset: self.place.offset + length, line: number + newlines, ..self.place };
                let entry =
                    Err(format!("it has {length} bytes; a line has at most {} (--max-line)", self.max_line));
                Ok(Some(vec![Line { number, next: self.place, text: head, entry }]))
            }
        }
    }

    fn advance(&mut self, block: &[u8]) {
        self.place.offset += block.len() as u64;
        self.place.line += newlines(block);
    }

    /// Whole lines, as many as are at hand, or the first alone.
    fn piece(&mut self, one: bool) -> io::Result<Option<Piece>> {
        let is_csv = matches!(self.format, Form::Csv(_));
        let (mut quoting, mut scanned, mut whole) = (Quoting::FieldStart, 0, 0);
        loop {
            for (at, &byte) in self.buffer.iter().enumerate().skip(scanned) {
                if is_csv {
                    quoting = quoting.after(byte);
                }
                if byte == b'\n' && quoting != Quoting::Quoted {
                    whole = at + 1;
                    if one {
                        break;
                    }
                }
            }
            scanned = self.buffer.len();
            if whole > 0 {
                return Ok(Some(Piece::Lines(self.buffer.split_to(whole).freeze())));
            }
            if self.ended {
                let last = self.buffer.split().freeze();
                return Ok((!last.is_empty()).then_some(Piece::Lines(last)));
            }
            if scanned > self.max_line {
                return self.skip(quoting, is_csv).map(Some);
            }
            self.read()?;
        }
    }

    /// Passes a line that is too long, of which all that was read is in the buffer.
    fn skip(&mut self, mut quoting: Quoting, is_csv: bool) -> io::Result<Piece> {
        let head = Bytes::copy_from_slice(&self.buffer[..self.buffer.len().min(4 * SHOWN_CHARACTERS)]);
        let (mut length, mut lines) = (0, 0);
        loop {
            length += self.buffer.len() as u64;
            lines += newlines(&self.buffer);
            self.buffer.clear();
            self.read()?;
            let end = self.buffer.iter().position(|&byte| {
                if is_csv {
                    quoting = quoting.after(byte);
                }
                byte == b'\n' && quoting != Quoting::Quoted
            });
            if let Some(end) = end {
                let last = self.buffer.split_to(end + 1);
                let (length, newlines) = (length + last.len() as u64, lines + newlines(&last));
                return Ok(Piece::TooLong { head, length, newlines });
            }
            if self.ended {
                return Ok(Piece::TooLong { head, length, newlines: lines });
            }
        }
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

pub(super) fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

/// Refuses a line that is longer than `--max-line`.
pub(super) fn check_length(length: usize, max_line: usize) -> Result<(), String> {
    if length <= max_line {
        return Ok(());
    }
    Err(format!("it has {length} bytes; a line has at most {max_line} (--max-line)"))
}
