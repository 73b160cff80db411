//! The lines of a batch's body, cut out of it as it arrives.

use std::ops::Range;

/// A buffer above this is given back once it is mostly empty.
const LARGE_BUFFER_BYTES: usize = 256 * 1024;

/// U+FEFF in UTF-8, which some editors write in front of a text.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Cuts a stream of bytes into lines of a bounded length; of one that is not taken only its end is looked for.
pub struct Lines {
    buffer: Vec<u8>,
    /// Where the first line begins, and up to where no line feed is.
    start: usize,
    searched: usize,
    limit: usize,
    /// Why the line that is arriving is not taken.
    skipping: Option<Skipped>,
    ended: bool,
    /// Of the last line taken, from 1; blank ones count.
    number: u64,
}

/// Why a line was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    TooLong,
    NoMemory,
}

impl Lines {
    /// Of at most `limit` bytes each.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, limit, skipping: None, ended: false, number: 0 }
    }

    /// The longest line that is taken, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Of the last line that was taken or skipped, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Of lines that were not taken yet.
    pub fn bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The memory that this takes once so many bytes more were pushed.
    pub fn memory_with(&self, more: usize) -> usize {
        let (needed, capacity) = (self.bytes() + more, self.buffer.capacity());
        if needed <= capacity { capacity } else { needed.max(2 * capacity) }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        // One long line must not leave a large buffer behind.
        let needed = self.buffer.len() + bytes.len();
        if self.buffer.capacity() > LARGE_BUFFER_BYTES && needed < self.buffer.capacity() / 4 {
            self.buffer.shrink_to(needed);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The last line may lack its line feed.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Drops the line that is arriving, since there is no memory for it. To be called when [`Lines::next`] finds no more.
    pub fn skip(&mut self) {
        self.drop_partial_line(Skipped::NoMemory);
    }

    fn drop_partial_line(&mut self, why: Skipped) {
        self.skipping.get_or_insert(why);
        self.buffer = Vec::new();
        (self.start, self.searched) = (0, 0);
    }

    /// The text of a line that [`Lines::next`] has found, as long as nothing was done to this since.
    pub fn text(&self, line: &Range<usize>) -> &[u8] {
        self.buffer.get(line.clone()).unwrap_or_default()
    }

    /// Where the next line is that is not blank; an error for one that was not taken.
    pub fn next(&mut self) -> Option<Result<Range<usize>, Skipped>> {
        loop {
            let found = memchr::memchr(b'\n', &self.buffer[self.searched..]).map(|at| self.searched + at);
            let at_the_end = self.ended && (self.start < self.buffer.len() || self.skipping.is_some());
            let end = match found {
                Some(end) => end,
                None if at_the_end => self.buffer.len(),
                None => {
                    self.searched = self.buffer.len();
                    if self.skipping.is_some() || self.searched - self.start > self.limit {
                        self.drop_partial_line(Skipped::TooLong);
                    }
                    return None;
                }
            };
            let (line, skipped) = (self.start..end, self.skipping.take());
            self.start = (end + 1).min(self.buffer.len());
            self.searched = self.start;
            self.number += 1;
            // As it came, like the one that is skipped: the result must not hang on where the pieces end.
            let skipped = skipped.or((line.len() > self.limit).then_some(Skipped::TooLong));
            if let Some(why) = skipped {
                return Some(Err(why));
            }
            let whole = &self.buffer[line];
            // Of the body, not of its first line.
            let mark = if self.number == 1 { BYTE_ORDER_MARK } else { b"" };
            let text = whole.strip_prefix(mark).unwrap_or(whole).trim_ascii_start();
            let start = end - text.len();
            let text = start..start + text.trim_ascii_end().len();
            if !text.is_empty() {
                return Some(Ok(text));
            }
            if self.ended && self.start == self.buffer.len() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_lines_within_the_limit(
            bytes in prop_oneof![any::<Vec<u8>>(), "[a\n \r]{0,80}".prop_map(String::into_bytes)],
            step in 1..20_usize,
        ) {
            let longest = cut(&bytes, step);
            prop_assert_eq!(&longest, &cut(&bytes, bytes.len() + 1));
            prop_assert!(longest.len() <= memchr::memchr_iter(b'\n', &bytes).count() + 1);
        }
    }

    fn cut(text: &[u8], step: usize) -> Vec<Result<String, u64>> {
        let mut lines = Lines::new(10);
        let mut found = Vec::new();
        let mut take = |lines: &mut Lines| {
            while let Some(line) = lines.next() {
                let text = |line| String::from_utf8_lossy(lines.text(&line)).into_owned();
                found.push(line.map(text).map_err(|_| lines.number));
            }
        };
        for piece in text.chunks(step) {
            lines.push(piece);
            take(&mut lines);
            assert!(lines.buffer.len() <= 10 + 1 + step, "it holds {} bytes", lines.buffer.len());
        }
        lines.end();
        take(&mut lines);
        found
    }

    #[test]
    fn a_long_line_is_skipped_wherever_the_pieces_end() {
        let text = b"one\r\n\n  two\n0123456789012345678901234567890\nthree\n1234567890\nend";
        let expected: Vec<Result<String, u64>> = ["one", "two", "", "three", "1234567890", "end"]
            .map(|line| if line.is_empty() { Err(4) } else { Ok(line.to_owned()) })
            .into();
        for step in 1..text.len() {
            assert_eq!(cut(text, step), expected, "in pieces of {step}");
        }
        assert_eq!(cut(b"a\n01234567890123", 3), [Ok("a".to_owned()), Err(2)]);
        assert_eq!(cut(b"", 3), []);
        for step in 1..8 {
            let marked = cut("\u{feff}one\n\u{feff}two".as_bytes(), step);
            assert_eq!(marked, [Ok("one".to_owned()), Ok("\u{feff}two".to_owned())], "in pieces of {step}");
            assert_eq!(cut("\u{feff}".as_bytes(), step), []);
        }
        assert_eq!(cut(b"\n \n", 3), []);
    }

    #[test]
    fn a_line_without_memory_is_skipped_to_its_end() {
        let mut lines = Lines::new(100);
        let next = |lines: &mut Lines| Some(lines.next()?.map(|line| lines.text(&line).to_vec()));
        lines.push(b"one\ntw");
        assert_eq!(next(&mut lines), Some(Ok(b"one".to_vec())));
        assert_eq!((next(&mut lines), lines.bytes()), (None, 2));
        lines.skip();
        assert_eq!(lines.bytes(), 0);
        lines.push(b"o\nthree\n");
        assert_eq!(next(&mut lines), Some(Err(Skipped::NoMemory)));
        assert_eq!((lines.number(), next(&mut lines)), (2, Some(Ok(b"three".to_vec()))));
    }
}
