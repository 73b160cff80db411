//! LMDB environments: how every one of this process is opened.

use std::fs;
use std::io;
use std::path::Path;

use heed::{Env, EnvFlags, EnvOpenOptions};

/// Address space reserved for LMDB's map, not memory and not disk. Halved until the system grants it.
const MAP_BYTES: usize = 1 << 40;
/// One reader slot for each thread that ever reads.
const MAX_READERS: u32 = 1024;
/// LMDB's own name for its table of readers; and a size that has room for them.
const LOCK_FILE: &str = "lock.mdb";
const LOCK_BYTES: usize = MAX_READERS as usize * 64 + 4096;

/// Opens an LMDB environment of this process's own.
#[allow(unsafe_code)]
pub(crate) fn open(dir: &Path, databases: u32, flags: EnvFlags) -> heed::Result<Env> {
    // LMDB maps it and leaves holes in it: one that is touched on a full disk would end the process (SIGBUS), at any read.
    fs::write(dir.join(LOCK_FILE), vec![0; LOCK_BYTES])?;
    let mut map_bytes = MAP_BYTES;
    loop {
        let mut options = EnvOpenOptions::new();
        options.max_dbs(databases).max_readers(MAX_READERS).map_size(map_bytes);
        // SAFETY: the map must not be changed behind LMDB's back. The folder is locked by `DataDir` for this process,
        // and nothing else in this process opens the file. The callers' flags are about syncing only.
        match unsafe { options.flags(flags).open(dir) } {
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && map_bytes > 1 << 30 =>
            {
                map_bytes /= 2;
            }
            opened => return opened,
        }
    }
}
