//! Syncs the file of a database without SQLite, so that a checkpoint in a thread of its own leaves nothing to sync.
//!
//! SQLite locks a database with POSIX locks. If a process closes any descriptor of a file, it loses all of its POSIX locks
//! on that file. So a descriptor of a database must stay open for as long as the process runs. There is one for each
//! database that the process opens.

use super::files::{Inode, inode};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The descriptors. An open descriptor keeps its inode number from being used again.
static OPEN: Mutex<BTreeMap<Inode, &'static File>> = Mutex::new(BTreeMap::new());

/// Syncs one database.
#[derive(Debug, Clone, Copy)]
pub(super) struct DatabaseSync(&'static File);

impl DatabaseSync {
    /// Opens the file of a database, if this process has not opened it before.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&inode(&std::fs::metadata(database)?)) {
            return Ok(Self(file));
        }
        let file: &'static File = Box::leak(Box::new(File::open(database)?));
        open.insert(inode(&file.metadata()?), file);
        Ok(Self(file))
    }

    /// Waits until everything that was written to the file is on the disk.
    pub(super) fn sync(self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseSync;

    #[test]
    fn a_database_has_one_descriptor_however_often_it_is_opened() -> anyhow::Result<()> {
        let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        for folder in [&folder, &other] {
            std::fs::write(folder.path().join("x.db"), "")?;
        }
        let open = |folder: &tempfile::TempDir| DatabaseSync::of(&folder.path().join("x.db"));
        let (first, again, other) = (open(&folder)?, open(&folder)?, open(&other)?);
        assert!(std::ptr::eq(first.0, again.0));
        assert!(!std::ptr::eq(first.0, other.0));
        first.sync()?;
        Ok(())
    }
}
