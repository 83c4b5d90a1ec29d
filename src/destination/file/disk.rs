//! The real file of a `file` destination: opens, locks, repairs, writes, syncs and cuts it.

use super::appender::{AppendFile, FileSnapshot};
use super::failure_text;
use super::last_line::{self, LastLine};
use crate::destination::ConfigurationError;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct DiskFile {
    path: PathBuf,
    /// Permissions of a file that eventd creates.
    mode: u32,
    file: Option<File>,
}

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
enum FileOpenError {
    /// An operator has to change something, so starting fails.
    #[error("{0}")]
    Configuration(String),
    /// It may pass by itself, so the delivery attempts report it.
    #[error("{0}")]
    Outage(String),
}

impl FileOpenError {
    fn new(path: &Path, error: &io::Error) -> Self {
        let text = failure_text::describe(path, "opened for writing", error);
        match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput => Self::Configuration(text),
            _ => Self::Outage(text),
        }
    }
}

impl DiskFile {
    /// Opens a regular file now. A pipe is opened with the first lines, because opening it waits for its reader.
    pub(super) fn open(path: &Path, mode: u32) -> Result<Self, ConfigurationError> {
        check_directory(path)?;
        let mut disk_file = Self::closed(path, mode);
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(is_a_directory(path)),
            Ok(metadata) if !metadata.is_file() => return Ok(disk_file),
            _ => {}
        }
        match open_and_repair(path, mode) {
            Ok(file) => disk_file.file = Some(file),
            Err(FileOpenError::Configuration(why)) => return Err(ConfigurationError(why)),
            // The first delivery attempt opens the file again and reports the outage.
            Err(FileOpenError::Outage(_)) => {}
        }
        Ok(disk_file)
    }

    /// A file that is opened with its first lines.
    pub(super) fn closed(path: &Path, mode: u32) -> Self {
        Self { path: path.to_owned(), mode, file: None }
    }

    fn failed(&self, participle: &str, error: &io::Error) -> String {
        failure_text::describe(&self.path, participle, error)
    }

    fn file(&self) -> Result<&File, String> {
        self.file.as_ref().ok_or_else(|| format!("{} is not open", self.path.display()))
    }

    fn metadata(&self, file: &File) -> Result<Metadata, String> {
        file.metadata().map_err(|error| self.failed("examined", &error))
    }
}

pub(super) fn is_a_directory(path: &Path) -> ConfigurationError {
    ConfigurationError(format!("{} is a directory: name a file in it", path.display()))
}

/// Checks that the directory of this file exists. eventd never creates it, because its name may be a typing error.
pub(super) fn check_directory(path: &Path) -> Result<(), ConfigurationError> {
    let Some(directory) = path.parent() else { return Ok(()) };
    let shown = directory.display();
    match directory.metadata() {
        Ok(metadata) if !metadata.is_dir() => {
            Err(ConfigurationError(format!("{shown} is not a directory: correct the path")))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let advice = if is_likely_host(path) {
                format!(". For a URL, write https://{}", path.display())
            } else {
                String::new()
            };
            Err(ConfigurationError(format!("the directory {shown} is missing: create it first{advice}")))
        }
        _ => Ok(()),
    }
}

/// Whether the path begins like a URL without its scheme: `billing.example.com/hook`.
fn is_likely_host(path: &Path) -> bool {
    let first = path.iter().next().and_then(|first| first.to_str()).unwrap_or_default();
    let is_plain = first.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    let ends_with_domain = first.rsplit_once('.').is_some_and(|(host, domain)| {
        !host.is_empty() && domain.len() >= 2 && domain.chars().all(|c| c.is_ascii_alphabetic())
    });
    is_plain && ends_with_domain
}

impl AppendFile for DiskFile {
    fn open(&mut self) -> Result<FileSnapshot, String> {
        if let Some(file) = &self.file {
            let metadata = self.metadata(file)?;
            if metadata.nlink() > 0 || !metadata.is_file() {
                return Ok(snapshot(&metadata));
            }
            // The file was deleted. Lines written to it would be lost when it is closed.
            self.file = None;
        }
        let file = open_and_repair(&self.path, self.mode).map_err(|error| error.to_string())?;
        let metadata = self.metadata(&file)?;
        self.file = Some(file);
        Ok(snapshot(&metadata))
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), String> {
        self.file()?.write_all(lines).map_err(|error| self.failed("written", &error))
    }

    fn sync(&mut self) -> Result<(), String> {
        let file = self.file()?;
        let is_regular = self.metadata(file)?.is_file();
        if is_regular { file.sync_data().map_err(|error| self.failed("synced", &error)) } else { Ok(()) }
    }

    fn cut(&mut self, to: FileSnapshot) -> Result<(), String> {
        let file = self.file()?;
        let metadata = self.metadata(file)?;
        if !metadata.is_file() || !snapshot(&metadata).is_same_file(to) || metadata.len() <= to.len_bytes {
            return Ok(());
        }
        file.set_len(to.len_bytes).and_then(|()| file.sync_all()).map_err(|error| self.failed("cut", &error))
    }

    fn close(&mut self) {
        self.file = None;
    }

    fn close_if_moved(&mut self) {
        let open = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|metadata| snapshot(&metadata));
        let at_path = self.path.metadata().ok().map(|metadata| snapshot(&metadata));
        if !open.zip(at_path).is_some_and(|(open, at_path)| open.is_same_file(at_path)) {
            self.file = None;
        }
    }
}

fn snapshot(metadata: &Metadata) -> FileSnapshot {
    FileSnapshot { device: metadata.dev(), inode: metadata.ino(), len_bytes: metadata.len() }
}

/// Opens the file. If it is a regular file, also locks it, repairs its last line, and makes its name durable.
fn open_and_repair(path: &Path, mode: u32) -> Result<File, FileOpenError> {
    let failed = |error: io::Error| FileOpenError::new(path, &error);
    // A pipe is opened for writing only. If it were opened for reading too, writing would succeed without a reader.
    let is_regular = path.metadata().map_or(true, |metadata| metadata.is_file());
    let mut options = OpenOptions::new();
    let file = options.append(true).read(is_regular).create(is_regular).mode(mode).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(file);
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let process = lock_holder(&metadata).map(|pid| format!(" (process {pid})")).unwrap_or_default();
            return Err(FileOpenError::Configuration(format!(
                "{} is in use by another eventd{process}: stop that process first, or use another file. With \
                 {{partition}} in the name, each partition has its own file",
                path.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    match last_line::examine(&file, metadata.len()).map_err(failed)? {
        LastLine::Whole => {}
        LastLine::LacksLineBreak => (&file).write_all(b"\n").and_then(|()| file.sync_all()).map_err(failed)?,
        LastLine::Torn { start } => file.set_len(start).and_then(|()| file.sync_all()).map_err(failed)?,
        LastLine::Foreign => {
            return Err(FileOpenError::Configuration(format!(
                "{} ends without a line break, and its last line was not written by eventd: add a line break at its end, \
                 or use another file",
                path.display()
            )));
        }
    }
    // The directory entry of a new file has to be durable too, else a power failure could remove the file.
    if metadata.len() == 0
        && let Some(directory) = path.parent()
    {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    Ok(file)
}

/// The process that holds the lock on this file, if `/proc/locks` names it.
fn lock_holder(metadata: &Metadata) -> Option<u32> {
    // A line is `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`: the process, then device (hexadecimal) and inode.
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let device = metadata.dev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    let locked_file = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_this_file = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&locked_file.as_str());
        is_this_file.then(|| fields[4].parse().ok())?
    })
}
