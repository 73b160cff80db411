//! Where runs keep their stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitacora_node::store::Store;

/// A folder for one run at a time, and a store to compare with.
pub struct Workspace {
    dir: tempfile::TempDir,
    spare: Arc<Store>,
}

impl Workspace {
    pub fn new() -> Self {
        // No disk is waited for where memory can be a folder.
        let memory = PathBuf::from("/dev/shm");
        let dir = tempfile::tempdir_in(&memory).or_else(|_| tempfile::tempdir()).expect("a temporary folder");
        let spare = Arc::new(Store::open(&dir.path().join("spare"), 1 << 20).expect("opens"));
        Self { dir, spare }
    }

    /// Calls `run` with an empty folder, which is removed again, and the store to compare with.
    pub fn in_folder<T>(&self, run: impl FnOnce(&Path, &Arc<Store>) -> T) -> T {
        let nodes = self.dir.path().join("nodes");
        std::fs::create_dir_all(&nodes).expect("a folder");
        let end = run(&nodes, &self.spare);
        std::fs::remove_dir_all(&nodes).expect("it is ours");
        end
    }
}
