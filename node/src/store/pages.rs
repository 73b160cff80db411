//! Whether a file is a whole copy of an LMDB environment, found out before LMDB opens it.
//!
//! LMDB trusts its file: a wrong byte in a page, or a page that is not there, can end the process (SIGSEGV, SIGBUS, a failed assertion)
//! at the first read that comes across it. A copy from another member arrives under a checksum, so what does this add?
//!
//! - The checksum says that the bytes are those that the sender read, not that they were whole there. LMDB keeps no checksum of its pages,
//!   and a compacting copy takes them over as they are. So one node's failing disk or memory would hand its damage on, under a
//!   good checksum, to every node that is started after it, and each would die of it again after every restart. Refused
//!   here, the copy costs a warning, and the store is built from the log.
//! - The same holds for a snapshot that was kept in a file as a backup, whose sender nobody can ask again.
//! - A file that LMDB would refuse or misread (another version of its format, another size of pages) gets a sentence of its own.
//!
//! It looks at the bytes in the order in which they arrive, so a copy is looked at while it is fetched. The node's own file is only looked at
//! as far as its metadata ([`check_metadata`]): a file that was cut short would end the process as well.
//!
//! The layout is that of LMDB's `mdb.c`, in the byte order of the machine, as a compacting copy has it: two pages of metadata, of which
//! the second counts, then pages that belong to one tree each, and none that is free. Whatever a page names comes before it: values before the
//! leaf of their key, pages below before the page above, the databases' trees before the leaf of their names.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
/// Bytes of metadata, of which the first page's lie behind its header.
const META_BYTES: usize = 136;
/// Bytes that a page begins with, and a node in it.
const PAGE_HEADER: usize = 16;
const NODE_HEADER: usize = 8;
const TREE_BYTES: usize = 48;
/// LMDB's cursors go no deeper.
const MAX_DEPTH: u16 = 32;
const NO_PAGE: u64 = u64::MAX;

/// Kinds of page.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;
/// Kinds of node in a leaf, beside those that hold their value: it lies in pages of its own, or is a tree.
const ELSEWHERE: u16 = 1;
const SUBTREE: u16 = 2;
/// The only flag of the tree of free pages, and a tree of these databases has none.
const INTEGER_KEYS: u16 = 8;

/// A copy whose pages were all looked at, and found to be whole.
#[derive(Debug, PartialEq, Eq)]
pub struct WholePages(());

/// Looks at the metadata of an environment that this node wrote, no further.
///
/// # Errors
/// What is wrong.
pub fn check_metadata(mut file: impl Read + Seek) -> Result<(), String> {
    let bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    if bytes == 0 {
        // LMDB begins anew.
        return Ok(());
    }
    let (first, second) = metas(&mut file)?;
    let meta = if first.transaction < second.transaction { second } else { first };
    // The last pages may be missing if they are free; the roots may not.
    let there = |tree: Tree| tree.root == NO_PAGE || tree.root < bytes / meta.page_bytes as u64;
    if meta.trees.into_iter().all(there) {
        Ok(())
    } else {
        Err(format!("it ends early, after {bytes} bytes"))
    }
}

struct Meta {
    page_bytes: usize,
    /// Of free pages, and of the names of the databases.
    trees: [Tree; 2],
    /// How many there are, these two among them.
    pages: u64,
    transaction: u64,
}

#[derive(Clone, Copy)]
struct Tree {
    flags: u16,
    depth: u16,
    /// Branches, leaves, and those of values.
    pages: [u64; 3],
    entries: u64,
    root: u64,
}

fn metas(file: &mut (impl Read + Seek)) -> Result<(Meta, Meta), String> {
    let first = meta(file, 0)?;
    let second = meta(file, first.page_bytes as u64)?;
    if first.page_bytes == second.page_bytes {
        Ok((first, second))
    } else {
        Err("it has pages of two sizes".to_owned())
    }
}

fn meta(file: &mut (impl Read + Seek), at: u64) -> Result<Meta, String> {
    let mut page = [0; PAGE_HEADER + META_BYTES];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut page)).map_err(unreadable)?;
    let bytes = &page[PAGE_HEADER..];
    if u16_at(&page, 10) != META || u32_at(bytes, 0) != MAGIC {
        return Err("it is no file of LMDB".to_owned());
    }
    if u32_at(bytes, 4) != VERSION {
        return Err(format!("its format is LMDB's {}, this node's is {VERSION}", u32_at(bytes, 4)));
    }
    let page_bytes = u32_at(bytes, 24) as usize;
    if !page_bytes.is_power_of_two() || !(512..=32_768).contains(&page_bytes) {
        return Err(format!("its pages are of {page_bytes} bytes"));
    }
    Ok(Meta {
        page_bytes,
        trees: [tree(&bytes[24..]), tree(&bytes[24 + TREE_BYTES..])],
        pages: u64_at(bytes, 120).saturating_add(1),
        transaction: u64_at(bytes, 128),
    })
}

fn tree(bytes: &[u8]) -> Tree {
    Tree {
        flags: u16_at(bytes, 4),
        depth: u16_at(bytes, 6),
        pages: [8, 16, 24].map(|at| u64_at(bytes, at)),
        entries: u64_at(bytes, 32),
        root: u64_at(bytes, 40),
    }
}

/// Looks at every page of a copy whose bytes are pushed one after the other.
#[derive(Default)]
pub struct CopyCheck {
    /// The two pages of metadata, until both are there.
    begin: Vec<u8>,
    /// The second page's, when both were there.
    meta: Option<Meta>,
    /// The number of the page that comes next.
    next: u64,
    /// What there is of it.
    part: Vec<u8>,
    /// How many of the next pages are the rest of a value.
    value_pages: u64,
    /// What was looked at and is not yet named by another page, by the number of its first page.
    unnamed: HashMap<u64, Unnamed>,
    /// Where the nodes of a page lie, and how long they are.
    places: Vec<(usize, usize)>,
}

/// What another page has to name.
#[derive(Clone, Copy)]
enum Unnamed {
    /// A value on so many pages.
    Value(u64),
    Pages(Below),
}

/// A page of a tree and all below it.
#[derive(Clone, Copy)]
struct Below {
    depth: u16,
    entries: u64,
    /// Whether trees are among them.
    has_trees: bool,
}

impl CopyCheck {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// What is wrong, and in which page. No more may be pushed then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let page_bytes = match &self.meta {
            Some(meta) => meta.page_bytes,
            None => match self.take_metadata(&mut bytes)? {
                Some(page_bytes) => page_bytes,
                None => return Ok(()),
            },
        };
        if !self.part.is_empty() {
            let missing = (page_bytes - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.part.len() < page_bytes {
                return Ok(());
            }
            let page = std::mem::take(&mut self.part);
            self.page(&page)?;
            self.part = page;
            self.part.clear();
        }
        let mut pages = bytes.chunks_exact(page_bytes);
        pages.by_ref().try_for_each(|page| self.page(page))?;
        self.part.extend_from_slice(pages.remainder());
        Ok(())
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// What is wrong.
    pub fn finish(mut self) -> Result<WholePages, String> {
        // It says which of the two is missing.
        let Some(Meta { trees: [_, main], .. }) = self.meta else {
            return Err(metas(&mut std::io::Cursor::new(&self.begin)).err().unwrap_or_else(ends_early));
        };
        if self.next != self.pages() || !self.part.is_empty() {
            return Err(self.of_another_length(""));
        }
        self.tree(main, true)?;
        match self.unnamed.keys().min() {
            Some(number) => Err(format!("page {number} belongs to nothing")),
            None => Ok(WholePages(())),
        }
    }

    /// How many pages there are, by the metadata.
    fn pages(&self) -> u64 {
        self.meta.as_ref().map_or(0, |meta| meta.pages)
    }

    fn of_another_length(&self, than: &str) -> String {
        let page_bytes = self.meta.as_ref().map_or(0, |meta| meta.page_bytes as u64);
        let bytes = self.next * page_bytes + self.part.len() as u64;
        format!("it has {than}{bytes} bytes, and its metadata tell of another number")
    }

    /// Takes bytes until both pages of metadata are there; returns how long a page is.
    fn take_metadata(&mut self, bytes: &mut &[u8]) -> Result<Option<usize>, String> {
        let mut extend = |begin: &mut Vec<u8>, until: usize| {
            let missing = until.saturating_sub(begin.len()).min(bytes.len());
            begin.extend_from_slice(&bytes[..missing]);
            *bytes = &bytes[missing..];
            begin.len() >= until
        };
        if !extend(&mut self.begin, PAGE_HEADER + META_BYTES) {
            return Ok(None);
        }
        let page_bytes = meta(&mut std::io::Cursor::new(&self.begin), 0)?.page_bytes;
        if !extend(&mut self.begin, 2 * page_bytes) {
            return Ok(None);
        }
        let (first, second) = metas(&mut std::io::Cursor::new(&self.begin))?;
        if first.transaction != 0 || second.transaction != 1 {
            return Err("its metadata are not those of a copy".to_owned());
        }
        if first.trees[1].root != NO_PAGE
            || second.trees[0].root != NO_PAGE
            || second.trees[0].flags != INTEGER_KEYS
        {
            return Err("its metadata name pages that are free".to_owned());
        }
        self.next = 2;
        self.meta = Some(second);
        Ok(Some(page_bytes))
    }

    /// Looks at the next page.
    fn page(&mut self, page: &[u8]) -> Result<(), String> {
        let (number, pages) = (self.next, self.pages());
        if number >= pages {
            return Err(self.of_another_length("more than "));
        }
        self.next += 1;
        if self.value_pages > 0 {
            self.value_pages -= 1;
            return Ok(());
        }
        if u64_at(page, 0) != number {
            return Err(format!("page {number} is another"));
        }
        let found = match u16_at(page, 10) {
            OVERFLOW => {
                let length = u64::from(u32_at(page, 12));
                if length == 0 || length > pages - number {
                    return Err(format!("page {number} begins a value of {length} pages"));
                }
                self.value_pages = length - 1;
                Unnamed::Value(length)
            }
            kind @ (LEAF | BRANCH) => Unnamed::Pages(self.nodes(number, page, kind)?),
            _ => return Err(format!("page {number} is of another kind")),
        };
        self.unnamed.insert(number, found);
        Ok(())
    }

    /// Looks at the nodes of a leaf or a branch, and takes what they name.
    fn nodes(&mut self, number: u64, page: &[u8], kind: u16) -> Result<Below, String> {
        let wrong = |what: &str| format!("page {number} {what}");
        let (lower, upper) = (usize::from(u16_at(page, 12)), usize::from(u16_at(page, 14)));
        let least = if kind == BRANCH { 2 } else { 1 };
        if lower < PAGE_HEADER + 2 * least || lower % 2 != 0 || lower > upper || upper > page.len() {
            return Err(wrong("has nonsense in its header"));
        }
        // As LMDB counts, so that two nodes always fit into a page.
        let most = (((page.len() - PAGE_HEADER) / 2) & !1) - 2;
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        let mut below = Below { depth: 1, entries: 0, has_trees: false };
        for (index, pointer) in page[PAGE_HEADER..lower].chunks_exact(2).enumerate() {
            let at = usize::from(u16_at(pointer, 0));
            let node = page.get(at..).filter(|node| at >= upper && node.len() >= NODE_HEADER);
            let node = node.ok_or_else(|| wrong("has a node outside"))?;
            // The length of the value, or the lower bits of a page's number.
            let low = u32_at(node, 0);
            let (flags, key) = (u16_at(node, 4), usize::from(u16_at(node, 6)));
            let inside = match (kind, flags) {
                (BRANCH, _) => 0,
                (_, 0) => low as usize,
                (_, ELSEWHERE) => 8,
                (_, SUBTREE) if low as usize == TREE_BYTES => TREE_BYTES,
                _ => return Err(wrong("has a node of another kind")),
            };
            let size = NODE_HEADER + key + inside;
            let content = node
                .get(NODE_HEADER + key..size)
                .filter(|_| size <= most && key + TREE_BYTES <= most - NODE_HEADER);
            let content = content.ok_or_else(|| wrong("has a node that is too large"))?;
            places.push((at, size.next_multiple_of(2)));
            match (kind, flags) {
                (BRANCH, _) => {
                    let child = self.pages_below(u64::from(low) | (u64::from(flags) << 32))?;
                    if index > 0 && below.depth != child.depth + 1 {
                        return Err(wrong("has pages of several depths below it"));
                    }
                    below.depth = child.depth + 1;
                    below.entries += child.entries;
                    below.has_trees |= child.has_trees;
                    continue;
                }
                (_, ELSEWHERE) => self.value(u64_at(content, 0), low as usize)?,
                (_, SUBTREE) => {
                    self.tree(tree(content), false)?;
                    below.has_trees = true;
                }
                _ => {}
            }
            if key == 0 {
                return Err(wrong("has an empty key"));
            }
            below.entries += 1;
        }
        if below.depth > MAX_DEPTH {
            return Err(wrong("lies too far above the leaves"));
        }
        places.sort_unstable();
        // Side by side up to the end, as LMDB moves them.
        let end = places.iter().try_fold(upper, |end, (at, size)| (*at == end).then_some(end + size));
        self.places = places;
        if end != Some(page.len()) {
            return Err(wrong("has nodes that overlap"));
        }
        Ok(below)
    }

    /// Takes a whole tree. `main` is that of the names of the databases.
    fn tree(&mut self, tree: Tree, main: bool) -> Result<(), String> {
        if tree.flags != 0 || tree.depth > MAX_DEPTH {
            return Err("it has a database of another kind".to_owned());
        }
        // Their sum must not overflow.
        if tree.pages.iter().any(|pages| *pages > self.pages()) {
            return Err("it has a database that tells of more pages than there are".to_owned());
        }
        let below = if tree.root == NO_PAGE {
            Below { depth: 0, entries: 0, has_trees: false }
        } else {
            self.pages_below(tree.root)?
        };
        if below.depth != tree.depth {
            return Err(format!("it has a database {} pages deep that tells of {}", below.depth, tree.depth));
        }
        if below.has_trees && !main {
            return Err("it has a database within a database".to_owned());
        }
        if below.entries == tree.entries {
            Ok(())
        } else {
            Err(format!("it has a database of {} entries that tells of {}", below.entries, tree.entries))
        }
    }

    /// Takes a page of a tree, with all below it.
    fn pages_below(&mut self, number: u64) -> Result<Below, String> {
        match self.take(number)? {
            Unnamed::Pages(below) => Ok(below),
            Unnamed::Value(_) => Err(format!("page {number} is of another kind")),
        }
    }

    /// Takes the pages of a value. There may be more than it needs: it was longer before.
    fn value(&mut self, number: u64, bytes: usize) -> Result<(), String> {
        let page_bytes = self.meta.as_ref().map_or(1, |meta| meta.page_bytes);
        match self.take(number)? {
            Unnamed::Value(pages) if pages as usize > (PAGE_HEADER - 1 + bytes) / page_bytes => Ok(()),
            _ => Err(format!("page {number} does not begin a value of {bytes} bytes")),
        }
    }

    fn take(&mut self, number: u64) -> Result<Unnamed, String> {
        let taken = self.unnamed.remove(&number);
        taken.ok_or_else(|| match number {
            number if number >= self.pages() => format!("it has no page {number}"),
            number if number >= self.next => format!("page {number} comes behind what names it"),
            number => format!("page {number} is in two places"),
        })
    }
}

fn ends_early() -> String {
    "it ends early".to_owned()
}

#[allow(clippy::needless_pass_by_value)] // as `map_err` has it
fn unreadable(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ends_early(),
        _ => format!("it can't be read: {error}"),
    }
}

/// The number at a place that lies within `bytes`.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    chunk(bytes, at).map_or(0, u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    chunk(bytes, at).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    chunk(bytes, at).map_or(0, u64::from_ne_bytes)
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
