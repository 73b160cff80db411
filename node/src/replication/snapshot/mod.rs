//! A node's store as a stream of bytes: what one member sends another ([`serve`], [`fetch`]), and what a backup's file
//! holds ([`backup`]). [`export`] prints a store's records instead, with no node.
//!
//! The stream: [`MAGIC`]; the length of a [`Header`] (u32) and the header as JSON; frames, each a length (u32, not 0) and
//! so many bytes of a compacted copy of LMDB's file; 0 (u32) as the end; the number of the file's bytes (u64) and their
//! XXH3 of 128 bits, without a seed. All numbers are big-endian. The checksum tells a damaged or cut stream from a whole one. It does not make a liar
//! honest: members are trusted as far as their answers to reads are.

pub mod backup;
mod copy_file;
pub mod export;
pub mod fetch;
pub mod serve;

use std::io::Write;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

pub use self::fetch::{CompatibilityCheck, Fetcher, ProgressReport, SnapshotSource};
pub use self::serve::Snapshots;
use crate::log::LogIdentity;
use crate::store::{FORMAT, StoreCopy};
use bitacora_protocol::NextOffset;

/// Whether a node without a store that it can use takes another member's before it reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SnapshotUse {
    /// if a member has one that fits
    Auto,
    Never,
}

/// The folder of the store in a data folder.
const STORE: &str = "store";

pub const MAGIC: &[u8; 8] = b"BTCSNAP2";
/// A topic of 10,000 partitions has far less.
const MAX_HEADER_BYTES: usize = 1 << 20;
/// Bytes in a frame, at most.
const FRAME_BYTES: usize = 256 * 1024;
/// Room over the size that was announced: for what is written while the copy is made.
const ROOM_BYTES: u64 = 64 << 20;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Of the bytes in the store.
    pub format: String,
    pub identity: LogIdentity,
    /// Next offset of each partition, or an earlier one: the copy is made after this.
    pub next: Vec<i64>,
    /// When the store was last caught up, ms since the epoch.
    pub caught_up_at: i64,
    /// About as many bytes will follow.
    pub bytes: u64,
}

impl Header {
    /// What can be told of a copy before it is made; `None` if the store is tied to no log.
    #[must_use]
    pub fn of(copy: &StoreCopy) -> Option<Self> {
        Some(Self {
            format: FORMAT.to_owned(),
            identity: copy.checkpoint.identity.clone()?,
            next: copy.checkpoint.next.iter().map(|NextOffset(next)| *next).collect(),
            caught_up_at: copy.checkpoint.caught_up_at?.ms(),
            bytes: copy.bytes,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        [&MAGIC[..], &(json.len() as u32).to_be_bytes(), &json].concat()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("it is no snapshot of a store")]
    NoSnapshot,
    #[error("its header can't be read: {0}")]
    Header(String),
    #[error("its format is {0}, this node's is {FORMAT}")]
    Format(String),
    #[error("{0}")]
    Unwanted(String),
    #[error("it is larger than the {0} bytes that it announced")]
    TooLarge(u64),
    #[error("it is damaged: a frame of {0} bytes")]
    Frame(u32),
    #[error("it is damaged: its checksum is another")]
    Checksum,
    #[error("it ends early, after {0} bytes of the store")]
    CutOff(u64),
    #[error("something follows its end")]
    Trailing,
    #[error("it can't be written to disk: {0}")]
    Disk(#[from] std::io::Error),
}

/// Takes a stream apart, wherever its pieces are cut, and writes the store's file to `out`.
pub struct Receiver<W, A> {
    out: W,
    accept: A,
    unread: Vec<u8>,
    state: State,
    header: Option<Header>,
    hash: Xxh3,
    written: u64,
}

enum State {
    Start,
    Length,
    /// Bytes left of a frame.
    Frame(usize),
    End,
    Done,
}

impl<W: Write, A: FnMut(&Header) -> Result<(), String>> Receiver<W, A> {
    /// `accept` sees the header before anything is written, and may refuse the rest with a reason.
    pub fn new(out: W, accept: A) -> Self {
        Self {
            out,
            accept,
            unread: Vec::new(),
            state: State::Start,
            header: None,
            hash: Xxh3::new(),
            written: 0,
        }
    }

    /// Bytes of the store's file so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Takes the stream's next bytes.
    ///
    /// # Errors
    /// When the stream is not a snapshot, not wanted or damaged, or the disk fails. No more may be pushed then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while self.take_next(&mut bytes)? {}
        Ok(())
    }

    /// Takes the next part of the stream off the front of `bytes`. Returns whether there may be another; if not, all of `bytes` is
    /// taken.
    fn take_next(&mut self, bytes: &mut &[u8]) -> Result<bool, StreamError> {
        match self.state {
            State::Start => self.take_header(bytes),
            State::Length => self.take_length(bytes),
            State::Frame(left) => self.take_content(bytes, left),
            State::End => self.take_end(bytes),
            State::Done if bytes.is_empty() && self.unread.is_empty() => Ok(false),
            State::Done => Err(StreamError::Trailing),
        }
    }

    /// The magic and the header.
    fn take_header(&mut self, bytes: &mut &[u8]) -> Result<bool, StreamError> {
        let Some(head) = self.take(bytes, MAGIC.len() + 4) else { return Ok(false) };
        let (magic, length) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(StreamError::NoSnapshot);
        }
        let length = number(length) as usize;
        if length > MAX_HEADER_BYTES {
            return Err(StreamError::Header(format!("it has {length} bytes")));
        }
        // Back, until the rest of it is there.
        self.unread.splice(..0, head);
        let Some(header) = self.take(bytes, MAGIC.len() + 4 + length) else { return Ok(false) };
        let header: Header = serde_json::from_slice(&header[MAGIC.len() + 4..])
            .map_err(|error| StreamError::Header(error.to_string()))?;
        if header.format != FORMAT {
            return Err(StreamError::Format(header.format));
        }
        (self.accept)(&header).map_err(StreamError::Unwanted)?;
        self.header = Some(header);
        self.state = State::Length;
        Ok(true)
    }

    /// The length of a frame, or the 0 behind the last one.
    fn take_length(&mut self, bytes: &mut &[u8]) -> Result<bool, StreamError> {
        let Some(length) = self.take(bytes, 4) else { return Ok(false) };
        self.state = match number(&length) {
            0 => State::End,
            length if length as usize > FRAME_BYTES => return Err(StreamError::Frame(length)),
            length => State::Frame(length as usize),
        };
        let announced = self.header.as_ref().map_or(0, |header| header.bytes);
        if self.written > announced.saturating_add(announced / 4).saturating_add(ROOM_BYTES) {
            return Err(StreamError::TooLarge(announced));
        }
        Ok(true)
    }

    /// As much as there is of a frame of which `left` bytes are missing.
    fn take_content(&mut self, bytes: &mut &[u8], left: usize) -> Result<bool, StreamError> {
        let (now, rest) = bytes.split_at(left.min(bytes.len()));
        self.out.write_all(now)?;
        self.hash.update(now);
        self.written += now.len() as u64;
        *bytes = rest;
        self.state = if now.len() == left { State::Length } else { State::Frame(left - now.len()) };
        Ok(!rest.is_empty())
    }

    /// The length and the checksum of all frames.
    fn take_end(&mut self, bytes: &mut &[u8]) -> Result<bool, StreamError> {
        let Some(end) = self.take(bytes, 24) else { return Ok(false) };
        let (length, checksum) = end.split_at(8);
        let whole = length == self.written.to_be_bytes();
        if !whole || checksum != self.hash.digest128().to_be_bytes() {
            return Err(StreamError::Checksum);
        }
        self.state = State::Done;
        Ok(true)
    }

    /// The stream has ended: returns what it was of, and where it was written to.
    ///
    /// # Errors
    /// When the stream is not whole.
    pub fn finish(self) -> Result<(Header, W), StreamError> {
        match (self.state, self.header) {
            (State::Done, Some(header)) => Ok((header, self.out)),
            _ => Err(StreamError::CutOff(self.written)),
        }
    }

    /// So many bytes of what was left over and of `bytes`; `None`, and all is kept, if there are fewer.
    fn take(&mut self, bytes: &mut &[u8], count: usize) -> Option<Vec<u8>> {
        let missing = count.saturating_sub(self.unread.len()).min(bytes.len());
        self.unread.extend_from_slice(&bytes[..missing]);
        *bytes = &bytes[missing..];
        if self.unread.len() < count {
            return None;
        }
        let rest = self.unread.split_off(count);
        Some(std::mem::replace(&mut self.unread, rest))
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_be_bytes)
}

#[cfg(test)]
mod tests;
