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
//! It costs one sequential pass over a file that is read whole anyway, to look at its records. The node's own file is only looked at
//! as far as its metadata ([`check_metadata`]): a file that was cut short would end the process as well.
//!
//! The layout is that of LMDB's `mdb.c`, in the byte order of the machine, as a compacting copy has it: two pages of metadata, of which
//! the second counts, then pages that belong to one tree each, and none that is free.

use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};

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
/// Read at once where leaves are: they lie in the order in which they are looked at.
const PAGES_AHEAD: u64 = 64;
/// What is wrong with a copy that was not looked at up to its end.
pub const GIVEN_UP: &str = "nobody waits for it any more";

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

/// Looks at every page of a copy, until it is to stop.
///
/// # Errors
/// What is wrong, and in which page.
pub fn check_copy(mut file: impl Read + Seek, stop: &AtomicBool) -> Result<(), String> {
    let bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let (first, second) = metas(&mut file)?;
    if first.transaction != 0 || second.transaction != 1 {
        return Err("its metadata are not those of a copy".to_owned());
    }
    if first.trees[1].root != NO_PAGE
        || second.trees[0].root != NO_PAGE
        || second.trees[0].flags != INTEGER_KEYS
    {
        return Err("its metadata name pages that are free".to_owned());
    }
    let page_bytes = second.page_bytes;
    let pages =
        second.last_page.checked_add(1).filter(|pages| pages.checked_mul(page_bytes as u64) == Some(bytes));
    let pages = pages.and_then(|pages| usize::try_from(pages).ok());
    let pages =
        pages.ok_or_else(|| format!("it has {bytes} bytes, and its metadata tell of another number"))?;
    let mut seen = vec![false; pages];
    seen.iter_mut().take(2).for_each(|seen| *seen = true);
    let mut walk = Walk { file, page_bytes, seen, ahead: Ahead::default(), spare: Vec::new(), stop };
    walk.tree(second.trees[1], true)?;
    match walk.seen.iter().position(|seen| !seen) {
        Some(number) => Err(format!("page {number} belongs to nothing")),
        None => Ok(()),
    }
}

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
    last_page: u64,
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
        last_page: u64_at(bytes, 120),
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

struct Walk<'a, F> {
    file: F,
    page_bytes: usize,
    /// Per page.
    seen: Vec<bool>,
    ahead: Ahead,
    /// Of pages that were looked at.
    spare: Vec<Vec<u8>>,
    stop: &'a AtomicBool,
}

/// What was read beyond a leaf: the next leaf follows, mostly.
#[derive(Default)]
struct Ahead {
    /// The number of the first page.
    from: u64,
    bytes: Vec<u8>,
}

impl Ahead {
    fn page(&self, number: u64, page_bytes: usize) -> Option<&[u8]> {
        let at = usize::try_from(number.checked_sub(self.from)?).ok()?.checked_mul(page_bytes)?;
        self.bytes.get(at..at.checked_add(page_bytes)?)
    }
}

impl<F: Read + Seek> Walk<'_, F> {
    /// `main` is the tree of the names of the databases.
    fn tree(&mut self, tree: Tree, main: bool) -> Result<(), String> {
        if tree.flags != 0 || tree.depth > MAX_DEPTH {
            return Err("it has a database of another kind".to_owned());
        }
        // Their sum must not overflow.
        if tree.pages.iter().any(|pages| *pages > self.seen.len() as u64) {
            return Err("it has a database that tells of more pages than there are".to_owned());
        }
        let entries = if tree.root == NO_PAGE { 0 } else { self.below(tree.root, tree.depth, main)? };
        if entries == tree.entries {
            Ok(())
        } else {
            Err(format!("it has a database of {entries} entries that tells of {}", tree.entries))
        }
    }

    /// Looks at a page and all below it. Returns how many entries there are.
    fn below(&mut self, number: u64, depth: u16, main: bool) -> Result<u64, String> {
        let page = self.take(number, if depth == 1 { PAGES_AHEAD } else { 1 })?;
        let wrong = |what: &str| format!("page {number} {what}");
        let kind = if depth == 1 { LEAF } else { BRANCH };
        // A tree of no depth has no page.
        if depth == 0 || u16_at(&page, 10) != kind {
            return Err(wrong("is of another kind"));
        }
        let (lower, upper) = (usize::from(u16_at(&page, 12)), usize::from(u16_at(&page, 14)));
        let least = if kind == BRANCH { 2 } else { 1 };
        if lower < PAGE_HEADER + 2 * least || lower % 2 != 0 || lower > upper || upper > page.len() {
            return Err(wrong("has nonsense in its header"));
        }
        // As LMDB counts, so that two nodes always fit into a page.
        let most = (((page.len() - PAGE_HEADER) / 2) & !1) - 2;
        let mut places = Vec::with_capacity((lower - PAGE_HEADER) / 2);
        let mut entries = 0;
        for pointer in page[PAGE_HEADER..lower].chunks_exact(2) {
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
                (_, SUBTREE) if main && low as usize == TREE_BYTES => TREE_BYTES,
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
                    entries += self.below(u64::from(low) | (u64::from(flags) << 32), depth - 1, main)?;
                }
                (_, ELSEWHERE) => self.value(u64_at(content, 0), low as usize)?,
                (_, SUBTREE) => self.tree(tree(content), false)?,
                _ => {}
            }
            if kind == LEAF {
                if key == 0 {
                    return Err(wrong("has an empty key"));
                }
                entries += 1;
            }
        }
        places.sort_unstable();
        // Side by side up to the end, as LMDB moves them.
        let end = places.iter().try_fold(upper, |end, (at, size)| (*at == end).then_some(end + size));
        if end != Some(page.len()) {
            return Err(wrong("has nodes that overlap"));
        }
        self.spare.push(page);
        Ok(entries)
    }

    /// Looks at the pages of a value. There may be more than it needs: it was longer before.
    fn value(&mut self, number: u64, bytes: usize) -> Result<(), String> {
        let page = self.take(number, 1)?;
        let pages = u32_at(&page, 12);
        if u16_at(&page, 10) != OVERFLOW || (pages as usize) <= (PAGE_HEADER - 1 + bytes) / self.page_bytes {
            return Err(format!("page {number} does not begin a value of {bytes} bytes"));
        }
        self.spare.push(page);
        (1..u64::from(pages)).try_for_each(|further| self.mark(number + further))
    }

    /// Reads a page that nothing else may have, and as many from it on as are likely to be asked for next.
    fn take(&mut self, number: u64, pages: u64) -> Result<Vec<u8>, String> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(GIVEN_UP.to_owned());
        }
        self.mark(number)?;
        let mut page = self.spare.pop().unwrap_or_default();
        page.clear();
        if let Some(known) = self.ahead.page(number, self.page_bytes) {
            page.extend_from_slice(known);
        } else {
            let pages = pages.min(self.seen.len() as u64 - number) as usize;
            let bytes = if pages == 1 { &mut page } else { &mut self.ahead.bytes };
            bytes.resize(pages * self.page_bytes, 0);
            let at = SeekFrom::Start(number * self.page_bytes as u64);
            self.file.seek(at).and_then(|_| self.file.read_exact(bytes)).map_err(unreadable)?;
            if pages > 1 {
                self.ahead.from = number;
                page.extend_from_slice(&self.ahead.bytes[..self.page_bytes]);
            }
        }
        if u64_at(&page, 0) == number { Ok(page) } else { Err(format!("page {number} is another")) }
    }

    fn mark(&mut self, number: u64) -> Result<(), String> {
        let seen = usize::try_from(number).ok().and_then(|number| self.seen.get_mut(number));
        match seen.map(|seen| std::mem::replace(seen, true)) {
            Some(false) => Ok(()),
            Some(true) => Err(format!("page {number} is in two places")),
            None => Err(format!("it has no page {number}")),
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // as `map_err` has it
fn unreadable(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it ends early".to_owned(),
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
